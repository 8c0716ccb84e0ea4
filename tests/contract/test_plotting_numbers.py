"""What displays draw, from hand-made numbers: artists, tick labels, legends, one-line messages."""

from __future__ import annotations

from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from sklearn.base import BaseEstimator

mpl.use("Agg")
import matplotlib.pyplot as plt

from skgroupvae.plotting import (
    CoverageDisplay,
    GroupEffectsDisplay,
    HistoryDisplay,
    LatentMapDisplay,
    PITDisplay,
    PredictiveCheckDisplay,
    ShrinkageDisplay,
)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def names_of(ax):
    """Tick labels of the vertical axis, from below."""
    return [label.get_text() for label in ax.get_yticklabels()]


def legend_of(ax):
    return [text.get_text().replace("\n", " ") for text in ax.get_legend().get_texts()]


def intervals_of(ax):
    """Ends (n, 2) and heights (n,) of the horizontal lines."""
    segments = np.array(ax.collections[0].get_segments())
    assert (segments[:, 0, 1] == segments[:, 1, 1]).all()
    return segments[:, :, 0], segments[:, 0, 1]


def bad_input(*cases):
    return pytest.mark.parametrize(("arguments", "options", "message"), cases)


def refuses(call, arguments, options, message):
    with pytest.raises(ValueError, match=message) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)


# --- group effects


EFFECTS = pd.Series([0.5, -2.0, 0.1, 3.0], index=["a", "b", "c", "d"], name="slope")


def test_effects_are_sorted_with_their_intervals():
    display = GroupEffectsDisplay.from_predictions(EFFECTS, [0.5, 0.5, 0.2, 1.0], level=0.95)
    ends, heights = intervals_of(display.ax_)
    z = 1.959964
    expected = [[-2 - 0.5 * z, -2 + 0.5 * z], [0.1 - 0.2 * z, 0.1 + 0.2 * z],
                [0.5 - 0.5 * z, 0.5 + 0.5 * z], [3 - z, 3 + z]]  # fmt: skip
    np.testing.assert_allclose(ends, expected, atol=1e-5)
    np.testing.assert_array_equal(heights, range(4))
    assert names_of(display.ax_) == ["b", "c", "a", "d"]
    assert display.ax_.get_xlabel() == "effect: slope"


def test_effects_that_differ_from_zero_are_filled():
    ax = GroupEffectsDisplay.from_predictions(EFFECTS, [0.5, 0.5, 0.2, 1.0]).ax_
    filled, hollow = ax.collections[1:]
    np.testing.assert_allclose(filled.get_offsets(), [[-2.0, 0], [3.0, 3]])
    np.testing.assert_allclose(hollow.get_offsets(), [[0.1, 1], [0.5, 2]])
    assert filled.get_facecolor().sum() < hollow.get_facecolor().sum()
    assert legend_of(ax) == ["95% interval excludes 0 (2)", "95% interval includes 0 (2)"]


def test_effects_of_many_groups_name_as_many_as_fit():
    rng = np.random.default_rng(0)
    display = GroupEffectsDisplay.from_predictions(rng.normal(size=3000), np.ones(3000))
    ax = display.ax_
    assert len(ax.collections[0].get_segments()) == 3000
    assert 10 < len(names_of(ax)) <= 60
    assert names_of(ax)[0] == str(np.argmin(display.mean))
    assert ax.get_ylabel().startswith("group (3,000 in all, 1 in ")
    assert display.figure_.get_figheight() <= 8.0
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))
    assert len(names_of(display.plot(max_labels=3).ax_)) == 3


def test_effects_figures_grow_with_the_groups():
    heights = [
        GroupEffectsDisplay.from_predictions(np.arange(n), np.ones(n)).figure_.get_figheight()
        for n in (2, 20, 40)
    ]
    assert heights == sorted(set(heights))


@bad_input(
    ([[1.0, 2.0], [1.0]], {}, "sd has 1 rows but mean has 2"),
    ([[1.0, 2.0], [1.0, -1.0]], {}, "sd has negative values"),
    ([[1.0, np.nan], [1.0, 1.0]], {}, "mean contains NaN"),
    ([[1.0], [1.0]], {"labels": ["a", "b"]}, "labels has 2 rows but mean has 1"),
    ([[1.0], [1.0]], {"level": 95}, "level must be a number between 0 and 1, such as 0.9, got 95"),
    ([[1.0], [1.0]], {"max_labels": 0}, "max_labels must be at least 1"),
)
def test_effects_refuse_in_one_line(arguments, options, message):
    refuses(GroupEffectsDisplay.from_predictions, arguments, options, message)


# --- maps of codes


CODES = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 8.0]])


def test_map_of_numbers_has_points_and_a_color_bar():
    color = pd.Series([1.0, 2.0, 3.0, 9.0], name="score")
    display = LatentMapDisplay.from_predictions(CODES, color=color)
    points = display.ax_.collections[0]
    np.testing.assert_array_equal(points.get_offsets(), CODES)
    np.testing.assert_array_equal(points.get_array(), color)
    assert display.figure_.axes[1].get_ylabel() == "score"
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("code 0", "code 1")


def test_map_of_categories_has_a_marker_each():
    ax = LatentMapDisplay.from_predictions(CODES, color=["b", "a", "b", "b"]).ax_
    frequent, rare = ax.collections
    np.testing.assert_array_equal(frequent.get_offsets(), CODES[[0, 2, 3]])
    np.testing.assert_array_equal(rare.get_offsets(), CODES[[1]])
    assert legend_of(ax) == ["b (3)", "a (1)"]
    outlines = [c.get_paths()[0].vertices for c in (frequent, rare)]
    assert outlines[0].shape != outlines[1].shape
    luminance = [c.get_facecolor()[0, :3] @ [0.3, 0.59, 0.11] for c in (frequent, rare)]
    assert abs(luminance[0] - luminance[1]) > 0.1


def test_map_puts_rare_categories_together():
    color = np.repeat(list("abcdefgh"), [8, 7, 6, 5, 4, 3, 2, 1])
    ax = LatentMapDisplay.from_predictions(np.zeros((36, 2)), color=color).ax_
    assert legend_of(ax) == ["a (8)", "b (7)", "c (6)", "d (5)", "e (4)", "3 others (6)"]
    assert sum(len(points.get_offsets()) for points in ax.collections) == 36


def test_map_without_color_and_with_names_of_a_frame():
    ax = LatentMapDisplay.from_predictions(pd.DataFrame(CODES, columns=["u0", "u1"])).ax_
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("u0", "u1")
    assert ax.get_legend() is None


def test_one_code_alone_is_a_histogram():
    ax = LatentMapDisplay.from_predictions(np.arange(50.0)).ax_
    assert sum(bar.get_height() for bar in ax.patches) == 50
    assert ax.get_ylabel() == "count"


def test_one_code_and_a_number_are_a_scatter():
    color = pd.Series([3.0, 1.0, 2.0, 0.0], name="score")
    ax = LatentMapDisplay.from_predictions(CODES[:, 0], color=color).ax_
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), np.column_stack([CODES[:, 0], color]))
    assert ax.get_ylabel() == "score"


def test_one_code_and_a_category_are_strips_with_medians():
    ax = LatentMapDisplay.from_predictions(CODES[:, 0], color=pd.Series(list("bbab"), name="kind")).ax_
    assert names_of(ax) == ["b (3)", "a (1)"]
    for height, (points, expected) in enumerate(zip(ax.collections, ([0.0, 2.0, 6.0], [4.0]), strict=True)):
        np.testing.assert_array_equal(points.get_offsets()[:, 0], expected)
        assert (abs(points.get_offsets()[:, 1] - height) <= 0.3).all()
    assert [line.get_xdata()[0] for line in ax.lines] == [2.0, 4.0]


def test_truth_values_are_categories():
    assert legend_of(LatentMapDisplay.from_predictions(CODES, color=[True, False, True, True]).ax_) == [
        "True (3)",
        "False (1)",
    ]


@bad_input(
    ([np.ones((4, 3))], {}, r"codes must have one or two columns and a row, got shape \(4, 3\)"),
    ([np.ones((0, 2))], {}, "codes must have one or two columns and a row"),
    ([[1.0, np.inf]], {}, "codes contains NaN or infinite"),
    ([CODES], {"color": [1.0]}, "color has 1 rows but codes has 4"),
    ([CODES], {"color": ["a", None, "b", "c"]}, "color has missing values"),
    ([CODES], {"color": "score"}, "color 'score' is not a column of X"),
    ([CODES], {"names": ["one"]}, "names has 1 rows"),
)
def test_map_refuses_in_one_line(arguments, options, message):
    refuses(LatentMapDisplay.from_predictions, arguments, options, message)


# --- history


class WithHistory(BaseEstimator):
    def __init__(self, history=None):
        self.history = history

    def fit(self):
        self.history_ = self.history
        return self


def test_history_draws_the_parts_of_the_loss_that_are_there():
    epochs = pd.RangeIndex(1, 4, name="epoch")
    table = {"loss": [3.0, 2.0, 1.0], "reconstruction": [-2.5, -1.5, -0.5], "kl_u": 0.5, "kl_v": 0.0}
    display = HistoryDisplay.from_estimator(WithHistory(pd.DataFrame(table, index=epochs)).fit())
    drawn = {line.get_label(): list(line.get_ydata()) for line in display.ax_.lines}
    assert drawn == {"loss": [3.0, 2.0, 1.0], "-reconstruction": [2.5, 1.5, 0.5], "kl u": [0.5] * 3}
    assert len({line.get_marker() for line in display.ax_.lines}) == 3
    assert display.ax_.get_ylabel() == "loss and its parts / nats per row"
    parts = [np.array(drawn[name]) for name in ("-reconstruction", "kl u")]
    np.testing.assert_allclose(sum(parts), drawn["loss"])


def test_history_of_one_column_is_called_after_it():
    table = pd.DataFrame({"kl_u": [1.0, 2.0]})
    assert HistoryDisplay.from_estimator(WithHistory(table).fit(), columns=["kl_u"]).name == "kl_u"
    assert HistoryDisplay.from_histories(table, column="-kl_u").ax_.lines[0].get_ydata()[1] == -2.0


# --- calibration


PIT = np.array([0.0, 0.05, 0.3, 0.35, 0.5, 0.62, 0.8, 1.0])


def test_pit_histogram_is_a_density_with_its_band():
    display = PITDisplay.from_predictions(PIT, n_bins=4, level=0.9)
    np.testing.assert_allclose(display.heights, np.array([2, 2, 2, 2]) * 4 / 8)
    np.testing.assert_allclose(display.band, binom.ppf([0.05, 0.95], 8, 0.25) * 4 / 8)
    np.testing.assert_allclose(display.ax_.patches[-1].get_data().values, display.heights)
    band = display.ax_.patches[0]
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx(display.band)
    assert legend_of(display.ax_) == ["90% of the bars of a calibrated model", "calibrated", "8 rows"]


def test_pit_band_holds_the_bars_of_uniform_values_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(40):
        display = PITDisplay(pit=rng.random(400), n_bins=20, level=0.9)
        low, high = display.band
        inside.append((display.heights >= low) & (display.heights <= high))
    assert 0.88 < np.mean(inside) < 0.97  # 0.9, and more because counts are discrete


def test_coverage_counts_rows_inside_central_intervals():
    display = CoverageDisplay.from_predictions(PIT, nominal=[0.5, 0.2, 0.9])
    np.testing.assert_allclose(display.nominal, [0.2, 0.5, 0.9])
    # Within 0.1, 0.25 and 0.45 of one half.
    np.testing.assert_allclose(display.empirical, [1 / 8, 4 / 8, 6 / 8])
    np.testing.assert_allclose(display.lower, binom.ppf(0.025, 8, [0.2, 0.5, 0.9]) / 8)
    np.testing.assert_allclose(display.upper, binom.ppf(0.975, 8, [0.2, 0.5, 0.9]) / 8)
    line = display.ax_.lines[-1]
    np.testing.assert_allclose(line.get_xydata(), np.column_stack([display.nominal, display.empirical]))
    vertices = display.ax_.collections[0].get_paths()[0].vertices
    for level, low, high in zip(display.nominal, display.lower, display.upper, strict=True):
        assert {low, high} <= set(vertices[vertices[:, 0] == level, 1])


def test_coverage_of_uniform_values_is_inside_its_band():
    display = CoverageDisplay.from_predictions((np.arange(1000) + 0.5) / 1000)
    np.testing.assert_allclose(display.empirical, display.nominal, atol=0.002)
    assert len(display.nominal) == 19


@pytest.mark.parametrize("display", [PITDisplay, CoverageDisplay])
@bad_input(
    ([[0.5, 1.2]], {}, "pit must hold values between 0 and 1"),
    ([[0.5, np.nan]], {}, "pit contains NaN"),
    ([[]], {}, "pit is empty"),
    ([[0.5]], {"level": 1.0}, "level must be a number between 0 and 1"),
)
def test_pit_values_are_checked(display, arguments, options, message):
    refuses(display.from_predictions, arguments, options, message)


def test_bins_and_levels_are_checked():
    refuses(PITDisplay.from_predictions, [PIT], {"n_bins": 0}, "n_bins must be at least 1")
    refuses(PITDisplay.from_predictions, [PIT], {"n_bins": 2.5}, "n_bins must be at least 1 and a whole")
    refuses(CoverageDisplay.from_predictions, [PIT], {"nominal": [0.5, 1.0]}, "nominal must hold levels")


# --- posterior predictive check


def test_check_compares_by_group():
    y = pd.Series([10.0, 20.0, 30.0, 1.0, 3.0], name="score")
    groups = ["a", "a", "a", "b", "b"]
    samples = np.array([[0.0, 1.0, 2.0], [19.0, 20.0, 24.0]])[[1, 1, 1, 0, 0]]
    display = PredictiveCheckDisplay.from_predictions(y, samples, groups=groups, level=0.5)
    assert display.labels == ["a", "b"]
    np.testing.assert_allclose(display.observed, [20.0, 2.0])
    np.testing.assert_allclose(display.drawn, [[19, 20, 24], [0, 1, 2]])
    np.testing.assert_allclose(display.lower, [19.5, 0.5])
    np.testing.assert_allclose(display.median, [20.0, 1.0])
    np.testing.assert_allclose(display.upper, [22.0, 1.5])
    assert list(display.outside) == [False, True]
    np.testing.assert_allclose(display.p_values, [0.5, 0.5 / 3])
    # Drawn from the lowest median up.
    ends, _ = intervals_of(display.ax_)
    np.testing.assert_allclose(ends, [[0.5, 1.5], [19.5, 22.0]])
    inside, outside = display.ax_.collections[1:]
    np.testing.assert_allclose(inside.get_offsets(), [[20.0, 1]])
    np.testing.assert_allclose(outside.get_offsets(), [[2.0, 0]])
    assert names_of(display.ax_) == ["b", "a"]
    says = ["50% of draws", "observed inside (1 of 2)", "observed outside (1 of 2)"]
    assert legend_of(display.ax_) == says


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [("std", np.std([1.0, 5.0], ddof=1)), ("max", 5.0), (lambda own: own.iloc[0] * 2, 2.0)],
)
def test_check_of_other_statistics(statistic, expected):
    display = PredictiveCheckDisplay.from_predictions(
        [1.0, 5.0], np.ones((2, 4)), groups=["a", "a"], statistic=statistic
    )
    assert display.observed == pytest.approx([expected])


def test_check_leaves_out_groups_without_the_statistic():
    display = PredictiveCheckDisplay.from_predictions(
        [1.0, 5.0, 7.0],
        np.random.default_rng(0).random((3, 4)),
        groups=["a", "a", "one row"],
        statistic="std",
    )
    assert display.labels == ["a"]


class Drawer(BaseEstimator):
    """Draws rows that say which group, draw and row they are: 100 * group + row + 0.01 * draw."""

    group_column = None
    n_draws = 0

    def fit(self):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def sample(self, group_size, groups, random_state):
        labels = np.repeat(np.asarray(groups), group_size)
        row = np.tile(np.arange(group_size), len(groups))
        value = 100.0 * labels + row + 0.01 * self.n_draws
        self.n_draws += 1
        return np.column_stack([np.zeros(len(row)), value]), labels


def test_check_of_a_groupvae_draws_as_many_rows_as_there_are():
    X = np.column_stack([np.zeros(5), np.arange(5.0)])
    display = PredictiveCheckDisplay.from_estimator(
        Drawer(), X, groups=[7, 3, 7, 7, 3], column=1, n_samples=2, statistic="max"
    )
    assert display.labels == [7, 3]
    np.testing.assert_allclose(display.observed, [3.0, 4.0])
    # Three rows of group 7, two of group 3.
    np.testing.assert_allclose(display.drawn, [[702.0, 702.01], [301.0, 301.01]])


@bad_input(
    (
        [[1.0, 2.0], [1.0, 2.0]],
        {"groups": [0, 0]},
        r"samples must have shape \(n_rows, n_samples\), got \(2,\)",
    ),
    ([[1.0, 2.0], np.ones((3, 4))], {"groups": [0, 0]}, "samples has 3 rows but y has 2"),
    ([[1.0, 2.0], np.ones((2, 4))], {"groups": [0]}, "groups has 1 labels"),
    ([[1.0], np.ones((1, 4))], {"groups": [0], "statistic": "mode"}, "statistic must be one of"),
    ([[1.0], np.ones((1, 4))], {"groups": [0], "statistic": "std"}, "statistic is not defined in any group"),
    ([[1.0], np.ones((1, 4))], {"groups": [0], "level": 0}, "level must be a number between 0 and 1"),
)
def test_check_refuses_in_one_line(arguments, options, message):
    refuses(PredictiveCheckDisplay.from_predictions, arguments, options, message)


# --- shrinkage


def test_shrinkage_arrows_lead_from_the_diagonal_to_what_is_inferred():
    raw, inferred, n_rows = np.array([2.0, -2.0, 0.5]), np.array([1.0, -1.9, 0.5]), np.array([1, 50, 10])
    display = ShrinkageDisplay.from_predictions(raw, inferred, n_rows=n_rows, name="score")
    assert display.overall == pytest.approx((2.0 - 100.0 + 5.0) / 61)
    arrows, points = display.ax_.collections[:2]
    np.testing.assert_allclose(arrows.get_offsets(), np.column_stack([raw, raw]))
    np.testing.assert_allclose(arrows.U, 0.0)
    np.testing.assert_allclose(arrows.V, inferred - raw)
    np.testing.assert_allclose(points.get_offsets(), np.column_stack([raw, inferred]))
    assert list(np.argsort(points.get_sizes())) == [0, 2, 1]
    assert legend_of(display.ax_) == ["raw mean", "overall mean", "1 row", "10 rows", "50 rows"]
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("raw: score", "inferred: score")


class Shrinker(BaseEstimator):
    """A GroupVAE by hand: u is half the mean of a group, and a row is 2 + 3 u + v."""

    group_column = None

    def fit(self):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def transform(self, X, *, groups):
        u = 0.5 * pd.Series(X[:, 0]).groupby(np.asarray(groups)).transform("mean").to_numpy()
        return u[:, None], X

    def inverse_transform(self, u, v):
        return 2.0 + 3.0 * u + v


def test_shrinkage_of_a_groupvae_averages_instance_codes_out():
    X = np.array([[1.0], [3.0], [10.0]])
    display = ShrinkageDisplay.from_estimator(Shrinker(), X, groups=["a", "a", "b"])
    np.testing.assert_allclose(display.raw, [2.0, 10.0])
    np.testing.assert_allclose(display.inferred, [2 + 3 * 1.0, 2 + 3 * 5.0])
    assert display.overall == pytest.approx(14.0 / 3)
    np.testing.assert_array_equal(display.n_rows, [2, 1])
    assert display.labels == ["a", "b"]


@bad_input(
    ([[1.0, 2.0], [1.0]], {"n_rows": [1, 1]}, "inferred has 1 rows but raw has 2"),
    ([[1.0, 2.0], [1.0, 2.0]], {"n_rows": [1]}, "n_rows has 1 rows but raw has 2"),
    ([[1.0], [1.0]], {"n_rows": [0]}, "n_rows has groups without rows"),
    ([[1.0], [1.0]], {"n_rows": [1], "labels": "ab"}, "labels has 2 rows but raw has 1"),
)
def test_shrinkage_refuses_in_one_line(arguments, options, message):
    refuses(ShrinkageDisplay.from_predictions, arguments, options, message)
