"""Decoders: means, noise, the straight line in v, the start, and the checks of a user's formula."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import batch_of, exam_formula, linear_group_posterior, unsettled
from scipy.stats import multivariate_normal
from sklearn.decomposition import FactorAnalysis

from skgroupvae.model.decoders import (
    CodeDecoder,
    FormulaDecoder,
    LinearDecoder,
    MLPDecoder,
    canonical_loadings,
    factor_loadings,
    principal_loadings,
)
from skgroupvae.model.posteriors import newton

D, U, V, C = 3, 2, 2, 2
kinds = pytest.mark.parametrize("kind", [MLPDecoder, LinearDecoder])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codes(n: int, n_group: int = U, n_instance: int = V) -> tuple[torch.Tensor, torch.Tensor]:
    g = generator(7)
    return torch.randn(n, n_group, generator=g), torch.randn(n, n_instance, generator=g)


def covariates(n: int, n_covariates: int = C) -> torch.Tensor:
    return torch.randn(n, n_covariates, generator=generator(8))


def formula_decoder(
    formula, n_features=1, n_instance_codes=1, center=0.0, scale=1.0, of_covariates=((), ())
) -> FormulaDecoder:
    return FormulaDecoder(
        formula,
        n_features,
        2,
        n_instance_codes,
        torch.full((n_features,), center),
        torch.full((n_features,), scale),
        *(torch.tensor(part) for part in of_covariates),
    )


@kinds
def test_decoders_are_decided_by_their_generator(kind):
    first, again = (kind(D, U, V, (8,), generator(3)) for _ in range(2))
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, dict(again.named_parameters())[name])


@kinds
def test_means_keep_leading_dimensions(kind):
    decoder = unsettled(kind(D, U, V, (8,), generator()))
    u, v = codes(12)
    stacked = decoder.mean(u.reshape(3, 4, U), v.reshape(3, 4, V))
    torch.testing.assert_close(stacked.reshape(12, D), decoder.mean(u, v))


@kinds
def test_covariates_of_rows_go_with_every_draw_of_the_codes(kind):
    decoder = unsettled(kind(D, U, V, (8,), generator(), n_covariates=C))
    (u, v), c = codes(12), covariates(4)
    stacked = decoder.mean(u.reshape(3, 4, U), v.reshape(3, 4, V), c)
    torch.testing.assert_close(stacked.reshape(12, D), decoder.mean(u, v, c.repeat(3, 1)))
    eta = decoder(torch.cat([torch.ones(4, 1), c], dim=1), u[:4], v[:4])
    torch.testing.assert_close(eta[..., 0], decoder.mean(u[:4], v[:4], c))


def test_linear_decoder_adds_the_effects_of_covariates():
    decoder = LinearDecoder(D, U, V, (), generator(), n_covariates=C)
    without = LinearDecoder(D, U, V, (), generator())
    without.load_state_dict(decoder.state_dict(), strict=False)
    (u, v), c = codes(5), covariates(5)
    expected = without.mean(u, v) + c @ decoder.covariate_loadings.weight.T
    torch.testing.assert_close(decoder.mean(u, v, c), expected)


def test_mlp_decoder_starts_at_the_linear_mixed_model_of_covariates_and_leaves_it():
    mlp = MLPDecoder(D, U, V, (8,), generator(), n_covariates=C)
    linear = LinearDecoder(D, U, V, (8,), generator(), n_covariates=C)
    (u, v), c = codes(5), covariates(5)
    linear.load_state_dict(mlp.state_dict(), strict=False)
    torch.testing.assert_close(mlp.mean(u, v, c), linear.mean(u, v, c))
    steps = torch.arange(-3.0, 4.0)[:, None].expand(-1, C)
    rises = unsettled(mlp).mean(torch.zeros(7, U), torch.zeros(7, V), steps).diff(dim=0)
    assert rises.diff(dim=0).abs().max() > 1e-3


def test_linear_decoder_is_the_linear_mixed_model():
    decoder = LinearDecoder(D, U, V, (), generator())
    u, v = codes(5)
    expected = (
        decoder.group_loadings.bias
        + u @ decoder.group_loadings.weight.T
        + v @ decoder.instance_loadings.weight.T
    )
    torch.testing.assert_close(decoder.mean(u, v), expected)


def test_mlp_decoder_starts_at_the_linear_mixed_model_and_leaves_it():
    mlp, linear = MLPDecoder(D, U, V, (8,), generator()), LinearDecoder(D, U, V, (8,), generator())
    u, v = codes(5)
    torch.testing.assert_close(mlp.mean(u, v), linear.mean(u, v))
    # Linear in u for no v: equal steps give equal rises, which a network does not.
    rises = unsettled(mlp).mean(torch.arange(-3.0, 4.0)[:, None].expand(-1, U), torch.zeros(7, V)).diff(dim=0)
    assert rises.diff(dim=0).abs().max() > 1e-3


# --- where it starts


@kinds
def test_start_reproduces_the_covariances_that_the_codes_can_hold(kind):
    rng = np.random.RandomState(0)
    between, within = (torch.tensor(a @ a.T) for a in (rng.normal(size=(D, 1)), rng.normal(size=(D, D))))
    decoder = kind(D, U, D, (8,), generator())
    decoder.start_at(torch.zeros(1, D), principal_loadings(between, U), within)
    loadings, own = (
        part.weight.detach().double() for part in (decoder.group_loadings, decoder.instance_loadings)
    )
    torch.testing.assert_close(loadings @ loadings.T, between, rtol=0, atol=1e-5)
    total = own @ own.T + decoder.noise_scale.detach().double().square().diag()
    torch.testing.assert_close(total, within, rtol=1e-4, atol=1e-5)


@kinds
def test_start_takes_the_fixed_effects(kind):
    decoder = kind(D, U, V, (8,), generator(), n_covariates=C)
    fixed = torch.randn(1 + C, D, generator=generator(1))
    decoder.start_at(fixed, torch.zeros(D, U), torch.eye(D))
    c = covariates(5)
    mean = decoder.mean(torch.zeros(5, U), torch.zeros(5, V), c)
    torch.testing.assert_close(mean, torch.cat([torch.ones(5, 1), c], dim=1) @ fixed)


@kinds
def test_with_few_codes_the_noise_has_what_they_do_not_explain(kind):
    rng = np.random.RandomState(0)
    root = rng.normal(size=(D, D))
    within = torch.tensor(root @ root.T)
    decoder = kind(D, U, 1, (8,), generator())
    decoder.start_at(torch.zeros(1, D), torch.zeros(D, U), within)
    explained = decoder.instance_loadings.weight.detach().double().square().sum(1)
    variance = explained + decoder.noise_scale.detach().double().square()
    torch.testing.assert_close(variance, within.diagonal(), rtol=1e-4, atol=1e-5)


@kinds
def test_a_wide_start_gives_the_noise_a_tenth_of_each_variance(kind):
    rng = np.random.RandomState(0)
    root = rng.normal(size=(D, D))
    within = torch.tensor(root @ root.T)
    decoder = kind(D, U, D, (8,), generator())
    decoder.start_at(torch.zeros(1, D), torch.zeros(D, U), within, is_wide=True)
    noise = decoder.noise_scale.detach().double().square()
    torch.testing.assert_close(noise, 0.1 * within.diagonal(), rtol=1e-4, atol=1e-5)
    own = decoder.instance_loadings.weight.detach().double()
    torch.testing.assert_close(own @ own.T, 0.9 * within, rtol=1e-4, atol=1e-5)


def test_start_leaves_a_fixed_noise_alone():
    decoder = LinearDecoder(D, U, V, (), generator())
    decoder.fix_noise(torch.full((D,), 0.3))
    decoder.start_at(torch.zeros(1, D), torch.zeros(D, U), torch.eye(D))
    torch.testing.assert_close(decoder.noise_scale, torch.full((D,), 0.3))
    assert decoder.instance_loadings.weight.square().sum(1).max() <= 1.0 - 0.3**2 + 1e-6


def test_the_penalty_holds_the_noise_where_it_started():
    decoder = LinearDecoder(D, U, V, (), generator())
    decoder.start_at(torch.zeros(1, D), torch.zeros(D, U), torch.eye(D))
    assert decoder.penalty().item() == 0.0
    with torch.no_grad():
        decoder.log_noise += 1.0
    assert decoder.penalty().item() == pytest.approx(0.02 * D)


def test_principal_loadings_are_the_best_of_their_rank():
    root = np.random.RandomState(0).normal(size=(4, 4))
    covariance = root @ root.T
    values, vectors = np.linalg.eigh(covariance)
    best = (vectors[:, -2:] * values[-2:]) @ vectors[:, -2:].T
    loadings = principal_loadings(torch.tensor(covariance), 2).numpy()
    np.testing.assert_allclose(loadings @ loadings.T, best)


def test_codes_beyond_the_columns_get_no_loadings():
    loadings = principal_loadings(torch.eye(2), 4)
    assert loadings.shape == (2, 4)
    assert loadings[:, 2:].abs().max() == 0.0
    torch.testing.assert_close(loadings @ loadings.T, torch.eye(2))


# --- noise


def test_density_is_normal_with_one_noise_scale_a_column():
    decoder = LinearDecoder(D, U, V, (), generator())
    noise = torch.tensor([0.5, 1.0, 2.0])
    decoder.fix_noise(noise)
    u, v = codes(4)
    x = torch.randn(4, D, generator=generator(1))
    residual = (x - decoder.mean(u, v)) / noise
    expected = -0.5 * residual.square() - noise.log() - 0.5 * math.log(2 * math.pi)
    log_prob = decoder.likelihood.log_prob(x, decoder(torch.ones(4, 1), u, v), None)
    torch.testing.assert_close(log_prob, expected.sum(1))


def test_fixed_noise_is_not_learned():
    decoder = LinearDecoder(D, U, V, (), generator())
    assert decoder.log_noise.requires_grad
    decoder.fix_noise(torch.ones(D))
    assert not decoder.log_noise.requires_grad


# --- the straight line in v, and what rows tell of u


def test_linearize_is_exact_for_a_linear_decoder():
    decoder = LinearDecoder(D, U, V, (), generator())
    u, _ = codes(6)
    center, slope = decoder.linearize(u)
    torch.testing.assert_close(center, decoder.mean(u, torch.zeros(6, V)))
    torch.testing.assert_close(slope, decoder.instance_loadings.weight.expand(6, D, V))


@kinds
def test_the_line_of_a_row_is_that_at_its_covariates(kind):
    decoder = unsettled(kind(D, U, V, (8,), generator(), n_covariates=C))
    u, c = codes(6)[0], covariates(6)
    center, slope = decoder.linearize(u, c)
    for row in range(6):
        ends = [decoder.mean(u[[row]], point[None], c[[row]])[0] for point in (*torch.eye(V), *-torch.eye(V))]
        torch.testing.assert_close(center[row], torch.stack(ends).mean(0))
        for code in range(V):
            torch.testing.assert_close(slope[row, :, code], 0.5 * (ends[code] - ends[V + code]))


def test_linearize_is_exact_where_only_the_slope_depends_on_u():
    decoder = formula_decoder(exam_formula, center=3.0, scale=2.0)
    u, _ = codes(6, 2, 1)
    center, slope = decoder.linearize(u)
    torch.testing.assert_close(center, (2.0 * u[:, :1] - 3.0) / 2.0)
    torch.testing.assert_close(slope[:, :, 0], (u[:, 1:] ** 2 + 1.0) / 2.0)


def test_linearize_takes_the_chord_between_minus_one_and_one():
    decoder = formula_decoder(lambda u, v: u[:, :1] + v**3 + 5.0 * v**2)
    u, _ = codes(4, 1, 1)
    center, slope = decoder.linearize(u)
    torch.testing.assert_close(center, u + 5.0)  # mean of the ends
    torch.testing.assert_close(slope[..., 0], torch.ones(4, 1))  # (1 - -1) / 2


def test_newton_terms_of_a_linear_decoder_are_its_exact_log_likelihood_of_u():
    decoder = unsettled(LinearDecoder(D, U, V, (), generator())).double()
    sizes = [1, 2, 4]
    batch = batch_of(torch.randn(7, D, generator=generator(1)).double(), sizes)
    score, information, jacobian, _ = decoder.newton_terms(batch)
    pull = (jacobian.mT @ score[..., None])[..., 0]
    q_u = newton(batch.groups.sum(pull), batch.groups.sum(jacobian.mT @ information @ jacobian))
    means, covariances = linear_group_posterior(decoder, batch.values.numpy(), np.array(sizes))
    np.testing.assert_allclose(q_u.loc.detach().numpy(), means, rtol=1e-8)
    np.testing.assert_allclose((q_u.root @ q_u.root.mT).detach().numpy(), covariances, rtol=1e-8)


def test_newton_terms_leave_out_what_covariates_explain():
    decoder = unsettled(LinearDecoder(D, U, V, (), generator(), n_covariates=C)).double()
    sizes = [1, 2, 4]
    values, c = torch.randn(7, D, generator=generator(1)).double(), covariates(7).double()
    design = torch.cat([torch.ones(7, 1).double(), c], dim=1)
    batch = replace(batch_of(values, sizes), design=design)
    score, information, jacobian, eta = decoder.newton_terms(batch)
    pull = (jacobian.mT @ score[..., None])[..., 0]
    q_u = newton(batch.groups.sum(pull), batch.groups.sum(jacobian.mT @ information @ jacobian))
    left = values - c @ decoder.covariate_loadings.weight.detach().T
    means, covariances = linear_group_posterior(decoder, left.numpy(), np.array(sizes))
    np.testing.assert_allclose(q_u.loc.detach().numpy(), means, rtol=1e-8)
    np.testing.assert_allclose((q_u.root @ q_u.root.mT).detach().numpy(), covariances, rtol=1e-8)
    torch.testing.assert_close(eta[..., 0], values - left + decoder.group_loadings.bias)


def test_newton_terms_say_where_the_outcomes_are_at_u_of_zero():
    decoder = unsettled(LinearDecoder(D, U, V, (), generator())).double()
    batch = batch_of(torch.randn(7, D, generator=generator(1)).double(), [7])
    eta = decoder.newton_terms(batch)[3]
    W, noise = decoder.instance_loadings.weight, decoder.noise_scale
    sd = ((W @ W.T).diagonal() + noise.square()).sqrt()
    expected = (batch.values - decoder.group_loadings.bias) / sd
    scores = decoder.likelihood.normal_scores(batch.values, eta, None)[0]
    torch.testing.assert_close(scores, expected, check_dtype=False)


def test_a_formula_has_no_closed_form_to_start_at():
    with pytest.raises(NotImplementedError, match="FormulaDecoder has no closed form"):
        formula_decoder(exam_formula).newton_terms(batch_of(torch.zeros(2, 1), [2]))


# --- formulas


def test_formula_speaks_the_units_of_x():
    decoder = formula_decoder(exam_formula, center=40.0, scale=5.0)
    u, v = codes(4, 2, 1)
    torch.testing.assert_close(decoder.mean(u, v) * 5.0 + 40.0, exam_formula(u, v))


def test_formula_sees_two_dimensional_codes_whatever_the_package_passes():
    seen = []

    def formula(u, v):
        seen.append((u.shape, v.shape))
        return exam_formula(u, v)

    decoder = formula_decoder(formula)
    u, v = codes(12, 2, 1)
    stacked = decoder.mean(u.reshape(3, 4, 2), v.reshape(3, 4, 1))
    decoder.linearize(u)
    assert all(len(u_shape) == 2 and len(v_shape) == 2 for u_shape, v_shape in seen)
    torch.testing.assert_close(stacked.reshape(12, 1), exam_formula(u, v))


def test_formula_sees_covariates_in_their_units_beside_every_draw():
    seen = []

    def formula(u, v, c):
        seen.append(c)
        return u[:, :1] + v * c[:, :1] + c[:, 1:]

    decoder = formula_decoder(formula, center=40.0, scale=5.0, of_covariates=((30.0, 0.5), (10.0, 0.25)))
    (u, v), c = codes(12, 2, 1), covariates(4, 2)
    stacked = decoder.mean(u.reshape(3, 4, 2), v.reshape(3, 4, 1), c)
    in_units = c * torch.tensor([10.0, 0.25]) + torch.tensor([30.0, 0.5])
    torch.testing.assert_close(seen[0], in_units.repeat(3, 1))
    expected = (formula(u, v, in_units.repeat(3, 1)) - 40.0) / 5.0
    torch.testing.assert_close(stacked.reshape(12, 1), expected)
    assert decoder.check() is None
    assert seen[-1].shape == (3, 2)


def test_a_formula_of_float32_tensors_is_given_covariates_in_float32():
    slopes = torch.ones(2, 1)
    decoder = formula_decoder(
        lambda u, v, c: u @ slopes + v + c @ slopes, of_covariates=((0.0, 0.0), (1.0, 1.0))
    )
    decoder.check()
    assert decoder.single_precision
    (u, v), c = codes(4, 2, 1), covariates(4, 2)
    mean = decoder.double().mean(u.double(), v.double(), c.double())
    torch.testing.assert_close(mean.float(), u @ slopes + v + c @ slopes)


def test_a_formula_of_float32_tensors_is_found_and_given_float32():
    slopes = torch.ones(2, 1)
    decoder = formula_decoder(lambda u, v: u @ slopes + v)
    decoder.check()
    assert decoder.single_precision
    u, v = codes(4, 2, 1)
    mean = decoder.double().mean(u.double(), v.double())
    assert mean.dtype == torch.float64
    torch.testing.assert_close(mean.float(), u @ slopes + v)


def test_parameters_of_a_module_formula_are_parameters_of_the_decoder():
    class Slope(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, u, v):
            return u[:, :1] + self.slope * v

    assert "formula.slope" in dict(formula_decoder(Slope()).named_parameters())


def test_a_good_formula_passes_the_check():
    decoder = formula_decoder(exam_formula)
    assert decoder.check() is None
    assert not decoder.single_precision


@pytest.mark.parametrize(
    ("formula", "complaint"),
    [
        (lambda u, v: u[:, 0], r"shape \(3,\)"),
        (lambda u, v: u, r"shape \(3, 2\)"),
        (lambda u, v: (u + v).sum(), r"shape \(\)"),
        (lambda u, v: (u + v)[:1, :1], r"shape \(1, 1\)"),
        (lambda u, v: np.zeros((3, 1)), "ndarray"),
        (lambda u, v: None, "NoneType"),
        (lambda u: u, "TypeError"),
        (lambda u, v: u[:, 7:8] @ v, "RuntimeError"),
    ],
)
def test_a_bad_formula_is_refused_with_the_shape_it_should_return(formula, complaint):
    with pytest.raises(ValueError, match=rf"^decoder .*{complaint}.*\(3, 1\)") as error:
        formula_decoder(formula).check()
    assert "\n" not in str(error.value)


def test_the_refusal_stays_on_one_line_whatever_the_formula_says():
    def formula(u, v):
        raise ValueError("first line\nsecond line")

    with pytest.raises(ValueError, match="first line") as error:
        formula_decoder(formula).check()
    assert "\n" not in str(error.value)


def test_the_check_leaves_a_modules_parameters_as_they_were():
    formula = torch.nn.Bilinear(2, 1, 1, device="meta").to_empty(device="cpu")
    torch.nn.init.ones_(formula.weight)
    torch.nn.init.zeros_(formula.bias)
    formula_decoder(formula).check()
    assert torch.equal(formula.weight, torch.ones(1, 2, 1))
    assert formula.weight.grad is None


def test_a_new_decoder_needs_its_mean_only():
    class Constant(CodeDecoder):
        def mean(self, u, v, covariates=None):
            return torch.zeros(*v.shape[:-1], self.n_features)

    decoder = Constant(D, U, V)
    assert decoder(torch.ones(4, 1), *codes(4)).shape == (4, D, 2)
    center, slope = decoder.linearize(codes(4)[0])
    assert center.abs().max() == slope.abs().max() == 0.0
    decoder.start_at(torch.zeros(1, D), torch.zeros(D, U), torch.eye(D))
    assert decoder.penalty().item() == 0.0


@pytest.mark.parametrize("n_codes", [1, 2])
def test_factor_loadings_are_maximum_likelihood(n_codes):
    rng = np.random.default_rng(n_codes)
    x = rng.normal(size=(400, n_codes)) @ rng.normal(size=(n_codes, 5)) + rng.normal(size=(400, 5))
    covariance = torch.from_numpy(np.cov(x.T, bias=True))
    noise = 0.1 * covariance.diagonal()
    loadings = factor_loadings(covariance, noise, n_codes, learns_noise=True)
    noise = covariance.diagonal() - loadings.square().sum(1)
    own = multivariate_normal(x.mean(0), loadings @ loadings.T + noise.diag()).logpdf(x).mean()
    reference = FactorAnalysis(n_codes, tol=1e-10, max_iter=10_000, svd_method="lapack").fit(x).score(x)
    assert own == pytest.approx(reference, abs=1e-6)


def test_factor_loadings_with_known_noise_are_those_of_probabilistic_pca():
    # Tipping and Bishop 1999: with one known variance the loadings are scaled eigenvectors.
    rng = np.random.default_rng(0)
    covariance = torch.from_numpy(np.cov(rng.normal(size=(4, 100)) * np.array([[3.0], [2.0], [1.0], [0.5]])))
    loadings = factor_loadings(covariance, torch.full((4,), 0.3).double(), 2, learns_noise=False)
    values, vectors = torch.linalg.eigh(covariance)
    expected = (vectors[:, 2:] * (values[2:] - 0.3)) @ vectors[:, 2:].T
    torch.testing.assert_close(loadings @ loadings.T, expected, rtol=1e-4, atol=1e-4)


def test_canonical_loadings_are_the_same_model_with_independent_codes():
    generator = torch.Generator().manual_seed(5)
    root, loadings = (
        torch.randn(4, 4, generator=generator).double(),
        torch.randn(4, 3, generator=generator).double(),
    )
    noise = root @ root.mT + torch.eye(4)
    canonical = canonical_loadings(loadings, noise)
    torch.testing.assert_close(canonical @ canonical.mT, loadings @ loadings.mT)
    information = canonical.mT @ torch.linalg.inv(noise) @ canonical
    told = information.diagonal()
    torch.testing.assert_close(information, torch.diag(told), atol=1e-10, rtol=0)
    assert (told.diff() <= 0).all()
