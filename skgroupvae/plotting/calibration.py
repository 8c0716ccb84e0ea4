"""Calibration of predictive distributions: the histogram of probability integral transforms.

The probability integral transform (PIT) of a held-out outcome is F(y), with F its predictive distribution
function. It is uniform if the predictions are calibrated. The bands assume independent rows: outcomes of one
new group share its u, so that with few groups a calibrated model leaves the band more often.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from skgroupvae.diagnostics import binomial_band, pit_histogram
from skgroupvae.plotting._estimators import one_outcome
from skgroupvae.plotting._inputs import check_count, check_level, column_position, finite_column
from skgroupvae.plotting._style import BAND, COLORS, DARK, Display, finish, legend_beside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["OfPIT", "PITDisplay", "check_pit"]


class OfPIT(Display):
    """Base class of the displays that read PIT values."""

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        groups: Any = None,
        context: Any = None,
        column: Hashable = None,
        random_state: Any = 0,
        **options: Any,
    ) -> Self:
        """Draw how well calibrated an estimator's predictions for these rows are.

        Parameters
        ----------
        estimator : fitted CxVAERegressor
            Has the method `pit`.
        X : array-like or DataFrame of shape (n_rows, n_features)
            Covariates, preferably of rows that the fit has not seen.
        y : array-like of shape (n_rows,) or (n_rows, n_outcomes), optional
            Outcomes. None takes the column that the formula names.
        groups, context : optional
            As in `predict`.
        column : name or position, optional
            The outcome in y, where there are several.
        random_state : int, RandomState instance or None, default=0
            Breaks the ties of discrete outcomes; see `pit`.
        **options
            Passed to :meth:`from_predictions`.

        Returns
        -------
        display : PITDisplay or CoverageDisplay

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it has no method `pit`.
        """
        cls._check_estimator(estimator, "pit")
        pit = estimator.pit(X, y, groups=groups, context=context, random_state=random_state)
        if np.ndim(pit) == 2:
            pit = one_outcome(pit, column_position(pit if y is None else y, column))
        return cls.from_predictions(pit, **options)

    @classmethod
    def from_predictions(cls, pit: Any, **options: Any) -> Self:
        raise NotImplementedError


@dataclass(kw_only=True, eq=False, repr=False)
class PITDisplay(OfPIT):
    """Histogram of PIT values, with the band in which each bar of a calibrated model is expected.

    Bars that are high at both ends mean that predictive distributions are too narrow, bars that are high in
    the middle that they are too wide, and bars that are high on one side that they are biased.
    (`CalibrationDisplay` of scikit-learn is a different plot, for classifiers.)

    Make one with :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    pit : ndarray of shape (n_rows,)
        Probability integral transforms, between 0 and 1.
    n_bins : int
        Number of bars.
    level : float
        Probability of the band, for each bar separately.

    Attributes
    ----------
    heights : ndarray of shape (n_bins,)
        Density of the values in each bin; 1 if calibrated.
    band : tuple of two float
        Lowest and highest height that a calibrated model is expected to give.
    ax_ : Axes
        Where `plot` drew last.
    figure_ : Figure
        The figure of `ax_`.

    References
    ----------
    Gneiting, T., Balabdaoui, F., Raftery, A. E. (2007). Probabilistic forecasts, calibration and sharpness.
    J. R. Stat. Soc. B 69(2).

    Examples
    --------
    >>> import numpy as np
    >>> from skgroupvae.plotting import PITDisplay
    >>> display = PITDisplay.from_predictions((np.arange(1000) + 0.5) / 1000, n_bins=10)
    >>> float(display.heights.max())
    1.0
    """

    pit: NDArray[np.float64]
    n_bins: int = 20
    level: float = 0.95

    @property
    def heights(self) -> NDArray[np.float64]:
        return pit_histogram(self.pit, self.n_bins)

    @property
    def band(self) -> tuple[float, float]:
        lower, upper = binomial_band(len(self.pit), 1.0 / self.n_bins, self.level)
        return float(lower * self.n_bins), float(upper * self.n_bins)

    @classmethod
    def from_predictions(cls, pit: Any, *, n_bins: int = 20, level: float = 0.95, **options: Any) -> Self:
        """Draw PIT values.

        Parameters
        ----------
        pit : array-like of shape (n_rows,)
            Probability integral transforms, between 0 and 1.
        n_bins : int, default=20
            Number of bars.
        level : float, default=0.95
            Probability of the band, for each bar separately.
        **options
            Passed to :meth:`plot`: `ax`, `xlabel`, `ylabel`.

        Returns
        -------
        display : PITDisplay

        Raises
        ------
        ValueError
            If a value is not between 0 and 1, or `n_bins` or `level` cannot be used.
        """
        values, n_bins, level = check_pit(pit), check_count(n_bins, "n_bins"), check_level(level)
        return cls(pit=values, n_bins=n_bins, level=level).plot(**options)

    def plot(self, ax: Axes | None = None, *, xlabel: str | None = None, ylabel: str | None = None) -> Self:
        """Draw.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw; None makes a new figure.
        xlabel, ylabel : str, optional
            Labels of the axes.

        Returns
        -------
        display : PITDisplay
        """
        ax = self._start(ax)
        ax.axhspan(*self.band, **BAND, label=f"{100 * self.level:g}% of the bars of\na calibrated model")
        ax.axhline(1.0, color=DARK, linewidth=1.0, linestyle="--", label="calibrated", zorder=1)
        edges = np.linspace(0.0, 1.0, self.n_bins + 1)
        label = f"{len(self.pit):,} rows"
        ax.stairs(self.heights, edges, color=COLORS[0], linewidth=1.5, label=label, zorder=3)
        ax.set_xlim(0.0, 1.0)
        ax.set_ylim(0.0, 1.05 * max(self.heights.max(), self.band[1]))
        finish(ax, xlabel, ylabel, "probability integral transform", "density")
        legend_beside(ax)
        return self


def check_pit(pit: Any) -> NDArray[np.float64]:
    values, _ = finite_column(pit, "pit")
    if ((values < 0) | (values > 1)).any():
        raise ValueError("pit must hold values between 0 and 1; pass what estimator.pit(X, y) returns")
    return values
