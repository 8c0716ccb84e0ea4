"""GroupVAE: the estimator of the group variational autoencoder family."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight
from torch import Tensor, nn

from skgroupvae.batch import Batch, whole_group_batches
from skgroupvae.data.checks import caller_level, check_levels
from skgroupvae.data.labels import (
    check_groups,
    check_labels_by_row,
    split_group_column,
    warn_of_unlike_labels,
)
from skgroupvae.data.reader import Table
from skgroupvae.estimators.base import GroupedEstimator, as_given, in_codes_container
from skgroupvae.estimators.known import (
    known_from,
    positions_of_targets,
    warn_of_unlike_groups,
    with_average,
    with_own,
    with_table,
)
from skgroupvae.estimators.latent_fit import fit_latent, learn_more
from skgroupvae.model import inference
from skgroupvae.model.location_scale import LocationScaleDecoder
from skgroupvae.model.model import LatentModel
from skgroupvae.model.posteriors import DiagonalNormal, FullNormal
from skgroupvae.model.spec import DECODERS, GROUP_ENCODERS, INSTANCE_ENCODERS, REGULARIZERS
from skgroupvae.state import FittedState, KnownGroups

__all__ = ["GroupVAE"]

# Groups in a chunk of inference at most; `whole_group_batches` bounds its rows.
_CHUNK_GROUPS = 16_384
# Draws behind the intervals of translations.
_TRANSLATION_SAMPLES = 512


class GroupVAE(GroupedEstimator[FittedState], auto_wrap_output_keys=None):  # type: ignore[call-arg]
    r"""Group variational autoencoder: what the rows of a group share, apart from what is each row's own.

    The model of a group's rows (section 2 of the CxVAE paper) is

    .. math:: p(x_i) = \int p(u) \prod_k \int p(v_k)\, p(x_{ik} \mid u, v_k)\, dv_k\, du

    with standard normal group code u and instance codes v. Three choices give every model of the family;
    :data:`skgroupvae.PUBLISHED_MODELS` names the published ones. The defaults are CxVAE with an instance
    encoder that starts at the decoder's own posterior.

    The fit starts at the maximum likelihood of the linear mixed model ``x = mean + a_group + e`` with full
    covariances. By default it goes on to scales of groups, and to a network, only where they make groups held
    out likelier.

    Parameters
    ----------
    n_group_codes : int or "auto", default="auto"
        Dimension U of the group code. "auto" takes as many for the linear mixed model as it has (the rank of
        the covariance between groups, 10 at most), and 2 for a network or a formula of your own. The model of
        locations and scales has the codes of each that rows tell; of a number these are locations first, but
        for one scale.
    n_instance_codes : int or "auto", default="auto"
        Dimension V of the instance code. "auto" takes one a column of X, at most 10.
    group_encoder : str, factory or Module, default="deepsets"
        How the rows of a group become q(u): "deepsets", a Deep Sets network (CxVAE); "average", the average
        of the rows' normals (Hosoya 2019); "product", their product (Bouchacourt et al. 2018); or
        "product_with_prior", with the prior that eq. 1 of the paper finds missing. A factory is called with
        the arguments of a class of :data:`skgroupvae.model.spec.GROUP_ENCODERS`; a Module is copied.
    instance_encoder : str, factory or Module, default="conditional"
        q(v given x, u) or q(v given x). "conditional" starts from the posterior of the linearized decoder and
        learns a correction; "conditional_network" is the paper's network on x and u side by side;
        "unconditional" is a network on x alone.
    regularizer : {"context", "instance"}, factory, Module or None, default="context"
        Adversarial bound on the mutual information between a row's v and all other rows of its group (eq. 3),
        or one other row (eq. 2, Németh 2020).
    regularizer_weight : float, default=1.0
        What one nat of that information costs, in nats of a row's ELBO.
    decoder : {"auto", "mlp", "linear", "location_scale"}, callable, Module or CodeDecoder, default="auto"
        The mean of x given u and v. "mlp" is a network beside the linear mixed model; "linear" is that model
        alone, fitted by maximum likelihood with exact posteriors: nothing is trained, and the encoders and
        the regularizer are not used. "location_scale" is the mixed model whose groups differ in the scales
        of their columns as well, ``x = b + A u + exp(S u) * (W v)``, by maximum likelihood too: v is the
        whole residual, and `translate` gives it the scale of the other group. It has no noise and a v a
        column, so it does not go with `noise_scale` or another number of instance codes. "auto" takes
        location_scale, and then the network, where it pays: where it makes groups held out likelier than the
        simpler model does, by more than two standard errors (up to 40 groups each is held out once, in one
        of 4 folds; beyond, a quarter of them is; for scales up to 20 groups one by one). With fewer than 6
        groups it is the linear model, with fewer than 20 no network. The choice depends on the table alone,
        not on `random_state`; where longer training loses on the groups held out, the fit is as short.
        `summary` says which model it is and why. Your own formula is a callable on torch tensors u (n, U)
        and v (n, V) that returns (n, D) in the units of X; a Module's parameters are learned.
    noise_scale : float, array-like of shape (n_features,) or None, default=None
        Standard deviation of the noise around the decoder's mean, in the units of X. None learns one a
        column.
    hidden_sizes : tuple of int, default=(32, 32)
        Widths of the hidden layers of every network.
    max_epochs : int or "auto", default="auto"
        Passes over the groups. "auto" is about 1,250 steps in all: 10 epochs for 32,768 groups, 139 for 65.
    batch_size : int or "auto", default="auto"
        Groups a step (fewer where they hold more than 65,536 rows). "auto" is an eighth of the groups, at
        least 8 (or all there are) and at most 256.
    learning_rate : float, default=0.01
        Peak rate of Adam on a one-cycle schedule.
    n_decoder_samples : int, default=16
        Draws of the codes for the decoder's importance-weighted gradient; 1 learns it by the ELBO, which
        biases its noise upwards.
    early_stopping : bool, default=False
        Hold out whole groups, stop when their ELBO no longer improves, and keep the best epoch.
    validation_fraction : float, default=0.1
        Share of the groups held out; used with `early_stopping` only.
    n_iter_no_change : int, default=20
        Epochs without improvement before an early stop.
    tol : float, default=1e-4
        Smallest improvement of the held-out ELBO that counts, in nats per row.
    n_importance_samples : int, default=100
        Draws of the codes for `score` and `score_samples`.
    group_column : str, int, list of them or None, default=None
        Column of X that holds the group labels, by name or (arrays) by position: the way to pass groups
        inside a Pipeline or a search without metadata routing. A list of columns makes labels that are
        tuples, such as (district, school).
    stack_codes : bool, default=False
        True makes `transform` return one array with the columns u then v, for use inside a Pipeline.
    warm_start : bool, default=False
        True makes a further call of `fit` start at the networks of the last one, with its standardization of
        the columns; the groups are those of the new rows alone.
    n_jobs : int or None, default=None
        Folds of groups held out that are fitted at the same time with ``decoder="auto"``; None is one.
    random_state : int, RandomState instance or None, default=None
        Seed of the weights, batches and draws. Pass an int for the same fit at every call.
    device : {"auto", "cpu", "cuda"} or torch.device, default="auto"
        Where to compute; "auto" is CUDA where there is one.
    verbose : bool or "auto", default="auto"
        Progress bar; "auto" shows one on long fits in a terminal or notebook if tqdm is installed.

    Attributes
    ----------
    group_codes_ : DataFrame of shape (n_groups, U)
        Posterior mean of u of each group of the fit, by label, in order of first appearance.
    group_codes_std_ : DataFrame of shape (n_groups, U)
        Posterior standard deviation of u.
    noise_scale_ : ndarray of shape (n_features,)
        Standard deviation of the noise, in the units of X.
    history_ : DataFrame
        One row an epoch, in nats per row of the standardized table: `loss`, `reconstruction`, `kl_u`,
        `kl_v` (ELBO = reconstruction - kl_u - kl_v) and `mutual_information` (the critic's bound); with
        early stopping the same for held-out groups with the prefix ``validation_``.
    n_iter_ : int
        Epochs done.
    model_ : Module
        The fitted model, of standardized columns.
    n_features_in_ : int
        Number D of columns, without the group column.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of these columns, where X had names.

    See Also
    --------
    sklearn.decomposition.FactorAnalysis : Linear, without groups.

    References
    ----------
    Bouchacourt, D., Tomioka, R., Nowozin, S. (2018). Multi-level variational autoencoder. AAAI.

    Hosoya, H. (2019). Group-based learning of disentangled representations. IJCAI.

    Németh, J. (2020). Adversarial disentanglement with grouped observations. AAAI.

    Examples
    --------
    >>> from skgroupvae import GroupVAE
    >>> from skgroupvae.datasets import make_exam_scores
    >>> data = make_exam_scores(200, random_state=0)
    >>> model = GroupVAE(max_epochs=5, random_state=0).fit(data.X, groups=data.groups)
    >>> u, v = model.transform(data.X, groups=data.groups)
    >>> u.shape == (len(data.X), 2), v.shape == (len(data.X), 1)
    (True, True)
    >>> model.translate(data.X[:3], source_group=0, target_group=7).shape
    (3, 1)
    """

    # groups reach every method through scikit-learn's metadata routing with no set_*_request by the user.
    __metadata_request__fit = {"groups": True, "covariates": True}  # noqa: RUF012
    __metadata_request__partial_fit = {"groups": True, "covariates": True}  # noqa: RUF012
    __metadata_request__transform = {"groups": True, "covariates": True}  # noqa: RUF012
    __metadata_request__score = {"groups": True, "covariates": True, "context": True}  # noqa: RUF012

    _parameter_constraints = {  # noqa: RUF012
        "n_group_codes": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "n_instance_codes": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "group_encoder": [StrOptions(set(GROUP_ENCODERS)), callable],
        "instance_encoder": [StrOptions(set(INSTANCE_ENCODERS)), callable],
        "regularizer": [StrOptions(set(REGULARIZERS)), callable, None],
        "regularizer_weight": [Interval(Real, 0, None, closed="left")],
        "decoder": [StrOptions({"auto", *DECODERS}), callable],
        "noise_scale": [Interval(Real, 0, None, closed="neither"), "array-like", None],
        "hidden_sizes": ["array-like"],
        "max_epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "n_decoder_samples": [Interval(Integral, 1, None, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_importance_samples": [Interval(Integral, 1, None, closed="left")],
        "group_column": [str, Integral, list, tuple, None],
        "stack_codes": ["boolean"],
        "warm_start": ["boolean"],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
        "device": [str, torch.device],
        "verbose": ["boolean", StrOptions({"auto"})],
    }

    def __init__(
        self,
        n_group_codes: int | str = "auto",
        n_instance_codes: int | str = "auto",
        *,
        group_encoder: str | Callable[..., nn.Module] | nn.Module = "deepsets",
        instance_encoder: str | Callable[..., nn.Module] | nn.Module = "conditional",
        regularizer: str | Callable[..., nn.Module] | nn.Module | None = "context",
        regularizer_weight: float = 1.0,
        decoder: str | Callable[..., Any] = "auto",
        noise_scale: float | ArrayLike | None = None,
        hidden_sizes: Sequence[int] = (32, 32),
        max_epochs: int | str = "auto",
        batch_size: int | str = "auto",
        learning_rate: float = 0.01,
        n_decoder_samples: int = 16,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 20,
        tol: float = 1e-4,
        n_importance_samples: int = 100,
        group_column: Hashable = None,
        stack_codes: bool = False,
        warm_start: bool = False,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device = "auto",
        verbose: bool | str = "auto",
    ) -> None:
        self.n_group_codes = n_group_codes
        self.n_instance_codes = n_instance_codes
        self.group_encoder = group_encoder
        self.instance_encoder = instance_encoder
        self.regularizer = regularizer
        self.regularizer_weight = regularizer_weight
        self.decoder = decoder
        self.noise_scale = noise_scale
        self.hidden_sizes = hidden_sizes
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.n_decoder_samples = n_decoder_samples
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.n_importance_samples = n_importance_samples
        self.group_column = group_column
        self.stack_codes = stack_codes
        self.warm_start = warm_start
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: None = None, *, groups: ArrayLike | None = None, covariates: Any = None) -> Self:
        """Learn the model from the rows of X and their groups.

        Ctrl-C ends the fit early with a warning; the estimator keeps the epochs done so far.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Every column is an observation, in any units: columns are standardized inside.
        y : None
            Ignored.
        groups : array-like of shape (n_rows,), optional
            Group label of each row, of any hashable kind, in any order. With None and no `group_column`
            every row is a group of its own, with a warning.
        covariates : str, list of str, array-like or DataFrame of shape (n_rows, n_covariates), optional
            What x is modeled given, beside u and v, such as age and sex. Names of columns of X (a str, or a
            list, tuple or Index): these are then no observations, and every method takes them from its X. Or
            a table, whose like every method then asks for. Numbers have a slope, categories an effect each,
            and a network learns what deviates from that.

        Returns
        -------
        self : GroupVAE

        Raises
        ------
        ValueError, TypeError
            If a parameter, the table or the labels cannot be used; the estimator is then as it was.
        """
        self._validate_params()
        self._keep(fit_latent(self, X, groups, covariates))
        return self

    def partial_fit(
        self, X: Any, y: None = None, *, groups: ArrayLike | None = None, covariates: Any = None
    ) -> Self:
        """Learn from more rows, of groups of the fit or of new ones, without the earlier rows.

        The first call is `fit`. Each further one makes one pass over its rows at a tenth of the learning
        rate. The columns keep the standardization of the first call, and the part of the group encoder that
        turns rows into statistics is frozen, so that what is stored of earlier rows stays valid. A mixed
        model (linear or location_scale) has nothing to learn so: the call is then that of `update_groups`.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            New rows; those of earlier calls must not be among them, or they count twice.
        y : None
            Ignored.
        groups : array-like of shape (n_rows,), optional
            Group label of each row.
        covariates : array-like or DataFrame of shape (n_rows, n_covariates), optional
            Covariates of these rows; left out where they are columns of X or the fit had none.

        Returns
        -------
        self : GroupVAE
        """
        if "_state" not in vars(self):
            return self.fit(X, groups=groups, covariates=covariates)
        self._validate_params()
        self._keep(learn_more(self, X, groups, covariates))
        return self

    def update_groups(self, X: Any, *, groups: ArrayLike | None = None, covariates: Any = None) -> Self:
        """Add rows to what is known of their groups; the model stays as it is.

        What is known of a group adds up over its rows, so the codes are those that all rows at once give.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows of groups of the fit or of new ones.
        groups : array-like of shape (n_rows,), optional
            Group label of each row.
        covariates : array-like or DataFrame of shape (n_rows, n_covariates), optional
            Covariates of these rows; left out where they are columns of X or the fit had none.

        Returns
        -------
        self : GroupVAE
        """
        state = self._fitted()
        table = state.reader.read(X, groups, covariates, adds=True)
        added = known_from(state.model, table)
        self._keep(state.replaced(groups=with_table(state.groups, added, table)))
        return self

    def fit_transform(
        self, X: Any, y: None = None, *, groups: ArrayLike | None = None, covariates: Any = None
    ) -> Any:
        """Fit, then transform the same rows in the same groups; see `fit` and `transform`."""
        fitted = self.fit(X, y, groups=groups, covariates=covariates)
        return fitted.transform(X, groups=groups, covariates=covariates)

    def transform(
        self,
        X: Any,
        *,
        groups: ArrayLike | None = None,
        covariates: Any = None,
        return_std: bool = False,
    ) -> Any:
        """Posterior means of the codes, inferred from these rows alone.

        Labels only say which rows belong together: known labels do not bring in the rows of the fit.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows.
        groups : array-like of shape (n_rows,), optional
            Group label of each row.
        covariates : array-like or DataFrame of shape (n_rows, n_covariates), optional
            Covariates of these rows; left out where they are columns of X or the fit had none.
        return_std : bool, default=False
            Also return the posterior standard deviations.

        Returns
        -------
        u : ndarray or DataFrame of shape (n_rows, U)
            Group codes, in the order of X: u repeats within a group.
        v : ndarray or DataFrame of shape (n_rows, V)
            Instance codes, with u integrated out.
        u_std, v_std : ndarray or DataFrame
            Their standard deviations; only with `return_std`.

        With ``stack_codes=True`` u and v come as one array of shape (n_rows, U + V), and with `return_std` a
        second one follows.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If X or groups cannot be used.
        """
        table = self._read(X, groups, covariates)
        parts: list[list[Tensor]] = [[], [], [], []]
        for batch, q_u in _chunks(self._fitted().model, table):
            q_v = inference.instance_posterior(self._fitted().model, batch, q_u)
            codes = (*(batch.groups.expand(part) for part in (q_u.loc, q_u.scale)), q_v.loc, q_v.scale)
            for found, part in zip(parts, codes, strict=True):
                found.append(part)
        u_mean, u_std, v_mean, v_std = (table.in_given_order(torch.cat(part)) for part in parts)
        codes = in_codes_container(self, X, u_mean, v_mean)
        if not return_std:
            return codes
        stds = in_codes_container(self, X, u_std, v_std)
        return (codes, stds) if self.stack_codes else (*codes, *stds)

    def reconstruct(self, X: Any, *, groups: ArrayLike | None = None, covariates: Any = None) -> Any:
        """Posterior mean of each row without its noise, in the units of X.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows.
        groups : array-like of shape (n_rows,), optional
            Group label of each row.
        covariates : array-like or DataFrame of shape (n_rows, n_covariates), optional
            Covariates of these rows; left out where they are columns of X or the fit had none.

        Returns
        -------
        reconstructed : ndarray or DataFrame of shape (n_rows, n_features)
            As X came. The expectation is over u and v together; `inverse_transform` decodes one point.
        """
        state, table = self._fitted(), self._read(X, groups, covariates)
        means = [inference.reconstruct(state.model, batch, q_u) for batch, q_u in _chunks(state.model, table)]
        values = state.reader.in_units(table.in_given_order(torch.cat(means), np.float64)).astype(table.dtype)
        _, labels = split_group_column(X, state.reader.group_column, None)
        return as_given(self, values, X, labels)

    def inverse_transform(self, u: Any, v: Any = None, *, covariates: Any = None) -> Any:
        """Decode codes: the mean of a row given u and v, in the units of X.

        Parameters
        ----------
        u : array-like or DataFrame of shape (n_rows, U)
            Group codes, one a row. Without `v`, group and instance codes side by side (n_rows, U + V), as
            ``stack_codes=True`` returns them.
        v : array-like or DataFrame of shape (n_rows, V), optional
            Instance codes.
        covariates : array-like or DataFrame of shape (n_rows, n_covariates), optional
            Of each row, where the fit had covariates: a table like that of the fit, or one with the columns
            that it named.

        Returns
        -------
        X : ndarray or DataFrame of shape (n_rows, n_features)
            A DataFrame if `u` is one.

        Raises
        ------
        ValueError
            If the codes have the wrong number of rows or columns.
        """
        state = self._fitted()
        codes, decoder = np.asarray(u, dtype=np.float64), state.model.decoder
        n_group, n_instance = decoder.n_group_codes, decoder.n_instance_codes
        parts = np.split(codes, [n_group], axis=-1) if v is None else [codes, np.asarray(v, dtype=np.float64)]
        expected = [(len(codes), n_group), (len(codes), n_instance)]
        if [part.shape for part in parts] != expected:
            raise ValueError(
                f"u and v must have {n_group} and {n_instance} columns and one row a row of X, got shapes "
                f"{' and '.join(str(part.shape) for part in parts)}; pass what transform returned"
            )
        if not all(np.isfinite(part).all() for part in parts):
            raise ValueError("u and v must be finite, got NaN or infinite values; drop these rows")
        values = _decoded(state, parts[0], parts[1], _design(state, covariates, len(codes)))
        if not isinstance(u, pd.DataFrame):
            return values
        names = state.reader.seen.feature_names
        columns = [f"x{j}" for j in range(values.shape[1])] if names is None else names
        return pd.DataFrame(values, index=u.index, columns=columns)

    def translate(
        self,
        X: Any,
        source_group: Any,
        target_group: Any,
        *,
        covariates: Any = None,
        context: tuple[Any, ...] | None = None,
        quantiles: ArrayLike | None = None,
    ) -> Any:
        """The rows of X as they would have been in the target group (section 5.1 of the CxVAE paper).

        Keeps each row's v and covariates and swaps its group's u; the value is the posterior mean over both
        codes, without noise.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows.
        source_group : label, array-like of shape (n_rows,) or None
            The group of all rows (one label; a tuple is one label), or of each row. A group of the fit is
            known from its rows there; a new one is inferred from these rows. None takes the `group_column`.
        target_group : label, array-like of shape (n_rows,) or "average"
            The group to move all rows to, or each row. A row moved to its own group comes back as
            `reconstruct` gives it. "average", where no group is called that, is the average group: u = 0.
        covariates : array-like or DataFrame of shape (n_rows, n_covariates), optional
            Covariates of these rows; left out where they are columns of X or the fit had none.
        context : tuple (X, groups) or (X, groups, covariates), optional
            More rows and their labels. They add to what is known of the groups of the fit, and are all that
            is known of a new target group. With a `group_column` the second entry may be None.
        quantiles : array-like of float of shape (n_quantiles,), optional
            Also return these quantiles of what is known of the translated rows without their noise: of u of
            both groups, and of v.

        Returns
        -------
        translated : ndarray or DataFrame of shape (n_rows, n_features)
            As X came; a `group_column` holds the target labels.
        intervals : ndarray of shape (n_rows, n_features, n_quantiles)
            Only with `quantiles`.

        Raises
        ------
        ValueError
            If a target group occurs neither in the fit nor in `context`, or there is no source group.
        """
        state = self._fitted()
        rows = state.reader.split(X, None, covariates)
        source = check_labels_by_row(
            rows.labels if source_group is None else source_group, len(rows.x), "source_group"
        )
        target = check_labels_by_row(target_group, len(rows.x), "target_group")
        levels = None if quantiles is None else torch.from_numpy(check_levels(quantiles, "quantiles"))
        known = self._known(context)
        warn_of_unlike_groups(known, source, target)
        table = state.reader.table(rows._replace(labels=np.asarray(source)))
        own = known_from(state.model, table)
        known = known.plus(own.take(np.flatnonzero(known.positions(own.labels) < 0)))
        positions = positions_of_targets(known, target, "context=(X, groups)")
        mean, spread = _translated(state.model, table, known, positions, levels)
        values = state.reader.in_units(table.in_given_order(mean, np.float64)).astype(table.dtype)
        moved = as_given(self, values, X, target)
        if spread is None:
            return moved
        in_units = state.reader.in_units(table.in_given_order(spread, np.float64).swapaxes(1, 2))
        return moved, in_units.swapaxes(1, 2)

    def sample(
        self,
        n_groups: int = 1,
        group_size: int = 1,
        *,
        groups: Sequence[Hashable] | NDArray | None = None,
        covariates: Any = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> tuple[NDArray, NDArray]:
        """Draw rows from the fitted model, noise included.

        Parameters
        ----------
        n_groups : int, default=1
            Number of new groups, with u from its prior; ignored if `groups` is given.
        group_size : int, default=1
            Rows to draw in each group.
        groups : array-like of labels, optional
            Groups of the fit to draw more rows of, with u from its posterior.
        covariates : array-like or DataFrame of shape (n_groups * group_size, n_covariates), optional
            Of the rows to draw, those of a group next to each other, where the fit had covariates: a table
            like that of the fit, or one with the columns that it named.
        random_state : int, RandomState instance or None, default=None
            Pass an int for the same draw at every call.

        Returns
        -------
        X : ndarray of shape (n_groups * group_size, n_features)
            In the units of the fitted table.
        labels : ndarray of shape (n_groups * group_size,)
            0, 1, ... for new groups, else the labels given.
        """
        state = self._fitted()
        rng, decoder = check_random_state(random_state), state.model.decoder
        for name, value in (("n_groups", n_groups), ("group_size", group_size)):
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if groups is None:
            labels = np.arange(n_groups)
            u = rng.standard_normal((n_groups, decoder.n_group_codes))
        else:
            labels = np.asarray(check_groups(groups, len(groups), type(self).__name__))
            positions = state.groups.positions(pd.Index(labels, tupleize_cols=False))
            if (positions < 0).any():
                raise ValueError(
                    f"groups has labels that do not occur in the fit, such as {labels[positions < 0][0]!r}; "
                    "use labels of group_codes_"
                )
            q_u = state.groups.take(positions).posterior(state.model)
            noise = torch.from_numpy(rng.standard_normal(tuple(q_u.loc.shape)))
            u = q_u.from_noise(noise.to(q_u.loc)).cpu().numpy()
        u = np.repeat(u, group_size, axis=0)
        design = _design(state, covariates, len(u))
        means = _decoded(state, u, rng.standard_normal((len(u), decoder.n_instance_codes)), design)
        noise_scale = decoder.noise_scale.cpu().numpy() * state.reader.scale
        return means + noise_scale * rng.standard_normal(means.shape), np.repeat(labels, group_size)

    def sample_codes(
        self,
        X: Any,
        *,
        groups: ArrayLike | None = None,
        covariates: Any = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> Any:
        """One joint draw of the codes from their posterior: u of each group, then v of each row given it.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows.
        groups : array-like of shape (n_rows,), optional
            Group label of each row.
        covariates : array-like or DataFrame of shape (n_rows, n_covariates), optional
            Covariates of these rows; left out where they are columns of X or the fit had none.
        random_state : int, RandomState instance or None, default=None
            Pass an int for the same draw at every call.

        Returns
        -------
        u, v : ndarray or DataFrame of shapes (n_rows, U) and (n_rows, V)
            As from `transform`, where the posterior means are: a draw is a worse estimate but has the spread
            of what is known.
        """
        table, model = self._read(X, groups, covariates), self._fitted().model
        generator = torch.Generator().manual_seed(int(check_random_state(random_state).randint(2**31 - 1)))
        u_draws, v_draws = [], []
        with torch.no_grad():
            for batch, q_u in _chunks(model, table):
                u = q_u.draw(generator)
                v_draws.append(model.instance_posterior(batch, u).draw(generator))
                u_draws.append(batch.groups.expand(u))
        codes = (table.in_given_order(torch.cat(draws)) for draws in (u_draws, v_draws))
        return in_codes_container(self, X, *codes)

    def group_log_likelihood(
        self,
        X: Any,
        *,
        groups: ArrayLike | None = None,
        covariates: Any = None,
        context: str | tuple[Any, ...] | None = None,
    ) -> pd.Series:
        """Joint log-likelihood of the rows of each group.

        Rows of a group are not independent: it is not the sum of what `score_samples` gives.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows.
        groups : array-like of shape (n_rows,), optional
            Group label of each row.
        covariates : array-like or DataFrame of shape (n_rows, n_covariates), optional
            Covariates of these rows; left out where they are columns of X or the fit had none.
        context : None, "prior" or tuple (X, groups) or (X, groups, covariates), default=None
            What is known of the groups beside these rows. None: the rows of the fit. A tuple: these rows as
            well. "prior": nothing, as though every group were new. What is known takes the place of the prior
            of u; a label that occurs nowhere there keeps it.

        Returns
        -------
        log_likelihood : Series of shape (n_groups,)
            In nats, by label in order of first appearance, as densities in the units of X. Exact for the
            linear model; else a lower bound in expectation (Burda et al. 2016), which tightens with
            `n_importance_samples`.
        """
        table = self._read(X, groups, covariates)
        values = self._log_likelihood(table, context)
        return pd.Series(values[table.first_seen], index=table.labels[table.first_seen])

    def score_samples(
        self,
        X: Any,
        *,
        groups: ArrayLike | None = None,
        covariates: Any = None,
        context: str | tuple[Any, ...] | None = None,
    ) -> NDArray[np.float64]:
        """Log density of each row by itself, given what is known of its group.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows.
        groups : array-like of shape (n_rows,), optional
            Group label of each row.
        covariates : array-like or DataFrame of shape (n_rows, n_covariates), optional
            Covariates of these rows; left out where they are columns of X or the fit had none.
        context : None, "prior" or tuple (X, groups) or (X, groups, covariates), default=None
            What is known of the groups; see `group_log_likelihood`. The other rows of X are no part of it.

        Returns
        -------
        log_density : ndarray of shape (n_rows,)
            In nats, as densities in the units of X; exact for the linear model, else by importance sampling.
        """
        state, table = self._fitted(), self._read(X, groups, covariates)
        known = self._known_of(table, context)
        values = np.empty(len(table.order))
        labels = table.labels[table.batch.groups.codes.numpy()]
        rows = state.reader.rows_alone(table)
        for start in range(0, len(values), _CHUNK_GROUPS):
            where = np.arange(start, min(start + _CHUNK_GROUPS, len(values)))
            batch = rows.take_groups(torch.from_numpy(where)).to(device=state.model.device)
            prior, q_u = with_own(state.model, batch, known, labels[where])
            values[table.order[where]] = (
                inference.log_likelihood(state.model, batch, q_u, self.n_importance_samples, prior)
                .cpu()
                .numpy()
            )
        return values - np.log(state.reader.scale).sum()

    def score(
        self,
        X: Any,
        y: None = None,
        *,
        groups: ArrayLike | None = None,
        covariates: Any = None,
        sample_weight: ArrayLike | None = None,
        context: str | tuple[Any, ...] | None = None,
    ) -> float:
        """Joint log-likelihood of the rows' groups per row, in nats: larger is better.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows, usually held out. Their groups need not occur in the fit.
        y : None
            Ignored.
        groups : array-like of shape (n_rows,), optional
            Group label of each row.
        covariates : array-like or DataFrame of shape (n_rows, n_covariates), optional
            Covariates of these rows; left out where they are columns of X or the fit had none.
        sample_weight : array-like of shape (n_rows,), optional
            Weights of the rows in the mean, each with an equal share of its group's log-likelihood.
        context : None, "prior" or tuple (X, groups) or (X, groups, covariates), default=None
            What is known of the groups beside these rows; see `group_log_likelihood`.

        Returns
        -------
        score : float
        """
        table = self._read(X, groups, covariates)
        sizes = table.batch.groups.sizes.numpy()
        share = self._log_likelihood(table, context) / sizes
        by_row = np.empty(len(table.order))
        by_row[table.order] = share[table.batch.groups.codes.numpy()]
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, X)
        return float(np.average(by_row, weights=weights))

    def summary(self) -> str:
        """Which model the fit ended at and why, its groups, and the linear mixed model it started at.

        Returns
        -------
        text : str
        """
        state = self._fitted()
        sizes, scale = state.groups.summaries.sizes, state.reader.scale
        log_likelihood = state.mixed_model.log_likelihood - int(sizes.sum()) * np.log(scale).sum()
        head = {
            "Model": f"{state.choice.model} ({state.choice.reason})",
            "Rows": f"{int(sizes.sum()):,}",
            "Groups": f"{len(sizes):,} of {int(sizes.min()):,} to {int(sizes.max()):,} rows",
            "Log-likelihood of the linear mixed model": f"{log_likelihood:.3f}",
        }
        fixed = state.mixed_model.fixed.numpy() * scale
        between = (state.mixed_model.loadings[0].square().sum(1)).sqrt().numpy() * scale
        within = (state.mixed_model.residual.square().sum(1)).sqrt().numpy() * scale
        table = pd.DataFrame(
            {
                "mean": fixed[0] + state.reader.center,
                "sd between groups": between,
                "sd within groups": within,
            },
            index=[column.name for column in state.reader.columns],
        )
        if state.reader.covariates is not None:
            design = state.reader.covariates.design
            slopes = fixed[1:] / design.scale[1:, None]
            table["mean"] -= design.center[1:] @ slopes
            table = table.rename(columns={"mean": "intercept"})
            for name, slope in zip(design.names[1:], slopes, strict=True):
                table[f"effect of {name}"] = slope
        lines = [f"{name + ':':44s}{value}" for name, value in head.items()]
        title = "Linear mixed model"
        if isinstance(state.model.decoder, LocationScaleDecoder):
            spread = state.model.decoder.scale_loadings.weight.square().sum(1).sqrt().cpu().numpy()
            table.insert(3, "sd of log scale between groups", spread)
            title += ", and what groups differ in scale by"
        return "\n".join([*lines, "", title, table.to_string(float_format="{:.4g}".format)])

    def _learned(self, state: FittedState) -> dict[str, Any]:
        q_u = state.groups.posterior(state.model)
        names = [f"u{j}" for j in range(q_u.loc.shape[1])]
        means, stds = (
            pd.DataFrame(part.cpu().numpy(), index=state.groups.labels, columns=names)
            for part in (q_u.loc, q_u.scale)
        )
        learned = {
            "group_codes_": means,
            "group_codes_std_": stds,
            "noise_scale_": state.model.decoder.noise_scale.cpu().numpy() * state.reader.scale,
            "history_": state.history,
            "n_iter_": len(state.history),
            "model_": state.model,
            "n_features_in_": state.reader.seen.n_features,
        }
        if state.reader.seen.feature_names is not None:
            learned["feature_names_in_"] = state.reader.seen.feature_names
        return learned

    def _read(self, X: Any, groups: Any, covariates: Any, of: str = "") -> Table:
        """A table that the fitted estimator is asked about."""
        state = self._fitted()
        table = state.reader.read(X, groups, covariates, of)
        if groups is None and state.reader.group_column is None and state.reader.has_groups:
            warnings.warn(
                f"{type(self).__name__} was fitted with groups and now got none, so each of these rows is "
                "taken for a group of its own; pass groups=, or set group_column before the fit",
                UserWarning,
                stacklevel=caller_level(),
            )
        return table

    def _known(self, context: Any) -> KnownGroups:
        """What is known of groups: from the fit, and from the rows of `context`."""
        state = self._fitted()
        if context is None:
            return state.groups
        if not isinstance(context, (tuple, list)) or len(context) not in (2, 3):
            raise ValueError(
                "context must be a pair (X, groups), rows and their labels, or these and covariates; or None "
                "for what is known from the fit"
            )
        if context[1] is None and state.reader.group_column is None:
            raise ValueError("context=(X, groups) has no groups; pass one label a row of it")
        table = self._read(context[0], context[1], context[2] if len(context) > 2 else None, " of context")
        return state.groups.plus(known_from(state.model, table))

    def _known_of(self, table: Table, context: Any) -> KnownGroups | None:
        """What is known of groups to score a table by; None is nothing, where only the prior counts."""
        if _is_prior(context):
            return None
        known = self._known(context)
        if not table.has_labels:
            return None  # each row is a new group, whatever the fit counted its own rows by
        warn_of_unlike_labels(known.labels, table.labels, "groups")
        return known

    def _log_likelihood(self, table: Table, context: Any) -> NDArray[np.float64]:
        """Of each group of a table, in the units of X."""
        state = self._fitted()
        known = self._known_of(table, context)
        values = np.empty(len(table.labels))
        for positions in whole_group_batches(table.batch.groups.sizes, _CHUNK_GROUPS):
            batch = table.batch.take_groups(positions).to(device=state.model.device)
            prior, q_u = with_own(state.model, batch, known, table.labels[positions.numpy()])
            values[positions.numpy()] = (
                inference.log_likelihood(state.model, batch, q_u, self.n_importance_samples, prior)
                .cpu()
                .numpy()
            )
        return values - table.batch.groups.sizes.numpy() * np.log(state.reader.scale).sum()


def _chunks(model: LatentModel, table: Table) -> Iterator[tuple[Batch, DiagonalNormal | FullNormal]]:
    """Whole groups at a time, in their order, with q(u) from these rows alone."""
    for positions in whole_group_batches(table.batch.groups.sizes, _CHUNK_GROUPS):
        batch = table.batch.take_groups(positions).to(device=model.device)
        with torch.no_grad():
            q_u = model.infer(batch)
        yield batch, q_u


def _translated(
    model: LatentModel, table: Table, known: KnownGroups, target: NDArray[np.intp], levels: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Rows of the table moved to the groups at `target` of `known` (-1 is the average group), and quantiles.

    `target` (N,) is in the caller's order; the results (N, D) and (N, D, n_quantiles) are in the batch's.
    """
    at_source = known.positions(table.labels)
    q_targets = with_average(known.posterior(model))
    means, spreads = [], []
    start = 0
    for positions in whole_group_batches(table.batch.groups.sizes, _CHUNK_GROUPS):
        batch = table.batch.take_groups(positions).to(device=model.device)
        where = table.order[start : start + batch.n_rows]
        start += batch.n_rows
        moved_to = torch.from_numpy(target[where]).to(model.device) % (len(known.labels) + 1)
        source = torch.from_numpy(at_source[positions.numpy()]).to(model.device)
        q_source = q_targets.take(source)
        stays = (batch.groups.expand(source) == moved_to)[:, None]
        q_v = inference.instance_posterior(model, batch, q_source)
        moved = inference.translate(model, batch, q_v, q_targets, moved_to)
        if stays.any():
            moved = torch.where(stays, inference.reconstruct(model, batch, q_source), moved)
        means.append(moved)
        if levels is not None and model.is_exact(q_source):
            scale = inference.translated_scale(model, batch, q_source, q_targets, moved_to, stays[:, 0])
            spreads.append(moved[..., None] + scale[..., None] * torch.special.ndtri(levels.to(scale)))
        elif levels is not None:
            draws = inference.translated_draws(
                model, batch, q_source, q_targets, moved_to, stays[:, 0], _TRANSLATION_SAMPLES
            )
            spreads.append(torch.quantile(draws, levels.to(draws), dim=0).permute(1, 2, 0))
    return torch.cat(means), torch.cat(spreads) if spreads else None


@torch.no_grad()
def _decoded(state: FittedState, u: NDArray, v: NDArray, design: NDArray | None) -> NDArray[np.float64]:
    """Mean of rows with these codes and covariates, in the units of the table."""
    parts = [u, v] if design is None else [u, v, design[:, 1:]]
    on_device = (torch.tensor(part, dtype=torch.float64, device=state.model.device) for part in parts)
    return state.reader.in_units(state.model.decoder.mean(*on_device).cpu().numpy())


def _design(state: FittedState, covariates: Any, n_rows: int) -> NDArray[np.float64] | None:
    """Design of rows that have no X."""
    reader = state.reader.covariates
    if reader is not None:
        return reader.design_alone(covariates, n_rows)
    if covariates is not None:
        raise ValueError("covariates is given, but this GroupVAE was fitted without; leave it out")
    return None


def _is_prior(context: Any) -> bool:
    if isinstance(context, str) and context != "prior":
        raise ValueError(
            f"context={context!r} must be a pair (X, groups), None for what is known from the fit, or 'prior'"
        )
    return isinstance(context, str)
