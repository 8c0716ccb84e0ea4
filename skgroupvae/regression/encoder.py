"""q(u given a group's rows): the mixed model's posterior, and a learned correction to it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skgroupvae.nn import mlp
from skgroupvae.regression.decoder import RegressionDecoder

__all__ = ["FullNormal", "MixedModelEncoder", "normal_posterior"]

# Of an outcome, as a network sees it.
MAX_SCORE = 6.0
_MAX_CORRECTION = 3.0


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


class MixedModelEncoder(nn.Module):
    """q(u given the rows of a group): the mixed model's posterior, and a learned correction to it.

    Each row adds its score and information about the linear predictor at u = 0. For a normal outcome they
    give the exact posterior (the BLUP and its variance); else one step of Newton's method. The correction is
    a shift and a stretch in units of that posterior, from sums of learned features of the rows.

    Attributes
    ----------
    anchor : RegressionDecoder or None
        The decoder that evidence is about, where that is not to follow the one that learns.
    """

    def __init__(
        self,
        n_columns: int,
        n_group_codes: int,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.n_group_codes = n_group_codes
        self.anchor: RegressionDecoder | None = None
        self.row_network: nn.Module | None = None
        self.group_network: nn.Module | None = None
        if hidden:
            self.row_network = mlp(n_columns, hidden, None, generator)
            n_summaries = hidden[-1] + 2 + 2 * n_group_codes + 1
            self.group_network = mlp(n_summaries, hidden, 2 * n_group_codes, generator, zero_last=True)

    def freeze_evidence(self, decoder: RegressionDecoder) -> None:
        """From now on the evidence of rows is about this decoder as it is, whatever it goes on to learn.

        An encoder that is frozen already keeps the decoder that it has.
        """
        if self.anchor is None:
            self.anchor = copy.deepcopy(decoder).requires_grad_(False)
        if self.row_network is not None:
            self.row_network.requires_grad_(False)

    def release_evidence(self) -> None:
        """Undo :meth:`freeze_evidence`."""
        self.anchor = None
        if self.row_network is not None:
            self.row_network.requires_grad_(True)

    def evidence(self, rows: Tensor, decoder: RegressionDecoder) -> Tensor:
        """Evidence of each row: (N, 2 + P) -> (N, E)."""
        decoder = decoder if self.anchor is None else self.anchor
        y, weights, design = rows[:, 0], rows[:, 1:2], rows[:, 2:]
        # The decoder follows the likelihood; through q it would learn to flatter the encoder.
        with torch.no_grad():
            coefficients = decoder.coefficients(design)
            eta = decoder(design, rows.new_zeros(len(rows), self.n_group_codes), coefficients)
            score, information = decoder.family.evidence(y, eta)
            slopes = coefficients[:, : decoder.family.n_working]
            sums = (
                (score[..., None] * slopes).sum(1),
                ((information[..., None] * slopes).mT @ slopes).flatten(1),
            )
        parts = [torch.ones_like(weights), *sums]
        if self.row_network is not None:
            with torch.no_grad():
                v = decoder.family.normal_score(y, eta)[0].clamp(-MAX_SCORE, MAX_SCORE)[:, None]
            parts += [v, v.square(), self.row_network(torch.cat([v, design[:, 1:]], dim=-1))]
        return weights * torch.cat(parts, dim=-1)

    def posterior(self, evidence: Tensor) -> FullNormal:
        """q(u) of each group from its summed evidence (G, E)."""
        n_codes = self.n_group_codes
        size, score, information, learned = evidence.split(
            [1, n_codes, n_codes**2, evidence.shape[1] - 1 - n_codes - n_codes**2], dim=-1
        )
        normal = normal_posterior(score, information.unflatten(1, (n_codes, n_codes)))
        if self.group_network is None:
            return normal
        loc, root, log_det = normal.loc, normal.root, normal.log_det
        mean_v, sum_square, features = learned[:, :1] / size, learned[:, 1:2], learned[:, 2:] / size
        log_spread = ((sum_square + 1.0) / (size + 1.0)).log()
        spread = root.square().sum(-1).log()
        summaries = torch.cat([loc, spread, mean_v, log_spread, features, size.log()], dim=-1)
        # Bounded: evidence unlike any of the fit must not send u where nothing was learned.
        correction = _MAX_CORRECTION * (self.group_network(summaries) / _MAX_CORRECTION).tanh()
        shift, log_stretch = correction.chunk(2, dim=-1)
        loc = loc + (root @ shift[..., None])[..., 0]
        return FullNormal(loc, root * log_stretch.exp()[:, None, :], log_det + log_stretch.sum(-1))


def normal_posterior(score: Tensor, information: Tensor) -> FullNormal:
    """Posterior of u from the prior N(0, I), and the slope (G, U) and curvature (G, U, U) of a likelihood."""
    # In float64: with many rows the precision is large and the prior's 1 would be lost.
    precision = information.double()
    identity = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    factor = torch.linalg.cholesky(0.5 * (precision + precision.mT) + identity)
    root = torch.linalg.solve_triangular(factor.mT, identity.expand_as(factor), upper=True).to(score.dtype)
    mean = torch.cholesky_solve(score.double()[..., None], factor)[..., 0].to(score.dtype)
    return FullNormal(mean, root, root.diagonal(dim1=-2, dim2=-1).log().sum(-1))
