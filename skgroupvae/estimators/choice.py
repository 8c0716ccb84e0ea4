"""Whether more than the linear mixed model pays: the choices that are made with ``decoder="auto"``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import joblib
import torch
from scipy import special
from torch import Tensor

from skgroupvae.state import Choice
from skgroupvae.training import is_worse

__all__ = ["MIN_GROUPS_OF_SCALES", "Trial", "choose_model", "choose_scales"]

# With fewer groups the standard error of a gain says little; a network has more to learn than scales.
_MIN_GROUPS, MIN_GROUPS_OF_SCALES = 20, 6
# With so few groups each is held out once, in one of so many folds; else a share is.
_FEW_GROUPS, _FOLDS = 40, 4
# Standard errors of the gain over groups that a network has to gain, where there are many.
_STANDARD_ERRORS = 2.0
# Nats that a group's gain by scales counts as at most: one of an unusual scale gains hundreds, and of ten
# groups that all gain the standard error would be about the sum. It can only speak against scales.
_MOST_NATS = 10.0
# Nats per row that scales have to gain: what is less may be where two searches for the same model ended.
_LEAST_NATS = 1e-3


@dataclass(frozen=True)
class Trial:
    """A model, a network in training say, against a simpler one, on groups held out.

    Attributes
    ----------
    gains : Tensor of shape (C, H)
        Nats by which it makes each of the H groups likelier, each time it was asked.
    n_steps : tuple of int or None, of length C
        Steps of training before each question; None where as many as there would be are fine.
    """

    gains: Tensor
    n_steps: tuple[int | None, ...]


@dataclass(frozen=True)
class _Verdict:
    """What the groups held out say.

    Attributes
    ----------
    gain : float
        Nats per row.
    bounded_gain, error : float
        Of gains that count up to a bound, and their standard error.
    n_groups : int
        How many were asked.
    n_steps : int or None
        Steps of training after which the gain is best.
    """

    gain: float
    bounded_gain: float
    error: float
    n_groups: int
    n_steps: int | None

    @property
    def pays(self) -> bool:
        # Of few groups the standard error is itself uncertain.
        n_errors = special.stdtrit(max(1, self.n_groups - 1), special.ndtr(_STANDARD_ERRORS))
        return bool(self.bounded_gain > n_errors * self.error)

    def __str__(self) -> str:
        text = f"{self.gain:+.4f} nats per row of {self.n_groups} held-out groups"
        if self.bounded_gain != self.gain:
            text += f"; of {_MOST_NATS:g} nats a group at most {self.bounded_gain:+.4f}"
        return f"{text}, standard error {self.error:.4f}"


def choose_scales(
    trial_of: Callable[[Tensor, Tensor], Trial], sizes: Tensor, seed: int, n_jobs: int | None
) -> Choice:
    """Choose between the linear and the location-scale mixed model by groups held out.

    Parameters
    ----------
    trial_of, sizes, seed, n_jobs
        As in :func:`choose_model`.

    Returns
    -------
    choice : Choice
        By the same rule, with a bound to what a group gains, and 0.001 nats per row at least. Up to 20 groups
        are held out one by one.
    """
    n_groups = len(sizes)
    if n_groups < MIN_GROUPS_OF_SCALES:
        return Choice("linear", f"{n_groups} groups are too few to learn more from")
    n_folds = n_groups if n_groups <= _MIN_GROUPS else _FOLDS
    verdict = _verdict(trial_of, [_folds(n_groups, seed, n_folds)], sizes, n_jobs, most=_MOST_NATS)
    if verdict.pays and verdict.gain > _LEAST_NATS:
        return Choice("location_scale", f"scales of groups pay: {verdict}", verdict.gain)
    return Choice("linear", f"scales of groups do not pay: {verdict}", verdict.gain)


def choose_model(
    trial_of: Callable[[Tensor, Tensor], Trial],
    sizes: Tensor,
    seed: int,
    n_jobs: int | None,
    simpler: Choice | None = None,
) -> Choice:
    """Choose between a mixed model and a network by groups held out.

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
    simpler : Choice, optional
        Of the mixed model that the network is on trial against; None is the linear one.

    Returns
    -------
    choice : Choice
        The network where it gains more than two standard errors of the sum over groups, after the number of
        steps that is best over all folds. Half of the folds are enough where they say that it loses.
    """
    n_groups = len(sizes)
    if n_groups < _MIN_GROUPS:
        if simpler is None:
            return Choice("linear", f"{n_groups} groups are too few to learn more from")
        if n_groups < MIN_GROUPS_OF_SCALES:
            return simpler
        reason = f"{simpler.reason}; {n_groups} groups are too few for a network"
        return Choice(simpler.model, reason, simpler.gain)
    folds = _folds(n_groups, seed, _FOLDS)
    # In two halves: where the first says that a network does not pay, the second is not asked.
    halves = [folds[: len(folds) // 2], folds[len(folds) // 2 :]] if len(folds) > 1 else [folds]
    verdict = _verdict(trial_of, halves, sizes, n_jobs)
    before = "" if simpler is None else f"{simpler.reason}; "
    model = "linear" if simpler is None else simpler.model
    if not math.isfinite(verdict.gain):
        return Choice(model, f"{before}a network does not pay: its training diverged", verdict.gain)
    if verdict.pays:
        what = "it pays" if simpler is None else "a network pays"
        return Choice("network", f"{before}{what}: {verdict}", verdict.gain, verdict.n_steps)
    return Choice(model, f"{before}a network does not pay: {verdict}", verdict.gain)


def _verdict(
    trial_of: Callable[[Tensor, Tensor], Trial],
    parts: list[list[tuple[Tensor, Tensor]]],
    sizes: Tensor,
    n_jobs: int | None,
    most: float = math.inf,
) -> _Verdict:
    """What the folds of one part after the other say, until one part says that there is no gain."""
    trials: list[Trial] = []
    asked: list[Tensor] = []
    for folds in parts:
        jobs = [joblib.delayed(trial_of)(learned, held_out) for learned, held_out in folds]
        trials += joblib.Parallel(n_jobs=n_jobs)(jobs)
        asked += [held_out for _, held_out in folds]
        gains, n_steps = _at_best(trials)
        n_rows = int(sizes[torch.cat(asked)].sum())
        gain, bounded = float(gains.sum()) / n_rows, gains.clamp(max=most)
        error = float(bounded.std()) * math.sqrt(len(gains)) / n_rows if len(gains) > 1 else math.inf
        if not gain > 0.0:
            break
    return _Verdict(gain, float(bounded.sum()) / n_rows, error, len(gains), n_steps)


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


def _folds(n_groups: int, seed: int, n_folds: int) -> list[tuple[Tensor, Tensor]]:
    """Groups to learn from and groups held out, of each fold."""
    shuffled = torch.randperm(n_groups, generator=torch.Generator().manual_seed(seed))
    folds = list(shuffled.tensor_split(n_folds))
    if n_groups > _FEW_GROUPS:
        folds = folds[:1]
    both = []
    for held_out in folds:
        is_learned = torch.ones(n_groups, dtype=torch.bool)
        is_learned[held_out] = False
        both.append((torch.nonzero(is_learned)[:, 0], held_out))
    return both
