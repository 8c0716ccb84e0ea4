"""Starts at (generalized) linear mixed models: penalized quasi-likelihood, its likelihood, what parts get."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import expit, logsumexp
from scipy_families import distribution, log_prob, score_and_information

from skgroupvae.batch import Batch, RandomTerm, Segments
from skgroupvae.mixed_model.curves import leading_curves
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


def assert_same_model(fitted, other, rtol, atol):
    for part in ("fixed", "fixed_covariance", "residual", "parameters", "parameters_covariance"):
        torch.testing.assert_close(getattr(fitted, part), getattr(other, part), rtol=rtol, atol=atol)
    torch.testing.assert_close(fitted.loadings[0], other.loadings[0], rtol=rtol, atol=atol)
    torch.testing.assert_close(fitted.effects[0], other.effects[0], rtol=rtol, atol=atol)


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
    assert_same_model(fitted, exact, 1e-4, 1e-5)


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


# --- one outcome of each family against its own densities ---


def law_at(name, model, batch, predictor):
    """Distribution of each row's outcome at these linear predictors (N,) or (N, *), by scipy."""
    shape = model.decoder.shape[0].detach().double().numpy()
    eta = np.concatenate([predictor[..., None], np.broadcast_to(shape, (*predictor.shape, len(shape)))], -1)
    trials = batch.weights.numpy().reshape(-1, *[1] * (predictor.ndim - 1))
    return distribution(name, model.decoder.likelihood.family_of(0), eta, trials)


def outcomes_of(name, batch):
    """Outcome of each row as its distribution has it: of proportions the successes."""
    y = batch.values[:, 0].numpy()
    return np.round(y * batch.weights.numpy()) if name == "binomial" else y


def predictor_of(fitted, batch):
    effects = batch.groups.expand(fitted.effects[0])
    return (batch.design @ fitted.fixed[:, 0] + (batch.design[:, :2] * effects).sum(1)).numpy()


@pytest.mark.parametrize("name", ["bernoulli", "binomial", "poisson", "negative_binomial", "ordinal"])
def test_estimates_are_those_of_the_linear_mixed_model_of_working_outcomes(name):
    """The fixed point of penalized quasi-likelihood, its working outcomes by scipy."""
    model, batch = model_of(name, has_network=False), table(KINDS[name])
    fitted = start(model, batch)
    predictor, trials = predictor_of(fitted, batch), batch.weights.numpy()
    y, law = outcomes_of(name, batch), law_at(name, model, batch, predictor)
    if name == "ordinal":
        score, information = score_and_information(lambda at: law_at(name, model, batch, at), y, predictor)
    else:
        # In the mean's slope in the predictor: for the canonical links the variance.
        slope = law.mean() if name == "negative_binomial" else law.var()
        score, information = slope * (y - law.mean()) / law.var(), slope**2 / law.var()
    if name == "binomial":
        # Of one trial of a row; a trial's working outcome is that of its success or failure.
        score, information = score / trials, information / trials
        extra = batch.values * (1.0 - batch.values) / torch.from_numpy(information[:, None]) ** 2
    else:
        extra = torch.zeros_like(batch.values)
    working = torch.from_numpy((predictor + score / information)[:, None])
    again = fit_linear_mixed_model(
        Batch(working, batch.design, batch.weights, batch.factors),
        [RandomTerm((0, 1))],
        precisions=torch.from_numpy(information[:, None]),
        extra_variance=extra,
        residual="diagonal",
    )
    # The package has derivatives by differences over 0.1, but for the negative binomial.
    tolerance = 1e-4 if name == "negative_binomial" else 5e-3
    assert_same_model(fitted, again, tolerance, tolerance)


def test_proportions_have_the_estimates_of_their_trials():
    batch = table("proportion")
    of_rows = start(model_of("binomial", has_network=False), batch)
    trials = batch.weights.long()
    number = torch.arange(len(trials)).repeat_interleave(trials)
    first = trials.cumsum(0) - trials
    success = torch.arange(len(number)) - first[number] < (batch.values[:, 0] * trials).round()[number]
    codes = batch.groups.codes[number]
    groups = Segments(codes, torch.bincount(codes).double())
    ones = torch.ones(len(number), dtype=torch.float64)
    apart = Batch(success.double()[:, None], batch.design[number], ones, (groups,))
    of_trials = start(model_of("bernoulli", has_network=False), apart)
    assert_same_model(of_rows, of_trials, 1e-4, 1e-5)


def test_students_t_starts_at_the_linear_mixed_model():
    model, batch = model_of("student_t", has_network=False), table("numeric")
    fitted, exact = start(model, batch), fit_linear_mixed_model(batch, [RandomTerm((0, 1))])
    assert_same_model(fitted, exact, 1e-9, 1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_the_likelihood_of_one_outcome_is_that_of_quadrature(name):
    model, batch = model_of(name, has_network=False), table(KINDS[name])
    fitted = start(model, batch)
    nodes = np.linspace(-5.5, 5.5, 67)
    grid = np.array(np.meshgrid(nodes, nodes)).reshape(2, -1).T
    log_weights = stats.norm.logpdf(grid).sum(1) + 2.0 * np.log(nodes[1] - nodes[0])
    effects = batch.design[:, :2].numpy() @ (fitted.loadings[0].numpy() @ grid.T)
    predictor = (batch.design @ fitted.fixed).numpy() + effects
    rows = log_prob(law_at(name, model, batch, predictor), outcomes_of(name, batch)[:, None])
    by_group = batch.groups.sum(torch.from_numpy(rows)).numpy()
    exact = logsumexp(by_group + log_weights, axis=1).sum()
    # 256 shifted quasi-random draws for each of 40 groups: 0.008 to 0.017 nats off.
    assert fitted.log_likelihood == pytest.approx(exact, abs=0.05)


def test_ordinal_cuts_give_the_shares_of_the_levels():
    rng = np.random.default_rng(0)
    batch = table("ordered", sizes=torch.full((400,), 5))
    shift = rng.logistic(size=batch.n_rows) + 0.8 * batch.design[:, 1].numpy()
    y = torch.from_numpy(np.digitize(shift, [-1.0, 0.5]).astype(float))[:, None]
    batch = Batch(y, batch.design, batch.weights, batch.factors)
    model = model_of("ordinal", random=(0,), has_network=False)
    fitted = start(model, batch)
    below = law_at("ordinal", model, batch, (batch.design @ fitted.fixed)[:, 0].numpy()).below.mean(0)
    # Groups do not differ. 2,000 rows tell a share to 0.011; that the predictor is no logistic costs less.
    np.testing.assert_allclose(np.diff(below, prepend=0.0), np.bincount(y[:, 0].long()) / 2000, atol=0.03)
    truth = expit(np.array([-1.0, 0.5])[:, None] - 0.8 * batch.design[:, 1].numpy()).mean(1)
    np.testing.assert_allclose(below[:2], truth, atol=0.04)


def test_curves_start_where_the_scores_of_the_mixed_model_lead():
    model, batch = model_of("gaussian"), table("numeric")
    fitted = start(model, batch)
    hidden = model.decoder.curves[:-1](batch.design[:, 1:].float()).detach().double()
    features = torch.cat([hidden, torch.ones(batch.n_rows, 1, dtype=torch.float64)], dim=1)
    z = (batch.values[:, 0] - torch.from_numpy(predictor_of(fitted, batch))) / fitted.residual[0, 0]
    # What an outlier says of the scale is bounded at three deviations.
    score = torch.stack([z / fitted.residual[0, 0], z.square().clamp(max=9.0) - 1.0], dim=1)
    information = torch.diag(torch.tensor([float(fitted.residual) ** -2, 2.0], dtype=torch.float64))
    information = information.expand(batch.n_rows, 2, 2)
    generator = torch.Generator().manual_seed(1)  # as `start` has it: nothing is drawn before
    expected = leading_curves(features, score, information, batch.groups, 2, generator)
    last = model.decoder.curves[-1]
    weight, bias = (part.detach().double().unflatten(0, (4, 4)) for part in (last.weight, last.bias))
    found = torch.cat([weight, bias[..., None]], dim=-1)[:2, 2:].transpose(0, 1)
    signs = torch.sign((found * expected).sum((1, 2)))[:, None, None]  # a code has any sign
    torch.testing.assert_close(signs * found, expected, rtol=1e-4, atol=1e-6)


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
    start_latent_model(model, fitted)
    model = model.double()
    value = inference.log_likelihood(model, batch, model.infer(batch), 1).sum()
    assert float(value) == pytest.approx(fitted.log_likelihood, abs=0.01)


@pytest.mark.parametrize("n_group_codes", [1, 2, 3])
def test_a_network_starts_at_the_mixed_model(n_group_codes):
    batch, fitted = means_only()
    model = latent("mlp", n_group_codes)
    start_latent_model(model, fitted)
    decoder = model.decoder
    torch.testing.assert_close(decoder.group_loadings.bias, fitted.fixed[0].float())
    psi = fitted.loadings[0] @ fitted.loadings[0].T
    loadings = decoder.group_loadings.weight.double()
    values, vectors = torch.linalg.eigh(psi)
    values[: max(0, 2 - n_group_codes)] = 0.0
    torch.testing.assert_close(loadings @ loadings.T, (vectors * values) @ vectors.T, rtol=1e-5, atol=1e-6)
    if n_group_codes > 1:
        # Of groups of every size.
        q_u = model.infer(batch.to(dtype=torch.float32))
        torch.testing.assert_close(q_u.loc.double() @ loadings.T, fitted.effects[0], rtol=1e-3, atol=1e-4)


def test_a_formula_stays_where_it_is():
    _, fitted = means_only()
    model = latent(lambda u, v: u + v)
    before = copy.deepcopy(model.state_dict())
    start_latent_model(model, fitted)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key])
