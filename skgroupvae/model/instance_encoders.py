"""Instance encoders q(v given a row and its group's u)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skgroupvae.batch import Segments
from skgroupvae.model.decoders import CodeDecoder
from skgroupvae.model.nn import mlp
from skgroupvae.model.posteriors import DiagonalNormal, FullNormal, precision_factor

__all__ = [
    "ConditionalEncoder",
    "ConditionalNetworkEncoder",
    "ExactEncoder",
    "InstanceEncoder",
    "UnconditionalEncoder",
    "linearized_posterior",
]


class InstanceEncoder(nn.Module, ABC):
    """Base class: q(v given a row and its group's u).

    Attributes
    ----------
    follows_decoder : bool
        Whether it starts at the decoder's own posterior, however narrow. What does not has to chase it, and
        the noise then starts wide.
    """

    follows_decoder = False

    @abstractmethod
    def forward(
        self, x: Tensor, u: Tensor, segments: Segments, decoder: CodeDecoder
    ) -> DiagonalNormal | FullNormal:
        """q(v) of each row: x (N, D) and u (G, U) -> normals over (N, V)."""


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

    def forward(self, x: Tensor, u: Tensor, segments: Segments, decoder: CodeDecoder) -> DiagonalNormal:
        return DiagonalNormal.from_log_scale(*self.network(x).chunk(2, dim=-1))


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

    def forward(self, x: Tensor, u: Tensor, segments: Segments, decoder: CodeDecoder) -> DiagonalNormal:
        loc, log_scale = self.network(torch.cat([x, segments.expand(u)], dim=-1)).chunk(2, dim=-1)
        return DiagonalNormal.from_log_scale(loc, log_scale)


class ConditionalEncoder(InstanceEncoder):
    """q(v given x, u): the linearized decoder's own posterior, and a learned correction to it.

    Where the decoder is a straight line in v, the start is already the exact posterior (Bayes' rule for a
    linear model) and it follows the decoder and its noise at every step of the fit. A network on x, u and
    the start alone, as in the paper, must chase them, which takes very long when the noise is small. The
    correction starts at zero and learns what the straight line misses.
    """

    follows_decoder = True

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

    def forward(self, x: Tensor, u: Tensor, segments: Segments, decoder: CodeDecoder) -> DiagonalNormal:
        start = linearized_posterior(x, u, segments, decoder)
        inputs = torch.cat([x, segments.expand(u), start.loc], dim=-1)
        shift, log_stretch = self.network(inputs).chunk(2, dim=-1)
        return DiagonalNormal.from_log_scale(start.loc + start.scale * shift, start.scale.log() + log_stretch)


class ExactEncoder(InstanceEncoder):
    """The posterior of a linear decoder, in closed form; nothing is learned."""

    follows_decoder = True

    def forward(self, x: Tensor, u: Tensor, segments: Segments, decoder: CodeDecoder) -> FullNormal:
        center, slope = decoder.linearize(u)
        gain, factor = _gain(slope, decoder.noise_scale)
        loc = (segments.expand(gain.to(x.dtype)) @ (x - segments.expand(center))[..., None])[..., 0]
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        root = torch.linalg.solve_triangular(factor.mT, identity.expand_as(factor), upper=True)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return FullNormal(loc, segments.expand(root.to(x.dtype)), segments.expand(log_det.to(x.dtype)))


def linearized_posterior(x: Tensor, u: Tensor, segments: Segments, decoder: CodeDecoder) -> DiagonalNormal:
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
    decoder : CodeDecoder
        Gives c, J and the noise.

    Returns
    -------
    posterior : DiagonalNormal over (N, V)
    """
    center, slope = decoder.linearize(u)
    gain, factor = _gain(slope, decoder.noise_scale)
    residual = x - segments.expand(center)
    loc = (segments.expand(gain.to(x.dtype)) * residual[:, None, :]).sum(-1)
    scale = factor.square().sum(-1).rsqrt().to(x.dtype)
    return DiagonalNormal(loc, segments.expand(scale))


def _gain(slope: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean of v for a unit of each residual (G, V, D), and the precision's Cholesky factor."""
    # Where the noise is small float32 would lose the prior and with it the inverse; the matrices are small.
    slope = slope.double()
    weighted = (slope * noise.double().pow(-2.0)[:, None]).mT
    factor = precision_factor(weighted @ slope)
    if factor.shape[-1] == 1:
        return weighted / factor.square(), factor
    return torch.cholesky_solve(weighted, factor), factor
