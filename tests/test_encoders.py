"""Group encoders add up evidence; instance encoders start from Bayes' rule; every weight is used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import exam_formula, segments_of, unsettled
from torch.distributions import Normal

from skgroupvae.building import (
    DECODERS,
    GROUP_ENCODERS,
    INSTANCE_ENCODERS,
    REGULARIZERS,
    NetworkSpec,
    build_network,
)
from skgroupvae.decoders import FormulaDecoder, LinearDecoder
from skgroupvae.encoders import (
    AverageEncoder,
    ConditionalEncoder,
    ConditionalNetworkEncoder,
    DeepSetsEncoder,
    ProductEncoder,
    ProductWithPriorEncoder,
    UnconditionalEncoder,
    linearized_posterior,
)
from skgroupvae.groups import Segments

D, U, V = 2, 3, 2
SIZES = (1, 2, 3, 7)
HIDDEN = (8, 8)
group_encoders = pytest.mark.parametrize("kind", GROUP_ENCODERS.values(), ids=GROUP_ENCODERS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n: int = sum(SIZES), n_features: int = D, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, n_features, generator=generator(seed))


def make_group_encoder(kind) -> torch.nn.Module:
    return unsettled(kind(n_features=D, n_group_codes=U, hidden=HIDDEN, generator=generator()))


def assert_same(first: Normal, second: Normal, **tolerance) -> None:
    torch.testing.assert_close(first.loc, second.loc, **tolerance)
    torch.testing.assert_close(first.scale, second.scale, **tolerance)


@group_encoders
def test_group_encoder_does_not_see_the_order_of_rows_or_of_groups(kind):
    encoder, x, segments = make_group_encoder(kind), rows(), segments_of(SIZES)
    q_u = encoder(x, segments)
    shuffle = torch.randperm(len(x), generator=generator(2))
    segments.codes.copy_(segments.codes[shuffle])
    assert_same(encoder(x[shuffle], segments), q_u, rtol=1e-5, atol=1e-5)


@group_encoders
def test_group_encoder_sees_each_group_alone(kind):
    encoder, x = make_group_encoder(kind), rows()
    q_u = encoder(x, segments_of(SIZES))
    stop = 0
    for group, size in enumerate(SIZES):
        start, stop = stop, stop + size
        alone = encoder(x[start:stop], segments_of([size]))
        assert_same(alone, Normal(q_u.loc[group : group + 1], q_u.scale[group : group + 1]))


@group_encoders
def test_evidence_of_a_group_adds_up_over_its_rows(kind):
    encoder, x = make_group_encoder(kind), rows(8)
    first, second = encoder.evidence(x[:3]).sum(0), encoder.evidence(x[3:]).sum(0)
    updated = encoder.posterior((first + second)[None], torch.tensor([8.0]))
    assert_same(updated, encoder(x, segments_of([8])), rtol=1e-4, atol=1e-5)


@group_encoders
def test_group_posterior_has_one_normal_a_group(kind):
    q_u = make_group_encoder(kind)(rows(), segments_of(SIZES))
    assert q_u.loc.shape == q_u.scale.shape == (len(SIZES), U)
    assert (q_u.scale > 0).all()


@group_encoders
def test_group_encoder_in_double_precision_is_the_same_encoder(kind):
    encoder, x, segments = make_group_encoder(kind), rows(), segments_of(SIZES)
    narrow = encoder(x, segments)
    wide = encoder.double()(x.double(), Segments(segments.codes, segments.sizes.double()))
    assert wide.loc.dtype == wide.scale.dtype == torch.float64
    assert_same(Normal(wide.loc.float(), wide.scale.float()), narrow, rtol=1e-4, atol=1e-5)


@group_encoders
def test_group_posterior_is_finite_for_equal_rows_and_for_extreme_ones(kind):
    encoder = make_group_encoder(kind)
    for x in (torch.zeros(6, D), torch.full((6, D), 30.0), 1e3 * rows(6)):
        q_u = encoder(x, segments_of([1, 5]))
        assert torch.isfinite(q_u.loc).all()
        assert torch.isfinite(q_u.scale.log()).all()


def test_average_is_the_mean_of_means_and_the_mean_of_variances():
    encoder, x = make_group_encoder(AverageEncoder), rows()
    loc, log_scale = encoder.row_network(x).chunk(2, dim=-1)
    q_u = encoder(x, segments_of(SIZES))
    for group, block in enumerate(np.split(np.arange(len(x)), np.cumsum(SIZES)[:-1])):
        torch.testing.assert_close(q_u.loc[group], loc[block].mean(0))
        torch.testing.assert_close(q_u.scale[group], log_scale[block].exp().square().mean(0).sqrt())


@pytest.mark.parametrize(("kind", "prior"), [(ProductEncoder, 0.0), (ProductWithPriorEncoder, 1.0)])
def test_product_adds_precisions_and_weighs_means_by_them(kind, prior):
    encoder, x = make_group_encoder(kind), rows(5)
    loc, raw = encoder.row_network(x).chunk(2, dim=-1)
    precision = torch.log1p(raw.exp())
    total = precision.sum(0) + prior
    q_u = encoder(x, segments_of([5]))
    torch.testing.assert_close(q_u.loc[0], (precision * loc).sum(0) / total, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(q_u.scale[0], total.rsqrt(), rtol=1e-4, atol=1e-5)


def test_product_with_prior_of_no_evidence_is_the_prior():
    q_u = make_group_encoder(ProductWithPriorEncoder).posterior(torch.zeros(1, 2 * U), torch.zeros(1))
    assert_same(q_u, Normal(torch.zeros(1, U), torch.ones(1, U)))


def test_product_with_prior_is_more_certain_than_the_prior_and_less_than_the_published_product():
    x, segments = rows(), segments_of(SIZES)
    published, corrected = (make_group_encoder(kind) for kind in (ProductEncoder, ProductWithPriorEncoder))
    assert (corrected(x, segments).scale < 1.0).all()
    assert (corrected(x, segments).scale < published(x, segments).scale).all()
    # The prior pulls every mean towards zero.
    assert (corrected(x, segments).loc.abs() < published(x, segments).loc.abs()).all()


def linear_decoder(n_features: int, n_instance_codes: int, noise: list[float]) -> LinearDecoder:
    decoder = LinearDecoder(n_features, U, n_instance_codes, (), generator(5)).double()
    decoder.fix_noise(torch.tensor(noise, dtype=torch.float64))
    return decoder


@pytest.mark.parametrize(
    ("n_instance_codes", "noise"), [(1, [0.3]), (1, [0.3, 1.0]), (2, [0.3, 1.0]), (3, [0.5, 0.2]), (2, [0.7])]
)
def test_linearized_posterior_is_bayes_rule_for_a_linear_decoder(n_instance_codes, noise):
    n_features = len(noise)
    decoder = linear_decoder(n_features, n_instance_codes, noise)
    x, u = rows(6, n_features).double(), torch.randn(2, U, generator=generator(3)).double()
    segments = segments_of([2, 4])
    posterior = linearized_posterior(x, u, segments, decoder)
    # Dense: condition the joint normal of (v, x), cov(v, x) = W', cov(x) = W W' + S.
    W = decoder.instance_loadings.weight.detach().numpy()
    S = np.diag(np.array(noise) ** 2)
    gain = W.T @ np.linalg.inv(W @ W.T + S)
    covariance = np.eye(n_instance_codes) - gain @ W
    centre = decoder.mean(segments.expand(u), torch.zeros(6, n_instance_codes).double()).detach().numpy()
    np.testing.assert_allclose(posterior.loc.detach().numpy(), (x.numpy() - centre) @ gain.T, rtol=1e-8)
    # The best factorised normal: one over the root of the precision's diagonal.
    expected_scale = 1.0 / np.sqrt(np.diag(np.linalg.inv(covariance)))
    np.testing.assert_allclose(posterior.scale.detach().numpy(), np.tile(expected_scale, (6, 1)), rtol=1e-8)


def test_linearized_posterior_is_exact_where_the_slope_depends_on_the_group():
    decoder = FormulaDecoder(exam_formula, 1, 1, torch.tensor([10.0]), torch.tensor([4.0]))
    decoder.fix_noise(torch.tensor([0.25]))  # 1 in the units of the formula
    x, u, segments = rows(5, 1), torch.randn(2, 2, generator=generator(3)), segments_of([3, 2])
    posterior = linearized_posterior(x, u, segments, decoder)
    mu, sigma = segments.expand(u).T[:, :, None]
    scale = sigma**2 + 1.0
    torch.testing.assert_close(posterior.loc, scale / (scale**2 + 1.0) * (4.0 * x + 10.0 - 2.0 * mu))
    torch.testing.assert_close(posterior.scale, (scale**2 + 1.0).rsqrt())


def make_instance_encoder(kind) -> torch.nn.Module:
    return unsettled(kind(D, U, V, HIDDEN, generator()))


def test_conditional_encoder_starts_at_the_linearized_posterior():
    decoder = LinearDecoder(D, U, V, (), generator(5))
    x, u, segments = rows(), torch.randn(len(SIZES), U, generator=generator(3)), segments_of(SIZES)
    start = linearized_posterior(x, u, segments, decoder)
    assert_same(ConditionalEncoder(D, U, V, HIDDEN, generator())(x, u, segments, decoder), start)


@pytest.mark.parametrize("kind", [ConditionalEncoder, ConditionalNetworkEncoder])
def test_conditional_encoders_see_the_group(kind):
    decoder = LinearDecoder(D, U, V, (), generator(5))
    x, segments = rows(), segments_of(SIZES)
    encoder = make_instance_encoder(kind)
    first, second = (encoder(x, torch.full((len(SIZES), U), c), segments, decoder) for c in (0.0, 1.0))
    assert ((first.loc - second.loc).abs().max(dim=1).values > 1e-4).all()


def test_unconditional_encoder_is_blind_to_the_group():
    decoder = LinearDecoder(D, U, V, (), generator(5))
    x, segments = rows(), segments_of(SIZES)
    encoder = make_instance_encoder(UnconditionalEncoder)
    assert_same(*(encoder(x, torch.full((len(SIZES), U), c), segments, decoder) for c in (0.0, 1.0)))


@pytest.mark.parametrize("kind", INSTANCE_ENCODERS.values(), ids=INSTANCE_ENCODERS)
def test_instance_encoder_treats_rows_one_by_one(kind):
    decoder = LinearDecoder(D, U, V, (), generator(5))
    encoder, x, segments = make_instance_encoder(kind), rows(), segments_of(SIZES)
    u = torch.randn(len(SIZES), U, generator=generator(3))
    whole = encoder(x, u, segments, decoder)
    alone = encoder(x[4:5], u[2:3], segments_of([1]), decoder)  # a row of the third group
    assert_same(alone, Normal(whole.loc[4:5], whole.scale[4:5]))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("instance_encoder", INSTANCE_ENCODERS)
@pytest.mark.parametrize("group_encoder", GROUP_ENCODERS)
def test_gradients_reach_every_parameter(group_encoder, instance_encoder, regularizer, decoder):
    spec = NetworkSpec(group_encoder, instance_encoder, regularizer, decoder, U, V, HIDDEN, None)
    network = unsettled(build_network(spec, np.zeros(D), np.ones(D), generator()))
    x, segments = rows(), segments_of(SIZES)
    terms = network.elbo(x, segments, generator(6))
    (network.regularizer(x, terms.v, segments, generator(7)) - terms.elbo.sum()).backward()
    silent = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None
        or not torch.isfinite(parameter.grad).all()
        or parameter.grad.abs().max() == 0
    ]
    # The log-mean-exp of eq. 2 and 3 cancels a constant added to the critic: its last bias has no say.
    last_bias = {"regularizer.network.4.bias", "regularizer.pair_network.4.bias"}
    assert set(silent) <= last_bias


def test_deep_sets_starts_at_the_given_linear_predictor():
    encoder = DeepSetsEncoder(D, U, HIDDEN, generator())
    predictor = torch.randn(U, D, generator=generator(3))
    encoder.start_from_predictor(predictor)
    x = rows()
    means = torch.stack([block.mean(0) for block in x.split(SIZES)])
    torch.testing.assert_close(encoder(x, segments_of(SIZES)).loc, means @ predictor.T)
