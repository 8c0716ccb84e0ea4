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
            frame[group_column] = np.asarray(labels)
        return frame[columns]
    if group_column is None:
        return values
    return np.insert(values, group_column % (values.shape[1] + 1), np.asarray(labels), axis=1)
