"""The one training loop of the package: epochs of steps, each on a batch of whole groups."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from skgroupvae.batch import Batch, whole_group_batches
from skgroupvae.training.callbacks import Callback, EarlyStopping, History, Interrupt
from skgroupvae.training.objectives import (
    DecoderObjective,
    ElboObjective,
    EncoderObjective,
    TrainableModel,
    batch_terms,
    trainable,
)

__all__ = ["HISTORY_TERMS", "Loop", "TrainingSettings", "history_table", "resolve_schedule", "train"]

# What history keeps of an epoch, in nats per row.
HISTORY_TERMS = ("loss", "reconstruction", "kl_u", "kl_v", "mutual_information")
# Enough for 65 groups as for 32,768 (examples/benchmark_exam_scores.py); what "auto" aims at.
_AUTO_STEPS = 1250
# The regularizer compares groups of one batch.
_AUTO_MIN_BATCH, _AUTO_MAX_BATCH = 8, 256
_AUTO_BATCHES_PER_EPOCH = 8
_MAX_GRADIENT_NORM = 1.0
# Steps below which an incremental fit does without a warm-up.
_MIN_CYCLE = 8
# Share of the steps after which groups are simulated.
_SIMULATED_FROM = 0.6


@dataclass(frozen=True)
class TrainingSettings:
    """What the loop needs to know; every field is explained at the estimator's parameter of that name.

    Only `is_incremental` has none: in one pass over few groups the rate starts at its peak, as a cycle of one
    or two steps would not leave the rate, near zero, that cycles start and end at.
    """

    max_epochs: int
    batch_size: int
    learning_rate: float
    n_decoder_samples: int
    regularizer_weight: float = 0.0
    early_stopping: bool = False
    n_iter_no_change: int = 1
    tol: float = 0.0
    is_incremental: bool = False


def resolve_schedule(
    max_epochs: int | str, batch_size: int | str, n_groups: int, auto_steps: float | None = None
) -> tuple[int, int]:
    """Epochs and groups in a batch, with "auto" replaced by a choice that depends on the number of groups."""
    if batch_size == "auto":
        smallest = min(_AUTO_MIN_BATCH, n_groups)
        batch_size = int(np.clip(n_groups // _AUTO_BATCHES_PER_EPOCH, smallest, _AUTO_MAX_BATCH))
    if max_epochs == "auto":
        steps_per_epoch = -(-n_groups // int(batch_size))
        max_epochs = max(1, round((auto_steps or _AUTO_STEPS) / steps_per_epoch))
    return int(max_epochs), int(batch_size)


def train(
    model: TrainableModel,
    batch: Batch,
    settings: TrainingSettings,
    *,
    train_groups: Tensor,
    validation_groups: Tensor,
    generator: torch.Generator,
    callbacks: Sequence[Callback] = (),
) -> list[dict[str, float]]:
    """Fit the model in place.

    Ctrl-C ends the fit early, with a warning. A fit that diverges ends at its last finite epoch, with a
    warning.

    Parameters
    ----------
    model : TrainableModel
        Changed in place; with early stopping it ends at the weights of its best epoch.
    batch : Batch
        The whole table, rows by group, in the floating type of the model.
    settings : TrainingSettings
        Epochs, rates and stopping rule.
    train_groups, validation_groups : Tensor of int
        Positions of the groups to learn from and of those held out whole (may be empty).
    generator : torch.Generator
        Source of every draw.
    callbacks : sequence of Callback
        Called after those for the history, early stopping and Ctrl-C, which every fit has.

    Returns
    -------
    history : list of dict
        One record an epoch, in nats per row: see ``GroupVAE.history_``.
    """
    # Also where the caller has switched gradients off.
    with torch.enable_grad():
        loop = Loop(model, batch, settings, train_groups, validation_groups, generator, callbacks)
        loop.run()
    return loop.history


def history_table(history: list[dict[str, float]], n_before: int = 0) -> pd.DataFrame:
    """History by epoch, counted from the `n_before` epochs of earlier fits."""
    epochs = pd.RangeIndex(n_before + 1, n_before + len(history) + 1, name="epoch")
    return pd.DataFrame(history, index=epochs, columns=None if history else list(HISTORY_TERMS))


class Loop:
    """State of one fit, which callbacks may read as a ``RunningFit``; parameters as in :func:`train`."""

    def __init__(
        self,
        model: TrainableModel,
        batch: Batch,
        settings: TrainingSettings,
        train_groups: Tensor,
        validation_groups: Tensor,
        generator: torch.Generator,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.model, self.batch, self.settings = model, batch, settings
        self.train_groups, self.validation_groups = train_groups, validation_groups
        self.generator, self.max_epochs = generator, settings.max_epochs
        self.elbo = ElboObjective(model, settings.regularizer_weight, generator)
        self.encoder = EncoderObjective(model, generator)
        self.decoder = DecoderObjective(model, settings.n_decoder_samples, generator)
        self.parameters = _model_parameters(model)
        self.sizes = batch.groups.sizes.cpu()
        n_batches = sum(1 for _ in self._batches(train_groups))
        self.optimizer, self.schedule = _make_optimizer(
            model, settings.learning_rate, max(1, settings.max_epochs * n_batches), settings.is_incremental
        )
        records = History()
        self.history = records.records
        stopping = EarlyStopping(settings.n_iter_no_change, settings.tol)
        self.callbacks = (records, *([stopping] if settings.early_stopping else []), Interrupt(), *callbacks)
        self.state = _copied_state(model)
        self.is_simulating = False

    def run(self) -> None:
        """All epochs, unless a callback, Ctrl-C or a loss that is not finite ends them sooner."""
        try:
            try:
                for callback in self.callbacks:
                    callback.on_start(self)
                self._run_epochs()
            except KeyboardInterrupt:
                if not any(callback.on_interrupt(self) for callback in self.callbacks):
                    raise
                # The epoch that was cut short may have diverged.
                if not self._is_finite():
                    self._return_to_last_epoch()
        finally:
            self.model.stop_simulating()
            for callback in self.callbacks:
                callback.on_end(self)

    def _run_epochs(self) -> None:
        for _ in range(self.max_epochs):
            record = self._run_epoch()
            if not (math.isfinite(record["loss"]) and self._is_finite()):
                self._return_to_last_epoch()
                return
            self.state = _copied_state(self.model)
            for callback in self.callbacks:
                callback.on_epoch_end(self, record)
            if any(callback.should_stop() for callback in self.callbacks):
                return

    def _run_epoch(self) -> dict[str, float]:
        """One pass over the training groups, then one over the held-out groups; returns their record."""
        order = torch.randperm(len(self.train_groups), generator=self.generator)
        weight = self.settings.regularizer_weight
        steps = [self._step(positions) for positions in self._batches(self.train_groups[order])]
        record = _mean_by_rows(steps, weight)
        if len(self.validation_groups):
            held_out = _mean_by_rows(self._validate(), weight)
            record |= {f"validation_{name}": value for name, value in held_out.items()}
        return record

    def _step(self, positions: Tensor) -> tuple[Tensor, int]:
        """One batch; returns its terms and the number of its rows."""
        batch = self.batch.take_groups(positions)
        # q(u) learns its spread where it matters, under a decoder near the last.
        if not self.is_simulating and self.schedule.last_epoch >= _SIMULATED_FROM * self.schedule.total_steps:
            self.model.start_simulating(batch, self.generator)
            self.is_simulating = True
        self.optimizer.zero_grad()
        terms = self.elbo.backward(batch)
        self.encoder.backward(batch)
        self.decoder.backward(batch)
        nn.utils.clip_grad_norm_(self.parameters, _MAX_GRADIENT_NORM)
        self.optimizer.step()
        # Where rows bound the batches their number varies by a few with the order of the groups.
        if self.schedule.last_epoch < self.schedule.total_steps - 1:
            self.schedule.step()
        return terms, batch.n_rows

    @torch.no_grad()
    def _validate(self) -> list[tuple[Tensor, int]]:
        """Terms of the held-out groups; the same draws at every epoch, so that epochs can be compared."""
        model, generator = self.model, torch.Generator().manual_seed(0)
        results = []
        for positions in self._batches(self.validation_groups):
            batch = self.batch.take_groups(positions)
            terms = model.elbo(batch, generator)
            information = terms.elbo.new_zeros(())
            if model.regularizer is not None:
                information = model.regularizer(model.inputs(batch), terms.v, batch.groups, generator)
            results.append((batch_terms(terms, information), batch.n_rows))
        return results

    def _batches(self, groups: Tensor) -> Iterator[Tensor]:
        return whole_group_batches(self.sizes, self.settings.batch_size, permutation=groups)

    @torch.no_grad()
    def _is_finite(self) -> bool:
        """Whether all that the fit has learned is finite."""
        learned = nn.utils.parameters_to_vector([*self.parameters, *trainable(self.model.regularizer)])
        return bool(torch.isfinite(learned).all())

    def _return_to_last_epoch(self) -> None:
        """Undo what came after the last finite epoch, and say so."""
        self.model.load_state_dict(self.state)
        warnings.warn(
            f"fit diverged after {len(self.history)} of {self.max_epochs} epochs (the loss is not "
            "finite); the estimator keeps the last finite epoch. Use a smaller learning_rate than "
            f"{self.settings.learning_rate:g}, and look for extreme values in the table",
            UserWarning,
            stacklevel=5,
        )


def _model_parameters(model: TrainableModel) -> list[nn.Parameter]:
    """What the ELBO teaches: everything but the critic."""
    return [*trainable(model.group_encoder), *trainable(model.instance_encoder), *trainable(model.decoder)]


def _make_optimizer(
    model: TrainableModel, learning_rate: float, n_steps: int, is_incremental: bool
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    """Adam on a one-cycle schedule (Smith and Topin 2019), some parameters at rates of their own."""
    special = [(p, factor) for p, factor in model.decoder.rate_factors() if p.requires_grad]
    ids = {id(parameter) for parameter, _ in special}
    others = [p for p in _model_parameters(model) if id(p) not in ids]
    rates = [learning_rate] + [learning_rate * factor for _, factor in special]
    parameters: list[dict[str, list[nn.Parameter]]] = [{"params": others}]
    parameters += [{"params": [parameter]} for parameter, _ in special]
    # After a spike, Adam moves a parameter by up to rate / sqrt(1 - beta2): with the usual 0.999 one odd
    # batch threw the noise scale off by a factor of 400.
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.99), fused=True)
    if is_incremental and n_steps < _MIN_CYCLE:
        # The step after the last would be the one at a rate near zero.
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rates, total_steps=n_steps + 1, pct_start=0.0, div_factor=1.0
        )
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=n_steps)


def _copied_state(model: TrainableModel) -> dict[str, Any]:
    state = model.state_dict()
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}


def _mean_by_rows(results: list[tuple[Tensor, int]], regularizer_weight: float) -> dict[str, float]:
    """Average of the terms of batches, in nats per row, weighted by their rows."""
    n_rows = np.array([n for _, n in results], dtype=float)
    sums = torch.stack([terms for terms, _ in results]).double().cpu().numpy()
    reconstruction, kl_u, kl_v = (sums[:, :3] / n_rows[:, None]).T
    information = sums[:, 3]
    loss = kl_u + kl_v - reconstruction + regularizer_weight * information
    columns = (loss, reconstruction, kl_u, kl_v, information)
    return {
        name: float(np.average(column, weights=n_rows))
        for name, column in zip(HISTORY_TERMS, columns, strict=True)
    }
