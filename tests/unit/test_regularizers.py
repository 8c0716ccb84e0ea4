"""The Donsker-Varadhan bounds: right value, right rows compared, gradients to both sides."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import segments_of, unsettled

from skgroupvae.model.regularizers import (
    ContextRegularizer,
    InstanceRegularizer,
    Regularizer,
    donsker_varadhan,
)

D, V = 2, 1
SIZES = (3, 1, 2, 5)
kinds = pytest.mark.parametrize("kind", [ContextRegularizer, InstanceRegularizer])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(kind) -> Regularizer:
    return unsettled(kind(n_features=D, n_instance_codes=V, hidden=(8, 8), generator=generator()))


def batch(sizes=SIZES) -> tuple[torch.Tensor, torch.Tensor]:
    n_rows = sum(sizes)
    return torch.randn(n_rows, D, generator=generator(1)), torch.randn(n_rows, V, generator=generator(2))


def optimal_critic(x: torch.Tensor, y: torch.Tensor, rho: float) -> torch.Tensor:
    """log p(x, y) - log p(x) p(y) of two standard normals with correlation rho."""
    rest = 1.0 - rho**2
    return -0.5 * math.log(rest) - 0.5 * (rho**2 * (x**2 + y**2) - 2.0 * rho * x * y) / rest


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, -0.6])
def test_donsker_varadhan_of_the_optimal_critic_is_the_mutual_information(rho):
    n = 200_000
    noise = torch.randn(2, n, generator=generator(3)).double()
    x, y = noise[0], rho * noise[0] + math.sqrt(1.0 - rho**2) * noise[1]
    stranger = y.roll(1)
    bound = donsker_varadhan(optimal_critic(x, y, rho), optimal_critic(x, stranger, rho))
    exact = -0.5 * math.log(1.0 - rho**2)
    # Standard error of the mean of T (sd |rho|) and of the mean of exp T (mean 1, variance
    # 1 / (1 - rho^2)^2 - 1 at most 1.5 here): below (0.6 + 1.3) / sqrt(n); four of them.
    assert float(bound) == pytest.approx(exact, abs=4 * 1.9 / math.sqrt(n))


def test_donsker_varadhan_is_below_the_information_for_a_worse_critic():
    rho, n = 0.6, 200_000
    noise = torch.randn(2, n, generator=generator(3)).double()
    x, y = noise[0], rho * noise[0] + 0.8 * noise[1]
    values = [
        donsker_varadhan(optimal_critic(x, y, guess), optimal_critic(x, y.roll(1), guess))
        for guess in (0.6, 0.3, -0.3)
    ]
    assert values[0] > values[1] + 0.02 > values[2]


def test_donsker_varadhan_by_hand():
    # mean(1, 3) - log mean(exp 0, exp 0, exp log 4) = 2 - log 2
    value = donsker_varadhan(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0, math.log(4.0)]))
    assert float(value) == pytest.approx(2.0 - math.log(2.0))


def test_donsker_varadhan_takes_critic_values_that_exp_cannot():
    value = donsker_varadhan(torch.tensor([1000.0]), torch.tensor([1000.0, 1000.0]))
    assert float(value) == pytest.approx(0.0, abs=1e-3)


@kinds
@pytest.mark.parametrize("sizes", [(1,), (4,), (1, 1, 1), (6, 1), (1, 4, 1)])
def test_fewer_than_two_groups_of_two_rows_give_exactly_zero(kind, sizes):
    value = make(kind)(*batch(sizes), segments_of(sizes), generator())
    assert value.shape == ()
    assert float(value) == 0.0
    assert not value.requires_grad


@kinds
def test_bound_is_finite_and_decided_by_its_generator(kind):
    regularizer = make(kind)
    first, again, other = (regularizer(*batch(), segments_of(SIZES), generator(seed)) for seed in (0, 0, 1))
    assert torch.isfinite(first)
    assert first == again
    assert first != other


@kinds
def test_groups_of_one_row_do_not_count(kind):
    regularizer = make(kind)
    x, v = batch()
    value = regularizer(x, v, segments_of(SIZES), generator())
    # Row 3 is the group of one.
    x[3], v[3] = 100.0, -100.0
    assert regularizer(x, v, segments_of(SIZES), generator()) == value


@kinds
def test_gradients_reach_every_row_of_v_and_the_critic(kind):
    regularizer = make(kind)
    x, v = batch()
    v.requires_grad_()
    regularizer(x, v, segments_of(SIZES), generator()).backward()
    of_rows = v.grad.abs().sum(1)
    assert of_rows[3] == 0.0  # the group of one row
    assert (of_rows[torch.arange(len(v)) != 3] > 0).all()
    for name, parameter in regularizer.named_parameters():
        # A constant added to the critic cancels between the two terms: its last bias has no gradient.
        if not name.endswith("4.bias"):
            assert parameter.grad.abs().max() > 0, name


@kinds
def test_shuffled_pairs_are_of_two_groups(kind):
    regularizer, seen = make(kind), []
    regularizer.critic = lambda known, code: seen.append((known, code)) or code[:, 0]
    # What identifies a row's group: x and v are its group's number.
    sizes, seeds = (2, 3, 2), range(20)
    numbers = torch.repeat_interleave(torch.arange(3.0), torch.tensor(sizes))[:, None]
    regularizer.pair = lambda x, v, segments, generator: (x, v)
    for seed in seeds:
        regularizer(numbers, numbers, segments_of(sizes), generator(seed))
    for matched, shuffled in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(*matched)
        assert (shuffled[0] != shuffled[1]).all()
    assert len(seen) == 2 * len(seeds)


def test_instance_pairs_are_another_row_of_the_same_group_and_every_one_gets_its_turn():
    regularizer = make(InstanceRegularizer)
    x, _ = batch()
    position = torch.arange(float(len(x)))[:, None]
    partners: dict[int, set[int]] = {row: set() for row in range(len(x))}
    for seed in range(100):
        known, code = regularizer.pair(x, position, segments_of(SIZES), generator(seed))
        assert known is x
        for row, partner in enumerate(code[:, 0].long().tolist()):
            partners[row].add(partner)
    stop = 0
    for size in SIZES:
        start, stop = stop, stop + size
        for row in range(start, stop):
            others = set(range(start, stop)) - {row}
            assert partners[row] == (others or {row})  # a group of one is left out later


def test_context_is_the_mean_over_the_other_rows():
    regularizer = make(ContextRegularizer)
    x, v = batch()
    known, code = regularizer.pair(x, v, segments_of(SIZES), generator())
    assert code is v
    by_row = regularizer.row_network(x)
    torch.testing.assert_close(known[1], (by_row[0] + by_row[2]) / 2)
    torch.testing.assert_close(known[6], by_row[[7, 8, 9, 10]].mean(0))


def test_context_leaves_the_row_itself_out():
    regularizer = make(ContextRegularizer)
    x, v = batch()
    before, _ = regularizer.pair(x, v, segments_of(SIZES), generator())
    x[7] += 2.0
    after, _ = regularizer.pair(x, v, segments_of(SIZES), generator())
    changed = (after - before).abs().max(dim=1).values > 1e-5
    # Rows 6 to 10 are a group: all its rows but row 7 see the change.
    assert changed.nonzero()[:, 0].tolist() == [6, 8, 9, 10]


@kinds
def test_a_trained_critic_finds_dependence_and_none_where_there_is_none(kind):
    # A code that carries its group's level shares information with the other rows; an own draw does not.
    sizes = (4,) * 64
    level = torch.randn(64, generator=generator(4)).repeat_interleave(4)[:, None]
    own = torch.randn(256, 2, generator=generator(5))
    x = torch.cat([level, level], dim=1) + 0.3 * own
    values = {}
    for name, v in (("dependent", level + 0.3 * own[:, :1]), ("independent", own[:, 1:].flip(0))):
        regularizer, source = make(kind), generator(6)
        optimizer = torch.optim.Adam(regularizer.parameters(), lr=0.01)
        for _ in range(100):
            optimizer.zero_grad()
            (-regularizer(x, v, segments_of(sizes), source)).backward()
            optimizer.step()
        values[name] = float(regularizer(x, v, segments_of(sizes), source).detach())
    # Two noisy looks at a level, correlation 1 / 1.09: at least 0.9 nats to be found. Nothing to be found
    # leaves what 256 rows can be overfitted by.
    assert values["dependent"] > 0.5
    assert abs(values["independent"]) < 0.35
