"""The one place where tables and labels become batches: what a fit learned of its tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from skgroupvae.batch import Batch, Segments
from skgroupvae.data.checks import SeenColumns, check_table
from skgroupvae.data.columns import Column, center_and_scale
from skgroupvae.data.covariates import Covariates
from skgroupvae.data.labels import (
    canonical_order,
    check_groups,
    check_labels_to_add,
    index_labels,
    split_group_column,
)

__all__ = ["ObservationReader", "Rows", "Table", "as_batch"]


@dataclass(frozen=True, eq=False)
class Table:
    """A table as the model sees it, and the way back to the caller's rows.

    Attributes
    ----------
    batch : Batch
        Rows in canonical order, float64: their order does not depend on the caller's.
    labels : Index of length G
        Label of each group of the batch.
    order : ndarray of shape (N,)
        Position, in the caller's table, of each row of the batch.
    first_seen : ndarray of shape (G,)
        Groups of the batch in the order in which the caller's table first has them.
    dtype : dtype
        Floating type that results have.
    has_labels : bool
        Whether the caller gave labels; if not, each row is a new group and `labels` only counts them.
    """

    batch: Batch
    labels: pd.Index
    order: NDArray[np.intp]
    first_seen: NDArray[np.intp]
    dtype: np.dtype
    has_labels: bool = True

    @classmethod
    def of_rows(
        cls,
        values: NDArray[np.float64],
        labels: Any,
        *,
        design: NDArray[np.float64] | None = None,
        weights: NDArray[np.float64] | None = None,
        mask: NDArray[np.bool_] | None = None,
        dtype: Any = np.float64,
    ) -> Self:
        """A table from rows in the units of the model, each with a label.

        Parameters
        ----------
        values : ndarray of shape (N, D)
        labels : labels of shape (N,)
        design : ndarray of shape (N, P), optional
            None is the constant alone.
        weights : ndarray of shape (N,), optional
            None is 1 for each row.
        mask : ndarray of bool of shape (N, D), optional
            None where all cells are observed.
        dtype : dtype
            Floating type that results have.
        """
        # All that tells rows apart: which of two equal rows comes first then makes no difference.
        given = [part for part in (values, weights, design, mask) if part is not None]
        content = np.asarray(np.column_stack(given) if len(given) > 1 else values, dtype=np.float64)
        codes, index = index_labels(labels)
        order, group_order = canonical_order(codes, content)
        sizes = np.bincount(codes, minlength=len(index))[group_order]
        batch = as_batch(*(None if part is None else part[order] for part in (values, design, weights, mask)))
        batch = replace(batch, factors=(Segments.of_sizes(torch.from_numpy(sizes)),))
        return cls(batch, index[group_order], order, np.argsort(group_order), np.dtype(dtype))

    def in_given_order(self, rows: torch.Tensor, dtype: Any = None) -> NDArray:
        """Values of the batch's rows (N, *) as an array in the caller's order."""
        values = np.empty(rows.shape, dtype=dtype or self.dtype)
        values[self.order] = rows.cpu().numpy()
        return values


class Rows(NamedTuple):
    """Rows in the units of the table (N, D), the design of their covariates (N, 1 + C), and labels."""

    x: NDArray[np.floating]
    design: NDArray[np.float64] | None
    labels: Any


@dataclass(frozen=True, eq=False)
class ObservationReader:
    """Tables of observations, with or without covariates.

    Attributes
    ----------
    owner : str
        Name of the estimator, for messages.
    seen : SeenColumns
        Columns of the fit, without those of labels and covariates.
    columns : tuple of Column
        How each of them is standardized, and the family that it has.
    has_groups : bool
        Whether the fit had labels.
    group_column : str, int, list, tuple or None
        Column of the labels.
    covariates : Covariates or None
        How covariates are read; None in a fit without.
    """

    owner: str
    seen: SeenColumns
    columns: tuple[Column, ...]
    has_groups: bool
    group_column: str | int | list | tuple | None = None
    covariates: Covariates | None = None

    @classmethod
    def learn(cls, X: Any, groups: Any, covariates: Any, group_column: Any, owner: str) -> tuple[Self, Table]:
        """The reader of a fit, and its table; warns where there are no labels."""
        table, labels = split_group_column(X, group_column, groups)
        learned = design = None
        if covariates is not None:
            learned, table, design = Covariates.learn(table, covariates, owner)
        x, seen = check_table(table, owner=owner)
        names = range(seen.n_features) if seen.feature_names is None else seen.feature_names
        columns = tuple(
            Column(str(name), "numeric", float(center), float(scale), family="normal")
            for name, center, scale in zip(names, *center_and_scale(x), strict=True)
        )
        reader = cls(owner, seen, columns, labels is not None, group_column, learned)
        return reader, reader._labeled(Rows(x, design, labels), warn=True)

    def again(self, X: Any, groups: Any, covariates: Any, group_column: Any) -> tuple[Self, Table]:
        """A table that the fit is to resume with, and the reader that follows: standardized as before."""
        reader = replace(self, group_column=group_column)
        rows = reader.split(X, groups, covariates)
        reader = replace(reader, has_groups=rows.labels is not None)
        return reader, reader._labeled(rows, warn=True)

    @property
    def center(self) -> NDArray[np.float64]:
        return np.array([column.center for column in self.columns])

    @property
    def scale(self) -> NDArray[np.float64]:
        return np.array([column.scale for column in self.columns])

    def split(self, X: Any, groups: Any, covariates: Any, of: str = "") -> Rows:
        """Checked rows and unchecked labels; `of` is what messages add to the names of the arguments."""
        table, labels = split_group_column(X, self.group_column, groups)
        design = None
        if self.covariates is not None:
            table, design = self.covariates.read(table, covariates, (f"X{of}", f"covariates{of}"))
        elif covariates is not None:
            raise ValueError(
                f"covariates{of} is given, but this {self.owner} was fitted without; leave it out, or fit "
                "with covariates"
            )
        return Rows(check_table(table, owner=self.owner, seen=self.seen, name=f"X{of}")[0], design, labels)

    def read(self, X: Any, groups: Any, covariates: Any, of: str = "", *, adds: bool = False) -> Table:
        """A table like that of the fit; without labels each row is a group of its own.

        With `adds` it is to add to the rows of the fit, whose labels it then needs.
        """
        rows = self.split(X, groups, covariates, of)
        if adds:
            check_labels_to_add(rows.labels, self.has_groups, self.owner)
        return self._labeled(rows, name=f"groups{of}")

    def rows_alone(self, table: Table) -> Batch:
        """Rows of a table, each a group of its own."""
        alone = Segments.of_sizes(torch.ones(table.batch.n_rows, dtype=torch.long))
        return replace(table.batch, factors=(alone,))

    def in_units(self, values: NDArray) -> NDArray[np.float64]:
        """Standardized rows (*, D) in the units of the table."""
        return values.astype(np.float64) * self.scale + self.center

    @property
    def covariate_columns(self) -> list[str]:
        """Columns of X that are covariates."""
        return list((self.covariates and self.covariates.columns) or ())

    def _labeled(self, rows: Rows, *, warn: bool = False, name: str = "groups") -> Table:
        """A table from checked rows and their unchecked labels or None."""
        labels = check_groups(rows.labels, len(rows.x), self.owner, warn=warn, name=name)
        return replace(self.table(rows._replace(labels=labels)), has_labels=rows.labels is not None)

    def table(self, rows: Rows) -> Table:
        """A table from checked rows and labels."""
        standard = np.asarray((rows.x - self.center) / self.scale, dtype=np.float64)
        return Table.of_rows(standard, rows.labels, design=rows.design, dtype=rows.x.dtype)


def as_batch(
    values: NDArray | None,
    design: NDArray | None = None,
    weights: NDArray | None = None,
    mask: NDArray | None = None,
) -> Batch:
    """Rows that are read one by one, as float64; see :meth:`Table.of_rows` for what None stands for."""
    assert values is not None
    ones = torch.ones(len(values), 1, dtype=torch.float64)
    parts = [
        None if part is None else torch.from_numpy(np.require(part, np.float64, ["C", "W"]))
        for part in (values, design, weights)
    ]
    observed = None if mask is None else torch.from_numpy(np.require(mask, bool, ["C", "W"]))
    assert parts[0] is not None
    return Batch(
        parts[0],
        ones if parts[1] is None else parts[1],
        ones[:, 0] if parts[2] is None else parts[2],
        (),
        observed,
    )
