"""The linear mixed model of one or several outcomes, by exact maximum likelihood or REML.

A row n of group g has outcomes y (D,), a design f (P,) and some of its columns z (Q,) again:

    y_d = fᵀ B_d + sum_q z_q a_g[d Q + q] + e_d,    a_g ~ N(0, Psi),    e ~ N(0, Sigma).

The likelihood needs sums over the rows of each group only, so a step costs what the groups cost, not the rows
(Laird and Ware 1982; Bates et al. 2015, with the fixed effects and one overall scale profiled out).

A fit goes from file to file: `sums` adds up the rows, `problem` puts them in units in which `search` starts,
`criterion` is what `minimize` makes least, and here the maximum is told in the units of the table.

References
----------
Bates, D., Mächler, M., Bolker, B. and Walker, S. (2015). Fitting linear mixed-effects models using lme4.
Journal of Statistical Software, 67(1), 1-48.

Laird, N. M. and Ware, J. H. (1982). Random-effects models for longitudinal data. Biometrics, 38(4), 963-974.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from skgroupvae.batch import Batch, RandomTerm
from skgroupvae.mixed_model.criterion import integrate, precisions_of
from skgroupvae.mixed_model.linalg import identity, solve_lower
from skgroupvae.mixed_model.minimize import second_derivatives
from skgroupvae.mixed_model.parameters import ParameterShape
from skgroupvae.mixed_model.problem import Problem, standardize
from skgroupvae.mixed_model.search import maximize
from skgroupvae.mixed_model.sums import rows_of, sums_of

__all__ = [
    "LinearMixedModel",
    "factors_of",
    "fit_linear_mixed_model",
    "log_likelihood",
    "parameters_of",
    "shape_of",
]


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
        logarithms of its diagonal. If the residual is diagonal, its D logarithms only. See
        :func:`factors_of` and :func:`parameters_of`.
    parameters_covariance : Tensor of shape (T, T) or None
        Inverse of the observed information about the parameters, the fixed effects profiled out; None where
        the fit was told not to look for it.
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
    parameters_covariance: Tensor | None
    terms: tuple[RandomTerm, ...]
    method: str
    converged: bool


def fit_linear_mixed_model(
    batch: Batch,
    terms: Sequence[RandomTerm],
    *,
    method: Literal["ml", "reml"] = "ml",
    precisions: Tensor | None = None,
    extra_variance: Tensor | None = None,
    residual: Literal["full", "diagonal"] = "full",
    rank: int | None = None,
    information: bool = True,
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
    information : bool
        Whether to look for `parameters_covariance`, which takes two evaluations a parameter.

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
    shape = ParameterShape(n_outcomes, n_random, rank or n_outcomes * n_random, residual == "diagonal")
    with torch.no_grad():
        rows = rows_of(batch, terms[0], precisions)
        problem = standardize(rows, extra_variance, shape, method == "reml")
        parameters, converged = maximize(problem)
        model = _model(problem, parameters, terms[0], information)
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
    shape = shape_of(model)
    ratio, residual = shape.unpack(parameters)
    return shape.absolute(ratio, residual), residual


def parameters_of(model: LinearMixedModel, loadings: Tensor, residual: Tensor) -> Tensor:
    """Values of ``model.parameters`` at other loadings and another residual: the inverse of `factors_of`.

    Parameters
    ----------
    model : LinearMixedModel
    loadings : Tensor of shape (D * Q, R)
    residual : Tensor of shape (D, D)

    Returns
    -------
    parameters : Tensor of shape (T,)
    """
    ratio = solve_lower(residual, loadings.reshape(len(residual), -1)).reshape(loadings.shape)
    return shape_of(model).pack(ratio, residual)


def shape_of(model: LinearMixedModel) -> ParameterShape:
    """What ``model.parameters`` are of."""
    (n_effects, rank), n_outcomes = model.loadings[0].shape, len(model.residual)
    n_free = len(model.parameters) - rank * n_effects + rank * (rank - 1) // 2
    return ParameterShape(n_outcomes, n_effects // n_outcomes, rank, n_free == n_outcomes and n_outcomes > 1)


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
    rows = rows_of(batch, model.terms[0], None).residuals(model.fixed)
    factor, n_cells, log_units = model.residual, rows.cell_weights().sum(0), 0.0
    loadings = model.loadings[0]
    if rows.mask is None:
        # Outcomes of a unit residual are exact where they are nearly collinear.
        log_units = float(n_cells @ factor.diagonal().log())
        rows = replace(rows, values=solve_lower(factor, rows.values.mT).mT)
        loadings = shape_of(model).absolute(loadings, torch.linalg.inv(factor))
        factor = identity(len(factor))
    sums = sums_of(rows)
    omega, log_det = precisions_of(factor, sums.observed)
    groups = integrate(sums, loadings, omega)
    square = (omega * sums.total_square).sum() - groups.half_y.square().sum()
    value = float(n_cells.sum()) * math.log(2.0 * math.pi) + square + groups.log_det.sum()
    return -0.5 * float(value - sums.n_rows @ log_det) - log_units


# --- the model in the units of the table ---


def _model(problem: Problem, parameters: Tensor, term: RandomTerm, has_information: bool) -> LinearMixedModel:
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
    parameters_covariance = None
    if has_information:
        jacobian = _jacobian(problem, relative, factor, list(term.columns))
        information = _information(problem, parameters).nan_to_num(0.0, 0.0, 0.0)
        parameters_covariance = jacobian @ torch.linalg.pinv(information, hermitian=True) @ jacobian.mT
    return LinearMixedModel(
        fixed=fixed,
        fixed_covariance=by_units @ covariance @ by_units.mT,
        loadings=(shape.absolute(ratio, factor),),
        residual=factor,
        log_likelihood=problem.constant - 0.5 * criterion.value,
        effects=(_effects(problem, parameters, criterion.fixed) @ random_units.mT,),
        parameters=shape.pack(ratio, factor),
        parameters_covariance=parameters_covariance,
        terms=(term,),
        method="ml",
        converged=False,
    )


def _jacobian(problem: Problem, relative: Tensor, factor: Tensor, columns: list[int]) -> Tensor:
    """Derivatives of the parameters in units of the table by those of the search."""
    rows, _ = problem.shape.loading_entries
    loadings = torch.diag(1.0 / problem.design_units[columns].repeat(len(factor))[rows])
    rows, cols = problem.shape.residual_entries
    # The factor is `units @ base @ relative`; its diagonals are told by their logarithms.
    before = torch.where(problem.shape.on_diagonal, relative[rows, cols], 1.0)
    after = torch.where(problem.shape.on_diagonal, factor[rows, cols], 1.0)
    by_row = (problem.units @ problem.base)[rows[:, None], rows] * (cols[:, None] == cols)
    return torch.block_diag(loadings, by_row * before / after[:, None])


def _information(problem: Problem, parameters: Tensor) -> Tensor:
    """Observed information about the parameters (T, T)."""

    def objective(point: Tensor) -> tuple[float, Tensor]:
        criterion, gradient = problem.evaluate(point, 1.0)
        return 0.5 * criterion.value, 0.5 * gradient

    information = second_derivatives(objective, parameters)
    return 0.5 * (information + information.mT)


def _effects(problem: Problem, parameters: Tensor, fixed: Tensor) -> Tensor:
    """Best linear unbiased predictions (G, D Q), in the units of the search."""
    shape, sums = problem.shape, problem.sums
    ratio, factor = shape.unpack(parameters)
    factor = problem.base @ factor
    loadings = shape.absolute(ratio, factor)
    groups = integrate(sums, loadings, precisions_of(factor, sums.observed)[0])
    left = groups.half_y[..., 0] - groups.half @ fixed
    return (groups.inverse.mT @ left[..., None])[..., 0] @ loadings.mT
