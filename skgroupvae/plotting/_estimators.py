"""Reading estimators by their public attributes and methods."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from skgroupvae.plotting._inputs import column_names, column_position, table_column

__all__ = ["codes_of", "column_draws", "expected_column", "split_labels"]

# Instance codes that the mean of a group is taken over.
_N_CODES = 64


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


def expected_column(
    estimator: Any, X: Any, groups: Any, codes: NDArray[np.intp], position: int
) -> NDArray[np.float64]:
    """Expected value (n_groups,) of a GroupVAE's column given the code of each group, over the prior of v."""
    u, v = codes_of(estimator, X, None, groups)
    first = np.unique(codes, return_index=True)[1]
    # Each draw comes with its mirror image, so that nothing linear is left to chance.
    half = np.random.default_rng(0).standard_normal((_N_CODES // 2, v.shape[1]))
    draws = np.concatenate([half, -half])
    rows = estimator.inverse_transform(
        np.repeat(u[first], len(draws), axis=0), np.tile(draws, (len(first), 1))
    )
    return np.asarray(rows)[:, position].reshape(len(first), len(draws)).mean(axis=1)


def column_draws(
    estimator: Any,
    position: int,
    codes: NDArray[np.intp],
    labels: list[Hashable],
    n_samples: int,
    random_state: Any,
) -> NDArray[np.float64]:
    """Draws (n_rows, n_samples) of a column of a GroupVAE, u anew for each group and draw."""
    # The model draws groups of one size: the largest, of which smaller ones keep the first rows.
    nth = pd.Series(codes).groupby(codes).cumcount().to_numpy()
    largest = int(nth.max()) + 1
    rng = check_random_state(random_state)
    drawn = []
    for _ in range(n_samples):
        rows, _labels = estimator.sample(group_size=largest, groups=labels, random_state=rng)
        drawn.append(np.asarray(rows)[:, position].reshape(len(labels), largest)[codes, nth])
    return np.stack(drawn, axis=1)
