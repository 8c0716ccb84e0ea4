"""Results as rows of the container that the table came in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skgroupvae.data.labels import label_columns
from skgroupvae.data.tables import as_pandas, is_polars, is_polars_series

__all__ = ["like_input", "like_outcomes"]


def like_input(
    values: NDArray,
    original: Any,
    group_column: Any = None,
    labels: Any = None,
    kept_columns: Sequence[str] = (),
) -> Any:
    """Rows as the container X came in, with the labels in the group columns where X has them.

    Columns of floats keep their width; columns of integers become float64, as their values are means.

    Parameters
    ----------
    values : ndarray of shape (N, D)
        The columns of the table beside those of the labels and those that stay.
    original : array-like or DataFrame of shape (N, columns)
        The table that came in.
    group_column : name, position, list of them or None
        Columns of the labels.
    labels : labels of shape (N,), optional
        What to write there; tuples for a list of columns.
    kept_columns : sequence of str
        Columns of a data frame that stay as they are.

    Returns
    -------
    table : ndarray or DataFrame of shape (N, columns)
        `values` itself if X is an array without labels.
    """
    if is_polars(original):
        as_frame = like_input(values, as_pandas(original), group_column, labels, kept_columns)
        return _like_polars(as_frame, original)
    columns = [] if group_column is None else label_columns(original, group_column)
    parts = _label_parts(labels, len(columns)) if isinstance(group_column, list) else [labels]
    if isinstance(original, pd.DataFrame):
        given = [name for name in original.columns if name not in columns and name not in kept_columns]
        frame = pd.DataFrame(values, index=original.index, columns=given)
        floats = {name: original[name].dtype for name in given if original[name].dtype.kind == "f"}
        frame = frame.astype({name: dtype for name, dtype in floats.items() if frame[name].dtype != dtype})
        for column, part in zip(columns, parts, strict=False):
            frame[column] = _labels_like(original[column], part)
        for column in kept_columns:
            frame[column] = original[column]
        return frame[list(original.columns)]
    if group_column is None:
        return values
    original = np.asarray(original)
    table = np.empty(original.shape, dtype=np.result_type(values, original))
    for position, part in zip(columns, parts, strict=True):
        table[:, position] = np.asarray(part)
    table[:, np.setdiff1d(np.arange(original.shape[1]), columns)] = values
    return table


def like_outcomes(values: NDArray, y: Any, names: Sequence[str]) -> Any:
    """Outcomes as the container y came in: a Series, the columns of a DataFrame, or else an array.

    Parameters
    ----------
    values : ndarray of shape (N,) or (N, M)
    y : array-like, Series or DataFrame of shape (N,) or (N, columns)
        Of one outcome in several columns, successes and failures, the first is what values are of.
    names : sequence of str of length M
        Outcomes of the fit, by which a data frame is read.

    Returns
    -------
    outcomes : ndarray, Series or DataFrame
    """
    if isinstance(y, pd.Series):
        return pd.Series(values, index=y.index, name=y.name)
    if isinstance(y, pd.DataFrame) or is_polars(y):
        columns = values.reshape(len(values), -1)
        named = dict(zip(names if len(names) > 1 else y.columns, columns.T, strict=False))
        return pd.DataFrame(named, index=y.index) if isinstance(y, pd.DataFrame) else type(y)(named)
    if is_polars_series(y):
        return type(y)(y.name, values)
    return values


def _label_parts(labels: Any, n_columns: int) -> list[NDArray]:
    """Labels that are tuples, taken apart by column."""
    parts = [np.empty(len(labels), dtype=object) for _ in range(n_columns)]
    for row, label in enumerate(labels):
        if isinstance(label, str) and label == "average":
            label = (label,) * n_columns
        if not isinstance(label, tuple) or len(label) != n_columns:
            raise ValueError(
                f"target_group {label!r} must be a tuple of {n_columns} labels, one a column of group_column"
            )
        for part, value in zip(parts, label, strict=True):
            part[row] = value
    return parts


def _labels_like(column: pd.Series, labels: Any) -> pd.Series:
    """Labels as a column of the same type, unless a category it does not have would be lost by that."""
    by_row = pd.Series(np.asarray(labels), index=column.index)
    if isinstance(column.dtype, pd.CategoricalDtype) and not by_row.isin(column.cat.categories).all():
        return by_row
    try:
        converted = by_row.astype(column.dtype)
    except (ValueError, TypeError):
        return by_row  # "average" among numbers
    return converted if (converted.astype(object) == by_row.astype(object)).all() else by_row


def _like_polars(frame: pd.DataFrame, original: Any) -> Any:
    """A pandas table as a polars one, label and float columns with the types of the original."""
    import polars

    columns = {}
    for name, dtype in original.schema.items():
        column = frame[name]
        series = polars.Series(name, column.to_numpy() if column.dtype.kind in "fiub" else column.tolist())
        keeps = dtype.is_float() or not dtype.is_numeric() or column.dtype.kind in "iu"
        columns[name] = series.cast(dtype) if keeps and series.dtype != dtype else series
    return polars.DataFrame(columns)
