"""Labels of groups: the columns that hold them, their checks, and their positions."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skgroupvae.data.checks import caller_level
from skgroupvae.data.tables import as_pandas, check_unique_columns, is_polars_series, some

__all__ = [
    "as_label_array",
    "canonical_order",
    "check_groups",
    "check_labels_by_row",
    "check_labels_to_add",
    "index_labels",
    "label_columns",
    "split_group_column",
    "warn_of_unlike_labels",
]


# --- columns of the table that hold labels


def split_group_column(X: Any, group_column: Any, groups: Any) -> tuple[Any, Any]:
    """Table without its label columns, and the labels; `groups` is returned where there is no such column.

    Parameters
    ----------
    X : array-like or DataFrame of shape (N, columns)
        The table; a polars one comes back as pandas.
    group_column : name, position, list of them or None
        A list makes labels that are tuples, for groups nested in groups.
    groups : labels of shape (N,) or None
        What the caller passed beside the table.

    Returns
    -------
    table : array-like or DataFrame
    labels : Series or ndarray of shape (N,), or `groups`
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


def _one_label(parts: list[Any]) -> NDArray:
    """Labels of several columns as tuples, one a row, missing where any part is."""
    missing = np.any([pd.isna(part) for part in parts], axis=0)
    labels = np.empty(len(parts[0]), dtype=object)
    for row, label in enumerate(zip(*parts, strict=True)):
        labels[row] = None if missing[row] else label
    return labels


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


def _position(X: NDArray, column: Any) -> int:
    if not isinstance(column, Integral) or X.ndim != 2:
        raise ValueError(
            f"group_column={column!r} needs a DataFrame; with an array pass the column's position"
        )
    if not -X.shape[1] <= column < X.shape[1]:
        raise ValueError(
            f"group_column={column} is out of range for X with {X.shape[1]} columns; pass a lower position"
        )
    return int(column) % X.shape[1]


# --- checks


def as_label_array(labels: Sequence[Hashable] | NDArray | pd.Series) -> NDArray | pd.Series:
    """Labels as a one-dimensional container; a list of tuples stays a list of labels, not a table."""
    if isinstance(labels, (np.ndarray, pd.Series, pd.Index, pd.api.extensions.ExtensionArray)):
        return labels
    labels = list(labels)
    return np.fromiter(labels, dtype=object, count=len(labels))


def check_groups(groups: Any, n_rows: int, owner: str, *, warn: bool = False, name: str = "groups") -> Any:
    """One label a row; None makes every row a group of its own.

    Parameters
    ----------
    groups : labels of shape (N,) or None
        Hashable labels of any kind, none of them missing.
    n_rows : int
        Number N of rows.
    owner : str
        Name of the estimator, for the warning.
    warn : bool
        Whether None is worth a warning.
    name : str
        Name of the argument.

    Returns
    -------
    labels : array or Series of shape (N,)
    """
    if groups is None:
        if warn:
            warnings.warn(
                f"{owner} was fitted without groups, so every row is a group of its own and u and v "
                "cannot be told apart; pass groups= to fit (inside a search or a Pipeline with "
                "sklearn.set_config(enable_metadata_routing=True)), or set group_column to the column that "
                "holds the labels",
                UserWarning,
                stacklevel=caller_level(),
            )
        return np.arange(n_rows)
    if isinstance(groups, (str, bytes)) or not hasattr(groups, "__len__"):
        raise ValueError(
            f"{name} must hold one label a row, got {groups!r}; to name a column of X use group_column"
        )
    labels = as_label_array(groups)
    if getattr(labels, "ndim", 1) != 1:
        raise ValueError(
            f"{name} must be one-dimensional with one label a row, got shape {labels.shape}; "
            "for labels made of several columns pass a list of tuples"
        )
    if len(labels) != n_rows:
        raise ValueError(f"{name} has {len(labels)} labels but X has {n_rows} rows; pass one label a row")
    missing = np.asarray(pd.isna(labels))
    if missing.any():
        rows = np.flatnonzero(missing)
        raise ValueError(
            f"{name} has {len(rows)} missing labels (first at row {rows[0]}); drop those rows or label them"
        )
    if np.asarray(labels).dtype.kind == "O":
        bad = next((label for label in labels if not isinstance(label, Hashable)), None)
        if bad is not None:
            raise TypeError(
                f"{name} must hold hashable labels such as strings, integers or tuples, got "
                f"{type(bad).__name__}; convert these labels"
            )
    return labels


def check_labels_by_row(labels: Any, n_rows: int, name: str) -> pd.Index:
    """One label a row, from one label for all rows or a list, array or Series of labels."""
    if is_polars_series(labels):
        labels = labels.to_list()
    is_many = isinstance(labels, (list, np.ndarray, pd.Series, pd.Index, pd.api.extensions.ExtensionArray))
    if labels is None or not (is_many or isinstance(labels, Hashable)):
        raise ValueError(f"{name} must be one group label or one label a row, got {type(labels).__name__}")
    if not is_many or getattr(labels, "ndim", 1) == 0:
        one = labels.item() if isinstance(labels, np.ndarray) else labels
        labels = as_label_array([one] * n_rows)
    return pd.Index(np.asarray(check_groups(labels, n_rows, "", name=name)), tupleize_cols=False)


def check_labels_to_add(labels: Any, has_groups: bool, owner: str) -> None:
    """Refuse rows without labels that are to add to the groups of a fit."""
    if labels is None and has_groups:
        raise ValueError(f"groups is missing, and {owner} was fitted with groups; pass one label a row")


def warn_of_unlike_labels(known: pd.Index, asked: pd.Index, name: str) -> None:
    """Warn of labels that the fit would know if they were of another type: 308 there, "308" here.

    Parameters
    ----------
    known : Index of length G
        Labels of the fit.
    asked : Index
        Labels of a later call; numbers of different types that are equal count as the same label.
    name : str
        The argument that holds them.
    """
    unknown = list(dict.fromkeys(asked[known.get_indexer(asked) < 0]))
    if not unknown:
        return
    by_meaning = {_meaning(label): label for label in known}
    unlike = [
        (label, by_meaning[_meaning(label)])
        for label in unknown
        if _type_name(by_meaning.get(_meaning(label), label)) != _type_name(label)
    ]
    if unlike:
        asked_type, known_type = (_type_name(label) for label in unlike[0])
        warnings.warn(
            f"{name} has labels {some([label for label, _ in unlike])} that the fit does not know, but the "
            f"fit knows {some([label for _, label in unlike])}: the type differs ({asked_type} here, "
            f"{known_type} in the fit), so these are new groups; convert {name} to the type of the fit",
            UserWarning,
            stacklevel=caller_level(),
        )


def _meaning(label: Any) -> Any:
    """What a label says whatever its type: the number of a text that holds one, by parts for a tuple."""
    if isinstance(label, tuple):
        return tuple(_meaning(part) for part in label)
    if isinstance(label, str):
        for number in (int, float):
            try:
                return number(label)
            except ValueError:
                continue
    return label


def _type_name(label: Any) -> str:
    if isinstance(label, tuple):
        return f"({', '.join(map(_type_name, label))})"
    return "str" if isinstance(label, str) else type(label).__name__


# --- positions


def index_labels(labels: Sequence[Hashable] | NDArray | pd.Series) -> tuple[NDArray[np.intp], pd.Index]:
    """Position of each row's label among the distinct ones.

    Parameters
    ----------
    labels : sequence of shape (N,)
        Labels of any hashable kind, none of them missing.

    Returns
    -------
    codes : ndarray of shape (N,)
    index : Index of length G
        Distinct labels in order of first appearance; a tuple is one label.
    """
    codes, distinct = pd.factorize(as_label_array(labels))
    # An Index of tuples would become a MultiIndex, whose entries no longer look up as one label.
    return codes, pd.Index(np.asarray(distinct), tupleize_cols=False)


def canonical_order(
    codes: NDArray[np.intp], content: NDArray[np.floating]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """An order of rows and groups by what they hold, whatever order and labels they came with.

    Sums and random draws over rows in this order do not depend on the caller's order, to the last bit.

    Parameters
    ----------
    codes : ndarray of shape (N,)
        Position of each row's group, every one of 0..G-1 at least once.
    content : ndarray of shape (N, K)
        Standardized numbers that tell rows apart.

    Returns
    -------
    order : ndarray of shape (N,)
        Row positions, group by group in the order of `group_order`.
    group_order : ndarray of shape (G,)
        Groups (positions as in `codes`) by size, and within a size by the sum of their rows' keys.
    """
    keys = _row_keys(content)
    # Sorted first, so that the sums are added in the same order.
    rows = np.lexsort((keys, codes))
    sizes = np.bincount(codes)
    sums = np.add.reduceat(keys[rows], np.cumsum(sizes) - sizes)
    group_order = np.lexsort((sums, sizes))
    ordered = sizes[group_order]
    shift = (np.cumsum(sizes) - sizes)[group_order] - (np.cumsum(ordered) - ordered)
    return rows[np.arange(len(rows)) + np.repeat(shift, ordered)], group_order


def _row_keys(content: NDArray[np.floating]) -> NDArray[np.float64]:
    """One number a row by which rows can be ordered; rows that differ have different ones, but for chance."""
    content = np.ascontiguousarray(content, dtype=np.float64)
    return (content * np.cos(np.arange(1, content.shape[1] + 1))).sum(axis=1)
