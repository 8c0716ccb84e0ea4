"""Starts at (generalized) linear mixed models: penalized quasi-likelihood, its likelihood, what parts get."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

from skgroupvae.batch import Batch, RandomTerm, Segments
from skgroupvae.mixed_model.generalized import (
    fit_generalized_mixed_model,
    mixed_log_likelihood,
    mixed_model_of,
    newton_posterior,
)
from skgroupvae.mixed_model.initialize import start_at_mixed_model
from skgroupvae.mixed_model.latent import start_latent_model
from skgroupvae.mixed_model.linear import factors_of, fit_linear_mixed_model
from skgroupvae.model import inference, prediction
from skgroupvae.model.families import OrdinalFamily, PoissonFamily, StudentTFamily
from skgroupvae.model.likelihood import Likelihood
from skgroupvae.model.spec import LatentSpec, ScoreSpec

N_GROUPS = 40
SIZES = torch.from_numpy(np.random.default_rng(9).integers(2, 12, N_GROUPS))
KINDS = {
    "gaussian": "numeric",
    "student_t": "numeric",
    "bernoulli": "binary",
    "binomial": "proportion",
    "poisson": "count",
    "negative_binomial": "count",
    "ordinal": "ordered",
}


def table(kind, n_outcomes=1, seed=0, sizes=SIZES):
    """Rows whose linear predictors are those of a mixed model with a random slope."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    x = rng.normal(size=(len(groups), 2))
    effects = rng.normal(size=(len(sizes), 2, n_outcomes)) @ (0.5 + 0.3 * np.eye(n_outcomes))
    eta = 0.2 + 0.4 * x[:, :1] + effects[groups, 0] + 0.4 * effects[groups, 1] * x[:, :1]
    noise = rng.normal(size=eta.shape) @ (0.3 + 0.4 * np.eye(n_outcomes))
    weights, rate = np.ones(len(groups)), 1.0 / (1.0 + np.exp(-eta))
    values = eta + noise
    if kind == "binary":
        values = (rng.random(eta.shape) < rate).astype(float)
    elif kind == "proportion":
        weights = rng.integers(1, 9, len(groups)).astype(float)
        values = rng.binomial(weights.astype(int)[:, None], rate) / weights[:, None]
    elif kind == "count":
        values = rng.poisson(np.exp(eta)).astype(float)
    elif kind == "ordered":
        values = np.digitize(values, [-0.5, 0.8]).astype(float)
    design = np.column_stack([np.ones(len(groups)), x])
    parts = (torch.from_numpy(part) for part in (values, design, weights))
    return Batch(*parts, factors=(Segments.of_sizes(sizes),))


def model_of(name, n_outcomes=1, random=(0, 1), n_extra_codes=2, has_network=True):
    levels = ((0.0, 1.0, 2.0),) if name == "ordinal" else ((),)
    spec = ScoreSpec(
        family=name,
        levels=levels * n_outcomes,
        n_columns=3,
        random=random,
        n_extra_codes=n_extra_codes,
        group_encoder="mixed_model",
        regularizer=None,
        hidden_sizes=(8,),
        has_network=has_network,
    )
    return spec.build(torch.Generator().manual_seed(0))


def start(model, batch):
    return start_at_mixed_model(model, batch, 0.1, torch.Generator().manual_seed(1))


# --- estimates ---


@pytest.mark.parametrize("n_outcomes", [1, 2])
def test_of_normal_outcomes_it_is_the_linear_mixed_model(n_outcomes):
    model, batch = model_of("gaussian", n_outcomes), table("numeric", n_outcomes)
    fitted = start(model, batch)
    exact = fit_linear_mixed_model(batch, [RandomTerm((0, 1))])
    assert fitted.log_likelihood == exact.log_likelihood
    torch.testing.assert_close(fitted.fixed, exact.fixed)
    torch.testing.assert_close(fitted.parameters, exact.parameters)
    # The decoder has them all: the likelihood of the model is that of the mixed model.
    double = copy.deepcopy(model).double()
    no_network = model_of("gaussian", n_outcomes, has_network=False).double()
    state = {key: value for key, value in double.decoder.state_dict().items() if not _is_of_network(key)}
    no_network.decoder.load_state_dict(state)
    value = prediction.log_likelihood(no_network, batch, newton_posterior(no_network, batch))
    assert value == pytest.approx(exact.log_likelihood, abs=0.1)
    learned = mixed_model_of(no_network.decoder, fitted)
    torch.testing.assert_close(learned.residual, exact.residual, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(learned.parameters, exact.parameters, rtol=1e-5, atol=1e-5)


def _is_of_network(key):
    return key.startswith(("network", "curves"))


@pytest.mark.parametrize("name", ["student_t", "poisson"])
def test_parameters_are_those_of_the_loadings_and_residual(name):
    batch = table(KINDS[name], 2)
    model = model_of(name, 2, has_network=False)
    fitted = start(model, batch)
    loadings, residual = factors_of(fitted, fitted.parameters)
    torch.testing.assert_close(loadings, fitted.loadings[0])
    torch.testing.assert_close(residual, fitted.residual)
    learned = mixed_model_of(model.decoder, fitted)
    torch.testing.assert_close(learned.parameters, fitted.parameters, rtol=1e-4, atol=1e-5)


class Doubled(StudentTFamily):
    """Working outcomes in other units than the predictor's."""

    def start(self, y, predictor, noise):
        return 2.0, 1.0


def test_a_family_may_rescale_its_working_outcome():
    batch = table("numeric", 2)
    likelihood = Likelihood([Doubled(), StudentTFamily()], 2, correlation=True)
    fitted = fit_generalized_mixed_model(likelihood, batch, RandomTerm((0, 1)), torch.zeros(2, 1))
    values = batch.values * torch.tensor([2.0, 1.0]) + torch.tensor([1.0, 0.0])
    scaled = Batch(values, batch.design, batch.weights, batch.factors)
    exact = fit_linear_mixed_model(scaled, [RandomTerm((0, 1))])
    # Two searches, which end within 1e-5 of each other.
    for name in ("fixed", "fixed_covariance", "residual", "parameters", "parameters_covariance"):
        torch.testing.assert_close(getattr(fitted, name), getattr(exact, name), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fitted.loadings[0], exact.loadings[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fitted.effects[0], exact.effects[0], rtol=1e-4, atol=1e-5)


def counts(seed=0, n_groups=150):
    """Two counts with correlated random intercepts, and what they were made from."""
    rng = np.random.default_rng(seed)
    sizes = torch.full((n_groups,), 6)
    groups = np.repeat(np.arange(n_groups), sizes)
    psi = np.array([[0.5, 0.3], [0.3, 0.4]])
    effects = rng.multivariate_normal([0.0, 0.0], psi, n_groups)
    x = rng.normal(size=(len(groups), 2))
    eta = np.column_stack([np.ones(len(groups)), x]) @ [[1.0, 0.5], [0.4, -0.3], [0.0, 0.2]] + effects[groups]
    design = np.column_stack([np.ones(len(groups)), x])
    parts = (rng.poisson(np.exp(eta)).astype(float), design, np.ones(len(groups)))
    batch = Batch(*map(torch.from_numpy, parts), factors=(Segments.of_sizes(sizes),))
    return batch, psi


def test_two_counts_share_their_groups():
    batch, psi = counts()
    fitted = start(model_of("poisson", 2, random=(0,), has_network=False), batch)
    truth = [[1.0, 0.5], [0.4, -0.3], [0.0, 0.2]]
    np.testing.assert_allclose(
        fitted.fixed, truth, atol=4.0 * fitted.fixed_covariance.diagonal().sqrt().max()
    )
    # 150 groups tell a variance to 12 %, and the quasi-likelihood is some per cent low.
    np.testing.assert_allclose(fitted.loadings[0] @ fitted.loadings[0].T, psi, atol=0.15)
    assert fitted.residual[1, 0] == 0.0


def test_the_likelihood_of_two_counts_is_that_of_quadrature():
    batch, _ = counts(n_groups=25)
    model = model_of("poisson", 2, random=(0,), has_network=False)
    fitted = start(model, batch)
    nodes = np.linspace(-6.0, 6.0, 121)
    grid = np.array(np.meshgrid(nodes, nodes)).reshape(2, -1).T
    log_weights = stats.norm.logpdf(grid).sum(1) + 2.0 * np.log(nodes[1] - nodes[0])
    effects = torch.from_numpy(grid) @ fitted.loadings[0].T
    rate = ((batch.design @ fitted.fixed)[:, None] + effects).exp()
    log_prob = stats.poisson(rate.numpy()).logpmf(batch.values[:, None].numpy()).sum(-1)
    by_group = batch.groups.sum(torch.from_numpy(log_prob)).numpy()
    exact = logsumexp(by_group + log_weights, axis=1).sum()
    assert fitted.log_likelihood == pytest.approx(exact, abs=0.05)
    assert mixed_log_likelihood(model, batch) == fitted.log_likelihood


def test_missing_cells_of_one_outcome_leave_the_other_as_it_is():
    """With random effects that are hardly correlated, a count that is never seen changes nothing."""
    batch = table("count")
    alone = fit_generalized_mixed_model(
        Likelihood([PoissonFamily()], 1), batch, RandomTerm((0,)), torch.zeros(1, 0)
    )
    values = torch.cat([batch.values, 0.0 * batch.values], dim=1)
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[:, 0] = True
    mask[:3, 1] = True
    both = Batch(values, batch.design, batch.weights, batch.factors, mask)
    likelihood = Likelihood([PoissonFamily(), PoissonFamily()], 2)
    fitted = fit_generalized_mixed_model(likelihood, both, RandomTerm((0,)), torch.zeros(2, 0))
    torch.testing.assert_close(fitted.fixed[:, 0], alone.fixed[:, 0], rtol=0.05, atol=0.05)


def test_an_ordinal_family_learns_its_cuts_from_observed_cells():
    batch = table("ordered")
    mask = torch.arange(batch.n_rows)[:, None] % 3 > 0
    family, of_seen = OrdinalFamily([0.0, 1.0, 2.0]), OrdinalFamily([0.0, 1.0, 2.0])
    masked = Batch(batch.values * mask, batch.design, batch.weights, batch.factors, mask)
    term, shape = RandomTerm((0,)), torch.zeros(1, 2)
    fit_generalized_mixed_model(Likelihood([family], 1), masked, term, shape)
    seen = batch.take(mask[:, 0])
    groups = batch.groups.take(torch.nonzero(mask[:, 0])[:, 0])
    seen = Batch(seen.values, seen.design, seen.weights, (groups,))
    fit_generalized_mixed_model(Likelihood([of_seen], 1), seen, term, shape)
    torch.testing.assert_close(family.first_cut, of_seen.first_cut)
    torch.testing.assert_close(family.raw_steps, of_seen.raw_steps)


@pytest.mark.parametrize("n_outcomes", [1, 2])
def test_curves_start_at_something(n_outcomes):
    model = model_of("gaussian", n_outcomes)
    start(model, table("numeric", n_outcomes))
    last = model.decoder.curves[-1].weight.detach().unflatten(0, (n_outcomes, 4, -1))
    assert float(last[:, :2, -2:].abs().sum()) > 0.0
    assert float(last[:, :, :-2].abs().sum()) == 0.0
    assert model.decoder.penalty().item() > 0.0
    np.testing.assert_allclose(model.value_center, table("numeric", n_outcomes).values.mean(0), rtol=1e-5)


# --- models of free instance codes ---


def latent(decoder, n_group_codes=2, n_features=2):
    spec = LatentSpec(
        group_encoder="deepsets",
        instance_encoder="conditional",
        regularizer=None,
        decoder=decoder,
        n_group_codes=n_group_codes,
        n_instance_codes=n_features,
        hidden_sizes=(8,),
        center=(0.0,) * n_features,
        scale=(1.0,) * n_features,
    )
    return spec.build(torch.Generator().manual_seed(0))


def means_only(sizes=SIZES):
    batch = table("numeric", 2, sizes=sizes)
    batch = Batch(batch.values, batch.design[:, :1], batch.weights, batch.factors)
    return batch, fit_linear_mixed_model(batch, [RandomTerm((0,))])


def test_a_linear_model_starts_at_the_maximum():
    batch, fitted = means_only()
    model = latent("linear")
    start_latent_model(model, fitted, batch.groups.sizes)
    model = model.double()
    value = inference.log_likelihood(model, batch, model.infer(batch), 1).sum()
    assert float(value) == pytest.approx(fitted.log_likelihood, abs=0.01)


@pytest.mark.parametrize("n_group_codes", [1, 2, 3])
def test_a_network_starts_at_the_best_linear_predictor(n_group_codes):
    batch, fitted = means_only(torch.full((40,), 5))
    model = latent("mlp", n_group_codes)
    start_latent_model(model, fitted, batch.groups.sizes)
    decoder = model.decoder
    torch.testing.assert_close(decoder.group_loadings.bias, fitted.fixed[0].float())
    psi = fitted.loadings[0] @ fitted.loadings[0].T
    loadings = decoder.group_loadings.weight.double()
    values, vectors = torch.linalg.eigh(psi)
    values[: max(0, 2 - n_group_codes)] = 0.0
    torch.testing.assert_close(loadings @ loadings.T, (vectors * values) @ vectors.T, rtol=1e-5, atol=1e-6)
    if n_group_codes > 1:
        # Groups of one size: the predictor of u gives the predictions of the mixed model.
        means = batch.groups.sum(batch.values) / 5.0 - fitted.fixed[0]
        u = means @ model.group_encoder.mean_predictor.weight.double().T
        torch.testing.assert_close(u @ loadings.T, fitted.effects[0], rtol=1e-4, atol=1e-5)


def test_a_formula_stays_where_it_is():
    batch, fitted = means_only()
    model = latent(lambda u, v: u + v)
    before = copy.deepcopy(model.state_dict())
    start_latent_model(model, fitted, batch.groups.sizes)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key])


# --- With the old files: all below goes when they go. ---


def old_network(name):
    """The old network, with the weights of `model_of`."""
    from skgroupvae.families import FAMILIES
    from skgroupvae.regression.decoder import RegressionDecoder
    from skgroupvae.regression.encoder import MixedModelEncoder
    from skgroupvae.regression.network import RegressionNetwork

    generator = torch.Generator().manual_seed(0)
    family = FAMILIES[name](*([[0.0, 1.0, 2.0]] if name == "ordinal" else []))
    encoder = MixedModelEncoder(3, 4, (8,), generator)
    decoder = RegressionDecoder(family, 3, (0, 1), 4, (8,), generator)
    state = model_of(name).decoder.state_dict()
    for key, value in decoder.state_dict().items():
        value.copy_(state[key.replace("family.", "likelihood.families.0.")].reshape(value.shape))
    return RegressionNetwork(encoder, decoder)


@pytest.mark.parametrize("name", KINDS)
def test_one_outcome_starts_as_before(name):
    from skgroupvae.groups import Segments as OldSegments
    from skgroupvae.regression.start import mixed_model_of as old_mixed_model_of
    from skgroupvae.regression.start import start_at_mixed_model as old_start

    model, network, batch = model_of(name), old_network(name), table(KINDS[name])
    rows = torch.cat([batch.values, batch.weights[:, None], batch.design], dim=1)
    segments = OldSegments(batch.groups.codes, batch.groups.sizes)
    fitted = start(model, batch)
    known = old_start(network, rows, segments, 0.1, torch.Generator().manual_seed(1))

    def close(one, other, rtol=1e-4, atol=1e-5):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)

    # Two searches for the same maximum: the old one stops at a gain of 1e-12 of a row.
    close(fitted.fixed[:, 0], known.fixed)
    close(fitted.fixed_covariance, known.fixed_covariance)
    close(fitted.loadings[0], known.loadings)
    close(fitted.effects[0], known.effects)
    close(fitted.parameters_covariance, known.theta_covariance, rtol=1e-3)
    assert float(fitted.residual) == pytest.approx(known.noise, rel=1e-4)
    assert fitted.log_likelihood == pytest.approx(known.log_likelihood, abs=1e-2)
    state = model.decoder.state_dict()
    for key, value in network.decoder.state_dict().items():
        found = state[key.replace("family.", "likelihood.families.0.")].reshape(value.shape)
        if key.startswith("curves.2"):
            # A code has any sign.
            found, value = found.unflatten(0, (-1, 4)), value.unflatten(0, (-1, 4))
            signs = torch.sign((found * value).flatten(2).sum(-1).sum(0)) if found.dim() > 2 else None
            found = found.abs() if signs is None else found * signs[:, None]
            value = value.abs() if signs is None else value
        # Curves whose variances are nearly the same take each other's place.
        close(found, value, rtol=1e-2, atol=1e-3)
    again, before = mixed_model_of(model.decoder, fitted), old_mixed_model_of(network.decoder, known)
    close(again.loadings[0], before.loadings)
    assert float(again.residual) == pytest.approx(before.noise, rel=1e-4)
