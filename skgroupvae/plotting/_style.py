"""What all plots share: palette, axes, and the base class of the displays.

Everything shown by color is also shown by line style, marker or lightness, so that plots can be read in gray.
matplotlib is imported when something is drawn, and none of its global settings is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import TYPE_CHECKING, Any

from sklearn.utils.validation import check_is_fitted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = [
    "BAND",
    "COLORS",
    "DARK",
    "GRAY",
    "LINE_STYLES",
    "Display",
    "curve_styles",
    "finish",
    "legend_beside",
    "point_styles",
]

# Okabe and Ito's palette, ordered so that neighbors also differ in lightness.
COLORS = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#000000")
LINE_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
MARKERS = ("o", "s", "^", "D", "v", "X")
GRAY, DARK = "0.7", "0.35"
# Width of a new figure whose height is given, in inches.
_WIDTH = 6.4
# Area of a point in a legend, in square points.
_LEGEND_AREA = 22.0
# The region where values of a calibrated model are expected, drawn behind everything else.
BAND: dict[str, Any] = {"color": "0.87", "linewidth": 0, "zorder": 0}


class Display:
    """Base class of the displays: numbers as plain attributes, and `plot` to draw them.

    Attributes
    ----------
    ax_ : Axes
        Where `plot` drew last.
    figure_ : Figure
        The figure of `ax_`.
    """

    ax_: Axes
    figure_: Figure | SubFigure

    @classmethod
    def _check_estimator(cls, estimator: Any, *needed: str) -> None:
        """Raise an error if the estimator cannot be drawn, before anything slow is computed."""
        import_pyplot()
        check_is_fitted(estimator)
        missing = [name for name in needed if not hasattr(estimator, name)]
        if missing:
            raise TypeError(
                f"estimator {type(estimator).__name__} has no {missing[0]}, which {cls.__name__} needs; "
                "pass one that has it, such as CxVAERegressor"
            )

    def _start(self, ax: Axes | None, height: float | None = None) -> Axes:
        """The axes to draw on: those given, or those of a new figure (of a height in inches)."""
        self.ax_ = new_axes(ax, height)
        self.figure_ = self.ax_.figure
        return self.ax_


def curve_styles() -> Iterator[tuple[str, Any]]:
    """Colors and line styles of curves, repeated forever."""
    return cycle(zip(COLORS, LINE_STYLES, strict=True))


def point_styles() -> Iterator[tuple[str, str]]:
    """Colors and markers, repeated forever."""
    return cycle(zip(COLORS, MARKERS, strict=True))


def new_axes(ax: Axes | None, height: float | None = None) -> Axes:
    """The axes given, or those of a new figure."""
    plt = import_pyplot()
    if ax is None:
        size = {} if height is None else {"figsize": (_WIDTH, height)}
        return plt.subplots(layout="constrained", **size)[1]
    if not hasattr(ax, "get_xlabel"):
        raise TypeError(
            f"ax must be a matplotlib Axes or None, got {type(ax).__name__}; pass the second value "
            "that plt.subplots() returns"
        )
    return ax


def finish(ax: Axes, xlabel: str | None, ylabel: str | None, default_x: str, default_y: str) -> None:
    """Label the axes (None takes the default) and remove the top and right spines."""
    ax.set_xlabel(default_x if xlabel is None else xlabel)
    ax.set_ylabel(default_y if ylabel is None else ylabel)
    ax.spines[["top", "right"]].set_visible(False)


def legend_beside(ax: Axes, title: str | None = None, point_area: float | None = None) -> None:
    """Legend to the right of the axes, where it hides nothing, with points large enough to see."""
    scale = 1.0 if point_area is None else max(1.0, (_LEGEND_AREA / point_area) ** 0.5)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    legend = ax.legend(title=title, frameon=False, alignment="left", markerscale=scale, **place)
    for handle in legend.legend_handles:
        if handle is not None and point_area is not None:
            handle.set_alpha(1.0)


def import_pyplot() -> Any:
    """matplotlib.pyplot, imported only when something is drawn."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError("plots need matplotlib; install it with: pip install 'skgroupvae[plot]'") from None
    return plt
