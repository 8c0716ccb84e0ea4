"""The columns that a formula gives, by formulaic, with what it learned as plain values."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skgroupvae.data.design import Design, learn_levels, level_codes, standardization
from skgroupvae.data.formula import Formula, formulaic
from skgroupvae.data.tables import is_numeric, some

__all__ = ["FormulaDesign"]


@dataclass(frozen=True, eq=False, kw_only=True)
class FormulaDesign(Design):
    """Columns of the fixed terms of a formula, standardized.

    Attributes
    ----------
    formula : Formula
        What the text says.
    numbers : tuple of str
        Columns of the table that held numbers, also those whose numbers are categories.
    transforms, encodings : dict
        What formulaic learned: knots and centers by expression, kind and categories by factor.
    """

    formula: Formula
    numbers: tuple[str, ...]
    transforms: dict[str, Any]
    encodings: dict[str, list[Any]]

    def __post_init__(self) -> None:
        """Nothing else has checked its terms, and a file may hold anything."""
        if type(self.formula) is not Formula:
            raise TypeError(f"formula must be a Formula, got {type(self.formula).__name__}")

    @classmethod
    def learn(cls, formula: Formula, table: pd.DataFrame) -> Self:
        """Learn categories, knots, centers and scales from a table (N, columns)."""
        learned = {
            name: learn_levels(table[name])
            for name in formula.columns
            if name in formula.categories or not is_numeric(table[name])
        }
        nothing = np.zeros(0)
        empty = cls(
            names=(),
            center=nothing,
            scale=nothing,
            indicators=(),
            widths=(),
            levels={name: list(shares) for name, shares in learned.items()},
            shares={name: list(shares.values()) for name, shares in learned.items()},
            formula=formula,
            numbers=tuple(name for name in formula.columns if is_numeric(table[name])),
            transforms={},
            encodings={},
        )
        matrix, spec = empty._evaluated(table)
        center, scale = standardization(matrix)
        design = replace(
            empty,
            names=tuple(spec.column_names),
            center=center,
            scale=scale,
            widths=tuple(len(row[2]) for row in spec.structure),
            transforms=copy.deepcopy(spec.transform_state),
            encodings={
                factor: [kind.value, _plain(state)] for factor, (kind, state) in spec.encoder_state.items()
            },
        )
        return replace(design, indicators=tuple(design._indicator_columns(matrix)))

    @property
    def terms(self) -> tuple[str, ...]:
        return tuple(":".join(text for text, _ in term) for term in self.formula.terms)

    def random_columns(self) -> list[list[int]]:
        """Columns of the design that vary by group, beside the constant, for each random part."""
        return [self.columns_of(part.terms) for part in self.formula.random]

    def _columns(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        matrix = self._averaged(frame, list(self.levels))
        matrix[:, 0] = 1.0  # the mean of ones to the last bit
        return matrix

    def _unknown_name(self) -> str:
        return f"which is no term of formula; its terms are {some(list(self.terms[1:]))}"

    def _averaged(self, frame: pd.DataFrame, names: list[Any]) -> NDArray[np.float64]:
        """Columns (N, P) of rows that may have unseen categories in these columns of the table."""
        if not names:
            return self._evaluated(frame)[0]
        name, *others = names
        unseen = level_codes(frame[name], self.levels[name]) < 0
        if not unseen.any():
            return self._averaged(frame, others)
        position = list(frame.columns).index(name)
        matrix = np.zeros((len(frame), len(self.names)))
        for level, share in zip(self.levels[name], self.shares[name], strict=True):
            at_level = frame[unseen].drop(columns=name)
            at_level.insert(position, name, [level] * len(at_level))
            matrix[unseen] += share * self._averaged(at_level, others)
        if not unseen.all():
            matrix[~unseen] = self._averaged(frame[~unseen], others)
        return matrix

    def _evaluated(self, frame: pd.DataFrame) -> tuple[NDArray[np.float64], Any]:
        """Columns of rows whose categories are known, and formulaic's specification of them."""
        package = formulaic()
        from formulaic.errors import DataMismatchWarning

        try:
            clean = pd.DataFrame({name: self._clean(frame[name]) for name in self.formula.columns})
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("error", DataMismatchWarning)
                found = self._specification(package).get_model_matrix(clean.set_axis(range(len(frame))))
        except Exception as error:
            reason = shorten(str(error), 300)
            raise ValueError(f"formula cannot be evaluated on X: {reason}") from error
        matrix = np.asarray(found, dtype=np.float64).reshape(len(frame), -1)
        names = list(found.model_spec.column_names)
        if self.names and tuple(names) != self.names:
            raise ValueError(
                f"formula gives the columns {some(names)} on X, but gave {some(list(self.names))} in the fit"
            )
        bad = ~np.isfinite(matrix)
        if bad.any():
            columns = [names[j] for j in np.flatnonzero(bad.any(axis=0))]
            raise ValueError(
                f"formula gives NaN or infinite values in columns {some(columns)}, first at row "
                f"{np.flatnonzero(bad.any(axis=1))[0]} of X; drop these rows or correct the formula"
            )
        return matrix, found.model_spec

    def _specification(self, package: Any) -> Any:
        from formulaic.parser.types import Factor, Term

        terms = [
            Term([Factor(text, eval_method=method) for text, method in term]) for term in self.formula.terms
        ]
        return package.ModelSpec(
            formula=package.Formula(terms, _ordering="none"),
            materializer="pandas",
            na_action="ignore",
            output="numpy",
            transform_state=copy.deepcopy(self.transforms),
            encoder_state={
                factor: (Factor.Kind(kind), copy.deepcopy(state))
                for factor, (kind, state) in self.encodings.items()
            },
        )

    def _clean(self, column: pd.Series) -> Any:
        """A column as formulaic is to see it, whatever its dtype and wherever it came from."""
        name = str(column.name)
        if name in self.numbers:
            column = column.infer_objects()
        if name not in self.levels or (name in self.numbers and is_numeric(column)):
            return column.to_numpy(dtype=None if isinstance(column.dtype, np.dtype) else np.float64)
        return pd.Categorical(column.to_numpy(dtype=object), categories=self.levels[name])

    def _indicator_columns(self, matrix: NDArray[np.float64]) -> list[int]:
        """Columns of one category: 0 or 1, and of a term that is nothing else."""
        categories = {factor for factor, (kind, _) in self.encodings.items() if kind == "categorical"}
        alone = [
            i for i, term in enumerate(self.formula.terms) if len(term) == 1 and term[0][0] in categories
        ]
        return [j for j in self.columns_of(alone) if np.isin(matrix[:, j], (0.0, 1.0)).all()]


def _plain(state: Any) -> Any:
    """A state without the object that formulaic keeps beside it for people to look at."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items() if key != "contrasts"}
    return copy.deepcopy(state)
