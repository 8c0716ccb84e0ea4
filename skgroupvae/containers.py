"""Results in the container the user asked for (``set_output``) or gave."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils._set_output import ADAPTERS_MANAGER, _get_output_config
from sklearn.utils.validation import check_is_fitted

from skgroupvae.columns import as_pandas, is_polars, label_columns

__all__ = ["CodesMixin", "check_container", "like_input", "wrap_codes"]


class CodesMixin:
    """`set_output` and the names of codes, for an estimator whose `transform` gives group and instance codes.

    The estimator has the parameter `stack_codes`, the fitted table `group_codes_` and `_n_instance_codes`.
    """

    stack_codes: bool
    group_codes_: pd.DataFrame

    @property
    def _n_instance_codes(self) -> int:
        raise NotImplementedError

    def set_output(self, *, transform: str | None = None) -> Self:
        """Choose the container that `transform` returns its codes in.

        scikit-learn's own wrapper does not know a transformer that returns two tables of codes.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"} or None
            None changes nothing.

        Returns
        -------
        self : estimator

        Raises
        ------
        ValueError
            If there is no such container.
        """
        if transform is not None:
            check_container(transform)
            self._sklearn_output_config = {"transform": transform}
        return self

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the codes: u0, u1, ..., then v0, v1, ...

        Parameters
        ----------
        input_features : None
            Ignored; codes are not columns of X.

        Returns
        -------
        names : ndarray of str of shape (U + V,)
        """
        check_is_fitted(self)
        return np.array(self._code_names("u") + self._code_names("v"), dtype=object)

    def _code_names(self, kind: str) -> list[str]:
        n_codes = self.group_codes_.shape[1] if kind == "u" else self._n_instance_codes
        return [f"{kind}{j}" for j in range(n_codes)]

    def _wrap(self, X: Any, u: NDArray, v: NDArray) -> Any:
        """Codes in the container that ``set_output`` names: (u, v), or one table with `stack_codes`."""
        u_names, v_names = self._code_names("u"), self._code_names("v")
        if self.stack_codes:
            return wrap_codes(self, np.hstack([u, v]), X, u_names + v_names)
        return wrap_codes(self, u, X, u_names), wrap_codes(self, v, X, v_names)


def check_container(name: Any) -> None:
    """Refuse what ``set_output`` cannot mean."""
    known = ["default", *ADAPTERS_MANAGER.adapters]
    if name not in known:
        raise ValueError(f"transform={name!r} is not a container; set_output takes one of {known} or None")


def wrap_codes(estimator: Any, codes: NDArray, original: Any, columns: list[str]) -> Any:
    """Codes as an array, or as the data frame that ``set_output`` or the global configuration names."""
    kind = _get_output_config("transform", estimator)["dense"]
    if kind == "default":
        return codes
    return ADAPTERS_MANAGER.adapters[kind].create_container(codes, original, columns=columns)


def like_input(values: NDArray, original: Any, group_column: Any = None, labels: Any = None) -> Any:
    """Rows as the container X came in, with the labels in the group columns where X has them.

    Columns of floats keep their width; columns of integers become float64, as their values are means.
    """
    if is_polars(original):
        return _like_polars(like_input(values, as_pandas(original), group_column, labels), original)
    columns = [] if group_column is None else label_columns(original, group_column)
    parts = _label_parts(labels, len(columns)) if isinstance(group_column, list) else [labels]
    if isinstance(original, pd.DataFrame):
        kept = [name for name in original.columns if name not in columns]
        frame = pd.DataFrame(values, index=original.index, columns=kept)
        floats = {name: original[name].dtype for name in kept if original[name].dtype.kind == "f"}
        frame = frame.astype({name: dtype for name, dtype in floats.items() if frame[name].dtype != dtype})
        for column, part in zip(columns, parts, strict=False):
            frame[column] = _labels_like(original[column], part)
        return frame[list(original.columns)]
    if group_column is None:
        return values
    original = np.asarray(original)
    table = np.empty(original.shape, dtype=np.result_type(values, original))
    for position, part in zip(columns, parts, strict=True):
        table[:, position] = np.asarray(part)
    table[:, np.setdiff1d(np.arange(original.shape[1]), columns)] = values
    return table


def _label_parts(labels: Any, n_columns: int) -> list[NDArray]:
    """Labels that are tuples, taken apart by column."""
    parts = [np.empty(len(labels), dtype=object) for _ in range(n_columns)]
    for row, label in enumerate(labels):
        if not isinstance(label, tuple) or len(label) != n_columns:
            raise ValueError(
                f"target_group {label!r} must be a tuple of {n_columns} labels, one a column of group_column"
            )
        for part, value in zip(parts, label, strict=True):
            part[row] = value
    return parts


def _labels_like(column: pd.Series, labels: Any) -> pd.Series:
    """Labels as a column of the same type, unless a category it does not have would be lost by that."""
    by_row = pd.Series(np.asarray(labels), index=column.index)
    if isinstance(column.dtype, pd.CategoricalDtype) and not by_row.isin(column.cat.categories).all():
        return by_row
    return by_row.astype(column.dtype)


def _like_polars(frame: pd.DataFrame, original: Any) -> Any:
    """A pandas table as a polars one, label and float columns with the types of the original."""
    import polars

    columns = {}
    for name, dtype in original.schema.items():
        column = frame[name]
        series = polars.Series(name, column.to_numpy() if column.dtype.kind in "fiub" else column.tolist())
        keeps = dtype.is_float() or not dtype.is_numeric() or column.dtype.kind in "iu"
        columns[name] = series.cast(dtype) if keeps and series.dtype != dtype else series
    return polars.DataFrame(columns)
