"""Progress bars: which fits show one, and what is on it."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from sklearn.base import clone

from skgroupvae import CxVAERegressor, GroupVAE

TINY = {"decoder": "mlp", "max_epochs": 2, "hidden_sizes": (4,), "random_state": 0}
ESTIMATORS = [GroupVAE(1, 1, n_importance_samples=2, **TINY), CxVAERegressor(**TINY)]
both = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)


def fitted(estimator, exam, **parameters):
    """Fitted to the scores of `exam`, which are the outcome of a regression."""
    data = (exam.X,) if isinstance(estimator, GroupVAE) else (np.arange(len(exam.X))[:, None], exam.X[:, 0])
    return clone(estimator).set_params(**parameters).fit(*data, groups=exam.groups)


@both
def test_the_bar_shows_epochs_time_left_and_loss(estimator, exam, capsys):
    model = fitted(estimator, exam, verbose=True)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "epoch" in shown
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d", shown)
    assert f"loss={model.history_['loss'].iloc[-1]:.3f}" in shown
    assert "validation" not in shown


def test_the_bar_shows_the_loss_of_groups_held_out(exam, capsys):
    model = fitted(ESTIMATORS[0], exam, verbose=True, early_stopping=True)
    assert f"validation={model.history_['validation_loss'].iloc[-1]:.3f}" in capsys.readouterr().err


def test_a_fit_that_stops_early_closes_its_bar(exam, capsys):
    model = fitted(
        ESTIMATORS[0],
        exam,
        verbose=True,
        early_stopping=True,
        max_epochs=50,
        n_iter_no_change=1,
        tol=10.0,
    )
    assert model.n_iter_ == 2
    assert "2/50" in capsys.readouterr().err


@both
def test_fits_that_only_decide_show_no_bar_and_neither_does_a_linear_model(estimator, exam, capsys):
    model = fitted(estimator, exam, verbose=True, decoder="auto")
    # A network that paid may still end below the linear model, which is kept then.
    assert (not model.history_.empty) <= capsys.readouterr().err.count(" 0/2 ") <= 1
    fitted(estimator, exam, verbose=True, decoder="linear")
    assert capsys.readouterr().err == ""


@both
@pytest.mark.parametrize("verbose", [False, "auto"])
def test_nobody_watching_sees_nothing(verbose, estimator, exam, capsys):
    fitted(estimator, exam, verbose=verbose)
    assert capsys.readouterr().err == ""


@both
def test_a_short_fit_shows_no_automatic_bar(estimator, exam, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fitted(estimator, exam, verbose="auto")
    assert "loss" not in capsys.readouterr().err


@both
def test_without_tqdm(estimator, exam, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert fitted(estimator, exam, verbose="auto").n_iter_ == 2
    with pytest.raises(ImportError, match=r"skgroupvae\[progress\]"):
        fitted(estimator, exam, verbose=True)
