"""Exact answers by other means than the package's: the references that tests compare with."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy.stats import multivariate_normal
from torch import nn

from skgroupvae.batch import Batch, Segments
from skgroupvae.model.decoders import LinearDecoder


def exam_formula(u, v):
    """The true mean of a score, 2 mu + (sigma^2 + 1) v."""
    return 2.0 * u[:, :1] + (u[:, 1:] ** 2 + 1.0) * v


def segments_of(sizes) -> Segments:
    """Segments of groups of these sizes, in float32, rows standing by group."""
    return Segments.of_sizes(torch.as_tensor(sizes)).to(torch.device("cpu"), torch.float32)


def batch_of(values: torch.Tensor, sizes) -> Batch:
    """Rows without covariates, of weight 1, in groups of these sizes, all of the type of `values`."""
    ones = values.new_ones(len(values), 1)
    return Batch(values, ones, ones[:, 0], (segments_of(sizes).to(values.device, values.dtype),))


def unsettled(module: nn.Module, scale: float = 0.1) -> nn.Module:
    """The module with noise on every parameter: away from the layers that start at exactly zero."""
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


def linear_parts(decoder: LinearDecoder) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Intercept b (D,), loadings W_u (D, U) and W_v (D, V), noise variances (D,) in float64."""
    return tuple(
        part.detach().double().numpy()
        for part in (
            decoder.group_loadings.bias,
            decoder.group_loadings.weight,
            decoder.instance_loadings.weight,
            (2.0 * decoder.log_noise).exp(),
        )
    )


def linear_log_likelihood(decoder: LinearDecoder, x: np.ndarray, sizes) -> np.ndarray:
    """Exact log p(x_i) of each group under the linear decoder: one multivariate normal a group (G,).

    The rows of a group share u, so its K * D values have covariance 1 1' (x) W_u W_u' + I (x) (W_v W_v' + S).
    """
    intercept, group_loadings, instance_loadings, variances = linear_parts(decoder)
    within = instance_loadings @ instance_loadings.T + np.diag(variances)
    between = group_loadings @ group_loadings.T
    values, stop = [], np.cumsum(sizes)
    for start, end in zip(stop - sizes, stop, strict=True):
        n_rows = end - start
        covariance = np.kron(np.ones((n_rows, n_rows)), between) + np.kron(np.eye(n_rows), within)
        mean = np.tile(intercept, n_rows)
        values.append(multivariate_normal(mean, covariance).logpdf(x[start:end].ravel()))
    return np.array(values)


def linear_group_posterior(
    decoder: LinearDecoder, x: np.ndarray, sizes
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Exact mean (U,) and covariance (U, U) of u given its group's rows, by Bayes' rule with v summed out."""
    intercept, group_loadings, instance_loadings, variances = linear_parts(decoder)
    precision_of_row = np.linalg.inv(instance_loadings @ instance_loadings.T + np.diag(variances))
    means, covariances, stop = [], [], np.cumsum(sizes)
    for start, end in zip(stop - sizes, stop, strict=True):
        n_rows = end - start
        precision = np.eye(group_loadings.shape[1])
        precision += n_rows * group_loadings.T @ precision_of_row @ group_loadings
        covariance = np.linalg.inv(precision)
        residual = (x[start:end] - intercept).sum(axis=0)
        means.append(covariance @ group_loadings.T @ precision_of_row @ residual)
        covariances.append(covariance)
    return means, covariances


def normal_grid(dimension: int, n_nodes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Product Gauss-Hermite rule for a standard normal: points (n, d), weights (n,) that add to 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n_nodes)
    weights = weights / weights.sum()
    points = np.array(list(itertools.product(nodes, repeat=dimension)))
    return points, np.array([np.prod(w) for w in itertools.product(weights, repeat=dimension)])
