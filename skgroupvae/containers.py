"""Codes in the container the user asked for (``set_output``)."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils._set_output import ADAPTERS_MANAGER, _get_output_config
from sklearn.utils.validation import check_is_fitted

__all__ = ["CodesMixin", "check_container", "wrap_codes"]


class CodesMixin:
    """`set_output` and the names of codes, for an estimator whose `transform` gives group and instance codes.

    The estimator has the parameter `stack_codes`, the fitted table `group_codes_` and `_n_instance_codes`.
    """

    stack_codes: bool
    group_codes_: pd.DataFrame

    @property
    def _n_instance_codes(self) -> int:
        raise NotImplementedError

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
            check_container(transform)
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
        check_is_fitted(self)
        return np.array(self._code_names("u") + self._code_names("v"), dtype=object)

    def _code_names(self, kind: str) -> list[str]:
        n_codes = self.group_codes_.shape[1] if kind == "u" else self._n_instance_codes
        return [f"{kind}{j}" for j in range(n_codes)]

    def _wrap(self, X: Any, u: NDArray, v: NDArray) -> Any:
        """Codes in the container that ``set_output`` names: (u, v), or one table with `stack_codes`."""
        u_names, v_names = self._code_names("u"), self._code_names("v")
        if self.stack_codes:
            return wrap_codes(self, np.hstack([u, v]), X, u_names + v_names)
        return wrap_codes(self, u, X, u_names), wrap_codes(self, v, X, v_names)


def check_container(name: Any) -> None:
    """Refuse what ``set_output`` cannot mean."""
    known = ["default", *ADAPTERS_MANAGER.adapters]
    if name not in known:
        raise ValueError(f"transform={name!r} is not a container; set_output takes one of {known} or None")


def wrap_codes(estimator: Any, codes: NDArray, original: Any, columns: list[str]) -> Any:
    """Codes as an array, or as the data frame that ``set_output`` or the global configuration names."""
    kind = _get_output_config("transform", estimator)["dense"]
    if kind == "default":
        return codes
    return ADAPTERS_MANAGER.adapters[kind].create_container(codes, original, columns=columns)
