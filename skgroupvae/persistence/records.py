"""A fitted state as JSON and named arrays, and back.

Data are written as in ``values.py``. A record, which is an instance of a dataclass of `RECORDS`, is
``{class: [[field, value], ...]}`` with all its declared fields, and comes back by its constructor. Two kinds
of fields are special, by their declared type: of a Module only the learned tensors are written, and the
`spec` of the same record rebuilds it; where anything may stand (``Any``), a name is written, and an object of
the user's is left out, for the caller to supply again.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from functools import cache, partial
from numbers import Integral, Real
from types import MappingProxyType, NoneType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.overrides import TorchFunctionMode

from skgroupvae.batch import RandomTerm
from skgroupvae.data.checks import SeenColumns
from skgroupvae.data.columns import Column
from skgroupvae.data.covariates import Covariates
from skgroupvae.data.design import PlainDesign
from skgroupvae.data.formula import Formula, RandomPart
from skgroupvae.data.formula_design import FormulaDesign
from skgroupvae.data.outcome_reader import OutcomeReader
from skgroupvae.data.reader import ObservationReader
from skgroupvae.mixed_model.linear import LinearMixedModel
from skgroupvae.model.spec import LatentSpec, ScoreSpec
from skgroupvae.model.summaries import Summaries
from skgroupvae.persistence.values import DATA_KINDS, Kind, Writer, kind_of, read_value
from skgroupvae.state import Choice, FittedState, KnownGroups, ScoreState

__all__ = ["RECORDS", "STATES", "StateWriter", "is_custom", "read_data", "read_state"]

#: What an estimator may have as its whole state.
STATES: tuple[type, ...] = (FittedState, ScoreState)
#: Dataclasses that a file may hold, by name.
RECORDS: Mapping[str, type] = MappingProxyType(
    {
        record.__name__: record
        for record in (
            Column,
            SeenColumns,
            Covariates,
            ObservationReader,
            OutcomeReader,
            PlainDesign,
            FormulaDesign,
            Formula,
            LatentSpec,
            ScoreSpec,
            Summaries,
            KnownGroups,
            Choice,
            LinearMixedModel,
            RandomTerm,
            *STATES,
        )
    }
)
# Equal arrays are stored once, so a file may hold less than it stands for; a hostile one may ask for any
# multiple. Bytes that reading may touch besides a few times those that the file holds, and the least that an
# array counts as.
_SPARE_BYTES, _LEAST_BYTES = 2**28, 2**12
# Numbers that building a model may touch, besides a few times those that the file holds.
_SPARE_NUMBERS = 2**26
# Declared types that other types of numbers satisfy.
_ALSO: Mapping[Any, tuple[type, ...]] = MappingProxyType(
    {int: (Integral,), float: (Real,), bool: (bool, np.bool_)}
)


def is_custom(value: Any) -> bool:
    """Whether it is a function, class or Module of the user's, which no file can hold."""
    return kind_of(value, DATA_KINDS) is None and callable(value)


class StateWriter(Writer):
    """Turns records and other values into JSON.

    Attributes
    ----------
    custom : dict
        Fields of records that were left out, by name.
    """

    def __init__(self, tensors: dict[str, NDArray]) -> None:
        super().__init__(tensors, DATA_KINDS)
        self.custom: dict[str, Any] = {}

    def __call__(self, value: Any, name: str) -> Any:
        if type(value) is RandomPart:
            value = list(value)  # as a Formula takes it too
        record: Any = type(value)
        if record not in RECORDS.values():
            return super().__call__(value, name)
        fields = []
        for field, hint in _fields(record).items():
            part = getattr(value, field)
            if hint is Any and is_custom(part):
                self.custom[field] = part
            elif _is_module(hint):
                learned = [[k, self(x, f"network.{k}")] for k, x in part.state_dict().items()]
                fields.append([field, {"dict": learned}])
            else:
                fields.append([field, self(part, f"{name}.{field}")])
        return {record.__name__: fields}


def read_data(encoded: Any, tensors: dict[str, NDArray]) -> Any:
    """A value without records."""
    return read_value(encoded, _Metered(tensors), DATA_KINDS)


def read_state(encoded: Any, tensors: dict[str, NDArray], custom: Mapping[str, Any]) -> Any:
    """The state that :class:`StateWriter` wrote.

    Parameters
    ----------
    encoded : JSON
    tensors : dict of ndarray
    custom : mapping
        What was left out, by name of the field.

    Returns
    -------
    state : instance of one of :data:`STATES`
        On the CPU.
    """
    n_numbers = 16 * sum(array.size for array in tensors.values()) + _SPARE_NUMBERS
    records = {
        name: Kind(record, _not_written, partial(_build, record, custom, n_numbers))
        for name, record in RECORDS.items()
    }
    if not isinstance(encoded, dict) or list(encoded) not in [[state.__name__] for state in STATES]:
        raise ValueError("it holds no fitted state")
    _check_kinds(encoded, {*DATA_KINDS, *RECORDS, "array"})
    return read_value(encoded, _Metered(tensors), {**DATA_KINDS, **records})


class _Budget(TorchFunctionMode):
    """Stops a model far larger than the file before it fills the memory: a file may claim any size."""

    def __init__(self, n_numbers: int) -> None:
        super().__init__()
        self.n_left = n_numbers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        if isinstance(value, torch.Tensor) and value.device.type != "meta":
            self.n_left -= value.numel()
            if self.n_left < 0:
                raise ValueError("its choices ask for a larger model than it holds")
        return value


class _Metered(dict[str, NDArray]):
    """Arrays that can be read so often and no more."""

    def __init__(self, tensors: dict[str, NDArray]) -> None:
        super().__init__(tensors)
        self.n_left = 16 * sum(array.nbytes for array in tensors.values()) + _SPARE_BYTES

    def __getitem__(self, name: str) -> NDArray:
        array = super().__getitem__(name)
        self.n_left -= max(array.nbytes, _LEAST_BYTES)
        if self.n_left < 0:
            raise ValueError("it asks for far more data than it holds")
        return array


def _check_kinds(encoded: Any, known: set[str]) -> None:
    """Refuse a document with kinds that there are not, which `read_value` would meet as a KeyError."""
    if isinstance(encoded, dict):
        unknown = sorted(encoded.keys() - known)
        if unknown:
            raise ValueError(
                f"it has records {unknown}, which this version does not have; upgrade skgroupvae"
            )
    if isinstance(encoded, (dict, list)):
        for part in encoded.values() if isinstance(encoded, dict) else encoded:
            _check_kinds(part, known)


def _not_written(record: Any) -> list:
    raise TypeError(f"a {type(record).__name__} is written by StateWriter")


@cache
def _fields(record: Any) -> Mapping[str, Any]:
    """Declared types of a dataclass, by field."""
    hints = get_type_hints(record)
    return MappingProxyType({field.name: hints[field.name] for field in dataclasses.fields(record)})


def _build(record: type, custom: Mapping[str, Any], n_numbers: int, *pairs: list) -> Any:
    """The record with these fields."""
    hints, given = _fields(record), dict(pairs)
    left_out = {name for name in hints.keys() - given.keys() if hints[name] is Any and name in custom}
    for what, names in (
        ("lacks the fields", hints.keys() - given.keys() - left_out),
        ("has the fields", given.keys() - hints.keys()),
    ):
        if names:
            raise ValueError(f"its {record.__name__} {what} {sorted(map(str, names))}, unlike this version's")
    if len(pairs) != len(given):
        raise ValueError(f"its {record.__name__} has a field twice")
    learned = {name: given[name] for name in given if _is_module(hints[name])}
    for name in given.keys() - learned.keys():
        if not _is_a(given[name], hints[name]):
            raise ValueError(f"its {record.__name__} has a {type(given[name]).__name__} as {name}")
    for name in learned:
        given[name] = _rebuilt(given["spec"], learned[name], n_numbers)
    return record(**given, **{name: custom[name] for name in left_out})


def _is_module(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, nn.Module)


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value is of a declared type, items of tuples included."""
    if hint is Any:
        return isinstance(value, (str, NoneType))
    origin, items = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is_a(value, item) for item in items)
    if origin is tuple and isinstance(value, tuple):
        kinds = items[:1] * len(value) if items[-1] is Ellipsis else items
        return len(kinds) == len(value) and all(map(_is_a, value, kinds))
    return isinstance(value, _ALSO.get(hint, origin or hint))


def _rebuilt(spec: Any, learned: Any, n_numbers: int) -> nn.Module:
    """The model of a spec, in float64, with what was learned; never one far larger than the file."""
    with _Budget(n_numbers):
        model = spec.build(torch.Generator().manual_seed(0))
    model.eval().requires_grad_(False).double()
    # `load_state_dict` would cast where the types differ.
    own, stored = (
        {name: (getattr(x, "shape", None), getattr(x, "dtype", None)) for name, x in of.items()}
        for of in (model.state_dict(), learned)
    )
    if own != stored:
        name = next(name for name in [*own, *stored] if own.get(name) != stored.get(name))
        raise ValueError(
            f"its choices do not give its model ({name} differs); pass the custom parameters that the fit had"
        )
    model.load_state_dict(learned)
    return model
