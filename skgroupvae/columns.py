"""The columns of a table that hold its group labels, and tables of other libraries as pandas."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = [
    "as_pandas",
    "caller_level",
    "centre_and_scale",
    "check_unique_columns",
    "is_polars",
    "label_columns",
    "some",
    "split_group_column",
]


def is_polars(X: Any) -> bool:
    """Whether X is a polars DataFrame; polars is not imported to find out."""
    polars = sys.modules.get("polars")
    return polars is not None and isinstance(X, polars.DataFrame)


def as_pandas(X: Any) -> Any:
    """A polars DataFrame as a pandas one with the default index; anything else as it is."""
    if not is_polars(X):
        return X
    return pd.DataFrame({name: X[name].to_numpy() for name in X.columns}, index=range(X.height))


def split_group_column(X: Any, group_column: Any, groups: Any) -> tuple[Any, Any]:
    """Table without its label columns, and the labels; `groups` is returned where there is no such column.

    Parameters
    ----------
    X : array-like or DataFrame
        The table; a polars one comes back as pandas.
    group_column : name, position, list of them or None
        A list makes labels that are tuples, for groups nested in groups.
    groups : labels or None
        What the caller passed beside the table.
    """
    X = as_pandas(X)
    if group_column is None:
        return X, groups
    if groups is not None:
        raise ValueError("groups= and group_column are both given; pass one of them")
    columns = label_columns(X, group_column)
    if isinstance(X, pd.DataFrame):
        table, parts = X.drop(columns=columns), [X[column] for column in columns]
    else:
        X = np.asarray(X)
        table, parts = np.delete(X, columns, axis=1), [X[:, column] for column in columns]
    return table, _one_label(parts) if isinstance(group_column, list) else parts[0]


def _one_label(parts: list[Any]) -> Any:
    """Labels of several columns as tuples, one a row, missing where any part is."""
    missing = np.any([pd.isna(part) for part in parts], axis=0)
    labels = np.empty(len(parts[0]), dtype=object)
    for row, label in enumerate(zip(*parts, strict=True)):
        labels[row] = None if missing[row] else label
    return labels


def label_columns(X: Any, group_column: Any) -> list[Any]:
    """Names (DataFrame) or positions (array) of the label columns of a table, at least one."""
    wanted = group_column if isinstance(group_column, list) else [group_column]
    if not wanted:
        raise ValueError("group_column=[] names no column; pass None for tables without labels")
    if isinstance(X, pd.DataFrame):
        check_unique_columns(X)
        found = [_name(X, column) for column in wanted]
    else:
        found = [_position(np.asarray(X), column) for column in wanted]
    if len(set(found)) < len(found):
        raise ValueError(f"group_column={group_column!r} names a column twice; name each once")
    return found


def check_unique_columns(X: pd.DataFrame, name: str = "X") -> None:
    """Refuse a table in which a name says more than one column."""
    if not X.columns.is_unique:
        twice = list(X.columns[X.columns.duplicated()])
        raise ValueError(f"{name} has duplicate column names {some(twice)}; rename or drop them")


def centre_and_scale(x: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What standardises each column of x, or x itself if it is one column."""
    centre, spread = (moment(axis=0, dtype=np.float64) for moment in (x.mean, x.std))
    # A constant column (up to rounding): any scale does, and 1 keeps its units.
    return centre, np.where(spread > 1e-12 * np.abs(centre), spread, 1.0)


def _name(X: pd.DataFrame, column: Hashable) -> Hashable:
    """Name of a column from its name or (if no column is called that) position."""
    if column in X.columns:
        return column
    if isinstance(column, Integral) and -X.shape[1] <= column < X.shape[1]:
        return X.columns[int(column)]
    raise ValueError(
        f"group_column={column!r} is not a column of X; its columns are {some(list(X.columns))}; "
        "name the column that holds the labels"
    )


def _position(X: np.ndarray, column: Any) -> int:
    if not isinstance(column, Integral) or X.ndim != 2:
        raise ValueError(
            f"group_column={column!r} needs a DataFrame; with an array pass the column's position"
        )
    if not -X.shape[1] <= column < X.shape[1]:
        raise ValueError(
            f"group_column={column} is out of range for X with {X.shape[1]} columns; pass a lower position"
        )
    return int(column) % X.shape[1]


def caller_level() -> int:
    """The `stacklevel` of a warning that is about a call from outside the package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals["__name__"].startswith(f"{__package__}."):
        frame, level = frame.f_back, level + 1
    return level


def some(names: list[Any], most: int = 5) -> str:
    """The first few names of a list that may be long."""
    shown = str([getattr(name, "item", lambda name=name: name)() for name in names[:most]])
    return shown if len(names) <= most else f"{shown[:-1]}, ...] ({len(names)} in all)"
