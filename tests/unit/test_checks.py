"""What is refused: one line that names the argument and the remedy, and scikit-learn's words for columns."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from skgroupvae.data.checks import (
    SCALE_RANGE,
    SeenColumns,
    check_covariates,
    check_hidden_sizes,
    check_like,
    check_noise_scale,
    check_table,
    check_trials,
    check_varies,
    check_weights,
    seen_columns,
)

N = 12
OWNER = "GroupVAE"


def table() -> pd.DataFrame:
    return pd.DataFrame(np.random.RandomState(0).normal(size=(N, 2)), columns=["score", "effort"])


def with_cell(value) -> pd.DataFrame:
    X = table().astype(object) if isinstance(value, str) else table()
    X.iloc[3, 1] = value
    return X


WIDE = pd.DataFrame(np.ones((N, 200)), columns=[f"column {j}" for j in range(200)])
GROUPS = np.repeat(["a", "b", "c"], 4)


def assert_refused(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert re.search(message, text), text
    # A line to be read, not a table's printout.
    assert len(text) < 400


# --- tables

BAD_TABLES = {
    "text column": (table().assign(effort="high"), r"X.*non-numeric.*\['effort'\].*(drop|encode)"),
    "text cell": (with_cell("x"), "X.*non-numeric.*(drop|encode)"),
    "dates": (table().assign(day=pd.Timestamp("2020")), r"X.*non-numeric.*\['day'\].*(drop|encode)"),
    "categories": (table().assign(c=pd.Categorical(GROUPS)), r"X.*non-numeric.*\['c'\]"),
    "text in an array": (np.full((N, 2), "x"), "X.*non-numeric.*(drop|encode)"),
    "text in an array of objects": (with_cell("x").to_numpy(), "X.*non-numeric.*(drop|encode)"),
    "complex numbers": (table().to_numpy() * 1j, "X: Complex data not supported; pass real"),
    "sparse matrix": (sparse.csr_matrix(table()), "[Ss]parse.*X.*toarray"),
    "infinite cell": (with_cell(np.inf), r"X contains inf.*\['effort'\].*(replace|drop)"),
    "minus infinity": (with_cell(-np.inf).to_numpy(), r"X contains inf.*\[1\].*replace"),
    "NaN in many columns": (WIDE * np.nan, "X contains NaN.*(drop|impute)"),
    "many text columns": (WIDE.astype(str), "X.*non-numeric.*(drop|encode)"),
    "NaN cell": (with_cell(np.nan), r"X contains NaN.*\['effort'\].*(drop|impute)"),
    "missing nullable cell": (
        table().assign(effort=pd.array([1, None] * 6, dtype="Int64")),
        r"X contains NaN.*\['effort'\].*(drop|impute)",
    ),
    "no rows": (table().iloc[:0], "X.*empty.*pass at least one row"),
    "no rows in an array": (np.zeros((0, 2)), "X.*empty.*pass at least one row"),
    "rows that differ in length": ([[1.0, 2.0]] * (N - 1) + [[1.0]], "X.*rows differ in length"),
    "an empty list": ([], "X"),
    "no columns": (np.zeros((N, 0)), "X.*column"),
    "no columns in a data frame": (table()[[]], "X.*column"),
    "one-dimensional": (table()["score"].to_numpy(), "X.*(2D|two-dimensional).*[Rr]eshape"),
    "three-dimensional": (np.zeros((N, 2, 2)), "X.*(2D|two|dim)"),
    "duplicate names": (
        table().set_axis(["a", "a"], axis=1),
        r"X has duplicate column names \['a'\]; rename",
    ),
}


@pytest.mark.parametrize(("X", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_tables_that_are_refused_in_one_line(X, message):
    assert_refused(lambda: check_table(X, owner=OWNER), message)
    assert_refused(lambda: check_table(X, owner=OWNER, name="Z"), message.replace("X", "[XZ]"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_columns_of_an_array_are_called_by_the_names_of_the_fit(bad):
    with (
        pytest.warns(UserWarning, match="X does not have valid feature names"),
        pytest.raises(ValueError, match=r"columns \['effort'\]"),
    ):
        check_table(with_cell(bad).to_numpy(), owner=OWNER, seen=seen_columns(table()))


@pytest.mark.parametrize(
    "X",
    [
        table(),
        table().to_numpy(),
        table().to_numpy().tolist(),
        table().astype(np.float32),
        pd.DataFrame({"i": [1, 2], "b": [True, False], "f": np.array([1, 2], dtype=np.float32)}),
        pd.DataFrame({"i": [1, 2], "b": [True, False]}).convert_dtypes(),
        table() > 0,
        table().set_axis([0, 1], axis=1),
        table().set_axis(pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")]), axis=1),
    ],
)
def test_tables_that_are_taken(X):
    array, seen = check_table(X, owner=OWNER)
    np.testing.assert_allclose(array, np.asarray(X, dtype=float))
    is_narrow = isinstance(X, pd.DataFrame) and (X.dtypes == np.float32).all()
    assert array.dtype == (np.float32 if is_narrow else np.float64)
    again, same = check_table(X, owner=OWNER, seen=seen)
    np.testing.assert_array_equal(again, array)
    assert same is seen


# --- number and names of columns

OTHER_COLUMNS = {
    "too few": table()[["score"]],
    "too few in an array": table().to_numpy()[:, :1],
    "too many": np.zeros((N, 3)),
    "other names": table().set_axis(["score", "zeal"], axis=1),
    "other order": table()[["effort", "score"]],
}


@pytest.mark.parametrize("X", OTHER_COLUMNS.values(), ids=OTHER_COLUMNS)
@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_other_columns_are_refused_in_the_words_of_scikit_learn(X):
    class GroupVAE(BaseEstimator):
        pass

    estimator = GroupVAE()
    validate_data(estimator, table(), reset=True)
    with pytest.raises(ValueError, match=r".") as theirs:
        validate_data(estimator, X, reset=False)
    for check in (
        lambda: check_like(X, seen_columns(table()), OWNER),
        lambda: check_table(X, owner=OWNER, seen=seen_columns(table())),
    ):
        with pytest.raises(ValueError, match=r".") as ours:
            check()
        assert str(ours.value) == str(theirs.value)
    with pytest.raises(ValueError, match=r"^context: "):
        check_like(X, seen_columns(table()), OWNER, "context")


def test_the_words_themselves():
    with pytest.raises(
        ValueError, match=r"^X has 3 features, but GroupVAE is expecting 2 features as input\.$"
    ):
        check_like(np.zeros((N, 3)), seen_columns(np.zeros((N, 2))), OWNER)
    message = (
        "The feature names should match those that were passed during fit.\n"
        "Feature names unseen at fit time:\n- zeal\n"
        "Feature names seen at fit time, yet now missing:\n- effort\n"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        check_like(table().set_axis(["score", "zeal"], axis=1), seen_columns(table()), OWNER)


def test_names_on_one_side_only_are_a_warning():
    with pytest.warns(UserWarning, match="X does not have valid feature names, but GroupVAE was fitted with"):
        check_like(table().to_numpy(), seen_columns(table()), OWNER)
    with pytest.warns(UserWarning, match="X has feature names, but GroupVAE was fitted without"):
        check_like(table(), seen_columns(table().to_numpy()), OWNER)


def test_seen_columns_know_names_that_are_texts():
    seen = seen_columns(table())
    assert seen.n_features == 2
    assert seen.feature_names.tolist() == ["score", "effort"]
    assert seen_columns(table().set_axis([0, 1], axis=1)).feature_names is None
    assert seen_columns(np.zeros((2, 3))).n_features == 3


# --- covariates


def test_numbers_alone_are_one_kind_of_floats():
    X, seen = check_covariates(table().assign(effort=range(N)), owner="CxVAERegressor")
    assert list(X.columns) == ["score", "effort"]
    assert (X.dtypes == np.float64).all()
    assert seen.feature_names.tolist() == ["score", "effort"]
    array, _ = check_covariates(table().to_numpy(), owner="CxVAERegressor")
    assert isinstance(array, np.ndarray)


def test_categories_may_miss_after_the_fit_only():
    mixed = table().assign(sex=["F", "M", None] * 4)
    with pytest.raises(ValueError, match=r"X contains NaN or infinite values in columns \['sex'\]; drop"):
        check_covariates(mixed, owner=OWNER)
    _, seen = check_covariates(mixed.fillna("F"), owner=OWNER)
    assert check_covariates(mixed, owner=OWNER, seen=seen)[0] is mixed


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_beside_categories_are_finite(bad):
    with pytest.raises(ValueError, match=r"X contains NaN or infinite values in columns \['effort'\]; drop"):
        check_covariates(with_cell(bad).assign(sex="F"), owner=OWNER)
    nullable = table().assign(sex="F", n=pd.array([1, None] * 6, dtype="Int64"))
    with pytest.raises(ValueError, match=r"X contains NaN or infinite values in columns \['n'\]"):
        check_covariates(nullable, owner=OWNER)


def test_mixed_tables_have_the_columns_of_the_fit_and_rows():
    _, seen = check_covariates(table().assign(sex="F"), owner=OWNER)
    with pytest.raises(ValueError, match="feature names should match"):
        check_covariates(table().assign(gender="F"), owner=OWNER, seen=seen)
    with pytest.raises(ValueError, match="X is empty"):
        check_covariates(table().assign(sex="F")[:0], owner=OWNER)


@pytest.mark.filterwarnings("error")
def test_rows_alone_are_taken_where_a_formula_has_no_covariate():
    X, seen = check_covariates(table()[[]], owner=OWNER, allow_no_columns=True)
    assert X.shape == (N, 0)
    assert (seen.n_features, list(seen.feature_names)) == (0, [])
    assert check_covariates(X, owner=OWNER, seen=seen, allow_no_columns=True)[1] is seen
    with pytest.raises(ValueError, match="X is empty"):
        check_covariates(table()[[]][:0], owner=OWNER, allow_no_columns=True)
    with pytest.raises(ValueError, match=r"X has no column of data|X cannot be used"):
        check_covariates(table()[[]], owner=OWNER)


def test_seen_columns_are_a_value():
    with pytest.raises(AttributeError):
        SeenColumns(2).n_features = 3


# --- weights, trials, constant outcomes


def test_weights():
    np.testing.assert_array_equal(check_weights(None, table()), np.ones(N))
    np.testing.assert_array_equal(check_weights(range(N), table()), np.arange(N))
    with pytest.raises(ValueError, match=r"sample_weight is zero for every row; give|at least one non-zero"):
        check_weights(np.zeros(N), table())
    for bad in ([1.0], -np.ones(N), np.full(N, np.nan)):
        with pytest.raises(ValueError, match=r"[Ss]ample_weight|[Nn]egative"):
            check_weights(bad, table())


def test_trials():
    for one in (None, 1, 1.0):
        np.testing.assert_array_equal(check_trials(one, 3, "poisson", has_trials=False), np.ones(3))
    np.testing.assert_array_equal(check_trials(5, 3, "binomial", has_trials=True), np.full(3, 5.0))
    np.testing.assert_array_equal(check_trials([1, 2, 3], 3, "binomial", has_trials=True), [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="trials is for family='binomial', not 'poisson'; leave"):
        check_trials(2, 3, "poisson", has_trials=False)
    for bad, message in (
        ([1, 2], r"one a row \(3 of them\), got int64 of shape \(2,\)"),
        ("many", "must be a number or one a row"),
        ([0, 1, 1], "whole numbers of at least 1; drop"),
        (1.5, "whole numbers of at least 1; drop"),
        (np.nan, "whole numbers of at least 1; drop"),
    ):
        with pytest.raises(ValueError, match=f"trials .*{message}"):
            check_trials(bad, 3, "binomial", has_trials=True)


def test_a_constant_outcome_is_refused_unless_it_is_one_row():
    check_varies(np.array([3.0]))
    check_varies(np.array([3.0, 4.0]))
    with pytest.raises(ValueError, match=r"y is constant \(3 in every row\).*check y"):
        check_varies(np.array([3.0, 3.0]))


# --- settings


def test_hidden_sizes():
    assert check_hidden_sizes([8, np.int64(4)]) == (8, 4)
    for bad in ((), (8, -1), (8.5,), ((8, 8), 4), 8, "ab"):
        assert_refused(lambda bad=bad: check_hidden_sizes(bad), r"hidden_sizes.*such as \(32, 32\)")


def test_noise_scales_that_are_refused():
    spread = np.array([1.0, 10.0])
    for bad, message in (
        (0.0, "noise_scale.*positive"),
        (np.ones(200), "noise_scale.*2 of them"),
        ([1, 1, 1], "noise_scale.*2 of them"),
        ([1, -1], "noise_scale.*positive"),
        ([1, np.nan], "noise_scale.*positive"),
        ([1, np.inf], "noise_scale.*positive"),
        (["a", "b"], "noise_scale.*positive.*not numbers"),
        (1e-6, "noise_scale must lie between .* standard deviations of its column.*None to learn"),
        ([1.0, 1e4], "noise_scale must lie between .* standard deviations of its column"),
    ):
        assert_refused(lambda bad=bad: check_noise_scale(bad, spread), message)


def test_noise_scales_that_are_taken():
    spread = np.array([1.0, 10.0])
    assert check_noise_scale(None, spread) is None
    assert check_noise_scale(2.0, spread).tolist() == [2.0, 2.0]
    for edge in SCALE_RANGE:
        np.testing.assert_array_equal(check_noise_scale(edge * spread, spread), edge * spread)
