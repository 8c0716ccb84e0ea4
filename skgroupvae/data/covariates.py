"""Covariates beside the observations: columns of X by name, or a table of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils.validation import _num_samples

from skgroupvae.data.checks import SeenColumns, check_covariates
from skgroupvae.data.design import PlainDesign
from skgroupvae.data.tables import as_pandas, check_unique_columns, some

__all__ = ["Covariates"]


@dataclass(frozen=True, eq=False)
class Covariates:
    """How the covariates of a fit are found and read.

    Attributes
    ----------
    owner : str
        Name of the estimator, for messages.
    columns : tuple of str or None
        Columns of X that they are; None where they come as a table of their own.
    seen : SeenColumns
        Columns of that table.
    design : PlainDesign
        What makes a design of them.
    """

    owner: str
    columns: tuple[str, ...] | None
    seen: SeenColumns
    design: PlainDesign

    @classmethod
    def learn(cls, X: Any, covariates: Any, owner: str) -> tuple[Self, Any, NDArray[np.float64]]:
        """What a fit learns of its covariates, the other columns of X, and the design (N, 1 + C)."""
        columns, table, name = _named(covariates), covariates, "covariates"
        if columns is not None:
            X, table = _split(X, columns, owner)
            name = "X"
        checked, seen = _checked(table, _num_samples(X), owner, None, name)
        design = PlainDesign.learn(checked)
        return cls(owner, columns, seen, design), X, design.transform(checked)

    def read(self, X: Any, covariates: Any, names: tuple[str, str]) -> tuple[Any, NDArray[np.float64]]:
        """Other columns of X, and the design (N, 1 + C) of its rows; `names` are those of the arguments."""
        if self.columns is not None:
            if covariates is not None and _named(covariates) != self.columns:
                raise ValueError(
                    f"{names[1]} must be left out: this {self.owner} was fitted with the columns "
                    f"{some(list(self.columns))} of X as covariates, and takes them from X"
                )
            X, covariates = _split(X, self.columns, self.owner, names[0])
            return X, self.design_of(covariates, len(X), names[0])
        if covariates is None:
            raise ValueError(
                f"{names[1]} is missing: this {self.owner} was fitted with covariates; pass theirs, one "
                f"row a row of {names[0]}"
            )
        if _named(covariates) is not None:
            raise ValueError(
                f"{names[1]} names columns, but this {self.owner} was fitted with a table of covariates; "
                f"pass one, one row a row of {names[0]}"
            )
        return X, self.design_of(covariates, _num_samples(X), names[1])

    def design_alone(self, covariates: Any, n_rows: int) -> NDArray[np.float64]:
        """Design (N, 1 + C) of rows of which there is no X."""
        if covariates is None:
            what = "a table of them" if self.columns is None else f"a table with {some(list(self.columns))}"
            raise ValueError(
                f"covariates is missing: this {self.owner} was fitted with covariates; pass {what}, one row "
                f"for each of {n_rows}"
            )
        return self.design_of(covariates, n_rows)

    def design_of(self, covariates: Any, n_rows: int, name: str = "covariates") -> NDArray[np.float64]:
        """Design (N, 1 + C) of a table with the covariates, which may have other columns if X had."""
        table = as_pandas(covariates)
        if self.columns is not None and isinstance(table, pd.DataFrame):
            _check_columns(table, self.columns, name)
            table = table[list(self.columns)]
        checked, _ = _checked(table, n_rows, self.owner, self.seen, name)
        return self.design.transform(checked, name)


def _named(covariates: Any) -> tuple[str, ...] | None:
    """Names of columns, where it is a name or a list of them; None for a table."""
    if isinstance(covariates, str):
        return (covariates,)
    is_list = isinstance(covariates, (list, tuple, pd.Index))
    if is_list and len(covariates) and all(isinstance(name, str) for name in covariates):
        return tuple(covariates)
    return None


def _split(X: Any, columns: tuple[str, ...], owner: str, name: str = "X") -> tuple[Any, pd.DataFrame]:
    """Other columns, and the covariates."""
    X = as_pandas(X)
    if not isinstance(X, pd.DataFrame):
        raise ValueError(
            f"covariates={list(columns)} names columns, but {name} is not a data frame; pass a data frame, "
            "or (in fit too) the covariates as a table"
        )
    _check_columns(X, columns, name)
    if len(columns) == X.shape[1]:
        raise ValueError(
            f"covariates={some(list(columns))} are all columns of {name}; leave at least one column that "
            f"{owner} is to model"
        )
    return X.drop(columns=list(columns)), X[list(columns)]


def _check_columns(X: pd.DataFrame, columns: tuple[str, ...], name: str) -> None:
    """Refuse a table without these columns."""
    check_unique_columns(X, name)
    unknown = [column for column in columns if column not in X.columns]
    if unknown:
        raise ValueError(
            f"covariates {some(unknown)} are not columns of {name}; its columns are "
            f"{some(list(X.columns))}; pass a table that has them"
        )
    if len(set(columns)) < len(columns):
        raise ValueError(f"covariates={list(columns)} names a column twice; name each once")


def _checked(
    covariates: Any, n_rows: int, owner: str, seen: SeenColumns | None, name: str
) -> tuple[Any, SeenColumns]:
    table = as_pandas(covariates)
    if isinstance(table, pd.Series):
        table = table.to_frame()
    elif not isinstance(table, pd.DataFrame):
        table = _as_array(table, name)
        if table.dtype.kind not in "biuf":
            table = pd.DataFrame(table).infer_objects()
    checked, seen = check_covariates(table, owner=owner, seen=seen, name=name)
    if len(checked) != n_rows:
        raise ValueError(
            f"{name} must have one row for each of {n_rows} rows, got {len(checked)}; pass as many"
        )
    return checked, seen


def _as_array(covariates: Any, name: str) -> NDArray:
    try:
        table = np.asarray(covariates)
    except ValueError:
        table = np.empty(())  # rows of different lengths
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2:
        raise ValueError(
            f"{name} must be names of columns of X or a table with one row a row of X, got "
            f"{type(covariates).__name__}; pass a data frame, for instance"
        )
    return table
