"""Where a regression starts: at the generalised linear mixed model, and at the curves that it leaves over."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skgroupvae.families import Family
from skgroupvae.groups import Segments
from skgroupvae.regression.decoder import RegressionDecoder
from skgroupvae.regression.mixed_model import LinearMixedModel, fit_linear_mixed_model
from skgroupvae.regression.network import RegressionNetwork
from skgroupvae.regression.prediction import log_likelihood

__all__ = ["mixed_log_likelihood", "mixed_model_of", "start_at_mixed_model"]

_MAX_ITERATIONS = 20
_TOLERANCE = 1e-6
# Where most rows tell next to nothing about the predictor the groups are nearly separated, and the estimates
# on their way to infinity.
_LITTLE, _MOST = 0.01, 0.5
# Of a working residual, on the scale of the predictor: guards against rows that tell nearly nothing.
_MAX_STEP = 100.0


@dataclass(frozen=True)
class _Rows:
    """Rows of whole groups, in float64."""

    y: Tensor
    weights: Tensor
    design: Tensor
    segments: Segments


@torch.no_grad()
def start_at_mixed_model(
    network: RegressionNetwork,
    x: Tensor,
    segments: Segments,
    penalty_weight: float,
    generator: torch.Generator,
) -> LinearMixedModel:
    """Set the network to the mixed model of these rows, and return that model on the predictor's scale.

    Parameters
    ----------
    network : RegressionNetwork
        Changed in place.
    x : Tensor of shape (N, 2 + P)
        Rows of the network.
    segments : Segments
        The group of each row.
    penalty_weight : float
        Prior on the networks' weights, in nats a row.
    generator : torch.Generator
        Source of the draws.

    Returns
    -------
    model : LinearMixedModel
        For a family that is not continuous its noise is the root of the dispersion.
    """
    decoder, family = network.decoder, network.decoder.family
    rows = _Rows(x[:, 0].double(), x[:, 1].double(), x[:, 2:].double(), segments)
    within = family.variance_within(rows.y)
    model = _fit(family.working_outcome(rows.y), within, rows, decoder.random, rows.weights)
    factor, shift = family.start(rows.y, rows.design @ model.fixed, model.noise)
    model = _scaled(model, factor, shift)
    if family.is_continuous:
        decoder.shape[0] = math.log(max(model.noise, 1e-4))
    else:
        model = _penalized_quasi_likelihood(model, rows, decoder.random, family, decoder.shape.double())
    decoder.start_from(model)
    decoder.set_penalty(penalty_weight)
    if not family.is_linear_exact:
        # Until here the linear mixed model's of a working outcome.
        model = replace(model, log_likelihood=mixed_log_likelihood(network, x.float(), segments))
    network.start_rows(x)
    network.start_curves(x.float(), segments, generator)
    return model


def mixed_log_likelihood(network: RegressionNetwork, x: Tensor, segments: Segments) -> float:
    """Of a mixed model, at the network's parameters, in nats."""
    return log_likelihood(network, x, segments, network.laplace_posterior(x, segments))


@torch.no_grad()
def mixed_model_of(decoder: RegressionDecoder, start: LinearMixedModel) -> LinearMixedModel:
    """The mixed model that a decoder without networks has learned; standard errors are those of `start`."""
    loadings = decoder.loadings.double().cpu()
    # The sign of a code means nothing; as in `fit_linear_mixed_model`.
    loadings = loadings * torch.where(loadings.diagonal() < 0, -1.0, 1.0)
    noise = float(decoder.shape[0].exp()) if decoder.family.is_continuous else start.noise
    return replace(start, fixed=decoder.fixed.double().cpu(), loadings=loadings, noise=noise)


def _penalized_quasi_likelihood(
    model: LinearMixedModel, rows: _Rows, random: Tensor, family: Family, shape: Tensor
) -> LinearMixedModel:
    """Linear mixed models of a working outcome until they agree (Breslow and Clayton 1993)."""
    for _ in range(_MAX_ITERATIONS):
        effects = rows.segments.expand(model.effects)
        predictor = rows.design @ model.fixed + (rows.design[:, random] * effects).sum(-1)
        eta = torch.cat([predictor[:, None], shape.expand(len(predictor), -1)], dim=-1)
        score, information = (part[:, 0] for part in family.working(rows.y, eta))
        if float((information < _LITTLE).double().mean()) > _MOST:
            break
        working = predictor + (score / information).clamp(-_MAX_STEP, _MAX_STEP)
        within = family.variance_within(rows.y, information)
        before, after = model, _fit(working, within, rows, random, rows.weights * information)
        if not bool(torch.isfinite(after.fixed).all()):
            break
        model = after
        if float((after.fixed - before.fixed).abs().max()) < _TOLERANCE:
            break
    return model


def _fit(y: Tensor, within: Tensor, rows: _Rows, random: Tensor, weights: Tensor) -> LinearMixedModel:
    with torch.enable_grad():
        return fit_linear_mixed_model(
            y, rows.design, random.tolist(), rows.segments, weights, float(rows.weights.sum()), within
        )


def _scaled(model: LinearMixedModel, factor: float, shift: float) -> LinearMixedModel:
    """The model of `factor` times its outcome plus `shift`."""
    fixed = model.fixed * factor
    fixed[0] += shift
    return replace(
        model,
        fixed=fixed,
        fixed_covariance=model.fixed_covariance * factor**2,
        loadings=model.loadings * factor,
        noise=model.noise * factor,
        effects=model.effects * factor,
    )
