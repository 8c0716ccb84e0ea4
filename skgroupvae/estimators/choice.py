"""Whether a network pays: the choice that both estimators make with ``decoder="auto"``."""

from __future__ import annotations

import math
from collections.abc import Callable

import joblib
import torch
from torch import Tensor

from skgroupvae.state import Choice

__all__ = ["choose_model"]

# With fewer groups nothing can be held out to ask whether a network pays.
_MIN_GROUPS = 6
# With so few groups each is held out once, in one of so many folds; else a share is.
_FEW_GROUPS, _FOLDS = 40, 4


def choose_model(
    gains_of: Callable[[Tensor, Tensor], Tensor], sizes: Tensor, seed: int, n_jobs: int | None
) -> Choice:
    """Choose between the linear mixed model and a network by groups held out.

    Parameters
    ----------
    gains_of : callable
        ``gains_of(learned, held_out)`` takes the positions of groups to learn from and of others, and returns
        the nats by which a network makes each of the others likelier than the linear model does. Where
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
        The network where it gains more than one standard error of the sum over groups. Half of the folds
        are enough where they say that it loses as much.
    """
    n_groups = len(sizes)
    if n_groups < _MIN_GROUPS:
        return Choice("linear", f"{n_groups} groups are too few to learn more from")
    folds = _folds(n_groups, seed)
    # In two halves: where the first says that a network clearly does not pay, the second is not asked.
    halves = [folds[: len(folds) // 2], folds[len(folds) // 2 :]] if len(folds) > 1 else [folds]
    gains, asked = torch.zeros(0, dtype=torch.float64), list[Tensor]()
    for half in halves:
        jobs = [joblib.delayed(gains_of)(learned, held_out) for learned, held_out in half]
        gains = torch.cat([gains, *joblib.Parallel(n_jobs=n_jobs)(jobs)])
        asked += [held_out for _, held_out in half]
        n_rows = int(sizes[torch.cat(asked)].sum())
        gain = float(gains.sum()) / n_rows
        error = float(gains.std()) * math.sqrt(len(gains)) / n_rows if len(gains) > 1 else math.inf
        if not gain > -error:
            break
    words = f"{gain:+.4f} nats per row of {len(gains)} held-out groups, standard error {error:.4f}"
    if math.isfinite(gain) and gain > error:
        return Choice("network", f"it pays: {words}", gain)
    return Choice("linear", f"a network does not pay: {words}", gain)


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
