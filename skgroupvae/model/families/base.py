"""What every family is, and the mathematics that they share.

A family turns a linear predictor and a few more parameters into a distribution of one observed column y. The
instance code of a row is the normal score of y in that distribution, v = Phi⁻¹(F(y)): it is standard
normal by construction, and y is monotone in it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["LOGISTIC_VARIANCE", "Family", "bisect", "by_scipy", "normal_quantile"]

LOGISTIC_VARIANCE = math.pi**2 / 3.0
_BISECTIONS = 60
_SCORE_STEP = 0.03


class Family(nn.Module, ABC):
    """Base class: a distribution with parameters ``eta`` (*, n_parameters), the first its linear predictor.

    A family of one's own is a subclass, given to an estimator as the class. Its constructor takes nothing,
    or the distinct values of y in ascending order where `kind` is "ordered". Methods broadcast y against
    ``eta``.

    Attributes
    ----------
    kind : str
        What y holds: "numeric", "binary" (0 and 1), "count", "proportion" (of successes among a row's
        trials) or "ordered" (positions of the levels, from 0). Columns are checked and encoded by it.
    n_parameters : int
        Width of ``eta``; all that follow the linear predictor are 0 for the plainest member of the family.
    max_deviation : tuple of float
        How far x and u move each parameter after the first from its common value at most.
    max_predictor_deviation : float or None
        How far the networks move the linear predictor from that of the mixed model at most; None is any way.
        Under a log link the mean of what is not bounded need not exist.
    is_linear_exact : bool
        Whether the linear mixed model of the working outcome is this family's by maximum likelihood.
    n_working : int
        How many of them, the first ones, :meth:`working` is about.
    is_continuous : bool
        Whether y has a density, so that v is known exactly.
    has_trials : bool
        Whether a row of weight n is n trials.
    """

    kind: ClassVar[str] = "numeric"
    n_parameters = 1
    n_working = 1
    max_deviation: tuple[float, ...] = ()
    max_predictor_deviation: float | None = None
    is_linear_exact = False
    is_continuous = False
    has_trials = False

    def of_rows(self, y: Tensor, weights: Tensor) -> tuple[Family, Tensor]:
        """Distribution of whole rows and their outcomes in it: where a row is `weights` trials, of all."""
        return self, y

    def variance_within(self, y: Tensor, information: Tensor | None = None) -> Tensor:
        """Variance of the working outcomes whose mean is that of a row; 0 where a row is one outcome.

        `information` is that of :meth:`working`; None is for :meth:`working_outcome`.
        """
        return torch.zeros_like(y)

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

    def newton_terms(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`working`, for a Newton step that may go far: information along it, not at its start."""
        return self.working(y, eta)

    def normal_score(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and sd of the instance code v given y; v is known exactly if y is continuous."""
        upper = self.cdf(y, eta)
        if self.is_continuous:
            v = normal_quantile(upper)
            return v, torch.zeros_like(v)
        probability = self.log_prob(y, eta).exp().clamp(min=1e-12)
        return _truncated_normal((upper - probability).clamp(0.0, 1.0), upper.clamp(0.0, 1.0))

    def score_with_gradient(self, y: Tensor, eta: Tensor) -> Tensor:
        """Posterior mean of v given y, with a gradient to eta: y (*), eta (*, n_parameters) -> (*).

        The gradient is that of central differences, as some distribution functions have none; parameters of
        the family's own get none.
        """
        with torch.no_grad():
            v, slopes = self.normal_score(y, eta)[0], []
            for parameter in range(self.n_parameters):
                shift = torch.zeros_like(eta)
                shift[..., parameter] = _SCORE_STEP
                up, down = (self.normal_score(y, at)[0] for at in (eta + shift, eta - shift))
                slopes.append((up - down) / (2.0 * _SCORE_STEP))
        return v + (torch.stack(slopes, dim=-1) * (eta - eta.detach())).sum(-1)


def by_scipy(function: Callable[..., NDArray], *arguments: Tensor) -> Tensor:
    """A special function that torch lacks; it has no gradient."""
    values = torch.from_numpy(np.asarray(function(*(a.detach().cpu().double().numpy() for a in arguments))))
    return values.to(arguments[-1])


def normal_quantile(p: Tensor) -> Tensor:
    """Normal quantiles, finite and with finite gradients at 0 and 1."""
    edge = torch.finfo(p.dtype).eps
    return torch.special.ndtri(p.clamp(edge, 1.0 - edge))


def _truncated_normal(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd of a standard normal known to have its probability between `lower` and `upper`."""
    mass = (upper - lower).clamp(min=1e-12)
    a, b = normal_quantile(lower), normal_quantile(upper)
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
