"""The mirrored proposal is the mixture it says it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.distributions import Normal

from skgroupvae.proposals import MirroredProposal

SAMPLE_COUNTS = (1, 2, 3, 5, 10, 101)


def proposal_of(n_samples: int, n_codes: int = 2) -> MirroredProposal:
    g = torch.Generator().manual_seed(0)
    loc = torch.randn(3, n_codes, generator=g, dtype=torch.float64)
    scale = 0.4 + 0.6 * torch.rand(3, n_codes, generator=g, dtype=torch.float64)
    return MirroredProposal(Normal(loc, scale), n_samples)


@pytest.mark.parametrize("n_codes", [1, 2, 3])
@pytest.mark.parametrize("n_samples", SAMPLE_COUNTS)
def test_half_of_the_draws_are_direct_and_the_axes_share_the_rest_evenly(n_samples, n_codes):
    proposal = proposal_of(n_samples, n_codes)
    signs = proposal.signs.numpy()
    assert signs.shape == (n_samples, n_codes)
    assert proposal.n_direct == math.ceil(n_samples / 2)
    assert (signs[: proposal.n_direct] == 1).all()
    mirrored = signs[proposal.n_direct :]
    assert ((mirrored == -1).sum(axis=1) == 1).all()  # one axis at a time
    by_axis = (mirrored == -1).sum(axis=0)
    assert by_axis.max() - by_axis.min() <= 1


@pytest.mark.parametrize("n_samples", SAMPLE_COUNTS)
def test_draws_of_no_noise_are_the_mirrored_means(n_samples):
    proposal = proposal_of(n_samples)
    draws = proposal.draw(torch.zeros(n_samples, 1, 2, dtype=torch.float64))
    torch.testing.assert_close(draws, proposal.signs[:, None] * proposal.q_u.loc)


def test_log_prior_ratio_equals_the_mixture_by_scipy():
    proposal = proposal_of(5)
    draws = proposal.draw(torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(1)).double())
    u, loc, scale = draws.numpy(), proposal.q_u.loc.numpy(), proposal.q_u.scale.numpy()
    # Three direct draws, then one mirrored along each axis.
    components = [(0.6, [1, 1]), (0.2, [-1, 1]), (0.2, [1, -1])]
    density = sum(w * norm.pdf(u, np.array(s) * loc, scale).prod(-1) for w, s in components)
    expected = norm.logpdf(u).sum(-1) - np.log(density)
    np.testing.assert_allclose(proposal.log_prior_ratio(draws).numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_samples", [1, 2, 7, 100])
def test_density_integrates_prior_over_mixture_averages_to_one(n_samples):
    # E over the mixture of prior / mixture is 1 only if the density is that of the draws. Draws within one
    # proposal are stratified by component, so their average is unbiased; 4,000 repetitions give its error.
    loc, scale = torch.tensor([[0.7, -0.4]]).double(), torch.tensor([[0.9, 1.1]]).double()
    proposal = MirroredProposal(Normal(loc.expand(4000, 2), scale.expand(4000, 2)), n_samples)
    noise = torch.randn(n_samples, 4000, 2, generator=torch.Generator().manual_seed(2)).double()
    ratio = proposal.log_prior_ratio(proposal.draw(noise)).exp().mean(0)
    standard_error = float(ratio.std()) / math.sqrt(4000)
    assert abs(float(ratio.mean()) - 1.0) < 4 * standard_error
    assert standard_error < 0.03  # the check has teeth


def test_a_mirrored_mode_is_covered():
    # A likelihood even in u has two modes; q sits on one. Its evidence by importance sampling needs both.
    q_u = Normal(torch.tensor([[2.0]]).double(), torch.tensor([[0.3]]).double())
    target = Normal(torch.tensor([2.0]).double(), 0.3)

    def log_evidence(n_samples: int) -> float:
        proposal = MirroredProposal(q_u, n_samples)
        draws = proposal.draw(
            torch.randn(n_samples, 1, 1, generator=torch.Generator().manual_seed(0)).double()
        )
        both = torch.stack([target.log_prob(draws), target.log_prob(-draws)]).logsumexp(0)[..., 0]
        # The "prior" cancels: weigh by joint / mixture with joint = the two-mode density of mass 2.
        prior = Normal(0.0, 1.0).log_prob(draws)[..., 0]
        weights = both - prior + proposal.log_prior_ratio(draws)
        return float(torch.logsumexp(weights, 0) - math.log(n_samples))

    assert log_evidence(100) == pytest.approx(math.log(2.0), abs=1e-6)
