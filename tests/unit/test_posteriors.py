"""Posteriors of codes are the torch Distributions they say they are, and newton is Bayes' rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from skgroupvae.model.posteriors import (
    DiagonalNormal,
    FullNormal,
    MirroredNormal,
    Posterior,
    newton,
    precision_factor,
)

G, U = 4, 3
SAMPLE_COUNTS = (1, 2, 3, 5, 10, 101)
KINDS = ("diagonal", "full")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def diagonal(n_groups: int = G, n_codes: int = U) -> DiagonalNormal:
    scale = 0.3 + torch.rand(n_groups, n_codes, generator=generator(2), dtype=torch.float64)
    return DiagonalNormal(randn(n_groups, n_codes), scale)


def full(n_groups: int = G, n_codes: int = U) -> FullNormal:
    """Its root is no triangle: any square root of the covariance will do."""
    root = 0.5 * randn(n_groups, n_codes, n_codes, seed=3) + torch.eye(n_codes, dtype=torch.float64)
    return FullNormal(randn(n_groups, n_codes), root, torch.linalg.slogdet(root)[1])


def posterior(kind: str, *sizes: int) -> DiagonalNormal | FullNormal:
    return {"diagonal": diagonal, "full": full}[kind](*sizes)


def by_torch(q: DiagonalNormal | FullNormal) -> Distribution:
    if isinstance(q, DiagonalNormal):
        return Independent(Normal(q.loc, q.scale), 1)
    return MultivariateNormal(q.loc, q.root @ q.root.mT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_posterior_is_a_distribution_over_vectors(kind):
    q = posterior(kind)
    assert isinstance(q, Distribution)
    assert (q.batch_shape, q.event_shape) == ((G,), (U,))
    expected = by_torch(q)
    torch.testing.assert_close(q.mean, expected.mean)
    torch.testing.assert_close(q.variance, expected.variance)
    torch.testing.assert_close(q.stddev, q.scale)


@pytest.mark.parametrize("kind", KINDS)
def test_log_density_is_that_of_torch(kind):
    q, u = posterior(kind), randn(5, G, U, seed=4)
    torch.testing.assert_close(q.log_prob(u), by_torch(q).log_prob(u))
    torch.testing.assert_close(q.log_prob(u[0]), by_torch(q).log_prob(u[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_kl_to_the_prior_is_that_of_torch(kind):
    q = posterior(kind)
    if kind == "diagonal":
        prior = Independent(Normal(torch.zeros_like(q.loc), 1.0), 1)
    else:
        prior = MultivariateNormal(torch.zeros_like(q.loc), torch.eye(U, dtype=torch.float64))
    torch.testing.assert_close(q.kl_to_standard_normal(), kl_divergence(by_torch(q), prior))


def test_kl_of_the_prior_itself_is_zero():
    like = torch.zeros(1, dtype=torch.float64)
    prior = FullNormal.standard(U, like)
    assert prior.loc.dtype == torch.float64
    assert prior.kl_to_standard_normal().item() == 0.0
    assert DiagonalNormal(torch.zeros(U), torch.ones(U)).kl_to_standard_normal().item() == 0.0


def test_a_full_normal_of_a_diagonal_one_is_the_same():
    one = diagonal()
    other = FullNormal.from_diagonal(one)
    u, noise = randn(5, G, U, seed=4), randn(5, G, U, seed=5)
    torch.testing.assert_close(other.log_prob(u), one.log_prob(u))
    torch.testing.assert_close(other.from_noise(noise), one.from_noise(noise))
    torch.testing.assert_close(other.kl_to_standard_normal(), one.kl_to_standard_normal())
    torch.testing.assert_close(other.scale, one.scale)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_an_affine_map_of_the_noise_with_the_covariance_of_torch(kind):
    q = posterior(kind)
    axes = torch.eye(U, dtype=torch.float64)[:, None].expand(-1, G, -1)
    root = (q.from_noise(axes) - q.loc).permute(1, 2, 0)
    expected = by_torch(q)
    covariance = torch.diag_embed(expected.variance) if kind == "diagonal" else expected.covariance_matrix
    torch.testing.assert_close(root @ root.mT, covariance)
    torch.testing.assert_close(q.from_noise(torch.zeros(1, 1, U).double())[0], q.loc)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_common_to_the_batch_is_that_noise_for_each(kind):
    q, noise = posterior(kind), randn(6, 1, U, seed=5)
    torch.testing.assert_close(q.from_noise(noise), q.from_noise(noise.expand(-1, G, -1)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_is_decided_by_its_generator_and_has_gradients(kind):
    q = posterior(kind)
    assert torch.equal(q.draw(generator(3)), q.draw(generator(3)))
    loc = q.loc.clone().requires_grad_()
    moved = DiagonalNormal(loc, q.scale) if kind == "diagonal" else FullNormal(loc, q.root, q.log_det)
    moved.draw(generator()).sum().backward()
    torch.testing.assert_close(loc.grad, torch.ones_like(loc))  # d draw / d loc = 1


@pytest.mark.parametrize("kind", KINDS)
def test_sample_and_rsample_have_the_shapes_of_torch(kind):
    q = posterior(kind)
    with torch.random.fork_rng():  # the only draws of the package from torch's global generator
        assert q.rsample((7, 2)).shape == (7, 2, G, U)
        assert q.sample().shape == (G, U)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has_prior", [False, True])
def test_proposals_come_with_the_log_ratio_of_prior_to_posterior(kind, has_prior):
    q, noise = posterior(kind), randn(5, G, U, seed=5)
    prior = FullNormal.from_diagonal(DiagonalNormal(randn(G, U, seed=6), 2.0 * diagonal().scale))
    u, log_ratio = q.propose(noise, prior if has_prior else None)
    torch.testing.assert_close(u, q.from_noise(noise))
    log_prior = prior.log_prob(u) if has_prior else Normal(0.0, 1.0).log_prob(u).sum(-1)
    torch.testing.assert_close(log_ratio, log_prior - by_torch(q).log_prob(u))


@pytest.mark.parametrize("kind", KINDS)
def test_take_may_repeat_groups(kind):
    q, u = posterior(kind), randn(3, U, seed=4)
    taken = q.take(torch.tensor([2, 0, 2]))
    expected = [q.log_prob(u[position].expand(G, -1))[group] for position, group in enumerate([2, 0, 2])]
    torch.testing.assert_close(taken.log_prob(u), torch.stack(expected))


def test_a_stretched_normal_has_the_factors_square_times_the_covariance():
    q, u = full(), randn(5, G, U, seed=4)
    expected = MultivariateNormal(q.loc, 4.0 * q.root @ q.root.mT)
    torch.testing.assert_close(q.stretched(2.0).log_prob(u), expected.log_prob(u))


def test_log_scales_are_bounded():
    q = DiagonalNormal.from_log_scale(torch.zeros(3), torch.tensor([-1e4, 0.5, 1e4]))
    assert torch.isfinite(q.scale.square()).all()
    assert (q.scale.square() > 0).all()
    assert q.scale[1] == pytest.approx(math.exp(0.5))


# --- Bayes' rule


def bayes(score: np.ndarray, information: np.ndarray, jacobian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of u ~ N(0, I) given a log-likelihood s'Ju - u'J'IJu / 2, completing the square."""
    covariance = np.linalg.inv(np.eye(jacobian.shape[1]) + jacobian.T @ information @ jacobian)
    return covariance @ jacobian.T @ score, covariance


@pytest.mark.parametrize("has_jacobian", [False, True])
def test_newton_is_bayes_rule(has_jacobian):
    n_predictors = 2 if has_jacobian else U
    score = randn(G, n_predictors, seed=7)
    root = randn(G, n_predictors, n_predictors, seed=8)
    information = root @ root.mT
    jacobian = randn(G, n_predictors, U, seed=9) if has_jacobian else None
    q = newton(score, information, jacobian)
    for group in range(G):
        J = np.eye(U) if jacobian is None else jacobian[group].numpy()
        mean, covariance = bayes(score[group].numpy(), information[group].numpy(), J)
        np.testing.assert_allclose(q.loc[group].numpy(), mean, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose((q.root @ q.root.mT)[group].numpy(), covariance, rtol=1e-10, atol=1e-12)
        assert q.log_det[group].item() == pytest.approx(0.5 * np.linalg.slogdet(covariance)[1])


def test_newton_of_nothing_is_the_prior():
    q = newton(torch.zeros(1, U), torch.zeros(1, U, U))
    assert q.kl_to_standard_normal().item() == 0.0


def test_newton_keeps_the_prior_where_float32_would_lose_it():
    # One direction known to 1e9, the other not at all: in float32 the prior's 1 beside it is nothing.
    axis = torch.tensor([[1.0, 1.0]]) / math.sqrt(2.0)
    q = newton(torch.zeros(1, 2), 1e9 * axis.mT @ axis[None])
    assert q.root.dtype == torch.float32
    other = torch.tensor([1.0, -1.0]) / math.sqrt(2.0)
    variance = (q.root[0].mT @ other).square().sum()
    assert variance.item() == pytest.approx(1.0, rel=0.05)


def test_precision_factor_is_that_of_prior_and_information():
    root = randn(G, U, U, seed=8)
    factor = precision_factor(root @ root.mT)
    torch.testing.assert_close(factor @ factor.mT, root @ root.mT + torch.eye(U, dtype=torch.float64))
    torch.testing.assert_close(factor, factor.tril())


# --- mirrored proposals


@pytest.mark.parametrize("n_codes", [1, 2, 3])
@pytest.mark.parametrize("n_samples", SAMPLE_COUNTS)
def test_half_of_the_draws_are_direct_and_the_axes_share_the_rest_evenly(n_samples, n_codes):
    proposal = MirroredNormal(diagonal(3, n_codes), n_samples)
    signs = proposal.signs.numpy()
    assert signs.shape == (n_samples, n_codes)
    assert proposal.n_direct == math.ceil(n_samples / 2)
    assert (signs[: proposal.n_direct] == 1).all()
    mirrored = signs[proposal.n_direct :]
    assert ((mirrored == -1).sum(axis=1) == 1).all()  # one axis at a time
    by_axis = (mirrored == -1).sum(axis=0)
    assert by_axis.max() - by_axis.min() <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_samples", SAMPLE_COUNTS)
def test_draws_of_no_noise_are_the_mirrored_means(kind, n_samples):
    proposal = MirroredNormal(posterior(kind), n_samples)
    draws = proposal.from_noise(torch.zeros(n_samples, 1, U, dtype=torch.float64))
    torch.testing.assert_close(draws, proposal.signs[:, None] * proposal.loc)


def test_mirrored_density_of_a_diagonal_normal_equals_the_mixture_by_scipy():
    normal = diagonal(3, 2)
    proposal = MirroredNormal(normal, 5)
    u, log_ratio = proposal.propose(randn(5, 3, 2, seed=5))
    u, loc, scale = u.numpy(), normal.loc.numpy(), normal.scale.numpy()
    # Three direct draws, then one mirrored along each axis.
    components = [(0.6, [1, 1]), (0.2, [-1, 1]), (0.2, [1, -1])]
    density = sum(w * norm.pdf(u, np.array(s) * loc, scale).prod(-1) for w, s in components)
    expected = norm.logpdf(u).sum(-1) - np.log(density)
    np.testing.assert_allclose(log_ratio.numpy(), expected, rtol=0, atol=1e-6)


def test_mirrored_density_of_a_full_normal_equals_the_mixture_of_mirror_images_by_scipy():
    normal = full(3, 2)
    proposal = MirroredNormal(normal, 5)
    u, log_ratio = proposal.propose(randn(5, 3, 2, seed=5))
    components = [(0.6, [1, 1]), (0.2, [-1, 1]), (0.2, [1, -1])]
    for group in range(3):
        covariance = (normal.root @ normal.root.mT)[group].numpy()
        density = 0.0
        for weight, signs in components:
            mirror = np.diag(signs)
            # A mirror image has correlations of the other sign.
            component = multivariate_normal(mirror @ normal.loc[group].numpy(), mirror @ covariance @ mirror)
            density = density + weight * component.pdf(u[:, group].numpy())
        expected = norm.logpdf(u[:, group].numpy()).sum(-1) - np.log(density)
        np.testing.assert_allclose(log_ratio[:, group].numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_each_draw_is_the_mirror_image_of_a_draw_from_the_normal(kind):
    normal, noise = posterior(kind), randn(9, G, U, seed=5)
    proposal = MirroredNormal(normal, 9)
    signs = proposal.signs[:, None]
    torch.testing.assert_close(proposal.from_noise(noise), signs * normal.from_noise(signs * noise))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_samples", [1, 2, 7, 100])
def test_prior_over_mixture_averages_to_one(kind, n_samples):
    # E over the mixture of prior / mixture is 1 only if the density is that of the draws. Draws within one
    # proposal are stratified by component, so their average is unbiased; 4,000 repetitions give its error.
    loc, scale = torch.tensor([[0.7, -0.4]]).double(), torch.tensor([[0.9, 1.1]]).double()
    normal: DiagonalNormal | FullNormal = DiagonalNormal(loc.expand(4000, 2), scale.expand(4000, 2))
    if kind == "full":
        # Wide in every direction, as the average is to have a variance.
        root = torch.tensor([[[0.9, 0.4], [-0.3, 1.1]]]).double().expand(4000, 2, 2)
        normal = FullNormal(normal.loc, root, torch.linalg.slogdet(root)[1])
    noise = torch.randn(n_samples, 4000, 2, generator=generator(2)).double()
    ratio = MirroredNormal(normal, n_samples).propose(noise)[1].exp().mean(0)
    standard_error = float(ratio.std()) / math.sqrt(4000)
    assert abs(float(ratio.mean()) - 1.0) < 4 * standard_error
    assert standard_error < 0.03  # the check has teeth


def test_a_mirrored_proposal_takes_a_prior_of_its_own():
    normal, prior = (
        diagonal(),
        FullNormal.from_diagonal(DiagonalNormal(randn(G, U, seed=6), diagonal().scale)),
    )
    proposal = MirroredNormal(normal, 5)
    u, log_ratio = proposal.propose(randn(5, G, U, seed=5), prior)
    torch.testing.assert_close(log_ratio, by_torch(prior).log_prob(u) - proposal.log_prob(u))


def test_a_mirrored_mode_is_covered():
    # A likelihood even in u has two modes; q sits on one. Its evidence by importance sampling needs both.
    q_u = DiagonalNormal(torch.tensor([[2.0]]).double(), torch.tensor([[0.3]]).double())
    target = Normal(torch.tensor([2.0]).double(), 0.3)

    def log_evidence(proposal: Posterior, n_samples: int) -> float:
        draws, log_ratio = proposal.propose(torch.randn(n_samples, 1, 1, generator=generator()).double())
        both = torch.stack([target.log_prob(draws), target.log_prob(-draws)]).logsumexp(0)[..., 0]
        # The "prior" cancels: weigh by joint / mixture with joint = the two-mode density of mass 2.
        weights = both - Normal(0.0, 1.0).log_prob(draws)[..., 0] + log_ratio
        return float(torch.logsumexp(weights, 0) - math.log(n_samples))

    assert log_evidence(MirroredNormal(q_u, 100), 100) == pytest.approx(math.log(2.0), abs=1e-6)
    assert log_evidence(q_u, 100) == pytest.approx(0.0, abs=1e-6)
