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
    """Unfitted, with a network that is trained for a fraction of a second."""
    defaults = {"decoder": "mlp", "max_epochs": 2, "hidden_sizes": (8,), "random_slopes": [1]}
    return CxVAERegressor(**defaults | {"random_state": 0, "verbose": False} | kwargs)


def simulate(n_groups, seed, first=0, size=12):
    """Rows with a random intercept and slope: x (N, 2), y, and labels from `first` on."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), size)
    x = rng.normal(size=(len(groups), 2))
    level, slope = rng.normal(size=(2, n_groups))
    y = 3.0 + x[:, 0] + level[groups] + 0.5 * slope[groups] * x[:, 1] + 0.7 * rng.normal(size=len(groups))
    return x, y, groups + first


def parameters(model):
    return {name: value.clone() for name, value in model.model_.state_dict().items()}


def is_unchanged(model, before, changes):
    """Whether the attributes are those of `before`, but for the parameters that were set."""
    after = vars(model)
    return after.keys() == before.keys() and all(
        after[name] is value for name, value in before.items() if name not in changes
    )


@pytest.fixture(scope="module")
def rows():
    return simulate(20, seed=0)


@pytest.fixture(scope="module")
def more():
    """Rows of 10 groups, half of them with labels that `rows` has too."""
    return simulate(10, seed=1, first=15)


@pytest.fixture(scope="module")
def fits(rows):
    """Fits to `rows` by decoder; tests must not change them."""
    return {decoder: quick(decoder=decoder).fit(*rows[:2], groups=rows[2]) for decoder in ("mlp", "linear")}


@pytest.fixture
def network(fits):
    """Network that was fitted to `rows`; each test has its own."""
    return copy.deepcopy(fits["mlp"])


@pytest.fixture
def linear(fits):
    """Linear mixed model that was fitted to `rows`; each test has its own."""
    return copy.deepcopy(fits["linear"])


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


def test_warm_start_has_the_mixed_model_of_the_new_rows(network, more):
    """The same estimates, up to the optimizer, whatever standardized the columns."""
    network.set_params(warm_start=True).fit(more[0] * 3.0 + 1.0, more[1], groups=more[2])
    fresh = quick(decoder="linear").fit(more[0] * 3.0 + 1.0, more[1], groups=more[2])
    for name in ("fixed_effects_", "variance_components_"):
        np.testing.assert_allclose(getattr(network, name), getattr(fresh, name), rtol=1e-3, atol=1e-3)
    assert network.mixed_model_log_likelihood_ == pytest.approx(fresh.mixed_model_log_likelihood_, abs=1e-3)


def test_warm_start_of_the_linear_mixed_model_is_maximum_likelihood_again(linear, more):
    linear.set_params(warm_start=True).fit(*more[:2], groups=more[2])
    fresh = quick(decoder="linear").fit(*more[:2], groups=more[2])
    np.testing.assert_allclose(
        linear.predict(more[0], groups=more[2]), fresh.predict(more[0], groups=more[2]), atol=2e-3
    )


def test_warm_start_goes_on_learning(network, rows):
    first = parameters(network)["decoder.network.0.weight"]
    network.set_params(warm_start=True).fit(*rows[:2], groups=rows[2])
    assert not torch.equal(parameters(network)["decoder.network.0.weight"], first)


@pytest.mark.parametrize("kept", ["linear", "auto"])
def test_a_network_starts_where_the_last_fit_kept_the_mixed_model(kept, rows):
    # Of five groups none can be held out, so that "auto" keeps the mixed model.
    x, y, groups = (part[:60] for part in rows)
    model = quick(decoder=kept, warm_start=True).fit(x, y, groups=groups)
    assert model.is_mixed_model_
    model.set_params(decoder="mlp").fit(x, y, groups=groups)
    assert not model.is_mixed_model_
    assert model.n_iter_ == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_extra_codes": 2}, "parameters that shape the networks.*warm_start=False"),
        ({"hidden_sizes": (3,)}, "parameters that shape the networks.*warm_start=False"),
        ({"group_encoder": "deepsets"}, "parameters that shape the networks.*warm_start=False"),
        ({"regularizer": "context"}, "parameters that shape the networks.*warm_start=False"),
        ({"family": "student_t"}, "family='student_t' is not the 'gaussian' of the fit.*warm_start=False"),
        ({"random_slopes": [0]}, r"random_slopes=\[0\] are not those of the fit.*warm_start=False"),
    ],
)
def test_warm_start_with_other_shapes_is_refused(changes, message, network, rows):
    network.set_params(warm_start=True)
    before = dict(vars(network))
    with pytest.raises(ValueError, match=message):
        network.set_params(**changes).fit(*rows[:2], groups=rows[2])
    assert is_unchanged(network, before, changes)


@pytest.fixture(scope="module")
def ordinal(rows):
    """Network of three levels; tests must not change it."""
    x, y, groups = rows
    return quick(family="ordinal").fit(x, np.digitize(y, [2.0, 4.0]), groups=groups)


def test_warm_start_refuses_levels_that_are_new(ordinal, rows):
    x, y, groups = rows
    model = copy.deepcopy(ordinal).set_params(warm_start=True)
    with pytest.raises(ValueError, match=r"levels \[3.0\] that the fit has not seen"):
        model.fit(x, np.digitize(y, [1.0, 2.0, 4.0]), groups=groups)


# --- partial_fit


@pytest.mark.parametrize("decoder", ["mlp", "linear"])
def test_first_partial_fit_is_fit(decoder, rows, fits):
    part = parameters(quick(decoder=decoder).partial_fit(*rows[:2], groups=rows[2]))
    assert all(torch.equal(value, part[name]) for name, value in parameters(fits[decoder]).items())


@pytest.mark.parametrize("family", ["gaussian", "poisson"])
def test_partial_fit_learns_and_keeps_what_earlier_rows_tell(family, rows, more):
    def outcome(y):
        return np.floor(np.exp(0.3 * y)) if family == "poisson" else y

    model = quick(family=family).fit(rows[0], outcome(rows[1]), groups=rows[2])
    before, tables = parameters(model), model.fixed_effects_
    for start in (0, 60):  # the anchor of the first of two calls stays
        part = slice(start, start + 60)
        model.partial_fit(more[0][part], outcome(more[1][part]), groups=more[2][part])
    after = parameters(model)
    assert model.n_iter_ == 4 == model.history_.index[-1]
    pd.testing.assert_frame_equal(model.fixed_effects_, tables)
    for name in ("decoder.network.2.weight", "decoder.fixed", "group_encoder.group_network.2.weight"):
        assert not torch.equal(before[name], after[name])
    for name in ("fixed", "network.2.weight"):
        assert torch.equal(before[f"decoder.{name}"], after[f"group_encoder.anchor.{name}"])
    # All rows at once, told by the network as it now is, give what was added up over the three calls: what is
    # stored of the first rows is theirs to the last digits.
    both = [np.concatenate([a, b]) for a, b in zip(rows, more, strict=True)]
    u, _ = model.transform(both[0], outcome(both[1]), groups=both[2])
    np.testing.assert_allclose(model.group_codes_.loc[both[2]], u, atol=1e-6)


def test_codes_would_follow_the_decoder_without_the_anchor(rows, more):
    """What the test above would see if it failed to look."""
    model = quick(learning_rate=0.1).fit(*rows[:2], groups=rows[2]).partial_fit(*more[:2], groups=more[2])
    known = model.transform(*rows[:2], groups=rows[2])[0]
    model.model_.group_encoder.release()
    assert abs(model.transform(*rows[:2], groups=rows[2])[0] - known).max() > 1e-3


def test_partial_fit_of_the_linear_mixed_model_is_update_groups(linear, more):
    updated = copy.deepcopy(linear).update_groups(*more[:2], groups=more[2])
    linear.partial_fit(*more[:2], groups=more[2])
    pd.testing.assert_frame_equal(linear.group_effects_, updated.group_effects_)
    assert all(torch.equal(parameters(updated)[name], value) for name, value in parameters(linear).items())


@pytest.mark.parametrize("decoder", ["mlp", "linear"])
def test_what_was_fitted_in_parts_survives_copies_and_files(decoder, fits, rows, more, tmp_path):
    model = copy.deepcopy(fits[decoder]).partial_fit(*more[:2], groups=more[2])
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


def test_warm_start_after_partial_fit_follows_the_decoder_again(network, rows, more):
    network.set_params(warm_start=True).partial_fit(*more[:2], groups=more[2])
    assert [name for name in parameters(network) if "anchor" in name]
    network.fit(*rows[:2], groups=rows[2])
    assert not [name for name in parameters(network) if "anchor" in name]
    assert list(network.group_codes_.index) == list(dict.fromkeys(rows[2]))


def test_one_row_of_weight_two_is_two_rows_in_partial_fit(linear, more):
    weights = np.arange(len(more[1])) % 3
    again = np.repeat(np.arange(len(weights)), weights)
    twice = copy.deepcopy(linear).partial_fit(*(part[again] for part in more[:2]), groups=more[2][again])
    linear.partial_fit(*more[:2], groups=more[2], sample_weight=weights)
    np.testing.assert_allclose(linear.group_codes_, twice.group_codes_.loc[linear.group_codes_.index])


FOUR = np.ones((4, 2)), np.ones(4)


@pytest.mark.parametrize(
    ("family", "changes", "bad", "message"),
    [
        ("gaussian", {}, (np.ones((4, 3)), np.ones(4)), "3 features"),
        ("ordinal", {}, (np.ones((4, 2)), [0.0, 1.0, 2.0, 3.0]), r"levels \[3.0\] that the fit has not seen"),
        ("poisson", {}, (np.ones((4, 2)), [0.0, 1.0, 2.0, -3.0]), "y must be counts"),
        ("gaussian", {"family": "student_t"}, FOUR, "family='student_t' is not the 'gaussian' of the fit"),
        ("gaussian", {"hidden_sizes": (4,)}, FOUR, "parameters that shape the networks"),
        ("gaussian", {"decoder": "linear"}, FOUR, "parameters that shape the networks"),
    ],
)
def test_partial_fit_refuses_and_leaves_the_estimator_as_it_was(
    family, changes, bad, message, network, ordinal, rows
):
    x, y, groups = rows
    if family == "poisson":
        model = quick(family=family, decoder="linear").fit(x, np.floor(np.exp(0.3 * y)), groups=groups)
    else:
        model = {"gaussian": network, "ordinal": copy.deepcopy(ordinal)}[family]
    model.set_params(**changes)
    before = dict(vars(model))
    with pytest.raises(ValueError, match=message):
        model.partial_fit(*bad, groups=[0, 0, 1, 1])
    assert is_unchanged(model, before, {})
