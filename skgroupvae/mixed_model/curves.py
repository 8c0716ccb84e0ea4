"""Where learned group curves start: the directions in which groups differ more than the mixed model says.

A group code that enters nowhere gets no gradient, and a code that enters by chance takes thousands of steps
to find its curve. The products of the scores of two rows of one group say at once which curves the groups
share: their expectation is the covariance of the missing effects.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skgroupvae.batch import Segments

__all__ = ["leading_curves"]

_RIDGE = 1e-3
# Standard deviation, in units of the noise, of a curve that stands out no more than chance would make it.
_MIN_SD = 0.1
_TINY = 1e-300


def leading_curves(
    features: Tensor,
    score: Tensor,
    information: Tensor,
    groups: Segments,
    n_curves: int,
    generator: torch.Generator,
) -> Tensor:
    """Coefficients of the features in the curves that vary most between groups.

    Parameters
    ----------
    features : Tensor of shape (N, H)
        Values that a curve is a sum of.
    score : Tensor of shape (N, K)
        Slope of each row's log-likelihood in K parameters of its outcomes (all outcomes, `n_working` each),
        at what is known of its group already.
    information : Tensor of shape (N, K, K)
        Its negative curvature.
    groups : Segments
        The group of each row.
    n_curves : int
        How many.
    generator : torch.Generator
        Source of the permutation that says what chance would make.

    Returns
    -------
    coefficients : Tensor of shape (n_curves, K, H)
        Times the features: what one standard deviation of the group code adds to each parameter.
    """
    n_rows, n_features = features.shape
    root = _information_root(features, information)
    scores = (score[:, :, None] * features[:, None]).flatten(1) @ root
    values, vectors = _between_groups(scores, groups)
    shuffled = groups.codes[torch.randperm(n_rows, generator=generator).to(groups.codes.device)]
    by_chance = _between_groups(scores, Segments(shuffled, groups.sizes))[0][-1]
    values, vectors = values.flip(0)[:n_curves], vectors.flip(1)[:, :n_curves]
    sds = (values - by_chance).clamp(min=0.0).sqrt().clamp(min=_MIN_SD)
    return (root @ (vectors * sds)).mT.unflatten(1, (-1, n_features))


def _information_root(features: Tensor, information: Tensor) -> Tensor:
    """Inverse root (K H, K H) of the mean information of a row about all coefficients."""
    (n_rows, n_features), n_parameters = features.shape, information.shape[-1]
    mean = features.new_zeros(n_parameters, n_features, n_parameters, n_features)
    # A pair at a time, so that memory does not grow with K².
    for k, j in torch.tril_indices(n_parameters, n_parameters).mT.tolist():
        block = features.mT @ (information[:, k, j, None] * features) / n_rows
        mean[k, :, j] = mean[j, :, k] = block
    mean = mean.flatten(0, 1).flatten(1)
    level = mean.diagonal().unflatten(0, (-1, n_features)).mean(-1).clamp(min=_TINY)
    values, vectors = torch.linalg.eigh(mean + _RIDGE * level.repeat_interleave(n_features).diag())
    return vectors * values.rsqrt() @ vectors.mT


def _between_groups(scores: Tensor, groups: Segments) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising, and eigenvectors of the mean product of the scores of two rows of a group."""
    sums = groups.sum(scores)
    n_pairs = (groups.sizes * (groups.sizes - 1)).sum().clamp(min=1)
    return torch.linalg.eigh((sums.mT @ sums - scores.mT @ scores) / n_pairs)
