"""Group encoders q(u given the rows of a group) and instance encoders q(v given a row).

A group encoder turns each row into evidence, adds the evidence up over the group, and reads the posterior
from the sum. So the rows of a group may come in any order and in any number, and new rows update a code
without the old ones. A new encoder is one subclass and one line in a registry (``building.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import softplus

from skgroupvae.decoders import Decoder
from skgroupvae.groups import Segments
from skgroupvae.nn import linear, mlp, normal_from

__all__ = [
    "AverageEncoder",
    "ConditionalEncoder",
    "ConditionalNetworkEncoder",
    "DeepSetsEncoder",
    "GroupEncoder",
    "InstanceEncoder",
    "ProductEncoder",
    "ProductWithPriorEncoder",
    "UnconditionalEncoder",
    "linearized_posterior",
]


class GroupEncoder(nn.Module, ABC):
    """Base class: q(u given the rows of a group), from evidence that adds up over rows."""

    @abstractmethod
    def evidence(self, x: Tensor) -> Tensor:
        """Evidence of each row: (N, D) -> (N, E)."""

    @abstractmethod
    def posterior(self, evidence: Tensor, sizes: Tensor) -> Normal:
        """q(u) from the evidence summed by group (G, E) and the group sizes (G,): loc and scale (G, U)."""

    def start_from_predictor(self, predictor: Tensor) -> None:
        """Start at the best linear predictor (U, D) of u from the mean of a group's rows.

        An encoder that cannot use it starts where its constructor left it.
        """

    def freeze_evidence(self) -> None:
        """Keep the evidence of rows as it is in further training: sums stored of earlier rows stay valid."""
        self.requires_grad_(False)

    def forward(self, x: Tensor, segments: Segments) -> Normal:
        """q(u) of each group from its rows: (N, D) -> Normal over (G, U)."""
        return self.posterior(segments.sum(self.evidence(x)), segments.sizes)


class DeepSetsEncoder(GroupEncoder):
    """Deep Sets (Zaheer et al. 2017): E_B(mean over rows of E_A(x)), as in section 4 of the CxVAE paper.

    E_A is a network together with x and x² themselves, so that the group's mean, spread and size reach E_B
    as they are: they are most of what a group tells, and a network need not learn to square.
    """

    def __init__(
        self, n_features: int, n_group_codes: int, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.n_features = n_features
        self.row_network = mlp(n_features, hidden, None, generator)
        n_summaries = hidden[-1] + 3 * n_features + 1
        # It runs once a group, not once a row: width is cheap, and helps with unusual groups.
        widths = [4 * width for width in hidden]
        self.group_network = mlp(n_summaries, widths, 2 * n_group_codes, generator, zero_last=True)
        self.mean_predictor = linear(n_features, n_group_codes, generator, bias=False)

    def evidence(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.square(), self.row_network(x)], dim=-1)

    def freeze_evidence(self) -> None:
        self.row_network.requires_grad_(False)

    @torch.no_grad()
    def start_from_predictor(self, predictor: Tensor) -> None:
        self.mean_predictor.weight.copy_(predictor)

    def posterior(self, evidence: Tensor, sizes: Tensor) -> Normal:
        sizes = sizes[:, None]
        mean, square, learned = (evidence / sizes).split(
            [self.n_features, self.n_features, evidence.shape[1] - 2 * self.n_features], dim=-1
        )
        # One pseudo-row at the spread of the whole table keeps the log finite for a group of one row.
        variance = ((square - mean.square()).clamp(min=0.0) * sizes + 1.0) / (sizes + 1.0)
        summaries = torch.cat([mean, variance.sqrt(), variance.log(), learned, sizes.log()], dim=-1)
        loc, log_scale = self.group_network(summaries).chunk(2, dim=-1)
        loc = loc + self.mean_predictor(mean)
        # A posterior narrows with the root of the number of rows; the network learns what departs from it.
        return normal_from(loc, log_scale - 0.5 * torch.log1p(sizes))


class AverageEncoder(GroupEncoder):
    """Average of the rows' normals (Hosoya 2019): mean of their means and mean of their variances."""

    def __init__(
        self, n_features: int, n_group_codes: int, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.row_network = mlp(n_features, hidden, 2 * n_group_codes, generator)

    def evidence(self, x: Tensor) -> Tensor:
        loc, log_scale = self.row_network(x).chunk(2, dim=-1)
        row = normal_from(loc, log_scale)
        return torch.cat([row.loc, row.scale.square()], dim=-1)

    def posterior(self, evidence: Tensor, sizes: Tensor) -> Normal:
        loc, variance = (evidence / sizes[:, None]).chunk(2, dim=-1)
        return normal_from(loc, 0.5 * variance.log())


class ProductEncoder(GroupEncoder):
    """Product of the rows' normals (Bouchacourt et al. 2018): precisions add, means weigh by precision.

    A product of posteriors counts the prior once a row: eq. 1 of the CxVAE paper shows that
    ``p(u) * prod_k q(u | x_k) / p(u)`` is what should be multiplied. The published form leaves p(u) out, as
    though it were flat, and with few rows its codes are then too certain and too far from 0.

    :class:`ProductWithPriorEncoder` puts it back.
    """

    prior_precision = 0.0

    def __init__(
        self, n_features: int, n_group_codes: int, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.row_network = mlp(n_features, hidden, 2 * n_group_codes, generator)

    def evidence(self, x: Tensor) -> Tensor:
        loc, raw = self.row_network(x).chunk(2, dim=-1)
        precision = softplus(raw) + 1e-6
        return torch.cat([precision * loc, precision], dim=-1)

    def posterior(self, evidence: Tensor, sizes: Tensor) -> Normal:
        weighted, precision = evidence.chunk(2, dim=-1)
        precision = precision + self.prior_precision
        return normal_from(weighted / precision, -0.5 * precision.log())


class ProductWithPriorEncoder(ProductEncoder):
    """Product of normals with the prior of eq. 1 put back.

    Each row's normal stands for its likelihood, q(u | x_k) / p(u), and the standard normal p(u) is multiplied
    in once, so a group without evidence has the prior for its posterior.
    """

    prior_precision = 1.0


class InstanceEncoder(nn.Module, ABC):
    """Base class: q(v given a row and its group's u)."""

    @abstractmethod
    def forward(self, x: Tensor, u: Tensor, segments: Segments, decoder: Decoder) -> Normal:
        """q(v) of each row: x (N, D) and u (G, U) -> Normal over (N, V)."""


class UnconditionalEncoder(InstanceEncoder):
    """q(v given x), blind to the group: the encoder of ML-VAE and GVAE."""

    def __init__(
        self,
        n_features: int,
        n_group_codes: int,
        n_instance_codes: int,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.network = mlp(n_features, hidden, 2 * n_instance_codes, generator)

    def forward(self, x: Tensor, u: Tensor, segments: Segments, decoder: Decoder) -> Normal:
        loc, log_scale = self.network(x).chunk(2, dim=-1)
        return normal_from(loc, log_scale)


class ConditionalNetworkEncoder(InstanceEncoder):
    """q(v given x, u) by a network on x and u side by side, as section 4 of the CxVAE paper has it."""

    def __init__(
        self,
        n_features: int,
        n_group_codes: int,
        n_instance_codes: int,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.network = mlp(n_features + n_group_codes, hidden, 2 * n_instance_codes, generator)

    def forward(self, x: Tensor, u: Tensor, segments: Segments, decoder: Decoder) -> Normal:
        loc, log_scale = self.network(torch.cat([x, segments.expand(u)], dim=-1)).chunk(2, dim=-1)
        return normal_from(loc, log_scale)


class ConditionalEncoder(InstanceEncoder):
    """q(v given x, u): the linearised decoder's own posterior, and a learned correction to it.

    Where the decoder is a straight line in v, the start is already the exact posterior (Bayes' rule for a
    linear model) and it follows the decoder and its noise at every step of the fit. A network on x, u and
    the start alone, as in the paper, must chase them, which takes very long when the noise is small. The
    correction starts at zero and learns what the straight line misses.
    """

    def __init__(
        self,
        n_features: int,
        n_group_codes: int,
        n_instance_codes: int,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        n_inputs = n_features + n_group_codes + n_instance_codes
        self.network = mlp(n_inputs, hidden, 2 * n_instance_codes, generator, zero_last=True)

    def forward(self, x: Tensor, u: Tensor, segments: Segments, decoder: Decoder) -> Normal:
        start = linearized_posterior(x, u, segments, decoder)
        inputs = torch.cat([x, segments.expand(u), start.loc], dim=-1)
        shift, log_stretch = self.network(inputs).chunk(2, dim=-1)
        return normal_from(start.loc + start.scale * shift, start.scale.log() + log_stretch)


def linearized_posterior(x: Tensor, u: Tensor, segments: Segments, decoder: Decoder) -> Normal:
    """Posterior of v under the decoder's straight line in v, x = c(u) + J(u) v + noise.

    The means are exact for a decoder linear in v. The scales are those of the best normal with independent
    components, ``1 / sqrt(diag(precision))``.

    Parameters
    ----------
    x : Tensor of shape (N, D)
        Rows.
    u : Tensor of shape (G, U)
        Group codes.
    segments : Segments
        The group of each row.
    decoder : Decoder
        Gives c, J and the noise.

    Returns
    -------
    posterior : Normal over (N, V)
    """
    centre, slope = decoder.linearize(u)
    # Where the noise is small float32 would lose the prior and with it the inverse; the matrices are small.
    slope = slope.double()
    weighted = (slope * decoder.noise_scale.double().pow(-2.0)[:, None]).mT
    precision = weighted @ slope + torch.eye(slope.shape[-1], dtype=slope.dtype, device=x.device)
    if precision.shape[-1] == 1:
        gain = weighted / precision
    else:
        gain = torch.cholesky_solve(weighted, torch.linalg.cholesky(precision))
    residual = x - segments.expand(centre)
    loc = (segments.expand(gain.to(x.dtype)) * residual[:, None, :]).sum(-1)
    scale = precision.diagonal(dim1=-2, dim2=-1).rsqrt().to(x.dtype)
    return Normal(loc, segments.expand(scale), validate_args=False)
