"""Group encoders q(u given the rows of a group).

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

from skgroupvae.nn import linear, mlp, normal_from

__all__ = [
    "AverageEncoder",
    "DeepSetsEncoder",
    "GroupEncoder",
    "ProductEncoder",
    "ProductWithPriorEncoder",
]


class GroupEncoder(nn.Module, ABC):
    """Base class: q(u given the rows of a group), from evidence that adds up over rows."""

    @abstractmethod
    def evidence(self, x: Tensor) -> Tensor:
        """Evidence of each row: (N, D) -> (N, E)."""

    @abstractmethod
    def posterior(self, evidence: Tensor, sizes: Tensor) -> Normal:
        """q(u) from the evidence summed by group (G, E) and the group sizes (G,): loc and scale (G, U)."""

    def freeze_evidence(self) -> None:
        """Keep the evidence of rows as it is in further training: sums stored of earlier rows stay valid."""
        self.requires_grad_(False)


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
