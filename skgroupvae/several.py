"""Several outcomes behind one estimator: a model each, on the same rows, groups and covariates."""

from __future__ import annotations

import copy
import functools
import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.validation import check_consistent_length

from skgroupvae.columns import as_pandas, check_unique_columns, some
from skgroupvae.groups import as_label_array
from skgroupvae.persistence import PersistenceMixin
from skgroupvae.validation import check_groups, forget_learned
from skgroupvae.values import Writer, read_value

__all__ = [
    "SeveralOutcomesMixin",
    "average",
    "each_outcome",
    "has_several",
    "relearned",
    "side_by_side",
    "stacked",
    "texts",
    "total",
]

_Method = TypeVar("_Method", bound=Callable[..., Any])
_Combine = Callable[[Any, dict[Any, Any]], Any]


def each_outcome(combine: _Combine, *, learns: bool = False) -> Callable[[_Method], _Method]:
    """Make a method of one outcome one of several: asked of each model, with its column of y.

    Parameters
    ----------
    combine : callable
        From the estimator and the result by outcome to the result of all.
    learns : bool
        Whether the method changes the model it is asked of. Then it is asked of copies, with the rows whose
        outcome is known.
    """

    def decorate(method: _Method) -> _Method:
        signature = inspect.signature(method)

        @functools.wraps(method)
        def of_each(self: Any, *args: Any, **kwargs: Any) -> Any:
            models = getattr(self, "outcomes_", None)
            if models is None:
                return method(self, *args, **kwargs)
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            given = {name: value for name, value in bound.arguments.items() if name != "self"}
            results = {}
            for name, arguments in _arguments_of_each(list(models), given):
                with _naming(name):
                    if not learns:
                        results[name] = method(models[name], **arguments)
                    elif (known := _known_rows(arguments)) is None:
                        results[name] = models[name]
                    else:
                        results[name] = method(copy.copy(models[name]), **known)
            return combine(self, results)

        return cast(_Method, of_each)

    return decorate


def stacked(estimator: Any, results: dict[Any, Any]) -> Any:
    """Arrays, or tuples of them, with the outcomes as a last axis."""
    return _combined(list(results.values()), lambda parts: np.stack(parts, axis=-1))


def side_by_side(estimator: Any, results: dict[Any, Any]) -> Any:
    """Tables, or tuples of them, with the columns of all outcomes."""
    return _combined(list(results.values()), np.hstack)


def total(estimator: Any, results: dict[Any, Any]) -> Any:
    """Sum over the outcomes."""
    return sum(results.values())


def average(estimator: Any, results: dict[Any, Any]) -> float:
    """Mean over the outcomes."""
    return float(np.mean(list(results.values())))


def texts(estimator: Any, results: dict[Any, str]) -> str:
    """One below the other, each with the name of its outcome."""
    return "\n\n\n".join(f"{'Outcome:':36s}{name}\n{text}" for name, text in results.items())


def relearned(estimator: SeveralOutcomesMixin, results: dict[Any, Any]) -> Any:
    """The estimator, with these models for its outcomes."""
    estimator._set_outcomes(results)
    return estimator


class SeveralOutcomesMixin(PersistenceMixin):
    """Fits, keeps and saves the models of several outcomes, in ``outcomes_`` by name.

    The estimator's other learned attributes are then those of the models together: tables with the outcome
    as outer level of their index, numbers as Series, modules as a ModuleList and arrays as a list.
    """

    outcomes_: dict[Any, Any]
    random_state: Any

    @abstractmethod
    def _names_groups(self) -> bool:
        """Whether the table holds the labels."""

    def set_params(self, **params: Any) -> Self:
        """Set parameters, also of the models of several outcomes; see scikit-learn's `set_params`."""
        super().set_params(**params)  # type: ignore[misc]
        if hasattr(self, "outcomes_"):
            models = {name: copy.copy(model) for name, model in self.outcomes_.items()}
            self.outcomes_ = {name: model.set_params(**params) for name, model in models.items()}
        return self

    def _fit_each(self, X: Any, y: Any, groups: Any, sample_weight: Any) -> None:
        names = _names_of(y)
        if groups is None and not self._names_groups():
            groups = check_groups(None, len(y), type(self).__name__, warn=True)
        given = {"X": X, "y": y, "groups": groups, "sample_weight": sample_weight}
        models = {}
        for name, arguments in _arguments_of_each(names, given):
            with _naming(name):
                known = _known_rows(arguments)
                if known is None:
                    raise ValueError("y is missing in every row; leave this outcome out")
                model = self._model_to_fit(name)
                # As separate fits: a generator goes on from one to the next.
                models[name] = model.set_params(random_state=self.random_state).fit(**known)
        self._set_outcomes(models)

    def _model_to_fit(self, name: Any) -> Any:
        """An unfitted model, or with warm_start the last one of this outcome, to go on from."""
        fitted = getattr(self, "outcomes_", {})
        if not getattr(self, "warm_start", False) or name not in fitted:
            return clone(self)
        return copy.copy(fitted[name]).set_params(**self.get_params(deep=False))

    def _set_outcomes(self, models: dict[Any, Any]) -> None:
        """Take on these models in place of all that was learned."""
        first = next(iter(models.values()))
        forget_learned(self)
        self.outcomes_ = models
        for name in vars(first).keys() - vars(clone(self)).keys():
            self.__dict__.pop(name, None)  # of an earlier fit too
            if name.endswith("_in_"):
                setattr(self, name, getattr(first, name))
            elif name.endswith("_"):
                setattr(self, name, _together({outcome: getattr(m, name) for outcome, m in models.items()}))

    def _get_state(
        self, tensors: dict[str, NDArray] | None = None
    ) -> tuple[dict[str, Any], dict[str, NDArray]]:
        if not hasattr(self, "outcomes_"):
            return super()._get_state(tensors)
        tensors = {} if tensors is None else tensors
        write = Writer(tensors)
        models = [[write(name, "outcomes_"), m._get_state(tensors)[0]] for name, m in self.outcomes_.items()]
        state = {"outcomes_": models}
        if hasattr(self, "_sklearn_output_config"):
            state["_sklearn_output_config"] = write(self._sklearn_output_config, "output")
        return state, tensors

    def _set_state(self, state: dict[str, Any], tensors: dict[str, NDArray]) -> None:
        if "outcomes_" not in state:
            super()._set_state(state, tensors)
            return
        models = {}
        for name, own in state["outcomes_"]:
            model = models[read_value(name, tensors)] = clone(self)
            model._set_state(own, tensors)
        self._set_outcomes(models)
        if "_sklearn_output_config" in state:
            self._sklearn_output_config = read_value(state["_sklearn_output_config"], tensors)


def has_several(y: Any, columns: Sequence[str]) -> bool:
    """Whether y has two columns or more, for a family whose outcome has one."""
    y = as_pandas(y)
    if len(columns) > 1:
        return False
    try:
        shape = y.shape if isinstance(y, pd.DataFrame) else np.asarray(y).shape
    except ValueError:
        return False  # ragged: the check of one outcome says so
    return len(shape) == 2 and shape[1] > 1


def _names_of(y: Any) -> list[Any]:
    y = as_pandas(y)
    if isinstance(y, pd.DataFrame):
        check_unique_columns(y, "y")
        return list(y.columns)
    return [f"y{j}" for j in range(np.asarray(y).shape[1])]


def _arguments_of_each(names: list[Any], given: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Arguments of a method for each outcome: its column of y and of the context's y."""
    if "random_state" in given:
        # One stream of draws: a seed for each would give all outcomes the same ones.
        given = {**given, "random_state": check_random_state(given["random_state"])}
    columns = _columns_of(given.get("y"), names, "y")
    context = given.get("context")
    if not isinstance(context, (tuple, list)) or len(context) != 3:
        context = None  # or what no method takes, and every one says so
    of_context = _columns_of(None if context is None else context[1], names, "y of context")
    for name, y, y_context in zip(names, columns, of_context, strict=True):
        own = {**given, "y": y} if "y" in given else dict(given)
        if context is not None:
            known = _known_rows({"X": context[0], "y": y_context, "groups": context[2]})
            own["context"] = None if known is None else tuple(known.values())
        yield name, own


def _columns_of(y: Any, names: list[Any], argument: str) -> list[Any]:
    """Column of y of each outcome; of None, None."""
    if y is None:
        return [None] * len(names)
    y = as_pandas(y)
    if isinstance(y, pd.DataFrame):
        missing = [name for name in names if name not in y.columns]
        if missing:
            raise ValueError(
                f"{argument} lacks the outcomes {some(missing)}; pass a DataFrame with the columns of fit, "
                "or an array with one column for each"
            )
        return [y[name].to_numpy() for name in names]
    array = np.asarray(y)
    if array.ndim != 2 or array.shape[1] != len(names):
        raise ValueError(
            f"{argument} must have one column for each of the outcomes {some(names)} of fit, got shape "
            f"{array.shape}"
        )
    return list(array.T)


def _known_rows(rows: dict[str, Any]) -> dict[str, Any] | None:
    """X, y, groups and weights of the rows whose outcome is known; None if there is no such row."""
    unknown = np.asarray(pd.isna(rows["y"]))
    if rows["y"] is None or not unknown.any():
        return rows
    if unknown.all():
        return None
    check_consistent_length(*rows.values())
    where = np.flatnonzero(~unknown)
    kept = {"X": _safe_indexing(as_pandas(rows["X"]), where), "y": rows["y"][where]}
    for name in rows.keys() - kept.keys():
        kept[name] = None if rows[name] is None else np.asarray(as_label_array(rows[name]))[where]
    return {name: kept[name] for name in rows}


@contextmanager
def _naming(outcome: Any) -> Iterator[None]:
    """Errors that say which outcome they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"outcome {outcome!r}: {error}") from error


def _combined(results: list[Any], combine: Callable[[list[NDArray]], NDArray]) -> Any:
    if isinstance(results[0], tuple):
        return tuple(combine(list(parts)) for parts in zip(*results, strict=True))
    return combine(results)


def _together(values: dict[Any, Any]) -> Any:
    """What the models learned under one name, as one value."""
    first = next(iter(values.values()))
    if isinstance(first, pd.DataFrame):
        return pd.concat(values, names=["outcome"])
    if isinstance(first, torch.nn.Module):
        return torch.nn.ModuleList(values.values())
    if isinstance(first, tuple):
        return pd.DataFrame(values, index=["lower", "upper"]).T
    return list(values.values()) if isinstance(first, np.ndarray) else pd.Series(values)
