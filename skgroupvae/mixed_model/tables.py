"""Tables of a fitted mixed model in the units of the data, with intervals: what lme4's summary prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from torch import Tensor

from skgroupvae.data.design import Design
from skgroupvae.mixed_model.linear import LinearMixedModel, factors_of
from skgroupvae.model.families import Family

__all__ = ["MixedModelTables", "estimate_table", "table_index"]

# Of a standard normal: intervals of 95 %.
_Z = 1.959964
_TINY = 1e-300


def estimate_table(
    estimate: NDArray[np.float64], error: NDArray[np.float64], index: pd.Index
) -> pd.DataFrame:
    """Estimates with standard errors and Wald intervals of 95 %."""
    bounds = {"lower": estimate - _Z * error, "upper": estimate + _Z * error}
    return pd.DataFrame({"estimate": estimate, "std_error": error} | bounds, index=index)


def table_index(outcomes: Sequence[str], names: Sequence[Sequence[str]]) -> pd.Index:
    """Index of a table with rows for each outcome, the outcome as its outer level if there are several.

    Parameters
    ----------
    outcomes : sequence of str
        D names.
    names : sequence of sequence of str
        Names of the rows of each outcome.
    """
    if len(outcomes) == 1:
        return pd.Index(list(names[0]))
    pairs = [(outcome, name) for outcome, own in zip(outcomes, names, strict=True) for name in own]
    return pd.MultiIndex.from_tuples(pairs, names=["outcome", None])


class MixedModelTables:
    """Estimates of a mixed model of standardized columns, told in the units of the table.

    With several outcomes the tables have the outcome as outer level of their index.

    Parameters
    ----------
    fitted : LinearMixedModel
        On the scale of the linear predictors.
    design : Design
        What standardized the columns of the design.
    families : sequence of Family
        Distribution of each of the D outcomes.
    outcomes : sequence of str
        Their names.
    center, scale : array-like of shape (D,)
        What standardized them.
    """

    def __init__(
        self,
        fitted: LinearMixedModel,
        design: Design,
        families: Sequence[Family],
        outcomes: Sequence[str],
        center: ArrayLike,
        scale: ArrayLike,
    ) -> None:
        self.fitted, self.names = fitted, list(design.names)
        self.families, self.outcomes = list(families), list(outcomes)
        self.center, self.scale = (np.asarray(part, dtype=np.float64) for part in (center, scale))
        self.random = list(fitted.terms[0].columns)
        # Standardized coefficients to the units of X: slopes by their scale, the intercept at X = 0.
        self.to_units = np.diag(1.0 / design.scale)
        self.to_units[0] = -design.center / design.scale
        self.to_units[0, 0] = 1.0

    @property
    def _random_names(self) -> list[str]:
        return [self.names[j] for j in self.random]

    @property
    def _random_to_units(self) -> NDArray:
        """Of the random effects of all outcomes (D Q, D Q)."""
        return np.kron(np.diag(self.scale), self.to_units[np.ix_(self.random, self.random)])

    def fixed_effects(self) -> pd.DataFrame:
        """Estimate, standard error and Wald interval of each coefficient."""
        estimate = self.to_units @ self.fitted.fixed.numpy() * self.scale
        estimate[0] += self.center
        to_units = np.kron(np.diag(self.scale), self.to_units)
        covariance = to_units @ self.fitted.fixed_covariance.numpy() @ to_units.T
        error = np.sqrt(covariance.diagonal().clip(min=0.0))
        index = table_index(self.outcomes, [self.names] * len(self.outcomes))
        return estimate_table(estimate.T.ravel(), error, index)

    def variance_components(self) -> pd.DataFrame:
        """Standard deviations, with intervals from the observed information about their logarithms.

        As nlme's ``intervals`` (Pinheiro and Bates 2000, section 2.4.3): where an estimate is near zero the
        interval reaches far down.
        """
        names = [
            self._random_names + (["Residual"] if family.is_continuous else []) for family in self.families
        ]
        kept = np.concatenate([np.arange(len(self.random) + 1) < len(own) for own in names])
        log_sd, error = (part[kept] for part in self._with_error(lambda p: 0.5 * self._variances(p).log()))
        sd = np.exp(log_sd)
        with np.errstate(over="ignore"):
            bounds = {"lower": sd * np.exp(-_Z * error), "upper": sd * np.exp(_Z * error)}
        return pd.DataFrame({"sd": sd} | bounds, index=table_index(self.outcomes, names))

    def random_effects_covariance(self) -> pd.DataFrame:
        """Covariance of the random effects of all outcomes and columns, (D Q, D Q)."""
        at = self._random_to_units @ self.fitted.loadings[0].numpy()
        index = table_index(self.outcomes, [self._random_names] * len(self.outcomes))
        return pd.DataFrame(at @ at.T, index=index, columns=index)

    def residual_covariance(self) -> pd.DataFrame:
        """Covariance of the residuals (D, D); where outcomes are not continuous, of the working outcomes."""
        at = self.scale[:, None] * self.fitted.residual.numpy()
        return pd.DataFrame(at @ at.T, index=self.outcomes, columns=self.outcomes)

    def intraclass_correlation(self) -> pd.DataFrame:
        """Share of the variance between groups at the mean covariates, and its interval, by the logit.

        Returns
        -------
        table : DataFrame of D rows
            Columns estimate, lower, upper.
        """
        logit, error = self._with_error(self._logit_shares)
        shares = expit(logit[:, None] + np.array([0.0, -_Z, _Z]) * error[:, None])
        return pd.DataFrame(shares, index=self.outcomes, columns=["estimate", "lower", "upper"])

    def _variances(self, parameters: Tensor) -> Tensor:
        """Of each random effect in units, then of the residual, outcome by outcome: (D * (Q + 1),)."""
        loadings, residual = factors_of(self.fitted, parameters)
        effects = (torch.from_numpy(self._random_to_units) @ loadings).square().sum(-1)
        residuals = (torch.from_numpy(self.scale)[:, None] * residual).square().sum(-1)
        by_outcome = [effects.unflatten(0, (len(residual), -1)), residuals[:, None]]
        return torch.cat(by_outcome, dim=1).flatten().clamp(min=_TINY)

    def _logit_shares(self, parameters: Tensor) -> Tensor:
        """Logits of the intraclass correlations (D,)."""
        loadings, residual = factors_of(self.fitted, parameters)
        betweens = loadings[:: len(self.random)].square().sum(-1).clamp(min=_TINY)
        logits = []
        for column, (family, between) in enumerate(zip(self.families, betweens, strict=True)):
            within = family.latent_variance(self.fitted.fixed[0, column], between)
            if within is None:
                within = residual[column].square().sum()
            logits.append((between / within).log())
        return torch.stack(logits)

    def _with_error(self, function: Callable[[Tensor], Tensor]) -> tuple[NDArray, NDArray]:
        """Value at the estimate and standard error by the delta method."""
        parameters = self.fitted.parameters
        jacobian = torch.autograd.functional.jacobian(function, parameters)
        assert self.fitted.parameters_covariance is not None
        variance = ((jacobian @ self.fitted.parameters_covariance) * jacobian).sum(-1)
        return function(parameters).numpy(), variance.clamp(min=0.0).sqrt().numpy()
