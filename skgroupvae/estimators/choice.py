"""Whether a network pays: the choice that both estimators make with ``decoder="auto"``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import joblib
import torch
from torch import Tensor

from skgroupvae.state import Choice
from skgroupvae.training import is_worse

__all__ = ["Trial", "choose_model"]

# With fewer groups the standard error of a gain says little.
_MIN_GROUPS = 20
# With so few groups each is held out once, in one of so many folds; else a share is.
_FEW_GROUPS, _FOLDS = 40, 4
# Standard errors of the gain over groups that a network has to gain.
_STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Trial:
    """A network in training against the linear mixed model, on groups held out.

    Attributes
    ----------
    gains : Tensor of shape (C, H)
        Nats by which it makes each of the H groups likelier, each time it was asked.
    n_steps : tuple of int or None, of length C
        Steps of training before each question; None where as many as there would be are fine.
    """

    gains: Tensor
    n_steps: tuple[int | None, ...]


def choose_model(
    trial_of: Callable[[Tensor, Tensor], Trial], sizes: Tensor, seed: int, n_jobs: int | None
) -> Choice:
    """Choose between the linear mixed model and a network by groups held out.

    Parameters
    ----------
    trial_of : callable
        ``trial_of(learned, held_out)`` takes the positions of groups to learn from and of others. Where
        `n_jobs` asks for processes it has to be picklable.
    sizes : Tensor of shape (G,)
        Rows of each group.
    seed : int
        Of the folds.
    n_jobs : int or None
        Folds at the same time.

    Returns
    -------
    choice : Choice
        The network where it gains more than two standard errors of the sum over groups, after the number of
        steps that is best over all folds. Half of the folds are enough where they say that it loses.
    """
    n_groups = len(sizes)
    if n_groups < _MIN_GROUPS:
        return Choice("linear", f"{n_groups} groups are too few to learn more from")
    folds = _folds(n_groups, seed)
    # In two halves: where the first says that a network does not pay, the second is not asked.
    halves = [folds[: len(folds) // 2], folds[len(folds) // 2 :]] if len(folds) > 1 else [folds]
    trials: list[Trial] = []
    for half in halves:
        jobs = [joblib.delayed(trial_of)(learned, held_out) for learned, held_out in half]
        trials += joblib.Parallel(n_jobs=n_jobs)(jobs)
        asked = torch.cat([held_out for _, held_out in folds[: len(trials)]])
        gains, n_steps = _at_best(trials)
        n_rows = int(sizes[asked].sum())
        gain = float(gains.sum()) / n_rows
        error = float(gains.std()) * math.sqrt(len(gains)) / n_rows if len(gains) > 1 else math.inf
        if not gain > 0.0:
            break
    if not math.isfinite(gain):
        return Choice("linear", "a network does not pay: its training diverged", gain)
    words = f"{gain:+.4f} nats per row of {len(gains)} held-out groups, standard error {error:.4f}"
    if gain > _STANDARD_ERRORS * error:
        return Choice("network", f"it pays: {words}", gain, n_steps)
    return Choice("linear", f"a network does not pay: {words}", gain)


def _at_best(trials: list[Trial]) -> tuple[Tensor, int | None]:
    """Gain of each group after the number of steps that is best over all trials, and that number.

    Of answers that a standard error does not tell apart the last one.
    """
    n_asked = min(len(trial.n_steps) for trial in trials)
    gains = torch.cat([trial.gains[:n_asked] for trial in trials], dim=1).nan_to_num(-math.inf)
    best = gains[int(gains.sum(1).argmax())]
    last = max((n for n in range(n_asked) if not is_worse(gains[n], best)), default=n_asked - 1)
    n_steps = [trial.n_steps[last] for trial in trials]
    return gains[last], None if None in n_steps else n_steps[0]


def _folds(n_groups: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Groups to learn from and groups held out, of each fold."""
    shuffled = torch.randperm(n_groups, generator=torch.Generator().manual_seed(seed))
    folds = list(shuffled.tensor_split(_FOLDS))
    if n_groups > _FEW_GROUPS:
        folds = folds[:1]
    both = []
    for held_out in folds:
        is_learned = torch.ones(n_groups, dtype=torch.bool)
        is_learned[held_out] = False
        both.append((torch.nonzero(is_learned)[:, 0], held_out))
    return both
