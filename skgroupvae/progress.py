"""Progress bars for long fits, by tqdm where it is installed (extra ``progress``)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = ["Progress", "no_progress", "progress_bar"]

# Wraps the epochs of a fit; reads the records of those done from the history, which grows meanwhile.
Progress = Callable[[Iterable[int], Sequence[Mapping[str, float]]], Iterator[int]]

# A fit that is over sooner shows no bar.
_DELAY_SECONDS = 2.0
# What the bar shows of an epoch, where its record has it.
_SHOWN = {"loss": "loss", "validation_loss": "validation"}


def progress_bar(verbose: bool | str) -> Progress:
    """Bar with the epochs done, the time left and the loss; "auto" shows it only to somebody who is watching.

    Parameters
    ----------
    verbose : bool or "auto"
        True always shows a bar, False never; "auto" does in a terminal or a notebook once the fit has taken
        two seconds, if tqdm is installed.

    Returns
    -------
    progress : callable
        Called with the epochs and the history; yields the epochs.

    Raises
    ------
    ImportError
        If `verbose` is True and tqdm is not installed.
    """
    if verbose is False or (verbose == "auto" and not _is_interactive()):
        return no_progress
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if verbose == "auto":
            return no_progress
        raise ImportError(
            "verbose=True needs tqdm; install it with: pip install 'skgroupvae[progress]'"
        ) from None
    delay = _DELAY_SECONDS if verbose == "auto" else 0.0

    def bar(epochs: Iterable[int], history: Sequence[Mapping[str, float]]) -> Iterator[int]:
        with tqdm(epochs, desc="fit", unit="epoch", delay=delay) as shown:
            for epoch in shown:
                yield epoch
                # A refresh here would not wait for the delay; the next turn of the bar shows it.
                losses = {
                    text: f"{history[-1][name]:.3f}" for name, text in _SHOWN.items() if name in history[-1]
                }
                shown.set_postfix(losses, refresh=False)

    return bar


def no_progress(epochs: Iterable[int], history: Sequence[Mapping[str, float]]) -> Iterator[int]:
    """The epochs and no bar."""
    return iter(epochs)


def _is_interactive() -> bool:
    return "ipykernel" in sys.modules or sys.stderr.isatty()
