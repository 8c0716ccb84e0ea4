"""What is known of groups: sums of statistics that add up, whatever the chunks and the order of rows."""

from __future__ import annotations

import pytest
import torch
from oracles import batch_of, unsettled

from skgroupvae.model import summaries
from skgroupvae.model.model import LatentModel
from skgroupvae.model.spec import GROUP_ENCODERS, LatentSpec
from skgroupvae.model.summaries import Summaries

SIZES = (1, 3, 2, 5)
COLUMNS = ((0.0, 0.0), (1.0, 1.0))
encoders = pytest.mark.parametrize("encoder", [*GROUP_ENCODERS, "exact"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(encoder: str) -> LatentModel:
    decoder = "linear" if encoder == "exact" else "mlp"
    choice = "deepsets" if encoder == "exact" else encoder
    spec = LatentSpec(choice, "conditional", None, decoder, 2, 1, (8,), *COLUMNS)
    return unsettled(spec.build(generator())).double()


def rows(seed: int = 1, n: int = sum(SIZES)) -> torch.Tensor:
    return torch.randn(n, 2, generator=generator(seed)).double()


def assert_same(first: Summaries, second: Summaries) -> None:
    torch.testing.assert_close(first.totals, second.totals)
    assert torch.equal(first.sizes, second.sizes)


@encoders
def test_posterior_of_summaries_is_that_of_the_rows(encoder):
    model, batch = model_of(encoder), batch_of(rows(), SIZES)
    known = Summaries.of_rows(model, batch)
    assert known.totals.dtype == torch.float64
    assert known.sizes.tolist() == list(SIZES)
    q_u, expected = known.posterior(model), model.infer(batch)
    torch.testing.assert_close(q_u.loc, expected.loc.detach())
    torch.testing.assert_close(q_u.scale, expected.scale.detach())
    assert not q_u.loc.requires_grad


@encoders
def test_chunks_do_not_show(encoder, monkeypatch):
    model, batch = model_of(encoder), batch_of(rows(), SIZES)
    whole = Summaries.of_rows(model, batch)
    monkeypatch.setattr(summaries, "_CHUNK_GROUPS", 3)
    assert_same(Summaries.of_rows(model, batch), whole)


def test_sums_of_a_float32_model_are_float64():
    known = Summaries.of_rows(model_of("deepsets").float(), batch_of(rows().float(), SIZES))
    assert known.totals.dtype == torch.float64
    assert known.sizes.dtype == torch.int64


def test_take_may_repeat_groups():
    known = Summaries.of_rows(model_of("deepsets"), batch_of(rows(), SIZES))
    taken = known.take(torch.tensor([3, 0, 3]))
    assert taken.sizes.tolist() == [5, 1, 5]
    torch.testing.assert_close(taken.totals, known.totals[[3, 0, 3]])


@encoders
def test_plus_adds_rows_to_known_groups_and_appends_new_ones(encoder):
    model, x = model_of(encoder), rows()
    more = rows(2, 6)
    known = Summaries.of_rows(model, batch_of(x, SIZES))
    # One row more of group 2, three of a new group, two of group 0.
    added = Summaries.of_rows(model, batch_of(more, [1, 3, 2]))
    together = known.plus(added, torch.tensor([2, -1, 0]))
    blocks = list(x.split(SIZES))
    first, second, third = more.split([1, 3, 2])
    blocks[2], blocks[0] = torch.cat([blocks[2], first]), torch.cat([blocks[0], third])
    blocks.append(second)
    expected = Summaries.of_rows(model, batch_of(torch.cat(blocks), [len(block) for block in blocks]))
    assert together.sizes.tolist() == [3, 3, 3, 5, 3]
    assert_same(together, expected)
    # Neither was changed.
    assert known.sizes.tolist() == list(SIZES)
    assert added.sizes.tolist() == [1, 3, 2]


def test_a_group_that_is_added_twice_has_both():
    known = Summaries.of_rows(model_of("deepsets"), batch_of(rows(), SIZES))
    together = known.plus(known.take(torch.tensor([1, 1])), torch.tensor([1, 1]))
    torch.testing.assert_close(together.totals[1], 3 * known.totals[1])
    assert together.sizes.tolist() == [1, 9, 2, 5]


def test_only_new_groups():
    known = Summaries.of_rows(model_of("deepsets"), batch_of(rows(), SIZES))
    assert_same(known.plus(known, torch.full((4,), -1)), known.take(torch.arange(8) % 4))
