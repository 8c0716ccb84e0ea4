"""Stacked intervals, one line per group: what caterpillar plots and predictive checks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skgroupvae.plotting._inputs import check_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_intervals", "figure_height", "name_groups", "point_size"]

# Inches: height of a name; of a new figure, per group and for the rest; and of the tallest figure.
_LINE, _PER_GROUP, _REST, _TALLEST = 0.15, 0.2, 1.3, 8.0


def figure_height(n_groups: int) -> float:
    """Height of a new figure in inches at which names do not overlap."""
    return float(np.clip(_REST + _PER_GROUP * n_groups, 2.5, _TALLEST))


def draw_intervals(
    ax: Axes, low: NDArray[np.float64], high: NDArray[np.float64], color: Any, label: str = ""
) -> None:
    """One horizontal line per group, the first at the bottom; the more groups, the thinner the lines."""
    width = float(np.clip(120.0 / len(low), 0.4, 1.6))
    ax.hlines(np.arange(len(low)), low, high, colors=color, linewidth=width, label=label, zorder=2)


def point_size(n_groups: int) -> float:
    """Area of a marker in square points: the more groups, the smaller."""
    return float(np.clip(1200.0 / n_groups, 2.0, 22.0))


def name_groups(ax: Axes, labels: Sequence[Any], max_labels: int | None) -> str:
    """Put names on the vertical axis, at most `max_labels` or as many as fit; returns the axis label."""
    if max_labels is None:
        height = ax.get_window_extent().height / ax.figure.dpi
        max_labels = max(1, int(height / _LINE))
    step = -(-len(labels) // check_count(max_labels, "max_labels"))
    ax.set_yticks(np.arange(0, len(labels), step), [str(label) for label in labels[::step]])
    ax.tick_params(axis="y", length=0, labelsize="small")
    ax.set_ylim(-0.8, len(labels) - 0.2)
    return "group" if step == 1 else f"group ({len(labels):,} in all, 1 in {step} labeled)"
