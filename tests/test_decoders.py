"""Decoders: means, noise, the straight line in v, and the checks of a user's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracles import exam_formula, unsettled

from skgroupvae.decoders import Decoder, FormulaDecoder, LinearDecoder, MLPDecoder

D, U, V = 3, 2, 2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codes(n: int, n_group: int = U, n_instance: int = V) -> tuple[torch.Tensor, torch.Tensor]:
    g = generator(7)
    return torch.randn(n, n_group, generator=g), torch.randn(n, n_instance, generator=g)


def formula_decoder(formula, n_features=1, n_instance_codes=1, centre=0.0, scale=1.0) -> FormulaDecoder:
    return FormulaDecoder(
        formula,
        n_features,
        n_instance_codes,
        torch.full((n_features,), centre),
        torch.full((n_features,), scale),
    )


@pytest.mark.parametrize("kind", [MLPDecoder, LinearDecoder])
def test_decoders_are_decided_by_their_generator(kind):
    first, again = (kind(D, U, V, (8,), generator(3)) for _ in range(2))
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, dict(again.named_parameters())[name])


@pytest.mark.parametrize("kind", [MLPDecoder, LinearDecoder])
def test_means_keep_leading_dimensions(kind):
    decoder = unsettled(kind(D, U, V, (8,), generator()))
    u, v = codes(12)
    stacked = decoder.mean(u.reshape(3, 4, U), v.reshape(3, 4, V))
    torch.testing.assert_close(stacked.reshape(12, D), decoder.mean(u, v))


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


@pytest.mark.parametrize("kind", [MLPDecoder, LinearDecoder])
def test_start_from_moments_reproduces_the_covariances_that_the_codes_can_hold(kind):
    g = np.random.RandomState(0)
    between, within = (a @ a.T for a in (g.normal(size=(D, 1)), g.normal(size=(D, D))))
    decoder = kind(D, U, D, (8,), generator())
    loadings = decoder.start_from_moments(torch.tensor(between).float(), torch.tensor(within).float())
    np.testing.assert_allclose((loadings @ loadings.T).detach().numpy(), between, atol=1e-5)
    # What the instance codes do not explain of a column's variance is the noise.
    own = decoder.instance_loadings.weight
    total = (own @ own.T).diagonal() + (2 * decoder.log_noise).exp()
    np.testing.assert_allclose(total.detach().numpy(), np.diag(within), rtol=1e-4)


def test_start_from_moments_leaves_a_fixed_noise_alone():
    decoder = LinearDecoder(D, U, V, (), generator())
    decoder.fix_noise(torch.full((D,), 0.3))
    decoder.start_from_moments(torch.eye(D), torch.eye(D))
    torch.testing.assert_close(decoder.log_noise.exp(), torch.full((D,), 0.3))


def test_density_is_normal_with_one_noise_scale_a_column():
    decoder = LinearDecoder(D, U, V, (), generator())
    noise = torch.tensor([0.5, 1.0, 2.0])
    decoder.fix_noise(noise)
    u, v = codes(4)
    x = torch.randn(4, D, generator=generator(1))
    residual = (x - decoder.mean(u, v)) / noise
    expected = -0.5 * residual.square() - noise.log() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(decoder(u, v).log_prob(x), expected)


def test_fixed_noise_is_not_learned():
    decoder = LinearDecoder(D, U, V, (), generator())
    assert decoder.log_noise.requires_grad
    decoder.fix_noise(torch.ones(D))
    assert not decoder.log_noise.requires_grad


def test_linearize_is_exact_for_a_linear_decoder():
    decoder = LinearDecoder(D, U, V, (), generator())
    u, _ = codes(6)
    centre, slope = decoder.linearize(u)
    torch.testing.assert_close(centre, decoder.mean(u, torch.zeros(6, V)))
    torch.testing.assert_close(slope, decoder.instance_loadings.weight.expand(6, D, V))


def test_linearize_is_exact_where_only_the_slope_depends_on_u():
    decoder = formula_decoder(exam_formula, centre=3.0, scale=2.0)
    u, _ = codes(6, 2, 1)
    centre, slope = decoder.linearize(u)
    torch.testing.assert_close(centre, (2.0 * u[:, :1] - 3.0) / 2.0)
    torch.testing.assert_close(slope[:, :, 0], (u[:, 1:] ** 2 + 1.0) / 2.0)


def test_linearize_takes_the_chord_between_minus_one_and_one():
    decoder = formula_decoder(lambda u, v: u[:, :1] + v**3 + 5.0 * v**2)
    u, _ = codes(4, 1, 1)
    centre, slope = decoder.linearize(u)
    torch.testing.assert_close(centre, u + 5.0)  # mean of the ends
    torch.testing.assert_close(slope[..., 0], torch.ones(4, 1))  # (1 - -1) / 2


def test_formula_speaks_the_units_of_x():
    decoder = formula_decoder(exam_formula, centre=40.0, scale=5.0)
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


def test_parameters_of_a_module_formula_are_parameters_of_the_decoder():
    class Slope(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, u, v):
            return u[:, :1] + self.slope * v

    assert "formula.slope" in dict(formula_decoder(Slope()).named_parameters())


def test_a_good_formula_passes_the_check():
    assert formula_decoder(exam_formula).check(2) is None


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
        formula_decoder(formula).check(2)
    assert "\n" not in str(error.value)


def test_the_refusal_stays_on_one_line_whatever_the_formula_says():
    def formula(u, v):
        raise ValueError("first line\nsecond line")

    with pytest.raises(ValueError, match="first line") as error:
        formula_decoder(formula).check(2)
    assert "\n" not in str(error.value)


def test_the_check_leaves_a_modules_parameters_as_they_were():
    formula = torch.nn.Bilinear(2, 1, 1, device="meta").to_empty(device="cpu")
    torch.nn.init.ones_(formula.weight)
    torch.nn.init.zeros_(formula.bias)
    formula_decoder(formula).check(2)
    assert torch.equal(formula.weight, torch.ones(1, 2, 1))
    assert formula.weight.grad is None


def test_a_new_decoder_needs_its_mean_only():
    class Constant(Decoder):
        def mean(self, u, v):
            return torch.zeros(*v.shape[:-1], self.n_features)

    normal = Constant(D, V)(*codes(4))
    assert normal.loc.shape == normal.scale.shape == (4, D)
    centre, slope = Constant(D, V).linearize(codes(4)[0])
    assert centre.abs().max() == slope.abs().max() == 0.0
