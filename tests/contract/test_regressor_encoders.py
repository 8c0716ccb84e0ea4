"""GroupVAE's encoders and regularizers in CxVAERegressor, its history, and Ctrl-C during its fit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from skgroupvae import CxVAERegressor
from skgroupvae.model.encoders import DeepSetsEncoder
from skgroupvae.model.regularizers import ContextRegularizer
from skgroupvae.model.spec import GROUP_ENCODERS

encoders = pytest.mark.parametrize("encoder", GROUP_ENCODERS)
OUTCOMES = {
    "gaussian": lambda y: y,
    "student_t": lambda y: y,
    "negative_binomial": lambda y: np.floor(np.exp(1.0 + 0.5 * y)),
    "ordinal": lambda y: np.digitize(y, [-1.0, 1.0]).astype(float),
}
# In nats per row, as documented at CxVAERegressor.history_.
TERMS = ["loss", "reconstruction", "kl_u", "kl_v", "mutual_information"]


def quick(**changes) -> CxVAERegressor:
    defaults = {"decoder": "mlp", "max_epochs": 2, "hidden_sizes": (8,), "random_slopes": None}
    return CxVAERegressor(**defaults | {"random_state": 0, "verbose": False} | changes)


def simulate(n_groups, size, seed=0):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), size)
    x = rng.normal(size=(len(groups), 1))
    return x, x[:, 0] + rng.normal(size=n_groups)[groups] + rng.normal(size=len(groups)), groups


@pytest.fixture(scope="module")
def table():
    return simulate(16, 6)


# --- encoders


@encoders
def test_every_encoder_learns_whatever_the_order_of_rows(encoder, table):
    x, y, groups = table
    model = quick(group_encoder=encoder).fit(x, y, groups=groups)
    assert np.isfinite(model.predict(x, groups=groups)).all()
    context = model.predict(x, groups=groups + 100, context=(x, y, groups + 100))
    np.testing.assert_allclose(context, model.predict(x, groups=groups), rtol=1e-6)
    order = np.random.default_rng(0).permutation(len(y))
    again = quick(group_encoder=encoder).fit(x[order], y[order], groups=groups[order])
    np.testing.assert_allclose(again.group_codes_.sort_index(), model.group_codes_, atol=1e-5)
    u, _ = model.transform(x[order], y[order], groups=groups[order])
    np.testing.assert_allclose(u, model.group_codes_.loc[groups[order]], atol=1e-9)


@pytest.mark.parametrize("encoder", ["deepsets", "product"])
def test_encoders_find_the_blups_of_the_linear_mixed_model(encoder):
    x, y, groups = simulate(100, 10)
    exact = quick(decoder="linear").fit(x, y, groups=groups)
    model = quick(decoder="linear", group_encoder=encoder, max_epochs=12).fit(x, y, groups=groups)
    # The decoder is that of maximum likelihood in both: only q(u) is learned.
    assert model.fixed_effects_.equals(exact.fixed_effects_)
    assert torch.equal(model.model_.decoder.fixed.float(), exact.model_.decoder.fixed.float())
    assert model.n_iter_ == 12
    # After 108 steps 0.986 to 0.9995 on seeds 0 to 3, where untrained networks know no group; the widths of
    # q(u) were 0.93 to 1.02 of the exact ones.
    codes = [m.group_codes_["u0"] for m in (model, exact)]
    assert np.corrcoef(*codes)[0, 1] > 0.95
    widths = [m.group_codes_std_["u0"].mean() for m in (model, exact)]
    assert 0.85 < widths[0] / widths[1] < 1.15


@pytest.mark.parametrize("encoder", ["deepsets", "product"])
def test_partial_fit_keeps_what_an_encoder_knows_and_files_keep_it_all(encoder, table, tmp_path):
    pytest.importorskip("safetensors")
    x, y, groups = table
    model = quick(group_encoder=encoder).fit(x, y, groups=groups)
    last = model.model_.decoder.network[-1].bias.clone()
    model.partial_fit(x, y + 1.0, groups=groups + 100)
    assert not torch.equal(model.model_.decoder.network[-1].bias, last)
    # What the groups of the first call told is stored, and still what their rows tell.
    u, _ = model.transform(x, y, groups=groups)
    np.testing.assert_allclose(u, model.group_codes_.loc[groups], atol=1e-9)
    model.save(tmp_path / "model.safetensors")
    loaded = CxVAERegressor.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.predict(x, groups=groups), model.predict(x, groups=groups))


def test_partial_fit_where_nothing_is_left_to_learn_is_update_groups(table):
    """A product's statistics are all that it has, and the decoder is that of maximum likelihood."""
    x, y, groups = table
    model = quick(decoder="linear", group_encoder="product").fit(x, y, groups=groups)
    updated = copy.deepcopy(model).update_groups(x, y, groups=groups + 100)
    model.partial_fit(x, y, groups=groups + 100)
    np.testing.assert_array_equal(model.group_codes_, updated.group_codes_)
    assert model.n_iter_ == updated.n_iter_


def test_going_on_with_an_encoder_of_the_same_shape_but_another_kind_is_refused(table):
    x, y, groups = table
    model = quick(group_encoder="product", max_epochs=1).fit(x, y, groups=groups)
    with pytest.raises(ValueError, match="parameters that shape the networks"):
        model.set_params(group_encoder="product_with_prior").partial_fit(x, y, groups=groups)


def test_a_factory_and_a_module_are_encoders_too(table):
    x, y, groups = table
    named = quick(group_encoder="deepsets").fit(x, y, groups=groups)
    factory = quick(group_encoder=DeepSetsEncoder).fit(x, y, groups=groups)
    np.testing.assert_array_equal(factory.group_codes_, named.group_codes_)
    module = DeepSetsEncoder(2, 2, (8,), torch.Generator().manual_seed(0))
    before = copy.deepcopy(module.state_dict())
    assert np.isfinite(quick(group_encoder=module).fit(x, y, groups=groups).group_codes_).all(axis=None)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


# --- regularizers


@pytest.mark.parametrize("family", OUTCOMES)
def test_a_regularized_fit_is_finite_and_records_the_bound(family, table):
    x, y, groups = table
    outcome = OUTCOMES[family](y)
    free, bound = (
        quick(family=family, regularizer=regularizer).fit(x, outcome, groups=groups)
        for regularizer in (None, "instance")
    )
    assert (free.history_["mutual_information"] == 0).all()
    assert (bound.history_["mutual_information"] != 0).all()
    assert np.isfinite(bound.history_).all(axis=None)
    assert np.isfinite(bound.score_samples(x, outcome, groups=groups)).all()
    assert not torch.equal(free.model_.decoder.fixed, bound.model_.decoder.fixed)


def test_the_weight_of_the_bound_counts(table):
    x, y, groups = table
    fits = [
        quick(regularizer="context", regularizer_weight=weight).fit(x, y, groups=groups)
        for weight in (0.0, 10.0)
    ]
    assert not torch.equal(*(model.model_.decoder.fixed for model in fits))


def test_a_factory_is_a_regularizer_and_the_linear_mixed_model_has_none(table):
    x, y, groups = table
    factory = quick(regularizer=ContextRegularizer).fit(x, y, groups=groups)
    named = quick(regularizer="context").fit(x, y, groups=groups)
    np.testing.assert_array_equal(factory.group_codes_, named.group_codes_)
    linear = quick(regularizer="context", decoder="linear").fit(x, y, groups=groups)
    assert linear.model_.regularizer is None
    assert linear.history_.empty


@pytest.mark.parametrize(
    "changes", [{"group_encoder": "newton"}, {"regularizer": "both"}, {"regularizer_weight": -1.0}]
)
def test_choices_that_there_are_not(changes, table):
    x, y, groups = table
    with pytest.raises(ValueError, match=f"The '{next(iter(changes))}' parameter of CxVAERegressor must be"):
        quick(**changes).fit(x, y, groups=groups)


# --- history and Ctrl-C


class Interrupting(ContextRegularizer):
    """As though the user pressed Ctrl-C at a step of the fit: each step asks for the bound once."""

    at_step: int
    n_steps: int

    def forward(self, *arguments):
        self.n_steps += 1
        if self.n_steps == self.at_step:
            raise KeyboardInterrupt
        return super().forward(*arguments)


@pytest.mark.parametrize("epoch", [1, 3])
def test_an_interrupted_regressor_keeps_the_epochs_done(epoch, table):
    x, y, groups = table

    def regularizer(**sizes):
        made = Interrupting(**sizes)
        # 16 groups in batches of four: the second of four steps.
        made.n_steps, made.at_step = 0, 4 * (epoch - 1) + 2
        return made

    model = quick(regularizer=regularizer, max_epochs=9, batch_size=4)
    with pytest.warns(UserWarning, match=f"interrupted after {epoch - 1} of 9"):
        model.fit(x, y, groups=groups)
    assert model.n_iter_ == len(model.history_) == epoch - 1
    assert list(model.history_.columns) == TERMS
    assert np.isfinite(model.predict(x, groups=groups)).all()
