"""Where a fit starts: at the moments of the table, or where an earlier fit ended."""

from __future__ import annotations

import copy
from typing import TypeVar

import numpy as np
import torch

from skgroupvae.groups import GroupIndex
from skgroupvae.network import GroupVAENetwork, TrainableNetwork

__all__ = ["continued", "start_from_moments"]

_Network = TypeVar("_Network", bound=TrainableNetwork)


def continued(fitted: _Network, fresh: _Network) -> _Network:
    """Copy of a fitted network, ready to learn on; `fresh` is what the parameters now ask for."""
    kinds = [[(name, type(part)) for name, part in net.named_modules()] for net in (fitted, fresh)]
    shapes = [[(name, x.shape) for name, x in net.state_dict().items()] for net in (fitted, fresh)]
    if kinds[0] != kinds[1] or shapes[0] != shapes[1]:
        raise ValueError(
            "the parameters that shape the networks have changed since the fit, so it cannot go on from "
            "there; fit a clone, or set warm_start=False"
        )
    network = copy.deepcopy(fitted).float().train()
    for parameter, like in zip(network.parameters(), fresh.parameters(), strict=True):
        parameter.requires_grad_(like.requires_grad)
    return network


@torch.no_grad()
def start_from_moments(network: GroupVAENetwork, rows: torch.Tensor, index: GroupIndex) -> None:
    """Start at the linear mixed model that the covariances between and within groups give, where possible."""
    positions, segments = index.rows_of(np.arange(index.n_groups))
    rows = rows[torch.from_numpy(positions).to(rows.device)]
    segments = segments.to(rows.device)
    means = segments.sum(rows) / segments.sizes[:, None]
    apart = rows - segments.expand(means)
    n_rows, n_groups = rows.shape[0], index.n_groups
    # The mean of a group of K rows has the variance between groups and 1 / K of that within.
    of_means = means.mT @ means / n_groups
    if n_rows > n_groups:
        within = apart.mT @ apart / (n_rows - n_groups)
        between = of_means - n_groups / n_rows * within
    else:
        within = between = 0.5 * of_means  # one row a group: nothing tells the two apart
    loadings = network.decoder.start_from_moments(between, within)
    if loadings is not None:
        # Constant columns and few groups make it singular; the predictor of least norm does.
        network.group_encoder.start_from_predictor(loadings.mT @ torch.linalg.pinv(of_means))
