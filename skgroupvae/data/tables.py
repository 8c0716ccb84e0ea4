"""Tables of any library as pandas data frames, and how their columns are named in messages."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd

__all__ = [
    "as_frame",
    "as_pandas",
    "check_unique_columns",
    "is_numeric",
    "is_polars",
    "is_polars_series",
    "some",
]


def is_polars(X: Any) -> bool:
    """Whether X is a polars DataFrame; polars is not imported to find out."""
    polars = sys.modules.get("polars")
    return polars is not None and isinstance(X, polars.DataFrame)


def is_polars_series(values: Any) -> bool:
    """Whether values are a polars Series."""
    polars = sys.modules.get("polars")
    return polars is not None and isinstance(values, polars.Series)


def as_pandas(X: Any) -> Any:
    """A polars DataFrame as a pandas one with the default index; anything else as it is."""
    if not is_polars(X):
        return X
    return pd.DataFrame({name: X[name].to_numpy() for name in X.columns}, index=range(X.height))


def as_frame(X: Any) -> pd.DataFrame:
    """A table of any kind as a data frame; the columns of an array are named by their positions."""
    X = as_pandas(X)
    return X if isinstance(X, pd.DataFrame) else pd.DataFrame(np.asarray(X))


def is_numeric(column: pd.Series) -> bool:
    """Whether a column holds numbers; booleans are numbers, 0 and 1."""
    return pd.api.types.is_numeric_dtype(column.dtype)


def check_unique_columns(X: pd.DataFrame, name: str = "X") -> None:
    """Refuse a table in which one name stands for more than one column."""
    if not X.columns.is_unique:
        twice = list(X.columns[X.columns.duplicated()])
        raise ValueError(f"{name} has duplicate column names {some(twice)}; rename or drop them")


def some(names: list[Any], most: int = 5) -> str:
    """The first few names of a list that may be long."""
    shown = str([getattr(name, "item", lambda name=name: name)() for name in names[:most]])
    return shown if len(names) <= most else f"{shown[:-1]}, ...] ({len(names)} in all)"
