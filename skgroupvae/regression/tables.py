"""Tables of a fitted mixed model in the units of the data, with intervals: what lme4's summary prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from skgroupvae.design import Design
from skgroupvae.families import Family
from skgroupvae.regression.mixed_model import LinearMixedModel, lower_triangle

__all__ = ["MixedModelTables", "estimate_table"]

# Of a standard normal: intervals of 95 %.
_Z = 1.959964


def estimate_table(
    estimate: NDArray[np.float64], error: NDArray[np.float64], names: Sequence[str]
) -> pd.DataFrame:
    """Estimates with standard errors and Wald intervals of 95 %."""
    bounds = {"lower": estimate - _Z * error, "upper": estimate + _Z * error}
    return pd.DataFrame({"estimate": estimate, "std_error": error} | bounds, index=list(names))


class MixedModelTables:
    """Estimates of a mixed model of standardised columns, told in the units of the table.

    Parameters
    ----------
    model : LinearMixedModel
        On the scale of the predictor.
    design : Design
        What standardised the columns.
    random : sequence of int
        Columns with a random coefficient, the constant first.
    centre, scale : float
        What standardised the outcome.
    family : Family
        Distribution of the outcome.
    """

    def __init__(
        self,
        model: LinearMixedModel,
        design: Design,
        random: Sequence[int],
        centre: float,
        scale: float,
        family: Family,
    ) -> None:
        self.model, self.names, self.random = model, design.names, list(random)
        self.centre, self.scale, self.family = centre, scale, family
        # Standardised coefficients to the units of X: slopes by their scale, the intercept at X = 0.
        self.to_units = np.diag(1.0 / design.scale)
        self.to_units[0] = -design.centre / design.scale
        self.to_units[0, 0] = 1.0

    def fixed_effects(self) -> pd.DataFrame:
        """Estimate, standard error and Wald interval of each coefficient."""
        estimate = self.to_units @ self.model.fixed.numpy() * self.scale
        estimate[0] += self.centre
        covariance = self.to_units @ self.model.fixed_covariance.numpy() @ self.to_units.T
        error = np.sqrt(covariance.diagonal().clip(min=0.0)) * self.scale
        return estimate_table(estimate, error, self.names)

    def variance_components(self) -> pd.DataFrame:
        """Standard deviations, with intervals from the observed information about their logarithms.

        As nlme's ``intervals`` (Pinheiro and Bates 2000, section 2.4.3): where an estimate is near zero the
        interval reaches far down.
        """
        names = [self.names[j] for j in self.random]
        if self.family.is_continuous:
            names.append("Residual")
        log_sd, error = self._with_error(lambda p: 0.5 * self._variances(p).log())
        n = len(names)
        sd = np.exp(log_sd[:n])
        with np.errstate(over="ignore"):
            bounds = {"lower": sd * np.exp(-_Z * error[:n]), "upper": sd * np.exp(_Z * error[:n])}
        return pd.DataFrame({"sd": sd} | bounds, index=names)

    def random_effects_covariance(self) -> pd.DataFrame:
        """Covariance of the random effects (Q, Q)."""
        at = self.to_units[np.ix_(self.random, self.random)] @ self.model.loadings.numpy() * self.scale
        names = [self.names[j] for j in self.random]
        return pd.DataFrame(at @ at.T, index=names, columns=names)

    def intraclass_correlation(self) -> tuple[float, float, float]:
        """Share of the variance between groups at the mean covariates, and its interval, by the logit."""
        logit, error = self._with_error(self._logit_share)
        value, lower, upper = expit(logit + np.array([0.0, -_Z, _Z]) * error)
        return float(value), float(lower), float(upper)

    def _loadings(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Lambda and sigma from the parameters that `theta_covariance` is about."""
        noise = parameters[-1].exp()
        return lower_triangle(parameters[:-1], len(self.random)) * noise, noise

    def _variances(self, parameters: Tensor) -> Tensor:
        """Of each random effect in units, then of the noise."""
        loadings, noise = self._loadings(parameters)
        at = torch.from_numpy(self.to_units[np.ix_(self.random, self.random)])
        variances = torch.cat([(at @ loadings).square().sum(-1), noise.square()[None]])
        return (variances * self.scale**2).clamp(min=1e-300)

    def _logit_share(self, parameters: Tensor) -> Tensor:
        loadings, noise = self._loadings(parameters)
        between = loadings[0].square().sum().clamp(min=1e-300)
        within = self.family.latent_variance(self.model.fixed[0], between)
        return (between / (noise.square() if within is None else within)).log()[None]

    def _with_error(self, function: Callable[[Tensor], Tensor]) -> tuple[NDArray, NDArray]:
        """Value at the estimate and standard error by the delta method."""
        n_random, noise = len(self.random), self.model.noise
        rows, cols = torch.tril_indices(n_random, n_random)
        ratio = self.model.loadings[rows, cols] / noise
        parameters = torch.cat([ratio, torch.tensor([noise], dtype=torch.float64).log()])
        jacobian = torch.autograd.functional.jacobian(function, parameters)
        variance = ((jacobian @ self.model.theta_covariance) * jacobian).sum(-1)
        return function(parameters).numpy(), variance.clamp(min=0.0).sqrt().numpy()
