"""Rows of one group translated into another (Figures 3 and 4 of the CxVAE paper)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_regressor
from sklearn.utils import _safe_indexing

from skgroupvae.diagnostics import density_grid, kernel_density
from skgroupvae.plotting._estimators import one_outcome, outcome_position, read_table, without_labels
from skgroupvae.plotting._inputs import (
    column_position,
    factorize,
    finite_column,
    table_column,
)
from skgroupvae.plotting._style import COLORS, DARK, GRAY, Display, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["TranslationDisplay", "plot_translation"]

# Most translation lines drawn: with more they merge into a gray block.
_MAX_LINES = 200
# Distance of the base line of the source above 0, and of the others below 0.
_GAP = 0.6


@dataclass(kw_only=True, eq=False, repr=False)
class TranslationDisplay(Display):
    """Rows of a source group and their translation into a target group (Figures 3 and 4 of the CxVAE paper).

    The density of the source is above, and those of the target and of the translated rows are below, upside
    down. A gray line joins each source row to its translation. In a good translation the lines do not cross,
    because instance codes are kept, and the two densities below agree, because the group code is that of the
    target.

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
        Name of the values: the default label of the horizontal axis.

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
            Fitted on both groups.
        X : array-like or DataFrame of shape (n_rows, n_features)
            Table with the rows of both groups, and possibly others.
        y : array-like of shape (n_rows,) or (n_rows, n_outcomes), optional
            Outcomes, for a regressor; else ignored. None takes the column that the formula names.
        groups : array-like of shape (n_rows,), optional
            Group label of each row. None takes the estimator's `group_column`, or that of its formula.
        source_group, target_group : label
            The group of the rows, and the group to translate them into.
        column : name or position, optional
            The column of X or, for a regressor, the outcome in y, where there are several.
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
        columns, y, by_row, _ = read_table(estimator, X, y, groups)
        index, distinct = factorize(by_row, len(X))
        here = _rows_of(source_group, index, distinct, "source_group")
        there = _rows_of(target_group, index, distinct, "target_group")
        between = {"source_group": source_group, "target_group": target_group}
        if is_regressor(estimator):
            chosen = outcome_position(estimator, y, column)
            values, name = finite_column(y if chosen is None else table_column(y, chosen), "y", len(X))
            own = values[here] if chosen is None else _safe_indexing(y, here)
            moved = one_outcome(estimator.translate(_safe_indexing(X, here), own, **between), chosen)
        else:
            position = column_position(columns, column)
            values, name = finite_column(table_column(columns, position), "X")
            translated = estimator.translate(_safe_indexing(X, here), **between)
            moved = table_column(without_labels(estimator, translated), position)
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
        """Draw a line from each row to its translation, with a tick at both ends."""
        chosen = np.unique(np.linspace(0, len(self.source) - 1, _MAX_LINES).round().astype(int))
        order = np.argsort(self.source, kind="stable")[chosen]
        ends = np.stack([self.source[order], self.translated[order]])
        heights = np.array([[_GAP], [-_GAP]])
        ax.plot(ends, heights, color=GRAY, linewidth=0.6, zorder=1)
        for end, height in zip(ends, heights, strict=True):
            ax.scatter(end, np.repeat(height, len(end)), s=8, marker="|", color=DARK, linewidth=0.8, zorder=2)

    def _draw_densities(self, ax: Axes) -> None:
        samples = (self.source, self.target, self.translated)
        grid = density_grid(*samples)
        above, below, moved = (kernel_density(sample, grid) for sample in samples)
        # Each half has a height of 1, so that a narrow target does not flatten the source; the two densities
        # below share one scale, so that they can be compared.
        lowest = max(below.max(), moved.max())
        curves = (
            (above / above.max(), _GAP, "-", COLORS[0], 0.2),
            (-below / lowest, -_GAP, "--", "black", 0.0),
            (-moved / lowest, -_GAP, "-", COLORS[2], 0.2),
        )
        for (height, base, style, color, alpha), label in zip(curves, self.labels, strict=True):
            # Where a density is close to 0 its line would only thicken the base line.
            line = np.where(np.abs(height) > 2e-3, base + height, np.nan)
            ax.plot(grid, line, color=color, linestyle=style, linewidth=1.8, label=label, zorder=3)
            ax.fill_between(grid, base, base + height, color=color, alpha=alpha, linewidth=0, zorder=0)
            ax.axhline(base, color=GRAY, linewidth=0.6, zorder=0)


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
    label: Hashable, index: NDArray[np.intp], distinct: list[Hashable], name: str
) -> NDArray[np.intp]:
    """Positions of the rows with a label."""
    if label not in distinct:
        raise ValueError(
            f"{name} {label!r} has no rows in groups; pass one of {distinct[:5]} or add its rows"
        )
    return np.flatnonzero(index == distinct.index(label))
