"""Every Python block of the documentation runs, in order, one namespace a file."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from skgroupvae import PUBLISHED_MODELS
from skgroupvae.training import resolve_schedule

mpl.use("Agg")

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# A block whose fence says "python no-run" is for reading only.
BLOCK = re.compile(r"^```python *\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+\.md)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[int, str]]:
    """(line before the first line of the block, code) of every block to run."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in BLOCK.finditer(text)]


def few_steps(max_epochs, batch_size, n_groups, auto_steps=None) -> tuple[int, int]:
    """Schedule of a fit: one at default settings need not be good here, only quick."""
    return resolve_schedule(max_epochs, batch_size, n_groups, 20)


# tests/contract/test_model_selection.py runs the blocks of this page, and compares what they print.
RUN_ELSEWHERE = {"docs/sklearn.md"}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page) and name_of(page) not in RUN_ELSEWHERE], ids=name_of
)
def test_python_blocks_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for fit in ("latent_fit", "score_fit"):
        monkeypatch.setattr(f"skgroupvae.estimators.{fit}.resolve_schedule", few_steps)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks(page):
        # Empty lines in front make a traceback name the line of the page.
        exec(compile("\n" * line + code, str(page), "exec"), namespace)
    plt.close("all")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_pages_exist(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).is_file(), f"{name_of(page)} links to {target}"


def test_family_table_is_that_of_the_package():
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| ([\w -]+?(?: \+ reg)?) \([^|]*\) (\|.*\|)$", text, flags=re.MULTILINE))
    assert set(table) == set(PUBLISHED_MODELS)
    for name, arguments in PUBLISHED_MODELS.items():
        cells = [cell.strip(" `") for cell in table[name].strip("|").split("|")]
        assert cells == [f'"{value}"' if value else "None" for value in arguments.values()]


def test_equations_table_names_what_exists():
    text = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    for row in re.findall(r"^\|[^|]*\| (`[^|]*\.py`[^|]*) \| ([^|]*) \|$", text, flags=re.MULTILINE):
        files = [
            ROOT / f if f.startswith(("examples/", "skgroupvae/")) else ROOT / "skgroupvae" / f
            for f in re.findall(r"`([\w/]+\.py)`", row[0])
        ]
        source = "\n".join(file.read_text(encoding="utf-8") for file in files)
        for symbol in re.findall(r"`([A-Za-z_][\w.]*)`", row[1]):
            assert symbol.endswith(".py") or symbol.split(".")[-1] in source, f"{symbol} is not in {row[0]}"


def test_where_to_look_lists_every_file():
    text = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([\w/]+\.py)` \|", text, flags=re.MULTILINE))
    package = ROOT / "skgroupvae"
    files = (file.relative_to(package) for file in package.glob("**/*.py") if file.name != "__init__.py")
    assert listed == {file.as_posix() for file in files}
