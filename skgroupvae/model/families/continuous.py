"""Families of measurements: normal errors, deviations from them, and Student's t."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import special
from torch import Tensor, nn
from torch.nn.functional import softplus

from skgroupvae.model.families.base import Family, by_scipy, normal_quantile

__all__ = ["GaussianFamily", "NormalFamily", "StudentTFamily"]

# Of a row's squared residual in variances: what an outlier says of the scale of its group.
_MAX_SQUARE = 9.0


def _gauss_hermite(n_nodes: int) -> list[tuple[float, float]]:
    """Inverse hyperbolic sines of the nodes that are not negative, with the weights of both signs."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n_nodes)
    middle = n_nodes // 2
    weights = weights[middle:] * np.r_[1.0, np.full(middle, 2.0)]
    return list(zip(np.arcsinh(nodes[middle:]).tolist(), (weights / weights.sum()).tolist(), strict=True))


_ANGLES_AND_WEIGHTS = _gauss_hermite(15)


class NormalFamily(Family):
    """Normal errors; the scale may depend on x and u."""

    n_parameters = 2
    n_working = 2
    is_linear_exact = True
    is_continuous = True
    max_deviation = (1.5,)

    def working_outcome(self, y: Tensor) -> Tensor:
        return y

    @staticmethod
    def _split(eta: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = eta.unbind(-1)
        return loc, log_scale.clamp(-9.0, 4.0)

    def log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        loc, log_scale = self._split(eta)
        z = (y - loc) * (-log_scale).exp()
        return -0.5 * (z.square() + math.log(2.0 * math.pi)) - log_scale

    def working(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        # Score and expected information.
        return _as_normal(y, *self.moments(eta), max_square=math.inf)

    def newton_terms(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        return _as_normal(y, *self.moments(eta))

    def normal_score(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        v = self.score_with_gradient(y, eta)
        return v, torch.zeros_like(v)

    def score_with_gradient(self, y: Tensor, eta: Tensor) -> Tensor:
        loc, log_scale = self._split(eta)
        return (y - loc) * (-log_scale).exp()

    def at_score(self, v: Tensor, eta: Tensor) -> Tensor:
        loc, log_scale = self._split(eta)
        return loc + log_scale.exp() * v

    def cdf(self, y: Tensor, eta: Tensor) -> Tensor:
        return torch.special.ndtr(self.score_with_gradient(y, eta))

    def quantile(self, p: Tensor, eta: Tensor) -> Tensor:
        return self.at_score(normal_quantile(p), eta)

    def mean(self, eta: Tensor) -> Tensor:
        return eta[..., 0]

    def variance(self, eta: Tensor) -> Tensor:
        return (2.0 * self._split(eta)[1]).exp()


class GaussianFamily(Family):
    """Normal errors whose scale, skewness and tail weight may depend on x and u (sinh-arcsinh normal).

    ``y = loc + scale * sinh((arcsinh(v) + skew) / tail)`` with standard normal v (Jones and Pewsey 2009):
    monotone in v, and the plain normal at skew = 0, tail = 1.
    """

    n_parameters = 4
    n_working = 2
    is_linear_exact = True
    is_continuous = True
    # With lighter tails the log density of an outlier falls so fast that one bad step ends a fit.
    max_deviation = (1.5, 1.0, 0.5)

    def working_outcome(self, y: Tensor) -> Tensor:
        return y

    def working(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        return _as_normal(y, *self.moments(eta))

    @staticmethod
    def _split(eta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        loc, log_scale, skew, log_tail = eta.unbind(-1)
        return loc, log_scale.clamp(-9.0, 4.0), skew, log_tail

    def log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        loc, log_scale, skew, log_tail = self._split(eta)
        z = (y - loc) * (-log_scale).exp()
        inner = log_tail.exp() * torch.asinh(z) - skew
        v = torch.sinh(inner.clamp(-10.0, 10.0))
        # log cosh without overflow.
        log_cosh = inner.abs() + torch.log1p((-2.0 * inner.abs()).exp()) - math.log(2.0)
        jacobian = log_tail + log_cosh - 0.5 * torch.log1p(z.square())
        return -0.5 * (v.square() + math.log(2.0 * math.pi)) + jacobian - log_scale

    def normal_score(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        v = self._score(y, eta)
        return v, torch.zeros_like(v)

    def score_with_gradient(self, y: Tensor, eta: Tensor) -> Tensor:
        return self._score(y, eta)

    def _score(self, y: Tensor, eta: Tensor) -> Tensor:
        loc, log_scale, skew, log_tail = self._split(eta)
        inner = log_tail.exp() * torch.asinh((y - loc) * (-log_scale).exp()) - skew
        return torch.sinh(inner.clamp(-10.0, 10.0))

    def at_score(self, v: Tensor, eta: Tensor) -> Tensor:
        loc, log_scale, skew, log_tail = self._split(eta)
        return loc + log_scale.exp() * torch.sinh((torch.asinh(v) + skew) * (-log_tail).exp())

    def cdf(self, y: Tensor, eta: Tensor) -> Tensor:
        return torch.special.ndtr(self._score(y, eta))

    def quantile(self, p: Tensor, eta: Tensor) -> Tensor:
        return self.at_score(normal_quantile(p), eta)

    def mean(self, eta: Tensor) -> Tensor:
        return self.moments(eta)[0]

    def variance(self, eta: Tensor) -> Tensor:
        return self.moments(eta)[1]

    def moments(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """By Gauss-Hermite quadrature over v, the nodes in pairs of both signs.

        With sinh(t a + t s) + sinh(-t a + t s) = 2 cosh(t a) sinh(t s), and sinh² = (cosh(2 .) - 1) / 2.
        """
        loc, log_scale, skew, log_tail = self._split(eta)
        thin = (-log_tail).exp()
        even = double = torch.zeros_like(loc)
        for angle, weight in _ANGLES_AND_WEIGHTS:
            cosh = torch.cosh(thin * angle)
            even = even + weight * cosh
            double = double + weight * (2.0 * cosh.square() - 1.0)
        odd = torch.sinh(thin * skew)
        mean = odd * even
        square = 0.5 * ((1.0 + 2.0 * odd.square()) * double - 1.0)
        return loc + log_scale.exp() * mean, (2.0 * log_scale).exp() * (square - mean.square()).clamp(min=0.0)


class StudentTFamily(Family):
    """Student's t errors; the degrees of freedom, above 2, are learned, the scale may depend on x and u."""

    n_parameters = 2
    n_working = 2
    max_deviation = (1.5,)
    is_continuous = True

    def __init__(self) -> None:
        super().__init__()
        # 10 degrees of freedom: near enough to normal for the mixed model to be a good start.
        self.raw_df = nn.Parameter(torch.tensor(8.0))

    @property
    def df(self) -> Tensor:
        return 2.05 + softplus(self.raw_df)

    def working_outcome(self, y: Tensor) -> Tensor:
        return y

    def _standardized(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = eta.unbind(-1)
        log_scale = log_scale.clamp(-9.0, 4.0)
        return (y - loc) * (-log_scale).exp(), log_scale

    def log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        z, log_scale = self._standardized(y, eta)
        df = self.df
        constant = torch.lgamma(0.5 * (df + 1.0)) - torch.lgamma(0.5 * df) - 0.5 * (math.pi * df).log()
        return constant - 0.5 * (df + 1.0) * torch.log1p(z.square() / df) - log_scale

    def working(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        # Score and expected information in closed form (Lange, Little and Taylor 1989).
        z, log_scale = self._standardized(y, eta)
        df, scale = self.df, log_scale.exp()
        weight = (df + 1.0) / (df + z.square())
        information = (df + 1.0) / (df + 3.0) / scale.square()
        score = torch.stack([weight * z / scale, weight * z.square() - 1.0], dim=-1)
        return score, torch.stack([information, (2.0 * df / (df + 3.0)).expand_as(information)], dim=-1)

    def newton_terms(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        # At u = 0 all rows of a group far out would count as outliers.
        return _as_normal(y, *self.moments(eta))

    def cdf(self, y: Tensor, eta: Tensor) -> Tensor:
        return by_scipy(special.stdtr, self.df, self._standardized(y, eta)[0])

    def quantile(self, p: Tensor, eta: Tensor) -> Tensor:
        loc, log_scale = eta.unbind(-1)
        edge = torch.finfo(p.dtype).eps
        return loc + log_scale.exp() * by_scipy(special.stdtrit, self.df, p.clamp(edge, 1.0 - edge))

    def mean(self, eta: Tensor) -> Tensor:
        return eta[..., 0]

    def variance(self, eta: Tensor) -> Tensor:
        return (2.0 * eta[..., 1]).exp() * self.df / (self.df - 2.0)


def _as_normal(
    y: Tensor, mean: Tensor, variance: Tensor, max_square: float = _MAX_SQUARE
) -> tuple[Tensor, Tensor]:
    """Score and information about location and log scale of a normal with this mean and variance.

    What an outlier says of the scale stays bounded, by `max_square`.
    """
    square = ((y - mean).square() / variance).clamp(max=max_square)
    score = torch.stack([(y - mean) / variance, square - 1.0], dim=-1)
    return score, torch.stack([1.0 / variance, torch.full_like(variance, 2.0)], dim=-1)
