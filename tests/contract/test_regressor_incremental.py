"""Fits of a regression that go on: warm_start and partial_fit."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

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
    monkeypatch.setattr(CxVAERegressor, "_network_pays", lambda self, *args: False)
    model = quick(warm_start=True).fit(*rows[:2], groups=rows[2])
    assert model.is_mixed_model_
    monkeypatch.setattr(CxVAERegressor, "_network_pays", lambda self, *args: True)
    assert not model.fit(*rows[:2], groups=rows[2]).is_mixed_model_


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_extra_codes": 2}, "parameters that shape the networks.*warm_start=False"),
        ({"decoder": "linear"}, "parameters that shape the networks.*warm_start=False"),
        ({"group_encoder": "deepsets"}, "parameters that shape the networks.*warm_start=False"),
        ({"regularizer": "context"}, "parameters that shape the networks.*warm_start=False"),
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


# --- partial_fit


@pytest.mark.parametrize("decoder", ["mlp", "linear"])
def test_first_partial_fit_is_fit(decoder, rows):
    whole = quick(decoder=decoder).fit(*rows[:2], groups=rows[2])
    part = quick(decoder=decoder).partial_fit(*rows[:2], groups=rows[2])
    assert all(torch.equal(parameters(whole)[name], value) for name, value in parameters(part).items())


@pytest.mark.parametrize("family", ["gaussian", "poisson"])
def test_partial_fit_learns_and_keeps_the_evidence_of_earlier_rows(family, rows, more):
    def outcome(y):
        return np.floor(np.exp(0.3 * y)) if family == "poisson" else y

    model = quick(family=family).fit(rows[0], outcome(rows[1]), groups=rows[2])
    before, codes, tables = parameters(model), model._evidence, model.fixed_effects_
    for start in (0, 60):  # the anchor of the first of two calls stays
        part = slice(start, start + 60)
        model.partial_fit(more[0][part], outcome(more[1][part]), groups=more[2][part])
    after = parameters(model)
    assert model.n_iter_ == 4 == model.history_.index[-1]
    assert model.fixed_effects_ is tables
    for name in ("decoder.network.2.weight", "decoder.fixed", "group_encoder.group_network.2.weight"):
        assert not torch.equal(before[name], after[name])
    assert torch.equal(before["decoder.fixed"], after["group_encoder.anchor.fixed"])
    old = [label for label in codes.labels if label < 15]
    kept = [of.take(of.positions(pd.Index(old))).totals for of in (codes, model._evidence)]
    np.testing.assert_array_equal(*kept)
    # All rows at once, told by the network as it now is, give what was added up over the three calls.
    both = [np.concatenate([a, b]) for a, b in zip(rows, more, strict=True)]
    u, _ = model.transform(both[0], outcome(both[1]), groups=both[2])
    np.testing.assert_allclose(model.group_codes_.loc[both[2]], u, atol=1e-6)


def test_evidence_would_follow_the_decoder_without_the_anchor(rows, more):
    """What the test above would see if it failed to look."""
    model = quick(learning_rate=0.1).fit(*rows[:2], groups=rows[2]).partial_fit(*more[:2], groups=more[2])
    known = model.transform(*rows[:2], groups=rows[2])[0]
    model.network_.release_evidence()
    assert abs(model.transform(*rows[:2], groups=rows[2])[0] - known).max() > 1e-3


def test_partial_fit_of_the_linear_mixed_model_is_update_groups(rows, more):
    model = quick(decoder="linear").fit(*rows[:2], groups=rows[2])
    updated = copy.deepcopy(model).update_groups(*more[:2], groups=more[2])
    model.partial_fit(*more[:2], groups=more[2])
    pd.testing.assert_frame_equal(model.group_effects_, updated.group_effects_)
    assert all(torch.equal(parameters(updated)[name], value) for name, value in parameters(model).items())


@pytest.mark.parametrize("decoder", ["mlp", "linear"])
def test_what_was_fitted_in_parts_survives_copies_and_files(decoder, rows, more, tmp_path):
    pytest.importorskip("safetensors")
    model = quick(decoder=decoder).fit(*rows[:2], groups=rows[2]).partial_fit(*more[:2], groups=more[2])
    model.save(tmp_path / "model.safetensors")
    copies = [
        CxVAERegressor.load(tmp_path / "model.safetensors"),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ]
    known = model.transform(*rows[:2], groups=rows[2])[0]
    model.partial_fit(*rows[:2], groups=rows[2] + 1000)
    for other in copies:
        np.testing.assert_array_equal(other.transform(*rows[:2], groups=rows[2])[0], known)
        other.partial_fit(*rows[:2], groups=rows[2] + 1000)
        pd.testing.assert_frame_equal(other.group_codes_, model.group_codes_)
    # A clone, and a further fit, start without the anchor.
    fresh = clone(model).fit(*rows[:2], groups=rows[2])
    assert parameters(fresh).keys() == parameters(model.fit(*rows[:2], groups=rows[2])).keys()


def test_warm_start_after_partial_fit_follows_the_decoder_again(rows, more):
    model = quick(warm_start=True).fit(*rows[:2], groups=rows[2]).partial_fit(*more[:2], groups=more[2])
    model.fit(*rows[:2], groups=rows[2])
    assert not [name for name in parameters(model) if "anchor" in name]
    assert list(model.group_codes_.index) == list(dict.fromkeys(rows[2]))


def test_one_row_of_weight_two_is_two_rows_in_partial_fit(rows, more):
    weights = np.arange(len(more[1])) % 3
    again = np.repeat(np.arange(len(weights)), weights)
    model = quick(decoder="linear").fit(*rows[:2], groups=rows[2])
    twice = copy.deepcopy(model).partial_fit(*(part[again] for part in more[:2]), groups=more[2][again])
    model.partial_fit(*more[:2], groups=more[2], sample_weight=weights)
    np.testing.assert_allclose(model.group_codes_, twice.group_codes_.loc[model.group_codes_.index])


@pytest.mark.parametrize(
    ("changes", "bad", "message"),
    [
        ({}, (np.ones((4, 3)), np.ones(4)), "3 features"),
        ({"family": "ordinal"}, (np.ones((4, 2)), [0.0, 1.0, 2.0, 3.0]), "grades that the fit has not seen"),
        ({"family": "poisson"}, (np.ones((4, 2)), [0.0, 1.0, 2.0, -3.0]), "y must be counts"),
        ({"hidden_sizes": (4,)}, (np.ones((4, 2)), np.ones(4)), "parameters that shape the networks"),
        ({"decoder": "linear"}, (np.ones((4, 2)), np.ones(4)), "parameters that shape the networks"),
    ],
)
def test_partial_fit_refuses_and_leaves_the_estimator_as_it_was(changes, bad, message, rows):
    x, y, groups = rows
    outcome = {"family": np.digitize(y, [2.0, 4.0]).astype(float)}.get(next(iter(changes), ""), y)
    model = quick(**{k: v for k, v in changes.items() if k == "family"}).fit(x, outcome, groups=groups)
    model.set_params(**changes)
    before = dict(vars(model))
    with pytest.raises(ValueError, match=message):
        model.partial_fit(*bad, groups=[0, 0, 1, 1])
    assert vars(model) == before


def curves(n_groups, seed, first=0):
    """Curves that no straight line is near, of a height that is the group's own."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), 10)
    x = rng.uniform(-2.0, 2.0, (len(groups), 1))
    y = np.sin(2.0 * x[:, 0]) * (2.0 + rng.normal(size=n_groups)[groups])
    return x, y + 0.3 * rng.normal(size=len(groups)), groups + first


def test_a_stream_of_batches_improves_on_the_first():
    x, y, groups = curves(60, seed=1000)  # held out; half of each group's rows are its context
    half = np.arange(len(y)) % 10 < 5
    context, rest = (x[half], y[half], groups[half]), (x[~half], y[~half])
    model = CxVAERegressor(max_epochs=1, random_slopes=None, random_state=0)
    scores = []
    for part in range(6):
        batch = curves(60, seed=10 + part, first=1000 * (part + 1))
        model.partial_fit(*batch[:2], groups=batch[2])
        scores.append(model.score_samples(*rest, groups=groups[~half], context=context).mean())
    # From the first to the last 0.09 to 0.12 nats a row on seeds 0 to 3 of the data.
    assert scores[-1] > scores[0] + 0.05
    assert len(model.group_codes_) == 360
    assert np.isfinite(model.predict(batch[0], groups=batch[2], strict_groups=True)).all()
