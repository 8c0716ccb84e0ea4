"""Observed columns: their kinds, and the way between the units of the table and those of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skgroupvae.data.checks import check_outcome, check_outcome_length
from skgroupvae.data.tables import as_pandas, check_unique_columns, some

__all__ = ["KINDS", "Column", "Outcomes", "center_and_scale", "read_outcomes"]

KINDS = {
    "numeric": "numbers, standardized",
    "binary": "0 or 1",
    "count": "whole numbers of at least 0",
    "proportion": "successes among trials, as a share; a row weighs as many as its trials",
    "ordered": "levels in an order, as 0, 1, ..., K - 1",
}


@dataclass(frozen=True)
class Column:
    """An observed column: what it may hold and how the model sees it.

    Attributes
    ----------
    name : str
        Name in the table.
    kind : str
        One of :data:`KINDS`.
    center, scale : float
        What standardizes it; 0 and 1 for all kinds but numeric.
    levels : tuple of float or None
        Distinct values of an ordered column, ascending.
    family : str
        Name of the distribution that the model gives it.
    """

    name: str
    kind: str
    center: float = 0.0
    scale: float = 1.0
    levels: tuple[float, ...] | None = None
    family: str = "gaussian"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is not a kind of column; use one of {list(KINDS)}")

    @classmethod
    def learn(
        cls,
        name: str,
        values: NDArray[np.float64],
        kind: str,
        family: str,
        weights: NDArray[np.float64] | None = None,
        *,
        mask: NDArray[np.bool_] | None = None,
        argument: str = "y",
    ) -> Self:
        """Check the values of a fit, and learn their center and scale or their levels.

        Parameters
        ----------
        name, kind, family : str
            As the attributes.
        values : ndarray of shape (N,)
            In the units of the table; of a proportion the shares.
        weights : ndarray of shape (N,), optional
            Rows of weight 0 teach nothing; other weights make no difference.
        mask : ndarray of bool of shape (N,), optional
            True where a value is observed; the others teach nothing.
        argument : str
            What messages call the column.

        Returns
        -------
        column : Column
        """
        kept = np.ones(len(values), dtype=bool) if mask is None else mask
        if weights is not None:
            kept = kept & (weights > 0)
        if not kept.any():
            raise ValueError(f"{argument} is missing in every row of positive weight; leave this outcome out")
        column = cls(name, kind, family=family)
        column._check(values[kept], argument)
        if kind == "numeric":
            center, scale = center_and_scale(values[kept])
            return cls(name, kind, float(center), float(scale), family=family)
        if kind == "ordered":
            levels = tuple(np.unique(values[kept]).tolist())
            if len(levels) < 3:
                raise ValueError(
                    f"{argument} has {len(levels)} levels, family={family!r} needs 3 or more; use "
                    "'bernoulli' for two"
                )
            return cls(name, kind, levels=levels, family=family)
        return column

    def encode(
        self, values: NDArray[np.float64], *, mask: NDArray[np.bool_] | None = None, argument: str = "y"
    ) -> NDArray[np.float64]:
        """Values (N,) in the units of the model; refuses what the kind cannot be.

        Parameters
        ----------
        values : ndarray of shape (N,)
            In the units of the table; of a proportion the shares.
        mask : ndarray of bool of shape (N,), optional
            True where a value is observed; the others are not looked at and become 0.
        argument : str
            What messages call the column.

        Returns
        -------
        encoded : ndarray of shape (N,)
        """
        if mask is not None:
            encoded = np.zeros(len(values))
            encoded[mask] = self.encode(values[mask], argument=argument)
            return encoded
        self._check(values, argument)
        if self.levels is None:
            return (values - self.center) / self.scale
        code = np.searchsorted(self.levels, values).clip(max=len(self.levels) - 1)
        unseen = np.asarray(self.levels)[code] != values
        if unseen.any():
            raise ValueError(
                f"{argument} has levels {some(list(np.unique(values[unseen])))} that the fit has not seen; "
                "refit with them, or drop these rows"
            )
        return code.astype(np.float64)

    def decode(self, encoded: NDArray[np.floating]) -> NDArray[np.float64]:
        """Values in the units of the table, from those of the model, of any shape."""
        if self.levels is None:
            return np.asarray(encoded, dtype=np.float64) * self.scale + self.center
        return np.asarray(self.levels)[np.asarray(encoded).astype(int)]

    def _check(self, values: NDArray[np.float64], argument: str) -> None:
        """Refuse values that no column of this kind can have."""
        remedy = f"for family={self.family!r}; recode it, or choose another family"
        if self.kind == "binary" and not np.isin(values, (0.0, 1.0)).all():
            raise ValueError(f"{argument} must be 0 or 1 {remedy}")
        if self.kind == "count" and not _are_counts(values):
            raise ValueError(f"{argument} must be counts 0, 1, 2, ... {remedy}")
        if self.kind == "proportion" and not ((values >= 0.0) & (values <= 1.0)).all():
            raise ValueError(f"{argument} must be shares between 0 and 1 {remedy}")


def center_and_scale(x: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What standardizes each column of x (N, columns), or x (N,) itself if it is one column.

    Returns
    -------
    center, scale : ndarray of shape (columns,), or of no dimension
    """
    # Sorted, so that sums do not depend on the order of the rows, and one by one, so that they do not depend
    # on how the table lies in memory.
    columns = [np.sort(column) for column in (x.T if x.ndim == 2 else [x])]
    center, spread = (
        np.array([getattr(column, moment)(dtype=np.float64) for column in columns])
        for moment in ("mean", "std")
    )
    # A constant column (up to rounding): any scale does, and 1 keeps its units.
    scale = np.where(spread > 1e-12 * np.abs(center), spread, 1.0)
    return (center, scale) if x.ndim == 2 else (center[0], scale[0])


class Outcomes(NamedTuple):
    """What `y` says: N rows, D outcomes.

    Attributes
    ----------
    values : ndarray of shape (N, D)
        In the units of the table; 0 where a cell is missing.
    mask : ndarray of bool of shape (N, D) or None
        True where a cell is observed; None where all are.
    trials : ndarray of shape (N,)
        How many each row counts as; 1 for all kinds but proportions.
    names : list of str
        Names of the outcomes.
    """

    values: NDArray[np.float64]
    mask: NDArray[np.bool_] | None
    trials: NDArray[np.float64]
    names: list[str]


def read_outcomes(
    y: Any, n_rows: int, kind: str, *, names: Sequence[str] | None = None, argument: str = "y"
) -> Outcomes:
    """Read one outcome or several.

    Parameters
    ----------
    y : array-like, Series or DataFrame of shape (N,) or (N, D)
        Numbers; the cells of several outcomes may be missing, even all of a row. Of a proportion the columns
        successes and failures.
    n_rows : int
        Number N of rows of X.
    kind : str
        One of :data:`KINDS`.
    names : sequence of str, optional
        Outcomes of the fit: a data frame is read by them, and outcomes that are missing in every row are
        fine.
    argument : str
        What messages call `y`.

    Returns
    -------
    outcomes : Outcomes
    """
    y = as_pandas(y)
    if kind == "proportion":
        share, trials = _shares(check_outcome(y, n_rows, ("successes", "failures"), argument), argument)
        return Outcomes(share[:, None], None, trials, ["y"])
    if y is None or not (_n_columns(y) > 1 if names is None else len(names) > 1):
        values = check_outcome(y, n_rows, argument=argument)
        return Outcomes(values[:, None], None, np.ones(n_rows), [_name_of(y)])
    columns = _columns_of(y, names, argument)
    values = np.column_stack([_numbers(column, argument) for column in columns.values()])
    check_outcome_length(len(values), n_rows, argument)
    if np.isinf(values).any():
        row, column = np.argwhere(np.isinf(values))[0]
        raise ValueError(
            f"{argument} contains infinite values (inf), first in outcome {list(columns)[column]!r} at row "
            f"{row}; drop these rows"
        )
    observed = ~np.isnan(values)
    absent = [name for name, known in zip(columns, observed.T, strict=True) if not known.any()]
    if names is None and absent:
        raise ValueError(f"outcome {absent[0]!r}: {argument} is missing in every row; leave this outcome out")
    mask = None if observed.all() else observed
    return Outcomes(np.where(observed, values, 0.0), mask, np.ones(n_rows), list(columns))


def _shares(counts: NDArray[np.float64], argument: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of successes and number of trials of each row."""
    if not _are_counts(counts):
        raise ValueError(
            f"{argument} must be counts of successes and failures 0, 1, 2, ... for family='binomial'; "
            "multiply proportions by their trials"
        )
    trials = counts.sum(axis=1)
    if not trials.all():
        raise ValueError(
            f"{argument} has no trial in row {np.flatnonzero(trials == 0)[0]}; drop the rows without a trial"
        )
    return counts[:, 0] / trials, trials


def _are_counts(values: NDArray[np.float64]) -> bool:
    return not ((values < 0) | (values != np.round(values))).any()


def _n_columns(y: Any) -> int:
    """Number of columns of a table; 1 for what is none."""
    try:
        shape = y.shape if isinstance(y, pd.DataFrame) else np.asarray(y).shape
    except ValueError:
        return 1  # ragged: the check of one outcome says so
    return shape[1] if len(shape) == 2 else 1


def _name_of(y: Any) -> str:
    """Name of the one outcome."""
    if isinstance(y, pd.DataFrame):
        return str(y.columns[0])
    name = getattr(y, "name", None)  # of a Series, pandas or polars
    return "y" if name is None or name == "" else str(name)


def _columns_of(y: Any, names: Sequence[str] | None, argument: str) -> dict[str, Any]:
    """Columns of several outcomes by name."""
    if isinstance(y, pd.DataFrame):
        check_unique_columns(y, argument)
        columns = {str(name): column for name, column in y.items()}
        missing = [name for name in names or [] if name not in columns]
        if missing:
            raise ValueError(
                f"{argument} lacks the outcomes {some(missing)}; pass a DataFrame with the columns of fit, "
                "or an array with one column for each"
            )
        return columns if names is None else {name: columns[name] for name in names}
    array = np.asarray(y)
    if names is None:
        names = [f"y{j}" for j in range(array.shape[1])]
    if array.ndim != 2 or array.shape[1] != len(names):
        raise ValueError(
            f"{argument} must have one column for each of the outcomes {some(list(names))} of fit, got "
            f"shape {array.shape}"
        )
    return dict(zip(names, array.T, strict=True))


def _numbers(column: Any, argument: str) -> NDArray[np.float64]:
    """A column (N,) as floats, NaN where a cell is missing."""
    try:
        return pd.Series(column).to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{argument} must be one number a row: {' '.join(str(error).split())}") from error
