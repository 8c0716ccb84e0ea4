"""Adversarial bounds on the mutual information between instance codes and the group's other rows.

Both are Donsker-Varadhan bounds (Belghazi et al. 2018), ``max_T E_joint[T] - log E_product[exp T]``, whose
critic T is trained in turn with the model. A new regulariser is one subclass and one line in a registry
(``building.py``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skgroupvae.groups import Segments
from skgroupvae.nn import mlp

__all__ = ["ContextRegularizer", "InstanceRegularizer", "Regularizer", "donsker_varadhan"]

# The product of marginals pairs each group's rows with the codes of this many other groups.
_N_SHIFTS = 4


def donsker_varadhan(joint: Tensor, product: Tensor) -> Tensor:
    """Donsker-Varadhan lower bound on a mutual information, in nats, from critic values (n,) and (m,)."""
    return joint.mean() - (torch.logsumexp(product, dim=0) - math.log(product.shape[0]))


class Regularizer(nn.Module, ABC):
    """Base class: an estimate of the mutual information that the fit is to drive to zero."""

    @abstractmethod
    def forward(self, x: Tensor, v: Tensor, segments: Segments, generator: torch.Generator) -> Tensor:
        """The bound, in nats, from rows x (N, D) and draws v (N, V) of their codes; rows by group.

        Returns a scalar; 0 where the batch has fewer than two groups of two rows, for then there is nothing
        to compare.
        """


class _PairedRegularizer(Regularizer):
    """One row (and one other row) a group, and the critic's values on matched and on shuffled pairs."""

    def forward(self, x: Tensor, v: Tensor, segments: Segments, generator: torch.Generator) -> Tensor:
        chosen = torch.nonzero(segments.sizes >= 2)[:, 0]
        n_pairs = chosen.shape[0]
        if n_pairs < 2:
            return x.new_zeros(())
        starts = (segments.sizes.cumsum(0) - segments.sizes)[chosen].long()
        sizes = segments.sizes[chosen]
        one = _uniform(sizes, generator)
        other = (one + 1 + _uniform(sizes - 1, generator)) % sizes.long()
        summary, code = self.pair(x, v, segments, chosen, starts + one, starts + other)
        shifts = torch.randperm(n_pairs - 1, generator=generator)[:_N_SHIFTS] + 1
        partners = (torch.arange(n_pairs) + shifts[:, None]) % n_pairs
        shuffled = code[partners.reshape(-1).to(code.device)]
        joint = self.critic(summary, code)
        product = self.critic(summary.repeat(shifts.shape[0], 1), shuffled)
        return donsker_varadhan(joint, product)

    @abstractmethod
    def pair(
        self, x: Tensor, v: Tensor, segments: Segments, chosen: Tensor, one: Tensor, other: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the critic compares, from two different rows of each chosen group: (P, *) and (P, V)."""

    @abstractmethod
    def critic(self, summary: Tensor, code: Tensor) -> Tensor:
        """T, one value a pair: (P, *), (P, V) -> (P,)."""


class InstanceRegularizer(_PairedRegularizer):
    """Eq. 2 (Németh 2020): a row against the instance code of one other row of its group."""

    def __init__(
        self, n_features: int, n_instance_codes: int, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.network = mlp(n_features + n_instance_codes, hidden, 1, generator)

    def pair(
        self, x: Tensor, v: Tensor, segments: Segments, chosen: Tensor, one: Tensor, other: Tensor
    ) -> tuple[Tensor, Tensor]:
        return x[one], v[other]

    def critic(self, summary: Tensor, code: Tensor) -> Tensor:
        return self.network(torch.cat([summary, code], dim=-1))[:, 0]


class ContextRegularizer(_PairedRegularizer):
    """Eq. 3 (CxVAE): an instance code against all the other rows of its group, T_b(v_k, mean T_a(x_l))."""

    def __init__(
        self, n_features: int, n_instance_codes: int, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.row_network = mlp(n_features, hidden[:1], hidden[0], generator)
        self.pair_network = mlp(hidden[0] + n_instance_codes, hidden, 1, generator)

    def pair(
        self, x: Tensor, v: Tensor, segments: Segments, chosen: Tensor, one: Tensor, other: Tensor
    ) -> tuple[Tensor, Tensor]:
        by_row = self.row_network(x)
        others = (segments.sum(by_row)[chosen] - by_row[one]) / (segments.sizes[chosen, None] - 1.0)
        return others, v[one]

    def critic(self, summary: Tensor, code: Tensor) -> Tensor:
        return self.pair_network(torch.cat([summary, code], dim=-1))[:, 0]


def _uniform(sizes: Tensor, generator: torch.Generator) -> Tensor:
    """A uniform integer in 0..size-1 for each size."""
    draws = torch.rand(sizes.shape, generator=generator).to(sizes.device)
    return torch.minimum((draws * sizes).long(), sizes.long() - 1)
