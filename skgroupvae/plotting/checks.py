"""Posterior predictive check: do rows that the model draws look, group by group, like the observed ones?"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import is_regressor

from skgroupvae.diagnostics import (
    GROUP_STATISTICS,
    central_interval,
    group_statistic,
    posterior_predictive_p_values,
)
from skgroupvae.plotting._estimators import column_draws, one_outcome, outcome_position, read_table
from skgroupvae.plotting._inputs import (
    check_count,
    check_length,
    check_level,
    column_position,
    factorize,
    finite_column,
    table_column,
)
from skgroupvae.plotting._intervals import draw_intervals, figure_height, name_groups, point_size
from skgroupvae.plotting._style import COLORS, DARK, Display, finish, legend_beside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PredictiveCheckDisplay"]

Statistic = str | Callable[[pd.Series], float]


@dataclass(kw_only=True, eq=False, repr=False)
class PredictiveCheckDisplay(Display):
    """Observed statistic of each group, against the interval of the model's draws of it.

    The mean of rows that the fit has seen is nearly always inside: check what the model was not fitted to,
    such as ``statistic="std"`` or "max", or rows that the fit has not seen.

    Make one with :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    observed : ndarray of shape (n_groups,)
        Statistic of the observed rows of each group.
    drawn : ndarray of shape (n_groups, n_samples)
        The same statistic of each draw.
    labels : list of length n_groups
        Labels of the groups.
    statistic : str
        Name of the statistic.
    level : float
        Probability of the central intervals.
    name : str
        Name of the outcome or column.

    Attributes
    ----------
    lower, median, upper : ndarray of shape (n_groups,)
        Quantiles of the draws.
    outside : ndarray of bool of shape (n_groups,)
        Whether the observed statistic lies outside its interval.
    p_values : ndarray of shape (n_groups,)
        Share of draws above the observed statistic, equal ones counted half; near 0 or 1 the model does not
        reproduce the statistic.
    ax_ : Axes
        Where `plot` drew last.
    figure_ : Figure
        The figure of `ax_`.

    References
    ----------
    Gelman, A., Meng, X.-L., Stern, H. (1996). Posterior predictive assessment of model fitness via realized
    discrepancies. Statistica Sinica 6(4).

    Examples
    --------
    >>> from skgroupvae import CxVAERegressor
    >>> from skgroupvae.datasets import make_exam_scores
    >>> from skgroupvae.plotting import PredictiveCheckDisplay
    >>> data = make_exam_scores(20, random_state=0)
    >>> covariates, score = data.v[:, None], data.X[:, 0]
    >>> model = CxVAERegressor(max_epochs=2, random_state=0).fit(covariates, score, groups=data.groups)
    >>> display = PredictiveCheckDisplay.from_estimator(
    ...     model, covariates, score, groups=data.groups, statistic="std", n_samples=50
    ... )
    >>> display.drawn.shape
    (20, 50)
    """

    observed: NDArray[np.float64]
    drawn: NDArray[np.float64]
    labels: list[Any]
    statistic: str = "mean"
    level: float = 0.9
    name: str = "value"

    @property
    def lower(self) -> NDArray[np.float64]:
        return central_interval(self.drawn, self.level)[0]

    @property
    def median(self) -> NDArray[np.float64]:
        return central_interval(self.drawn, self.level)[1]

    @property
    def upper(self) -> NDArray[np.float64]:
        return central_interval(self.drawn, self.level)[2]

    @property
    def outside(self) -> NDArray[np.bool_]:
        return (self.observed < self.lower) | (self.observed > self.upper)

    @property
    def p_values(self) -> NDArray[np.float64]:
        return posterior_predictive_p_values(self.observed, self.drawn)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        groups: Iterable[Hashable] | None = None,
        column: Hashable = None,
        n_samples: int = 200,
        random_state: int | np.random.RandomState | None = 0,
        **options: Any,
    ) -> Self:
        """Draw as many rows of each group as were observed, `n_samples` times, and compare.

        Parameters
        ----------
        estimator : fitted CxVAERegressor or GroupVAE
            A GroupVAE must have seen the groups.
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows.
        y : array-like of shape (n_rows,) or (n_rows, n_outcomes), optional
            Outcomes, for a regressor; else ignored. None takes the column that the formula names.
        groups : array-like of shape (n_rows,), optional
            Group label of each row. None takes the estimator's `group_column`, or that of its formula.
        column : name or position, optional
            The column of X or, for a regressor, the outcome in y, where there are several.
        n_samples : int, default=200
            Draws.
        random_state : int, RandomState instance or None, default=0
            Seed of the draws.
        **options
            Passed to :meth:`from_predictions`: `statistic`, `level`, `ax` and so on.

        Returns
        -------
        display : PredictiveCheckDisplay

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the outcomes or labels are missing or differ in length, or the column is not one of X.
        """
        regression = is_regressor(estimator)
        cls._check_estimator(estimator, "sample_y" if regression else "sample")
        check_count(n_samples, "n_samples")
        columns, y, by_row, groups = read_table(estimator, X, y, groups)
        index, labels = factorize(by_row, len(X))
        if regression:
            chosen = outcome_position(estimator, y, column)
            outcome = y if chosen is None else table_column(y, chosen)
            finite_column(outcome, "y", len(X))
            drawn = estimator.sample_y(X, n_samples, groups=groups, random_state=random_state)
            return cls.from_predictions(outcome, one_outcome(drawn, chosen), groups=by_row, **options)
        position = column_position(columns, column)
        drawn = column_draws(estimator, position, index, labels, n_samples, random_state)
        return cls.from_predictions(table_column(columns, position), drawn, groups=by_row, **options)

    @classmethod
    def from_predictions(
        cls,
        y: Any,
        samples: Any,
        *,
        groups: Iterable[Hashable],
        statistic: Statistic = "mean",
        level: float = 0.9,
        **options: Any,
    ) -> Self:
        """Compare observed rows with draws from any model.

        Parameters
        ----------
        y : array-like or Series of shape (n_rows,)
            Observed values.
        samples : array-like of shape (n_rows, n_samples)
            Draws of each row; within a draw, the rows of a group share its group effect.
        groups : array-like of shape (n_rows,)
            Group label of each row.
        statistic : {"mean", "median", "std", "var", "min", "max"} or callable, default="mean"
            Statistic of the rows of a group; a callable takes a Series and returns a number. Groups in which
            it is not defined (such as the "std" of one row) are left out.
        level : float, default=0.9
            Probability of the central intervals.
        **options
            Passed to :meth:`plot`: `ax`, `xlabel`, `ylabel`, `max_labels`.

        Returns
        -------
        display : PredictiveCheckDisplay

        Raises
        ------
        ValueError
            If the arguments differ in length, the statistic is unknown, or it is defined in no group.
        """
        values, name = finite_column(y, "y")
        draws = np.asarray(samples, dtype=np.float64)
        if draws.ndim != 2 or draws.shape[1] == 0:
            raise ValueError(f"samples must have shape (n_rows, n_samples), got {draws.shape}")
        check_length(draws, len(values), "samples", "y")
        check_level(level)
        if not callable(statistic) and statistic not in GROUP_STATISTICS:
            raise ValueError(f"statistic must be one of {GROUP_STATISTICS} or a callable, got {statistic!r}")
        index, labels = factorize(groups, len(values))
        by_group = group_statistic(np.column_stack([values, draws]), index, _of_arrays(statistic))
        defined = np.asarray(np.isfinite(by_group).all(axis=1))
        if not defined.any():
            raise ValueError("statistic is not defined in any group; choose one that needs fewer rows")
        display = cls(
            observed=by_group[defined, 0],
            drawn=by_group[defined, 1:],
            labels=[label for label, kept in zip(labels, defined, strict=True) if kept],
            statistic=statistic
            if isinstance(statistic, str)
            else getattr(statistic, "__name__", "statistic"),
            level=level,
            name=name or "value",
        )
        return display.plot(**options)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        xlabel: str | None = None,
        ylabel: str | None = None,
        max_labels: int | None = None,
    ) -> Self:
        """Draw.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw; None makes a new figure, the taller the more groups.
        xlabel, ylabel : str, optional
            Labels of the axes, with the unit; None takes statistic and name, and "group".
        max_labels : int, optional
            Name this many groups at most, evenly spread; None names as many as there is room for.

        Returns
        -------
        display : PredictiveCheckDisplay
        """
        n_groups = len(self.observed)
        ax = self._start(ax, figure_height(n_groups))
        order = np.argsort(self.median, kind="stable")
        label = f"{100 * self.level:g}% of draws"
        draw_intervals(ax, self.lower[order], self.upper[order], DARK, label)
        outside, size = self.outside[order], point_size(n_groups)
        kinds = (
            (~outside, "o", "white", COLORS[0], "inside"),
            (outside, "D", COLORS[2], COLORS[2], "outside"),
        )
        for which, marker, face, edge, says in kinds:
            ax.scatter(
                self.observed[order][which],
                np.flatnonzero(which),
                s=size,
                marker=marker,
                facecolor=face,
                edgecolor=edge,
                label=f"observed {says}\n({which.sum():,} of {n_groups:,})",
                zorder=3,
            )
        called = name_groups(ax, [self.labels[i] for i in order], max_labels)
        finish(ax, xlabel, ylabel, f"{self.statistic} of {self.name} in the group", called)
        legend_beside(ax, point_area=size)
        return self


def _of_arrays(statistic: Statistic) -> str | Callable[[NDArray[np.float64]], float]:
    """The statistic, given arrays instead of Series."""
    return statistic if isinstance(statistic, str) else lambda values: statistic(pd.Series(values))
