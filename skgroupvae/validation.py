"""Checks of what users pass in; every refusal names the argument and the remedy."""

from __future__ import annotations

import re
import warnings
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_sample_weight, column_or_1d, validate_data

from skgroupvae.columns import caller_level, check_unique_columns, some
from skgroupvae.groups import as_label_array

__all__ = [
    "check_covariates",
    "check_groups",
    "check_hidden_sizes",
    "check_labels_by_row",
    "check_outcome",
    "check_table",
    "check_trials",
    "check_varies",
    "check_weights",
    "forget_learned",
    "resolve_device",
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


def forget_learned(estimator: BaseEstimator) -> None:
    """Drop the learned attributes of an earlier fit, those whose name ends in an underscore."""
    for name in [name for name in vars(estimator) if name.endswith("_") and not name.startswith("_")]:
        delattr(estimator, name)


def check_table(estimator: BaseEstimator, X: Any, *, reset: bool, name: str = "X") -> NDArray[np.floating]:
    """Finite numeric table (N, D), float32 kept as it is; sets or checks the names and number of columns."""
    if isinstance(X, pd.DataFrame):
        check_unique_columns(X, name)
        bad = [c for c, dtype in X.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)]
        if bad:
            raise ValueError(
                f"{name} has non-numeric columns {some(bad)}; encode them as numbers, drop them, or name "
                "the label column in group_column"
            )
    if hasattr(X, "shape") and len(X.shape) == 2 and X.shape[0] == 0:
        raise ValueError(
            f"{name} is empty: found 0 samples (shape={tuple(X.shape)}) while a minimum of 1 is required; "
            "pass at least one row"
        )
    try:
        array = validate_data(
            estimator, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite=False
        )
    except (ValueError, TypeError) as error:
        raise type(error)(_about_table(name, str(error))) from error
    for what, bad_cells, remedy in (
        ("NaN", np.isnan(array), "drop or impute these rows first"),
        ("infinite values (inf)", np.isinf(array), "replace or drop them first"),
    ):
        if bad_cells.any():
            columns = np.flatnonzero(bad_cells.any(axis=0))
            names = getattr(estimator, "feature_names_in_", np.arange(array.shape[1]))
            raise ValueError(f"{name} contains {what} in columns {some(list(names[columns]))}; {remedy}")
    return array


def check_covariates(estimator: BaseEstimator, X: Any, *, reset: bool) -> Any:
    """Covariates as a finite array, or a DataFrame whose columns are numbers or categories."""
    if not isinstance(X, pd.DataFrame) or all(pd.api.types.is_numeric_dtype(d) for d in X.dtypes):
        array = check_table(estimator, X, reset=reset)
        return pd.DataFrame(array, columns=X.columns) if isinstance(X, pd.DataFrame) else array
    check_unique_columns(X)
    validate_data(estimator, X, reset=reset, skip_check_array=True)
    if not len(X):
        raise ValueError(
            "X is empty: found 0 samples while a minimum of 1 is required; pass at least one row"
        )
    numeric = [name for name, dtype in X.dtypes.items() if pd.api.types.is_numeric_dtype(dtype)]
    values = X[numeric].to_numpy(dtype=np.float64)
    bad = [name for name, column in zip(numeric, values.T, strict=True) if not np.isfinite(column).all()]
    if reset:
        bad += [name for name in X.columns if name not in numeric and X[name].isna().any()]
    if bad:
        raise ValueError(
            f"X contains NaN or infinite values in columns {some(bad)}; drop or impute these rows"
        )
    return X


def check_weights(sample_weight: Any, table: Any) -> NDArray[np.float64]:
    """Weights of rows as finite numbers of at least 0, not all of them 0; None is 1 for each."""
    weights = np.asarray(
        _check_sample_weight(sample_weight, table, dtype=np.float64, ensure_non_negative=True),
        dtype=np.float64,
    )
    if not weights.any():
        raise ValueError("sample_weight is zero for every row; give some rows a positive weight")
    return weights


def check_outcome(y: Any, n_rows: int, columns: Sequence[str] = ("outcome",)) -> NDArray[np.float64]:
    """One finite number a row (N,), or one for each of the columns (N, columns)."""
    if y is None:
        raise ValueError("y is missing: requires y to be passed, but the target y is None")
    try:
        outcome = np.asarray(y)
        if len(columns) == 1:
            outcome = column_or_1d(outcome, dtype=np.float64, warn=True)
        else:
            outcome = outcome.astype(np.float64)
    except (ValueError, TypeError) as error:
        numbers = "one number a row" if len(columns) == 1 else f"the numbers of {' and '.join(columns)}"
        raise ValueError(f"y must be {numbers}: {' '.join(str(error).split())}") from error
    if len(columns) > 1 and (outcome.ndim != 2 or outcome.shape[1] != len(columns)):
        raise ValueError(
            f"y must have {len(columns)} columns, {' and '.join(columns)}, got shape {outcome.shape}; pass "
            f"np.column_stack([{', '.join(columns)}])"
        )
    if len(outcome) != n_rows:
        raise ValueError(f"y has {len(outcome)} outcomes but X has {n_rows} rows; pass one outcome a row")
    if not np.isfinite(outcome).all():
        row = np.argwhere(~np.isfinite(outcome))[0][0]
        raise ValueError(f"y contains NaN or infinite values (inf), first at row {row}; drop these rows")
    return outcome


def check_varies(outcome: NDArray[np.float64]) -> None:
    """Refuse a constant outcome, from which no fit can start."""
    if len(outcome) > 1 and np.ptp(outcome) == 0.0:
        raise ValueError(
            f"y is constant ({outcome[0]:g} in every row), so there is nothing to learn; check y"
        )


def check_trials(trials: Any, n_rows: int, family: str, *, has_trials: bool) -> NDArray[np.float64]:
    """Number of trials of each row, 1 or more; of a family without them only 1 will do."""
    if trials is None or (np.ndim(trials) == 0 and trials == 1):
        return np.ones(n_rows)
    if not has_trials:
        raise ValueError(f"trials is for family='binomial', not {family!r}; leave it out")
    counts = np.asarray(trials)
    if counts.dtype.kind not in "iuf" or counts.shape not in ((), (n_rows,)):
        raise ValueError(
            f"trials must be a number or one a row ({n_rows} of them), got {counts.dtype} of shape "
            f"{counts.shape}"
        )
    if not ((counts >= 1) & (counts == np.round(counts)) & np.isfinite(counts)).all():
        raise ValueError("trials must be whole numbers of at least 1; drop rows without a trial")
    return np.broadcast_to(counts.astype(np.float64), (n_rows,))


def _about_table(name: str, reason: str) -> str:
    """scikit-learn's reason for refusing a table, on one line and with the argument's name and a remedy."""
    reason = " ".join(re.sub(r"array=\[.*\]\.", "", reason, flags=re.DOTALL).split())
    if "could not convert" in reason:
        return f"{name} has non-numeric values ({reason}); encode them as numbers or drop these columns"
    if "inhomogeneous" in reason or "setting an array element" in reason:
        return f"{name} is not a table: its rows differ in length or hold sequences; pass one number a cell"
    if "Complex data" in reason:
        return f"{name}: Complex data not supported; pass real numbers, for instance two columns"
    if "at least one array" in reason:
        return (
            f"{name} has no column of data (0 feature(s)) while a minimum of 1 is required; pass one or more"
        )
    return f"{name} cannot be used: {reason} Pass a two-dimensional table with the columns of fit"


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
    is_many = isinstance(labels, (list, np.ndarray, pd.Series, pd.Index, pd.api.extensions.ExtensionArray))
    if labels is None or not (is_many or isinstance(labels, Hashable)):
        raise ValueError(f"{name} must be one group label or one label a row, got {type(labels).__name__}")
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
    sizes = list(hidden_sizes) if hasattr(hidden_sizes, "__len__") else []
    if not sizes or not all(isinstance(size, (int, np.integer)) and size >= 1 for size in sizes):
        raise ValueError(
            f"hidden_sizes must be a tuple of positive integers such as (32, 32), got {hidden_sizes!r}"
        )
    return tuple(int(size) for size in sizes)
