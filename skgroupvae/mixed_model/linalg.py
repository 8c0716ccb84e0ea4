"""Triangular solves and factors, in float64, that come through what is nearly singular."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["cholesky", "conjugate", "identity", "ridge_solve", "solve_lower"]

_TINY = 1e-300


def identity(size: int) -> Tensor:
    """Identity (size, size) in float64, whatever the default type."""
    return torch.eye(size, dtype=torch.float64)


def solve_lower(factor: Tensor, right: Tensor) -> Tensor:
    """factor⁻¹ right, for lower triangular factors (*, D, D) and (*, D, V)."""
    return torch.linalg.solve_triangular(factor, right, upper=False)


def conjugate(factor: Tensor, matrix: Tensor) -> Tensor:
    """factor⁻¹ matrix factor⁻ᵀ, for a lower triangular factor and symmetric matrices (*, D, D)."""
    return solve_lower(factor, solve_lower(factor, matrix).mT)


def ridge_solve(precision: Tensor, right: Tensor) -> Tensor:
    """precision⁻¹ right, for (P, P) and (P,) or (P, V).

    The ridge is far below rounding unless columns are collinear, where it picks one solution.
    """
    ridge = 1e-10 * precision.diagonal().mean() + _TINY
    return torch.linalg.solve_ex(precision + ridge * identity(len(precision)), right)[0]


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor (*, D, D); not a number where there is none, which a search turns away from."""
    root, failed = torch.linalg.cholesky_ex(matrix)
    return torch.where(failed[..., None, None] > 0, math.nan, root) if bool(failed.any()) else root
