"""Instance encoders q(v given a row and its group's u)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skgroupvae.batch import Batch
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
        self, x: Tensor, batch: Batch, u: Tensor, decoder: CodeDecoder
    ) -> DiagonalNormal | FullNormal:
        """q(v) of each row, normals over (N, V).

        Parameters
        ----------
        x : Tensor of shape (N, F)
            Rows as networks see them: values and covariates.
        batch : Batch
            The rows themselves.
        u : Tensor of shape (G, U)
            Codes of their groups.
        decoder : CodeDecoder
        """


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

    def forward(self, x: Tensor, batch: Batch, u: Tensor, decoder: CodeDecoder) -> DiagonalNormal:
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

    def forward(self, x: Tensor, batch: Batch, u: Tensor, decoder: CodeDecoder) -> DiagonalNormal:
        loc, log_scale = self.network(torch.cat([x, batch.groups.expand(u)], dim=-1)).chunk(2, dim=-1)
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

    def forward(self, x: Tensor, batch: Batch, u: Tensor, decoder: CodeDecoder) -> DiagonalNormal:
        start = linearized_posterior(batch, u, decoder)
        inputs = torch.cat([x, batch.groups.expand(u), start.loc], dim=-1)
        shift, log_stretch = self.network(inputs).chunk(2, dim=-1)
        return DiagonalNormal.from_log_scale(start.loc + start.scale * shift, start.scale.log() + log_stretch)


class ExactEncoder(InstanceEncoder):
    """The posterior of a decoder that is a straight line in v, in closed form; nothing is learned.

    The slope may depend on u, but not on covariates.
    """

    follows_decoder = True

    def forward(self, x: Tensor, batch: Batch, u: Tensor, decoder: CodeDecoder) -> FullNormal:
        codes = u[:1] if decoder.has_common_slope else u
        average = None if batch.covariates is None else u.new_zeros(len(codes), decoder.n_covariates)
        gain, factor = _gain(decoder.linearize(codes, average)[1], decoder.noise_scale)
        origin = torch.zeros(batch.n_rows, decoder.n_instance_codes, dtype=u.dtype, device=u.device)
        residual = batch.values - decoder.mean(batch.groups.expand(u), origin, batch.covariates)
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        root = torch.linalg.solve_triangular(factor.mT, identity.expand_as(factor), upper=True)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        gain, root, log_det = (part.to(residual) for part in (gain, root, log_det))
        if decoder.has_common_slope:
            loc = residual @ gain[0].mT
            return FullNormal(loc, root.expand(len(loc), -1, -1), log_det.expand(len(loc)))
        loc = (batch.groups.expand(gain) @ residual[..., None])[..., 0]
        return FullNormal(loc, batch.groups.expand(root), batch.groups.expand(log_det))


def linearized_posterior(batch: Batch, u: Tensor, decoder: CodeDecoder) -> DiagonalNormal:
    """Posterior of v under the decoder's straight line in v, x = c(u) + J(u) v + noise.

    The means are exact for a decoder linear in v. The scales are those of the best normal with independent
    components, ``1 / sqrt(diag(precision))``.

    Parameters
    ----------
    batch : Batch
        Rows and their groups.
    u : Tensor of shape (G, U)
        Group codes.
    decoder : CodeDecoder
        Gives c, J and the noise.

    Returns
    -------
    posterior : DiagonalNormal over (N, V)
    """
    groups, covariates = batch.groups, batch.covariates
    # With covariates the line is another one for each row, else for each group.
    is_by_row = covariates is not None
    center, slope = decoder.linearize(groups.expand(u) if is_by_row else u, covariates)
    gain, factor = _gain(slope, decoder.noise_scale)
    gain, scale = gain.to(center), factor.square().sum(-1).rsqrt().to(center)
    if not is_by_row:
        center, gain, scale = (groups.expand(part) for part in (center, gain, scale))
    return DiagonalNormal((gain * (batch.values - center)[:, None, :]).sum(-1), scale)


def _gain(slope: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean of v for a unit of each residual (G, V, D), and the precision's Cholesky factor."""
    # Where the noise is small float32 would lose the prior and with it the inverse; the matrices are small.
    slope = slope.double()
    weighted = (slope * noise.double().pow(-2.0)[:, None]).mT
    factor = precision_factor(weighted @ slope)
    if factor.shape[-1] == 1:
        return weighted / factor.square(), factor
    return torch.cholesky_solve(weighted, factor), factor
