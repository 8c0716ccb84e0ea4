"""The network of a regression: p(y given x, u) with group codes u, and its posterior given a group's rows.

It contains the (generalised) linear mixed model: the linear predictor is ``f beta + z Lambda u``, and a
network that starts at zero adds to it, and to the scale and shape of the outcome, what depends on x and u in
other ways. The instance code is the outcome's normal score (``families``), so it needs no integral; the
group code's posterior starts at the one of the linear mixed model, and a learned correction follows.

Rows are (N, 2 + P): the outcome, how many rows it counts as, and the columns of the design, the first of
them constant.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from skgroupvae.groups import Segments
from skgroupvae.network import ElboTerms, TrainableNetwork
from skgroupvae.regression.curves import leading_curves
from skgroupvae.regression.decoder import RegressionDecoder
from skgroupvae.regression.encoder import MAX_SCORE, FullNormal, MixedModelEncoder, normal_posterior
from skgroupvae.regression.rows import OutcomeRows, RowsEncoder, RowsRegularizer

__all__ = ["RegressionNetwork"]

# Draws of u behind one estimate of the ELBO.
_ELBO_SAMPLES = 4
# Steps of Newton's method to a mode, and how far one goes in standard deviations of the prior.
_MODE_STEPS, _MAX_MODE_STEP = 15, 1.0


class RegressionNetwork(TrainableNetwork):
    """q(u given a group's rows) and p(y given x, u)."""

    def __init__(
        self,
        group_encoder: MixedModelEncoder | RowsEncoder,
        decoder: RegressionDecoder,
        regularizer: RowsRegularizer | None = None,
    ) -> None:
        super().__init__()
        self.group_encoder = group_encoder
        self.instance_encoder = nn.Identity()
        self.decoder = decoder
        self.regularizer = regularizer

    def evidence(self, x: Tensor) -> Tensor:
        return self.group_encoder.evidence(x, self.decoder)

    def posterior(self, evidence: Tensor, sizes: Tensor) -> FullNormal:
        return self.group_encoder.posterior(evidence)

    def freeze_evidence(self) -> None:
        self.group_encoder.freeze_evidence(self.decoder)

    def release_evidence(self) -> None:
        """Undo :meth:`freeze_evidence`: the evidence of rows follows the decoder again."""
        self.group_encoder.release_evidence()

    def start_rows(self, x: Tensor) -> None:
        """Standardise the outcome for the parts that see it in rows."""
        for module in self.modules():
            if isinstance(module, OutcomeRows):
                module.start(x)

    def newton_posterior(self, x: Tensor, segments: Segments) -> FullNormal:
        """q(u) by one step of Newton's method, whatever the encoder has yet to learn."""
        encoder = MixedModelEncoder(x.shape[1] - 2, self.decoder.n_group_codes, (), torch.Generator())
        return encoder.posterior(segments.sum(encoder.evidence(x, self.decoder)))

    @torch.no_grad()
    def laplace_posterior(self, x: Tensor, segments: Segments) -> FullNormal:
        """Normal at the mode of the posterior, for a decoder without networks; it needs the rows at once."""
        y, weights, design = x[:, 0], x[:, 1:2], x[:, 2:]
        slopes = self.decoder.coefficients(design)[:, 0]
        q_u = self.newton_posterior(x, segments)
        for _ in range(_MODE_STEPS):
            u = segments.expand(q_u.loc)
            score, information = self.decoder.family.working(y, self.decoder(design, u))
            score, information = weights * score[:, :1], weights * information[:, :1]
            inner = segments.sum(information[..., None] * slopes[:, :, None] * slopes[:, None])
            pull = segments.sum((score + information * (slopes * u).sum(-1, keepdim=True)) * slopes)
            after = normal_posterior(pull, inner)
            # Newton's method on counts overshoots from below.
            step = (after.loc - q_u.loc).clamp(-_MAX_MODE_STEP, _MAX_MODE_STEP)
            q_u = FullNormal(q_u.loc + step, after.root, after.log_det)
        return q_u

    @torch.no_grad()
    def start_curves(self, x: Tensor, segments: Segments, generator: torch.Generator) -> None:
        """Start the codes beside the random effects where groups differ more than those explain."""
        decoder = self.decoder
        n_curves = decoder.n_group_codes - len(decoder.random)
        if decoder.curves is None or n_curves == 0:
            return
        y, weights, design = x[:, 0], x[:, 1:2], x[:, 2:]
        q_u = self.newton_posterior(x, segments)
        score, information = decoder.family.working(y, decoder(design, segments.expand(q_u.loc)))
        features = nn.functional.pad(decoder.curves[:-1](design[:, 1:]), (0, 1), value=1.0)
        score, information = weights * score, weights * information
        coefficients = leading_curves(
            features.double(), score.double(), information.double(), segments, n_curves, generator
        )
        decoder.start_curves(coefficients)

    def log_prob(self, x: Tensor, u: Tensor, segments: Segments) -> Tensor:
        """Of each row, times its weight, at draws u (S, G, U) of its group's code: (S, N)."""
        eta = self.decoder(x[:, 2:], u.index_select(1, segments.codes))
        return x[:, 1] * self.decoder.family.log_prob(x[:, 0].expand(eta.shape[:-1]), eta)

    def elbo(self, x: Tensor, segments: Segments, generator: torch.Generator) -> ElboTerms:
        terms, u = self._elbo(x, segments, generator)
        return terms if self.regularizer is None else replace(terms, v=self.scores(x, u[0], segments))

    def _elbo(self, x: Tensor, segments: Segments, generator: torch.Generator) -> tuple[ElboTerms, Tensor]:
        """The ELBO with no draws of v, and the draws of u (S, G, U) that it was taken at."""
        q_u = self.posterior(segments.sum(self.evidence(x)), segments.sizes)
        half = _noise(_ELBO_SAMPLES // 2, q_u, generator)
        u = q_u.draw(torch.cat([half, -half]))
        log_py = self.log_prob(x, u, segments).mean(0)
        zeros = torch.zeros_like(q_u.log_det)
        return ElboTerms(segments.sum(log_py), q_u.kl_to_standard_normal(), zeros, x[:, :0]), u

    def scores(self, x: Tensor, u: Tensor, segments: Segments) -> Tensor:
        """Instance code of each row given a draw u (G, U), with a gradient to u and the decoder: (N, 1)."""
        eta = self.decoder(x[:, 2:], segments.expand(u))
        family, y = self.decoder.family.of_rows(x[:, 0], x[:, 1])
        v = family.score_with_gradient(y, eta).to(x.dtype)
        return v.clamp(-MAX_SCORE, MAX_SCORE)[:, None]

    def encoder_elbo(self, x: Tensor, segments: Segments, generator: torch.Generator) -> Tensor:
        """ELBO of a random part of each group.

        Context comes in any number of rows, and an encoder that saw whole groups alone is too sure of few.
        """
        kept, part = segments.thinned(generator)
        return self._elbo(x[kept], part, generator)[0].elbo

    def importance_correction(
        self, x: Tensor, segments: Segments, n_samples: int, generator: torch.Generator
    ) -> Tensor:
        with torch.no_grad():
            q_u = self.posterior(segments.sum(self.evidence(x)), segments.sizes)
            noise = _noise(n_samples, q_u, generator)
            u = q_u.draw(noise)
        log_py = segments.sum(self.log_prob(x, u, segments).mT).mT
        weights = torch.softmax(log_py.detach() + q_u.log_prior_ratio(u, noise), dim=0) - 1.0 / n_samples
        return (weights * log_py).sum(0)


def _noise(n_samples: int, q_u: FullNormal, generator: torch.Generator) -> Tensor:
    noise = torch.randn((n_samples, *q_u.loc.shape), generator=generator, dtype=q_u.loc.dtype)
    return noise.to(q_u.loc.device)
