"""How the tables of a regression become batches: covariates, outcomes and labels, with a formula or not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skgroupvae.batch import Batch
from skgroupvae.data.checks import (
    SeenColumns,
    check_covariates,
    check_trials,
    check_varies,
    check_weights,
)
from skgroupvae.data.columns import Column, Outcomes, read_outcomes
from skgroupvae.data.design import Design, PlainDesign
from skgroupvae.data.formula import Formula, read_formula
from skgroupvae.data.formula_design import FormulaDesign
from skgroupvae.data.labels import as_label_array, check_groups, check_labels_to_add, split_group_column
from skgroupvae.data.reader import Table, as_batch
from skgroupvae.data.tables import is_polars

__all__ = ["OutcomeReader"]

# Random slopes that "auto" takes at most, and the least variance within groups, in units of the table's, of a
# covariate that has one.
_MAX_AUTO_SLOPES, _LEAST_WITHIN = 5, 0.1


class _Known(NamedTuple):
    """Rows of a fit, checked, in the units of the table."""

    frame: Any
    outcomes: Outcomes
    labels: Any
    weights: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OutcomeReader:
    """Tables of outcomes with covariates.

    Attributes
    ----------
    owner : str
        Name of the estimator, for messages.
    seen : SeenColumns
        Covariates of the fit; with a formula the columns that its fixed part reads.
    columns : tuple of Column
        The D outcomes.
    design : Design
        What makes the design of the covariates; with a formula a FormulaDesign.
    random : tuple of int
        Columns of the design whose coefficients vary by group, the constant first.
    has_groups : bool
        Whether the fit had labels.
    group_column : str, int, list, tuple or None
        Column of the labels, where no formula names one.
    """

    owner: str
    seen: SeenColumns
    columns: tuple[Column, ...]
    design: Design
    random: tuple[int, ...]
    has_groups: bool
    group_column: str | int | list | tuple | None = None

    @classmethod
    def learn(
        cls,
        X: Any,
        y: Any,
        groups: Any,
        sample_weight: Any,
        *,
        kind: str,
        family: str,
        formula: str | None,
        random_slopes: Any,
        group_column: Any,
        owner: str,
    ) -> tuple[Self, Table]:
        """The reader of a fit, and its table without the rows of weight 0.

        Parameters
        ----------
        X, y, groups, sample_weight
            As in the estimator's `fit`.
        kind, family : str
            Of the outcomes.
        formula, random_slopes, group_column
            The estimator's parameters.
        owner : str
            Its name.

        Returns
        -------
        reader : OutcomeReader
        table : Table
        """
        said = None if formula is None else _read(formula, group_column, random_slopes, y)
        frame, labels = _split(said, group_column, X, groups)
        frame, seen = _covariates(frame, owner, is_formula=said is not None)
        if y is None and said is not None and said.outcome is not None:
            y = pd.Series(said.outcome_of(X), name=said.outcome)
        has_groups = labels is not None
        labels = check_groups(labels, len(frame), owner, warn=True)
        outcomes = read_outcomes(y, len(frame), kind)
        known = _without_weightless(frame, outcomes, labels, check_weights(sample_weight, frame))
        columns = _learned_columns(known.outcomes, kind, family)
        design = PlainDesign.learn(known.frame) if said is None else FormulaDesign.learn(said, known.frame)
        reader = cls(owner, seen, columns, design, (0,), has_groups, group_column)
        table = replace(reader._table(known), has_labels=has_groups)
        return replace(reader, random=reader._random_columns(random_slopes, table.batch)), table

    @property
    def kind(self) -> str:
        """What the outcomes hold."""
        return self.columns[0].kind

    @property
    def names(self) -> list[str]:
        """Names of the outcomes."""
        return [column.name for column in self.columns]

    @property
    def formula(self) -> Formula | None:
        """What the formula of the fit says."""
        return self.design.formula if isinstance(self.design, FormulaDesign) else None

    @property
    def center(self) -> NDArray[np.float64]:
        return np.array([column.center for column in self.columns])

    @property
    def scale(self) -> NDArray[np.float64]:
        return np.array([column.scale for column in self.columns])

    def again(
        self,
        X: Any,
        y: Any,
        groups: Any,
        sample_weight: Any,
        *,
        formula: str | None,
        random_slopes: Any,
        group_column: Any,
        is_incremental: bool = False,
    ) -> tuple[Self, Table]:
        """A table that the fit is to resume with, and the reader that follows: standardized as before.

        With `is_incremental` the rows add to those of the fit, and may be few and all alike.
        """
        asked = None if formula is None else _read(formula, group_column, random_slopes, y)
        if asked != self.formula:
            raise ValueError(
                f"formula={formula!r} is not that of the fit, so it cannot resume from there; fit a clone, "
                "or set warm_start=False"
            )
        reader = replace(self, group_column=group_column)
        frame, labels = reader.split(X, groups)
        outcomes = reader.outcomes(X, y, len(frame))
        has_groups = labels is not None
        if is_incremental:
            check_labels_to_add(labels, self.has_groups, self.owner)
        labels = check_groups(labels, len(frame), self.owner, warn=not is_incremental)
        known = _without_weightless(frame, outcomes, labels, check_weights(sample_weight, frame))
        if not is_incremental:
            _check_vary(known.outcomes)
        table = replace(reader._table(known), has_labels=has_groups)
        is_auto = isinstance(random_slopes, str)
        if not is_auto and reader._random_columns(random_slopes, table.batch) != self.random:
            raise ValueError(
                f"random_slopes={random_slopes!r} are not those of the fit, so it cannot resume from there; "
                "fit a clone, or set warm_start=False"
            )
        return replace(reader, has_groups=has_groups), table

    def split(self, X: Any, groups: Any, name: str = "X") -> tuple[Any, Any]:
        """Checked covariates, and labels or None."""
        frame, labels = _split(self.formula, self.group_column, X, groups)
        is_formula = self.formula is not None
        frame, _ = _covariates(frame, self.owner, is_formula=is_formula, seen=self.seen, name=name)
        return frame, labels

    def read(self, X: Any, y: Any, groups: Any, *, adds: bool = False) -> Table:
        """Rows with outcomes, by group; without labels each is a group of its own.

        With `adds` they are to add to the rows of the fit, whose labels they then need.
        """
        frame, labels = self.split(X, groups)
        if adds:
            check_labels_to_add(labels, self.has_groups, self.owner)
        outcomes = self.outcomes(X, y, len(frame))
        known = _Known(frame, outcomes, check_groups(labels, len(frame), self.owner), outcomes.trials)
        return replace(self._table(known), has_labels=labels is not None)

    def labeled(self, X: Any, y: Any, labels: Any) -> Table:
        """Rows with outcomes by these labels, whatever labels the table has."""
        frame, _ = self.split(X, None)
        outcomes = self.outcomes(X, y, len(frame))
        return self._table(_Known(frame, outcomes, labels, outcomes.trials))

    def rows(
        self, X: Any, groups: Any, *, y: Any = None, has_y: bool = False, trials: Any = 1
    ) -> tuple[Batch, pd.Index | None]:
        """Rows one by one, in the caller's order, with their labels or None.

        Parameters
        ----------
        X, groups
            As in `fit`.
        y : array-like, optional
            Outcomes; with `has_y`, None takes the column that the formula names. Without, the values are 0.
        has_y : bool
            Whether the rows have outcomes.
        trials : int or array-like of shape (N,)
            How many each row without outcomes counts as.

        Returns
        -------
        batch : Batch
        labels : Index of length N or None
        """
        frame, labels = self.split(X, groups)
        index = None
        if labels is not None:
            index = pd.Index(
                np.asarray(as_label_array(check_groups(labels, len(frame), self.owner))), tupleize_cols=False
            )
        design = self.design.transform(frame)
        if has_y:
            outcomes = self.outcomes(X, y, len(frame))
            return as_batch(self._encoded(outcomes), design, outcomes.trials, outcomes.mask), index
        values = np.zeros((len(frame), len(self.columns)))
        return as_batch(values, design, self.trials(trials, len(frame))), index

    def context(self, context: Any) -> Table:
        """Rows of a context: a triple (X, y, groups), or with a formula a table."""
        if self.formula is not None and (isinstance(context, pd.DataFrame) or is_polars(context)):
            context = (context, None, None)
        if not isinstance(context, (tuple, list)) or len(context) != 3:
            raise ValueError("context must be a triple (X, y, groups): rows, outcomes and their labels")
        X, y, groups = context
        frame, labels = self.split(X, groups, "X of context")
        if labels is None:
            raise ValueError("context=(X, y, groups) has no groups; pass one label a row of it")
        outcomes = self.outcomes(X, y, len(frame), "y of context")
        labels = check_groups(labels, len(frame), self.owner, name="groups of context")
        return self._table(_Known(frame, outcomes, labels, outcomes.trials))

    def trials(self, trials: Any, n_rows: int) -> NDArray[np.float64]:
        """Trials of each row (N,)."""
        family, has_trials = self.columns[0].family, self.kind == "proportion"
        return check_trials(trials, n_rows, family, has_trials=has_trials)

    def in_units(self, values: NDArray) -> NDArray[np.float64]:
        """Outcomes (*, D), not means, in the units of the table."""
        parts = [column.decode(values[..., j]) for j, column in enumerate(self.columns)]
        return np.stack(parts, axis=-1)

    def outcomes(self, X: Any, y: Any, n_rows: int, argument: str = "y") -> Outcomes:
        """Outcomes in the units of the table: `y`, or the column that the formula names."""
        if y is None and self.formula is not None and self.formula.outcome is not None:
            y = pd.Series(self.formula.outcome_of(X), name=self.formula.outcome)
        return read_outcomes(y, n_rows, self.kind, names=self.names, argument=argument)

    def _encoded(self, outcomes: Outcomes) -> NDArray[np.float64]:
        """Values (N, D) in the units of the model."""
        masks = [None] * len(self.columns) if outcomes.mask is None else list(outcomes.mask.T)
        parts = zip(self.columns, outcomes.values.T, masks, strict=True)
        return np.column_stack([column.encode(values, mask=mask) for column, values, mask in parts])

    def _table(self, known: _Known) -> Table:
        design = self.design.transform(known.frame)
        values, mask = self._encoded(known.outcomes), known.outcomes.mask
        return Table.of_rows(values, known.labels, design=design, weights=known.weights, mask=mask)

    def _random_columns(self, random_slopes: Any, batch: Batch) -> tuple[int, ...]:
        if isinstance(self.design, FormulaDesign) and self.design.formula.random:
            return (0, *self.design.random_columns()[0])
        if random_slopes is None:
            return (0,)
        if not isinstance(random_slopes, str):
            return (0, *dict.fromkeys(self.design.column_of(random_slopes)))
        # "auto": what varies most within groups.
        means = batch.groups.sum(batch.design) / batch.groups.sizes[:, None]
        within = (batch.design - batch.groups.expand(means)).square().mean(0).tolist()
        varying = [j for j in range(1, len(within)) if within[j] > _LEAST_WITHIN]
        return (0, *sorted(sorted(varying, key=lambda j: -within[j])[:_MAX_AUTO_SLOPES]))


def _read(formula: str, group_column: Any, random_slopes: Any, y: Any) -> Formula:
    """What a formula says; refuses what it and other arguments both say."""
    said = read_formula(formula)
    bars = [f"(... | {':'.join(part.groups)})" for part in said.random]
    if len(bars) > 1:
        raise ValueError(
            f"formula has the random parts {' and '.join(bars)}, but takes one grouping factor; "
            "keep one of them"
        )
    if bars:
        for name, value, is_set in (
            ("group_column", group_column, group_column is not None),
            ("random_slopes", random_slopes, not isinstance(random_slopes, str)),
        ):
            if is_set:
                raise ValueError(
                    f"{name}={value!r} is given, but formula has the random part {bars[0]}; leave one "
                    "of them out"
                )
    if said.outcome is not None and y is not None:
        raise ValueError(
            f"y is given, but formula has the outcome {said.outcome!r}; leave y out, or begin the formula "
            "with '~'"
        )
    return said


def _split(formula: Formula | None, group_column: Any, X: Any, groups: Any) -> tuple[Any, Any]:
    """Covariates and labels of a table."""
    if formula is None:
        return split_group_column(X, group_column, groups)
    frame, labels = formula.split(X, group_column, groups)
    return frame, labels[0]


def _covariates(
    frame: Any, owner: str, *, is_formula: bool, seen: SeenColumns | None = None, name: str = "X"
) -> tuple[Any, SeenColumns]:
    """Checked covariates and their columns."""
    checked, seen = check_covariates(frame, owner=owner, seen=seen, allow_no_columns=is_formula, name=name)
    # A formula has them as they came: the check makes numbers of whole numbers, which may name categories.
    return (frame if is_formula else checked), seen


def _without_weightless(
    frame: Any, outcomes: Outcomes, labels: Any, sample_weight: NDArray[np.float64]
) -> _Known:
    """Rows of a positive weight, which is their own times their trials."""
    weights = outcomes.trials * sample_weight
    if (weights > 0).all():
        return _Known(frame, outcomes, labels, weights)
    kept = weights > 0
    mask = None if outcomes.mask is None else outcomes.mask[kept]
    left = Outcomes(outcomes.values[kept], mask, outcomes.trials[kept], outcomes.names)
    return _Known(frame[kept], left, np.asarray(as_label_array(labels))[kept], weights[kept])


def _learned_columns(outcomes: Outcomes, kind: str, family: str) -> tuple[Column, ...]:
    _check_vary(outcomes)
    masks = [None] * len(outcomes.names) if outcomes.mask is None else list(outcomes.mask.T)
    parts = zip(outcomes.names, outcomes.values.T, masks, strict=True)
    return tuple(Column.learn(name, values, kind, family, mask=mask) for name, values, mask in parts)


def _check_vary(outcomes: Outcomes) -> None:
    """Refuse outcomes that are constant."""
    masks = [slice(None)] * len(outcomes.names) if outcomes.mask is None else list(outcomes.mask.T)
    for name, values, mask in zip(outcomes.names, outcomes.values.T, masks, strict=True):
        check_varies(values[mask], "y" if len(masks) == 1 else f"outcome {name!r} of y")
