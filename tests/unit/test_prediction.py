"""Predictions of a ScoreModel: mixtures over draws of u, against closed forms of normal outcomes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

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


# --- With the old files: all below goes when they go. ---

KINDS = {
    "gaussian": ("GaussianFamily", "numeric"),
    "student_t": ("StudentTFamily", "numeric"),
    "bernoulli": ("BernoulliFamily", "binary"),
    "binomial": ("BinomialFamily", "proportion"),
    "poisson": ("PoissonFamily", "count"),
    "negative_binomial": ("NegativeBinomialFamily", "count"),
    "ordinal": ("OrdinalFamily", "ordered"),
}


def both(name, hidden=(4,)):
    """The old network and the new model with the same parameters, and the same rows for each."""
    from skgroupvae import families as old_families
    from skgroupvae.groups import Segments as OldSegments
    from skgroupvae.regression.decoder import RegressionDecoder
    from skgroupvae.regression.encoder import MixedModelEncoder
    from skgroupvae.regression.network import RegressionNetwork

    class_name, kind = KINDS[name]
    arguments = [[0.0, 1.0, 2.0]] if kind == "ordered" else []
    n_codes = 3 if hidden else 2
    new = model_of([getattr(families, class_name)(*arguments)], n_codes, hidden)
    generator = torch.Generator()
    family = getattr(old_families, class_name)(*arguments)
    decoder = RegressionDecoder(family, 3, RANDOM, n_codes, hidden, generator).double()
    state = new.decoder.state_dict()
    decoder.load_state_dict(
        {
            key: state[key.replace("family.", "likelihood.families.0.")].reshape(value.shape)
            for key, value in decoder.state_dict().items()
        }
    )
    decoder.requires_grad_(False)
    old = RegressionNetwork(MixedModelEncoder(3, n_codes, (), generator), decoder)
    batch = table(1, kind)
    rows = torch.cat([batch.values, batch.weights[:, None], batch.design], dim=1)
    return old, new, rows, OldSegments(batch.groups.codes, batch.groups.sizes), batch


@pytest.mark.parametrize("name", KINDS)
def test_one_outcome_is_as_before(name):
    from skgroupvae.regression import prediction as before

    old, new, rows, segments, batch = both(name)
    old_q, new_q = old.newton_posterior(rows, segments), newton_posterior(new, batch)
    torch.testing.assert_close(new_q.loc, old_q.loc)
    torch.testing.assert_close(new_q.root, old_q.root)
    torch.testing.assert_close(prediction.draws_of(new_q, 8), before.draws_of(old_q, 8))
    value = prediction.log_likelihood(new, batch, new_q, 32)
    assert value == pytest.approx(before.log_likelihood(old, rows, segments, old_q, 32), rel=1e-9)

    draws = prediction.draws_of(new_q, 8)
    u, at = draws[:, batch.groups.codes], batch.groups.codes
    family, y = old.decoder.family.of_rows(rows[:, 0], rows[:, 1])
    likelihood, values = new.decoder.likelihood.of_rows(batch.values, batch.weights)
    old_eta, eta = old.decoder(rows[:, 2:], u), new.decoder(batch.design, u)
    torch.testing.assert_close(eta[:, :, 0], old_eta)
    torch.testing.assert_close(
        prediction.mixture_log_prob(likelihood, values, eta), before.mixture_log_prob(family, y, old_eta)
    )
    for found, known in (
        (prediction.mixture_cdf(likelihood, values, eta), before.mixture_cdf(family, y, old_eta)),
        (prediction.mixture_moments(likelihood, eta), before.mixture_moments(family, old_eta)),
    ):
        torch.testing.assert_close(tuple(part[:, 0] for part in found), known)
    levels = torch.tensor([0.2, 0.9], dtype=eta.dtype)
    torch.testing.assert_close(
        prediction.mixture_quantiles(likelihood, eta, levels)[..., 0],
        before.mixture_quantiles(family, old_eta, levels),
    )
    torch.testing.assert_close(
        prediction.normal_scores(new, batch, draws, at)[:, 0], before.normal_scores(old, rows, draws, at)
    )


@pytest.mark.parametrize("name", KINDS)
def test_the_laplace_posterior_is_as_before(name):
    old, new, rows, segments, batch = both(name, ())
    old_q, new_q = old.laplace_posterior(rows, segments), laplace_posterior(new, batch)
    torch.testing.assert_close(new_q.loc, old_q.loc)
    torch.testing.assert_close(new_q.root, old_q.root)


def test_a_translation_between_known_codes_is_as_before():
    from skgroupvae.regression import prediction as before

    old, new, rows, _, batch = both("gaussian")
    q_u, at = newton_posterior(new, batch), batch.groups.codes
    certain, shift = FullNormal(q_u.loc, 0.0 * q_u.root, q_u.log_det), (at + 1) % 8
    known = before.translated(old, rows, q_u.loc[at][None], q_u.loc[shift][None])
    torch.testing.assert_close(prediction.translated(new, batch, certain, at, shift, 1)[..., 0], known)


def test_the_mean_by_rows_is_as_before():
    from skgroupvae.regression import prediction as before

    loc = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE) + SIZES[:, None]
    found = prediction.mean_by_rows(loc, SIZES.double())
    torch.testing.assert_close(found, before.mean_by_rows(loc, SIZES.double()))
