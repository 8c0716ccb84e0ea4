"""Families against scipy's distributions, and the normal score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import expit
from scipy_families import distribution, score_of_row

from skgroupvae.model.families import (
    FAMILIES,
    OUTCOME_FAMILIES,
    BernoulliFamily,
    BinomialFamily,
    Family,
    GaussianFamily,
    NegativeBinomialFamily,
    NormalFamily,
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

    def moment(power, center=0.0):
        return integrate.quad(lambda y: (y - center) ** power * density(y), -80, 80, limit=400, points=[0.0])[
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
    score, information = family.newton_terms(torch.full((50,), 7.0), eta)
    step = float((score.sum() / information.sum()).detach())
    assert step == pytest.approx(2.0 * 6.0 / 8.0, rel=1e-5)


def test_gradients_are_finite_far_out():
    family = GaussianFamily()
    eta = torch.tensor([[0.0, 0.0, 0.5, 0.3]]).repeat(5, 1).requires_grad_()
    y = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4])
    (family.log_prob(y, eta).sum() + family.normal_score(y, eta)[0].sum()).backward()
    assert torch.isfinite(eta.grad).all()


@pytest.mark.parametrize("name", ["gaussian", "student_t", "bernoulli", "poisson", "negative_binomial"])
def test_score_and_its_gradient_are_those_of_scipy(name):
    family = FAMILIES[name]().double().requires_grad_(False)
    at = np.zeros(family.n_parameters)
    at[:2] = [0.4, -0.3][: family.n_parameters]
    for y in (0.0, 1.0) if name == "bernoulli" else (0.0, 1.0, 3.0):
        eta = torch.tensor(at[None], requires_grad=True)
        v = family.score_with_gradient(torch.tensor([y], dtype=DOUBLE), eta)
        v.sum().backward()
        assert v.item() == pytest.approx(score_of_row(distribution(name, family, at), y), abs=1e-6)
        for parameter in range(min(2, family.n_parameters)):
            step = 1e-4 * np.eye(len(at))[parameter]
            up, down = (score_of_row(distribution(name, family, at + s), y) for s in (step, -step))
            # Differences over 0.06 are off by the third derivative times 0.0002.
            assert eta.grad[0, parameter].item() == pytest.approx((up - down) / 2e-4, abs=2e-3)


def test_successes_are_scipys_binomial():
    trials, logit = torch.tensor([1.0, 5.0, 40.0]), torch.tensor([[0.3], [-2.0], [4.0]], dtype=DOUBLE)
    family, theirs = SuccessesFamily(trials), stats.binom(trials.double().numpy(), expit(logit[:, 0].numpy()))
    for y in ([0.0, 0.0, 0.0], [1.0, 2.0, 39.0], [1.0, 5.0, 40.0]):
        count = torch.tensor(y, dtype=DOUBLE)
        np.testing.assert_allclose(family.log_prob(count, logit), theirs.logpmf(y), rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(family.cdf(count, logit), theirs.cdf(y), rtol=1e-10)
    np.testing.assert_allclose(family.mean(logit), theirs.mean())
    np.testing.assert_allclose(family.variance(logit), theirs.var())
    for level in (0.001, 0.2, 0.5, 0.97):
        p = torch.full((3,), level, dtype=DOUBLE)
        np.testing.assert_array_equal(family.quantile(p, logit), theirs.ppf(level))
    np.testing.assert_array_equal(family.cdf(torch.full((3,), -1.0, dtype=DOUBLE), logit), 0.0)


def test_many_trials_keep_their_digits_in_single_precision():
    family = SuccessesFamily(torch.tensor([100_000.0]))
    value = family.log_prob(torch.tensor([50_010.0]), torch.zeros(1, 1))
    np.testing.assert_allclose(value, stats.binom.logpmf(50_010, 100_000, 0.5), rtol=1e-6)


def test_one_trial_of_a_row_is_a_mixture_of_its_outcomes():
    family, eta, y = BinomialFamily(), torch.tensor([[0.4]], dtype=DOUBLE), torch.tensor([0.3], dtype=DOUBLE)
    rate = expit(0.4)
    assert float(family.log_prob(y, eta)) == pytest.approx(0.3 * np.log(rate) + 0.7 * np.log(1.0 - rate))
    # 7 failures below, 3 successes above the quantile of a failure.
    edge = stats.norm.ppf(1.0 - rate)
    low, high = stats.truncnorm(-np.inf, edge), stats.truncnorm(edge, np.inf)
    mean = 0.7 * low.mean() + 0.3 * high.mean()
    square = 0.7 * (low.var() + low.mean() ** 2) + 0.3 * (high.var() + high.mean() ** 2)
    ours = [float(part) for part in family.normal_score(y, eta)]
    np.testing.assert_allclose(ours, [mean, np.sqrt(square - mean**2)], rtol=1e-5)
    score, information = (float(part) for part in family.working(y, eta))
    assert score == pytest.approx(0.3 - rate, abs=1e-3)
    assert information == pytest.approx(rate * (1.0 - rate), rel=1e-2)


def test_normal_is_that_of_scipy():
    family, theirs = NormalFamily(), stats.norm(0.3, math.exp(-0.2))
    y, eta = torch.linspace(-4.0, 4.0, 9, dtype=DOUBLE), eta_of(0.3, -0.2).expand(9, -1)
    p = torch.linspace(0.01, 0.99, 9, dtype=DOUBLE)
    np.testing.assert_allclose(family.log_prob(y, eta), theirs.logpdf(y), rtol=1e-12)
    np.testing.assert_allclose(family.cdf(y, eta), theirs.cdf(y), atol=1e-14)
    np.testing.assert_allclose(family.quantile(p, eta), theirs.ppf(p), rtol=1e-10)
    v, spread = family.normal_score(y, eta)
    np.testing.assert_allclose(v, (y - 0.3) / theirs.std(), rtol=1e-12)
    np.testing.assert_allclose(family.at_score(v, eta), y, atol=1e-12)
    assert (spread == 0).all()
    for ours, exact in zip(family.moments(eta), (theirs.mean(), theirs.var()), strict=True):
        np.testing.assert_allclose(ours, exact)


def test_normal_score_and_information_are_derivatives():
    family, y = NormalFamily(), torch.linspace(-4.0, 4.0, 9, dtype=DOUBLE)
    eta = eta_of(0.3, -0.2).repeat(9, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(family.log_prob(y, eta).sum(), eta)
    (slope,) = torch.autograd.grad(family.score_with_gradient(y, eta).sum(), eta)
    with torch.no_grad():
        score, information = family.working(y, eta)
        bounded, _ = family.newton_terms(y, eta)
        np.testing.assert_allclose(score, gradient, rtol=1e-10)
        np.testing.assert_allclose(information, [[math.exp(0.4), 2.0]] * 9, rtol=1e-12)
        np.testing.assert_allclose(bounded[:, 1], score[:, 1].clamp(max=8.0), rtol=1e-12)
        np.testing.assert_allclose(
            slope, torch.stack([-information[:, 0].sqrt(), -family.normal_score(y, eta)[0]], -1)
        )


def test_gaussian_at_zero_shape_is_the_normal_family():
    y, eta = torch.linspace(-4.0, 4.0, 9, dtype=DOUBLE), eta_of(0.3, -0.2, 0.0, 0.0).expand(9, -1)
    gaussian, normal = GaussianFamily().double(), NormalFamily()
    for method in ("log_prob", "cdf", "score_with_gradient", "newton_terms"):
        ours, theirs = (getattr(f, method)(y, e) for f, e in ((normal, eta[:, :2]), (gaussian, eta)))
        # float32 weights of the quadrature.
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


class ExponentialFamily(Family):
    """Waiting times, log link: as a user would write it."""

    is_continuous = True

    def working_outcome(self, y):
        return (y + 0.1).log()

    def log_prob(self, y, eta):
        return -eta[..., 0] - y * (-eta[..., 0]).exp()

    def cdf(self, y, eta):
        return -torch.expm1(-y * (-eta[..., 0]).exp())

    def mean(self, eta):
        return eta[..., 0].exp()

    def variance(self, eta):
        return self.mean(eta).square()

    def quantile(self, p, eta):
        return -torch.log1p(-p) * self.mean(eta)


def test_a_family_of_ones_own_needs_no_name():
    family, eta = ExponentialFamily(), eta_of(0.4).expand(5, -1)
    assert ExponentialFamily not in FAMILIES.values()
    y = torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0], dtype=DOUBLE)
    v, spread = family.normal_score(y, eta)
    np.testing.assert_allclose(v, stats.norm.ppf(stats.expon.cdf(y, scale=math.exp(0.4))), rtol=1e-8)
    np.testing.assert_allclose(family.at_score(v, eta), y, rtol=1e-8)
    assert (spread == 0).all()
    score, information = family.newton_terms(y, eta)
    np.testing.assert_allclose(score[:, 0], y * math.exp(-0.4) - 1.0, atol=0.01)
    np.testing.assert_allclose(information[:, 0], y * math.exp(-0.4), rtol=0.01)


def test_every_family_declares_the_kind_of_its_column():
    kinds = {name: family.kind for name, family in FAMILIES.items()}
    assert kinds == {
        "normal": "numeric",
        "gaussian": "numeric",
        "student_t": "numeric",
        "bernoulli": "binary",
        "binomial": "proportion",
        "poisson": "count",
        "negative_binomial": "count",
        "ordinal": "ordered",
    }
    assert set(FAMILIES) - set(OUTCOME_FAMILIES) == {"normal"}
    for name, family in FAMILIES.items():
        made = family([1.0, 2.0, 5.0]) if family.kind == "ordered" else family()
        assert len(made.max_deviation) == made.n_parameters - 1, name
        assert made.has_trials == (made.kind == "proportion")
    with pytest.raises(ValueError, match="2 levels"):
        OrdinalFamily([0.0, 1.0])
