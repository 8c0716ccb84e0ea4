"""Linear mixed model by maximum likelihood: where every regression starts, and all of ``decoder="linear"``.

The model of one group, with rows f of all covariates (n, P) and some of its columns z (n, Q) again, is

    y = f beta + z Lambda u + noise,    u ~ N(0, I),    noise ~ N(0, sigma²).

The likelihood needs sums over the rows of each group only, so a step costs what the groups cost, not the rows
(Bates et al. 2015, with the fixed effects and sigma profiled out).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skgroupvae.groups import Segments

__all__ = ["LinearMixedModel", "fit_linear_mixed_model", "lower_triangle"]

_MAX_ITERATIONS = 300


@dataclass(frozen=True)
class LinearMixedModel:
    """Estimates of maximum likelihood, in float64.

    Attributes
    ----------
    fixed : Tensor of shape (P,)
        Fixed effects beta.
    fixed_covariance : Tensor of shape (P, P)
        Their covariance at the estimated variances.
    loadings : Tensor of shape (Q, Q)
        Lower triangle Lambda: the random effects have covariance ``loadings @ loadings.T``.
    noise : float
        Standard deviation sigma of the noise.
    log_likelihood : float
        Of the whole table, in nats.
    effects : Tensor of shape (G, Q)
        Best linear unbiased predictions of the groups' random effects.
    theta_covariance : Tensor of shape (T + 1, T + 1)
        Covariance, from the observed information, of the lower triangle of Lambda / sigma by rows and of log
        sigma.
    """

    fixed: Tensor
    fixed_covariance: Tensor
    loadings: Tensor
    noise: float
    log_likelihood: float
    effects: Tensor
    theta_covariance: Tensor


@dataclass(frozen=True)
class _Moments:
    """Sums over the rows of each group: f fᵀ (G, P, P), f y (G, P) and y² over all rows."""

    outer: Tensor
    product: Tensor
    square: Tensor
    n_rows: float


def fit_linear_mixed_model(
    y: Tensor,
    covariates: Tensor,
    random: Sequence[int],
    segments: Segments,
    weights: Tensor | None = None,
    n_rows: float | None = None,
    within: Tensor | None = None,
) -> LinearMixedModel:
    """Fit by maximum likelihood.

    Parameters
    ----------
    y : Tensor of shape (N,)
        Outcome.
    covariates : Tensor of shape (N, P)
        Columns of the fixed effects, the constant among them.
    random : sequence of int
        Positions of the columns whose coefficient varies by group.
    segments : Segments
        The group of each row.
    weights : Tensor of shape (N,), optional
        A row counts as so many; None counts each as one.
    n_rows : float, optional
        Number of rows that the noise is estimated from; None takes the sum of the weights, which makes them
        counts. With the true number they are precisions, in units of that of the noise.
    within : Tensor of shape (N,), optional
        Variance of the outcomes that y is the mean of; None is for rows of one outcome each.

    Returns
    -------
    model : LinearMixedModel
    """
    f, y = covariates.double(), y.double()
    w = torch.ones_like(y) if weights is None else weights.double()
    weighted = w[:, None] * f
    moments = _Moments(
        segments.sum(weighted[:, :, None] * f[:, None, :]),
        segments.sum(weighted * y[:, None]),
        w @ (y.square() if within is None else y.square() + within),
        float(w.sum()) if n_rows is None else n_rows,
    )
    columns = torch.as_tensor(list(random), device=f.device)
    n_random = len(columns)
    rows, cols = torch.tril_indices(n_random, n_random, device=f.device)
    start = torch.where(rows == cols, 0.5, 0.0).double()
    theta = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=_MAX_ITERATIONS, tolerance_grad=1e-9, tolerance_change=1e-12,
        history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def ratio(theta: Tensor) -> Tensor:
        """Loadings over the noise, (Q, Q)."""
        return lower_triangle(theta, n_random)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -_profile(moments, columns, ratio(theta))[0] / moments.n_rows
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        # A loading has the sign of a code, which nothing tells; a positive diagonal is the convention.
        signs = torch.where(ratio(theta).diagonal() < 0, -1.0, 1.0)
        theta *= signs[cols]
        log_likelihood, fixed, precision, noise = _profile(moments, columns, ratio(theta))
        covariance = noise.square() * torch.linalg.pinv(precision, hermitian=True)
        effects = _effects(moments, columns, ratio(theta), fixed)

    def value(parameters: Tensor) -> Tensor:
        return _profile(moments, columns, ratio(parameters[:-1]), parameters[-1].exp())[0]

    at_best = torch.cat([theta.detach(), noise.log()[None]])
    information = -torch.autograd.functional.hessian(value, at_best)
    return LinearMixedModel(
        fixed,
        covariance,
        ratio(theta.detach()) * noise,
        float(noise),
        float(log_likelihood),
        effects,
        torch.linalg.pinv(information, hermitian=True),
    )


def lower_triangle(entries: Tensor, size: int) -> Tensor:
    """Matrix (size, size) of the entries of its lower triangle by rows."""
    rows, cols = torch.tril_indices(size, size, device=entries.device)
    return entries.new_zeros(size, size).index_put((rows, cols), entries)


def _effects(moments: _Moments, columns: Tensor, ratio: Tensor, fixed: Tensor) -> Tensor:
    """Best linear unbiased predictions (G, Q)."""
    inner = moments.outer[:, columns]
    residual = moments.product[:, columns] - inner @ fixed
    identity = torch.eye(len(columns), dtype=ratio.dtype, device=ratio.device)
    precision = identity + ratio.mT @ inner[:, :, columns] @ ratio
    return torch.linalg.solve(precision, residual @ ratio) @ ratio.mT


def _profile(
    moments: _Moments, columns: Tensor, ratio: Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-likelihood at the best beta (and sigma, if None), beta, its precision times sigma², and sigma."""
    inner = moments.outer[:, columns]
    identity = torch.eye(len(columns), dtype=ratio.dtype, device=ratio.device)
    factor = torch.linalg.cholesky(identity + ratio.mT @ inner[:, :, columns] @ ratio)
    # Woodbury: V⁻¹ = I - z Lambda (I + Lambdaᵀ zᵀz Lambda)⁻¹ Lambdaᵀ zᵀ, all but the noise variance.
    half = torch.linalg.solve_triangular(factor, ratio.mT @ inner, upper=False)
    half_y = torch.linalg.solve_triangular(factor, ratio.mT @ moments.product[:, columns, None], upper=False)
    precision = (moments.outer - half.mT @ half).sum(0)
    weighted = (moments.product - (half.mT @ half_y)[..., 0]).sum(0)
    # The ridge is far below rounding unless columns are collinear, where it picks one of the solutions.
    ridge = (
        1e-10 * precision.diagonal().mean() * torch.eye(len(weighted), dtype=ratio.dtype, device=ratio.device)
    )
    fixed = torch.linalg.solve(precision + ridge, weighted)
    residual = moments.square - half_y.square().sum() - weighted @ fixed
    residual = residual.clamp(min=1e-12 * moments.square + 1e-300)
    variance = residual / moments.n_rows if noise is None else noise.square()
    log_det = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum()
    value = -0.5 * (moments.n_rows * (2.0 * math.pi * variance).log() + residual / variance + log_det)
    return value, fixed, precision, variance.sqrt()
