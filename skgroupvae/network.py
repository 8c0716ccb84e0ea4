"""The one model of the family: encoders, decoder and their evidence lower bound (ELBO)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from skgroupvae.decoders import Decoder
from skgroupvae.encoders import GroupEncoder, InstanceEncoder
from skgroupvae.groups import Segments
from skgroupvae.nn import draw, kl_to_standard_normal, log_prior_ratio
from skgroupvae.proposals import MirroredProposal
from skgroupvae.regularizers import Regularizer

__all__ = ["ElboTerms", "GroupVAENetwork", "TrainableNetwork"]


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


class TrainableNetwork(nn.Module, ABC):
    """What the training loop and the evidence of groups ask of a network; its parts are Modules."""

    group_encoder: Any
    instance_encoder: Any
    decoder: Any
    regularizer: nn.Module | None

    @abstractmethod
    def evidence(self, x: Tensor) -> Tensor:
        """Evidence of each row, which adds up over the rows of a group: (N, D) -> (N, E)."""

    @abstractmethod
    def posterior(self, evidence: Tensor, sizes: Tensor) -> Any:
        """q(u) from summed evidence (G, E) and sizes (G,), with ``loc`` and ``scale`` (G, U)."""

    @abstractmethod
    def freeze_evidence(self) -> None:
        """Keep the evidence of rows as it is in further training: sums stored of earlier rows stay valid."""

    @abstractmethod
    def elbo(self, x: Tensor, segments: Segments, generator: torch.Generator) -> ElboTerms:
        """Estimate of the ELBO of each group."""

    @abstractmethod
    def importance_correction(
        self, x: Tensor, segments: Segments, n_samples: int, generator: torch.Generator
    ) -> Tensor:
        """What turns the decoder's gradient of the ELBO into that of the importance-weighted bound."""

    def encoder_elbo(self, x: Tensor, segments: Segments, generator: torch.Generator) -> Tensor | None:
        """Estimate (G,) of an ELBO that only the group encoder follows beside :meth:`elbo`; None without."""
        return None


class GroupVAENetwork(TrainableNetwork):
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

    def evidence(self, x: Tensor) -> Tensor:
        return self.group_encoder.evidence(x)

    def posterior(self, evidence: Tensor, sizes: Tensor) -> Normal:
        return self.group_encoder.posterior(evidence, sizes)

    def freeze_evidence(self) -> None:
        self.group_encoder.freeze_evidence()

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

    def importance_correction(
        self, x: Tensor, segments: Segments, n_samples: int, generator: torch.Generator
    ) -> Tensor:
        """Difference between the importance-weighted bound and the ELBO, as a function of the decoder.

        The gradient of the importance-weighted bound (Burda et al. 2016) weighs log p(x given u, v) by the
        normalised importance weights of the draws, that of the ELBO by 1 / n on draws from q. This is the
        sum with the difference of the two weights: added to an ELBO on many more groups it makes the bound's
        gradient, with far less noise than the bound on these few groups alone.

        Parameters
        ----------
        x, segments, generator
            As in :meth:`elbo`.
        n_samples : int
            Number S of draws of the codes of each group.

        Returns
        -------
        correction : Tensor of shape (G,)
            In nats; its value means nothing, its gradient reaches the decoder only.
        """
        n_groups = segments.n_groups
        shift = n_groups * torch.arange(n_samples, device=x.device)[:, None]
        copies = Segments((segments.codes + shift).reshape(-1), segments.sizes.repeat(n_samples))
        rows = x.repeat(n_samples, 1)
        with torch.no_grad():
            q_u = self.group_encoder(x, segments)
            proposal = MirroredProposal(q_u, n_samples)
            noise = torch.randn((n_samples, *q_u.loc.shape), generator=generator, dtype=x.dtype)
            draws = proposal.draw(noise.to(x.device))
            u = draws.flatten(0, 1)
            q_v = self.instance_encoder(rows, u, copies, self.decoder)
            # All draws of u share one draw of v's noise: what v alone makes of the weights then cancels.
            row_noise = torch.randn((x.shape[0], q_v.loc.shape[-1]), generator=generator, dtype=x.dtype)
            v = q_v.loc + q_v.scale * row_noise.to(x.device).repeat(n_samples, 1)
            log_ratio = proposal.log_prior_ratio(draws)
            log_ratio += copies.sum(log_prior_ratio(v, q_v)).reshape(n_samples, n_groups)
        log_px = copies.sum(self.decoder(copies.expand(u), v).log_prob(rows).sum(-1))
        log_px = log_px.reshape(n_samples, n_groups)
        weights = torch.softmax(log_px.detach() + log_ratio, dim=0)
        weights[: proposal.n_direct] -= 1.0 / proposal.n_direct
        return (weights * log_px).sum(0)
