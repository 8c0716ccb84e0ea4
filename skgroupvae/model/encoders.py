"""Group encoders q(u given the rows of a group).

A group encoder turns each row into statistics, adds them up over the group, and reads the posterior from the
sums. So the rows of a group may come in any order and in any number, and new rows update a code without the
old ones. A new encoder is one subclass and one line in a registry (``spec.py``).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from skgroupvae.batch import Batch
from skgroupvae.model.decoders import Decoder, precision_matrix
from skgroupvae.model.nn import linear, mlp
from skgroupvae.model.posteriors import DiagonalNormal, FullNormal, newton

__all__ = [
    "MAX_SCORE",
    "AverageEncoder",
    "DeepSetsEncoder",
    "GroupEncoder",
    "NewtonEncoder",
    "ProductEncoder",
    "ProductWithPriorEncoder",
    "RowEncoder",
]

# Of an outcome's normal score, as a network sees it.
MAX_SCORE = 6.0
_MAX_CORRECTION = 3.0
# What a row's distance from the mean has to add to the precision of a code for means to tell it.
_LEAST_INFORMATION = 1e-6
# What a row adds at the start to the precision of a code that means do not tell: too much of it and the
# decoder sees codes that are as good as known, and takes them for granted.
_UNTOLD = 0.05


class GroupEncoder(nn.Module, ABC):
    """Base class: q(u given the rows of a group), from statistics that add up over rows."""

    @abstractmethod
    def statistics(self, x: Tensor, batch: Batch, decoder: Decoder) -> Tensor:
        """Statistics (N, E) of each row, from the row as networks see it, x (N, F), or from the batch."""

    @abstractmethod
    def posterior(self, totals: Tensor, sizes: Tensor) -> DiagonalNormal | FullNormal:
        """q(u) from the statistics summed by group (G, E) and the number of rows of each (G,)."""

    @abstractmethod
    def freeze(self, decoder: Decoder) -> None:
        """Keep the statistics of rows as they are in further training: stored sums stay valid."""

    @abstractmethod
    def release(self) -> None:
        """Undo :meth:`freeze`."""

    def start_at(self, loadings: Tensor, within: Tensor, center: Tensor) -> None:
        """Start at a linear mixed model: rows of a group have the mean ``center + loadings @ u``.

        Rows as networks see them have their covariates' effects subtracted.

        An encoder that cannot use it starts where its constructor left it.

        Parameters
        ----------
        loadings : Tensor of shape (D, U)
            Canonical: ``loadings.T @ inverse(within) @ loadings`` is diagonal.
        within : Tensor of shape (D, D)
            Covariance within groups.
        center : Tensor of shape (D,)
        """


class RowEncoder(GroupEncoder):
    """Base class of encoders that read rows as networks see them, and know nothing of the decoder."""

    @abstractmethod
    def row_statistics(self, x: Tensor) -> Tensor:
        """Statistics of each row: (N, F) -> (N, E)."""

    def statistics(self, x: Tensor, batch: Batch, decoder: Decoder) -> Tensor:
        return self.row_statistics(x)

    def freeze(self, decoder: Decoder) -> None:
        self.requires_grad_(False)

    def release(self) -> None:
        self.requires_grad_(True)


class DeepSetsEncoder(RowEncoder):
    """Deep Sets (Zaheer et al. 2017): E_B(mean over rows of E_A(x)), as in section 4 of the CxVAE paper.

    E_A is a network together with x and x² themselves, so that the group's mean, spread and size reach E_B
    as they are: they are most of what a group tells, and a network need not learn to square.

    What E_B gives is a correction to the posterior under a linear mixed model, in units of its standard
    deviation. Precisions add up over rows, and the prior's is one of them: whatever is learned, q(u) is never
    wider than the prior.

    Attributes
    ----------
    gain : Parameter of shape (U, F)
        What a unit of a row's distance from `center` adds to ``precision * mean`` of u.
    log_information : Tensor of shape (U,)
        Logarithm of what a row adds to the precision.
    """

    center: Tensor
    log_information: Tensor
    reference: Tensor

    def __init__(
        self, n_features: int, n_group_codes: int, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.n_features = n_features
        self.row_network = mlp(n_features, hidden, None, generator)
        n_summaries = hidden[-1] + 3 * n_features + 1
        # It runs once a group, not once a row: width is cheap, and helps with unusual groups.
        widths = [4 * width for width in hidden]
        self.group_network = mlp(n_summaries, widths, 2 * n_group_codes, generator, zero_last=True)
        self.gain = nn.Parameter(linear(n_features, n_group_codes, generator, bias=False).weight.detach())
        self.register_buffer("center", torch.zeros(n_features, dtype=torch.float32))
        self.register_buffer("log_information", torch.zeros(n_group_codes, dtype=torch.float32))
        self.register_buffer("reference", torch.zeros(n_group_codes, dtype=torch.float32))

    def row_statistics(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.square(), self.row_network(x)], dim=-1)

    def freeze(self, decoder: Decoder) -> None:
        self.row_network.requires_grad_(False)

    @torch.no_grad()
    def start_at(self, loadings: Tensor, within: Tensor, center: Tensor) -> None:
        gain = loadings.mT @ precision_matrix(within)
        information = (gain * loadings.mT).sum(1)
        # Columns beside the values are covariates.
        self.center[: len(center)] = center
        self.gain.zero_()
        self.gain[:, : len(center)] = gain.to(self.gain)
        self.reference.copy_(information)
        # What means do not tell may still be told by spreads and shapes.
        is_told = information > _LEAST_INFORMATION
        self.log_information.copy_(
            torch.where(is_told, information, torch.full_like(information, _UNTOLD)).log()
        )

    def posterior(self, totals: Tensor, sizes: Tensor) -> DiagonalNormal:
        sizes = sizes[:, None]
        mean, square, learned = (totals / sizes).split(
            [self.n_features, self.n_features, totals.shape[1] - 2 * self.n_features], dim=-1
        )
        # One pseudo-row at the spread of the whole table keeps the log finite for a group of one row.
        variance = ((square - mean.square()).clamp(min=0.0) * sizes + 1.0) / (sizes + 1.0)
        summaries = torch.cat([mean, variance.sqrt(), variance.log(), learned, sizes.log()], dim=-1)
        shift, log_stretch = self.group_network(summaries).chunk(2, dim=-1)
        precision = 1.0 + sizes * self.reference
        loc = sizes / precision * ((mean - self.center) @ self.gain.mT) + shift * precision.rsqrt()
        log_scale = -0.5 * torch.log1p(sizes * (self.log_information + log_stretch).exp())
        return DiagonalNormal.from_log_scale(loc, log_scale)


class AverageEncoder(RowEncoder):
    """Average of the rows' normals (Hosoya 2019): mean of their means and mean of their variances."""

    def __init__(
        self, n_features: int, n_group_codes: int, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.row_network = mlp(n_features, hidden, 2 * n_group_codes, generator)

    def row_statistics(self, x: Tensor) -> Tensor:
        loc, log_scale = self.row_network(x).chunk(2, dim=-1)
        row = DiagonalNormal.from_log_scale(loc, log_scale)
        return torch.cat([row.loc, row.variance], dim=-1)

    def posterior(self, totals: Tensor, sizes: Tensor) -> DiagonalNormal:
        loc, variance = (totals / sizes[:, None]).chunk(2, dim=-1)
        return DiagonalNormal.from_log_scale(loc, 0.5 * variance.log())


class ProductEncoder(RowEncoder):
    """Product of the rows' normals (Bouchacourt et al. 2018): precisions add, means weigh by precision.

    A product of posteriors counts the prior once a row: eq. 1 of the CxVAE paper shows that
    ``p(u) * prod_k q(u | x_k) / p(u)`` is what should be multiplied. The published form leaves p(u) out, as
    though it were flat, and with few rows its codes are then too certain and too far from 0.

    :class:`ProductWithPriorEncoder` puts it back.
    """

    prior_precision = 0.0

    def __init__(
        self, n_features: int, n_group_codes: int, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.row_network = mlp(n_features, hidden, 2 * n_group_codes, generator)

    def row_statistics(self, x: Tensor) -> Tensor:
        loc, raw = self.row_network(x).chunk(2, dim=-1)
        precision = softplus(raw) + 1e-6
        return torch.cat([precision * loc, precision], dim=-1)

    def posterior(self, totals: Tensor, sizes: Tensor) -> DiagonalNormal:
        weighted, precision = totals.chunk(2, dim=-1)
        precision = precision + self.prior_precision
        return DiagonalNormal.from_log_scale(weighted / precision, -0.5 * precision.log())


class ProductWithPriorEncoder(ProductEncoder):
    """Product of normals with the prior of eq. 1 put back.

    Each row's normal stands for its likelihood, q(u | x_k) / p(u), and the standard normal p(u) is multiplied
    in once, so a group without rows has the prior for its posterior.
    """

    prior_precision = 1.0


class NewtonEncoder(GroupEncoder):
    """One step of Newton's method from u = 0 under the decoder, and a learned correction to it.

    For a linear mixed model the step is the exact posterior (the BLUP and its variance). The correction is a
    shift and a stretch in units of that posterior, from sums of learned features of the rows.

    Parameters
    ----------
    n_features : int
        Columns F of rows as networks see them, the values first.
    n_values : int
        Number D of values.
    n_group_codes : int
        Number U of codes.
    hidden : sequence of int
        Widths of the correction's networks; empty for none.

    Attributes
    ----------
    anchor : Decoder or None
        The decoder that the statistics are about, where that is not to follow the one that learns.
    """

    def __init__(
        self,
        n_features: int,
        n_values: int,
        n_group_codes: int,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.n_values, self.n_group_codes = n_values, n_group_codes
        self.anchor: Decoder | None = None
        self.row_network: nn.Module | None = None
        self.group_network: nn.Module | None = None
        if hidden:
            self.row_network = mlp(n_features, hidden, None, generator)
            n_summaries = hidden[-1] + 2 * n_values + 2 * n_group_codes + 1
            self.group_network = mlp(n_summaries, hidden, 2 * n_group_codes, generator, zero_last=True)

    def freeze(self, decoder: Decoder) -> None:
        # An encoder that is frozen already keeps the decoder that it has.
        if self.anchor is None:
            self.anchor = copy.deepcopy(decoder).requires_grad_(False)
        if self.row_network is not None:
            self.row_network.requires_grad_(False)

    def release(self) -> None:
        self.anchor = None
        if self.row_network is not None:
            self.row_network.requires_grad_(True)

    def statistics(self, x: Tensor, batch: Batch, decoder: Decoder) -> Tensor:
        decoder = decoder if self.anchor is None else self.anchor
        # The decoder follows the likelihood; through q it would learn to flatter the encoder.
        with torch.no_grad():
            score, information, slopes, eta = decoder.newton_terms(batch)
            pull = (score[..., None] * slopes).sum(1)
            parts = [pull, (slopes.mT @ (information @ slopes)).flatten(1)]
        if self.row_network is not None:
            with torch.no_grad():
                v = decoder.likelihood.normal_scores(batch.values, eta, batch.mask)[0]
                v = v.clamp(-MAX_SCORE, MAX_SCORE)
            parts += [v, v.square(), self.row_network(torch.cat([v, batch.design[:, 1:]], dim=-1))]
        return torch.cat(parts, dim=-1)

    def posterior(self, totals: Tensor, sizes: Tensor) -> FullNormal:
        n_codes, n_values = self.n_group_codes, self.n_values
        n_learned = totals.shape[1] - n_codes - n_codes**2
        score, information, learned = totals.split([n_codes, n_codes**2, n_learned], dim=-1)
        normal = newton(score, information.unflatten(1, (n_codes, n_codes)))
        if self.group_network is None:
            return normal
        size = sizes[:, None].to(totals)
        mean_v, squares, features = learned.split([n_values, n_values, n_learned - 2 * n_values], dim=-1)
        log_spread = ((squares + 1.0) / (size + 1.0)).log()
        spread = normal.root.square().sum(-1).log()
        parts = [normal.loc, spread, mean_v / size, log_spread, features / size, size.log()]
        # Bounded: rows unlike any of the fit must not send u where nothing was learned.
        correction = self.group_network(torch.cat(parts, dim=-1)) / _MAX_CORRECTION
        shift, log_stretch = (_MAX_CORRECTION * correction.tanh()).chunk(2, dim=-1)
        loc = normal.loc + (normal.root @ shift[..., None])[..., 0]
        root = normal.root * log_stretch.exp()[:, None, :]
        return FullNormal(loc, root, normal.log_det + log_stretch.sum(-1))
