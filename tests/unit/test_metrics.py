"""The metrics of section 5 against closed forms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from skgroupvae.metrics import (
    group_code_error,
    instance_code_error,
    reconstruction_error,
    standard_error,
    translation_error,
)

ERRORS = [reconstruction_error, translation_error]
PROBES = [group_code_error, instance_code_error]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("error", ERRORS)
def test_mean_squared_error_by_hand(error):
    assert error([[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 5.0]]) == pytest.approx((0 + 4 + 9 + 1) / 4)


@pytest.mark.parametrize("error", ERRORS)
def test_one_column_is_one_column_in_any_container(error):
    # (n, 1) minus (n,) would broadcast to (n, n).
    column = normal(0, 20, 1)
    other = column + 2.0
    assert error(column, other[:, 0]) == pytest.approx(4.0)
    assert error(pd.DataFrame(column), pd.Series(other[:, 0])) == pytest.approx(4.0)
    assert isinstance(error(column, other), float)


@pytest.mark.parametrize(
    ("error", "first", "second"),
    [
        (reconstruction_error, "X", "X_reconstructed"),
        (translation_error, "X_true", "X_translated"),
    ],
)
def test_bad_tables_are_named(error, first, second):
    good = np.ones((4, 2))
    with pytest.raises(ValueError, match=rf"^{second} must have the shape of {first}, got"):
        error(good, np.ones(4))
    with pytest.raises(ValueError, match=rf"^{first} must be finite"):
        error(np.full((4, 2), np.nan), good)
    with pytest.raises(ValueError, match=rf"^{second} must be a table of numbers"):
        error(good, [["a", "b"]] * 4)
    with pytest.raises(ValueError, match=rf"^{first} must have shape \(n_rows, n_columns\), not empty"):
        error(np.empty((0, 2)), good)
    with pytest.raises(ValueError, match=rf"^{second} must have shape"):
        error(good, np.ones((4, 2, 1)))


@pytest.mark.parametrize("probe", PROBES)
def test_probe_finds_the_best_regression(probe):
    # v ~ N(0, 1), inferred = v + N(0, s²): E[v | inferred] is linear with error s² / (1 + s²) = 0.2. The
    # error of n = 3,000 test rows has standard error 0.2 * sqrt(2 / 3000) = 0.005; four of them, and 2% for
    # a network that learns from 2,400 rows.
    v = normal(0, 3000, 1)
    error = probe(v + 0.5 * normal(1, 3000, 1), v, random_state=0)
    assert error == pytest.approx(0.2, abs=4 * 0.2 * np.sqrt(2 / 3000) + 0.02 * 0.2)


@pytest.mark.parametrize("probe", PROBES)
def test_probe_of_invertible_codes_is_nearly_zero(probe):
    true = normal(0, 1500, 2)
    assert probe(true, true, random_state=0) < 0.01
    bent = np.column_stack([5.0 - 3.0 * true[:, 1], np.sinh(true[:, 0])])
    assert probe(bent, true, random_state=0) < 0.01


def test_probe_error_is_in_the_units_of_the_truth():
    v = normal(0, 1000, 1)
    inferred = v + normal(1, 1000, 1)
    error = instance_code_error(inferred, v, random_state=0)
    assert instance_code_error(1e3 * inferred + 7.0, 1e-4 * v, random_state=0) == pytest.approx(
        1e-8 * error, rel=1e-3
    )


def test_probe_of_codes_without_information_gives_the_variance():
    # Overfitting to 800 rows costs a few percent; the standard error of the variance is 4.5%.
    true = normal(0, 1000, 1)
    assert instance_code_error(normal(1, 1000, 3), true, random_state=0) == pytest.approx(1.0, rel=0.2)


def test_components_of_the_code_are_averaged():
    # One component known, the other not at all: (0 + 1) / 2.
    u = normal(0, 1500, 2)
    assert group_code_error(u[:, 0], u, random_state=0) == pytest.approx(0.5 * u[:, 1].var(), rel=0.05)


def test_groups_are_held_out_whole():
    # v of a group is one random number and the code only identifies the group: memorizing groups predicts
    # rows of known groups perfectly and rows of new groups not at all.
    groups = np.repeat(np.arange(20), 100)
    by_group = normal(0, 20)
    code = np.eye(20)[groups]
    v = by_group[groups]
    assert instance_code_error(code, v, random_state=0) < 0.05
    assert instance_code_error(code, v, groups=groups, random_state=0) > 0.5


def test_random_state_makes_the_error_repeatable():
    v = normal(0, 200, 1)
    inferred = v + normal(1, 200, 1)
    first = instance_code_error(inferred, v, random_state=3)
    assert instance_code_error(inferred, v, random_state=3) == first
    assert instance_code_error(inferred, v, random_state=np.random.RandomState(3)) == first
    assert instance_code_error(inferred, v, random_state=4) != first


@pytest.mark.parametrize(
    ("probe", "names"),
    [
        (group_code_error, ("u_inferred", "u_true")),
        (instance_code_error, ("v_inferred", "v_true")),
    ],
)
def test_bad_codes_are_named(probe, names):
    inferred, true = names
    good = normal(0, 60, 2)
    with pytest.raises(ValueError, match=f"^{true} must have the 60 rows of {inferred}, got 59"):
        probe(good, good[:-1])
    with pytest.raises(ValueError, match=f"^{inferred} must have at least 50 rows, got 49"):
        probe(good[:49], good[:49])
    with pytest.raises(ValueError, match=f"^{true} must be finite"):
        probe(good, np.where(good > 2, np.inf, good))
    with pytest.raises(ValueError, match=r"^n_splits must be from 2 to the 60 rows or groups"):
        probe(good, good, n_splits=1)


def test_bad_groups_of_a_probe_are_named():
    good = normal(0, 60, 2)
    with pytest.raises(ValueError, match=r"^groups must have one label for each of 60 rows"):
        instance_code_error(good, good, groups=np.zeros(59))
    with pytest.raises(ValueError, match=r"^groups must not have missing labels"):
        instance_code_error(good, good, groups=[None] + ["a"] * 59)
    with pytest.raises(ValueError, match=r"^n_splits must be from 2 to the 3 rows or groups"):
        instance_code_error(good, good, groups=np.arange(60) % 3)


def test_standard_error_of_independent_rows_is_the_textbook_one():
    errors = normal(0, 50) ** 2
    assert standard_error(errors) == pytest.approx(errors.std(ddof=1) / np.sqrt(50))
    assert standard_error(errors, groups=np.arange(50)) == pytest.approx(standard_error(errors))


def test_clustered_standard_error_by_hand():
    # Mean 3; sums of deviations by group: (1 - 3) + (3 - 3) = -2, (2 - 3) = -1, (6 - 3) = 3. G = 3, N = 4.
    errors, groups = [1.0, 2.0, 3.0, 6.0], ["b", "a", "b", "c"]
    assert standard_error(errors, groups) == pytest.approx(np.sqrt(3 / 2 * (4 + 1 + 9)) / 4)


def test_clustered_standard_error_has_the_spread_of_the_mean():
    # 400 tables of 50 groups of 4 rows whose squared errors have a common factor: the mean of the estimated
    # variances must be the variance of the means, whose own relative standard error is sqrt(2 / 400) = 7%.
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 4)
    tables = (rng.standard_normal((400, 50))[:, groups] + 0.3 * rng.standard_normal((400, 200))) ** 2
    estimated = np.mean([standard_error(table, groups) ** 2 for table in tables])
    assert estimated == pytest.approx(tables.mean(axis=1).var(), rel=0.25)
    naive = np.mean([standard_error(table) ** 2 for table in tables])
    assert naive < 0.5 * estimated


def test_standard_error_averages_columns():
    errors = normal(0, 30, 2) ** 2
    assert standard_error(errors) == pytest.approx(standard_error(errors.mean(axis=1)))


def test_bad_arguments_of_standard_error_are_named():
    with pytest.raises(ValueError, match=r"^squared_errors must have at least 2 rows, got 1"):
        standard_error([1.0])
    with pytest.raises(ValueError, match=r"^groups must have at least 2 distinct labels, got 1"):
        standard_error([1.0, 2.0], groups=["a", "a"])
    with pytest.raises(ValueError, match=r"^groups must have one label for each of 2 rows"):
        standard_error([1.0, 2.0], groups=["a"])
    with pytest.raises(ValueError, match=r"^squared_errors must be finite"):
        standard_error([1.0, np.nan])
