"""Whether a network pays: the rule, on gains that are given."""

from __future__ import annotations

import pytest
import torch

from skgroupvae.estimators.choice import Trial, choose_model


def chosen(sums, n_groups=60, spread=1.0, n_steps=None):
    """The choice where held-out groups gain these sums, by question, with this standard error."""
    asked = []

    def trial_of(learned, held_out):
        assert not set(learned.tolist()) & set(held_out.tolist())
        asked.append(held_out)
        n_held_out = len(held_out)
        noise = torch.linspace(-1.0, 1.0, n_held_out, dtype=torch.float64)
        noise = spread * noise / noise.std() / n_held_out**0.5
        gains = torch.stack([noise + total / n_held_out for total in sums])
        return Trial(gains, n_steps or tuple(range(10, 10 * len(sums) + 1, 10)))

    choice = choose_model(trial_of, torch.full((n_groups,), 5), 0, None)
    return choice, asked


@pytest.mark.parametrize(("total", "model"), [(2.5, "network"), (1.5, "linear"), (-3.0, "linear")])
def test_a_network_has_to_gain_two_standard_errors(total, model):
    choice, asked = chosen([total])
    assert choice.model == model
    # A quarter of 60 groups, of 5 rows each.
    assert len(asked) == 1
    assert choice.gain == pytest.approx(total / 75)
    assert f"{choice.gain:+.4f}" in choice.reason


def test_with_few_groups_nobody_is_asked():
    choice, asked = chosen([9.0], n_groups=19)
    assert choice.model == "linear"
    assert "19 groups are too few" in choice.reason
    assert not asked


def test_with_up_to_40_groups_each_is_held_out_once_unless_the_first_half_loses():
    choice, asked = chosen([5.0], n_groups=40)
    assert choice.model == "network"
    assert sorted(torch.cat(asked).tolist()) == list(range(40))
    choice, asked = chosen([-5.0], n_groups=40)
    assert choice.model == "linear"
    assert len(asked) == 2


def test_training_is_as_long_as_is_best():
    # The groups of a question differ by a constant, so that a standard error of a difference is 0.
    assert chosen([3.0, 9.0, 6.0])[0].n_steps == 20
    assert chosen([3.0, 6.0, 6.0])[0].n_steps == 30
    assert chosen([3.0, 6.0, 9.0], n_steps=(10, 20, None))[0].n_steps is None


def test_gains_that_are_not_finite_are_losses():
    assert chosen([float("nan")])[0].model == "linear"
    assert chosen([float("inf")])[0].model == "linear"
