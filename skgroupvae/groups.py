"""Ragged groups: labels to codes, whole-group batches, and reductions by segment.

Rows of all groups are concatenated and nothing is padded, so a group of one row and a group of 100,000 cost
what their rows cost. Shapes throughout the package: N rows, G groups, D columns, U group codes, V instance
codes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["GroupIndex", "Segments", "iter_group_batches"]

# A batch or an inference chunk holds at most about this many rows (one larger group still goes whole), so
# that memory does not grow with the size of the groups.
MAX_ROWS_PER_BATCH = 65_536


@dataclass(frozen=True)
class Segments:
    """Which group each row of a batch belongs to.

    Attributes
    ----------
    codes : Tensor of shape (N,)
        Position of each row's group, in 0..G-1; rows may come in any order.
    sizes : Tensor of shape (G,)
        Number of rows of each group, as floats.
    """

    codes: Tensor
    sizes: Tensor

    @property
    def n_groups(self) -> int:
        return self.sizes.shape[0]

    def sum(self, rows: Tensor) -> Tensor:
        """Sum over the rows of each group: (N, *) -> (G, *)."""
        zeros = rows.new_zeros((self.n_groups, *rows.shape[1:]))
        return zeros.index_add(0, self.codes, rows)

    def expand(self, by_group: Tensor) -> Tensor:
        """Repeat each group's value on its rows: (G, *) -> (N, *)."""
        return by_group.index_select(0, self.codes)

    def to(self, device: torch.device) -> Segments:
        return Segments(self.codes.to(device), self.sizes.to(device))

    def thinned(self, generator: torch.Generator) -> tuple[Tensor, Segments]:
        """Positions (n,) of a random share of each group's rows, one at least, and the groups of these.

        The share is uniform between 0 and 1, so that groups come in every size up to their own.
        """
        share = torch.rand(self.n_groups, generator=generator).to(self.codes.device)
        mark = torch.rand(len(self.codes), generator=generator).to(self.codes.device)
        lowest = mark.new_ones(self.n_groups).scatter_reduce(0, self.codes, mark, "amin")
        kept = torch.nonzero((mark < self.expand(share)) | (mark == self.expand(lowest)))[:, 0]
        codes = self.codes[kept]
        return kept, Segments(codes, torch.bincount(codes, minlength=self.n_groups).to(self.sizes))


@dataclass(frozen=True)
class GroupIndex:
    """The groups of a table, computed once from its labels.

    Attributes
    ----------
    labels : Index of length G
        Distinct labels in order of first appearance.
    codes : ndarray of shape (N,)
        Position in `labels` of each row's label.
    sizes : ndarray of shape (G,)
        Number of rows of each group.
    order : ndarray of shape (N,)
        Row positions sorted by group: ``order[starts[g]:starts[g + 1]]`` are the rows of group g.
    starts : ndarray of shape (G + 1,)
        Where each group begins in `order`.
    """

    labels: pd.Index
    codes: NDArray[np.intp]
    sizes: NDArray[np.intp]
    order: NDArray[np.intp]
    starts: NDArray[np.intp]

    @classmethod
    def from_labels(
        cls, labels: Sequence[Hashable] | NDArray | pd.Series, X: NDArray | None = None
    ) -> GroupIndex:
        """Index one-dimensional labels of any hashable kind, none of them missing.

        With the rows `X` (N, D), the rows of a group are ordered by their values, whatever order they came
        in: sums and random draws then do not depend on the caller's order, to the last bit.
        """
        codes, distinct = pd.factorize(as_label_array(labels))
        # An Index of tuples would become a MultiIndex, whose entries no longer look up as one label.
        index = pd.Index(np.asarray(distinct), tupleize_cols=False)
        sizes = np.bincount(codes, minlength=len(index))
        starts = np.concatenate([[0], np.cumsum(sizes)])
        order = np.argsort(codes, kind="stable") if X is None else np.lexsort((_row_keys(X), codes))
        return cls(index, codes, sizes, order, starts)

    @property
    def n_groups(self) -> int:
        return len(self.labels)

    def by_content(self, X: NDArray) -> NDArray[np.intp]:
        """Positions of the groups ordered by their rows' values, not by label or first appearance."""
        keys = _row_keys(X)[self.order]
        return np.lexsort((np.add.reduceat(keys, self.starts[:-1]), self.sizes))

    def rows_of(self, group_positions: NDArray[np.intp]) -> tuple[NDArray[np.intp], Segments]:
        """Rows of whole groups, concatenated, and the segments that tell them apart."""
        sizes = self.sizes[group_positions]
        codes = np.repeat(np.arange(len(group_positions)), sizes)
        shift = self.starts[group_positions] - (np.cumsum(sizes) - sizes)
        rows = self.order[np.arange(codes.shape[0]) + np.repeat(shift, sizes)]
        return rows, Segments(torch.from_numpy(codes), torch.from_numpy(sizes.astype(np.float32)))


def as_label_array(labels: Sequence[Hashable] | NDArray | pd.Series) -> NDArray | pd.Series:
    """Labels as a one-dimensional container; a list of tuples stays a list of labels, not a table."""
    if isinstance(labels, (np.ndarray, pd.Series, pd.Index, pd.api.extensions.ExtensionArray)):
        return labels
    labels = list(labels)
    return np.fromiter(labels, dtype=object, count=len(labels))


def _row_keys(X: NDArray) -> NDArray[np.float64]:
    """One number a row by which rows can be ordered; rows that differ have different ones, but for chance."""
    weights = np.cos(np.arange(1, X.shape[1] + 1))
    return (np.asarray(X, dtype=np.float64) * weights).sum(axis=1)


def iter_group_batches(
    sizes: NDArray[np.intp],
    n_groups_per_batch: int,
    *,
    permutation: NDArray[np.intp] | None = None,
    max_rows: int = MAX_ROWS_PER_BATCH,
) -> Iterator[NDArray[np.intp]]:
    """Yield the positions of the groups of each batch: every group once, whole, none dropped.

    A batch ends at `n_groups_per_batch` groups or before it would pass `max_rows` rows, whichever is first.
    """
    positions = np.arange(len(sizes)) if permutation is None else permutation
    cumulative = np.concatenate([[0], np.cumsum(sizes[positions])])
    start = 0
    while start < len(positions):
        by_rows = np.searchsorted(cumulative, cumulative[start] + max_rows, side="right") - 1
        stop = min(start + n_groups_per_batch, max(int(by_rows), start + 1))
        yield positions[start:stop]
        start = stop
