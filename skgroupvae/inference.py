"""Questions to a fitted network: posterior moments, translation and log-likelihood, as pure functions.

Posterior means over u are taken by cubature, not at the mean of u: where the decoder is curved in u the two
differ, and the first is the one with the smaller error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Normal

from skgroupvae.groups import Segments
from skgroupvae.network import GroupVAENetwork
from skgroupvae.nn import log_prior_ratio
from skgroupvae.proposals import MirroredProposal

__all__ = [
    "cubature",
    "instance_posterior",
    "log_likelihood",
    "reconstruct",
    "translate",
]


def cubature(dimension: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and weights that integrate cubic polynomials exactly against a standard normal.

    The unscented rule: the centre and two points an axis. Up to three dimensions it has the kurtosis of the
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


def _cubature_points(normal: Normal) -> Iterator[tuple[Tensor, float]]:
    """Points (*, d) of the rule moved to each of the normals, with their weights."""
    points, weights = cubature(normal.loc.shape[-1])
    for point, weight in zip(torch.as_tensor(points), weights, strict=True):
        yield normal.loc + normal.scale * point.to(normal.loc), float(weight)


def instance_posterior(network: GroupVAENetwork, x: Tensor, q_u: Normal, segments: Segments) -> Normal:
    """Mean and sd of v given its group's rows, with u integrated out: (N, D) -> Normal over (N, V)."""
    mean = square = x.new_zeros(())
    for u, weight in _cubature_points(q_u):
        q_v = network.instance_encoder(x, u, segments, network.decoder)
        mean = mean + weight * q_v.loc
        square = square + weight * (q_v.loc.square() + q_v.scale.square())
    variance = (square - mean.square()).clamp(min=1e-12)
    return Normal(mean, variance.sqrt(), validate_args=False)


def reconstruct(network: GroupVAENetwork, x: Tensor, q_u: Normal, segments: Segments) -> Tensor:
    """Posterior mean of each row's noise-free value in its own group: (N, D) -> (N, D)."""
    mean = torch.zeros_like(x)
    for u, weight_u in _cubature_points(q_u):
        q_v = network.instance_encoder(x, u, segments, network.decoder)
        by_row = segments.expand(u)
        for v, weight_v in _cubature_points(q_v):
            mean += weight_u * weight_v * network.decoder.mean(by_row, v)
    return mean


def translate(network: GroupVAENetwork, q_v: Normal, q_u: Normal) -> Tensor:
    """Posterior mean of p(x given u, v) for independent u and v of each row: -> (N, D).

    Parameters
    ----------
    network : GroupVAENetwork
        Fitted network.
    q_v : Normal over (N, V)
        Instance codes, from the source groups.
    q_u : Normal over (N, U)
        Group codes of each row's target group.
    """
    both = Normal(
        torch.cat([q_u.loc, q_v.loc], dim=-1), torch.cat([q_u.scale, q_v.scale], dim=-1), validate_args=False
    )
    n_group_codes = q_u.loc.shape[-1]
    mean = q_v.loc.new_zeros(())
    for point, weight in _cubature_points(both):
        mean = mean + weight * network.decoder.mean(point[:, :n_group_codes], point[:, n_group_codes:])
    return mean


def log_likelihood(
    network: GroupVAENetwork,
    x: Tensor,
    q_u: Normal,
    segments: Segments,
    n_samples: int,
    seed: int,
    prior: Normal | None = None,
) -> Tensor:
    """Importance-weighted bound on log p(x_i) of each group (Burda et al. 2016), in standardised units.

    Its expectation is at most the log-likelihood and approaches it as `n_samples` grows. The draws of a
    group depend on the seed, its own rows and their order only, never on the other groups of the batch.

    Parameters
    ----------
    network : GroupVAENetwork
        Fitted network.
    x : Tensor of shape (N, D)
        Rows of whole groups, each group's rows next to each other.
    q_u : Normal over (G, U)
        Posterior of the group codes.
    segments : Segments
        The group of each row.
    n_samples : int
        Number of draws; the bound divides by exactly this number.
    seed : int
        Seed of the draws.
    prior : Normal over (G, U) or None
        What is known of the group codes without these rows; None is the standard normal.

    Returns
    -------
    bound : Tensor of shape (G,)
        In nats, float64.
    """
    sizes = segments.sizes.long()
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(x.shape[0], device=x.device) - segments.expand(starts)
    proposal = MirroredProposal(q_u, n_samples, prior)
    draws = proposal.draw(_quasi_normal(n_samples, q_u.loc, seed))
    # Made before the loop: small results kept between large temporaries would pin the heap, to gigabytes.
    log_weights = proposal.log_prior_ratio(draws).double()
    for sample, u in enumerate(draws):
        q_v = network.instance_encoder(x, u, segments, network.decoder)
        row_draws = np.random.default_rng([seed, sample]).standard_normal(
            (int(sizes.max()), q_v.loc.shape[-1]), dtype=np.float32
        )
        v = q_v.loc + q_v.scale * torch.from_numpy(row_draws).to(x)[rank]
        log_px = network.decoder(segments.expand(u), v).log_prob(x).sum(-1)
        log_weights[sample] += segments.sum((log_px + log_prior_ratio(v, q_v)).double())
    return torch.logsumexp(log_weights, dim=0) - math.log(n_samples)


def _quasi_normal(n_points: int, loc: Tensor, seed: int) -> Tensor:
    """Scrambled Sobol points as standard normal draws (n_points, G, U): unbiased, with less noise.

    Each group has the points rotated by an amount that its own posterior mean `loc` (G, U) decides, so that
    the errors of the groups average out, and are still the same whatever the other groups are.
    """
    engine = torch.quasirandom.SobolEngine(loc.shape[-1], scramble=True, seed=seed)
    points = engine.draw(n_points, dtype=torch.float64).to(loc.device)[:, None]
    rotated = torch.remainder(points + 10.0 * loc.double(), 1.0)
    return torch.special.ndtri(rotated.clamp(1e-10, 1.0 - 1e-10)).to(loc)
