"""Family of proportions: successes among trials."""

from __future__ import annotations

import torch
from scipy import special
from torch import Tensor
from torch.nn.functional import logsigmoid

from skgroupvae.model.families.base import Family, bisect, by_scipy
from skgroupvae.model.families.categories import BernoulliFamily

__all__ = ["BinomialFamily", "SuccessesFamily"]


class BinomialFamily(BernoulliFamily):
    """Successes among trials, logit link.

    A row's y is its proportion of successes and its weight the number of trials, so what this class says is
    about one trial; :meth:`of_rows` is about their number of successes.
    """

    kind = "proportion"
    has_trials = True

    def of_rows(self, y: Tensor, weights: Tensor) -> tuple[Family, Tensor]:
        return SuccessesFamily(weights), (y * weights).round()

    def variance_within(self, y: Tensor, information: Tensor | None = None) -> Tensor:
        if information is None:
            information = self._slope(y)
        return y * (1.0 - y) / information.square()

    def log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        return y * logsigmoid(eta[..., 0]) + (1.0 - y) * logsigmoid(-eta[..., 0])

    def normal_score(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Of a trial drawn from those of the row."""
        failure, spread_0 = super().normal_score(torch.zeros_like(y), eta)
        success, spread_1 = super().normal_score(torch.ones_like(y), eta)
        mean = y * success + (1.0 - y) * failure
        square = y * (success.square() + spread_1.square())
        square = square + (1.0 - y) * (failure.square() + spread_0.square())
        return mean, (square - mean.square()).clamp(min=0.0).sqrt()


class SuccessesFamily(BernoulliFamily):
    """Number of successes among trials (N,), at the logit of one of them; computed in float64.

    With thousands of trials a logarithm of their probability has no digit left in float32.
    """

    kind = "count"

    def __init__(self, trials: Tensor) -> None:
        super().__init__()
        self.trials = trials.double()

    def log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        y, logit, n = y.double(), eta[..., 0].double(), self.trials
        coefficient = torch.lgamma(n + 1.0) - torch.lgamma(y + 1.0) - torch.lgamma(n - y + 1.0)
        return coefficient + y * logsigmoid(logit) + (n - y) * logsigmoid(-logit)

    def cdf(self, y: Tensor, eta: Tensor) -> Tensor:
        count, n = y.double().floor(), self.trials
        inside = count.clamp(min=0.0).minimum(n - 1.0)
        below = by_scipy(special.betainc, n - inside, inside + 1.0, torch.sigmoid(-eta[..., 0].double()))
        return torch.where(count >= n, 1.0, below) * (count >= 0.0)

    def mean(self, eta: Tensor) -> Tensor:
        return self.trials * super().mean(eta)

    def variance(self, eta: Tensor) -> Tensor:
        rate = super().mean(eta)
        return self.trials * rate * (1.0 - rate)

    def quantile(self, p: Tensor, eta: Tensor) -> Tensor:
        high = self.trials.expand(eta.shape[:-1])
        return bisect(lambda y: self.cdf(y, eta) >= p, torch.zeros_like(high), high, continuous=False)
