"""Values as JSON and named arrays, and back: what a saved estimator is made of.

None, bool, int, str, finite floats and lists stand for themselves; an array is named by its place among the
tensors; any other value is ``{kind: parts}`` with a kind of :data:`DATA_KINDS`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, NoneType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

__all__ = ["DATA_KINDS", "Kind", "Writer", "kind_of", "read_value"]

_TENSOR_DTYPES = frozenset(
    {"|b1", "|i1", "|u1", *(f"<{k}{n}" for k in "iu" for n in (2, 4, 8)), "<f4", "<f8"}
)
_PLAIN_KINDS = "biufcSUMm"
# The only data that a file can claim without holding them.
_LONGEST_RANGE = 2**24


class Writer:
    """Turns values into JSON; arrays go into `tensors` and are referred to by name, equal ones once."""

    def __init__(self, tensors: dict[str, NDArray], kinds: Mapping[str, Kind]) -> None:
        self.tensors = tensors
        self.kinds = kinds
        self._names: dict[bytes, str] = {}

    def __call__(self, value: Any, name: str) -> Any:
        """JSON of a value that belongs to the attribute or parameter `name`."""
        if type(value) in (NoneType, bool, int, str) or (type(value) is float and math.isfinite(value)):
            return value
        if type(value) is list:
            return [self(item, name) for item in value]
        if type(value) is np.ndarray and value.dtype.kind in f"O{_PLAIN_KINDS}" and value.dtype.itemsize:
            return {"array": self._array(value, name)}
        kind = kind_of(value, self.kinds)
        if kind is not None:
            encoded = {kind: [self(part, name) for part in self.kinds[kind].parts(value)]}
            # pandas has dtypes and time zones that no name stands for.
            if not isinstance(value, (pd.Index, pd.Timestamp)) or self._gives(encoded, value):
                return encoded
        what = f"{type(value).__name__} {getattr(value, 'dtype', '')}".strip()
        raise TypeError(
            f"cannot save {name}: it holds a {what}, which data alone cannot tell; convert it (group labels: "
            "to strings), or use joblib.dump, which can hold any object"
        )

    def _gives(self, encoded: Any, labels: Any) -> bool:
        try:
            back = read_value(encoded, self.tensors, self.kinds)
        except (ValueError, TypeError, KeyError):
            return False
        one, other = (x if isinstance(x, pd.Index) else pd.Index([x]) for x in (labels, back))
        return type(one) is type(other) and one.dtype == other.dtype and one.equals(other)

    def _array(self, array: NDArray, name: str) -> list:
        # Of an array with strides of its own, which comes back without, as well.
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        stored = np.asarray(array, order="C")
        if array.dtype.kind == "O":
            # Beside the header, which may not be long.
            text = json.dumps([self(item, name) for item in array.ravel().tolist()])
            stored = np.frombuffer(text.encode(), dtype=np.uint8)
        elif array.dtype.str not in _TENSOR_DTYPES:
            stored = np.frombuffer(stored.tobytes(), dtype=np.uint8)
        digest = hashlib.sha256(f"{stored.dtype} {stored.shape}".encode() + stored.tobytes()).digest()
        if digest not in self._names or name.startswith("network."):
            free = (n for n in (name, *(f"{name}.{i}" for i in range(len(self.tensors)))))
            self._names[digest] = next(n for n in free if n not in self.tensors)
            self.tensors[self._names[digest]] = stored
        return [array.dtype.str, list(array.shape), order, self._names[digest]]


def read_value(encoded: Any, tensors: Mapping[str, NDArray], kinds: Mapping[str, Kind]) -> Any:
    """The value that `Writer` encoded, with a table of the same kinds."""
    if isinstance(encoded, list):
        return [read_value(item, tensors, kinds) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    ((kind, parts),) = encoded.items()
    if kind == "array":
        return _read_array(tensors, kinds, *parts)
    return kinds[kind].build(*(read_value(part, tensors, kinds) for part in parts))


def _read_array(
    tensors: Mapping[str, NDArray],
    kinds: Mapping[str, Kind],
    dtype: str,
    shape: list[int],
    order: Any,
    name: str,
) -> NDArray:
    content = tensors[name].tobytes()
    if dtype == "|O":
        items = [read_value(item, tensors, kinds) for item in json.loads(content)]
        return np.fromiter(items, dtype=object, count=len(items)).reshape(shape)
    return _from_bytes(dtype, shape, content).copy(order=order)


def _from_bytes(dtype: str, shape: list[int], content: bytes) -> NDArray:
    """Array of these bytes and no others, of a dtype without objects or fields."""
    plain = np.dtype(str(dtype))
    # numpy gives a type of size 0 a size, and reads it where nothing is.
    if plain.kind not in _PLAIN_KINDS or not plain.itemsize:
        raise ValueError(f"it has an array of {dtype!r}")
    array: NDArray = np.ndarray(tuple(shape), plain, buffer=content)
    if array.nbytes != len(content):
        raise ValueError("it has an array whose shape is not that of its data")
    return array


def _in_zone(utc: Any, zone: str | None) -> Any:
    """Timestamp or DatetimeIndex in a time zone, or without one."""
    if str(zone).startswith("dateutil"):
        raise ValueError(f"it has the time zone {zone!r}, which would be read from a file of that name")
    return utc.tz_localize("UTC").tz_convert(zone)


def _index_parts(index: pd.Index) -> list:
    is_numpy = isinstance(index.dtype, np.dtype)
    # pandas before 3 has strings as objects: "str" is right for both.
    return [index.to_numpy(dtype=None if is_numpy else object), None if is_numpy else "str", index.name]


def _index(values: NDArray, dtype: str | None, name: Any) -> pd.Index:
    # Without tupleize_cols=False tuples would become a MultiIndex.
    return pd.Index(values, dtype="str" if dtype else values.dtype, name=name, tupleize_cols=False)


def _range(start: int, stop: int, step: int, name: Any) -> pd.RangeIndex:
    index = pd.RangeIndex(start, stop, step, name=name)
    if len(index) > _LONGEST_RANGE:
        raise ValueError("it has a range that would fill the memory")
    return index


def _frame_parts(frame: pd.DataFrame) -> list:
    columns = (frame.iloc[:, j] for j in range(frame.shape[1]))
    return [frame.index, frame.columns, [pd.Index(c, dtype=c.dtype, tupleize_cols=False) for c in columns]]


def _frame(index: pd.Index, names: pd.Index, columns: list[pd.Index]) -> pd.DataFrame:
    if not all(isinstance(column, pd.Index) and len(column) == len(index) for column in columns):
        raise ValueError("it has a table with columns of different lengths")
    by_position = {j: pd.Series(column, index=index) for j, column in enumerate(columns)}
    return pd.DataFrame(by_position, index=index).set_axis(names, axis=1)


def _random_state(
    kind: str, key: NDArray, position: int, has_gauss: int, gauss: float
) -> np.random.RandomState:
    # numpy reads at that position of the key, wherever it is.
    if kind != "MT19937" or key.dtype != np.uint32 or key.shape != (624,) or not 0 <= position <= 624:
        raise ValueError("it has a random state of an unknown kind")
    state = np.random.RandomState(0)
    state.set_state((kind, key, position, has_gauss, gauss))
    return state


class Kind(NamedTuple):
    """How the values of a type are taken to parts, which are values themselves, and built from them again."""

    type: type
    parts: Callable[[Any], Iterable[Any]]
    build: Callable[..., Any]


#: Kinds that hold data alone.
DATA_KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "float": Kind(float, lambda x: [repr(x)], float),
        "tuple": Kind(tuple, lambda x: x, lambda *items: items),
        "dict": Kind(dict, lambda x: map(list, x.items()), lambda *items: dict(items)),
        "device": Kind(torch.device, lambda x: [str(x)], torch.device),
        "tensor": Kind(torch.Tensor, lambda x: [x.detach().cpu().numpy()], torch.from_numpy),
        "scalar": Kind(
            np.generic,
            lambda x: [np.array([x]).dtype.str, np.array([x]).tobytes().hex()],  # "" has size 0, but not here
            lambda dtype, content: _from_bytes(dtype, [], bytes.fromhex(content))[()],
        ),
        "timestamp": Kind(
            pd.Timestamp,
            lambda x: [x.asm8, x.tz and str(x.tz)],
            lambda x, zone: _in_zone(pd.Timestamp(x), zone),
        ),
        "range": Kind(
            pd.RangeIndex,
            lambda x: [x.start, x.stop, x.step, x.name],
            _range,
        ),
        "datetimes": Kind(
            pd.DatetimeIndex,
            lambda x: [x.asi8.view(f"M8[{x.unit}]"), x.tz and str(x.tz), x.name],
            lambda x, zone, name: _in_zone(pd.DatetimeIndex(x, name=name), zone),
        ),
        "index": Kind(pd.Index, _index_parts, _index),
        "multi_index": Kind(
            pd.MultiIndex,
            lambda x: [[x.get_level_values(j) for j in range(x.nlevels)], list(x.names)],
            lambda levels, names: pd.MultiIndex.from_arrays(levels, names=names),
        ),
        "frame": Kind(pd.DataFrame, _frame_parts, _frame),
        "random_state": Kind(np.random.RandomState, lambda x: x.get_state(legacy=True), _random_state),
    }
)


def kind_of(value: Any, kinds: Mapping[str, Kind]) -> str | None:
    """Kind of a value by its exact type: a subclass would come back as something else."""
    if isinstance(value, np.generic):
        return None if isinstance(value, np.void) else "scalar"
    by_type = (name for name, kind in kinds.items() if kind.type is type(value))
    return next(by_type, "index" if isinstance(value, pd.Index) else None)
