"""A quasi-Newton search for the minimum of a function with a gradient.

The method of Broyden, Fletcher, Goldfarb and Shanno, with steps that keep the weak Wolfe conditions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CONVERGED", "Objective", "inverse_curvature", "minimize", "second_derivatives"]

# Value and gradient (T,) at a point (T,).
Objective = Callable[[Tensor], tuple[float, Tensor]]

_MAX_ITERATIONS = 500
# Of the largest derivative: where the search stops, and what counts as converged.
_TOLERANCE, CONVERGED = 1e-9, 1e-6
# What another step may be expected to gain, times the scale.
_LEAST_GAIN = 1e-11
# Step of a central difference of the gradient, which is then exact to about 1e-8.
_DIFFERENCE = 1e-4
_TINY = 1e-300


def minimize(
    objective: Objective,
    point: Tensor,
    scale: float,
    inverse: Tensor | None = None,
    *,
    least_gain: float = _LEAST_GAIN,
    most_slope: float = CONVERGED,
) -> tuple[Tensor, Tensor, Tensor]:
    """Go down from a point as far as it goes.

    Parameters
    ----------
    objective : callable
        A value that is not a number is turned away from.
    point : Tensor of shape (T,)
        Where it starts.
    scale : float
        How many values the objective is the mean of: it stops where their sum has next to nothing to gain.
    inverse : Tensor of shape (T, T), optional
        Of the second derivatives at the start, if known.
    least_gain : float
        What another step may be expected to gain, times the scale, where the search stops.
    most_slope : float
        Largest derivative with which it may stop there.

    Returns
    -------
    point : Tensor of shape (T,)
        Where it ends.
    gradient : Tensor of shape (T,)
        There.
    inverse : Tensor of shape (T, T)
        Of the second derivatives there, about.
    """
    value, gradient = objective(point)
    identity = torch.eye(len(point), dtype=point.dtype)
    fresh = inverse is None
    inverse = identity if inverse is None else inverse
    for _ in range(_MAX_ITERATIONS):
        largest = float(gradient.abs().amax())
        if largest < _TOLERANCE:
            break
        direction = -inverse @ gradient
        if fresh:
            direction = direction / max(1.0, float(direction.norm()))
        slope = float(direction @ gradient)
        if not fresh and scale * abs(slope) < least_gain and largest < most_slope:
            break
        found = _line_search(objective, point, value, slope, direction)
        if found is None:
            break
        step, value, after = found
        change, point, gradient = after - gradient, point + step, after
        curvature = float(step @ change)
        if curvature > 0:
            if fresh:
                inverse, fresh = identity * (curvature / float(change @ change)), False
            # Two vectors' worth of change, in as many operations as the matrix has entries.
            moved = inverse @ change
            along = torch.outer(moved, step) / curvature
            length = (1.0 + float(change @ moved) / curvature) / curvature
            inverse = inverse - along - along.mT + length * torch.outer(step, step)
    return point, gradient, inverse


def _line_search(
    objective: Objective, point: Tensor, value: float, slope: float, direction: Tensor
) -> tuple[Tensor, float, Tensor] | None:
    """Step, value and gradient where the weak Wolfe conditions hold, by bisection; None if there is none."""
    if not slope < 0:
        return None
    lower, upper, length = 0.0, math.inf, 1.0
    rounding = 1e-14 * max(1.0, abs(value))
    for _ in range(40):
        at, gradient = objective(point + length * direction)
        if not at <= value + 1e-4 * length * slope + rounding:
            upper = length
        elif float(gradient @ direction) < 0.9 * slope:
            lower = length
        else:
            return length * direction, at, gradient
        length = 0.5 * (lower + upper) if upper < math.inf else 2.0 * lower
    return None


def second_derivatives(objective: Objective, point: Tensor) -> Tensor:
    """Second derivatives (T, T) at a point (T,), by central differences; symmetric but for rounding."""
    columns = [
        (objective(point + step)[1] - objective(point - step)[1]) / (2.0 * _DIFFERENCE)
        for step in _DIFFERENCE * torch.eye(len(point), dtype=point.dtype)
    ]
    return torch.stack(columns)


def inverse_curvature(objective: Objective, point: Tensor) -> Tensor:
    """Inverse (T, T) of the second derivatives at a point (T,), all made positive."""
    second = second_derivatives(objective, point).nan_to_num(0.0, 0.0, 0.0)
    values, vectors = torch.linalg.eigh(0.5 * (second + second.mT))
    values = values.abs().clamp(min=1e-10 * float(values.abs().amax()) + _TINY)
    return (vectors / values) @ vectors.mT
