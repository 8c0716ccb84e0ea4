"""The ELBO against the exact likelihood of the linear mixed model, and the decoder's correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracles import linear_group_posterior, linear_log_likelihood, segments_of, unsettled
from torch.distributions import Normal, kl_divergence

from skgroupvae.building import GROUP_ENCODERS, INSTANCE_ENCODERS, NetworkSpec, build_network
from skgroupvae.encoders import ConditionalEncoder, GroupEncoder
from skgroupvae.network import GroupVAENetwork

SIZES = np.array([1, 2, 4, 6])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n_features: int) -> torch.Tensor:
    return torch.randn(SIZES.sum(), n_features, generator=generator(1))


class ExactGroupEncoder(GroupEncoder):
    """The exact q(u) of groups of a linear decoder with one group code; for tests."""

    def __init__(self, decoder, x):
        super().__init__()
        means, covariances = linear_group_posterior(decoder, x.double().numpy(), SIZES)
        loc, variance = torch.tensor(np.array(means)), torch.tensor(np.array(covariances))[:, 0]
        self.q_u = Normal(loc.float(), variance.sqrt().float())

    def evidence(self, x):
        return x

    def posterior(self, evidence, sizes):
        return self.q_u


def linear_network(group_encoder="deepsets", instance_encoder="conditional", n_features=2, n_codes=(2, 1)):
    spec = NetworkSpec(group_encoder, instance_encoder, None, "linear", *n_codes, (8,), None)
    network = build_network(spec, np.zeros(n_features), np.ones(n_features), generator())
    network = unsettled(network)
    network.decoder.fix_noise(torch.linspace(0.5, 0.8, n_features))
    return network


def exact_network(n_features: int = 1) -> tuple[GroupVAENetwork, torch.Tensor]:
    """Linear decoder with exact posteriors for q: one code each, so that a normal each is exact."""
    x = rows(n_features)
    decoder = linear_network(n_features=n_features, n_codes=(1, 1)).decoder
    encoder = ConditionalEncoder(n_features, 1, 1, (8,), generator())
    return GroupVAENetwork(ExactGroupEncoder(decoder, x), encoder, decoder, None), x


def elbo_draws(network: GroupVAENetwork, x: torch.Tensor, n_draws: int) -> np.ndarray:
    """Draws of the ELBO (n_draws, G)."""
    source = generator(2)
    with torch.no_grad():
        return np.array([network.elbo(x, segments_of(SIZES), source).elbo.numpy() for _ in range(n_draws)])


@pytest.mark.parametrize("instance_encoder", INSTANCE_ENCODERS)
@pytest.mark.parametrize("group_encoder", GROUP_ENCODERS)
def test_elbo_is_below_the_exact_log_likelihood_in_expectation(group_encoder, instance_encoder):
    network, x = linear_network(group_encoder, instance_encoder), rows(2)
    draws = elbo_draws(network, x, 200)
    exact = linear_log_likelihood(network.decoder, x.numpy(), SIZES)
    standard_error = draws.std(axis=0) / math.sqrt(200)
    # Untrained encoders: the bound is far below, so the standard errors decide nothing here.
    assert (draws.mean(axis=0) <= exact + 4 * standard_error).all()


@pytest.mark.parametrize("n_features", [1, 2])
def test_elbo_of_exact_posteriors_is_the_exact_log_likelihood(n_features):
    network, x = exact_network(n_features)
    draws = elbo_draws(network, x, 2000)
    exact = linear_log_likelihood(network.decoder, x.numpy(), SIZES)
    standard_error = draws.std(axis=0) / math.sqrt(2000)
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - exact), 4 * standard_error + 1e-4)
    assert (standard_error < 0.05).all()  # the check has teeth: the log-likelihoods are in the nats


def test_terms_are_those_of_torch_distributions():
    network, x, segments = linear_network(), rows(2), segments_of(SIZES)
    terms = network.elbo(x, segments, generator(2))
    q_u = network.group_encoder(x, segments)
    u = q_u.loc + q_u.scale * torch.randn(q_u.loc.shape, generator=generator(2))
    q_v = network.instance_encoder(x, u, segments, network.decoder)
    prior = Normal(0.0, 1.0)
    by_group = [block.sum() for block in kl_divergence(q_v, prior).sum(-1).split(SIZES.tolist())]
    torch.testing.assert_close(terms.kl_v, torch.stack(by_group))
    torch.testing.assert_close(terms.kl_u, kl_divergence(q_u, prior).sum(-1))
    log_px = network.decoder(segments.expand(u), terms.v).log_prob(x).sum(-1)
    torch.testing.assert_close(
        terms.reconstruction, torch.stack([block.sum() for block in log_px.split(SIZES.tolist())])
    )
    torch.testing.assert_close(terms.elbo, terms.reconstruction - terms.kl_u - terms.kl_v)


def test_each_group_has_its_own_terms():
    network, x = linear_network(), rows(2)
    whole = network.elbo(x, segments_of(SIZES), generator(2))
    moved = x.clone()
    moved[-1] += 1.0  # a row of the last group
    changed = network.elbo(moved, segments_of(SIZES), generator(2)).elbo != whole.elbo
    assert changed.tolist() == [False, False, False, True]


def decoder_gradients(network: GroupVAENetwork, objective: torch.Tensor) -> np.ndarray:
    parameters = [p for p in network.decoder.parameters() if p.requires_grad]
    return np.concatenate([part.flatten().numpy() for part in torch.autograd.grad(objective, parameters)])


def test_correction_reaches_the_decoder_only():
    network, x = linear_network(), rows(2)
    network.importance_correction(x, segments_of(SIZES), 5, generator(3)).sum().backward()
    for name, parameter in network.named_parameters():
        is_decoder = name.startswith("decoder") and parameter.requires_grad
        assert (parameter.grad is not None and parameter.grad.abs().max() > 0) == is_decoder, name


def test_correction_averages_to_nothing_where_q_is_exact():
    # Exact posteriors leave nothing to correct: the ELBO's gradient is that of the likelihood already. Only
    # few samples keep the self-normalised weights from it, by order 1 / S.
    network, x = exact_network()
    gradients = np.array(
        [
            decoder_gradients(
                network, network.importance_correction(x, segments_of(SIZES), 200, generator(seed)).sum()
            )
            for seed in range(50)
        ]
    )
    standard_error = gradients.std(axis=0) / math.sqrt(50)
    np.testing.assert_array_less(np.abs(gradients.mean(axis=0)), 4 * standard_error + 0.05)


def test_corrected_gradient_is_that_of_the_exact_log_likelihood():
    # With a poor q the ELBO's gradient is off, and the correction turns it into that of log p(x).
    network, x = exact_network()
    network.group_encoder.q_u = Normal(
        network.group_encoder.q_u.loc + 0.3, 1.5 * network.group_encoder.q_u.scale
    )
    segments = segments_of(SIZES)
    elbo, corrected = [], []
    for seed in range(200):
        of_elbo = decoder_gradients(network, network.elbo(x, segments, generator(seed)).elbo.sum())
        correction = network.importance_correction(x, segments, 200, generator(1000 + seed)).sum()
        elbo.append(of_elbo)
        corrected.append(of_elbo + decoder_gradients(network, correction))
    exact = exact_gradient(network, x)
    elbo, corrected = np.array(elbo), np.array(corrected)
    standard_error = corrected.std(axis=0) / math.sqrt(200)
    scale = np.abs(exact).max()
    assert np.abs(elbo.mean(axis=0) - exact).max() > 0.1 * scale  # there was something to correct
    np.testing.assert_array_less(np.abs(corrected.mean(axis=0) - exact), 4 * standard_error + 0.03 * scale)


def exact_gradient(network: GroupVAENetwork, x: torch.Tensor) -> np.ndarray:
    """Central differences of the exact log-likelihood, in the order of the decoder's parameters."""
    gradient = []
    with torch.no_grad():
        for parameter in network.decoder.parameters():
            if not parameter.requires_grad:  # the noise, fixed in these tests
                continue
            flat = parameter.view(-1)
            for position in range(len(flat)):
                ends = []
                for step in (1e-2, -2e-2):
                    flat[position] += step
                    ends.append(linear_log_likelihood(network.decoder, x.numpy(), SIZES).sum())
                flat[position] += 1e-2
                gradient.append((ends[0] - ends[1]) / 2e-2)
    return np.array(gradient)
