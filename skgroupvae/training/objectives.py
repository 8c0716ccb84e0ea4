"""What one step asks of a model: each objective adds its gradient to that of the others.

The encoders follow the ELBO, the decoder an importance-weighted bound, the group encoder a bound of its own
as well (of thinned groups, or of simulated ones), and the critic of the regularizer takes its turn in
between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from skgroupvae.batch import Batch, Segments

__all__ = [
    "CriticObjective",
    "DecoderObjective",
    "ElboObjective",
    "EncoderObjective",
    "TrainableDecoder",
    "TrainableModel",
    "batch_terms",
    "trainable",
]

_CRITIC_RATE = 2e-3
# Rows of a batch that the critic sees: its cost is per row, and it needs whole groups.
_CRITIC_ROWS = 1024
_MIN_DECODER_GROUPS = 16


class _Terms(Protocol):
    """Parts of the ELBO of each group (G,), in nats, and the draws of v (N, V) they were taken at."""

    @property
    def reconstruction(self) -> Tensor: ...
    @property
    def kl_u(self) -> Tensor: ...
    @property
    def kl_v(self) -> Tensor: ...
    @property
    def v(self) -> Tensor: ...
    @property
    def elbo(self) -> Tensor: ...


class TrainableDecoder(Protocol):
    """What training asks of a decoder beside its parameters."""

    def parameters(self) -> Iterable[nn.Parameter]: ...

    def penalty(self) -> Tensor | float:
        """Prior on the decoder's parameters, to be added to the loss."""

    def rate_factors(self) -> Iterable[tuple[nn.Parameter, float]]:
        """Parameters with a rate of their own, as a multiple of the learning rate."""


class TrainableModel(Protocol):
    """What training asks of a model."""

    @property
    def group_encoder(self) -> nn.Module: ...
    @property
    def instance_encoder(self) -> nn.Module | None: ...
    @property
    def decoder(self) -> TrainableDecoder: ...
    @property
    def regularizer(self) -> nn.Module | None: ...

    def inputs(self, batch: Batch) -> Tensor:
        """Rows (N, F) as the networks see them."""

    def elbo(self, batch: Batch, generator: torch.Generator) -> _Terms:
        """Estimate of the ELBO of each group."""

    def encoder_bound(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """A bound (G,) that only the group encoder follows; None without."""

    def start_simulating(self, batch: Batch, generator: torch.Generator) -> None:
        """Learn the spread of q(u) from groups simulated from now on."""

    def stop_simulating(self) -> None:
        """Undo it."""

    def importance_correction(self, batch: Batch, n_samples: int, generator: torch.Generator) -> Tensor:
        """What turns the decoder's gradient of the ELBO (G,) into that of the importance-weighted bound."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object: ...


class ElboObjective:
    """Negative ELBO per row, with the penalties of the regularizer and the decoder.

    Parameters
    ----------
    model : TrainableModel
    regularizer_weight : float
        Weight of the penalty on the mutual information.
    generator : torch.Generator
        Source of the draws.
    """

    def __init__(self, model: TrainableModel, regularizer_weight: float, generator: torch.Generator) -> None:
        self.model, self.regularizer_weight, self.generator = model, regularizer_weight, generator
        self.critic = None if model.regularizer is None else CriticObjective(model.regularizer, generator)

    def backward(self, batch: Batch) -> Tensor:
        """Add the gradient for this batch; returns its :func:`batch_terms`."""
        terms = self.model.elbo(batch, self.generator)
        loss = -terms.elbo.sum() / batch.n_rows
        information = penalty = loss.new_zeros(())
        if self.critic is not None:
            information, penalty = self.critic(self.model.inputs(batch), terms.v, batch.groups)
        (loss + self.regularizer_weight * penalty + self.model.decoder.penalty()).backward()
        return batch_terms(terms, information)


class CriticObjective:
    """The critic's turn: it learns to tell the codes of a group from those of others, with its own Adam."""

    def __init__(self, regularizer: nn.Module, generator: torch.Generator) -> None:
        self.regularizer, self.generator = regularizer, generator
        self.optimizer = torch.optim.Adam(regularizer.parameters(), lr=_CRITIC_RATE, fused=True)

    def __call__(self, x: Tensor, v: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        """One step of the critic; returns its bound, and the penalty that has the bound's gradient for v.

        One backward pass serves both sides: the model follows the critic of the step before, and the critic
        then follows the model.
        """
        codes = v.detach().requires_grad_()
        bound = self.regularizer(*_first_rows(x, codes, segments, _CRITIC_ROWS), self.generator)
        if not bound.requires_grad:
            return bound, bound
        self.optimizer.zero_grad()
        (-bound).backward()
        self.optimizer.step()
        assert codes.grad is not None
        return bound.detach(), -(codes.grad * v).sum()


class EncoderObjective:
    """What the group encoder alone follows, beside the ELBO: thinned or simulated groups."""

    def __init__(self, model: TrainableModel, generator: torch.Generator) -> None:
        self.model, self.generator = model, generator
        self.parameters = trainable(model.group_encoder)

    def backward(self, batch: Batch) -> None:
        """Add the gradient for this batch."""
        if not self.parameters:
            return
        bound = self.model.encoder_bound(batch, self.generator)
        if bound is not None:
            (-bound.sum() / batch.n_rows).backward(inputs=self.parameters)


class DecoderObjective:
    """Turns the decoder's gradient of the ELBO into that of the importance-weighted bound.

    The ELBO of a normal q(u) prefers parameters under which the posterior is more nearly normal: on the exam
    scores it puts the noise 14 % too high. The gradient of the importance-weighted bound (Burda et al. 2016;
    the wake phase of Bornschein and Bengio 2015) tends to that of the likelihood itself.

    Parameters
    ----------
    model : TrainableModel
    n_samples : int
        Draws for each group; at 1 the two bounds are the same and nothing is done.
    generator : torch.Generator
        Source of the draws.
    """

    def __init__(self, model: TrainableModel, n_samples: int, generator: torch.Generator) -> None:
        self.model, self.n_samples, self.generator = model, n_samples, generator
        self.is_needed = n_samples > 1 and bool(trainable(model.decoder))

    def backward(self, batch: Batch) -> None:
        """Add the gradient for the first groups of this batch."""
        if not self.is_needed:
            return
        n_groups = max(_MIN_DECODER_GROUPS, batch.groups.n_groups // (2 * self.n_samples))
        part = batch.first_groups(n_groups)
        correction = self.model.importance_correction(part, self.n_samples, self.generator)
        (-correction.sum() / part.n_rows).backward()


def trainable(part: nn.Module | TrainableDecoder | None) -> list[nn.Parameter]:
    """Parameters of a part of the model that are not frozen."""
    return [] if part is None else [p for p in part.parameters() if p.requires_grad]


def batch_terms(terms: _Terms, information: Tensor) -> Tensor:
    """Sums over a batch of reconstruction, kl_u and kl_v, and the critic's bound: (4,).

    They stay tensors, so that a step waits for no number.
    """
    parts = (terms.reconstruction.sum(), terms.kl_u.sum(), terms.kl_v.sum(), information)
    return torch.stack(parts).detach()


def _first_rows(x: Tensor, v: Tensor, segments: Segments, n_rows: int) -> tuple[Tensor, Tensor, Segments]:
    """The first groups of a batch, whose rows stand by group, up to `n_rows` rows or two groups."""
    if x.shape[0] <= n_rows:
        return x, v, segments
    ends = segments.sizes.cumsum(0)
    n_groups = max(2, int(torch.searchsorted(ends, n_rows, right=True)))
    if segments.n_groups <= n_groups:
        return x, v, segments
    stop = int(ends[n_groups - 1])
    return x[:stop], v[:stop], Segments(segments.codes[:stop], segments.sizes[:n_groups])
