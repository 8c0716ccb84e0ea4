"""Sums over the rows of each group: all that a linear mixed model needs of a table.

Shapes: N rows, D outcomes, P columns of the design, Q random columns, G groups, K patterns of observed
outcomes, J pairs of a group and a pattern that occur together (G if K = 1). The axis C has length D if
the cells of one row differ in precision and 1 otherwise, where a sum is the same for all outcomes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from skgroupvae.batch import Batch, RandomTerm, Segments

__all__ = ["Rows", "Sums", "aggregate", "crossproducts", "moments", "rows_of", "sum_by_pattern", "sums_of"]


@dataclass(frozen=True)
class Rows:
    """A table in float64.

    Attributes
    ----------
    values : Tensor of shape (N, D)
        Outcomes; 0 where missing.
    design : Tensor of shape (N, P)
    weights : Tensor of shape (N,)
        How many rows each counts as.
    groups : Segments
    columns : list of int
        The Q random columns of the design.
    mask : Tensor of shape (N, D) or None
        True where observed.
    root : Tensor of shape (N, C) or None
        Root of the relative precision of each cell; None is one.
    """

    values: Tensor
    design: Tensor
    weights: Tensor
    groups: Segments
    columns: list[int]
    mask: Tensor | None = None
    root: Tensor | None = None

    def observed(self) -> Tensor:
        """1 where a cell is observed, otherwise 0: (N, D)."""
        return torch.ones_like(self.values) if self.mask is None else self.mask.to(self.values)

    def cell_weights(self) -> Tensor:
        """Weight times precision of each cell, 0 where missing: (N, D)."""
        weights = self.weights[:, None].expand(self.values.shape)
        weights = weights if self.root is None else weights * self.root.square()
        return weights if self.mask is None else weights * self.mask

    def residuals(self, fixed: Tensor) -> Rows:
        """With the fixed part of coefficients (P, D) taken from the values."""
        values = self.values - self.design @ fixed
        return replace(self, values=values if self.mask is None else values * self.mask)


@dataclass(frozen=True)
class Sums:
    """Sums over rows, each times its weight and the roots of the precisions of the cells.

    Attributes
    ----------
    cross : Tensor of shape (J, C, C, Q, P)
        z fᵀ of each pair.
    product : Tensor of shape (J, C, D, Q)
        z y: the first axis is of the outcome whose precision z has, the second of y.
    total_cross : Tensor of shape (K, C, C, P, P)
        f fᵀ of each pattern.
    total_product : Tensor of shape (K, C, D, P)
        f y.
    total_square : Tensor of shape (K, D, D)
        y yᵀ.
    n_rows : Tensor of shape (K,)
    observed : Tensor of bool of shape (K, D)
        The patterns.
    group, pattern : Tensor of shape (J,) or None
        Of each pair; None if K = 1.
    n_groups : int
    columns : list of int
        The Q random columns of the design.
    copies : Tensor of shape (G,) or None
        How many groups each stands for, see :func:`aggregate`; None is one.
    deviation : Tensor of shape (J, C, D, Q, V)
        Of `product`, in a group that stands for several: the outer products of all are ``copies`` times that
        of `product` plus that of these columns. V is 0 where each stands for itself.
    """

    cross: Tensor
    product: Tensor
    total_cross: Tensor
    total_product: Tensor
    total_square: Tensor
    n_rows: Tensor
    observed: Tensor
    group: Tensor | None
    pattern: Tensor | None
    n_groups: int
    columns: list[int]
    copies: Tensor | None
    deviation: Tensor

    @cached_property
    def inner(self) -> Tensor:
        """z zᵀ of each pair: (J, C, C, Q, Q)."""
        return self.cross[..., self.columns]

    @cached_property
    def n_copies(self) -> Tensor:
        """How many groups each stands for (G,)."""
        return self.n_rows.new_ones(self.n_groups) if self.copies is None else self.copies

    @cached_property
    def n_cells(self) -> float:
        """Observed cells of all rows."""
        return float(self.n_rows @ self.observed.to(self.n_rows).sum(1))

    def by_group(self, pairs: Tensor) -> Tensor:
        """Sum over the patterns of each group: (J, *) -> (G, *)."""
        if self.group is None:
            return pairs
        return pairs.new_zeros(self.n_groups, *pairs.shape[1:]).index_add(0, self.group, pairs)

    def of_pairs(self, by_group: Tensor) -> Tensor:
        """Repeat for each pair: (G, *) -> (J, *)."""
        return by_group if self.group is None else by_group[self.group]

    def by_pattern(self, pairs: Tensor) -> Tensor:
        """Sum over the groups of each pattern: (J, *) -> (K, *)."""
        if self.pattern is None:
            return pairs.sum(0, keepdim=True)
        return pairs.new_zeros(len(self.n_rows), *pairs.shape[1:]).index_add(0, self.pattern, pairs)

    def plus_square(self, square: Tensor) -> Sums:
        """With more variance of the outcomes: (K, D, D)."""
        return replace(self, total_square=self.total_square + square)

    def in_units(self, units: Tensor) -> Sums:
        """Of ``inv(units)`` times the outcomes; these are mixed only if C = 1."""
        inverse = torch.linalg.inv(units)
        return replace(
            self,
            product=torch.einsum("de,jceq->jcdq", inverse, self.product),
            total_product=torch.einsum("de,kcep->kcdp", inverse, self.total_product),
            total_square=inverse @ self.total_square @ inverse.mT,
        )

    def at_pairs(self, by_pattern: Tensor) -> Tensor:
        """Each pair's pattern: (K, *) -> (J, *), or (1, *) if there is one pattern."""
        return by_pattern if self.pattern is None else by_pattern[self.pattern]


def rows_of(batch: Batch, term: RandomTerm, precisions: Tensor | None) -> Rows:
    """The table in float64 on the CPU.

    Parameters
    ----------
    batch : Batch
    term : RandomTerm
    precisions : Tensor of shape (N, D) or None
        Those that the outcomes of each row share are told once.
    """
    batch = batch.to(device=torch.device("cpu"), dtype=torch.float64)
    mask = None if batch.mask is None or bool(batch.mask.all()) else batch.mask
    values, root = batch.values, None
    if mask is not None:
        values = torch.where(mask, values, torch.zeros_like(values))
    if precisions is not None:
        root = precisions.detach().to("cpu", torch.float64).sqrt()
        if mask is not None:
            root = torch.where(mask, root, torch.ones_like(root))
        if bool((root == root[:, :1]).all()):
            root = root[:, :1]
    factor = batch.factors[term.factor]
    return Rows(values, batch.design, batch.weights, factor, list(term.columns), mask, root)


def sums_of(rows: Rows) -> Sums:
    """Sums of a table; no memory beyond a few columns of its rows."""
    z, f, groups = rows.design[:, rows.columns], rows.design, rows.groups
    n_outcomes = rows.values.shape[1]
    pattern, observed = _patterns(rows)
    n_patterns = len(observed)
    pair, group, pair_pattern = groups.codes, None, None
    n_pairs = groups.n_groups
    if n_patterns > 1:
        pairs, pair = torch.unique(groups.codes * n_patterns + pattern, return_inverse=True)
        group, pair_pattern, n_pairs = pairs // n_patterns, pairs % n_patterns, len(pairs)
    steps = range(1 if rows.root is None else rows.root.shape[1])
    y = rows.values if rows.root is None else rows.root * rows.values
    square = _summed(pattern, n_patterns, rows.weights[:, None] * y, y)

    def scaled(columns: Tensor, step: int) -> Tensor:
        return columns if rows.root is None else rows.root[:, [step]] * columns

    def cross(codes: Tensor, size: int, left: Tensor) -> Tensor:
        pairs = [[_summed(codes, size, scaled(left, c), scaled(f, e)) for e in steps] for c in steps]
        return torch.stack([torch.stack(row, 1) for row in pairs], 1)

    def product(codes: Tensor, size: int, left: Tensor) -> Tensor:
        return torch.stack([_summed(codes, size, scaled(left, c), y) for c in steps], 1).mT

    wz, wf = rows.weights[:, None] * z, rows.weights[:, None] * f
    return Sums(
        cross(pair, n_pairs, wz), product(pair, n_pairs, wz),
        cross(pattern, n_patterns, wf), product(pattern, n_patterns, wf), square,
        f.new_zeros(n_patterns).index_add(0, pattern, rows.weights), observed,
        group, pair_pattern, groups.n_groups, rows.columns,
        None, f.new_zeros(n_pairs, len(steps), n_outcomes, z.shape[1], 0),
    )  # fmt: skip


def sum_by_pattern(rows: Rows, cells: Tensor) -> Tensor:
    """Sum of cells (N, D) over the rows of each pattern: (K, D)."""
    codes, observed = _patterns(rows)
    return cells.new_zeros(observed.shape).index_add(0, codes, cells)


def _patterns(rows: Rows) -> tuple[Tensor, Tensor]:
    """Pattern of observed outcomes of each row (N,), and the patterns (K, D)."""
    n_rows, n_outcomes = rows.values.shape
    if rows.mask is None or bool(rows.mask.all()):
        codes = torch.zeros(n_rows, dtype=torch.long, device=rows.values.device)
        return codes, torch.ones(1, n_outcomes, dtype=torch.bool, device=rows.values.device)
    observed, codes = torch.unique(rows.mask, dim=0, return_inverse=True)
    return codes, observed


def _summed(codes: Tensor, size: int, left: Tensor, right: Tensor) -> Tensor:
    """Sum of the outer products of two rows by code: (N, A), (N, B) -> (size, A, B)."""
    if size == 1:
        return (left.mT @ right)[None]
    zeros = right.new_zeros(size, right.shape[1])
    return torch.stack([zeros.index_add(0, codes, column[:, None] * right) for column in left.unbind(1)], 1)


def aggregate(sums: Sums) -> Sums:
    """Let one group stand for all that have the same sums of the design, if these are few.

    So it is with a constant design: all groups of one size are alike but for their means, of which the
    likelihood needs the mean and the covariance.
    """
    if sums.group is not None or sums.cross.shape[1] > 1:
        return sums
    design = sums.cross.flatten(1)
    if any(2 * len(torch.unique(design[:, column])) > len(design) for column in (-1, 0)):
        return sums
    _, codes, copies = torch.unique(design, dim=0, return_inverse=True, return_counts=True)
    n_kinds, n_outcomes, n_random = len(copies), *sums.product.shape[2:]
    if 2 * n_kinds > len(design):
        return sums
    kinds = torch.zeros(n_kinds, dtype=torch.long, device=codes.device)
    kinds = kinds.index_copy(0, codes, torch.arange(len(codes), device=codes.device))
    product = sums.product.flatten(1)
    copies = copies.to(product)
    mean = product.new_zeros(n_kinds, product.shape[1]).index_add(0, codes, product) / copies[:, None]
    rest = product - mean[codes]
    values, vectors = torch.linalg.eigh(_summed(codes, n_kinds, rest, rest))
    deviation = vectors * values.clamp(min=0.0).sqrt()[:, None]
    return replace(
        sums,
        cross=sums.cross[kinds],
        product=mean.unflatten(1, (1, n_outcomes, n_random)),
        n_groups=n_kinds,
        copies=copies,
        deviation=deviation.unflatten(1, (1, n_outcomes, n_random)),
    )


def crossproducts(sums: Sums, effects: Tensor, product: Tensor) -> Tensor:
    """Sum over the rows of z b times residuals, by pattern (K, D, D).

    Parameters
    ----------
    effects : Tensor of shape (G, D, Q, V)
        The b.
    product : Tensor of shape (J, C, D, Q, V)
        z times the residuals.
    """
    at_pairs = sums.of_pairs(effects)
    product = product.expand(-1, at_pairs.shape[1], -1, -1, -1)
    return sums.by_pattern(torch.einsum("jdqv,jdeqv->jde", at_pairs, product))


def moments(sums: Sums, second: Tensor) -> Tensor:
    """Sum over the rows of zᵀ b bᵀ z, by pattern (K, D, D), for moments b bᵀ (G, D, D, Q, Q)."""
    return sums.by_pattern((sums.of_pairs(second) * sums.inner).sum((-2, -1)))
