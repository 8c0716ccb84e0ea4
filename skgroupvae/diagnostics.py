"""Statistics that judge a fit and its predictions: arrays in, arrays out.

Nothing here knows an estimator or a figure: :mod:`skgroupvae.plotting` draws what these functions return. The
label of a row is given as `index`: the position of its group, from 0 to n_groups - 1, each of which has a row
(as from ``pandas.factorize``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, norm

__all__ = [
    "GROUP_STATISTICS",
    "binomial_band",
    "central_interval",
    "density_grid",
    "group_means",
    "group_statistic",
    "interval_coverage",
    "kernel_density",
    "normal_interval",
    "pit_histogram",
    "posterior_predictive_p_values",
]

GROUP_STATISTICS = ("mean", "median", "std", "var", "min", "max")


# --- calibration


def pit_histogram(pit: ArrayLike, n_bins: int = 20) -> NDArray[np.float64]:
    r"""Histogram of probability integral transforms, as a density.

    With N values, of which :math:`c_b` lie in bin b of B equal bins on [0, 1], the height of the bin is
    :math:`B c_b / N`. Calibrated predictions have a height of 1 everywhere, up to chance.

    Parameters
    ----------
    pit : array-like of shape (n_rows,)
        Probability integral transforms F(y), between 0 and 1.
    n_bins : int, default=20
        Number of bins.

    Returns
    -------
    heights : ndarray of shape (n_bins,)
        Density in each bin.

    References
    ----------
    Gneiting, T., Balabdaoui, F., Raftery, A. E. (2007). Probabilistic forecasts, calibration and sharpness.
    J. R. Stat. Soc. B 69(2).

    Examples
    --------
    >>> from skgroupvae.diagnostics import pit_histogram
    >>> pit_histogram([0.1, 0.2, 0.4, 0.9], n_bins=2)
    array([1.5, 0.5])
    """
    values = np.asarray(pit, dtype=np.float64)
    return np.histogram(values, bins=n_bins, range=(0.0, 1.0))[0] * n_bins / len(values)


def interval_coverage(pit: ArrayLike, nominal: ArrayLike) -> NDArray[np.float64]:
    r"""Share of rows inside their central predictive intervals, at each nominal level.

    The central interval of level L covers a row if its probability integral transform F(y) satisfies
    :math:`|F(y) - 1/2| \le L / 2`.

    Parameters
    ----------
    pit : array-like of shape (n_rows,)
        Probability integral transforms, between 0 and 1.
    nominal : array-like of shape (n_levels,)
        Levels of the intervals, between 0 and 1.

    Returns
    -------
    coverage : ndarray of shape (n_levels,)
        Share of rows covered.

    Examples
    --------
    >>> from skgroupvae.diagnostics import interval_coverage
    >>> interval_coverage([0.1, 0.3, 0.5, 0.6], [0.5, 0.9])
    array([0.75, 1.  ])
    """
    distance = np.sort(np.abs(np.asarray(pit, dtype=np.float64) - 0.5))
    half = 0.5 * np.asarray(nominal, dtype=np.float64)
    return np.searchsorted(distance, half, side="right") / len(distance)


def binomial_band(
    n_rows: int, probability: ArrayLike, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Band in which the share of rows with some property lies by chance.

    The number of rows is binomial if each has the property independently and with the probability given. Rows
    of one group are not independent of each other if the group is new, so that with few groups the shares
    leave the band more often. A bar of :func:`pit_histogram` has probability ``1 / n_bins`` and its band is
    `n_bins` times this one; an entry of :func:`interval_coverage` has the nominal level as its probability.

    Parameters
    ----------
    n_rows : int
        Number of rows.
    probability : float or array-like of shape (n_shares,)
        Probability of the property.
    level : float, default=0.95
        Probability of the band, for each share separately; the two tails are equal.

    Returns
    -------
    lower, upper : float or ndarray of shape (n_shares,)
        Ends of the band, as shares.

    Examples
    --------
    >>> from skgroupvae.diagnostics import binomial_band
    >>> lower, upper = binomial_band(100, [0.5, 0.9])
    >>> lower.round(2), upper.round(2)
    (array([0.4 , 0.84]), array([0.6 , 0.95]))
    """
    lower, upper = binom.interval(level, n_rows, probability)
    return lower / n_rows, upper / n_rows


# --- groups


def group_means(values: ArrayLike, index: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of the rows of each group, and their number.

    Parameters
    ----------
    values : array-like of shape (n_rows,)
        One number per row.
    index : array-like of int of shape (n_rows,)
        Group of each row.

    Returns
    -------
    means : ndarray of shape (n_groups,)
        Mean of each group.
    n_rows : ndarray of shape (n_groups,)
        Number of rows of each group.

    Examples
    --------
    >>> from skgroupvae.diagnostics import group_means
    >>> group_means([1.0, 2.0, 6.0], [0, 0, 1])
    (array([1.5, 6. ]), array([2., 1.]))
    """
    n_rows = np.bincount(index).astype(np.float64)
    return np.bincount(index, values) / n_rows, n_rows


def group_statistic(
    values: ArrayLike, index: ArrayLike, statistic: str | Callable[[NDArray[np.float64]], float] = "mean"
) -> NDArray[np.float64]:
    """A statistic of the rows of each group, column by column.

    Parameters
    ----------
    values : array-like of shape (n_rows, n_columns)
        Rows; the columns may be draws.
    index : array-like of int of shape (n_rows,)
        Group of each row.
    statistic : {"mean", "median", "std", "var", "min", "max"} or callable, default="mean"
        "std" and "var" divide by the number of rows minus 1, and are NaN for a single row. A callable takes
        an array of shape (n_rows_of_group,) and returns a number.

    Returns
    -------
    by_group : ndarray of shape (n_groups, n_columns)
        The statistic of each group and column.

    Raises
    ------
    ValueError
        If the statistic is unknown.

    Examples
    --------
    >>> from skgroupvae.diagnostics import group_statistic
    >>> group_statistic([[1.0, 5.0], [2.0, 5.0], [6.0, 7.0]], [0, 0, 1], "max")
    array([[2., 5.],
           [6., 7.]])
    """
    if not callable(statistic) and statistic not in GROUP_STATISTICS:
        raise ValueError(f"statistic must be one of {GROUP_STATISTICS} or a callable, got {statistic!r}")
    table, index = np.asarray(values, dtype=np.float64), np.asarray(index)
    table, sizes = table[np.argsort(index, kind="stable")], np.bincount(index)
    starts = np.cumsum(sizes) - sizes
    if callable(statistic):
        groups = np.split(table, starts[1:])
        return np.array([[statistic(column) for column in own.T] for own in groups], dtype=np.float64)
    if statistic == "median":
        return np.stack([np.median(own, axis=0) for own in np.split(table, starts[1:])])
    if statistic in ("min", "max"):
        return {"min": np.minimum, "max": np.maximum}[statistic].reduceat(table, starts, axis=0)
    means = np.add.reduceat(table, starts, axis=0) / sizes[:, None]
    if statistic == "mean":
        return means
    squares = np.add.reduceat((table - np.repeat(means, sizes, axis=0)) ** 2, starts, axis=0)
    divisor = np.where(sizes > 1, sizes - 1.0, np.nan)[:, None]
    return squares / divisor if statistic == "var" else np.sqrt(squares / divisor)


# --- draws and posteriors


def central_interval(
    draws: ArrayLike, level: float = 0.9
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Central interval and median of draws.

    Parameters
    ----------
    draws : array-like of shape (n_groups, n_samples)
        Draws of one number per group.
    level : float, default=0.9
        Probability of the interval; the two tails are equal.

    Returns
    -------
    lower, median, upper : ndarray of shape (n_groups,)
        Quantiles of the draws at ``(1 - level) / 2``, 1/2 and ``(1 + level) / 2``.

    Examples
    --------
    >>> from skgroupvae.diagnostics import central_interval
    >>> central_interval([[0.0, 1.0, 2.0, 3.0, 4.0]], level=0.5)
    (array([1.]), array([2.]), array([3.]))
    """
    half = 0.5 * level
    lower, median, upper = np.quantile(
        np.asarray(draws, dtype=np.float64), [0.5 - half, 0.5, 0.5 + half], axis=1
    )
    return lower, median, upper


def posterior_predictive_p_values(observed: ArrayLike, drawn: ArrayLike) -> NDArray[np.float64]:
    r"""Posterior predictive p-value of a statistic of each group.

    .. math:: p = P(T^\mathrm{rep} > T) + \tfrac12 P(T^\mathrm{rep} = T)

    where T is the observed statistic and the probability is the share of draws. Values near 0 or 1 say that
    the model does not reproduce the statistic. Equal values count half, so that a discrete statistic gives
    1/2 where model and data agree.

    Parameters
    ----------
    observed : array-like of shape (n_groups,)
        Statistic of the observed rows of each group.
    drawn : array-like of shape (n_groups, n_samples)
        The same statistic of rows that the model draws.

    Returns
    -------
    p_values : ndarray of shape (n_groups,)
        Between 0 and 1.

    References
    ----------
    Gelman, A., Meng, X.-L., Stern, H. (1996). Posterior predictive assessment of model fitness via realized
    discrepancies. Statistica Sinica 6(4).

    Examples
    --------
    >>> from skgroupvae.diagnostics import posterior_predictive_p_values
    >>> posterior_predictive_p_values([2.0, 9.0], [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    array([0.625, 0.   ])
    """
    statistic, draws = np.asarray(observed)[:, None], np.asarray(drawn)
    return (draws > statistic).mean(axis=1) + 0.5 * (draws == statistic).mean(axis=1)


def normal_interval(
    mean: ArrayLike, sd: ArrayLike, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Central intervals of normal distributions.

    Parameters
    ----------
    mean, sd : array-like of shape (n_groups,)
        Means and standard deviations.
    level : float, default=0.95
        Probability of the intervals.

    Returns
    -------
    lower, upper : ndarray of shape (n_groups,)
        ``mean - z * sd`` and ``mean + z * sd``, where z is the normal quantile at ``(1 + level) / 2``.

    Examples
    --------
    >>> from skgroupvae.diagnostics import normal_interval
    >>> lower, upper = normal_interval([0.0, 5.0], [1.0, 2.0])
    >>> lower.round(2), upper.round(2)
    (array([-1.96,  1.08]), array([1.96, 8.92]))
    """
    half = norm.ppf(0.5 + 0.5 * level) * np.asarray(sd, dtype=np.float64)
    center = np.asarray(mean, dtype=np.float64)
    return center - half, center + half


# --- densities


def density_grid(*samples: ArrayLike, n_points: int = 256) -> NDArray[np.float64]:
    """Evenly spaced points that cover all samples and the tails of their densities.

    Parameters
    ----------
    *samples : array-like of shape (n_rows,)
        Samples whose densities are to be compared; each may have its own number of rows.
    n_points : int, default=256
        Number of points.

    Returns
    -------
    grid : ndarray of shape (n_points,)
        From below the smallest to above the largest value, with a margin of 15% of the range.

    Examples
    --------
    >>> from skgroupvae.diagnostics import density_grid
    >>> density_grid([0.0, 10.0], n_points=3)
    array([-1.5,  5. , 11.5])
    """
    values = np.concatenate([np.asarray(sample, dtype=np.float64) for sample in samples])
    low, high = values.min(), values.max()
    margin = 0.15 * (high - low) or max(1.0, abs(high)) * 0.05
    return np.linspace(low - margin, high + margin, n_points)


def kernel_density(values: ArrayLike, grid: ArrayLike) -> NDArray[np.float64]:
    r"""Kernel density estimate on a grid, with normal kernels.

    The bandwidth is :math:`s N^{-1/5}` (Scott's rule) for N values of standard deviation s, but at least
    three steps of the grid, so that a single row or constant values give a narrow peak. Values are counted at
    the nearest grid point, so that 100,000 rows cost no more than 100.

    Parameters
    ----------
    values : array-like of shape (n_rows,)
        The sample.
    grid : array-like of shape (n_points,)
        Evenly spaced points that cover the values, as from :func:`density_grid`.

    Returns
    -------
    density : ndarray of shape (n_points,)
        Estimated density at each point.

    References
    ----------
    Scott, D. W. (1992). Multivariate Density Estimation. Wiley.

    Examples
    --------
    >>> import numpy as np
    >>> from skgroupvae.diagnostics import density_grid, kernel_density
    >>> values = np.random.default_rng(0).normal(size=1000)
    >>> grid = density_grid(values)
    >>> float((kernel_density(values, grid).sum() * (grid[1] - grid[0])).round(3))
    1.0
    """
    sample, grid = np.asarray(values, dtype=np.float64), np.asarray(grid, dtype=np.float64)
    step = grid[1] - grid[0]
    width = max(3.0 * step, sample.std() * len(sample) ** -0.2)
    counts = np.histogram(sample, np.append(grid, grid[-1] + step) - 0.5 * step)[0]
    kernel = np.exp(-0.5 * ((grid[:, None] - grid) / width) ** 2) / (width * np.sqrt(2.0 * np.pi))
    return counts @ kernel / len(sample)
