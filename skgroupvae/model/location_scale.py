"""Groups that differ in location and scale: the decoder, and q(u) by Laplace's method from sums over rows.

    x = b + B c + A u + exp(S u) * (W v) + noise

The codes of locations, with columns of A, and of log scales, with columns of S, are others. Given those of
the scales, s, the rest is a linear mixed model: those of the locations are integrated in closed form, and
Laplace's method is for s alone. Noise is negligible, so that a group's sums of products are sufficient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skgroupvae.batch import Batch
from skgroupvae.model.decoders import Decoder, LinearDecoder, precision_matrix, principal_loadings
from skgroupvae.model.encoders import GroupEncoder
from skgroupvae.model.nn import linear
from skgroupvae.model.posteriors import FullNormal

__all__ = [
    "Expansion",
    "GroupSums",
    "LocationScaleDecoder",
    "LocationScaleEncoder",
    "LocationScaleTerms",
    "expand",
    "modes",
    "negligible_noise",
    "products",
]

# Standard deviation of the noise in that of the columns within groups, or of what is left of one given the
# others; in standardized units at least what a decoder can have.
_NOISE, _LEAST_NOISE = 1e-3, 2e-4
_MAX_LOG_SCALE = 9.0
# Of Newton's method: curvature that counts as none, how far a log scale moves in a step, and when it ends.
_LEAST_CURVATURE, _MAX_STEP, _TOLERANCE = 0.1, 1.0, 1e-7
_MAX_STEPS, _HALVINGS = 50, 20


@dataclass(frozen=True)
class LocationScaleTerms:
    """What the codes of a group do.

    Attributes
    ----------
    fixed : Tensor of shape (P, D)
        Mean of x by the design where the codes are 0.
    loadings : Tensor of shape (D, A)
        Of locations.
    scale_loadings : Tensor of shape (D, B)
        Of log scales.
    precision : Tensor of shape (D, D)
        Inverse of the covariance within the group whose codes are 0.
    """

    fixed: Tensor
    loadings: Tensor
    scale_loadings: Tensor
    precision: Tensor


@dataclass(frozen=True)
class GroupSums:
    """What the rows of each group come to, of residuals of the fixed part.

    Attributes
    ----------
    n_rows : Tensor of shape (G,)
    mean : Tensor of shape (G, D)
    product : Tensor of shape (G, D, D)
        Sum of products about the mean. Where scales are very small these must not be a difference.
    """

    n_rows: Tensor
    mean: Tensor
    product: Tensor

    @classmethod
    def of_products(cls, cross: Tensor, fixed: Tensor, noise: Tensor) -> GroupSums:
        """From sums of products of the columns of design and values, (G, P + D, P + D); noise (D,)."""
        contrast = torch.cat([-fixed, torch.eye(len(noise), dtype=cross.dtype, device=cross.device)])
        n_rows = cross[:, 0, 0]
        mean = cross[:, 0] @ contrast / n_rows.clamp(min=1e-9)[:, None]
        variance = noise.square().diag() - mean[:, :, None] * mean[:, None]
        return cls(n_rows, mean, contrast.mT @ cross @ contrast + n_rows[:, None, None] * variance)


@dataclass(frozen=True)
class Expansion:
    """-log p(rows, s) of each group, locations integrated out, about codes s (G, B) of the scales.

    Attributes
    ----------
    cost : Tensor of shape (G,)
        Up to what the codes do not change.
    slope, curvature : Tensor of shape (G, B) and (G, B, B)
    mean : Tensor of shape (G, A)
        Of the codes of locations given s; its slope in s is `jacobian`.
    root : Tensor of shape (G, A, A)
        Of their covariance.
    jacobian : Tensor of shape (G, A, B)
    """

    cost: Tensor
    slope: Tensor
    curvature: Tensor
    mean: Tensor
    root: Tensor
    jacobian: Tensor


def products(batch: Batch) -> Tensor:
    """Sums over the rows of each group of products of the columns of design and values: (G, P + D, P + D)."""
    columns = torch.cat([batch.design, batch.values], dim=-1)
    weighted = batch.weights[:, None] * columns
    return torch.stack([batch.groups.sum(column[:, None] * columns) for column in weighted.unbind(1)], 1)


def expand(terms: LocationScaleTerms, sums: GroupSums, s: Tensor) -> Expansion:
    """Value and derivatives at codes s (G, B) of the scales; differentiable."""
    scale_loadings, n_rows = terms.scale_loadings, sums.n_rows[:, None, None]
    log_scale = s @ scale_loadings.mT
    inverse = (-log_scale).exp()
    precision = inverse[:, :, None] * terms.precision * inverse[:, None]
    inner = n_rows * (terms.loadings.mT @ precision @ terms.loadings)
    identity = torch.eye(inner.shape[-1], dtype=s.dtype, device=s.device)
    factor = torch.linalg.cholesky(identity + inner)
    root = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False).mT
    # Posterior covariance and mean of the location itself.
    half = terms.loadings @ root
    covariance = half @ half.mT
    codes = root @ (half.mT @ (n_rows * precision @ sums.mean[..., None]))
    rest = sums.mean[..., None] - terms.loadings @ codes
    product = sums.product + n_rows * (rest @ rest.mT)
    cost = (
        0.5 * (s.square().sum(-1) + codes.square().sum((-2, -1)) + (precision * product).sum((-2, -1)))
        + sums.n_rows * log_scale.sum(-1)
        + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    )
    explained = precision * (product + n_rows * covariance)
    by_column = explained.sum(-1)
    slope = s + (sums.n_rows[:, None] - by_column) @ scale_loadings
    # How log scales pull at the location, and what the two share is no curvature of the first.
    cross = n_rows * (torch.diag_embed((precision @ rest)[..., 0]) + precision * rest.mT)
    mixed = covariance @ precision
    curvature = explained + torch.diag_embed(by_column) - cross.mT @ covariance @ cross
    curvature = curvature - n_rows.square() * (covariance * (precision @ mixed) + mixed * mixed.mT)
    identity = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    return Expansion(
        cost,
        slope,
        identity + scale_loadings.mT @ curvature @ scale_loadings,
        codes[..., 0],
        root,
        -(root @ (half.mT @ cross) @ scale_loadings),
    )


@torch.no_grad()
def modes(terms: LocationScaleTerms, sums: GroupSums, start: Tensor) -> Tensor:
    """Codes of the scales (G, B) where p(s given the rows) is highest, by damped steps of Newton's method."""
    s = start
    for _ in range(_MAX_STEPS):
        at = expand(terms, sums, s)
        values, vectors = torch.linalg.eigh(at.curvature)
        turned = (vectors.mT @ at.slope[..., None])[..., 0] / values.clamp(min=_LEAST_CURVATURE)
        step = -(vectors @ turned[..., None])[..., 0]
        farthest = (step @ terms.scale_loadings.mT).abs().amax(-1, keepdim=True)
        step = step * (_MAX_STEP / farthest.clamp(min=_MAX_STEP))
        if not float(step.abs().amax()) > _TOLERANCE:
            return s + step
        slope, length = (step * at.slope).sum(-1), torch.ones_like(at.cost)
        rounding = 1e-12 * (1.0 + at.cost.abs())
        for _ in range(_HALVINGS):
            after = expand(terms, sums, s + length[:, None] * step).cost
            fails = ~(after <= at.cost + 1e-4 * length * slope + rounding)
            if not bool(fails.any()):
                break
            length = torch.where(fails, 0.5 * length, length)
        s = s + torch.where(fails, 0.0, length)[:, None] * step
    return s


def negligible_noise(within: Tensor) -> Tensor:
    """Standard deviation (D,) of noise that is small in every direction of a covariance (D, D)."""
    scale = within.diagonal().sqrt()
    least = torch.linalg.eigvalsh(within / scale / scale[:, None])[0].clamp(min=0.0)
    return (_NOISE * least.sqrt() * scale).clamp(min=_LEAST_NOISE)


class LocationScaleDecoder(LinearDecoder):
    """Mean ``b + B c + W_u u + exp(W_s u) * (W_v v)``: groups differ in locations and scales."""

    has_common_slope = False

    def __init__(
        self,
        n_features: int,
        n_group_codes: int,
        n_instance_codes: int,
        hidden: Sequence[int],
        generator: torch.Generator,
        n_covariates: int = 0,
    ) -> None:
        super().__init__(n_features, n_group_codes, n_instance_codes, hidden, generator, n_covariates)
        self.scale_loadings = linear(n_group_codes, n_features, generator, bias=False)

    def scales(self, u: Tensor) -> Tensor:
        """What the rest of a row is multiplied by: (*, U) -> (*, D)."""
        log_scale: Tensor = self.scale_loadings(u)
        return log_scale.clamp(-_MAX_LOG_SCALE, _MAX_LOG_SCALE).exp()

    def mean(self, u: Tensor, v: Tensor, covariates: Tensor | None = None) -> Tensor:
        rest = self.instance_loadings(v)
        return super().mean(u, torch.zeros_like(v), covariates) + self.scales(u) * rest

    def linearize(self, u: Tensor, covariates: Tensor | None = None) -> tuple[Tensor, Tensor]:
        center = self.mean(u, u.new_zeros(len(u), self.n_instance_codes), covariates)
        return center, self.scales(u)[..., None] * self.instance_loadings.weight

    @torch.no_grad()
    def start_with_scales(
        self, fixed: Tensor, loadings: Tensor, scale_loadings: Tensor, within: Tensor
    ) -> None:
        """Be this model, with negligible noise.

        Parameters
        ----------
        fixed : Tensor of shape (1 + C, D)
        loadings, scale_loadings : Tensor of shape (D, A) and (D, B)
            Of the first A codes, and of the B others.
        within : Tensor of shape (D, D)
            Covariance within the average group.
        """
        noise = negligible_noise(within)
        self.fix_noise(noise)
        rest = principal_loadings(within - noise.square().diag(), self.n_instance_codes)
        self.instance_loadings.weight.copy_(rest)
        self._set_fixed(fixed)
        self.group_loadings.weight.copy_(_padded(loadings, 0, self.n_group_codes))
        self.scale_loadings.weight.copy_(_padded(scale_loadings, loadings.shape[1], self.n_group_codes))


class LocationScaleEncoder(GroupEncoder):
    """q(u) of a :class:`LocationScaleDecoder`, from sums of products of the columns of design and values.

    Codes of scales: a normal with the curvature at the mode, whose mean is that of the posterior to second
    order. Those of locations given these: their own normal, whose mean goes along.

    Parameters
    ----------
    n_columns : int
        Columns P of the design.
    n_features, n_group_codes : int
        Numbers D of columns and U of codes.
    """

    fixed: Tensor
    loadings: Tensor
    scale_loadings: Tensor
    precision: Tensor
    noise: Tensor

    def __init__(self, n_columns: int, n_features: int, n_group_codes: int) -> None:
        super().__init__()
        self.n_products = n_columns + n_features
        shapes = {
            "fixed": (n_columns, n_features),
            "loadings": (n_features, n_group_codes),
            "scale_loadings": (n_features, n_group_codes),
            "precision": (n_features, n_features),
            "noise": (n_features,),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float32))

    @torch.no_grad()
    def start_with_scales(
        self, fixed: Tensor, loadings: Tensor, scale_loadings: Tensor, within: Tensor
    ) -> None:
        """Follow the decoder that was told the same."""
        n_codes = self.loadings.shape[1]
        self.fixed.copy_(fixed)
        self.loadings.copy_(_padded(loadings, 0, n_codes))
        self.scale_loadings.copy_(_padded(scale_loadings, loadings.shape[1], n_codes))
        self.precision.copy_(precision_matrix(within))
        self.noise.copy_(negligible_noise(within))

    def statistics(self, x: Tensor, batch: Batch, decoder: Decoder) -> Tensor:
        columns = torch.cat([batch.design, batch.values], dim=-1)
        first, second = self._pairs()
        return columns[:, first] * columns[:, second]

    def posterior(self, totals: Tensor, sizes: Tensor) -> FullNormal:
        cross = totals.new_zeros(len(totals), self.n_products, self.n_products)
        first, second = self._pairs()
        cross[:, first, second] = totals
        cross[:, second, first] = totals
        cross[:, 0, 0] = sizes
        is_scale = (self.loadings == 0).all(0)
        terms = LocationScaleTerms(
            self.fixed, self.loadings[:, ~is_scale], self.scale_loadings[:, is_scale], self.precision
        )
        sums = GroupSums.of_products(cross, self.fixed, self.noise)
        mode, shift, root = _laplace(terms, sums)
        at = expand(terms, sums, mode + shift)
        loc = totals.new_zeros(len(totals), len(is_scale))
        loc[:, is_scale], loc[:, ~is_scale] = mode + shift, at.mean
        whole = totals.new_zeros(len(totals), len(is_scale), len(is_scale))
        scale, location = torch.nonzero(is_scale)[:, 0], torch.nonzero(~is_scale)[:, 0]
        whole[:, scale[:, None], scale] = root
        whole[:, location[:, None], scale] = at.jacobian @ root
        whole[:, location[:, None], location] = at.root
        log_det = sum(part.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1) for part in (root, at.root))
        return FullNormal(loc, whole, log_det)  # type: ignore[arg-type]

    def freeze(self, decoder: Decoder) -> None:
        """Nothing is trained."""

    def release(self) -> None:
        """Nothing is trained."""

    def _pairs(self) -> Tensor:
        """Columns whose products are summed: all pairs but that of the constant with itself, which counts."""
        device = self.noise.device
        return torch.triu_indices(self.n_products, self.n_products, device=device)[:, 1:]


def _laplace(terms: LocationScaleTerms, sums: GroupSums) -> tuple[Tensor, Tensor, Tensor]:
    """Mode of the codes of scales (G, B), how far their mean is from it, and a root of their covariance.

    The mean is where ``cost + 0.5 log det curvature`` is least (Tierney and Kadane 1986), but for a step of
    Newton's method.
    """
    mode = modes(terms, sums, sums.mean.new_zeros(len(sums.mean), terms.scale_loadings.shape[1]))
    with torch.enable_grad():
        s = mode.detach().requires_grad_()
        # Far from the mode the curvature may be negative; there it is positive but for rounding.
        log_det = torch.linalg.eigvalsh(expand(terms, sums, s).curvature).clamp(min=_LEAST_CURVATURE).log()
        slope = torch.autograd.grad(0.5 * log_det.sum(), s)[0]
    values, vectors = torch.linalg.eigh(expand(terms, sums, mode).curvature)
    along = (vectors.mT @ slope[..., None])[..., 0] / values.clamp(min=_LEAST_CURVATURE).sqrt()
    along = along / along.norm(dim=-1, keepdim=True).clamp(min=1.0)
    root = vectors / values.clamp(min=_LEAST_CURVATURE).sqrt()[:, None]
    shift = -(root @ along[..., None])[..., 0]
    # Triangular, so that its determinant is on the diagonal.
    return mode, shift, torch.linalg.cholesky(root @ root.mT)


def _padded(loadings: Tensor, start: int, n_codes: int) -> Tensor:
    """Loadings (D, n_codes) that are zero but for the columns from `start` on."""
    padded = loadings.new_zeros(len(loadings), n_codes)
    padded[:, start : start + loadings.shape[1]] = loadings
    return padded
