"""How displays read estimators: by their public attributes and methods."""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from skgroupvae.plotting._inputs import column_names, column_position, table_column

__all__ = [
    "codes_of",
    "column_draws",
    "expected_column",
    "one_outcome",
    "outcome_position",
    "predict_new_group",
    "read_table",
    "without_labels",
]

# Number of instance codes that the mean of a group is averaged over.
_N_CODES = 64
# A column's name in a formula, in backticks or without.
_NAME = r"(`[^`]+`|[^\s()`|~+*:]+)"
_OUTCOME, _GROUP = re.compile(rf"\s*{_NAME}\s*~"), re.compile(rf"\|\s*{_NAME}\s*\)")


class Reading(NamedTuple):
    """What an estimator reads from the arguments of a display.

    Attributes
    ----------
    columns : array or DataFrame of shape (n_rows, n_columns)
        The table without the estimator's `group_column`.
    y : array-like of shape (n_rows,) or (n_rows, M), or None
        Outcome, also where a formula reads it from the table.
    labels : sequence of length n_rows, or None
        Group labels, also where the estimator reads them from the table.
    groups : sequence of length n_rows, or None
        What the estimator's methods are to be passed: None where they read labels from the table.
    """

    columns: Any
    y: Any
    labels: Any
    groups: Any


def read_table(estimator: Any, X: Any, y: Any, groups: Any) -> Reading:
    """Columns, outcome and labels apart, wherever the estimator reads them from."""
    outcome, _ = _names_in_formula(estimator)
    if y is None and outcome is not None:
        y = table_column(X, column_position(X, outcome, "formula"))
    column = getattr(estimator, "group_column", None)
    if groups is not None and column is not None:
        raise ValueError("groups= and group_column are both given; pass one of them")
    where = _label_positions(estimator, X)
    # The labels that a formula names may be passed once more.
    if not where or groups is not None:
        return Reading(X, y, groups, groups)
    parts = [table_column(X, position) for position in where]
    labels = list(zip(*parts, strict=True)) if isinstance(column, (list, tuple)) else list(parts[0])
    return Reading(without_labels(estimator, X), y, labels, None)


def without_labels(estimator: Any, X: Any) -> Any:
    """A table without the estimator's `group_column`; that of a formula stays among the columns."""
    if getattr(estimator, "group_column", None) is None:
        return X
    where = _label_positions(estimator, X)
    kept = [j for j in range(len(column_names(X))) if j not in where]
    return X[[X.columns[j] for j in kept]] if hasattr(X, "columns") else np.asarray(X)[:, kept]


def predict_new_group(estimator: Any, X: Any) -> NDArray[np.float64]:
    """Prediction of each row as if it were of a group of which nothing is known."""
    where = _label_positions(estimator, X)
    if not where:
        return estimator.predict(X)
    # The labels are in the table, so leaving `groups` out does not hide them.
    known = {str(label) for label in estimator.group_codes_.index}
    names = ("a new group" + "'" * count for count in itertools.count())
    unseen = [next(name for name in names if not any(name in label for label in known))] * len(X)
    if not hasattr(X, "columns"):
        table = np.array(X, dtype=object)
        table[:, where[0]] = unseen
        return estimator.predict(table)
    name = X.columns[where[0]]
    if hasattr(X, "assign"):
        return estimator.predict(X.assign(**{name: unseen}))
    return estimator.predict(X.with_columns(type(X[name])(name, unseen)))  # polars


def outcome_position(estimator: Any, y: Any, column: Any) -> int | None:
    """Position of the outcome to draw among the columns of y; None where y is one outcome."""
    if y is None or np.ndim(y) != 2 or np.shape(y)[1] == 1 or getattr(estimator, "family", "") == "binomial":
        return None
    return column_position(y, column)


def one_outcome(values: Any, position: int | None) -> Any:
    """What is drawn of results that have the outcomes as last axis, where there are several."""
    return values if position is None else np.asarray(values)[..., position]


def _names_in_formula(estimator: Any) -> tuple[str | None, str | None]:
    """Columns of the outcome and of the labels that the formula names, if it does (of the first bar)."""
    text = getattr(estimator, "formula", None) or ""
    outcome, group = _OUTCOME.match(text), _GROUP.search(text)
    return outcome and outcome[1].strip("`"), group and group[1].strip("`")


def _label_positions(estimator: Any, X: Any) -> list[int]:
    """Positions of the columns of X that the estimator reads labels from."""
    wanted, argument = getattr(estimator, "group_column", None), "group_column"
    if wanted is None:
        wanted, argument = _names_in_formula(estimator)[1], "formula"
    if wanted is None:
        return []
    several = isinstance(wanted, (list, tuple))
    return [column_position(X, name, argument) for name in (wanted if several else [wanted])]


def codes_of(estimator: Any, X: Any, y: Any, groups: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Group codes u (n_rows, U) and instance codes v (n_rows, V) of rows."""
    found = estimator.transform(X, groups=groups) if y is None else estimator.transform(X, y, groups=groups)
    if not isinstance(found, tuple):
        found = np.split(np.asarray(found), [estimator.group_codes_.shape[1]], axis=1)
    u, v = (np.asarray(codes, dtype=np.float64) for codes in found)
    return u, v


def expected_column(
    estimator: Any, X: Any, groups: Any, index: NDArray[np.intp], position: int
) -> NDArray[np.float64]:
    """Expected value (n_groups,) of a column of a GroupVAE given each group code, with v from its prior."""
    u, v = codes_of(estimator, X, None, groups)
    first = np.unique(index, return_index=True)[1]
    # Each draw comes with its mirror image, so that linear effects average out exactly.
    half = np.random.default_rng(0).standard_normal((_N_CODES // 2, v.shape[1]))
    draws = np.concatenate([half, -half])
    rows = estimator.inverse_transform(
        np.repeat(u[first], len(draws), axis=0), np.tile(draws, (len(first), 1))
    )
    return np.asarray(rows)[:, position].reshape(len(first), len(draws)).mean(axis=1)


def column_draws(
    estimator: Any,
    position: int,
    index: NDArray[np.intp],
    labels: list[Hashable],
    n_samples: int,
    random_state: Any,
) -> NDArray[np.float64]:
    """Draws (n_rows, n_samples) of a column of a GroupVAE, with a new u for each group and draw."""
    # The model draws groups of equal size: that of the largest; smaller ones keep the first rows.
    nth = pd.Series(index).groupby(index).cumcount().to_numpy()
    largest = int(nth.max()) + 1
    rng = check_random_state(random_state)
    drawn = []
    for _ in range(n_samples):
        rows, _labels = estimator.sample(group_size=largest, groups=labels, random_state=rng)
        drawn.append(np.asarray(rows)[:, position].reshape(len(labels), largest)[index, nth])
    return np.stack(drawn, axis=1)
