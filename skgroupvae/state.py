"""What a fit leaves behind: one frozen record, replaced whole, so that a call that fails changes nothing."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from skgroupvae.data.outcome_reader import OutcomeReader
from skgroupvae.data.reader import ObservationReader
from skgroupvae.mixed_model.linear import LinearMixedModel
from skgroupvae.model.model import LatentModel, Model, ScoreModel
from skgroupvae.model.posteriors import DiagonalNormal, FullNormal
from skgroupvae.model.spec import LatentSpec, ScoreSpec
from skgroupvae.model.summaries import Summaries

__all__ = ["Choice", "FittedState", "KnownGroups", "ScoreState", "State"]


@dataclass(frozen=True, eq=False)
class KnownGroups:
    """Groups by label, and what is known of them.

    Attributes
    ----------
    labels : Index of length G
    summaries : Summaries
        Of these groups, in this order.
    """

    labels: pd.Index
    summaries: Summaries

    def positions(self, labels: pd.Index) -> NDArray[np.intp]:
        """Position of each label among the groups, -1 where there is no such group."""
        return self.labels.get_indexer(labels)

    def take(self, positions: NDArray[np.intp]) -> KnownGroups:
        """The groups at these positions, repeats allowed."""
        return KnownGroups(self.labels[positions], self.summaries.take(torch.from_numpy(positions)))

    def plus(self, other: KnownGroups) -> KnownGroups:
        """Both together: groups that occur in both have the rows of both."""
        positions = self.positions(other.labels)
        labels = pd.Index([*self.labels, *other.labels[positions < 0]], tupleize_cols=False)
        return KnownGroups(labels, self.summaries.plus(other.summaries, torch.from_numpy(positions)))

    def plus_new(self, other: KnownGroups) -> KnownGroups:
        """Both together where `other` has no labels of its own: its groups are new, and get free numbers."""
        numbers = itertools.islice((i for i in itertools.count() if i not in self.labels), len(other.labels))
        return self.plus(KnownGroups(pd.Index(list(numbers)), other.summaries))

    def posterior(self, model: Model) -> DiagonalNormal | FullNormal:
        """q(u) of each group."""
        return self.summaries.posterior(model)


@dataclass(frozen=True)
class Choice:
    """Which model a fit ended at, and why.

    Attributes
    ----------
    model : {"linear", "location_scale", "network"}
        The linear mixed model, that of groups that differ in scale as well, or a network that started at the
        first.
    reason : str
        In words.
    gain : float or None
        Nats per row by which the last model in question, the network say, made held-out groups likelier than
        a simpler one; None without a question.
    n_steps : int or None
        Steps of training after which it did best there.
    """

    model: str
    reason: str
    gain: float | None = None
    n_steps: int | None = None


@dataclass(frozen=True, eq=False)
class State:
    """All that a fitted estimator is, apart from its parameters; the fields are the format of saved files.

    Attributes
    ----------
    reader : ObservationReader or OutcomeReader
        How tables become batches.
    spec : LatentSpec or ScoreSpec
        What shapes the model.
    model : LatentModel or ScoreModel
        The fitted model, in float64.
    groups : KnownGroups
        Groups of the fit, in order of first appearance.
    history : DataFrame
        One row an epoch.
    mixed_model : LinearMixedModel
        The linear mixed model that the fit started at, of the standardized columns.
    choice : Choice
        Which model it ended at.
    """

    reader: ObservationReader | OutcomeReader
    spec: LatentSpec | ScoreSpec
    model: Model
    groups: KnownGroups
    history: pd.DataFrame
    mixed_model: LinearMixedModel
    choice: Choice

    @property
    def log_scale(self) -> float:
        """Nats a row that log densities in the units of the table are below those of standardized columns."""
        return float(np.log(self.reader.scale).sum())

    @property
    def mixed_log_likelihood(self) -> float:
        """Log-likelihood of the linear mixed model, in the units of the table."""
        return self.mixed_model.log_likelihood - int(self.groups.summaries.sizes.sum()) * self.log_scale

    def replaced(self, **changes: Any) -> Self:
        """The same with other fields."""
        return replace(self, **changes)

    def on_cpu(self) -> Self:
        """The same on the CPU, which every machine has; the model is copied only where it has to move."""
        if self.model.device.type == "cpu":
            return self
        return self.replaced(model=copy.deepcopy(self.model).cpu())


@dataclass(frozen=True, eq=False)
class FittedState(State):
    """Of a GroupVAE."""

    reader: ObservationReader
    spec: LatentSpec
    model: LatentModel


@dataclass(frozen=True, eq=False)
class ScoreState(State):
    """Of a CxVAERegressor.

    Attributes
    ----------
    n_rows : int
        Rows that the mixed model was fitted to.
    n_cells : tuple of float
        Weight of the rows of these in which each outcome is observed.
    marginal_effects : DataFrame
        Average marginal effects over these rows.
    """

    reader: OutcomeReader
    spec: ScoreSpec
    model: ScoreModel
    n_rows: int
    n_cells: tuple[float, ...]
    marginal_effects: pd.DataFrame

    @property
    def log_scale(self) -> float:
        return float(np.log(self.reader.scale) @ np.array(self.n_cells)) / self.n_rows

    @property
    def mixed_log_likelihood(self) -> float:
        return self.mixed_model.log_likelihood - self.n_rows * self.log_scale
