"""The ELBO against the exact likelihood of the linear mixed model, and the decoder's correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracles import (
    batch_of,
    exam_formula,
    linear_group_posterior,
    linear_log_likelihood,
    segments_of,
    unsettled,
)
from torch.distributions import Normal, kl_divergence

from skgroupvae.batch import Batch
from skgroupvae.model.decoders import LinearDecoder
from skgroupvae.model.encoders import GroupEncoder, NewtonEncoder
from skgroupvae.model.instance_encoders import ConditionalEncoder, ExactEncoder
from skgroupvae.model.model import LatentModel, ScoreModel
from skgroupvae.model.posteriors import DiagonalNormal, FullNormal, MirroredNormal
from skgroupvae.model.spec import (
    DECODERS,
    GROUP_ENCODERS,
    INSTANCE_ENCODERS,
    PUBLISHED_MODELS,
    REGULARIZERS,
    LatentSpec,
    ScoreSpec,
)

SIZES = np.array([1, 2, 4, 6])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n_features: int = 2) -> torch.Tensor:
    return torch.randn(SIZES.sum(), n_features, generator=generator(1))


def spec_of(**choices) -> LatentSpec:
    defaults = {
        "group_encoder": "deepsets",
        "instance_encoder": "conditional",
        "regularizer": None,
        "decoder": "mlp",
        "n_group_codes": 2,
        "n_instance_codes": 1,
        "hidden_sizes": (8,),
        "center": (0.0, 0.0),
        "scale": (1.0, 1.0),
    }
    return LatentSpec(**defaults | choices)


class ExactGroupEncoder(GroupEncoder):
    """The exact q(u) of groups of a linear decoder with one group code; for tests."""

    def __init__(self, decoder, x):
        super().__init__()
        means, covariances = linear_group_posterior(decoder, x.double().numpy(), SIZES)
        loc, variance = torch.tensor(np.array(means)), torch.tensor(np.array(covariances))[:, 0]
        self.q_u = DiagonalNormal(loc.float(), variance.sqrt().float())

    def statistics(self, x, batch, decoder):
        return x

    def posterior(self, totals, sizes):
        return self.q_u

    def freeze(self, decoder):
        pass

    def release(self):
        pass


def linear_model(group_encoder="deepsets", instance_encoder="conditional", n_features=2, n_codes=(2, 1)):
    """Encoders that must learn, with a decoder whose likelihood is known."""
    spec = spec_of(
        group_encoder=group_encoder,
        instance_encoder=instance_encoder,
        decoder=LinearDecoder(n_features, *n_codes, (), generator(5)),
        n_group_codes=n_codes[0],
        n_instance_codes=n_codes[1],
        center=(0.0,) * n_features,
        scale=(1.0,) * n_features,
        noise_scale=tuple(np.linspace(0.5, 0.8, n_features)),
    )
    model = spec.build(generator())
    unsettled(model.group_encoder)
    unsettled(model.instance_encoder)
    return model


def exact_model(n_features: int = 1) -> tuple[LatentModel, torch.Tensor]:
    """Linear decoder with exact posteriors for q: one code each, so that a normal each is exact."""
    x = rows(n_features)
    decoder = linear_model(n_features=n_features, n_codes=(1, 1)).decoder
    encoder = ConditionalEncoder(n_features, 1, 1, (8,), generator())
    return LatentModel(ExactGroupEncoder(decoder, x), encoder, decoder, None), x


def elbo_draws(model: LatentModel, x: torch.Tensor, n_draws: int) -> np.ndarray:
    """Draws of the ELBO (n_draws, G)."""
    source, batch = generator(2), batch_of(x, SIZES)
    with torch.no_grad():
        return np.array([model.elbo(batch, source).elbo.numpy() for _ in range(n_draws)])


# --- the lower bound


@pytest.mark.parametrize("instance_encoder", INSTANCE_ENCODERS)
@pytest.mark.parametrize("group_encoder", GROUP_ENCODERS)
def test_elbo_is_below_the_exact_log_likelihood_in_expectation(group_encoder, instance_encoder):
    model, x = linear_model(group_encoder, instance_encoder), rows()
    draws = elbo_draws(model, x, 200)
    exact = linear_log_likelihood(model.decoder, x.numpy(), SIZES)
    standard_error = draws.std(axis=0) / math.sqrt(200)
    # Untrained encoders: the bound is far below, so the standard errors decide nothing here.
    assert (draws.mean(axis=0) <= exact + 4 * standard_error).all()


@pytest.mark.parametrize("n_features", [1, 2])
def test_elbo_of_exact_posteriors_is_the_exact_log_likelihood(n_features):
    model, x = exact_model(n_features)
    draws = elbo_draws(model, x, 2000)
    exact = linear_log_likelihood(model.decoder, x.numpy(), SIZES)
    standard_error = draws.std(axis=0) / math.sqrt(2000)
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - exact), 4 * standard_error + 1e-4)
    assert (standard_error < 0.05).all()  # the check has teeth: the log-likelihoods are in the nats


def test_elbo_of_a_linear_model_of_many_codes_is_the_exact_log_likelihood():
    model, x = unsettled(spec_of(decoder="linear", n_instance_codes=2).build(generator())), rows()
    draws = elbo_draws(model, x, 2000)
    exact = linear_log_likelihood(model.decoder, x.numpy(), SIZES)
    standard_error = draws.std(axis=0) / math.sqrt(2000)
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - exact), 4 * standard_error + 1e-4)
    assert (standard_error < 0.1).all()


def test_terms_are_those_of_torch_distributions():
    model, batch = linear_model(), batch_of(rows(), SIZES)
    terms = model.elbo(batch, generator(2))
    q_u = model.infer(batch)
    u = q_u.loc + q_u.scale * torch.randn(q_u.loc.shape, generator=generator(2))
    q_v = model.instance_posterior(batch, u)
    q_u, q_v = (Normal(q.loc, q.scale) for q in (q_u, q_v))
    prior = Normal(0.0, 1.0)
    by_group = [block.sum() for block in kl_divergence(q_v, prior).sum(-1).split(SIZES.tolist())]
    torch.testing.assert_close(terms.kl_v, torch.stack(by_group))
    torch.testing.assert_close(terms.kl_u, kl_divergence(q_u, prior).sum(-1))
    mean = model.decoder.mean(batch.groups.expand(u), terms.v)
    log_px = Normal(mean, model.decoder.noise_scale).log_prob(batch.values).sum(-1)
    torch.testing.assert_close(
        terms.reconstruction, torch.stack([block.sum() for block in log_px.split(SIZES.tolist())])
    )
    torch.testing.assert_close(terms.elbo, terms.reconstruction - terms.kl_u - terms.kl_v)


def test_each_group_has_its_own_terms():
    model, x = linear_model(), rows()
    whole = model.elbo(batch_of(x, SIZES), generator(2))
    moved = x.clone()
    moved[-1] += 1.0  # a row of the last group
    changed = model.elbo(batch_of(moved, SIZES), generator(2)).elbo != whole.elbo
    assert changed.tolist() == [False, False, False, True]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("instance_encoder", INSTANCE_ENCODERS)
@pytest.mark.parametrize("group_encoder", GROUP_ENCODERS)
def test_gradients_reach_every_parameter(group_encoder, instance_encoder, regularizer, decoder):
    spec = spec_of(
        group_encoder=group_encoder,
        instance_encoder=instance_encoder,
        regularizer=regularizer,
        decoder=DECODERS[decoder](2, 2, 1, (8, 8), generator(5)),  # "linear" alone would train nothing
        hidden_sizes=(8, 8),
    )
    model, batch = unsettled(spec.build(generator())), batch_of(rows(), SIZES)
    terms = model.elbo(batch, generator(6))
    information = model.regularizer(model.inputs(batch), terms.v, batch.groups, generator(7))
    (information - terms.elbo.sum()).backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None
        or not torch.isfinite(parameter.grad).all()
        or parameter.grad.abs().max() == 0
    ]
    # The log-mean-exp of eq. 2 and 3 cancels a constant added to the critic: its last bias has no say.
    last_bias = {"regularizer.network.4.bias", "regularizer.pair_network.4.bias"}
    assert set(silent) <= last_bias


# --- rows at given codes


@pytest.mark.parametrize("n_samples", [1, 3])
def test_row_terms_are_those_of_each_draw_alone(n_samples):
    model, batch = linear_model(), batch_of(rows(), SIZES)
    u = torch.randn(n_samples, len(SIZES), 2, generator=generator(3))
    noise = torch.randn(batch.n_rows, 1, generator=generator(4))
    terms = model.row_terms(batch, u, noise, None)
    for sample, codes in enumerate(u):
        q_v = model.instance_posterior(batch, codes)
        v = q_v.loc + q_v.scale * noise
        mean = model.decoder.mean(batch.groups.expand(codes), v)
        log_px = Normal(mean, model.decoder.noise_scale).log_prob(batch.values).sum(-1)
        log_ratio = (Normal(0.0, 1.0).log_prob(v) - Normal(q_v.loc, q_v.scale).log_prob(v)).sum(-1)
        torch.testing.assert_close(terms.log_prob[sample], log_px)
        torch.testing.assert_close(terms.log_ratio[sample], log_ratio)


# --- the decoder's correction


def decoder_gradients(model: LatentModel, objective: torch.Tensor) -> np.ndarray:
    parameters = [p for p in model.decoder.parameters() if p.requires_grad]
    return np.concatenate([part.flatten().numpy() for part in torch.autograd.grad(objective, parameters)])


def test_correction_reaches_the_decoder_only():
    model, x = linear_model(), rows()
    model.importance_correction(batch_of(x, SIZES), 5, generator(3)).sum().backward()
    for name, parameter in model.named_parameters():
        is_decoder = name.startswith("decoder") and parameter.requires_grad
        assert (parameter.grad is not None and parameter.grad.abs().max() > 0) == is_decoder, name


def test_correction_averages_to_nothing_where_q_is_exact():
    # Exact posteriors leave nothing to correct: the ELBO's gradient is that of the likelihood already. Only
    # few samples keep the self-normalised weights from it, by order 1 / S.
    model, x = exact_model()
    batch = batch_of(x, SIZES)
    gradients = np.array(
        [
            decoder_gradients(model, model.importance_correction(batch, 200, generator(seed)).sum())
            for seed in range(50)
        ]
    )
    standard_error = gradients.std(axis=0) / math.sqrt(50)
    np.testing.assert_array_less(np.abs(gradients.mean(axis=0)), 4 * standard_error + 0.05)


def test_correction_is_nothing_at_all_under_a_linear_model():
    # Every draw from the exact posterior has the same weight.
    model = unsettled(spec_of(decoder="linear").build(generator())).double()
    batch = batch_of(rows().double(), SIZES)
    correction = model.importance_correction(batch, 7, generator())
    assert np.abs(decoder_gradients(model, correction.sum())).max() < 1e-9


def test_corrected_gradient_is_that_of_the_exact_log_likelihood():
    # With a poor q the ELBO's gradient is off, and the correction turns it into that of log p(x).
    model, x = exact_model()
    q_u, batch = model.group_encoder.q_u, batch_of(x, SIZES)
    model.group_encoder.q_u = DiagonalNormal(q_u.loc + 0.3, 1.5 * q_u.scale)
    elbo, corrected = [], []
    for seed in range(200):
        of_elbo = decoder_gradients(model, model.elbo(batch, generator(seed)).elbo.sum())
        correction = model.importance_correction(batch, 200, generator(1000 + seed)).sum()
        elbo.append(of_elbo)
        corrected.append(of_elbo + decoder_gradients(model, correction))
    exact = exact_gradient(model, x)
    elbo, corrected = np.array(elbo), np.array(corrected)
    standard_error = corrected.std(axis=0) / math.sqrt(200)
    scale = np.abs(exact).max()
    assert np.abs(elbo.mean(axis=0) - exact).max() > 0.1 * scale  # there was something to correct
    np.testing.assert_array_less(np.abs(corrected.mean(axis=0) - exact), 4 * standard_error + 0.03 * scale)


def exact_gradient(model: LatentModel, x: torch.Tensor) -> np.ndarray:
    """Central differences of the exact log-likelihood, in the order of the decoder's parameters."""
    gradient = []
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if not parameter.requires_grad:  # the noise, fixed in these tests
                continue
            flat = parameter.view(-1)
            for position in range(len(flat)):
                ends = []
                for step in (1e-2, -2e-2):
                    flat[position] += step
                    ends.append(linear_log_likelihood(model.decoder, x.numpy(), SIZES).sum())
                flat[position] += 1e-2
                gradient.append((ends[0] - ends[1]) / 2e-2)
    return np.array(gradient)


# --- rows as networks see them


def regression_model(n_columns: int) -> ScoreModel:
    """Of two outcomes, given so many columns of a design."""
    spec = ScoreSpec("gaussian", ((), ()), n_columns, (0,), 0, "mixed_model", None, (8,), True)
    return spec.build(generator())


# --- simulated groups


def simulating_model(decoder, n_features: int = 1) -> LatentModel:
    choices = {"center": (0.0,) * n_features, "scale": (1.0,) * n_features, "decoder": decoder}
    return spec_of(**choices).build(generator())


def test_simulated_groups_have_the_moments_of_the_model():
    model = simulating_model("mlp", 2)
    decoder = unsettled(model.decoder, 0.0)
    sizes = [2] * 20_000
    simulated, u = model.simulate(batch_of(torch.zeros(40_000, 2), sizes), generator(3))
    x = simulated.values.unflatten(0, (-1, 2))
    group, own = decoder.group_loadings.weight, decoder.instance_loadings.weight
    between = group @ group.mT
    total = between + own @ own.mT + decoder.noise_scale.square().diag()
    # Entries of covariances of 20,000 pairs of order 1: five standard errors are 0.05 at most.
    torch.testing.assert_close(torch.cov(x[:, 0].mT), total, atol=0.05, rtol=0.0)
    across = (x[:, 0] - x[:, 0].mean(0)).mT @ (x[:, 1] - x[:, 1].mean(0)) / len(x)
    torch.testing.assert_close(across, between, atol=0.05, rtol=0.0)
    with_u = x[:, 0].mT @ u / len(u)
    torch.testing.assert_close(with_u, group, atol=0.05, rtol=0.0)


def test_codes_that_the_decoder_is_even_in_are_found():
    model = simulating_model(exam_formula)
    batch = batch_of(torch.zeros(64 * 20, 1), [20] * 64)
    assert model.encoder_bound(batch, generator()) is None
    model.start_simulating(batch, generator())
    assert model._is_even.tolist() == [False, True]
    assert model.encoder_bound(batch, generator()).shape == (32,)
    model.stop_simulating()
    assert model.encoder_bound(batch, generator()) is None


def test_simulated_groups_teach_the_group_encoder_its_spread_and_the_elbo_does_not():
    model = simulating_model(exam_formula)
    batch = batch_of(torch.randn(24, 1, generator=generator(5)), [6] * 4)
    model.start_simulating(batch, generator())
    last = model.group_encoder.group_network[-1].bias
    (-model.elbo(batch, generator()).elbo.sum()).backward()
    shift, stretch = last.grad.clone().chunk(2)
    assert (shift != 0).all()
    assert (stretch == 0).all()
    model.zero_grad()
    (-model.encoder_bound(batch, generator()).sum()).backward()
    assert (last.grad != 0).all()
    assert all(parameter.grad is None for parameter in model.decoder.parameters())


@pytest.mark.parametrize("parts", [{"group_encoder": "product", "decoder": exam_formula}, {"decoder": "mlp"}])
def test_other_encoders_and_networks_learn_from_no_simulated_groups(parts):
    model = spec_of(center=(0.0,), scale=(1.0,), **parts).build(generator())
    batch = batch_of(torch.zeros(8, 1), [4, 4])
    model.start_simulating(batch, generator())
    assert model.encoder_bound(batch, generator()) is None


def test_networks_see_latent_rows_without_their_covariates_effects_and_then_the_covariates():
    model = spec_of(covariate_center=(3.0,), covariate_scale=(2.0,)).build(generator())
    effects = torch.tensor([[2.0, -1.0]])
    model.covariate_effects.copy_(effects)
    values, covariates = rows()[:3], torch.tensor([[0.1], [0.2], [0.3]])
    design = torch.cat([torch.ones(3, 1), covariates], dim=1)
    batch = Batch(values, design, torch.ones(3), (segments_of([3]),))
    expected = torch.cat([values - covariates * effects, covariates], dim=1)
    torch.testing.assert_close(model.inputs(batch), expected)


def test_networks_see_latent_rows_without_covariates_as_they_are():
    batch = batch_of(rows(), SIZES)
    assert torch.equal(linear_model().inputs(batch), batch.values)


def test_networks_see_values_standardized_by_weight_and_covariates_as_they_are():
    model = regression_model(n_columns=2)
    values = torch.tensor([[1.0, 5.0], [3.0, 5.0], [9.0, 5.0]])
    design = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    batch = Batch(values, design, torch.tensor([1.0, 1.0, 2.0]), (segments_of([3]),))
    model.set_value_moments(batch)
    center, scale = 22 / 4, math.sqrt((1 + 9 + 162) / 4 - (22 / 4) ** 2)
    expected = torch.cat([(values[:, :1] - center) / scale, torch.zeros(3, 1), design[:, 1:]], dim=1)
    torch.testing.assert_close(model.inputs(batch), expected)


def test_missing_values_are_seen_at_the_mean_and_do_not_count_in_it():
    model = regression_model(n_columns=1)
    values = torch.tensor([[1.0, 0.0], [3.0, 2.0], [0.0, 4.0]])
    mask = torch.tensor([[True, False], [True, True], [False, True]])
    batch = Batch(values, torch.ones(3, 1), torch.ones(3), (segments_of([3]),), mask)
    model.set_value_moments(batch)
    torch.testing.assert_close(model.value_center, torch.tensor([2.0, 3.0]))
    expected = torch.tensor([[-1.0, 0.0], [1.0, -1.0], [0.0, 1.0]])
    torch.testing.assert_close(model.inputs(batch), expected)


# --- where draws come from, and what a spec builds


class CorrelatedEncoder(ExactGroupEncoder):
    """A user's encoder with a covariance of its own, which is not exact."""

    def __init__(self):
        GroupEncoder.__init__(self)
        root = torch.tensor([[1.0, 0.0], [0.5, 1.0]]).expand(len(SIZES), 2, 2)
        self.q_u = FullNormal(torch.ones(len(SIZES), 2), root, torch.zeros(len(SIZES)))


@pytest.mark.parametrize("group_encoder", ["deepsets", CorrelatedEncoder()])
def test_normals_of_learned_encoders_are_mirrored(group_encoder):
    model = spec_of(group_encoder=group_encoder, decoder=exam_formula, center=(0.0,), scale=(1.0,))
    model = model.build(generator())
    q_u = model.infer(batch_of(rows(1), SIZES))
    assert isinstance(model.proposal(q_u, 7), MirroredNormal)


def test_exact_posteriors_are_not_mirrored():
    model = spec_of(decoder="linear").build(generator())
    q_u = model.infer(batch_of(rows(), SIZES))
    assert model.proposal(q_u, 7) is q_u


def test_a_linear_spec_builds_exact_parts_whatever_encoders_it_names():
    model = spec_of(decoder="linear", regularizer="context").build(generator())
    assert isinstance(model.group_encoder, NewtonEncoder)
    assert isinstance(model.instance_encoder, ExactEncoder)
    assert model.regularizer is None


def test_a_fixed_noise_is_given_in_the_units_of_x():
    model = spec_of(center=(3.0, 0.0), scale=(2.0, 5.0), noise_scale=(1.0, 1.0)).build(generator())
    torch.testing.assert_close(model.decoder.noise_scale, torch.tensor([0.5, 0.2]))
    assert not model.decoder.log_noise.requires_grad


def test_parts_given_as_modules_are_copied_and_factories_are_called():
    decoder, called = LinearDecoder(2, 2, 1, (), generator()), []

    def factory(**arguments):
        called.append(arguments)
        return GROUP_ENCODERS["average"](**arguments)

    model = spec_of(decoder=decoder, group_encoder=factory).build(generator())
    assert model.decoder is not decoder
    assert torch.equal(model.decoder.group_loadings.weight, decoder.group_loadings.weight)
    assert [set(arguments) for arguments in called] == [
        {"n_features", "n_group_codes", "hidden", "generator"}
    ]


def test_a_formula_is_checked_when_the_model_is_built():
    with pytest.raises(ValueError, match="decoder returned shape"):
        spec_of(decoder=lambda u, v: u[:, :1]).build(generator())


@pytest.mark.parametrize("name", PUBLISHED_MODELS)
def test_published_models_are_choices_of_the_registries(name):
    model = spec_of(**PUBLISHED_MODELS[name]).build(generator())
    assert torch.isfinite(model.elbo(batch_of(rows(), SIZES), generator()).elbo).all()


def test_a_model_is_decided_by_its_generator():
    first, again, other = (spec_of().build(generator(seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
