"""Progress bars: who sees one, and what is on it."""

from __future__ import annotations

import sys

import pytest

from skgroupvae import progress

HISTORY = [{"loss": 1.25, "validation_loss": 1.5}, {"loss": 0.5, "validation_loss": 0.75}]


def run(wrapper):
    """Epochs seen while a history grows."""
    history, seen = [], []
    for epoch in wrapper(range(2), history):
        history.append(HISTORY[epoch])
        seen.append(epoch)
    return seen


def test_the_bar_shows_epochs_time_left_and_losses(capsys):
    assert run(progress.progress_bar(True)) == [0, 1]
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "epoch" in shown
    assert "loss=0.500" in shown
    assert "validation=0.750" in shown


def test_a_fit_without_held_out_groups_shows_its_loss_alone(capsys):
    history = []
    for _ in progress.progress_bar(True)(range(1), history):
        history.append({"loss": 2.0})
    shown = capsys.readouterr().err
    assert "loss=2.000" in shown
    assert "validation" not in shown


def test_a_fit_that_stops_early_closes_its_bar(capsys):
    for _ in progress.progress_bar(True)(range(5), []):
        break
    assert "0/5" in capsys.readouterr().err


def test_a_fit_shows_its_bar(quick, exam, capsys):
    quick(verbose=True).fit(exam.X, groups=exam.groups)
    assert "loss=" in capsys.readouterr().err


@pytest.mark.parametrize("verbose", [False, "auto"])
def test_nobody_watching_sees_nothing(verbose, capsys):
    assert run(progress.progress_bar(verbose)) == [0, 1]
    assert capsys.readouterr().err == ""


def test_a_short_fit_shows_no_automatic_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run(progress.progress_bar("auto")) == [0, 1]
    assert "loss" not in capsys.readouterr().err


def test_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run(progress.progress_bar("auto")) == [0, 1]
    with pytest.raises(ImportError, match=r"skgroupvae\[progress\]"):
        progress.progress_bar(True)
