"""The search for the variance parameters of a linear mixed model: its start, what is free, what it finds."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from skgroupvae.mixed_model.criterion import integrate, precisions_of
from skgroupvae.mixed_model.linalg import identity
from skgroupvae.mixed_model.minimize import CONVERGED, inverse_curvature, minimize
from skgroupvae.mixed_model.problem import Problem

__all__ = ["maximize"]


def maximize(problem: Problem) -> tuple[Tensor, bool]:
    """Search for the maximum of the likelihood.

    Parameters
    ----------
    problem : Problem

    Returns
    -------
    parameters : Tensor of shape (T,)
        Of the maximum, in the units of the problem.
    converged : bool
        Whether the gradient is zero there, to 1e-6 nats a row or such that a step promises less than 1e-6
        nats.
    """
    n_rows = float(problem.sums.n_rows.sum())
    # Of triangular loadings one that is zero would leave those below it undetermined: a saddle.
    shape = replace(problem.shape, triangular=False)
    problem = replace(problem, shape=shape)
    start = shape.pack(_start(problem), identity(shape.n_outcomes))
    # The first residual deviation is the overall scale, which is profiled out.
    free = torch.arange(len(start)) != shape.n_loadings

    def objective(point: Tensor) -> tuple[float, Tensor]:
        criterion, gradient = problem.evaluate(start.masked_scatter(free, point))
        return 0.5 * criterion.value / n_rows, 0.5 * gradient[free] / n_rows

    point, gradient, _ = minimize(objective, start[free], n_rows)
    converged = float(gradient.abs().amax()) < CONVERGED
    if not converged:
        # Once more, with the curvature known; the gain that a slope promises tells it from rounding.
        point, gradient, inverse = minimize(objective, point, n_rows, inverse_curvature(objective, point))
        gain = n_rows * float(gradient @ inverse @ gradient)
        converged = float(gradient.abs().amax()) < CONVERGED or gain < CONVERGED
    parameters = start.masked_scatter(free, point)
    ratio, factor = shape.unpack(parameters)
    ratio = torch.linalg.qr(ratio.mT).R.mT
    # A column of the loadings has the sign of a code, which nothing tells; its diagonal is made positive.
    ratio = ratio * torch.where(ratio.diagonal() < 0, -1.0, 1.0)
    ratio = shape.absolute(ratio, torch.linalg.inv(factor))
    factor = factor * math.sqrt(problem.evaluate(parameters)[0].variance)
    return replace(shape, triangular=True).pack(ratio, factor), converged


def _start(problem: Problem) -> Tensor:
    """Relative loadings (D Q, R) after one step of EM from the identity."""
    shape, kinds = problem.shape, problem.kinds
    loadings = shape.absolute(identity(shape.n_outcomes * shape.n_random), problem.base)
    groups = integrate(kinds, loadings, precisions_of(problem.base, kinds.observed)[0])
    copies = kinds.n_copies
    halves = torch.cat([copies.sqrt()[:, None, None] * groups.half_y, groups.half_deviation], -1)
    means = groups.inverse.mT @ halves
    second = copies[:, None, None] * (groups.inverse.mT @ groups.inverse) + means @ means.mT
    return torch.linalg.cholesky(second.sum(0) / copies.sum())[:, : shape.rank]
