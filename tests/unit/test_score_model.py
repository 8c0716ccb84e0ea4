"""The model of a regression: its ELBO against exact likelihoods, its critics, and how the loop teaches it."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from oracles import unsettled

from skgroupvae.batch import Batch, Segments
from skgroupvae.mixed_model.initialize import start_at_mixed_model
from skgroupvae.model.spec import GROUP_ENCODERS, ScoreSpec
from skgroupvae.training import HISTORY_TERMS, TrainingSettings, train

SIZES = torch.tensor([1, 3, 5, 2, 4, 6, 2, 3])
OUTCOMES = {
    "gaussian": lambda y: y,
    "student_t": lambda y: y,
    "bernoulli": lambda y: (y > 0.0).astype(float),
    "poisson": lambda y: np.floor(np.exp(1.0 + 0.5 * y)),
    "negative_binomial": lambda y: np.floor(np.exp(1.0 + 0.5 * y)),
    "ordinal": lambda y: np.digitize(y, [-1.0, 1.0]).astype(float),
}
every_family = pytest.mark.parametrize("family", OUTCOMES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def table(family="gaussian", sizes=SIZES, level_sd=1.0):
    """Rows of groups with a constant, a covariate and an outcome of the family."""
    rng = np.random.default_rng(0)
    groups = Segments.of_sizes(sizes)
    x, codes = rng.normal(size=len(groups.codes)), groups.codes.numpy()
    y = 0.5 * x + level_sd * rng.normal(size=len(sizes))[codes] + rng.normal(size=len(x))
    design = np.column_stack([np.ones_like(x), x])
    parts = (OUTCOMES[family](y)[:, None], design, np.ones_like(x))
    return Batch(*map(torch.from_numpy, parts), factors=(groups,))


def started(batch, family="gaussian", **changes):
    """A model at the mixed model of these rows, and that mixed model."""
    choices = {
        "family": family,
        "levels": ((0.0, 1.0, 2.0),) if family == "ordinal" else ((),),
        "n_columns": 2,
        "random": (0,),
        "n_extra_codes": 1,
        "group_encoder": "mixed_model",
        "regularizer": "context",
        "hidden_sizes": (8,),
        "has_network": True,
    }
    model = ScoreSpec(**choices | changes).build(generator())
    return model, start_at_mixed_model(model, batch, 0.1, generator(1))


# --- the lower bound


def elbo_draws(model, batch, n_draws):
    """Draws of the ELBO of the table."""
    source = generator(2)
    with torch.no_grad():
        return np.array([float(model.elbo(batch, source).elbo.sum()) for _ in range(n_draws)])


def test_elbo_of_the_linear_mixed_model_is_its_log_likelihood():
    batch = table()
    model, fitted = started(batch, has_network=False)
    draws = elbo_draws(model.double(), batch, 1000)
    standard_error = draws.std() / math.sqrt(1000)
    assert standard_error < 0.1
    assert abs(draws.mean() - fitted.log_likelihood) < 4 * standard_error


@pytest.mark.parametrize("family", [name for name in OUTCOMES if name != "gaussian"])
def test_elbo_of_generalized_mixed_models_is_just_below_their_log_likelihood(family):
    batch = table(family, sizes=torch.full((30,), 8))
    model, fitted = started(batch, family, has_network=False)
    draws = elbo_draws(model.double(), batch, 100)
    standard_error = draws.std() / math.sqrt(100)
    assert draws.mean() < fitted.log_likelihood + 4 * standard_error
    # One step of Newton's method for a posterior cost the 30 groups 0.4 to 3.1 nats.
    assert draws.mean() > fitted.log_likelihood - 6.0


def test_correction_is_nothing_where_the_posterior_is_exact():
    # Every draw from it has the same weight.
    batch = table()
    model = started(batch, has_network=False)[0].double()
    model.decoder.requires_grad_(True)
    correction = model.importance_correction(batch, 7, generator())
    gradients = torch.autograd.grad(correction.sum(), [model.decoder.fixed, model.decoder.raw_loadings])
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-9


def test_a_row_of_weight_two_is_two_rows_of_the_bound():
    batch = table("poisson")
    model = unsettled(started(batch, "poisson", regularizer=None)[0]).double()
    weights = torch.ones_like(batch.weights)
    weights[4:9] = 2.0
    rows = torch.arange(batch.n_rows).repeat_interleave(weights.long())
    codes = batch.groups.codes[rows]
    groups = Segments(codes, torch.bincount(codes).double())
    repeated = Batch(batch.values[rows], batch.design[rows], torch.ones(len(rows)).double(), (groups,))
    # The encoder is told the number of rows.
    weighted = Batch(batch.values, batch.design, weights, (Segments(batch.groups.codes, groups.sizes),))
    one, other = (model.elbo(part, generator(3)).elbo for part in (weighted, repeated))
    torch.testing.assert_close(one, other)


def test_the_outcome_codes_cost_nothing_and_are_drawn_for_a_critic_only():
    batch = table()
    for regularizer, n_codes in ((None, 0), ("context", 1)):
        terms = started(batch, regularizer=regularizer)[0].double().elbo(batch, generator())
        assert terms.v.shape == (batch.n_rows, n_codes)
        assert (terms.kl_v == 0).all()
        torch.testing.assert_close(terms.elbo, terms.reconstruction - terms.kl_u)


# --- critics


@every_family
def test_the_bound_has_gradients_to_decoder_and_critic(family):
    batch = table(family).to(dtype=torch.float32)
    model, _ = started(batch, family)
    terms = model.elbo(batch, generator())
    assert terms.v.shape == (batch.n_rows, 1)
    model.regularizer(model.inputs(batch), terms.v, batch.groups, generator()).backward()
    decoder = model.decoder
    parts = [decoder.fixed, decoder.raw_loadings, decoder.network[-1].bias, decoder.curves[-1].bias]
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in parts)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.regularizer.parameters())


def test_the_bound_is_near_zero_for_a_model_that_is_right_and_not_for_one_that_leaves_the_group_out():
    batch = table(sizes=torch.full((100,), 6), level_sd=2.0).to(dtype=torch.float32)
    bounds = []
    for leaves_out in (False, True):
        model, source = started(batch)[0], generator(5)
        if leaves_out:
            model.decoder.raw_loadings.data.zero_()
        model.requires_grad_(False)
        critic = model.regularizer.requires_grad_(True)
        optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
        values = []
        for _ in range(60):
            v = model.elbo(batch, source).v
            bound = critic(model.inputs(batch), v, batch.groups, source)
            optimizer.zero_grad()
            (-bound).backward()
            optimizer.step()
            values.append(float(bound.detach()))
        bounds.append(np.mean(values[-10:]))
    # Without the group a row and the mean of five others correlate by sqrt(0.8 * 4 / (4 + 0.2)) = 0.87: 0.71
    # nats, of which the critic found 0.61 to 0.70 on four seeds; with it, 0.0002 at most.
    assert abs(bounds[0]) < 0.03
    assert bounds[1] > 0.3


# --- the loop


def fit(model, batch, seed=3, validation=(), **changes):
    settings = {"max_epochs": 3, "batch_size": 3, "learning_rate": 0.01, "n_decoder_samples": 4}
    return train(
        model,
        batch.to(dtype=torch.float32),
        TrainingSettings(**settings | {"regularizer_weight": 1.0} | changes),
        train_groups=torch.tensor([g for g in range(len(batch.groups.sizes)) if g not in validation]),
        validation_groups=torch.tensor(validation, dtype=torch.long),
        generator=generator(seed),
    )


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_seed_gives_the_same_fit_to_the_bit():
    batch, results = table(), []
    for seed in (3, 3, 4):
        model, _ = started(batch)
        results.append((fit(model, batch, seed), model.state_dict()))
    assert results[0][0] == results[1][0]
    assert equal(results[0][1], results[1][1])
    assert not equal(results[0][1], results[2][1])


def test_history_has_one_record_an_epoch_whose_parts_add_up():
    batch = table()
    history = fit(started(batch)[0], batch, validation=[1, 4], regularizer_weight=0.5)
    assert len(history) == 3
    for record in history:
        assert list(record) == [*HISTORY_TERMS, *(f"validation_{name}" for name in HISTORY_TERMS)]
        assert np.isfinite(list(record.values())).all()
        for prefix in ("", "validation_"):
            loss, reconstruction, kl_u, kl_v, information = (record[prefix + name] for name in HISTORY_TERMS)
            assert loss == pytest.approx(kl_u + kl_v - reconstruction + 0.5 * information)


def test_history_is_in_nats_per_row():
    # Learning next to nothing, one epoch's record is the ELBO of the model as it was over all rows.
    batch = table()
    model, _ = started(batch)
    single = batch.to(dtype=torch.float32)
    with torch.no_grad():
        draws = [float(model.elbo(single, generator(s)).elbo.sum()) / batch.n_rows for s in range(100)]
    (record,) = fit(model, batch, max_epochs=1, learning_rate=1e-9)
    elbo = record["reconstruction"] - record["kl_u"] - record["kl_v"]
    assert abs(elbo - np.mean(draws)) < 4 * np.std(draws)


def test_loss_falls():
    batch = table()
    model, _ = started(batch)
    with torch.no_grad():
        model.decoder.fixed += 1.0  # away from the mixed model
    history = fit(model, batch, max_epochs=30)
    first, last = (np.mean([record["loss"] for record in part]) for part in (history[:5], history[-5:]))
    assert last < first - 0.1


@pytest.mark.parametrize("encoder", ["mixed_model", *GROUP_ENCODERS])
def test_every_part_is_learned(encoder):
    batch = table()
    model, _ = started(batch, group_encoder=encoder)
    before = copy.deepcopy(model.state_dict())
    fit(model, batch)
    after = model.state_dict()
    for part in ("group_encoder", "decoder.network", "decoder.curves", "decoder.fixed", "regularizer"):
        moved = [not torch.equal(before[name], after[name]) for name in before if name.startswith(part)]
        assert any(moved), part
    learned = [name for name, _ in model.named_parameters() if "encoder." in name]
    still = [name for name in learned if torch.equal(before[name], after[name])]
    assert not still


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_the_critic_reaches_the_decoder_through_its_weight_only(weight):
    batch, results = table(), []
    for shift in (0.0, 0.3):
        model, _ = started(batch)
        with torch.no_grad():
            model.regularizer.pair_network[0].weight += shift
        fit(model, batch, regularizer_weight=weight)
        results.append(model.decoder.state_dict())
    assert equal(*results) == (weight == 0.0)
