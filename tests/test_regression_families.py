"""Outcome families against scipy's distributions, and the normal score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from skgroupvae.families import (
    BernoulliFamily,
    GaussianFamily,
    NegativeBinomialFamily,
    OrdinalFamily,
    PoissonFamily,
    StudentTFamily,
    SuccessesFamily,
)

DOUBLE = torch.float64


def eta_of(*values):
    return torch.tensor([values], dtype=DOUBLE)


def ordinal():
    family = OrdinalFamily([0.0, 2.0, 4.0, 10.0]).double()
    with torch.no_grad():
        family.first_cut.fill_(-1.0)
        family.raw_steps.copy_(torch.tensor([0.3, 1.0]))
    return family


# family, parameters, possible outcomes
DISCRETE = [
    (BernoulliFamily(), eta_of(0.4), np.arange(2)),
    (SuccessesFamily(torch.tensor([7.0])), eta_of(0.4), np.arange(8)),
    (PoissonFamily(), eta_of(1.3), np.arange(60)),
    (NegativeBinomialFamily().double(), eta_of(1.3, 0.4), np.arange(400)),
    (ordinal(), eta_of(0.5, 0.2, 0.1, -0.3), np.arange(4)),
]
ids = [type(family).__name__ for family, _, _ in DISCRETE]


def test_gaussian_at_zero_shape_is_the_normal():
    y = torch.linspace(-4, 4, 9, dtype=DOUBLE)
    eta = torch.tensor([0.3, math.log(1.7), 0.0, 0.0], dtype=DOUBLE).expand(9, 4)
    family, normal = GaussianFamily().double(), stats.norm(0.3, 1.7)
    np.testing.assert_allclose(family.log_prob(y, eta), normal.logpdf(y), rtol=1e-12)
    np.testing.assert_allclose(family.cdf(y, eta), normal.cdf(y), rtol=1e-10)
    np.testing.assert_allclose(family.normal_score(y, eta)[0], (y - 0.3) / 1.7, rtol=1e-10)
    np.testing.assert_allclose(family.mean(eta), 0.3, rtol=1e-6)
    np.testing.assert_allclose(family.variance(eta), 1.7**2, rtol=1e-5)


@pytest.mark.parametrize(("skew", "log_tail"), [(0.5, 0.0), (-0.4, 0.2), (0.3, -0.3), (0.0, 0.4)])
def test_skewed_gaussian_is_a_density_with_these_moments(skew, log_tail):
    family = GaussianFamily().double()
    eta = eta_of(0.3, -0.2, skew, log_tail)

    def density(y):
        return float(family.log_prob(torch.tensor([y], dtype=DOUBLE), eta).exp())

    def moment(power, centre=0.0):
        return integrate.quad(lambda y: (y - centre) ** power * density(y), -80, 80, limit=400, points=[0.0])[
            0
        ]

    assert moment(0) == pytest.approx(1.0, abs=1e-6)
    mean = moment(1)
    assert float(family.mean(eta)) == pytest.approx(mean, abs=2e-3)
    # 15 nodes; heavy tails (log_tail < 0) are the hardest.
    assert float(family.variance(eta)) == pytest.approx(moment(2, mean), rel=0.02)
    assert float(family.cdf(torch.tensor([0.7], dtype=DOUBLE), eta)) == pytest.approx(
        integrate.quad(density, -80, 0.7, limit=400)[0], abs=1e-6
    )


@pytest.mark.parametrize("level", [0.01, 0.4, 0.975])
def test_gaussian_quantile_undoes_cdf(level):
    family, eta = GaussianFamily().double(), eta_of(0.3, -0.2, 0.4, -0.2)
    y = family.quantile(torch.tensor([level], dtype=DOUBLE), eta)
    assert float(family.cdf(y, eta)) == pytest.approx(level, rel=1e-10)


@pytest.mark.parametrize(("family", "eta", "support"), DISCRETE, ids=ids)
def test_discrete_families_add_up(family, eta, support):
    y = torch.tensor(support, dtype=DOUBLE)
    each = eta.expand(len(y), -1)
    with torch.no_grad():
        p = family.log_prob(y, each).exp().numpy()
        np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-6)
        np.testing.assert_allclose(family.cdf(y, each), p.cumsum(), rtol=1e-6)
        values = family.values.numpy() if hasattr(family, "values") else support
        mean = (p * values).sum()
        np.testing.assert_allclose(family.mean(eta)[0], mean, rtol=1e-6)
        np.testing.assert_allclose(family.variance(eta)[0], (p * (values - mean) ** 2).sum(), rtol=1e-6)
        for level in (0.05, 0.5, 0.93):
            smallest = support[np.searchsorted(p.cumsum(), level)]
            assert float(family.quantile(torch.tensor([level], dtype=DOUBLE), eta)) == smallest
        assert float(family.cdf(torch.tensor([-1.0], dtype=DOUBLE), eta)) == 0.0


@pytest.mark.parametrize(("family", "eta", "support"), DISCRETE, ids=ids)
def test_normal_score_of_a_discrete_outcome_is_a_truncated_normal(family, eta, support):
    for y in support[:4]:
        outcome = torch.tensor([float(y)], dtype=DOUBLE)
        with torch.no_grad():
            upper = float(family.cdf(outcome, eta))
            lower = upper - float(family.log_prob(outcome, eta).exp())
            mean, sd = (float(x) for x in family.normal_score(outcome, eta))
        exact = stats.truncnorm(stats.norm.ppf(max(lower, 1e-300)), stats.norm.ppf(min(upper, 1 - 1e-16)))
        assert mean == pytest.approx(exact.mean(), abs=1e-4)
        assert sd == pytest.approx(exact.std(), abs=1e-3)


@pytest.mark.parametrize(("family", "eta", "support"), DISCRETE, ids=ids)
def test_working_score_and_information_are_derivatives(family, eta, support):
    for y in support[:4]:
        outcome = torch.tensor([float(y)], dtype=DOUBLE)
        predictor = eta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(family.log_prob(outcome, predictor).sum(), predictor)
        with torch.no_grad():
            score, information = family.working(outcome, eta)
        assert float(score) == pytest.approx(float(gradient[0, 0]), abs=0.02)
        assert float(information) > 0


def test_negative_binomial_is_that_of_scipy():
    family, eta = NegativeBinomialFamily().double(), eta_of(1.3, 0.4)
    mean, size = math.exp(1.3), math.exp(1.0 - 0.4)
    y = torch.arange(20, dtype=DOUBLE)
    theirs = stats.nbinom(size, size / (size + mean))
    with torch.no_grad():
        np.testing.assert_allclose(family.log_prob(y, eta.expand(20, -1)), theirs.logpmf(y), rtol=1e-9)
        np.testing.assert_allclose(family.cdf(y, eta.expand(20, -1)), theirs.cdf(y), rtol=1e-9)


def test_student_t_is_that_of_scipy():
    family, eta = StudentTFamily().double(), eta_of(0.3, -0.2).expand(9, -1)
    y = torch.linspace(-4.0, 4.0, 9, dtype=DOUBLE)
    with torch.no_grad():
        theirs = stats.t(float(family.df), 0.3, math.exp(-0.2))
        np.testing.assert_allclose(family.log_prob(y, eta), theirs.logpdf(y), rtol=1e-9)
        np.testing.assert_allclose(family.cdf(y, eta), theirs.cdf(y), rtol=1e-9)
        np.testing.assert_allclose(family.quantile(family.cdf(y, eta), eta), y, atol=1e-6)
        np.testing.assert_allclose(family.variance(eta), theirs.var(), rtol=1e-9)
        score, information = family.working(y, eta)
    parameters = eta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(family.log_prob(y, parameters).sum(), parameters)
    np.testing.assert_allclose(score, gradient, rtol=1e-9, atol=1e-12)
    # The expected information is the mean square of the score.
    grid = torch.linspace(-60.0, 60.0, 200_001, dtype=DOUBLE)
    with torch.no_grad():
        at = eta[:1].expand(len(grid), -1)
        square = (family.working(grid, at)[0].square() * family.log_prob(grid, at).exp()[:, None]).sum(0)
    np.testing.assert_allclose(square * (grid[1] - grid[0]), information[0], rtol=1e-3)


@pytest.mark.parametrize("family", [PoissonFamily(), NegativeBinomialFamily()])
def test_one_step_of_counts_does_not_overshoot(family):
    """A group with 7 times the counts of u = 0 is log 7 away; Newton's step says 6."""
    eta = torch.zeros(50, family.n_parameters)
    score, information = family.evidence(torch.full((50,), 7.0), eta)
    step = float((score.sum() / information.sum()).detach())
    assert step == pytest.approx(2.0 * 6.0 / 8.0, rel=1e-5)


def test_gradients_are_finite_far_out():
    family = GaussianFamily()
    eta = torch.tensor([[0.0, 0.0, 0.5, 0.3]]).repeat(5, 1).requires_grad_()
    y = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4])
    (family.log_prob(y, eta).sum() + family.normal_score(y, eta)[0].sum()).backward()
    assert torch.isfinite(eta.grad).all()
