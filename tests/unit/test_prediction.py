"""Predictions of a ScoreModel: mixtures over draws of u, against closed forms of normal outcomes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp
from scipy_families import distribution, log_prob, score_of_row

from skgroupvae.batch import Batch, Segments
from skgroupvae.mixed_model.generalized import laplace_posterior, newton_posterior
from skgroupvae.model import families, prediction
from skgroupvae.model.encoders import NewtonEncoder
from skgroupvae.model.likelihood import Likelihood
from skgroupvae.model.mixed_decoder import MixedModelDecoder
from skgroupvae.model.model import ScoreModel
from skgroupvae.model.posteriors import FullNormal

DOUBLE = torch.float64
SIZES = torch.tensor([1, 4, 9, 2, 6, 3, 5, 7])
RANDOM = (0, 1)
LOADINGS = torch.tensor(
    [[0.8, 0.0, 0.0, 0.0], [0.2, 0.5, 0.0, 0.0], [-0.4, 0.1, 0.6, 0.0], [0.1, 0.3, -0.2, 0.4]], dtype=DOUBLE
)
SDS = torch.tensor([0.7, 1.3], dtype=DOUBLE)
CORRELATION = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=DOUBLE)


def table(n_outcomes, kind="numeric", seed=0):
    """Rows of eight groups, a constant and two covariates, of outcomes of a kind."""
    rng = np.random.default_rng(seed)
    n_rows = int(SIZES.sum())
    design = np.column_stack([np.ones(n_rows), rng.normal(size=(n_rows, 2))])
    weights = np.ones(n_rows)
    values = rng.normal(size=(n_rows, n_outcomes))
    if kind == "count":
        values = rng.poisson(2.0, values.shape).astype(float)
    elif kind == "binary":
        values = (values > 0).astype(float)
    elif kind == "ordered":
        values = rng.integers(0, 3, values.shape).astype(float)
    elif kind == "proportion":
        weights = rng.integers(1, 9, n_rows).astype(float)
        values = rng.binomial(weights.astype(int)[:, None], 0.4, values.shape) / weights[:, None]
    parts = (torch.from_numpy(part) for part in (values, design, weights))
    return Batch(*parts, factors=(Segments.of_sizes(SIZES),))


def model_of(kinds, n_codes=None, hidden=(), correlation=False, seed=0):
    """A model with random parameters, in float64."""
    generator = torch.Generator().manual_seed(seed)
    likelihood = Likelihood(kinds, len(kinds), correlation=correlation)
    n_codes = n_codes or len(kinds) * len(RANDOM)
    decoder = MixedModelDecoder(likelihood, 3, RANDOM, n_codes, hidden, generator)
    for parameter in decoder.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    encoder = NewtonEncoder(2 + len(kinds), len(kinds), n_codes, (), generator)
    return ScoreModel(encoder, decoder).double().requires_grad_(False)


def two_normal(correlated=True):
    """Two normal outcomes with known parameters."""
    model = model_of([families.NormalFamily(), families.NormalFamily()], correlation=correlated)
    model.decoder.raw_loadings.copy_(LOADINGS)
    model.decoder.shape[:, 0] = SDS.log()
    if correlated:
        model.decoder.likelihood.set_correlation(CORRELATION)
    return model


def residual_covariance(correlated=True):
    return torch.outer(SDS, SDS) * (CORRELATION if correlated else torch.eye(2, dtype=DOUBLE))


def dense(model, batch, group, correlated=True):
    """Mean and covariance of all cells of a group's rows, u integrated out, row by row."""
    rows = batch.groups.codes == group
    design = batch.design[rows]
    z = torch.kron(torch.eye(2, dtype=DOUBLE)[None], design[:, None, list(RANDOM)]).flatten(0, 1)
    covariance = z @ LOADINGS @ LOADINGS.T @ z.T
    noise = torch.kron(torch.eye(len(design), dtype=DOUBLE), residual_covariance(correlated))
    return (design @ model.decoder.fixed).flatten(), covariance + noise, rows


def standard(n_groups, n_codes):
    normal = FullNormal.standard(n_codes, torch.zeros((), dtype=DOUBLE))
    return normal.take(torch.zeros(n_groups, dtype=torch.long))


# --- two outcomes against closed forms ---


@pytest.mark.parametrize("correlated", [True, False])
def test_rows_given_u_are_jointly_normal(correlated):
    model, batch = two_normal(correlated), table(2)
    u = torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    eta = model.decoder(batch.design, batch.groups.expand(u))
    found = prediction.mixture_log_prob(model.decoder.likelihood, batch.values, eta[None])
    normal = stats.multivariate_normal(cov=residual_covariance(correlated).numpy())
    np.testing.assert_allclose(found, normal.logpdf((batch.values - eta[..., 0]).numpy()), rtol=1e-10)


@pytest.mark.parametrize("correlated", [True, False])
def test_log_likelihood_is_the_dense_one(correlated):
    model, batch = two_normal(correlated), table(2)
    exact = 0.0
    for group in range(8):
        mean, covariance, rows = dense(model, batch, group, correlated)
        exact += stats.multivariate_normal(mean, covariance).logpdf(batch.values[rows].flatten())
    found = prediction.log_likelihood(model, batch, newton_posterior(model, batch))
    assert found == pytest.approx(exact, abs=0.03)


def test_log_likelihood_leaves_missing_cells_out():
    model, batch = two_normal(), table(2)
    mask = torch.rand(batch.values.shape, generator=torch.Generator().manual_seed(3)) < 0.7
    masked = Batch(batch.values * mask, batch.design, batch.weights, batch.factors, mask)
    exact = 0.0
    for group in range(8):
        mean, covariance, rows = dense(model, batch, group)
        seen = mask[rows].flatten()
        if seen.any():
            normal = stats.multivariate_normal(mean[seen], covariance[seen][:, seen])
            exact += normal.logpdf(batch.values[rows].flatten()[seen])
    for q_u in (newton_posterior(model, masked), laplace_posterior(model, masked)):
        assert prediction.log_likelihood(model, masked, q_u) == pytest.approx(exact, abs=0.03)


def test_the_predictive_mixture_is_the_normal_one():
    model, batch = two_normal(), table(2)
    likelihood = model.decoder.likelihood
    draws = prediction.draws_of(standard(1, 4), 4096)
    eta = model.decoder(batch.design, draws.expand(-1, batch.n_rows, -1))
    log_prob = prediction.mixture_log_prob(likelihood, batch.values, eta)
    mean, variance = prediction.mixture_moments(likelihood, eta)
    below, upper = prediction.mixture_cdf(likelihood, batch.values, eta)
    levels = torch.tensor([0.1, 0.5], dtype=DOUBLE)
    quantiles = prediction.mixture_quantiles(likelihood, eta, levels)
    assert quantiles.shape == (batch.n_rows, 2, 2)
    for row in range(0, batch.n_rows, 5):
        alone = Batch(
            *(part[row, None] for part in (batch.values, batch.design, batch.weights)),
            factors=(Segments.of_sizes(torch.ones(1)),),
        )
        center, covariance, _ = dense(model, alone, 0)
        normal = stats.multivariate_normal(center, covariance)
        assert log_prob[row] == pytest.approx(normal.logpdf(batch.values[row]), abs=0.02)
        np.testing.assert_allclose(mean[row], center, rtol=1e-8)
        np.testing.assert_allclose(variance[row], covariance.diagonal(), rtol=0.01)
        margins = stats.norm(center, covariance.diagonal().sqrt())
        np.testing.assert_allclose(upper[row], margins.cdf(batch.values[row]), atol=0.003)
        np.testing.assert_allclose(quantiles[row], margins.ppf(levels[:, None]), atol=0.01)
    torch.testing.assert_close(below, upper)


# --- translation and scores ---


def test_source_and_target_are_drawn_independently():
    model = two_normal()
    # One row moved from what nothing is known of to another such group: y' - y is f (u' - u) exactly.
    batch = table(2).take(slice(0, 1))
    # With the covariates at zero, the first outcome moves by its first random effect alone.
    batch.design[:, 1:] = 0.0
    n_draws = 64
    source, target = torch.tensor([0]), torch.tensor([1])
    q_u = standard(2, 4)
    moved = prediction.translated(model, batch, q_u, source, target, n_draws)
    change = (moved - batch.values)[:, 0, 0]
    # Independent: the variances add up. With a common draw it would be 0.
    assert float(change.var()) == pytest.approx(2.0 * float(LOADINGS[0, 0]) ** 2, rel=0.02)
    assert float(change.mean()) == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("n_draws", [32, 64, 256])
def test_codes_and_scores_are_not_correlated(monkeypatch, n_draws):
    """Of a discrete outcome: u of source and target, and what is drawn of v."""
    model = model_of([families.BernoulliFamily(), families.BernoulliFamily()])
    batch = table(2, "binary").take(slice(0, 1))
    seen = []
    forward = model.decoder.forward
    monkeypatch.setattr(
        model.decoder, "forward", lambda design, u: (seen.append(u[:, 0]), forward(design, u))[1]
    )
    at_scores = model.decoder.likelihood.at_scores
    scores = []
    monkeypatch.setattr(
        model.decoder.likelihood, "at_scores", lambda v, eta: (scores.append(v[:, 0]), at_scores(v, eta))[1]
    )
    prediction.translated(model, batch, standard(2, 4), torch.tensor([0]), torch.tensor([1]), n_draws)
    source, target = seen
    mean, sd = model.decoder.likelihood.normal_scores(batch.values, forward(batch.design, source[:, None]))
    noise = (scores[0] - mean[:, 0]) / sd[:, 0]
    correlation = np.corrcoef(torch.cat([source, target, noise], dim=1).T)
    assert np.abs(correlation - np.eye(10)).max() < 1e-6


def test_a_row_that_stays_keeps_its_outcomes():
    model, batch = two_normal(), table(2)
    q_u, at = newton_posterior(model, batch), batch.groups.codes
    target = torch.where(torch.arange(batch.n_rows) % 2 == 0, at, (at + 1) % 8)
    moved = prediction.translated(model, batch, q_u, at, target, 8)
    torch.testing.assert_close(moved[:, ::2], batch.values[::2].expand(8, -1, -1))
    assert float((moved[:, 1::2] - batch.values[1::2]).abs().min()) > 1e-6


def test_a_translation_keeps_the_scores():
    model, batch = two_normal(), table(2)
    q_u, at = newton_posterior(model, batch), batch.groups.codes
    certain = FullNormal(q_u.loc, 1e-12 * q_u.root, q_u.log_det)
    moved = prediction.translated(model, batch, certain, at, (at + 1) % 8, 2)[0]
    shift = (at + 1) % 8
    before = model.decoder(batch.design, q_u.loc[at])[..., 0]
    after = model.decoder(batch.design, q_u.loc[shift])[..., 0]
    torch.testing.assert_close(moved, batch.values + after - before)


def test_a_missing_cell_has_any_score():
    model, batch = two_normal(), table(2)
    mask = torch.ones_like(batch.values, dtype=torch.bool)
    mask[0, 1] = False
    masked = Batch(batch.values * mask, batch.design, batch.weights, batch.factors, mask)
    q_u, at = standard(8, 4), batch.groups.codes
    moved = prediction.translated(model, masked, q_u, at, at, 512)
    torch.testing.assert_close(moved[:, 1:], batch.values[1:].expand(512, -1, -1))
    z = batch.design[0, list(RANDOM)]
    effects = z @ LOADINGS[2:] @ LOADINGS[2:].T @ z
    assert float(moved[:, 0, 1].var()) == pytest.approx(float(effects + SDS[1] ** 2), rel=0.1)
    assert (prediction.normal_scores(model, masked, prediction.draws_of(q_u, 4), at)[0, 1] == 0.0).all()


def test_scores_are_residuals_in_standard_deviations():
    model, batch = two_normal(), table(2)
    draws = prediction.draws_of(newton_posterior(model, batch), 16)
    found = prediction.normal_scores(model, batch, draws, batch.groups.codes)
    eta = model.decoder(batch.design, draws.mean(0)[batch.groups.codes])
    torch.testing.assert_close(found, (batch.values - eta[..., 0]) / SDS)


def test_draws_come_in_pairs_about_the_mean():
    q_u = newton_posterior(two_normal(), table(2))
    draws = prediction.draws_of(q_u, 10)
    assert draws.shape == (10, 8, 4)
    torch.testing.assert_close(draws.mean(0), q_u.loc)


def test_draws_have_the_moments_of_the_posterior():
    q_u = newton_posterior(two_normal(), table(2))
    draws = prediction.draws_of(q_u, 4096)
    found = torch.einsum("sgu,sgv->guv", draws - q_u.loc, draws - q_u.loc) / 4096
    torch.testing.assert_close(found, q_u.root @ q_u.root.mT, rtol=0.01, atol=0.002)


# --- one outcome of each family against its own densities ---

# What makes each, and the kind of its outcomes.
KINDS = {
    "gaussian": (families.GaussianFamily, "numeric"),
    "student_t": (families.StudentTFamily, "numeric"),
    "bernoulli": (families.BernoulliFamily, "binary"),
    "binomial": (families.BinomialFamily, "proportion"),
    "poisson": (families.PoissonFamily, "count"),
    "negative_binomial": (families.NegativeBinomialFamily, "count"),
    "ordinal": (lambda: families.OrdinalFamily([0.0, 1.0, 2.0]), "ordered"),
}
every_family = pytest.mark.parametrize("name", KINDS)


def one_outcome(name, hidden=(4,), n_codes=3):
    """A model with random parameters, rows, and outcomes as their distribution has them."""
    family, kind = KINDS[name]
    model, batch = model_of([family()], n_codes, hidden), table(1, kind)
    if name == "gaussian":
        # Drawn from the model: its random tails make others impossible.
        generator = torch.Generator().manual_seed(4)
        u = torch.randn(8, model.decoder.n_group_codes, generator=generator, dtype=DOUBLE)
        v = torch.randn(batch.n_rows, 1, generator=generator, dtype=DOUBLE)
        eta = model.decoder(batch.design, batch.groups.expand(u))
        batch = replace(batch, values=model.decoder.likelihood.at_scores(v, eta))
    y = batch.values[:, 0].numpy()
    return model, batch, np.round(y * batch.weights.numpy()) if name == "binomial" else y


def law_at(name, model, batch, u):
    """Distribution of each row's outcome at draws u (S, N, U) of its group's code, by scipy."""
    eta = model.decoder(batch.design, u)[..., 0, :].numpy()
    return distribution(name, model.decoder.likelihood.family_of(0), eta, batch.weights.numpy())


@every_family
def test_a_mixture_is_the_mean_over_draws(name):
    model, batch, y = one_outcome(name)
    u = prediction.draws_of(newton_posterior(model, batch), 8)[:, batch.groups.codes]
    law, eta = law_at(name, model, batch, u), model.decoder(batch.design, u)
    likelihood, values = model.decoder.likelihood.of_rows(batch.values, batch.weights)
    log_density = logsumexp(log_prob(law, y), axis=0) - np.log(8)
    np.testing.assert_allclose(prediction.mixture_log_prob(likelihood, values, eta), log_density, rtol=1e-7)
    below, upper = (part[:, 0] for part in prediction.mixture_cdf(likelihood, values, eta))
    np.testing.assert_allclose(upper, law.cdf(y).mean(0), rtol=1e-7, atol=1e-14)
    is_continuous = hasattr(law, "logpdf")
    np.testing.assert_allclose(below, law.cdf(y if is_continuous else y - 1.0).mean(0), rtol=1e-7, atol=1e-9)
    mean, variance = (part[:, 0] for part in prediction.mixture_moments(likelihood, eta))
    # A skewed outcome has its moments by 15 nodes.
    tolerance = 0.01 if name == "gaussian" else 1e-7
    np.testing.assert_allclose(mean, law.mean().mean(0), rtol=tolerance, atol=tolerance)
    total = law.var().mean(0) + law.mean().var(0)
    np.testing.assert_allclose(variance, total, rtol=tolerance)
    levels = torch.tensor([0.2, 0.9], dtype=DOUBLE)
    quantiles = prediction.mixture_quantiles(likelihood, eta, levels)[..., 0].numpy()
    for level, quantile in zip((0.2, 0.9), quantiles.T, strict=True):
        reached = law.cdf(quantile).mean(0)
        if is_continuous:
            np.testing.assert_allclose(reached, level, rtol=1e-6)
        else:
            assert (reached >= level).all()
            assert (law.cdf(quantile - 1.0).mean(0) < level).all()


@every_family
def test_scores_are_the_posterior_means_of_v(name):
    model, batch, y = one_outcome(name)
    draws = prediction.draws_of(newton_posterior(model, batch), 8)
    found = prediction.normal_scores(model, batch, draws, batch.groups.codes)[:, 0]
    law = law_at(name, model, batch, draws[:, batch.groups.codes])
    np.testing.assert_allclose(found, score_of_row(law, y).mean(0), rtol=1e-6, atol=1e-6)


@every_family
def test_log_likelihoods_of_a_network_are_those_of_quadrature(name):
    model, batch, y = one_outcome(name, n_codes=2)
    nodes = np.linspace(-5.5, 5.5, 89)
    grid = np.array(np.meshgrid(nodes, nodes)).reshape(2, -1).T
    log_weights = stats.norm.logpdf(grid).sum(1) + 2.0 * np.log(nodes[1] - nodes[0])
    u = torch.from_numpy(grid)[:, None].expand(-1, batch.n_rows, -1)
    rows = torch.from_numpy(log_prob(law_at(name, model, batch, u), y))
    exact = logsumexp(batch.groups.sum(rows.mT).numpy() + log_weights, axis=1)
    q_u = newton_posterior(model, batch)
    found = prediction.group_log_likelihoods(model, batch, q_u, 1024)
    np.testing.assert_allclose(found, exact, atol=0.02 if name == "gaussian" else 0.005)
    # Of a skewed outcome one step of Newton's method is too far from the posterior to draw from it alone.
    if name != "gaussian":
        assert prediction.log_likelihood(model, batch, q_u, 1024) == pytest.approx(exact.sum(), abs=0.03)


@every_family
def test_the_newton_posterior_is_one_step_from_zero(name):
    model, batch, _ = one_outcome(name)
    decoder = model.decoder
    slopes = decoder.coefficients(batch.design)[:, 0]
    n_working = decoder.likelihood.n_working
    at_zero = decoder(batch.design, torch.zeros(batch.n_rows, 3, dtype=DOUBLE))[:, 0]
    score, information = decoder.likelihood.family_of(0).newton_terms(batch.values[:, 0], at_zero)
    q_u = newton_posterior(model, batch)
    for group in range(8):
        precision, pull = torch.eye(3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE)
        for row in torch.nonzero(batch.groups.codes == group)[:, 0]:
            slope, weight = slopes[row, :n_working], batch.weights[row]
            precision += weight * slope.T @ torch.diag(information[row]) @ slope
            pull += weight * slope.T @ score[row]
        covariance = torch.linalg.inv(precision)
        torch.testing.assert_close(q_u.loc[group], covariance @ pull)
        torch.testing.assert_close(q_u.root[group] @ q_u.root[group].T, covariance)


@pytest.mark.parametrize("posterior", [newton_posterior, laplace_posterior])
def test_posteriors_of_normal_outcomes_are_exact(posterior):
    model, batch = two_normal(), table(2)
    q_u = posterior(model, batch)
    for group in range(8):
        mean, covariance, rows = dense(model, batch, group)
        z = torch.kron(torch.eye(2, dtype=DOUBLE)[None], batch.design[rows][:, None, list(RANDOM)])
        gain = torch.linalg.solve(covariance, z.flatten(0, 1) @ LOADINGS).T
        torch.testing.assert_close(q_u.loc[group], gain @ (batch.values[rows].flatten() - mean))
        left = torch.eye(4, dtype=DOUBLE) - gain @ z.flatten(0, 1) @ LOADINGS
        torch.testing.assert_close(q_u.root[group] @ q_u.root[group].T, left)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "gaussian"])
def test_the_laplace_posterior_is_at_the_mode_with_its_curvature(name):
    model, batch, y = one_outcome(name, (), 2)
    q_u = laplace_posterior(model, batch)

    def height(u):
        rows = log_prob(law_at(name, model, batch, batch.groups.expand(u)), y)
        prior = stats.norm.logpdf(u.numpy()).sum(1)
        return batch.groups.sum(torch.from_numpy(rows)).numpy() + prior

    steps = 1e-3 * torch.eye(2, dtype=DOUBLE)
    gradient = np.stack([(height(q_u.loc + h) - height(q_u.loc - h)) / 2e-3 for h in steps], axis=1)
    # In standard deviations of the posterior: the package has derivatives by differences over 0.1.
    assert np.abs(np.einsum("gu,guv->gv", gradient, q_u.root.numpy())).max() < 0.01
    if name in ("student_t", "negative_binomial"):
        return  # their curvature is the expected one
    hessian = [
        [sum(a * b * height(q_u.loc + a * h + b * k) for a in (1, -1) for b in (1, -1)) for k in steps]
        for h in steps
    ]
    precision = -np.moveaxis(np.array(hessian), 2, 0) / 4e-6
    covariance = (q_u.root @ q_u.root.mT).numpy()
    np.testing.assert_allclose(covariance, np.linalg.inv(precision), rtol=0.01, atol=1e-3)


def test_a_translation_between_known_codes_keeps_the_place_in_the_distribution():
    """Also where the network moves scale, skewness and tails."""
    model, batch, y = one_outcome("gaussian")
    q_u, at = newton_posterior(model, batch), batch.groups.codes
    certain, shift = FullNormal(q_u.loc, 0.0 * q_u.root, q_u.log_det), (at + 1) % 8
    moved = prediction.translated(model, batch, certain, at, shift, 1)[0, :, 0].numpy()
    before, after = (law_at("gaussian", model, batch, q_u.loc[to][None]) for to in (at, shift))
    np.testing.assert_allclose(after.cdf(moved), before.cdf(y), rtol=1e-6)
    assert np.abs(moved - y).min() > 1e-3


def test_the_mean_by_rows_is_shrunk_by_what_chance_would_make_it():
    # Over rows 6, over groups 4; by chance the difference has variance 2 * 0.25².
    loc, sizes = torch.tensor([[0.0, 0.1], [8.0, 0.0]], dtype=DOUBLE), torch.tensor([1.0, 3.0], dtype=DOUBLE)
    found = prediction.mean_by_rows(loc, sizes)
    np.testing.assert_allclose(found, [2.0 * (1.0 - 0.125 / 4.0), 0.0], atol=1e-9)
