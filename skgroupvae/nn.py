"""Small pieces that every network is made of: seeded layers and normal heads.

Nothing here, or elsewhere in the package, touches torch's global random state: each weight and each draw
comes from a generator that the caller passes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.distributions import Normal

__all__ = ["linear", "mlp", "normal_from"]

# exp(-9) is one part in 8,000 of a standard deviation: a posterior that narrow is a point.
_MIN_LOG_SCALE, _MAX_LOG_SCALE = -9.0, 4.0


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
