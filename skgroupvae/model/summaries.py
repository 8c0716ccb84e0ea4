"""What is known of groups: statistics of their rows, as sums that add up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skgroupvae.batch import Batch, whole_group_batches
from skgroupvae.model.model import Model
from skgroupvae.model.posteriors import DiagonalNormal, FullNormal

__all__ = ["Summaries"]

# Groups in a chunk at most; `whole_group_batches` bounds the rows.
_CHUNK_GROUPS = 65_536


@dataclass(frozen=True)
class Summaries:
    """Sums over the rows of some groups.

    Attributes
    ----------
    totals : Tensor of shape (G, 1 + E)
        Weights and statistics of a group encoder, in float64 so that the order of rows does not show; on the
        CPU, wherever the model is.
    sizes : Tensor of shape (G,)
        Number of rows behind each sum, as integers.
    """

    totals: Tensor
    sizes: Tensor

    @classmethod
    @torch.no_grad()
    def of_rows(cls, model: Model, batch: Batch) -> Summaries:
        """Of every group of a table."""
        totals = []
        for positions in whole_group_batches(batch.groups.sizes, _CHUNK_GROUPS):
            part = batch.take_groups(positions.to(batch.values.device))
            totals.append(part.groups.sum(model.statistics(part).double()).cpu())
        return cls(torch.cat(totals), batch.groups.sizes.long().cpu())

    def take(self, positions: Tensor) -> Summaries:
        """The groups at these positions, repeats allowed."""
        return Summaries(self.totals[positions], self.sizes[positions])

    def plus(self, other: Summaries, positions: Tensor) -> Summaries:
        """Both together: `other`'s groups are these at `positions`, or new ones where that is -1."""
        known = positions >= 0
        totals = self.totals.index_add(0, positions[known], other.totals[known])
        sizes = self.sizes.index_add(0, positions[known], other.sizes[known])
        return Summaries(torch.cat([totals, other.totals[~known]]), torch.cat([sizes, other.sizes[~known]]))

    @torch.no_grad()
    def posterior(self, model: Model) -> DiagonalNormal | FullNormal:
        """q(u) of each group."""
        return model.posterior(self.totals.to(model.device))
