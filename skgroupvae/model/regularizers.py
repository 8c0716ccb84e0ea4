"""Adversarial bounds on the mutual information between instance codes and the group's other rows.

Both are Donsker-Varadhan bounds (Belghazi et al. 2018), ``max_T E_joint[T] - log E_product[exp T]``, whose
critic T is trained in turn with the model. A new regularizer is one subclass and one line in a registry
(``spec.py``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skgroupvae.batch import Segments
from skgroupvae.model.nn import mlp

__all__ = ["ContextRegularizer", "InstanceRegularizer", "Regularizer", "donsker_varadhan"]


def donsker_varadhan(joint: Tensor, product: Tensor) -> Tensor:
    """Donsker-Varadhan lower bound on a mutual information, in nats, from critic values (n,) and (m,)."""
    return joint.mean() - (torch.logsumexp(product, dim=0) - math.log(product.shape[0]))


class Regularizer(nn.Module, ABC):
    """Base class: an estimate of the mutual information that the fit is to drive to zero.

    The subclass says what of the group each row's code is compared with, and what the critic is. Every row
    serves as k once, which has the expectation of one k drawn at random and less noise.
    """

    def forward(self, x: Tensor, v: Tensor, segments: Segments, generator: torch.Generator) -> Tensor:
        """The bound, in nats, from rows x (N, D) and draws v (N, V) of their codes.

        The rows of each group stand next to each other. Returns a scalar, exactly 0 where the batch has fewer
        than two groups of two rows, for then there is nothing to compare.
        """
        has_others = segments.expand(segments.sizes) >= 2
        joint = torch.nonzero(has_others)[:, 0]
        if joint.shape[0] < 2:
            return x.new_zeros(())
        # Rows stand by group, so a shift along the table pairs most rows with a row of another group.
        shift = int(torch.randint(1, joint.shape[0], (), generator=generator))
        stranger = joint.roll(shift)
        apart = segments.codes[joint] != segments.codes[stranger]
        if not apart.any():
            return x.new_zeros(())
        known, code = self.pair(x, v, segments, generator)
        matched = self.critic(known[joint], code[joint])
        shuffled = self.critic(known[joint[apart]], code[stranger[apart]])
        return donsker_varadhan(matched, shuffled)

    @abstractmethod
    def pair(
        self, x: Tensor, v: Tensor, segments: Segments, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """What the critic compares for each row: what is known of its group (N, *), and a code (N, V)."""

    @abstractmethod
    def critic(self, known: Tensor, code: Tensor) -> Tensor:
        """T, one value a pair: (P, *), (P, V) -> (P,)."""


class InstanceRegularizer(Regularizer):
    """Eq. 2 (Németh 2020): a row against the instance code of one other row of its group."""

    def __init__(
        self, n_features: int, n_instance_codes: int, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.network = mlp(n_features + n_instance_codes, hidden, 1, generator)

    def pair(
        self, x: Tensor, v: Tensor, segments: Segments, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        sizes = segments.sizes.long()
        starts = segments.expand(sizes.cumsum(0) - sizes)
        rank = torch.arange(x.shape[0], device=x.device) - starts
        # The same rotation for all rows of a group, by at least one and at most size - 1.
        draws = torch.rand(sizes.shape, generator=generator).to(x.device)
        rotation = 1 + (draws * (sizes - 1)).long().clamp(max=(sizes - 2).clamp(min=0))
        other = starts + (rank + segments.expand(rotation)) % segments.expand(sizes)
        return x, v[other]

    def critic(self, known: Tensor, code: Tensor) -> Tensor:
        return self.network(torch.cat([known, code], dim=-1))[:, 0]


class ContextRegularizer(Regularizer):
    """Eq. 3 (CxVAE): an instance code against all the other rows of its group.

    ``T(x_-k, v_k) = T_b(v_k, mean over l != k of T_a(x_l))``.
    """

    def __init__(
        self, n_features: int, n_instance_codes: int, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.row_network = mlp(n_features, hidden[:1], hidden[0], generator)
        self.pair_network = mlp(hidden[0] + n_instance_codes, hidden, 1, generator)

    def pair(
        self,
        x: Tensor,
        v: Tensor,
        segments: Segments,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        by_row = self.row_network(x)
        others = segments.expand(segments.sizes)[:, None] - 1.0
        return (segments.expand(segments.sum(by_row)) - by_row) / others.clamp(min=1.0), v

    def critic(self, known: Tensor, code: Tensor) -> Tensor:
        return self.pair_network(torch.cat([known, code], dim=-1))[:, 0]
