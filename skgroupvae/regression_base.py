"""What a grouped regression does behind its public methods: start, train, keep evidence, read tables."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from skgroupvae.columns import caller_level, centre_and_scale, some
from skgroupvae.containers import CodesMixin
from skgroupvae.evidence import Evidence
from skgroupvae.families import FAMILIES, Family
from skgroupvae.groups import GroupIndex, as_label_array
from skgroupvae.html import FitHTMLMixin
from skgroupvae.regression import prediction
from skgroupvae.regression.encoder import FullNormal
from skgroupvae.regression.network import RegressionNetwork
from skgroupvae.regression_fit import RegressionFit
from skgroupvae.regression_input import RegressionInput
from skgroupvae.several import SeveralOutcomesMixin, each_outcome, texts
from skgroupvae.validation import (
    check_groups,
    check_outcome,
    check_trials,
    check_varies,
    check_weights,
)

__all__ = ["GroupedRegressor"]

# Random slopes that "auto" takes at most.
_MAX_AUTO_SLOPES = 5
# Draws of u times rows that a chunk of predictions holds at most: what fits a cache is quickest.
_CHUNK_NUMBERS = 2**15
# Larger tables of continuous outcomes are predicted in single precision (relative error about 1e-6), twice as
# fast; log densities of large counts would lose digits.
_MAX_DOUBLE_ROWS = 20_000


class GroupedRegressor(
    RegressionFit,
    CodesMixin,
    FitHTMLMixin,
    RegressionInput,
    SeveralOutcomesMixin,
    RegressorMixin,
    TransformerMixin,
    BaseEstimator,
    auto_wrap_output_keys=None,
):  # type: ignore[call-arg]
    """Base class; the subclass has the constructor and the public methods."""

    network_: RegressionNetwork
    _n_instance_codes = 1

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _code_names(self, kind: str) -> list[str]:
        if not hasattr(self, "outcomes_"):
            return super()._code_names(kind)
        return [
            f"{name}_{code}" for name, model in self.outcomes_.items() for code in model._code_names(kind)
        ]

    def _start_outcome(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Check the outcome, learn its units, and return it in those of the network."""
        if FAMILIES[self.family].has_grades:
            self.classes_ = np.unique(y)
        family = self._family()
        family.check_outcome(y)
        self._centre, self._scale = 0.0, 1.0
        if family.is_continuous:
            self._centre, self._scale = map(float, centre_and_scale(y))
        return self._inner(y)

    def _further_outcome(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Check an outcome that the fit is to go on with, and return it in the units of the network."""
        if self.family != self._fitted_family:
            raise ValueError(
                f"family={self.family!r} is not the {self._fitted_family!r} of the fit, so it cannot go on "
                "from there; fit a clone, or set warm_start=False"
            )
        self._family().check_outcome(y)
        return self._inner(y)

    def _family(self) -> Family:
        kind = FAMILIES[self._fitted_family]
        return kind(self.classes_) if kind.has_grades else kind()

    def _outcome(self, y: Any, n_rows: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Outcome of each row in the units of y, and how many (trials) it counts as."""
        kind = FAMILIES[self._fitted_family]
        return kind.as_rows(check_outcome(y, n_rows, kind.columns))

    def _trials(self, trials: Any, n_rows: int) -> NDArray[np.float64]:
        family = self._fitted_family
        return check_trials(trials, n_rows, family, has_trials=FAMILIES[family].has_trials)

    def _inner(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Outcome in the units of the network."""
        return (self._family().encode(y) - self._centre) / self._scale

    def _outer(self, values: torch.Tensor) -> NDArray[np.float64]:
        """Outcome (not a mean) in the units of y."""
        return self._family().decode(values.cpu().numpy() * self._scale + self._centre)

    def _keep_random_columns(self, design: NDArray[np.float64], index: GroupIndex) -> None:
        """Refuse random slopes that are not those of the fit; "auto" keeps those."""
        is_auto = isinstance(self.random_slopes, str)
        if not is_auto and self._random_columns(design, index) != self._random:
            raise ValueError(
                f"random_slopes={self.random_slopes!r} are not those of the fit, so it cannot go on from "
                "there; fit a clone, or set warm_start=False"
            )

    def _random_columns(self, design: NDArray[np.float64], index: GroupIndex) -> list[int]:
        in_formula = self._random_terms()
        if in_formula is not None:
            return [0, *in_formula]
        if self.random_slopes is None:
            return [0]
        if not isinstance(self.random_slopes, str):
            return [0, *dict.fromkeys(self._design.column_of(self.random_slopes))]
        ordered = design[index.order]
        means = np.add.reduceat(ordered, index.starts[:-1]) / index.sizes[:, None]
        within = ((ordered - np.repeat(means, index.sizes, axis=0)) ** 2).mean(axis=0)
        varying = [j for j in range(1, design.shape[1]) if within[j] > 0.1]
        best = sorted(varying, key=lambda j: -within[j])[:_MAX_AUTO_SLOPES]
        return [0, *sorted(best)]

    def _set_evidence(self, evidence: Evidence) -> FullNormal:
        """Take on what is known of the groups; returns their posterior."""
        self._evidence = evidence
        q_u = evidence.posterior(self.network_)
        self.group_codes_, self.group_codes_std_ = evidence.code_tables(q_u)
        self.group_effects_ = self._effects_of(q_u, evidence)
        self.new_group_codes_ = self._codes_of_new(q_u, evidence)
        return q_u

    @each_outcome(texts)
    def summary(self) -> str:
        """Table of the mixed model that the fit starts at, and of the fit, to print.

        Returns
        -------
        text : str
        """
        check_is_fitted(self)
        sizes = self._evidence.sizes
        lower, upper = self.intraclass_correlation_interval_
        head = {
            "Family": self._fitted_family,
            "Decoder": "mixed model" if self.is_mixed_model_ else "mixed model and network",
            "Rows": f"{sizes.sum():,}",
            "Groups": f"{len(sizes):,} of {sizes.min()} to {sizes.max()} rows",
            "Log-likelihood of the mixed model": f"{self.mixed_model_log_likelihood_:.3f}",
            "Intraclass correlation": f"{self.intraclass_correlation_:.3f} ({lower:.3f} to {upper:.3f})",
        }
        lines = [f"{name + ':':36s}{value}" for name, value in head.items()]
        tables = {
            "Fixed effects (Wald intervals, 95 %)": self.fixed_effects_,
            "Variance components (intervals of 95 %)": self.variance_components_,
        }
        if not self.is_mixed_model_ or self._fitted_family != "gaussian":
            tables["Average marginal effects"] = self.marginal_effects_
        if len(self._random) > 1:
            covariance = self.random_effects_covariance_
            sds = np.sqrt(np.diag(covariance))
            tables["Correlations of the random effects"] = covariance.div(sds, axis=0).div(sds, axis=1)
        for title, table in tables.items():
            lines += ["", title, table.to_string(float_format=lambda x: f"{x:.4f}")]
        return "\n".join(lines)

    def _effects_of(self, q_u: FullNormal, evidence: Evidence) -> pd.DataFrame:
        """What each group adds at the mean covariates, and to the slope of each random covariate."""
        at_mean = torch.zeros(1, len(self._design.names), dtype=torch.float64, device=q_u.loc.device)
        at_mean[0, 0] = 1.0
        draws = prediction.draws_of(q_u, self.n_prediction_samples)
        prior = prediction.draws_of(self._prior(), 4 * self.n_prediction_samples)
        base, base_prior = (self._mean_at(at_mean, u) for u in (draws, prior))
        table: dict[str, NDArray] = {}
        for column in self._random:
            value, average, step, unit = base, base_prior, 1.0, 1.0
            if column:
                moved = at_mean.clone()
                moved[0, column] += 0.1
                step, unit = 0.1, float(self._design.scale[column])
                value, average = self._mean_at(moved, draws) - base, self._mean_at(moved, prior) - base_prior
            effect = (value - average.mean()) / (step * unit) * self._scale
            name = self._design.names[column]
            table[name] = effect.mean(0).cpu().numpy()
            table[f"{name} sd"] = effect.std(0, correction=0).cpu().numpy()
        return pd.DataFrame(table | {"n_rows": evidence.sizes}, index=evidence.labels)

    def _mean_at(self, design: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """Mean outcome (S, G) of one row of the design in each group."""
        decoder = self.network_.decoder
        return decoder.family.mean(decoder(design.expand(u.shape[1], -1), u))

    def _codes_of_new(self, q_u: FullNormal, evidence: Evidence) -> NDArray[np.float64]:
        """Mean of u of a group that no row is known of; the mixed model has 0."""
        if self.is_mixed_model_:
            return np.zeros(q_u.loc.shape[1])
        return (
            prediction.mean_by_rows(q_u.loc, torch.from_numpy(evidence.totals[:, 0]).to(q_u.loc))
            .cpu()
            .numpy()
        )

    def _new_group(self) -> FullNormal:
        """u of a group that no row is known of."""
        prior = self._prior()
        return replace(prior, loc=prior.loc + torch.from_numpy(self.new_group_codes_).to(prior.loc))

    def _prior(self) -> FullNormal:
        """Of one group."""
        n_codes = self.network_.decoder.n_group_codes
        like = self.network_.decoder.fixed
        root = torch.eye(n_codes, dtype=like.dtype, device=like.device)[None]
        return FullNormal(like.new_zeros(1, n_codes), root, like.new_zeros(1))

    def _posterior(self, labels: pd.Index, context: Any) -> tuple[FullNormal, NDArray[np.intp]]:
        """q(u) of each distinct label, the prior first, and the position of each row's label among them."""
        known = self._evidence
        if context is not None:
            rows, of_rows = self._read(*self._context(context))
            known = known.plus(self._evidence_of(rows, of_rows))
        where = known.positions(labels)
        used, position = np.unique(where, return_inverse=True)
        prior = self._new_group()
        used = used[used >= 0]
        q_u = known.take(used).posterior(self.network_)
        both = FullNormal(
            *(torch.cat([getattr(q, n) for q in (prior, q_u)]) for n in ("loc", "root", "log_det"))
        )
        return both, position + (0 if (where < 0).any() else 1)

    def _own_labels(self, n_rows: int) -> NDArray[np.intp]:
        """Labels of rows that are groups of their own, beside those that the fit made so."""
        if self._has_groups:
            raise ValueError(
                f"groups is missing, and {type(self).__name__} was fitted with groups; pass one label a row"
            )
        return len(self._evidence.labels) + np.arange(n_rows)

    def _evidence_of(self, rows: torch.Tensor, labels: Any) -> Evidence:
        labels = self._own_labels(len(rows)) if labels is None else labels
        return Evidence.of_rows(self.network_, rows, self._index_of(rows, labels))

    @staticmethod
    def _index_of(rows: torch.Tensor, labels: Any) -> GroupIndex:
        """Groups of rows; without labels each row is one."""
        own = np.arange(len(rows)) if labels is None else labels
        return GroupIndex.from_labels(own, rows.cpu().numpy())

    # --- reading tables

    def _rows(self, y: Any, design: NDArray[np.float64], trials: Any = 1) -> torch.Tensor:
        """Rows of the network (N, 2 + P); without y the outcomes are 0, of so many trials."""
        if y is None:
            inner, weights = np.zeros(len(design)), self._trials(trials, len(design))
        else:
            outcome, weights = self._outcome(y, len(design))
            self._family().check_outcome(outcome)
            inner = self._inner(outcome)
        rows = self._stacked(inner, weights, design)
        return rows.to(self.network_.decoder.fixed.device)

    @staticmethod
    def _stacked(
        inner: NDArray[np.float64], weights: NDArray[np.float64], design: NDArray[np.float64]
    ) -> torch.Tensor:
        return torch.from_numpy(np.column_stack([inner, weights, design]))

    def _read_for_fit(
        self, X: Any, y: Any, groups: Any, sample_weight: Any, *, reset: bool, constant: bool = False
    ) -> tuple[Any, NDArray[np.float64], Any, NDArray[np.float64]]:
        """Covariates, outcome, labels and weights of the rows that count."""
        if reset:
            self._design = self._empty_design(y)
        else:
            self._keep_formula(y)
        table, groups = self._split(X, groups)
        table = self._covariates(table, reset=reset)
        outcome, trials = self._outcome(self._y_of(X, y, required=False), len(table))
        if constant and groups is None:
            labels = self._own_labels(len(table))
        else:
            self._has_groups = groups is not None
            labels = check_groups(groups, len(table), type(self).__name__, warn=True)
        weights = trials * check_weights(sample_weight, table)
        if (weights == 0).any():
            kept = weights > 0
            table, outcome, weights = table[kept], outcome[kept], weights[kept]
            labels = np.asarray(labels)[kept]
        if not constant:
            check_varies(outcome)
        return table, outcome, labels, weights

    def _read(self, X: Any, y: Any, groups: Any, trials: Any = 1) -> tuple[torch.Tensor, Any]:
        """Rows of the network, as `_rows`, and labels; without groups there are none."""
        check_is_fitted(self)
        table, groups = self._split(X, groups)
        table = self._covariates(table, reset=False)
        design = self._design.transform(table)
        rows = self._rows(y, design, trials)
        if groups is not None:
            groups = check_groups(groups, len(design), type(self).__name__)
        return rows, groups

    def _chunks(
        self, X: Any, y: Any, groups: Any, context: Any, strict_groups: bool = False, trials: Any = 1
    ) -> Iterator[tuple[Family, torch.Tensor, torch.Tensor]]:
        """Some rows at a time: (their family, outcomes in it, their eta (S, n, n_parameters))."""
        rows, labels = self._read(X, y, groups, trials)
        _warn_of_idle_context(context, labels)
        if labels is None:
            q_u, position = self._new_group(), np.zeros(len(rows), dtype=np.intp)
        else:
            index = pd.Index(np.asarray(labels), tupleize_cols=False)
            q_u, position = self._posterior(index, context)
            if strict_groups and (position == 0).any():
                raise ValueError(
                    f"groups has the label {index[position == 0][0]!r}, which neither the fit nor the "
                    "context has; pass rows of it as context=(X, y, groups), or strict_groups=False"
                )
        draws, decoder = prediction.draws_of(q_u, self.n_prediction_samples), self.network_.decoder
        if len(rows) > _MAX_DOUBLE_ROWS and decoder.family.is_continuous:
            draws, rows, decoder = draws.float(), rows.float(), copy.deepcopy(decoder).float()
        size = max(1, _CHUNK_NUMBERS // self.n_prediction_samples)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            u = draws.index_select(1, torch.from_numpy(position[part]).to(draws.device))
            yield *decoder.family.of_rows(rows[part, 0], rows[part, 1]), decoder(rows[part, 2:], u)


def _warn_of_idle_context(context: Any, labels: Any) -> None:
    """Context of groups that no row asks about changes nothing, and may be a misspelt label."""
    if not isinstance(context, (tuple, list)) or len(context) != 3 or context[2] is None:
        return
    given = pd.Index(as_label_array(context[2]), tupleize_cols=False).unique()
    if labels is not None:
        given = given[~given.isin(pd.Index(np.asarray(labels), tupleize_cols=False))]
    if len(given):
        warnings.warn(
            f"context has groups {some(list(given))} that no row of X belongs to; they are ignored",
            UserWarning,
            stacklevel=caller_level(),
        )
