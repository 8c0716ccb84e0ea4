"""The columns that a formula gives, by formulaic, with what it learned as plain values."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skgroupvae.columns import caller_level, centre_and_scale, some
from skgroupvae.design import Design
from skgroupvae.formulas.text import Formula, formulaic

__all__ = ["FormulaDesign"]


@dataclass
class FormulaDesign(Design):
    """Columns of the fixed terms of a formula, standardised.

    Attributes
    ----------
    formula : Formula
        What the text says.
    levels : dict
        Categories of each column of the table that has them.
    shares : dict
        How often each of them was in the fit.
    transforms, encodings : dict
        What formulaic learned: knots and centres by expression, kind and categories by factor.
    widths : list of int
        Columns of each term.
    """

    formula: Formula = field(default_factory=lambda: Formula(None, None, [[["1", "literal"]]], []))
    levels: dict[str, list[Any]] = field(default_factory=dict)
    shares: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    transforms: dict[str, Any] = field(default_factory=dict)
    encodings: dict[str, list[Any]] = field(default_factory=dict)
    widths: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Nothing else has checked its terms, and a file may hold anything."""
        if type(self.formula) is not Formula:
            raise TypeError(f"formula must be a Formula, got {type(self.formula).__name__}")

    def learn(self, table: pd.DataFrame) -> FormulaDesign:
        """The design with categories, knots, centres and scales of a table; this one stays as it is."""
        design = FormulaDesign(formula=self.formula)
        for name in self.formula.columns:
            column = table[name]
            if name in self.formula.categories or not pd.api.types.is_numeric_dtype(column.dtype):
                shares = _shares(column)
                design.levels[name], design.shares[name] = list(shares), np.array([*shares.values()])
        matrix, spec = design._evaluated(table)
        design.names = list(spec.column_names)
        design.widths = [len(row[2]) for row in spec.structure]
        design.transforms = copy.deepcopy(spec.transform_state)
        design.encodings = {
            factor: [kind.value, _plain(state)] for factor, (kind, state) in spec.encoder_state.items()
        }
        design.indicators = design._indicator_columns(matrix)
        design.centre, design.scale = centre_and_scale(matrix)
        design.centre[0] = 0.0
        return design

    def columns_of(self, terms: list[int]) -> list[int]:
        """Columns of the design that belong to the terms at these positions."""
        ends = np.cumsum(self.widths)
        return [j for term in terms for j in range(ends[term] - self.widths[term], ends[term])]

    def column_of(self, names: Any) -> list[int]:
        """Columns of the design by their own name or by that of their term."""
        terms = [":".join(text for text, _ in term) for term in self.formula.terms]
        found: list[int] = []
        for wanted in names:
            if wanted in terms[1:]:
                found += self.columns_of([terms.index(wanted)])
            elif wanted in self.names[1:]:
                found.append(self.names.index(wanted))
            else:
                raise ValueError(
                    f"random_slopes names {wanted!r}, which is no term of formula; its terms are "
                    f"{some(terms[1:])}"
                )
        return found

    def _columns(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """Columns (N, P); a category that the fit has not seen counts as missing: the mean over the fit's."""
        for name, levels in self.levels.items():
            known = frame[name].isin(levels)
            if not known.all():
                unseen = list(dict.fromkeys(frame[name][~known]))
                warnings.warn(
                    f"column {name!r} of X has categories {some(unseen)} that the fit has not seen; their "
                    "rows get the mean over the categories of the fit",
                    UserWarning,
                    stacklevel=caller_level(),
                )
        return self._averaged(frame, list(self.levels))

    def _averaged(self, frame: pd.DataFrame, names: list[str]) -> NDArray[np.float64]:
        if not names:
            return self._evaluated(frame)[0]
        name, *others = names
        unseen = ~frame[name].isin(self.levels[name]).to_numpy()
        if not unseen.any():
            return self._averaged(frame, others)
        parts = [
            share * self._averaged(frame[unseen].assign(**{name: level}), others)
            for level, share in zip(self.levels[name], self.shares[name], strict=True)
        ]
        matrix = np.empty((len(frame), len(self.names)))
        matrix[unseen] = sum(parts)
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
        if self.names and names != self.names:
            raise ValueError(
                f"formula gives the columns {some(names)} on X, but gave {some(self.names)} in the fit"
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
        levels = self.levels.get(str(column.name))
        if levels is None or pd.api.types.is_numeric_dtype(column.dtype):
            return column.to_numpy(dtype=None if isinstance(column.dtype, np.dtype) else np.float64)
        return pd.Categorical(column.to_numpy(dtype=object), categories=levels)

    def _indicator_columns(self, matrix: NDArray[np.float64]) -> list[int]:
        """Columns of one category: 0 or 1, and of a term that is nothing else."""
        categories = {factor for factor, (kind, _) in self.encodings.items() if kind == "categorical"}
        alone = [
            i for i, term in enumerate(self.formula.terms) if len(term) == 1 and term[0][0] in categories
        ]
        return [j for j in self.columns_of(alone) if np.isin(matrix[:, j], (0.0, 1.0)).all()]


def _shares(column: pd.Series) -> dict[Any, float]:
    """How often each category occurs: in the order of a categorical column, else sorted."""
    counts = column.value_counts(normalize=True, sort=False)
    shares = {level: share for level, share in zip(counts.index.tolist(), counts, strict=True) if share}
    if isinstance(column.dtype, pd.CategoricalDtype):
        return shares  # in that order
    order = sorted(shares) if pd.api.types.is_numeric_dtype(column.dtype) else sorted(shares, key=str)
    return {level: shares[level] for level in order}


def _plain(state: Any) -> Any:
    """A state without the object that formulaic keeps beside it for people to look at."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items() if key != "contrasts"}
    return copy.deepcopy(state)
