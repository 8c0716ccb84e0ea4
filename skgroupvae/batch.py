"""A table on its way through a model: values, covariates and groups of its rows, as tensors.

Shapes throughout the package: N rows, D observed columns, P columns of the design, G groups, U group codes,
V instance codes, S draws. Rows of all groups are concatenated and nothing is padded, so a group of one row
and a group of 100,000 cost what their rows cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

__all__ = ["MAX_ROWS_PER_BATCH", "Batch", "RandomTerm", "Segments", "whole_group_batches"]

# A batch or an inference chunk holds at most about this many rows (one larger group still goes whole), so
# that memory does not grow with the size of the groups.
MAX_ROWS_PER_BATCH = 65_536


@dataclass(frozen=True)
class Segments:
    """Which group each row of a batch belongs to, for one grouping factor.

    Attributes
    ----------
    codes : Tensor of shape (N,)
        Position of each row's group, in 0..G-1.
    sizes : Tensor of shape (G,)
        Number of rows of each group, as floats.
    """

    codes: Tensor
    sizes: Tensor

    @classmethod
    def of_sizes(cls, sizes: Tensor) -> Self:
        """Groups of these sizes, the rows of each standing next to each other."""
        codes = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes.long())
        return cls(codes, sizes.double())

    @property
    def n_groups(self) -> int:
        return self.sizes.shape[0]

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Where each group's rows begin, and how many they are, as integers; of rows that stand by group."""
        sizes = self.sizes.long()
        return sizes.cumsum(0) - sizes, sizes

    def sum(self, rows: Tensor) -> Tensor:
        """Sum over the rows of each group: (N, *) -> (G, *)."""
        zeros = rows.new_zeros((self.n_groups, *rows.shape[1:]))
        return zeros.index_add(0, self.codes, rows)

    def expand(self, by_group: Tensor) -> Tensor:
        """Repeat each group's value on its rows: (G, *) -> (N, *)."""
        return by_group.index_select(0, self.codes)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Segments:
        return Segments(self.codes.to(device), self.sizes.to(device=device, dtype=dtype))

    def take(self, rows: Tensor) -> Segments:
        """The groups of these rows (n,); a group may be left without any."""
        codes = self.codes[rows]
        return Segments(codes, torch.bincount(codes, minlength=self.n_groups).to(self.sizes))


@dataclass(frozen=True)
class RandomTerm:
    """Columns whose coefficients vary between the groups of one grouping factor, as lme4's ``(z | factor)``.

    Attributes
    ----------
    columns : tuple of int
        Columns of the design, Q of them.
    factor : int
        Position of the grouping factor in :attr:`Batch.factors`.
    """

    columns: tuple[int, ...]
    factor: int = 0


@dataclass(frozen=True)
class Batch:
    """Rows of a table, in the units of the model.

    Rows with a grouping factor stand by the groups of the first one, in the order of its codes, so that whole
    groups are slices.

    Attributes
    ----------
    values : Tensor of shape (N, D)
        Observed columns; 0 where a cell is missing.
    design : Tensor of shape (N, P)
        Columns of the fixed effects, the first of them constant.
    weights : Tensor of shape (N,)
        How many rows each row counts as.
    factors : tuple of Segments
        The groups of each grouping factor; empty for rows that are read one by one.
    mask : Tensor of shape (N, D) or None
        True where a cell is observed; None where all are.
    """

    values: Tensor
    design: Tensor
    weights: Tensor
    factors: tuple[Segments, ...] = ()
    mask: Tensor | None = None

    @property
    def n_rows(self) -> int:
        return self.values.shape[0]

    @property
    def groups(self) -> Segments:
        """Groups of the first factor."""
        return self.factors[0]

    @property
    def covariates(self) -> Tensor | None:
        """Columns of the design beside the constant (N, P - 1); None without."""
        return self.design[:, 1:] if self.design.shape[1] > 1 else None

    def to(self, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Batch:
        """On a device, or with its numbers in a floating type."""
        device = device or self.values.device
        values, design, weights = (
            part.to(device=device, dtype=dtype) for part in (self.values, self.design, self.weights)
        )
        mask = None if self.mask is None else self.mask.to(device)
        factors = tuple(factor.to(device, dtype) for factor in self.factors)
        return Batch(values, design, weights, factors, mask)

    def take(self, rows: Tensor | slice) -> Batch:
        """Some of the rows, each by itself: the groups are left out."""
        mask = None if self.mask is None else self.mask[rows]
        return Batch(self.values[rows], self.design[rows], self.weights[rows], (), mask)

    def take_groups(self, positions: Tensor) -> Batch:
        """Whole groups of the first factor, in this order; other factors keep the groups that occur."""
        starts, all_sizes = self.groups.bounds
        sizes = all_sizes[positions]
        shift = starts[positions] - (sizes.cumsum(0) - sizes)
        codes = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
        rows = torch.arange(len(codes), device=sizes.device) + shift[codes]
        first = Segments(codes, self.groups.sizes[positions])
        others = tuple(_occurring(factor.codes[rows], factor.sizes) for factor in self.factors[1:])
        return replace(self.take(rows), factors=(first, *others))

    def first_groups(self, n_groups: int) -> Batch:
        """The first groups of the first factor, as many as there are: a slice where it is the only one."""
        groups = self.groups
        if groups.n_groups <= n_groups:
            return self
        if len(self.factors) > 1:
            return self.take_groups(torch.arange(n_groups, device=groups.sizes.device))
        stop = int(groups.sizes[:n_groups].sum())
        first = Segments(groups.codes[:stop], groups.sizes[:n_groups])
        return replace(self.take(slice(stop)), factors=(first,))

    def with_parts(self, share: float, generator: torch.Generator) -> Batch:
        """A share of the groups with a random part of their rows only, the others whole.

        How many rows are left is log-uniform between one and all: few are as usual as many.
        """
        groups = self.groups
        chosen, power = torch.rand((2, groups.n_groups), generator=generator).to(self.values)
        left = torch.where(chosen < share, (groups.sizes + 1.0).pow(power).floor(), groups.sizes)
        mark = torch.rand(self.n_rows, generator=generator, dtype=torch.float64).to(self.values.device)
        # Random order within a group, which stays where it is: the rows at its first places are the part.
        order = torch.argsort(groups.codes + mark)
        place = torch.arange(self.n_rows, device=order.device) - groups.expand(groups.bounds[0])
        kept = order[place < groups.expand(left)].sort().values
        return self._part(kept)

    def thinned(self, generator: torch.Generator) -> Batch:
        """A random share of each group's rows, one at least.

        The share is uniform between 0 and 1, so that groups come in every size up to their own.
        """
        groups = self.groups
        share = torch.rand(groups.n_groups, generator=generator).to(self.values.device)
        mark = torch.rand(self.n_rows, generator=generator).to(self.values.device)
        lowest = mark.new_ones(groups.n_groups).scatter_reduce(0, groups.codes, mark, "amin")
        kept = torch.nonzero((mark < groups.expand(share)) | (mark == groups.expand(lowest)))[:, 0]
        return self._part(kept)

    def _part(self, rows: Tensor) -> Batch:
        """Some of the rows, in their order, of the same groups."""
        return replace(self.take(rows), factors=tuple(factor.take(rows) for factor in self.factors))


def _occurring(codes: Tensor, sizes: Tensor) -> Segments:
    """Segments of the groups that occur among these codes, counted anew."""
    _, compact, counts = torch.unique(codes, return_inverse=True, return_counts=True)
    return Segments(compact, counts.to(sizes))


def whole_group_batches(
    sizes: Tensor,
    n_groups: int,
    *,
    permutation: Tensor | None = None,
    max_rows: int = MAX_ROWS_PER_BATCH,
) -> Iterator[Tensor]:
    """Positions of the groups of each batch: every group once, whole, none dropped.

    A batch ends at `n_groups` groups or before it would pass `max_rows` rows, whichever is first.

    Parameters
    ----------
    sizes : Tensor of shape (G,)
        Rows of each group.
    n_groups : int
        Groups in a batch at most.
    permutation : Tensor of int, optional
        The groups to go through, in this order; None takes all as they stand.
    max_rows : int
        Rows in a batch at most, unless one group alone has more.

    Yields
    ------
    positions : Tensor of int
    """
    positions = torch.arange(len(sizes)) if permutation is None else permutation
    ends = sizes.cpu().long()[positions].cumsum(0)
    start = 0
    while start < len(positions):
        before = int(ends[start - 1]) if start else 0
        by_rows = int(torch.searchsorted(ends, before + max_rows, right=True))
        stop = min(start + n_groups, max(by_rows, start + 1))
        yield positions[start:stop]
        start = stop
