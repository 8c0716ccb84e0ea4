"""Batches of whole groups: segments against plain loops, rows and groups taken out, thinned groups."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import batch_of, segments_of

from skgroupvae.batch import Batch, Segments, whole_group_batches

CPU = torch.device("cpu")
SIZES = (1, 3, 2, 5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(sizes=SIZES, *, has_mask: bool = True) -> Batch:
    """Rows numbered from 0 in their first value, with a second factor that crosses the first."""
    n_rows = sum(sizes)
    number = torch.arange(float(n_rows))[:, None]
    codes = torch.arange(n_rows) % 4
    crossed = Segments(codes, torch.bincount(codes, minlength=4).float())
    mask = torch.cat([number >= 0, number % 2 == 0], dim=1) if has_mask else None
    values, design = torch.cat([number, -number], 1), torch.cat([number * 0 + 1, number / 10], 1)
    return Batch(values, design, number[:, 0] + 1, (segments_of(sizes), crossed), mask)


def assert_rows(batch: Batch, rows) -> None:
    """These rows of `table()`, in this order, in every part."""
    rows = torch.as_tensor(rows)
    whole = table()
    for part in ("values", "design", "weights", "mask"):
        assert torch.equal(getattr(batch, part), getattr(whole, part)[rows]), part
    assert batch.n_rows == len(rows)


# --- segments


def test_covariates_are_the_design_beside_its_constant():
    ones = torch.ones(3, 1)
    design = torch.cat([ones, torch.arange(6.0).reshape(3, 2)], dim=1)
    batch = Batch(ones, design, ones[:, 0], (segments_of([3]),))
    assert torch.equal(batch.covariates, torch.arange(6.0).reshape(3, 2))
    assert Batch(ones, ones, ones[:, 0], (segments_of([3]),)).covariates is None


def test_segments_of_sizes_stand_by_group():
    segments = Segments.of_sizes(torch.tensor([2, 1, 3]))
    assert segments.codes.tolist() == [0, 0, 1, 2, 2, 2]
    assert segments.sizes.tolist() == [2.0, 1.0, 3.0]
    assert segments.n_groups == 3


def test_segment_sum_and_expand_equal_a_numpy_loop_for_ragged_groups():
    rng = np.random.RandomState(0)
    sizes = np.arange(1, 12)
    codes = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    segments = Segments(torch.from_numpy(codes), torch.from_numpy(sizes.astype(np.float32)))
    for shape in ((), (3,), (2, 4)):
        rows = rng.normal(size=(len(codes), *shape))
        expected = np.stack([rows[codes == g].sum(axis=0) for g in range(len(sizes))])
        np.testing.assert_allclose(segments.sum(torch.from_numpy(rows)).numpy(), expected, rtol=1e-12)
        by_group = rng.normal(size=(len(sizes), *shape))
        expanded = segments.expand(torch.from_numpy(by_group)).numpy()
        np.testing.assert_array_equal(expanded, np.stack([by_group[g] for g in codes]))


def test_segment_sum_passes_gradients_to_every_row():
    segments = Segments(torch.tensor([0, 1, 1, 0]), torch.tensor([2.0, 2.0]))
    rows = torch.zeros(4, 2, requires_grad=True)
    (segments.sum(rows) * torch.tensor([[1.0], [3.0]])).sum().backward()
    assert rows.grad.tolist() == [[1.0, 1.0], [3.0, 3.0], [3.0, 3.0], [1.0, 1.0]]


def test_segments_of_some_rows_may_leave_a_group_empty():
    part = segments_of([2, 1, 3]).take(torch.tensor([5, 0, 1]))
    assert part.codes.tolist() == [2, 0, 0]
    assert part.sizes.tolist() == [2.0, 0.0, 1.0]
    assert part.sizes.dtype == torch.float32


# --- batches


def test_a_batch_in_another_type_keeps_its_codes_and_mask():
    batch = table().to(dtype=torch.float64)
    for part in (batch.values, batch.design, batch.weights, *(factor.sizes for factor in batch.factors)):
        assert part.dtype == torch.float64
    assert batch.mask.dtype == torch.bool
    assert batch.groups.codes.dtype == torch.int64
    assert_rows(batch.to(dtype=torch.float32, device=CPU), range(11))


@pytest.mark.parametrize("rows", [slice(2, 7), torch.tensor([9, 0, 0, 4])])
def test_rows_taken_out_have_no_groups(rows):
    part = table().take(rows)
    assert_rows(part, torch.arange(11)[rows])
    assert part.factors == ()


def test_groups_taken_out_are_whole_and_in_the_order_asked_for():
    part = table().take_groups(torch.tensor([3, 1]))
    assert_rows(part, [6, 7, 8, 9, 10, 1, 2, 3])
    assert part.groups.codes.tolist() == [0] * 5 + [1] * 3
    assert part.groups.sizes.tolist() == [5.0, 3.0]


def test_groups_taken_out_keep_of_other_factors_the_groups_that_occur():
    whole, part = table(), table().take_groups(torch.tensor([2, 0]))
    rows = [4, 5, 0]  # of the second factor's groups 0, 1 and 0
    assert_rows(part, rows)
    assert whole.factors[1].codes[rows].tolist() == [0, 1, 0]
    assert part.factors[1].codes.tolist() == [0, 1, 0]
    assert part.factors[1].sizes.tolist() == [2.0, 1.0]
    later = table().take_groups(torch.tensor([1])).factors[1]  # rows 1, 2, 3, in groups 1, 2, 3
    assert later.codes.tolist() == [0, 1, 2]
    assert later.n_groups == 3


def test_groups_of_a_batch_without_missing_values_have_no_mask():
    assert table(has_mask=False).take_groups(torch.tensor([1])).mask is None


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 2**16))
def test_groups_taken_out_equal_a_loop(sizes, seed):
    rng = np.random.RandomState(seed)
    batch = batch_of(torch.arange(float(sum(sizes)))[:, None], sizes)
    asked = rng.randint(0, len(sizes), rng.randint(1, 2 * len(sizes) + 1))  # repeats too
    ends = np.cumsum(sizes)
    expected = [list(range(ends[g] - sizes[g], ends[g])) for g in asked]
    part = batch.take_groups(torch.from_numpy(asked))
    assert part.values[:, 0].tolist() == [row for group in expected for row in group]
    assert part.groups.codes.tolist() == [i for i, group in enumerate(expected) for _ in group]
    assert part.groups.sizes.tolist() == [len(group) for group in expected]


def test_a_thinned_group_keeps_one_row_at_least_and_any_number_equally_often():
    sizes = [5] * 4000 + [1]
    batch = batch_of(torch.arange(float(sum(sizes)))[:, None], sizes)
    part = batch.thinned(generator())
    kept = part.values[:, 0].long()
    assert len(kept.unique()) == len(kept)
    torch.testing.assert_close(part.groups.codes, batch.groups.codes[kept])
    torch.testing.assert_close(part.groups.sizes, torch.bincount(part.groups.codes).float())
    assert part.groups.sizes.min() == 1.0
    # Of 5 rows any number from 0 to 5 is as likely, 1/6 each, and none counts as one: 2/6. Four standard
    # errors of a share of 4,000 are 0.03 at most.
    shares = torch.bincount(part.groups.sizes[:4000].long(), minlength=6)[1:] / 4000.0
    torch.testing.assert_close(shares, torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0]) / 6.0, atol=0.03, rtol=0.0)


def test_a_thinned_batch_keeps_whole_rows_in_order_and_every_factor():
    part = table().thinned(generator(1))
    rows = part.values[:, 0].long()
    assert 4 <= len(rows) < 11
    assert (rows.diff() > 0).all()
    assert_rows(part, rows)
    for thinned, factor in zip(part.factors, table().factors, strict=True):
        assert torch.equal(thinned.codes, factor.codes[rows])
        assert thinned.n_groups == factor.n_groups
        assert thinned.sizes.tolist() == torch.bincount(thinned.codes, minlength=factor.n_groups).tolist()


def test_parts_of_groups_are_log_uniform_in_size_and_the_other_groups_whole():
    sizes = [8] * 6000
    batch = batch_of(torch.arange(8.0 * 6000)[:, None], sizes)
    part = batch.with_parts(0.5, generator())
    kept = part.values[:, 0].long()
    assert len(kept.unique()) == len(kept)
    torch.testing.assert_close(part.groups.codes, batch.groups.codes[kept])
    left = part.groups.sizes.long()
    assert left.tolist() == torch.bincount(part.groups.codes, minlength=6000).tolist()
    # A part has n of 8 rows with probability log((n + 1) / n) / log(9); the other half of the groups has 8.
    # Four standard errors of a share of 6,000 are 0.026 at most.
    n = torch.arange(1.0, 9.0)
    expected = 0.5 * ((n + 1.0) / n).log() / math.log(9.0)
    expected[-1] += 0.5
    shares = torch.bincount(left, minlength=9)[1:] / 6000.0
    torch.testing.assert_close(shares, expected, atol=0.026, rtol=0.0)
    assert torch.equal(table().with_parts(0.0, generator()).values, table().values)


def test_thinning_is_decided_by_its_generator():
    first, again, other = (table().thinned(generator(seed)).values for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- batches of groups


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=30),
    st.integers(1, 10),
    st.integers(1, 60),
    st.booleans(),
)
def test_batches_hold_each_group_once_and_respect_both_limits(sizes, n_groups, max_rows, permuted):
    sizes = torch.tensor(sizes)
    order = torch.randperm(len(sizes), generator=generator()) if permuted else None
    batches = list(whole_group_batches(sizes.double(), n_groups, permutation=order, max_rows=max_rows))
    expected = torch.arange(len(sizes)) if order is None else order
    assert torch.equal(torch.cat(batches), expected)
    for batch in batches:
        assert 1 <= len(batch) <= n_groups
        assert sizes[batch].sum() <= max_rows or len(batch) == 1
    # Greedy: the next group would not have fitted.
    for batch, following in itertools.pairwise(batches):
        assert len(batch) == n_groups or sizes[batch].sum() + sizes[following[0]] > max_rows


def test_batches_of_part_of_the_groups_hold_only_those():
    batches = whole_group_batches(torch.tensor([5, 1, 1, 9]), 2, permutation=torch.tensor([3, 1, 2]))
    assert [batch.tolist() for batch in batches] == [[3, 1], [2]]


def test_no_groups_make_no_batches():
    assert list(whole_group_batches(torch.tensor([2, 3]), 4, permutation=torch.arange(0))) == []
