"""Saving and loading of fitted estimators: one file that holds data only, so that reading it runs no code.

It is a safetensors file: arrays are its tensors, and the string "skgroupvae" of its metadata is a JSON
document with all the rest (``values.py``).
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any, Self

import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.overrides import TorchFunctionMode

from skgroupvae.validation import resolve_device
from skgroupvae.values import Writer, kind_of, read_value
from skgroupvae.versions import __version__

__all__ = ["PersistenceMixin"]

_KEY = "skgroupvae"
_FORMAT = 1
# By format: makes its (document, tensors) those of the next one. In all formats the document has the fields
# format, version and sha256, and the digest covers the same.
_MIGRATIONS: Mapping[int, Callable[[dict, dict], tuple[dict, dict]]] = MappingProxyType({})
# Numbers that building a network may touch, besides a few times those that the file holds.
_SPARE_NUMBERS = 2**26


class PersistenceMixin:
    """`save` and `load` for an estimator whose fitted state is its attributes.

    The estimator has its network in `network_` and a method ``_empty_network(generator)`` that gives an
    untrained one of the same shape from the parameters and the other fitted attributes. An estimator with a
    state that attributes do not tell extends `_get_state` and `_set_state`.
    """

    network_: Any
    device: Any
    get_params: Callable[..., dict[str, Any]]
    _empty_network: Callable[[torch.Generator], nn.Module]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the fitted estimator to one file, which `load` reads without running any code in it.

        Needs safetensors: ``pip install "skgroupvae[save]"``. An older file of that name is replaced once
        the new one is complete and was read back; if anything fails, it stays as it was.

        Parameters
        ----------
        path : str or path-like
            The file to write; the usual ending is ``.safetensors``.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If a parameter, label or attribute is of a kind that data alone cannot tell.
        ValueError
            If parameters were changed after the fit and no longer describe the network.

        Examples
        --------
        >>> import os, tempfile
        >>> from skgroupvae import GroupVAE
        >>> X, schools = [[1.0], [2.0], [4.0], [5.0]], ["a", "a", "b", "b"]
        >>> model = GroupVAE(max_epochs=2, random_state=0).fit(X, groups=schools)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(os.path.join(folder, "exam.safetensors"))
        ...     loaded = GroupVAE.load(os.path.join(folder, "exam.safetensors"))
        >>> loaded.score(X, groups=schools) == model.score(X, groups=schools)
        True
        """
        check_is_fitted(self)
        to_bytes = _safetensors().numpy.save
        document, tensors, custom = self._to_document()
        document["sha256"] = _digest(document, tensors)
        content = to_bytes(tensors, metadata={_KEY: json.dumps(document, allow_nan=False)})
        target = os.path.realpath(os.fsdecode(path))
        scratch = os.path.join(os.path.dirname(target), f".skgroupvae-{secrets.token_hex(8)}.tmp")
        try:
            with open(scratch, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            with _one_error(f"cannot save {os.fsdecode(path)!r}, as it could not be loaded"):
                self._from_document(*_read(scratch), "cpu", custom)
            os.replace(scratch, target)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(scratch)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, device: str | torch.device | None = None, **custom: Any
    ) -> Self:
        """Load an estimator that `save` wrote; nothing in the file is run, whoever wrote it.

        Parameters
        ----------
        path : str or path-like
            The file.
        device : {"auto", "cpu", "cuda"}, torch.device or None, default=None
            The new value of the parameter `device`. None keeps the saved one, or takes the CPU with a warning
            where this machine does not have it.
        **custom : object
            Parameters that no file can hold (formulas, Modules and factories of yours), as they were passed
            to the constructor. What a Module has learned is in the file.

        Returns
        -------
        estimator : instance of this class
            Equal to the one saved, to the last bit.

        Raises
        ------
        OSError
            If the file cannot be opened.
        ValueError
            If it is not a file of `save`, is damaged, holds another class or a newer format, or if `custom`
            has not exactly the parameters that it leaves out.

        Examples
        --------
        >>> import os, tempfile
        >>> from skgroupvae import GroupVAE
        >>> model = GroupVAE(decoder=lambda u, v: u[:, :1] + v, max_epochs=2, random_state=0)
        >>> model = model.fit([[1.0], [2.0], [4.0], [5.0]], groups=["a", "a", "b", "b"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(os.path.join(folder, "exam.safetensors"))
        ...     loaded = GroupVAE.load(os.path.join(folder, "exam.safetensors"), decoder=model.decoder)
        >>> loaded.group_codes_.equals(model.group_codes_)
        True
        """
        name = os.fsdecode(path)
        _safetensors()
        with open(name, "rb"):
            pass  # for Python's own error if it is missing, a directory or not to be read
        with _one_error(f"cannot load {name!r}"):
            estimator, missed = cls._from_document(*_read(name), device, custom)
        if missed is not None:
            warnings.warn(
                f"{name!r} was saved with device={missed!r}, which is not available on this machine; the "
                "estimator is on the CPU and its device is now 'cpu'",
                UserWarning,
                stacklevel=2,
            )
        return estimator

    def _get_state(
        self, tensors: dict[str, NDArray] | None = None
    ) -> tuple[dict[str, Any], dict[str, NDArray]]:
        """Fitted attributes as JSON, and the tensors that it names, added to those given."""
        write, parameters = Writer({} if tensors is None else tensors), self.get_params(deep=False)
        state: dict[str, Any] = {}
        for name, value in sorted(vars(self).items()):  # so that equal estimators give equal files
            if name == "network_":
                state[name] = {k: write(tensor, f"network.{k}") for k, tensor in value.state_dict().items()}
            elif name not in parameters:
                state[name] = write(value, name)
        return state, write.tensors

    def _set_state(self, state: dict[str, Any], tensors: dict[str, NDArray]) -> None:
        """Take on the attributes that `_get_state` gave; the network last, as the others say its shape."""
        for name, encoded in state.items():
            if not name.isidentifier() or hasattr(type(self), name) or name in vars(self):
                raise ValueError(f"{name!r} is not the name of a fitted attribute")
            if name != "network_":
                vars(self)[name] = read_value(encoded, tensors)
        learned = {name: read_value(encoded, tensors) for name, encoded in state["network_"].items()}
        with _Budget(16 * sum(array.size for array in tensors.values()) + _SPARE_NUMBERS):
            network = self._empty_network(torch.Generator().manual_seed(0))
        self.network_ = network.eval().requires_grad_(False).double()
        _set_learned(network, learned)

    def _to_document(self) -> tuple[dict[str, Any], dict[str, NDArray], dict[str, Any]]:
        """The estimator as JSON and tensors, and the parameters that only the caller of `load` has."""
        state, tensors = self._get_state()
        write, parameters = Writer(tensors), self.get_params(deep=False)
        custom = {k: value for k, value in parameters.items() if kind_of(value) is None and callable(value)}
        document = {
            "format": _FORMAT,
            "version": __version__,
            "class": type(self).__name__,
            "parameters": {k: write(value, k) for k, value in parameters.items() if k not in custom},
            "custom": {k: _described(value) for k, value in custom.items()},
            "state": state,
        }
        return document, write.tensors, custom

    @classmethod
    def _from_document(
        cls, document: dict[str, Any], tensors: dict[str, NDArray], device: Any, custom: dict[str, Any]
    ) -> tuple[Self, Any]:
        """The estimator, and the device that was saved if this machine does not have it, else None."""
        if document["class"] != cls.__name__:
            raise ValueError(f"it holds a {document['class']}; use {document['class']}.load")
        _check_custom(document["custom"], custom)
        saved = {name: read_value(encoded, tensors) for name, encoded in document["parameters"].items()}
        newer = sorted(saved.keys() - set(cls._get_param_names()))  # type: ignore[attr-defined]
        if newer:
            raise ValueError(
                f"skgroupvae {document['version']} wrote it with the parameters {newer}, which this version "
                "does not have; upgrade skgroupvae"
            )
        estimator: Any = cls(**saved, **custom)
        wanted = estimator.device if device is None else device
        available = _available(wanted)
        if available is None and device is not None:
            raise ValueError(f"device={device!r} is not available on this machine; use 'auto' or 'cpu'")
        estimator.device = "cpu" if available is None else wanted
        estimator._validate_params()
        estimator._set_state(document["state"], tensors)
        estimator.network_.to(available or "cpu")
        return estimator, wanted if available is None else None

    def __getstate__(self) -> dict[str, Any]:
        """State for pickle and joblib, with the network on the CPU, which every machine has."""
        state: Any = super().__getstate__()
        network = state.get("network_")
        if network is None or _device_of(network).type == "cpu":
            return state
        return {**state, "network_": copy.deepcopy(network).to("cpu")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        if "network_" in vars(self):
            self.network_.to(_available(self.device) or "cpu")


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


def _set_learned(network: nn.Module, learned: dict[str, Any]) -> None:
    """As `load_state_dict`, which would cast where the types differ."""
    own, stored = (
        {name: (getattr(x, "shape", None), getattr(x, "dtype", None)) for name, x in of.items()}
        for of in (network.state_dict(), learned)
    )
    if own != stored:
        name = next(name for name in [*own, *stored] if own.get(name) != stored.get(name))
        raise ValueError(
            f"its parameters do not give its network ({name} differs); keep those of the fit, and pass the "
            "custom ones that the fit had"
        )
    network.load_state_dict(learned)


class _Budget(TorchFunctionMode):
    """Stops a network far larger than the file before it fills the memory: a file may claim any size."""

    def __init__(self, n_numbers: int) -> None:
        super().__init__()
        self.n_left = n_numbers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        if isinstance(value, torch.Tensor) and value.device.type != "meta":
            self.n_left -= value.numel()
            if self.n_left < 0:
                raise ValueError("its parameters ask for a larger network than it holds")
        return value


def _device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


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
