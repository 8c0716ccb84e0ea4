"""Average marginal effects of a fitted regression."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgroupvae.design import Design
from skgroupvae.regression.encoder import FullNormal
from skgroupvae.regression.network import RegressionNetwork
from skgroupvae.regression.prediction import draws_of
from skgroupvae.regression.tables import estimate_table

__all__ = ["marginal_effects"]

# Rows, draws of u, and a step in standard deviations.
_MAX_ROWS, _N_DRAWS, _STEP = 2_000, 16, 0.1


@torch.no_grad()
def marginal_effects(
    network: RegressionNetwork,
    design: Design,
    rows: Tensor,
    codes: NDArray[np.intp],
    q_u: FullNormal,
    scale: float,
    std_error: NDArray[np.float64],
) -> pd.DataFrame:
    """Average change of the expected outcome with each column of the design, in units.

    Parameters
    ----------
    network : RegressionNetwork
        Fitted.
    design : Design
        What made the columns.
    rows : Tensor of shape (N, 2 + P)
        Rows of the network.
    codes : ndarray of shape (N,)
        Position of each row's group in `q_u`.
    q_u : FullNormal
        Posterior of the groups' codes.
    scale : float
        Units of the outcome in one of the network's.
    std_error : ndarray of shape (P - 1,)
        Of the coefficients on the scale of the predictor.

    Returns
    -------
    table : DataFrame
    """
    # At random: a table may have a rhythm.
    some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:_MAX_ROWS].sort().values
    weights, columns = rows[some, 1], rows[some, 2:]
    u = draws_of(q_u, _N_DRAWS)[:, torch.from_numpy(codes)[some].to(rows.device)]
    decoder = network.decoder

    def average(low: Tensor, high: Tensor) -> float:
        change = (decoder.family.mean(high) - decoder.family.mean(low)).mean(0)
        return float((weights * change).sum() / weights.sum()) * scale

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
    return estimate_table(np.array(estimates), std_error * abs(slope), design.names[1:])
