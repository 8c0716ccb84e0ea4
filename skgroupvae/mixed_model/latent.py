"""Where a model of many columns starts: at the linear mixed model of them, by exact maximum likelihood."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from skgroupvae.batch import Batch, RandomTerm
from skgroupvae.mixed_model.linear import LinearMixedModel, fit_linear_mixed_model
from skgroupvae.model.decoders import (
    LinearDecoder,
    canonical_loadings,
    precision_matrix,
    principal_loadings,
)
from skgroupvae.model.model import LatentModel

__all__ = ["count_told_codes", "fit_group_means", "start_latent_model"]

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
    loadings, within = fitted.loadings[0], fitted.residual @ fitted.residual.mT
    by_row = torch.linalg.eigvalsh(loadings.mT @ precision_matrix(within) @ loadings)
    return max(1, int((float(batch.groups.sizes.max()) * by_row > _LEAST_PRECISION).sum()))


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
