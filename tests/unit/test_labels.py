"""Labels of groups: columns that hold them, what is refused, positions and an order that nothing can move."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skgroupvae.data.labels import (
    as_label_array,
    canonical_order,
    check_groups,
    check_labels_by_row,
    index_labels,
    label_columns,
    split_group_column,
    warn_of_unlike_labels,
)

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


# --- positions


def assert_indexes(codes, index, labels) -> None:
    """Against a loop over rows."""
    expected: dict = {}
    for position, label in enumerate(labels):
        expected.setdefault(label, []).append(position)
    assert len(index) == len(expected)
    for position, (label, rows) in enumerate(expected.items()):
        assert index[position] == label
        assert index.get_indexer(pd.Index([label], tupleize_cols=False)).tolist() == [position]
        assert np.flatnonzero(codes == position).tolist() == rows


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_index_finds_the_rows_of_labels_of_any_hashable_kind(labels):
    assert_indexes(*index_labels(labels), list(labels))


@given(labels_strategy)
def test_index_equals_a_loop_over_rows(labels):
    assert_indexes(*index_labels(labels), labels)


def test_one_tuple_label_is_one_label():
    codes, index = index_labels([("a", 1)])
    assert codes.tolist() == [0]
    assert index[0] == ("a", 1)


def test_as_label_array_keeps_a_list_of_equal_length_tuples_one_dimensional():
    assert as_label_array([(1, 2), (3, 4)]).shape == (2,)


@st.composite
def tables(draw):
    """Content (N, K) in ragged groups, with repeated rows among them, and a permutation of the rows."""
    sizes = draw(st.lists(st.integers(1, 8), min_size=1, max_size=6))
    rng = np.random.RandomState(draw(st.integers(0, 2**16)))
    codes = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    content = rng.normal(size=(len(codes), draw(st.integers(1, 4))))
    if draw(st.booleans()):
        content = content.round()
    return content, codes, rng.permutation(len(codes))


@given(tables())
def test_canonical_order_shows_neither_the_order_of_the_rows_nor_the_labels(table):
    content, groups, shuffle = table
    blocks = []
    for rows, labels in ((content, groups), (content[shuffle], [f"new {g}" for g in groups[shuffle]])):
        codes, _ = index_labels(labels)
        order, group_order = canonical_order(codes, rows)
        assert sorted(order) == list(range(len(rows)))
        sizes = np.bincount(codes)[group_order]
        assert (np.diff(sizes) >= 0).all()
        np.testing.assert_array_equal(codes[order], np.repeat(group_order, sizes))
        blocks.append(rows[order])
    np.testing.assert_array_equal(*blocks)


@given(tables(), st.floats(0.1, 10.0))
def test_sums_in_canonical_order_are_equal_to_the_last_bit(table, factor):
    content, groups, shuffle = table
    values = content * factor
    sums = []
    for where in (np.arange(len(groups)), shuffle):
        order, _ = canonical_order(index_labels(groups[where])[0], content[where])
        sums.append(np.cumsum(values[where][order], axis=0))
    np.testing.assert_array_equal(*sums)


def test_canonical_order_does_not_depend_on_the_layout_in_memory():
    rng = np.random.RandomState(0)
    content, codes = rng.normal(size=(50, 3)), index_labels(rng.randint(0, 9, 50))[0]
    for first, second in zip(
        canonical_order(codes, content), canonical_order(codes, np.asfortranarray(content)), strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_groups_of_one_size_are_ordered_by_their_sums():
    # Keys are cos(1) times the only column, so their order is that of the column.
    content = np.array([[3.0], [1.0], [2.0], [-5.0], [0.0]])
    order, group_order = canonical_order(np.array([0, 1, 0, 1, 2]), content)
    assert group_order.tolist() == [2, 1, 0]
    assert order.tolist() == [4, 3, 1, 2, 0]


# --- columns of the table


@pytest.fixture
def nested(pupils):
    """Labels of two columns: district, and school within it."""
    district = pupils["school"].str[-1].astype(int) % 3
    return pupils.assign(district=district, school=pupils["school"].str[-1])


def test_labels_in_a_column_leave_the_table(pupils):
    table, labels = split_group_column(pupils, "school", None)
    assert list(table.columns) == ["score", "effort"]
    pd.testing.assert_series_equal(labels, pupils["school"])
    by_position, same = split_group_column(pupils, -1, None)
    pd.testing.assert_frame_equal(by_position, table)
    pd.testing.assert_series_equal(same, labels)


def test_labels_in_a_column_of_an_array():
    X = np.arange(12.0).reshape(4, 3)
    table, labels = split_group_column(X, -2, None)
    np.testing.assert_array_equal(table, X[:, [0, 2]])
    np.testing.assert_array_equal(labels, X[:, 1])


def test_without_a_column_both_come_back(X):
    table, labels = split_group_column(X, None, "anything")
    assert table is X
    assert labels == "anything"


def test_a_polars_table_comes_back_as_pandas(pupils):
    pl = pytest.importorskip("polars")
    table, labels = split_group_column(pl.from_dict(pupils.to_dict("list")), "school", None)
    np.testing.assert_array_equal(table, pupils[["score", "effort"]])
    assert labels.tolist() == pupils["school"].tolist()


def test_a_list_of_columns_makes_labels_that_are_tuples(nested):
    _, labels = split_group_column(nested, ["district", "school"], None)
    assert labels.tolist() == list(zip(nested["district"], nested["school"], strict=True))
    numbers = nested.assign(school=nested["school"].astype(int)).to_numpy(dtype=float)
    table, of_array = split_group_column(numbers, [3, 2], None)
    assert table.shape == (len(nested), 2)
    assert [(a, int(b)) for a, b in labels] == of_array.tolist()


def test_a_row_without_part_of_its_label_has_none(nested):
    nested["district"] = nested["district"].astype(float).where(np.arange(len(nested)) > 0)
    _, labels = split_group_column(nested, ["district", "school"], None)
    with pytest.raises(ValueError, match=r"groups has 1 missing labels \(first at row 0\)"):
        check_groups(labels, len(nested), "GroupVAE")


@pytest.mark.parametrize(
    ("group_column", "message"),
    [
        ([], r"group_column=\[\] names no column"),
        ("g", "group_column='g' is not a column of X; its columns are.*name the column"),
        (["school", "class"], "group_column='class' is not a column of X"),
        (["school", 2], "names a column twice"),
    ],
)
def test_group_columns_that_cannot_be(group_column, message, pupils):
    with pytest.raises(ValueError, match=message):
        label_columns(pupils, group_column)


@pytest.mark.parametrize(
    ("group_column", "message"),
    [("g", "group_column='g' needs a DataFrame; .*position"), (7, "group_column=7.*2 columns; pass a lower")],
)
def test_group_columns_that_an_array_cannot_have(group_column, message):
    with pytest.raises(ValueError, match=message):
        label_columns(np.zeros((3, 2)), group_column)


def test_duplicate_names_and_labels_given_twice(pupils):
    with pytest.raises(ValueError, match=r"X has duplicate column names \['score'\]; rename or drop"):
        label_columns(pd.concat([pupils, pupils[["score"]]], axis=1), "school")
    with pytest.raises(ValueError, match="groups= and group_column are both given; pass one"):
        split_group_column(pupils, "school", pupils["school"])


# --- checks

N = 12
GROUPS = np.repeat(["a", "b", "c"], 4)
BAD_LABELS = {
    "fewer than rows": (GROUPS[:5], "groups.*5 labels.*12 rows.*pass one label a row"),
    "more than rows": (np.tile(GROUPS, 2), "groups.*24 labels.*12 rows.*pass one"),
    "None": ([None, *GROUPS[1:]], "groups.*1 missing.*row 0.*drop"),
    "NaN": (np.where(np.arange(N) > 8, np.nan, 1.0), "groups.*3 missing.*row 9.*drop"),
    "NaT": (pd.to_datetime([None] * N), "groups.*12 missing.*drop"),
    "missing category": (pd.Categorical([*GROUPS[:8]] + [None] * 4), "groups.*4 missing.*row 8.*drop"),
    "missing nullable": (pd.array([1, None] * 6, dtype="Int64"), "groups.*6 missing.*drop"),
    "two-dimensional": (np.zeros((N, 2)), "groups.*one-dimensional.*list of tuples"),
    "lists": ([["a"]] * N, "groups.*hashable.*such as strings"),
    "one list": ([*GROUPS[:-1], ["c"]], "groups.*hashable.*such as strings"),
    "an array": ([*GROUPS[:-1], np.zeros(2)], "groups.*hashable.*such as"),
    "one number": (5, "groups.*one label a row"),
    "a column name": ("school", "groups.*group_column"),
}


@pytest.mark.parametrize(("groups", "message"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_labels_that_are_refused_in_one_line(groups, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        check_groups(groups, N, "GroupVAE")
    assert "\n" not in str(caught.value)


def test_no_labels_make_every_row_a_group_with_a_warning_in_a_fit():
    assert check_groups(None, 3, "GroupVAE").tolist() == [0, 1, 2]
    with pytest.warns(UserWarning, match="GroupVAE was fitted without groups.*group_column") as caught:
        check_groups(None, 3, "GroupVAE", warn=True)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("one", ["a", 3, ("a", 1), np.float64(2.0), np.array("a")])
def test_one_label_stands_for_all_rows(one):
    labels = check_labels_by_row(one, 3, "target_group")
    assert len(labels) == 3
    assert all(label == one for label in labels)


def test_one_label_a_row():
    assert check_labels_by_row([("a", 1), ("b", 2)], 2, "target_group").tolist() == [("a", 1), ("b", 2)]
    assert check_labels_by_row(pd.Series([1, 2]), 2, "target_group").tolist() == [1, 2]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "target_group must be one group label or one label a row, got NoneType"),
        ({"a": 1}, "target_group.*one label a row, got dict"),
        (pd.DataFrame({"a": [1, 2]}), "target_group.*got DataFrame"),
        (["a"], "target_group has 1 labels but X has 2 rows"),
        (np.nan, "target_group has 2 missing"),
        ([["a"]] * 2, "target_group.*hashable"),
    ],
)
def test_labels_by_row_that_are_refused(labels, message):
    with pytest.raises((ValueError, TypeError), match=message):
        check_labels_by_row(labels, 2, "target_group")


# --- labels of another type


def index(*labels):
    return pd.Index(labels, tupleize_cols=False)


@pytest.mark.parametrize(
    ("known", "asked", "message"),
    [
        (index(308, 5), index("308"), r"\['308'\].*fit knows \[308\].*str here, int in the fit"),
        (index("308"), index(308), r"\[308\].*fit knows \['308'\].*int here, str in the fit"),
        (index(308), index("308.0"), r"\['308.0'\].*fit knows \[308\]"),
        (index(308.0), index("308"), r"\['308'\].*fit knows \[308.0\]"),
        (
            index(("a", 1)),
            index(("a", "1"), ("b", "1")),
            r"\[\('a', '1'\)\].*fit knows \[\('a', 1\)\].*\(str, str\) here, \(str, int\) in the fit",
        ),
    ],
)
def test_labels_of_another_type_are_told(known, asked, message):
    with pytest.warns(UserWarning, match=f"groups has labels {message}.*convert groups") as caught:
        warn_of_unlike_labels(known, asked, "groups")
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("known", "asked"),
    [
        (index(308), pd.Index(np.array([308], dtype=np.int32))),
        (index(308), index(308.0)),
        (index(308), index("309", 17)),
        (index("007"), index("7")),
        (index("a", 1), index("b", "nan", "inf")),
        (index(("a", 1)), index(("a", 2), "a")),
        (index(308), index("308")[:0]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_labels_that_are_known_or_plainly_new_are_not(known, asked):
    warn_of_unlike_labels(known, asked, "groups")
