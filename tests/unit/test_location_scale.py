"""Groups that differ in location and scale: the fit, q(u) and log-likelihoods, against quadrature."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from skgroupvae import GroupVAE
from skgroupvae.batch import Batch, Segments
from skgroupvae.datasets import make_exam_scores
from skgroupvae.mixed_model import linear
from skgroupvae.mixed_model.latent import fit_group_means, start_with_scales
from skgroupvae.mixed_model.location_scale import (
    LocationScaleModel,
    _Search,
    fit_location_scale,
    location_scale_log_likelihood,
)
from skgroupvae.model import inference
from skgroupvae.model.location_scale import GroupSums, LocationScaleTerms, expand, modes, products
from skgroupvae.model.model import LatentModel
from skgroupvae.model.spec import LatentSpec

NODES, WEIGHTS = hermegauss(60)
LOG_WEIGHTS = np.log(WEIGHTS / WEIGHTS.sum())


def table(sizes, n_columns: int, seed: int, sd: float = 0.5, sd_of_scales: float = 0.25, n_covariates=0):
    """Rows of groups that differ in location and scale, independently by column, and the codes (G, D)."""
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    groups = Segments.of_sizes(torch.as_tensor(sizes))
    n_rows = int(groups.sizes.sum())
    covariance = 0.6 * torch.eye(n_columns, dtype=torch.float64) + 0.4
    rest = normal(n_rows, n_columns) @ torch.linalg.cholesky(covariance).mT
    locations, scales = (part * normal(groups.n_groups, n_columns) for part in (sd, sd_of_scales))
    design = torch.cat([torch.ones(n_rows, 1, dtype=torch.float64), normal(n_rows, n_covariates)], dim=1)
    values = (
        groups.expand(locations) + groups.expand(scales.exp()) * rest + 0.3 * design[:, 1:].sum(1)[:, None]
    )
    return Batch(values, design, torch.ones(n_rows, dtype=torch.float64), (groups,)), locations, scales


def one_column(sd_of_scales: float = 0.4) -> LocationScaleModel:
    parts = ([[0.2]], [[0.6]], [[sd_of_scales]], [[0.8]])
    return LocationScaleModel(*(torch.tensor(part, dtype=torch.float64) for part in parts), 0.0, True)


def built(fitted: LocationScaleModel, n_scales: int) -> LatentModel:
    n_columns = len(fitted.residual)
    columns = ((0.0,) * n_columns, (1.0,) * n_columns)
    n_codes = n_columns + n_scales
    spec = LatentSpec(
        "deepsets", "conditional", None, "location_scale", n_codes, n_columns, (8,), *columns,
        covariate_center=(0.0,) * (len(fitted.fixed) - 1), covariate_scale=(1.0,) * (len(fitted.fixed) - 1),
    )  # fmt: skip
    model = spec.build(torch.Generator().manual_seed(0)).double()
    start_with_scales(model, fitted, n_scales)
    return model.eval().requires_grad_(False)


def by_quadrature(fitted: LocationScaleModel, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-likelihood of each group, and mean and sd of its log scale, of one column, with no closed form."""
    values, stop = [], batch.groups.sizes.long().cumsum(0).numpy()
    means, sds = [], []
    log_scales = float(fitted.scale_loadings) * NODES
    for start, end in zip(stop - batch.groups.sizes.long().numpy(), stop, strict=True):
        x = batch.values[start:end, 0].numpy()
        between = float(fitted.loadings) ** 2 * np.ones((len(x), len(x)))
        at_nodes = [
            multivariate_normal(
                np.full(len(x), float(fitted.fixed)),
                between + (float(fitted.residual) * np.exp(s)) ** 2 * np.eye(len(x)),
            ).logpdf(x)
            for s in log_scales
        ]
        joint = np.array(at_nodes) + LOG_WEIGHTS
        values.append(logsumexp(joint))
        weights = np.exp(joint - values[-1])
        means.append(weights @ log_scales)
        sds.append(np.sqrt(weights @ log_scales**2 - means[-1] ** 2))
    return np.array(values), np.array(means), np.array(sds)


# --- expansion in the codes of scales


@pytest.fixture(scope="module")
def expansion():
    batch, _, _ = table([1, 2, 5, 20, 40], 3, seed=0)
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    root = normal(3, 3)
    precision = torch.linalg.inv(root @ root.mT + 0.3 * torch.eye(3))
    terms = LocationScaleTerms(normal(1, 3), 0.5 * normal(3, 3), 0.3 * normal(3, 2), precision)
    sums = GroupSums.of_products(products(batch), terms.fixed, torch.zeros(3, dtype=torch.float64))
    return batch, terms, sums, normal(5, 2)


def test_derivatives_of_the_expansion_are_those_of_its_value(expansion):
    _, terms, sums, s = expansion
    at, every = expand(terms, sums, s), torch.arange(5)
    slope = torch.autograd.functional.jacobian(lambda s: expand(terms, sums, s).cost.sum(), s)
    torch.testing.assert_close(at.slope, slope)
    curvature = torch.autograd.functional.hessian(lambda s: expand(terms, sums, s).cost.sum(), s)
    torch.testing.assert_close(at.curvature, curvature[every, :, every])
    jacobian = torch.autograd.functional.jacobian(lambda s: expand(terms, sums, s).mean, s)
    torch.testing.assert_close(at.jacobian, jacobian[every, :, every])


def test_value_of_the_expansion_is_a_normal_density(expansion):
    batch, terms, sums, s = expansion
    at, covariance = expand(terms, sums, s), torch.linalg.inv(terms.precision)
    start = 0
    for i, size in enumerate([1, 2, 5, 20, 40]):
        scale = (terms.scale_loadings @ s[i]).exp().diag()
        within = torch.kron(torch.eye(size, dtype=torch.float64), scale @ covariance @ scale)
        between = torch.kron(torch.ones(size, size).double(), terms.loadings @ terms.loadings.mT)
        x = batch.values[start : start + size].flatten() - terms.fixed[0].repeat(size)
        start += size
        exact = multivariate_normal(cov=(within + between).numpy()).logpdf(x.numpy())
        constant = 0.5 * size * (torch.logdet(terms.precision) - 3 * np.log(2.0 * np.pi))
        assert float(constant - at.cost[i] + 0.5 * s[i] @ s[i]) == pytest.approx(exact, rel=1e-10)


def test_newton_ends_at_the_mode_wherever_it_starts(expansion):
    _, terms, sums, s = expansion
    found = [modes(terms, sums, start) for start in (torch.zeros_like(s), 5.0 * s, s - 20.0)]
    for mode in found:
        torch.testing.assert_close(mode, found[0], rtol=0.0, atol=1e-9)
        assert float(expand(terms, sums, mode).slope.abs().max()) < 1e-8


# --- likelihood and posterior


@pytest.mark.parametrize("size", [2, 10, 50])
def test_laplace_log_likelihood_is_near_quadrature(size):
    batch, _, _ = table([size] * 30, 1, seed=2)
    fitted = one_column()
    exact = by_quadrature(fitted, batch)[0]
    # What Laplace's method misses is of third order in the skewness of the posterior of one code.
    values = location_scale_log_likelihood(fitted, batch).numpy()
    np.testing.assert_allclose(values, exact, atol=0.03)
    assert abs((values - exact).mean()) < 0.01


@pytest.mark.parametrize("size", [2, 10, 50])
def test_log_likelihood_by_importance_sampling_is_near_quadrature(size):
    batch, _, _ = table([size] * 30, 1, seed=2)
    model = built(one_column(), 1)
    values = inference.log_likelihood(model, batch, model.infer(batch), 100).numpy()
    exact = by_quadrature(one_column(), batch)[0]
    # The error of a group is some 0.02, of chance, so of the mean of 30 it is 0.004.
    assert abs((values - exact).mean()) < 0.01
    np.testing.assert_allclose(values, exact, atol=0.1)
    assert not model.is_exact(model.infer(batch))


@pytest.mark.parametrize("size", [2, 10, 50])
def test_posterior_of_log_scales_has_the_moments_of_quadrature(size):
    batch, _, _ = table([size] * 30, 1, seed=2)
    model = built(one_column(), 1)
    q_u = model.infer(batch)
    _, mean, sd = by_quadrature(one_column(), batch)
    log_scale = model.decoder.scale_loadings.weight[0].numpy()
    # The mode would be a tenth of a standard deviation away.
    np.testing.assert_allclose(q_u.loc.numpy() @ log_scale, mean, atol=0.02 * sd.max())
    np.testing.assert_allclose(q_u.scale.numpy()[:, 1] * abs(log_scale[1]), sd, rtol=0.1)


def test_without_scales_likelihood_and_posterior_are_those_of_the_linear_model():
    batch, _, _ = table([1, 3, 8, 30], 2, seed=3, n_covariates=1)
    mixed_model = fit_group_means(batch, 2)
    n_scales = torch.zeros(2, 2, dtype=torch.float64)
    parts = (mixed_model.fixed, mixed_model.loadings[0], n_scales, mixed_model.residual)
    fitted = LocationScaleModel(*parts, 0.0, True)
    exact = linear.log_likelihood(mixed_model, batch)
    assert float(location_scale_log_likelihood(fitted, batch).sum()) == pytest.approx(exact, abs=1e-3)
    model = built(fitted, 1)
    # Draws of codes that do nothing are weighed, as they are drawn a little wider.
    value = inference.log_likelihood(model, batch, model.infer(batch), 4096).sum()
    assert float(value) == pytest.approx(exact, abs=0.05)


def test_posterior_of_instance_codes_gives_rows_back():
    batch, _, _ = table([4, 9], 3, seed=4, n_covariates=2)
    model = built(fit_location_scale(batch, fit_group_means(batch, 3)), 2)
    u = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q_v = model.instance_posterior(batch, u)
    mean = model.decoder.mean(batch.groups.expand(u), q_v.loc, batch.covariates)
    np.testing.assert_allclose(mean.numpy(), batch.values.numpy(), atol=1e-4)
    center, slope = model.decoder.linearize(batch.groups.expand(u), batch.covariates)
    straight = center + (slope @ q_v.loc[..., None])[..., 0]
    np.testing.assert_allclose(straight.numpy(), mean.numpy(), atol=1e-12)


# --- the fit


def test_gradient_of_the_search_is_that_of_its_value():
    batch, _, _ = table([2, 4, 8, 16, 3, 5, 9], 2, seed=5, n_covariates=1)
    search = _Search(products(batch), fit_group_means(batch, 2))
    generator = torch.Generator().manual_seed(0)
    point = search.start(True)
    point = point + 0.1 * torch.randn(len(point), generator=generator, dtype=torch.float64)
    _, gradient = search.objective(point)
    for i, step in enumerate(1e-5 * torch.eye(len(point), dtype=torch.float64)):
        difference = search.objective(point + step)[0] - search.objective(point - step)[0]
        assert float(gradient[i]) == pytest.approx(difference / 2e-5, abs=1e-7)


def test_parameters_of_400_groups_are_recovered():
    batch, _, _ = table([20] * 400, 2, seed=6, n_covariates=1)
    fitted = fit_location_scale(batch, fit_group_means(batch, 2))
    assert fitted.converged
    locations, scales = (part @ part.mT for part in (fitted.loadings, fitted.scale_loadings))
    # Standard errors over 400 groups: of the sd of locations 3.5 % and the noise of the means; of log scales
    # sqrt((0.25^2 + 1 / 40) / 400) by group, so about 0.013; three of each.
    np.testing.assert_allclose(locations.diagonal().sqrt().numpy(), 0.5, atol=0.06)
    np.testing.assert_allclose(scales.diagonal().sqrt().numpy(), 0.25, atol=0.04)
    within = fitted.residual @ fitted.residual.mT
    np.testing.assert_allclose(within.numpy(), [[1.0, 0.4], [0.4, 1.0]], atol=0.08)
    np.testing.assert_allclose(fitted.fixed[1].numpy(), 0.3, atol=0.04)
    # Correlations of independent effects.
    for covariance in (locations, scales):
        assert abs(float(covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt())) < 0.25


def test_the_fit_is_at_a_maximum_of_quadrature_too():
    batch, _, _ = table([12] * 60, 1, seed=7)
    fitted = fit_location_scale(batch, fit_group_means(batch, 1))
    best = by_quadrature(fitted, batch)[0].sum()
    for name in ("fixed", "loadings", "scale_loadings", "residual"):
        for change in (-0.02, 0.02):
            parts = {n: getattr(fitted, n) for n in ("fixed", "loadings", "scale_loadings", "residual")}
            moved = LocationScaleModel(
                **parts | {name: parts[name] + change}, log_likelihood=0.0, converged=True
            )
            assert by_quadrature(moved, batch)[0].sum() < best


def test_groups_of_one_scale_have_none():
    batch, _, _ = table([30] * 200, 2, seed=8, sd_of_scales=0.0)
    fitted = fit_location_scale(batch, fit_group_means(batch, 2))
    # An estimate of zero has a standard error of about the chance sd, 0.13, over the fourth root of 200.
    assert float(fitted.scale_loadings.square().sum(1).sqrt().max()) < 0.1


@pytest.mark.parametrize(
    "change",
    [
        lambda x, codes: np.column_stack([x[:, 0], codes]),
        lambda x, codes: np.column_stack([x[:, 0], 2.0 * x[:, 0]]),
    ],
    ids=["constant in groups", "collinear"],
)
def test_columns_that_tell_no_scale_have_no_fit(change):
    batch, _, _ = table([5] * 12, 2, seed=9)
    values = torch.from_numpy(change(batch.values.numpy(), batch.groups.codes.numpy()))
    batch = Batch(values / values.std(0), batch.design, batch.weights, batch.factors)
    assert fit_location_scale(batch, fit_group_means(batch, 2)) is None


def test_odd_groups_do_no_harm():
    # Groups of one row, one whose column does not vary, and one with an outlier.
    batch, _, _ = table([1] * 10 + [6] * 10, 2, seed=10)
    values = batch.values.clone()
    values[10:16, 0] = 0.3
    values[20, 1] = 60.0
    batch = Batch(values, batch.design, batch.weights, batch.factors)
    fitted = fit_location_scale(batch, fit_group_means(batch, 2))
    assert all(bool(part.isfinite().all()) for part in (fitted.fixed, fitted.scale_loadings, fitted.residual))
    model = built(fitted, 2)
    q_u = model.infer(batch)
    assert bool(q_u.loc.isfinite().all())
    assert bool(inference.log_likelihood(model, batch, q_u, 16).isfinite().all())


# --- the estimator


def test_a_held_out_score_of_exam_scores_is_far_above_that_of_the_linear_model():
    data = make_exam_scores(400, random_state=0)
    train = np.isin(data.groups, np.unique(data.groups)[:300])
    scores = [
        GroupVAE(decoder=decoder, random_state=0, verbose=False)
        .fit(data.X[train], groups=data.groups[train])
        .score(data.X[~train], groups=data.groups[~train])
        for decoder in ("linear", "location_scale")
    ]
    # Schools' sds are sigma^2 + 1 with a standard normal sigma.
    assert scores[1] > scores[0] + 0.05


def test_translation_to_the_average_group_takes_scales_out():
    batch, locations, scales = table([60] * 40, 2, seed=11)
    X, groups = batch.values.numpy(), batch.groups.codes.numpy()
    rest = (X - locations.numpy()[groups]) / scales.exp().numpy()[groups]
    errors = {}
    for decoder in ("linear", "location_scale"):
        model = GroupVAE(decoder=decoder, random_state=0, verbose=False).fit(X, groups=groups)
        moved, interval = model.translate(X, groups, "average", quantiles=[0.05, 0.95])
        errors[decoder] = np.sqrt(((moved - rest) ** 2).mean())
    # Of 60 rows the location is known to 0.13 and the log scale to 0.08.
    assert errors["location_scale"] < 0.2 < errors["linear"]
    # Given the average group itself, whose estimates are off by 0.08 and 0.04 in one direction for all rows.
    covered = ((interval[..., 0] <= rest) & (rest <= interval[..., 1])).mean()
    assert 0.75 < covered < 0.97
