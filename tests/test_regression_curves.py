"""The curves that groups share, from products of scores, against the truth they were simulated from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skgroupvae.groups import GroupIndex
from skgroupvae.regression.curves import leading_curves


def scores_of(effect, n_groups=800, size=20, seed=0):
    """Features of rows, and what their residuals (by `effect`) tell about location and log scale."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), size)
    x = rng.uniform(-1.0, 1.0, len(groups))
    features = np.column_stack([np.ones_like(x), x, x**2, np.sin(3.0 * x)])
    residual = effect(x, rng.standard_normal(n_groups)[groups], rng.standard_normal(len(groups)))
    score = np.column_stack([residual, residual**2 - 1.0])
    information = np.tile([1.0, 2.0], (len(groups), 1))
    segments = GroupIndex.from_labels(groups).rows_of(np.arange(n_groups))[1]
    tensors = [torch.from_numpy(part) for part in (features, score, information)]
    return tensors, segments, x


def curves(tensors, segments, n_curves=1):
    return leading_curves(*tensors, segments, n_curves, torch.Generator().manual_seed(0)).numpy()


def test_a_curve_of_the_mean_is_found():
    (features, *rest), segments, x = scores_of(lambda x, u, v: 0.5 * u * np.sin(3.0 * x) + v)
    found = curves([features, *rest], segments)[0]
    curve = features.numpy() @ found[0]
    truth = 0.5 * np.sin(3.0 * x)
    # 800 groups tell the sd of u to 2.5 %, and less of the shape; 15 % of the curve is six times that.
    error = min(np.abs(curve - truth).mean(), np.abs(curve + truth).mean())
    assert error < 0.15 * np.abs(truth).mean()
    assert np.abs(found[1]).max() < 0.1


def test_spread_that_varies_by_group_is_found():
    # The score of the log scale is linear in it only near zero: an sd of 0.3 comes out some 10 % high.
    tensors, segments, _ = scores_of(lambda x, u, v: np.exp(0.3 * u) * v)
    found = curves(tensors, segments)[0]
    assert abs(found[1, 0]) == pytest.approx(0.3, rel=0.35)
    assert np.abs(found[0]).max() < 0.1


def test_nothing_is_found_where_groups_do_not_differ():
    tensors, segments, _ = scores_of(lambda x, u, v: v)
    found = torch.from_numpy(curves(tensors, segments, 2))
    effect = torch.einsum("nh,cwh->cnw", tensors[0], found)
    # The least that a code starts with: 0.1 standard deviations of the noise.
    information = (tensors[1].new_tensor([1.0, 2.0]) * effect.square()).sum(-1).mean(-1)
    np.testing.assert_allclose(information.sqrt(), 0.1, rtol=0.2)


def test_curves_come_in_falling_order():
    tensors, segments, _ = scores_of(lambda x, u, v: 0.4 * u * x + np.exp(0.2 * u[::-1]) * v)
    found = torch.from_numpy(curves(tensors, segments, 3))
    effect = torch.einsum("nh,cwh->cnw", tensors[0], found)
    information = (tensors[2] * effect.square()).sum(-1).mean(-1).numpy()
    assert (np.diff(information) < 1e-3).all()
