"""Saving and loading of estimators: one file that holds data only, so that reading it runs no code.

It is a safetensors file: arrays are its tensors, and the string "skgroupvae" of its metadata is a JSON
document with all the rest. It holds the parameters of the constructor and the fitted state (``encoding.py``),
each for itself, so that a parameter that was changed after the fit changes nothing of what was learned.

An estimator has its state in `_state`; ``_keep(state)`` takes one on, with the learned attributes that
follow.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skgroupvae.data.checks import caller_level
from skgroupvae.encoding import StateWriter, is_custom, read_data, read_state
from skgroupvae.persistence import (
    _FORMAT,
    _KEY,
    _available,
    _check_custom,
    _described,
    _digest,
    _one_error,
    _read,
    _safetensors,
)
from skgroupvae.versions import __version__

__all__ = ["load", "save"]

_Estimator = TypeVar("_Estimator")


def save(estimator: Any, path: str | os.PathLike[str]) -> None:
    """Save a fitted estimator to one file, which :func:`load` reads without running any code in it.

    An older file of that name is replaced once the new one is complete and was read back, and its mode is
    kept; if anything fails, it stays as it was.

    Parameters
    ----------
    estimator : estimator
        With its fitted state in `_state`.
    path : str or path-like
        The file to write.

    Raises
    ------
    NotFittedError
        If the estimator is not fitted.
    TypeError
        If a parameter or label is of a kind that data alone cannot tell.
    ValueError
        If the path is that of a pipe or a device, or the file could not be loaded again.

    Warns
    -----
    UserWarning
        If a function, class or Module of the user's took the place of another one after the fit: the file
        asks for that of the fit.
    """
    check_is_fitted(estimator, "_state")
    name = os.fsdecode(path)
    target = os.path.realpath(name)
    mode = _mode(target, f"cannot save {name!r}")
    to_bytes = _safetensors().numpy.save
    document, tensors, custom = _to_document(estimator)
    document["sha256"] = _digest(document, tensors)
    content = to_bytes(tensors, metadata={_KEY: json.dumps(document, allow_nan=False)})
    scratch = os.path.join(os.path.dirname(target), f".skgroupvae-{secrets.token_hex(8)}.tmp")

    def private(file: str, flags: int) -> int:
        return os.open(file, flags, 0o600)

    try:
        # What will replace a file that others cannot read is never theirs to read; a new file has the mode
        # that any new file has.
        with open(scratch, "xb", opener=None if mode is None else private) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with _one_error(f"cannot save {name!r}, as it could not be loaded"):
            _from_document(type(estimator), *_read(scratch), "cpu", custom)
        if mode is not None:
            os.chmod(scratch, mode)
        os.replace(scratch, target)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(scratch)


def load(
    cls: type[_Estimator],
    path: str | os.PathLike[str],
    device: str | torch.device | None = None,
    custom: Mapping[str, Any] | None = None,
) -> _Estimator:
    """Load an estimator that :func:`save` wrote; nothing in the file is run, whoever wrote it.

    Parameters
    ----------
    cls : type
        Class of the estimator.
    path : str or path-like
        The file.
    device : {"auto", "cpu", "cuda"}, torch.device or None
        The new value of the parameter `device`. None keeps the saved one, or takes the CPU with a warning
        where this machine does not have it.
    custom : mapping, optional
        Parameters that no file can hold (formulas, Modules and factories of the user's).

    Returns
    -------
    estimator : instance of `cls`
        Equal to the one saved, to the last bit.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is not a file of :func:`save`, is damaged, holds another class or a newer format, or if `custom`
        has not exactly the parameters that it leaves out.
    """
    name = os.fsdecode(path)
    _safetensors()
    _mode(name, f"cannot load {name!r}")  # a pipe would be waited for
    with open(name, "rb"):
        pass  # for Python's own error if it is missing or not to be read
    with _one_error(f"cannot load {name!r}"):
        estimator, missed = _from_document(cls, *_read(name), device, dict(custom or {}))
    if missed is not None:
        warnings.warn(
            f"{name!r} was saved with device={missed!r}, which is not available on this machine; the "
            "estimator is on the CPU and its device is now 'cpu'",
            UserWarning,
            stacklevel=caller_level(),
        )
    return estimator


def _mode(path: str, what: str) -> int | None:
    """Permissions of a file, None where there is none yet; refuses what is no file."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise ValueError(f"{what}: it is a pipe or a device; name a file")
    return stat.S_IMODE(mode)


def _to_document(estimator: Any) -> tuple[dict[str, Any], dict[str, NDArray], dict[str, Any]]:
    """The estimator as JSON and tensors, and the parameters that only the caller of `load` has."""
    write, parameters = StateWriter({}), estimator.get_params(deep=False)
    state = write(estimator._state, "state")
    set_later = {name: value for name, value in parameters.items() if is_custom(value)}
    for name in sorted(write.custom.keys() & set_later.keys()):
        if write.custom[name] is not set_later[name]:
            warnings.warn(
                f"{name} was changed after the fit, and load takes only one: pass that of the fit, "
                f"{_described(write.custom[name])}, and then the other one to set_params({name}=...)",
                UserWarning,
                stacklevel=caller_level(),
            )
    custom = set_later | write.custom
    document = {
        "format": _FORMAT,
        "version": __version__,
        "class": type(estimator).__name__,
        "parameters": {k: write(value, k) for k, value in parameters.items() if k not in set_later},
        "custom": {k: _described(custom[k]) for k in sorted(custom)},
        "output": _output(estimator),
        "state": state,
    }
    return document, write.tensors, custom


def _output(estimator: Any) -> str | None:
    """Container of codes that `set_output` chose."""
    return vars(estimator).get("_sklearn_output_config", {}).get("transform")


def _from_document(
    cls: Any, document: dict[str, Any], tensors: dict[str, NDArray], device: Any, custom: dict[str, Any]
) -> tuple[Any, Any]:
    """The estimator, and the device that was saved if this machine does not have it, else None."""
    if document["class"] != cls.__name__:
        raise ValueError(f"it holds a {document['class']}; use {document['class']}.load")
    _check_custom(document["custom"], custom)
    saved = {name: read_data(encoded, tensors) for name, encoded in document["parameters"].items()}
    newer = sorted(saved.keys() - set(cls._get_param_names()))
    if newer:
        raise ValueError(
            f"skgroupvae {document['version']} wrote it with the parameters {newer}, which this version does "
            "not have; upgrade skgroupvae"
        )
    estimator = cls(**saved, **{name: value for name, value in custom.items() if name not in saved})
    wanted = estimator.device if device is None else device
    available = _available(wanted)
    if available is None and device is not None:
        raise ValueError(f"device={device!r} is not available on this machine; use 'auto' or 'cpu'")
    estimator.device = "cpu" if available is None else wanted
    estimator._validate_params()
    if document["output"] is not None:
        estimator.set_output(transform=document["output"])
    state = read_state(document["state"], tensors, custom)
    state.model.to(available or "cpu")
    estimator._keep(state)
    return estimator, wanted if available is None else None
