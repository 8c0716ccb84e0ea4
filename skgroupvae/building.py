"""From an estimator's choices to parts of its network: the registries, and how parts are built."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from skgroupvae.encoders import (
    AverageEncoder,
    DeepSetsEncoder,
    GroupEncoder,
    ProductEncoder,
    ProductWithPriorEncoder,
)
from skgroupvae.regularizers import ContextRegularizer, InstanceRegularizer, Regularizer

__all__ = ["GROUP_ENCODERS", "REGULARIZERS", "resolve_part"]

GROUP_ENCODERS: Mapping[str, Callable[..., GroupEncoder]] = MappingProxyType(
    {
        "deepsets": DeepSetsEncoder,
        "average": AverageEncoder,
        "product": ProductEncoder,
        "product_with_prior": ProductWithPriorEncoder,
    }
)
REGULARIZERS: Mapping[str, Callable[..., Regularizer]] = MappingProxyType(
    {"context": ContextRegularizer, "instance": InstanceRegularizer}
)


def resolve_part(choice: Any, registry: Mapping[str, Callable[..., Any]], **arguments: Any) -> Any:
    """A part from its name, from a factory with the registry's signature, or from a Module (copied)."""
    if isinstance(choice, nn.Module):
        return copy.deepcopy(choice)
    return registry[choice](**arguments) if isinstance(choice, str) else choice(**arguments)
