"""The location-scale mixed model of several columns, by maximum Laplace likelihood with a penalty.

A row of group i has the values ``x = Bᵀ f + a_i + exp(l_i) * e`` with ``a ~ N(0, A Aᵀ)``, ``l ~ N(0, S Sᵀ)``
and ``e ~ N(0, Sigma)``: a linear mixed model whose groups differ in the scales of their columns as well.
Sums of products over the rows of each group are sufficient. Locations are integrated in closed form, log
scales by Laplace's method. Its gradient has the one of the modes in it, by implicit differentiation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from skgroupvae.batch import Batch
from skgroupvae.mixed_model.linalg import identity
from skgroupvae.mixed_model.linear import LinearMixedModel
from skgroupvae.mixed_model.minimize import minimize
from skgroupvae.model.location_scale import (
    GroupSums,
    LocationScaleTerms,
    expand,
    modes,
    negligible_noise,
    products,
)

__all__ = ["LocationScaleModel", "fit_location_scale", "location_scale_log_likelihood"]

# Groups' worth of evidence that effects of columns do not correlate.
_PRIOR_GROUPS = 8.0
# Smallest eigenvalue of the correlations within groups, and smallest variance, that the model can have.
_LEAST_EIGENVALUE, _LEAST_VARIANCE = 1e-4, 1e-6
# Curvature that a posterior of scales has at least, where the prior's is 1: towards none, as a group of one
# row can have it, the Laplace likelihood grows without bound.
_LEAST_CURVATURE = 0.5
# Where the search starts: bounds of the standard deviations of effects.
_LEAST_START, _MOST_START = 0.1, 1.0
# Of more groups than twice these, so many are searched first.
_FIRST_GROUPS = 2000
# Nats that another step may be expected to gain where the search ends, and the largest derivative of a row's.
_LEAST_GAIN, _MOST_SLOPE = 1e-4, 1e-4


@dataclass(frozen=True)
class LocationScaleModel:
    """Estimates of a location-scale mixed model, in float64.

    Attributes
    ----------
    fixed : Tensor of shape (P, D)
        Fixed effects B.
    loadings, scale_loadings : Tensor of shape (D, D)
        Of locations and of log scales: their covariances are ``loadings @ loadings.T``.
    residual : Tensor of shape (D, D)
        Lower Cholesky factor of Sigma, the covariance within the group of average scale.
    log_likelihood : float
        Of the whole table by Laplace's method, in nats.
    converged : bool
        Whether another step promises less than a thousandth of a nat.
    """

    fixed: Tensor
    loadings: Tensor
    scale_loadings: Tensor
    residual: Tensor
    log_likelihood: float
    converged: bool

    @property
    def terms(self) -> LocationScaleTerms:
        """As the posterior of the codes asks for them."""
        precision = torch.cholesky_inverse(self.residual)
        return LocationScaleTerms(self.fixed, self.loadings, self.scale_loadings, precision)


def fit_location_scale(
    batch: Batch, start: LinearMixedModel, *, has_scales: bool = True
) -> LocationScaleModel | None:
    """Fit, from the linear mixed model.

    Parameters
    ----------
    batch : Batch
        Rows with their groups; all cells are observed.
    start : LinearMixedModel
        Of the same rows, with random intercepts.
    has_scales : bool
        Whether the scales vary; if not, it is the linear mixed model with the penalty of this one.

    Returns
    -------
    model : LocationScaleModel or None
        None where the table cannot tell: where no group has two rows, or columns do not vary within groups
        or are combinations of others.
    """
    within = start.residual @ start.residual.mT
    scale = within.diagonal().sqrt()
    if int(batch.groups.sizes.max()) < 2:
        return None
    least = torch.linalg.eigvalsh(within / scale / scale[:, None]) if bool((scale > 0).all()) else scale
    if not (float(least[0]) > _LEAST_EIGENVALUE and float(scale.amin()) ** 2 > _LEAST_VARIANCE):
        return None
    with torch.no_grad():
        cross = products(batch.to(device=torch.device("cpu"), dtype=torch.float64))
        search = _Search(cross, start)
        point, inverse = search.start(has_scales), None
    if len(cross) > 2 * _FIRST_GROUPS:
        first = _Search(cross[:: len(cross) // _FIRST_GROUPS], start)
        point, _, inverse = first.minimize(point, None)
    point, gradient, inverse = search.minimize(point, inverse)
    with torch.no_grad():
        value = search.value(point)
        found = search.model(point)
    converged = search.n_rows * float(gradient @ inverse @ gradient) < 10.0 * _LEAST_GAIN
    model = LocationScaleModel(*found, value, converged)
    is_finite = math.isfinite(value) and all(bool(part.isfinite().all()) for part in found)
    return model if is_finite else None


@torch.no_grad()
def location_scale_log_likelihood(model: LocationScaleModel, batch: Batch) -> Tensor:
    """Log-likelihood of each group (G,) by Laplace's method, at given estimates; the groups are new."""
    noise = negligible_noise(model.residual @ model.residual.mT)
    sums = GroupSums.of_products(products(batch.to(dtype=torch.float64)), model.fixed, noise)
    mode = modes(model.terms, sums, sums.mean.new_zeros(len(sums.mean), model.scale_loadings.shape[1]))
    return _log_likelihoods(model.terms, sums, mode)[0]


def _log_likelihoods(
    terms: LocationScaleTerms, sums: GroupSums, mode: Tensor
) -> tuple[Tensor, Callable[[], Tensor]]:
    """Of each group (G,), and what has their gradient, that through the modes included."""
    at = expand(terms, sums, mode)
    curvature, vectors = torch.linalg.eigh(at.curvature)
    curvature = curvature.clamp(min=_LEAST_CURVATURE)
    half_log_det = 0.5 * curvature.log().sum(-1)
    log_unit = 0.5 * (torch.logdet(terms.precision) - len(terms.precision) * math.log(2.0 * math.pi))
    values = sums.n_rows * log_unit - at.cost - half_log_det

    def with_gradient() -> Tensor:
        # A mode moves by -inverse(curvature) times the change of the slope, which moves the determinant.
        pull = torch.autograd.grad(half_log_det.sum(), mode, retain_graph=True)[0]
        along = (vectors.mT @ pull[..., None]) / curvature[..., None]
        return values + ((vectors @ along)[..., 0].detach() * at.slope).sum(-1)

    return values, with_gradient


class _Search:
    """Parameters of the search: numbers about 1 by the linear mixed model it starts at.

    Parameters
    ----------
    cross : Tensor of shape (G, P + D, P + D)
        Sums of products.
    linear : LinearMixedModel
    """

    def __init__(self, cross: Tensor, linear: LinearMixedModel) -> None:
        self.cross, self.linear = cross, linear
        self.n_rows = float(cross[:, 0, 0].sum())
        n_columns, n_outcomes = linear.fixed.shape
        design = cross[:, :n_columns, :n_columns].sum(0) / self.n_rows
        # Collinear columns of the design stay where they are.
        values, vectors = torch.linalg.eigh(design)
        is_told = values > 1e-10 * values[-1]
        self.design_units = torch.where(is_told, vectors / values.clamp(min=1e-300).sqrt(), 0.0)
        self.within = linear.residual @ linear.residual.mT
        self.scale = self.within.diagonal().sqrt()
        self.noise = negligible_noise(self.within)
        n_lower = n_outcomes * (n_outcomes - 1) // 2
        self.sizes = [n_columns * n_outcomes, n_lower, n_outcomes, *[n_outcomes, n_lower] * 2]
        self.lower = torch.tril_indices(n_outcomes, n_outcomes, -1)
        self.mode = cross.new_zeros(len(cross), n_outcomes)

    def start(self, has_scales: bool) -> Tensor:
        """At the linear mixed model, and scales by the variances of groups.

        Scales that start at none stay there: the likelihood is even in their standard deviations.
        """
        between = self.linear.loadings[0] @ self.linear.loadings[0].mT
        sd, n_groups = between.diagonal().sqrt() / self.scale, len(self.cross)
        share = n_groups / (n_groups + _PRIOR_GROUPS)
        covariance = share * between + ((1.0 - share) * between.diagonal() + _LEAST_VARIANCE).diag()
        root = torch.linalg.cholesky(covariance)
        root = (root / root.diagonal()[:, None])[self.lower[0], self.lower[1]]
        zeros = [root.new_zeros(size) for size in self.sizes]
        sd_of_scales = self._spread_of_scales().clamp(_LEAST_START, _MOST_START)
        sd_of_scales = sd_of_scales if has_scales else zeros[5]
        return torch.cat([*zeros[:3], sd.clamp(min=_LEAST_START), root, sd_of_scales, zeros[6]])

    def model(self, point: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fixed effects, loadings, loadings of scales, and residual."""
        fixed, below, log_diagonal, *effects = point.split(self.sizes)
        units = self.linear.residual
        fixed = self.linear.fixed + self.design_units @ fixed.reshape(self.linear.fixed.shape) @ units.mT
        residual = units @ (self._lower(below) + log_diagonal.exp().diag())
        loadings = (self.scale * effects[0])[:, None] * self._correlation_root(effects[1])
        return fixed, loadings, effects[2][:, None] * self._correlation_root(effects[3]), residual

    def objective(self, point: Tensor) -> tuple[float, Tensor]:
        """Negative penalized log-likelihood of a row, and its gradient."""
        at = point.detach().requires_grad_()
        with torch.enable_grad():
            try:
                terms, sums, mode = self._at(at)
                mode.requires_grad_()
                values, with_gradient = _log_likelihoods(terms, sums, mode)
                loss, surrogate = (
                    (self._penalty(at) - part.sum()) / self.n_rows for part in (values, with_gradient())
                )
                gradient = torch.autograd.grad(surrogate, at)[0]
            except torch.linalg.LinAlgError:
                return math.nan, torch.full_like(point, math.nan)
        return float(loss.detach()), gradient

    def minimize(self, point: Tensor, inverse: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Where the objective is least, its gradient, and the inverse of its second derivatives, about."""
        return minimize(
            self.objective, point, self.n_rows, inverse, least_gain=_LEAST_GAIN, most_slope=_MOST_SLOPE
        )

    def value(self, point: Tensor) -> float:
        """Log-likelihood, without the penalty."""
        return float(_log_likelihoods(*self._at(point))[0].sum())

    def _at(self, point: Tensor) -> tuple[LocationScaleTerms, GroupSums, Tensor]:
        fixed, loadings, scale_loadings, residual = self.model(point)
        terms = LocationScaleTerms(fixed, loadings, scale_loadings, torch.cholesky_inverse(residual))
        sums = GroupSums.of_products(self.cross, fixed, self.noise)
        # From where they were at the last point.
        self.mode = modes(terms, sums, self.mode)
        return terms, sums, self.mode.clone()

    def _penalty(self, point: Tensor) -> Tensor:
        """For the correlations of effects, as pseudo-groups without any would have it; and, less, for scales.

        A group whose values do not vary would make the deviations of scales large.
        """
        effects = point.split(self.sizes)[3:]
        total = point.new_zeros(())
        for below in effects[1::2]:
            root = self._correlation_root(below)
            inverse = torch.linalg.solve_triangular(root, identity(len(root)), upper=False)
            total = total + inverse.square().sum() - len(root) + 2.0 * root.diagonal().log().sum()
        return 0.5 * _PRIOR_GROUPS * total + 0.5 * effects[2].square().sum()

    def _lower(self, below: Tensor) -> Tensor:
        """Matrix (D, D) with these entries below the diagonal."""
        zeros = below.new_zeros(len(self.scale), len(self.scale))
        return zeros.index_put((self.lower[0], self.lower[1]), below)

    def _correlation_root(self, below: Tensor) -> Tensor:
        root = self._lower(below) + identity(len(self.scale))
        return root / root.square().sum(1, keepdim=True).sqrt()

    def _spread_of_scales(self) -> Tensor:
        """Standard deviation of log scales (D,) between groups, less what is chance."""
        sums = GroupSums.of_products(self.cross, self.linear.fixed, self.noise)
        n_rows = sums.n_rows[:, None]
        squares = sums.product.diagonal(dim1=1, dim2=2)
        freedom = (n_rows - 1.0).clamp(min=1e-3)
        log_scale = 0.5 * (squares / freedom / self.scale.square()).clamp(1e-4, 1e4).log()
        weight = freedom / freedom.sum()
        mean = (weight * log_scale).sum(0)
        chance = (weight * (0.5 / freedom).clamp(max=1.0)).sum()
        return ((weight * (log_scale - mean).square()).sum(0) - chance).clamp(min=0.0).sqrt()
