"""Densities of one column, by group (Figure 2 of the CxVAE paper)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skgroupvae.plotting._inputs import check_count, factorize, finite_column
from skgroupvae.plotting._style import curve_styles, finish, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["density", "density_grid", "plot_group_densities"]

_N_GRID = 256


def plot_group_densities(
    X: Any,
    groups: Iterable[Hashable],
    *,
    ax: Axes | None = None,
    xlabel: str | None = None,
    max_groups: int = 6,
) -> Axes:
    """Density of one column in each group (Figure 2 of the CxVAE paper).

    Parameters
    ----------
    X : array-like, Series or DataFrame of shape (n_rows,) or (n_rows, 1)
        One number a row, in the units of the axis.
    groups : array-like of shape (n_rows,)
        Group label of each row.
    ax : Axes, optional
        Where to draw; None makes a new figure.
    xlabel : str, optional
        Label of the horizontal axis; None takes the name of the Series or column, if there is one.
    max_groups : int, default=6
        Draw this many groups at most, the first to appear in `groups`.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If X has more than one column, is empty or not finite, or differs in length from `groups`.

    Examples
    --------
    >>> from skgroupvae.datasets import make_exam_scores
    >>> from skgroupvae.plotting import plot_group_densities
    >>> data = make_exam_scores(4, random_state=0)
    >>> ax = plot_group_densities(data.X, data.groups, xlabel="score / points")
    >>> len(ax.lines)
    4
    """
    values, name = finite_column(X, "X")
    codes, labels = factorize(groups, len(values))
    check_count(max_groups, "max_groups")
    ax = new_axes(ax)
    grid = density_grid(values[codes < max_groups])
    for code, (color, style) in zip(range(min(max_groups, len(labels))), curve_styles(), strict=False):
        own = values[codes == code]
        label = f"{labels[code]} ({len(own)} {'row' if len(own) == 1 else 'rows'})"
        ax.plot(grid, density(own, grid), color=color, linestyle=style, label=label)
    left_out = len(labels) - max_groups
    finish(ax, xlabel, None, name or "value", "density")
    ax.margins(x=0)
    ax.legend(title="group" if left_out <= 0 else f"group ({left_out} more not shown)", frameon=False)
    return ax


def density(values: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kernel density estimate on the grid, by normals of the width of Scott's rule."""
    step = grid[1] - grid[0]
    # A single row or constant values have no width by that rule: three steps of the grid make a narrow peak.
    width = max(3.0 * step, values.std() * len(values) ** -0.2)
    # Values are counted at the nearest grid point, so that 100,000 rows cost no more than 100.
    counts = np.histogram(values, np.append(grid, grid[-1] + step) - 0.5 * step)[0]
    kernel = np.exp(-0.5 * ((grid[:, None] - grid) / width) ** 2) / (width * np.sqrt(2.0 * np.pi))
    return counts @ kernel / len(values)


def density_grid(*samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points over all samples, with room for the tails of their densities."""
    values = np.concatenate(samples)
    low, high = values.min(), values.max()
    margin = 0.15 * (high - low) or max(1.0, abs(high)) * 0.05
    return np.linspace(low - margin, high + margin, _N_GRID)
