"""Where a model of many columns starts: at the linear mixed model of them, by exact maximum likelihood."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from skgroupvae.batch import Batch, RandomTerm
from skgroupvae.mixed_model.linear import LinearMixedModel, fit_linear_mixed_model
from skgroupvae.mixed_model.location_scale import LocationScaleModel
from skgroupvae.model.decoders import (
    LinearDecoder,
    canonical_loadings,
    precision_matrix,
    principal_loadings,
)
from skgroupvae.model.location_scale import LocationScaleDecoder, LocationScaleEncoder
from skgroupvae.model.model import LatentModel

__all__ = [
    "count_told_codes",
    "count_told_scales",
    "fit_group_means",
    "start_latent_model",
    "start_with_scales",
]

# Variance, in standardized units, that counts as none.
_TINY = 1e-12
# Precision of a code, where the prior's is 1, that the largest group has to add for the code to count.
_LEAST_PRECISION = 0.01


def fit_group_means(batch: Batch, n_group_codes: int) -> LinearMixedModel:
    """x = mean + effects of covariates + a_group + e with full covariances, that of a of limited rank."""
    rank = min(n_group_codes, batch.values.shape[1])
    fitted = fit_linear_mixed_model(batch, [RandomTerm((0,))], rank=rank, information=False)
    if int(batch.groups.sizes.max()) > 1:
        return fitted
    # One row a group: nothing tells the two apart, and every split has the same likelihood. Halves.
    fixed = torch.linalg.pinv(batch.design) @ batch.values
    residual = batch.values - batch.design @ fixed
    total = residual.mT @ residual / batch.n_rows
    total = total + _TINY * torch.eye(len(total), dtype=total.dtype)
    loadings = principal_loadings(0.5 * total, rank)
    log_det = float(torch.linalg.slogdet(2.0 * math.pi * total).logabsdet)
    return replace(
        fitted,
        fixed=fixed,
        loadings=(loadings,),
        residual=torch.linalg.cholesky(total - loadings @ loadings.mT),
        log_likelihood=-0.5 * batch.n_rows * (log_det + len(total)),
        converged=True,
    )


def count_told_codes(fitted: LinearMixedModel, batch: Batch) -> int:
    """How many codes, at least one, the rows of a group tell anything of.

    Parameters
    ----------
    fitted : LinearMixedModel
        Of `fit_group_means`.
    batch : Batch
        Rows that it was fitted to.
    """
    within = fitted.residual @ fitted.residual.mT
    return _n_told(fitted.loadings[0], precision_matrix(within), batch)


def count_told_scales(fitted: LocationScaleModel, batch: Batch) -> tuple[int, int]:
    """How many codes of locations and of scales, at least one each, the rows of a group tell anything of."""
    precision = torch.cholesky_inverse(fitted.residual)
    information = _information_of_scales(fitted)
    return _n_told(fitted.loadings, precision, batch), _n_told(fitted.scale_loadings, information, batch)


def _n_told(loadings: Tensor, information: Tensor, batch: Batch) -> int:
    by_row = torch.linalg.eigvalsh(loadings.mT @ information @ loadings)
    return max(1, int((float(batch.groups.sizes.max()) * by_row > _LEAST_PRECISION).sum()))


def _information_of_scales(fitted: LocationScaleModel) -> Tensor:
    """What a row is expected to tell of the log scales (D, D)."""
    within = fitted.residual @ fitted.residual.mT
    return torch.cholesky_inverse(fitted.residual) * within + torch.eye(len(within), dtype=within.dtype)


@torch.no_grad()
def start_latent_model(model: LatentModel, fitted: LinearMixedModel) -> None:
    """Start decoder and group encoder at a linear mixed model, as far as they can.

    Parameters
    ----------
    model : LatentModel
        Changed in place.
    fitted : LinearMixedModel
        Of the same columns.
    """
    decoder, weight = model.decoder, model.decoder.log_noise
    between = fitted.loadings[0] @ fitted.loadings[0].mT
    within = fitted.residual @ fitted.residual.mT
    loadings = canonical_loadings(principal_loadings(between, decoder.n_group_codes), within)
    is_wide = not model.instance_encoder.follows_decoder
    decoder.start_at(fitted.fixed.to(weight), loadings.to(weight), within.to(weight), is_wide=is_wide)
    if not isinstance(decoder, LinearDecoder):
        return
    model.covariate_effects.copy_(fitted.fixed[1:])
    model.group_encoder.start_at(loadings, within, fitted.fixed[0])


@torch.no_grad()
def start_with_scales(model: LatentModel, fitted: LocationScaleModel, n_scales: int) -> None:
    """Make decoder and group encoder a location-scale mixed model.

    Parameters
    ----------
    model : LatentModel
        Changed in place.
    fitted : LocationScaleModel
        Of the same columns.
    n_scales : int
        How many of the group codes, the last ones, are of scales.
    """
    decoder, encoder = model.decoder, model.group_encoder
    assert isinstance(decoder, LocationScaleDecoder)
    assert isinstance(encoder, LocationScaleEncoder)
    within = fitted.residual @ fitted.residual.mT
    between, between_scales = (part @ part.mT for part in (fitted.loadings, fitted.scale_loadings))
    loadings = principal_loadings(between, decoder.n_group_codes - n_scales)
    scale_loadings = principal_loadings(between_scales, n_scales)
    noise = torch.linalg.inv(_information_of_scales(fitted))
    parts = (fitted.fixed, canonical_loadings(loadings, within), canonical_loadings(scale_loadings, noise))
    decoder.start_with_scales(*parts, within)
    encoder.start_with_scales(*parts, within)
    model.covariate_effects.copy_(fitted.fixed[1:])
