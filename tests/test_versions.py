"""What a report of a fault shall contain, and the version as the project's files state it."""

from __future__ import annotations

import platform
import re
import tomllib
from pathlib import Path

import skgroupvae
from skgroupvae import versions

ROOT = Path(__file__).parent.parent


def test_versions_of_everything_are_printed(capsys):
    skgroupvae.show_versions()
    shown = capsys.readouterr().out
    assert f"python: {platform.python_version()}" in shown
    assert f"platform: {platform.platform()}" in shown
    assert f"skgroupvae: {skgroupvae.__version__}" in shown
    for name in (*versions._REQUIRED, *versions._OPTIONAL):
        assert re.search(rf"^    {name}: (\d|not installed)", shown, flags=re.MULTILINE), name


def test_a_missing_package_is_said_to_be_missing(monkeypatch, capsys):
    monkeypatch.setattr(versions, "_OPTIONAL", ("no-such-distribution",))
    versions.show_versions()
    assert "no-such-distribution: not installed" in capsys.readouterr().out


def test_lists_are_those_of_the_project_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]

    def names(requirements):
        return {re.match(r"[\w-]+", requirement).group() for requirement in requirements}

    assert set(versions._REQUIRED) == names(project["dependencies"])
    assert set(versions._OPTIONAL) <= set().union(*(names(extras[extra]) for extra in extras))


def test_the_citation_has_the_version_of_the_package():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (\S+)$", citation, flags=re.MULTILINE).group(1) == skgroupvae.__version__
