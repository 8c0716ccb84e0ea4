"""The one model of the package: p(rows given u), q(u given a group's rows), and their lower bound (ELBO).

Two kinds of instance codes make the two models: :class:`LatentModel` has codes v of their own, with a
posterior q(v given x, u), and a decoder p(x given u, v); in :class:`ScoreModel` v is the normal score of the
values given u and the covariates, so that it needs no integral.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from skgroupvae.batch import Batch, Segments
from skgroupvae.model.decoders import CodeDecoder, Decoder, FormulaDecoder
from skgroupvae.model.encoders import MAX_SCORE, DeepSetsEncoder, GroupEncoder, NewtonEncoder
from skgroupvae.model.instance_encoders import ExactEncoder, InstanceEncoder
from skgroupvae.model.mixed_decoder import MixedModelDecoder
from skgroupvae.model.nn import standard_normal
from skgroupvae.model.posteriors import DiagonalNormal, FullNormal, MirroredNormal, Posterior, mirror_signs
from skgroupvae.model.regularizers import Regularizer

__all__ = ["ElboTerms", "LatentModel", "Model", "RowTerms", "ScoreModel"]

# Of proposals by Laplace's method.
_WIDER = 1.2
# Simulated groups as a share of a step's groups, how many of them have a part of the rows only, and what each
# weighs: more makes the means of whole groups noisy, and the spreads follow nothing else.
_SIMULATED_SHARE, _SHARE_OF_PARTS, _SIMULATED_WEIGHT = 0.5, 0.8, 0.4
# Groups to ask whether the decoder is even in a code.
_GROUPS_ASKED = 64
# Mean ratio of the likelihoods at a code and at its mirror image, the larger below, from which it counts as
# even. Exactly even is 1; a code that means tell has about 0.2.
_EVEN = 0.8


@dataclass(frozen=True)
class ElboTerms:
    """The parts of the ELBO of each group (G,), in nats, and the draws of v (N, V) they were taken at."""

    reconstruction: Tensor
    kl_u: Tensor
    kl_v: Tensor
    v: Tensor

    @property
    def elbo(self) -> Tensor:
        """ELBO of each group (G,): a lower bound on log p(x_i) in expectation; larger is better."""
        return self.reconstruction - self.kl_u - self.kl_v


@dataclass(frozen=True)
class RowTerms:
    """What rows say at draws u (S, G, U) of their groups' codes.

    Attributes
    ----------
    log_prob : Tensor of shape (S, N)
        log p(x given u, v), in nats.
    log_ratio : Tensor of shape (S, N) or None
        log p(v) - log q(v) at the draw of v; None where v is no draw.
    """

    log_prob: Tensor
    log_ratio: Tensor | None


class Model(nn.Module, ABC):
    """Base class: encoders, decoder, and what training and inference ask of them.

    Parameters
    ----------
    group_encoder : GroupEncoder
        q(u given the rows of a group).
    decoder : Decoder
        Parameters of p(values given design, u, v).
    regularizer : Regularizer or None
        Adversarial bound on what v tells of its group.
    """

    value_center: Tensor
    value_scale: Tensor

    def __init__(
        self, group_encoder: GroupEncoder, decoder: Decoder, regularizer: Regularizer | None
    ) -> None:
        super().__init__()
        self.group_encoder = group_encoder
        self.decoder: Decoder = decoder
        self.regularizer = regularizer
        # Counts and grades come as they are; networks see all values standardized.
        n_values = decoder.likelihood.n_columns
        self.register_buffer("value_center", torch.zeros(n_values, dtype=torch.float32))
        self.register_buffer("value_scale", torch.ones(n_values, dtype=torch.float32))

    @property
    def device(self) -> torch.device:
        return self.value_center.device

    @torch.no_grad()
    def set_value_moments(self, batch: Batch) -> None:
        """Learn what standardizes the values for the networks that see them."""
        weights = batch.weights[:, None].expand_as(batch.values).double()
        if batch.mask is not None:
            weights = weights * batch.mask
        total = weights.sum(0)
        center = (weights * batch.values).sum(0) / total
        scale = ((weights * (batch.values - center).square()).sum(0) / total).sqrt()
        self.value_center.copy_(center)
        self.value_scale.copy_(torch.where(scale > 0, scale, torch.ones_like(scale)))

    def inputs(self, batch: Batch) -> Tensor:
        """Rows as networks see them: values and covariates, (N, D + P - 1)."""
        values = (batch.values - self.value_center) / self.value_scale
        if batch.mask is not None:
            values = torch.where(batch.mask, values, torch.zeros_like(values))
        return values if batch.design.shape[1] == 1 else torch.cat([values, batch.design[:, 1:]], dim=-1)

    def statistics(self, batch: Batch) -> Tensor:
        """What each row adds to what is known of its group, its weight first: (N, 1 + E)."""
        statistics = self.group_encoder.statistics(self.inputs(batch), batch, self.decoder)
        weights = batch.weights[:, None]
        return torch.cat([weights, weights * statistics], dim=-1)

    def posterior(self, totals: Tensor) -> DiagonalNormal | FullNormal:
        """q(u) from statistics summed by group: (G, 1 + E) -> normals over (G, U)."""
        return self.group_encoder.posterior(totals[:, 1:], totals[:, 0])

    def infer(self, batch: Batch) -> DiagonalNormal | FullNormal:
        """q(u) of each group of the first factor, from its rows."""
        return self.posterior(batch.groups.sum(self.statistics(batch)))

    @abstractmethod
    def proposal(self, q_u: DiagonalNormal | FullNormal, n_samples: int) -> Posterior:
        """Where importance samples of u are drawn from."""

    @abstractmethod
    def row_terms(
        self, batch: Batch, u: Tensor, noise: Tensor | None, generator: torch.Generator | None
    ) -> RowTerms:
        """What rows say at draws u (S, G, U), v at the given noise (N, V) or at a draw of `generator`."""

    @abstractmethod
    def elbo(self, batch: Batch, generator: torch.Generator) -> ElboTerms:
        """Estimate of the ELBO of each group (section 2.1), KL terms in closed form."""

    def encoder_bound(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """A bound (G,) that only the group encoder follows beside :meth:`elbo`; None without."""
        return None

    def start_simulating(self, batch: Batch, generator: torch.Generator) -> None:
        """Learn the spread of q(u) from groups simulated from now on, where the model can."""

    def stop_simulating(self) -> None:
        """Undo :meth:`start_simulating`."""

    def importance_correction(self, batch: Batch, n_samples: int, generator: torch.Generator) -> Tensor:
        """Difference between the importance-weighted bound and the ELBO, as a function of the decoder.

        The gradient of the importance-weighted bound (Burda et al. 2016) weighs log p(x given u, v) by the
        normalized importance weights of the draws, that of the ELBO by 1 / n on draws from q. This is the
        sum with the difference of the two weights: added to an ELBO on many more groups it makes the bound's
        gradient, with far less noise than the bound on these few groups alone.

        Parameters
        ----------
        batch : Batch
            Whole groups.
        n_samples : int
            Number S of draws of the codes of each group.
        generator : torch.Generator
            Source of the draws.

        Returns
        -------
        correction : Tensor of shape (G,)
            In nats; its value means nothing, its gradient reaches the decoder only.
        """
        with torch.no_grad():
            q_u = self.infer(batch)
            proposal = self.proposal(q_u, n_samples)
            noise = standard_normal((n_samples, *q_u.loc.shape), q_u.loc, generator)
            u, log_ratio = proposal.propose(noise)
        rows = self.row_terms(batch, u, None, generator)
        log_px = _by_group(batch.weights * rows.log_prob, batch.groups)
        if rows.log_ratio is not None:
            log_ratio = log_ratio + _by_group(rows.log_ratio, batch.groups)
        weights = torch.softmax(log_px.detach() + log_ratio, dim=0)
        n_direct = proposal.n_direct if isinstance(proposal, MirroredNormal) else n_samples
        from_q = torch.arange(n_samples, device=weights.device)[:, None] < n_direct
        return ((weights - from_q.to(weights) / n_direct) * log_px).sum(0)


class LatentModel(Model):
    """Instance codes v with a posterior of their own: p(x given u, v), q(v given x, u).

    Attributes
    ----------
    covariate_effects : Tensor of shape (C, D)
        Of the linear mixed model that the fit started at.
    """

    covariate_effects: Tensor

    def __init__(
        self,
        group_encoder: GroupEncoder,
        instance_encoder: InstanceEncoder,
        decoder: CodeDecoder,
        regularizer: Regularizer | None,
    ) -> None:
        super().__init__(group_encoder, decoder, regularizer)
        self.instance_encoder = instance_encoder
        self.decoder: CodeDecoder = decoder
        effects = torch.zeros(decoder.n_covariates, decoder.n_features, dtype=torch.float32)
        self.register_buffer("covariate_effects", effects)
        # Codes that the decoder is even in, (U,); None while no groups are simulated.
        self._is_even: Tensor | None = None

    def inputs(self, batch: Batch) -> Tensor:
        # What covariates explain tells nothing of u.
        if batch.covariates is None:
            return batch.values
        return torch.cat([batch.values - batch.covariates @ self.covariate_effects, batch.covariates], dim=-1)

    def is_exact(self, q_u: Posterior) -> bool:
        """Whether q(u) and q(v given u) are the posteriors themselves, as those of a linear model are."""
        return self._is_closed(q_u) and self.decoder.has_common_slope

    def _is_closed(self, q_u: Posterior) -> bool:
        """Whether q(u) is found from the decoder with no network, and q(v given u) is exact."""
        return isinstance(q_u, FullNormal) and isinstance(self.instance_encoder, ExactEncoder)

    def proposal(self, q_u: DiagonalNormal | FullNormal, n_samples: int) -> Posterior:
        if not self._is_closed(q_u):
            return MirroredNormal(q_u, n_samples)
        # The posterior itself has no mirror image; one by Laplace's method may be too narrow.
        return q_u if self.is_exact(q_u) else q_u.stretched(_WIDER)  # type: ignore[union-attr]

    def instance_posterior(self, batch: Batch, u: Tensor) -> DiagonalNormal | FullNormal:
        """q(v given x, u) of each row, from u (G, U) of its group."""
        return self.instance_encoder(self.inputs(batch), batch, u, self.decoder)

    def elbo(self, batch: Batch, generator: torch.Generator) -> ElboTerms:
        q_u, groups = self.infer(batch), batch.groups
        if self._is_even is not None:
            q_u = DiagonalNormal(q_u.loc, q_u.scale.detach())
        u = q_u.draw(generator)
        q_v = self.instance_posterior(batch, u)
        v = q_v.draw(generator)
        eta = self.decoder(batch.design, groups.expand(u), v)
        log_px = self.decoder.likelihood.log_prob(batch.values, eta, batch.mask)
        by_group = groups.sum(torch.stack([log_px, q_v.kl_to_standard_normal()], dim=-1))
        return ElboTerms(by_group[:, 0], q_u.kl_to_standard_normal(), by_group[:, 1], v)

    @torch.no_grad()
    def start_simulating(self, batch: Batch, generator: torch.Generator) -> None:
        # A network that learns beside would follow the wider q(u), and lose 0.002 to 0.012 nats a row by it.
        learns_alone = isinstance(self.decoder, FormulaDecoder)
        if not (learns_alone and isinstance(self.group_encoder, DeepSetsEncoder)):
            return
        simulated, u = self.simulate(batch.first_groups(_GROUPS_ASKED), generator)
        signs = mirror_signs(u)
        rows = self.row_terms(simulated, u * signs[:, None], None, generator)
        assert rows.log_ratio is not None
        log_p = _by_group(rows.log_prob + rows.log_ratio, simulated.groups)
        self._is_even = (log_p[1:] - log_p[0]).abs().neg().exp().mean(1) > _EVEN

    def stop_simulating(self) -> None:
        self._is_even = None

    @torch.no_grad()
    def simulate(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, Tensor]:
        """Groups of these sizes as the model has them, and their codes u (G, U)."""
        groups, decoder, like = batch.groups, self.decoder, batch.values
        u = standard_normal((groups.n_groups, decoder.n_group_codes), like, generator)
        v = standard_normal((batch.n_rows, decoder.n_instance_codes), like, generator)
        noise = decoder.noise_scale * standard_normal(like.shape, like, generator)
        return replace(batch, values=decoder.mean(groups.expand(u), v, batch.covariates) + noise), u

    def encoder_bound(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """Log density that q(u) gives to the codes of simulated groups.

        The ELBO prefers a q(u) that is too narrow: of few rows by 13 % on the exam scores. Where u is known
        the best normal has the posterior's mean and variance. A code that the decoder is even in has a
        posterior with two mirrored modes, one of which is to be met.
        """
        if self._is_even is None:
            return None
        n_groups = batch.groups.n_groups
        part = batch.first_groups(math.ceil(_SIMULATED_SHARE * n_groups))
        simulated, u = self.simulate(part.with_parts(_SHARE_OF_PARTS, generator), generator)
        q_u = self.infer(simulated)
        direct, mirrored = (-0.5 * ((u - loc) / q_u.scale).square() for loc in (q_u.loc, -q_u.loc))
        log_q = torch.where(self._is_even, torch.logaddexp(direct, mirrored), direct) - q_u.scale.log()
        return log_q.sum(-1) * (_SIMULATED_WEIGHT * n_groups / len(log_q))

    def row_terms(
        self, batch: Batch, u: Tensor, noise: Tensor | None, generator: torch.Generator | None
    ) -> RowTerms:
        n_samples, n_groups = u.shape[:2]
        groups, copies = batch.groups, batch
        if n_samples > 1:
            shift = n_groups * torch.arange(n_samples, device=u.device)[:, None]
            codes = (groups.codes + shift).reshape(-1)
            groups = Segments(codes, groups.sizes.repeat(n_samples))
            mask = None if batch.mask is None else batch.mask.repeat(n_samples, 1)
            copies = Batch(
                batch.values.repeat(n_samples, 1),
                batch.design.repeat(n_samples, 1),
                batch.weights.repeat(n_samples),
                (groups,),
                mask,
            )
        with torch.no_grad():
            flat = u.flatten(0, 1)
            q_v = self.instance_posterior(copies, flat)
            # All draws of u share one draw of v's noise: what v alone makes of the weights then cancels.
            if noise is None:
                assert generator is not None
                noise = standard_normal((batch.n_rows, q_v.loc.shape[-1]), q_v.loc, generator)
            v, log_ratio = q_v.propose(noise.repeat(n_samples, 1))
        eta = self.decoder(copies.design, groups.expand(flat), v)
        log_px = self.decoder.likelihood.log_prob(copies.values, eta, copies.mask)
        return RowTerms(log_px.unflatten(0, (n_samples, -1)), log_ratio.unflatten(0, (n_samples, -1)))


class ScoreModel(Model):
    """Instance codes that are the normal scores of the values: p(y given covariates, u)."""

    # The scores are no draws of an encoder's.
    instance_encoder: None = None
    # Draws of u behind one estimate of the ELBO, in pairs about the mean.
    n_elbo_samples = 4

    def __init__(
        self, group_encoder: GroupEncoder, decoder: MixedModelDecoder, regularizer: Regularizer | None = None
    ) -> None:
        super().__init__(group_encoder, decoder, regularizer)
        self.decoder: MixedModelDecoder = decoder

    def proposal(self, q_u: DiagonalNormal | FullNormal, n_samples: int) -> Posterior:
        return q_u

    @property
    def has_learned_posterior(self) -> bool:
        """Whether q(u) is more than a step of Newton's method."""
        encoder = self.group_encoder
        return not isinstance(encoder, NewtonEncoder) or encoder.group_network is not None

    def log_prob(self, batch: Batch, u: Tensor) -> Tensor:
        """Of each row, at draws u (S, G, U) of its group's code: (S, N)."""
        eta = self.decoder(batch.design, u.index_select(1, batch.groups.codes))
        return self.decoder.likelihood.log_prob(batch.values, eta, batch.mask)

    def row_terms(
        self, batch: Batch, u: Tensor, noise: Tensor | None, generator: torch.Generator | None
    ) -> RowTerms:
        return RowTerms(self.log_prob(batch, u), None)

    def elbo(self, batch: Batch, generator: torch.Generator) -> ElboTerms:
        terms, u = self._elbo(batch, generator)
        v = batch.values[:, :0] if self.regularizer is None else self.scores(batch, u[0])
        return ElboTerms(terms.reconstruction, terms.kl_u, terms.kl_v, v)

    def encoder_bound(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """ELBO of a random part of each group.

        Context comes in any number of rows, and an encoder that saw whole groups alone is too sure of few.
        """
        return self._elbo(batch.thinned(generator), generator)[0].elbo

    def _elbo(self, batch: Batch, generator: torch.Generator) -> tuple[ElboTerms, Tensor]:
        """The ELBO without v, and the draws of u (S, G, U) that it was taken at."""
        q_u = self.infer(batch)
        half = standard_normal((self.n_elbo_samples // 2, *q_u.loc.shape), q_u.loc, generator)
        u = q_u.from_noise(torch.cat([half, -half]))
        reconstruction = batch.groups.sum(batch.weights * self.log_prob(batch, u).mean(0))
        kl_u = q_u.kl_to_standard_normal()
        # The likelihood has v integrated out, so that it costs nothing beside.
        return ElboTerms(reconstruction, kl_u, torch.zeros_like(kl_u), batch.values[:, :0]), u

    def scores(self, batch: Batch, u: Tensor) -> Tensor:
        """Instance codes of rows given a draw u (G, U), with a gradient to u and the decoder: (N, D)."""
        eta = self.decoder(batch.design, batch.groups.expand(u))
        likelihood, values = self.decoder.likelihood.of_rows(batch.values, batch.weights)
        v = likelihood.scores_with_gradient(values, eta).to(batch.values.dtype)
        return v.clamp(-MAX_SCORE, MAX_SCORE)


def _by_group(rows: Tensor, groups: Segments) -> Tensor:
    """Sums over the rows of each group of values by draw: (S, N) -> (S, G)."""
    return groups.sum(rows.mT).mT
