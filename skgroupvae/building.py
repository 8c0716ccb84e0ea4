"""From an estimator's choices to a network: the registries, the published models, and how parts are built."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skgroupvae.decoders import Decoder, FormulaDecoder, LinearDecoder, MLPDecoder
from skgroupvae.encoders import (
    AverageEncoder,
    ConditionalEncoder,
    ConditionalNetworkEncoder,
    DeepSetsEncoder,
    GroupEncoder,
    InstanceEncoder,
    ProductEncoder,
    ProductWithPriorEncoder,
    UnconditionalEncoder,
)
from skgroupvae.network import GroupVAENetwork
from skgroupvae.regularizers import ContextRegularizer, InstanceRegularizer, Regularizer

__all__ = [
    "DECODERS",
    "GROUP_ENCODERS",
    "INSTANCE_ENCODERS",
    "PUBLISHED_MODELS",
    "REGULARIZERS",
    "NetworkSpec",
    "build_network",
    "resolve_part",
]

GROUP_ENCODERS: Mapping[str, Callable[..., GroupEncoder]] = MappingProxyType(
    {
        "deepsets": DeepSetsEncoder,
        "average": AverageEncoder,
        "product": ProductEncoder,
        "product_with_prior": ProductWithPriorEncoder,
    }
)
INSTANCE_ENCODERS: Mapping[str, Callable[..., InstanceEncoder]] = MappingProxyType(
    {
        "conditional": ConditionalEncoder,
        "conditional_network": ConditionalNetworkEncoder,
        "unconditional": UnconditionalEncoder,
    }
)
DECODERS: Mapping[str, Callable[..., Decoder]] = MappingProxyType(
    {"mlp": MLPDecoder, "linear": LinearDecoder}
)
REGULARIZERS: Mapping[str, Callable[..., Regularizer]] = MappingProxyType(
    {"context": ContextRegularizer, "instance": InstanceRegularizer}
)

#: The published models of the family, as constructor arguments of :class:`skgroupvae.GroupVAE`.
PUBLISHED_MODELS: Mapping[str, Mapping[str, str | None]] = MappingProxyType(
    {
        # The paper of this package; also the defaults.
        "CxVAE": {
            "group_encoder": "deepsets",
            "instance_encoder": "conditional",
            "regularizer": "context",
        },
        # Bouchacourt et al. 2018.
        "ML-VAE": {
            "group_encoder": "product",
            "instance_encoder": "unconditional",
            "regularizer": None,
        },
        # Hosoya 2019.
        "GVAE": {
            "group_encoder": "average",
            "instance_encoder": "unconditional",
            "regularizer": None,
        },
        # Németh 2020.
        "GVAE + reg": {
            "group_encoder": "average",
            "instance_encoder": "unconditional",
            "regularizer": "instance",
        },
    }
)


@dataclass(frozen=True)
class NetworkSpec:
    """Every choice that shapes a network; each field is explained at the estimator's parameter."""

    group_encoder: Any
    instance_encoder: Any
    regularizer: Any
    decoder: Any
    n_group_codes: int
    n_instance_codes: int
    hidden_sizes: Sequence[int]
    noise_scale: NDArray[np.float64] | None


def build_network(
    spec: NetworkSpec,
    centre: NDArray[np.float64],
    scale: NDArray[np.float64],
    generator: torch.Generator,
) -> GroupVAENetwork:
    """Untrained network for columns standardised by `centre` and `scale`, each (D,)."""
    n_features = centre.shape[0]
    sizes = {"n_features": n_features, "hidden": spec.hidden_sizes, "generator": generator}
    codes = {"n_group_codes": spec.n_group_codes, "n_instance_codes": spec.n_instance_codes}
    regularizer = None
    if spec.regularizer is not None:
        regularizer = resolve_part(
            spec.regularizer, REGULARIZERS, n_instance_codes=spec.n_instance_codes, **sizes
        )
    network = GroupVAENetwork(
        resolve_part(spec.group_encoder, GROUP_ENCODERS, n_group_codes=spec.n_group_codes, **sizes),
        resolve_part(spec.instance_encoder, INSTANCE_ENCODERS, **codes, **sizes),
        _build_decoder(spec, centre, scale, codes | sizes),
        regularizer,
    )
    if spec.noise_scale is not None:
        network.decoder.fix_noise(torch.tensor(spec.noise_scale / scale, dtype=torch.float32))
    return network


def resolve_part(choice: Any, registry: Mapping[str, Callable[..., Any]], **arguments: Any) -> Any:
    """A part from its name, from a factory with the registry's signature, or from a Module (copied)."""
    if isinstance(choice, nn.Module):
        return copy.deepcopy(choice)
    return registry[choice](**arguments) if isinstance(choice, str) else choice(**arguments)


def _build_decoder(
    spec: NetworkSpec, centre: NDArray[np.float64], scale: NDArray[np.float64], arguments: dict[str, Any]
) -> Decoder:
    if isinstance(spec.decoder, str):
        return resolve_part(spec.decoder, DECODERS, **arguments)
    if isinstance(spec.decoder, Decoder):
        decoder = copy.deepcopy(spec.decoder)
        decoder.check(spec.n_group_codes)
        return decoder
    formula = copy.deepcopy(spec.decoder) if isinstance(spec.decoder, nn.Module) else spec.decoder
    decoder = FormulaDecoder(
        formula,
        centre.shape[0],
        spec.n_instance_codes,
        torch.tensor(centre, dtype=torch.float32),
        torch.tensor(scale, dtype=torch.float32),
    )
    decoder.check(spec.n_group_codes)
    return decoder
