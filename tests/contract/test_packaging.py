"""What is in the files that are published: a wheel with the package and its license, and a whole sdist."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

import skgroupvae

ROOT = Path(__file__).parents[2]
STEM = f"skgroupvae-{skgroupvae.__version__}"

build = pytest.importorskip("hatchling.build", reason="hatchling, which builds the package, is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Names in the wheel, names in the sdist (without its top folder), and the metadata of the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # a build backend works in the folder of the project
        wheel, sdist = (folder / make(str(folder)) for make in (build.build_wheel, build.build_sdist))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"{STEM}.dist-info/METADATA").decode()
    with tarfile.open(sdist) as archive:
        members = {member.name.removeprefix(f"{STEM}/") for member in archive if member.isfile()}
    return names, members, metadata


def test_the_wheel_has_every_module_the_marker_of_types_and_the_license(built):
    wheel, _, _ = built
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "skgroupvae").glob("**/*.py")}
    assert modules <= wheel
    assert "skgroupvae/py.typed" in wheel
    assert f"{STEM}.dist-info/licenses/LICENSE" in wheel


def test_the_wheel_has_nothing_else(built):
    wheel, _, _ = built
    assert {name.split("/")[0] for name in wheel} == {"skgroupvae", f"{STEM}.dist-info"}
    assert {Path(name).suffix for name in wheel if name.startswith("skgroupvae/")} == {".py", ".typed"}


def test_the_sdist_is_enough_to_test_and_document(built):
    _, sdist, _ = built
    needed = {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "skgroupvae/py.typed"}
    assert needed <= sdist
    for pattern in ("tests/**/*.py", "tests/**/*.json", "docs/*.md", "examples/**/*.py"):
        assert {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)} <= sdist
    assert not {name for name in sdist if "__pycache__" in name or name.startswith((".venv", "dist/"))}


def test_the_metadata_name_license_python_and_extras(built):
    _, _, metadata = built
    for line in ("License-Expression: BSD-3-Clause", "Requires-Python: >=3.11", "Provides-Extra: docs"):
        assert line in metadata.splitlines()
    assert f"Version: {skgroupvae.__version__}" in metadata
