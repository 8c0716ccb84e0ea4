"""From a table of covariates to the design matrix of a regression, remembered from the fit."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skgroupvae.data.checks import caller_level
from skgroupvae.data.columns import center_and_scale
from skgroupvae.data.tables import as_frame, is_numeric, some

__all__ = ["Design", "PlainDesign", "learn_levels", "level_codes", "standardization"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Design(ABC):
    """Columns of a regression: a constant, numbers standardized, categories as indicators.

    Attributes
    ----------
    names : tuple of str
        Name of each column of the design; the first is ``Intercept``.
    center, scale : ndarray of shape (P,)
        What standardizes each column; 0 and 1 for the constant.
    indicators : tuple of int
        Columns of the design that say whether a row has one category, 0 or 1.
    widths : tuple of int
        How many columns of the design each of :attr:`terms` has.
    levels : dict
        Categories of each column of the table that has them, in order.
    shares : dict
        How often each of them was in the fit.
    """

    names: tuple[str, ...]
    center: NDArray[np.float64]
    scale: NDArray[np.float64]
    indicators: tuple[int, ...]
    widths: tuple[int, ...]
    levels: dict[Any, list[Any]]
    shares: dict[Any, list[float]]

    @property
    @abstractmethod
    def terms(self) -> tuple[str, ...]:
        """What the user calls columns of the design that belong together; the first is the constant."""

    @abstractmethod
    def _columns(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """Columns (N, P), not standardized, with the mean over the fit's for categories it has not seen."""

    def _table(self, X: Any) -> pd.DataFrame:
        """The table with its columns named as in `levels`."""
        return as_frame(X)

    def _shown(self, name: Hashable) -> Hashable:
        """What messages call a column of that table."""
        return name

    def transform(self, X: Any, name: str = "X") -> NDArray[np.float64]:
        """Design of a table like that of the fit.

        Parameters
        ----------
        X : array-like or DataFrame of shape (N, columns)
            A category that the fit has not seen counts as missing, with one warning a column: its rows get
            the mean over the categories of the fit.
        name : str
            Name of the argument.

        Returns
        -------
        design : ndarray of shape (N, P)
            Standardized; the first column is constant.
        """
        frame = self._table(X)
        for column, levels in self.levels.items():
            unseen = level_codes(frame[column], levels) < 0
            if unseen.any():
                warnings.warn(
                    f"column {self._shown(column)!r} of {name} has categories "
                    f"{some(list(dict.fromkeys(frame[column][unseen])))} that the fit has not seen; their "
                    "rows get the mean over the categories of the fit",
                    UserWarning,
                    stacklevel=caller_level(),
                )
        return (self._columns(frame) - self.center) / self.scale

    def columns_of(self, terms: Iterable[int]) -> list[int]:
        """Columns of the design that belong to the terms at these positions."""
        ends = np.cumsum(self.widths)
        return [j for term in terms for j in range(ends[term] - self.widths[term], ends[term])]

    def column_of(self, names: Iterable[Any]) -> list[int]:
        """Columns of the design by their own name or by that of their term."""
        found: list[int] = []
        for wanted in map(str, names):
            columns = self.columns_of([self.terms.index(wanted, 1)]) if wanted in self.terms[1:] else []
            if not columns and wanted in self.names[1:]:
                columns = [self.names.index(wanted, 1)]
            if not columns:
                raise ValueError(f"random_slopes names {wanted!r}, {self._unknown_name()}")
            found += columns
        return found

    @abstractmethod
    def _unknown_name(self) -> str:
        """What a name is that neither a term nor a column has."""

    def contrast(self, column: int, values: Any, step: float) -> tuple[tuple[Any, Any], float]:
        """Two settings of a column and their distance in units: a category off and on, a step each way.

        Parameters
        ----------
        column : int
            Position in the design.
        values : float or array
            Standardized values of the column.
        step : float
            In standard deviations.

        Returns
        -------
        settings : tuple of two
            Standardized.
        distance : float
            In the units of the table.
        """
        if column in self.indicators:
            center, scale = self.center[column], self.scale[column]
            return (-center / scale, (1.0 - center) / scale), 1.0
        return (values - step, values + step), 2.0 * step * float(self.scale[column])


@dataclass(frozen=True, eq=False, kw_only=True)
class PlainDesign(Design):
    """Every column of the table for itself: numbers as they are, ``sex[M]`` for all categories but the first.

    Attributes
    ----------
    columns : tuple of str
        Names of the columns of the table. `levels` and `shares` have their positions, as a table that is an
        array has no names.
    """

    columns: tuple[str, ...]

    @classmethod
    def learn(cls, X: Any) -> Self:
        """Learn categories, centers and scales from a table of finite covariates (N, columns)."""
        frame = as_frame(X)
        learned = {
            position: learn_levels(column)
            for position, (_, column) in enumerate(frame.items())
            if not is_numeric(column)
        }
        columns = tuple(map(str, frame.columns))
        levels = {position: list(shares) for position, shares in learned.items()}
        names, widths, indicators = ["Intercept"], [1], list[int]()
        for position, name in enumerate(columns):
            own = [f"{name}[{level}]" for level in levels[position][1:]] if position in levels else [name]
            if position in levels:
                indicators += range(len(names), len(names) + len(own))
            widths.append(len(own))
            names += own
        shares = {position: list(shares.values()) for position, shares in learned.items()}
        center, scale = standardization(_coded(frame, columns, levels, shares))
        return cls(
            names=tuple(names),
            center=center,
            scale=scale,
            indicators=tuple(indicators),
            widths=tuple(widths),
            levels=levels,
            shares=shares,
            columns=columns,
        )

    @property
    def terms(self) -> tuple[str, ...]:
        return ("Intercept", *self.columns)

    def _table(self, X: Any) -> pd.DataFrame:
        frame = as_frame(X)
        return frame.set_axis(range(frame.shape[1]), axis=1)

    def _shown(self, name: Any) -> str:
        return self.columns[name]

    def _columns(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        return _coded(frame, self.columns, self.levels, self.shares)

    def _unknown_name(self) -> str:
        return f"which is not a column of X; its columns give {some(list(self.names[1:]))}"


def learn_levels(column: pd.Series) -> dict[Any, float]:
    """How often each category occurs, of those that do.

    Parameters
    ----------
    column : Series of length N
        Of any kind; missing values are left out.

    Returns
    -------
    shares : dict
        By category, in the order of a categorical column, else sorted, texts as texts.
    """
    counts = column.value_counts(normalize=True, sort=False)
    shares = {
        level: float(share) for level, share in zip(counts.index.tolist(), counts, strict=True) if share
    }
    if isinstance(column.dtype, pd.CategoricalDtype):
        return shares  # in that order
    order = sorted(shares) if is_numeric(column) else sorted(shares, key=str)
    return {level: shares[level] for level in order}


def level_codes(column: pd.Series, levels: list[Any]) -> NDArray[np.intp]:
    """Position of each value (N,) among the levels, -1 where it is none of them."""
    # As objects whatever the dtypes, and no tuple taken for a key of two levels.
    known, values = (
        pd.Index(part, dtype=object, tupleize_cols=False) for part in (levels, column.to_numpy(dtype=object))
    )
    return known.get_indexer(values)


def standardization(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Center and scale (P,) of a design, whose first column stays the constant it is."""
    center, scale = center_and_scale(matrix)
    center[0], scale[0] = 0.0, 1.0
    return center, scale


def _coded(
    frame: pd.DataFrame,
    columns: Sequence[str],
    levels: Mapping[int, list[Any]],
    shares: Mapping[int, list[float]],
) -> NDArray[np.float64]:
    """Constant, numbers and indicators of a table; the mean of an indicator is the share of its category."""
    parts = [np.ones((len(frame), 1))]
    for position, (_, column) in enumerate(frame.items()):
        if position in levels:
            codes = level_codes(column, levels[position])
            block = np.vstack([np.eye(len(levels[position])), shares[position]])  # the last for code -1
            parts.append(block[codes, 1:])
        else:
            parts.append(_numbers(column, columns[position])[:, None])
    return np.hstack(parts)


def _numbers(column: pd.Series, name: str) -> NDArray[np.float64]:
    """A numeric column (N,) as finite floats."""
    try:
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"column {name!r} must be numbers, as in the fit: {' '.join(str(error).split())}; correct it"
        ) from error
    if not np.isfinite(values).all():
        raise ValueError(
            f"X contains NaN or infinite values in columns [{name!r}]; drop or impute these rows"
        )
    return values
