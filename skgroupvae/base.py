"""What every estimator shares: from a table and labels to a fitted network, and back to rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch.distributions import Normal

from skgroupvae import inference
from skgroupvae.building import NetworkSpec, build_network
from skgroupvae.columns import centre_and_scale, split_group_column
from skgroupvae.containers import CodesMixin, like_input
from skgroupvae.evidence import Evidence
from skgroupvae.groups import GroupIndex, Segments, iter_group_batches
from skgroupvae.html import FitHTMLMixin
from skgroupvae.network import GroupVAENetwork
from skgroupvae.persistence import PersistenceMixin
from skgroupvae.progress import progress_bar
from skgroupvae.starting import continued, start_from_moments
from skgroupvae.training import TrainingSettings, fit_network, history_table, resolve_schedule
from skgroupvae.validation import (
    check_groups,
    check_hidden_sizes,
    check_noise_scale,
    check_table,
    resolve_device,
    unchanged_on_error,
)

__all__ = ["GroupedEstimator"]

# More instance codes than this are an explicit choice.
_MAX_AUTO_INSTANCE_CODES = 10
# Groups a chunk of inference at most; iter_group_batches bounds its rows.
_CHUNK_GROUPS = 16_384


class GroupedEstimator(
    CodesMixin, FitHTMLMixin, PersistenceMixin, TransformerMixin, BaseEstimator, auto_wrap_output_keys=None
):  # type: ignore[call-arg]
    """Base class: fits the network of the parameters that its subclass declares.

    The subclass has the constructor and the public methods; this class has what they share.
    """

    network_: GroupVAENetwork

    def update_groups(self, X: Any, *, groups: Any = None) -> Self:
        """Add rows to what is known of their groups; the networks stay as they are.

        The evidence of a group adds up over its rows, so the codes are those that all rows at once give.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows of groups of the fit or of new ones.
        groups : array-like of shape (n_rows,), optional
            Group label of each row.

        Returns
        -------
        self : estimator
        """
        x, index = self._read(X, groups)
        rows = self._to_tensor(self._standardize(x))
        self._set_evidence(self._evidence.plus(Evidence.of_rows(self.network_, rows, index)))
        return self

    def _fit(self, X: Any, groups: Any) -> None:
        """Fit; nothing of the estimator changes if it fails."""
        with unchanged_on_error(self):
            self._validate_params()
            resume = self.warm_start and hasattr(self, "network_")
            x, labels = self._read_for_fit(X, groups, reset=not resume)
            if not resume:
                self._centre, self._scale = centre_and_scale(x)
            standard = self._standardize(x)
            # Ordered by standardised values, so that the units of a column do not change the fit.
            index = GroupIndex.from_labels(labels, standard)
            seeds = check_random_state(self.random_state)
            # Held-out groups have a seed of their own: they must not depend on the networks that are built.
            generator, split = (
                torch.Generator().manual_seed(int(seeds.randint(2**31 - 1))) for _ in range(2)
            )
            network = self._empty_network(generator).to(resolve_device(self.device))
            rows = self._to_tensor(standard, network)
            if resume:
                network = continued(self.network_, network)
            else:
                start_from_moments(network, rows.float(), index)
            self.network_ = network
            history = self._train(rows.float(), index, index.by_content(standard), generator, split)
            self.history_ = history_table(history)
            self._finish(Evidence.of_rows(network.double(), rows, index))

    def _partial_fit(self, X: Any, groups: Any) -> None:
        """One pass over new rows; nothing of the estimator changes if it fails."""
        with unchanged_on_error(self):
            self._validate_params()
            x, labels = self._read_for_fit(X, groups, reset=False)
            standard = self._standardize(x)
            index = GroupIndex.from_labels(labels, standard)
            seed = int(check_random_state(self.random_state).randint(2**31 - 1)) + self.n_iter_
            generator = torch.Generator().manual_seed(seed)
            network = continued(self.network_, self._empty_network(generator).to(self._device))
            # What is stored of the earlier rows is what this part made of them.
            network.freeze_evidence()
            self.network_ = network
            rows = self._to_tensor(standard)
            history = fit_network(
                network,
                rows.float(),
                index,
                self._settings(
                    index.n_groups,
                    max_epochs=1,
                    learning_rate=0.1 * self.learning_rate,
                    is_incremental=True,
                ),
                train_groups=index.by_content(standard),
                validation_groups=np.empty(0, dtype=np.intp),
                generator=generator,
            )
            self.history_ = pd.concat([self.history_, history_table(history, self.n_iter_)])
            self._finish(self._evidence.plus(Evidence.of_rows(network.double(), rows, index)))

    def _read_for_fit(self, X: Any, groups: Any, *, reset: bool) -> tuple[NDArray[np.floating], Any]:
        table, groups = split_group_column(X, self.group_column, groups)
        x = check_table(self, table, reset=reset)
        labels = check_groups(groups, x.shape[0], type(self).__name__, warn=True)
        self._has_groups = groups is not None
        return x, labels

    def _empty_network(self, generator: torch.Generator) -> GroupVAENetwork:
        """Untrained network that the constructor's parameters and the columns of the fit ask for."""
        n_features = len(self._centre)
        spec = NetworkSpec(
            group_encoder=self.group_encoder,
            instance_encoder=self.instance_encoder,
            regularizer=self.regularizer,
            decoder=self.decoder,
            n_group_codes=self.n_group_codes,
            n_instance_codes=self.n_instance_codes or min(n_features, _MAX_AUTO_INSTANCE_CODES),
            hidden_sizes=check_hidden_sizes(self.hidden_sizes),
            noise_scale=check_noise_scale(self.noise_scale, self._scale),
        )
        return build_network(spec, self._centre, self._scale, generator)

    def _finish(self, evidence: Evidence) -> None:
        """The fitted attributes that follow from the network, its history and the groups' evidence."""
        # Training needs speed, inference digits: in float64 the codes of a group do not depend on its batch.
        self.network_.eval().requires_grad_(False).double()
        self.n_iter_ = len(self.history_)
        self.noise_scale_ = self.network_.decoder.noise_scale.cpu().numpy() * self._scale
        self._set_evidence(evidence)

    def _set_evidence(self, evidence: Evidence) -> None:
        self._evidence = evidence
        q_u = evidence.posterior(self.network_)
        self.group_codes_, self.group_codes_std_ = evidence.code_tables(q_u)

    def _settings(self, n_groups: int, **changes: Any) -> TrainingSettings:
        """Settings of a fit of so many groups, and what an incremental fit has different."""
        max_epochs, batch_size = resolve_schedule(self.max_epochs, self.batch_size, n_groups)
        settings = TrainingSettings(
            max_epochs=max_epochs,
            batch_size=batch_size,
            learning_rate=self.learning_rate,
            n_decoder_samples=self.n_decoder_samples,
            regularizer_weight=self.regularizer_weight,
            early_stopping=self.early_stopping,
            n_iter_no_change=self.n_iter_no_change,
            tol=self.tol,
        )
        return replace(settings, early_stopping=False, **changes) if changes else settings

    def _train(
        self,
        rows: torch.Tensor,
        index: GroupIndex,
        groups: NDArray[np.intp],
        generator: torch.Generator,
        split: torch.Generator,
    ) -> list[dict[str, float]]:
        n_held_out = 0
        if self.early_stopping:
            if index.n_groups < 2:
                raise ValueError(
                    "early_stopping=True needs at least 2 groups to hold one out, but all rows "
                    f"(n_samples={len(rows)}) are one group; set it to False"
                )
            n_held_out = int(np.clip(round(self.validation_fraction * index.n_groups), 1, index.n_groups - 1))
            groups = groups[torch.randperm(index.n_groups, generator=split).numpy()]
        return fit_network(
            self.network_,
            rows,
            index,
            self._settings(index.n_groups - n_held_out),
            train_groups=groups[n_held_out:],
            validation_groups=groups[:n_held_out],
            generator=generator,
            progress=progress_bar(self.verbose),
        )

    @property
    def _n_instance_codes(self) -> int:
        return self.network_.decoder.n_instance_codes

    @property
    def _device(self) -> torch.device:
        return self.network_.decoder.log_noise.device

    def _standardize(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        return (x - self._centre) / self._scale

    def _to_tensor(
        self, standard: NDArray[np.float64], network: GroupVAENetwork | None = None
    ) -> torch.Tensor:
        device = (network or self.network_).decoder.log_noise.device
        return torch.from_numpy(np.ascontiguousarray(standard)).to(device)

    def _in_units(self, values: NDArray, dtype: Any) -> NDArray:
        """Standardised rows (N, D) back in the units of X."""
        return (values.astype(np.float64) * self._scale + self._centre).astype(dtype)

    def _read(
        self, X: Any, groups: Any, names: tuple[str, str] = ("X", "groups")
    ) -> tuple[NDArray[np.floating], GroupIndex]:
        """Rows (in the units of X) and groups of a table that the fitted estimator is asked about."""
        check_is_fitted(self)
        table, groups = split_group_column(X, self.group_column, groups)
        x = check_table(self, table, reset=False, name=names[0])
        labels = check_groups(groups, x.shape[0], type(self).__name__, name=names[1])
        if groups is None and self._has_groups:
            warnings.warn(
                f"{type(self).__name__} was fitted with groups and now got none, so each of these rows is "
                "taken for a group of its own; pass groups=, or set group_column before the fit",
                UserWarning,
                stacklevel=4,
            )
        return x, GroupIndex.from_labels(labels, self._standardize(x))

    def _chunks(
        self, x: NDArray[np.floating], index: GroupIndex, evidence: Evidence | None = None
    ) -> Iterator[tuple[NDArray[np.intp], torch.Tensor, Normal, Segments]]:
        """Whole groups at a time: (row positions, standardised rows, q(u) of their groups, segments).

        q(u) comes from `evidence`, one entry a group of `index`; without it, from the rows themselves.
        """
        rows = self._to_tensor(self._standardize(x))
        if evidence is None:
            evidence = Evidence.of_rows(self.network_, rows, index)
        for batch in iter_group_batches(index.sizes, _CHUNK_GROUPS):
            where, segments = index.rows_of(batch)
            chunk = rows[torch.from_numpy(where).to(rows.device)]
            yield where, chunk, evidence.take(batch).posterior(self.network_), segments.to(rows.device)

    def _like_input(self, values: NDArray, original: Any, labels: Any = None) -> Any:
        """Rows in the container of X, with the group columns back in their place."""
        if self.group_column is not None and labels is None:
            _, labels = split_group_column(original, self.group_column, None)
        return like_input(values, original, self.group_column, labels)

    def _known_evidence(self, context: Any) -> Evidence:
        """What is known of the groups: from the fit, and from the rows of context=(X, groups)."""
        if context is None or (isinstance(context, str) and context == "fit"):
            return self._evidence
        if not isinstance(context, (tuple, list)) or len(context) != 2:
            raise ValueError("context must be a pair (X, groups): rows and their labels; or None")
        if context[1] is None and self.group_column is None:
            raise ValueError("context=(X, groups) has no groups; pass one label a row of it")
        x, index = self._read(context[0], context[1], ("X of context", "groups of context"))
        added = Evidence.of_rows(self.network_, self._to_tensor(self._standardize(x)), index)
        return self._evidence.plus(added)

    def _prior(self, known: Evidence, labels: pd.Index) -> Normal:
        """What is known of u of these groups: its posterior, or the standard normal for a new label."""
        positions = known.positions(labels)
        loc = np.zeros((len(labels), self.n_group_codes))
        scale = np.ones_like(loc)
        q_u = known.take(positions[positions >= 0]).posterior(self.network_)
        loc[positions >= 0], scale[positions >= 0] = q_u.loc.cpu().numpy(), q_u.scale.cpu().numpy()
        loc_tensor, scale_tensor = (torch.from_numpy(part).to(self._device) for part in (loc, scale))
        return Normal(loc_tensor, scale_tensor, validate_args=False)

    def _evidence_of_new(self, x: NDArray[np.floating], labels: pd.Index) -> Evidence:
        """Evidence of the rows whose group does not occur in the fit."""
        new = self._evidence.positions(labels) < 0
        if not new.any():
            return self._evidence.take(np.empty(0, dtype=np.intp))
        standard = self._standardize(x[new])
        index = GroupIndex.from_labels(np.asarray(labels[new]), standard)
        return Evidence.of_rows(self.network_, self._to_tensor(standard), index)

    def _translate(
        self, x: NDArray[np.floating], source: pd.Index, evidence: Evidence, target: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """Standardised rows with their own v and the u at position `target` of `evidence`."""
        index = GroupIndex.from_labels(np.asarray(source), self._standardize(x))
        at_source = evidence.positions(index.labels)
        stays = at_source[index.codes] == target
        values = np.empty(x.shape)
        with torch.no_grad():
            for where, rows, q_u, segments in self._chunks(x, index, evidence.take(at_source)):
                q_v = inference.instance_posterior(self.network_, rows, q_u, segments)
                q_target = evidence.take(target[where]).posterior(self.network_)
                values[where] = inference.translate(self.network_, q_v, q_target).cpu().numpy()
                if stays[where].any():
                    own = inference.reconstruct(self.network_, rows, q_u, segments).cpu().numpy()
                    values[where] = np.where(stays[where, None], own, values[where])
        return values

    def _decode(self, u: NDArray, v: NDArray) -> NDArray[np.float64]:
        """Mean of rows with these codes, in the units of X."""
        u_tensor, v_tensor = (torch.tensor(c, dtype=torch.float64, device=self._device) for c in (u, v))
        with torch.no_grad():
            mean = self.network_.decoder.mean(u_tensor, v_tensor)
        return self._in_units(mean.cpu().numpy(), np.float64)
