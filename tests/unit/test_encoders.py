"""Group encoders add up statistics; instance encoders start from Bayes' rule; exact ones are exact."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import batch_of, exam_formula, linear_group_posterior, segments_of, unsettled

from skgroupvae.batch import Batch, Segments
from skgroupvae.model.decoders import FormulaDecoder, LinearDecoder, canonical_loadings
from skgroupvae.model.encoders import (
    AverageEncoder,
    DeepSetsEncoder,
    GroupEncoder,
    NewtonEncoder,
    ProductEncoder,
    ProductWithPriorEncoder,
)
from skgroupvae.model.instance_encoders import (
    ConditionalEncoder,
    ConditionalNetworkEncoder,
    ExactEncoder,
    UnconditionalEncoder,
    linearized_posterior,
)
from skgroupvae.model.model import LatentModel
from skgroupvae.model.posteriors import DiagonalNormal, FullNormal
from skgroupvae.model.spec import GROUP_ENCODERS, INSTANCE_ENCODERS

D, U, V = 2, 3, 2
SIZES = (1, 2, 3, 7)
HIDDEN = (8, 8)


def newton_encoder(n_features, n_group_codes, hidden, generator) -> NewtonEncoder:
    return NewtonEncoder(n_features, n_features, n_group_codes, hidden, generator)


def exact_encoder(n_features, n_group_codes, hidden, generator) -> NewtonEncoder:
    return NewtonEncoder(n_features, n_features, n_group_codes, (), generator)


ALL_GROUP_ENCODERS = {**GROUP_ENCODERS, "newton": newton_encoder, "exact": exact_encoder}
group_encoders = pytest.mark.parametrize("kind", ALL_GROUP_ENCODERS.values(), ids=ALL_GROUP_ENCODERS)
row_encoders = pytest.mark.parametrize("kind", GROUP_ENCODERS.values(), ids=GROUP_ENCODERS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n: int = sum(SIZES), n_features: int = D, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, n_features, generator=generator(seed))


def linear_decoder(n_features: int = D, n_instance_codes: int = V) -> LinearDecoder:
    return LinearDecoder(n_features, U, n_instance_codes, (), generator(5))


def make_group_encoder(kind) -> GroupEncoder:
    return unsettled(kind(n_features=D, n_group_codes=U, hidden=HIDDEN, generator=generator()))


def model_with(kind) -> LatentModel:
    """Group encoder and linear decoder, as the statistics of a step of Newton's method ask for one."""
    return LatentModel(make_group_encoder(kind), ExactEncoder(), linear_decoder(), None)


def infer(kind, x: torch.Tensor, sizes=SIZES) -> DiagonalNormal | FullNormal:
    return model_with(kind).infer(batch_of(x, sizes))


def assert_same(first, second, **tolerance) -> None:
    assert type(first) is type(second)
    torch.testing.assert_close(first.loc, second.loc, **tolerance)
    torch.testing.assert_close(first.scale, second.scale, **tolerance)


# --- group encoders


@group_encoders
def test_group_encoder_does_not_see_the_order_of_rows_or_of_groups(kind):
    x, segments = rows(), segments_of(SIZES)
    shuffle = torch.randperm(len(x), generator=generator(2))
    ones = torch.ones(len(x), 1)
    shuffled = Batch(x[shuffle], ones, ones[:, 0], (Segments(segments.codes[shuffle], segments.sizes),))
    assert_same(model_with(kind).infer(shuffled), infer(kind, x), rtol=1e-5, atol=1e-5)


@group_encoders
def test_group_encoder_sees_each_group_alone(kind):
    x, q_u = rows(), infer(kind, rows())
    stop = 0
    for group, size in enumerate(SIZES):
        start, stop = stop, stop + size
        alone = infer(kind, x[start:stop], [size])
        assert_same(alone, q_u.take(torch.tensor([group])), rtol=1e-5, atol=1e-5)


@group_encoders
def test_statistics_of_a_group_add_up_over_its_rows(kind):
    model, x = model_with(kind), rows(8)
    first, second = (model.statistics(batch_of(part, [len(part)])).sum(0) for part in (x[:3], x[3:]))
    assert_same(model.posterior((first + second)[None]), infer(kind, x, [8]), rtol=1e-4, atol=1e-5)


@group_encoders
def test_a_row_of_weight_two_counts_as_two_rows(kind):
    model, x = model_with(kind), rows(3)
    one = batch_of(x, [3])
    double = Batch(one.values, one.design, torch.tensor([2.0, 1.0, 1.0]), one.factors)
    twice = batch_of(x[[0, 0, 1, 2]], [4])
    assert_same(model.infer(double), model.infer(twice), rtol=1e-4, atol=1e-5)


@group_encoders
def test_group_posterior_has_one_normal_a_group(kind):
    q_u = infer(kind, rows())
    assert q_u.loc.shape == q_u.scale.shape == (len(SIZES), U)
    assert (q_u.scale > 0).all()


@group_encoders
def test_group_encoder_in_double_precision_is_the_same_encoder(kind):
    x = rows()
    narrow, wide = infer(kind, x), model_with(kind).double().infer(batch_of(x.double(), SIZES))
    assert wide.loc.dtype == wide.scale.dtype == torch.float64
    torch.testing.assert_close(wide.loc.float(), narrow.loc, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(wide.scale.float(), narrow.scale, rtol=1e-4, atol=1e-5)


@group_encoders
def test_group_posterior_is_finite_for_equal_rows_and_for_extreme_ones(kind):
    for x in (torch.zeros(6, D), torch.full((6, D), 30.0), 1e3 * rows(6)):
        q_u = infer(kind, x, [1, 5])
        assert torch.isfinite(q_u.loc).all()
        assert torch.isfinite(q_u.scale.log()).all()


@row_encoders
def test_frozen_statistics_learn_no_more_and_can_be_released(kind):
    encoder = make_group_encoder(kind)
    encoder.freeze(linear_decoder())
    assert not encoder.row_statistics(rows()).requires_grad
    encoder.release()
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_average_is_the_mean_of_means_and_the_mean_of_variances():
    x = rows()
    loc, log_scale = make_group_encoder(AverageEncoder).row_network(x).chunk(2, dim=-1)
    q_u = infer(AverageEncoder, x)
    for group, block in enumerate(np.split(np.arange(len(x)), np.cumsum(SIZES)[:-1])):
        torch.testing.assert_close(q_u.loc[group], loc[block].mean(0))
        torch.testing.assert_close(q_u.scale[group], log_scale[block].exp().square().mean(0).sqrt())


@pytest.mark.parametrize(("kind", "prior"), [(ProductEncoder, 0.0), (ProductWithPriorEncoder, 1.0)])
def test_product_adds_precisions_and_weighs_means_by_them(kind, prior):
    x = rows(5)
    loc, raw = make_group_encoder(kind).row_network(x).chunk(2, dim=-1)
    precision = torch.log1p(raw.exp())
    total = precision.sum(0) + prior
    q_u = infer(kind, x, [5])
    torch.testing.assert_close(q_u.loc[0], (precision * loc).sum(0) / total, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(q_u.scale[0], total.rsqrt(), rtol=1e-4, atol=1e-5)


def test_product_with_prior_of_no_rows_is_the_prior():
    q_u = make_group_encoder(ProductWithPriorEncoder).posterior(torch.zeros(1, 2 * U), torch.zeros(1))
    assert_same(q_u, DiagonalNormal(torch.zeros(1, U), torch.ones(1, U)))


def test_product_with_prior_is_more_certain_than_the_prior_and_less_than_the_published_product():
    published, corrected = (infer(kind, rows()) for kind in (ProductEncoder, ProductWithPriorEncoder))
    assert (corrected.scale < 1.0).all()
    assert (corrected.scale < published.scale).all()
    # The prior pulls every mean towards zero.
    assert (corrected.loc.abs() < published.loc.abs()).all()


def test_deep_sets_starts_at_the_exact_posterior_for_groups_of_every_size():
    encoder = DeepSetsEncoder(D, U, HIDDEN, generator()).double()
    root, loadings, center = (
        torch.randn(*shape, generator=generator(3)).double() for shape in ((D, D), (D, U), (D,))
    )
    within = root @ root.mT + torch.eye(D)
    loadings = canonical_loadings(loadings, within)
    encoder.start_at(loadings, within, center)
    x, segments = rows().double(), segments_of(SIZES)
    q_u = encoder.posterior(segments.sum(encoder.row_statistics(x)), segments.sizes)
    for group, block in enumerate(x.split(SIZES)):
        weights = loadings.mT @ torch.linalg.inv(within)
        covariance = torch.linalg.inv(torch.eye(U) + len(block) * weights @ loadings)
        torch.testing.assert_close(
            q_u.loc[group], covariance @ weights @ (block - center).sum(0), rtol=1e-5, atol=1e-6
        )
        # Of more codes than columns means do not tell the last.
        scale = covariance.diagonal().sqrt()
        torch.testing.assert_close(q_u.scale[group, :D], scale[:D], rtol=1e-5, atol=1e-6)


def test_deep_sets_with_covariates_starts_as_without():
    loadings, within = torch.eye(D, U), torch.eye(D)
    posteriors = []
    for n_covariates in (0, 2):
        encoder = DeepSetsEncoder(D + n_covariates, U, HIDDEN, generator())
        encoder.start_at(loadings, within, torch.tensor([0.3, -0.2]))
        x = torch.cat([rows(), rows(n_features=n_covariates, seed=4)], dim=1)
        segments = segments_of(SIZES)
        posteriors.append(encoder.posterior(segments.sum(encoder.row_statistics(x)), segments.sizes))
    assert_same(*posteriors)


def test_deep_sets_is_never_wider_than_the_prior():
    encoder = DeepSetsEncoder(D, U, HIDDEN, generator())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(3.0 * torch.randn(parameter.shape, generator=generator(4)))
    x, segments = rows(), segments_of(SIZES)
    q_u = encoder.posterior(segments.sum(encoder.row_statistics(x)), segments.sizes)
    assert (q_u.scale <= 1.0).all()


# --- one step of Newton's method


def linear_batch() -> Batch:
    return batch_of(rows().double(), SIZES)


@pytest.mark.parametrize("hidden", [(), HIDDEN])
def test_newton_encoder_starts_at_the_exact_posterior_of_a_linear_decoder(hidden):
    decoder = linear_decoder().double()
    encoder = NewtonEncoder(D, D, U, hidden, generator()).double()
    batch = linear_batch()
    q_u = LatentModel(encoder, ExactEncoder(), decoder, None).infer(batch)
    means, covariances = linear_group_posterior(decoder, batch.values.numpy(), np.array(SIZES))
    np.testing.assert_allclose(q_u.loc.detach().numpy(), means, rtol=1e-8)
    np.testing.assert_allclose((q_u.root @ q_u.root.mT).detach().numpy(), covariances, rtol=1e-8, atol=1e-12)
    log_det = 0.5 * np.linalg.slogdet(np.array(covariances))[1]
    np.testing.assert_allclose(q_u.log_det.detach().numpy(), log_det, rtol=1e-8)


def test_the_correction_is_bounded_in_units_of_the_step():
    exact = infer(exact_encoder, rows())
    model = model_with(newton_encoder)
    with torch.no_grad():
        model.group_encoder.group_network[-1].bias.copy_(torch.tensor([1e4, -1e4, 1e4] * 2))
    q_u = model.infer(batch_of(rows(), SIZES))
    shift = torch.linalg.solve(exact.root, (q_u.loc - exact.loc)[..., None])[..., 0]
    torch.testing.assert_close(shift, torch.tensor([3.0, -3.0, 3.0]).expand(4, -1), rtol=1e-3, atol=1e-3)
    stretch = torch.tensor([3.0, -3.0, 3.0]).exp()
    torch.testing.assert_close(q_u.root, exact.root * stretch, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(q_u.log_det, exact.log_det + 3.0, rtol=1e-3, atol=1e-3)


def test_the_step_gives_the_decoder_no_gradient():
    model = model_with(newton_encoder)
    model.infer(batch_of(rows(), SIZES)).kl_to_standard_normal().sum().backward()
    assert all(parameter.grad is None for parameter in model.decoder.parameters())
    assert all(parameter.grad is not None for parameter in model.group_encoder.parameters())


def test_a_frozen_newton_encoder_keeps_the_decoder_that_it_had():
    model, batch = model_with(newton_encoder), batch_of(rows(), SIZES)
    before = model.statistics(batch)
    model.group_encoder.freeze(model.decoder)
    first = model.group_encoder.anchor
    unsettled(model.decoder)
    torch.testing.assert_close(model.statistics(batch), before)
    assert not model.statistics(batch).requires_grad
    model.group_encoder.freeze(model.decoder)  # again: of the decoder that it has
    assert model.group_encoder.anchor is first
    model.group_encoder.release()
    assert not torch.equal(model.statistics(batch), before)
    assert model.statistics(batch).requires_grad


# --- instance encoders


@pytest.mark.parametrize(
    ("n_instance_codes", "noise"), [(1, [0.3]), (1, [0.3, 1.0]), (2, [0.3, 1.0]), (3, [0.5, 0.2]), (2, [0.7])]
)
@pytest.mark.parametrize("is_exact", [False, True])
def test_posterior_of_v_is_bayes_rule_for_a_linear_decoder(n_instance_codes, noise, is_exact):
    n_features = len(noise)
    decoder = linear_decoder(n_features, n_instance_codes).double()
    decoder.fix_noise(torch.tensor(noise, dtype=torch.float64))
    x, u = rows(6, n_features).double(), torch.randn(2, U, generator=generator(3)).double()
    batch = batch_of(x, [2, 4])
    # Dense: condition the joint normal of (v, x), cov(v, x) = W', cov(x) = W W' + S.
    W = decoder.instance_loadings.weight.detach().numpy()
    S = np.diag(np.array(noise) ** 2)
    gain = W.T @ np.linalg.inv(W @ W.T + S)
    covariance = np.eye(n_instance_codes) - gain @ W
    center = decoder.mean(batch.groups.expand(u), torch.zeros(6, n_instance_codes).double()).detach().numpy()
    if is_exact:
        q_v = ExactEncoder()(x, batch, u, decoder)
        for actual in (q_v.root @ q_v.root.mT).detach().numpy():
            np.testing.assert_allclose(actual, covariance, rtol=1e-8, atol=1e-12)
        log_det = 0.5 * np.linalg.slogdet(covariance)[1]
        np.testing.assert_allclose(q_v.log_det.detach().numpy(), log_det, rtol=1e-8)
    else:
        q_v = linearized_posterior(batch, u, decoder)
        # The best factorised normal: one over the root of the precision's diagonal.
        expected_scale = 1.0 / np.sqrt(np.diag(np.linalg.inv(covariance)))
        np.testing.assert_allclose(q_v.scale.detach().numpy(), np.tile(expected_scale, (6, 1)), rtol=1e-8)
    np.testing.assert_allclose(q_v.loc.detach().numpy(), (x.numpy() - center) @ gain.T, rtol=1e-8)


def test_linearized_posterior_is_exact_where_the_slope_depends_on_the_group():
    decoder = FormulaDecoder(
        exam_formula, 1, 2, 1, torch.tensor([10.0]), torch.tensor([4.0]), torch.empty(0), torch.empty(0)
    )
    decoder.fix_noise(torch.tensor([0.25]))  # 1 in the units of the formula
    x, u = rows(5, 1), torch.randn(2, 2, generator=generator(3))
    batch = batch_of(x, [3, 2])
    posterior = linearized_posterior(batch, u, decoder)
    mu, sigma = batch.groups.expand(u).T[:, :, None]
    scale = sigma**2 + 1.0
    torch.testing.assert_close(posterior.loc, scale / (scale**2 + 1.0) * (4.0 * x + 10.0 - 2.0 * mu))
    torch.testing.assert_close(posterior.scale, (scale**2 + 1.0).rsqrt())


def with_covariates(batch: Batch, covariates: torch.Tensor) -> Batch:
    return replace(batch, design=torch.cat([batch.design, covariates], dim=1))


@pytest.mark.parametrize("is_exact", [False, True])
def test_posterior_of_v_leaves_out_what_covariates_explain(is_exact):
    decoder = LinearDecoder(D, U, V, (), generator(5), n_covariates=2).double()
    x, u = rows(6).double(), torch.randn(2, U, generator=generator(3)).double()
    c = rows(6, 2, seed=4).double()
    effects = c @ decoder.covariate_loadings.weight.detach().T
    without = LinearDecoder(D, U, V, (), generator(5)).double()
    without.load_state_dict(decoder.state_dict(), strict=False)

    def posterior(batch, decoder):
        return ExactEncoder()(x, batch, u, decoder) if is_exact else linearized_posterior(batch, u, decoder)

    found = posterior(with_covariates(batch_of(x, [2, 4]), c), decoder)
    assert_same(found, posterior(batch_of(x - effects, [2, 4]), without))


def test_linearized_posterior_is_exact_where_the_slope_depends_on_covariates():
    def formula(u, v, c):
        return 2.0 * u[:, :1] + (c**2 + 1.0) * v

    moments = torch.tensor([10.0]), torch.tensor([4.0]), torch.tensor([1.0]), torch.tensor([0.5])
    decoder = FormulaDecoder(formula, 1, 2, 1, *moments)
    decoder.fix_noise(torch.tensor([0.25]))  # 1 in the units of the formula
    x, u, c = rows(5, 1), torch.randn(2, 2, generator=generator(3)), rows(5, 1, seed=4)
    batch = with_covariates(batch_of(x, [3, 2]), c)
    posterior = linearized_posterior(batch, u, decoder)
    scale = (0.5 * c + 1.0) ** 2 + 1.0
    mu = batch.groups.expand(u)[:, :1]
    torch.testing.assert_close(posterior.loc, scale / (scale**2 + 1.0) * (4.0 * x + 10.0 - 2.0 * mu))
    torch.testing.assert_close(posterior.scale, (scale**2 + 1.0).rsqrt())


def make_instance_encoder(kind) -> torch.nn.Module:
    return unsettled(kind(D, U, V, HIDDEN, generator()))


def test_conditional_encoder_starts_at_the_linearized_posterior():
    decoder = linear_decoder()
    batch, u = batch_of(rows(), SIZES), torch.randn(len(SIZES), U, generator=generator(3))
    start = linearized_posterior(batch, u, decoder)
    assert_same(ConditionalEncoder(D, U, V, HIDDEN, generator())(batch.values, batch, u, decoder), start)


@pytest.mark.parametrize("kind", [ConditionalEncoder, ConditionalNetworkEncoder])
def test_conditional_encoders_see_the_group(kind):
    x, batch = rows(), batch_of(rows(), SIZES)
    encoder = make_instance_encoder(kind)
    first, second = (encoder(x, batch, torch.full((len(SIZES), U), c), linear_decoder()) for c in (0.0, 1.0))
    assert ((first.loc - second.loc).abs().max(dim=1).values > 1e-4).all()


def test_unconditional_encoder_is_blind_to_the_group():
    x, batch = rows(), batch_of(rows(), SIZES)
    encoder = make_instance_encoder(UnconditionalEncoder)
    assert_same(*(encoder(x, batch, torch.full((len(SIZES), U), c), linear_decoder()) for c in (0.0, 1.0)))


INSTANCE_KINDS = {**INSTANCE_ENCODERS, "exact": lambda *_: ExactEncoder()}


@pytest.mark.parametrize("kind", INSTANCE_KINDS.values(), ids=INSTANCE_KINDS)
def test_instance_encoder_treats_rows_one_by_one(kind):
    encoder, x = make_instance_encoder(kind), rows()
    u, decoder = torch.randn(len(SIZES), U, generator=generator(3)), linear_decoder()
    whole = encoder(x, batch_of(x, SIZES), u, decoder)
    alone = encoder(x[4:5], batch_of(x[4:5], [1]), u[2:3], decoder)  # a row of the third group
    assert_same(alone, whole.take(torch.tensor([4])))


def test_encoders_can_be_copied_with_their_decoder():
    model = model_with(newton_encoder)
    model.group_encoder.freeze(model.decoder)
    batch = batch_of(rows(), SIZES)
    assert_same(copy.deepcopy(model).infer(batch), model.infer(batch))
