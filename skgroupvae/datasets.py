"""Simulated grouped data whose exact posterior is known.

The exam-scores problem (section 3.1 of the CxVAE paper) is the reference problem of this package: each row
has one number, and the posterior of the codes is a one-dimensional integral. An estimate can therefore be
compared with the best that any method could do, and not only with another method.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch, check_random_state

__all__ = ["ExamScoresPosterior", "exam_scores_posterior", "make_exam_scores"]

# |sigma| is half-normal; beyond 12 its prior density is below 1e-31.
_MAX_ABS_SIGMA = 12.0
_N_COARSE, _N_NODES = 257, 160
_N_ZOOMS = 3
# Nodes whose density is below exp(-45) of the peak add nothing in double precision.
_LOG_NEGLIGIBLE = 45.0


def make_exam_scores(
    n_groups: int = 32768,
    *,
    noise: float = 1.0,
    min_group_size: int = 8,
    mean_extra_size: float = 16.0,
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    r"""Simulate the exam scores of students in schools (section 3.1 of the CxVAE paper).

    .. math:: x_{ik} = 2\mu_i + (\sigma_i^2 + 1)\, v_{ik} + \epsilon_{ik}

    with standard normal :math:`\mu_i, \sigma_i, v_{ik}`, :math:`\epsilon_{ik}` normal with standard deviation
    `noise`, and :math:`K_i \sim \mathrm{Poisson}(16) + 8` students in school i. A school's location and
    spread both vary, so that a student's rank (v) cannot be inferred from the score alone: u and v are
    entangled.

    Parameters
    ----------
    n_groups : int, default=32768
        Number of schools.
    noise : float, default=1.0
        Standard deviation of the noise, in points. The paper states the noise, but its experiments have none:
        ``noise=0.0`` gives the data of its tables.
    min_group_size : int, default=8
        Smallest possible number of students in a school.
    mean_extra_size : float, default=16.0
        Mean of the Poisson number of students above `min_group_size`.
    random_state : int, RandomState instance or None, default=None
        Pass an int for the same data at every call.

    Returns
    -------
    data : Bunch
        ``X`` (n_rows, 1) scores in points, ``groups`` (n_rows,) school numbers, and the ground truth:
        ``mu`` and ``sigma`` (n_groups,), ``u`` (n_groups, 2) with both as columns, ``v`` (n_rows,), and
        ``noise``.

    Examples
    --------
    >>> from skgroupvae.datasets import make_exam_scores
    >>> data = make_exam_scores(3, random_state=0)
    >>> data.X.shape == data.groups.shape + (1,)
    True
    """
    rng = check_random_state(random_state)
    mu, sigma = rng.standard_normal((2, n_groups))
    sizes = min_group_size + rng.poisson(mean_extra_size, size=n_groups)
    groups = np.repeat(np.arange(n_groups), sizes)
    v = rng.standard_normal(groups.shape[0])
    x = 2.0 * mu[groups] + (sigma[groups] ** 2 + 1.0) * v + noise * rng.standard_normal(groups.shape[0])
    return Bunch(
        X=x[:, None], groups=groups, mu=mu, sigma=sigma, u=np.column_stack([mu, sigma]), v=v, noise=noise
    )


@dataclass(frozen=True)
class ExamScoresPosterior:
    """Exact posterior of the exam-scores problem; made by :func:`exam_scores_posterior`.

    Attributes
    ----------
    labels : ndarray of shape (n_groups,)
        Group labels in order of first appearance, which is the order of all arrays by group below.
    codes : ndarray of shape (n_rows,)
        Position in `labels` of each row's group.
    mu, mu_sd : ndarray of shape (n_groups,)
        Posterior mean and standard deviation of mu.
    scale : ndarray of shape (n_groups,)
        Posterior mean of the scale, sigma² + 1.
    abs_sigma : ndarray of shape (n_groups,)
        Posterior mean of the absolute value of sigma. The mean of sigma itself is 0, because
        only its square enters.
    v : ndarray of shape (n_rows,)
        Posterior mean of v.
    log_likelihood : ndarray of shape (n_groups,)
        Exact log p(x_i) of each group, in nats.
    """

    labels: NDArray
    codes: NDArray[np.intp]
    mu: NDArray[np.float64]
    mu_sd: NDArray[np.float64]
    scale: NDArray[np.float64]
    abs_sigma: NDArray[np.float64]
    v: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]
    _x: NDArray[np.float64]
    _noise: float
    _nodes: NDArray[np.float64]
    _weights: NDArray[np.float64]
    _mu_given_sigma: tuple[NDArray[np.float64], NDArray[np.float64]]

    @property
    def log_likelihood_per_row(self) -> float:
        """Exact log-likelihood per row, in nats."""
        return float(self.log_likelihood.sum() / self.codes.shape[0])

    def translate(self, target: ArrayLike) -> NDArray[np.float64]:
        """Posterior mean of each row's noise-free score in another group, 2 mu_j + (sigma_j² + 1) v_ik.

        Parameters
        ----------
        target : array-like of shape (n_rows,)
            Position in `labels` of each row's target group. It must differ from the row's own group, whose
            mu, sigma and v are not independent given the data.

        Returns
        -------
        translated : ndarray of shape (n_rows,)
            Scores in points.
        """
        target = np.asarray(target)
        if np.any(target == self.codes):
            raise ValueError("target must differ from each row's own group; choose another group for it")
        return 2.0 * self.mu[target] + self.scale[target] * self.v

    def reconstruct(self) -> NDArray[np.float64]:
        """Posterior mean of each row's noise-free score in its own group, 2 mu_i + (sigma_i² + 1) v_ik.

        Returns
        -------
        reconstructed : ndarray of shape (n_rows,)
            Scores in points.
        """
        # Given sigma, it lies between the row and the location of the group.
        squared = (self._nodes**2 + 1.0) ** 2
        trust = squared / (squared + self._noise**2)
        of_row = (self._weights * trust).sum(axis=1)
        of_group = (self._weights * (1.0 - trust) * 2.0 * self._mu_given_sigma[0]).sum(axis=1)
        return of_row[self.codes] * self._x + of_group[self.codes]

    def sample(
        self, random_state: int | np.random.RandomState | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draw one u per group and one v per row from the exact posterior.

        Parameters
        ----------
        random_state : int, RandomState instance or None, default=None
            Pass an int for the same draw at every call.

        Returns
        -------
        u : ndarray of shape (n_groups, 2)
            mu and sigma; the sign of sigma is positive or negative with equal probability.
        v : ndarray of shape (n_rows,)
            Instance codes given the drawn u of their group.
        """
        rng = check_random_state(random_state)
        n_groups = self.labels.shape[0]
        cumulative = np.cumsum(self._weights, axis=1)
        draws = rng.uniform(size=(n_groups, 1)) * cumulative[:, -1:]
        chosen = np.minimum((cumulative < draws).sum(axis=1), self._nodes.shape[1] - 1)
        at = (np.arange(n_groups), chosen)
        mean, variance = (part[at] for part in self._mu_given_sigma)
        mu = mean + np.sqrt(variance) * rng.standard_normal(n_groups)
        sigma = self._nodes[at] * rng.choice([-1.0, 1.0], size=n_groups)
        scale = (sigma**2 + 1.0)[self.codes]
        total = scale**2 + self._noise**2
        v_mean = scale / total * (self._x - 2.0 * mu[self.codes])
        v_sd = self._noise / np.sqrt(total)
        return np.column_stack([mu, sigma]), v_mean + v_sd * rng.standard_normal(v_mean.shape[0])


def exam_scores_posterior(X: ArrayLike, groups: ArrayLike, *, noise: float = 1.0) -> ExamScoresPosterior:
    """Exact posterior of the codes of the exam-scores problem, by quadrature.

    Given sigma, everything is normal: v and then mu are integrated out in closed form. What remains is one
    integral over the absolute value of sigma for each group, computed by Gauss-Legendre quadrature on the
    interval that contains the posterior mass.

    Parameters
    ----------
    X : array-like of shape (n_rows, 1) or (n_rows,)
        Scores in points.
    groups : array-like of shape (n_rows,)
        Group label of each row.
    noise : float, default=1.0
        Standard deviation of the noise **in the model**, in points. With a value other than that of the
        data, the result is the exact posterior of the misspecified model.

    Returns
    -------
    posterior : ExamScoresPosterior
        Exact posterior means, log-likelihood, translation and posterior draws.

    Raises
    ------
    ValueError
        If X has more than one column, or X and groups differ in length.

    Examples
    --------
    >>> from skgroupvae.datasets import exam_scores_posterior, make_exam_scores
    >>> data = make_exam_scores(500, random_state=0)
    >>> exact = exam_scores_posterior(data.X, data.groups)
    >>> float(abs(exact.mu - data.mu).mean()) < 0.25
    True
    """
    x = np.asarray(X, dtype=np.float64)
    if x.ndim == 2 and x.shape[1] == 1:
        x = x[:, 0]
    if x.ndim != 1:
        raise ValueError(f"X must have one column of scores, got shape {x.shape}; pass one column")
    codes, labels = pd.factorize(np.asarray(groups))
    if codes.shape != x.shape:
        raise ValueError(f"groups has {codes.shape[0]} labels for {x.shape[0]} rows of X; pass one per row")

    size = np.bincount(codes)
    mean = np.bincount(codes, x) / size
    squares = np.bincount(codes, (x - mean[codes]) ** 2)
    nodes, log_widths = _quadrature(size, mean, squares, noise)
    log_joint = _log_joint(nodes, size, mean, squares, noise) + log_widths
    peak = log_joint.max(axis=1, keepdims=True)
    weights = np.exp(log_joint - peak)
    normalizer = weights.sum(axis=1, keepdims=True)
    weights /= normalizer

    scale = nodes**2 + 1.0
    total = scale**2 + noise**2
    mean_variance = total / size[:, None]
    mu_mean = 2.0 * mean[:, None] / (4.0 + mean_variance)
    mu_variance = mean_variance / (4.0 + mean_variance)

    def expected(value: NDArray[np.float64]) -> NDArray[np.float64]:
        return (weights * value).sum(axis=1)

    mu = expected(mu_mean)
    gain = scale / total
    return ExamScoresPosterior(
        labels=np.asarray(labels),
        codes=codes,
        mu=mu,
        mu_sd=np.sqrt(expected(mu_variance + (mu_mean - mu[:, None]) ** 2)),
        scale=expected(scale),
        abs_sigma=expected(nodes),
        # E[v | x] = E[gain] x - 2 E[gain mu], both expectations over the group's sigma.
        v=expected(gain)[codes] * x - 2.0 * expected(gain * mu_mean)[codes],
        log_likelihood=np.log(normalizer[:, 0]) + peak[:, 0],
        _x=x,
        _noise=noise,
        _nodes=nodes,
        _weights=weights,
        _mu_given_sigma=(mu_mean, mu_variance),
    )


def _log_joint(
    abs_sigma: NDArray, size: NDArray, mean: NDArray, squares: NDArray, noise: float
) -> NDArray[np.float64]:
    """log p(x_i, |sigma|) with v and mu integrated out, shape (n_groups, n_nodes)."""
    total = (abs_sigma**2 + 1.0) ** 2 + noise**2
    size, mean, squares = size[:, None], mean[:, None], squares[:, None]
    within = -0.5 * (size - 1) * np.log(2 * np.pi * total) - 0.5 * np.log(size) - 0.5 * squares / total
    between = 4.0 + total / size
    location = -0.5 * (np.log(2 * np.pi * between) + mean**2 / between)
    prior = np.log(2.0) - 0.5 * (np.log(2 * np.pi) + abs_sigma**2)
    return within + location + prior


def _quadrature(
    size: NDArray, mean: NDArray, squares: NDArray, noise: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and log weights over |sigma| for each group, on the interval that contains its posterior mass."""
    low = np.zeros(size.shape[0])
    high = np.full(size.shape[0], _MAX_ABS_SIGMA)
    unit = np.linspace(0.0, 1.0, _N_COARSE)
    # Each zoom narrows the interval to the nodes that matter, so that large groups also get a fine grid.
    for _ in range(_N_ZOOMS):
        nodes = low[:, None] + (high - low)[:, None] * unit
        log_joint = _log_joint(nodes, size, mean, squares, noise)
        matters = log_joint > log_joint.max(axis=1, keepdims=True) - _LOG_NEGLIGIBLE
        first = np.maximum(matters.argmax(axis=1) - 1, 0)
        last = np.minimum(_N_COARSE - matters[:, ::-1].argmax(axis=1), _N_COARSE - 1)
        rows = np.arange(size.shape[0])
        low, high = nodes[rows, first], nodes[rows, last]
    points, widths = np.polynomial.legendre.leggauss(_N_NODES)
    half = 0.5 * (high - low)[:, None]
    return low[:, None] + half * (points + 1.0), np.log(half * widths)
