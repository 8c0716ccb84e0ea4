"""A table in the units of the search, and the criterion there as a function of the variance parameters.

So one start does for all tables, whatever their units and however collinear their outcomes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skgroupvae.mixed_model.criterion import FLOOR, Criterion, criterion_at, information_of, precisions_of
from skgroupvae.mixed_model.linalg import conjugate, identity, ridge_solve, solve_lower
from skgroupvae.mixed_model.parameters import ParameterShape
from skgroupvae.mixed_model.sums import Rows, Sums, aggregate, crossproducts, moments, sum_by_pattern, sums_of

__all__ = ["Problem", "standardize"]

_COLLINEAR = 1e-10
_TINY = 1e-300


@dataclass(frozen=True)
class Problem:
    """A table in the units of the search.

    The design's columns have a mean square of one; the outcomes are their residuals of least squares,
    multiplied by the inverse of `units`. Parameters are of loadings relative to the residual, and of the
    residual relative to `base`, such that the identity is about right.

    Attributes
    ----------
    sums : Sums
    kinds : Sums
        Of groups that may each stand for several.
    shape : ParameterShape
    fixed : Tensor of shape (P, D)
        Fixed effects of least squares.
    design_units : Tensor of shape (P,)
        What the columns of the design were divided by.
    units, base : Tensor of shape (D, D)
        Lower triangular.
    basis : Tensor of shape (D * P, r) or None
        Of the estimable fixed effects, for REML.
    constant : float
        Log-likelihood in units of the outcomes minus that of the search.
    """

    sums: Sums
    kinds: Sums
    shape: ParameterShape
    fixed: Tensor
    design_units: Tensor
    units: Tensor
    base: Tensor
    basis: Tensor | None
    constant: float

    def evaluate(self, parameters: Tensor, variance: float | None = None) -> tuple[Criterion, Tensor]:
        """-2 log-likelihood and its gradient.

        If no variance is given the overall scale is profiled out, and loadings are relative to `base`: they
        depend less on the residual then, where groups differ much.

        Parameters
        ----------
        parameters : Tensor of shape (T,)
        variance : float, optional

        Returns
        -------
        criterion : Criterion
        gradient : Tensor of shape (T,)
        """
        ratio, relative = self.shape.unpack(parameters)
        factor = self.base @ relative
        holder = self.base if variance is None else factor
        loadings = self.shape.absolute(ratio, holder)
        omega, log_det = precisions_of(factor, self.kinds.observed)
        criterion = criterion_at(self.kinds, loadings, omega, self.basis, variance)
        criterion = replace(criterion, value=criterion.value - float(self.kinds.n_rows @ log_det))

        # The chain rule, by d Omega = -Omega d Sigma Omega and d log det Omega = -tr(Omega d Sigma).
        by_ratio = self.shape.absolute(criterion.by_loadings, holder.mT)
        by_sigma = self.kinds.n_rows[:, None, None] * omega - omega @ criterion.by_omega @ omega
        by_factor = 2.0 * by_sigma.sum(0) @ factor
        if variance is not None:
            blocks = (len(factor), -1)
            by_factor = by_factor + criterion.by_loadings.reshape(blocks) @ ratio.reshape(blocks).mT
        by_relative = self.base.mT @ by_factor
        entries = self.shape.residual_entries
        by_rest = by_relative[entries] * torch.where(self.shape.on_diagonal, relative[entries], 1.0)
        return criterion, torch.cat([by_ratio[self.shape.loading_entries], by_rest])


def standardize(rows: Rows, extra_variance: Tensor | None, shape: ParameterShape, reml: bool) -> Problem:
    """Standardize a table: first by its total variances, then by those within the groups.

    Parameters
    ----------
    rows : Rows
    extra_variance : Tensor of shape (N, D) or None
        As of :func:`~skgroupvae.mixed_model.linear.fit_linear_mixed_model`.
    shape : ParameterShape
    reml : bool
        Whether the criterion is that of REML.
    """
    rows, design_units = _unit_columns(rows)
    cells = rows.cell_weights()
    extra = torch.zeros_like(cells) if extra_variance is None else cells * extra_variance.to(cells)
    extra = torch.where(cells > 0, extra, torch.zeros_like(extra))
    n_cells = rows.weights @ rows.observed()
    least = FLOOR * (cells * rows.values.square() + extra).sum(0) / n_cells.clamp(min=_TINY)
    least = torch.diag(least.clamp(min=_TINY))
    fixed = _least_squares(rows, cells)
    rows = rows.residuals(fixed)

    # Outcomes may be mixed where all cells of a row are observed alike; otherwise each has its own units.
    mix = rows.mask is None and (rows.root is None or rows.root.shape[1] == 1) and not shape.diagonal
    total = rows.values.mT @ (cells * rows.values) + torch.diag(extra.sum(0))
    units = _factor(total / n_cells.clamp(min=_TINY) + least, diagonal=not mix)
    rows = replace(rows, values=solve_lower(units, rows.values.mT).mT)
    sums = sums_of(rows)
    sums = sums.plus_square(conjugate(units, torch.diag_embed(sum_by_pattern(rows, extra))))
    covariance = _covariance_within_groups(sums)
    if float(sums.n_rows.sum()) <= sums.n_groups * shape.n_random:
        # No group has more rows than random effects: nothing is left over, and half is as good as any start.
        covariance = 0.5 * sums.total_square.sum(0) / sums.n_rows.sum()
    own = (units @ covariance @ units.mT).diagonal()
    if float(torch.linalg.eigvalsh(covariance)[0]) < FLOOR or bool((own < least.diagonal()).any()):
        least = conjugate(units, least)
        covariance = covariance + least
        sums = sums.plus_square(sums.n_rows[:, None, None] * least)
    inner = _factor(covariance, diagonal=not mix)
    base = _factor(conjugate(inner, covariance), diagonal=shape.diagonal)
    sums, units = sums.in_units(inner), units @ inner

    n_columns, n_outcomes = fixed.shape
    constant = -float(n_cells @ units.diagonal().log())
    if reml:
        constant += n_columns * float(units.diagonal().log().sum())
        constant -= n_outcomes * float(design_units.log().sum())
    basis = _estimable(sums) if reml else None
    return Problem(sums, aggregate(sums), shape, fixed, design_units, units, base, basis, constant)


def _unit_columns(rows: Rows) -> tuple[Rows, Tensor]:
    """The rows with columns of the design of mean square one, and what these were divided by (P,)."""
    mean = rows.weights @ rows.design.square() / rows.weights.sum()
    units = torch.where(mean > 0, mean, torch.ones_like(mean)).sqrt()
    return replace(rows, design=rows.design / units), units


def _least_squares(rows: Rows, cells: Tensor) -> Tensor:
    """Fixed effects (P, D) as if there were no groups; each outcome by its own observed cells."""
    design, values = rows.design, rows.values
    if bool((cells == cells[:, :1]).all()):
        return ridge_solve(design.mT @ (cells[:, :1] * design), design.mT @ (cells * values))
    columns = [
        ridge_solve(design.mT @ (w[:, None] * design), design.mT @ (w * y))
        for w, y in zip(cells.unbind(1), values.unbind(1), strict=True)
    ]
    return torch.stack(columns, 1)


def _covariance_within_groups(sums: Sums) -> Tensor:
    """Covariance (D, D) of what regressions on z, one for each group, leave over.

    An element is of the rows where both outcomes are observed.
    """
    sums = replace(sums, group=None, n_groups=len(sums.cross))
    own = sums.inner.diagonal(dim1=1, dim2=2).permute(0, 3, 1, 2)
    product = sums.product
    right = product[:, 0] if product.shape[1] == 1 else product.diagonal(dim1=1, dim2=2).mT
    penalty = 1e-8 * identity(own.shape[-1])
    effects = torch.linalg.solve(own + penalty, right[..., None])
    mixed = crossproducts(sums, effects, product[..., None])
    inner = moments(sums, torch.einsum("jdqv,jerv->jdeqr", effects, effects))
    observed = sums.observed.to(own)
    n_rows = (observed.mT * sums.n_rows) @ observed
    return (sums.total_square - mixed - mixed.mT + inner).sum(0) / n_rows.clamp(min=_TINY)


def _factor(covariance: Tensor, *, diagonal: bool) -> Tensor:
    """Lower Cholesky factor of the nearest covariance that is well away from singular."""
    deviation = covariance.diagonal().clamp(min=_TINY).sqrt()
    if diagonal or len(deviation) == 1:
        return torch.diag(deviation)
    values, vectors = torch.linalg.eigh(covariance / deviation / deviation[:, None])
    correlation = (vectors * values.clamp(min=_COLLINEAR)) @ vectors.mT
    return deviation[:, None] * torch.linalg.cholesky(correlation)


def _estimable(sums: Sums) -> Tensor:
    """Basis (D P, r) of the fixed effects that the table tells; all of them unless columns are collinear."""
    information = information_of(sums, torch.diag_embed(sums.observed.to(sums.cross)))[0]
    values, vectors = torch.linalg.eigh(information)
    told = values > _COLLINEAR * values[-1]
    return identity(len(values)) if bool(told.all()) else vectors[:, told]
