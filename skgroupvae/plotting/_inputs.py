"""Checks of what users pass to a plot; every message names the argument and the remedy."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = [
    "check_count",
    "check_length",
    "check_level",
    "column_names",
    "column_position",
    "factorize",
    "finite_column",
    "table_column",
]


def finite_column(
    values: Any, name: str, n_rows: int | None = None
) -> tuple[NDArray[np.float64], str | None]:
    """Finite values (n_rows,) of one column, with as many rows as X, and its name if it has one."""
    if values is None:
        raise ValueError(f"{name} is missing; pass one number per row")
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{name} must be one column of numbers, got shape {array.shape}; choose one column")
    if len(array) == 0:
        raise ValueError(f"{name} is empty; pass at least one row")
    if n_rows is not None:
        check_length(array, n_rows, name, "X")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} contains NaN or infinite values; drop those rows first")
    if isinstance(values, pd.DataFrame):
        return array, str(values.columns[0])
    own = getattr(values, "name", None)
    return array, None if own is None else str(own)


def factorize(groups: Iterable[Hashable] | None, n_rows: int) -> tuple[NDArray[np.intp], list[Hashable]]:
    """Position of each row's label among the distinct labels, and these in order of first appearance."""
    if groups is None:
        raise ValueError("groups is missing; pass one label per row")
    # A Series keeps each tuple as one label, where an array would turn tuples into columns.
    index, labels = pd.factorize(pd.Series(list(groups)).to_numpy())
    check_length(index, n_rows, "groups", "X")
    if (index < 0).any():
        raise ValueError("groups has missing labels; drop those rows or label them")
    return index, list(labels)


def check_length(values: Any, n_rows: int, name: str, of: str) -> None:
    if len(values) != n_rows:
        what = "labels" if name == "groups" else "rows"
        raise ValueError(f"{name} has {len(values)} {what} but {of} has {n_rows} rows; pass one per row")


def check_level(level: Any, name: str = "level") -> float:
    """A probability strictly between 0 and 1."""
    if not isinstance(level, Real) or not 0 < float(level) < 1:
        raise ValueError(f"{name} must be a number between 0 and 1, such as 0.9, got {level!r}")
    return float(level)


def check_count(value: Any, name: str) -> int:
    """A positive whole number."""
    if not isinstance(value, Integral) or int(value) < 1:
        raise ValueError(f"{name} must be at least 1 and a whole number, got {value!r}")
    return int(value)


def column_names(X: Any) -> list[Any]:
    """Names of the columns of a data frame, or their positions in an array."""
    if hasattr(X, "columns"):
        return list(X.columns)
    if np.ndim(X) != 2:
        raise ValueError(f"X must be a table of rows and columns, got {np.ndim(X)} dimensions; reshape it")
    return list(range(np.shape(X)[1]))


def column_position(X: Any, column: Any, argument: str = "column") -> int:
    """Position of a column given by its name or position; None stands for the only column."""
    names = column_names(X)
    if column is None and len(names) == 1:
        return 0
    if column is not None and column in names:
        return names.index(column)
    if isinstance(column, Integral) and 0 <= int(column) < len(names):
        return int(column)
    problem = "is missing" if column is None else f"{column!r} is not a column of X"
    raise ValueError(f"{argument} {problem}; choose one of {names[:8]}")


def table_column(X: Any, position: int) -> Any:
    """One column of a data frame (as a Series) or of an array."""
    return X[X.columns[position]] if hasattr(X, "columns") else np.asarray(X)[:, position]
