"""How CxVAERegressor learns: read the table, start at the mixed model, train, choose, keep the state."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from skgroupvae.batch import Batch
from skgroupvae.data.checks import check_hidden_sizes
from skgroupvae.data.outcome_reader import OutcomeReader
from skgroupvae.data.reader import Table
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
from skgroupvae.mixed_model.generalized import laplace_posterior, mixed_log_likelihood, mixed_model_of
from skgroupvae.mixed_model.initialize import start_at_mixed_model
from skgroupvae.mixed_model.linear import LinearMixedModel
from skgroupvae.mixed_model.marginal import marginal_effects
from skgroupvae.mixed_model.tables import MixedModelTables
from skgroupvae.model.families import FAMILIES, Family
from skgroupvae.model.model import ScoreModel
from skgroupvae.model.prediction import group_log_likelihoods
from skgroupvae.model.spec import ScoreSpec
from skgroupvae.model.summaries import Summaries
from skgroupvae.state import Choice, KnownGroups, ScoreState
from skgroupvae.training import Progress, TrainingSettings, history_table, resolve_schedule, train

__all__ = ["fit_scores", "learn_more_scores", "mixed_model_tables"]

# Steps of "auto": with few groups there is little to learn from them, and much to overfit
# (examples/mixed_model_benchmark.py).
_MIN_AUTO_STEPS, _MAX_AUTO_STEPS = 200, 800
_AUTO_STEPS_PER_ROOT = 25


@dataclass(frozen=True)
class _Job:
    """What one fit needs beside its rows, of whatever model."""

    spec: ScoreSpec
    max_epochs: int | str
    batch_size: int | str
    settings: TrainingSettings
    weight_penalty: float
    seed: int
    device: Any
    verbose: bool | str = False

    def settings_for(self, n_groups: int) -> TrainingSettings:
        """Settings of a fit of so many groups."""
        n_steps = min(max(_AUTO_STEPS_PER_ROOT * math.sqrt(n_groups), _MIN_AUTO_STEPS), _MAX_AUTO_STEPS)
        max_epochs, batch_size = resolve_schedule(self.max_epochs, self.batch_size, n_groups, n_steps)
        return replace(self.settings, max_epochs=max_epochs, batch_size=batch_size)


@dataclass(frozen=True, eq=False)
class _Fit:
    """A trained model, the mixed model that it started at (or is), and its history."""

    model: ScoreModel
    mixed_model: LinearMixedModel
    history: list[dict[str, float]]


def fit_scores(estimator: Any, X: Any, y: Any, groups: Any, sample_weight: Any) -> ScoreState:
    """Fitted state of a CxVAERegressor; the estimator stays as it is."""
    last = vars(estimator).get("_state") if estimator.warm_start else None
    reader, table = _read(estimator, last, X, y, groups, sample_weight)
    seeds = check_random_state(estimator.random_state)
    # Held-out groups have a seed of their own: they must not depend on the networks that are built.
    seed, split_seed = (int(seeds.randint(2**31 - 1)) for _ in range(2))
    job = _job(estimator, _spec(estimator, reader), seed)
    try:
        choice = _choose(estimator, job, table.batch, split_seed)
        fit, choice = _fitted(job, choice, table.batch, last)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            "the mixed model has no estimates: X (nearly) tells y without error, or columns of X are sums of "
            "others; drop these columns"
        ) from error
    return _state(reader, replace(job.spec, has_network=choice.model == "network"), fit, choice, table)


def learn_more_scores(
    estimator: Any, state: ScoreState, X: Any, y: Any, groups: Any, sample_weight: Any
) -> ScoreState:
    """Fitted state after one pass over more rows; those of a linear mixed model only add to their groups."""
    _keep_family(estimator, state)
    reader, table = state.reader.again(X, y, groups, sample_weight, **_said(estimator), is_incremental=True)
    model, history, spec = state.model, state.history, state.spec
    asked = _spec(estimator, reader)
    has_network = {"linear": False, "mlp": True}.get(estimator.decoder, spec.has_network)
    asked = replace(asked, has_network=has_network, is_frozen=True)
    if not spec.is_exact or not asked.is_exact or model.has_learned_posterior:
        n_before = len(history)
        seed = int(check_random_state(estimator.random_state).randint(2**31 - 1)) + n_before
        generator = torch.Generator().manual_seed(seed)
        job = _job(estimator, asked, seed)
        model = _resumed(state.model, asked, generator, job.weight_penalty / table.batch.n_rows)
        settings = replace(
            job.settings_for(len(table.labels)),
            max_epochs=1,
            learning_rate=0.1 * estimator.learning_rate,
            is_incremental=True,
        )
        records = _train(model, table.batch, settings, generator, False)
        added = history_table(records, n_before)
        history = pd.concat([history, added]) if n_before else added
        spec = asked
    groups_known = with_table(state.groups, known_from(_ready(model), table), table)
    return state.replaced(reader=reader, spec=spec, model=model, history=history, groups=groups_known)


def mixed_model_tables(
    reader: OutcomeReader, model: ScoreModel, mixed_model: LinearMixedModel
) -> MixedModelTables:
    """Tables of the mixed model, in the units of the table."""
    likelihood = copy.deepcopy(model.decoder.likelihood).cpu()
    families = [likelihood.family_of(column) for column in range(likelihood.n_columns)]
    return MixedModelTables(mixed_model, reader.design, families, reader.names, reader.center, reader.scale)


# --- read the table; say what the model is


def _read(
    estimator: Any, last: ScoreState | None, X: Any, y: Any, groups: Any, sample_weight: Any
) -> tuple[OutcomeReader, Table]:
    family = _family(estimator.family)
    if last is not None:
        _keep_family(estimator, last)
        return last.reader.again(X, y, groups, sample_weight, **_said(estimator))
    name = estimator.family if isinstance(estimator.family, str) else family.__name__
    return OutcomeReader.learn(
        X, y, groups, sample_weight, kind=family.kind, family=name, owner=type(estimator).__name__,
        **_said(estimator),
    )  # fmt: skip


def _said(estimator: Any) -> dict[str, Any]:
    """Parameters that say how tables are read."""
    return {name: getattr(estimator, name) for name in ("formula", "random_slopes", "group_column")}


def _family(family: Any) -> type[Family]:
    """Class of a family from its name or itself."""
    if isinstance(family, str):
        return FAMILIES[family]
    if not (isinstance(family, type) and issubclass(family, Family)):
        raise ValueError(
            f"family={family!r} is no family; pass the name of one, or a subclass of "
            "skgroupvae.model.families.Family (the class, not an instance)"
        )
    return family


def _keep_family(estimator: Any, state: ScoreState) -> None:
    """Refuse a family that is not that of the fit."""
    if estimator.family != state.spec.family:
        raise ValueError(
            f"family={estimator.family!r} is not the {state.spec.family!r} of the fit, so it cannot resume "
            "from there; fit a clone, or set warm_start=False"
        )


def _spec(estimator: Any, reader: OutcomeReader) -> ScoreSpec:
    """What the parameters ask for; "auto" is the network until it is known not to pay."""
    return ScoreSpec(
        estimator.family,
        tuple(column.levels or () for column in reader.columns),
        len(reader.design.names),
        tuple(reader.random),
        estimator.n_extra_codes,
        estimator.group_encoder,
        estimator.regularizer,
        check_hidden_sizes(estimator.hidden_sizes),
        estimator.decoder != "linear",
    )


def _job(estimator: Any, spec: ScoreSpec, seed: int) -> _Job:
    settings = TrainingSettings(
        max_epochs=1,
        batch_size=1,
        learning_rate=estimator.learning_rate,
        n_decoder_samples=estimator.n_decoder_samples,
        regularizer_weight=estimator.regularizer_weight,
    )
    return _Job(
        spec,
        estimator.max_epochs,
        estimator.batch_size,
        settings,
        estimator.weight_penalty,
        seed,
        resolve_device(estimator.device),
        estimator.verbose,
    )


# --- start at the mixed model, and train


def _fitted(job: _Job, choice: Choice, batch: Batch, last: ScoreState | None) -> tuple[_Fit, Choice]:
    """The fit of the model that was chosen; the mixed model where a network ended below it."""
    linear = replace(job, spec=replace(job.spec, has_network=False))
    # Where the last fit ended at the other model there is nothing to resume from.
    is_resumed = last is not None and last.spec.has_network == (choice.model == "network")
    resumed = last.model if last is not None and is_resumed else None
    if choice.model == "linear":
        return _linear_fit(linear, batch, resumed), choice
    trained, start = _network_fit(job, batch, resumed)
    choice = judged(trained, choice)
    if choice.model == "linear":
        return _linear_fit(linear, batch), choice
    return _Fit(trained.model, start, trained.history), choice


def _started(
    job: _Job, batch: Batch, resumed: ScoreModel | None = None
) -> tuple[ScoreModel, LinearMixedModel, torch.Generator]:
    """A model at its start, the mixed model there, and the source of the draws that follow."""
    generator = torch.Generator().manual_seed(job.seed)
    model = job.spec.build(generator)
    if job.spec.is_exact:
        model.double()
    penalty = job.weight_penalty / batch.n_rows
    mixed_model = start_at_mixed_model(model, batch, penalty, generator)
    if resumed is not None and not job.spec.is_exact:
        model = _resumed(resumed, job.spec, generator, penalty)
    return model.to(job.device), mixed_model, generator


def _resumed(
    fitted: ScoreModel, spec: ScoreSpec, generator: torch.Generator, penalty_weight: float
) -> ScoreModel:
    """Copy of a fitted model, ready to learn on, its encoder's statistics frozen if the spec says so."""
    fitted = copy.deepcopy(fitted)
    if spec.is_frozen:
        fitted.group_encoder.freeze(fitted.decoder)
    else:
        fitted.group_encoder.release()
    model = resume(fitted, spec.build(generator).to(fitted.device))
    model.decoder.set_penalty(penalty_weight)
    return model


def _train(
    model: ScoreModel, batch: Batch, settings: TrainingSettings, generator: torch.Generator, verbose: Any
) -> list[dict[str, float]]:
    """Train in place, in single precision, what is there to learn."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return []
    every = torch.arange(batch.groups.n_groups)
    return train(
        model.float(),
        batch.to(device=model.device, dtype=torch.float32),
        settings,
        train_groups=every,
        validation_groups=every[:0],
        generator=generator,
        callbacks=[Progress(verbose)],
    )


def _linear_fit(job: _Job, batch: Batch, resumed: ScoreModel | None = None) -> _Fit:
    """The (generalized) linear mixed model alone."""
    model, start, generator = _started(job, batch, resumed)
    if job.spec.is_exact:
        history = _train(model, batch, job.settings_for(batch.groups.n_groups), generator, job.verbose)
        return _Fit(_ready(model), start, history)
    before = copy.deepcopy(model.decoder.state_dict())
    history = _train(model, batch, job.settings_for(batch.groups.n_groups), generator, job.verbose)
    _ready(model)
    value = mixed_log_likelihood(model, batch)
    # What a fit that resumes has learned is never given up; else training may stray.
    if resumed is not None or value > start.log_likelihood:
        learned = mixed_model_of(model.decoder, replace(start, log_likelihood=value))
        return _Fit(model, learned, history)
    model.decoder.load_state_dict(before)
    return _Fit(model, start, history)


def _network_fit(
    job: _Job, batch: Batch, resumed: ScoreModel | None
) -> tuple[Trained[ScoreModel], LinearMixedModel]:
    """A trained network, and the mixed model that it started at."""
    starts = []

    def train_once(settings: TrainingSettings) -> Trained[ScoreModel]:
        model, start, generator = _started(job, batch, resumed)
        starts.append(start)
        history = _train(model, batch, settings, generator, job.verbose)
        return Trained(model, history, _shortfall(_ready(model), job, batch))

    may_retry = job.max_epochs == "auto" and resumed is None
    trained = train_from_start(train_once, job.settings_for(batch.groups.n_groups), may_retry=may_retry)
    return trained, starts[0]


def _ready(model: ScoreModel) -> ScoreModel:
    """Inference needs digits, training speed."""
    return model.eval().requires_grad_(False).double()


def _shortfall(model: ScoreModel, job: _Job, batch: Batch) -> float:
    """Nats per row by which groups of the fit, some of them, are likelier under the mixed model."""
    linear = _ready(_started(replace(job, spec=replace(job.spec, has_network=False)), batch)[0])
    some = some_groups(batch)
    of_linear, of_network = (_log_likelihoods(part, some).sum() for part in (linear, model))
    shortfall = float(of_linear - of_network) / some.n_rows
    return shortfall if math.isfinite(shortfall) else math.inf


@torch.no_grad()
def _log_likelihoods(model: ScoreModel, batch: Batch) -> Tensor:
    """Of whole groups (G,), on the CPU."""
    batch = batch.to(device=model.device)
    # A mixed model has a better proposal than its encoder's.
    is_generalized = model.decoder.network is None and not model.decoder.is_exact
    q_u = laplace_posterior(model, batch) if is_generalized else model.infer(batch)
    return group_log_likelihoods(model, batch, q_u, COMPARISON_DRAWS).cpu()


# --- choose, and keep the state


def _choose(estimator: Any, job: _Job, batch: Batch, split_seed: int) -> Choice:
    """Which model the fit is to end at."""
    if estimator.decoder != "auto":
        name = "linear" if estimator.decoder == "linear" else "network"
        return Choice(name, f'decoder="{estimator.decoder}"')
    trial_of = partial(_trial, replace(job, verbose=False), batch)
    return choose_model(trial_of, batch.groups.sizes, split_seed, estimator.n_jobs)


def _trial(job: _Job, batch: Batch, learned: Tensor, held_out: Tensor) -> Trial:
    """Whether a network makes groups held out likelier than the mixed model, asked when it is trained."""
    rows, others = batch.take_groups(learned), batch.take_groups(held_out)
    linear = _linear_fit(replace(job, spec=replace(job.spec, has_network=False)), rows).model
    model, _, generator = _started(job, rows)
    history = _train(model, rows, job.settings_for(len(learned)), generator, False)
    gains = _log_likelihoods(_ready(model), others) - _log_likelihoods(linear, others)
    return Trial(gains[None], (len(history),))


def _state(reader: OutcomeReader, spec: ScoreSpec, fit: _Fit, choice: Choice, table: Table) -> ScoreState:
    """All that the fit leaves behind."""
    batch, model = table.batch, fit.model
    in_order = KnownGroups(table.labels, Summaries.of_rows(model, batch.to(device=model.device)))
    tables = mixed_model_tables(reader, model, fit.mixed_model)
    error = tables.fixed_effects()["std_error"].to_numpy().reshape(len(reader.columns), -1)
    effects = marginal_effects(
        model,
        reader.design,
        batch.to(device=model.device),
        in_order.posterior(model),
        reader.names,
        reader.scale,
        error[:, 1:].T,
    )
    weights = batch.weights[:, None].expand_as(batch.values)
    n_cells = (weights if batch.mask is None else weights * batch.mask).sum(0)
    return ScoreState(
        reader,
        spec,
        model,
        in_order.take(table.first_seen),
        history_table(fit.history).astype(float),
        fit.mixed_model,
        choice,
        batch.n_rows,
        tuple(n_cells.tolist()),
        effects,
    )
