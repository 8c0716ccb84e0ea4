"""Maps of group and instance codes, colored by what is known about the rows."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skgroupvae.plotting._color import categories, color_by_group, is_number, point_style, read_color
from skgroupvae.plotting._estimators import codes_of, read_table
from skgroupvae.plotting._inputs import check_length, factorize
from skgroupvae.plotting._style import COLORS, Display, finish, legend_beside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LatentMapDisplay"]

_KINDS = {"u": "group code", "v": "instance code"}


@dataclass(kw_only=True, eq=False, repr=False)
class LatentMapDisplay(Display):
    """Map of two codes, or plot of one code, colored by a number or a category.

    A number colors the map from dark to light. The most frequent categories have a color and a marker each.
    One code alone is drawn against the number, as a strip per category with a line at its median, or as a
    histogram.

    The sign and rotation of codes are not identified: only their distances from each other have a meaning.

    Make one with :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    codes : ndarray of shape (n_points, 1) or (n_points, 2)
        Codes to draw: one point per group for u, one point per row for v.
    names : sequence of str
        Names of the codes: the default labels of the axes.
    color : Series of length n_points or None
        Number or category of each point; its name is the title of the legend.

    Attributes
    ----------
    ax_ : Axes
        Where `plot` drew last.
    figure_ : Figure
        The figure of `ax_`.

    Examples
    --------
    >>> from skgroupvae import GroupVAE
    >>> from skgroupvae.datasets import make_exam_scores
    >>> from skgroupvae.plotting import LatentMapDisplay
    >>> data = make_exam_scores(20, random_state=0)
    >>> model = GroupVAE(max_epochs=2, random_state=0).fit(data.X, groups=data.groups)
    >>> display = LatentMapDisplay.from_estimator(model, data.X, groups=data.groups, color=data.X[:, 0])
    >>> display.codes.shape, display.names
    ((20, 2), ('group code u0', 'group code u1'))
    """

    codes: NDArray[np.float64]
    names: Sequence[str]
    color: pd.Series | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        groups: Iterable[Hashable] | None = None,
        kind: str = "u",
        codes: Sequence[int] | None = None,
        color: Any = None,
        **options: Any,
    ) -> Self:
        """Draw the codes that an estimator infers from rows.

        Parameters
        ----------
        estimator : fitted GroupVAE or CxVAERegressor
            Has the method `transform`.
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows.
        y : array-like of shape (n_rows,) or (n_rows, n_outcomes), optional
            Outcomes, for a regressor; else ignored. None takes the column that the formula names.
        groups : array-like of shape (n_rows,), optional
            Group label of each row. None takes the estimator's `group_column`, or that of its formula.
        kind : {"u", "v"}, default="u"
            Group codes, one point per group, or instance codes, one point per row.
        codes : sequence of one or two int, optional
            Which codes; None takes the first two, or the only one.
        color : str or array-like of shape (n_rows,), optional
            Name of a column of X, or one number or category per row. A group gets the mean of its numbers or
            its most frequent category.
        **options
            Passed to :meth:`plot`: `ax`, `xlabel`, `ylabel`.

        Returns
        -------
        display : LatentMapDisplay

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If `kind`, `codes` or `color` cannot be used, or labels are missing.
        """
        cls._check_estimator(estimator, "transform")
        if kind not in _KINDS:
            raise ValueError(f"kind must be 'u' (group codes) or 'v' (instance codes), got {kind!r}")
        _, y, by_row, groups = read_table(estimator, X, y, groups)
        of_rows, _ = factorize(by_row, len(X))
        shade = read_color(color, X)
        points = codes_of(estimator, X, y, groups)[0 if kind == "u" else 1]
        if kind == "u":
            first = np.unique(of_rows, return_index=True)[1]
            points, shade = points[first], None if shade is None else color_by_group(shade, of_rows)
        chosen = list(range(min(2, points.shape[1]))) if codes is None else list(codes)
        if len(chosen) not in (1, 2) or not set(chosen) <= set(range(points.shape[1])):
            raise ValueError(f"codes must be one or two of 0 to {points.shape[1] - 1}, got {codes!r}")
        names = [f"{_KINDS[kind]} {kind}{j}" for j in chosen]
        return cls.from_predictions(points[:, chosen], names=names, color=shade, **options)

    @classmethod
    def from_predictions(
        cls, codes: Any, *, names: Sequence[str] | None = None, color: Any = None, **options: Any
    ) -> Self:
        """Draw codes.

        Parameters
        ----------
        codes : array-like or DataFrame of shape (n_points,), (n_points, 1) or (n_points, 2)
            Codes as returned by `transform`, or one or two columns of them.
        names : sequence of str, optional
            Labels of the axes; None takes the columns of a DataFrame, else "code 0" and "code 1".
        color : array-like of shape (n_points,), optional
            One number or category per point.
        **options
            Passed to :meth:`plot`: `ax`, `xlabel`, `ylabel`.

        Returns
        -------
        display : LatentMapDisplay

        Raises
        ------
        ValueError
            If there are more than two codes, one is not finite, or the arguments differ in length.
        """
        array = np.asarray(codes, dtype=np.float64)
        array = array[:, None] if array.ndim == 1 else array
        if array.ndim != 2 or array.shape[1] not in (1, 2) or len(array) == 0:
            raise ValueError(f"codes must have one or two columns and a row, got shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError("codes contains NaN or infinite values; drop those rows first")
        if names is None:
            names = getattr(codes, "columns", [f"code {j}" for j in range(array.shape[1])])
        check_length(names, array.shape[1], "names", "the transpose of codes")
        shade = read_color(color)
        if shade is not None:
            check_length(shade, len(array), "color", "codes")
        return cls(codes=array, names=tuple(map(str, names)), color=shade).plot(**options)

    def plot(self, ax: Axes | None = None, *, xlabel: str | None = None, ylabel: str | None = None) -> Self:
        """Draw.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw; None makes a new figure.
        xlabel, ylabel : str, optional
            Labels of the axes; None takes the names of the codes.

        Returns
        -------
        display : LatentMapDisplay
        """
        ax = self._start(ax)
        if self.codes.shape[1] == 2:
            self._draw_map(ax)
            across = self.names[1]
        else:
            across = self._draw_one(ax)
        finish(ax, xlabel, ylabel, self.names[0], across)
        return self

    def _draw_map(self, ax: Axes) -> None:
        x, y = self.codes.T
        if self.color is None:
            ax.scatter(x, y, color=COLORS[0], **point_style(len(x)))
        elif is_number(self.color):
            points = ax.scatter(x, y, c=self.color, cmap="viridis", **point_style(len(x)))
            ax.figure.colorbar(points, ax=ax, label=str(self.color.name))
        else:
            for label, which, style in categories(self.color):
                ax.scatter(x[which], y[which], label=label, **style)
            legend_beside(ax, str(self.color.name), point_area=style["s"])

    def _draw_one(self, ax: Axes) -> str:
        """Draw one code; returns the label of the vertical axis."""
        x = self.codes[:, 0]
        if self.color is None:
            ax.hist(x, bins="auto", color=COLORS[0], edgecolor="white", linewidth=0.5)
            return "count"
        if is_number(self.color):
            ax.scatter(x, self.color, color=COLORS[0], **point_style(len(x)))
            return str(self.color.name)
        heights = np.random.default_rng(0).uniform(-0.3, 0.3, len(x))
        strips = list(categories(self.color))
        for height, (_, which, style) in enumerate(strips):
            ax.scatter(x[which], height + heights[which], **style)
            ax.plot([np.median(x[which])] * 2, [height - 0.4, height + 0.4], color="black", linewidth=2.0)
        ax.set_yticks(range(len(strips)), [label for label, _, _ in strips])
        return str(self.color.name)
