"""Fits of a regression that go on: warm_start and partial_fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skgroupvae import CxVAERegressor


def quick(**kwargs):
    defaults = {"max_epochs": 2, "hidden_sizes": (8,), "random_slopes": [1], "random_state": 0}
    return CxVAERegressor(**defaults | {"verbose": False} | kwargs)


def simulate(n_groups, seed, first=0, size=12):
    """Rows with a random intercept and slope: x (N, 2), y, and labels from `first` on."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), size)
    x = rng.normal(size=(len(groups), 2))
    level, slope = rng.normal(size=(2, n_groups))
    y = 3.0 + x[:, 0] + level[groups] + 0.5 * slope[groups] * x[:, 1] + 0.7 * rng.normal(size=len(groups))
    return x, y, groups + first


def parameters(model):
    return {name: value.clone() for name, value in model.network_.state_dict().items()}


@pytest.fixture(scope="module")
def rows():
    return simulate(20, seed=0)


@pytest.fixture(scope="module")
def more():
    """Rows of 10 groups, half of them with labels that `rows` has too."""
    return simulate(10, seed=1, first=15)


# --- warm_start


@pytest.mark.parametrize(("family", "decoder"), [("gaussian", "mlp"), ("bernoulli", "linear")])
def test_warm_start_goes_on_where_the_last_fit_ended(family, decoder, rows, more):
    def outcome(y):
        return y if family == "gaussian" else (y > 3.0).astype(float)

    model = quick(family=family, decoder=decoder, warm_start=True, learning_rate=1e-9)
    model.fit(rows[0], outcome(rows[1]), groups=rows[2])
    before = parameters(model)
    model.fit(more[0] * 3.0 + 1.0, outcome(more[1]), groups=more[2])
    for name, value in parameters(model).items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=1e-5)
    assert list(model.group_codes_.index) == list(dict.fromkeys(more[2]))


def test_warm_start_has_the_mixed_model_of_the_new_rows(rows, more):
    """The same estimates, up to the optimiser, whatever standardised the columns."""
    model = quick(warm_start=True).fit(*rows[:2], groups=rows[2])
    model.fit(more[0] * 3.0 + 1.0, more[1], groups=more[2])
    fresh = quick(decoder="linear").fit(more[0] * 3.0 + 1.0, more[1], groups=more[2])
    for name in ("fixed_effects_", "variance_components_"):
        np.testing.assert_allclose(getattr(model, name), getattr(fresh, name), rtol=1e-3, atol=1e-3)
    assert model.mixed_model_log_likelihood_ == pytest.approx(fresh.mixed_model_log_likelihood_, abs=1e-3)


def test_warm_start_of_the_linear_mixed_model_is_maximum_likelihood_again(rows, more):
    model = quick(decoder="linear", warm_start=True).fit(*rows[:2], groups=rows[2])
    model.fit(*more[:2], groups=more[2])
    fresh = quick(decoder="linear").fit(*more[:2], groups=more[2])
    np.testing.assert_allclose(
        model.predict(more[0], groups=more[2]), fresh.predict(more[0], groups=more[2]), atol=2e-3
    )


def test_a_network_starts_where_the_last_fit_kept_the_mixed_model(rows, monkeypatch):
    monkeypatch.setattr("skgroupvae.regression_fit._FEW_GROUPS", 40)
    model = quick(warm_start=True).fit(*rows[:2], groups=rows[2])
    assert model.is_mixed_model_
    monkeypatch.setattr("skgroupvae.regression_fit._FEW_GROUPS", 0)
    assert not model.fit(*rows[:2], groups=rows[2]).is_mixed_model_


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_extra_codes": 2}, "parameters that shape the networks.*warm_start=False"),
        ({"decoder": "linear"}, "parameters that shape the networks.*warm_start=False"),
        ({"family": "student_t"}, "family='student_t' is not the 'gaussian' of the fit.*warm_start=False"),
        ({"random_slopes": [0]}, r"random_slopes=\[0\] are not those of the fit.*warm_start=False"),
    ],
)
def test_warm_start_with_other_shapes_is_refused(changes, message, rows):
    model = quick(warm_start=True).fit(*rows[:2], groups=rows[2])
    before = dict(vars(model))
    with pytest.raises(ValueError, match=message):
        model.set_params(**changes).fit(*rows[:2], groups=rows[2])
    assert {k: v for k, v in vars(model).items() if k not in changes} == {
        k: v for k, v in before.items() if k not in changes
    }


def test_warm_start_refuses_grades_that_are_new(rows):
    x, y, groups = rows
    model = quick(family="ordinal", warm_start=True).fit(x, np.digitize(y, [2.0, 4.0]), groups=groups)
    with pytest.raises(ValueError, match="grades that the fit has not seen"):
        model.fit(x, np.digitize(y, [1.0, 2.0, 4.0]), groups=groups)
