"""What happens between the epochs of a fit: history, early stopping, the progress bar and Ctrl-C."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from skgroupvae.training.objectives import TrainableModel

__all__ = [
    "Callback",
    "EarlyStopping",
    "History",
    "Interrupt",
    "Progress",
    "RunningFit",
    "Trials",
    "is_worse",
]

# A fit that is over sooner shows no bar.
_DELAY_SECONDS = 2.0
# Of a trial on held-out groups: questions that it is given to gain; it ends as clear where so many groups or
# more gain so many standard errors.
_PATIENCE, _CLEAR_GROUPS, _CLEAR = 4, 12, 5.0
# How many times as seldom it is asked once it is far above its start.
_RARELY = 5
# What the bar shows of an epoch, where its record has it.
_SHOWN = {"loss": "loss", "validation_loss": "validation"}


class RunningFit(Protocol):
    """What callbacks may read of the loop.

    Attributes
    ----------
    model : TrainableModel
    max_epochs : int
    history : list of dict
        Records of the epochs done.
    state : dict
        Copy of the model's state after the last of these, or at the start.
    """

    model: TrainableModel
    max_epochs: int
    history: list[dict[str, float]]
    state: dict[str, Any]


class Callback:
    """Base class: hooks that do nothing."""

    def on_start(self, loop: RunningFit) -> None:
        """Before the first epoch."""

    def on_epoch_end(self, loop: RunningFit, record: dict[str, float]) -> None:
        """After each epoch, with its record in nats per row."""

    def should_stop(self) -> bool:
        """Whether to end the fit; asked after `on_epoch_end` of all callbacks."""
        return False

    def on_interrupt(self, loop: RunningFit) -> bool:
        """Whether a Ctrl-C is dealt with, so that the fit ends as if it were done; if not, it is raised."""
        return False

    def on_end(self, loop: RunningFit) -> None:
        """After the last epoch, also when the fit fails."""


class History(Callback):
    """Keeps the records.

    Attributes
    ----------
    records : list of dict
        One an epoch.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def on_epoch_end(self, loop: RunningFit, record: dict[str, float]) -> None:
        self.records.append(record)


class EarlyStopping(Callback):
    """Ends the fit once the ELBO of held-out groups is no longer improving, at the weights of its best epoch.

    Parameters
    ----------
    n_iter_no_change : int
        Epochs without improvement after which the fit ends.
    tol : float
        What counts as an improvement, in nats per row.
    """

    def __init__(self, n_iter_no_change: int, tol: float = 0.0) -> None:
        self.n_iter_no_change, self.tol = n_iter_no_change, tol
        self.best_loss, self.n_since_best = float("inf"), 0
        self.best_state: dict[str, Any] | None = None

    def on_epoch_end(self, loop: RunningFit, record: dict[str, float]) -> None:
        # The ELBO alone: the regularizer's bound moves with its critic, and can fall while the model worsens.
        loss = record["validation_kl_u"] + record["validation_kl_v"] - record["validation_reconstruction"]
        self.n_since_best += 1
        if loss < self.best_loss - self.tol:
            self.best_state = loop.state
            self.best_loss, self.n_since_best = loss, 0

    def should_stop(self) -> bool:
        return self.n_since_best >= self.n_iter_no_change

    def on_end(self, loop: RunningFit) -> None:
        if self.best_state is not None:
            loop.model.load_state_dict(self.best_state)


class Trials(Callback):
    """Asks now and then how much a fit gains on held-out groups, and ends it where the answer is clear.

    Parameters
    ----------
    ask : callable
        ``ask()`` gives the gain of each held-out group (H,) by the model as it is.
    n_epochs : int
        Epochs from one question to the next.

    Attributes
    ----------
    start : Tensor of shape (H,)
        Gains before the first step.
    answers : list of Tensor of shape (H,)
    epochs : list of int
        Epochs done before each.
    is_clear : bool
        Whether it ended because it gains clearly.
    """

    def __init__(self, ask: Callable[[], Tensor], n_epochs: int) -> None:
        self.ask, self.n_epochs = ask, n_epochs
        self.answers: list[Tensor] = []
        self.epochs: list[int] = []
        self.is_clear = False
        self.start: Tensor | None = None
        self._n_done = 0
        self._has_risen = False

    def on_start(self, loop: RunningFit) -> None:
        self.start = self.ask()

    def on_epoch_end(self, loop: RunningFit, record: dict[str, float]) -> None:
        self._n_done += 1
        n_between = self.n_epochs * (_RARELY if self._has_risen else 1)
        if self._n_done % n_between == 0 or self._n_done == loop.max_epochs:
            self.answers.append(self.ask())
            self.epochs.append(self._n_done)

    def should_stop(self) -> bool:
        n_asked = len(self.answers)
        if n_asked <= _PATIENCE:
            return False
        best = max(self.answers, key=lambda answer: float(answer.sum()))
        assert self.start is not None
        # A fit that starts below what it is compared with may be on its way up.
        n_errors = 1.0 if n_asked > 2 * _PATIENCE else 0.0
        if not any(float(gain.sum()) > n_errors * _error(gain) for gain in (best, best - self.start)):
            return True
        self.is_clear = len(best) >= _CLEAR_GROUPS and float(self.answers[-1].sum()) > _CLEAR * _error(best)
        # Far above its start it learns, and what it loses for a while at the peak of the rate is no verdict.
        risen = best - self.start
        self._has_risen = len(best) >= _CLEAR_GROUPS and float(risen.sum()) > _CLEAR * _error(risen)
        return self.is_clear or (
            not self._has_risen and all(is_worse(answer, best) for answer in self.answers[-_PATIENCE:])
        )


def is_worse(answer: Tensor, best: Tensor) -> bool:
    """Whether gains by group (H,) are below others in sum, by more than one standard error."""
    return not float((best - answer).sum()) <= _error(best - answer)


def _error(values: Tensor) -> float:
    """Standard error of a sum over groups."""
    return float(values.std()) * math.sqrt(len(values)) if len(values) > 1 else math.inf


class Interrupt(Callback):
    """Lets Ctrl-C end a fit early, with a warning; the model keeps what it learned so far.

    A second Ctrl-C, while the first one is dealt with, is raised as usual.
    """

    def on_interrupt(self, loop: RunningFit) -> bool:
        warnings.warn(
            f"fit was interrupted after {len(loop.history)} of {loop.max_epochs} epochs; the "
            "estimator keeps what it learned so far",
            UserWarning,
            stacklevel=5,
        )
        return True


class Progress(Callback):
    """Bar with the epochs done, the time left and the loss, by tqdm (extra ``progress``).

    Parameters
    ----------
    verbose : bool or "auto"
        True always shows a bar, False never; "auto" does in a terminal or a notebook once the fit has taken
        two seconds, if tqdm is installed.

    Raises
    ------
    ImportError
        If `verbose` is True and tqdm is not installed.
    """

    def __init__(self, verbose: bool | str = "auto") -> None:
        self._delay = _DELAY_SECONDS if verbose == "auto" else 0.0
        self._tqdm: Any = None
        self._bar: Any = None
        if verbose is False or (verbose == "auto" and not _is_interactive()):
            return
        try:
            from tqdm.auto import tqdm
        except ImportError:
            if verbose == "auto":
                return
            raise ImportError(
                "verbose=True needs tqdm; install it with: pip install 'skgroupvae[progress]'"
            ) from None
        self._tqdm = tqdm

    def on_start(self, loop: RunningFit) -> None:
        if self._tqdm is not None:
            self._bar = self._tqdm(total=loop.max_epochs, desc="fit", unit="epoch", delay=self._delay)

    def on_epoch_end(self, loop: RunningFit, record: dict[str, float]) -> None:
        if self._bar is not None:
            losses = {text: f"{record[name]:.3f}" for name, text in _SHOWN.items() if name in record}
            # A refresh here would not wait for the delay; the update does.
            self._bar.set_postfix(losses, refresh=False)
            self._bar.update()

    def on_end(self, loop: RunningFit) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _is_interactive() -> bool:
    return "ipykernel" in sys.modules or sys.stderr.isatty()
