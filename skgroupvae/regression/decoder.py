"""p(y given x, u): parameters of the distribution of y, from a mixed model and a network beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from skgroupvae.families import Family
from skgroupvae.nn import mlp
from skgroupvae.regression.mixed_model import LinearMixedModel

__all__ = ["RegressionDecoder"]

# Of the learning rate. A step of Adam moves every weight of a layer at once: at the full rate, scales and
# tails ran away within 50 steps on tables of some 1,000 rows (examples/choose_defaults.py).
_NETWORK_RATE, _CURVE_RATE = 0.3, 0.1


class RegressionDecoder(nn.Module):
    """Parameters of the outcome's distribution: a mixed model and a network beside it.

    Parameters
    ----------
    family : Family
        Distribution of the outcome.
    n_columns : int
        Number P of columns of the design, the constant first.
    random : sequence of int
        Columns whose coefficient varies by group, Q of them.
    n_group_codes : int
        Number U of group codes, at least Q; the first Q are the random effects, standardised.
    hidden : sequence of int
        Widths of the network; empty for the mixed model alone.
    """

    random: Tensor
    penalty_centre: Tensor
    bounds: Tensor

    def __init__(
        self,
        family: Family,
        n_columns: int,
        random: Sequence[int],
        n_group_codes: int,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        n_random = len(random)
        self.family = family
        self.register_buffer("random", torch.as_tensor(list(random), dtype=torch.long))
        self.fixed = nn.Parameter(torch.zeros(n_columns))
        self.raw_loadings = nn.Parameter(torch.eye(n_random))
        self.shape = nn.Parameter(torch.zeros(family.n_parameters - 1))
        self.register_buffer("bounds", torch.tensor(family.max_departure), persistent=False)
        self.n_group_codes = n_group_codes
        self.network: nn.Sequential | None = None
        self.curves: nn.Sequential | None = None
        if hidden:
            n_inputs = n_columns - 1 + n_group_codes
            self.network = mlp(n_inputs, hidden, family.n_parameters, generator, zero_last=True)
            n_outputs = family.n_parameters * n_group_codes
            self.curves = mlp(n_columns - 1, hidden, n_outputs, generator, zero_last=True)
        self.penalty_weight = 0.0
        self.register_buffer("penalty_centre", self._weights().detach().clone(), persistent=False)

    @property
    def is_exact(self) -> bool:
        """Whether it is the linear mixed model, which maximum likelihood gives with no training."""
        return self.network is None and self.family.is_linear_exact

    @property
    def loadings(self) -> Tensor:
        """Lower triangle Lambda (Q, Q)."""
        return self.raw_loadings.tril()

    def forward(self, design: Tensor, u: Tensor, coefficients: Tensor | None = None) -> Tensor:
        """Parameters of each row: design (N, P), its group's u (*, N, U) -> eta (*, N, n_parameters).

        `coefficients` are those of these rows, where the caller has them.
        """
        if coefficients is None:
            coefficients = self.coefficients(design)
        departure = torch.einsum("npu,...nu->...np", coefficients, u)
        if self.network is not None:
            # What the covariates add to the first layer is the same for every draw of u.
            first: Any = self.network[0]
            of_x, of_u = first.weight.split([design.shape[1] - 1, self.n_group_codes], dim=1)
            hidden = linear(design[:, 1:], of_x, first.bias) + linear(u, of_u)
            departure = departure + self.network[1:](hidden)
            # As it is near zero, and never beyond the bound.
            rest = self.bounds * (departure[..., 1:] / self.bounds).tanh()
            departure = torch.cat([self._bounded(departure[..., :1], design, u), rest], dim=-1)
        plain = torch.cat([(design @ self.fixed)[:, None], self.shape.expand(len(design), -1)], dim=-1)
        return plain + departure

    def _bounded(self, departure: Tensor, design: Tensor, u: Tensor) -> Tensor:
        """Departure of the linear predictor (*, N, 1), what the networks add to the mixed model bounded."""
        bound = self.family.max_predictor_departure
        if bound is None:
            return departure
        n_random = len(self.random)
        effects = design[:, self.random] @ self.loadings
        linear_part = torch.einsum("nq,...nq->...n", effects, u[..., :n_random])[..., None]
        return linear_part + bound * ((departure - linear_part) / bound).tanh()

    def coefficients(self, design: Tensor) -> Tensor:
        """Effect of the group codes on the parameters as far as it is linear in u: (N, n_parameters, U)."""
        n_random, n_parameters = len(self.random), self.family.n_parameters
        effects = design[:, self.random] @ self.loadings
        effects = nn.functional.pad(effects[:, None], (0, self.n_group_codes - n_random, 0, n_parameters - 1))
        if self.curves is None:
            return effects
        return effects + self.curves(design[:, 1:]).unflatten(-1, (n_parameters, self.n_group_codes))

    def set_penalty(self, weight: float) -> None:
        """From now on a normal prior of this weight, in nats a row, holds the networks where they are.

        Where they are, not at zero: the product of small weights of three layers says nothing, and a prior
        about zero would keep it there.
        """
        self.penalty_weight, self.penalty_centre = weight, self._weights().detach().clone()

    def penalty(self) -> Tensor:
        """Cost of the networks' weights, in nats a row."""
        return self.penalty_weight * (self._weights() - self.penalty_centre).square().sum()

    def _weights(self) -> Tensor:
        weights = [p.flatten() for net in (self.network, self.curves) if net for p in net.parameters()]
        return torch.cat(weights) if weights else self.fixed.new_zeros(0)

    def rate_factors(self) -> list[tuple[nn.Parameter, float]]:
        """Parameters that learn at a rate of their own: what starts where it belongs moves slowly."""
        factors: list[tuple[nn.Parameter, float]] = [(self.fixed, 0.3), (self.raw_loadings, 0.3)]
        for network, factor in ((self.network, _NETWORK_RATE), (self.curves, _CURVE_RATE)):
            if network is not None:
                factors += [(parameter, factor) for parameter in network.parameters()]
        return factors

    @torch.no_grad()
    def start_from(self, model: LinearMixedModel) -> None:
        """Start at a mixed model."""
        self.fixed.copy_(model.fixed)
        self.raw_loadings.copy_(model.loadings)

    @torch.no_grad()
    def start_curves(self, coefficients: Tensor) -> None:
        """Start the curves of the last codes at sums of the hidden features and a constant: (C, W, H + 1)."""
        assert self.curves is not None
        last: Any = self.curves[-1]
        n_curves, n_working, _ = coefficients.shape
        weight = last.weight.view(self.family.n_parameters, self.n_group_codes, -1)
        bias = last.bias.view(self.family.n_parameters, self.n_group_codes)
        weight[:n_working, -n_curves:] = coefficients[..., :-1].transpose(0, 1)
        bias[:n_working, -n_curves:] = coefficients[..., -1].mT
