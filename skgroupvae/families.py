"""Outcome families p(y given x, u) of a regression: one small class each.

A family turns a linear predictor and a few more parameters into a distribution of the outcome. The instance
code of a row is the normal score of its outcome in that distribution, v = Phi⁻¹(F(y)): it is standard normal
by construction, and the outcome is monotone in it. A new family is one subclass and one line in ``FAMILIES``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

__all__ = ["FAMILIES", "BernoulliFamily", "Family", "GaussianFamily", "OrdinalFamily", "PoissonFamily"]

_EPS = 1e-6
_BISECTIONS = 60
# With lighter tails than this the log density of an outlier falls so fast that one bad step ends a fit.
_MAX_LOG_TAIL, _MAX_SKEW = 0.5, 1.0
_LOGISTIC_VARIANCE = math.pi**2 / 3.0
# Of a row's residual in standard deviations: what an outlier says of the scale of its group.
_MAX_SQUARE = 9.0


class Family(nn.Module, ABC):
    """Base class: a distribution with parameters ``eta`` (*, n_parameters), the first its linear predictor.

    Attributes
    ----------
    n_parameters : int
        Width of ``eta``; all that follow the linear predictor are 0 for the plainest member of the family.
    n_working : int
        The first so many of them, about which :meth:`working` says what a row tells.
    """

    n_parameters = 1
    n_working = 1
    is_continuous = False

    def check_outcome(self, y: NDArray[np.float64]) -> None:
        """Raise a ValueError on an outcome that this family cannot have."""

    @abstractmethod
    def working_outcome(self, y: Tensor) -> Tensor:
        """Outcome on the scale of the linear predictor, for the linear mixed model that the fit starts at."""

    def start(self, y: Tensor, predictor: Tensor, noise: float) -> tuple[float, float]:
        """Set own parameters from that model; return the scale and shift from its predictor to ours."""
        return 1.0, 0.0

    @abstractmethod
    def log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        """Log density or probability: y (*), eta (*, n_parameters) -> (*)."""

    @abstractmethod
    def cdf(self, y: Tensor, eta: Tensor) -> Tensor:
        """P(Y <= y)."""

    @abstractmethod
    def mean(self, eta: Tensor) -> Tensor:
        """Expected outcome."""

    @abstractmethod
    def variance(self, eta: Tensor) -> Tensor:
        """Variance of the outcome."""

    def moments(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, for families that get both from the same work."""
        return self.mean(eta), self.variance(eta)

    def latent_variance(self, predictor: Tensor, between: Tensor) -> Tensor | None:
        """Variance within groups on the scale of the predictor (Nakagawa et al. 2017); None if it is free.

        `predictor` is the mean predictor, `between` its variance between groups.
        """
        return None

    @abstractmethod
    def quantile(self, p: Tensor, eta: Tensor) -> Tensor:
        """Smallest y with P(Y <= y) >= p."""

    def at_score(self, v: Tensor, eta: Tensor) -> Tensor:
        """Outcome whose normal score is v."""
        return self.quantile(torch.special.ndtr(v), eta)

    def working(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Score and information of each row about its first `n_working` parameters: two of (*, W).

        By central differences; the information between two parameters counts as none.
        """
        step, at = 0.1, self.log_prob(y, eta)
        scores, informations = [], []
        for parameter in range(self.n_working):
            shift = torch.zeros_like(eta)
            shift[..., parameter] = step
            down, up = self.log_prob(y, eta - shift), self.log_prob(y, eta + shift)
            scores.append((up - down) / (2.0 * step))
            informations.append(((2.0 * at - up - down) / step**2).clamp(min=1e-3))
        return torch.stack(scores, dim=-1), torch.stack(informations, dim=-1)

    def normal_score(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and sd of the instance code v given y; v is known exactly if y is continuous."""
        upper = self.cdf(y, eta)
        if self.is_continuous:
            v = _ndtri(upper)
            return v, torch.zeros_like(v)
        probability = self.log_prob(y, eta).exp().clamp(min=1e-12)
        return _truncated_normal((upper - probability).clamp(0.0, 1.0), upper.clamp(0.0, 1.0))


class GaussianFamily(Family):
    """Normal errors whose scale, skewness and tail weight may depend on x and u (sinh-arcsinh normal).

    ``y = loc + scale * sinh((arcsinh(v) + skew) / tail)`` with standard normal v (Jones and Pewsey 2009):
    monotone in v, and the plain normal at skew = 0, tail = 1.
    """

    n_parameters = 4
    n_working = 2
    is_continuous = True

    def __init__(self) -> None:
        super().__init__()
        nodes, weights = np.polynomial.hermite_e.hermegauss(15)
        self.register_buffer("nodes", torch.tensor(nodes, dtype=torch.float32))
        self.register_buffer("weights", torch.tensor(weights / weights.sum(), dtype=torch.float32))

    nodes: Tensor
    weights: Tensor

    def working_outcome(self, y: Tensor) -> Tensor:
        return y

    def working(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        # As for a normal with this mean and variance: what few outliers say stays bounded in its effect.
        mean, variance = self.moments(eta)
        square = ((y - mean).square() / variance).clamp(max=_MAX_SQUARE)
        score = torch.stack([(y - mean) / variance, square - 1.0], dim=-1)
        return score, torch.stack([1.0 / variance, torch.full_like(variance, 2.0)], dim=-1)

    @staticmethod
    def _split(eta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        loc, log_scale, skew, log_tail = eta.unbind(-1)
        return loc, log_scale.clamp(-9.0, 4.0), _bounded(skew, _MAX_SKEW), _bounded(log_tail, _MAX_LOG_TAIL)

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
        return self.at_score(_ndtri(p), eta)

    def mean(self, eta: Tensor) -> Tensor:
        return self.moments(eta)[0]

    def variance(self, eta: Tensor) -> Tensor:
        return self.moments(eta)[1]

    def moments(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """By Gauss-Hermite quadrature over v."""
        mean = square = torch.zeros_like(eta[..., 0])
        loc, log_scale, skew, log_tail = self._split(eta)
        for node, weight in zip(self.nodes, self.weights, strict=True):
            value = torch.sinh((torch.asinh(node) + skew) * (-log_tail).exp())
            mean = mean + weight * value
            square = square + weight * value.square()
        return loc + log_scale.exp() * mean, (2.0 * log_scale).exp() * (square - mean.square()).clamp(min=0.0)


class BernoulliFamily(Family):
    """0 or 1, logit link."""

    def check_outcome(self, y: NDArray[np.float64]) -> None:
        if not np.isin(y, (0.0, 1.0)).all():
            raise ValueError("y must be 0 or 1 for family='bernoulli'; recode it, or choose another family")

    def working_outcome(self, y: Tensor) -> Tensor:
        # A straight line through the logit at the mean.
        rate = y.mean().clamp(0.02, 0.98)
        return (y - rate) / (rate * (1.0 - rate)) + torch.logit(rate)

    def log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        return logsigmoid(torch.where(y > 0.5, eta[..., 0], -eta[..., 0]))

    def cdf(self, y: Tensor, eta: Tensor) -> Tensor:
        return torch.where(y >= 1.0, 1.0, torch.sigmoid(-eta[..., 0])) * (y >= 0.0)

    def mean(self, eta: Tensor) -> Tensor:
        return torch.sigmoid(eta[..., 0])

    def variance(self, eta: Tensor) -> Tensor:
        rate = self.mean(eta)
        return rate * (1.0 - rate)

    def latent_variance(self, predictor: Tensor, between: Tensor) -> Tensor:
        return torch.full_like(between, _LOGISTIC_VARIANCE)

    def quantile(self, p: Tensor, eta: Tensor) -> Tensor:
        return (p > torch.sigmoid(-eta[..., 0])).to(eta.dtype)


class PoissonFamily(Family):
    """Counts, log link."""

    def check_outcome(self, y: NDArray[np.float64]) -> None:
        if (y < 0).any() or (y != np.round(y)).any():
            raise ValueError(
                "y must be counts 0, 1, 2, ... for family='poisson'; recode it, or choose another family"
            )

    def working_outcome(self, y: Tensor) -> Tensor:
        return (y + 0.5).log()

    def log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        log_rate = eta[..., 0].clamp(max=30.0)
        return y * log_rate - log_rate.exp() - torch.lgamma(y + 1.0)

    def cdf(self, y: Tensor, eta: Tensor) -> Tensor:
        below = torch.special.gammaincc((y.floor() + 1.0).clamp(min=_EPS), self.mean(eta))
        return torch.where(y < 0, torch.zeros_like(below), below)

    def mean(self, eta: Tensor) -> Tensor:
        return eta[..., 0].clamp(max=30.0).exp()

    def variance(self, eta: Tensor) -> Tensor:
        return self.mean(eta)

    def latent_variance(self, predictor: Tensor, between: Tensor) -> Tensor:
        return torch.log1p((-predictor - 0.5 * between).exp())

    def quantile(self, p: Tensor, eta: Tensor) -> Tensor:
        rate = self.mean(eta)
        high = torch.ceil(rate + 40.0 * rate.sqrt() + 40.0)
        return bisect(lambda y: self.cdf(y, eta) >= p, torch.zeros_like(rate), high, continuous=False)


class OrdinalFamily(Family):
    """Ordered categories, coded 0, 1, ..., K - 1: cumulative logits with cutpoints that are learned.

    ``P(Y <= k) = logistic((cut_k - loc) / scale)``; the scale may depend on x and u.
    """

    n_parameters = 2

    values: Tensor

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        n_categories = len(values)
        self.n_categories = n_categories
        self.register_buffer("values", torch.as_tensor(values, dtype=torch.float32))
        self.first_cut = nn.Parameter(torch.zeros(1))
        self.raw_steps = nn.Parameter(torch.zeros(n_categories - 2))

    @property
    def cuts(self) -> Tensor:
        return torch.cat([self.first_cut, self.first_cut + softplus(self.raw_steps).cumsum(0)])

    def working_outcome(self, y: Tensor) -> Tensor:
        # The logit of the middle rank of each category.
        counts = torch.bincount(y.long(), minlength=self.n_categories).to(y.dtype)
        middle = (counts.cumsum(0) - 0.5 * counts) / counts.sum()
        return torch.logit(middle.clamp(1e-4, 1.0 - 1e-4))[y.long()]

    @torch.no_grad()
    def start(self, y: Tensor, predictor: Tensor, noise: float) -> tuple[float, float]:
        factor = math.sqrt(_LOGISTIC_VARIANCE) / noise
        total = math.sqrt(1.0 + float(predictor.var()) / noise**2)
        counts = torch.bincount(y.long(), minlength=self.n_categories).to(y.dtype)
        below = (counts.cumsum(0)[:-1] / counts.sum()).clamp(1e-4, 1.0 - 1e-4)
        cuts = torch.logit(below) * total
        self.first_cut.copy_(cuts[:1])
        self.raw_steps.copy_(torch.expm1(cuts.diff().clamp(min=1e-3)).log())
        return factor, -factor * float(predictor.mean())

    def _logits(self, eta: Tensor) -> Tensor:
        """Of P(Y <= k) for k = 0..K-2: (*, K - 1)."""
        loc, log_scale = eta.unbind(-1)
        return (self.cuts.to(eta.dtype) - loc[..., None]) * (-log_scale.clamp(-4.0, 4.0)).exp()[..., None]

    def log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        logits = nn.functional.pad(self._logits(eta), (1, 1))
        code = y.long()
        low, high = (
            torch.gather(logits, -1, at.expand(logits.shape[:-1])[..., None])[..., 0]
            for at in (code, code + 1)
        )
        is_first, is_last = code == 0, code == self.n_categories - 1
        gap = torch.where(is_first | is_last, torch.ones_like(low), high - low).clamp(min=_EPS)
        # sigmoid(h) - sigmoid(l) = sigmoid(h) sigmoid(-l) (1 - exp(l - h))
        value = torch.where(is_last, 0.0, logsigmoid(high)) + torch.where(is_first, 0.0, logsigmoid(-low))
        return value + torch.where(is_first | is_last, 0.0, torch.log(-torch.expm1(-gap)))

    def probabilities(self, eta: Tensor) -> Tensor:
        """Of each category: (*, K)."""
        below = torch.sigmoid(self._logits(eta))
        return torch.diff(
            nn.functional.pad(below, (0, 1), value=1.0), dim=-1, prepend=torch.zeros_like(below[..., :1])
        )

    def cdf(self, y: Tensor, eta: Tensor) -> Tensor:
        below = nn.functional.pad(
            nn.functional.pad(torch.sigmoid(self._logits(eta)), (0, 1), value=1.0), (1, 0)
        )
        at = (y.floor().clamp(-1, self.n_categories - 1) + 1).long().expand(below.shape[:-1])
        return torch.gather(below, -1, at[..., None])[..., 0]

    def mean(self, eta: Tensor) -> Tensor:
        """Of the values of the categories, not of their codes."""
        return self.probabilities(eta) @ self.values.to(eta.dtype)

    def latent_variance(self, predictor: Tensor, between: Tensor) -> Tensor:
        return torch.full_like(between, _LOGISTIC_VARIANCE)

    def variance(self, eta: Tensor) -> Tensor:
        p, values = self.probabilities(eta), self.values.to(eta.dtype)
        return p @ values.square() - (p @ values).square()

    def quantile(self, p: Tensor, eta: Tensor) -> Tensor:
        return (torch.sigmoid(self._logits(eta)) < p[..., None]).sum(-1).to(eta.dtype)


FAMILIES: dict[str, Callable[..., Family]] = {
    "gaussian": GaussianFamily,
    "bernoulli": BernoulliFamily,
    "poisson": PoissonFamily,
    "ordinal": OrdinalFamily,
}


def _bounded(value: Tensor, bound: float) -> Tensor:
    """As it is near zero, and never beyond the bound."""
    return bound * torch.tanh(value / bound)


def _ndtri(p: Tensor) -> Tensor:
    """Normal quantiles, finite and with finite gradients at 0 and 1."""
    edge = torch.finfo(p.dtype).eps
    return torch.special.ndtri(p.clamp(edge, 1.0 - edge))


def _truncated_normal(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd of a standard normal known to have its probability between `lower` and `upper`."""
    mass = (upper - lower).clamp(min=1e-12)
    a, b = _ndtri(lower), _ndtri(upper)
    density_a, density_b = ((-0.5 * z.square()).exp() / math.sqrt(2.0 * math.pi) for z in (a, b))
    mean = (density_a - density_b) / mass
    second = 1.0 + (a * density_a - b * density_b) / mass
    return mean, (second - mean.square()).clamp(min=0.0).sqrt()


def bisect(reached: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, continuous: bool) -> Tensor:
    """Smallest y in [low, high] at which `reached` holds, as it does at `high`; an integer if discrete."""
    if not continuous:
        low = low - 1.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if not continuous:
            middle = torch.floor(middle)
        done = reached(middle)
        high, low = torch.where(done, middle, high), torch.where(done, low, middle)
        if not continuous and not bool((high - low > 1.0).any()):
            break
    return high
