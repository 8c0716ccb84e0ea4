"""Diagnostics against scipy, pandas and closed forms."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from skgroupvae import diagnostics
from skgroupvae.diagnostics import (
    GROUP_STATISTICS,
    binomial_band,
    central_interval,
    density_grid,
    group_means,
    group_statistic,
    interval_coverage,
    kernel_density,
    normal_interval,
    pit_histogram,
    posterior_predictive_p_values,
)


@pytest.fixture
def index():
    """Groups of 1 to 5 rows, shuffled."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(5), [1, 2, 3, 4, 5]))


def test_module_needs_numpy_and_scipy_only():
    tree = ast.parse(Path(diagnostics.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    packages = {module.split(".")[0] for module in modules}
    assert packages == {"__future__", "collections", "numpy", "scipy"}


def test_pit_histogram_is_a_density_with_both_ends_included():
    values = [0.0, 0.1, 0.5, 1.0]
    heights = pit_histogram(values, n_bins=5)
    np.testing.assert_allclose(heights, np.histogram(values, 5, range=(0, 1), density=True)[0])
    assert heights.mean() == pytest.approx(1.0)


def test_coverage_is_a_mean_over_rows_at_each_level():
    pit, nominal = np.random.default_rng(0).random(200), np.array([0.9, 0.1, 0.5])
    inside = [((pit >= 0.5 - level / 2) & (pit <= 0.5 + level / 2)).mean() for level in nominal]
    np.testing.assert_allclose(interval_coverage(pit, nominal), inside)
    assert interval_coverage(pit, 0.5) == inside[2]


def test_coverage_includes_the_ends_of_intervals():
    np.testing.assert_array_equal(interval_coverage([0.25, 0.75, 0.8], [0.5]), [2 / 3])


def test_binomial_band_holds_its_probability():
    lower, upper = binomial_band(50, [0.05, 0.5], 0.9)
    for p, low, high in zip([0.05, 0.5], lower, upper, strict=True):
        law = stats.binom(50, p)
        assert law.cdf(round(high * 50)) - law.cdf(round(low * 50) - 1) >= 0.9
        assert law.cdf(round(low * 50) - 1) < 0.05
        assert law.sf(round(high * 50)) <= 0.05


def test_group_means_are_those_of_pandas(index):
    values = np.random.default_rng(1).normal(size=len(index))
    means, n_rows = group_means(values, index)
    np.testing.assert_allclose(means, pd.Series(values).groupby(index).mean())
    np.testing.assert_array_equal(n_rows, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("statistic", GROUP_STATISTICS)
def test_group_statistics_are_those_of_pandas(statistic, index):
    table = np.random.default_rng(1).normal(1e3, size=(len(index), 4))
    expected = pd.DataFrame(table).groupby(index).agg(statistic)
    np.testing.assert_allclose(group_statistic(table, index, statistic), expected, rtol=1e-9)


def test_group_statistic_can_be_a_function_of_an_array(index):
    table = np.random.default_rng(1).normal(size=(len(index), 2))
    found = group_statistic(table, index, lambda values: values[0] + values.size)
    first = pd.DataFrame(table).groupby(index).first()
    np.testing.assert_allclose(found, first.add([1, 2, 3, 4, 5], axis=0))


def test_unknown_group_statistic_is_refused():
    with pytest.raises(ValueError, match=r"statistic must be one of .* or a callable, got 'mode'"):
        group_statistic([[1.0]], [0], "mode")


def test_central_interval_is_made_of_quantiles():
    draws = np.random.default_rng(0).normal(size=(3, 101))
    lower, median, upper = central_interval(draws, 0.8)
    for found, level in ((lower, 0.1), (median, 0.5), (upper, 0.9)):
        np.testing.assert_allclose(found, np.quantile(draws, level, axis=1))


def test_p_values_of_a_calibrated_model_are_uniform():
    rng = np.random.default_rng(0)
    p = posterior_predictive_p_values(rng.normal(size=500), rng.normal(size=(500, 400)))
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_p_values_count_ties_half():
    np.testing.assert_array_equal(posterior_predictive_p_values([1, 0], [[1, 1], [1, 0]]), [0.5, 0.75])


def test_normal_interval_has_its_probability():
    lower, upper = normal_interval([1.0, -3.0], [2.0, 0.0], 0.5)
    law = stats.norm(1.0, 2.0)
    assert law.cdf(upper[0]) - law.cdf(lower[0]) == pytest.approx(0.5)
    assert lower[1] == upper[1] == -3.0


def test_grid_covers_all_samples_evenly():
    grid = density_grid([0.0, 1.0], [5.0], n_points=11)
    assert grid.shape == (11,)
    assert grid[0] == pytest.approx(-0.75)
    assert grid[-1] == pytest.approx(5.75)
    np.testing.assert_allclose(np.diff(grid), grid[1] - grid[0])


@pytest.mark.parametrize("value", [0.0, 1e6, -1e-3])
def test_grid_of_constant_values_has_a_width(value):
    grid = density_grid([value, value])
    assert grid[0] < value < grid[-1]


def test_density_is_that_of_scipy_up_to_the_grid():
    values = np.random.default_rng(0).normal(size=400)
    grid = density_grid(values)
    # Scipy's bandwidth uses the standard deviation with N - 1.
    scale = math.sqrt(399 / 400) * len(values) ** -0.2
    expected = stats.gaussian_kde(values, bw_method=scale)(grid)
    np.testing.assert_allclose(kernel_density(values, grid), expected, atol=2e-3)


def test_density_of_one_value_is_a_peak_of_three_steps():
    grid = np.linspace(-1.0, 1.0, 201)
    found = kernel_density([0.0], grid)
    np.testing.assert_allclose(found, stats.norm(0.0, 0.03).pdf(grid), atol=1e-9)
