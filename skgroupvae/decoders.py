"""Decoders p(x given u, v): a network, a linear mixed model, or the user's own formula.

Each decoder gives the mean of a row in standardised units; the noise is normal, independent by column, its
standard deviation a parameter of the decoder. A new decoder is one subclass of :class:`Decoder` and one line
in ``DECODERS`` (``building.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from skgroupvae.nn import linear, mlp, normal_from

__all__ = ["Decoder", "FormulaDecoder", "LinearDecoder", "MLPDecoder"]


# Share of the variance within groups that the codes explain at the start; the noise has the rest. Where the
# data cannot tell noise from instance code (one column, a free decoder), the penalty keeps it there.
_CODE_SHARE = 0.9
_MIN_START_VARIANCE = 1e-4
# Weight, in nats a row, of the squared distance of the log noise from its start. It moves a noise that the
# data do tell by about 2 % a unit of that distance, and holds one that they do not.
_NOISE_ANCHOR = 0.02


class Decoder(nn.Module, ABC):
    """Base class: normal noise around a mean that the subclass computes.

    Parameters
    ----------
    n_features : int
        Number D of columns.
    n_instance_codes : int
        Number V of instance codes.
    """

    # From the spread of the whole table the noise has far to go: at the common rate it is still on its way
    # when the fit ends.
    noise_rate_factor = 10.0

    def __init__(self, n_features: int, n_instance_codes: int) -> None:
        super().__init__()
        self.n_features = n_features
        self.n_instance_codes = n_instance_codes
        # The scale starts at the spread of the whole table: from a narrow start the fit does not recover.
        self.log_noise = nn.Parameter(torch.zeros(n_features))

    @abstractmethod
    def mean(self, u: Tensor, v: Tensor) -> Tensor:
        """Mean of x: (*, U), (*, V) -> (*, D), in standardised units."""

    def forward(self, u: Tensor, v: Tensor) -> Normal:
        """p(x given u, v), independent by column."""
        mean = self.mean(u, v)
        return normal_from(mean, self.log_noise.expand_as(mean))

    @property
    def noise_scale(self) -> Tensor:
        """Standard deviation of the noise (D,), in standardised units."""
        return normal_from(self.log_noise, self.log_noise).scale

    def check(self, n_group_codes: int) -> None:
        """Ask for the mean of three rows of zeros, as the fit will: with gradients.

        Raises
        ------
        ValueError
            If it fails or returns anything but a tensor of shape (3, D).
        """
        expected = (3, self.n_features)
        arguments = f"u of shape (3, {n_group_codes}) and v of shape (3, {self.n_instance_codes})"
        try:
            u, v = (torch.zeros(3, n, requires_grad=True) for n in (n_group_codes, self.n_instance_codes))
            with torch.enable_grad():
                value = self._unscaled(u, v)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"decoder raised {type(error).__name__} on {arguments}: {reason}; it must map these torch "
                f"tensors to one of shape {expected}"
            ) from error
        if not isinstance(value, Tensor) or tuple(value.shape) != expected:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"decoder returned {got} for {arguments}; it must return a tensor of shape {expected}, "
                "one column a column of X"
            )

    def _unscaled(self, u: Tensor, v: Tensor) -> Tensor:
        """What `check` looks at: the mean before any scaling that could hide its shape."""
        return self.mean(u, v)

    def fix_noise(self, noise: Tensor) -> None:
        """Set the noise standard deviation (D,), in standardised units, and stop learning it."""
        self.log_noise = nn.Parameter(noise.log(), requires_grad=False)

    def start_from_moments(self, between: Tensor, within: Tensor) -> Tensor | None:
        """Start at the covariances of the table, between and within groups, each (D, D).

        Returns the loadings (D, U) of u, or None from a decoder that cannot use them and starts where its
        constructor left it.
        """
        return None

    def penalty(self) -> Tensor:
        """What the loss of a row adds to keep the noise where it started, unless the data say otherwise."""
        return self.log_noise.new_zeros(())

    def rate_factors(self) -> list[tuple[nn.Parameter, float]]:
        """Parameters that learn at a rate of their own, as multiples of the common rate."""
        return [(self.log_noise, self.noise_rate_factor)]

    def linearize(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Best straight line in v through the decoder at v = -1, +1: the mean as ``centre + slope v``.

        Parameters
        ----------
        u : Tensor of shape (G, U)
            Group codes.

        Returns
        -------
        centre : Tensor of shape (G, D)
        slope : Tensor of shape (G, D, V)
        """
        n_groups, n_codes = u.shape[0], self.n_instance_codes
        axes = torch.eye(n_codes, dtype=u.dtype, device=u.device)
        points = torch.cat([axes, -axes])[:, None].expand(-1, n_groups, -1)
        means = self.mean(u.expand(2 * n_codes, -1, -1), points)
        up, down = means[:n_codes], means[n_codes:]
        return means.mean(0), 0.5 * (up - down).permute(1, 2, 0)


class LinearDecoder(Decoder):
    """Mean linear in both codes, ``b + W_u u + W_v v``: a linear mixed model (grouped factor analysis)."""

    # The noise starts where it belongs. A larger rate would only let it wander where the data cannot tell it
    # from the instance code.
    noise_rate_factor = 1.0
    start_log_noise: Tensor

    def __init__(
        self,
        n_features: int,
        n_group_codes: int,
        n_instance_codes: int,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__(n_features, n_instance_codes)
        self.group_loadings = linear(n_group_codes, n_features, generator)
        self.instance_loadings = linear(n_instance_codes, n_features, generator, bias=False)
        self.register_buffer("start_log_noise", self.log_noise.detach().clone())

    def mean(self, u: Tensor, v: Tensor) -> Tensor:
        return self.group_loadings(u) + self.instance_loadings(v)

    @torch.no_grad()
    def start_from_moments(self, between: Tensor, within: Tensor) -> Tensor | None:
        self.group_loadings.bias.zero_()
        _set_loadings(self.group_loadings.weight, between)
        _set_loadings(self.instance_loadings.weight, _CODE_SHARE * within)
        if self.log_noise.requires_grad:
            explained = self.instance_loadings.weight.square().sum(1)
            noise = (within.diagonal() - explained).clamp(min=_MIN_START_VARIANCE)
            self.log_noise.copy_(0.5 * noise.log())
            self.start_log_noise.copy_(self.log_noise)
        return self.group_loadings.weight

    def penalty(self) -> Tensor:
        # A normal prior on the log noise. Without it the noise of one column under a free decoder drifts.
        return _NOISE_ANCHOR * (self.log_noise - self.start_log_noise).square().sum()


class MLPDecoder(LinearDecoder):
    """Mean by a multilayer perceptron on (u, v) added to a linear one.

    The network starts at zero, so the fit starts at the linear mixed model and learns what departs from it.
    """

    def __init__(
        self,
        n_features: int,
        n_group_codes: int,
        n_instance_codes: int,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__(n_features, n_group_codes, n_instance_codes, hidden, generator)
        n_codes = n_group_codes + n_instance_codes
        self.network = mlp(n_codes, hidden, n_features, generator, zero_last=True)

    def mean(self, u: Tensor, v: Tensor) -> Tensor:
        return super().mean(u, v) + self.network(torch.cat([u, v], dim=-1))


class FormulaDecoder(Decoder):
    """Mean by the user's own formula, a callable or Module taking (u, v) in the units of X.

    Parameters
    ----------
    formula : callable
        Maps u (*, U) and v (*, V) to the mean of a row, (*, D). A Module's parameters are learned.
    n_features, n_instance_codes : int
        Numbers D of columns and V of instance codes.
    centre, scale : Tensor of shape (D,)
        What standardised each column of X.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        formula: Callable[[Tensor, Tensor], Tensor],
        n_features: int,
        n_instance_codes: int,
        centre: Tensor,
        scale: Tensor,
    ) -> None:
        super().__init__(n_features, n_instance_codes)
        self.formula = formula
        self.single_precision = False
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)

    def mean(self, u: Tensor, v: Tensor) -> Tensor:
        # The formula always sees two-dimensional codes, so that u[:, 0] and u[..., 0] both work.
        leading = v.shape[:-1]
        value = self._unscaled(u.reshape(-1, u.shape[-1]), v.reshape(-1, v.shape[-1]))
        standardized = (value.to(v.dtype) - self.centre) / self.scale
        return standardized.reshape(*leading, self.n_features)

    def _unscaled(self, u: Tensor, v: Tensor) -> Tensor:
        return self.formula(u.float(), v.float()) if self.single_precision else self.formula(u, v)

    def check(self, n_group_codes: int) -> None:
        super().check(n_group_codes)
        if isinstance(self.formula, nn.Module):
            return  # its parameters and buffers follow the network's precision
        try:
            with torch.no_grad():
                self.formula(
                    torch.zeros(3, n_group_codes).double(), torch.zeros(3, self.n_instance_codes).double()
                )
        except Exception:
            # It holds float32 tensors of its own, which do not mix with float64 in a matrix product.
            self.single_precision = True


def _set_loadings(weight: Tensor, covariance: Tensor) -> None:
    """Loadings (D, n) of the first n principal components of a covariance; codes left over get none."""
    values, vectors = torch.linalg.eigh(covariance)
    n_used = min(weight.shape)
    weight.zero_()
    weight[:, :n_used] = (vectors * values.clamp(min=0.0).sqrt()).flip(1)[:, :n_used]
