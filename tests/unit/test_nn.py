"""Layers, bounded scales and seeded noise."""

from __future__ import annotations

import math

import pytest
import torch

from skgroupvae.model.nn import bounded_scale, linear, mlp, standard_normal


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_linear_weights_are_uniform_within_the_usual_bound():
    layer = linear(25, 400, generator())
    values = torch.cat([layer.weight.flatten(), layer.bias]).detach()
    assert values.abs().max() <= 0.2  # 1 / sqrt(25)
    # Uniform on (-b, b) has sd b / sqrt(3); 10,400 draws know it to 0.5 %.
    assert values.std() == pytest.approx(0.2 / math.sqrt(3), rel=0.03)


def test_linear_depends_on_its_generator_only():
    first, again, other = (linear(3, 4, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)
    assert not torch.equal(first.weight, other.weight)


def test_a_layer_of_no_inputs_is_its_bias():
    layer = linear(0, 3, generator())
    torch.testing.assert_close(layer(torch.zeros(2, 0)), layer.bias.expand(2, 3))


def test_mlp_equals_the_same_layers_by_hand():
    network = mlp(3, (5, 4), 2, generator())
    x = torch.randn(7, 3, generator=generator(1))
    expected = x
    for layer in (network[0], network[2], network[4]):
        expected = expected @ layer.weight.T + layer.bias
        if layer is not network[4]:
            expected = expected * torch.sigmoid(expected)
    torch.testing.assert_close(network(x), expected)


def test_mlp_without_output_layer_ends_at_the_last_activation():
    network = mlp(3, (5, 4), None, generator())
    x = torch.randn(2, 3, generator=generator(1))
    assert isinstance(network[-1], torch.nn.SiLU)
    assert network(x).shape == (2, 4)


def test_mlp_with_zero_last_starts_at_exactly_zero():
    network = mlp(3, (5,), 2, generator(), zero_last=True)
    assert network(torch.randn(4, 3, generator=generator(1))).abs().max() == 0.0


def test_weights_are_float32_whatever_torchs_default_is():
    torch.set_default_dtype(torch.float64)
    try:
        parts = mlp(3, (5,), 2, generator(), zero_last=True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in parts.parameters()} == {torch.float32}


def test_scales_are_kept_where_float32_can_square_them():
    scale = bounded_scale(torch.tensor([-1e4, 0.5, 1e4]))
    assert torch.isfinite(scale.square()).all()
    assert (scale.square() > 0).all()
    assert scale[1] == pytest.approx(math.exp(0.5))


def test_noise_is_decided_by_its_generator_and_has_the_type_asked_for():
    like = torch.zeros(1, dtype=torch.float64)
    first, again = (standard_normal((3, 2), like, generator(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.dtype == torch.float64
    assert first.shape == (3, 2)
