"""What must not matter does not: order of rows, names of groups, other groups, units of columns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import exam_formula

from skgroupvae import GroupVAE

DECODERS = ("mlp", "linear", "auto")
few_fits = settings(max_examples=5)
# Results are float32 inside: sums in another order differ in the seventh digit, and two epochs of training
# carry that to the fifth.
SAME = {"rtol": 1e-4, "atol": 1e-5}
SAME_FIT = {"rtol": 5e-3, "atol": 1e-3}


@st.composite
def tables(draw, max_groups: int = 6):
    """Rows X (N, 2) in ragged groups, shuffled, and a seed for whatever else the test does."""
    sizes = draw(st.lists(st.integers(1, 8), min_size=2, max_size=max_groups))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.RandomState(seed)
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    X = rng.normal(size=(len(groups), 2)) * [10.0, 0.01] + rng.normal(size=(len(sizes), 2))[groups] * [
        10.0,
        0.02,
    ]
    return X + np.array([50.0, 0.0]), groups, seed


@pytest.fixture(scope="module")
def model(quick):
    """Fitted to a table like those of `tables`."""
    rng = np.random.RandomState(9)
    groups = np.repeat(np.arange(20), 6)
    X = [50.0, 0.0] + (rng.normal(size=(120, 2)) + rng.normal(size=(20, 2))[groups]) * [10.0, 0.01]
    return quick(max_epochs=5).fit(X, groups=groups)


def small(**kwargs) -> GroupVAE:
    defaults = {
        "decoder": "mlp",
        "max_epochs": 2,
        "batch_size": 3,
        "hidden_sizes": (8,),
        "n_importance_samples": 5,
    }
    return GroupVAE(2, 2, **defaults | {"random_state": 0, "verbose": False} | kwargs)


def by_row(model: GroupVAE, X, groups) -> dict[str, np.ndarray]:
    """Every result that has one row a row of X."""
    names = ("u", "v", "u_std", "v_std")
    results = dict(zip(names, model.transform(X, groups=groups, return_std=True), strict=True))
    results["reconstruct"] = model.reconstruct(X, groups=groups)
    results["score_samples"] = model.score_samples(X, groups=groups, context="prior")
    results["log_likelihood"] = model.group_log_likelihood(X, groups=groups, context="prior")[
        groups
    ].to_numpy()
    labels = [f"new {g}" for g in groups]
    results["translate"] = model.translate(X, labels, labels[::-1])
    return results


def assert_same(first: dict, second: dict, **tolerance) -> None:
    for name, values in first.items():
        np.testing.assert_allclose(values, second[name], err_msg=name, **tolerance)


@given(tables())
def test_permuting_rows_permutes_results_and_nothing_else(model, table):
    X, groups, seed = table
    order = np.random.RandomState(seed + 1).permutation(len(X))
    plain, permuted = by_row(model, X, groups), by_row(model, X[order], groups[order])
    for results in (plain, permuted):
        results.pop("translate")  # its targets are another row's group: below
    assert_same(permuted, {name: values[order] for name, values in plain.items()}, **SAME)
    target = np.random.RandomState(seed + 2).permutation(groups)
    new = np.array([f"new {g}" for g in range(groups.max() + 1)])
    moved = model.translate(X, new[groups], new[target])
    moved_permuted = model.translate(X[order], new[groups[order]], new[target[order]])
    np.testing.assert_allclose(moved_permuted, moved[order], **SAME)


@given(tables(), st.permutations(range(6)))
def test_relabelling_groups_changes_no_result(model, table, names):
    X, groups, _ = table
    renamed = [("group", names[g]) for g in groups]
    assert_same(by_row(model, X, renamed), by_row(model, X, groups), **SAME)


@given(tables())
def test_codes_of_a_group_do_not_depend_on_the_other_groups_of_the_table(model, table):
    X, groups, seed = table
    together = by_row(model, X, groups)
    own = groups == groups[seed % len(groups)]
    alone = by_row(model, X[own], groups[own])
    for results in (together, alone):
        results.pop("translate")
    assert_same(alone, {name: values[own] for name, values in together.items()}, **SAME)


@given(tables())
def test_translating_to_the_own_group_is_reconstructing(model, table):
    X, groups, _ = table
    labels = [f"new {g}" for g in groups]
    np.testing.assert_allclose(
        model.translate(X, labels, labels), model.reconstruct(X, groups=groups), **SAME
    )


@given(tables())
def test_repeating_a_row_in_its_group_changes_that_group_only(model, table):
    X, groups, seed = table
    row = seed % len(X)
    plain = by_row(model, X, groups)
    more = by_row(model, np.vstack([X, X[row]]), np.append(groups, groups[row]))
    other = groups != groups[row]
    for name in ("u", "v", "reconstruct", "score_samples", "log_likelihood"):
        np.testing.assert_allclose(more[name][:-1][other], plain[name][other], err_msg=name, **SAME)
        np.testing.assert_allclose(more[name][-1], more[name][row], err_msg=name, **SAME)
    assert np.abs(more["u"][row] - plain["u"][row]).max() > 0


@few_fits
@given(tables())
def test_a_fit_on_permuted_rows_gives_the_same_codes(table):
    X, groups, seed = table
    order = np.random.RandomState(seed + 1).permutation(len(X))
    plain, permuted = (small().fit(X[i], groups=groups[i]) for i in (np.arange(len(X)), order))
    np.testing.assert_allclose(
        permuted.group_codes_.loc[plain.group_codes_.index], plain.group_codes_, **SAME_FIT
    )
    assert_same(by_row(permuted, X, groups), by_row(plain, X, groups), **SAME_FIT)


@pytest.mark.parametrize("decoder", DECODERS)
@few_fits
@given(tables())
def test_the_order_of_rows_does_not_change_a_fit(decoder, table):
    X, groups, seed = table
    order = np.random.RandomState(seed + 1).permutation(len(X))
    plain, permuted = (
        small(decoder=decoder, max_epochs=5).fit(X[i], groups=groups[i]) for i in (np.arange(len(X)), order)
    )
    for name in ("group_codes_", "group_codes_std_"):
        expected = getattr(plain, name)
        np.testing.assert_allclose(
            getattr(permuted, name).loc[expected.index], expected, rtol=0.0, atol=1e-10, err_msg=name
        )


@few_fits
@given(tables(), st.permutations(range(6)))
def test_a_fit_on_renamed_groups_gives_the_same_codes_to_the_bit(table, names):
    X, groups, _ = table
    plain = small(early_stopping=True).fit(X, groups=groups)
    renamed = small(early_stopping=True).fit(X, groups=[("group", names[g]) for g in groups])
    assert [names[g] for g in plain.group_codes_.index] == [label[1] for label in renamed.group_codes_.index]
    np.testing.assert_array_equal(plain.group_codes_, renamed.group_codes_)
    np.testing.assert_array_equal(plain.history_, renamed.history_)


@pytest.mark.parametrize("decoder", DECODERS)
@few_fits
@given(tables(), st.floats(-5, 5), st.floats(-5, 5), st.floats(-1e3, 1e3))
def test_units_of_the_columns_change_no_code(decoder, table, first, second, shift):
    X, groups, _ = table
    factors = 10.0 ** np.array([first, second])
    # The shift is in spreads of the column, so that no digits are lost.
    offset = factors * X.std(axis=0) * shift
    other = X * factors + offset
    # Draws depend on the codes; enough of them make the log-likelihoods a matter of the model alone.
    plain, scaled = (
        small(decoder=decoder, n_importance_samples=500).fit(values, groups=groups) for values in (X, other)
    )
    expected, actual = by_row(plain, X, groups), by_row(scaled, other, groups)
    np.testing.assert_allclose(scaled.noise_scale_, plain.noise_scale_ * factors, rtol=1e-2)
    for name in ("reconstruct", "translate"):
        in_spreads = (actual[name] - offset) / factors / X.std(axis=0)
        np.testing.assert_allclose(
            in_spreads, expected[name] / X.std(axis=0), err_msg=name, rtol=1e-2, atol=1e-2
        )
    for name in ("u", "v", "u_std", "v_std"):
        np.testing.assert_allclose(actual[name], expected[name], err_msg=name, rtol=1e-2, atol=1e-2)
    log_factors = np.log(factors).sum()
    np.testing.assert_allclose(actual["score_samples"], expected["score_samples"] - log_factors, atol=0.05)
    of_groups = expected["log_likelihood"] - np.bincount(groups)[groups] * log_factors
    np.testing.assert_allclose(actual["log_likelihood"], of_groups, atol=0.05 * np.bincount(groups).max())


@pytest.mark.parametrize("factor", [1e-15, 1e-9, 1e9, 1e15])
def test_columns_of_tiny_and_huge_numbers_are_columns_like_others(factor):
    rng = np.random.RandomState(0)
    groups = np.repeat(np.arange(8), 5)
    X = rng.normal(size=(40, 1)) + rng.normal(size=(8, 1))[groups]
    plain, scaled = small().fit(X, groups=groups), small().fit(X * factor, groups=groups)
    np.testing.assert_allclose(scaled.group_codes_, plain.group_codes_, **SAME_FIT)
    np.testing.assert_allclose(
        scaled.reconstruct(X * factor, groups=groups) / factor, plain.reconstruct(X, groups=groups), atol=1e-2
    )


@few_fits
@given(tables())
def test_methods_leave_the_table_as_it_was(table):
    X, groups, _ = table
    before = X.copy(), groups.copy()
    model = small().fit(X, groups=groups)
    by_row(model, X, groups)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(groups, before[1])


@few_fits
@given(st.integers(0, 2**16))
def test_a_formula_of_other_units_is_fitted_in_other_units(seed):
    # The user's formula speaks the units of X: a fit to c x by c formula has the codes of the fit to x.
    rng = np.random.RandomState(seed)
    groups = np.repeat(np.arange(8), 5)
    X = 2.0 * rng.normal(size=(8, 1))[groups] + (rng.normal(size=(8, 1))[groups] ** 2 + 1) * rng.normal(
        size=(40, 1)
    )
    one, ten = (
        GroupVAE(
            2, 1, decoder=lambda u, v, c=c: c * exam_formula(u, v), max_epochs=2, batch_size=3, random_state=0
        ).fit(c * X, groups=groups)
        for c in (1.0, 10.0)
    )
    np.testing.assert_allclose(ten.group_codes_, one.group_codes_, **SAME_FIT)
    np.testing.assert_allclose(ten.noise_scale_, 10.0 * one.noise_scale_, rtol=5e-3)
