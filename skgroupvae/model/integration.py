"""Points to integrate over codes at: cubature for posterior means, quasi-random draws for densities."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgroupvae.model.posteriors import Posterior

__all__ = ["cubature", "cubature_points", "quasi_normal", "sobol"]


def cubature(dimension: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and weights that integrate cubic polynomials exactly against a standard normal.

    The unscented rule: the center and two points an axis. Up to three dimensions it has the kurtosis of the
    normal as well, so fourth powers of one variable are exact.

    Parameters
    ----------
    dimension : int
        Number of variables.

    Returns
    -------
    points : ndarray of shape (n_points, dimension)
    weights : ndarray of shape (n_points,)
        Non-negative, adding to 1.
    """
    spread = max(3, dimension)
    axes = math.sqrt(spread) * np.eye(dimension)
    points = np.concatenate([axes, -axes])
    weights = np.full(2 * dimension, 0.5 / spread)
    if dimension < spread:
        points = np.concatenate([np.zeros((1, dimension)), points])
        weights = np.concatenate([[1.0 - dimension / spread], weights])
    return points, weights


def cubature_points(normal: Posterior) -> Iterator[tuple[Tensor, float]]:
    """Points (*, d) of the rule moved to each of the normals, with their weights."""
    points, weights = cubature(normal.loc.shape[-1])
    for point, weight in zip(torch.as_tensor(points), weights, strict=True):
        yield normal.from_noise(point.to(normal.loc)), float(weight)


def sobol(n_points: int, dimension: int, seed: int) -> Tensor:
    """Scrambled Sobol points in the unit cube, float64: (n_points, dimension)."""
    engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed)
    return engine.draw(n_points, dtype=torch.float64)


def quasi_normal(uniform: Tensor) -> Tensor:
    """Points of the unit cube as standard normal draws."""
    return torch.special.ndtri(uniform.clamp(1e-10, 1.0 - 1e-10))
