"""GroupVAE: the estimator of the group variational autoencoder family."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted
from torch import nn

from skgroupvae import inference
from skgroupvae.base import GroupedEstimator
from skgroupvae.building import DECODERS, GROUP_ENCODERS, INSTANCE_ENCODERS, REGULARIZERS
from skgroupvae.columns import split_group_column
from skgroupvae.evidence import Evidence
from skgroupvae.nn import draw
from skgroupvae.validation import check_groups, check_labels_by_row, check_table

__all__ = ["GroupVAE"]

# A fixed seed makes score a function of the fitted model and the data, as scikit-learn expects.
_SCORE_SEED = 0


class GroupVAE(GroupedEstimator, auto_wrap_output_keys=None):  # type: ignore[call-arg]
    r"""Group variational autoencoder: what the rows of a group share, apart from what is each row's own.

    The model of a group's rows (section 2 of the CxVAE paper) is

    .. math:: p(x_i) = \int p(u) \prod_k \int p(v_k)\, p(x_{ik} \mid u, v_k)\, dv_k\, du

    with standard normal group code u and instance codes v. Three choices give every model of the family;
    :data:`skgroupvae.PUBLISHED_MODELS` names the published ones and the defaults are CxVAE.

    Parameters
    ----------
    n_group_codes : int, default=2
        Dimension U of the group code.
    n_instance_codes : int or None, default=None
        Dimension V of the instance code. None takes one a column of X, at most 10.
    group_encoder : str, factory or Module, default="deepsets"
        How the rows of a group become q(u): "deepsets", a Deep Sets network (CxVAE); "average", the average
        of the rows' normals (Hosoya 2019); "product", their product (Bouchacourt et al. 2018); or
        "product_with_prior", with the prior that eq. 1 of the paper finds missing. A factory is called with
        the arguments of a class of :data:`skgroupvae.building.GROUP_ENCODERS`; a Module is copied.
    instance_encoder : str, factory or Module, default="conditional"
        q(v given x, u) or q(v given x). "conditional" starts from the posterior of the linearised decoder and
        learns a correction; "conditional_network" is the paper's network on x and u side by side;
        "unconditional" is a network on x alone.
    regularizer : {"context", "instance"}, factory, Module or None, default="context"
        Adversarial bound on the mutual information between a row's v and all other rows of its group (eq. 3),
        or one other row (eq. 2, Németh 2020).
    regularizer_weight : float, default=1.0
        What one nat of that information costs, in nats of a row's ELBO.
    decoder : {"mlp", "linear"}, callable, Module or factory-made Decoder, default="mlp"
        The mean of x given u and v: a network, a linear mixed model, or your own formula: a callable on
        torch tensors u (n, U) and v (n, V) that returns (n, D) in the units of X. A Module's parameters are
        learned.
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
        True makes a further call of `fit` start at the networks of the last one, with its standardisation of
        the columns; the groups are those of the new rows alone.
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
        One row an epoch, in nats per row of the standardised table: `loss`, `reconstruction`, `kl_u`,
        `kl_v` (ELBO = reconstruction - kl_u - kl_v) and `mutual_information` (the critic's bound); with
        early stopping the same for held-out groups with the prefix ``validation_``.
    n_iter_ : int
        Epochs done.
    network_ : Module
        The fitted network, on standardised columns.
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
    __metadata_request__fit = {"groups": True}  # noqa: RUF012
    __metadata_request__partial_fit = {"groups": True}  # noqa: RUF012
    __metadata_request__transform = {"groups": True}  # noqa: RUF012
    __metadata_request__score = {"groups": True, "context": True}  # noqa: RUF012

    _parameter_constraints = {  # noqa: RUF012
        "n_group_codes": [Interval(Integral, 1, None, closed="left")],
        "n_instance_codes": [Interval(Integral, 1, None, closed="left"), None],
        "group_encoder": [StrOptions(set(GROUP_ENCODERS)), callable],
        "instance_encoder": [StrOptions(set(INSTANCE_ENCODERS)), callable],
        "regularizer": [StrOptions(set(REGULARIZERS)), callable, None],
        "regularizer_weight": [Interval(Real, 0, None, closed="left")],
        "decoder": [StrOptions(set(DECODERS)), callable],
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
        "random_state": ["random_state"],
        "device": [str, torch.device],
        "verbose": ["boolean", StrOptions({"auto"})],
    }

    def __init__(
        self,
        n_group_codes: int = 2,
        n_instance_codes: int | None = None,
        *,
        group_encoder: str | Callable[..., nn.Module] | nn.Module = "deepsets",
        instance_encoder: str | Callable[..., nn.Module] | nn.Module = "conditional",
        regularizer: str | Callable[..., nn.Module] | nn.Module | None = "context",
        regularizer_weight: float = 1.0,
        decoder: str | Callable[..., Any] = "mlp",
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
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: None = None, *, groups: ArrayLike | None = None) -> Self:
        """Learn the model from the rows of X and their groups.

        Ctrl-C ends the fit early with a warning; the estimator keeps the epochs done so far.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Every column is an observation, in any units: columns are standardised inside.
        y : None
            Ignored.
        groups : array-like of shape (n_rows,), optional
            Group label of each row, of any hashable kind, in any order. With None and no `group_column`
            every row is a group of its own, with a warning.

        Returns
        -------
        self : GroupVAE

        Raises
        ------
        ValueError, TypeError
            If a parameter, the table or the labels cannot be used; the estimator is then as it was.
        """
        self._fit(X, groups)
        return self

    def partial_fit(self, X: Any, y: None = None, *, groups: ArrayLike | None = None) -> Self:
        """Learn from more rows, of groups of the fit or of new ones, without the earlier rows.

        The first call is `fit`. Each further one makes one pass over its rows at a tenth of the learning
        rate. The columns keep the standardisation of the first call, and the part of the group encoder that
        turns rows into evidence stays as it is, so that what is stored of earlier rows stays valid.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            New rows; those of earlier calls must not be among them, or they count twice.
        y : None
            Ignored.
        groups : array-like of shape (n_rows,), optional
            Group label of each row.

        Returns
        -------
        self : GroupVAE
        """
        if not hasattr(self, "network_"):
            return self.fit(X, groups=groups)
        self._partial_fit(X, groups)
        return self

    def fit_transform(self, X: Any, y: None = None, *, groups: ArrayLike | None = None) -> Any:
        """Fit, then transform the same rows in the same groups; see `fit` and `transform`."""
        return self.fit(X, y, groups=groups).transform(X, groups=groups)

    def transform(self, X: Any, *, groups: ArrayLike | None = None, return_std: bool = False) -> Any:
        """Posterior means of the codes, inferred from these rows alone.

        Labels only say which rows belong together: known labels do not bring in the rows of the fit.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows.
        groups : array-like of shape (n_rows,), optional
            Group label of each row.
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
        x, index = self._read(X, groups)
        u_mean, u_std = np.empty((2, x.shape[0], self.n_group_codes), dtype=x.dtype)
        v_mean, v_std = np.empty((2, x.shape[0], self._n_instance_codes), dtype=x.dtype)
        for where, rows, q_u, segments in self._chunks(x, index):
            with torch.no_grad():
                q_v = inference.instance_posterior(self.network_, rows, q_u, segments)
            u_mean[where], u_std[where] = (segments.expand(p).cpu().numpy() for p in (q_u.loc, q_u.scale))
            v_mean[where], v_std[where] = q_v.loc.cpu().numpy(), q_v.scale.cpu().numpy()
        codes = self._wrap(X, u_mean, v_mean)
        if not return_std:
            return codes
        stds = self._wrap(X, u_std, v_std)
        return (codes, stds) if self.stack_codes else (*codes, *stds)

    def reconstruct(self, X: Any, *, groups: ArrayLike | None = None) -> Any:
        """Posterior mean of each row without its noise, in the units of X.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows.
        groups : array-like of shape (n_rows,), optional
            Group label of each row.

        Returns
        -------
        reconstructed : ndarray or DataFrame of shape (n_rows, n_features)
            As X came. The expectation is over u and v together; `inverse_transform` decodes one point.
        """
        x, index = self._read(X, groups)
        values = np.empty(x.shape)
        for where, rows, q_u, segments in self._chunks(x, index):
            with torch.no_grad():
                values[where] = inference.reconstruct(self.network_, rows, q_u, segments).cpu().numpy()
        return self._like_input(self._in_units(values, x.dtype), X)

    def inverse_transform(self, u: Any, v: Any = None) -> Any:
        """Decode codes: the mean of a row given u and v, in the units of X.

        Parameters
        ----------
        u : array-like or DataFrame of shape (n_rows, U)
            Group codes, one a row. Without `v`, group and instance codes side by side (n_rows, U + V), as
            ``stack_codes=True`` returns them.
        v : array-like or DataFrame of shape (n_rows, V), optional
            Instance codes.

        Returns
        -------
        X : ndarray or DataFrame of shape (n_rows, n_features)
            A DataFrame if `u` is one.

        Raises
        ------
        ValueError
            If the codes have the wrong number of rows or columns.
        """
        check_is_fitted(self)
        codes = np.asarray(u, dtype=np.float64)
        n_group, n_instance = self.n_group_codes, self._n_instance_codes
        parts = np.split(codes, [n_group], axis=-1) if v is None else [codes, np.asarray(v, dtype=np.float64)]
        expected = [(len(codes), n_group), (len(codes), n_instance)]
        if [part.shape for part in parts] != expected:
            raise ValueError(
                f"u and v must have {n_group} and {n_instance} columns and one row a row of X, got shapes "
                f"{' and '.join(str(part.shape) for part in parts)}; pass what transform returned"
            )
        if not all(np.isfinite(part).all() for part in parts):
            raise ValueError("u and v must be finite, got NaN or infinite values; drop these rows")
        values = self._decode(*parts)
        if not isinstance(u, pd.DataFrame):
            return values
        names = getattr(self, "feature_names_in_", [f"x{j}" for j in range(self.n_features_in_)])
        return pd.DataFrame(values, index=u.index, columns=names)

    def translate(
        self,
        X: Any,
        source_group: Any = None,
        target_group: Any = None,
        *,
        context: tuple[Any, ArrayLike] | None = None,
    ) -> Any:
        """The rows of X as they would have been in the target group (section 5.1 of the CxVAE paper).

        Keeps each row's v and swaps its group's u; the value is the posterior mean over both, without noise.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows.
        source_group : label or array-like of shape (n_rows,), optional
            The group of all rows (one label; a tuple is one label), or of each row. A group of the fit uses
            the evidence stored at fit; a new one is inferred from these rows. None takes the `group_column`.
        target_group : label or array-like of shape (n_rows,)
            The group to move all rows to, or each row. A row moved to its own group comes back as
            `reconstruct` gives it.
        context : tuple (X, groups), optional
            More rows and their labels. They add to what is known of the groups of the fit, and are all that
            is known of a new target group. With a `group_column` the second entry may be None.

        Returns
        -------
        translated : ndarray or DataFrame of shape (n_rows, n_features)
            As X came; a `group_column` holds the target labels.

        Raises
        ------
        ValueError
            If a target group occurs neither in the fit nor in `context`, or there is no source group.
        """
        check_is_fitted(self)
        table, in_column = split_group_column(X, self.group_column, None)
        x = check_table(self, table, reset=False)
        source = check_labels_by_row(
            in_column if source_group is None else source_group, len(x), "source_group"
        )
        target = check_labels_by_row(target_group, len(x), "target_group")
        evidence = self._known_evidence(context).plus(self._evidence_of_new(x, source))
        positions = evidence.positions(target)
        if (positions < 0).any():
            unknown = list(dict.fromkeys(target[positions < 0]))[:5]
            raise ValueError(
                f"target_group {unknown} does not occur in the fit; pass rows of it as context=(X, groups)"
            )
        values = self._translate(x, source, evidence, positions)
        return self._like_input(self._in_units(values, x.dtype), X, target)

    def sample(
        self,
        n_groups: int = 1,
        group_size: int = 1,
        *,
        groups: Sequence[Hashable] | NDArray | None = None,
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
        random_state : int, RandomState instance or None, default=None
            Pass an int for the same draw at every call.

        Returns
        -------
        X : ndarray of shape (n_groups * group_size, n_features)
            In the units of the fitted table.
        labels : ndarray of shape (n_groups * group_size,)
            0, 1, ... for new groups, else the labels given.
        """
        check_is_fitted(self)
        rng = check_random_state(random_state)
        for name, value in (("n_groups", n_groups), ("group_size", group_size)):
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if groups is None:
            labels = np.arange(n_groups)
            u = rng.standard_normal((n_groups, self.n_group_codes))
        else:
            labels = np.asarray(check_groups(groups, len(groups), type(self).__name__))
            positions = self._evidence.positions(pd.Index(labels, tupleize_cols=False))
            if (positions < 0).any():
                raise ValueError(
                    f"groups has labels that do not occur in the fit, such as {labels[positions < 0][0]!r}; "
                    "use labels of group_codes_"
                )
            mean, std = self.group_codes_.to_numpy()[positions], self.group_codes_std_.to_numpy()[positions]
            u = mean + std * rng.standard_normal(mean.shape)
        u = np.repeat(u, group_size, axis=0)
        means = self._decode(u, rng.standard_normal((len(u), self._n_instance_codes)))
        return means + self.noise_scale_ * rng.standard_normal(means.shape), np.repeat(labels, group_size)

    def sample_codes(
        self,
        X: Any,
        *,
        groups: ArrayLike | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> Any:
        """One joint draw of the codes from their posterior: u of each group, then v of each row given it.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows.
        groups : array-like of shape (n_rows,), optional
            Group label of each row.
        random_state : int, RandomState instance or None, default=None
            Pass an int for the same draw at every call.

        Returns
        -------
        u, v : ndarray or DataFrame of shapes (n_rows, U) and (n_rows, V)
            As from `transform`, where the posterior means are: a draw is a worse estimate but has the spread
            of what is known.
        """
        x, index = self._read(X, groups)
        u_draw = np.empty((x.shape[0], self.n_group_codes), dtype=x.dtype)
        v_draw = np.empty((x.shape[0], self._n_instance_codes), dtype=x.dtype)
        generator = torch.Generator().manual_seed(int(check_random_state(random_state).randint(2**31 - 1)))
        for where, rows, q_u, segments in self._chunks(x, index):
            with torch.no_grad():
                u = draw(q_u, generator)
                q_v = self.network_.instance_encoder(rows, u, segments, self.network_.decoder)
                u_draw[where] = segments.expand(u).cpu().numpy()
                v_draw[where] = draw(q_v, generator).cpu().numpy()
        return self._wrap(X, u_draw, v_draw)

    def score_samples(
        self, X: Any, *, groups: ArrayLike | None = None, context: str | tuple[Any, ArrayLike] | None = None
    ) -> NDArray[np.float64]:
        """Log-likelihood of each row: its share of the importance-weighted bound on its group's.

        Rows of a group are not independent, so what the model gives is the log-likelihood of the whole group;
        each of its rows has an equal share, and the sum over rows is the log-likelihood of the table.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows.
        groups : array-like of shape (n_rows,), optional
            Group label of each row.
        context : None, "fit" or tuple (X, groups), default=None
            What is known of the groups beside these rows. None: nothing, every group is a new one. "fit": the
            rows of the fit. A pair: these rows as well. The normal posterior of u given them then takes the
            place of its prior; a label that occurs nowhere there keeps the prior.

        Returns
        -------
        log_likelihood : ndarray of shape (n_rows,)
            In nats, as densities in the units of X. A lower bound in expectation (Burda et al. 2016), which
            tightens with `n_importance_samples`.
        """
        x, index = self._read(X, groups)
        known = evidence = None
        if context is not None:
            known = self._known_evidence(context)
            own = Evidence.of_rows(self.network_, self._to_tensor(self._standardize(x)), index)
            evidence = known.plus(own)
            evidence = evidence.take(evidence.positions(index.labels))
        values = np.empty(x.shape[0])
        for where, rows, q_u, segments in self._chunks(x, index, evidence):
            prior = None if known is None else self._prior(known, index.labels[np.unique(index.codes[where])])
            with torch.no_grad():
                bound = inference.log_likelihood(
                    self.network_, rows, q_u, segments, self.n_importance_samples, _SCORE_SEED, prior
                )
            values[where] = segments.expand(bound / segments.sizes).cpu().numpy()
        return values - np.log(self._scale).sum()

    def score(
        self,
        X: Any,
        y: None = None,
        *,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        context: str | tuple[Any, ArrayLike] | None = None,
    ) -> float:
        """Mean log-likelihood per row, in nats: larger is better. See `score_samples`.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Rows, usually held out. Their groups need not occur in the fit.
        y : None
            Ignored.
        groups : array-like of shape (n_rows,), optional
            Group label of each row.
        sample_weight : array-like of shape (n_rows,), optional
            Weights of the rows in the mean.
        context : None, "fit" or tuple (X, groups), default=None
            What is known of the groups beside these rows; see `score_samples`.

        Returns
        -------
        score : float
        """
        by_row = self.score_samples(X, groups=groups, context=context)
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, X)
        return float(np.average(by_row, weights=weights))
