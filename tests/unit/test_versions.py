"""What a bug report contains, and the version as the files of the project state it."""

from __future__ import annotations

import os
import platform
import re
import sys
import tomllib
from pathlib import Path

import torch

import skgroupvae
from skgroupvae import versions

ROOT = Path(__file__).parents[2]


def test_versions_of_everything_are_printed(capsys):
    skgroupvae.show_versions()
    shown = capsys.readouterr().out
    assert f"python: {platform.python_version()}" in shown
    assert f"platform: {platform.platform()}" in shown
    assert f"skgroupvae: {skgroupvae.__version__}" in shown
    for name in (*versions._REQUIRED, *versions._OPTIONAL):
        assert re.search(rf"^    {name}: (\d|not installed)", shown, flags=re.MULTILINE), name


def test_cuda_and_threads_are_printed(monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before = torch.get_num_threads()
    versions.show_versions()
    assert torch.get_num_threads() == before
    shown = capsys.readouterr().out
    assert f"CUDA available: {torch.cuda.is_available()}" in shown
    assert f"CUDA version of torch: {torch.version.cuda}" in shown
    assert f"torch threads: {before}\n" in shown
    assert f"CPU cores: {os.cpu_count()}\n" in shown
    assert "OMP_NUM_THREADS: 3\n" in shown


def test_omp_num_threads_is_printed_only_if_set(monkeypatch, capsys):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    versions.show_versions()
    assert "OMP_NUM_THREADS" not in capsys.readouterr().out


def test_a_broken_torch_is_reported(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    versions.show_versions()
    assert "torch: cannot be imported (" in capsys.readouterr().out


def test_packages_that_estimators_and_tests_use_are_listed():
    assert {"formulaic", "scipy", "statsmodels"} <= {*versions._REQUIRED, *versions._OPTIONAL}


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
