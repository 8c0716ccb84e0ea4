"""The network of a regression: p(y given x, u) with group codes u, and its posterior given a group's rows.

It contains the (generalised) linear mixed model: the linear predictor is ``f beta + z Lambda u``, and a
network that starts at zero adds to it, and to the scale and shape of the outcome, what depends on x and u in
other ways. The instance code is the outcome's normal score (``families.py``), so it needs no integral; the
group code's posterior starts at the one of the linear mixed model, and a learned correction follows.

Rows are (N, 1 + P): the outcome, then the columns of the design, the first of them constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skgroupvae.families import Family
from skgroupvae.groups import Segments
from skgroupvae.mixed_model import LinearMixedModel
from skgroupvae.network import ElboTerms, TrainableNetwork
from skgroupvae.nn import mlp

__all__ = ["FullNormal", "MixedModelEncoder", "RegressionDecoder", "RegressionNetwork"]

# Draws of u behind one estimate of the ELBO.
_ELBO_SAMPLES = 4
_MAX_SCORE = 6.0


@dataclass(frozen=True)
class FullNormal:
    """Normals with a covariance of their own: ``loc + root @ noise``.

    Attributes
    ----------
    loc : Tensor of shape (G, U)
    root : Tensor of shape (G, U, U)
        Any square root of the covariance.
    log_det : Tensor of shape (G,)
        Logarithm of the determinant of `root`.
    """

    loc: Tensor
    root: Tensor
    log_det: Tensor

    @property
    def scale(self) -> Tensor:
        """Marginal standard deviations (G, U)."""
        return self.root.square().sum(-1).sqrt()

    def draw(self, noise: Tensor) -> Tensor:
        """Standard normal noise (S, G, U) or (S, 1, U) -> draws (S, G, U)."""
        return self.loc + (self.root @ noise[..., None])[..., 0]

    def kl_to_standard_normal(self) -> Tensor:
        """In nats, (G,)."""
        n_codes = self.loc.shape[-1]
        return 0.5 * (self.loc.square().sum(-1) + self.root.square().sum((-2, -1)) - n_codes) - self.log_det

    def log_prior_ratio(self, draws: Tensor, noise: Tensor) -> Tensor:
        """log N(u; 0, I) - log q(u) of draws made from `noise`: (S, G, U) -> (S, G)."""
        return 0.5 * (noise.square() - draws.square()).sum(-1) + self.log_det


class RegressionDecoder(nn.Module):
    """Parameters of the outcome's distribution: a mixed model and a network beside it.

    Parameters
    ----------
    family : Family
        Distribution of the outcome.
    n_columns : int
        Number P of columns of the design, the constant first.
    random : sequence of int
        Columns whose coefficient varies by group, Q of them.
    n_group_codes : int
        Number U of group codes, at least Q; the first Q are the random effects, standardised.
    hidden : sequence of int
        Widths of the network; empty for the mixed model alone.
    """

    random: Tensor

    def __init__(
        self,
        family: Family,
        n_columns: int,
        random: Sequence[int],
        n_group_codes: int,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        n_random = len(random)
        self.family = family
        self.register_buffer("random", torch.as_tensor(list(random), dtype=torch.long))
        self.fixed = nn.Parameter(torch.zeros(n_columns))
        self.raw_loadings = nn.Parameter(torch.eye(n_random))
        self.shape = nn.Parameter(torch.zeros(family.n_parameters - 1))
        self.network: nn.Module | None = None
        if hidden:
            n_inputs = n_columns - 1 + n_group_codes
            self.network = mlp(n_inputs, hidden, family.n_parameters, generator, zero_last=True)
        self.penalty_weight = 0.0

    @property
    def loadings(self) -> Tensor:
        """Lower triangle Lambda (Q, Q)."""
        return self.raw_loadings.tril()

    def forward(self, design: Tensor, u: Tensor) -> Tensor:
        """Parameters of each row: design (N, P), its group's u (*, N, U) -> eta (*, N, n_parameters)."""
        n_random = len(self.random)
        effects = u[..., :n_random] @ self.loadings.mT
        predictor = design @ self.fixed + (design[:, self.random] * effects).sum(-1)
        eta = torch.cat([predictor[..., None], self.shape.expand(*predictor.shape, -1)], dim=-1)
        if self.network is None:
            return eta
        columns = design[:, 1:].expand(*u.shape[:-1], -1)
        return eta + self.network(torch.cat([columns, u], dim=-1))

    def penalty(self) -> Tensor:
        """Normal prior on the weights of the network, in nats a row."""
        total = self.fixed.new_zeros(())
        if self.network is not None:
            for parameter in self.network.parameters():
                if parameter.ndim > 1:
                    total = total + parameter.square().sum()
        return self.penalty_weight * total

    def rate_factors(self) -> list[tuple[nn.Parameter, float]]:
        """Parameters that learn at a rate of their own: the mixed model starts where it belongs."""
        return [(self.fixed, 0.3), (self.raw_loadings, 0.3)]

    @torch.no_grad()
    def start_from(self, model: LinearMixedModel, factor: float, shift: float) -> None:
        """Start at a linear mixed model of the working outcome, its predictor times `factor` plus `shift`."""
        self.fixed.copy_(model.fixed * factor)
        self.fixed[0] += shift
        self.raw_loadings.copy_(model.loadings * factor)


class MixedModelEncoder(nn.Module):
    """q(u given the rows of a group): the mixed model's posterior, and a learned correction to it.

    Each row adds its score and information about the linear predictor at u = 0. For a normal outcome they
    give the exact posterior (the BLUP and its variance); else one step of Newton's method. The correction is
    a shift and a stretch in units of that posterior, from sums of learned features of the rows.
    """

    def __init__(
        self,
        n_columns: int,
        n_random: int,
        n_group_codes: int,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.n_random, self.n_group_codes = n_random, n_group_codes
        self.row_network: nn.Module | None = None
        self.group_network: nn.Module | None = None
        if hidden:
            self.row_network = mlp(n_columns, hidden, None, generator)
            n_summaries = hidden[-1] + 2 + 2 * n_random + 1
            self.group_network = mlp(n_summaries, hidden, 2 * n_group_codes, generator, zero_last=True)

    def evidence(self, rows: Tensor, decoder: RegressionDecoder) -> Tensor:
        """Evidence of each row: (N, 1 + P) -> (N, E)."""
        y, design = rows[:, 0], rows[:, 1:]
        eta = decoder(design, rows.new_zeros(len(rows), self.n_group_codes))
        score, information = decoder.family.working(y, eta)
        z = design[:, decoder.random]
        outer = (information[:, None, None] * z[:, :, None] * z[:, None, :]).flatten(1)
        parts = [score[:, None] * z, outer]
        if self.row_network is not None:
            v = decoder.family.normal_score(y, eta)[0].clamp(-_MAX_SCORE, _MAX_SCORE)[:, None]
            parts += [v, v.square(), self.row_network(torch.cat([v, design[:, 1:]], dim=-1))]
        return torch.cat(parts, dim=-1)

    def posterior(self, evidence: Tensor, sizes: Tensor, decoder: RegressionDecoder) -> FullNormal:
        """q(u) of each group from its summed evidence (G, E) and size (G,)."""
        n_random = self.n_random
        score = evidence[:, :n_random]
        information = evidence[:, n_random : n_random * (n_random + 1)].unflatten(1, (n_random, n_random))
        loc, root = _mixed_model_posterior(score, information, decoder.loadings, self.n_group_codes)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if self.group_network is None:
            return FullNormal(loc, root, log_det)
        learned = evidence[:, n_random * (n_random + 1) :] / sizes[:, None]
        log_spread = ((learned[:, 1:2] * sizes[:, None] + 1.0) / (sizes[:, None] + 1.0)).log()
        spread = root.square().sum(-1)[:, :n_random].log()
        summaries = torch.cat(
            [loc[:, :n_random], spread, learned[:, :1], log_spread, learned[:, 2:], sizes[:, None].log()],
            dim=-1,
        )
        shift, log_stretch = self.group_network(summaries).chunk(2, dim=-1)
        log_stretch = log_stretch.clamp(-5.0, 2.0)
        loc = loc + (root @ shift[..., None])[..., 0]
        return FullNormal(loc, root * log_stretch.exp()[:, None, :], log_det + log_stretch.sum(-1))


def _mixed_model_posterior(
    score: Tensor, information: Tensor, loadings: Tensor, n_group_codes: int
) -> tuple[Tensor, Tensor]:
    """Mean (G, U) and a root (G, U, U) of the covariance; codes that are no random effect keep the prior."""
    # In float64: with many rows the precision is large and the prior's 1 would be lost.
    loadings, dtype = loadings.double(), score.dtype
    precision = loadings.mT @ information.double() @ loadings
    precision = precision + torch.eye(len(loadings), dtype=precision.dtype, device=precision.device)
    factor = torch.linalg.cholesky(0.5 * (precision + precision.mT))
    identity = torch.eye(len(loadings), dtype=precision.dtype, device=precision.device).expand_as(factor)
    root = torch.linalg.solve_triangular(factor.mT, identity, upper=True)
    weighted = (score.double() @ loadings)[..., None]
    mean = torch.cholesky_solve(weighted, factor)[..., 0]
    n_random, n_groups = len(loadings), len(score)
    loc = score.new_zeros(n_groups, n_group_codes)
    whole = torch.eye(n_group_codes, dtype=dtype, device=score.device).repeat(n_groups, 1, 1)
    loc[:, :n_random] = mean.to(dtype)
    whole[:, :n_random, :n_random] = root.to(dtype)
    return loc, whole


class RegressionNetwork(TrainableNetwork):
    """q(u given a group's rows) and p(y given x, u)."""

    def __init__(self, group_encoder: MixedModelEncoder, decoder: RegressionDecoder) -> None:
        super().__init__()
        self.group_encoder = group_encoder
        self.instance_encoder = nn.Identity()
        self.decoder = decoder
        self.regularizer = None

    def evidence(self, x: Tensor) -> Tensor:
        return self.group_encoder.evidence(x, self.decoder)

    def posterior(self, evidence: Tensor, sizes: Tensor) -> FullNormal:
        return self.group_encoder.posterior(evidence, sizes, self.decoder)

    def log_prob(self, x: Tensor, u: Tensor, segments: Segments) -> Tensor:
        """Of each row at draws u (S, G, U) of its group's code: (S, N)."""
        eta = self.decoder(x[:, 1:], u.index_select(1, segments.codes))
        return self.decoder.family.log_prob(x[:, 0].expand(eta.shape[:-1]), eta)

    def elbo(self, x: Tensor, segments: Segments, generator: torch.Generator) -> ElboTerms:
        q_u = self.posterior(segments.sum(self.evidence(x)), segments.sizes)
        half = _noise(_ELBO_SAMPLES // 2, q_u, generator)
        log_py = self.log_prob(x, q_u.draw(torch.cat([half, -half])), segments).mean(0)
        zeros = torch.zeros_like(q_u.log_det)
        return ElboTerms(segments.sum(log_py), q_u.kl_to_standard_normal(), zeros, x[:, :0])

    def importance_correction(
        self, x: Tensor, segments: Segments, n_samples: int, generator: torch.Generator
    ) -> Tensor:
        with torch.no_grad():
            q_u = self.posterior(segments.sum(self.evidence(x)), segments.sizes)
            noise = _noise(n_samples, q_u, generator)
            u = q_u.draw(noise)
        log_py = segments.sum(self.log_prob(x, u, segments).mT).mT
        weights = torch.softmax(log_py.detach() + q_u.log_prior_ratio(u, noise), dim=0) - 1.0 / n_samples
        return (weights * log_py).sum(0)


def _noise(n_samples: int, q_u: FullNormal, generator: torch.Generator) -> Tensor:
    noise = torch.randn((n_samples, *q_u.loc.shape), generator=generator, dtype=q_u.loc.dtype)
    return noise.to(q_u.loc.device)
