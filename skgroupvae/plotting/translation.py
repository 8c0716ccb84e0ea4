"""Rows of one group translated into another (Figures 3 and 4 of the CxVAE paper)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_regressor
from sklearn.utils import _safe_indexing

from skgroupvae.plotting._estimators import split_labels
from skgroupvae.plotting._inputs import (
    column_position,
    factorize,
    finite_column,
    table_column,
)
from skgroupvae.plotting._style import COLORS, DARK, GREY, Display, finish
from skgroupvae.plotting.densities import density, density_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["TranslationDisplay", "plot_translation"]

# Translation lines drawn at most: more make a grey block that shows nothing.
_MAX_LINES = 200
# The source's base line stands this far above 0, that of the others as far below.
_GAP = 0.6


@dataclass(kw_only=True, eq=False, repr=False)
class TranslationDisplay(Display):
    """Rows of a source group and their translation into a target group (Figures 3 and 4 of the CxVAE paper).

    The source's density stands above and those of the target and of the translated rows hang below. A grey
    line joins each source row to its translation. In a good translation the lines do not cross, as the
    instance code is kept, and the two densities below agree, as the group code is the target's.

    Make one with :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    source : ndarray of shape (n_rows,)
        Rows of the source group, in the units of the axis.
    target : ndarray of shape (n_target_rows,)
        Rows of the target group.
    translated : ndarray of shape (n_rows,)
        The rows of `source`, in the same order, translated.
    labels : tuple of three str
        What the legend calls the source, the target and the translated rows.
    name : str or None
        What is drawn: the default label of the horizontal axis.

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
    >>> from skgroupvae.plotting import TranslationDisplay
    >>> data = make_exam_scores(20, random_state=0)
    >>> model = GroupVAE(max_epochs=2, random_state=0).fit(data.X, groups=data.groups)
    >>> display = TranslationDisplay.from_estimator(
    ...     model, data.X, groups=data.groups, source_group=0, target_group=7, xlabel="score / points"
    ... )
    >>> display.translated.shape == display.source.shape
    True
    """

    source: NDArray[np.float64]
    target: NDArray[np.float64]
    translated: NDArray[np.float64]
    labels: tuple[str, str, str] = ("source", "target", "translated")
    name: str | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        groups: Iterable[Hashable] | None = None,
        source_group: Hashable,
        target_group: Hashable,
        column: Hashable = None,
        **options: Any,
    ) -> Self:
        """Translate the rows of one group into another and draw them.

        Parameters
        ----------
        estimator : fitted GroupVAE or CxVAERegressor
            It has seen both groups.
        X : array-like or DataFrame of shape (n_rows, n_features)
            Table with the rows of both groups, and others perhaps.
        y : array-like of shape (n_rows,), optional
            Outcomes, for a regressor; else ignored.
        groups : array-like of shape (n_rows,), optional
            Group label of each row; None takes the estimator's `group_column`.
        source_group, target_group : label
            From where to where.
        column : name or position, optional
            The column of X to draw, where there are several; a regressor's outcome needs none.
        **options
            Passed to :meth:`plot`: `ax`, `xlabel`, `ylabel`.

        Returns
        -------
        display : TranslationDisplay

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If a group has no rows, the outcomes are missing, or the column is not one of X.
        """
        cls._check_estimator(estimator, "translate")
        estimator, X, groups = split_labels(estimator, X, groups)
        codes, distinct = factorize(groups, len(X))
        here = _rows_of(source_group, codes, distinct, "source_group")
        there = _rows_of(target_group, codes, distinct, "target_group")
        between = {"source_group": source_group, "target_group": target_group}
        if is_regressor(estimator):
            values, name = finite_column(y, "y", len(X))
            moved = estimator.translate(_safe_indexing(X, here), values[here], **between)
        else:
            position = column_position(X, column)
            values, name = finite_column(table_column(X, position), "X")
            moved = table_column(estimator.translate(_safe_indexing(X, here), **between), position)
        display = cls(
            source=values[here],
            target=values[there],
            translated=finite_column(moved, "translated")[0],
            labels=(f"source: {source_group}", f"target: {target_group}", "translated"),
            name=name,
        )
        return display.plot(**options)

    @classmethod
    def from_predictions(
        cls,
        source: Any,
        target: Any,
        translated: Any,
        *,
        labels: tuple[str, str, str] = ("source", "target", "translated"),
        **options: Any,
    ) -> Self:
        """Draw rows and their translation.

        Parameters
        ----------
        source : array-like, Series or DataFrame of shape (n_rows,) or (n_rows, 1)
            Rows of the source group, in the units of the axis.
        target : array-like, Series or DataFrame of shape (n_target_rows,) or (n_target_rows, 1)
            Rows of the target group.
        translated : array-like, Series or DataFrame of shape (n_rows,) or (n_rows, 1)
            The rows of `source`, in the same order, translated.
        labels : tuple of three str
            What the legend calls the source, the target and the translated rows.
        **options
            Passed to :meth:`plot`: `ax`, `xlabel`, `ylabel`.

        Returns
        -------
        display : TranslationDisplay

        Raises
        ------
        ValueError
            If an argument has more than one column, is empty or not finite, or `source` and `translated`
            differ in length.
        """
        before, name = finite_column(source, "source")
        wanted, _ = finite_column(target, "target")
        after, _ = finite_column(translated, "translated")
        if before.shape != after.shape:
            raise ValueError(
                f"translated has {len(after)} rows but source has {len(before)}; "
                "pass the translation of each row"
            )
        if len(labels) != 3:
            raise ValueError(f"labels must name source, target and translated, got {len(labels)} labels")
        display = cls(source=before, target=wanted, translated=after, labels=labels, name=name)
        return display.plot(**options)

    def plot(self, ax: Axes | None = None, *, xlabel: str | None = None, ylabel: str | None = None) -> Self:
        """Draw.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw; None makes a new figure.
        xlabel, ylabel : str, optional
            Labels of the axes, with the unit; None takes the column's name and "density".

        Returns
        -------
        display : TranslationDisplay
        """
        ax = self._start(ax)
        self._draw_rows(ax)
        self._draw_densities(ax)
        finish(ax, xlabel, ylabel, self.name or "value", "density")
        ax.set_yticks([])
        ax.margins(x=0)
        ax.legend(frameon=False)
        return self

    def _draw_rows(self, ax: Axes) -> None:
        """A line from each row to its translation, with a tick at both ends."""
        chosen = np.unique(np.linspace(0, len(self.source) - 1, _MAX_LINES).round().astype(int))
        order = np.argsort(self.source, kind="stable")[chosen]
        ends = np.stack([self.source[order], self.translated[order]])
        heights = np.array([[_GAP], [-_GAP]])
        ax.plot(ends, heights, color=GREY, linewidth=0.6, zorder=1)
        for end, height in zip(ends, heights, strict=True):
            ax.scatter(end, np.repeat(height, len(end)), s=8, marker="|", color=DARK, linewidth=0.8, zorder=2)

    def _draw_densities(self, ax: Axes) -> None:
        samples = (self.source, self.target, self.translated)
        grid = density_grid(*samples)
        above, below, moved = (density(sample, grid) for sample in samples)
        # The halves have a height of 1 each, so that a narrow target does not flatten the source; the two
        # densities below share one scale, as they are there to be compared.
        lowest = max(below.max(), moved.max())
        curves = (
            (above / above.max(), _GAP, "-", COLORS[0], 0.2),
            (-below / lowest, -_GAP, "--", "black", 0.0),
            (-moved / lowest, -_GAP, "-", COLORS[2], 0.2),
        )
        for (height, base, style, color, alpha), label in zip(curves, self.labels, strict=True):
            # Where a density is next to nothing its line would only thicken the base line.
            line = np.where(np.abs(height) > 2e-3, base + height, np.nan)
            ax.plot(grid, line, color=color, linestyle=style, linewidth=1.8, label=label, zorder=3)
            ax.fill_between(grid, base, base + height, color=color, alpha=alpha, linewidth=0, zorder=0)
            ax.axhline(base, color=GREY, linewidth=0.6, zorder=0)


def plot_translation(
    source: Any,
    target: Any,
    translated: Any,
    *,
    ax: Axes | None = None,
    xlabel: str | None = None,
    labels: tuple[str, str, str] = ("source", "target", "translated"),
) -> Axes:
    """Axes of :meth:`TranslationDisplay.from_predictions`, which has the same arguments."""
    return TranslationDisplay.from_predictions(
        source, target, translated, labels=labels, ax=ax, xlabel=xlabel
    ).ax_


def _rows_of(
    label: Hashable, codes: NDArray[np.intp], distinct: list[Hashable], name: str
) -> NDArray[np.intp]:
    """Positions of the rows with a label."""
    if label not in distinct:
        raise ValueError(
            f"{name} {label!r} has no rows in groups; pass one of {distinct[:5]} or add its rows"
        )
    return np.flatnonzero(codes == distinct.index(label))
