"""Where learned group curves start: the directions in which groups differ more than the mixed model says.

A group code that enters nowhere gets no gradient, and a code that enters by chance takes thousands of steps
to find its curve. The products of the scores of two rows of one group say at once which curves the groups
share: their expectation is the covariance of the missing effects.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skgroupvae.groups import Segments

__all__ = ["leading_curves"]

_RIDGE = 1e-3
# Standard deviation, in units of the noise, of a curve that stands out no more than chance would make it.
_MIN_SD = 0.1


def leading_curves(
    features: Tensor,
    score: Tensor,
    information: Tensor,
    segments: Segments,
    n_curves: int,
    generator: torch.Generator,
) -> Tensor:
    """Coefficients of the features in the curves that vary most between groups.

    Parameters
    ----------
    features : Tensor of shape (N, H)
        Values that a curve is a sum of.
    score, information : Tensor of shape (N, W)
        What each row tells about W parameters of its outcome, given what is known of its group already.
    segments : Segments
        The group of each row.
    n_curves : int
        How many.
    generator : torch.Generator
        Source of the permutation that says what chance would make.

    Returns
    -------
    coefficients : Tensor of shape (n_curves, W, H)
        Times the features: what one standard deviation of the group code adds to each parameter.
    """
    n_rows, n_features = features.shape
    root = _information_roots(features, information)
    scores = torch.einsum("nw,nh,whk->nwk", score, features, root).flatten(1)
    values, vectors = _between_groups(scores, segments)
    shuffled = segments.codes[torch.randperm(n_rows, generator=generator)]
    by_chance = _between_groups(scores, Segments(shuffled, segments.sizes))[0][-1]
    values, vectors = values.flip(0)[:n_curves], vectors.flip(1)[:, :n_curves]
    sds = (values - by_chance).clamp(min=0.0).sqrt().clamp(min=_MIN_SD)
    whitened = (vectors * sds).mT.unflatten(1, (-1, n_features))
    return torch.einsum("whk,cwk->cwh", root, whitened)


def _information_roots(features: Tensor, information: Tensor) -> Tensor:
    """Inverse root (W, H, H) of the mean information of a row about each parameter's coefficients."""
    mean = torch.einsum("nw,nh,nk->whk", information, features, features) / len(features)
    level = mean.diagonal(dim1=-2, dim2=-1).mean(-1)
    identity = torch.eye(features.shape[1], dtype=features.dtype)
    values, vectors = torch.linalg.eigh(mean + _RIDGE * level[:, None, None] * identity)
    return vectors * values.rsqrt()[:, None] @ vectors.mT


def _between_groups(scores: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising, and eigenvectors of the mean product of the scores of two rows of a group."""
    sums = segments.sum(scores)
    n_pairs = (segments.sizes * (segments.sizes - 1)).sum().clamp(min=1)
    return torch.linalg.eigh((sums.mT @ sums - scores.mT @ scores) / n_pairs)
