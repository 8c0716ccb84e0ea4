"""The decoder of a regression: a (generalized) linear mixed model and a network beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from skgroupvae.batch import Batch
from skgroupvae.model.decoders import Decoder, NewtonTerms
from skgroupvae.model.likelihood import Likelihood
from skgroupvae.model.nn import mlp

__all__ = ["MixedModelDecoder"]

# Of the learning rate. A step of Adam moves every weight of a layer at once: at the full rate, scales and
# tails ran away within 50 steps on tables of some 1,000 rows (examples/choose_defaults.py).
_NETWORK_RATE, _CURVE_RATE = 0.3, 0.1


class MixedModelDecoder(Decoder):
    """Parameters of the outcomes' distributions: a mixed model and a network beside it.

    The linear predictor of outcome d is ``f beta_d + z Lambda_d u``, f the design and z its random columns.

    Parameters
    ----------
    likelihood : Likelihood
        Families of the D outcomes, with W parameters each.
    n_columns : int
        Number P of columns of the design, the constant first.
    random : sequence of int
        Columns whose coefficient varies by group, Q of them.
    n_group_codes : int
        Number U of group codes, at least D * Q; the first D * Q are the random effects, standardized.
    hidden : sequence of int
        Widths of the network; empty for the mixed model alone.
    """

    random: Tensor
    penalty_center: Tensor
    bounds: Tensor

    def __init__(
        self,
        likelihood: Likelihood,
        n_columns: int,
        random: Sequence[int],
        n_group_codes: int,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__(likelihood, n_group_codes, 0)
        n_outcomes, n_parameters = likelihood.n_columns, likelihood.n_parameters
        self.n_random = n_outcomes * len(random)
        self.register_buffer("random", torch.as_tensor(list(random), dtype=torch.long))
        self.fixed = nn.Parameter(torch.zeros(n_columns, n_outcomes, dtype=torch.float32))
        self.raw_loadings = nn.Parameter(torch.eye(self.n_random, dtype=torch.float32))
        self.shape = nn.Parameter(torch.zeros(n_outcomes, n_parameters - 1, dtype=torch.float32))
        bounds = torch.tensor(likelihood.max_deviation, dtype=torch.float32)
        self.register_buffer("bounds", bounds, persistent=False)
        self.network: nn.Sequential | None = None
        self.curves: nn.Sequential | None = None
        if hidden:
            n_inputs, n_outputs = n_columns - 1 + n_group_codes, n_outcomes * n_parameters
            self.network = mlp(n_inputs, hidden, n_outputs, generator, zero_last=True)
            self.curves = mlp(n_columns - 1, hidden, n_outputs * n_group_codes, generator, zero_last=True)
        self.penalty_weight = 0.0
        self.register_buffer("penalty_center", self._weights().detach().clone(), persistent=False)

    @property
    def is_exact(self) -> bool:
        """Whether it is the linear mixed model, which maximum likelihood gives with no training."""
        return self.network is None and self.likelihood.is_linear_exact

    @property
    def loadings(self) -> Tensor:
        """Lower triangle Lambda (D * Q, D * Q), by outcome and then random column."""
        return self.raw_loadings.tril()

    def forward(
        self, design: Tensor, u: Tensor, v: Tensor | None = None, coefficients: Tensor | None = None
    ) -> Tensor:
        """Parameters (*, N, D, W) of each row from the design (N, P) and its group's u (*, N, U).

        `coefficients` are those of these rows, where the caller has them.
        """
        if coefficients is None:
            coefficients = self.coefficients(design)
        n_outcomes, n_parameters = self.shape.shape[0], self.shape.shape[1] + 1
        deviation = torch.einsum("npu,...nu->...np", coefficients.flatten(1, 2), u)
        if self.network is not None:
            # What the covariates add to the first layer is the same for every draw of u.
            first: Any = self.network[0]
            of_x, of_u = first.weight.split([design.shape[1] - 1, self.n_group_codes], dim=1)
            hidden = linear(design[:, 1:], of_x, first.bias) + linear(u, of_u)
            deviation = deviation + self.network[1:](hidden)
        deviation = deviation.unflatten(-1, (n_outcomes, n_parameters))
        if self.network is not None:
            # As it is near zero, and never beyond the bound.
            rest = self.bounds * (deviation[..., 1:] / self.bounds).tanh()
            deviation = torch.cat([self._bounded(deviation[..., :1], design, u), rest], dim=-1)
        plain = torch.cat([(design @ self.fixed)[..., None], self.shape.expand(len(design), -1, -1)], dim=-1)
        return plain + deviation

    def _bounded(self, deviation: Tensor, design: Tensor, u: Tensor) -> Tensor:
        """Deviation of the predictors (*, N, D, 1), what the networks add to the mixed model bounded."""
        bound = self.likelihood.max_predictor_deviation
        if bound is None:
            return deviation
        effects = self._random_effects(design)
        mixed = torch.einsum("ndr,...nr->...nd", effects, u[..., : self.n_random])[..., None]
        return mixed + bound * ((deviation - mixed) / bound).tanh()

    def _random_effects(self, design: Tensor) -> Tensor:
        """Of the first codes on the predictors: (N, D, D * Q)."""
        by_outcome = self.loadings.unflatten(0, (-1, len(self.random)))
        return torch.einsum("nq,dqr->ndr", design[:, self.random], by_outcome)

    def coefficients(self, design: Tensor) -> Tensor:
        """Effect of the group codes on the parameters as far as it is linear in u: (N, D, W, U)."""
        n_parameters = self.shape.shape[1] + 1
        effects = self._random_effects(design)[:, :, None]
        effects = pad(effects, (0, self.n_group_codes - self.n_random, 0, n_parameters - 1))
        if self.curves is None:
            return effects
        return effects + self.curves(design[:, 1:]).unflatten(-1, effects.shape[1:])

    def newton_terms(self, batch: Batch) -> NewtonTerms:
        coefficients = self.coefficients(batch.design)
        at_zero = batch.values.new_zeros(batch.n_rows, self.n_group_codes)
        eta = self.forward(batch.design, at_zero, coefficients=coefficients)
        score, information = self.likelihood.newton_terms(batch.values, eta, batch.mask)
        slopes = coefficients[:, :, : self.likelihood.n_working].flatten(1, 2)
        return score, information, slopes, eta

    def set_penalty(self, weight: float) -> None:
        """From now on a normal prior of this weight, in nats a row, holds the networks where they are.

        Where they are, not at zero: the product of small weights of three layers says nothing, and a prior
        about zero would keep it there.
        """
        self.penalty_weight, self.penalty_center = weight, self._weights().detach().clone()

    def penalty(self) -> Tensor:
        """Cost of the networks' weights, in nats a row."""
        return self.penalty_weight * (self._weights() - self.penalty_center).square().sum()

    def _weights(self) -> Tensor:
        weights = [p.flatten() for net in (self.network, self.curves) if net for p in net.parameters()]
        return torch.cat(weights) if weights else self.fixed.new_zeros(0)

    def rate_factors(self) -> list[tuple[nn.Parameter, float]]:
        """What starts where it belongs moves slowly."""
        factors: list[tuple[nn.Parameter, float]] = [(self.fixed, 0.3), (self.raw_loadings, 0.3)]
        for network, factor in ((self.network, _NETWORK_RATE), (self.curves, _CURVE_RATE)):
            if network is not None:
                factors += [(parameter, factor) for parameter in network.parameters()]
        return factors

    @torch.no_grad()
    def start_curves(self, coefficients: Tensor) -> None:
        """Start the curves of the last codes at sums of the hidden features and a constant.

        Parameters
        ----------
        coefficients : Tensor of shape (n_curves, D, n_working, H + 1)
        """
        assert self.curves is not None
        last: Any = self.curves[-1]
        n_curves, _, n_working, _ = coefficients.shape
        shape = (self.shape.shape[0], self.shape.shape[1] + 1, self.n_group_codes)
        weight, bias = last.weight.unflatten(0, shape), last.bias.unflatten(0, shape)
        weight[:, :n_working, -n_curves:] = coefficients[..., :-1].permute(1, 2, 0, 3)
        bias[:, :n_working, -n_curves:] = coefficients[..., -1].permute(1, 2, 0)
