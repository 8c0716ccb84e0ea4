"""CxVAERegressor: what a mixed-effects model is swapped for."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple, Self, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from skgroupvae.batch import whole_group_batches
from skgroupvae.data.checks import caller_level, check_levels, check_weights
from skgroupvae.data.labels import as_label_array, check_labels_by_row, warn_of_unlike_labels
from skgroupvae.data.output import like_outcomes
from skgroupvae.data.tables import some
from skgroupvae.estimators.base import GroupedEstimator, in_codes_container
from skgroupvae.estimators.known import (
    known_from,
    positions_of_targets,
    warn_of_unlike_groups,
    with_average,
    with_own,
    with_table,
)
from skgroupvae.estimators.score_fit import fit_scores, learn_more_scores, mixed_model_tables
from skgroupvae.model import prediction
from skgroupvae.model.families import OUTCOME_FAMILIES
from skgroupvae.model.likelihood import Likelihood
from skgroupvae.model.posteriors import DiagonalNormal, FullNormal
from skgroupvae.model.spec import GROUP_ENCODERS, REGULARIZERS
from skgroupvae.state import KnownGroups, ScoreState

__all__ = ["CxVAERegressor"]

# Draws of u times cells that a chunk of predictions holds at most: what fits a cache is quickest.
_CHUNK_NUMBERS = 2**15
# Groups in a chunk of inference at most; `whole_group_batches` bounds its rows.
_CHUNK_GROUPS = 16_384
# Larger tables of continuous outcomes are predicted in single precision (relative error about 1e-6), twice as
# fast; log densities of large counts would lose digits.
_MAX_DOUBLE_ROWS = 20_000


class CxVAERegressor(RegressorMixin, GroupedEstimator[ScoreState], auto_wrap_output_keys=None):  # type: ignore[call-arg]
    r"""Regression on grouped rows: a mixed-effects model that learns what departs from it.

    The outcome of row k of group i, given its covariates x, is

    .. math:: y_{ik} \sim \mathrm{family}(\eta(x_{ik}, u_i)), \qquad
        \eta = x^\top\beta + z^\top\Lambda u + \mathrm{network}(x, u), \qquad u_i \sim N(0, I)

    where z are the constant and the covariates with random slopes. The fit starts at the linear mixed model
    of maximum likelihood, its network at zero; the network then learns curves, group effects that are no
    straight lines, and scales and shapes that depend on x and u. The instance code v of a row is the normal
    score of its outcome given x and u, so that the outcome is monotone in v.

    A y of M columns (for a family whose y has one) is M outcomes of one model: they share the codes of a
    group, M random effects for each random column, and the normal scores of a row's continuous outcomes are
    correlated. Where y is missing (NaN) in `fit`, `update_groups` or `context`, the row tells nothing about
    that outcome, and the others are learned from it.

    Parameters
    ----------
    family : str or type, default="gaussian"
        Distribution of the outcomes: "gaussian", "student_t", "bernoulli", "binomial", "poisson",
        "negative_binomial" or "ordinal". "gaussian" starts at normal errors of one scale and learns scale,
        skewness and tails; "binomial" has two columns y, successes and failures; "ordinal" has cumulative
        logits for numbers that are grades. A distribution of your own is a subclass of
        :class:`skgroupvae.model.families.Family`, passed as the class.
    decoder : {"auto", "mlp", "linear"}, default="auto"
        "mlp" is a network beside the mixed model; "linear" is the (generalized) linear mixed model alone, for
        the gaussian family by maximum likelihood. "auto" takes the network where it pays: where it makes
        groups held out likelier than the mixed model does, by more than two standard errors (up to 40 groups
        each is held out once, in one of 4 folds; beyond, a quarter of them is). With fewer than 20 groups it
        is the mixed model. `summary` says which and why.
    group_encoder : str, factory or Module, default="mixed_model"
        How the rows of a group become q(u). "mixed_model" is one step of Newton's method under the decoder,
        the exact posterior (BLUP) of a linear mixed model, and a learned correction. "deepsets", "average",
        "product" and "product_with_prior" are the networks of :class:`GroupVAE` on outcome and covariates,
        which know nothing of the decoder at the start; they say what starting at the posterior buys. A
        factory is called with the arguments of a class of :data:`skgroupvae.model.spec.GROUP_ENCODERS`,
        n_features being the outcomes and the covariates (an indicator for each category but the first); a
        Module is copied.
    regularizer : {"context", "instance"}, factory, Module or None, default=None
        Adversarial bound on the mutual information between a row's v and all other rows of its group, or one
        other row, as in :class:`GroupVAE`; a row is its outcome and covariates. v is the outcome's normal
        score given the covariates and a draw of u, and where the outcome is discrete the posterior mean of
        v. Not used where nothing is learned but u: decoder="linear" of the gaussian family.
    regularizer_weight : float, default=1.0
        What one nat of that information costs, in nats of a row's ELBO.
    random_slopes : "auto", None or list of names or positions, default="auto"
        Covariates whose slope varies by group, beside the intercept. "auto" takes those that vary within
        groups, at most 5; None none.
    n_extra_codes : int, default=1
        Group codes beside the random effects, which only the network sees.
    hidden_sizes : tuple of int, default=(32, 32)
        Widths of the hidden layers.
    weight_penalty : float, default=10.0
        Normal prior on the network's weights: nats that the sum of squares of what they moved costs.
    max_epochs : int or "auto", default="auto"
        Passes over the groups; "auto" is 25 steps in all times the root of the number of groups, at least 200
        and at most 800.
    batch_size : int or "auto", default="auto"
        Groups a step, as in :class:`GroupVAE`.
    learning_rate : float, default=0.01
        Peak rate of Adam on a one-cycle schedule.
    n_decoder_samples : int, default=16
        Draws of u for the decoder's importance-weighted gradient.
    n_prediction_samples : int, default=64
        Quasi-random draws of u that predictions are averaged over.
    group_column : str, int, list of them or None, default=None
        Column of X that holds the group labels, instead of `groups`.
    formula : str or None, default=None
        The model as in lme4: ``"score ~ prior * sex + (1 + prior | school)"``. X is then a table that has the
        outcome (in `fit` and where outcomes are needed; not in `predict`), the covariates and the groups.
        Without a left side y is passed as ever, without a random part `groups` or `group_column`, and
        `random_slopes` holds. Needs formulaic: ``pip install "skgroupvae[formula]"``. What a formula may hold
        is in the guide "From lme4, brms and statsmodels".
    stack_codes : bool, default=False
        True makes `transform` return one array with the columns u then v.
    warm_start : bool, default=False
        True makes a further call of `fit` start at the network of the last one, with its standardization of
        the columns and the outcome and its random slopes; the groups, and the tables of the mixed model, are
        those of the new rows alone. The linear mixed model (decoder="linear", gaussian family) is fitted
        anew, and where the last fit kept it instead of a network, the network starts at it.
    n_jobs : int or None, default=None
        Folds of groups held out that are fitted at the same time with ``decoder="auto"``; None is one.
    random_state : int, RandomState instance or None, default=None
        Seed of the weights, batches and draws.
    device : {"auto", "cpu", "cuda"} or torch.device, default="auto"
        Where to compute.
    verbose : bool or "auto", default="auto"
        Progress bar.

    Attributes
    ----------
    group_effects_ : DataFrame
        By label: posterior mean and sd of what the group adds to the outcome at the mean covariates, of what
        it adds to the slope of each random covariate, and the number of rows seen.
    fixed_effects_ : DataFrame
        Coefficients of the (generalized) linear mixed model that the fit starts at, or stays at
        (`is_mixed_model_`), in the units of X and of the outcome, or of the linear predictor of a family with
        a link, with standard errors and 95 % intervals of Wald's kind.
    marginal_effects_ : DataFrame
        Average marginal effects: what a unit more of each covariate, or its category instead of the first,
        adds to the expected outcome on average over the rows of the fit (2,000 of them at most), network
        included. The standard errors are those of `fixed_effects_`, carried to the expected outcome by the
        delta method; that the network was learned adds nothing to them.
    variance_components_ : DataFrame
        Standard deviations of that model's random effects and noise, with 95 % intervals from the observed
        information about their logarithms.
    random_effects_covariance_ : DataFrame of shape (Q, Q)
        Covariance of that model's random effects, in the units of X and of the outcome, or of the linear
        predictor of a family with a link.
    intraclass_correlation_ : float
        Share of the variance between groups in that model, at the mean covariates; for a family without a
        noise of its own, on the scale of the linear predictor (Nakagawa et al. 2017).
    intraclass_correlation_interval_ : tuple of float
        Its 95 % interval.
    mixed_model_log_likelihood_ : float
        Its log-likelihood, in nats; by importance sampling where the outcome is not normal.
    group_codes_ : DataFrame of shape (n_groups, U)
        Posterior mean of u by label; the first codes are the random effects, standardized.
    new_group_codes_ : ndarray of shape (U,)
        Mean of u that a group is predicted with that no row is known of: the mean over the rows of the fit
        less that over its groups, shrunk by what chance would make it (large schools may be better schools).
        0 for the mixed model, and 0 it is again once a row of the group is known.
    is_mixed_model_ : bool
        True where the fit ended at the (generalized) linear mixed model: with decoder="linear", and with
        "auto" where a network does not pay.
    history_ : DataFrame
        One row an epoch; see :class:`GroupVAE`.
    classes_ : ndarray
        Grades of an ordinal outcome; a list of them for several.
    model_ : Module
        The fitted model, of standardized outcomes and covariates.
    n_iter_ : int
        Epochs done.
    n_features_in_ : int
        Number of columns of X; with a formula, of those that its fixed part reads.
    feature_names_in_ : ndarray
        Their names, where X had names.

    Notes
    -----
    After a fit to several outcomes every method takes a y of the same columns (of a DataFrame by name), and
    results have the outcomes as a last axis: `predict` (n_rows, M), `predict_quantiles` (n_rows, n_quantiles,
    M), `sample_y` (n_rows, n_samples, M), and v of `transform` (n_rows, M). `score_samples` is the log
    density of all observed outcomes of a row together; `score` is the mean R². Learned tables have the
    outcome as outer level of their index, `intraclass_correlation_` is a Series and its interval a DataFrame.

    References
    ----------
    Bates, D. et al. (2015). Fitting linear mixed-effects models using lme4. J. Stat. Softw. 67(1).

    Jones, M. C., Pewsey, A. (2009). Sinh-arcsinh distributions. Biometrika 96(4).

    Examples
    --------
    >>> import numpy as np
    >>> from skgroupvae import CxVAERegressor
    >>> rng = np.random.default_rng(0)
    >>> school = np.repeat(np.arange(30), 20)
    >>> x = rng.normal(size=(600, 1))
    >>> y = 1.0 + 2.0 * x[:, 0] + rng.normal(size=30)[school] + 0.5 * rng.normal(size=600)
    >>> model = CxVAERegressor(decoder="linear").fit(x, y, groups=school)
    >>> bool(model.score(x, y, groups=school) > 0.9)
    True
    >>> model.predict_quantiles(x[:2], [0.05, 0.95], groups=school[:2]).shape
    (2, 2)
    """

    __metadata_request__fit = {"groups": True}  # noqa: RUF012
    __metadata_request__partial_fit = {"groups": True}  # noqa: RUF012
    __metadata_request__predict = {"groups": True}  # noqa: RUF012
    __metadata_request__transform = {"groups": True}  # noqa: RUF012
    __metadata_request__score = {"groups": True}  # noqa: RUF012

    _parameter_constraints = {  # noqa: RUF012
        "family": [StrOptions(set(OUTCOME_FAMILIES)), callable],
        "decoder": [StrOptions({"auto", "mlp", "linear"})],
        "group_encoder": [StrOptions({"mixed_model", *GROUP_ENCODERS}), callable],
        "regularizer": [StrOptions(set(REGULARIZERS)), callable, None],
        "regularizer_weight": [Interval(Real, 0, None, closed="left")],
        "random_slopes": [StrOptions({"auto"}), list, tuple, None],
        "n_extra_codes": [Interval(Integral, 0, None, closed="left")],
        "hidden_sizes": ["array-like"],
        "weight_penalty": [Interval(Real, 0, None, closed="left")],
        "max_epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "n_decoder_samples": [Interval(Integral, 1, None, closed="left")],
        "n_prediction_samples": [Interval(Integral, 1, None, closed="left")],
        "group_column": [str, Integral, list, tuple, None],
        "formula": [str, None],
        "stack_codes": ["boolean"],
        "warm_start": ["boolean"],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
        "device": [str, torch.device],
        "verbose": ["boolean", StrOptions({"auto"})],
    }

    def __init__(
        self,
        family: str | type = "gaussian",
        *,
        decoder: str = "auto",
        group_encoder: str | Callable[..., nn.Module] | nn.Module = "mixed_model",
        regularizer: str | Callable[..., nn.Module] | nn.Module | None = None,
        regularizer_weight: float = 1.0,
        random_slopes: str | Sequence[Any] | None = "auto",
        n_extra_codes: int = 1,
        hidden_sizes: Sequence[int] = (32, 32),
        weight_penalty: float = 10.0,
        max_epochs: int | str = "auto",
        batch_size: int | str = "auto",
        learning_rate: float = 0.01,
        n_decoder_samples: int = 16,
        n_prediction_samples: int = 64,
        group_column: Any = None,
        formula: str | None = None,
        stack_codes: bool = False,
        warm_start: bool = False,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device = "auto",
        verbose: bool | str = "auto",
    ) -> None:
        self.family = family
        self.decoder = decoder
        self.group_encoder = group_encoder
        self.regularizer = regularizer
        self.regularizer_weight = regularizer_weight
        self.random_slopes = random_slopes
        self.n_extra_codes = n_extra_codes
        self.hidden_sizes = hidden_sizes
        self.weight_penalty = weight_penalty
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.n_decoder_samples = n_decoder_samples
        self.n_prediction_samples = n_prediction_samples
        self.group_column = group_column
        self.formula = formula
        self.stack_codes = stack_codes
        self.warm_start = warm_start
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    new_group_codes_: NDArray[np.float64]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Learn from rows, their outcomes and their groups.

        Ctrl-C ends the fit early with a warning; the estimator keeps the epochs done so far.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Covariates; columns of a DataFrame that are not numeric are categories.
        y : array-like, Series or DataFrame of shape (n_rows,) or (n_rows, M), optional
            Outcome, or M of them; for family="binomial" of shape (n_rows, 2), the successes and the failures
            of each row, one trial or more in all (``cbind(successes, failures)`` in R). To be left out where
            the formula names its column, and needed otherwise.
        groups : array-like of shape (n_rows,), optional
            Group label of each row. None makes every row a group of its own, with a warning, unless
            `group_column` or the formula names the column of the labels.
        sample_weight : array-like of shape (n_rows,), optional
            How many rows (of as many trials) each row counts as, 0 or more.

        Returns
        -------
        self : CxVAERegressor

        Raises
        ------
        ValueError, TypeError
            If a parameter, the table, the outcome or the labels cannot be used; the estimator is then as it
            was.
        ImportError
            If a formula is given and formulaic is not installed.
        """
        self._validate_params()
        self._keep(fit_scores(self, X, y, groups, sample_weight))
        return self

    def partial_fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Learn from more rows, of groups of the fit or of new ones, without the earlier rows.

        The first call is `fit`. Each further one makes one pass over its rows at a tenth of the learning
        rate. Columns and outcomes keep the standardization of the first call, and what rows tell of their
        group's u stays what it was under the decoder of that call, so that what is stored of earlier rows
        stays valid; the correction that turns it into q(u) learns on. `fixed_effects_`,
        `variance_components_`, `intraclass_correlation_` and `marginal_effects_` stay those of the first
        call, whose rows they describe.

        The linear mixed model of the gaussian family has nothing to learn so: the call is then that of
        `update_groups`.

        Parameters
        ----------
        X, y, groups, sample_weight
            New rows, as in `fit`; those of earlier calls must not be among them, or they count twice.

        Returns
        -------
        self : CxVAERegressor

        Raises
        ------
        ValueError, TypeError
            As in `fit`; also if an ordinal outcome has grades that the first call has not seen, or if
            parameters that shape the model have changed.
        """
        if "_state" not in vars(self):
            return self.fit(X, y, groups=groups, sample_weight=sample_weight)
        self._validate_params()
        state = learn_more_scores(self, self._fitted(), X, y, groups, sample_weight)
        self._keep(state)
        return self

    def update_groups(self, X: Any, y: ArrayLike | None = None, *, groups: ArrayLike | None = None) -> Self:
        """Add rows with outcomes to what is known of their groups; the model stays as it is.

        Parameters
        ----------
        X, y, groups
            As in `fit`; the groups may be known or new.

        Returns
        -------
        self : CxVAERegressor
        """
        state = self._fitted()
        table = state.reader.read(X, y, groups, adds=True)
        known = with_table(state.groups, known_from(state.model, table), table)
        self._keep(state.replaced(groups=known))
        return self

    def predict(
        self,
        X: Any,
        *,
        groups: ArrayLike | None = None,
        context: tuple[Any, ArrayLike, ArrayLike] | None = None,
        return_std: bool = False,
        strict_groups: bool = False,
        trials: ArrayLike = 1,
    ) -> Any:
        """Expected outcome of each row; for family="binomial" the expected proportion of successes.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Covariates.
        groups : array-like of shape (n_rows,), optional
            Group labels. A group of the fit is known from its rows there; a new label, and every row where
            groups is None, has the prior over u.
        context : tuple (X, y, groups) or DataFrame, optional
            More rows with outcomes: they add to what is known of their groups, at once and with no refit.
            None is what is known from the fit. With a formula that names outcome and groups, a table.
        return_std : bool, default=False
            Also return the standard deviation of the prediction, noise included.
        strict_groups : bool, default=False
            True refuses labels that neither the fit nor the context has.
        trials : int or array-like of shape (n_rows,), default=1
            For family="binomial": number of trials whose proportion `return_std` is about.

        Returns
        -------
        mean : ndarray of shape (n_rows,) or (n_rows, M)
        std : ndarray of shape (n_rows,) or (n_rows, M)
            Only with `return_std`.
        """
        reader = self._fitted().reader
        parts = [
            prediction.mixture_moments(rows.likelihood, rows.eta)
            for rows in _chunks(self, X, groups, context, strict_groups, trials=trials)
        ]
        mean, variance = (torch.cat(part).double().cpu().numpy() for part in zip(*parts, strict=True))
        n_trials = reader.trials(trials, len(mean))[:, None]
        mean = _squeezed((mean * reader.scale + reader.center) / n_trials)
        if not return_std:
            return mean
        return mean, _squeezed(np.sqrt(variance) * reader.scale / n_trials)

    def predict_quantiles(
        self,
        X: Any,
        q: ArrayLike,
        *,
        groups: ArrayLike | None = None,
        context: tuple[Any, ArrayLike, ArrayLike] | None = None,
        strict_groups: bool = False,
        trials: ArrayLike = 1,
    ) -> NDArray[np.float64]:
        """Quantiles of the predictive distribution of each row.

        Parameters
        ----------
        X, groups, context, strict_groups
            As in `predict`.
        q : float or array-like of shape (n_quantiles,)
            Levels strictly between 0 and 1.
        trials : int or array-like of shape (n_rows,), default=1
            For family="binomial": number of trials of each row.

        Returns
        -------
        quantiles : ndarray of shape (n_rows, n_quantiles) or (n_rows, n_quantiles, M)
            For family="binomial" numbers of successes among the trials.
        """
        levels = torch.from_numpy(check_levels(q, "q"))
        parts = [
            prediction.mixture_quantiles(rows.likelihood, rows.eta, levels.to(rows.eta))
            for rows in _chunks(self, X, groups, context, strict_groups, trials=trials)
        ]
        return _squeezed(_in_units(self, torch.cat(parts)))

    def score_samples(
        self,
        X: Any,
        y: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        context: tuple[Any, ArrayLike, ArrayLike] | None = None,
        strict_groups: bool = False,
    ) -> NDArray[np.float64]:
        """Log predictive density (or probability) of each row's outcomes together, in nats.

        Parameters
        ----------
        X, groups, context, strict_groups
            As in `predict`.
        y : array-like of shape (n_rows,), (n_rows, M) or (n_rows, 2), optional
            Outcomes, as in `fit`; a missing one of several is left out of its row's density. None takes the
            column that the formula names.

        Returns
        -------
        log_density : ndarray of shape (n_rows,)
            For family="binomial" of the number of successes among the trials of y, binomial coefficient
            included. With hundreds of trials a row and a group that little is known of, it needs more
            `n_prediction_samples`.
        """
        log_scale, parts = np.log(self._fitted().reader.scale), []
        for rows in _chunks(self, X, groups, context, strict_groups, y=y, has_y=True):
            value = prediction.mixture_log_prob(rows.likelihood, rows.values, rows.eta, rows.mask)
            parts.append(value.double().cpu().numpy() - _n_observed(rows.values, rows.mask) @ log_scale)
        return np.concatenate(parts)

    def group_log_likelihood(
        self,
        X: Any,
        y: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        context: str | tuple[Any, ArrayLike, ArrayLike] | None = None,
    ) -> pd.Series:
        """Joint log-likelihood of the outcomes of each group's rows.

        Rows of a group are not independent: it is not the sum of what `score_samples` gives.

        Parameters
        ----------
        X, y, groups
            As in `fit`.
        context : None, "prior" or tuple (X, y, groups), default=None
            What is known of the groups beside these rows. None: the rows of the fit. A triple: these rows as
            well. "prior": nothing, as though every group were new. What is known takes the place of the prior
            of u; a label that occurs nowhere there keeps it.

        Returns
        -------
        log_likelihood : Series of shape (n_groups,)
            In nats, by label in order of first appearance, as densities in the units of y. Exact for the
            linear mixed model of the gaussian family; else by importance sampling.
        """
        if isinstance(context, str) and context != "prior":
            raise ValueError(
                f"context={context!r} must be a triple (X, y, groups), None for what is known from the fit, "
                "or 'prior'"
            )
        state = self._fitted()
        table = state.reader.read(X, y, groups)
        known = None if isinstance(context, str) else _known(state, context)
        if known is not None and not table.has_labels:
            known = None
        if known is not None:
            warn_of_unlike_labels(known.labels, table.labels, "groups")
        values = np.empty(len(table.labels))
        for positions in whole_group_batches(table.batch.groups.sizes, _CHUNK_GROUPS):
            batch = table.batch.take_groups(positions).to(device=state.model.device)
            before, after = with_own(state.model, batch, known, table.labels[positions.numpy()])
            prior, q_u = None if before is None else _full(before), _full(after)
            of_groups = prediction.group_log_likelihoods(state.model, batch, q_u, prior=prior)
            observed = torch.from_numpy(_n_observed(batch.values, batch.mask))
            cells = batch.groups.sum(observed.to(batch.values)).cpu().numpy()
            values[positions.numpy()] = of_groups.cpu().numpy() - cells @ np.log(state.reader.scale)
        return pd.Series(values[table.first_seen], index=table.labels[table.first_seen])

    def pit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        context: tuple[Any, ArrayLike, ArrayLike] | None = None,
        strict_groups: bool = False,
        random_state: int | np.random.RandomState | None = 0,
    ) -> NDArray[np.float64]:
        """Probability integral transform of each row's outcome: uniform if the predictions are calibrated.

        Parameters
        ----------
        X, groups, context, strict_groups
            As in `predict`.
        y : array-like of shape (n_rows,), (n_rows, M) or (n_rows, 2), optional
            Outcomes, as in `fit`. None takes the column that the formula names.
        random_state : int, RandomState instance or None, default=0
            Where the outcome is discrete the value is drawn between P(Y < y) and P(Y <= y).

        Returns
        -------
        pit : ndarray of shape (n_rows,) or (n_rows, M)
            Between 0 and 1; NaN where an outcome is missing.

        References
        ----------
        Czado, C., Gneiting, T., Held, L. (2009). Predictive model assessment for count data. Biometrics 65.
        """
        bounds, observed = [], []
        for rows in _chunks(self, X, groups, context, strict_groups, y=y, has_y=True):
            bounds.append(prediction.mixture_cdf(rows.likelihood, rows.values, rows.eta))
            observed.append(_n_observed(rows.values, rows.mask) > 0)
        below, upper = (torch.cat(part).double().cpu().numpy() for part in zip(*bounds, strict=True))
        share = check_random_state(random_state).random_sample(upper.shape)
        return _squeezed(np.where(np.concatenate(observed), below + share * (upper - below), np.nan))

    def score(
        self,
        X: Any,
        y: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Coefficient of determination R² of `predict`; for family="binomial" of proportions, by trials.

        Parameters
        ----------
        X, groups
            As in `predict`.
        y : array-like of shape (n_rows,), (n_rows, M) or (n_rows, 2), optional
            Outcomes, as in `fit`. None takes the column that the formula names.
        sample_weight : array-like of shape (n_rows,), optional
            Weights of the rows, or of each of their trials.

        Returns
        -------
        score : float
            Of several outcomes the mean.
        """
        mean = self.predict(X, groups=groups)
        outcomes = self._fitted().reader.outcomes(X, y, len(mean))
        weights = outcomes.trials
        if sample_weight is not None:
            weights = weights * check_weights(sample_weight, mean)
        observed = np.ones(outcomes.values.shape, dtype=bool) if outcomes.mask is None else outcomes.mask
        if not observed.any(axis=0).all():
            raise ValueError("y has an outcome without a value in any row, which has no R²; leave it out")
        columns = zip(outcomes.values.T, mean.reshape(outcomes.values.shape).T, observed.T, strict=True)
        scores = [
            r2_score(y[known], expected[known], sample_weight=weights[known])
            for y, expected, known in columns
        ]
        return float(np.mean(scores))

    def transform(self, X: Any, y: ArrayLike | None = None, *, groups: ArrayLike | None = None) -> Any:
        """Codes of rows: u of each row's group, from these rows alone, and the row's own v given it.

        Parameters
        ----------
        X, groups
            As in `fit`.
        y : array-like of shape (n_rows,), (n_rows, M) or (n_rows, 2)
            Outcomes; without them nothing tells the codes. None takes the column that the formula names.

        Returns
        -------
        u : ndarray or DataFrame of shape (n_rows, U)
            Posterior means; u repeats within a group.
        v : ndarray or DataFrame of shape (n_rows, M)
            Posterior means of the outcomes' normal scores; 0 where an outcome is missing.

        With ``stack_codes=True`` they come as one array of shape (n_rows, U + M).
        """
        state = self._fitted()
        reader = state.reader
        if y is None and (reader.formula is None or reader.formula.outcome is None):
            reader.split(X, groups)  # says what is wrong with X
            raise ValueError(
                "y is missing: transform infers codes from outcomes; pass transform(X, y, groups=...)"
            )
        table = reader.read(X, y, groups)
        batch = table.batch.to(device=state.model.device)
        with torch.no_grad():
            q_u = state.model.infer(batch)
            draws = prediction.draws_of(q_u, self.n_prediction_samples)
            v = prediction.normal_scores(state.model, batch, draws, batch.groups.codes)
        u = batch.groups.expand(q_u.loc)
        return in_codes_container(self, X, table.in_given_order(u), table.in_given_order(v))

    def fit_transform(
        self,
        X: Any,
        y: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Any:
        """Fit, then the codes of the same rows; see `fit` and `transform`."""
        return self.fit(X, y, groups=groups, sample_weight=sample_weight).transform(X, y, groups=groups)

    def sample_y(
        self,
        X: Any,
        n_samples: int = 1,
        *,
        groups: ArrayLike | None = None,
        strict_groups: bool = False,
        random_state: int | np.random.RandomState | None = None,
        trials: ArrayLike = 1,
    ) -> NDArray[np.float64]:
        """Draw outcomes from the predictive distribution, rows of a group with the same u.

        Parameters
        ----------
        X, groups, strict_groups
            As in `predict`.
        n_samples : int, default=1
            Draws a row.
        random_state : int, RandomState instance or None, default=None
            Pass an int for the same draws at every call.
        trials : int or array-like of shape (n_rows,), default=1
            For family="binomial": number of trials of each row.

        Returns
        -------
        y : ndarray of shape (n_rows, n_samples) or (n_rows, n_samples, M)
            For family="binomial" numbers of successes among the trials.
        """
        state, rng = self._fitted(), check_random_state(random_state)
        batch, labels = state.reader.rows(X, groups, trials=trials)
        batch = batch.to(device=state.model.device)
        index = pd.Index(np.zeros(batch.n_rows, dtype=int)) if labels is None else labels
        distinct = index.unique()
        q_u, position = _posterior(self, None if labels is None else distinct, None, strict_groups)
        # Two new groups share a prior, but not a draw.
        chosen = q_u.take(torch.from_numpy(position).to(q_u.loc.device))
        noise = rng.standard_normal((n_samples, len(distinct), q_u.loc.shape[1]))
        u = chosen.from_noise(torch.from_numpy(noise).to(q_u.loc))[:, distinct.get_indexer(index)]
        shape = (n_samples, *batch.values.shape)
        v = torch.from_numpy(rng.standard_normal(shape)).to(u)
        with torch.no_grad():
            likelihood, _ = state.model.decoder.likelihood.of_rows(batch.values, batch.weights)
            if likelihood.correlation is not None:
                v = v @ torch.linalg.cholesky(likelihood.correlation).to(v).mT
            values = likelihood.at_scores(v, state.model.decoder(batch.design, u))
        return _squeezed(_in_units(self, values).swapaxes(0, 1))

    def translate(
        self,
        X: Any,
        y: Any = None,
        source_group: Any = None,
        target_group: Any = None,
        *,
        context: tuple[Any, ArrayLike, ArrayLike] | None = None,
        quantiles: ArrayLike | None = None,
    ) -> Any:
        """Outcomes that these rows would have had in the target group: same covariates, same v, other u.

        Parameters
        ----------
        X, y
            Rows and their own outcomes, as in `fit`.
        source_group : label, array-like of shape (n_rows,) or None
            The group of all rows, or of each row. A group of the fit is known from its rows there; a new one
            is inferred from these rows. None takes the `group_column`, or that of the formula.
        target_group : label, array-like of shape (n_rows,) or "average"
            The group to move all rows to, or each row; a row moved to its own group keeps its outcome.
            "average", where no group is called that, is the average group: u = 0.
        context : tuple (X, y, groups) or DataFrame, optional
            More rows with outcomes; they add to what is known of the groups.
        quantiles : array-like of float of shape (n_quantiles,), optional
            Also return these quantiles of what is known of the outcome.

        Returns
        -------
        translated : ndarray of shape (n_rows,) or (n_rows, M), Series or DataFrame
            Posterior mean, in the container of y: a Series for a Series, the columns of a DataFrame for a
            DataFrame. For family="binomial" the successes among the row's trials.
        intervals : ndarray of shape (n_rows, n_quantiles) or (n_rows, n_quantiles, M)
            Only with `quantiles`.

        Raises
        ------
        ValueError
            If a target group occurs neither in the fit nor in `context`, or there is no source group.
        """
        state = self._fitted()
        reader, model = state.reader, state.model
        levels = None if quantiles is None else check_levels(quantiles, "quantiles")
        frame, in_column = reader.split(X, None)
        n_rows = len(frame)
        source = check_labels_by_row(
            in_column if source_group is None else source_group, n_rows, "source_group"
        )
        target = check_labels_by_row(target_group, n_rows, "target_group")
        batch, _ = reader.rows(X, None, y=y, has_y=True)
        batch = batch.to(device=model.device)
        known = _known(state, context)
        warn_of_unlike_groups(known, source, target)
        own = known_from(model, reader.labeled(X, y, np.asarray(source)))
        known = known.plus(own.take(np.flatnonzero(known.positions(own.labels) < 0)))
        at_target = positions_of_targets(known, target, "context=(X, y, groups)")
        # The groups that occur and, last, the average group, whose u is known to be 0.
        used, where = np.unique(np.concatenate([known.positions(source), at_target]), return_inverse=True)
        used_known = used[used >= 0]
        where = np.where(used[where] < 0, len(used_known), where - (len(used) - len(used_known)))
        q_u = _full(with_average(known.take(used_known).posterior(model)))
        positions = torch.from_numpy(where).to(model.device)
        with torch.no_grad():
            moved = prediction.translated(
                model, batch, q_u, positions[:n_rows], positions[n_rows:], self.n_prediction_samples
            )
        draws = _in_units(self, moved)
        mean = like_outcomes(_squeezed(draws.mean(0)), y, reader.names)
        if levels is None:
            return mean
        return mean, _squeezed(np.moveaxis(np.quantile(draws, levels, axis=0), 0, 1))

    def summary(self) -> str:
        """Which model the fit ended at and why, and the tables of the mixed model that it starts at.

        Returns
        -------
        text : str
        """
        state = self._fitted()
        sizes = state.groups.summaries.sizes
        of_model = mixed_model_tables(state.reader, state.model, state.mixed_model)
        correlations = of_model.intraclass_correlation()
        head = {
            "Family": state.reader.columns[0].family,
            "Model": f"{state.choice.model} ({state.choice.reason})",
            "Rows": f"{int(sizes.sum()):,}",
            "Groups": f"{len(sizes):,} of {int(sizes.min())} to {int(sizes.max())} rows",
            "Log-likelihood of the mixed model": f"{state.mixed_log_likelihood:.3f}",
        }
        for name, (value, lower, upper) in correlations.iterrows():
            of = "" if len(correlations) == 1 else f" of {name}"
            head[f"Intraclass correlation{of}"] = f"{value:.3f} ({lower:.3f} to {upper:.3f})"
        lines = [f"{name + ':':36s}{value}" for name, value in head.items()]
        tables = {
            "Fixed effects (Wald intervals, 95 %)": of_model.fixed_effects(),
            "Variance components (intervals of 95 %)": of_model.variance_components(),
        }
        if not state.spec.is_exact:
            tables["Average marginal effects"] = state.marginal_effects
        covariance = of_model.random_effects_covariance()
        if len(covariance) > 1:
            sds = np.sqrt(np.diag(covariance))
            tables["Correlations of the random effects"] = covariance.div(sds, axis=0).div(sds, axis=1)
        for title, table in tables.items():
            lines += ["", title, table.to_string(float_format=lambda x: f"{x:.4f}")]
        return "\n".join(lines)

    def _learned(self, state: ScoreState) -> dict[str, Any]:
        reader = state.reader
        q_u = state.groups.posterior(state.model)
        names = [f"u{j}" for j in range(q_u.loc.shape[1])]
        means, stds = (
            pd.DataFrame(part.cpu().numpy(), index=state.groups.labels, columns=names)
            for part in (q_u.loc, q_u.scale)
        )
        tables = mixed_model_tables(reader, state.model, state.mixed_model)
        learned = {
            "group_codes_": means,
            "group_codes_std_": stds,
            "group_effects_": _group_effects(state, _full(q_u), self.n_prediction_samples),
            "new_group_codes_": _codes_of_new(state, q_u),
            "fixed_effects_": tables.fixed_effects(),
            "variance_components_": tables.variance_components(),
            "random_effects_covariance_": tables.random_effects_covariance(),
            "marginal_effects_": state.marginal_effects,
            "mixed_model_log_likelihood_": state.mixed_log_likelihood,
            "is_mixed_model_": not state.spec.has_network,
            "history_": state.history,
            "n_iter_": len(state.history),
            "model_": state.model,
            "n_features_in_": reader.seen.n_features,
        }
        correlations = tables.intraclass_correlation()
        interval = correlations[["lower", "upper"]]
        is_one = len(correlations) == 1
        learned["intraclass_correlation_"] = (
            float(correlations["estimate"].iloc[0]) if is_one else correlations["estimate"]
        )
        learned["intraclass_correlation_interval_"] = tuple(interval.iloc[0].tolist()) if is_one else interval
        if reader.kind == "ordered":
            classes = [np.array(column.levels) for column in reader.columns]
            learned["classes_"] = classes[0] if is_one else classes
        if reader.seen.feature_names is not None:
            learned["feature_names_in_"] = reader.seen.feature_names
        return learned


class _Rows(NamedTuple):
    """Some rows with the parameters of their outcomes.

    Attributes
    ----------
    likelihood : Likelihood
        Of whole rows.
    values : Tensor of shape (n, D)
    mask : Tensor of shape (n, D) or None
    eta : Tensor of shape (S, n, D, W)
        At each draw of the group codes.
    """

    likelihood: Likelihood
    values: Tensor
    mask: Tensor | None
    eta: Tensor


@torch.no_grad()
def _chunks(
    estimator: CxVAERegressor,
    X: Any,
    groups: Any,
    context: Any,
    strict_groups: bool,
    *,
    y: Any = None,
    has_y: bool = False,
    trials: Any = 1,
) -> Iterator[_Rows]:
    """Some rows of a table at a time, in the caller's order."""
    state = estimator._fitted()
    batch, labels = state.reader.rows(X, groups, y=y, has_y=has_y, trials=trials)
    batch, decoder = batch.to(device=state.model.device), state.model.decoder
    q_u, position = _posterior(estimator, labels, context, strict_groups)
    if labels is None:
        position = np.zeros(batch.n_rows, dtype=np.intp)
    draws = prediction.draws_of(q_u, estimator.n_prediction_samples)
    if batch.n_rows > _MAX_DOUBLE_ROWS and decoder.likelihood.is_continuous:
        draws, batch, decoder = draws.float(), batch.to(dtype=torch.float32), copy.deepcopy(decoder).float()
    size = max(1, _CHUNK_NUMBERS // (estimator.n_prediction_samples * batch.values.shape[1]))
    at = torch.from_numpy(position).to(draws.device)
    for start in range(0, batch.n_rows, size):
        part = batch.take(slice(start, start + size))
        u = draws.index_select(1, at[start : start + size])
        likelihood, values = decoder.likelihood.of_rows(part.values, part.weights)
        yield _Rows(likelihood, values, part.mask, decoder(part.design, u))


def _known(state: ScoreState, context: Any) -> KnownGroups:
    """What is known of groups: from the fit, and from the rows of a context."""
    if context is None:
        return state.groups
    return state.groups.plus(known_from(state.model, state.reader.context(context)))


def _posterior(
    estimator: CxVAERegressor, labels: pd.Index | None, context: Any, strict_groups: bool
) -> tuple[FullNormal, NDArray[np.intp]]:
    """q(u) of each distinct label, a new group first, and the position of each label among them."""
    state = estimator._fitted()
    known = _known(state, context)
    if context is not None:
        _warn_of_idle_context(known, state, context, labels)
    new = FullNormal.standard(state.model.decoder.n_group_codes, state.model.decoder.fixed)
    new = FullNormal(
        new.loc + torch.from_numpy(estimator.new_group_codes_).to(new.loc), new.root, new.log_det
    )
    if labels is None:
        if strict_groups:
            raise ValueError("strict_groups=True needs a label for each row; pass groups")
        return new, np.zeros(1, dtype=np.intp)
    warn_of_unlike_labels(known.labels, labels, "groups")
    where = known.positions(labels)
    if strict_groups and (where < 0).any():
        raise ValueError(
            f"groups has the label {labels[where < 0][0]!r}, which neither the fit nor the context has; pass "
            "rows of it as context=(X, y, groups), or strict_groups=False"
        )
    used, position = np.unique(where, return_inverse=True)
    q_u = _full(known.take(used[used >= 0]).posterior(state.model))
    both = (torch.cat([getattr(q, name) for q in (new, q_u)]) for name in ("loc", "root", "log_det"))
    return FullNormal(*both), position + (0 if (where < 0).any() else 1)


def _warn_of_idle_context(
    known: KnownGroups, state: ScoreState, context: Any, labels: pd.Index | None
) -> None:
    """Context of groups that no row asks about changes nothing, and may be a misspelt label."""
    if not isinstance(context, (tuple, list)) or context[2] is None:
        return
    given = pd.Index(np.asarray(as_label_array(context[2])), tupleize_cols=False).unique()
    if labels is not None:
        given = given[~given.isin(labels)]
    if len(given):
        warnings.warn(
            f"context has groups {some(list(given))} that no row of X belongs to; they are ignored",
            UserWarning,
            stacklevel=caller_level(),
        )


def _full(q_u: DiagonalNormal | FullNormal) -> FullNormal:
    return FullNormal.from_diagonal(q_u) if isinstance(q_u, DiagonalNormal) else q_u


def _codes_of_new(state: ScoreState, q_u: DiagonalNormal | FullNormal) -> NDArray[np.float64]:
    """Mean of u of a group that no row is known of; the mixed model has 0."""
    if not state.spec.has_network:
        return np.zeros(q_u.loc.shape[1])
    return prediction.mean_by_rows(q_u.loc, state.groups.summaries.totals[:, 0].to(q_u.loc)).cpu().numpy()


@torch.no_grad()
def _group_effects(state: ScoreState, q_u: FullNormal, n_samples: int) -> pd.DataFrame:
    """What each group adds at the mean covariates, and to the slope of each random covariate, by outcome."""
    reader, decoder = state.reader, state.model.decoder
    at_mean = torch.zeros(1, len(reader.design.names), dtype=q_u.loc.dtype, device=q_u.loc.device)
    at_mean[0, 0] = 1.0
    draws = prediction.draws_of(q_u, n_samples)
    prior = prediction.draws_of(FullNormal.standard(q_u.loc.shape[1], q_u.loc), 4 * n_samples)

    def means(design: Tensor, u: Tensor) -> Tensor:
        eta = decoder(design.expand(u.shape[1], -1), u)
        columns = zip(decoder.likelihood.families, eta.unbind(-2), strict=True)
        return torch.stack([cast(Any, f).mean(at[..., : f.n_parameters]) for f, at in columns], dim=-1)

    base, base_prior = means(at_mean, draws), means(at_mean, prior)
    tables: list[dict[str, NDArray]] = [{} for _ in reader.columns]
    for column in reader.random:
        value, average, width = base, base_prior, 1.0
        if column:
            moved = at_mean.clone()
            moved[0, column] += 0.1
            width = 0.1 * float(reader.design.scale[column])
            value, average = means(moved, draws) - base, means(moved, prior) - base_prior
        effect = ((value - average.mean((0, 1))) / width).cpu().numpy() * reader.scale
        name = reader.design.names[column]
        for j, table in enumerate(tables):
            table[name] = effect[..., j].mean(0)
            table[f"{name} sd"] = effect[..., j].std(0)
    n_rows = state.groups.summaries.sizes.cpu().numpy()
    frames = [pd.DataFrame(table | {"n_rows": n_rows}, index=state.groups.labels) for table in tables]
    if len(frames) == 1:
        return frames[0]
    return pd.concat(dict(zip(reader.names, frames, strict=True)), names=["outcome"])


def _in_units(estimator: CxVAERegressor, values: Tensor) -> NDArray[np.float64]:
    """Outcomes (*, D), not means, in the units of the table."""
    return estimator._fitted().reader.in_units(values.double().cpu().numpy())


def _squeezed(values: NDArray) -> NDArray[np.float64]:
    """Without the last axis, of the outcomes, where there is one."""
    return values[..., 0] if values.shape[-1] == 1 else values


def _n_observed(values: Tensor, mask: Tensor | None) -> NDArray[np.float64]:
    """1 for each cell (N, D) that is observed, else 0."""
    return np.ones(values.shape) if mask is None else mask.double().cpu().numpy()
