"""Checks of tables, outcomes and settings; every refusal names the argument and the remedy."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    _check_sample_weight,
    _get_feature_names,
    _num_features,
    check_array,
    column_or_1d,
)

from skgroupvae.data.tables import check_unique_columns, is_numeric, some

__all__ = [
    "SCALE_RANGE",
    "SeenColumns",
    "caller_level",
    "check_covariates",
    "check_hidden_sizes",
    "check_levels",
    "check_like",
    "check_noise_scale",
    "check_outcome",
    "check_outcome_length",
    "check_table",
    "check_trials",
    "check_varies",
    "check_weights",
    "seen_columns",
]

# In standard deviations of a column. The models keep the logarithm of a noise scale between -9 and 4, where
# its exponential and the squares of that are plain float32 numbers.
SCALE_RANGE = (math.exp(-9.0), math.exp(4.0))


def caller_level() -> int:
    """The `stacklevel` of a warning that is about a call from outside the package."""
    frame, level = sys._getframe(1), 1
    # torch steps in where it decorates. The globals of a doctest have no name; those of a script, "__main__".
    inside = ("skgroupvae.", "torch.")
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(inside):
        frame, level = frame.f_back, level + 1
    return level


# --- number and names of columns


@dataclass(frozen=True, eq=False)
class SeenColumns:
    """Columns of the table of a fit.

    Attributes
    ----------
    n_features : int
        How many there are.
    feature_names : ndarray of str of shape (n_features,) or None
        Their names; None if the table had none, or names that are not strings.
    """

    n_features: int
    feature_names: NDArray[np.object_] | None = None


def seen_columns(X: Any) -> SeenColumns:
    """Number and names of the columns of a table."""
    return SeenColumns(_num_features(X), _get_feature_names(X))


def check_like(X: Any, seen: SeenColumns, owner: str, name: str = "X") -> None:
    """Refuse a table whose columns are not those of the fit, in the words of scikit-learn.

    Parameters
    ----------
    X : array-like or DataFrame of shape (N, columns)
        The table.
    seen : SeenColumns
        Columns of the fit.
    owner : str
        Name of the estimator.
    name : str
        Name of the argument, if not X.
    """
    # scikit-learn reads both from attributes of the estimator, whose class it names.
    holder = type(owner, (), {"n_features_in_": seen.n_features})()
    if seen.feature_names is not None:
        holder.feature_names_in_ = seen.feature_names
    try:
        _check_feature_names(holder, X, reset=False)
        _check_n_features(holder, X, reset=False)
    except ValueError as error:
        if name == "X":
            raise
        raise type(error)(f"{name}: {error}") from error


# --- tables


def check_table(
    X: Any, *, owner: str, seen: SeenColumns | None = None, name: str = "X"
) -> tuple[NDArray[np.floating], SeenColumns]:
    """Finite numeric table, float32 kept as it is.

    Parameters
    ----------
    X : array-like or DataFrame of shape (N, D)
        The table.
    owner : str
        Name of the estimator.
    seen : SeenColumns, optional
        Columns that it must have; None takes them as they are.
    name : str
        Name of the argument.

    Returns
    -------
    array : ndarray of shape (N, D)
    seen : SeenColumns
    """
    if isinstance(X, pd.DataFrame):
        check_unique_columns(X, name)
        bad = [column for column, values in X.items() if not is_numeric(values)]
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
        names = _get_feature_names(X)
        array = check_array(
            X, dtype=[np.float64, np.float32], ensure_all_finite=False, input_name="X", estimator=owner
        )
    except (ValueError, TypeError) as error:
        raise type(error)(_about_table(name, str(error))) from error
    found = SeenColumns(array.shape[1], names)
    if seen is not None:
        check_like(X if isinstance(X, pd.DataFrame) else array, seen, owner, name)
        found = seen
    for what, bad_cells, remedy in (
        ("NaN", np.isnan(array), "drop or impute these rows first"),
        ("infinite values (inf)", np.isinf(array), "replace or drop them first"),
    ):
        if bad_cells.any():
            columns = np.flatnonzero(bad_cells.any(axis=0))
            known = np.arange(array.shape[1]) if found.feature_names is None else found.feature_names
            raise ValueError(f"{name} contains {what} in columns {some(list(known[columns]))}; {remedy}")
    return array, found


def check_covariates(
    X: Any, *, owner: str, seen: SeenColumns | None = None, allow_no_columns: bool = False, name: str = "X"
) -> tuple[Any, SeenColumns]:
    """Covariates as a finite array, or a data frame whose columns are numbers or categories.

    Parameters
    ----------
    X : array-like or DataFrame of shape (N, columns)
        The covariates. A missing category is refused in a fit; later it is one that the fit has not seen.
    owner : str
        Name of the estimator.
    seen : SeenColumns, optional
        Columns of the fit; None in the fit itself.
    allow_no_columns : bool
        Whether a data frame may have rows alone, as that of ``y ~ 1 + (1 | group)``.
    name : str
        Name of the argument.

    Returns
    -------
    X : ndarray or DataFrame of shape (N, columns)
    seen : SeenColumns
    """
    if isinstance(X, pd.DataFrame) and (
        (allow_no_columns and not X.shape[1]) or not all(is_numeric(column) for _, column in X.items())
    ):
        return X, _check_mixed(X, owner, seen, name)
    array, seen = check_table(X, owner=owner, seen=seen, name=name)
    return (pd.DataFrame(array, columns=X.columns) if isinstance(X, pd.DataFrame) else array), seen


def _check_mixed(X: pd.DataFrame, owner: str, seen: SeenColumns | None, name: str) -> SeenColumns:
    """Columns of a data frame that is finite where it is numeric."""
    check_unique_columns(X, name)
    if seen is not None and (X.shape[1] or seen.n_features):
        check_like(X, seen, owner, name)
    if not len(X):
        raise ValueError(
            f"{name} is empty: found 0 samples while a minimum of 1 is required; pass at least one row"
        )
    numeric = {own: column for own, column in X.items() if is_numeric(column)}
    bad = [
        own
        for own, column in numeric.items()
        if not np.isfinite(column.to_numpy(dtype=np.float64, na_value=np.nan)).all()
    ]
    if seen is None:
        bad += [own for own in X.columns if own not in numeric and X[own].isna().any()]
    if bad:
        raise ValueError(
            f"{name} contains NaN or infinite values in columns {some(bad)}; drop or impute these rows"
        )
    if seen is not None:
        return seen
    return seen_columns(X) if X.shape[1] else SeenColumns(0, np.array([], dtype=object))


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


# --- weights and outcomes


def check_weights(sample_weight: Any, table: Any) -> NDArray[np.float64]:
    """Weights of rows (N,) as finite numbers of at least 0, not all of them 0; None is 1 for each."""
    weights = np.asarray(
        _check_sample_weight(sample_weight, table, dtype=np.float64, ensure_non_negative=True),
        dtype=np.float64,
    )
    if not weights.any():
        raise ValueError("sample_weight is zero for every row; give some rows a positive weight")
    return weights


def check_outcome(
    y: Any, n_rows: int, columns: Sequence[str] = ("outcome",), argument: str = "y"
) -> NDArray[np.float64]:
    """One finite number a row (N,), or one for each of the columns (N, columns)."""
    if y is None:
        raise ValueError(f"{argument} is missing: requires y to be passed, but the target y is None")
    try:
        outcome = np.asarray(y)
        if len(columns) == 1:
            outcome = column_or_1d(outcome, dtype=np.float64, warn=True)
        else:
            outcome = outcome.astype(np.float64)
    except (ValueError, TypeError) as error:
        numbers = "one number a row" if len(columns) == 1 else f"the numbers of {' and '.join(columns)}"
        raise ValueError(f"{argument} must be {numbers}: {' '.join(str(error).split())}") from error
    if len(columns) > 1 and (outcome.ndim != 2 or outcome.shape[1] != len(columns)):
        raise ValueError(
            f"{argument} must have {len(columns)} columns, {' and '.join(columns)}, got shape "
            f"{outcome.shape}; pass np.column_stack([{', '.join(columns)}])"
        )
    check_outcome_length(len(outcome), n_rows, argument)
    if not np.isfinite(outcome).all():
        row = np.argwhere(~np.isfinite(outcome))[0][0]
        raise ValueError(
            f"{argument} contains NaN or infinite values (inf), first at row {row}; drop these rows"
        )
    return outcome


def check_outcome_length(n_outcomes: int, n_rows: int, argument: str = "y") -> None:
    """Refuse outcomes that are not one a row."""
    if n_outcomes != n_rows:
        raise ValueError(
            f"{argument} has {n_outcomes} outcomes but X has {n_rows} rows; pass one outcome a row"
        )


def check_varies(outcome: NDArray[np.float64], argument: str = "y") -> None:
    """Refuse a constant outcome (N,), from which no fit can start."""
    if len(outcome) > 1 and np.ptp(outcome) == 0.0:
        raise ValueError(
            f"{argument} is constant ({outcome[0]:g} in every row), so there is nothing to learn; check y"
        )


def check_trials(trials: Any, n_rows: int, family: str, *, has_trials: bool) -> NDArray[np.float64]:
    """Number of trials of each row (N,), 1 or more; of a family without them only 1 will do."""
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


# --- settings


def check_levels(quantiles: Any, name: str) -> NDArray[np.float64]:
    """Levels of quantiles (n_quantiles,), each strictly between 0 and 1."""
    levels = np.atleast_1d(np.asarray(quantiles, dtype=np.float64))
    if levels.ndim != 1 or not ((levels > 0) & (levels < 1)).all():
        raise ValueError(f"{name} must hold levels strictly between 0 and 1, got {quantiles!r}")
    return levels


def check_hidden_sizes(hidden_sizes: Any) -> tuple[int, ...]:
    """Widths of the hidden layers as a tuple of positive integers, at least one."""
    sizes = list(hidden_sizes) if hasattr(hidden_sizes, "__len__") else []
    if not sizes or not all(isinstance(size, (int, np.integer)) and size >= 1 for size in sizes):
        raise ValueError(
            f"hidden_sizes must be a tuple of positive integers such as (32, 32), got {hidden_sizes!r}"
        )
    return tuple(int(size) for size in sizes)


def check_noise_scale(noise_scale: Any, spread: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Fixed noise standard deviations (D,), or None where they are learned; `spread` (D,) is the columns'."""
    if noise_scale is None:
        return None
    n_features = len(spread)
    remedy = f"noise_scale must be a positive finite number or {n_features} of them, one a column of X"
    try:
        scale = np.asarray(noise_scale, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{remedy}; got values that are not numbers") from error
    if scale.ndim > 1 or (scale.ndim == 1 and scale.shape[0] != n_features):
        raise ValueError(f"{remedy}; got shape {scale.shape}")
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError(f"{remedy}; got one that is not")
    low, high = SCALE_RANGE
    outside = (scale < low * spread) | (scale > high * spread)
    if outside.any():
        raise ValueError(
            f"noise_scale must lie between {low:.1e} and {high:.0f} standard deviations of its column, "
            f"that is {np.array2string(low * spread, precision=2)} to "
            f"{np.array2string(high * spread, precision=2)}; got {noise_scale!r}; use None to learn it"
        )
    return np.broadcast_to(scale, (n_features,))
