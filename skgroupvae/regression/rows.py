"""The encoders and critics of GroupVAE on the rows of a regression: they see outcome and covariates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skgroupvae.building import GROUP_ENCODERS, REGULARIZERS, resolve_part
from skgroupvae.encoders import GroupEncoder
from skgroupvae.groups import Segments
from skgroupvae.regression.decoder import RegressionDecoder
from skgroupvae.regression.encoder import FullNormal
from skgroupvae.regularizers import Regularizer

__all__ = ["OutcomeRows", "RowsEncoder", "RowsRegularizer", "build_rows_encoder", "build_rows_regularizer"]


class OutcomeRows(nn.Module):
    """Rows as those parts take them: the outcome, standardised, and the covariates (N, P).

    P is that of the design: the outcome takes the place of the constant, and the weights are left out.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(1))
        self.register_buffer("scale", torch.ones(1))

    @torch.no_grad()
    def start(self, rows: Tensor) -> None:
        """Learn the moments of the outcome: counts and grades come as they are."""
        y, share = rows[:, 0].double(), (rows[:, 1] / rows[:, 1].sum()).double()
        centre = share @ y
        scale = (share @ (y - centre).square()).sqrt()
        self.centre.copy_(centre)
        self.scale.copy_(scale if scale > 0 else torch.ones_like(scale))

    def forward(self, rows: Tensor) -> Tensor:
        return torch.cat([((rows[:, 0] - self.centre) / self.scale)[:, None], rows[:, 3:]], dim=-1)


class RowsEncoder(nn.Module):
    """q(u given the rows of a group) by an encoder of GroupVAE, which does not know the decoder.

    A row of weight 2 is evidence twice.
    """

    def __init__(self, encoder: GroupEncoder) -> None:
        super().__init__()
        self.rows = OutcomeRows()
        self.encoder = encoder

    def freeze_evidence(self, decoder: RegressionDecoder) -> None:
        """Keep the evidence of rows as it is in further training."""
        self.encoder.freeze_evidence()

    def release_evidence(self) -> None:
        """Undo :meth:`freeze_evidence`."""
        self.encoder.requires_grad_(True)

    def evidence(self, rows: Tensor, decoder: RegressionDecoder) -> Tensor:
        """Evidence of each row: (N, 2 + P) -> (N, 1 + E)."""
        weights = rows[:, 1:2]
        return weights * torch.cat([torch.ones_like(weights), self.encoder.evidence(self.rows(rows))], dim=-1)

    def posterior(self, evidence: Tensor) -> FullNormal:
        """q(u) of each group from its summed evidence (G, 1 + E), the codes independent."""
        q_u = self.encoder.posterior(evidence[:, 1:], evidence[:, 0])
        return FullNormal(q_u.loc, torch.diag_embed(q_u.scale), q_u.scale.log().sum(-1))


class RowsRegularizer(nn.Module):
    """A regulariser of GroupVAE, whose critic sees outcome and covariates; it counts rows, not weights."""

    def __init__(self, regularizer: Regularizer) -> None:
        super().__init__()
        self.rows = OutcomeRows()
        self.regularizer = regularizer

    def forward(self, x: Tensor, v: Tensor, segments: Segments, generator: torch.Generator) -> Tensor:
        """The bound, in nats: x (N, 2 + P), v (N, 1) -> scalar."""
        return self.regularizer(self.rows(x), v, segments, generator)


def build_rows_encoder(
    choice: Any, n_columns: int, n_group_codes: int, hidden: Sequence[int], generator: torch.Generator
) -> RowsEncoder:
    """From a name, a factory with the signature of GROUP_ENCODERS, or a Module, which is copied."""
    encoder = resolve_part(
        choice,
        GROUP_ENCODERS,
        n_features=n_columns,
        n_group_codes=n_group_codes,
        hidden=hidden,
        generator=generator,
    )
    return RowsEncoder(encoder)


def build_rows_regularizer(
    choice: Any, n_columns: int, hidden: Sequence[int], generator: torch.Generator
) -> RowsRegularizer:
    """From a name, a factory with the signature of REGULARIZERS, or a Module, which is copied."""
    regularizer = resolve_part(
        choice, REGULARIZERS, n_features=n_columns, n_instance_codes=1, hidden=hidden, generator=generator
    )
    return RowsRegularizer(regularizer)
