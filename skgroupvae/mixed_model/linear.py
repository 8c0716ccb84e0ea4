"""The linear mixed model of one or several outcomes, by exact maximum likelihood or REML.

A row n of group g has outcomes y (D,), a design f (P,) and some of its columns z (Q,) again:

    y_d = fᵀ B_d + sum_q z_q a_g[d Q + q] + e_d,    a_g ~ N(0, Psi),    e ~ N(0, Sigma).

The likelihood needs sums over the rows of each group only, so a step costs what the groups cost, not the rows
(Laird and Ware 1982; Bates et al. 2015, with the fixed effects and one overall scale profiled out).

References
----------
Bates, D., Mächler, M., Bolker, B. and Walker, S. (2015). Fitting linear mixed-effects models using lme4.
Journal of Statistical Software, 67(1), 1-48.

Laird, N. M. and Ware, J. H. (1982). Random-effects models for longitudinal data. Biometrics, 38(4), 963-974.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from skgroupvae.batch import Batch, RandomTerm
from skgroupvae.mixed_model.sums import Rows, Sums, aggregate, crossproducts, moments, sum_by_pattern, sums_of

__all__ = ["LinearMixedModel", "factors_of", "fit_linear_mixed_model", "log_likelihood"]

_MAX_ITERATIONS = 500
# Of the gradient of the log-likelihood of a row: where the search stops, and what counts as converged.
_TOLERANCE, _CONVERGED = 1e-9, 1e-6
# Nats that another step may be expected to gain.
_LEAST_GAIN = 1e-11
# Step of a central difference of the gradient, which is then exact to about 1e-8.
_DIFFERENCE = 1e-4
# Least residual variance, as a share of the mean square of the outcome.
_FLOOR = 1e-12
_COLLINEAR = 1e-10
_TINY = 1e-300


@dataclass(frozen=True)
class LinearMixedModel:
    """Estimates of a linear mixed model, in float64.

    Attributes
    ----------
    fixed : Tensor of shape (P, D)
        Fixed effects B.
    fixed_covariance : Tensor of shape (D * P, D * P)
        Their covariance at the estimated variances; the P coefficients of the first outcome come first.
    loadings : tuple of Tensor of shape (D * Q, R)
        Of each term: the random effects have covariance Psi = ``loadings @ loadings.T``. Lower triangular
        with a non-negative diagonal; R = D * Q unless `rank` was given. Position d * Q + q is of outcome d
        and column q.
    residual : Tensor of shape (D, D)
        Lower Cholesky factor of Sigma.
    log_likelihood : float
        Of the whole table, in nats; the REML criterion if ``method="reml"``. With precisions p it is that of
        the outcomes times their roots, without the constant ``0.5 * sum(weights * log(p))``.
    effects : tuple of Tensor of shape (G, D * Q)
        Best linear unbiased predictions of each term's random effects.
    parameters : Tensor of shape (T,)
        Variance parameters: the lower triangle by rows of the loadings relative to the residual,
        ``kron(residual, eye(Q))⁻¹ @ loadings``, then the lower triangle by rows of `residual` with the
        logarithms of its diagonal. If the residual is diagonal, its D logarithms only. :func:`factors_of` is
        the inverse.
    parameters_covariance : Tensor of shape (T, T)
        Inverse of the observed information about the parameters, the fixed effects profiled out.
    terms : tuple of RandomTerm
    method : {"ml", "reml"}
    converged : bool
        Whether the gradient is zero, to 1e-6 nats a row or such that a step promises less than 1e-6 nats.
    """

    fixed: Tensor
    fixed_covariance: Tensor
    loadings: tuple[Tensor, ...]
    residual: Tensor
    log_likelihood: float
    effects: tuple[Tensor, ...]
    parameters: Tensor
    parameters_covariance: Tensor
    terms: tuple[RandomTerm, ...]
    method: str
    converged: bool


@dataclass(frozen=True)
class _Shape:
    """What the variance parameters are of."""

    n_outcomes: int
    n_random: int
    rank: int
    diagonal: bool
    triangular: bool = True  # the loadings; otherwise all their entries are free

    @cached_property
    def loading_entries(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the free entries of the loadings, by rows."""
        offset = 0 if self.triangular else self.rank
        rows, cols = torch.tril_indices(self.n_outcomes * self.n_random, self.rank, offset)
        return rows, cols

    @cached_property
    def residual_entries(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the free entries of the residual's factor, by rows."""
        if self.diagonal:
            return torch.arange(self.n_outcomes), torch.arange(self.n_outcomes)
        rows, cols = torch.tril_indices(self.n_outcomes, self.n_outcomes)
        return rows, cols

    @cached_property
    def on_diagonal(self) -> Tensor:
        """Of `residual_entries`: those that parameters tell by their logarithms."""
        rows, cols = self.residual_entries
        return rows == cols

    def unpack(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Loadings relative to the residual (D Q, R), and the residual's factor (D, D)."""
        n_loadings = len(self.loading_entries[0])
        ratio = parameters.new_zeros(self.n_outcomes * self.n_random, self.rank)
        ratio = ratio.index_put(self.loading_entries, parameters[:n_loadings])
        rest = parameters[n_loadings:]
        factor = parameters.new_zeros(self.n_outcomes, self.n_outcomes)
        entries = torch.where(self.on_diagonal, rest.exp(), rest)
        return ratio, factor.index_put(self.residual_entries, entries)

    def pack(self, ratio: Tensor, factor: Tensor) -> Tensor:
        """The inverse of `unpack`."""
        rest = factor[self.residual_entries]
        logs = torch.where(self.on_diagonal, rest, torch.ones_like(rest)).log()
        return torch.cat([ratio[self.loading_entries], torch.where(self.on_diagonal, logs, rest)])

    def absolute(self, ratio: Tensor, factor: Tensor) -> Tensor:
        """``kron(factor, eye(Q)) @ ratio``: loadings of loadings relative to the residual."""
        return (factor @ ratio.reshape(self.n_outcomes, -1)).reshape(ratio.shape)


@dataclass(frozen=True)
class _Problem:
    """A table in the units of the search.

    The design's columns have a mean square of one; the outcomes are their residuals of least squares,
    multiplied by the inverse of `units`. Parameters are of loadings relative to the residual, and of the
    residual relative to `base`, such that the identity is about right.
    """

    sums: Sums
    kinds: Sums  # sums of groups that may each stand for several
    shape: _Shape
    fixed: Tensor  # (P, D) of least squares
    design_units: Tensor  # (P,)
    units: Tensor  # (D, D), lower triangular
    base: Tensor  # (D, D), lower triangular
    basis: Tensor | None  # (D P, r) of the estimable fixed effects, for REML
    constant: float  # log-likelihood in units of the outcomes minus that of the search

    def evaluate(self, parameters: Tensor, variance: float | None = None) -> tuple[_Criterion, Tensor]:
        """-2 log-likelihood and its gradient.

        If no variance is given the overall scale is profiled out, and loadings are relative to `base`: they
        depend less on the residual then, where groups differ much.
        """
        ratio, relative = self.shape.unpack(parameters)
        factor = self.base @ relative
        holder = self.base if variance is None else factor
        loadings = self.shape.absolute(ratio, holder)
        omega, log_det = _precisions(factor, self.kinds.observed)
        criterion = _criterion(self.kinds, loadings, omega, self.basis, variance)
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


@dataclass(frozen=True)
class _Criterion:
    """-2 log-likelihood less log det Omega, its derivatives, and the fixed effects where it is least."""

    value: float
    fixed: Tensor  # (D P,)
    precision: Tensor  # (D P, D P), of the fixed effects times the variance
    variance: float
    by_loadings: Tensor
    by_omega: Tensor


@dataclass(frozen=True)
class _Groups:
    """What each group contributes, after its random effects are integrated out.

    With M = I + Lambdaᵀ Zᵀ Omega Z Lambda and its Cholesky factor F; a "half" is F⁻¹ Lambdaᵀ Zᵀ Omega times
    the columns of the design (D P), the outcomes, and their deviations.
    """

    inner_loadings: Tensor  # Zᵀ Omega Z Lambda (G, D Q, R)
    inverse: Tensor  # F⁻¹ (G, R, R)
    log_det: Tensor  # log det M (G,)
    half: Tensor  # (G, R, D P)
    half_y: Tensor  # (G, R, 1)
    half_deviation: Tensor  # (G, R, V)


def fit_linear_mixed_model(
    batch: Batch,
    terms: Sequence[RandomTerm],
    *,
    method: Literal["ml", "reml"] = "ml",
    precisions: Tensor | None = None,
    extra_variance: Tensor | None = None,
    residual: Literal["full", "diagonal"] = "full",
    rank: int | None = None,
) -> LinearMixedModel:
    """Fit by maximum likelihood or restricted maximum likelihood.

    Parameters
    ----------
    batch : Batch
        Rows with their groups. A row counts as `weights` rows; outcomes that the mask leaves out are missing
        at random.
    terms : sequence of RandomTerm
        Columns whose coefficients vary by group; one term.
    method : {"ml", "reml"}
    precisions : Tensor of shape (N, D), optional
        The noise variance of each cell is divided by it; None is one. They do not count, unlike weights.
    extra_variance : Tensor of shape (N, D), optional
        Variance of the values that each cell is the mean of, as many as the row's weight; None is for rows of
        one each. Those of different outcomes are taken as uncorrelated about their means.
    residual : {"full", "diagonal"}
        Whether the outcomes' residuals are correlated.
    rank : int, optional
        Columns of the loadings; None takes D * Q, which leaves Psi free.

    Returns
    -------
    model : LinearMixedModel
    """
    if len(terms) != 1:
        raise ValueError(
            f"terms has {len(terms)} entries, not one: several grouping factors are not supported yet"
        )
    if method not in ("ml", "reml") or residual not in ("full", "diagonal"):
        raise ValueError(f"unknown method {method!r} or residual {residual!r}")
    n_outcomes, n_random = batch.values.shape[1], len(terms[0].columns)
    if rank is not None and not 1 <= rank <= n_outcomes * n_random:
        raise ValueError(f"rank must be between 1 and {n_outcomes * n_random}, got {rank}")
    shape = _Shape(n_outcomes, n_random, rank or n_outcomes * n_random, residual == "diagonal")
    with torch.no_grad():
        rows = _rows(batch, terms[0], precisions)
        problem = _problem(rows, extra_variance, shape, method == "reml")
        parameters, converged = _maximize(problem)
        model = _model(problem, parameters, terms[0])
        return replace(model, method=method, converged=converged)


def factors_of(model: LinearMixedModel, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Loadings and residual at other values of ``model.parameters``; differentiable.

    Parameters
    ----------
    model : LinearMixedModel
    parameters : Tensor of shape (T,)

    Returns
    -------
    loadings : Tensor of shape (D * Q, R)
    residual : Tensor of shape (D, D)
    """
    (n_effects, rank), n_outcomes = model.loadings[0].shape, len(model.residual)
    n_free = len(parameters) - rank * n_effects + rank * (rank - 1) // 2
    shape = _Shape(n_outcomes, n_effects // n_outcomes, rank, n_free == n_outcomes and n_outcomes > 1)
    ratio, residual = shape.unpack(parameters)
    return shape.absolute(ratio, residual), residual


@torch.no_grad()
def log_likelihood(model: LinearMixedModel, batch: Batch) -> float:
    """Log-likelihood in nats of any table at given estimates; its groups are new.

    Parameters
    ----------
    model : LinearMixedModel
    batch : Batch
        Rows with their groups, as of a fit.

    Returns
    -------
    value : float
        Also of a model by REML the likelihood, not the criterion.
    """
    rows = _rows(batch, model.terms[0], None)
    rows = _residuals(rows, model.fixed)
    shape = _Shape(len(model.residual), len(rows.columns), model.loadings[0].shape[1], False)
    factor, n_cells, log_units = model.residual, rows.cell_weights().sum(0), 0.0
    loadings = model.loadings[0]
    if rows.mask is None:
        # Outcomes of a unit residual are exact where they are nearly collinear.
        log_units = float(n_cells @ factor.diagonal().log())
        rows = replace(rows, values=_solve(factor, rows.values.mT).mT)
        loadings = shape.absolute(loadings, torch.linalg.inv(factor))
        factor = _identity(len(factor))
    sums = sums_of(rows)
    omega, log_det = _precisions(factor, sums.observed)
    groups = _groups(sums, loadings, omega)
    square = (omega * sums.total_square).sum() - groups.half_y.square().sum()
    value = float(n_cells.sum()) * math.log(2.0 * math.pi) + square + groups.log_det.sum()
    return -0.5 * float(value - sums.n_rows @ log_det) - log_units


# --- a table in the units of the search ---


def _rows(batch: Batch, term: RandomTerm, precisions: Tensor | None) -> Rows:
    """The table in float64 on the CPU; precisions that the outcomes of each row share are told once."""
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


def _residuals(rows: Rows, fixed: Tensor) -> Rows:
    """The rows with the fixed part (P, D) taken from their values."""
    values = rows.values - rows.design @ fixed
    return replace(rows, values=values if rows.mask is None else values * rows.mask)


def _problem(rows: Rows, extra_variance: Tensor | None, shape: _Shape, reml: bool) -> _Problem:
    """Standardize a table: first by its total variances, then by those within the groups."""
    rows, design_units = _unit_columns(rows)
    cells = rows.cell_weights()
    extra = torch.zeros_like(cells) if extra_variance is None else cells * extra_variance.to(cells)
    extra = torch.where(cells > 0, extra, torch.zeros_like(extra))
    n_cells = rows.weights @ rows.observed()
    least = _FLOOR * (cells * rows.values.square() + extra).sum(0) / n_cells.clamp(min=_TINY)
    least = torch.diag(least.clamp(min=_TINY))
    fixed = _least_squares(rows, cells)
    rows = _residuals(rows, fixed)

    # Outcomes may be mixed where all cells of a row are observed alike; otherwise each has its own units.
    mix = rows.mask is None and (rows.root is None or rows.root.shape[1] == 1) and not shape.diagonal
    total = rows.values.mT @ (cells * rows.values) + torch.diag(extra.sum(0))
    units = _factor(total / n_cells.clamp(min=_TINY) + least, diagonal=not mix)
    rows = replace(rows, values=_solve(units, rows.values.mT).mT)
    sums = sums_of(rows)
    sums = sums.plus_square(_conjugate(units, torch.diag_embed(sum_by_pattern(rows, extra))))
    covariance = _covariance_within_groups(sums)
    if float(sums.n_rows.sum()) <= sums.n_groups * shape.n_random:
        # No group has more rows than random effects: nothing is left over, and half is as good as any start.
        covariance = 0.5 * sums.total_square.sum(0) / sums.n_rows.sum()
    own = (units @ covariance @ units.mT).diagonal()
    if float(torch.linalg.eigvalsh(covariance)[0]) < _FLOOR or bool((own < least.diagonal()).any()):
        least = _conjugate(units, least)
        covariance = covariance + least
        sums = sums.plus_square(sums.n_rows[:, None, None] * least)
    inner = _factor(covariance, diagonal=not mix)
    base = _factor(_conjugate(inner, covariance), diagonal=shape.diagonal)
    sums, units = sums.in_units(inner), units @ inner

    n_columns, n_outcomes = fixed.shape
    constant = -float(n_cells @ units.diagonal().log())
    if reml:
        constant += n_columns * float(units.diagonal().log().sum())
        constant -= n_outcomes * float(design_units.log().sum())
    basis = _estimable(sums) if reml else None
    return _Problem(sums, aggregate(sums), shape, fixed, design_units, units, base, basis, constant)


def _unit_columns(rows: Rows) -> tuple[Rows, Tensor]:
    """The rows with columns of the design of mean square one, and what these were divided by (P,)."""
    mean = rows.weights @ rows.design.square() / rows.weights.sum()
    units = torch.where(mean > 0, mean, torch.ones_like(mean)).sqrt()
    return replace(rows, design=rows.design / units), units


def _least_squares(rows: Rows, cells: Tensor) -> Tensor:
    """Fixed effects (P, D) as if there were no groups; each outcome by its own observed cells."""
    design, values = rows.design, rows.values
    if bool((cells == cells[:, :1]).all()):
        return _ridge_solve(design.mT @ (cells[:, :1] * design), design.mT @ (cells * values))
    columns = [
        _ridge_solve(design.mT @ (w[:, None] * design), design.mT @ (w * y))
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
    penalty = 1e-8 * _identity(own.shape[-1])
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
    information = _total(sums, torch.diag_embed(sums.observed.to(sums.cross)))[0]
    values, vectors = torch.linalg.eigh(information)
    told = values > _COLLINEAR * values[-1]
    return _identity(len(values)) if bool(told.all()) else vectors[:, told]


def _identity(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, right, upper=False)


def _conjugate(factor: Tensor, matrix: Tensor) -> Tensor:
    """factor⁻¹ matrix factor⁻ᵀ."""
    return _solve(factor, _solve(factor, matrix).mT)


def _ridge_solve(precision: Tensor, right: Tensor) -> Tensor:
    """Solve; the ridge is far below rounding unless columns are collinear, where it picks one solution."""
    ridge = 1e-10 * precision.diagonal().mean() + _TINY
    return torch.linalg.solve_ex(precision + ridge * _identity(len(precision)), right)[0]


def _cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor; not a number where there is none, which a search turns away from."""
    root, failed = torch.linalg.cholesky_ex(matrix)
    return torch.where(failed[..., None, None] > 0, math.nan, root) if bool(failed.any()) else root


# --- the likelihood and its gradient ---


def _precisions(factor: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of the covariance of each pattern's outcomes (K, D, D), 0 elsewhere, and its log det (K,)."""
    if len(observed) == 1 and bool(observed.all()):
        inverse = _solve(factor, _identity(len(factor)))
        return (inverse.mT @ inverse)[None], -2.0 * factor.diagonal().log().sum()[None]
    both = (observed[:, :, None] & observed[:, None, :]).to(factor)
    missing = torch.diag_embed((~observed).to(factor))
    root = _cholesky(factor @ factor.mT * both + missing)
    log_det = -2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    inverse = _solve(root, _identity(len(factor)).expand_as(root))
    return inverse.mT @ inverse - missing, log_det


def _total(sums: Sums, omega: Tensor) -> tuple[Tensor, Tensor]:
    """Xᵀ Omega X (D P, D P) and Xᵀ Omega y (D P,) over all groups."""
    information = (omega[..., None, None] * sums.total_cross).sum(0)
    information = information.transpose(1, 2).flatten(0, 1).flatten(1)
    return information, (omega[..., None] * sums.total_product).sum((0, 2)).flatten()


def _groups(sums: Sums, loadings: Tensor, omega: Tensor) -> _Groups:
    """Integrate the random effects out."""
    at_pairs = sums.at_pairs(omega)[..., None, None]
    cross = sums.by_group(at_pairs * sums.cross).transpose(2, 3).flatten(1, 2).flatten(2)
    inner = sums.by_group(at_pairs * sums.inner).transpose(2, 3).flatten(1, 2).flatten(2)
    inner_loadings = inner @ loadings
    matrix = loadings.mT @ inner_loadings
    identity = _identity(loadings.shape[1])
    root = _cholesky(identity + matrix)
    inverse = _solve(root, identity.expand_as(root))
    log_det = 2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    left = inverse @ loadings.mT
    outcome, deviation = _times_omega(sums, omega, sums.product[..., None]), sums.deviation
    half_deviation = left @ _times_omega(sums, omega, deviation) if deviation.shape[-1] else inverse[..., :0]
    return _Groups(inner_loadings, inverse, log_det, left @ cross, left @ outcome, half_deviation)


def _times_omega(sums: Sums, omega: Tensor, product: Tensor) -> Tensor:
    """Zᵀ Omega times columns, from z times these (J, C, D, Q, V): (G, D Q, V)."""
    return sums.by_group((sums.at_pairs(omega)[..., None, None] * product).sum(2)).flatten(1, 2)


def _criterion(
    sums: Sums, loadings: Tensor, omega: Tensor, basis: Tensor | None, variance: float | None
) -> _Criterion:
    """-2 log-likelihood, all but log det Omega, at the best fixed effects (and overall variance, if None)."""
    groups = _groups(sums, loadings, omega)
    copies = groups.log_det.new_ones(sums.n_groups) if sums.copies is None else sums.copies
    root = copies.sqrt()[:, None, None]
    half, half_y = (root * groups.half).flatten(0, 1), (root * groups.half_y).flatten(0, 1)
    information, score = _total(sums, omega)
    precision = information - half.mT @ half
    score = score - (half.mT @ half_y)[:, 0]
    fixed = _ridge_solve(precision, score)
    square = float((omega * sums.total_square).sum())
    rest = square - float(half_y.square().sum() + groups.half_deviation.square().sum() + score @ fixed)
    rest = max(rest, _FLOOR * square + _TINY)
    n_free = sums.n_cells
    log_det, directions = float(copies @ groups.log_det), None
    if basis is not None:
        n_free -= basis.shape[1]
        root = _cholesky(basis.mT @ precision @ basis)
        log_det += 2.0 * float(root.diagonal().log().sum())
        directions = _solve(root, basis.mT).mT
    only_loadings = variance is None and len(omega[0]) == 1
    variance = rest / n_free if variance is None else variance
    value = n_free * math.log(2.0 * math.pi * variance) + rest / variance + log_det
    gradient = _gradient(sums, groups, loadings, omega, copies, fixed, variance, directions, only_loadings)
    return _Criterion(value, fixed, precision, variance, *gradient)


def _gradient(
    sums: Sums,
    groups: _Groups,
    loadings: Tensor,
    omega: Tensor,
    copies: Tensor,
    fixed: Tensor,
    variance: float,
    directions: Tensor | None,
    only_loadings: bool,
) -> tuple[Tensor, Tensor]:
    """Derivatives of the criterion by the loadings and by Omega.

    By Fisher's identity they are those of the complete-data likelihood at the posterior moments of the random
    effects. REML adds the fixed effects' own uncertainty: residuals ``X @ directions`` beside y - X B.
    """
    n_outcomes, n_columns = omega.shape[-1], sums.cross.shape[-1]
    root, scale = copies.sqrt()[:, None, None], 1.0 / math.sqrt(variance)
    coefficients = -scale * fixed[:, None]
    halves = [scale * groups.half_y + groups.half @ coefficients]
    if directions is not None:
        coefficients = torch.cat([coefficients, directions], 1)
        halves.append(groups.half @ directions)
    by_outcome = coefficients.unflatten(0, (n_outcomes, n_columns))
    product = sums.cross @ by_outcome  # z times residuals: (J, C, D, Q, V)
    product[..., 0] += scale * sums.product
    at_pairs = root if sums.group is None else sums.of_pairs(root)
    product = torch.cat([at_pairs[..., None, None] * product, scale * sums.deviation], -1)
    means = groups.inverse.mT @ torch.cat([root * torch.cat(halves, -1), scale * groups.half_deviation], -1)
    second = copies[:, None, None] * (groups.inverse.mT @ groups.inverse) + means @ means.mT
    by_loadings = torch.einsum("gar,grs->as", groups.inner_loadings, second)
    by_loadings = by_loadings - torch.einsum("gav,grv->ar", _times_omega(sums, omega, product), means)
    if only_loadings:
        return 2.0 * by_loadings, torch.zeros_like(omega)

    effects = (loadings @ means).unflatten(1, (n_outcomes, -1))
    second = (loadings @ second @ loadings.mT).unflatten(2, (n_outcomes, -1)).unflatten(1, (n_outcomes, -1))
    mixed = crossproducts(sums, effects, product)
    by_omega = moments(sums, second.transpose(2, 3)) - mixed - mixed.mT + scale**2 * sums.total_square
    across = scale * (by_outcome[:, None, :, 0] * sums.total_product).sum(-1)
    squares = torch.einsum("dpv,erv->depr", by_outcome, by_outcome)
    return 2.0 * by_loadings, by_omega + across + across.mT + (squares * sums.total_cross).sum((-2, -1))


# --- the search ---


def _start(problem: _Problem) -> Tensor:
    """Relative loadings (D Q, R) after one step of EM from the identity."""
    shape, kinds = problem.shape, problem.kinds
    loadings = shape.absolute(_identity(shape.n_outcomes * shape.n_random), problem.base)
    groups = _groups(kinds, loadings, _precisions(problem.base, kinds.observed)[0])
    copies = groups.log_det.new_ones(kinds.n_groups) if kinds.copies is None else kinds.copies
    halves = torch.cat([copies.sqrt()[:, None, None] * groups.half_y, groups.half_deviation], -1)
    means = groups.inverse.mT @ halves
    second = copies[:, None, None] * (groups.inverse.mT @ groups.inverse) + means @ means.mT
    return torch.linalg.cholesky(second.sum(0) / copies.sum())[:, : shape.rank]


def _maximize(problem: _Problem) -> tuple[Tensor, bool]:
    """Parameters of the maximum, and whether the gradient is zero there."""
    n_rows = float(problem.sums.n_rows.sum())
    # Of triangular loadings one that is zero would leave those below it undetermined: a saddle.
    shape = replace(problem.shape, triangular=False)
    problem = replace(problem, shape=shape)
    start = shape.pack(_start(problem), _identity(shape.n_outcomes))
    # The first residual deviation is the overall scale, which is profiled out.
    free = torch.arange(len(start)) != len(shape.loading_entries[0])

    def objective(point: Tensor) -> tuple[float, Tensor]:
        criterion, gradient = problem.evaluate(start.masked_scatter(free, point))
        return 0.5 * criterion.value / n_rows, 0.5 * gradient[free] / n_rows

    point, gradient, _ = _minimize(objective, start[free], n_rows)
    converged = float(gradient.abs().amax()) < _CONVERGED
    if not converged:
        # Once more, with the curvature known; the gain that a slope promises tells it from rounding.
        point, gradient, inverse = _minimize(objective, point, n_rows, _curvature(objective, point))
        gain = n_rows * float(gradient @ inverse @ gradient)
        converged = float(gradient.abs().amax()) < _CONVERGED or gain < _CONVERGED
    parameters = start.masked_scatter(free, point)
    ratio, factor = shape.unpack(parameters)
    ratio = torch.linalg.qr(ratio.mT).R.mT
    # A column of the loadings has the sign of a code, which nothing tells; its diagonal is made positive.
    ratio = ratio * torch.where(ratio.diagonal() < 0, -1.0, 1.0)
    ratio = shape.absolute(ratio, torch.linalg.inv(factor))
    factor = factor * math.sqrt(problem.evaluate(parameters)[0].variance)
    return replace(shape, triangular=True).pack(ratio, factor), converged


_Objective = Callable[[Tensor], tuple[float, Tensor]]


def _curvature(objective: _Objective, point: Tensor) -> Tensor:
    """Inverse of the second derivatives, all made positive."""
    columns = [
        (objective(point + step)[1] - objective(point - step)[1]) / (2.0 * _DIFFERENCE)
        for step in _DIFFERENCE * _identity(len(point))
    ]
    second = torch.stack(columns).nan_to_num(0.0, 0.0, 0.0)
    values, vectors = torch.linalg.eigh(0.5 * (second + second.mT))
    values = values.abs().clamp(min=1e-10 * float(values.abs().amax()) + _TINY)
    return (vectors / values) @ vectors.mT


def _minimize(
    objective: _Objective, point: Tensor, n_rows: float, inverse: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Quasi-Newton method of Broyden, Fletcher, Goldfarb and Shanno.

    Parameters
    ----------
    inverse : Tensor, optional
        Of the second derivatives at the start, if known.

    Returns
    -------
    point, gradient, inverse : Tensor
        Where it ends.
    """
    value, gradient = objective(point)
    identity = _identity(len(point))
    fresh = inverse is None
    inverse = identity if inverse is None else inverse
    for _ in range(_MAX_ITERATIONS):
        largest = float(gradient.abs().amax())
        if largest < _TOLERANCE:
            break
        direction = -inverse @ gradient
        if fresh:
            direction = direction / max(1.0, float(direction.norm()))
        slope = float(direction @ gradient)
        if not fresh and n_rows * abs(slope) < _LEAST_GAIN and largest < _CONVERGED:
            break
        found = _line_search(objective, point, value, slope, direction)
        if found is None:
            break
        step, value, after = found
        change, point, gradient = after - gradient, point + step, after
        curvature = float(step @ change)
        if curvature > 0:
            if fresh:
                inverse, fresh = identity * (curvature / float(change @ change)), False
            project = identity - torch.outer(step, change) / curvature
            inverse = project @ inverse @ project.mT + torch.outer(step, step) / curvature
    return point, gradient, inverse


def _line_search(
    objective: _Objective, point: Tensor, value: float, slope: float, direction: Tensor
) -> tuple[Tensor, float, Tensor] | None:
    """Step, value and gradient where the weak Wolfe conditions hold, by bisection; None if there is none."""
    if not slope < 0:
        return None
    lower, upper, length = 0.0, math.inf, 1.0
    rounding = 1e-14 * max(1.0, abs(value))
    for _ in range(40):
        at, gradient = objective(point + length * direction)
        if not at <= value + 1e-4 * length * slope + rounding:
            upper = length
        elif float(gradient @ direction) < 0.9 * slope:
            lower = length
        else:
            return length * direction, at, gradient
        length = 0.5 * (lower + upper) if upper < math.inf else 2.0 * lower
    return None


# --- the model in the units of the table ---


def _model(problem: _Problem, parameters: Tensor, term: RandomTerm) -> LinearMixedModel:
    """The model at the parameters of the search; its method and convergence are told by the caller."""
    shape, units = problem.shape, problem.units
    criterion, _ = problem.evaluate(parameters, 1.0)
    n_columns, n_outcomes = problem.fixed.shape
    by_units = torch.kron(units, torch.diag(1.0 / problem.design_units))
    random_units = torch.kron(units, torch.diag(1.0 / problem.design_units[list(term.columns)]))
    fixed = problem.fixed / problem.design_units[:, None]
    fixed = fixed + (by_units @ criterion.fixed).reshape(n_outcomes, n_columns).mT
    covariance = torch.linalg.pinv(criterion.precision, hermitian=True)

    ratio, relative = shape.unpack(parameters)
    ratio = ratio / problem.design_units[list(term.columns)].repeat(n_outcomes)[:, None]
    factor = units @ problem.base @ relative
    jacobian = _jacobian(problem, relative, factor, list(term.columns))
    information = _information(problem, parameters).nan_to_num(0.0, 0.0, 0.0)
    inverse = torch.linalg.pinv(information, hermitian=True)
    return LinearMixedModel(
        fixed=fixed,
        fixed_covariance=by_units @ covariance @ by_units.mT,
        loadings=(shape.absolute(ratio, factor),),
        residual=factor,
        log_likelihood=problem.constant - 0.5 * criterion.value,
        effects=(_effects(problem, parameters, criterion.fixed) @ random_units.mT,),
        parameters=shape.pack(ratio, factor),
        parameters_covariance=jacobian @ inverse @ jacobian.mT,
        terms=(term,),
        method="ml",
        converged=False,
    )


def _jacobian(problem: _Problem, relative: Tensor, factor: Tensor, columns: list[int]) -> Tensor:
    """Derivatives of the parameters in units of the table by those of the search."""
    rows, _ = problem.shape.loading_entries
    loadings = torch.diag(1.0 / problem.design_units[columns].repeat(len(factor))[rows])
    rows, cols = problem.shape.residual_entries
    # The factor is `units @ base @ relative`; its diagonals are told by their logarithms.
    before = torch.where(problem.shape.on_diagonal, relative[rows, cols], 1.0)
    after = torch.where(problem.shape.on_diagonal, factor[rows, cols], 1.0)
    by_row = (problem.units @ problem.base)[rows[:, None], rows] * (cols[:, None] == cols)
    return torch.block_diag(loadings, by_row * before / after[:, None])


def _information(problem: _Problem, parameters: Tensor) -> Tensor:
    """Observed information about the parameters, by central differences of the gradient."""
    columns = []
    for step in _DIFFERENCE * _identity(len(parameters)):
        after, before = (problem.evaluate(parameters + sign * step, 1.0)[1] for sign in (1.0, -1.0))
        columns.append((after - before) / (4.0 * _DIFFERENCE))
    information = torch.stack(columns)
    return 0.5 * (information + information.mT)


def _effects(problem: _Problem, parameters: Tensor, fixed: Tensor) -> Tensor:
    """Best linear unbiased predictions (G, D Q), in the units of the search."""
    shape, sums = problem.shape, problem.sums
    ratio, factor = shape.unpack(parameters)
    factor = problem.base @ factor
    loadings = shape.absolute(ratio, factor)
    groups = _groups(sums, loadings, _precisions(factor, sums.observed)[0])
    left = groups.half_y[..., 0] - groups.half @ fixed
    return (groups.inverse.mT @ left[..., None])[..., 0] @ loadings.mT
