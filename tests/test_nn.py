"""Layers, normal heads, draws and the closed forms of the KL terms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from skgroupvae.nn import draw, kl_to_standard_normal, linear, log_prior_ratio, mlp, normal_from


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_normal(*shape: int) -> Normal:
    g = generator(1)
    return Normal(torch.randn(shape, generator=g).double(), torch.rand(shape, generator=g).double() + 0.1)


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


def test_normal_from_keeps_scales_that_float32_can_square():
    normal = normal_from(torch.zeros(3), torch.tensor([-1e4, 0.5, 1e4]))
    assert torch.isfinite(normal.scale.square()).all()
    assert (normal.scale.square() > 0).all()
    assert normal.scale[1] == pytest.approx(math.exp(0.5))


def test_draw_has_the_normals_moments_and_gradients():
    loc = torch.tensor([1.0, -2.0], requires_grad=True)
    scale = torch.tensor([0.5, 3.0], requires_grad=True)
    sample = draw(Normal(loc.expand(100_000, 2), scale.expand(100_000, 2)), generator())
    # Standard errors: sd / sqrt(1e5) = 0.3 % of the sd; five of them.
    assert ((sample.mean(0) - loc).abs() < 5 * scale / math.sqrt(1e5)).all()
    assert ((sample.std(0) / scale - 1).abs() < 5 / math.sqrt(2e5)).all()
    sample.mean(0).sum().backward()
    torch.testing.assert_close(loc.grad, torch.ones(2))  # d draw / d loc = 1
    assert (scale.grad.abs() < 5 / math.sqrt(1e5)).all()  # d draw / d scale = noise, of mean 0


def test_draw_is_decided_by_its_generator():
    normal = random_normal(5, 2)
    assert torch.equal(draw(normal, generator(3)), draw(normal, generator(3)))


def test_kl_equals_torch_distributions():
    normal = random_normal(6, 3)
    expected = kl_divergence(normal, Normal(torch.zeros(6, 3).double(), 1.0)).sum(-1)
    torch.testing.assert_close(kl_to_standard_normal(normal), expected)


def test_kl_of_the_prior_itself_is_zero():
    assert kl_to_standard_normal(Normal(torch.zeros(4), torch.ones(4))) == 0.0


def test_log_prior_ratio_equals_torch_distributions():
    normal = random_normal(6, 3)
    code = torch.from_numpy(np.random.RandomState(0).normal(size=(6, 3)))
    expected = (Normal(0.0, 1.0).log_prob(code) - normal.log_prob(code)).sum(-1)
    torch.testing.assert_close(log_prior_ratio(code, normal), expected)


def test_minus_log_prior_ratio_averages_to_the_kl():
    normal = random_normal(1, 2)
    many = Normal(normal.loc.expand(200_000, 2), normal.scale.expand(200_000, 2))
    ratio = -log_prior_ratio(draw(many, generator()), many)
    standard_error = ratio.std() / math.sqrt(200_000)
    assert (ratio.mean() - kl_to_standard_normal(normal)).abs() < 5 * standard_error
