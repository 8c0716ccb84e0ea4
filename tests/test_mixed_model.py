"""The linear mixed model against the dense normal likelihood and statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from skgroupvae.groups import GroupIndex
from skgroupvae.regression.mixed_model import fit_linear_mixed_model


def simulate(seed=0, n_groups=40):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 15, n_groups)
    groups = np.repeat(np.arange(n_groups), sizes)
    x = np.column_stack([np.ones(len(groups)), rng.normal(size=(len(groups), 2))])
    effects = rng.multivariate_normal([0, 0], [[1.0, 0.3], [0.3, 0.4]], n_groups)[groups]
    y = x @ [1.0, 2.0, -1.0] + effects[:, 0] + effects[:, 1] * x[:, 1] + 0.7 * rng.normal(size=len(groups))
    return x, y, groups


def fit(x, y, groups, random):
    index = GroupIndex.from_labels(groups)
    rows, segments = index.rows_of(np.arange(index.n_groups))
    return fit_linear_mixed_model(torch.tensor(y)[rows], torch.tensor(x)[rows], random, segments)


def dense_log_likelihood(x, y, groups, model, random):
    """Group by group with the covariance written out."""
    total = 0.0
    covariance = (model.loadings @ model.loadings.T).numpy()
    for group in np.unique(groups):
        rows = groups == group
        z = x[rows][:, random]
        v = z @ covariance @ z.T + model.noise**2 * np.eye(rows.sum())
        total += stats.multivariate_normal(x[rows] @ model.fixed.numpy(), v).logpdf(y[rows])
    return total


@pytest.mark.parametrize("random", [[0], [0, 1], [0, 1, 2]])
def test_log_likelihood_is_the_dense_one(random):
    x, y, groups = simulate()
    model = fit(x, y, groups, random)
    assert model.log_likelihood == pytest.approx(dense_log_likelihood(x, y, groups, model, random), rel=1e-9)


@pytest.mark.parametrize("random", [[0], [0, 1]])
def test_estimates_are_those_of_statsmodels(random):
    smf = pytest.importorskip("statsmodels.regression.mixed_linear_model")
    x, y, groups = simulate()
    ours = fit(x, y, groups, random)
    theirs = smf.MixedLM(y, x, groups, exog_re=x[:, random]).fit(reml=False)
    assert ours.log_likelihood >= theirs.llf - 1e-4
    error = ours.fixed_covariance.diagonal().sqrt().numpy()
    np.testing.assert_allclose(ours.fixed.numpy(), theirs.fe_params, atol=0.01 * error.min())
    np.testing.assert_allclose((ours.loadings @ ours.loadings.T).numpy(), theirs.cov_re, rtol=0.01, atol=1e-3)
    assert ours.noise**2 == pytest.approx(theirs.scale, rel=0.01)
    np.testing.assert_allclose(error, theirs.bse_fe, rtol=0.05)


def test_no_group_effect_gives_a_loading_of_zero_and_least_squares():
    rng = np.random.default_rng(1)
    x = np.column_stack([np.ones(400), rng.normal(size=400)])
    groups = np.repeat(np.arange(40), 10)
    noise = rng.normal(size=400)
    noise -= np.array([noise[groups == g].mean() for g in range(40)])[groups]
    y = x @ [1.0, 2.0] + noise  # less spread between groups than chance gives
    model = fit(x, y, groups, [0])
    assert float(model.loadings.abs().max()) < 0.05
    np.testing.assert_allclose(model.fixed.numpy(), np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-2)


def test_collinear_columns_have_finite_estimates():
    x, y, groups = simulate()
    model = fit(np.column_stack([x, x[:, 1]]), y, groups, [0])
    assert all(torch.isfinite(part).all() for part in (model.fixed, model.fixed_covariance, model.loadings))
