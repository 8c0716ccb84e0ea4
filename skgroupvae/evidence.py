"""Evidence of groups: what the encoder needs to remember of a group's rows, as sums that add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgroupvae.groups import GroupIndex, iter_group_batches
from skgroupvae.network import TrainableNetwork

__all__ = ["Evidence"]

# Groups a chunk at most; iter_group_batches bounds the rows.
_CHUNK_GROUPS = 65_536


@dataclass(frozen=True)
class Evidence:
    """Summed evidence of some groups.

    Attributes
    ----------
    labels : Index of length G
        The groups' labels.
    totals : ndarray of shape (G, E)
        Evidence summed over the rows of each group, in float64 so that the order of the rows does not show.
    sizes : ndarray of shape (G,)
        Number of rows behind each sum.
    """

    labels: pd.Index
    totals: NDArray[np.float64]
    sizes: NDArray[np.intp]

    @classmethod
    @torch.no_grad()
    def of_rows(cls, network: TrainableNetwork, x: Tensor, index: GroupIndex) -> Evidence:
        """Evidence of every group of a table of standardised rows."""
        totals: list[NDArray[np.float64]] = []
        for batch in iter_group_batches(index.sizes, _CHUNK_GROUPS):
            rows, segments = index.rows_of(batch)
            by_row = network.evidence(x[torch.from_numpy(rows).to(x.device)])
            totals.append(segments.to(x.device).sum(by_row.double()).cpu().numpy())
        return cls(index.labels, np.concatenate(totals), index.sizes)

    def positions(self, labels: pd.Index) -> NDArray[np.intp]:
        """Position of each label among the groups, -1 where there is no such group."""
        return self.labels.get_indexer(labels)

    def take(self, positions: NDArray[np.intp]) -> Evidence:
        """The groups at these positions, repeats allowed."""
        return Evidence(self.labels[positions], self.totals[positions], self.sizes[positions])

    def plus(self, other: Evidence) -> Evidence:
        """Both together: groups that occur in both have the evidence of both."""
        positions = self.positions(other.labels)
        known = positions >= 0
        totals, sizes = self.totals.copy(), self.sizes.copy()
        totals[positions[known]] += other.totals[known]
        sizes[positions[known]] += other.sizes[known]
        return Evidence(
            pd.Index([*self.labels, *other.labels[~known]], tupleize_cols=False),
            np.concatenate([totals, other.totals[~known]]),
            np.concatenate([sizes, other.sizes[~known]]),
        )

    def code_tables(self, q_u: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Means and standard deviations of the codes of these groups, u0, u1, ... by label."""
        names = [f"u{j}" for j in range(q_u.loc.shape[1])]
        mean, std = (
            pd.DataFrame(part.cpu().numpy(), index=self.labels, columns=names)
            for part in (q_u.loc, q_u.scale)
        )
        return mean, std

    @torch.no_grad()
    def posterior(self, network: TrainableNetwork) -> Any:
        """q(u) of each group, with ``loc`` and ``scale`` (G, U)."""
        device = next(network.parameters()).device
        return network.posterior(
            torch.from_numpy(self.totals).to(device),
            torch.from_numpy(self.sizes.astype(np.float64)).to(device),
        )
