"""Likelihood of the observed columns of a row, given the parameters that a decoder computes for them.

Every column has a family. Given the codes the columns are independent, or, if all are continuous, their
normal scores v are correlated (a Gaussian copula; for normal errors a multivariate normal with a full
covariance):
``log p(y) = sum_d log p_d(y_d) + log N(v; 0, R) - log N(v; 0, I)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from skgroupvae.model.families.base import Family

__all__ = ["Likelihood"]


class Likelihood(nn.Module):
    """p(values | eta) of the D observed columns of a row; cells outside the mask contribute nothing.

    Parameters
    ----------
    families : sequence of Family
        One for each column, or a single one that all columns share and that is computed for all at once.
    n_columns : int
        Number D of columns.
    correlation : bool
        Whether the normal scores of the columns have a correlation matrix that is learned. It starts at the
        identity, and is left out where there is one column.

    Attributes
    ----------
    n_parameters : int
        Width W of ``eta``, that of the widest family; narrower ones ignore the rest.
    n_working : int
        Parameters of a column that :meth:`newton_terms` and :meth:`working` are about.
    max_deviation : tuple of float
        That of the widest family, (W - 1).
    max_predictor_deviation : float or None
        The tightest of the families' bounds; None where no family has one.
    """

    raw_correlation: nn.Parameter | None

    def __init__(self, families: Sequence[Family], n_columns: int, *, correlation: bool = False) -> None:
        super().__init__()
        if len(families) not in (1, n_columns):
            raise ValueError(f"{len(families)} families for {n_columns} columns; give one, or one for each")
        if len({family.n_working for family in families}) > 1:
            raise ValueError("families of one likelihood must have the same n_working")
        if correlation and not all(family.is_continuous for family in families):
            raise ValueError("only columns that are all continuous can have a residual correlation")
        self.families = nn.ModuleList(families)
        self.n_columns = n_columns
        self.n_parameters = max(family.n_parameters for family in families)
        self.n_working = families[0].n_working
        self.max_deviation = max((family.max_deviation for family in families), key=len)
        bounds = [family.max_predictor_deviation for family in families]
        self.max_predictor_deviation = min((bound for bound in bounds if bound is not None), default=None)
        self._is_shared = len(families) == 1 < n_columns
        # Below the diagonal, row by row.
        n_pairs = n_columns * (n_columns - 1) // 2
        raw = nn.Parameter(torch.zeros(n_pairs)) if correlation and n_pairs else None
        self.register_parameter("raw_correlation", raw)

    @property
    def is_continuous(self) -> bool:
        return all(family.is_continuous for family in self._families)

    @property
    def is_linear_exact(self) -> bool:
        return all(family.is_linear_exact for family in self._families)

    def family_of(self, column: int) -> Family:
        return self._families[0 if self._is_shared else column]

    # --- the residual correlation

    @property
    def correlation(self) -> Tensor | None:
        """Correlation matrix R (D, D) of the normal scores, in float64; None where there is none."""
        if self.raw_correlation is None:
            return None
        # R = L L' with rows of length 1, each before scaling 1 on the diagonal.
        raw = self.raw_correlation.double()
        root = torch.eye(self.n_columns, dtype=raw.dtype, device=raw.device)
        below = torch.tril_indices(self.n_columns, self.n_columns, -1, device=raw.device)
        root = nn.functional.normalize(root.index_put((below[0], below[1]), raw), dim=-1)
        return root @ root.mT

    @torch.no_grad()
    def set_correlation(self, correlation: Tensor) -> None:
        """Set R (D, D); of a covariance matrix, the correlations count."""
        if self.raw_correlation is None:
            raise ValueError("this likelihood has no residual correlation")
        root = torch.linalg.cholesky(correlation.double())
        rows, columns = torch.tril_indices(self.n_columns, self.n_columns, -1, device=root.device)
        self.raw_correlation.copy_(root[rows, columns] / root[rows, rows])

    def _precision(self, correlation: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inverse of R_OO, and log|R_OO|, of the observed columns O of each row.

        Returns
        -------
        precision : Tensor of shape (M, D, D)
            Of each mask pattern, in float64; the identity where a column is not observed.
        log_det : Tensor of shape (M,)
        pattern : Tensor of shape (N,) or None
            Position of each row's pattern; None where there is one (M = 1).
        """
        pattern, by_pattern = None, correlation[None]
        if mask is not None:
            patterns, pattern = torch.unique(mask, dim=0, return_inverse=True)
            identity = torch.eye(self.n_columns, dtype=correlation.dtype, device=correlation.device)
            by_pattern = torch.where(patterns[:, None] & patterns[..., None], correlation, identity)
            pattern = pattern if len(patterns) > 1 else None
        root = torch.linalg.cholesky(by_pattern)
        log_det = 2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return torch.cholesky_inverse(root), log_det, pattern

    def _log_copula(self, v: Tensor, correlation: Tensor, mask: Tensor | None) -> Tensor:
        """Log density of the scores v (*, N, D) over that of independent ones: (*, N)."""
        if mask is not None:
            v = torch.where(mask, v, 0.0)
        precision, log_det, pattern = self._precision(correlation, mask)
        excess = precision - torch.eye(self.n_columns, dtype=precision.dtype, device=precision.device)
        excess, log_det = excess.to(v.dtype), log_det.to(v.dtype)
        if pattern is None:
            return -0.5 * (log_det + ((v @ excess[0]) * v).sum(-1))
        product = torch.einsum("...nd,nde->...ne", v, excess[pattern])
        return -0.5 * (log_det[pattern] + (product * v).sum(-1))

    # --- of rows

    def log_prob(self, values: Tensor, eta: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log density or probability of each row: values (N, D), eta (*, N, D, W), mask (N, D) -> (*, N)."""
        parts = [family.log_prob(y, at) for family, y, at in self._columns(values, eta)]
        if self.n_columns == 1:
            return parts[0] if mask is None else torch.where(mask[:, 0], parts[0], 0.0)
        by_column = self._join(parts)
        total = (by_column if mask is None else torch.where(mask, by_column, 0.0)).sum(-1)
        correlation = self.correlation
        if correlation is None:
            return total
        return total + self._log_copula(self.scores_with_gradient(values, eta), correlation, mask)

    def newton_terms(self, values: Tensor, eta: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Score and information of each row, for a Newton step that may go far.

        With a residual correlation the part about the linear predictors is the joint one,
        ``S⁻¹ R_OO⁻¹ z`` and ``S⁻¹ R_OO⁻¹ S⁻¹``, with z the residuals in standard deviations S.

        Parameters
        ----------
        values : Tensor of shape (N, D)
        eta : Tensor of shape (N, D, W)
        mask : Tensor of shape (N, D), optional

        Returns
        -------
        score : Tensor of shape (N, K)
            K = D * n_working; column d and parameter w are at d * n_working + w.
        information : Tensor of shape (N, K, K)
        """
        cells = self._columns(values, eta)
        return self._jointly([family.newton_terms(y, at) for family, y, at in cells], mask)

    def working(self, values: Tensor, eta: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`newton_terms`, for where the log density is near its maximum."""
        return self._jointly([family.working(y, at) for family, y, at in self._columns(values, eta)], mask)

    def _jointly(self, parts: list[tuple[Tensor, Tensor]], mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Score (*, N, K) and information (*, N, K, K) of rows, from those of their columns."""
        score, information = (self._join(list(part), before=1) for part in zip(*parts, strict=True))
        correlation, joint = self.correlation, None
        if correlation is not None:
            # Before the mask: a square root has no gradient at 0.
            root = information[..., 0].sqrt()
            z = score[..., 0] / root
            if mask is not None:
                root, z = torch.where(mask, root, 0.0), torch.where(mask, z, 0.0)
            precision, _, pattern = self._precision(correlation, mask)
            precision = precision.to(root.dtype)
            by_row = precision[0] if pattern is None else precision[pattern]
            joint = root[..., None] * by_row * root[..., None, :]
            location = root * (by_row @ z[..., None])[..., 0]
            score = torch.cat([location[..., None], score[..., 1:]], dim=-1)
        if mask is not None:
            score = torch.where(mask[..., None], score, 0.0)
            information = torch.where(mask[..., None], information, 0.0)
        score = score.flatten(-2)
        if score.shape[-1] == 1:
            return score, information
        information = torch.diag_embed(information.flatten(-2))
        if joint is not None:
            information[..., :: self.n_working, :: self.n_working] = joint
        return score, information

    def normal_scores(self, values: Tensor, eta: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Posterior mean and sd (*, N, D) of each column's v given its value; 0 and 1 outside the mask."""
        parts = [family.normal_score(y, at) for family, y, at in self._columns(values, eta)]
        mean, sd = (self._join(list(part)) for part in zip(*parts, strict=True))
        if mask is not None:
            mean, sd = torch.where(mask, mean, 0.0), torch.where(mask, sd, 1.0)
        return mean, sd

    def scores_with_gradient(self, values: Tensor, eta: Tensor) -> Tensor:
        """Posterior mean of each column's v, with a gradient to eta: (N, D), (*, N, D, W) -> (*, N, D)."""
        cells = self._columns(values, eta)
        return self._join([family.score_with_gradient(y, at) for family, y, at in cells])

    def at_scores(self, v: Tensor, eta: Tensor) -> Tensor:
        """Values whose normal scores are v: (*, N, D), (*, N, D, W) -> (*, N, D)."""
        return self._join([family.at_score(score, at) for family, score, at in self._columns(v, eta)])

    def moments(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each column: eta (*, N, D, W) -> two of (*, N, D)."""
        columns = zip(self._families, self._etas(eta), strict=True)
        parts = [family.moments(at) for family, at in columns]
        mean, variance = (self._join(list(part)) for part in zip(*parts, strict=True))
        return mean, variance

    def of_rows(self, values: Tensor, weights: Tensor) -> tuple[Likelihood, Tensor]:
        """Likelihood of whole rows and their values in it: where a row is `weights` (N,) trials, of all."""
        weights = weights[:, None] if self._is_shared else weights
        columns = zip(self._families, self._cells(values), strict=True)
        parts = [family.of_rows(y, weights) for family, y in columns]
        families = [family for family, _ in parts]
        if all(new is old for new, old in zip(families, self._families, strict=True)):
            return self, values
        likelihood = Likelihood(families, self.n_columns)
        likelihood.raw_correlation = self.raw_correlation
        return likelihood, self._join([y for _, y in parts])

    # --- by column

    @property
    def _families(self) -> list[Family]:
        return cast(list[Family], list(self.families))

    def _cells(self, values: Tensor) -> list[Tensor]:
        """Values of each family: one (*, N) a column, or all (*, N, D) of the one that is shared."""
        return [values] if self._is_shared else list(values.unbind(-1))

    def _etas(self, eta: Tensor) -> list[Tensor]:
        """Parameters of each family, as :meth:`_cells`."""
        if self._is_shared:
            return [eta]
        return [eta[..., d, : family.n_parameters] for d, family in enumerate(self._families)]

    def _columns(self, values: Tensor, eta: Tensor) -> list[tuple[Family, Tensor, Tensor]]:
        return list(zip(self._families, self._cells(values), self._etas(eta), strict=True))

    def _join(self, parts: list[Tensor], before: int = 0) -> Tensor:
        """Results of :meth:`_columns` as one: the columns stand last, `before` so many dimensions."""
        if self._is_shared:
            return parts[0]
        if len(parts) == 1:
            return parts[0].unsqueeze(-1 - before)
        return torch.stack(parts, dim=-1 - before)
