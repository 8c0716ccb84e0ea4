"""Proposals of the group code for importance sampling: the encoder's normal and its mirror images.

A decoder that depends on a code through an even function (the spread of a group, say) has a posterior with
two mirrored modes, since the prior is symmetric. A normal q(u) sits on one of them, and importance samples
from it alone never see the other: the bound then stays log 2 short, and the noise is learned too large.
Mixing in the mirror image along each axis closes that gap, and costs little where there is no second mode.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Normal

__all__ = ["MirroredProposal"]


@dataclass(frozen=True)
class MirroredProposal:
    """A deterministic mixture of q(u), which gets half of the draws, and its mirror images.

    Attributes
    ----------
    q_u : Normal over (G, U)
        Posterior from the group encoder.
    n_samples : int
        Number S of draws of each group.
    prior : Normal over (G, U) or None
        What is known of u beforehand; None is the standard normal.
    """

    q_u: Normal
    n_samples: int
    prior: Normal | None = None

    @property
    def n_direct(self) -> int:
        """How many of the draws, the first ones, come from q(u) itself."""
        return (self.n_samples + 1) // 2

    @property
    def signs(self) -> Tensor:
        """Signs (S, U) that the mean is multiplied by in each draw."""
        n_codes = self.q_u.loc.shape[-1]
        # Each component's draws are consecutive: every second Sobol point would miss a half-space.
        mirrored = torch.arange(self.n_direct, self.n_samples)
        signs = torch.ones(self.n_samples, n_codes)
        signs[mirrored, torch.sort((mirrored - mirrored[:1]) % n_codes).values] = -1.0
        return signs.to(self.q_u.loc)

    def draw(self, noise: Tensor) -> Tensor:
        """Draws of u from standard normal noise: (S, G, U) or (S, 1, U) -> (S, G, U)."""
        return self.signs[:, None] * self.q_u.loc + self.q_u.scale * noise

    def log_prior_ratio(self, u: Tensor) -> Tensor:
        """log p(u) minus the log density of the mixture, for draws u: (S, G, U) -> (S, G)."""
        signs, counts = torch.unique(self.signs, dim=0, return_counts=True)
        components = Normal(signs[:, None, None] * self.q_u.loc, self.q_u.scale, validate_args=False)
        log_densities = components.log_prob(u).sum(-1)
        log_weights = (counts / self.n_samples).log()[:, None, None]
        prior = self.prior or Normal(0.0, 1.0, validate_args=False)
        log_prior = prior.log_prob(u).sum(-1)
        return log_prior - torch.logsumexp(log_densities + log_weights, dim=0)
