"""Where a model starts: at the (generalized) linear mixed model, and at the curves that it leaves over."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.functional import pad

from skgroupvae.batch import Batch, RandomTerm
from skgroupvae.mixed_model.curves import leading_curves
from skgroupvae.mixed_model.generalized import (
    fit_generalized_mixed_model,
    mixed_log_likelihood,
    newton_posterior,
)
from skgroupvae.mixed_model.linear import LinearMixedModel
from skgroupvae.model.mixed_decoder import MixedModelDecoder
from skgroupvae.model.model import ScoreModel

__all__ = ["start_at_mixed_model"]

_MIN_DEVIATION = 1e-4


@torch.no_grad()
def start_at_mixed_model(
    model: ScoreModel, batch: Batch, penalty_weight: float, generator: torch.Generator
) -> LinearMixedModel:
    """Set a model to the mixed model of these rows, and return that mixed model on the predictors' scale.

    Parameters
    ----------
    model : ScoreModel
        Changed in place.
    batch : Batch
        Rows of whole groups.
    penalty_weight : float
        Prior on the networks' weights, in nats a row.
    generator : torch.Generator
        Source of the draws.

    Returns
    -------
    fitted : LinearMixedModel
        For a family that is not continuous its residual is the root of the dispersion.
    """
    decoder = model.decoder
    term = RandomTerm(tuple(decoder.random.tolist()))
    fitted = fit_generalized_mixed_model(decoder.likelihood, batch, term, decoder.shape)
    _start_decoder(decoder, fitted)
    decoder.set_penalty(penalty_weight)
    if not decoder.likelihood.is_linear_exact:
        # Until here the linear mixed model's of working outcomes.
        fitted = replace(fitted, log_likelihood=mixed_log_likelihood(model, batch))
    model.set_value_moments(batch)
    _start_curves(model, batch, generator)
    return fitted


def _start_decoder(decoder: MixedModelDecoder, fitted: LinearMixedModel) -> None:
    """Set a decoder to a mixed model."""
    decoder.fixed.copy_(fitted.fixed)
    decoder.raw_loadings.copy_(fitted.loadings[0])
    likelihood, covariance = decoder.likelihood, fitted.residual @ fitted.residual.mT
    log_deviations = covariance.diagonal().sqrt().clamp(min=_MIN_DEVIATION).log()
    for column in range(likelihood.n_columns):
        family = likelihood.family_of(column)
        # A family of the user's may have no scale, such as the exponential.
        if family.is_continuous and family.n_parameters > 1:
            decoder.shape[column, 0] = log_deviations[column]
    if likelihood.correlation is not None:
        likelihood.set_correlation(covariance)


def _start_curves(model: ScoreModel, batch: Batch, generator: torch.Generator) -> None:
    """Start the codes beside the random effects where groups differ more than those explain."""
    decoder = model.decoder
    n_curves = decoder.n_group_codes - decoder.n_random
    if decoder.curves is None or n_curves == 0:
        return
    batch = batch.to(device=decoder.fixed.device, dtype=decoder.fixed.dtype)
    eta = decoder(batch.design, batch.groups.expand(newton_posterior(model, batch).loc))
    score, information = decoder.likelihood.working(batch.values, eta, batch.mask)
    features = pad(decoder.curves[:-1](batch.design[:, 1:]), (0, 1), value=1.0)
    score, information = batch.weights[:, None] * score, batch.weights[:, None, None] * information
    coefficients = leading_curves(
        features.double(), score.double(), information.double(), batch.groups, n_curves, generator
    )
    decoder.start_curves(coefficients.unflatten(1, (decoder.likelihood.n_columns, -1)))
