"""Distributions of codes: what is known of u given a group's rows, and of v given a row.

All are torch Distributions over vectors: batch (*,), event (U,). Draws are made from standard normal noise
that the caller passes, so that draws can be paired, quasi-random, or shared between groups.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from skgroupvae.model.nn import bounded_scale, standard_normal

__all__ = [
    "DiagonalNormal",
    "FullNormal",
    "MirroredNormal",
    "Posterior",
    "mirror_signs",
    "newton",
    "precision_factor",
]


class Posterior(Distribution, ABC):
    """Base class: a batch of normals over codes, or a mixture of them.

    Attributes
    ----------
    loc : Tensor of shape (*, U)
        Means.
    """

    arg_constraints: Mapping[str, Any] = MappingProxyType({})  # type: ignore[assignment]
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor) -> None:
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)
        self.loc = loc

    @property
    @abstractmethod
    def scale(self) -> Tensor:
        """Marginal standard deviations (*, U)."""

    @abstractmethod
    def from_noise(self, noise: Tensor) -> Tensor:
        """Draws (S, *, U) from standard normal noise (S, *, U), or (S, 1, U) common to the batch."""

    @abstractmethod
    def log_prob(self, value: Tensor) -> Tensor:
        """Log density (S, *) at codes (S, *, U)."""

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale.square()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws by torch's global generator, as every Distribution has; the package passes its own."""
        noise = torch.randn((*sample_shape, *self.loc.shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.from_noise(noise)

    def draw(self, generator: torch.Generator) -> Tensor:
        """One draw (*, U), with gradients to the parameters."""
        return self.from_noise(standard_normal(self.loc.shape, self.loc, generator))

    def propose(self, noise: Tensor, prior: Posterior | None = None) -> tuple[Tensor, Tensor]:
        """Draws u (S, *, U) and log p(u) - log q(u) (S, *); without `prior` p is standard normal."""
        u = self.from_noise(noise)
        log_prior = _log_standard_normal(u) if prior is None else prior.log_prob(u)
        return u, log_prior - self.log_prob(u)


class DiagonalNormal(Posterior):
    """Independent normals.

    Parameters
    ----------
    loc, scale : Tensor of shape (*, U)
        Means and standard deviations.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(loc)
        self._scale = scale

    @classmethod
    def from_log_scale(cls, loc: Tensor, log_scale: Tensor) -> Self:
        """With the log scale kept inside the range of :func:`~skgroupvae.model.nn.bounded_scale`."""
        return cls(loc, bounded_scale(log_scale))

    @property
    def scale(self) -> Tensor:
        return self._scale

    def from_noise(self, noise: Tensor) -> Tensor:
        return self.loc + self._scale * noise

    def log_prob(self, value: Tensor) -> Tensor:
        z = (value - self.loc) / self._scale
        return _log_standard_normal(z) - self._scale.log().sum(-1)

    def kl_to_standard_normal(self) -> Tensor:
        """In nats, (*,)."""
        variance = self._scale.square()
        return 0.5 * (self.loc.square() + variance - 1.0 - variance.log()).sum(-1)

    def take(self, positions: Tensor) -> DiagonalNormal:
        """Some of a batch of shape (G,), repeats allowed."""
        return DiagonalNormal(self.loc[positions], self._scale[positions])


class FullNormal(Posterior):
    """Normals with a covariance of their own: ``loc + root @ noise``.

    Parameters
    ----------
    loc : Tensor of shape (*, U)
        Means.
    root : Tensor of shape (*, U, U)
        Any square root of the covariance.
    log_det : Tensor of shape (*,)
        Logarithm of the absolute determinant of `root`.
    """

    def __init__(self, loc: Tensor, root: Tensor, log_det: Tensor) -> None:
        super().__init__(loc)
        self.root, self.log_det = root, log_det

    @classmethod
    def from_diagonal(cls, normal: DiagonalNormal) -> Self:
        return cls(normal.loc, torch.diag_embed(normal.scale), normal.scale.log().sum(-1))

    @classmethod
    def standard(cls, n_codes: int, like: Tensor) -> Self:
        """The prior of one group: batch shape (1,)."""
        root = torch.eye(n_codes, dtype=like.dtype, device=like.device)[None]
        return cls(like.new_zeros(1, n_codes), root, like.new_zeros(1))

    @property
    def scale(self) -> Tensor:
        return self.root.square().sum(-1).sqrt()

    def from_noise(self, noise: Tensor) -> Tensor:
        return self.loc + (self.root @ noise[..., None])[..., 0]

    def log_prob(self, value: Tensor) -> Tensor:
        apart = (value - self.loc)[..., None]
        z = torch.linalg.solve(self.root.expand(*apart.shape[:-2], -1, -1), apart)[..., 0]
        return _log_standard_normal(z) - self.log_det

    def kl_to_standard_normal(self) -> Tensor:
        """In nats, (*,)."""
        n_codes = self.loc.shape[-1]
        return 0.5 * (self.loc.square().sum(-1) + self.root.square().sum((-2, -1)) - n_codes) - self.log_det

    def propose(self, noise: Tensor, prior: Posterior | None = None) -> tuple[Tensor, Tensor]:
        if prior is not None:
            return super().propose(noise, prior)
        # The noise is at hand: no system to solve.
        u = self.from_noise(noise)
        return u, 0.5 * (noise.square() - u.square()).sum(-1) + self.log_det

    def take(self, positions: Tensor) -> FullNormal:
        """Some of a batch of shape (G,), repeats allowed."""
        return FullNormal(self.loc[positions], self.root[positions], self.log_det[positions])

    def stretched(self, factor: float) -> FullNormal:
        """Wider by a factor, for proposals that no draw is to outweigh all others of."""
        log_det = self.log_det + self.loc.shape[-1] * math.log(factor)
        return FullNormal(self.loc, factor * self.root, log_det)


class MirroredNormal(Posterior):
    """A normal, which gets half of the draws, mixed with its mirror images along each axis.

    A decoder that depends on a code through an even function (the spread of a group, say) has a posterior
    with two mirrored modes, since the prior is symmetric. A normal q(u) sits on one of them, and importance
    samples from it alone never see the other: the bound then stays log 2 short, and the noise is learned too
    large. Mixing in the mirror images closes that gap, and costs little where there is no second mode.

    The mixture is deterministic: draw number s always comes from the same component.

    Parameters
    ----------
    normal : DiagonalNormal or FullNormal
        Batch (G,).
    n_samples : int
        Number S of draws.
    """

    def __init__(self, normal: DiagonalNormal | FullNormal, n_samples: int) -> None:
        super().__init__(normal.loc)
        self.normal, self.n_samples = normal, n_samples

    @property
    def scale(self) -> Tensor:
        return self.normal.scale

    @property
    def n_direct(self) -> int:
        """How many of the draws, the first ones, come from the normal itself."""
        return (self.n_samples + 1) // 2

    @property
    def components(self) -> tuple[Tensor, Tensor]:
        """Signs (C, U) that each component multiplies the mean by, and the number (C,) of its draws."""
        n_codes = self.loc.shape[-1]
        n_mirrored = self.n_samples - self.n_direct
        n_images = min(n_mirrored, n_codes)
        mirrored = [n_mirrored // n_codes + (axis < n_mirrored % n_codes) for axis in range(n_images)]
        counts = torch.tensor([self.n_direct, *mirrored], device=self.loc.device)
        return mirror_signs(self.loc)[: n_images + 1], counts

    @property
    def signs(self) -> Tensor:
        """Signs (S, U) that the mean is multiplied by in each draw."""
        signs, counts = self.components
        # Each component's draws are consecutive: every second Sobol point would miss a half-space.
        return signs.repeat_interleave(counts, dim=0)

    def from_noise(self, noise: Tensor) -> Tensor:
        signs = self.signs[:, None]
        # Mirrored noise first: of independent codes only the mean is then mirrored, and draws stay paired.
        return signs * self.normal.from_noise(signs * noise)

    def log_prob(self, value: Tensor) -> Tensor:
        signs, counts = self.components
        log_densities = torch.stack([self.normal.log_prob(s * value) for s in signs])
        log_weights = (counts / self.n_samples).log().to(value)
        return torch.logsumexp(log_densities + log_weights[:, None, None], dim=0)


def mirror_signs(codes: Tensor) -> Tensor:
    """Signs (1 + U, U) of codes (*, U) themselves and of their mirror images along each axis."""
    signs = codes.new_ones(codes.shape[-1] + 1, codes.shape[-1])
    signs[1:].diagonal().fill_(-1.0)
    return signs


def newton(score: Tensor, information: Tensor, jacobian: Tensor | None = None) -> FullNormal:
    """Posterior of codes from the prior N(0, I) and a likelihood's slope and curvature: Bayes' rule.

    Exact where the log-likelihood is quadratic; else one step of Newton's method from where they were taken.

    Parameters
    ----------
    score : Tensor of shape (*, K)
        Slope of the log-likelihood in K linear predictors.
    information : Tensor of shape (*, K, K)
        Its negative curvature.
    jacobian : Tensor of shape (*, K, U), optional
        Of the predictors in the codes; None where these are the codes (K = U), as for sums over rows.

    Returns
    -------
    posterior : FullNormal over (*, U)
    """
    if jacobian is not None:
        score = (jacobian.mT @ score[..., None])[..., 0]
        information = jacobian.mT @ information @ jacobian
    # In float64: with many rows the precision is large and the prior's 1 would be lost.
    factor = precision_factor(information)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    root = torch.linalg.solve_triangular(factor.mT, identity.expand_as(factor), upper=True).to(score.dtype)
    mean = torch.cholesky_solve(score.double()[..., None], factor)[..., 0].to(score.dtype)
    return FullNormal(mean, root, root.diagonal(dim1=-2, dim2=-1).log().sum(-1))


def precision_factor(information: Tensor) -> Tensor:
    """Cholesky factor (*, U, U), in float64, of the posterior precision, prior I plus information."""
    precision = information.double()
    identity = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    return torch.linalg.cholesky(0.5 * (precision + precision.mT) + identity)


def _log_standard_normal(z: Tensor) -> Tensor:
    """Log density of N(0, I), summed over the last dimension."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2.0 * math.pi))
