"""The curves that groups share, from products of scores, against the truth they were simulated from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg

from skgroupvae.batch import Segments
from skgroupvae.mixed_model.curves import leading_curves


def scores_of(effect, n_groups=800, size=20, seed=0):
    """Features of rows, and what their residuals (by `effect`) tell of location and log scale."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), size)
    x = rng.uniform(-1.0, 1.0, len(groups))
    features = np.column_stack([np.ones_like(x), x, x**2, np.sin(3.0 * x)])
    residual = effect(x, rng.standard_normal(n_groups)[groups], rng.standard_normal(len(groups)))
    score = np.column_stack([residual, residual**2 - 1.0])
    information = np.tile(np.diag([1.0, 2.0]), (len(groups), 1, 1))
    tensors = [torch.from_numpy(part) for part in (features, score, information)]
    return tensors, Segments.of_sizes(torch.full((n_groups,), size)), x


def curves(tensors, groups, n_curves=1):
    return leading_curves(*tensors, groups, n_curves, torch.Generator().manual_seed(0)).numpy()


def test_a_curve_of_the_mean_is_found():
    tensors, groups, x = scores_of(lambda x, u, v: 0.5 * u * np.sin(3.0 * x) + v)
    found = curves(tensors, groups)[0]
    curve = tensors[0].numpy() @ found[0]
    truth = 0.5 * np.sin(3.0 * x)
    # 800 groups tell the sd of u to 2.5 %, and less of the shape; 15 % of the curve is six times that.
    error = min(np.abs(curve - truth).mean(), np.abs(curve + truth).mean())
    assert error < 0.15 * np.abs(truth).mean()
    assert np.abs(found[1]).max() < 0.1


def test_spread_that_varies_by_group_is_found():
    # The score of the log scale is linear in it only near zero: an sd of 0.3 comes out some 10 % high.
    tensors, groups, _ = scores_of(lambda x, u, v: np.exp(0.3 * u) * v)
    found = curves(tensors, groups)[0]
    assert abs(found[1, 0]) == pytest.approx(0.3, rel=0.35)
    assert np.abs(found[0]).max() < 0.1


def test_nothing_is_found_where_groups_do_not_differ():
    tensors, groups, _ = scores_of(lambda x, u, v: v)
    found = torch.from_numpy(curves(tensors, groups, 2))
    effect = torch.einsum("nh,ckh->cnk", tensors[0], found)
    # The least that a code starts with: 0.1 standard deviations of the noise.
    information = (torch.tensor([1.0, 2.0]) * effect.square()).sum(-1).mean(-1)
    np.testing.assert_allclose(information.sqrt(), 0.1, rtol=0.2)


def test_curves_come_in_falling_order():
    tensors, groups, _ = scores_of(lambda x, u, v: 0.4 * u * x + np.exp(0.2 * u[::-1]) * v)
    found = torch.from_numpy(curves(tensors, groups, 3))
    effect = torch.einsum("nh,ckh->cnk", tensors[0], found)
    information = (torch.tensor([1.0, 2.0]) * effect.square()).sum(-1).mean(-1).numpy()
    assert (np.diff(information) < 1e-3).all()


def test_one_code_may_move_two_correlated_outcomes():
    """Two normal outcomes with a residual correlation: one code moves a constant and a slope."""
    rng = np.random.default_rng(0)
    n_groups, size = 800, 20
    groups = Segments.of_sizes(torch.full((n_groups,), size))
    x, u = rng.uniform(-1.0, 1.0, n_groups * size), np.repeat(rng.standard_normal(n_groups), size)
    sigma = np.array([[1.0, 0.7], [0.7, 1.0]])
    residual = rng.multivariate_normal([0.0, 0.0], sigma, len(x))
    residual = residual + np.column_stack([0.3 * u, -0.6 * u * x])
    score = torch.from_numpy(residual @ np.linalg.inv(sigma))
    information = torch.from_numpy(np.tile(np.linalg.inv(sigma), (len(x), 1, 1)))
    features = torch.from_numpy(np.column_stack([np.ones_like(x), x]))
    found = curves([features, score, information], groups)[0]
    truth = np.array([[0.3, 0.0], [0.0, -0.6]])
    # 800 groups tell each entry to some 0.03, and the sign of a code means nothing.
    np.testing.assert_allclose(found * np.sign(found[0, 0]), truth, atol=0.08)


def test_curves_are_the_leading_directions_of_products_of_pairs():
    """Every pair of rows of a group written out, for the generalized eigenproblem of scipy."""
    tensors, groups, _ = scores_of(
        lambda x, u, v: 0.6 * u * x + np.exp(0.3 * u[::-1]) * v, n_groups=100, size=8
    )
    features, score, information = (part.numpy() for part in tensors)
    # Two that stand out from chance, and one that does not.
    n_curves, seed = 3, 0
    by_row = (score[:, :, None] * features[:, None]).reshape(len(score), -1)

    def mean_of_pairs(codes):
        total, n_pairs = 0.0, 0
        for one in range(len(codes)):
            others = (codes == codes[one]) & (np.arange(len(codes)) != one)
            total = total + np.outer(by_row[one], by_row[others].sum(0))
            n_pairs += others.sum()
        return 0.5 * (total + total.T) / n_pairs

    # A little is added to the diagonal of the information, parameter by parameter.
    mean = np.einsum("nkj,nh,ni->khji", information, features, features) / len(features)
    mean = mean.reshape(by_row.shape[1], -1)
    level = np.diag(mean).reshape(2, -1).mean(1)
    mean += 1e-3 * np.diag(np.repeat(level, features.shape[1]))
    codes = groups.codes.numpy()
    values, vectors = linalg.eigh(mean_of_pairs(codes), mean)
    shuffled = codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))]
    by_chance = linalg.eigh(mean_of_pairs(shuffled), mean, eigvals_only=True)[-1]
    sds = np.sqrt((values[::-1][:n_curves] - by_chance).clip(min=0.01))
    assert (sds > 0.11).tolist() == [True, True, False]
    for found, sd, vector in zip(curves(tensors, groups, n_curves), sds, vectors.T[::-1], strict=False):
        expected = sd * vector.reshape(2, -1)
        # An eigenvector has any sign.
        np.testing.assert_allclose(found * np.sign((found * expected).sum()), expected, atol=1e-8)
