"""Decoders: the parameters of each column's family, from the design and the codes.

Decoders of instance codes (a network, a linear mixed model, the user's formula) give the mean of a row in
standardized units, with normal noise that is independent by column. The decoder of a regression is in
``mixed_decoder.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from skgroupvae.batch import Batch
from skgroupvae.model.families import NormalFamily
from skgroupvae.model.likelihood import Likelihood
from skgroupvae.model.nn import bounded_scale, linear, mlp

__all__ = [
    "CodeDecoder",
    "Decoder",
    "FormulaDecoder",
    "LinearDecoder",
    "MLPDecoder",
    "NewtonTerms",
    "canonical_loadings",
    "factor_loadings",
    "precision_matrix",
    "principal_loadings",
]

# What the data tell of a group's codes through each row: slope (N, K) and negative curvature (N, K, K) of its
# log-likelihood in K predictors at u = 0, the jacobian (N, K, U) of these in u, and the parameters (N, D, W)
# of its families there.
NewtonTerms = tuple[Tensor, Tensor, Tensor, Tensor]

# Share of the variance within groups that the codes of a network explain at the start; the noise has the
# rest. Where the data cannot tell noise from instance code (one column, a free decoder), the penalty keeps it
# there.
_CODE_SHARE = 0.9
# Weight, in nats a row, of the squared distance of the log noise from its start. It moves a noise that the
# data do tell by about 2 % a unit of that distance, and holds one that they do not.
_NOISE_ANCHOR = 0.02
# Of factor analysis by EM, whose steps shorten as it converges.
_FACTOR_STEPS, _FACTOR_TOLERANCE = 5_000, 1e-8
# Singular values of a covariance, in standardized units and relative to the largest, that count as none.
_TINY, _RELATIVE = 1e-10, 1e-13


class Decoder(nn.Module, ABC):
    """Base class: parameters of p(values given design, u, v).

    Parameters
    ----------
    likelihood : Likelihood
        Families of the columns, whose parameters `forward` computes.
    n_group_codes, n_instance_codes : int
        Numbers U and V of codes; V = 0 where the instance codes are the normal scores of the values.
    """

    def __init__(self, likelihood: Likelihood, n_group_codes: int, n_instance_codes: int) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.n_group_codes = n_group_codes
        self.n_instance_codes = n_instance_codes

    @abstractmethod
    def forward(self, design: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """Parameters (*, N, D, W) from the design (N, P) and the codes of rows, (*, N, U) and (*, N, V)."""

    def penalty(self) -> Tensor:
        """What the loss of a row adds for parameters that the data hardly tell, in nats."""
        return next(self.parameters()).new_zeros(())

    def rate_factors(self) -> list[tuple[nn.Parameter, float]]:
        """Parameters that learn at a rate of their own, as multiples of the common rate."""
        return []

    def newton_terms(self, batch: Batch) -> NewtonTerms:
        """What each row tells of u in a step of Newton's method from u = 0, v integrated out."""
        raise NotImplementedError(f"{type(self).__name__} has no closed form that u could start at")


class CodeDecoder(Decoder):
    """Base class of decoders of group and instance codes: normal noise around a mean.

    Parameters
    ----------
    n_features : int
        Number D of columns.
    n_group_codes, n_instance_codes : int
        Numbers U and V of codes.
    n_covariates : int, default=0
        Number C of columns of the design beside the constant.

    Attributes
    ----------
    has_common_slope : bool
        Whether the mean is a straight line in the codes, the same in v whatever u and the covariates.
    """

    has_common_slope = False
    # From the spread of the whole table the noise has far to go: at the common rate it is still on its way
    # when the fit ends.
    noise_rate_factor = 10.0

    def __init__(
        self, n_features: int, n_group_codes: int, n_instance_codes: int, n_covariates: int = 0
    ) -> None:
        super().__init__(Likelihood([NormalFamily()], n_features), n_group_codes, n_instance_codes)
        self.n_features, self.n_covariates = n_features, n_covariates
        # The scale starts at the spread of the whole table: from a narrow start the fit does not recover.
        self.log_noise = nn.Parameter(torch.zeros(n_features, dtype=torch.float32))

    @abstractmethod
    def mean(self, u: Tensor, v: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Mean of x in standardized units: (*, U), (*, V) and, where there are any, (N, C) -> (*, D)."""

    def forward(self, design: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        assert v is not None
        mean = self.mean(u, v, design[:, 1:] if self.n_covariates else None)
        return torch.stack([mean, self.log_noise.expand_as(mean)], dim=-1)

    @property
    def noise_scale(self) -> Tensor:
        """Standard deviation of the noise (D,), in standardized units."""
        return bounded_scale(self.log_noise)

    def check(self) -> None:
        """Ask for the mean of three rows of zeros, as the fit will: with gradients.

        Raises
        ------
        ValueError
            If it fails or returns anything but a tensor of shape (3, D).
        """
        expected = (3, self.n_features)
        sizes = (self.n_group_codes, self.n_instance_codes)
        arguments = f"u of shape (3, {sizes[0]}) and v of shape (3, {sizes[1]})"
        covariates = None
        if self.n_covariates:
            covariates = torch.zeros(3, self.n_covariates, dtype=torch.float32)
            arguments += f" and covariates of shape (3, {self.n_covariates})"
        try:
            with torch.enable_grad():
                u, v = (torch.zeros(3, n, dtype=torch.float32, requires_grad=True) for n in sizes)
                value = self._unscaled(u, v, covariates)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"decoder raised {type(error).__name__} on {arguments}: {reason}; it must map these torch "
                f"tensors to one of shape {expected}"
            ) from error
        if not isinstance(value, Tensor) or tuple(value.shape) != expected:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"decoder returned {got} for {arguments}; it must return a tensor of shape {expected}, "
                "one column a column of X"
            )

    def _unscaled(self, u: Tensor, v: Tensor, covariates: Tensor | None) -> Tensor:
        """What `check` looks at: the mean before any scaling that could hide its shape."""
        return self.mean(u, v, covariates)

    def fix_noise(self, noise: Tensor) -> None:
        """Set the noise standard deviation (D,), in standardized units, and stop learning it."""
        self.log_noise = nn.Parameter(noise.log(), requires_grad=False)

    def start_at(self, fixed: Tensor, loadings: Tensor, within: Tensor, *, is_wide: bool = False) -> None:
        """Start at a linear mixed model.

        A decoder that cannot use it starts where its constructor left it.

        Parameters
        ----------
        fixed : Tensor of shape (1 + C, D)
            Mean of x where u and the covariates are 0, and effects of the covariates.
        loadings : Tensor of shape (D, U)
            Of u.
        within : Tensor of shape (D, D)
            Covariance within groups.
        is_wide : bool
            Whether the noise has a tenth of each column's variance, though the columns may then correlate
            less than `within` says; else as much as leaves their correlations.
        """

    def rate_factors(self) -> list[tuple[nn.Parameter, float]]:
        return [(self.log_noise, self.noise_rate_factor)]

    def linearize(self, u: Tensor, covariates: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Best straight line in v through the decoder at v = -1, +1: the mean as ``center + slope v``.

        Parameters
        ----------
        u : Tensor of shape (n, U)
            Codes of groups or, with covariates, of the group of each row.
        covariates : Tensor of shape (n, C) or None
            Of each row.

        Returns
        -------
        center : Tensor of shape (n, D)
        slope : Tensor of shape (n, D, V)
        """
        n_codes = self.n_instance_codes
        axes = torch.eye(n_codes, dtype=u.dtype, device=u.device)
        points = torch.cat([axes, -axes])[:, None].expand(-1, len(u), -1)
        codes = u.expand(2 * n_codes, -1, -1)
        means = self.mean(codes, points, covariates)
        up, down = means[:n_codes], means[n_codes:]
        return means.mean(0), 0.5 * (up - down).permute(1, 2, 0)


class LinearDecoder(CodeDecoder):
    """Mean linear in the codes and covariates, ``b + B c + W_u u + W_v v``: a linear mixed model."""

    has_common_slope = True
    # The noise starts where it belongs. A larger rate would only let it wander where the data cannot tell it
    # from the instance code.
    noise_rate_factor = 1.0
    # Of the noise at the start, in standardized units: nearly collinear columns leave it nearly none.
    min_start_variance = 1e-7
    # With a code a column no data tell v from noise, and v is the whole residual, as a mixed model has it.
    code_share = 1.0
    start_log_noise: Tensor

    def __init__(
        self,
        n_features: int,
        n_group_codes: int,
        n_instance_codes: int,
        hidden: Sequence[int],
        generator: torch.Generator,
        n_covariates: int = 0,
    ) -> None:
        super().__init__(n_features, n_group_codes, n_instance_codes, n_covariates)
        self.group_loadings = linear(n_group_codes, n_features, generator)
        self.instance_loadings = linear(n_instance_codes, n_features, generator, bias=False)
        self.covariate_loadings: nn.Linear | None = None
        if n_covariates:
            self.covariate_loadings = linear(n_covariates, n_features, generator, bias=False)
        self.register_buffer("start_log_noise", self.log_noise.detach().clone())

    def mean(self, u: Tensor, v: Tensor, covariates: Tensor | None = None) -> Tensor:
        mean = self.group_loadings(u) + self.instance_loadings(v)
        return mean if self.covariate_loadings is None else mean + self.covariate_loadings(covariates)

    @torch.no_grad()
    def start_at(self, fixed: Tensor, loadings: Tensor, within: Tensor, *, is_wide: bool = False) -> None:
        self._set_fixed(fixed)
        self.group_loadings.weight.copy_(loadings)
        within = within.double()
        variances = within.diagonal().clamp(min=self.min_start_variance)
        if not self.log_noise.requires_grad:
            noise = self.noise_scale.double().square()
        else:
            # In no direction more than a share: the codes then have the rest, correlations and all.
            correlations = within / variances.sqrt() / variances.sqrt()[:, None]
            least = torch.linalg.eigvalsh(correlations)[0].clamp(min=0.0)
            share = self.code_share if self.n_instance_codes >= len(within) else _CODE_SHARE
            noise = ((1.0 - share) * least * variances).clamp(min=self.min_start_variance)
        if is_wide:
            slopes = principal_loadings(_CODE_SHARE * within, self.n_instance_codes)
        elif self.n_instance_codes < len(within) or not self.log_noise.requires_grad:
            slopes = factor_loadings(within, noise, self.n_instance_codes, self.log_noise.requires_grad)
        else:
            slopes = principal_loadings(within - noise.diag(), self.n_instance_codes)
        self.instance_loadings.weight.copy_(slopes)
        if self.log_noise.requires_grad:
            noise = (within.diagonal() - slopes.square().sum(1)).clamp(min=self.min_start_variance)
            self.log_noise.copy_(0.5 * noise.log())
            self.start_log_noise.copy_(self.log_noise)

    def _set_fixed(self, fixed: Tensor) -> None:
        """Take the mean where u and the covariates are 0, and the covariates' effects, from (1 + C, D)."""
        self.group_loadings.bias.copy_(fixed[0])
        if self.covariate_loadings is not None:
            self.covariate_loadings.weight.copy_(fixed[1:].mT)

    def penalty(self) -> Tensor:
        # A normal prior on the log noise. Without it the noise of one column under a free decoder drifts.
        return _NOISE_ANCHOR * (self.log_noise - self.start_log_noise).square().sum()

    def newton_terms(self, batch: Batch) -> NewtonTerms:
        """Exact for this class itself, whose log-likelihood is quadratic in u."""
        slopes = self.instance_loadings.weight.double()
        covariance = slopes @ slopes.mT + self.noise_scale.double().square().diag()
        precision = torch.linalg.inv(covariance)
        mean = self.group_loadings.bias.expand_as(batch.values)
        if self.covariate_loadings is not None:
            mean = mean + self.covariate_loadings(batch.covariates)
        residual = batch.values - mean
        score = residual @ precision.to(residual)
        information = precision.to(residual).expand(batch.n_rows, -1, -1)
        scale = (0.5 * covariance.diagonal().log()).to(residual).expand_as(residual)
        eta = torch.stack([mean, scale], dim=-1)
        return score, information, self.group_loadings.weight.expand(batch.n_rows, -1, -1), eta


class MLPDecoder(LinearDecoder):
    """Mean by a multilayer perceptron on u, v and the covariates added to a linear one.

    The network starts at zero, so the fit starts at the linear mixed model and learns what deviates from it.
    """

    has_common_slope = False
    # From a narrow start a network does not recover.
    min_start_variance = 1e-4
    code_share = _CODE_SHARE

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
        n_inputs = n_group_codes + n_instance_codes + n_covariates
        self.network = mlp(n_inputs, hidden, n_features, generator, zero_last=True)

    def mean(self, u: Tensor, v: Tensor, covariates: Tensor | None = None) -> Tensor:
        inputs = [u, v]
        if covariates is not None:
            inputs.append(covariates.expand(*v.shape[:-1], -1))
        return super().mean(u, v, covariates) + self.network(torch.cat(inputs, dim=-1))


class FormulaDecoder(CodeDecoder):
    """Mean by the user's own formula in the units of X, a callable or Module.

    Parameters
    ----------
    formula : callable
        Maps u (n, U) and v (n, V) to the mean of a row, (n, D); with covariates it has them (n, C) as a third
        argument, in their own units. A Module's parameters are learned.
    n_features, n_group_codes, n_instance_codes : int
        Numbers D of columns, U of group codes and V of instance codes.
    center, scale : Tensor of shape (D,)
        What standardized each column of X.
    covariate_center, covariate_scale : Tensor of shape (C,)
        What standardized the covariates.
    """

    center: Tensor
    scale: Tensor
    covariate_center: Tensor
    covariate_scale: Tensor

    def __init__(
        self,
        formula: Callable[[Tensor, Tensor], Tensor],
        n_features: int,
        n_group_codes: int,
        n_instance_codes: int,
        center: Tensor,
        scale: Tensor,
        covariate_center: Tensor,
        covariate_scale: Tensor,
    ) -> None:
        super().__init__(n_features, n_group_codes, n_instance_codes, len(covariate_center))
        self.formula = formula
        self.single_precision = False
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)
        self.register_buffer("covariate_center", covariate_center)
        self.register_buffer("covariate_scale", covariate_scale)

    def mean(self, u: Tensor, v: Tensor, covariates: Tensor | None = None) -> Tensor:
        # The formula always sees two-dimensional codes, so that u[:, 0] and u[..., 0] both work.
        leading = v.shape[:-1]
        if covariates is not None:
            in_units = covariates * self.covariate_scale + self.covariate_center
            covariates = in_units.expand(*leading, -1).reshape(-1, self.n_covariates)
        value = self._unscaled(u.reshape(-1, u.shape[-1]), v.reshape(-1, v.shape[-1]), covariates)
        standardized = (value.to(v.dtype) - self.center) / self.scale
        return standardized.reshape(*leading, self.n_features)

    def _unscaled(self, u: Tensor, v: Tensor, covariates: Tensor | None) -> Tensor:
        arguments = [u, v] if covariates is None else [u, v, covariates]
        if self.single_precision:
            arguments = [part.float() for part in arguments]
        return self.formula(*arguments)

    def check(self) -> None:
        super().check()
        if isinstance(self.formula, nn.Module):
            return  # its parameters and buffers follow the precision of the model
        try:
            with torch.no_grad():
                sizes = (self.n_group_codes, self.n_instance_codes, self.n_covariates)
                self.formula(*(torch.zeros(3, n, dtype=torch.float64) for n in sizes[: 2 + (sizes[2] > 0)]))
        except Exception:
            # It holds float32 tensors of its own, which do not mix with float64 in a matrix product.
            self.single_precision = True


def principal_loadings(covariance: Tensor, n_codes: int) -> Tensor:
    """Loadings (D, n_codes) of the first principal components of a covariance; codes left over get none."""
    values, vectors = torch.linalg.eigh(covariance)
    n_used = min(len(covariance), n_codes)
    loadings = covariance.new_zeros(len(covariance), n_codes)
    loadings[:, :n_used] = (vectors * values.clamp(min=0.0).sqrt()).flip(1)[:, :n_used]
    return loadings


def canonical_loadings(loadings: Tensor, noise: Tensor) -> Tensor:
    """The same covariance by codes whose posterior is independent, those told best first.

    Parameters
    ----------
    loadings : Tensor of shape (D, C)
        Of x = loadings @ code + noise, where the code is standard normal, which no rotation changes.
    noise : Tensor of shape (D, D)
        Covariance.

    Returns
    -------
    loadings : Tensor of shape (D, C)
        Such that ``loadings.T @ inverse(noise) @ loadings`` is diagonal.
    """
    rotation = torch.linalg.eigh(loadings.mT @ precision_matrix(noise) @ loadings).eigenvectors.flip(1)
    loadings = loadings @ rotation
    return loadings * torch.where(loadings.sum(0) < 0, -1.0, 1.0)


def precision_matrix(covariance: Tensor) -> Tensor:
    """Inverse of a covariance (D, D) of standardized columns, 0 in directions without variance."""
    return torch.linalg.pinv(covariance, atol=_TINY, rtol=_RELATIVE, hermitian=True)


def factor_loadings(covariance: Tensor, noise: Tensor, n_codes: int, learns_noise: bool) -> Tensor:
    """Loadings of factor analysis by maximum likelihood: covariance = loadings loadings' + diag(noise).

    By the EM algorithm (Rubin and Thayer 1982), from principal components.

    Parameters
    ----------
    covariance : Tensor of shape (D, D)
        To be told.
    noise : Tensor of shape (D,)
        Variances to start at, or to keep.
    n_codes : int
        Number V of factors.
    learns_noise : bool
        Whether the variances are free.

    Returns
    -------
    loadings : Tensor of shape (D, V)
    """
    loadings = principal_loadings(covariance - noise.diag(), n_codes)
    variances = covariance.diagonal()
    if learns_noise:
        noise = (variances - loadings.square().sum(1)).maximum(1e-3 * variances)
    identity = torch.eye(n_codes, dtype=covariance.dtype, device=covariance.device)
    for _ in range(_FACTOR_STEPS):
        before = loadings
        posterior = torch.linalg.solve(loadings @ loadings.mT + noise.diag(), loadings).mT
        cross = posterior @ covariance
        second = identity - posterior @ loadings + cross @ posterior.mT
        loadings = torch.linalg.solve(second, cross).mT
        if learns_noise:
            noise = (variances - (loadings * cross.mT).sum(1)).maximum(1e-6 * variances)
        if float((loadings - before).abs().max()) < _FACTOR_TOLERANCE:
            break
    return loadings
