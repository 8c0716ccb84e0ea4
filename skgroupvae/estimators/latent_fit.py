"""How GroupVAE learns: read the table, fit the linear mixed model, choose, train, keep the state."""

from __future__ import annotations

import copy
import math
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from skgroupvae.batch import Batch
from skgroupvae.data.checks import caller_level, check_hidden_sizes, check_noise_scale
from skgroupvae.data.reader import ObservationReader, Table
from skgroupvae.devices import resolve_device
from skgroupvae.estimators.choice import MIN_GROUPS_OF_SCALES, Trial, choose_model, choose_scales
from skgroupvae.estimators.fitting import (
    COMPARISON_DRAWS,
    Trained,
    judged,
    resume,
    some_groups,
    train_from_start,
)
from skgroupvae.estimators.known import known_from, with_table
from skgroupvae.mixed_model.latent import (
    count_told_codes,
    count_told_scales,
    fit_group_means,
    start_latent_model,
    start_with_scales,
)
from skgroupvae.mixed_model.linear import LinearMixedModel, log_likelihood
from skgroupvae.mixed_model.location_scale import fit_location_scale
from skgroupvae.model import inference
from skgroupvae.model.decoders import LinearDecoder
from skgroupvae.model.model import LatentModel
from skgroupvae.model.spec import LatentSpec
from skgroupvae.state import Choice, FittedState, KnownGroups
from skgroupvae.training import (
    Progress,
    TrainingSettings,
    Trials,
    history_table,
    resolve_schedule,
    train,
)

__all__ = ["fit_latent", "learn_more"]

# More codes of either kind than this are an explicit choice.
_MAX_AUTO_CODES = 10
# Group codes of a network or a formula: more overfit tables of a hundred groups.
_CODES_OF_NETWORK = 2
# Of a trial on groups held out: steps from one question to the next.
_STEPS_BETWEEN = 40
# Groups of a trial, at most: more would only tell what is clear already.
_MOST_TRIAL_GROUPS = 4096
# Of trials, so that the choice depends on the table alone and not on `random_state`.
_TRIAL_SEED = 0


@dataclass(frozen=True)
class _Job:
    """What one fit of a trial needs beside its rows."""

    spec: LatentSpec
    n_group_codes: int | str
    settings: TrainingSettings
    schedule: tuple[int | str, int | str]
    n_importance_samples: int
    seed: int


def fit_latent(estimator: Any, X: Any, groups: Any, covariates: Any) -> FittedState:
    """Fitted state of a GroupVAE; the estimator stays as it is."""
    last = vars(estimator).get("_state") if estimator.warm_start else None
    if last is None:
        reader, table = ObservationReader.learn(
            X, groups, covariates, estimator.group_column, type(estimator).__name__
        )
    else:
        reader, table = last.reader.again(X, groups, covariates, estimator.group_column)
    seeds = check_random_state(estimator.random_state)
    # Held-out groups have a seed of their own: they must not depend on the networks that are built.
    seed, split_seed = (int(seeds.randint(2**31 - 1)) for _ in range(2))
    # Where the last fit ended at a mixed model there is no network to resume from.
    resumed = last if last is not None and last.spec.is_trained else None
    mixed_model = fit_group_means(table.batch, _most_codes(estimator.n_group_codes))
    n_told = count_told_codes(mixed_model, table.batch)
    spec = _spec(estimator, reader, None if resumed is None else resumed.spec)
    choice, simpler = _choose(estimator, spec, table.batch)
    history: list[dict[str, float]] = []
    if choice.model == "network":
        before = None if resumed is None else resumed.model
        trained = _trained(estimator, spec, mixed_model, table.batch, (seed, split_seed), before, choice)
        choice = judged(trained, choice, simpler)
        model, history = trained.model, trained.history
    if choice.model == "location_scale":
        scaled = None
        if table.batch.groups.n_groups >= MIN_GROUPS_OF_SCALES:
            scaled = _with_scales(spec, estimator.n_group_codes, mixed_model, table.batch)
        if scaled is None:
            choice = _without_scales(estimator)
        else:
            (spec, model), history = scaled, []
            model.to(resolve_device(estimator.device))
    if choice.model == "linear":
        n_codes = n_told if estimator.n_group_codes == "auto" else estimator.n_group_codes
        spec, history = replace(spec, decoder="linear", n_group_codes=n_codes), []
        model = _started(spec, mixed_model, table.batch, seed)[0].to(resolve_device(estimator.device))
    known = _known(model, table)
    # A history without epochs has columns of objects otherwise.
    epochs = history_table(history).astype(float)
    return FittedState(reader, spec, model, known, epochs, mixed_model, choice)


def learn_more(estimator: Any, X: Any, groups: Any, covariates: Any) -> FittedState:
    """Fitted state after one pass over more rows; those of a mixed model only add to their groups."""
    state = estimator._fitted()
    reader, table = state.reader.again(X, groups, covariates, estimator.group_column)
    model, history = state.model, state.history
    if state.spec.is_trained:
        n_before = len(history)
        seed = int(check_random_state(estimator.random_state).randint(2**31 - 1)) + n_before
        generator = torch.Generator().manual_seed(seed)
        model = resume(state.model, _spec(estimator, reader, state.spec).build(generator))
        # What is stored of the earlier rows is what this part made of them.
        model.group_encoder.freeze(model.decoder)
        settings = _settings(
            estimator,
            len(table.labels),
            max_epochs=1,
            learning_rate=0.1 * estimator.learning_rate,
            is_incremental=True,
        )
        groups_of_table = torch.arange(len(table.labels))
        records = _train(model, table.batch, settings, generator, groups_of_table, groups_of_table[:0], [])
        history = pd.concat([history, history_table(records, n_before)])
    groups = with_table(state.groups, _known(model, table), table)
    return state.replaced(reader=reader, model=model, history=history, groups=groups)


def _most_codes(n_group_codes: int | str) -> int:
    """Of a group, in the linear mixed model."""
    return _MAX_AUTO_CODES if n_group_codes == "auto" else int(n_group_codes)


def _spec(estimator: Any, reader: ObservationReader, fitted: LatentSpec | None = None) -> LatentSpec:
    """What the parameters ask for; "auto" is the network until it is known not to pay.

    Parameters
    ----------
    estimator : GroupVAE
    reader : ObservationReader
    fitted : LatentSpec, optional
        Of the network that the fit is to resume from.
    """
    noise = check_noise_scale(estimator.noise_scale, reader.scale)
    is_auto = isinstance(estimator.decoder, str) and estimator.decoder == "auto"
    n_group_codes, n_instance_codes = estimator.n_group_codes, estimator.n_instance_codes
    if n_group_codes == "auto" and fitted is not None:
        n_group_codes = fitted.n_group_codes
    elif n_group_codes == "auto":
        n_group_codes = getattr(estimator.decoder, "n_group_codes", _CODES_OF_NETWORK)
    if n_instance_codes == "auto":
        n_columns = len(reader.columns)
        # Those of a model of scales are all that a row is beside its group.
        is_whole = isinstance(estimator.decoder, str) and estimator.decoder == "location_scale"
        n_auto = n_columns if is_whole else min(n_columns, _MAX_AUTO_CODES)
        n_instance_codes = getattr(estimator.decoder, "n_instance_codes", n_auto)
    design = None if reader.covariates is None else reader.covariates.design
    return LatentSpec(
        estimator.group_encoder,
        estimator.instance_encoder,
        estimator.regularizer,
        ("mlp" if fitted is None else fitted.decoder) if is_auto else estimator.decoder,
        n_group_codes,
        n_instance_codes,
        check_hidden_sizes(estimator.hidden_sizes),
        tuple(reader.center.tolist()),
        tuple(reader.scale.tolist()),
        None if noise is None else tuple(noise.tolist()),
        () if design is None else tuple(design.center[1:].tolist()),
        () if design is None else tuple(design.scale[1:].tolist()),
    )


def _settings(estimator: Any, n_groups: int, n_steps: int | None = None, **changes: Any) -> TrainingSettings:
    """Settings of a fit of so many groups, and what an incremental fit has different."""
    max_epochs, batch_size = resolve_schedule(estimator.max_epochs, estimator.batch_size, n_groups, n_steps)
    settings = TrainingSettings(
        max_epochs=max_epochs,
        batch_size=batch_size,
        learning_rate=estimator.learning_rate,
        n_decoder_samples=estimator.n_decoder_samples,
        regularizer_weight=estimator.regularizer_weight,
        early_stopping=estimator.early_stopping,
        n_iter_no_change=estimator.n_iter_no_change,
        tol=estimator.tol,
    )
    return replace(settings, early_stopping=False, **changes) if changes else settings


def _split(estimator: Any, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
    """Groups to train on and to hold out for early stopping."""
    n_groups = batch.groups.n_groups
    if not estimator.early_stopping:
        return torch.arange(n_groups), torch.arange(0)
    if n_groups < 2:
        raise ValueError(
            "early_stopping=True needs at least 2 groups to hold one out, but all rows "
            f"(n_samples={batch.n_rows}) are one group; set it to False"
        )
    n_held_out = int(np.clip(round(estimator.validation_fraction * n_groups), 1, n_groups - 1))
    shuffled = torch.randperm(n_groups, generator=torch.Generator().manual_seed(seed))
    return shuffled[n_held_out:], shuffled[:n_held_out]


def _started(
    spec: LatentSpec,
    mixed_model: LinearMixedModel,
    batch: Batch,
    seed: int,
    resumed: LatentModel | None = None,
) -> tuple[LatentModel, torch.Generator]:
    """A model at its start, and the source of the draws that follow."""
    generator = torch.Generator().manual_seed(seed)
    model = spec.build(generator)
    if resumed is not None:
        return resume(resumed, model), generator
    if spec.is_trained and mixed_model.loadings[0].shape[1] > spec.n_group_codes:
        mixed_model = fit_group_means(batch, spec.n_group_codes)
    start_latent_model(model if spec.is_trained else model.double(), mixed_model)
    return model, generator


def _with_scales(
    spec: LatentSpec,
    n_group_codes: int | str,
    mixed_model: LinearMixedModel,
    batch: Batch,
    *,
    has_scales: bool = True,
) -> tuple[LatentSpec, LatentModel] | None:
    """The location-scale mixed model; None where the rows do not tell it."""
    fitted = fit_location_scale(batch, mixed_model, has_scales=has_scales)
    if fitted is None:
        return None
    n_locations, n_scales = count_told_scales(fitted, batch)
    if not isinstance(n_group_codes, str):
        # Locations first, but for one code of scales.
        n_locations = min(n_locations, n_group_codes - 1)
        n_scales = min(n_group_codes - n_locations, len(fitted.residual))
        n_locations = n_group_codes - n_scales
    spec = replace(spec, decoder="location_scale", n_group_codes=n_locations + n_scales)
    model = spec.build(torch.Generator().manual_seed(0)).double()
    start_with_scales(model, fitted, n_scales)
    return spec, model


def _without_scales(estimator: Any) -> Choice:
    """The linear model where that of scales was asked for or chosen, and the rows do not tell it."""
    reason = (
        f"scales of groups need {MIN_GROUPS_OF_SCALES} groups, some of several rows, and columns that vary "
        "within groups and are no combinations of each other"
    )
    if estimator.decoder == "location_scale":
        warnings.warn(f"the fit is of the linear model: {reason}", UserWarning, stacklevel=caller_level())
    return Choice("linear", reason)


def _trained(
    estimator: Any,
    spec: LatentSpec,
    mixed_model: LinearMixedModel,
    batch: Batch,
    seeds: tuple[int, int],
    resumed: LatentModel | None,
    choice: Choice,
) -> Trained[LatentModel]:
    """A trained network."""
    train_groups, held_out = _split(estimator, batch, seeds[1])

    def train_once(settings: TrainingSettings) -> Trained[LatentModel]:
        model, generator = _started(spec, mixed_model, batch, seeds[0], resumed)
        model.to(resolve_device(estimator.device))
        callbacks = [Progress(estimator.verbose)]
        history = _train(model, batch, settings, generator, train_groups, held_out, callbacks)
        shortfall = _shortfall(model, mixed_model, batch, estimator.n_importance_samples)
        return Trained(model, history, shortfall)

    may_retry = estimator.max_epochs == "auto" and resumed is None
    return train_from_start(
        train_once, _settings(estimator, len(train_groups), choice.n_steps), may_retry=may_retry
    )


def _shortfall(
    model: LatentModel, mixed_model: LinearMixedModel, batch: Batch, n_importance_samples: int
) -> float:
    """Nats per row by which groups of the fit, some of them, are likelier under the linear model."""
    some = some_groups(batch)
    value = float(_log_likelihoods(model, some, n_importance_samples).sum())
    if not isinstance(model.decoder, LinearDecoder):
        return 0.0 if math.isfinite(value) else math.inf  # a formula of the user's need not be better
    return (log_likelihood(mixed_model, some) - value) / some.n_rows if math.isfinite(value) else math.inf


@torch.no_grad()
def _log_likelihoods(model: LatentModel, batch: Batch, n_samples: int) -> Tensor:
    """Of whole groups (G,), on the CPU; the model is in double precision from here on."""
    model.eval().double()
    batch = batch.to(device=model.device)
    n_draws = min(n_samples, COMPARISON_DRAWS)
    return inference.log_likelihood(model, batch, model.infer(batch), n_draws).cpu()


def _train(
    model: LatentModel,
    batch: Batch,
    settings: TrainingSettings,
    generator: torch.Generator,
    train_groups: Tensor,
    held_out: Tensor,
    callbacks: list[Any],
) -> list[dict[str, float]]:
    """Train in place, in single precision: training needs speed, inference digits."""
    return train(
        model,
        batch.to(device=model.device, dtype=torch.float32),
        settings,
        train_groups=train_groups,
        validation_groups=held_out,
        generator=generator,
        callbacks=callbacks,
    )


def _known(model: LatentModel, table: Table) -> KnownGroups:
    """What a table tells of its groups, in order of first appearance; the model is ready from here on."""
    # In float64 the codes of a group do not depend on its batch.
    model.eval().requires_grad_(False).double()
    return known_from(model, table)


# --- the choice between the mixed models and the network


def _choose(estimator: Any, spec: LatentSpec, batch: Batch) -> tuple[Choice, str]:
    """Which model the fit is to end at, and the mixed model where a network that was chosen falls short."""
    why_not = _why_not_scales(estimator, spec)
    if not spec.is_trained:
        if spec.decoder == "location_scale" and why_not is not None:
            raise ValueError(f'decoder="location_scale" {why_not}')
        return Choice(spec.decoder, f'decoder="{spec.decoder}"'), spec.decoder
    if not (isinstance(estimator.decoder, str) and estimator.decoder == "auto"):
        named = f'decoder="{estimator.decoder}"' if isinstance(estimator.decoder, str) else "decoder of yours"
        return Choice("network", named), "linear"
    batch = some_groups(batch, _MOST_TRIAL_GROUPS)
    sizes = batch.groups.sizes
    schedule = (estimator.max_epochs, estimator.batch_size)
    settings = replace(_settings(estimator, len(sizes)), early_stopping=False)
    n_samples = estimator.n_importance_samples
    job = _Job(spec, estimator.n_group_codes, settings, schedule, n_samples, _TRIAL_SEED)
    simpler = None
    if why_not is None:
        simpler = choose_scales(partial(_trial_of_scales, job, batch), sizes, _TRIAL_SEED, estimator.n_jobs)
    name = "linear" if simpler is None else simpler.model
    trial_of = partial(_trial, job, name == "location_scale", batch)
    return choose_model(trial_of, sizes, _TRIAL_SEED, estimator.n_jobs, simpler), name


def _why_not_scales(estimator: Any, spec: LatentSpec) -> str | None:
    """What speaks against the location-scale model, in words; None if nothing does."""
    n_columns = len(spec.center)
    if spec.noise_scale is not None:
        return "has no noise, so leave noise_scale out"
    if spec.n_instance_codes != n_columns:
        return f"has an instance code a column ({n_columns}), so n_instance_codes must be that or 'auto'"
    if estimator.n_group_codes == 1:
        return "has group codes of locations and of scales, so n_group_codes must be at least 2 or 'auto'"
    return None


def _trial_of_scales(job: _Job, batch: Batch, learned_groups: Tensor, held_out_groups: Tensor) -> Trial:
    """Whether scales make groups held out likelier, from the others: by the same model without them.

    The penalty of that model is as good for locations, and of few groups' covariance it may be worth more.
    """
    learned, held_out = batch.take_groups(learned_groups), batch.take_groups(held_out_groups)
    mixed_model = fit_group_means(learned, _most_codes(job.n_group_codes))
    values = []
    for has_scales in (True, False):
        fitted = _with_scales(job.spec, job.n_group_codes, mixed_model, learned, has_scales=has_scales)
        if fitted is None:
            return Trial(held_out.values.new_zeros(1, len(held_out_groups)), (None,))
        values.append(_log_likelihoods(fitted[1], held_out, job.n_importance_samples))
    return Trial((values[0] - values[1])[None], (None,))


def _mixed(job: _Job, has_scales: bool, batch: Batch) -> tuple[LatentModel, LinearMixedModel]:
    """The mixed model, and the linear one: what a fit without a network would end at."""
    most = _most_codes(job.n_group_codes)
    mixed_model = fit_group_means(batch, most)
    scaled = _with_scales(job.spec, job.n_group_codes, mixed_model, batch) if has_scales else None
    if scaled is not None:
        return scaled[1], mixed_model
    spec = replace(job.spec, decoder="linear", n_group_codes=most)
    return _started(spec, mixed_model, batch, job.seed)[0], mixed_model


def _trial(
    job: _Job, has_scales: bool, batch: Batch, learned_groups: Tensor, held_out_groups: Tensor
) -> Trial:
    """Whether a network makes groups held out likelier than a mixed model, from the others."""
    learned, held_out = batch.take_groups(learned_groups), batch.take_groups(held_out_groups)
    simpler, mixed_model = _mixed(job, has_scales, learned)
    of_simpler = _log_likelihoods(simpler, held_out, job.n_importance_samples)
    model, generator = _started(job.spec, mixed_model, learned, job.seed)

    def ask() -> Tensor:
        # A copy, so that training goes on in single precision.
        return _log_likelihoods(copy.deepcopy(model), held_out, job.n_importance_samples) - of_simpler

    max_epochs, batch_size = resolve_schedule(*job.schedule, len(learned_groups))
    n_batches = -(-len(learned_groups) // batch_size)
    is_auto = job.schedule[0] == "auto"
    every = max(1, round(_STEPS_BETWEEN / n_batches)) if is_auto else max_epochs
    trials = Trials(ask, every)
    settings = replace(job.settings, max_epochs=max_epochs, batch_size=batch_size)
    groups = torch.arange(learned.groups.n_groups)
    with suppress(torch.linalg.LinAlgError):
        _train(model, learned, settings, generator, groups, groups[:0], [trials])
    # A fit that diverged before the first question has lost.
    answers = trials.answers or [torch.full_like(of_simpler, -math.inf)]
    n_steps: list[int | None] = [n_batches * n for n in trials.epochs] or [None]
    if trials.is_clear or not is_auto:
        n_steps[-1] = None
    return Trial(torch.stack(answers), tuple(n_steps))
