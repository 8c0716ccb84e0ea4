"""What the training loop and the evidence of groups ask of a regressor's network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skgroupvae.groups import Segments

__all__ = ["ElboTerms", "TrainableNetwork"]


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
