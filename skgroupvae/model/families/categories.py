"""Families of categories: two of them, or more in an order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from skgroupvae.model.families.base import LOGISTIC_VARIANCE, Family

__all__ = ["BernoulliFamily", "OrdinalFamily"]

_EPS = 1e-6


class BernoulliFamily(Family):
    """0 or 1, logit link."""

    kind: ClassVar[str] = "binary"

    def working_outcome(self, y: Tensor) -> Tensor:
        # A straight line through the logit at the mean.
        rate = self._rate(y)
        return (y - rate) / self._slope(y) + torch.logit(rate)

    @staticmethod
    def _rate(y: Tensor) -> Tensor:
        return y.mean().clamp(0.02, 0.98)

    def _slope(self, y: Tensor) -> Tensor:
        """Of the probability in its logit, at the mean of y."""
        return self._rate(y) * (1.0 - self._rate(y))

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
        return torch.full_like(between, LOGISTIC_VARIANCE)

    def quantile(self, p: Tensor, eta: Tensor) -> Tensor:
        return (p > torch.sigmoid(-eta[..., 0])).to(eta.dtype)


class OrdinalFamily(Family):
    """Ordered categories, coded 0, 1, ..., K - 1: cumulative logits with cutpoints that are learned.

    ``P(Y <= k) = logistic((cut_k - loc) / scale)``; the scale and the widths between cutpoints may depend on
    x and u, so that odds need not be proportional (Peterson and Harrell 1990).
    """

    kind = "ordered"

    values: Tensor

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        n_categories = len(values)
        if n_categories < 3:
            raise ValueError(
                f"y has {n_categories} levels, family='ordinal' needs 3 or more; use 'bernoulli' for two"
            )
        self.n_categories = n_categories
        # The linear predictor, the logarithm of the scale, and those of the widths over their common values.
        self.n_parameters = n_categories
        self.max_deviation = (1.5,) + (1.0,) * (n_categories - 2)
        self.register_buffer("values", torch.as_tensor(values, dtype=torch.float32))
        self.first_cut = nn.Parameter(torch.zeros(1))
        self.raw_steps = nn.Parameter(torch.zeros(n_categories - 2))

    def working_outcome(self, y: Tensor) -> Tensor:
        # The logit of the middle rank of each category.
        counts = torch.bincount(y.long(), minlength=self.n_categories).to(y.dtype)
        middle = (counts.cumsum(0) - 0.5 * counts) / counts.sum()
        return torch.logit(middle.clamp(1e-4, 1.0 - 1e-4))[y.long()]

    @torch.no_grad()
    def start(self, y: Tensor, predictor: Tensor, noise: float) -> tuple[float, float]:
        factor = math.sqrt(LOGISTIC_VARIANCE) / noise
        total = math.sqrt(1.0 + float(predictor.var()) / noise**2)
        counts = torch.bincount(y.long(), minlength=self.n_categories).to(y.dtype)
        below = (counts.cumsum(0)[:-1] / counts.sum()).clamp(1e-4, 1.0 - 1e-4)
        cuts = torch.logit(below) * total
        self.first_cut.copy_(cuts[:1])
        self.raw_steps.copy_(torch.expm1(cuts.diff().clamp(min=1e-3)).log())
        return factor, -factor * float(predictor.mean())

    def _logits(self, eta: Tensor) -> Tensor:
        """Of P(Y <= k) for k = 0..K-2: (*, K - 1)."""
        widths = softplus(self.raw_steps).to(eta.dtype) * eta[..., 2:].clamp(-4.0, 4.0).exp()
        first = self.first_cut.to(eta.dtype) - eta[..., :1]
        beyond = torch.cat([first, first + widths.cumsum(-1)], dim=-1)
        return beyond * (-eta[..., 1:2].clamp(-4.0, 4.0)).exp()

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
        return torch.full_like(between, LOGISTIC_VARIANCE)

    def variance(self, eta: Tensor) -> Tensor:
        p, values = self.probabilities(eta), self.values.to(eta.dtype)
        return p @ values.square() - (p @ values).square()

    def quantile(self, p: Tensor, eta: Tensor) -> Tensor:
        return (torch.sigmoid(self._logits(eta)) < p[..., None]).sum(-1).to(eta.dtype)
