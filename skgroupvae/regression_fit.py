"""How a regression is fitted: from the mixed model to a trained network, and when it stays at that model."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from skgroupvae.design import Design
from skgroupvae.evidence import Evidence
from skgroupvae.families import FAMILIES, Family
from skgroupvae.groups import GroupIndex
from skgroupvae.progress import progress_bar
from skgroupvae.regression.decoder import RegressionDecoder
from skgroupvae.regression.encoder import MixedModelEncoder
from skgroupvae.regression.marginal import marginal_effects
from skgroupvae.regression.mixed_model import LinearMixedModel
from skgroupvae.regression.network import RegressionNetwork
from skgroupvae.regression.rows import RowsEncoder, build_rows_encoder, build_rows_regularizer
from skgroupvae.regression.start import mixed_log_likelihood, mixed_model_of, start_at_mixed_model
from skgroupvae.regression.tables import MixedModelTables
from skgroupvae.regression.training import TrainingSettings, fit_network, history_table, resolve_schedule
from skgroupvae.several import has_several
from skgroupvae.starting import continued
from skgroupvae.validation import check_hidden_sizes, forget_learned, resolve_device, unchanged_on_error

__all__ = ["RegressionFit"]

# Steps of "auto": with few groups there is little to learn from them, and much to overfit
# (examples/mixed_model_benchmark.py).
_MIN_AUTO_STEPS, _MAX_AUTO_STEPS = 200, 800
_AUTO_STEPS_PER_ROOT = 25
# With so few groups a network is kept only if it pays on groups held out, each in one of so many folds.
_FEW_GROUPS, _FOLDS = 40, 4
_BOUND_REPEATS = 8


class RegressionFit(BaseEstimator):
    """Base class of `GroupedRegressor`, which reads tables and keeps what is known of groups."""

    network_: RegressionNetwork
    is_mixed_model_: bool
    _is_anchored: bool
    n_iter_: int
    history_: pd.DataFrame
    _design: Design
    _random: list[int]
    _centre: float
    _scale: float

    def _fit(self, X: Any, y: Any, groups: Any, sample_weight: Any) -> None:
        """Fit; nothing of the estimator changes if it fails."""
        with unchanged_on_error(self):
            self._validate_params()
            if has_several(y, FAMILIES[self.family].columns):
                self._fit_each(X, y, groups, sample_weight)
                return
            resume = self.warm_start and hasattr(self, "network_") and not hasattr(self, "outcomes_")
            if not resume:
                forget_learned(self)
                self._fitted_family = self.family
            self._is_anchored = False
            table, outcome, labels, weights = self._read_for_fit(
                X, y, groups, sample_weight, reset=not resume
            )
            if not resume:
                self._design = self._learn_design(table)
            inner = self._further_outcome(outcome) if resume else self._start_outcome(outcome)
            rows = self._stacked(inner, weights, self._design.transform(table))
            index = GroupIndex.from_labels(labels, rows.numpy())
            design = rows[:, 2:].numpy()
            if resume:
                self._keep_random_columns(design, index)
            else:
                self._random = self._random_columns(design, index)
            try:
                self._fit_network(rows, index, self._generator(), resume)
            except torch.linalg.LinAlgError as error:
                raise ValueError(
                    "the mixed model has no estimates: X (nearly) tells y without error, or columns of X are "
                    "sums of others; drop these columns"
                ) from error
            rows = rows.to(self.network_.decoder.fixed.device)
            q_u = self._set_evidence(Evidence.of_rows(self.network_, rows, index))
            self.marginal_effects_ = marginal_effects(
                self.network_,
                self._design,
                rows,
                index.codes,
                q_u,
                self._scale,
                self.fixed_effects_["std_error"].to_numpy()[1:],
            )

    def _partial_fit(self, X: Any, y: Any, groups: Any, sample_weight: Any) -> None:
        """One pass over new rows; nothing of the estimator changes if it fails."""
        with unchanged_on_error(self):
            self._validate_params()
            table, outcome, labels, weights = self._read_for_fit(
                X, y, groups, sample_weight, reset=False, constant=True
            )
            rows = self._stacked(self._further_outcome(outcome), weights, self._design.transform(table))
            index = GroupIndex.from_labels(labels, rows.numpy())
            self._keep_random_columns(rows[:, 2:].numpy(), index)
            self._learn_on(rows, index)
            rows = rows.to(self.network_.decoder.fixed.device)
            self._set_evidence(self._evidence.plus(Evidence.of_rows(self.network_, rows, index)))

    def _learn_on(self, rows: torch.Tensor, index: GroupIndex) -> None:
        """One pass over these rows, from the fitted network, with the evidence of rows as it is."""
        # With another decoder the networks differ, and that is refused.
        self.is_mixed_model_ = self.is_mixed_model_ or self.decoder == "linear"
        was_anchored, self._is_anchored = self._is_anchored, True
        generator = self._generator(self.n_iter_)
        device = self.network_.decoder.fixed.device
        network = self._continued(self._empty_network(generator).to(device), len(rows))
        changes = {"max_epochs": 1, "learning_rate": 0.1 * self.learning_rate, "is_incremental": True}
        history = self._train(network, rows, index, generator, **changes)
        if history.empty:
            self._is_anchored = was_anchored
            return
        self.network_ = network.eval().requires_grad_(False).double()
        self.history_ = pd.concat([self.history_, history.set_axis(history.index + self.n_iter_)])
        self.n_iter_ += len(history)

    def _generator(self, n_before: int = 0) -> torch.Generator:
        """Source of the draws of a fit, or of one that goes on after so many epochs."""
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return torch.Generator().manual_seed(seed + n_before)

    def _fit_network(
        self, rows: torch.Tensor, index: GroupIndex, generator: torch.Generator, resume: bool
    ) -> None:
        """Learn the network, or leave it at the mixed model where few groups say that it does no better."""
        is_mixed_model = self.decoder == "linear"
        # Where the last fit kept the mixed model there is no network to go on from.
        resume = resume and (is_mixed_model or not self.is_mixed_model_)
        if not is_mixed_model and not resume and 1 < index.n_groups <= _FEW_GROUPS:
            is_mixed_model = not self._network_pays(rows, index, generator)
        self.is_mixed_model_ = is_mixed_model
        network = self._empty_network(generator)
        model = self._start(network, rows, index, generator)
        is_trained_mixed_model = is_mixed_model and not network.decoder.is_exact
        # What a fit that goes on has learned is never given up.
        before = (
            copy.deepcopy(network.decoder.state_dict()) if is_trained_mixed_model and not resume else None
        )
        if resume:
            fresh, network = network, self._continued(network, len(rows))
            if fresh.decoder.is_exact:
                network.decoder = fresh.decoder
        self.network_ = network.to(resolve_device(self.device))
        self.history_ = self._train(self.network_, rows, index, generator)
        self.n_iter_ = len(self.history_)
        network.eval().requires_grad_(False).double()
        if is_trained_mixed_model:
            model = self._learned(network, model, before, rows, index)
        self._set_tables(model, network.decoder.family, rows)

    def _learned(
        self,
        network: RegressionNetwork,
        start: LinearMixedModel,
        before: dict[str, torch.Tensor] | None,
        rows: torch.Tensor,
        index: GroupIndex,
    ) -> LinearMixedModel:
        """The mixed model that was learned, or its start where that is likelier: training may stray."""
        order, segments = index.rows_of(np.arange(index.n_groups))
        fixed = network.decoder.fixed
        x = rows[order].to(fixed)
        value = mixed_log_likelihood(network, x, segments.to(fixed.device))
        if before is None or value > start.log_likelihood:
            return mixed_model_of(network.decoder, replace(start, log_likelihood=value))
        network.decoder.load_state_dict(before)
        return start

    def _continued(self, fresh: RegressionNetwork, n_rows: int) -> RegressionNetwork:
        """The fitted network, ready to learn on; `fresh` is what the parameters now ask for."""
        fitted = copy.deepcopy(self.network_)
        if self._is_anchored:
            fitted.freeze_evidence()
        else:
            fitted.release_evidence()
        network = continued(fitted, fresh)
        network.decoder.set_penalty(self.weight_penalty / n_rows)
        return network

    def _network_pays(self, rows: torch.Tensor, index: GroupIndex, generator: torch.Generator) -> bool:
        """Whether groups held out are likelier under the network than under the mixed model."""
        gain = 0.0
        folds = np.array_split(torch.randperm(index.n_groups, generator=generator).numpy(), _FOLDS)
        for fold in folds:
            if not len(fold):
                continue
            held_out = np.isin(index.codes, fold)
            bounds = []
            learned = torch.from_numpy(~held_out)
            part = GroupIndex.from_labels(index.codes[~held_out], rows[learned].numpy())
            for is_mixed_model in (True, False):
                network = self._network_of(is_mixed_model, generator)
                self._start(network, rows[learned], part, generator)
                self._train(network.to(resolve_device(self.device)), rows[learned], part, generator)
                bounds.append(_held_out_bound(network, rows, index, fold, generator))
            gain += bounds[1] - bounds[0]
        return gain > 0.0

    def _empty_network(self, generator: torch.Generator) -> RegressionNetwork:
        """Untrained network that the parameters, the columns and the choice of the fit ask for."""
        network = self._network_of(self.is_mixed_model_, generator)
        if self._is_anchored:
            network.freeze_evidence()
        return network

    def _network_of(self, is_mixed_model: bool, generator: torch.Generator) -> RegressionNetwork:
        hidden, family = check_hidden_sizes(self.hidden_sizes), self._family()
        n_columns, n_random = len(self._design.names), len(self._random)
        n_codes = n_random + (0 if is_mixed_model else self.n_extra_codes)
        # One step of Newton's method is no posterior: without a correction the ELBO bends the decoder to it.
        is_exact = is_mixed_model and family.is_linear_exact
        encoder: MixedModelEncoder | RowsEncoder
        if isinstance(self.group_encoder, str) and self.group_encoder == "mixed_model":
            encoder = MixedModelEncoder(n_columns, n_codes, () if is_exact else hidden, generator)
        else:
            encoder = build_rows_encoder(self.group_encoder, n_columns, n_codes, hidden, generator)
        widths = () if is_mixed_model else hidden
        decoder = RegressionDecoder(family, n_columns, self._random, n_codes, widths, generator)
        # What is maximum likelihood already is not for the ELBO to move.
        if is_exact:
            decoder.requires_grad_(False)
        regularizer = None
        if self.regularizer is not None and not is_exact:
            regularizer = build_rows_regularizer(self.regularizer, n_columns, hidden, generator)
        return RegressionNetwork(encoder, decoder, regularizer)

    def _start(
        self, network: RegressionNetwork, rows: torch.Tensor, index: GroupIndex, generator: torch.Generator
    ) -> LinearMixedModel:
        order, segments = index.rows_of(np.arange(index.n_groups))
        return start_at_mixed_model(
            network, rows[order], segments, self.weight_penalty / len(rows), generator
        )

    def _set_tables(self, model: LinearMixedModel, family: Family, rows: torch.Tensor) -> None:
        tables = MixedModelTables(model, self._design, self._random, self._centre, self._scale, family)
        self.fixed_effects_, self.variance_components_ = tables.fixed_effects(), tables.variance_components()
        self.random_effects_covariance_ = tables.random_effects_covariance()
        self.intraclass_correlation_, *interval = tables.intraclass_correlation()
        self.intraclass_correlation_interval_ = tuple(interval)
        n_rows = float(rows[:, 1].sum())
        self.mixed_model_log_likelihood_ = model.log_likelihood - n_rows * math.log(self._scale)

    def _train(
        self,
        network: RegressionNetwork,
        rows: torch.Tensor,
        index: GroupIndex,
        generator: torch.Generator,
        **changes: Any,
    ) -> pd.DataFrame:
        """Train in place, with these changes to the settings of the parameters; returns the history."""
        if not any(parameter.requires_grad for parameter in network.parameters()):
            return history_table([])
        n_steps = _AUTO_STEPS_PER_ROOT * math.sqrt(index.n_groups)
        n_steps = min(max(n_steps, _MIN_AUTO_STEPS), _MAX_AUTO_STEPS)
        max_epochs, batch_size = resolve_schedule(self.max_epochs, self.batch_size, index.n_groups, n_steps)
        settings = TrainingSettings(
            max_epochs=max_epochs,
            batch_size=batch_size,
            learning_rate=self.learning_rate,
            n_decoder_samples=self.n_decoder_samples,
            regularizer_weight=self.regularizer_weight,
        )
        history = fit_network(
            network,
            rows.float().to(network.decoder.fixed.device),
            index,
            replace(settings, **changes),
            train_groups=index.by_content(rows.numpy()),
            validation_groups=np.empty(0, dtype=np.intp),
            generator=generator,
            progress=progress_bar(self.verbose),
        )
        return history_table(history)


@torch.no_grad()
def _held_out_bound(
    network: RegressionNetwork,
    rows: torch.Tensor,
    index: GroupIndex,
    fold: NDArray[np.intp],
    generator: torch.Generator,
) -> float:
    """ELBO of the groups at these positions, in nats."""
    held_out, segments = index.rows_of(fold)
    device = network.decoder.fixed.device
    x, segments = rows[held_out].float().to(device), segments.to(device)
    bounds = [network.elbo(x, segments, generator).elbo.sum() for _ in range(_BOUND_REPEATS)]
    return float(torch.stack(bounds).mean())
