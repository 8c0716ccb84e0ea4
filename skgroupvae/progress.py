"""Progress bars for long fits, by tqdm where it is installed (extra ``progress``)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

__all__ = ["progress_bar"]

# A fit that is over sooner shows no bar.
_DELAY_SECONDS = 2.0


def progress_bar(verbose: bool | str) -> Callable[[Iterable[int]], Iterator[int]]:
    """Wrapper of the epochs of a fit; "auto" shows a bar only to somebody who is watching.

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
    if verbose is False or (verbose == "auto" and not _is_interactive()):
        return iter
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if verbose == "auto":
            return iter
        raise ImportError(
            "verbose=True needs tqdm; install it with: pip install 'skgroupvae[progress]'"
        ) from None
    delay = _DELAY_SECONDS if verbose == "auto" else 0.0
    return lambda epochs: iter(tqdm(epochs, desc="fit", unit="epoch", delay=delay))


def _is_interactive() -> bool:
    return "ipykernel" in sys.modules or sys.stderr.isatty()
