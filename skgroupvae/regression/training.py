"""The one training loop of the package.

Each step improves the encoders by the ELBO, the decoder by an importance-weighted bound, and the critic of
the regulariser, in turn.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skgroupvae.groups import GroupIndex, Segments, iter_group_batches
from skgroupvae.network import ElboTerms, TrainableNetwork
from skgroupvae.progress import Progress, no_progress

__all__ = ["HISTORY_TERMS", "TrainingSettings", "fit_network", "history_table", "resolve_schedule"]

# What history keeps of an epoch, in nats per row.
HISTORY_TERMS = ("loss", "reconstruction", "kl_u", "kl_v", "mutual_information")
# Enough for 65 groups as for 32,768 (examples/benchmark_exam_scores.py); what "auto" aims at.
_AUTO_STEPS = 1250
# The regulariser compares groups of one batch.
_AUTO_MIN_BATCH, _AUTO_MAX_BATCH = 8, 256
_AUTO_BATCHES_PER_EPOCH = 8
_CRITIC_RATE = 2e-3
# Rows of a batch that the critic sees: its cost is per row, and it needs whole groups.
_CRITIC_ROWS = 1024
_MIN_DECODER_GROUPS = 16
_MAX_GRADIENT_NORM = 1.0
# Steps below which an incremental fit does without a warm-up.
_MIN_CYCLE = 8


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
    """Epochs and groups a batch, with "auto" replaced by a choice that depends on the number of groups."""
    if batch_size == "auto":
        smallest = min(_AUTO_MIN_BATCH, n_groups)
        batch_size = int(np.clip(n_groups // _AUTO_BATCHES_PER_EPOCH, smallest, _AUTO_MAX_BATCH))
    if max_epochs == "auto":
        steps_per_epoch = -(-n_groups // int(batch_size))
        max_epochs = max(1, round((auto_steps or _AUTO_STEPS) / steps_per_epoch))
    return int(max_epochs), int(batch_size)


def fit_network(
    network: TrainableNetwork,
    x: Tensor,
    index: GroupIndex,
    settings: TrainingSettings,
    *,
    train_groups: NDArray[np.intp],
    validation_groups: NDArray[np.intp],
    generator: torch.Generator,
    progress: Progress = no_progress,
) -> list[dict[str, float]]:
    """Fit the network in place.

    Parameters
    ----------
    network : TrainableNetwork
        Changed in place; with early stopping it ends at the weights of its best epoch.
    x : Tensor of shape (N, D)
        Standardised rows.
    index : GroupIndex
        The groups of the rows.
    settings : TrainingSettings
        Epochs, rates and stopping rule.
    train_groups, validation_groups : ndarray of int
        Positions of the groups to learn from and of those held out whole (may be empty).
    generator : torch.Generator
        Source of every draw.
    progress : callable
        Wraps the range of epochs in a progress bar, which reads the history; see ``progress.progress_bar``.

    Returns
    -------
    history : list of dict
        One record an epoch, in nats per row: see ``GroupVAE.history_``.
    """
    trainer = _Trainer(network, x, index, settings, train_groups, validation_groups, generator)
    try:
        for _ in progress(range(settings.max_epochs), trainer.history):
            trainer.run_epoch()
            if trainer.should_stop():
                break
    except KeyboardInterrupt:
        warnings.warn(
            f"fit was interrupted after {len(trainer.history)} of {settings.max_epochs} epochs; the "
            "estimator keeps what it learned so far",
            UserWarning,
            stacklevel=2,
        )
    trainer.restore_best()
    return trainer.history


def history_table(history: list[dict[str, float]], n_before: int = 0) -> pd.DataFrame:
    """History by epoch, counted from the `n_before` epochs of earlier fits."""
    epochs = pd.RangeIndex(n_before + 1, n_before + len(history) + 1, name="epoch")
    return pd.DataFrame(history, index=epochs, columns=None if history else list(HISTORY_TERMS))


class _Trainer:
    """State of one fit: optimisers, schedule, history and best weights."""

    def __init__(
        self,
        network: TrainableNetwork,
        x: Tensor,
        index: GroupIndex,
        settings: TrainingSettings,
        train_groups: NDArray[np.intp],
        validation_groups: NDArray[np.intp],
        generator: torch.Generator,
    ) -> None:
        self.network, self.x, self.index, self.settings = network, x, index, settings
        self.train_groups, self.validation_groups = train_groups, validation_groups
        self.generator = generator
        self.history: list[dict[str, float]] = []
        self.best_loss, self.best_epoch = np.inf, 0
        self.best_state: dict[str, Tensor] | None = None
        self.parameters = _model_parameters(network)
        self.decoder_parameters = [p for p in network.decoder.parameters() if p.requires_grad]
        self.encoder_parameters = [p for p in network.group_encoder.parameters() if p.requires_grad]
        n_batches = sum(1 for _ in self._batches(train_groups))
        self.optimizer, self.schedule = _make_optimizer(
            network, settings.learning_rate, max(1, settings.max_epochs * n_batches), settings.is_incremental
        )
        if network.regularizer is not None:
            self.critic_optimizer = torch.optim.Adam(
                network.regularizer.parameters(), lr=_CRITIC_RATE, fused=True
            )

    def run_epoch(self) -> None:
        """One pass over the training groups, then one over the held-out groups."""
        order = torch.randperm(len(self.train_groups), generator=self.generator).numpy()
        record = _mean_by_rows([self._step(batch) for batch in self._batches(self.train_groups[order])])
        if len(self.validation_groups):
            held_out = self._validate()
            record |= {f"validation_{name}": value for name, value in held_out.items()}
        self.history.append(record)

    def should_stop(self) -> bool:
        """Remember the best epoch by held-out ELBO; True when it is too long ago."""
        if not self.settings.early_stopping:
            return False
        last = self.history[-1]
        # The ELBO alone: the regulariser's bound moves with its critic, and can fall while the model worsens.
        loss = last["validation_kl_u"] + last["validation_kl_v"] - last["validation_reconstruction"]
        if loss < self.best_loss - self.settings.tol:
            self.best_loss, self.best_epoch = loss, len(self.history)
            self.best_state = copy.deepcopy(self.network.state_dict())
        return len(self.history) - self.best_epoch >= self.settings.n_iter_no_change

    def restore_best(self) -> None:
        if self.best_state is not None:
            self.network.load_state_dict(self.best_state)

    def _batches(self, groups: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
        return iter_group_batches(self.index.sizes, self.settings.batch_size, permutation=groups)

    def _rows(self, groups: NDArray[np.intp]) -> tuple[Tensor, Segments]:
        rows, segments = self.index.rows_of(groups)
        device = self.x.device
        return self.x[torch.from_numpy(rows).to(device)], segments.to(device)

    def _step(self, batch: NDArray[np.intp]) -> dict[str, float]:
        """One batch: the critic's turn, then encoders and decoder; returns the record of the batch."""
        x, segments = self._rows(batch)
        terms = self.network.elbo(x, segments, self.generator)
        loss = -terms.elbo.sum() / x.shape[0]
        information = penalty = x.new_zeros(())
        if self.network.regularizer is not None:
            information, penalty = self._regularize(x, terms.v, segments)
        self.optimizer.zero_grad()
        (loss + self.settings.regularizer_weight * penalty + self.network.decoder.penalty()).backward()
        self._teach_encoder(x, segments)
        if self.settings.n_decoder_samples > 1 and self.decoder_parameters:
            self._correct_decoder_gradient(batch)
        nn.utils.clip_grad_norm_(self.parameters, _MAX_GRADIENT_NORM)
        self.optimizer.step()
        # Where rows bound the batches their number varies by a few with the order of the groups.
        if self.schedule.last_epoch < self.schedule.total_steps - 1:
            self.schedule.step()
        return _record(terms, information, x.shape[0], self.settings.regularizer_weight)

    def _regularize(self, x: Tensor, v: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        """The critic's turn; returns its bound and the penalty whose gradient is that of the bound for v.

        One backward pass serves both sides: the model follows the critic of the step before, and the critic
        then follows the model.
        """
        regularizer = self.network.regularizer
        assert regularizer is not None
        codes = v.detach().requires_grad_()
        bound = regularizer(*_first_groups(x, codes, segments, _CRITIC_ROWS), self.generator)
        if not bound.requires_grad:
            return bound, bound
        self.critic_optimizer.zero_grad()
        (-bound).backward()
        self.critic_optimizer.step()
        assert codes.grad is not None
        return bound.detach(), -(codes.grad * v).sum()

    def _teach_encoder(self, x: Tensor, segments: Segments) -> None:
        """Add the gradient of what only the group encoder follows."""
        if not self.encoder_parameters:
            return
        bound = self.network.encoder_elbo(x, segments, self.generator)
        if bound is not None:
            (-bound.sum() / x.shape[0]).backward(inputs=self.encoder_parameters)

    def _correct_decoder_gradient(self, batch: NDArray[np.intp]) -> None:
        """Turn the decoder's gradient of the ELBO into that of the importance-weighted bound.

        The ELBO of a normal q(u) prefers parameters under which the posterior is more nearly normal: on the
        exam scores it puts the noise 14 % too high. The gradient of the importance-weighted bound (Burda et
        al. 2016; the wake phase of Bornschein and Bengio 2015) tends to that of the likelihood itself.
        """
        n_samples = self.settings.n_decoder_samples
        x, segments = self._rows(batch[: max(_MIN_DECODER_GROUPS, len(batch) // (2 * n_samples))])
        correction = self.network.importance_correction(x, segments, n_samples, self.generator)
        (-correction.sum() / x.shape[0]).backward()

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Held-out record; the same draws at every epoch, so that epochs can be compared."""
        generator = torch.Generator().manual_seed(0)
        records = []
        for batch in self._batches(self.validation_groups):
            x, segments = self._rows(batch)
            terms = self.network.elbo(x, segments, generator)
            information = x.new_zeros(())
            if self.network.regularizer is not None:
                information = self.network.regularizer(x, terms.v, segments, generator)
            records.append(_record(terms, information, x.shape[0], self.settings.regularizer_weight))
        return _mean_by_rows(records)


def _model_parameters(network: TrainableNetwork) -> list[nn.Parameter]:
    """What the ELBO teaches: everything but the critic."""
    parts = (network.group_encoder, network.instance_encoder, network.decoder)
    return [p for part in parts for p in part.parameters() if p.requires_grad]


def _make_optimizer(
    network: TrainableNetwork, learning_rate: float, n_steps: int, is_incremental: bool
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    """Adam on a one-cycle schedule (Smith and Topin 2019), some parameters at rates of their own."""
    special = [(p, factor) for p, factor in network.decoder.rate_factors() if p.requires_grad]
    ids = {id(parameter) for parameter, _ in special}
    others = [p for p in _model_parameters(network) if id(p) not in ids]
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


def _first_groups(x: Tensor, v: Tensor, segments: Segments, n_rows: int) -> tuple[Tensor, Tensor, Segments]:
    """The first groups of a batch, whose rows stand by group, up to `n_rows` rows or two groups."""
    ends = segments.sizes.cumsum(0)
    n_groups = max(2, int(torch.searchsorted(ends, n_rows, right=True)))
    if segments.n_groups <= n_groups:
        return x, v, segments
    stop = int(ends[n_groups - 1])
    return x[:stop], v[:stop], Segments(segments.codes[:stop], segments.sizes[:n_groups])


def _record(terms: ElboTerms, information: Tensor, n_rows: int, weight: float) -> dict[str, float]:
    """What history keeps of one batch, in nats per row, with the number of rows to average by."""
    reconstruction, kl_u, kl_v = (
        float(part.detach().sum()) / n_rows for part in (terms.reconstruction, terms.kl_u, terms.kl_v)
    )
    bound = float(information.detach())
    loss = kl_u + kl_v - reconstruction + weight * bound
    record = dict(zip(HISTORY_TERMS, (loss, reconstruction, kl_u, kl_v, bound), strict=True))
    return record | {"n_rows": n_rows}


def _mean_by_rows(records: list[dict[str, float]]) -> dict[str, float]:
    """Average of batch records, weighted by their rows."""
    weights = np.array([record.pop("n_rows") for record in records], dtype=float)
    return {name: float(np.average([r[name] for r in records], weights=weights)) for name in records[0]}
