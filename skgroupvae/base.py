"""What every estimator shares: from a table and labels to a fitted network, and back to rows."""

from __future__ import annotations

from collections.abc import Iterator
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
from skgroupvae.containers import like_input, wrap_codes
from skgroupvae.evidence import Evidence
from skgroupvae.groups import GroupIndex, Segments, iter_group_batches
from skgroupvae.network import GroupVAENetwork
from skgroupvae.progress import progress_bar
from skgroupvae.training import HISTORY_TERMS, TrainingSettings, fit_network, resolve_schedule
from skgroupvae.validation import (
    check_groups,
    check_hidden_sizes,
    check_noise_scale,
    check_table,
    column_name,
    resolve_device,
    split_group_column,
    unchanged_on_error,
)

__all__ = ["GroupedEstimator"]

# More instance codes than this are an explicit choice.
_MAX_AUTO_INSTANCE_CODES = 10
# Groups a chunk of inference at most; iter_group_batches bounds its rows.
_CHUNK_GROUPS = 16_384


class GroupedEstimator(TransformerMixin, BaseEstimator, auto_wrap_output_keys=None):  # type: ignore[call-arg]
    """Base class: fits the network of the parameters that its subclass declares.

    The subclass has the constructor and the public methods; this class has what they share.
    """

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
        """
        if transform is not None:
            self._sklearn_output_config = {"transform": transform}
        return self

    def _fit(self, X: Any, groups: Any) -> None:
        """Fit; nothing of the estimator changes if it fails."""
        with unchanged_on_error(self):
            self._fit_or_fail(X, groups)

    def _fit_or_fail(self, X: Any, groups: Any) -> None:
        self._validate_params()
        hidden = check_hidden_sizes(self.hidden_sizes)
        device = resolve_device(self.device)
        table, groups = split_group_column(X, self.group_column, groups)
        x = check_table(self, table, reset=True)
        labels = check_groups(groups, x.shape[0], type(self).__name__, warn=True)
        seeds = check_random_state(self.random_state)
        # The held-out groups have a seed of their own: they must not depend on the networks that are built.
        generator, split = (torch.Generator().manual_seed(int(seeds.randint(2**31 - 1))) for _ in range(2))

        self._centre = x.mean(axis=0, dtype=np.float64)
        spread = x.std(axis=0, dtype=np.float64)
        # A constant column (up to rounding): any scale does, and 1 keeps its units.
        self._scale = np.where(spread > 1e-12 * np.abs(self._centre), spread, 1.0)
        standard = self._standardize(x)
        # Ordered by standardised values, so that the units of a column do not change the fit.
        index = GroupIndex.from_labels(labels, standard)
        spec = NetworkSpec(
            group_encoder=self.group_encoder,
            instance_encoder=self.instance_encoder,
            regularizer=self.regularizer,
            decoder=self.decoder,
            n_group_codes=self.n_group_codes,
            n_instance_codes=self.n_instance_codes or min(x.shape[1], _MAX_AUTO_INSTANCE_CODES),
            hidden_sizes=hidden,
            noise_scale=check_noise_scale(self.noise_scale, self._scale),
        )
        network = build_network(spec, self._centre, self._scale, generator).to(device)
        self.network_ = network
        rows = torch.tensor(standard, dtype=torch.float32, device=device)
        _start(network, rows, index)
        history = self._train(rows, index, index.by_content(standard), generator, split)
        # Training needs speed, inference digits: in float64 the codes of a group do not depend on its batch.
        network.eval().requires_grad_(False).double()

        self.n_iter_ = len(history)
        epochs = pd.RangeIndex(1, len(history) + 1, name="epoch")
        self.history_ = pd.DataFrame(history, index=epochs, columns=None if history else list(HISTORY_TERMS))
        self.noise_scale_ = network.decoder.noise_scale.cpu().numpy() * self._scale
        self._evidence = Evidence.of_rows(network, self._to_tensor(standard), index)
        q_u = self._evidence.posterior(network)
        names = self._code_names("u")
        self.group_codes_ = pd.DataFrame(q_u.loc.cpu().numpy(), index=index.labels, columns=names)
        self.group_codes_std_ = pd.DataFrame(q_u.scale.cpu().numpy(), index=index.labels, columns=names)

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
        max_epochs, batch_size = resolve_schedule(
            self.max_epochs, self.batch_size, index.n_groups - n_held_out
        )
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
        return fit_network(
            self.network_,
            rows,
            index,
            settings,
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

    def _to_tensor(self, standard: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(standard)).to(self._device)

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
        """Rows in the container of X, with the group column back in its place."""
        if self.group_column is None:
            return like_input(values, original)
        _, own = split_group_column(original, self.group_column, None)
        column = self.group_column
        if isinstance(original, pd.DataFrame):
            column = column_name(original, column)
        return like_input(values, original, column, own if labels is None else labels)

    def _code_names(self, kind: str) -> list[str]:
        n_codes = self.n_group_codes if kind == "u" else self._n_instance_codes
        return [f"{kind}{j}" for j in range(n_codes)]

    def _wrap(self, X: Any, u: NDArray, v: NDArray) -> Any:
        """Codes in the container that ``set_output`` names: (u, v), or one table with `stack_codes`."""
        u_names, v_names = self._code_names("u"), self._code_names("v")
        if self.stack_codes:
            return wrap_codes(self, np.hstack([u, v]), X, u_names + v_names)
        return wrap_codes(self, u, X, u_names), wrap_codes(self, v, X, v_names)

    def _evidence_of_context(self, context: Any) -> Evidence:
        """Evidence of the rows of context=(X, groups)."""
        if not isinstance(context, (tuple, list)) or len(context) != 2:
            raise ValueError("context must be a pair (X, groups): rows and their labels")
        if context[1] is None and self.group_column is None:
            raise ValueError("context=(X, groups) has no groups; pass one label a row of it")
        x, index = self._read(context[0], context[1], ("X of context", "groups of context"))
        return Evidence.of_rows(self.network_, self._to_tensor(self._standardize(x)), index)

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


@torch.no_grad()
def _start(network: GroupVAENetwork, rows: torch.Tensor, index: GroupIndex) -> None:
    """Start at the linear mixed model that the covariances between and within groups give, where possible."""
    positions, segments = index.rows_of(np.arange(index.n_groups))
    rows = rows[torch.from_numpy(positions).to(rows.device)]
    segments = segments.to(rows.device)
    means = segments.sum(rows) / segments.sizes[:, None]
    apart = rows - segments.expand(means)
    n_rows, n_groups = rows.shape[0], index.n_groups
    # The mean of a group of K rows has the variance between groups and 1 / K of that within.
    of_means = means.mT @ means / n_groups
    if n_rows > n_groups:
        within = apart.mT @ apart / (n_rows - n_groups)
        between = of_means - n_groups / n_rows * within
    else:
        within = between = 0.5 * of_means  # one row a group: nothing tells the two apart
    loadings = network.decoder.start_from_moments(between, within)
    if loadings is not None:
        # Constant columns and few groups make it singular; the predictor of least norm does.
        network.group_encoder.start_from_predictor(loadings.mT @ torch.linalg.pinv(of_means))
