"""Questions to a fitted :class:`ScoreModel`, as pure functions: what it predicts with u integrated out.

The distribution of a row is a mixture of the likelihood's distributions over draws of its group's u. Given u
the outcomes of a row are independent, or correlated by their normal scores; the mixture is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from skgroupvae.batch import Batch
from skgroupvae.model.families import Family, bisect
from skgroupvae.model.integration import quasi_normal, sobol
from skgroupvae.model.likelihood import Likelihood
from skgroupvae.model.model import ScoreModel
from skgroupvae.model.posteriors import DiagonalNormal, FullNormal, newton

__all__ = [
    "draws_of",
    "group_log_likelihoods",
    "log_likelihood",
    "mean_by_rows",
    "mixture_cdf",
    "mixture_log_prob",
    "mixture_moments",
    "mixture_quantiles",
    "normal_scores",
    "translated",
]

# Proposals are wider than the posterior, so that no draw outweighs all others.
_WIDER = 1.3
# Draws times rows that log densities are taken at together: what fits a cache is quickest.
_NUMBERS_AT_ONCE = 2**15
# Steps towards the mode of a group's posterior, how far one goes in standard deviations of the prior, and the
# step of a central difference.
_MODE_STEPS, _MAX_MODE_STEP, _DIFFERENCE = 8, 1.0, 1e-3


def draws_of(q_u: DiagonalNormal | FullNormal, n_draws: int, seed: int = 0) -> Tensor:
    """Quasi-random draws (S, G, U) of the group codes: scrambled Sobol points, common to all groups.

    In pairs about the mean, so that what is linear in u has its exact mean (with an even number of draws).
    """
    return q_u.from_noise(_paired_noise(n_draws, q_u.loc.shape[-1], seed).to(q_u.loc)[:, None])


def _paired_noise(n_draws: int, dimension: int, seed: int) -> Tensor:
    """Quasi-random standard normal points (n_draws, dimension), the second half minus the first."""
    half = quasi_normal(sobol((n_draws + 1) // 2, dimension, seed))
    return torch.cat([half, -half])[:n_draws]


def _uncorrelated_noise(n_draws: int, dimension: int, seed: int) -> Tensor:
    """As :func:`_paired_noise`, with a sample covariance of exactly I where there are enough points.

    Some 64 Sobol points have correlations of 0.4 between coordinates: too much for draws that are to be
    independent.
    """
    noise = _paired_noise(n_draws, dimension, seed)
    if n_draws <= 2 * dimension:
        return noise
    values, vectors = torch.linalg.eigh(noise.mT @ noise / n_draws)
    return noise @ (vectors * values.rsqrt()) @ vectors.mT


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
    model: ScoreModel, batch: Batch, q_u: DiagonalNormal | FullNormal, n_draws: int = 256
) -> float:
    """Of whole groups, in nats, u integrated out by importance sampling.

    Parameters
    ----------
    model : ScoreModel
    batch : Batch
        Rows of whole groups, of the type of the model.
    q_u : DiagonalNormal or FullNormal over (G, U)
        What draws are made from, widened.
    n_draws : int
        Number of draws; the estimate is the same for the same model and rows.

    Returns
    -------
    value : float
    """
    # The same points for all groups, shifted for each: what they miss then averages out over the groups.
    shift = torch.rand(q_u.loc.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    normal = FullNormal.from_diagonal(q_u) if isinstance(q_u, DiagonalNormal) else q_u
    proposal, by_draw = normal.stretched(_WIDER), []
    points = sobol(n_draws, q_u.loc.shape[-1], seed=0)
    for part in points.split(_n_at_once(batch)):
        noise = quasi_normal((part[:, None] + shift) % 1.0).to(q_u.loc)
        by_draw += list(_log_weights(model, batch, *proposal.propose(noise)))
    return float(_log_mean(model, batch, by_draw).sum())


@torch.no_grad()
def group_log_likelihoods(
    model: ScoreModel,
    batch: Batch,
    q_u: DiagonalNormal | FullNormal,
    n_draws: int = 256,
    prior: FullNormal | None = None,
) -> Tensor:
    """As :func:`log_likelihood`, of each group (G,) by itself; exact where q(u) is the exact posterior.

    The draws of a group depend on its own rows only, never on the other groups of the batch.

    Parameters
    ----------
    model, batch, q_u, n_draws
        As there.
    prior : FullNormal over (G, U), optional
        What is known of the group codes without these rows; None is the standard normal.
    """
    if model.decoder.is_exact and not model.has_learned_posterior:
        # All draws have one weight.
        u, log_ratio = q_u.propose(torch.zeros_like(q_u.loc)[None], prior)
        return batch.groups.sum(batch.weights * model.log_prob(batch, u)[0]) + log_ratio[0]
    normal = FullNormal.from_diagonal(q_u) if isinstance(q_u, DiagonalNormal) else q_u
    if prior is None:
        normal = _towards_mode(model, batch, normal)
    before = FullNormal.standard(q_u.loc.shape[-1], q_u.loc) if prior is None else prior
    # A group unlike any of the fit may be far from its q(u): half of the draws are from what was known.
    proposal, shift, by_draw = normal.stretched(_WIDER), 10.0 * q_u.loc.double().cpu(), []
    points = sobol(n_draws, q_u.loc.shape[-1], seed=0)
    for source, some in ((before, points[: n_draws // 2]), (proposal, points[n_draws // 2 :])):
        for part in some.split(_n_at_once(batch)):
            u = source.from_noise(quasi_normal(torch.remainder(part[:, None] + shift, 1.0)).to(q_u.loc))
            log_before = before.log_prob(u)
            log_ratio = log_before - torch.logaddexp(log_before, proposal.log_prob(u)) + math.log(2.0)
            by_draw += list(_log_weights(model, batch, u, log_ratio))
    return _log_mean(model, batch, by_draw)


def _towards_mode(model: ScoreModel, batch: Batch, q_u: FullNormal) -> FullNormal:
    """Normals at the mode of p(u given the rows), by Gauss-Newton steps from q(u), where these lead up."""
    decoder, likelihood, groups = model.decoder, model.decoder.likelihood, batch.groups
    directions = _DIFFERENCE * torch.eye(q_u.loc.shape[-1], dtype=q_u.loc.dtype, device=q_u.loc.device)
    found = q_u
    for _ in range(_MODE_STEPS):
        u = groups.expand(found.loc)
        ups, downs = (decoder(batch.design, u + sign * directions[:, None]) for sign in (1.0, -1.0))
        slopes = (
            ((ups - downs) / (2.0 * _DIFFERENCE))[..., : likelihood.n_working].flatten(2).permute(1, 2, 0)
        )
        score, information = likelihood.newton_terms(batch.values, decoder(batch.design, u), batch.mask)
        # About u = 0, where the prior is centered.
        pull = (slopes.mT @ (score[..., None] + information @ (slopes @ u[..., None])))[..., 0]
        inner = batch.weights[:, None, None] * (slopes.mT @ (information @ slopes))
        after = newton(groups.sum(batch.weights[:, None] * pull), groups.sum(inner))
        step = (after.loc - found.loc).clamp(-_MAX_MODE_STEP, _MAX_MODE_STEP)
        found = FullNormal(found.loc + step, after.root, after.log_det)

    def height(u: Tensor) -> Tensor:
        return _log_weights(model, batch, u[None], -0.5 * u.square().sum(-1))[0]

    is_up = height(found.loc) > height(q_u.loc)
    return FullNormal(
        torch.where(is_up[:, None], found.loc, q_u.loc),
        torch.where(is_up[:, None, None], found.root, q_u.root),
        torch.where(is_up, found.log_det, q_u.log_det),
    )


def _n_at_once(batch: Batch) -> int:
    """Draws that are taken together."""
    return max(1, _NUMBERS_AT_ONCE // max(1, batch.n_rows))


def _log_weights(model: ScoreModel, batch: Batch, u: Tensor, log_ratio: Tensor) -> Tensor:
    """Log weights (S, G) of draws u (S, G, U) of each group."""
    return batch.groups.sum((batch.weights * model.log_prob(batch, u)).mT).mT + log_ratio


def _log_mean(model: ScoreModel, batch: Batch, log_weights: list[Tensor]) -> Tensor:
    """Log-likelihood (G,) from the log weights of all draws."""
    values = torch.logsumexp(torch.stack(log_weights), dim=0) - math.log(len(log_weights))
    coefficients = _log_coefficients(model.decoder.likelihood, batch)
    return values if coefficients is None else values + batch.groups.sum(coefficients)


def _log_coefficients(likelihood: Likelihood, batch: Batch) -> Tensor | None:
    """What rows' likelihoods (N,) leave out as no parameter changes it: the binomial coefficients."""
    of_rows, outcomes = likelihood.of_rows(batch.values, batch.weights)
    if of_rows is likelihood:
        return None
    eta = batch.values.new_zeros(*batch.values.shape, likelihood.n_parameters)
    whole = of_rows.log_prob(outcomes, eta, batch.mask)
    return whole - batch.weights * likelihood.log_prob(batch.values, eta, batch.mask)


# --- the mixture over draws of u ---


def mixture_log_prob(
    likelihood: Likelihood, values: Tensor, eta: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Log predictive density of rows, jointly over the outcomes.

    Parameters
    ----------
    likelihood : Likelihood
    values : Tensor of shape (N, D)
    eta : Tensor of shape (S, N, D, W)
        Parameters at each draw of u.
    mask : Tensor of shape (N, D), optional
        True where a cell is observed.

    Returns
    -------
    log_prob : Tensor of shape (N,)
    """
    return torch.logsumexp(likelihood.log_prob(values, eta, mask), dim=0) - math.log(len(eta))


def mixture_cdf(likelihood: Likelihood, values: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    """P(Y < y) and P(Y <= y) of each outcome: values (N, D), eta (S, N, D, W) -> two of (N, D)."""
    columns = zip(_columns(likelihood, eta), values.unbind(-1), strict=True)
    bounds = [_cdf(family, y, at) for (family, at), y in columns]
    below, upper = (torch.stack(part, dim=-1) for part in zip(*bounds, strict=True))
    return below, upper


def _cdf(family: Family, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    """Of one outcome: y (N,), eta (S, N, W) -> two of (N,)."""
    y = y.expand(eta.shape[:-1])
    upper = family.cdf(y, eta).mean(0)
    if family.is_continuous:
        return upper, upper
    return (upper - family.log_prob(y, eta).exp().mean(0)).clamp(min=0.0), upper


def mixture_moments(likelihood: Likelihood, eta: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each outcome: eta (S, N, D, W) -> two of (N, D)."""
    means, variances = likelihood.moments(eta)
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


def mixture_quantiles(likelihood: Likelihood, eta: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of each outcome by bisection: eta (S, N, D, W), levels (L,) -> (N, L, D)."""
    by_outcome = [
        torch.stack([_quantile(family, at, level.expand(at.shape[1])) for level in levels], dim=-1)
        for family, at in _columns(likelihood, eta)
    ]
    return torch.stack(by_outcome, dim=-1)


def _quantile(family: Family, eta: Tensor, level: Tensor) -> Tensor:
    """Of one outcome: eta (S, N, W), level (N,) -> (N,)."""
    parts = family.quantile(level.expand(eta.shape[:-1]), eta)
    low, high = parts.amin(0), parts.amax(0)

    def reached(y: Tensor) -> Tensor:
        return family.cdf(y.expand(eta.shape[:-1]), eta).mean(0) >= level

    return bisect(reached, low, high, family.is_continuous)


def _columns(likelihood: Likelihood, eta: Tensor) -> Iterator[tuple[Family, Tensor]]:
    """Family and parameters (S, N, n_parameters) of each outcome."""
    for column, at in enumerate(eta.unbind(-2)):
        family = likelihood.family_of(column)
        yield family, at[..., : family.n_parameters]


# --- the codes of rows ---


def translated(
    model: ScoreModel,
    batch: Batch,
    q_u: DiagonalNormal | FullNormal,
    source: Tensor,
    target: Tensor,
    n_draws: int,
    seed: int = 0,
) -> Tensor:
    """Outcomes that rows would have had in their target groups: the same covariates and scores v, other u.

    Draws of the source's u, of the target's and of what is not known of v are independent. A row whose target
    is its source has one u, and so keeps its outcomes.

    Parameters
    ----------
    model : ScoreModel
    batch : Batch
        The rows; their groups are not looked at.
    q_u : DiagonalNormal or FullNormal over (G, U)
        What is known of the groups.
    source, target : Tensor of int of shape (N,)
        Positions of the rows' groups in `q_u`.
    n_draws : int
        Number S of draws, in pairs about the mean.
    seed : int

    Returns
    -------
    values : Tensor of shape (S, N, D)
        For a family with trials the successes among those of the row. A cell outside the mask has a standard
        normal v.
    """
    decoder, n_codes = model.decoder, q_u.loc.shape[-1]
    likelihood, values = decoder.likelihood.of_rows(batch.values, batch.weights)
    open_columns = _open_columns(likelihood, batch.mask)
    noise = _uncorrelated_noise(n_draws, 2 * n_codes + len(open_columns), seed).to(q_u.loc)
    of_source, of_target, of_v = noise.split([n_codes, n_codes, len(open_columns)], dim=-1)
    u_source = q_u.from_noise(of_source[:, None]).index_select(1, source)
    u_target = q_u.from_noise(of_target[:, None]).index_select(1, target)
    u_target = torch.where((source == target)[:, None], u_source, u_target)
    v, spread = likelihood.normal_scores(values, decoder(batch.design, u_source), batch.mask)
    if open_columns:
        by_column = v.new_zeros(n_draws, 1, v.shape[-1])
        by_column[:, 0, open_columns] = of_v.to(v)
        v = v + spread * by_column
    return likelihood.at_scores(v, decoder(batch.design, u_target))


def _open_columns(likelihood: Likelihood, mask: Tensor | None) -> list[int]:
    """Outcomes whose v is not known exactly: those that are discrete or have cells missing."""
    return [
        column
        for column in range(likelihood.n_columns)
        if not likelihood.family_of(column).is_continuous
        or (mask is not None and not bool(mask[:, column].all()))
    ]


def normal_scores(model: ScoreModel, batch: Batch, draws: Tensor, position: Tensor) -> Tensor:
    """Posterior mean of v of each row's outcomes over draws of its group's code.

    Parameters
    ----------
    model : ScoreModel
    batch : Batch
        The rows; their groups are not looked at.
    draws : Tensor of shape (S, G, U)
        Of the group codes.
    position : Tensor of int of shape (N,)
        Of each row's group in `draws`.

    Returns
    -------
    v : Tensor of shape (N, D)
        0 where a cell is missing.
    """
    likelihood, values = model.decoder.likelihood.of_rows(batch.values, batch.weights)
    total = torch.zeros_like(values)
    for u in draws:
        total += likelihood.normal_scores(values, model.decoder(batch.design, u[position]), batch.mask)[0]
    return total / len(draws)
