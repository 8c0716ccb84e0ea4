"""A fit that starts where an earlier one ended."""

from __future__ import annotations

import copy
from typing import TypeVar

from skgroupvae.network import TrainableNetwork

__all__ = ["continued"]

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
