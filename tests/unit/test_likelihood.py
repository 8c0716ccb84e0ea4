"""The likelihood of several columns: sums, masks, and correlated normal scores."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from skgroupvae.model.families import (
    BernoulliFamily,
    BinomialFamily,
    GaussianFamily,
    NegativeBinomialFamily,
    NormalFamily,
    OrdinalFamily,
    PoissonFamily,
    StudentTFamily,
)
from skgroupvae.model.likelihood import Likelihood

DOUBLE = torch.float64
CORRELATION = torch.tensor([[1.0, 0.6, -0.3], [0.6, 1.0, 0.2], [-0.3, 0.2, 1.0]], dtype=DOUBLE)
PATTERNS = torch.tensor(list(itertools.product([True, False], repeat=3)))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def correlated(families=None):
    likelihood = Likelihood(families or [NormalFamily()], 3, correlation=True).double()
    likelihood.set_correlation(CORRELATION)
    return likelihood


def mixed():
    """Three columns whose families have 2, 3 and 1 parameters, with values and parameters."""
    families = [NegativeBinomialFamily(), OrdinalFamily([1.0, 2.0, 5.0]), PoissonFamily()]
    values = torch.arange(8.0, dtype=DOUBLE)[:, None] % torch.tensor([4.0, 3.0, 5.0])
    return Likelihood(families, 3).double().requires_grad_(False), values, 0.3 * noise(8, 3, 3, seed=1)


def test_log_prob_is_the_sum_over_columns():
    likelihood, values, eta = mixed()
    parts = [
        family.log_prob(values[:, d], eta[:, d, : family.n_parameters])
        for d, family in enumerate(likelihood.families)
    ]
    assert likelihood.n_parameters == 3
    torch.testing.assert_close(likelihood.log_prob(values, eta), sum(parts))
    torch.testing.assert_close(
        likelihood.log_prob(values, eta, PATTERNS),
        sum(part * PATTERNS[:, d] for d, part in enumerate(parts)),
    )
    assert likelihood.max_deviation == (1.5, 1.0)
    assert likelihood.max_predictor_deviation == 1.0
    assert Likelihood([GaussianFamily()], 2).max_predictor_deviation is None
    assert not likelihood.is_continuous
    assert not likelihood.is_linear_exact


def test_the_other_methods_go_by_column():
    likelihood, values, eta = mixed()
    mean, sd = likelihood.normal_scores(values, eta, PATTERNS)
    score, information = likelihood.newton_terms(values, eta, PATTERNS)
    with_gradient, moments = likelihood.scores_with_gradient(values, eta), likelihood.moments(eta)
    for d, family in enumerate(likelihood.families):
        y, at, seen = values[:, d], eta[:, d, : family.n_parameters], PATTERNS[:, d]
        exact = family.normal_score(y, at)
        torch.testing.assert_close(mean[:, d], torch.where(seen, exact[0], 0.0))
        torch.testing.assert_close(sd[:, d], torch.where(seen, exact[1], 1.0))
        torch.testing.assert_close(with_gradient[:, d], exact[0])
        torch.testing.assert_close(tuple(part[:, d] for part in moments), family.moments(at))
        v = noise(8, 3)
        torch.testing.assert_close(likelihood.at_scores(v, eta)[:, d], family.at_score(v[:, d], at))
        terms = family.newton_terms(y, at)
        torch.testing.assert_close(score[:, d], terms[0][:, 0] * seen)
        torch.testing.assert_close(information[:, d, d], terms[1][:, 0] * seen)
    off = information - torch.diag_embed(information.diagonal(dim1=-2, dim2=-1))
    assert (off == 0).all()


@pytest.mark.parametrize("family", [NormalFamily(), BernoulliFamily(), NegativeBinomialFamily().double()])
@pytest.mark.parametrize("shape", [(), (5,)])
def test_one_family_for_all_columns_is_one_for_each(family, shape):
    shared, each = Likelihood([family], 3), Likelihood([family] * 3, 3)
    values, eta = (noise(8, 3) > 0).to(DOUBLE), 0.5 * noise(*shape, 8, 3, family.n_parameters, seed=1)
    methods = ["log_prob", "newton_terms", "working", "normal_scores", "scores_with_gradient"]
    for method in methods:
        masks = [] if method == "scores_with_gradient" else [PATTERNS]
        results = [getattr(which, method)(values, eta, *masks) for which in (shared, each)]
        torch.testing.assert_close(*results)
    assert shared.log_prob(values, eta).shape == (*shape, 8)
    torch.testing.assert_close(shared.moments(eta), each.moments(eta))
    v = noise(*shape, 8, 3, seed=2)
    torch.testing.assert_close(shared.at_scores(v, eta), each.at_scores(v, eta))


@pytest.mark.parametrize(
    "family", [GaussianFamily().double(), StudentTFamily().double(), PoissonFamily(), BinomialFamily()]
)
def test_one_column_is_its_family(family):
    likelihood = Likelihood([family], 1, correlation=family.is_continuous)
    assert likelihood.raw_correlation is None
    values, eta = noise(8, 1).abs().clamp(max=1.0).round(), 0.3 * noise(8, 1, family.n_parameters, seed=1)
    y, at = values[:, 0], eta[:, 0]
    torch.testing.assert_close(likelihood.log_prob(values, eta), family.log_prob(y, at), rtol=0, atol=0)
    for method in ("newton_terms", "working"):
        score, information = getattr(likelihood, method)(values, eta)
        exact = getattr(family, method)(y, at)
        torch.testing.assert_close(score, exact[0], rtol=0, atol=0)
        torch.testing.assert_close(information, torch.diag_embed(exact[1]), rtol=0, atol=0)
    ours, exact = likelihood.normal_scores(values, eta), family.normal_score(y, at)
    torch.testing.assert_close(tuple(part[:, 0] for part in ours), exact, rtol=0, atol=0)
    mask = torch.arange(8)[:, None] % 2 == 0
    torch.testing.assert_close(likelihood.log_prob(values, eta, mask), family.log_prob(y, at) * mask[:, 0])


# --- whole rows


@pytest.mark.parametrize("n_columns", [1, 2])
def test_whole_rows_count_successes(n_columns):
    trials, rate = torch.tensor([3.0, 8.0, 1.0], dtype=DOUBLE), torch.tensor([1 / 3, 0.25, 1.0], dtype=DOUBLE)
    likelihood, counts = Likelihood([BinomialFamily()], n_columns).of_rows(
        rate[:, None].expand(-1, n_columns), trials
    )
    eta = 0.4 * noise(3, n_columns, 1)
    exact = stats.binom.logpmf([[1], [2], [1]], trials[:, None], torch.sigmoid(eta[..., 0])).sum(1)
    np.testing.assert_allclose(likelihood.log_prob(counts, eta), exact, rtol=1e-10)
    normal = correlated()
    values = noise(4, 3)
    assert normal.of_rows(values, torch.ones(4))[0] is normal


# --- correlated normal scores


def test_correlation_is_kept_and_starts_at_the_identity():
    likelihood = Likelihood([NormalFamily()], 3, correlation=True)
    torch.testing.assert_close(likelihood.correlation, torch.eye(3, dtype=DOUBLE))
    values, eta = noise(8, 3), noise(8, 3, 2, seed=1)
    plain = Likelihood([NormalFamily()], 3)
    assert plain.correlation is None
    torch.testing.assert_close(likelihood.log_prob(values, eta), plain.log_prob(values, eta))
    torch.testing.assert_close(likelihood.newton_terms(values, eta), plain.newton_terms(values, eta))
    torch.testing.assert_close(correlated().correlation, CORRELATION)
    scale = torch.diag(torch.tensor([0.1, 2.0, 30.0], dtype=DOUBLE))
    likelihood.double().set_correlation(scale @ CORRELATION @ scale)
    torch.testing.assert_close(likelihood.correlation, CORRELATION)


@pytest.mark.parametrize("shape", [(), (4,)])
def test_correlated_normals_are_multivariate_normal(shape):
    likelihood, values, eta = correlated(), noise(8, 3), 0.5 * noise(*shape, 8, 3, 2, seed=1)
    with torch.no_grad():
        masked = likelihood.log_prob(values, eta, PATTERNS)
        complete = likelihood.log_prob(values, eta)
        same = likelihood.log_prob(values, eta, PATTERNS[1].expand(8, 3))
    for at in np.ndindex(*shape, 8):
        row, sd = at[-1], np.diag(eta[at][:, 1].exp())
        exact = stats.multivariate_normal(eta[at][:, 0], sd @ CORRELATION.numpy() @ sd)
        assert float(complete[at]) == pytest.approx(exact.logpdf(values[row]), rel=1e-9)
        for result, seen in ((masked, PATTERNS[row].numpy()), (same, PATTERNS[1].numpy())):
            part = (
                stats.multivariate_normal(exact.mean[seen], exact.cov[np.ix_(seen, seen)])
                if seen.any()
                else None
            )
            log_prob = part.logpdf(values[row].numpy()[seen]) if part else 0.0
            assert float(result[at]) == pytest.approx(log_prob, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("method", ["newton_terms", "working"])
@pytest.mark.parametrize("family", [NormalFamily(), GaussianFamily().double()])
def test_location_terms_are_derivatives_of_the_joint_density(family, method):
    likelihood, values = correlated([family]), noise(8, 3)
    eta = torch.zeros(8, 3, family.n_parameters, dtype=DOUBLE)
    eta[..., :2] = 0.3 * noise(8, 3, 2, seed=1)
    score, information = (part.detach() for part in getattr(likelihood, method)(values, eta, PATTERNS))
    assert information.shape == (8, 6, 6)
    for row in range(8):
        y, seen = values[row : row + 1], PATTERNS[row : row + 1]

        def joint(location, y=y, seen=seen, row=row):
            at = torch.cat([location[:, None], eta[row, :, 1:]], dim=-1)
            return likelihood.log_prob(y, at[None], seen).sum()

        gradient = torch.autograd.functional.jacobian(joint, eta[row, :, 0])
        hessian = torch.autograd.functional.hessian(joint, eta[row, :, 0])
        # Weights of the gaussian's quadrature are float32.
        torch.testing.assert_close(score[row, ::2], gradient, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(information[row, ::2, ::2], -hessian, rtol=1e-6, atol=1e-6)
        by_column = getattr(family, method)(values[row], eta[row])
        torch.testing.assert_close(score[row, 1::2], by_column[0][:, 1] * PATTERNS[row])
        torch.testing.assert_close(
            information[row, 1::2, 1::2], torch.diag(by_column[1][:, 1] * PATTERNS[row])
        )
    assert (information[:, ::2, 1::2] == 0).all()


def test_skewed_columns_keep_their_densities():
    """A copula changes no marginal: a row with one observed cell has the density of its column."""
    family, eta = GaussianFamily().double(), 0.3 * noise(3, 3, 4)
    values = noise(3, 3, seed=1)
    log_prob = correlated([family]).log_prob(values, eta, torch.eye(3, dtype=torch.bool))
    torch.testing.assert_close(log_prob, family.log_prob(values, eta).diagonal())


def test_gradients_reach_every_parameter_and_are_finite():
    likelihood = Likelihood([GaussianFamily()], 3, correlation=True)
    likelihood.set_correlation(CORRELATION)
    values, eta = noise(8, 3).float(), (0.3 * noise(8, 3, 4, seed=1)).float().requires_grad_()
    total = likelihood.log_prob(values, eta, PATTERNS).sum()
    total = total + sum(part.sum() for part in likelihood.newton_terms(values, eta, PATTERNS))
    total.backward()
    assert torch.isfinite(eta.grad).all()
    assert (eta.grad[~PATTERNS] == 0).all()
    assert (likelihood.raw_correlation.grad != 0).all()


def test_bad_input():
    with pytest.raises(ValueError, match="continuous"):
        Likelihood([PoissonFamily()], 2, correlation=True)
    with pytest.raises(ValueError, match="2 families for 3 columns"):
        Likelihood([PoissonFamily()] * 2, 3)
    with pytest.raises(ValueError, match="n_working"):
        Likelihood([PoissonFamily(), NormalFamily()], 2)
    with pytest.raises(ValueError, match="no residual correlation"):
        Likelihood([NormalFamily()], 2).set_correlation(torch.eye(2))
