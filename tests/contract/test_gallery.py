"""Every example of the gallery has its parts, and runs: on few rows and with few steps, to be quick."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

mpl.use("Agg")

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "gallery").glob("plot_*.py"))

by_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def test_there_are_examples():
    assert len(EXAMPLES) >= 8


@by_example
def test_an_example_has_a_title_a_question_and_sections(path):
    source = path.read_text(encoding="utf-8")
    title, underline, *rest = ast.get_docstring(ast.parse(source)).splitlines()
    assert set(underline) == {"="}
    assert len(underline) >= len(title)
    assert any("?" in line for line in (title, *rest)), "no question"
    assert len(re.findall(r"^# %%\n# .+\n# -+$", source, flags=re.MULTILINE)) >= 2
    assert "random_state=0" in source


@pytest.mark.slow
@by_example
def test_an_example_runs(path, monkeypatch):
    # What takes time in an example is epochs; none of what it prints is compared with anything.
    for fit in ("latent_fit", "score_fit"):
        monkeypatch.setattr(f"skgroupvae.estimators.{fit}.resolve_schedule", lambda *_: (1, 64))
    try:
        runpy.run_path(str(path), run_name="__main__")
        assert plt.get_fignums(), "no picture"
    finally:
        plt.close("all")
