"""The variance parameters as one vector: what is free of the loadings and of the residual's factor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["ParameterShape"]


@dataclass(frozen=True)
class ParameterShape:
    """What the variance parameters (T,) are of.

    First the free entries by rows of the loadings relative to the residual, (D * Q, R), then those of the
    residual's lower Cholesky factor, (D, D), with the logarithms of its diagonal.

    Attributes
    ----------
    n_outcomes, n_random, rank : int
        D, Q and R.
    diagonal : bool
        Whether the residual is.
    triangular : bool
        Whether the loadings are; otherwise all their entries are free.
    """

    n_outcomes: int
    n_random: int
    rank: int
    diagonal: bool
    triangular: bool = True

    @cached_property
    def loading_entries(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the free entries of the loadings, by rows."""
        offset = 0 if self.triangular else self.rank
        rows, cols = torch.tril_indices(self.n_outcomes * self.n_random, self.rank, offset)
        return rows, cols

    @cached_property
    def residual_entries(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the free entries of the residual's factor, by rows."""
        if self.diagonal:
            return torch.arange(self.n_outcomes), torch.arange(self.n_outcomes)
        rows, cols = torch.tril_indices(self.n_outcomes, self.n_outcomes)
        return rows, cols

    @cached_property
    def on_diagonal(self) -> Tensor:
        """Of `residual_entries`: those that parameters tell by their logarithms."""
        rows, cols = self.residual_entries
        return rows == cols

    @property
    def n_loadings(self) -> int:
        """How many of the parameters, the first, are of the loadings."""
        return len(self.loading_entries[0])

    def unpack(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Loadings relative to the residual (D Q, R), and the residual's factor (D, D)."""
        ratio = parameters.new_zeros(self.n_outcomes * self.n_random, self.rank)
        ratio = ratio.index_put(self.loading_entries, parameters[: self.n_loadings])
        rest = parameters[self.n_loadings :]
        factor = parameters.new_zeros(self.n_outcomes, self.n_outcomes)
        entries = torch.where(self.on_diagonal, rest.exp(), rest)
        return ratio, factor.index_put(self.residual_entries, entries)

    def pack(self, ratio: Tensor, factor: Tensor) -> Tensor:
        """The inverse of `unpack`."""
        rest = factor[self.residual_entries]
        logs = torch.where(self.on_diagonal, rest, torch.ones_like(rest)).log()
        return torch.cat([ratio[self.loading_entries], torch.where(self.on_diagonal, logs, rest)])

    def absolute(self, ratio: Tensor, factor: Tensor) -> Tensor:
        """``kron(factor, eye(Q)) @ ratio``: loadings of loadings relative to the residual."""
        return (factor @ ratio.reshape(self.n_outcomes, -1)).reshape(ratio.shape)
