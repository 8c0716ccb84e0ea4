"""The network of a regression: p(y given x, u) with group codes u, and its posterior given a group's rows.

It contains the (generalised) linear mixed model: the linear predictor is ``f beta + z Lambda u``, and a
network that starts at zero adds to it, and to the scale and shape of the outcome, what depends on x and u in
other ways. The instance code is the outcome's normal score (``families.py``), so it needs no integral; the
group code's posterior starts at the one of the linear mixed model, and a learned correction follows.

Rows are (N, 2 + P): the outcome, how many rows it counts as, and the columns of the design, the first of
them constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from skgroupvae.curves import leading_curves
from skgroupvae.families import Family
from skgroupvae.groups import Segments
from skgroupvae.mixed_model import LinearMixedModel
from skgroupvae.network import ElboTerms, TrainableNetwork
from skgroupvae.nn import mlp

__all__ = ["FullNormal", "MixedModelEncoder", "RegressionDecoder", "RegressionNetwork"]

# Draws of u behind one estimate of the ELBO.
_ELBO_SAMPLES = 4
_MAX_SCORE = 6.0
_MAX_CORRECTION = 3.0
# Of the learning rate. A step of Adam moves every weight of a layer at once: at the full rate, scales and
# tails ran away within 50 steps on tables of some 1,000 rows (examples/choose_defaults.py).
_NETWORK_RATE, _CURVE_RATE = 0.3, 0.1


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
    penalty_centre: Tensor
    bounds: Tensor

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
        self.register_buffer("bounds", torch.tensor(family.max_departure), persistent=False)
        self.n_group_codes = n_group_codes
        self.network: nn.Sequential | None = None
        self.curves: nn.Sequential | None = None
        if hidden:
            n_inputs = n_columns - 1 + n_group_codes
            self.network = mlp(n_inputs, hidden, family.n_parameters, generator, zero_last=True)
            n_outputs = family.n_parameters * n_group_codes
            self.curves = mlp(n_columns - 1, hidden, n_outputs, generator, zero_last=True)
        self.penalty_weight = 0.0
        self.register_buffer("penalty_centre", self._weights().detach().clone(), persistent=False)

    @property
    def loadings(self) -> Tensor:
        """Lower triangle Lambda (Q, Q)."""
        return self.raw_loadings.tril()

    def forward(self, design: Tensor, u: Tensor, coefficients: Tensor | None = None) -> Tensor:
        """Parameters of each row: design (N, P), its group's u (*, N, U) -> eta (*, N, n_parameters).

        `coefficients` are those of these rows, where the caller has them.
        """
        if coefficients is None:
            coefficients = self.coefficients(design)
        departure = torch.einsum("npu,...nu->...np", coefficients, u)
        if self.network is not None:
            # What the covariates add to the first layer is the same for every draw of u.
            first: Any = self.network[0]
            of_x, of_u = first.weight.split([design.shape[1] - 1, self.n_group_codes], dim=1)
            hidden = linear(design[:, 1:], of_x, first.bias) + linear(u, of_u)
            departure = departure + self.network[1:](hidden)
            # As it is near zero, and never beyond the bound.
            rest = self.bounds * (departure[..., 1:] / self.bounds).tanh()
            departure = torch.cat([departure[..., :1], rest], dim=-1)
        plain = torch.cat([(design @ self.fixed)[:, None], self.shape.expand(len(design), -1)], dim=-1)
        return plain + departure

    def coefficients(self, design: Tensor) -> Tensor:
        """Effect of the group codes on the parameters as far as it is linear in u: (N, n_parameters, U)."""
        n_random, n_parameters = len(self.random), self.family.n_parameters
        effects = design[:, self.random] @ self.loadings
        effects = nn.functional.pad(effects[:, None], (0, self.n_group_codes - n_random, 0, n_parameters - 1))
        if self.curves is None:
            return effects
        return effects + self.curves(design[:, 1:]).unflatten(-1, (n_parameters, self.n_group_codes))

    def set_penalty(self, weight: float) -> None:
        """From now on a normal prior of this weight, in nats a row, holds the networks where they are.

        Where they are, not at zero: the product of small weights of three layers says nothing, and a prior
        about zero would keep it there.
        """
        self.penalty_weight, self.penalty_centre = weight, self._weights().detach().clone()

    def penalty(self) -> Tensor:
        """Cost of the networks' weights, in nats a row."""
        return self.penalty_weight * (self._weights() - self.penalty_centre).square().sum()

    def _weights(self) -> Tensor:
        weights = [p.flatten() for net in (self.network, self.curves) if net for p in net.parameters()]
        return torch.cat(weights) if weights else self.fixed.new_zeros(0)

    def rate_factors(self) -> list[tuple[nn.Parameter, float]]:
        """Parameters that learn at a rate of their own: what starts where it belongs moves slowly."""
        factors: list[tuple[nn.Parameter, float]] = [(self.fixed, 0.3), (self.raw_loadings, 0.3)]
        for network, factor in ((self.network, _NETWORK_RATE), (self.curves, _CURVE_RATE)):
            if network is not None:
                factors += [(parameter, factor) for parameter in network.parameters()]
        return factors

    @torch.no_grad()
    def start_from(self, model: LinearMixedModel) -> None:
        """Start at a mixed model."""
        self.fixed.copy_(model.fixed)
        self.raw_loadings.copy_(model.loadings)

    @torch.no_grad()
    def start_curves(self, coefficients: Tensor) -> None:
        """Start the curves of the last codes at sums of the hidden features and a constant: (C, W, H + 1)."""
        assert self.curves is not None
        last: Any = self.curves[-1]
        n_curves, n_working, _ = coefficients.shape
        weight = last.weight.view(self.family.n_parameters, self.n_group_codes, -1)
        bias = last.bias.view(self.family.n_parameters, self.n_group_codes)
        weight[:n_working, -n_curves:] = coefficients[..., :-1].transpose(0, 1)
        bias[:n_working, -n_curves:] = coefficients[..., -1].mT


class MixedModelEncoder(nn.Module):
    """q(u given the rows of a group): the mixed model's posterior, and a learned correction to it.

    Each row adds its score and information about the linear predictor at u = 0. For a normal outcome they
    give the exact posterior (the BLUP and its variance); else one step of Newton's method. The correction is
    a shift and a stretch in units of that posterior, from sums of learned features of the rows.
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
        self.row_network: nn.Module | None = None
        self.group_network: nn.Module | None = None
        if hidden:
            self.row_network = mlp(n_columns, hidden, None, generator)
            n_summaries = hidden[-1] + 2 + 2 * n_group_codes + 1
            self.group_network = mlp(n_summaries, hidden, 2 * n_group_codes, generator, zero_last=True)

    def evidence(self, rows: Tensor, decoder: RegressionDecoder) -> Tensor:
        """Evidence of each row: (N, 2 + P) -> (N, E)."""
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
                v = decoder.family.normal_score(y, eta)[0].clamp(-_MAX_SCORE, _MAX_SCORE)[:, None]
            parts += [v, v.square(), self.row_network(torch.cat([v, design[:, 1:]], dim=-1))]
        return weights * torch.cat(parts, dim=-1)

    def posterior(self, evidence: Tensor) -> FullNormal:
        """q(u) of each group from its summed evidence (G, E)."""
        n_codes = self.n_group_codes
        size, score, information, learned = evidence.split(
            [1, n_codes, n_codes**2, evidence.shape[1] - 1 - n_codes - n_codes**2], dim=-1
        )
        loc, root = _normal_posterior(score, information.unflatten(1, (n_codes, n_codes)))
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if self.group_network is None:
            return FullNormal(loc, root, log_det)
        mean_v, sum_square, features = learned[:, :1] / size, learned[:, 1:2], learned[:, 2:] / size
        log_spread = ((sum_square + 1.0) / (size + 1.0)).log()
        spread = root.square().sum(-1).log()
        summaries = torch.cat([loc, spread, mean_v, log_spread, features, size.log()], dim=-1)
        # Bounded: evidence unlike any of the fit must not send u where nothing was learned.
        correction = _MAX_CORRECTION * (self.group_network(summaries) / _MAX_CORRECTION).tanh()
        shift, log_stretch = correction.chunk(2, dim=-1)
        loc = loc + (root @ shift[..., None])[..., 0]
        return FullNormal(loc, root * log_stretch.exp()[:, None, :], log_det + log_stretch.sum(-1))


def _normal_posterior(score: Tensor, information: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (G, U) and a root (G, U, U) of the covariance, from the prior N(0, I)."""
    # In float64: with many rows the precision is large and the prior's 1 would be lost.
    precision = information.double()
    identity = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    factor = torch.linalg.cholesky(0.5 * (precision + precision.mT) + identity)
    root = torch.linalg.solve_triangular(factor.mT, identity.expand_as(factor), upper=True)
    mean = torch.cholesky_solve(score.double()[..., None], factor)[..., 0]
    return mean.to(score.dtype), root.to(score.dtype)


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
        return self.group_encoder.posterior(evidence)

    @torch.no_grad()
    def start_curves(self, x: Tensor, segments: Segments, generator: torch.Generator) -> None:
        """Start the codes beside the random effects where groups differ more than those explain."""
        decoder = self.decoder
        n_curves = decoder.n_group_codes - len(decoder.random)
        if decoder.curves is None or n_curves == 0:
            return
        y, weights, design = x[:, 0], x[:, 1:2], x[:, 2:]
        q_u = self.posterior(segments.sum(self.evidence(x)), segments.sizes)
        score, information = decoder.family.working(y, decoder(design, segments.expand(q_u.loc)))
        features = nn.functional.pad(decoder.curves[:-1](design[:, 1:]), (0, 1), value=1.0)
        score, information = weights * score, weights * information
        coefficients = leading_curves(
            features.double(), score.double(), information.double(), segments, n_curves, generator
        )
        decoder.start_curves(coefficients)

    def log_prob(self, x: Tensor, u: Tensor, segments: Segments) -> Tensor:
        """Of each row, times its weight, at draws u (S, G, U) of its group's code: (S, N)."""
        eta = self.decoder(x[:, 2:], u.index_select(1, segments.codes))
        return x[:, 1] * self.decoder.family.log_prob(x[:, 0].expand(eta.shape[:-1]), eta)

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
