"""Questions to a fitted :class:`LatentModel`: posterior moments, translation and log-likelihood.

Posterior means over u are taken by cubature, not at the mean of u: where the decoder is curved in u the two
differ, and the first is the one with the smaller error.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from skgroupvae.batch import Batch
from skgroupvae.model.decoders import LinearDecoder
from skgroupvae.model.integration import cubature_points, quasi_normal, sobol
from skgroupvae.model.model import LatentModel
from skgroupvae.model.posteriors import DiagonalNormal, FullNormal, Posterior

__all__ = [
    "instance_posterior",
    "log_likelihood",
    "reconstruct",
    "translate",
    "translated_draws",
    "translated_scale",
]

# A fixed seed makes log-likelihoods a function of the fitted model and the data.
_SEED = 0


@torch.no_grad()
def instance_posterior(model: LatentModel, batch: Batch, q_u: Posterior) -> DiagonalNormal:
    """Mean and sd of v given its group's rows, with u integrated out: normals over (N, V)."""
    mean = square = batch.values.new_zeros(())
    for u, weight in cubature_points(q_u):
        q_v = model.instance_posterior(batch, u)
        mean = mean + weight * q_v.loc
        square = square + weight * (q_v.loc.square() + q_v.variance)
    return DiagonalNormal(mean, (square - mean.square()).clamp(min=1e-12).sqrt())


@torch.no_grad()
def reconstruct(model: LatentModel, batch: Batch, q_u: Posterior) -> Tensor:
    """Posterior mean of each row's noise-free value in its own group: (N, D)."""
    mean = torch.zeros_like(batch.values)
    for u, weight_u in cubature_points(q_u):
        q_v = model.instance_posterior(batch, u)
        by_row = batch.groups.expand(u)
        for v, weight_v in cubature_points(q_v):
            mean += weight_u * weight_v * model.decoder.mean(by_row, v, batch.covariates)
    return mean


@torch.no_grad()
def translate(
    model: LatentModel,
    batch: Batch,
    q_v: DiagonalNormal,
    q_u: DiagonalNormal | FullNormal,
    positions: Tensor,
) -> Tensor:
    """Posterior mean of rows with their own v and the u of another group, independent of it: (N, D).

    Parameters
    ----------
    model : LatentModel
        Fitted model.
    batch : Batch
        The rows.
    q_v : DiagonalNormal over (N, V)
        Instance codes, from the source groups.
    q_u : DiagonalNormal or FullNormal over (G, U)
        Group codes of the target groups.
    positions : Tensor of shape (N,)
        Target group of each row.
    """
    mean = q_v.loc.new_zeros(())
    standard = DiagonalNormal(
        *(f(1, q_u.loc.shape[-1] + q_v.loc.shape[-1]) for f in (torch.zeros, torch.ones))
    )
    for noise, weight in cubature_points(standard):
        noise_u, noise_v = noise.to(q_v.loc).split([q_u.loc.shape[-1], q_v.loc.shape[-1]], dim=-1)
        u, v = q_u.from_noise(noise_u)[positions], q_v.from_noise(noise_v)
        mean = mean + weight * model.decoder.mean(u, v, batch.covariates)
    return mean


@torch.no_grad()
def translated_draws(
    model: LatentModel,
    batch: Batch,
    q_source: Posterior,
    q_target: DiagonalNormal | FullNormal,
    positions: Tensor,
    stays: Tensor,
    n_samples: int,
) -> Tensor:
    """Draws (S, N, D) of what :func:`translate` takes the mean of: u of both groups, v given the source's.

    One sequence of quasi-random points has a dimension for each of them, so that they are independent.

    Parameters
    ----------
    model : LatentModel
        Fitted model.
    batch : Batch
        Rows of whole source groups.
    q_source, q_target : Posterior over (G, U)
        Group codes of the source groups, and of the target groups.
    positions : Tensor of shape (N,)
        Target group of each row.
    stays : Tensor of bool of shape (N,)
        Rows whose target is their source: one draw of u is both.
    n_samples : int
        Number S of draws.
    """
    n_group, n_instance = model.decoder.n_group_codes, model.decoder.n_instance_codes
    points = quasi_normal(sobol(n_samples, 2 * n_group + n_instance, _SEED)).to(batch.values)
    draws = []
    for source, target, own in zip(*points.split([n_group, n_group, n_instance], dim=-1), strict=True):
        u = q_source.from_noise(source)
        q_v = model.instance_posterior(batch, u)
        moved = torch.where(stays[:, None], batch.groups.expand(u), q_target.from_noise(target)[positions])
        draws.append(model.decoder.mean(moved, q_v.from_noise(own), batch.covariates))
    return torch.stack(draws)


@torch.no_grad()
def translated_scale(
    model: LatentModel,
    batch: Batch,
    q_source: Posterior,
    q_target: Posterior,
    positions: Tensor,
    stays: Tensor,
) -> Tensor:
    """Standard deviation (N, D) of what :func:`translated_draws` draws, where the model is linear.

    With x = b + A u + W v + noise and v given u of posterior covariance C, what a change of the source's u
    moves in W v is ``-W C Wᵀ noise⁻¹ A``; the translated row is normal.

    Parameters
    ----------
    model, batch, q_source, q_target, positions, stays
        As there.
    """
    decoder = model.decoder
    assert isinstance(decoder, LinearDecoder)
    assert isinstance(q_source, FullNormal)
    assert isinstance(q_target, FullNormal)
    loadings = decoder.group_loadings.weight
    # The same for every row.
    q_v = model.instance_posterior(batch, q_source.loc)
    assert isinstance(q_v, FullNormal)
    of_v = decoder.instance_loadings.weight @ q_v.root[:1]
    pull = (of_v @ of_v.mT / decoder.noise_scale.square()) @ loadings
    own = torch.where(stays[:, None, None], loadings - pull, pull) @ batch.groups.expand(q_source.root)
    other = (loadings @ q_target.root[positions]) * (~stays)[:, None, None]
    return (of_v.square().sum(-1) + own.square().sum(-1) + other.square().sum(-1)).sqrt()


@torch.no_grad()
def log_likelihood(
    model: LatentModel, batch: Batch, q_u: Posterior, n_samples: int, prior: Posterior | None = None
) -> Tensor:
    """Importance-weighted bound on log p(x_i) of each group (Burda et al. 2016), in standardized units.

    Its expectation is at most the log-likelihood and approaches it as `n_samples` grows. The draws of a
    group depend on its own rows and their order only, never on the other groups of the batch. Under a linear
    model, whose posterior is exact, all draws have one weight, which is the log-likelihood itself.

    Parameters
    ----------
    model : LatentModel
        Fitted model.
    batch : Batch
        Rows of whole groups.
    q_u : Posterior over (G, U)
        Posterior of the group codes.
    n_samples : int
        Number of draws; the bound divides by exactly this number.
    prior : Posterior over (G, U) or None
        What is known of the group codes without these rows; None is the standard normal.

    Returns
    -------
    bound : Tensor of shape (G,)
        In nats, float64.
    """
    n_samples = 1 if model.is_exact(q_u) else n_samples
    groups = batch.groups
    sizes = groups.sizes.long()
    rank = torch.arange(batch.n_rows, device=sizes.device) - groups.expand(sizes.cumsum(0) - sizes)
    proposal = model.proposal(q_u, n_samples)  # type: ignore[arg-type]
    noise = _rotated_points(n_samples, q_u.loc)
    # Made before the loop: small results kept between large temporaries would pin the heap, to gigabytes.
    draws, log_ratio = proposal.propose(noise, prior)
    log_weights = log_ratio.double()
    n_codes = model.decoder.n_instance_codes
    for sample, u in enumerate(draws):
        rows = np.random.default_rng([_SEED, sample]).standard_normal(
            (int(sizes.max()), n_codes), dtype=np.float32
        )
        terms = model.row_terms(batch, u[None], torch.from_numpy(rows).to(batch.values)[rank], None)
        assert terms.log_ratio is not None
        log_weights[sample] += groups.sum((terms.log_prob + terms.log_ratio)[0].double())
    return torch.logsumexp(log_weights, dim=0) - math.log(n_samples)


def _rotated_points(n_points: int, loc: Tensor) -> Tensor:
    """Scrambled Sobol points as standard normal draws (n_points, G, U): unbiased, with less noise.

    Each group has the points rotated by an amount that its own posterior mean `loc` (G, U) decides, so that
    the errors of the groups average out, and are still the same whatever the other groups are.
    """
    points = sobol(n_points, loc.shape[-1], _SEED).to(loc.device)[:, None]
    return quasi_normal(torch.remainder(points + 10.0 * loc.double(), 1.0)).to(loc)
