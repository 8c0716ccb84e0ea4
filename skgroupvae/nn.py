"""Small pieces that every network is made of: seeded layers, normal heads, reparameterised draws.

Nothing here, or elsewhere in the package, touches torch's global random state: each weight and each draw
comes from a generator that the caller passes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.distributions import Normal

__all__ = ["SCALE_RANGE", "draw", "kl_to_standard_normal", "linear", "log_prior_ratio", "mlp", "normal_from"]

# exp(-9) is one part in 8,000 of a standard deviation: a posterior that narrow is a point.
_MIN_LOG_SCALE, _MAX_LOG_SCALE = -9.0, 4.0
SCALE_RANGE = (math.exp(_MIN_LOG_SCALE), math.exp(_MAX_LOG_SCALE))


def linear(n_in: int, n_out: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """Fully connected layer with PyTorch's usual uniform initialisation, drawn from `generator`."""
    # A model may have no covariates; torch warns that such a layer has nothing to initialise.
    with nullcontext() if n_in else warnings.catch_warnings(action="ignore", category=UserWarning):
        layer = nn.utils.skip_init(nn.Linear, n_in, n_out, bias=bias)
    bound = max(n_in, 1) ** -0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        if bias:
            layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def mlp(
    n_in: int,
    hidden: Sequence[int],
    n_out: int | None,
    generator: torch.Generator,
    *,
    zero_last: bool = False,
) -> nn.Sequential:
    """Multilayer perceptron with SiLU between its layers: (*, n_in) -> (*, n_out).

    ``n_out=None`` ends at the last hidden activation. `zero_last` starts the output at exactly zero, for a
    network that learns a correction to something already good.
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [linear(n_in, width, generator), nn.SiLU()]
        n_in = width
    if n_out is not None:
        last = linear(n_in, n_out, generator)
        if zero_last:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        layers.append(last)
    return nn.Sequential(*layers)


def normal_from(loc: Tensor, log_scale: Tensor) -> Normal:
    """Independent normals with the log scale kept inside a range that float32 can square."""
    return Normal(loc, log_scale.clamp(_MIN_LOG_SCALE, _MAX_LOG_SCALE).exp(), validate_args=False)


def draw(normal: Normal, generator: torch.Generator) -> Tensor:
    """One reparameterised draw (gradients flow to loc and scale).

    The noise is drawn on the CPU, so that a fit takes the same draws on every device.
    """
    noise = torch.randn(normal.loc.shape, generator=generator, dtype=normal.loc.dtype)
    return normal.loc + normal.scale * noise.to(normal.loc.device)


def kl_to_standard_normal(normal: Normal) -> Tensor:
    """KL(q || N(0, I)) in nats, summed over the last dimension: (*, d) -> (*)."""
    variance = normal.scale.square()
    return 0.5 * (normal.loc.square() + variance - 1.0 - variance.log()).sum(-1)


def log_prior_ratio(code: Tensor, q: Normal) -> Tensor:
    """log N(code; 0, I) - log q(code), summed over the last dimension: (*, d) -> (*)."""
    log_prior = -0.5 * (code.square() + math.log(2.0 * math.pi))
    return (log_prior - q.log_prob(code)).sum(-1)
