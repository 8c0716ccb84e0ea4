"""Checks of what users pass in; every refusal names the argument and the remedy."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from skgroupvae.groups import as_label_array

__all__ = [
    "check_groups",
    "check_hidden_sizes",
    "check_labels_by_row",
    "check_noise_scale",
    "check_table",
    "column_name",
    "resolve_device",
    "split_group_column",
    "unchanged_on_error",
]


@contextmanager
def unchanged_on_error(estimator: BaseEstimator) -> Iterator[None]:
    """Leave the estimator's attributes as they were if the body raises."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


def split_group_column(X: Any, group_column: Hashable, groups: Any) -> tuple[Any, Any]:
    """Table without its label column, and the labels; `groups` is returned where there is no such column."""
    if group_column is None:
        return X, groups
    if groups is not None:
        raise ValueError("groups= and group_column are both given; pass one of them")
    if isinstance(X, pd.DataFrame):
        column = column_name(X, group_column)
        return X.drop(columns=column), X[column]
    X = np.asarray(X)
    if not isinstance(group_column, Integral) or X.ndim != 2:
        raise ValueError(
            f"group_column={group_column!r} needs a DataFrame; with an array pass the column's position"
        )
    position = int(group_column)
    if not -X.shape[1] <= position < X.shape[1]:
        raise ValueError(f"group_column={group_column} is out of range for X with {X.shape[1]} columns")
    rest = np.delete(X, position, axis=1)
    return (rest.astype(np.float64) if rest.dtype == object else rest), X[:, position]


def column_name(X: pd.DataFrame, group_column: Hashable) -> Hashable:
    """Name of the label column of a DataFrame, from its name or (if no column is called that) position."""
    if group_column in X.columns:
        return group_column
    if isinstance(group_column, Integral) and -X.shape[1] <= group_column < X.shape[1]:
        return X.columns[int(group_column)]
    raise ValueError(f"group_column={group_column!r} is not a column of X; its columns are {list(X.columns)}")


def check_table(estimator: BaseEstimator, X: Any, *, reset: bool, name: str = "X") -> NDArray[np.floating]:
    """Finite numeric table (N, D), float32 kept as it is; sets or checks the names and number of columns."""
    if isinstance(X, pd.DataFrame):
        numeric = [pd.api.types.is_numeric_dtype(dtype) for dtype in X.dtypes]
        if not all(numeric):
            bad = list(X.columns[~np.array(numeric)])
            raise ValueError(
                f"{name} has non-numeric columns {bad}; encode them as numbers, drop them, or name the label "
                "column in group_column"
            )
    if hasattr(X, "shape") and len(X.shape) == 2 and X.shape[0] == 0:
        raise ValueError(
            f"{name} is empty: found 0 samples (shape={tuple(X.shape)}) while a minimum of 1 is required; "
            "pass at least one row"
        )
    array = validate_data(
        estimator,
        X,
        reset=reset,
        dtype=[np.float64, np.float32],
        ensure_all_finite=False,
    )
    for what, bad_cells, remedy in (
        ("NaN", np.isnan(array), "drop or impute these rows first"),
        ("infinite values (inf)", np.isinf(array), "replace or drop them first"),
    ):
        if bad_cells.any():
            columns = np.flatnonzero(bad_cells.any(axis=0))
            names = getattr(estimator, "feature_names_in_", columns)
            shown = [str(names[c]) if names is not columns else int(c) for c in columns]
            raise ValueError(f"{name} contains {what} in columns {shown}; {remedy}")
    return array


def check_groups(
    groups: Any, n_rows: int, estimator_name: str, *, warn: bool = False, name: str = "groups"
) -> Any:
    """One label a row; None makes every row a group of its own, with a warning where `warn` says so."""
    if groups is None:
        if warn:
            warnings.warn(
                f"{estimator_name} was fitted without groups, so every row is a group of its own and u and v "
                "cannot be told apart; pass groups= to fit (inside a search or a Pipeline with "
                "sklearn.set_config(enable_metadata_routing=True)), or set group_column to the column that "
                "holds the labels",
                UserWarning,
                stacklevel=5,
            )
        return np.arange(n_rows)
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
    try:
        hash(labels[0] if not isinstance(labels, pd.Series) else labels.iloc[0])
    except TypeError:
        raise TypeError(
            f"{name} must hold hashable labels such as strings or integers; got lists or arrays"
        ) from None
    return labels


def check_labels_by_row(labels: Any, n_rows: int, name: str) -> pd.Index:
    """One label a row, from one label for all rows or a list, array or Series of labels."""
    is_many = isinstance(labels, (list, np.ndarray, pd.Series, pd.Index, pd.api.extensions.ExtensionArray))
    if labels is None or not (is_many or isinstance(labels, Hashable)):
        raise ValueError(f"{name} must be one group label or one label a row, got {labels!r}")
    if not is_many or getattr(labels, "ndim", 1) == 0:
        one = labels.item() if isinstance(labels, np.ndarray) else labels
        labels = as_label_array([one] * n_rows)
    return pd.Index(np.asarray(check_groups(labels, n_rows, "", name=name)), tupleize_cols=False)


def resolve_device(device: str | torch.device) -> torch.device:
    """The device to compute on; "auto" is CUDA where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"device={device!r} is not a device; use 'auto', 'cpu', 'cuda' or a torch.device"
        ) from None
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r} is not available on this machine; use device='auto' or 'cpu'")
    return resolved


def check_hidden_sizes(hidden_sizes: Any) -> tuple[int, ...]:
    """Widths of the hidden layers as a tuple of positive integers, at least one."""
    sizes = np.asarray(hidden_sizes)
    if sizes.ndim != 1 or sizes.size == 0 or sizes.dtype.kind not in "iu" or (sizes < 1).any():
        raise ValueError(
            f"hidden_sizes must be a tuple of positive integers such as (32, 32), got {hidden_sizes!r}"
        )
    return tuple(int(size) for size in sizes)


def check_noise_scale(noise_scale: Any, n_features: int) -> NDArray[np.float64] | None:
    """Fixed noise standard deviations (D,), or None where they are learned."""
    if noise_scale is None:
        return None
    scale = np.asarray(noise_scale, dtype=np.float64)
    if scale.ndim > 1 or (scale.ndim == 1 and scale.shape[0] != n_features) or not (scale > 0).all():
        raise ValueError(
            f"noise_scale must be a positive number or {n_features} of them, one a column of X, "
            f"got {noise_scale!r}"
        )
    return np.broadcast_to(scale, (n_features,))
