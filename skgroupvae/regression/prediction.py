"""Questions to a fitted regression network, as pure functions: what it predicts with u integrated out.

The distribution of an outcome is a mixture of the family's distributions over draws of its group's u.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from skgroupvae.families import Family, bisect
from skgroupvae.groups import Segments
from skgroupvae.regression.encoder import FullNormal
from skgroupvae.regression.network import RegressionNetwork

__all__ = [
    "draws_of",
    "log_likelihood",
    "mean_by_rows",
    "mixture_cdf",
    "mixture_log_prob",
    "mixture_moments",
    "mixture_quantiles",
    "normal_scores",
    "translated",
]


_WIDER = 1.3


def draws_of(q_u: FullNormal, n_draws: int, seed: int = 0) -> Tensor:
    """Quasi-random draws (S, G, U) of the group codes: scrambled Sobol points, common to all groups.

    In pairs about the mean, so that what is linear in u has its exact mean (with an even number of draws).
    """
    half = _quasi_normal((n_draws + 1) // 2, q_u.loc.shape[-1], seed).to(q_u.loc)
    return q_u.draw(torch.cat([half, -half])[:n_draws, None])


def _quasi_normal(n_points: int, dimension: int, seed: int) -> Tensor:
    return _normal_of(_sobol(n_points, dimension, seed))


def _sobol(n_points: int, dimension: int, seed: int) -> Tensor:
    engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed)
    return engine.draw(n_points, dtype=torch.float64)


def _normal_of(uniform: Tensor) -> Tensor:
    return torch.special.ndtri(uniform.clamp(1e-10, 1.0 - 1e-10))


def mean_by_rows(loc: Tensor, sizes: Tensor) -> Tensor:
    """Mean of the group codes (G, U) over rows less that over groups, as far as it is no chance: (U,).

    Where large groups differ from small ones, a row at hand is likelier of one like the large. Under chance
    it has the variance below at most, by which it is shrunk (the positive part alone).
    """
    share = sizes / sizes.sum() - 1.0 / len(sizes)
    difference = share @ loc
    variance = share.square().sum() + 1e-12  # equal sizes differ by rounding
    kept = 1.0 - variance / difference.square().clamp(min=1e-300)
    return difference * kept.clamp(min=0.0)


@torch.no_grad()
def log_likelihood(
    network: RegressionNetwork, rows: Tensor, segments: Segments, q_u: FullNormal, n_draws: int = 256
) -> float:
    """Of whole groups, u integrated out by importance sampling from q(u), in nats."""
    # Wider than the posterior, so that no draw outweighs all others.
    n_groups, n_codes = q_u.loc.shape
    q_u = FullNormal(q_u.loc, _WIDER * q_u.root, q_u.log_det + n_codes * math.log(_WIDER))
    # The same points for all groups, shifted for each: what they miss then averages out over the groups.
    points = _sobol(n_draws, n_codes, seed=0)
    shift = torch.rand(n_groups, n_codes, generator=torch.Generator().manual_seed(0), dtype=points.dtype)
    by_draw = []
    for point in points:
        noise = _normal_of((point + shift) % 1.0).to(q_u.loc)
        u = q_u.draw(noise)
        by_draw.append(
            segments.sum(network.log_prob(rows, u[None], segments)[0]) + q_u.log_prior_ratio(u, noise)
        )
    value = float((torch.logsumexp(torch.stack(by_draw), dim=0) - math.log(n_draws)).sum())
    # What the family leaves out of a row's likelihood as no parameter changes it: the binomial coefficient.
    family, (y, weights) = network.decoder.family, rows[:, :2].T
    of_rows, outcome = family.of_rows(y, weights)
    eta = rows.new_zeros(len(rows), family.n_parameters)
    if of_rows is not family:
        value += float((of_rows.log_prob(outcome, eta) - weights * family.log_prob(y, eta)).sum())
    return value


def mixture_log_prob(family: Family, y: Tensor, eta: Tensor) -> Tensor:
    """Log predictive density: y (N,), eta (S, N, n_parameters) -> (N,)."""
    return torch.logsumexp(family.log_prob(y.expand(eta.shape[:-1]), eta), dim=0) - math.log(len(eta))


def mixture_cdf(family: Family, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    """P(Y < y) and P(Y <= y) of the prediction: y (N,), eta (S, N, n_parameters) -> two of (N,)."""
    y = y.expand(eta.shape[:-1])
    upper = family.cdf(y, eta).mean(0)
    if family.is_continuous:
        return upper, upper
    return (upper - family.log_prob(y, eta).exp().mean(0)).clamp(min=0.0), upper


def mixture_moments(family: Family, eta: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the prediction: eta (S, N, n_parameters) -> two of (N,)."""
    means, variances = family.moments(eta)
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


def mixture_quantiles(family: Family, eta: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of the prediction by bisection: eta (S, N, n_parameters), levels (L,) -> (N, L)."""
    by_level = [_quantile(family, eta, level.expand(eta.shape[1])) for level in levels]
    return torch.stack(by_level, dim=-1)


def _quantile(family: Family, eta: Tensor, level: Tensor) -> Tensor:
    parts = family.quantile(level.expand(eta.shape[:-1]), eta)
    low, high = parts.amin(0), parts.amax(0)

    def reached(y: Tensor) -> Tensor:
        return family.cdf(y.expand(eta.shape[:-1]), eta).mean(0) >= level

    return bisect(reached, low, high, family.is_continuous)


def translated(
    network: RegressionNetwork, rows: Tensor, u_source: Tensor, u_target: Tensor, seed: int = 0
) -> Tensor:
    """Outcomes that rows would have had in the target group, one a draw of (u, v): (S, N).

    Each row keeps its normal score v. Where the outcome is discrete v is drawn between its bounds.
    """
    family, y = network.decoder.family.of_rows(rows[:, 0], rows[:, 1])
    design = rows[:, 2:]
    eta = network.decoder(design, u_source)
    v, spread = family.normal_score(y.expand(eta.shape[:-1]), eta)
    if not family.is_continuous:
        v = v + spread * _quasi_normal(len(eta), 1, seed).to(v)
    return family.at_score(v, network.decoder(design, u_target))


def normal_scores(network: RegressionNetwork, rows: Tensor, draws: Tensor, position: Tensor) -> Tensor:
    """Posterior mean of v of each row over draws u (S, G, U) of its group's code: (N,)."""
    family, y = network.decoder.family.of_rows(rows[:, 0], rows[:, 1])
    total = torch.zeros_like(y)
    for u in draws:
        total += family.normal_score(y, network.decoder(rows[:, 2:], u[position]))[0]
    return total / len(draws)
