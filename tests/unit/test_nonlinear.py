"""The simulated nonlinear mixed model and its exact predictive density."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from skgroupvae.nonlinear import make_nonlinear_mixed, nonlinear_mixed_log_density


def test_same_seed_same_data_and_truth_gives_the_outcome():
    data, again = (make_nonlinear_mixed(20, 5, random_state=0) for _ in range(2))
    np.testing.assert_array_equal(data.y, again.y)
    x, u = data.X[:, 0], data.u[data.groups]
    np.testing.assert_allclose(data.y, x + u[:, 0] * np.sin(2 * x) + np.exp(u[:, 1] / 2) * data.v)


def test_density_adds_up_to_one():
    def density(y):
        return float(np.exp(nonlinear_mixed_log_density([[0.7]], [y], [0]))[0])

    assert integrate.quad(density, -60, 60, points=[0.0], limit=200)[0] == pytest.approx(1.0, abs=1e-5)


def test_density_without_context_is_that_of_many_draws():
    rng = np.random.default_rng(0)
    u = rng.standard_normal((400_000, 2))
    draws = stats.norm(0.7 + u[:, 0] * np.sin(1.4), np.exp(u[:, 1] / 2)).pdf(1.5)
    exact = np.exp(nonlinear_mixed_log_density([[0.7]], [1.5], [0]))[0]
    # Five standard errors of the mean of the draws.
    assert exact == pytest.approx(draws.mean(), abs=5 * draws.std() / 400_000**0.5)


def test_context_obeys_the_chain_rule():
    data = make_nonlinear_mixed(1, 2, random_state=3)
    X, y, groups = data.X, data.y, data.groups
    one_then_other = [
        nonlinear_mixed_log_density(X[[i]], y[[i]], groups[[i]])[0]
        + nonlinear_mixed_log_density(X[[j]], y[[j]], groups[[j]], context=(X[[i]], y[[i]], groups[[i]]))[0]
        for i, j in ((0, 1), (1, 0))
    ]
    assert one_then_other[0] == pytest.approx(one_then_other[1], abs=1e-6)
