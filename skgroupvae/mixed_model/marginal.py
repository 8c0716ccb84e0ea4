"""Average marginal effects of a fitted regression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from skgroupvae.batch import Batch
from skgroupvae.data.design import Design
from skgroupvae.mixed_model.tables import estimate_table, table_index
from skgroupvae.model.likelihood import Likelihood
from skgroupvae.model.model import ScoreModel
from skgroupvae.model.posteriors import DiagonalNormal, FullNormal
from skgroupvae.model.prediction import draws_of

__all__ = ["marginal_effects"]

# Rows, draws of u, and a step in standard deviations.
_MAX_ROWS, _N_DRAWS, _STEP = 2_000, 16, 0.1


@torch.no_grad()
def marginal_effects(
    model: ScoreModel,
    design: Design,
    batch: Batch,
    q_u: DiagonalNormal | FullNormal,
    outcomes: Sequence[str],
    scale: ArrayLike,
    std_error: NDArray[np.float64],
) -> pd.DataFrame:
    """Average change of the expected outcome with each column of the design, in units.

    Parameters
    ----------
    model : ScoreModel
        Fitted.
    design : Design
        What made the columns.
    batch : Batch
        Rows of the fit with their groups.
    q_u : DiagonalNormal or FullNormal over (G, U)
        Posterior of the groups' codes.
    outcomes : sequence of str
        Names of the D outcomes.
    scale : array-like of shape (D,)
        Units of each outcome in one of the model's.
    std_error : ndarray of shape (P - 1, D)
        Of the coefficients on the scale of the linear predictors.

    Returns
    -------
    table : DataFrame
        With several outcomes they are the outer level of its index.
    """
    scale = np.asarray(scale, dtype=np.float64)
    # At random: a table may have a rhythm.
    some = torch.randperm(batch.n_rows, generator=torch.Generator().manual_seed(0))[:_MAX_ROWS].sort().values
    some = some.to(batch.design.device)
    columns = batch.design[some]
    share = batch.weights[some] / batch.weights[some].sum()
    u = draws_of(q_u, _N_DRAWS).index_select(1, batch.groups.codes[some])
    decoder = model.decoder

    def average(low: Tensor, high: Tensor) -> NDArray[np.float64]:
        change = (_means(decoder.likelihood, high) - _means(decoder.likelihood, low)).mean(0)
        return (share @ change).double().cpu().numpy() * scale

    estimates = []
    for column in range(1, columns.shape[1]):
        low, high = columns.clone(), columns.clone()
        (low[:, column], high[:, column]), width = design.contrast(column, columns[:, column], _STEP)
        estimates.append(average(decoder(low, u), decoder(high, u)) / width)
    # By the delta method: the slope of the expected outcome in the predictor.
    eta = decoder(columns, u)
    step = torch.zeros_like(eta)
    step[..., 0] = _STEP
    slope = average(eta - step, eta + step) / (2.0 * _STEP * scale)
    index = table_index(outcomes, [design.names[1:]] * len(outcomes))
    estimate = np.array(estimates).reshape(-1, len(scale))
    return estimate_table(estimate.T.ravel(), (std_error * np.abs(slope)).T.ravel(), index)


def _means(likelihood: Likelihood, eta: Tensor) -> Tensor:
    """Expected outcomes: (S, N, D, W) -> (S, N, D)."""
    families = [likelihood.family_of(column) for column in range(likelihood.n_columns)]
    means = [
        family.mean(at[..., : family.n_parameters])
        for family, at in zip(families, eta.unbind(-2), strict=True)
    ]
    return torch.stack(means, dim=-1)
