"""From a table of covariates to the columns of a regression, remembered by name."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skgroupvae.columns import caller_level, centre_and_scale, some

__all__ = ["Design"]


@dataclass
class Design:
    """Columns of the fit: a constant, numeric covariates standardised, categories as indicators.

    Attributes
    ----------
    names : list of str
        Name of each column of the design, ``sex[M]`` for a category; the first is ``Intercept``.
    categories : dict
        Categories of each column of X that is not numeric, by its position; the first has no indicator.
    indicators : list of int
        Columns of the design that are indicators of a category.
    centre, scale : ndarray of shape (P,)
        What standardised each column; 0 and 1 for the constant.
    """

    names: list[str] = field(default_factory=list)
    categories: dict[int, list[Any]] = field(default_factory=dict)
    indicators: list[int] = field(default_factory=list)
    centre: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    scale: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def fit(cls, X: Any) -> Design:
        """Learn categories, centres and scales from an array or a DataFrame of finite covariates."""
        design = cls(names=["Intercept"])
        frame = _frame(X)
        for position, (name, column) in enumerate(frame.items()):
            if _is_numeric(column):
                design.names.append(str(name))
            else:
                levels = sorted(column.dropna().unique().tolist(), key=str)
                design.categories[position] = levels
                start = len(design.names)
                design.names += [f"{name}[{level}]" for level in levels[1:]]
                design.indicators += range(start, len(design.names))
        design.centre, design.scale = centre_and_scale(design._columns(frame))
        design.centre[0] = 0.0
        return design

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Standardised columns (N, P) of a table like the one of the fit."""
        return (self._columns(_frame(X)) - self.centre) / self.scale

    def contrast(self, column: int, values: Any, step: float) -> tuple[tuple[Any, Any], float]:
        """Two settings of a column and their distance in units: a category off and on, a step each way."""
        if column in self.indicators:
            centre, scale = self.centre[column], self.scale[column]
            return (-centre / scale, (1.0 - centre) / scale), 1.0
        return (values - step, values + step), 2.0 * step * float(self.scale[column])

    def column_of(self, names: Any) -> list[int]:
        """Columns of the design that belong to these columns of X, by name or position."""
        found: list[int] = []
        for wanted in names:
            stem = f"{wanted}["
            match = [
                j for j, name in enumerate(self.names) if j and (name == str(wanted) or name.startswith(stem))
            ]
            if not match:
                raise ValueError(
                    f"random_slopes names {wanted!r}, which is not a column of X; its columns give "
                    f"{some(self.names[1:])}"
                )
            found += match
        return found

    def _columns(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        parts = [np.ones((len(frame), 1))]
        for position, (name, column) in enumerate(frame.items()):
            if position not in self.categories:
                parts.append(column.to_numpy(dtype=np.float64)[:, None])
                continue
            levels = self.categories[position]
            known = column.isin(levels)
            if not known.all():
                unseen = list(dict.fromkeys(column[~known]))
                warnings.warn(
                    f"column {name!r} of X has categories {some(unseen)} that the fit has not seen; their "
                    "rows get the mean of this column's indicators",
                    UserWarning,
                    stacklevel=caller_level(),
                )
            block = np.column_stack(
                [(column == level).to_numpy(dtype=float) for level in levels[1:]]
                or [np.empty((len(frame), 0))]
            )
            if not known.all():
                start = sum(part.shape[1] for part in parts)
                block[~known.to_numpy()] = self.centre[start : start + block.shape[1]]
            parts.append(block)
        return np.hstack(parts)


def _frame(X: Any) -> pd.DataFrame:
    return X if isinstance(X, pd.DataFrame) else pd.DataFrame(np.asarray(X))


def _is_numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column.dtype)
