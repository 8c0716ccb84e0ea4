"""Families of counts: Poisson and negative binomial."""

from __future__ import annotations

import torch
from scipy import special
from torch import Tensor, nn

from skgroupvae.model.families.base import Family, bisect, by_scipy

__all__ = ["NegativeBinomialFamily", "PoissonFamily"]

_EPS = 1e-6


class PoissonFamily(Family):
    """Counts, log link."""

    kind = "count"
    max_predictor_deviation = 1.0

    def working_outcome(self, y: Tensor) -> Tensor:
        return (y + 0.5).log()

    def log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        log_rate = eta[..., 0].clamp(max=30.0)
        return y * log_rate - log_rate.exp() - torch.lgamma(y + 1.0)

    def newton_terms(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        # 2 (y - m) / (y + m) is log(y / m) to second order; Newton's step, y / m - 1, overshoots.
        rate, spread = self.mean(eta), self._spread(eta)
        return ((y - rate) / spread)[..., None], (0.5 * (y + rate) / spread)[..., None].clamp(min=1e-3)

    def _spread(self, eta: Tensor) -> Tensor:
        """Variance over the mean."""
        return torch.ones_like(eta[..., 0])

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
        high = torch.ceil(rate + 40.0 * self.variance(eta).sqrt() + 40.0)
        return bisect(lambda y: self.cdf(y, eta) >= p, torch.zeros_like(rate), high, continuous=False)


class NegativeBinomialFamily(PoissonFamily):
    """Counts that vary more than Poisson's: variance m + a m², log link; log a may depend on x and u."""

    n_parameters = 2
    max_deviation = (1.5,)

    def __init__(self) -> None:
        super().__init__()
        self.log_dispersion = nn.Parameter(torch.tensor(-1.0))

    def _mean_and_size(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(eta), (-(self.log_dispersion + eta[..., 1])).clamp(-10.0, 10.0).exp()

    def log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        mean, size = self._mean_and_size(eta)
        coefficient = torch.lgamma(y + size) - torch.lgamma(size) - torch.lgamma(y + 1.0)
        log_total = (size + mean).log()
        return coefficient + size * (size.log() - log_total) + y * (eta[..., 0].clamp(max=30.0) - log_total)

    def working(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.mean(eta), self._spread(eta)
        return ((y - mean) / spread)[..., None], (mean / spread)[..., None].clamp(min=1e-3)

    def _spread(self, eta: Tensor) -> Tensor:
        mean, size = self._mean_and_size(eta)
        return 1.0 + mean / size

    def cdf(self, y: Tensor, eta: Tensor) -> Tensor:
        mean, size = self._mean_and_size(eta)
        below = by_scipy(special.betainc, size, (y.floor() + 1.0).clamp(min=_EPS), size / (size + mean))
        return torch.where(y < 0, torch.zeros_like(below), below)

    def variance(self, eta: Tensor) -> Tensor:
        mean, size = self._mean_and_size(eta)
        return mean + mean.square() / size

    def latent_variance(self, predictor: Tensor, between: Tensor) -> Tensor:
        dispersion = self.log_dispersion.detach().to(predictor).exp()
        return torch.log1p((-predictor - 0.5 * between).exp() + dispersion)
