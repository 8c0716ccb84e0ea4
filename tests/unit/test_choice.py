"""Whether scales of groups, or a network, pay: the rule, on gains that are given."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from skgroupvae.estimators.choice import Trial, choose_model, choose_scales
from skgroupvae.state import Choice


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


def chosen_scales(gains):
    """The choice where groups, of 5 rows each, gain these nats when they are held out."""
    gains = torch.tensor(gains, dtype=torch.float64)
    asked = []

    def trial_of(learned, held_out):
        asked.append(held_out)
        return Trial(gains[held_out][None], (None,))

    return choose_scales(trial_of, torch.full((len(gains),), 5), 0, None), asked


def test_scales_are_asked_of_6_groups_one_by_one():
    choice, asked = chosen_scales([1.0, 2.0, 1.0, 3.0, 1.0])
    assert choice.model == "linear"
    assert "5 groups are too few" in choice.reason
    assert not asked
    choice, asked = chosen_scales([1.0, 2.0, 1.0, 3.0, 1.0, 2.0])
    assert choice.model == "location_scale"
    assert choice.gain == pytest.approx(10.0 / 30.0)
    assert sorted(torch.cat(asked).tolist()) == list(range(6))
    assert all(len(held_out) == 1 for held_out in asked)


def test_a_group_that_gains_much_does_not_hide_that_all_gain():
    gains = [12.0, 52.0, 16.0, 13.0, 26.0, 61.0, 0.0, 20.0, 359.0, 27.0]
    assert torch.tensor(gains).mean() < 2.0 * torch.tensor(gains).std() / 10**0.5
    choice, _ = chosen_scales(gains)
    assert choice.model == "location_scale"
    assert choice.gain == pytest.approx(sum(gains) / 50.0)
    # Losses count in full.
    assert chosen_scales([*gains[:-1], -300.0])[0].model == "linear"


def test_scales_have_to_gain_more_than_rounding():
    assert chosen_scales([1e-4] * 10)[0].model == "linear"


def test_a_network_is_on_trial_against_the_simpler_model():
    simpler = Choice("location_scale", "scales of groups pay: much", 0.5)
    few = choose_model(lambda *_: pytest.fail("asked"), torch.full((12,), 5), 0, None, simpler)
    assert few == Choice("location_scale", f"{simpler.reason}; 12 groups are too few for a network", 0.5)

    def trial_of(learned, held_out, gain):
        return Trial(torch.full((1, len(held_out)), gain, dtype=torch.float64), (10,))

    for gain, model in ((1.0, "network"), (-1.0, "location_scale")):
        choice = choose_model(partial(trial_of, gain=gain), torch.full((60,), 5), 0, None, simpler)
        assert choice.model == model
        assert choice.reason.startswith(f"{simpler.reason}; a network ")
