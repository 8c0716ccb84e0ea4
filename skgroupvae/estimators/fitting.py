"""What the fits of both estimators share: train a network, and judge where it ended."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from skgroupvae.batch import Batch
from skgroupvae.data.checks import caller_level
from skgroupvae.state import Choice
from skgroupvae.training import TrainingSettings

__all__ = ["COMPARISON_DRAWS", "Trained", "judged", "resume", "some_groups", "train_from_start"]

_Model = TypeVar("_Model", bound=nn.Module)
# Learning rates, as shares of the one asked for, of the first training and of the second that a bad end gets.
_RATES = (1.0, 0.3)
# Groups of the fit that are asked whether a network ended below its start, and nats per row that count:
# log-likelihoods by importance sampling with so many draws are exact to less.
_CHECKED_GROUPS, _LEAST_SHORTFALL = 256, 1e-3
COMPARISON_DRAWS = 64


@dataclass(frozen=True, eq=False)
class Trained(Generic[_Model]):
    """A trained network.

    Attributes
    ----------
    model : Module
    history : list of dict
        One record an epoch.
    shortfall : float
        Nats per row of the fit by which it ended below the mixed model that it started at.
    """

    model: _Model
    history: list[dict[str, float]]
    shortfall: float

    @property
    def fell_short(self) -> bool:
        return self.shortfall > _LEAST_SHORTFALL


def train_from_start(
    train: Callable[[TrainingSettings], Trained[_Model]], settings: TrainingSettings, *, may_retry: bool
) -> Trained[_Model]:
    """Train a network; where it ends below its start, once more by smaller steps, and keep the better one."""
    best: Trained[_Model] | None = None
    for factor in _RATES if may_retry else _RATES[:1]:
        trained = train(replace(settings, learning_rate=factor * settings.learning_rate))
        if best is None or trained.shortfall < best.shortfall:
            best = trained
        # Ctrl-C ends all training.
        if not trained.fell_short or len(trained.history) < settings.max_epochs:
            break
    assert best is not None
    return best


def judged(trained: Trained[_Model], choice: Choice, simpler: str = "linear") -> Choice:
    """The simpler model where a network chosen on held-out groups fell short; else only a warning."""
    if not trained.fell_short:
        return choice
    if choice.gain is not None:
        reason = f"the network ended {trained.shortfall:.4f} nats per row of the fit below it"
        return Choice(simpler, reason, choice.gain)
    warnings.warn(
        f"the network ended {trained.shortfall:.4f} nats per row of the fit below the mixed model that it "
        'started at; set decoder="auto" or "linear", a lower learning_rate or more max_epochs',
        ConvergenceWarning,
        stacklevel=caller_level(),
    )
    return choice


def some_groups(batch: Batch, n_groups: int = _CHECKED_GROUPS) -> Batch:
    """Groups of a fit to compare two models on: all, or so many at random, the same at every call."""
    if batch.groups.n_groups <= n_groups:
        return batch
    shuffled = torch.randperm(batch.groups.n_groups, generator=torch.Generator().manual_seed(0))
    return batch.take_groups(shuffled[:n_groups].sort().values)


def resume(fitted: _Model, fresh: _Model) -> _Model:
    """Copy of a fitted model, ready to learn on; `fresh` is what the parameters now ask for."""
    kinds = [[(name, type(part)) for name, part in model.named_modules()] for model in (fitted, fresh)]
    shapes = [[(name, x.shape) for name, x in model.state_dict().items()] for model in (fitted, fresh)]
    if kinds[0] != kinds[1] or shapes[0] != shapes[1]:
        raise ValueError(
            "the parameters that shape the networks have changed since the fit, so it cannot resume from "
            "there; fit a clone, or set warm_start=False"
        )
    model = copy.deepcopy(fitted).float().train()
    for parameter, like in zip(model.parameters(), fresh.parameters(), strict=True):
        parameter.requires_grad_(like.requires_grad)
    return model
