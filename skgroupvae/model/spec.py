"""From choices to a model: the registries of parts, the published models, and how parts are built."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from skgroupvae.model.decoders import CodeDecoder, FormulaDecoder, LinearDecoder, MLPDecoder
from skgroupvae.model.encoders import (
    AverageEncoder,
    DeepSetsEncoder,
    GroupEncoder,
    NewtonEncoder,
    ProductEncoder,
    ProductWithPriorEncoder,
)
from skgroupvae.model.families import FAMILIES, Family
from skgroupvae.model.instance_encoders import (
    ConditionalEncoder,
    ConditionalNetworkEncoder,
    ExactEncoder,
    InstanceEncoder,
    UnconditionalEncoder,
)
from skgroupvae.model.likelihood import Likelihood
from skgroupvae.model.location_scale import LocationScaleDecoder, LocationScaleEncoder
from skgroupvae.model.mixed_decoder import MixedModelDecoder
from skgroupvae.model.model import LatentModel, ScoreModel
from skgroupvae.model.regularizers import ContextRegularizer, InstanceRegularizer, Regularizer

__all__ = [
    "DECODERS",
    "GROUP_ENCODERS",
    "INSTANCE_ENCODERS",
    "PUBLISHED_MODELS",
    "REGULARIZERS",
    "LatentSpec",
    "ScoreSpec",
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
DECODERS: Mapping[str, Callable[..., CodeDecoder]] = MappingProxyType(
    {"mlp": MLPDecoder, "linear": LinearDecoder, "location_scale": LocationScaleDecoder}
)
REGULARIZERS: Mapping[str, Callable[..., Regularizer]] = MappingProxyType(
    {"context": ContextRegularizer, "instance": InstanceRegularizer}
)

#: The published models of the family, as constructor arguments of :class:`skgroupvae.GroupVAE`.
PUBLISHED_MODELS: Mapping[str, Mapping[str, str | None]] = MappingProxyType(
    {
        # The paper of this package, with its own network for q(v given x, u).
        "CxVAE": {
            "group_encoder": "deepsets",
            "instance_encoder": "conditional_network",
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
class LatentSpec:
    """Every choice that shapes a :class:`LatentModel`; each is explained at GroupVAE's parameter.

    Attributes
    ----------
    center, scale, noise_scale : tuple of float
        What standardized each of the D columns, and fixed noise in these units; None where it is learned.
    covariate_center, covariate_scale : tuple of float
        What standardized each of the C columns of the design beside the constant.
    """

    group_encoder: Any
    instance_encoder: Any
    regularizer: Any
    decoder: Any
    n_group_codes: int
    n_instance_codes: int
    hidden_sizes: tuple[int, ...]
    center: tuple[float, ...]
    scale: tuple[float, ...]
    noise_scale: tuple[float, ...] | None = None
    covariate_center: tuple[float, ...] = ()
    covariate_scale: tuple[float, ...] = ()

    @property
    def is_trained(self) -> bool:
        """Whether anything is trained; mixed models are fitted by maximum likelihood instead."""
        return not (isinstance(self.decoder, str) and self.decoder in ("linear", "location_scale"))

    def build(self, generator: torch.Generator) -> LatentModel:
        """Untrained model."""
        n_values, n_covariates = len(self.center), len(self.covariate_center)
        n_group_codes, n_instance_codes = self.n_group_codes, self.n_instance_codes
        common = {"hidden": self.hidden_sizes, "generator": generator}
        sizes = {"n_features": n_values + n_covariates, **common}
        codes = {"n_group_codes": n_group_codes, "n_instance_codes": n_instance_codes}
        if not self.is_trained:
            group_encoder: GroupEncoder = (
                NewtonEncoder(n_values, n_values, n_group_codes, (), generator)
                if self.decoder == "linear"
                else LocationScaleEncoder(1 + n_covariates, n_values, n_group_codes)
            )
            instance_encoder: InstanceEncoder = ExactEncoder()
            regularizer = None
        else:
            regularizer = _regularizer(self.regularizer, n_instance_codes, **sizes)
            group_encoder = _part(self.group_encoder, GROUP_ENCODERS, n_group_codes=n_group_codes, **sizes)
            instance_encoder = _part(self.instance_encoder, INSTANCE_ENCODERS, **codes, **sizes)
        decoder = self._decoder({"n_features": n_values, "n_covariates": n_covariates, **codes, **common})
        if self.noise_scale is not None:
            noise = torch.tensor(self.noise_scale, dtype=torch.float64)
            decoder.fix_noise((noise / torch.tensor(self.scale, dtype=torch.float64)).float())
        return LatentModel(group_encoder, instance_encoder, decoder, regularizer)

    def _decoder(self, arguments: dict[str, Any]) -> CodeDecoder:
        if isinstance(self.decoder, str):
            return _part(self.decoder, DECODERS, **arguments)
        if isinstance(self.decoder, CodeDecoder):
            decoder: CodeDecoder = copy.deepcopy(self.decoder)
        else:
            formula = copy.deepcopy(self.decoder) if isinstance(self.decoder, nn.Module) else self.decoder
            moments = (self.center, self.scale, self.covariate_center, self.covariate_scale)
            decoder = FormulaDecoder(
                formula,
                len(self.center),
                self.n_group_codes,
                self.n_instance_codes,
                *(torch.tensor(part, dtype=torch.float32) for part in moments),
            )
        if decoder.n_covariates != len(self.covariate_center):
            raise ValueError(
                f"decoder has n_covariates={decoder.n_covariates}, but covariates make "
                f"{len(self.covariate_center)} columns (one a number, one less than its categories a text); "
                "build it for as many"
            )
        decoder.check()
        return decoder


@dataclass(frozen=True)
class ScoreSpec:
    """Every choice that shapes a :class:`ScoreModel`; each is explained at CxVAERegressor's parameter.

    Attributes
    ----------
    family : str or type
        Name of a family, or a class of the user's own.
    levels : tuple of tuple of float, one an outcome
        Distinct values of outcomes that are grades, in order; empty for others.
    n_columns : int
        Number P of columns of the design.
    random : tuple of int
        Columns of the random effects.
    n_extra_codes : int
        Codes beside the random effects.
    hidden_sizes : tuple of int
        Widths of the networks of encoder and decoder.
    has_network : bool
        Whether there is a network beside the mixed model.
    is_frozen : bool
        Whether the statistics of rows are those of an earlier decoder, as after an incremental fit.
    """

    family: Any
    levels: tuple[tuple[float, ...], ...]
    n_columns: int
    random: tuple[int, ...]
    n_extra_codes: int
    group_encoder: Any
    regularizer: Any
    hidden_sizes: tuple[int, ...]
    has_network: bool
    is_frozen: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the model is a linear mixed model, which maximum likelihood gives with no training."""
        return not self.has_network and self.families()[0].is_linear_exact

    @property
    def n_outcomes(self) -> int:
        return len(self.levels)

    def families(self) -> list[Family]:
        """Families of the outcomes, untrained."""
        kind = FAMILIES[self.family] if isinstance(self.family, str) else self.family
        return [kind(levels) if kind.kind == "ordered" else kind() for levels in self.levels]

    def build(self, generator: torch.Generator) -> ScoreModel:
        """Untrained model."""
        families = self.families()
        n_random = self.n_outcomes * len(self.random)
        n_codes = n_random + (self.n_extra_codes if self.has_network else 0)
        # One step of Newton's method is no posterior: without a correction the ELBO bends the decoder to it.
        is_exact = self.is_exact
        correlation = self.n_outcomes > 1 and families[0].is_continuous
        likelihood = Likelihood(families, self.n_outcomes, correlation=correlation)
        n_features = self.n_columns - 1 + self.n_outcomes
        sizes = {"n_features": n_features, "hidden": self.hidden_sizes, "generator": generator}
        if isinstance(self.group_encoder, str) and self.group_encoder == "mixed_model":
            widths = () if is_exact else self.hidden_sizes
            encoder: GroupEncoder = NewtonEncoder(n_features, self.n_outcomes, n_codes, widths, generator)
        else:
            encoder = _part(self.group_encoder, GROUP_ENCODERS, n_group_codes=n_codes, **sizes)
        hidden: Sequence[int] = self.hidden_sizes if self.has_network else ()
        decoder = MixedModelDecoder(likelihood, self.n_columns, self.random, n_codes, hidden, generator)
        # What is maximum likelihood already is not for the ELBO to move.
        if is_exact:
            decoder.requires_grad_(False)
        if self.is_frozen:
            encoder.freeze(decoder)
        regularizer = None
        if not is_exact:
            regularizer = _regularizer(self.regularizer, self.n_outcomes, **sizes)
        return ScoreModel(encoder, decoder, regularizer)


def _part(choice: Any, registry: Mapping[str, Callable[..., Any]], **arguments: Any) -> Any:
    """A part from its name, from a factory with the registry's signature, or from a Module (copied)."""
    if isinstance(choice, nn.Module):
        return copy.deepcopy(choice)
    return registry[choice](**arguments) if isinstance(choice, str) else choice(**arguments)


def _regularizer(choice: Any, n_instance_codes: int, **sizes: Any) -> Regularizer | None:
    if choice is None:
        return None
    return _part(choice, REGULARIZERS, n_instance_codes=n_instance_codes, **sizes)
