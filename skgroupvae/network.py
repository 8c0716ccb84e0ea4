"""The one model of the family: encoders, decoder and their evidence lower bound (ELBO)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skgroupvae.decoders import Decoder
from skgroupvae.encoders import GroupEncoder, InstanceEncoder
from skgroupvae.groups import Segments
from skgroupvae.nn import draw, kl_to_standard_normal
from skgroupvae.regularizers import Regularizer

__all__ = ["ElboTerms", "GroupVAENetwork"]


@dataclass(frozen=True)
class ElboTerms:
    """The parts of the ELBO of each group (G,), in nats, and the draws of v (N, V) they were taken at."""

    reconstruction: Tensor
    kl_u: Tensor
    kl_v: Tensor
    v: Tensor

    @property
    def elbo(self) -> Tensor:
        """ELBO of each group (G,): a lower bound on log p(x_i) in expectation; larger is better."""
        return self.reconstruction - self.kl_u - self.kl_v


class GroupVAENetwork(nn.Module):
    """q(u given x), q(v given x, u) and p(x given u, v), with an optional adversarial regulariser."""

    def __init__(
        self,
        group_encoder: GroupEncoder,
        instance_encoder: InstanceEncoder,
        decoder: Decoder,
        regularizer: Regularizer | None,
    ) -> None:
        super().__init__()
        self.group_encoder = group_encoder
        self.instance_encoder = instance_encoder
        self.decoder = decoder
        self.regularizer = regularizer

    def elbo(self, x: Tensor, segments: Segments, generator: torch.Generator) -> ElboTerms:
        """One-draw estimate of the ELBO (section 2.1), KL terms in closed form.

        Parameters
        ----------
        x : Tensor of shape (N, D)
            Standardised rows of whole groups.
        segments : Segments
            The group of each row.
        generator : torch.Generator
            Source of the draws.

        Returns
        -------
        terms : ElboTerms
        """
        q_u = self.group_encoder(x, segments)
        u = draw(q_u, generator)
        q_v = self.instance_encoder(x, u, segments, self.decoder)
        v = draw(q_v, generator)
        log_px = self.decoder(segments.expand(u), v).log_prob(x).sum(-1)
        by_group = segments.sum(torch.stack([log_px, kl_to_standard_normal(q_v)], dim=-1))
        return ElboTerms(by_group[:, 0], kl_to_standard_normal(q_u), by_group[:, 1], v)
