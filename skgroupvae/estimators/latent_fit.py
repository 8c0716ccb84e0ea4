"""How GroupVAE learns: read the table, start at the linear mixed model, train, choose, keep the state."""

from __future__ import annotations

import copy
import math
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
from skgroupvae.data.checks import check_hidden_sizes, check_noise_scale
from skgroupvae.data.reader import ObservationReader, Table
from skgroupvae.devices import resolve_device
from skgroupvae.estimators.choice import Trial, choose_model
from skgroupvae.estimators.fitting import (
    COMPARISON_DRAWS,
    Trained,
    judged,
    resume,
    some_groups,
    train_from_start,
)
from skgroupvae.estimators.known import known_from, with_table
from skgroupvae.mixed_model.latent import count_told_codes, fit_group_means, start_latent_model
from skgroupvae.mixed_model.linear import LinearMixedModel, log_likelihood
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
# Of trials, so that the choice depends on the table alone and not on `random_state`.
_TRIAL_SEED = 0


@dataclass(frozen=True)
class _Job:
    """What one fit of a network needs beside its rows."""

    spec: LatentSpec
    most_codes: int
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
    # Where the last fit ended at the linear model there is no network to resume from.
    resumed = None if last is None or last.spec.is_linear else last
    mixed_model = fit_group_means(table.batch, _most_codes(estimator))
    n_told = count_told_codes(mixed_model, table.batch)
    spec = _spec(estimator, reader, None if resumed is None else resumed.spec)
    choice = _choose(estimator, spec, table.batch)
    history: list[dict[str, float]] = []
    if choice.model == "network":
        before = None if resumed is None else resumed.model
        trained = _trained(estimator, spec, mixed_model, table.batch, (seed, split_seed), before, choice)
        model, history, choice = trained.model, trained.history, judged(trained, choice)
    if choice.model == "linear":
        n_codes = n_told if estimator.n_group_codes == "auto" else estimator.n_group_codes
        spec, history = replace(spec, decoder="linear", n_group_codes=n_codes), []
        model = _started(spec, mixed_model, table.batch, seed)[0].to(resolve_device(estimator.device))
    known = _known(model, table)
    # A history without epochs has columns of objects otherwise.
    epochs = history_table(history).astype(float)
    return FittedState(reader, spec, model, known, epochs, mixed_model, choice)


def learn_more(estimator: Any, X: Any, groups: Any, covariates: Any) -> FittedState:
    """Fitted state after one pass over more rows; those of a linear model only add to their groups."""
    state = estimator._fitted()
    reader, table = state.reader.again(X, groups, covariates, estimator.group_column)
    model, history = state.model, state.history
    if not state.spec.is_linear:
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


def _most_codes(estimator: Any) -> int:
    """Of a group, in the linear mixed model."""
    return _MAX_AUTO_CODES if estimator.n_group_codes == "auto" else int(estimator.n_group_codes)


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
        n_columns = min(len(reader.columns), _MAX_AUTO_CODES)
        n_instance_codes = getattr(estimator.decoder, "n_instance_codes", n_columns)
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
    start_latent_model(model.double() if spec.is_linear else model, mixed_model)
    return model, generator


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


# --- the choice between the linear model and the network


def _choose(estimator: Any, spec: LatentSpec, batch: Batch) -> Choice:
    """Which model the fit is to end at."""
    if spec.is_linear:
        return Choice("linear", 'decoder="linear"')
    if not (isinstance(estimator.decoder, str) and estimator.decoder == "auto"):
        named = f'decoder="{estimator.decoder}"' if isinstance(estimator.decoder, str) else "decoder of yours"
        return Choice("network", named)
    sizes = batch.groups.sizes
    schedule = (estimator.max_epochs, estimator.batch_size)
    settings = replace(_settings(estimator, len(sizes)), early_stopping=False)
    n_samples = estimator.n_importance_samples
    job = _Job(spec, _most_codes(estimator), settings, schedule, n_samples, _TRIAL_SEED)
    return choose_model(partial(_trial, job, batch), sizes, _TRIAL_SEED, estimator.n_jobs)


def _trial(job: _Job, batch: Batch, learned_groups: Tensor, held_out_groups: Tensor) -> Trial:
    """Whether a network makes groups held out likelier than the linear model, from the others."""
    learned, held_out = batch.take_groups(learned_groups), batch.take_groups(held_out_groups)
    mixed_model = fit_group_means(learned, job.most_codes)
    linear_spec = replace(job.spec, decoder="linear", n_group_codes=job.most_codes)
    linear = _started(linear_spec, mixed_model, learned, job.seed)[0]
    of_linear = _log_likelihoods(linear, held_out, 1)
    model, generator = _started(job.spec, mixed_model, learned, job.seed)

    def ask() -> Tensor:
        # A copy, so that training goes on in single precision.
        return _log_likelihoods(copy.deepcopy(model), held_out, job.n_importance_samples) - of_linear

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
    answers = trials.answers or [torch.full_like(of_linear, -math.inf)]
    n_steps: list[int | None] = [n_batches * n for n in trials.epochs] or [None]
    if trials.is_clear or not is_auto:
        n_steps[-1] = None
    return Trial(torch.stack(answers), tuple(n_steps))
