"""What the estimators share: a fitted state, the container of codes, and files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from html import escape
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_html_repr
from sklearn.utils._set_output import ADAPTERS_MANAGER, _get_output_config

from skgroupvae.data.output import like_input
from skgroupvae.persistence import saving
from skgroupvae.state import State

__all__ = ["GroupedEstimator", "as_given", "in_codes_container", "learned_names"]

_State = TypeVar("_State", bound=State)
_CELL = '<tr><td style="text-align: left"><b>{}</b></td><td style="text-align: left">{}</td></tr>'


class GroupedEstimator(TransformerMixin, BaseEstimator, ABC, Generic[_State], auto_wrap_output_keys=None):  # type: ignore[call-arg]
    """Base class of estimators of grouped data.

    All that a fit learned is one frozen record, which a call that learns replaces whole: a call that fails
    changes nothing. The learned attributes are read off it.
    """

    _state: _State
    _sklearn_output_config: dict[str, str]
    stack_codes: bool

    def __sklearn_is_fitted__(self) -> bool:
        return "_state" in vars(self)

    def _fitted(self) -> _State:
        """The fitted state; a NotFittedError without one."""
        if "_state" not in vars(self):
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' with appropriate "
                "arguments before using this estimator."
            )
        return self._state

    def _keep(self, state: _State) -> None:
        """Take on a fitted state, and set the learned attributes that follow from it."""
        learned = self._learned(state)
        for name in learned_names(self):
            delattr(self, name)
        for name, value in (learned | {"_state": state}).items():
            setattr(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and joblib: on the CPU, which every machine has."""
        attributes: dict[str, Any] = super().__getstate__()
        if "_state" not in attributes:
            return attributes
        kept = attributes["_state"].on_cpu()
        if kept is attributes["_state"]:
            return attributes
        return {**attributes, **self._learned(kept), "_state": kept}

    @abstractmethod
    def _learned(self, state: _State) -> dict[str, Any]:
        """Learned attributes by name."""

    def set_output(self, *, transform: str | None = None) -> Self:
        """Choose the container that `transform` returns its codes in.

        scikit-learn's own wrapper does not know a transformer that returns two tables of codes.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"} or None
            None changes nothing.

        Returns
        -------
        self : estimator

        Raises
        ------
        ValueError
            If there is no such container.
        """
        if transform is not None:
            known = ["default", *ADAPTERS_MANAGER.adapters]
            if transform not in known:
                raise ValueError(
                    f"transform={transform!r} is not a container; set_output takes one of {known} or None"
                )
            self._sklearn_output_config = {"transform": transform}
        return self

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the codes: u0, u1, ..., then v0, v1, ...

        Parameters
        ----------
        input_features : None
            Ignored; codes are not columns of X.

        Returns
        -------
        names : ndarray of str of shape (U + V,)
        """
        return np.array([*_names("u", self._fitted()), *_names("v", self._fitted())], dtype=object)

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
            If a parameter or label is of a kind that data alone cannot tell.

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
        self._fitted()
        saving.save(self, path)

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
        return saving.load(cls, path, device, custom)

    def _html_repr(self) -> str:
        """scikit-learn's HTML, and below it what the fit found."""
        facts = _facts(self._state) if "_state" in vars(self) else {}
        rows = "".join(_CELL.format(escape(name), escape(value)) for name, value in facts.items())
        return estimator_html_repr(self) + (f"<table>{rows}</table>" if rows else "")


def learned_names(estimator: BaseEstimator) -> list[str]:
    """Names of the learned attributes that an estimator has: those that end in an underscore."""
    return [name for name in vars(estimator) if name.endswith("_") and not name.startswith("_")]


def in_codes_container(estimator: GroupedEstimator[Any], X: Any, u: NDArray, v: NDArray) -> Any:
    """Codes in the container that ``set_output`` names: (u, v), or one table with `stack_codes`."""
    u_names, v_names = (_names(kind, estimator._fitted()) for kind in "uv")
    if estimator.stack_codes:
        return _container(estimator, np.hstack([u, v]), X, u_names + v_names)
    return _container(estimator, u, X, u_names), _container(estimator, v, X, v_names)


def as_given(estimator: GroupedEstimator[Any], values: NDArray, X: Any, labels: Any) -> Any:
    """Rows in the container of X, with labels in its group columns."""
    reader = estimator._fitted().reader
    return like_input(values, X, reader.group_column, labels, reader.covariate_columns)


def _container(estimator: GroupedEstimator[Any], codes: NDArray, original: Any, columns: list[str]) -> Any:
    kind = _get_output_config("transform", estimator)["dense"]
    if kind == "default":
        return codes
    return ADAPTERS_MANAGER.adapters[kind].create_container(codes, original, columns=columns)


def _names(kind: str, state: State) -> list[str]:
    decoder = state.model.decoder
    return [f"{kind}{j}" for j in range(decoder.n_group_codes if kind == "u" else _n_instance_codes(state))]


def _n_instance_codes(state: State) -> int:
    """Instance codes of a row; those of a regression are the normal scores of its outcomes."""
    return state.model.decoder.n_instance_codes or state.model.decoder.likelihood.n_columns


def _facts(state: State) -> dict[str, str]:
    """Groups, codes, model and log-likelihood of a fit, in words."""
    sizes, decoder = state.groups.summaries.sizes, state.model.decoder
    return {
        "Groups": f"{len(sizes):,} of {int(sizes.min()):,} to {int(sizes.max()):,} rows",
        "Group codes": str(decoder.n_group_codes),
        "Instance codes": str(_n_instance_codes(state)),
        "Model": f"{state.choice.model} ({state.choice.reason})",
        "Log-likelihood": _log_likelihood(state),
    }


def _log_likelihood(state: State) -> str:
    if state.choice.model == "linear" or state.history.empty:
        return f"{state.mixed_log_likelihood:,.1f} nats (linear mixed model)"
    last = state.history.iloc[-1]
    elbo = last["reconstruction"] - last["kl_u"] - last["kl_v"] - state.log_scale
    return f"at least {elbo:.3f} nats per row (ELBO of the last epoch)"
