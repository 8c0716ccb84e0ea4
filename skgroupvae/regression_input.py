"""How a regression reads its tables: covariates, labels and outcomes, with a formula or without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from skgroupvae.columns import is_polars, split_group_column
from skgroupvae.design import Design
from skgroupvae.formulas import Formula, FormulaDesign, read_formula
from skgroupvae.validation import check_covariates, check_outcome

__all__ = ["RegressionInput"]


class RegressionInput:
    """Mixin of an estimator with the parameters `formula`, `group_column` and `random_slopes`."""

    formula: str | None
    group_column: Any
    random_slopes: Any
    _design: Design

    @property
    def _formula(self) -> Formula | None:
        """What the formula of the fit says."""
        return getattr(getattr(self, "_design", None), "formula", None)

    def _empty_design(self, y: Any) -> Design:
        """The design that the parameters ask for, with nothing learned; refuses what they say twice."""
        if self.formula is None:
            return Design()
        formula = read_formula(self.formula)
        self._check_said_once(formula, y)
        return FormulaDesign(formula=formula)

    def _check_said_once(self, formula: Formula, y: Any) -> None:
        """Refuse outcome, groups and slopes that the formula and other arguments both name."""
        if formula.group is not None:
            for name, unset in (("group_column", None), ("random_slopes", "auto")):
                value = getattr(self, name)
                if not (value is None if unset is None else isinstance(value, str)):
                    raise ValueError(
                        f"{name}={value!r} is given, but formula has the random part "
                        f"(... | {formula.group}); leave one of them out"
                    )
        if formula.outcome is not None and y is not None:
            raise ValueError(
                f"y is given, but formula has the outcome {formula.outcome!r}; leave y out, or begin the "
                "formula with '~'"
            )

    def _keep_formula(self, y: Any) -> None:
        """Refuse a formula that is not that of the fit."""
        asked = None if self.formula is None else read_formula(self.formula)
        if asked != self._formula:
            raise ValueError(
                f"formula={self.formula!r} is not that of the fit, so it cannot go on from there; fit a "
                "clone, or set warm_start=False"
            )
        if asked is not None:
            self._check_said_once(asked, y)

    def _names_groups(self) -> bool:
        """Whether the table holds the labels."""
        if self.group_column is not None:
            return True
        return self.formula is not None and read_formula(self.formula).group is not None

    def _learn_design(self, table: Any) -> Design:
        design = self._design
        return design.learn(table) if isinstance(design, FormulaDesign) else Design.fit(table)

    def _random_terms(self) -> list[int] | None:
        """Columns of the design that the formula's random part names; None where it has none."""
        design = self._design
        if not isinstance(design, FormulaDesign) or design.formula.group is None:
            return None
        return design.columns_of(design.formula.random_terms)

    def _split(self, X: Any, groups: Any) -> tuple[Any, Any]:
        """Covariates and labels of a table."""
        if self._formula is None:
            return split_group_column(X, self.group_column, groups)
        return self._formula.split(X, self.group_column, groups)

    def _covariates(self, table: Any, *, reset: bool) -> Any:
        """Checked covariates; sets or checks their names and number."""
        if self._formula is None:
            return check_covariates(self, table, reset=reset)
        if len(table.columns):
            check_covariates(self, table, reset=reset)
        elif not len(table):
            raise ValueError(
                "X is empty: found 0 samples while a minimum of 1 is required; pass at least one row"
            )
        elif reset:  # `y ~ 1 + (1 | group)`
            self.n_features_in_, self.feature_names_in_ = 0, np.array([], dtype=object)
        # As it came: the check makes numbers of whole numbers, which may name categories.
        return table

    def _y_of(self, X: Any, y: Any, *, required: bool = True) -> Any:
        """Outcomes y, or the column of the table that the formula names."""
        if y is None and self._formula is not None and self._formula.outcome is not None:
            return self._formula.outcome_of(X)
        if y is None and required:
            check_is_fitted(self)
            check_outcome(y, 0)  # says that it is missing
        return y

    def _context(self, context: Any) -> tuple[Any, Any, Any]:
        """Rows, outcomes and labels of a context."""
        if self._formula is not None and (isinstance(context, pd.DataFrame) or is_polars(context)):
            context = (context, None, None)
        if not isinstance(context, (tuple, list)) or len(context) != 3:
            raise ValueError("context must be a triple (X, y, groups): rows, outcomes and their labels")
        X, y, groups = context
        return X, self._y_of(X, y), groups
