"""Generalized linear mixed models: penalized quasi-likelihood, and the likelihood at its estimates.

Outcomes that are not normal have working outcomes on the scale of the linear predictor, each with a
precision, whose linear mixed model is fitted until the two agree (Breslow and Clayton 1993).

References
----------
Breslow, N. E. and Clayton, D. G. (1993). Approximate inference in generalized linear mixed models. Journal of
the American Statistical Association, 88(421), 9-25.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from skgroupvae.batch import Batch, RandomTerm
from skgroupvae.mixed_model.linear import LinearMixedModel, fit_linear_mixed_model, parameters_of, shape_of
from skgroupvae.model.families import Family
from skgroupvae.model.likelihood import Likelihood
from skgroupvae.model.mixed_decoder import MixedModelDecoder
from skgroupvae.model.model import ScoreModel
from skgroupvae.model.posteriors import FullNormal, newton
from skgroupvae.model.prediction import log_likelihood

__all__ = [
    "fit_generalized_mixed_model",
    "laplace_posterior",
    "mixed_log_likelihood",
    "mixed_model_of",
    "newton_posterior",
]

_MAX_ITERATIONS = 20
_TOLERANCE = 1e-6
# Where most rows tell next to nothing about the predictor the groups are nearly separated, and the estimates
# on their way to infinity.
_LITTLE, _MOST = 0.01, 0.5
# Of a working residual, on the scale of the predictor: guards against rows that tell nearly nothing.
_MAX_STEP = 100.0
# Steps of Newton's method to a mode, and how far one goes in standard deviations of the prior.
_MODE_STEPS, _MAX_MODE_STEP = 15, 1.0


# --- estimates ---


@torch.no_grad()
def fit_generalized_mixed_model(
    likelihood: Likelihood, batch: Batch, term: RandomTerm, shape: Tensor
) -> LinearMixedModel:
    """Mixed model of outcomes of any family, on the scale of the linear predictors.

    Continuous outcomes are their own working outcomes: where all are, it is the linear mixed model.

    Parameters
    ----------
    likelihood : Likelihood
        Families of the D outcomes; those that have parameters of their own get their start.
    batch : Batch
        Rows with their groups.
    term : RandomTerm
        Columns whose coefficients vary by group.
    shape : Tensor of shape (D, W - 1)
        Parameters of the families after the linear predictor.

    Returns
    -------
    fitted : LinearMixedModel
        For a family that is not continuous its residual is the root of the dispersion. The log-likelihood is
        that of the working outcomes.
    """
    batch = batch.to(device=torch.device("cpu"), dtype=torch.float64)
    values, extra = _first_working_outcomes(likelihood, batch)
    fitted = _fit(likelihood, replace(batch, values=values), term, None, extra)
    fitted = _scaled(fitted, *_start_families(likelihood, batch, fitted))
    if likelihood.is_continuous:
        return fitted
    return _penalized_quasi_likelihood(fitted, likelihood, batch, term, shape.double().cpu())


def _penalized_quasi_likelihood(
    fitted: LinearMixedModel, likelihood: Likelihood, batch: Batch, term: RandomTerm, shape: Tensor
) -> LinearMixedModel:
    """Linear mixed models of working outcomes until they agree."""
    first, _ = _first_working_outcomes(likelihood, batch)
    continuous = torch.tensor([likelihood.family_of(d).is_continuous for d in range(likelihood.n_columns)])
    # Cells that keep their working outcome, at a precision of one.
    kept = continuous.expand_as(first) if batch.mask is None else continuous | ~batch.mask
    for _ in range(_MAX_ITERATIONS):
        score, information, predictor = _working(fitted, likelihood, batch, term, shape)
        information = torch.where(kept, 1.0, information)
        if _is_separated(information, kept):
            break
        working = predictor + (score / information).clamp(-_MAX_STEP, _MAX_STEP)
        working = torch.where(kept, first, working)
        extra = _variance_within(likelihood, batch, information)
        before, after = fitted, _fit(likelihood, replace(batch, values=working), term, information, extra)
        if not bool(torch.isfinite(after.fixed).all()):
            break
        fitted = after
        if float((after.fixed - before.fixed).abs().max()) < _TOLERANCE:
            break
    return fitted


def _working(
    fitted: LinearMixedModel, likelihood: Likelihood, batch: Batch, term: RandomTerm, shape: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Score and information of each cell about its linear predictor, and the predictor: three of (N, D)."""
    effects = batch.factors[term.factor].expand(fitted.effects[0]).unflatten(1, (likelihood.n_columns, -1))
    random = torch.einsum("nq,ndq->nd", batch.design[:, list(term.columns)], effects)
    predictor = batch.design @ fitted.fixed + random
    eta = torch.cat([predictor[..., None], shape.expand(batch.n_rows, -1, -1)], dim=-1)
    score, information = likelihood.working(batch.values, eta, batch.mask)
    every = slice(None, None, likelihood.n_working)
    return score[:, every], information.diagonal(dim1=1, dim2=2)[:, every], predictor


def _is_separated(information: Tensor, kept: Tensor) -> bool:
    """Whether most rows of some outcome tell next to nothing: (N, D), of the cells that are not `kept`."""
    little = ((information < _LITTLE) & ~kept).sum(0)
    return bool((little > _MOST * (~kept).sum(0)).any())


def _fit(
    likelihood: Likelihood, batch: Batch, term: RandomTerm, precisions: Tensor | None, extra: Tensor
) -> LinearMixedModel:
    residual: Literal["full", "diagonal"] = "full" if likelihood.is_continuous else "diagonal"
    return fit_linear_mixed_model(
        batch, [term], precisions=precisions, extra_variance=extra, residual=residual
    )


# --- outcome by outcome ---


def _observed(likelihood: Likelihood, batch: Batch) -> Iterator[tuple[Family, Tensor | slice]]:
    """Family of each outcome and its observed rows."""
    for column in range(likelihood.n_columns):
        rows = slice(None) if batch.mask is None else batch.mask[:, column]
        yield likelihood.family_of(column), rows


def _first_working_outcomes(likelihood: Likelihood, batch: Batch) -> tuple[Tensor, Tensor]:
    """First working outcomes (N, D), and the variance of those that each is the mean of."""
    values, extra = torch.zeros_like(batch.values), torch.zeros_like(batch.values)
    for column, (family, rows) in enumerate(_observed(likelihood, batch)):
        y = batch.values[rows, column]
        values[rows, column], extra[rows, column] = family.working_outcome(y), family.variance_within(y)
    return values, extra


def _variance_within(likelihood: Likelihood, batch: Batch, information: Tensor) -> Tensor:
    """Variance of the working outcomes that each cell (N, D) is the mean of."""
    columns = zip(batch.values.unbind(1), information.unbind(1), strict=True)
    return torch.stack(
        [likelihood.family_of(d).variance_within(y, about) for d, (y, about) in enumerate(columns)], dim=1
    )


def _start_families(likelihood: Likelihood, batch: Batch, fitted: LinearMixedModel) -> tuple[Tensor, Tensor]:
    """Set the families' own parameters; scales and shifts (D,) from the model's predictors to theirs."""
    predictor, deviations = batch.design @ fitted.fixed, fitted.residual.square().sum(1).sqrt()
    pairs = [
        family.start(batch.values[rows, column], predictor[rows, column], float(deviations[column]))
        for column, (family, rows) in enumerate(_observed(likelihood, batch))
    ]
    factors, shifts = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    return factors, shifts


def _scaled(fitted: LinearMixedModel, factors: Tensor, shifts: Tensor) -> LinearMixedModel:
    """The model of the outcomes times `factors` (D,) plus `shifts` (D,)."""
    n_columns, n_outcomes = fitted.fixed.shape
    fixed = fitted.fixed * factors
    fixed[0] += shifts
    by_coefficient = factors.repeat_interleave(n_columns)
    by_effect = factors.repeat_interleave(len(fitted.loadings[0]) // n_outcomes)
    loadings, residual = by_effect[:, None] * fitted.loadings[0], factors[:, None] * fitted.residual
    # Loadings relative to the residual, and logarithms but for a constant, stay as they are.
    shape = shape_of(fitted)
    slopes = torch.ones_like(fitted.parameters)
    slopes[shape.n_loadings :] = torch.where(shape.on_diagonal, 1.0, factors[shape.residual_entries[0]])
    assert fitted.parameters_covariance is not None
    return replace(
        fitted,
        fixed=fixed,
        fixed_covariance=by_coefficient[:, None] * fitted.fixed_covariance * by_coefficient,
        loadings=(loadings,),
        residual=residual,
        effects=(fitted.effects[0] * by_effect,),
        parameters=parameters_of(fitted, loadings, residual),
        parameters_covariance=slopes[:, None] * fitted.parameters_covariance * slopes,
    )


# --- the likelihood, and what was learned ---


@torch.no_grad()
def newton_posterior(model: ScoreModel, batch: Batch) -> FullNormal:
    """q(u) by one step of Newton's method, whatever the encoder has yet to learn."""
    score, information, slopes, _ = model.decoder.newton_terms(batch)
    return _posterior(batch, score, information, slopes)


@torch.no_grad()
def laplace_posterior(model: ScoreModel, batch: Batch) -> FullNormal:
    """Normal at the mode of the posterior of u, for a decoder without networks.

    Parameters
    ----------
    model : ScoreModel
    batch : Batch
        Rows of whole groups, of the type of the model; all at once.

    Returns
    -------
    q_u : FullNormal over (G, U)
    """
    decoder, likelihood = model.decoder, model.decoder.likelihood
    slopes = decoder.coefficients(batch.design)[:, :, 0]
    q_u = newton_posterior(model, batch)
    for _ in range(_MODE_STEPS):
        u = batch.groups.expand(q_u.loc)
        score, information = likelihood.working(batch.values, decoder(batch.design, u), batch.mask)
        score = score[:, :: likelihood.n_working]
        information = information[:, :: likelihood.n_working, :: likelihood.n_working]
        # About u = 0, where the prior is centered.
        score = score + (information @ (slopes @ u[..., None]))[..., 0]
        after = _posterior(batch, score, information, slopes)
        # Newton's method on counts overshoots from below.
        step = (after.loc - q_u.loc).clamp(-_MAX_MODE_STEP, _MAX_MODE_STEP)
        q_u = FullNormal(q_u.loc + step, after.root, after.log_det)
    return q_u


def _posterior(batch: Batch, score: Tensor, information: Tensor, slopes: Tensor) -> FullNormal:
    """By Bayes' rule from each row's score (N, K), information (N, K, K) and slopes in u (N, K, U)."""
    weights = batch.weights
    pull = batch.groups.sum(weights[:, None] * (score[..., None] * slopes).sum(1))
    inner = batch.groups.sum(weights[:, None, None] * (slopes.mT @ (information @ slopes)))
    return newton(pull, inner)


def mixed_log_likelihood(model: ScoreModel, batch: Batch) -> float:
    """Of a generalized mixed model at the parameters of the model's decoder, in nats."""
    fixed = model.decoder.fixed
    batch = batch.to(device=fixed.device, dtype=fixed.dtype)
    return log_likelihood(model, batch, laplace_posterior(model, batch))


@torch.no_grad()
def mixed_model_of(decoder: MixedModelDecoder, start: LinearMixedModel) -> LinearMixedModel:
    """The mixed model that a decoder without networks has learned; standard errors are those of `start`."""
    loadings = decoder.loadings.double().cpu()
    # The sign of a code means nothing; as in `fit_linear_mixed_model`.
    loadings = loadings * torch.where(loadings.diagonal() < 0, -1.0, 1.0)
    residual = start.residual
    if decoder.likelihood.is_continuous:
        correlation = decoder.likelihood.correlation
        root = torch.eye(len(residual)) if correlation is None else torch.linalg.cholesky(correlation)
        residual = decoder.shape[:, :1].double().cpu().exp() * root.double().cpu()
    return replace(
        start,
        fixed=decoder.fixed.detach().double().cpu().clone(),
        loadings=(loadings,),
        residual=residual,
        parameters=parameters_of(start, loadings, residual),
    )
