"""Plots: what is drawn and labeled, and one-line messages about what cannot be drawn."""

from __future__ import annotations

import builtins

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")
import matplotlib.pyplot as plt

from skgroupvae.plotting import plot_group_densities, plot_history, plot_translation


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def scores():
    return pd.Series(np.random.default_rng(0).normal(size=60), name="score")


def history(level, n_epochs=5):
    epochs = pd.RangeIndex(1, n_epochs + 1, name="epoch")
    return pd.DataFrame({"loss": level + 1.0 / epochs.to_numpy(), "kl_u": 0.1}, index=epochs)


def curves(ax):
    """The labeled lines: curves, without the base lines and the lines that join rows."""
    return [line for line in ax.lines if not line.get_label().startswith("_")]


# --- densities by group


def test_densities_one_line_a_group_with_its_own_style(scores):
    ax = plot_group_densities(scores, np.repeat(["a", "b", "c"], 20))
    assert [line.get_label() for line in ax.lines] == [f"{g} (20 rows)" for g in "abc"]
    assert len({line.get_linestyle() for line in ax.lines}) == 3
    assert ax.get_xlabel() == "score"
    assert ax.get_ylabel() == "density"


def test_densities_integrate_to_one(scores):
    line = plot_group_densities(scores, ["a"] * 60).lines[0]
    x, y = line.get_data()
    assert y.sum() * (x[1] - x[0]) == pytest.approx(1.0, abs=0.02)


def test_densities_say_how_many_groups_are_not_shown(scores):
    ax = plot_group_densities(scores, np.arange(60) % 10, max_groups=4)
    assert len(ax.lines) == 4
    assert "6 more" in ax.get_legend().get_title().get_text()


def test_densities_draw_more_groups_than_there_are_styles(scores):
    ax = plot_group_densities(scores, np.arange(60) % 20, max_groups=20)
    assert len(ax.lines) == 20


@pytest.mark.parametrize(
    "X",
    [np.ones(5), np.array([3.0]), np.zeros((4, 1)), np.array([1.0, 1.0, 1.0 + 1e-13]), np.full(3, 1e6)],
    ids=["constant", "one row", "zeros", "almost constant", "large"],
)
def test_densities_without_spread_are_a_finite_peak(X):
    ax = plot_group_densities(X, ["a"] * len(X))
    heights = ax.lines[0].get_ydata()
    assert np.isfinite(heights).all()
    assert heights.max() > 0


def test_densities_draw_a_narrow_group_beside_a_wide_one():
    X = np.r_[np.zeros(5), np.linspace(-100, 100, 50), 1e-9 * np.arange(5)]
    ax = plot_group_densities(X, np.repeat(["zero", "wide", "narrow"], [5, 50, 5]))
    assert all(line.get_ydata().max() > 1e-3 for line in ax.lines)


def test_densities_take_tuples_as_labels():
    ax = plot_group_densities([1.0, 2.0, 3.0, 4.0], [("a", 1), ("a", 1), ("b", 1), ("b", 1)])
    assert len(ax.lines) == 2


def test_densities_draw_on_the_axes_given(scores):
    _, ax = plt.subplots()
    assert plot_group_densities(scores, ["a"] * 60, ax=ax, xlabel="points") is ax
    assert ax.get_xlabel() == "points"


@pytest.mark.parametrize(
    ("X", "groups", "options", "message"),
    [
        (np.ones((4, 2)), [0] * 4, {}, r"X must be one column .*\(4, 2\)"),
        (np.ones((2, 2, 2)), [0] * 2, {}, "X must be one column"),
        ([], [], {}, "X is empty"),
        ([1.0, np.nan], [0, 0], {}, "X contains NaN"),
        ([1.0, 2.0], [0], {}, "groups has 1 labels but X has 2 rows"),
        ([1.0, 2.0], ["a", None], {}, "missing labels"),
        ([1.0, 2.0], [0, 1], {"max_groups": 0}, "max_groups must be at least 1"),
    ],
)
def test_densities_refuse_in_one_line(X, groups, options, message):
    with pytest.raises(ValueError, match=message) as error:
        plot_group_densities(X, groups, **options)
    assert "\n" not in str(error.value)


# --- translation


def test_translation_draws_three_densities_and_a_line_a_row(scores):
    source = scores.iloc[:20]
    ax = plot_translation(source, scores, 2.0 * source + 1.0)
    assert [line.get_label() for line in curves(ax)] == ["source", "target", "translated"]
    joins = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] != 0]
    assert len(joins) == 20
    np.testing.assert_allclose(sorted(line.get_xdata()[0] for line in joins), np.sort(source))
    for line in joins:
        x_source, x_translated = line.get_xdata()
        assert x_translated == pytest.approx(2.0 * x_source + 1.0)
    assert ax.get_xlabel() == "score"


def test_translation_puts_the_source_above_and_the_others_below(scores):
    source, target, translated = curves(plot_translation(scores, scores + 1, scores + 2))
    assert np.nanmin(source.get_ydata()) > 0
    assert np.nanmax(target.get_ydata()) < 0
    assert np.nanmax(translated.get_ydata()) < 0


def test_translation_limits_the_lines_of_a_large_group():
    rows = np.linspace(0, 1, 5000)
    assert len(plot_translation(rows, rows, rows).lines) < 250


@pytest.mark.parametrize("rows", [[2.0], [2.0, 2.0], [0.0, 0.0]])
def test_translation_of_constant_rows(rows):
    ax = plot_translation(rows, rows, rows, labels=("a", "b", "c"))
    assert [line.get_label() for line in curves(ax)] == ["a", "b", "c"]


def test_translation_takes_columns_of_frames():
    table = pd.DataFrame({"score": [1.0, 2.0, 4.0]})
    assert plot_translation(table, table, table.to_numpy()).get_xlabel() == "score"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1.0, 2.0], [1.0], [1.0]), {}, "translated has 1 rows but source has 2"),
        ((np.ones((3, 2)), [1.0], np.ones(3)), {}, "source must be one column"),
        (([1.0], np.ones((3, 2)), [1.0]), {}, "target must be one column"),
        (([1.0], [np.inf], [1.0]), {}, "target contains NaN or infinite"),
        (([1.0], [1.0], [1.0]), {"labels": ("a", "b")}, "labels must name"),
    ],
)
def test_translation_refuses_in_one_line(arguments, options, message):
    with pytest.raises(ValueError, match=message) as error:
        plot_translation(*arguments, **options)
    assert "\n" not in str(error.value)


# --- history


def test_history_of_one_fit():
    ax = plot_history(history(1.0))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), history(1.0)["loss"])
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 2, 3, 4, 5])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss / nats per row")
    assert ax.get_legend() is None
    assert not ax.collections


def test_history_of_runs_is_median_and_band():
    runs = [history(level) for level in (1.0, 2.0, 9.0)]
    ax = plot_history({"CxVAE": runs, "GVAE": history(3.0)})
    np.testing.assert_allclose(ax.lines[0].get_ydata(), history(2.0)["loss"])
    assert [line.get_label() for line in ax.lines] == ["CxVAE", "GVAE"]
    assert ax.lines[0].get_marker() != ax.lines[1].get_marker()
    assert len(ax.collections) == 1
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(1.2)
    assert heights.max() == pytest.approx(10.0)


def test_history_of_runs_of_different_lengths():
    ax = plot_history({"CxVAE": [history(1.0, 3), history(2.0, 6)]})
    assert len(ax.lines[0].get_xdata()) == 6
    assert np.isfinite(ax.lines[0].get_ydata()).all()


def test_history_names_the_column():
    assert plot_history(history(1.0), column="kl_u").get_ylabel() == "kl u / nats per row"


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ({}, "histories is empty"),
        ({"a": []}, r"histories\['a'\] is empty"),
        (pd.DataFrame({"other": [1.0]}), "histories has no column 'loss'; its columns are"),
        ({"a": [np.ones(3)]}, r"histories\['a'\] must be a DataFrame or a list of them, got ndarray"),
        (np.ones(3), "histories must be a DataFrame"),
        (1.0, "histories must be a DataFrame"),
    ],
)
def test_history_refuses_in_one_line(histories, message):
    with pytest.raises(ValueError, match=message) as error:
        plot_history(histories)
    assert "\n" not in str(error.value)


# --- without matplotlib


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, scores):
    real_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'skgroupvae\[plot\]'"):
        plot_group_densities(scores, ["a"] * 60)
