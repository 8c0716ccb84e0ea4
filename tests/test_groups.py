"""Labels to groups, whole-group batches, and reductions by segment against plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skgroupvae.groups import GroupIndex, Segments, as_label_array, iter_group_batches

LABELS = {
    "strings": ["b", "a", "b", "c", "a", "b"],
    "ints": [3, -1, 3, 7, -1, 3],
    "floats": [0.5, 0.25, 0.5, 7.0, 0.25, 0.5],
    "bools": [True, False, True, True, False, True],
    "tuples": [(1, "x"), (1, "y"), (1, "x"), (2, "x"), (1, "y"), (1, "x")],
    "tuples of two lengths": [(1,), (1, 2), (1,), (2, 1, 3), (1, 2), (1,)],
    "mixed": [1, "a", 1, ("a", 1), "a", 1],
    "frozensets": [
        frozenset("ab"),
        frozenset(),
        frozenset("ba"),
        frozenset("c"),
        frozenset(),
        frozenset("ab"),
    ],
    "categorical with unused levels": pd.Categorical(list("babcab"), list("zyabcx")),
    "categorical Series": pd.Series(list("bcbaca"), dtype="category", index=[9, 9, 1, 2, 3, 4]),
    "datetimes": pd.to_datetime(["2020-01-02", "2019-01-01", "2020-01-02", "2021-05-05"] * 2)[:6],
    "datetimes with zone": pd.Series(pd.to_datetime(["2020-01-02", "2019-01-01"] * 3).tz_localize("CET")),
    "datetime64 array": np.array(["2020-01-02", "2019-01-01", "2020-01-02"] * 2, dtype="datetime64[D]"),
    "periods": pd.period_range("2020-01", periods=3, freq="M").repeat(2),
    "numpy strings": np.array(["b", "a", "b", "c", "a", "b"]),
    "nullable ints": pd.array([3, 1, 3, 7, 1, 3], dtype="Int64"),
}
labels_strategy = st.lists(
    st.one_of(
        st.integers(-3, 3), st.sampled_from("abc"), st.tuples(st.integers(0, 1), st.sampled_from("ab"))
    ),
    min_size=1,
    max_size=40,
)


def groups_by_loop(labels) -> dict:
    """Row positions of each label, labels in order of first appearance."""
    found: dict = {}
    for position, label in enumerate(labels):
        found.setdefault(label, []).append(position)
    return found


def assert_indexes(index: GroupIndex, labels) -> None:
    expected = groups_by_loop(labels)
    assert index.n_groups == len(expected)
    for position, (label, rows) in enumerate(expected.items()):
        assert index.labels[position] == label
        assert index.labels.get_indexer(pd.Index([label], tupleize_cols=False)).tolist() == [position]
        assert np.flatnonzero(index.codes == position).tolist() == rows
        assert index.sizes[position] == len(rows)
        assert sorted(index.order[index.starts[position] : index.starts[position + 1]]) == rows


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_index_finds_the_rows_of_labels_of_any_hashable_kind(labels):
    assert_indexes(GroupIndex.from_labels(labels), list(labels))


@given(labels_strategy)
def test_index_equals_a_loop_over_rows(labels):
    assert_indexes(GroupIndex.from_labels(labels), labels)


def test_one_tuple_label_is_one_label():
    index = GroupIndex.from_labels([("a", 1)])
    assert index.n_groups == 1
    assert index.labels[0] == ("a", 1)


def test_as_label_array_keeps_a_list_of_equal_length_tuples_one_dimensional():
    assert as_label_array([(1, 2), (3, 4)]).shape == (2,)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 2**16))
def test_rows_of_returns_whole_groups_in_the_order_asked_for(sizes, seed):
    rng = np.random.RandomState(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    index = GroupIndex.from_labels(labels)
    asked = rng.permutation(index.n_groups)[: rng.randint(1, index.n_groups + 1)]
    rows, segments = index.rows_of(asked)
    expected = [np.flatnonzero(labels == index.labels[g]).tolist() for g in asked]
    assert rows.tolist() == [row for group in expected for row in group]
    assert segments.codes.tolist() == [i for i, group in enumerate(expected) for _ in group]
    assert segments.sizes.tolist() == [len(group) for group in expected]


@given(st.integers(0, 2**16))
def test_order_by_content_does_not_show_the_order_of_the_rows(seed):
    rng = np.random.RandomState(seed)
    X = rng.normal(size=(20, 3))
    labels = rng.randint(0, 4, 20)
    shuffle = rng.permutation(20)
    for index, rows in (
        (GroupIndex.from_labels(labels, X), X),
        (GroupIndex.from_labels(labels[shuffle], X[shuffle]), X[shuffle]),
    ):
        by_label = {
            label: rows[index.order[index.starts[g] : index.starts[g + 1]]]
            for g, label in enumerate(index.labels)
        }
        in_content_order = [index.labels[g] for g in index.by_content(rows)]
        if rows is X:
            expected = by_label, in_content_order
    assert in_content_order == expected[1]
    for label, block in by_label.items():
        np.testing.assert_array_equal(block, expected[0][label])


def test_order_by_content_does_not_show_the_labels():
    rng = np.random.RandomState(0)
    X, labels = rng.normal(size=(30, 2)), rng.randint(0, 6, 30)
    renamed = np.array(list("zkcqbm"))[labels]
    first, second = GroupIndex.from_labels(labels, X), GroupIndex.from_labels(renamed, X)
    np.testing.assert_array_equal(first.by_content(X), second.by_content(X))


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


def test_a_thinned_group_keeps_one_row_at_least_and_any_number_equally_often():
    codes = torch.arange(4000).repeat_interleave(5)
    segments = Segments(torch.cat([codes, torch.tensor([4000])]), torch.tensor([5.0] * 4000 + [1.0]))
    kept, part = segments.thinned(torch.Generator().manual_seed(0))
    assert len(kept.unique()) == len(kept)
    torch.testing.assert_close(part.codes, segments.codes[kept])
    torch.testing.assert_close(part.sizes, torch.bincount(part.codes).float())
    assert part.sizes.min() == 1.0
    # Of 5 rows any number from 0 to 5 is as likely, 1/6 each, and none counts as one: 2/6. Four standard
    # errors of a share of 4,000 are 0.03 at most.
    shares = torch.bincount(part.sizes[:4000].long(), minlength=6)[1:] / 4000.0
    torch.testing.assert_close(shares, torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0]) / 6.0, atol=0.03, rtol=0.0)


def test_segment_sum_passes_gradients_to_every_row():
    segments = Segments(torch.tensor([0, 1, 1, 0]), torch.tensor([2.0, 2.0]))
    rows = torch.zeros(4, 2, requires_grad=True)
    (segments.sum(rows) * torch.tensor([[1.0], [3.0]])).sum().backward()
    assert rows.grad.tolist() == [[1.0, 1.0], [3.0, 3.0], [3.0, 3.0], [1.0, 1.0]]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=30),
    st.integers(1, 10),
    st.integers(1, 60),
    st.booleans(),
)
def test_batches_hold_each_group_once_and_respect_both_limits(sizes, n_groups, max_rows, permuted):
    sizes = np.array(sizes)
    order = np.random.RandomState(0).permutation(len(sizes)) if permuted else None
    batches = list(iter_group_batches(sizes, n_groups, permutation=order, max_rows=max_rows))
    expected = np.arange(len(sizes)) if order is None else order
    np.testing.assert_array_equal(np.concatenate(batches), expected)
    for batch in batches:
        assert 1 <= len(batch) <= n_groups
        assert sizes[batch].sum() <= max_rows or len(batch) == 1
    # Greedy: the next group would not have fitted.
    for batch, following in itertools.pairwise(batches):
        assert len(batch) == n_groups or sizes[batch].sum() + sizes[following[0]] > max_rows


def test_batches_of_part_of_the_groups_hold_only_those():
    batches = list(iter_group_batches(np.array([5, 1, 1, 9]), 2, permutation=np.array([3, 1, 2])))
    assert [batch.tolist() for batch in batches] == [[3, 1], [2]]
