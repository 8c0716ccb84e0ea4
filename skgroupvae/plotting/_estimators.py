"""Reading estimators by their public attributes and methods."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skgroupvae.plotting._inputs import column_names, column_position, table_column

__all__ = ["codes_of", "split_labels"]


def split_labels(estimator: Any, X: Any, groups: Any) -> tuple[Any, Any, Any]:
    """Estimator, table and labels apart, also where the estimator reads labels from a `group_column`.

    The estimator that comes back has no such column; the one that was passed stays as it is.
    """
    wanted = getattr(estimator, "group_column", None)
    if wanted is None:
        return estimator, X, groups
    if groups is not None:
        raise ValueError("groups= and group_column are both given; pass one of them")
    several = isinstance(wanted, (list, tuple))
    where = [column_position(X, name, "group_column") for name in (wanted if several else [wanted])]
    parts = [table_column(X, position) for position in where]
    kept = [j for j in range(len(column_names(X))) if j not in where]
    table = X[[X.columns[j] for j in kept]] if hasattr(X, "columns") else np.asarray(X)[:, kept]
    labels = list(zip(*parts, strict=True)) if several else list(parts[0])
    return copy.copy(estimator).set_params(group_column=None), table, labels


def codes_of(estimator: Any, X: Any, y: Any, groups: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Codes u (n_rows, U) and v (n_rows, V) of rows."""
    found = estimator.transform(X, groups=groups) if y is None else estimator.transform(X, y, groups=groups)
    if not isinstance(found, tuple):
        found = np.split(np.asarray(found), [estimator.n_group_codes], axis=1)
    u, v = (np.asarray(codes, dtype=np.float64) for codes in found)
    return u, v
