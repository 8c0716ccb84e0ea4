"""Saving and loading of estimators: one file that holds data only, so that reading it runs no code.

It is a safetensors file: arrays are its tensors, and the string "skgroupvae" of its metadata is a JSON
document with all the rest. It holds the parameters of the constructor and the fitted state (``records.py``),
each for itself, so that a parameter that was changed after the fit changes nothing of what was learned.

An estimator has its state in `_state`; ``_keep(state)`` takes one on, with the learned attributes that
follow.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skgroupvae.data.checks import caller_level
from skgroupvae.devices import resolve_device
from skgroupvae.persistence.records import StateWriter, is_custom, read_data, read_state
from skgroupvae.versions import __version__

__all__ = ["load", "save"]

_Estimator = TypeVar("_Estimator")
# Of the metadata of the file.
_KEY = "skgroupvae"
_FORMAT = 1
# By format: makes its (document, tensors) those of the next one. In all formats the document has the fields
# format, version and sha256, and the digest covers the same.
_MIGRATIONS: Mapping[int, Callable[[dict, dict], tuple[dict, dict]]] = MappingProxyType({})


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


def _described(custom: Any) -> str:
    kind = next(
        (name for name, of in (("class", type), ("Module", nn.Module)) if isinstance(custom, of)), "function"
    )
    return f"a {kind} of yours ({getattr(custom, '__name__', type(custom).__name__)})"


def _check_custom(wanted: dict[str, str], given: dict[str, Any]) -> None:
    """Refuse to load without each parameter that the file leaves out, or with another one."""
    missing = [name for name in wanted if name not in given]
    if missing:
        what = " and ".join(f"{name} was {wanted[name]}" for name in missing)
        how = ", ".join(f"{name}=..." for name in missing)
        raise ValueError(f"{what}, which no file can hold; pass load(path, {how})")
    for name in given:
        if name not in wanted:
            raise ValueError(f"it leaves out no parameter {name}; call load(path) without {name}=")


def _available(device: Any) -> torch.device | None:
    """Device of the parameter `device`, or None where this machine does not have it."""
    try:
        resolved = resolve_device(device)
        torch.zeros((), device=resolved).item()
    except (ValueError, RuntimeError, AssertionError):
        return None
    return resolved


def _digest(document: dict[str, Any], tensors: dict[str, NDArray]) -> str:
    """SHA-256 of all that a file holds."""
    content = {name: value for name, value in document.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode())
    for name, array in sorted(tensors.items()):
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read(path: str) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """Document in today's format and tensors of a file that is whole."""
    with _safetensors().safe_open(path, framework="np") as file:
        text = (file.metadata() or {}).get(_KEY)
        if text is None:
            raise ValueError("it is a safetensors file, but not one of skgroupvae")
        document = json.loads(text)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if document["sha256"] != _digest(document, tensors):
        raise ValueError("it is damaged: its SHA-256 digest is not that of its content")
    written = f"it was written by skgroupvae {document['version']} in format {document['format']}"
    if document["format"] > _FORMAT:
        raise ValueError(f"{written}; this version reads up to {_FORMAT}; upgrade skgroupvae")
    for number in range(document["format"], _FORMAT):
        if number not in _MIGRATIONS:
            raise ValueError(f"{written}, which this version does not read; load it with that version")
        document, tensors = _MIGRATIONS[number](document, tensors)
    return document, tensors


@contextmanager
def _one_error(what: str) -> Iterator[None]:
    """Whatever is wrong with a file, or what a hostile one makes libraries do: one line of one kind."""
    try:
        yield
    except Exception as error:
        reason = str(error)
        if not isinstance(error, ValueError) or isinstance(error, (UnicodeError, json.JSONDecodeError)):
            reason = f"not a file of skgroupvae, or truncated or damaged ({type(error).__name__}: {error})"
        raise ValueError(f"{what}: {' '.join(reason.split())[:500]}") from error


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError('save and load need safetensors; pip install "skgroupvae[save]"') from error
    return safetensors
