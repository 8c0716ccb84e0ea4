"""A simulated nonlinear mixed model with its exact predictive density, the best that any method can reach."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.utils import Bunch, check_random_state

__all__ = ["make_nonlinear_mixed", "nonlinear_mixed_log_density"]

_SPREAD = 0.5


def make_nonlinear_mixed(
    n_groups: int = 1000,
    group_size: int = 20,
    *,
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    r"""Simulate groups that differ in their curves and their spreads.

    .. math:: y_{ik} = x_{ik} + u_{i1} \sin(2 x_{ik}) + \exp(u_{i2} / 2)\, v_{ik}

    with standard normal :math:`u_{i1}, u_{i2}, v_{ik}` and x uniform on (-2, 2).

    Parameters
    ----------
    n_groups : int, default=1000
        Number of groups.
    group_size : int, default=20
        Number of rows in each group.
    random_state : int, RandomState instance or None, default=None
        Pass an int for the same data at every call.

    Returns
    -------
    data : Bunch
        ``X`` (n_rows, 1), ``y`` (n_rows,), ``groups`` (n_rows,), and the ground truth ``u`` (n_groups, 2) and
        ``v`` (n_rows,).

    Examples
    --------
    >>> from skgroupvae.nonlinear import make_nonlinear_mixed
    >>> make_nonlinear_mixed(3, 5, random_state=0).X.shape
    (15, 1)
    """
    rng = check_random_state(random_state)
    groups = np.repeat(np.arange(n_groups), group_size)
    u = rng.standard_normal((n_groups, 2))
    x = rng.uniform(-2.0, 2.0, len(groups))
    v = rng.standard_normal(len(groups))
    y = x + u[groups, 0] * np.sin(2.0 * x) + np.exp(_SPREAD * u[groups, 1]) * v
    return Bunch(X=x[:, None], y=y, groups=groups, u=u, v=v)


def nonlinear_mixed_log_density(
    X: ArrayLike,
    y: ArrayLike,
    groups: ArrayLike,
    *,
    context: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
    n_nodes: int = 81,
) -> NDArray[np.float64]:
    """Exact log predictive density of each row given the context rows of its group, by quadrature over u.

    Parameters
    ----------
    X : array-like of shape (n_rows, 1)
        Covariate of each row.
    y, groups : array-like of shape (n_rows,)
        Outcome and group label of each row.
    context : tuple (X, y, groups), optional
        Rows with known outcomes.
    n_nodes : int, default=81
        Number of grid points for each of the two codes, on [-5, 5].

    Returns
    -------
    log_density : ndarray of shape (n_rows,)
        In nats.
    """
    nodes = np.linspace(-5.0, 5.0, n_nodes)
    level, spread = (axis.ravel() for axis in np.meshgrid(nodes, nodes, indexing="ij"))
    prior = -0.5 * (level**2 + spread**2)
    prior -= logsumexp(prior)

    def log_prob(x: NDArray, outcome: NDArray) -> NDArray[np.float64]:
        """Log density of each row at each node, of shape (n, n_nodes²)."""
        mean = x[:, None] + level * np.sin(2.0 * x)[:, None]
        z = (outcome[:, None] - mean) * np.exp(-_SPREAD * spread)
        return -0.5 * (z**2 + np.log(2.0 * np.pi)) - _SPREAD * spread

    x, y, groups = np.asarray(X, dtype=float)[:, 0], np.asarray(y, dtype=float), np.asarray(groups)
    result = np.empty(len(y))
    for group in np.unique(groups):
        weight = prior
        if context is not None:
            known = np.asarray(context[2]) == group
            weight = prior + log_prob(np.asarray(context[0])[known, 0], np.asarray(context[1])[known]).sum(0)
            weight = weight - logsumexp(weight)
        rows = groups == group
        result[rows] = logsumexp(log_prob(x[rows], y[rows]) + weight, axis=1)
    return result
