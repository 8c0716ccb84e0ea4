"""Outcome families by scipy and formulas written out: what the families of the package are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import expit

__all__ = ["distribution", "log_prob", "score_and_information", "score_of_row"]

_GRID = np.linspace(-9.0, 9.0, 3001)


@dataclass(frozen=True)
class SinhArcsinh:
    """y = loc + scale * sinh((arcsinh(v) + skew) / tail), v standard normal (Jones and Pewsey 2009)."""

    loc: np.ndarray
    scale: np.ndarray
    skew: np.ndarray
    tail: np.ndarray

    def _v(self, y):
        return np.sinh(self.tail * np.arcsinh((y - self.loc) / self.scale) - self.skew)

    def _y(self, v):
        return self.loc + self.scale * np.sinh((np.arcsinh(v) + self.skew) / self.tail)

    def cdf(self, y):
        return stats.norm.cdf(self._v(y))

    def ppf(self, q):
        return self._y(stats.norm.ppf(q))

    def logpdf(self, y):
        z, v = (y - self.loc) / self.scale, self._v(y)
        slope = np.sqrt(1.0 + v**2) * self.tail / np.sqrt(1.0 + z**2) / self.scale
        return stats.norm.logpdf(v) + np.log(slope)

    def _moment(self, power):
        y = np.stack([self._y(v) ** power for v in _GRID], axis=-1)
        return (y * stats.norm.pdf(_GRID)).sum(-1) * (_GRID[1] - _GRID[0])

    def mean(self):
        return self._moment(1)

    def var(self):
        return self._moment(2) - self._moment(1) ** 2


@dataclass(frozen=True)
class Ordered:
    """Levels 0, 1, ..., of these values, by their cumulative probabilities (*, K)."""

    below: np.ndarray
    values: np.ndarray

    @property
    def probabilities(self):
        return np.diff(self.below, axis=-1, prepend=0.0)

    def _at(self, table, y):
        y = np.broadcast_to(np.asarray(y, dtype=int), table.shape[:-1])
        return np.take_along_axis(table, y.clip(min=0)[..., None], -1)[..., 0]

    def cdf(self, y):
        return np.where(np.asarray(y) < 0, 0.0, self._at(self.below, y))

    def logpmf(self, y):
        with np.errstate(divide="ignore"):
            return np.log(self._at(self.probabilities, y))

    def mean(self):
        return self.probabilities @ self.values

    def var(self):
        return self.probabilities @ self.values**2 - self.mean() ** 2


def distribution(name, family, eta, trials=None):
    """Distribution of an outcome with parameters eta (*, W) in a family of the package, by its name.

    Of the family it reads what it has learned for all rows: degrees of freedom, dispersion, cutpoints.
    """
    eta = np.asarray(eta, dtype=float)
    loc, rest = eta[..., 0], eta[..., 1:]
    match name:
        case "gaussian":
            return SinhArcsinh(loc, np.exp(rest[..., 0]), rest[..., 1], np.exp(rest[..., 2]))
        case "student_t":
            return stats.t(float(family.df.detach()), loc, np.exp(rest[..., 0]))
        case "bernoulli":
            return stats.bernoulli(expit(loc))
        case "binomial":
            return stats.binom(np.asarray(trials), expit(loc))
        case "poisson":
            return stats.poisson(np.exp(loc))
        case "negative_binomial":
            size = np.exp(-float(family.log_dispersion.detach()) - rest[..., 0])
            return stats.nbinom(size, size / (size + np.exp(loc)))
        case "ordinal":
            first, raw = (part.detach().double().numpy() for part in (family.first_cut, family.raw_steps))
            widths = np.log1p(np.exp(raw)) * np.exp(rest[..., 1:])
            cuts = first + np.concatenate([np.zeros_like(rest[..., :1]), widths.cumsum(-1)], axis=-1)
            below = expit((cuts - loc[..., None]) / np.exp(rest[..., :1]))
            below = np.concatenate([below, np.ones_like(below[..., :1])], axis=-1)
            return Ordered(below, family.values.double().numpy())
    raise ValueError(name)


def log_prob(law, y):
    """Log density or probability."""
    return law.logpdf(y) if hasattr(law, "logpdf") else law.logpmf(y)


def score_of_row(law, y):
    """Posterior mean of v given y: the normal quantile, or the mean of a normal between two of them."""
    if hasattr(law, "logpdf"):
        return stats.norm.ppf(law.cdf(y))
    low, high = law.cdf(y - 1.0), law.cdf(y)
    return (stats.norm.pdf(stats.norm.ppf(low)) - stats.norm.pdf(stats.norm.ppf(high))) / (high - low)


def score_and_information(of_predictor, y, predictor, step=1e-4):
    """First and negative second derivative of the log probability of y in the linear predictor."""
    down, at, up = (log_prob(of_predictor(predictor + shift), y) for shift in (-step, 0.0, step))
    return (up - down) / (2.0 * step), (2.0 * at - up - down) / step**2
