"""Effects of groups with their intervals: the caterpillar plot of mixed-effects models."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skgroupvae.diagnostics import normal_interval
from skgroupvae.plotting._inputs import check_length, check_level, finite_column
from skgroupvae.plotting._intervals import draw_intervals, figure_height, name_groups, point_size
from skgroupvae.plotting._style import COLORS, GRAY, Display, finish, legend_beside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["GroupEffectsDisplay"]


@dataclass(kw_only=True, eq=False, repr=False)
class GroupEffectsDisplay(Display):
    """Effects of groups, sorted, each with its interval (a caterpillar plot).

    A filled marker is a group whose interval excludes 0, a hollow marker a group that may be average. The
    probability of an interval holds for each group separately: among many groups that do not differ, some
    intervals exclude 0.

    Make one with :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    mean : ndarray of shape (n_groups,)
        Posterior means, in the units of the effect.
    sd : ndarray of shape (n_groups,)
        Posterior standard deviations.
    labels : list of length n_groups
        Labels of the groups.
    name : str or None
        Name of the effect.
    level : float
        Probability of the intervals.

    Attributes
    ----------
    lower, upper : ndarray of shape (n_groups,)
        Ends of the normal intervals, in the order of `mean`.
    ax_ : Axes
        Where `plot` drew last.
    figure_ : Figure
        The figure of `ax_`.

    Examples
    --------
    >>> from skgroupvae import CxVAERegressor
    >>> from skgroupvae.datasets import make_exam_scores
    >>> from skgroupvae.plotting import GroupEffectsDisplay
    >>> data = make_exam_scores(20, random_state=0)
    >>> model = CxVAERegressor(max_epochs=2, random_state=0)
    >>> model = model.fit(data.v[:, None], data.X[:, 0], groups=data.groups)
    >>> display = GroupEffectsDisplay.from_estimator(model, xlabel="effect of the school / points")
    >>> display.name, len(display.mean)
    ('Intercept', 20)
    """

    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    labels: list[Any]
    name: str | None = None
    level: float = 0.95

    @property
    def lower(self) -> NDArray[np.float64]:
        return normal_interval(self.mean, self.sd, self.level)[0]

    @property
    def upper(self) -> NDArray[np.float64]:
        return normal_interval(self.mean, self.sd, self.level)[1]

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        effect: str | None = None,
        column: Hashable = None,
        level: float = 0.95,
        **options: Any,
    ) -> Self:
        """Draw what a fitted estimator knows about its groups.

        Parameters
        ----------
        estimator : fitted CxVAERegressor or GroupVAE
            Has `group_effects_`, or else `group_codes_` and `group_codes_std_`.
        effect : str, optional
            A column of these tables: "Intercept", a random slope, or a code such as "u0". None takes the
            first.
        column : name, optional
            The outcome, where the fit had several.
        level : float, default=0.95
            Probability of the intervals.
        **options
            Passed to :meth:`plot`: `ax`, `xlabel`, `ylabel`, `max_labels`.

        Returns
        -------
        display : GroupEffectsDisplay

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If there is no such effect or outcome, or the level is not between 0 and 1.
        """
        cls._check_estimator(estimator, "group_codes_", "group_codes_std_")
        tables = _effects_of(estimator, column)
        effect = next(iter(tables)) if effect is None else effect
        if effect not in tables:
            raise ValueError(f"effect {effect!r} is not one of the estimator's; choose one of {list(tables)}")
        mean, sd = tables[effect]
        return cls.from_predictions(mean, sd, labels=list(mean.index), name=effect, level=level, **options)

    @classmethod
    def from_predictions(
        cls,
        mean: Any,
        sd: Any,
        *,
        labels: Any = None,
        name: str | None = None,
        level: float = 0.95,
        **options: Any,
    ) -> Self:
        """Draw means and standard deviations from any model.

        Parameters
        ----------
        mean : array-like or Series of shape (n_groups,)
            Posterior means.
        sd : array-like of shape (n_groups,)
            Posterior standard deviations.
        labels : sequence of length n_groups, optional
            Labels of the groups; None takes the index of a Series, else 0, 1, ...
        name : str, optional
            Name of the effect; None takes that of a Series.
        level : float, default=0.95
            Probability of the intervals.
        **options
            Passed to :meth:`plot`: `ax`, `xlabel`, `ylabel`, `max_labels`.

        Returns
        -------
        display : GroupEffectsDisplay

        Raises
        ------
        ValueError
            If the arguments differ in length, are not finite, or a standard deviation is negative.
        """
        values, own_name = finite_column(mean, "mean")
        spread, _ = finite_column(sd, "sd")
        if labels is None:
            labels = mean.index if isinstance(mean, pd.Series) else range(len(values))
        labels = list(labels)
        check_length(spread, len(values), "sd", "mean")
        check_length(labels, len(values), "labels", "mean")
        if (spread < 0).any():
            raise ValueError("sd has negative values; pass standard deviations")
        display = cls(mean=values, sd=spread, labels=labels, name=name or own_name, level=check_level(level))
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
            Labels of the axes, with the unit; None takes the effect's name and "group".
        max_labels : int, optional
            Name this many groups at most, evenly spread; None names as many as there is room for.

        Returns
        -------
        display : GroupEffectsDisplay
        """
        ax = self._start(ax, figure_height(len(self.mean)))
        order = np.argsort(self.mean, kind="stable")
        mean, lower, upper = self.mean[order], self.lower[order], self.upper[order]
        ax.axvline(0.0, color=GRAY, linewidth=1.0, zorder=0)
        differs, size = (lower > 0) | (upper < 0), point_size(len(mean))
        draw_intervals(ax, lower, upper, np.where(differs, COLORS[0], GRAY))
        for which, face, says in ((differs, "black", "excludes 0"), (~differs, "white", "includes 0")):
            ax.scatter(
                mean[which],
                np.flatnonzero(which),
                s=size,
                facecolor=face,
                edgecolor="black",
                linewidth=0.8,
                label=f"{100 * self.level:g}% interval\n{says} ({which.sum():,})",
                zorder=3,
            )
        called = name_groups(ax, [self.labels[i] for i in order], max_labels)
        finish(ax, xlabel, ylabel, f"effect: {self.name}" if self.name else "effect", called)
        legend_beside(ax, point_area=size)
        return self


def _effects_of(estimator: Any, column: Hashable) -> dict[str, tuple[pd.Series, pd.Series]]:
    """Means and standard deviations by the name of the effect."""
    codes, stds = estimator.group_codes_, estimator.group_codes_std_
    effects = _of_outcome(getattr(estimator, "group_effects_", pd.DataFrame()), column)
    named = {name: f"{name} sd" for name in effects.columns}
    found = {name: (effects[name], effects[sd]) for name, sd in named.items() if sd in effects}
    return found | {name: (codes[name], stds[name]) for name in codes.columns}


def _of_outcome(table: pd.DataFrame, column: Hashable) -> pd.DataFrame:
    """Rows of one outcome of a table whose outer level of index is the outcomes, if it has one."""
    if table.index.nlevels == 1:
        return table
    outcomes = list(table.index.get_level_values(0).unique())
    if column not in outcomes:
        problem = "is missing" if column is None else f"{column!r} is not an outcome of the fit"
        raise ValueError(f"column {problem}; choose one of {outcomes[:8]}")
    return table.loc[[column]].droplevel(0)
