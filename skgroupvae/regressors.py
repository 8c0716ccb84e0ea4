"""CxVAERegressor: what a mixed-effects model is swapped for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import r2_score
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skgroupvae.building import GROUP_ENCODERS, REGULARIZERS
from skgroupvae.evidence import Evidence
from skgroupvae.families import FAMILIES
from skgroupvae.regression import prediction
from skgroupvae.regression.encoder import FullNormal
from skgroupvae.regression_base import GroupedRegressor
from skgroupvae.several import (
    average,
    each_outcome,
    relearned,
    side_by_side,
    stacked,
    total,
)
from skgroupvae.validation import (
    check_labels_by_row,
)

__all__ = ["CxVAERegressor"]


class CxVAERegressor(GroupedRegressor, auto_wrap_output_keys=None):  # type: ignore[call-arg]
    r"""Regression on grouped rows: a mixed-effects model that learns what departs from it.

    The outcome of row k of group i, given its covariates x, is

    .. math:: y_{ik} \sim \mathrm{family}(\eta(x_{ik}, u_i)), \qquad
        \eta = x^\top\beta + z^\top\Lambda u + \mathrm{network}(x, u), \qquad u_i \sim N(0, I)

    where z are the constant and the covariates with random slopes. The fit starts at the linear mixed model
    of maximum likelihood, its network at zero; the network then learns curves, group effects that are no
    straight lines, and scales and shapes that depend on x and u. The instance code v of a row is the normal
    score of its outcome given x and u, so that the outcome is monotone in v.

    A y of M columns (for a family whose y has one) is M outcomes, each with a model of its own, as M separate
    fits would give it: given X and the groups they are taken to be independent, and each has group codes of
    its own. See Notes.

    Parameters
    ----------
    family : str, default="gaussian"
        Distribution of the outcome: "gaussian", "student_t", "bernoulli", "binomial", "poisson",
        "negative_binomial" or "ordinal". "gaussian" starts at normal errors of one scale and learns scale,
        skewness and tails; "binomial" has two columns y, successes and failures; "ordinal" has cumulative
        logits for numbers that are grades.
    decoder : {"mlp", "linear"}, default="mlp"
        "linear" is the (generalised) linear mixed model alone; for the gaussian family by maximum likelihood.
    group_encoder : str, factory or Module, default="mixed_model"
        How the rows of a group become q(u). "mixed_model" is one step of Newton's method under the decoder,
        the exact posterior (BLUP) of a linear mixed model, and a learned correction. "deepsets", "average",
        "product" and "product_with_prior" are the networks of :class:`GroupVAE` on outcome and covariates,
        which know nothing of the decoder at the start; they say what starting at the posterior buys. A
        factory is called with the arguments of a class of ``skgroupvae.building.GROUP_ENCODERS``,
        n_features being one more than the covariates (an indicator for each category but the first); a
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
        True makes a further call of `fit` start at the network of the last one, with its standardisation of
        the columns and the outcome and its random slopes; the groups, and the tables of the mixed model, are
        those of the new rows alone. The linear mixed model (decoder="linear", gaussian family) is fitted
        anew, and where the last fit kept it instead of a network, the network starts at it.
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
        Coefficients of the (generalised) linear mixed model that the fit starts at, or stays at
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
        Posterior mean of u by label; the first codes are the random effects, standardised.
    new_group_codes_ : ndarray of shape (U,)
        Mean of u that a group is predicted with that no row is known of: the mean over the rows of the fit
        less that over its groups, shrunk by what chance would make it (large schools may be better schools).
        0 for the mixed model, and 0 it is again once a row of the group is known.
    is_mixed_model_ : bool
        True where the fit stayed at the (generalised) linear mixed model: with decoder="linear", and with 40
        groups or fewer where the network made groups held out no likelier (4 folds, by the ELBO).
    history_ : DataFrame
        One row an epoch; see :class:`GroupVAE`.
    classes_ : ndarray
        Grades of an ordinal outcome.
    network_ : Module
        The fitted network.
    n_iter_ : int
        Epochs done.
    n_features_in_ : int
        Number of columns of X; with a formula, of those that its fixed part reads.
    feature_names_in_ : ndarray
        Their names, where X had names.
    outcomes_ : dict of CxVAERegressor
        Of a fit to several outcomes only: the fitted model of each, by the name of its column of y, or "y0",
        "y1", ....

    Notes
    -----
    After a fit to several outcomes every method takes a y of the same columns (of a DataFrame by name), and
    results have the outcomes as a last axis: `predict` (n_rows, M), `predict_quantiles` (n_rows, n_quantiles,
    M), `sample_y` (n_rows, n_samples, M). `transform` gives the codes side by side; `score_samples` is the
    log density of all outcomes of a row together, their sum; `score` is the mean R². Learned tables have the
    outcome as outer level of their index, learned numbers are Series by outcome, `network_` is a ModuleList
    and `classes_` a list.

    Where y is missing (NaN) in `fit`, `update_groups` or `context`, the row tells nothing about that outcome,
    and the others are learned from it. A fit of an outcome depends on no other outcome.

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
        "family": [StrOptions(set(FAMILIES))],
        "decoder": [StrOptions({"mlp", "linear"})],
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
        "random_state": ["random_state"],
        "device": [str, torch.device],
        "verbose": ["boolean", StrOptions({"auto"})],
    }

    def __init__(
        self,
        family: str = "gaussian",
        *,
        decoder: str = "mlp",
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
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Learn from rows, their outcomes and their groups.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_rows, n_features)
            Covariates; columns of a DataFrame that are not numeric are categories.
        y : array-like or DataFrame of shape (n_rows,) or (n_rows, M), optional
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
        self._fit(X, y, groups, sample_weight)
        return self

    @each_outcome(relearned, learns=True)
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
        rate. Columns and outcome keep the standardisation of the first call, and what rows tell of their
        group's u stays what it was under the decoder of that call, so that what is stored of earlier rows
        stays valid; the correction that turns it into q(u) learns on. `fixed_effects_`,
        `variance_components_`, `intraclass_correlation_` and `marginal_effects_` stay those of the first
        call, whose rows they describe.

        The linear mixed model (decoder="linear", gaussian family, or where the fit kept it) has nothing to
        learn so: the call is then that of `update_groups`.

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
            parameters that shape the network have changed.
        """
        if hasattr(self, "network_"):
            self._partial_fit(X, y, groups, sample_weight)
            return self
        return self.fit(X, y, groups=groups, sample_weight=sample_weight)

    @each_outcome(relearned, learns=True)
    def update_groups(self, X: Any, y: ArrayLike | None = None, *, groups: ArrayLike | None = None) -> Self:
        """Add rows with outcomes to what is known of their groups; the networks stay as they are.

        Parameters
        ----------
        X, y, groups
            As in `fit`; the groups may be known or new.

        Returns
        -------
        self : CxVAERegressor
        """
        rows, labels = self._read(X, self._y_of(X, y), groups)
        self._set_evidence(self._evidence.plus(self._evidence_of(rows, labels)))
        return self

    @each_outcome(stacked)
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
            With a formula that names outcome and groups, a table of such rows.
        return_std : bool, default=False
            Also return the standard deviation of the prediction, noise included.
        strict_groups : bool, default=False
            True refuses labels that neither the fit nor the context has.
        trials : int or array-like of shape (n_rows,), default=1
            For family="binomial": number of trials whose proportion `return_std` is about.

        Returns
        -------
        mean : ndarray of shape (n_rows,)
        std : ndarray of shape (n_rows,)
            Only with `return_std`.
        """
        parts = [
            prediction.mixture_moments(family, eta)
            for family, _, eta in self._chunks(X, None, groups, context, strict_groups, trials)
        ]
        mean, variance = (torch.cat(part).double().cpu().numpy() for part in zip(*parts, strict=True))
        n_trials = self._trials(trials, len(mean))
        mean = (mean * self._scale + self._centre) / n_trials
        return (mean, np.sqrt(variance) * self._scale / n_trials) if return_std else mean

    @each_outcome(stacked)
    def predict_quantiles(
        self,
        X: Any,
        q: ArrayLike,
        *,
        groups: ArrayLike | None = None,
        context: tuple[Any, ArrayLike, ArrayLike] | None = None,
        trials: ArrayLike = 1,
    ) -> NDArray[np.float64]:
        """Quantiles of the predictive distribution of each row.

        Parameters
        ----------
        X, groups, context
            As in `predict`.
        q : float or array-like of shape (n_quantiles,)
            Levels strictly between 0 and 1.
        trials : int or array-like of shape (n_rows,), default=1
            For family="binomial": number of trials of each row.

        Returns
        -------
        quantiles : ndarray of shape (n_rows, n_quantiles)
            For family="binomial" numbers of successes among the trials.
        """
        levels = np.atleast_1d(np.asarray(q, dtype=np.float64))
        if levels.ndim != 1 or not ((levels > 0) & (levels < 1)).all():
            raise ValueError(f"q must hold levels strictly between 0 and 1, got {q!r}")
        parts = [
            prediction.mixture_quantiles(family, eta, torch.from_numpy(levels).to(eta))
            for family, _, eta in self._chunks(X, None, groups, context, trials=trials)
        ]
        return self._outer(torch.cat(parts).double())

    @each_outcome(total)
    def score_samples(
        self,
        X: Any,
        y: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        context: tuple[Any, ArrayLike, ArrayLike] | None = None,
    ) -> NDArray[np.float64]:
        """Log predictive density (or probability) of each row's outcome, in nats.

        Parameters
        ----------
        X, groups, context
            As in `predict`.
        y : array-like of shape (n_rows,) or (n_rows, 2), optional
            Outcomes, as in `fit`. None takes the column that the formula names.

        Returns
        -------
        log_density : ndarray of shape (n_rows,)
            For family="binomial" of the number of successes among the trials of y, binomial coefficient
            included. With hundreds of trials a row and a group that little is known of, it needs more
            `n_prediction_samples`.
        """
        parts = [
            prediction.mixture_log_prob(family, outcome, eta)
            for family, outcome, eta in self._chunks(X, self._y_of(X, y), groups, context)
        ]
        return torch.cat(parts).double().cpu().numpy() - math.log(self._scale)

    @each_outcome(stacked)
    def pit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        context: tuple[Any, ArrayLike, ArrayLike] | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> NDArray[np.float64]:
        """Probability integral transform of each row's outcome: uniform if the predictions are calibrated.

        Parameters
        ----------
        X, groups, context
            As in `predict`.
        y : array-like of shape (n_rows,) or (n_rows, 2), optional
            Outcomes, as in `fit`. None takes the column that the formula names.
        random_state : int, RandomState instance or None, default=0
            Where the outcome is discrete the value is drawn between P(Y < y) and P(Y <= y).

        Returns
        -------
        pit : ndarray of shape (n_rows,)
            Between 0 and 1.

        References
        ----------
        Czado, C., Gneiting, T., Held, L. (2009). Predictive model assessment for count data. Biometrics 65.
        """
        parts = [
            prediction.mixture_cdf(family, outcome, eta)
            for family, outcome, eta in self._chunks(X, self._y_of(X, y), groups, context)
        ]
        below, upper = (torch.cat(part).double().cpu().numpy() for part in zip(*parts, strict=True))
        share = check_random_state(random_state).random_sample(len(upper))
        return below + share * (upper - below)

    @each_outcome(average)
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
        y : array-like of shape (n_rows,) or (n_rows, 2), optional
            Outcomes, as in `fit`. None takes the column that the formula names.
        sample_weight : array-like of shape (n_rows,), optional
            Weights of the rows, or of each of their trials.

        Returns
        -------
        score : float
        """
        mean = self.predict(X, groups=groups)
        outcome, trials = self._outcome(self._y_of(X, y), len(mean))
        weights = trials if sample_weight is None else trials * np.asarray(sample_weight, dtype=np.float64)
        return r2_score(outcome, mean, sample_weight=weights)

    def transform(self, X: Any, y: ArrayLike | None = None, *, groups: ArrayLike | None = None) -> Any:
        """Codes of rows: u of each row's group, from these rows alone, and the row's own v given it.

        Parameters
        ----------
        X, groups
            As in `fit`.
        y : array-like of shape (n_rows,) or (n_rows, 2)
            Outcomes; without them nothing tells the codes. None takes the column that the formula names.

        Returns
        -------
        u : ndarray or DataFrame of shape (n_rows, U)
            Posterior means; u repeats within a group.
        v : ndarray or DataFrame of shape (n_rows, 1)
            Posterior means of the outcomes' normal scores.

        With ``stack_codes=True`` they come as one array of shape (n_rows, U + 1).
        """
        return self._wrap(X, *self._codes(X, y, groups=groups))

    @each_outcome(side_by_side)
    def _codes(self, X: Any, y: Any, *, groups: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Codes u and v of rows as arrays."""
        y = self._y_of(X, y, required=False)
        rows, labels = self._read(X, y, groups)
        if y is None:
            raise ValueError(
                "y is missing: transform infers codes from outcomes; pass transform(X, y, groups=...)"
            )
        index = self._index_of(rows, labels)
        q_u = Evidence.of_rows(self.network_, rows, index).posterior(self.network_)
        position = torch.from_numpy(index.codes).to(rows.device)
        draws = prediction.draws_of(q_u, self.n_prediction_samples)
        v = prediction.normal_scores(self.network_, rows, draws, position)
        return q_u.loc[position].cpu().numpy(), v[:, None].cpu().numpy()

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

    @each_outcome(stacked)
    def sample_y(
        self,
        X: Any,
        n_samples: int = 1,
        *,
        groups: ArrayLike | None = None,
        random_state: int | np.random.RandomState | None = None,
        trials: ArrayLike = 1,
    ) -> NDArray[np.float64]:
        """Draw outcomes from the predictive distribution, rows of a group with the same u.

        Parameters
        ----------
        X, groups
            As in `predict`.
        n_samples : int, default=1
            Draws a row.
        random_state : int, RandomState instance or None, default=None
            Pass an int for the same draws at every call.
        trials : int or array-like of shape (n_rows,), default=1
            For family="binomial": number of trials of each row.

        Returns
        -------
        y : ndarray of shape (n_rows, n_samples)
            For family="binomial" numbers of successes among the trials.
        """
        rng = check_random_state(random_state)
        rows, labels = self._read(X, None, groups, trials)
        index = pd.Index(
            np.zeros(len(rows), dtype=int) if labels is None else np.asarray(labels), tupleize_cols=False
        )
        distinct = index.unique()
        q_u, position = self._posterior(distinct, None)
        if labels is None:
            position = np.zeros(1, dtype=np.intp)
        # Two new groups share a prior, but not a draw.
        chosen = FullNormal(q_u.loc[position], q_u.root[position], q_u.log_det[position])
        noise = rng.standard_normal((n_samples, len(distinct), q_u.loc.shape[1]))
        u = chosen.draw(torch.from_numpy(noise).to(q_u.loc))[:, distinct.get_indexer(index)]
        v = torch.from_numpy(rng.standard_normal((n_samples, len(rows)))).to(u)
        decoder = self.network_.decoder
        family, _ = decoder.family.of_rows(rows[:, 0], rows[:, 1])
        return self._outer(family.at_score(v, decoder(rows[:, 2:], u))).T

    @each_outcome(stacked)
    def translate(
        self,
        X: Any,
        y: ArrayLike | None = None,
        *,
        source_group: Any = None,
        target_group: Any,
        context: tuple[Any, ArrayLike, ArrayLike] | None = None,
        quantiles: ArrayLike | None = None,
    ) -> Any:
        """Outcomes that these rows would have had in the target group: same covariates, same v, other u.

        Parameters
        ----------
        X, y, context
            As in `predict`, with the rows' own outcomes.
        source_group : label or array-like of shape (n_rows,), optional
            Their group, or that of each row. None takes the `group_column`, or that of the formula.
        target_group : label or array-like of shape (n_rows,)
            The group to move them to.
        quantiles : array-like of float, optional
            Also return these quantiles of what is known of the outcome.

        Returns
        -------
        translated : ndarray of shape (n_rows,)
            Posterior mean; for family="binomial" of the successes among the row's trials.
        intervals : ndarray of shape (n_rows, n_quantiles)
            Only with `quantiles`.
        """
        check_is_fitted(self)
        table, in_column = self._split(X, None)
        source = check_labels_by_row(
            in_column if source_group is None else source_group, len(table), "source_group"
        )
        target = check_labels_by_row(target_group, len(table), "target_group")
        design = self._design.transform(self._covariates(table, reset=False))
        rows = self._rows(self._y_of(X, y), design)
        (q_source, at_source), (q_target, at_target) = (
            self._posterior(labels, context) for labels in (source, target)
        )
        if (at_target == 0).any():
            raise ValueError(
                f"target_group {target[at_target == 0][0]!r} does not occur in the fit; pass rows of it as "
                "context=(X, y, groups)"
            )
        same = torch.from_numpy(np.asarray(source == target))
        u_source = prediction.draws_of(q_source, self.n_prediction_samples)[:, at_source]
        u_target = prediction.draws_of(q_target, self.n_prediction_samples, seed=1)[:, at_target]
        u_target = torch.where(same[:, None].to(u_source.device), u_source, u_target)
        moved = self._outer(prediction.translated(self.network_, rows, u_source, u_target))
        mean = moved.mean(0)
        return (
            mean
            if quantiles is None
            else (mean, np.quantile(moved, np.asarray(quantiles, dtype=float), axis=0).T)
        )
