"""Densities of one column by group (Figure 2 of the CxVAE paper)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any

from skgroupvae.diagnostics import density_grid, kernel_density
from skgroupvae.plotting._inputs import check_count, factorize, finite_column
from skgroupvae.plotting._style import curve_styles, finish, legend_beside, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_group_densities"]


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
        One number per row, in the units of the axis.
    groups : array-like of shape (n_rows,)
        Group label of each row.
    ax : Axes, optional
        Where to draw; None makes a new figure.
    xlabel : str, optional
        Label of the horizontal axis; None takes the name of the Series or column, if it has one.
    max_groups : int, default=6
        Draw at most this many groups, in order of their first appearance in `groups`.

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
    index, labels = factorize(groups, len(values))
    check_count(max_groups, "max_groups")
    ax = new_axes(ax)
    grid = density_grid(values[index < max_groups])
    for group, (color, style) in zip(range(min(max_groups, len(labels))), curve_styles(), strict=False):
        own = values[index == group]
        label = f"{labels[group]} ({len(own)} {'row' if len(own) == 1 else 'rows'})"
        ax.plot(grid, kernel_density(own, grid), color=color, linestyle=style, label=label)
    left_out = len(labels) - max_groups
    finish(ax, xlabel, None, name or "value", "density")
    ax.margins(x=0)
    legend_beside(ax, "group" if left_out <= 0 else f"group ({left_out} more not shown)")
    return ax
