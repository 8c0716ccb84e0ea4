"""Shrinkage of the raw means of groups toward the overall mean."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_regressor

from skgroupvae.diagnostics import group_means
from skgroupvae.plotting._estimators import (
    expected_column,
    one_outcome,
    outcome_position,
    predict_new_group,
    read_table,
)
from skgroupvae.plotting._inputs import (
    check_length,
    column_position,
    factorize,
    finite_column,
    table_column,
)
from skgroupvae.plotting._style import COLORS, DARK, GRAY, Display, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ShrinkageDisplay"]

# Areas in square points of the markers of a group without rows and of the largest group.
_SMALLEST, _LARGEST = 8.0, 120.0


@dataclass(kw_only=True, eq=False, repr=False)
class ShrinkageDisplay(Display):
    """Raw means of groups against the means that a model infers.

    An arrow leads from the raw mean, on the diagonal, to the inferred mean. The fewer rows a group has, the
    more its mean is shrunk toward the overall mean (dashed). Arrows that lead away from the overall mean show
    that the model knows more about these groups than their means, such as a slope.

    Make one with :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    raw : ndarray of shape (n_groups,)
        Raw means, in the units of the axes.
    inferred : ndarray of shape (n_groups,)
        Means that the model infers.
    n_rows : ndarray of shape (n_groups,)
        Rows of each group.
    labels : list of length n_groups
        Labels of the groups.
    overall : float
        Overall mean.
    name : str
        What is averaged.

    Attributes
    ----------
    ax_ : Axes
        Where `plot` drew last.
    figure_ : Figure
        The figure of `ax_`.

    Examples
    --------
    >>> from skgroupvae import CxVAERegressor
    >>> from skgroupvae.datasets import make_exam_scores
    >>> from skgroupvae.plotting import ShrinkageDisplay
    >>> data = make_exam_scores(20, random_state=0)
    >>> model = CxVAERegressor(max_epochs=2, random_state=0)
    >>> model = model.fit(data.v[:, None], data.X[:, 0], groups=data.groups)
    >>> display = ShrinkageDisplay.from_estimator(model, data.v[:, None], data.X[:, 0], groups=data.groups)
    >>> bool(abs(display.inferred).mean() < abs(display.raw).mean())
    True
    """

    raw: NDArray[np.float64]
    inferred: NDArray[np.float64]
    n_rows: NDArray[np.float64]
    labels: list[Any]
    overall: float
    name: str = "mean"

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        groups: Iterable[Hashable] | None = None,
        column: Hashable = None,
        **options: Any,
    ) -> Self:
        """Draw the groups of a table.

        For a regressor both axes are group means of differences from its prediction for the same rows in a
        new group: of the outcome (raw) and of the prediction for the known group (inferred). Covariates are
        thereby accounted for, and the overall mean is 0. For a GroupVAE they are the mean of a column and its
        expected value given the group code, averaged over instance codes drawn from their prior.

        Parameters
        ----------
        estimator : fitted CxVAERegressor or GroupVAE
            Fitted on these groups.
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows, preferably those of the fit.
        y : array-like of shape (n_rows,) or (n_rows, n_outcomes), optional
            Outcomes, for a regressor; else ignored. None takes the column that the formula names.
        groups : array-like of shape (n_rows,), optional
            Group label of each row. None takes the estimator's `group_column`, or that of its formula.
        column : name or position, optional
            The column of X or, for a regressor, the outcome in y, where there are several.
        **options
            Passed to :meth:`plot`: `ax`, `xlabel`, `ylabel`.

        Returns
        -------
        display : ShrinkageDisplay

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the outcomes or labels are missing or differ in length, or the column is not one of X.
        """
        regression = is_regressor(estimator)
        cls._check_estimator(estimator, "predict" if regression else "inverse_transform")
        columns, y, by_row, groups = read_table(estimator, X, y, groups)
        index, labels = factorize(by_row, len(X))
        if regression:
            chosen = outcome_position(estimator, y, column)
            values, name = finite_column(y if chosen is None else table_column(y, chosen), "y", len(X))
            new = one_outcome(predict_new_group(estimator, X), chosen)
            raw, inferred = values - new, one_outcome(estimator.predict(X, groups=groups), chosen) - new
            overall, name = 0.0, f"{name or 'outcome'} minus prediction for a new group"
        else:
            position = column_position(columns, column)
            raw, name = finite_column(table_column(columns, position), "X")
            inferred = expected_column(estimator, X, groups, index, position)[index]
            overall, name = float(raw.mean()), name or "value"
        means, n_rows = group_means(raw, index)
        display = cls(
            raw=means,
            inferred=group_means(inferred, index)[0],
            n_rows=n_rows,
            labels=labels,
            overall=overall,
            name=name,
        )
        return display.plot(**options)

    @classmethod
    def from_predictions(
        cls,
        raw: Any,
        inferred: Any,
        *,
        n_rows: Any,
        labels: Any = None,
        overall: float | None = None,
        name: str = "mean",
        **options: Any,
    ) -> Self:
        """Draw raw and inferred means from any model.

        Parameters
        ----------
        raw, inferred : array-like of shape (n_groups,)
            One number per group.
        n_rows : array-like of shape (n_groups,)
            Rows of each group.
        labels : sequence of length n_groups, optional
            Labels of the groups; None takes 0, 1, ...
        overall : float, optional
            Overall mean; None takes that of `raw`, weighted by rows.
        name : str, default="mean"
            What is averaged.
        **options
            Passed to :meth:`plot`: `ax`, `xlabel`, `ylabel`.

        Returns
        -------
        display : ShrinkageDisplay

        Raises
        ------
        ValueError
            If the arguments differ in length, are not finite, or a group has no rows.
        """
        before, _ = finite_column(raw, "raw")
        after, _ = finite_column(inferred, "inferred")
        sizes, _ = finite_column(n_rows, "n_rows")
        labels = list(range(len(before)) if labels is None else labels)
        for values, argument in ((after, "inferred"), (sizes, "n_rows"), (labels, "labels")):
            check_length(values, len(before), argument, "raw")
        if (sizes < 1).any():
            raise ValueError("n_rows has groups without rows; leave those groups out")
        mean = float(np.average(before, weights=sizes)) if overall is None else float(overall)
        display = cls(raw=before, inferred=after, n_rows=sizes, labels=labels, overall=mean, name=name)
        return display.plot(**options)

    def plot(self, ax: Axes | None = None, *, xlabel: str | None = None, ylabel: str | None = None) -> Self:
        """Draw.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw; None makes a new figure.
        xlabel, ylabel : str, optional
            Labels of the axes, with the unit; None describes what is averaged.

        Returns
        -------
        display : ShrinkageDisplay
        """
        ax = self._start(ax)
        ax.axline((self.overall, self.overall), slope=1.0, color=DARK, linewidth=1.0, label="raw mean")
        ax.axhline(self.overall, color=DARK, linewidth=1.0, linestyle="--", label="overall mean")
        ax.quiver(
            self.raw,
            self.raw,
            np.zeros_like(self.raw),
            self.inferred - self.raw,
            angles="xy",
            scale_units="xy",
            scale=1.0,
            width=0.003,
            color=GRAY,
            zorder=1,
        )
        ax.scatter(self.raw, self.inferred, s=self._areas(self.n_rows), **_POINT, zorder=2)
        for size in dict.fromkeys(np.quantile(self.n_rows, [0.0, 0.5, 1.0], method="nearest")):
            ax.scatter([], [], s=self._areas(size), **_POINT, label=_rows(size))
        finish(ax, xlabel, ylabel, f"raw: {self.name}", f"inferred: {self.name}")
        ax.legend(frameon=False)
        return self

    def _areas(self, n_rows: Any) -> Any:
        return _SMALLEST + (_LARGEST - _SMALLEST) * n_rows / self.n_rows.max()


_POINT: dict[str, Any] = {"facecolor": COLORS[0], "edgecolor": "white", "linewidth": 0.6, "alpha": 0.9}


def _rows(size: float) -> str:
    return f"{size:,.0f} {'row' if size == 1 else 'rows'}"
