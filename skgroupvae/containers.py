"""Results in the container the user asked for (``set_output``) or gave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils._set_output import ADAPTERS_MANAGER, _get_output_config

__all__ = ["like_input", "wrap_codes"]


def wrap_codes(estimator: BaseEstimator, codes: NDArray, original: Any, columns: list[str]) -> Any:
    """Codes as an array, or as the data frame that ``set_output`` or the global configuration names."""
    kind = _get_output_config("transform", estimator)["dense"]
    if kind == "default":
        return codes
    return ADAPTERS_MANAGER.adapters[kind].create_container(codes, original, columns=columns)


def like_input(values: NDArray, original: Any, group_column: Any = None, labels: Any = None) -> Any:
    """Rows as the container X came in, with the labels in the group column where X has one."""
    if isinstance(original, pd.DataFrame):
        columns = list(original.columns)
        frame = pd.DataFrame(
            values, index=original.index, columns=[name for name in columns if name != group_column]
        )
        if group_column is not None:
            frame[group_column] = _labels_like(original[group_column], labels)
        return frame[columns]
    if group_column is None:
        return values
    original = np.asarray(original)
    table = np.empty(original.shape, dtype=np.result_type(values, original))
    position = group_column % original.shape[1]
    table[:, position] = np.asarray(labels)
    table[:, np.arange(original.shape[1]) != position] = values
    return table


def _labels_like(column: pd.Series, labels: Any) -> pd.Series:
    """Labels as a column of the same type, unless a category it does not have would be lost by that."""
    by_row = pd.Series(np.asarray(labels), index=column.index)
    if isinstance(column.dtype, pd.CategoricalDtype) and not by_row.isin(column.cat.categories).all():
        return by_row
    return by_row.astype(column.dtype)
