"""Posterior moments against quadrature, and the log-likelihood against the exact multivariate normal."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from oracles import (
    batch_of,
    exam_formula,
    linear_group_posterior,
    linear_log_likelihood,
    normal_grid,
    unsettled,
)
from scipy.stats import multivariate_normal

from skgroupvae import GroupVAE
from skgroupvae.batch import Batch
from skgroupvae.model import inference
from skgroupvae.model.decoders import LinearDecoder
from skgroupvae.model.inference import (
    instance_posterior,
    log_likelihood,
    reconstruct,
    translate,
    translated_draws,
)
from skgroupvae.model.integration import cubature, cubature_points, quasi_normal, sobol
from skgroupvae.model.model import LatentModel
from skgroupvae.model.posteriors import DiagonalNormal, FullNormal, MirroredNormal
from skgroupvae.model.spec import LatentSpec

SIZES = np.array([1, 3, 5])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def formula_model(instance_encoder: str) -> LatentModel:
    spec = LatentSpec("deepsets", instance_encoder, None, exam_formula, 2, 1, (8,), (3.0,), (2.0,))
    return unsettled(spec.build(generator()).requires_grad_(False), 0.2)


def example(n_features: int = 1) -> tuple[Batch, DiagonalNormal]:
    x = torch.randn(SIZES.sum(), n_features, generator=generator(1))
    loc = torch.tensor([[0.5, -0.8], [-1.0, 0.3], [0.1, 1.5]])
    return batch_of(x, SIZES), DiagonalNormal(loc, torch.tensor([[0.9, 0.5], [0.3, 0.6], [0.2, 0.4]]))


def correlated() -> FullNormal:
    """With the means of `example()`."""
    root = torch.tensor([[[0.9, 0.2], [-0.4, 0.5]]]) * torch.tensor([1.0, 0.5, 0.3])[:, None, None]
    return FullNormal(example()[1].loc, root, torch.linalg.slogdet(root)[1])


# --- rules


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


def test_cubature_points_have_the_moments_of_a_correlated_normal():
    q = correlated()
    points, weights = zip(*cubature_points(q), strict=True)
    points, weights = torch.stack(points), torch.tensor(weights)[:, None, None]
    mean = (weights * points).sum(0)
    apart = points - mean
    torch.testing.assert_close(mean, q.loc)
    covariance = (weights[..., None] * apart[..., None] * apart[..., None, :]).sum(0)
    torch.testing.assert_close(covariance, q.root @ q.root.mT)


def test_quasi_random_points_are_normal_more_evenly_than_random_ones():
    points = quasi_normal(sobol(256, 3, seed=0))
    assert points.shape == (256, 3)
    assert points.mean(0).abs().max() < 0.02  # random ones: 0.06
    assert (points.square().mean(0) - 1.0).abs().max() < 0.1
    assert torch.isfinite(quasi_normal(torch.tensor([0.0, 1.0]).double())).all()


# --- posterior moments


@pytest.mark.parametrize("is_full", [False, True])
def test_translate_of_a_cubic_formula_equals_quadrature(is_full):
    model = formula_model("unconditional")
    q_u = correlated() if is_full else example()[1]
    q_v = DiagonalNormal(torch.tensor([[1.2], [-0.4]]), torch.tensor([[0.5], [1.1]]))
    batch = batch_of(torch.zeros(2, 1), [2])
    positions = torch.tensor([2, 0])
    points, weights = normal_grid(3)
    expected = np.zeros((2, 1))
    for point, weight in zip(torch.tensor(points).float(), weights, strict=True):
        u = q_u.from_noise(point[:2])[positions]
        mean = model.decoder.mean(u, q_v.loc + q_v.scale * point[2:])
        expected += weight * mean.double().numpy()
    np.testing.assert_allclose(translate(model, batch, q_v, q_u, positions).numpy(), expected, rtol=1e-5)


def test_translate_of_the_exam_formula_is_the_paper_s_posterior_mean():
    # Independent u and v: 2 E mu + (E sigma^2 + 1) E v.
    model = formula_model("unconditional")
    q_u = DiagonalNormal(torch.tensor([[0.5, -0.8]]), torch.tensor([[0.9, 0.7]]))
    q_v = DiagonalNormal(torch.tensor([[1.2]]), torch.tensor([[0.5]]))
    expected = 2 * 0.5 + (0.8**2 + 0.7**2 + 1) * 1.2
    batch = batch_of(torch.zeros(1, 1), [1])
    actual = translate(model, batch, q_v, q_u, torch.tensor([0])).item() * 2.0 + 3.0
    assert actual == pytest.approx(expected, rel=1e-5)


def test_translated_draws_have_the_mean_of_translate_where_v_is_blind_to_the_group():
    model, (batch, q_u) = formula_model("unconditional"), example()
    positions = torch.tensor([2, 1, 1, 0, 0, 2, 2, 1, 0])
    nobody = torch.zeros(9, dtype=torch.bool)
    draws = translated_draws(model, batch, q_u, q_u, positions, nobody, 4096)
    assert draws.shape == (4096, 9, 1)
    expected = translate(model, batch, instance_posterior(model, batch, q_u), q_u, positions)
    torch.testing.assert_close(draws.mean(0), expected, rtol=0, atol=0.02)
    assert torch.equal(draws, translated_draws(model, batch, q_u, q_u, positions, nobody, 4096))


def test_rows_that_stay_have_one_draw_of_u():
    model, (batch, q_u) = formula_model("conditional"), example()
    stays = torch.ones(9, dtype=torch.bool)
    draws = translated_draws(model, batch, q_u, q_u, batch.groups.codes, stays, 4096)
    torch.testing.assert_close(draws.mean(0), reconstruct(model, batch, q_u), rtol=0, atol=0.05)
    apart = translated_draws(model, batch, q_u, q_u, batch.groups.codes, ~stays, 4096)
    assert (draws.std(0) < apart.std(0)).all()


def by_quadrature(model, batch, q_u, value) -> np.ndarray:
    """E over q(u), then over q(v given u), of value(u by row, v)."""
    grid_u, weights_u = normal_grid(2)
    grid_v, weights_v = normal_grid(1)
    total = 0.0
    for point_u, weight_u in zip(torch.tensor(grid_u).float(), weights_u, strict=True):
        u = q_u.from_noise(point_u)
        q_v = model.instance_posterior(batch, u)
        for point_v, weight_v in zip(torch.tensor(grid_v).float(), weights_v, strict=True):
            v = q_v.loc + q_v.scale * point_v
            total = total + weight_u * weight_v * value(batch.groups.expand(u), v).double().numpy()
    return total


@pytest.mark.parametrize("is_full", [False, True])
def test_reconstruct_equals_quadrature_where_the_formula_is_cubic(is_full):
    model, (batch, q_u) = formula_model("unconditional"), example()
    q_u = correlated() if is_full else q_u
    expected = by_quadrature(model, batch, q_u, model.decoder.mean)
    np.testing.assert_allclose(reconstruct(model, batch, q_u).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("instance_encoder", ["conditional", "conditional_network"])
def test_reconstruct_approaches_quadrature_as_the_posterior_narrows(instance_encoder):
    # v depends on u through a curve, so the rule is not exact: what it misses is of the fourth order in the
    # posterior's width. A tenth of the width must bring it below a hundredth of the error or to rounding.
    model, (batch, wide) = formula_model(instance_encoder), example()
    errors = []
    for factor in (1.0, 0.1):
        q_u = DiagonalNormal(wide.loc, factor * wide.scale)
        expected = by_quadrature(model, batch, q_u, model.decoder.mean)
        errors.append(np.abs(reconstruct(model, batch, q_u).numpy() - expected).max())
    assert errors[1] < max(0.01 * errors[0], 1e-5)


@pytest.mark.parametrize("instance_encoder", ["unconditional", "conditional", "conditional_network"])
def test_instance_posterior_has_the_moments_of_v_with_u_integrated_out(instance_encoder):
    model, (batch, wide) = formula_model(instance_encoder), example()
    q_u = DiagonalNormal(wide.loc, 0.1 * wide.scale)
    posterior = instance_posterior(model, batch, q_u)
    mean = by_quadrature(model, batch, q_u, lambda u, v: v)
    square = by_quadrature(model, batch, q_u, lambda u, v: v.square())
    np.testing.assert_allclose(posterior.loc.numpy(), mean, atol=1e-4)
    np.testing.assert_allclose(posterior.scale.numpy(), np.sqrt(square - mean**2), rtol=1e-3)


def test_instance_posterior_of_a_linear_model_is_the_exact_marginal():
    # The dense joint normal of one group's rows and of v of its first row.
    model = linear_model(2, 2, 3)
    batch = batch_of(example(2)[0].values.double(), SIZES)
    q_v = instance_posterior(model, batch, model.infer(batch))
    decoder = model.decoder
    W_u, W_v, b = (
        part.numpy()
        for part in (
            decoder.group_loadings.weight,
            decoder.instance_loadings.weight,
            decoder.group_loadings.bias,
        )
    )
    noise = np.diag(decoder.noise_scale.numpy() ** 2)
    n_rows = SIZES[-1]
    covariance = np.kron(np.ones((n_rows, n_rows)), W_u @ W_u.T)
    covariance += np.kron(np.eye(n_rows), W_v @ W_v.T + noise)
    with_v = np.zeros((3, n_rows * 2))
    with_v[:, :2] = W_v.T
    gain = with_v @ np.linalg.inv(covariance)
    mean = gain @ (batch.values[-n_rows:].numpy() - b).ravel()
    np.testing.assert_allclose(q_v.loc[-n_rows].numpy(), mean, rtol=1e-8)
    sd = np.sqrt(np.diag(np.eye(3) - gain @ with_v.T))
    np.testing.assert_allclose(q_v.scale[-n_rows].numpy(), sd, rtol=1e-8)


# --- log-likelihood


def linear_model(n_features: int, n_group_codes: int, n_instance_codes: int) -> LatentModel:
    """As `decoder="linear"` builds it: with exact posteriors of all codes."""
    columns = ((0.0,) * n_features, (1.0,) * n_features)
    spec = LatentSpec(
        "deepsets", "conditional", None, "linear", n_group_codes, n_instance_codes, (), *columns
    )
    model = unsettled(spec.build(generator())).double()
    model.decoder.fix_noise(torch.linspace(0.5, 0.8, n_features).double())
    return model.requires_grad_(False)


@pytest.mark.parametrize("n_codes", [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("n_features", [1, 2])
def test_log_likelihood_of_a_linear_model_is_exact_whatever_the_draws(n_features, n_codes):
    model = linear_model(n_features, *n_codes)
    batch = batch_of(example(n_features)[0].values.double(), SIZES)
    exact = linear_log_likelihood(model.decoder, batch.values.numpy(), SIZES)
    for n_samples in (1, 10):
        bound = log_likelihood(model, batch, model.infer(batch), n_samples)
        np.testing.assert_allclose(bound.numpy(), exact, rtol=1e-9)


def test_log_likelihood_of_a_linear_model_given_context_is_that_of_both_less_that_of_the_context():
    model, x = linear_model(2, 2, 2), torch.randn(9, 2, generator=generator(1)).double()
    context, whole = batch_of(x[:4], [4]), batch_of(x, [9])
    values = log_likelihood(model, batch_of(x[4:], [5]), model.infer(whole), 1, model.infer(context))
    total, known = (
        linear_log_likelihood(model.decoder, rows.numpy(), np.array([len(rows)])) for rows in (x, x[:4])
    )
    np.testing.assert_allclose(values.numpy(), total - known, rtol=1e-9)


def learned_linear_model(n_features: int) -> tuple[LatentModel, Batch, DiagonalNormal]:
    """Linear decoder of one code each, the data's exact q(u), and q(v given u) exact by construction."""
    spec = LatentSpec(
        "deepsets",
        "conditional",
        None,
        LinearDecoder(n_features, 1, 1, (), generator(5)),
        1,
        1,
        (8,),
        (0.0,) * n_features,
        (1.0,) * n_features,
    )
    model = spec.build(generator())
    model.decoder.fix_noise(torch.linspace(0.5, 0.8, n_features))
    batch = example(n_features)[0]
    means, covariances = linear_group_posterior(model.decoder, batch.values.double().numpy(), SIZES)
    q_u = DiagonalNormal(
        torch.tensor(np.array(means)).float(), torch.tensor(np.array(covariances))[:, 0].sqrt().float()
    )
    return model.requires_grad_(False), batch, q_u


@pytest.mark.parametrize("n_features", [1, 2])
def test_log_likelihood_of_an_exact_posterior_is_exact_with_a_single_draw(n_features):
    model, batch, q_u = learned_linear_model(n_features)
    exact = linear_log_likelihood(model.decoder, batch.values.numpy(), SIZES)
    # One draw, not mirrored: p(x, u, v) / q(u, v) is p(x) whatever the draw.
    np.testing.assert_allclose(log_likelihood(model, batch, q_u, 1).numpy(), exact, rtol=1e-5)


def bounds(monkeypatch, model, batch, q_u, n_samples, n_seeds) -> np.ndarray:
    values = []
    for seed in range(n_seeds):
        monkeypatch.setattr(inference, "_SEED", seed)
        values.append(log_likelihood(model, batch, q_u, n_samples).numpy())
    return np.array(values)


@pytest.mark.parametrize("n_samples", [2, 5])
def test_log_likelihood_divides_by_the_number_of_draws(n_samples, monkeypatch):
    # exp of the bound is an unbiased estimate of p(x), whatever the number of draws and however poor q is.
    model, batch, q_u = learned_linear_model(1)
    q_u = DiagonalNormal(q_u.loc + 0.2, 1.3 * q_u.scale)
    exact = linear_log_likelihood(model.decoder, batch.values.numpy(), SIZES)
    ratios = np.exp(bounds(monkeypatch, model, batch, q_u, n_samples, 200) - exact)
    standard_error = ratios.std(axis=0) / math.sqrt(200)
    np.testing.assert_array_less(np.abs(ratios.mean(axis=0) - 1.0), 4 * standard_error)
    assert (standard_error < 0.05).all()  # a factor of (n + 1) / n would show


def test_log_likelihood_grows_with_the_number_of_draws_in_expectation(monkeypatch):
    model, batch, q_u = learned_linear_model(1)
    q_u = DiagonalNormal(q_u.loc + 0.3, 1.5 * q_u.scale)
    exact = linear_log_likelihood(model.decoder, batch.values.numpy(), SIZES).sum()
    means = [bounds(monkeypatch, model, batch, q_u, n, 60).sum(1).mean() for n in (2, 8, 32)]
    assert means[0] < means[1] < means[2] < exact + 0.01


def test_a_full_normal_of_a_learned_encoder_is_not_taken_for_exact(monkeypatch):
    # A user's encoder may give u a covariance; its draws must count, or the bound stays that of one.
    model, batch, q_u = learned_linear_model(1)
    poor = FullNormal.from_diagonal(DiagonalNormal(q_u.loc + 0.3, 1.5 * q_u.scale))
    exact = linear_log_likelihood(model.decoder, batch.values.numpy(), SIZES)
    one, many = (bounds(monkeypatch, model, batch, poor, n, 20).mean(0) for n in (1, 100))
    assert one.sum() < exact.sum() - 0.2
    np.testing.assert_allclose(many, exact, atol=0.02)


def test_log_likelihood_with_a_prior_is_that_of_rows_given_the_context():
    # u has the prior N(m, s^2) instead of N(0, 1): a dense normal again, moved by W m.
    model, batch, q_u = learned_linear_model(1)
    prior = DiagonalNormal(torch.full((3, 1), 0.4), torch.full((3, 1), 0.6))
    W_u, W_v, b = (
        part.item()
        for part in (
            model.decoder.group_loadings.weight,
            model.decoder.instance_loadings.weight,
            model.decoder.group_loadings.bias,
        )
    )
    noise = model.decoder.noise_scale.item()
    values = log_likelihood(model, batch, q_u, 2000, prior).numpy()
    for value, x in zip(values, batch.values[:, 0].double().split(SIZES.tolist()), strict=True):
        covariance = (0.6 * W_u) ** 2 * np.ones((len(x), len(x))) + (W_v**2 + noise**2) * np.eye(len(x))
        exact = multivariate_normal(np.full(len(x), b + 0.4 * W_u), covariance).logpdf(x.numpy())
        assert value == pytest.approx(exact, abs=0.01)


def test_log_likelihood_of_a_group_does_not_depend_on_the_others():
    model, batch, q_u = learned_linear_model(2)
    q_u = DiagonalNormal(q_u.loc + 0.2, q_u.scale)
    together = log_likelihood(model, batch, q_u, 20)
    second = torch.tensor([1])
    alone = log_likelihood(model, batch.take_groups(second), q_u.take(second), 20)
    torch.testing.assert_close(alone[0], together[1], rtol=1e-6, atol=1e-6)


def test_log_likelihood_of_a_group_with_a_mirrored_mode_sees_both(monkeypatch):
    # The spread of a group is even in u: the bound of one side alone would be log 2 short.
    model, (batch, q_u) = formula_model("conditional"), example()
    narrow = DiagonalNormal(q_u.loc, 0.3 * q_u.scale)
    mirrored = bounds(monkeypatch, model, batch, narrow, 400, 5).mean(0)
    monkeypatch.setattr(MirroredNormal, "n_direct", property(lambda self: self.n_samples))
    direct = bounds(monkeypatch, model, batch, narrow, 400, 5).mean(0)
    assert (mirrored > direct).any()
    # Where there is no second mode half of the draws are lost, which costs little.
    assert (mirrored > direct - 0.1).all()


@pytest.mark.parametrize("n_codes", [(1, 1), (2, 2)])
def test_score_of_a_fitted_linear_model_is_its_exact_log_likelihood(n_codes):
    rng = np.random.RandomState(0)
    sizes = rng.randint(1, 9, 40)
    groups = np.repeat(np.arange(40), sizes)
    level = rng.normal(size=(40, 2))
    X = (
        level[groups]
        + rng.normal(size=(len(groups), 1)) * [1.0, 0.5]
        + 0.5 * rng.normal(size=(len(groups), 2))
    )
    model = GroupVAE(*n_codes, decoder="linear", random_state=0, verbose=False)
    model.fit(X, groups=groups)
    x = (X - X.mean(axis=0)) / X.std(axis=0)
    exact = linear_log_likelihood(model.model_.decoder, x, sizes).sum() / len(x)
    # In the units of X.
    expected = exact - np.log(X.std(axis=0)).sum()
    assert model.score(X, groups=groups, context="prior") == pytest.approx(expected, abs=1e-6)
