"""The likelihood of a linear mixed model and its gradient, from sums by group.

It is a function of the loadings Lambda of the random effects, Psi = Lambda Lambdaᵀ, and of the outcomes'
precision Omega = Sigma⁻¹; the fixed effects and one overall scale are profiled out (Bates et al. 2015). The
shape letters are those of `sums.py`, and R of the columns of Lambda.

References
----------
Bates, D., Mächler, M., Bolker, B. and Walker, S. (2015). Fitting linear mixed-effects models using lme4.
Journal of Statistical Software, 67(1), 1-48.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from skgroupvae.mixed_model.linalg import cholesky, identity, ridge_solve, solve_lower
from skgroupvae.mixed_model.sums import Sums, crossproducts, moments

__all__ = ["FLOOR", "Criterion", "Integrated", "criterion_at", "information_of", "integrate", "precisions_of"]

# Least residual variance, as a share of the mean square of the outcome.
FLOOR = 1e-12
_TINY = 1e-300


@dataclass(frozen=True)
class Criterion:
    """-2 log-likelihood, its derivatives, and the fixed effects where it is least.

    Attributes
    ----------
    value : float
        Of `criterion_at` without log det Omega; so is `by_omega`.
    fixed : Tensor of shape (D * P,)
        The P coefficients of the first outcome come first.
    precision : Tensor of shape (D * P, D * P)
        Of the fixed effects, times the variance.
    variance : float
        What the covariances of random effects and residuals are multiplied by.
    by_loadings : Tensor of shape (D * Q, R)
    by_omega : Tensor of shape (K, D, D)
    """

    value: float
    fixed: Tensor
    precision: Tensor
    variance: float
    by_loadings: Tensor
    by_omega: Tensor


@dataclass(frozen=True)
class Integrated:
    """What each group contributes, after its random effects are integrated out.

    With M = I + Lambdaᵀ Zᵀ Omega Z Lambda and its Cholesky factor F; a "half" is F⁻¹ Lambdaᵀ Zᵀ Omega times
    the columns of the design, the outcomes, and their deviations.

    Attributes
    ----------
    inner_loadings : Tensor of shape (G, D * Q, R)
        Zᵀ Omega Z Lambda.
    inverse : Tensor of shape (G, R, R)
        F⁻¹.
    log_det : Tensor of shape (G,)
        log det M.
    half : Tensor of shape (G, R, D * P)
    half_y : Tensor of shape (G, R, 1)
    half_deviation : Tensor of shape (G, R, V)
    """

    inner_loadings: Tensor
    inverse: Tensor
    log_det: Tensor
    half: Tensor
    half_y: Tensor
    half_deviation: Tensor


def precisions_of(factor: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Omega of each pattern of observed outcomes.

    Parameters
    ----------
    factor : Tensor of shape (D, D)
        Lower Cholesky factor of Sigma.
    observed : Tensor of bool of shape (K, D)

    Returns
    -------
    omega : Tensor of shape (K, D, D)
        Inverse of the covariance of the observed outcomes, 0 elsewhere.
    log_det : Tensor of shape (K,)
        Its log determinant.
    """
    if len(observed) == 1 and bool(observed.all()):
        inverse = solve_lower(factor, identity(len(factor)))
        return (inverse.mT @ inverse)[None], -2.0 * factor.diagonal().log().sum()[None]
    both = (observed[:, :, None] & observed[:, None, :]).to(factor)
    missing = torch.diag_embed((~observed).to(factor))
    root = cholesky(factor @ factor.mT * both + missing)
    log_det = -2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    inverse = solve_lower(root, identity(len(factor)).expand_as(root))
    return inverse.mT @ inverse - missing, log_det


def information_of(sums: Sums, omega: Tensor) -> tuple[Tensor, Tensor]:
    """What the table tells about the fixed effects if nothing varies by group.

    Parameters
    ----------
    sums : Sums
    omega : Tensor of shape (K, D, D)

    Returns
    -------
    information : Tensor of shape (D * P, D * P)
        Xᵀ Omega X.
    score : Tensor of shape (D * P,)
        Xᵀ Omega y.
    """
    information = (omega[..., None, None] * sums.total_cross).sum(0)
    information = information.transpose(1, 2).flatten(0, 1).flatten(1)
    return information, (omega[..., None] * sums.total_product).sum((0, 2)).flatten()


def integrate(sums: Sums, loadings: Tensor, omega: Tensor) -> Integrated:
    """Integrate the random effects out.

    Parameters
    ----------
    sums : Sums
    loadings : Tensor of shape (D * Q, R)
        Lambda.
    omega : Tensor of shape (K, D, D)
    """
    at_pairs = sums.at_pairs(omega)[..., None, None]
    cross = sums.by_group(at_pairs * sums.cross).transpose(2, 3).flatten(1, 2).flatten(2)
    inner = sums.by_group(at_pairs * sums.inner).transpose(2, 3).flatten(1, 2).flatten(2)
    inner_loadings = inner @ loadings
    matrix = loadings.mT @ inner_loadings
    unit = identity(loadings.shape[1])
    root = cholesky(unit + matrix)
    inverse = solve_lower(root, unit.expand_as(root))
    log_det = 2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    left = inverse @ loadings.mT
    outcome, deviation = _times_omega(sums, omega, sums.product[..., None]), sums.deviation
    half_deviation = left @ _times_omega(sums, omega, deviation) if deviation.shape[-1] else inverse[..., :0]
    return Integrated(inner_loadings, inverse, log_det, left @ cross, left @ outcome, half_deviation)


def _times_omega(sums: Sums, omega: Tensor, product: Tensor) -> Tensor:
    """Zᵀ Omega times columns, from z times these (J, C, D, Q, V): (G, D Q, V)."""
    return sums.by_group((sums.at_pairs(omega)[..., None, None] * product).sum(2)).flatten(1, 2)


def criterion_at(
    sums: Sums, loadings: Tensor, omega: Tensor, basis: Tensor | None, variance: float | None
) -> Criterion:
    """-2 log-likelihood at the best fixed effects, all of it but log det Omega.

    Parameters
    ----------
    sums : Sums
    loadings : Tensor of shape (D * Q, R)
    omega : Tensor of shape (K, D, D)
    basis : Tensor of shape (D * P, r) or None
        Of the estimable fixed effects, for the REML criterion.
    variance : float or None
        What the covariances are multiplied by; None takes the best.
    """
    groups, copies = integrate(sums, loadings, omega), sums.n_copies
    root = copies.sqrt()[:, None, None]
    half, half_y = (root * groups.half).flatten(0, 1), (root * groups.half_y).flatten(0, 1)
    information, score = information_of(sums, omega)
    precision = information - half.mT @ half
    score = score - (half.mT @ half_y)[:, 0]
    fixed = ridge_solve(precision, score)
    square = float((omega * sums.total_square).sum())
    rest = square - float(half_y.square().sum() + groups.half_deviation.square().sum() + score @ fixed)
    rest = max(rest, FLOOR * square + _TINY)
    n_free = sums.n_cells
    log_det, directions = float(copies @ groups.log_det), None
    if basis is not None:
        n_free -= basis.shape[1]
        root = cholesky(basis.mT @ precision @ basis)
        log_det += 2.0 * float(root.diagonal().log().sum())
        directions = solve_lower(root, basis.mT).mT
    only_loadings = variance is None and len(omega[0]) == 1
    variance = rest / n_free if variance is None else variance
    value = n_free * math.log(2.0 * math.pi * variance) + rest / variance + log_det
    gradient = _gradient(sums, groups, loadings, omega, copies, fixed, variance, directions, only_loadings)
    return Criterion(value, fixed, precision, variance, *gradient)


def _gradient(
    sums: Sums,
    groups: Integrated,
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
