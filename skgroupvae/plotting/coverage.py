"""Coverage of predictive intervals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from skgroupvae.diagnostics import binomial_band, interval_coverage
from skgroupvae.plotting._inputs import check_level, finite_column
from skgroupvae.plotting._style import BAND, COLORS, DARK, finish, legend_beside
from skgroupvae.plotting.calibration import OfPIT, check_pit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CoverageDisplay"]


@dataclass(kw_only=True, eq=False, repr=False)
class CoverageDisplay(OfPIT):
    """Share of rows inside central predictive intervals, against their nominal probability.

    Below the diagonal the intervals are too narrow, above it too wide. The band is where a calibrated model
    is expected to be, by the binomial distribution at each level.

    Make one with :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    pit : ndarray of shape (n_rows,)
        Probability integral transforms: the central interval of level L covers a row if its value is at
        most L / 2 away from 1/2.
    nominal : ndarray of shape (n_levels,)
        Levels of the intervals.
    level : float
        Probability of the band, for each level separately.

    Attributes
    ----------
    empirical : ndarray of shape (n_levels,)
        Share of rows covered.
    lower, upper : ndarray of shape (n_levels,)
        Ends of the band.
    ax_ : Axes
        Where `plot` drew last.
    figure_ : Figure
        The figure of `ax_`.

    Examples
    --------
    >>> from skgroupvae.plotting import CoverageDisplay
    >>> display = CoverageDisplay.from_predictions([0.1, 0.3, 0.5, 0.6], nominal=[0.5])
    >>> display.empirical  # between 0.25 and 0.75
    array([0.75])
    """

    pit: NDArray[np.float64]
    nominal: NDArray[np.float64] = field(default_factory=lambda: np.linspace(0.05, 0.95, 19))
    level: float = 0.95

    @property
    def empirical(self) -> NDArray[np.float64]:
        return interval_coverage(self.pit, self.nominal)

    @property
    def lower(self) -> NDArray[np.float64]:
        return binomial_band(len(self.pit), self.nominal, self.level)[0]

    @property
    def upper(self) -> NDArray[np.float64]:
        return binomial_band(len(self.pit), self.nominal, self.level)[1]

    @classmethod
    def from_predictions(cls, pit: Any, *, nominal: Any = None, level: float = 0.95, **options: Any) -> Self:
        """Draw PIT values as coverage.

        Parameters
        ----------
        pit : array-like of shape (n_rows,)
            Probability integral transforms, between 0 and 1.
        nominal : array-like of shape (n_levels,), optional
            Levels of the intervals, strictly between 0 and 1; None takes 0.05, 0.1, ..., 0.95.
        level : float, default=0.95
            Probability of the band, for each level separately.
        **options
            Passed to :meth:`plot`: `ax`, `xlabel`, `ylabel`.

        Returns
        -------
        display : CoverageDisplay

        Raises
        ------
        ValueError
            If a value is not between 0 and 1, or `nominal` or `level` cannot be used.
        """
        values, level = check_pit(pit), check_level(level)
        if nominal is None:
            return cls(pit=values, level=level).plot(**options)
        levels = np.sort(finite_column(nominal, "nominal")[0])
        if not ((levels > 0) & (levels < 1)).all():
            raise ValueError("nominal must hold levels strictly between 0 and 1, such as [0.5, 0.9]")
        return cls(pit=values, nominal=levels, level=level).plot(**options)

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
        display : CoverageDisplay
        """
        ax = self._start(ax)
        label = f"{100 * self.level:g}% band of\na calibrated model"
        ax.fill_between(self.nominal, self.lower, self.upper, **BAND, label=label)
        ax.plot([0, 1], [0, 1], color=DARK, linewidth=1.0, linestyle="--", label="calibrated", zorder=1)
        label = f"{len(self.pit):,} rows"
        ax.plot(
            self.nominal, self.empirical, color=COLORS[0], marker="o", markersize=4, label=label, zorder=2
        )
        ax.set_xlim(0.0, 1.0)
        ax.set_ylim(0.0, 1.0)
        finish(ax, xlabel, ylabel, "nominal coverage of central intervals", "share of rows covered")
        legend_beside(ax)
        return self
