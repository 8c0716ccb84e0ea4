"""Posterior moments against quadrature, and the log-likelihood against the exact multivariate normal."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from oracles import (
    exam_formula,
    linear_group_posterior,
    linear_log_likelihood,
    normal_grid,
    segments_of,
    unsettled,
)
from torch.distributions import Normal

from skgroupvae import GroupVAE
from skgroupvae.building import NetworkSpec, build_network
from skgroupvae.evidence import Evidence
from skgroupvae.groups import GroupIndex
from skgroupvae.inference import cubature, instance_posterior, log_likelihood, reconstruct, translate

SIZES = np.array([1, 3, 5])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def formula_network(instance_encoder: str):
    spec = NetworkSpec("deepsets", instance_encoder, None, exam_formula, 2, 1, (8,), None)
    network = build_network(spec, np.array([3.0]), np.array([2.0]), generator())
    return unsettled(network.requires_grad_(False), 0.2)


def example(n_features: int = 1) -> tuple[torch.Tensor, Normal]:
    x = torch.randn(SIZES.sum(), n_features, generator=generator(1))
    loc = torch.tensor([[0.5, -0.8], [-1.0, 0.3], [0.1, 1.5]])
    return x, Normal(loc, torch.tensor([[0.9, 0.5], [0.3, 0.6], [0.2, 0.4]]))


@pytest.mark.parametrize("dimension", range(1, 8))
def test_cubature_is_a_probability_with_exact_moments_to_the_third(dimension):
    points, weights = cubature(dimension)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1.0)
    for degree in (1, 2, 3):
        for axes in itertools.combinations_with_replacement(range(dimension), degree):
            moment = weights @ points[:, axes].prod(axis=1)
            assert moment == pytest.approx(float(degree == 2 and axes[0] == axes[1]), abs=1e-12), axes


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_cubature_has_the_kurtosis_of_the_normal_up_to_three_dimensions(dimension):
    points, weights = cubature(dimension)
    np.testing.assert_allclose(weights @ points**4, 3.0)


def test_translate_of_a_cubic_formula_equals_quadrature():
    network = formula_network("unconditional")
    q_u = Normal(torch.tensor([[0.5, -0.8], [2.0, 1.0]]), torch.tensor([[0.9, 0.7], [0.1, 1.3]]))
    q_v = Normal(torch.tensor([[1.2], [-0.4]]), torch.tensor([[0.5], [1.1]]))
    points, weights = normal_grid(3)
    expected = np.zeros((2, 1))
    for point, weight in zip(torch.tensor(points).float(), weights, strict=True):
        mean = network.decoder.mean(q_u.loc + q_u.scale * point[:2], q_v.loc + q_v.scale * point[2:])
        expected += weight * mean.double().numpy()
    np.testing.assert_allclose(translate(network, q_v, q_u).numpy(), expected, rtol=1e-5)


def test_translate_of_the_exam_formula_is_the_paper_s_posterior_mean():
    # Independent u and v: 2 E mu + (E sigma^2 + 1) E v.
    network = formula_network("unconditional")
    q_u, q_v = (
        Normal(torch.tensor([[0.5, -0.8]]), torch.tensor([[0.9, 0.7]])),
        Normal(torch.tensor([[1.2]]), 0.5),
    )
    expected = 2 * 0.5 + (0.8**2 + 0.7**2 + 1) * 1.2
    actual = translate(network, Normal(q_v.loc, torch.tensor([[0.5]])), q_u).item() * 2.0 + 3.0
    assert actual == pytest.approx(expected, rel=1e-5)


def by_quadrature(network, x, q_u, segments, value) -> np.ndarray:
    """E over q(u), then over q(v given u), of value(u by row, v)."""
    grid_u, weights_u = normal_grid(2)
    grid_v, weights_v = normal_grid(1)
    total = 0.0
    for point_u, weight_u in zip(torch.tensor(grid_u).float(), weights_u, strict=True):
        u = q_u.loc + q_u.scale * point_u
        q_v = network.instance_encoder(x, u, segments, network.decoder)
        for point_v, weight_v in zip(torch.tensor(grid_v).float(), weights_v, strict=True):
            v = q_v.loc + q_v.scale * point_v
            total = total + weight_u * weight_v * value(segments.expand(u), v).double().numpy()
    return total


def test_reconstruct_equals_quadrature_where_the_formula_is_cubic():
    network, segments = formula_network("unconditional"), segments_of(SIZES)
    x, q_u = example()
    expected = by_quadrature(network, x, q_u, segments, network.decoder.mean)
    np.testing.assert_allclose(reconstruct(network, x, q_u, segments).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("instance_encoder", ["conditional", "conditional_network"])
def test_reconstruct_approaches_quadrature_as_the_posterior_narrows(instance_encoder):
    # v depends on u through a curve, so the rule is not exact: what it misses is of the fourth order in the
    # posterior's width. A tenth of the width must bring it below a hundredth of the error or to rounding.
    network, segments = formula_network(instance_encoder), segments_of(SIZES)
    x, wide = example()
    errors = []
    for factor in (1.0, 0.1):
        q_u = Normal(wide.loc, factor * wide.scale)
        expected = by_quadrature(network, x, q_u, segments, network.decoder.mean)
        errors.append(np.abs(reconstruct(network, x, q_u, segments).numpy() - expected).max())
    assert errors[1] < max(0.01 * errors[0], 1e-5)


@pytest.mark.parametrize("instance_encoder", ["unconditional", "conditional", "conditional_network"])
def test_instance_posterior_has_the_moments_of_v_with_u_integrated_out(instance_encoder):
    network, segments = formula_network(instance_encoder), segments_of(SIZES)
    x, wide = example()
    q_u = Normal(wide.loc, 0.1 * wide.scale)
    posterior = instance_posterior(network, x, q_u, segments)
    mean = by_quadrature(network, x, q_u, segments, lambda u, v: v)
    square = by_quadrature(network, x, q_u, segments, lambda u, v: v.square())
    np.testing.assert_allclose(posterior.loc.numpy(), mean, atol=1e-4)
    np.testing.assert_allclose(posterior.scale.numpy(), np.sqrt(square - mean**2), rtol=1e-3)


def exact_linear_network(n_features: int):
    """Linear decoder of one code each, the data's exact q(u), and q(v given u) exact by construction."""
    spec = NetworkSpec("deepsets", "conditional", None, "linear", 1, 1, (8,), None)
    network = build_network(spec, np.zeros(n_features), np.ones(n_features), generator())
    network.decoder.fix_noise(torch.linspace(0.5, 0.8, n_features))
    x = torch.randn(SIZES.sum(), n_features, generator=generator(1))
    means, covariances = linear_group_posterior(network.decoder, x.double().numpy(), SIZES)
    q_u = Normal(
        torch.tensor(np.array(means)).float(), torch.tensor(np.array(covariances))[:, 0].sqrt().float()
    )
    return network.requires_grad_(False), x, q_u


@pytest.mark.parametrize("n_features", [1, 2])
def test_log_likelihood_of_an_exact_posterior_is_exact_with_a_single_draw(n_features):
    network, x, q_u = exact_linear_network(n_features)
    exact = linear_log_likelihood(network.decoder, x.numpy(), SIZES)
    # One draw, not mirrored: p(x, u, v) / q(u, v) is p(x) whatever the draw.
    bound = log_likelihood(network, x, q_u, segments_of(SIZES), 1, seed=0)
    np.testing.assert_allclose(bound.numpy(), exact, rtol=1e-5)


@pytest.mark.parametrize("n_samples", [2, 5])
def test_log_likelihood_divides_by_the_number_of_draws(n_samples):
    # exp of the bound is an unbiased estimate of p(x), whatever the number of draws and however poor q is.
    network, x, q_u = exact_linear_network(1)
    q_u = Normal(q_u.loc + 0.2, 1.3 * q_u.scale)
    exact = linear_log_likelihood(network.decoder, x.numpy(), SIZES)
    ratios = np.array(
        [
            np.exp(log_likelihood(network, x, q_u, segments_of(SIZES), n_samples, seed).numpy() - exact)
            for seed in range(200)
        ]
    )
    standard_error = ratios.std(axis=0) / math.sqrt(200)
    np.testing.assert_array_less(np.abs(ratios.mean(axis=0) - 1.0), 4 * standard_error)
    assert (standard_error < 0.05).all()  # a factor of (n + 1) / n would show


def test_log_likelihood_grows_with_the_number_of_draws_in_expectation():
    network, x, q_u = exact_linear_network(1)
    q_u = Normal(q_u.loc + 0.3, 1.5 * q_u.scale)
    exact = linear_log_likelihood(network.decoder, x.numpy(), SIZES).sum()
    means = [
        np.mean(
            [float(log_likelihood(network, x, q_u, segments_of(SIZES), n, seed).sum()) for seed in range(60)]
        )
        for n in (2, 8, 32)
    ]
    assert means[0] < means[1] < means[2] < exact + 0.01


def test_log_likelihood_of_a_group_does_not_depend_on_the_others():
    network, x, q_u = exact_linear_network(2)
    q_u = Normal(q_u.loc + 0.2, q_u.scale)
    together = log_likelihood(network, x, q_u, segments_of(SIZES), 20, seed=0)
    alone = log_likelihood(
        network, x[1:4], Normal(q_u.loc[1:2], q_u.scale[1:2]), segments_of(SIZES[1:2]), 20, seed=0
    )
    torch.testing.assert_close(alone[0], together[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n_codes", [(1, 1), (2, 2)])
def test_fitted_log_likelihood_is_within_monte_carlo_error_of_the_exact_one(n_codes):
    rng = np.random.RandomState(0)
    sizes = rng.randint(1, 9, 40)
    groups = np.repeat(np.arange(40), sizes)
    level = rng.normal(size=(40, 2))
    X = (
        level[groups]
        + rng.normal(size=(len(groups), 1)) * [1.0, 0.5]
        + 0.5 * rng.normal(size=(len(groups), 2))
    )
    model = GroupVAE(*n_codes, decoder="linear", max_epochs=20, random_state=0, verbose=False)
    model.fit(X, groups=groups)
    network, index = model.network_, GroupIndex.from_labels(groups)
    x = (X - X.mean(axis=0)) / X.std(axis=0)
    exact = linear_log_likelihood(network.decoder, x, sizes).sum() / len(x)
    q_u = Evidence.of_rows(network, torch.from_numpy(x), index).posterior(network)
    bounds = np.array(
        [
            float(log_likelihood(network, torch.from_numpy(x), q_u, segments_of(sizes), 200, seed).sum())
            for seed in range(6)
        ]
    ) / len(x)
    standard_error = bounds.std() / math.sqrt(6)
    assert bounds.mean() < exact + 4 * standard_error  # a lower bound
    assert bounds.mean() > exact - 0.02  # and a tight one, in nats per row
    assert standard_error < 0.01
    # score is the same number in the units of X.
    expected = exact - np.log(X.std(axis=0)).sum()
    assert model.score(X, groups=groups) == pytest.approx(expected, abs=0.02)
