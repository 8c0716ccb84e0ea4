"""What every display promises, on quickly fitted estimators, and how displays read tables and labels."""

from __future__ import annotations

import builtins
import pickle
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.exceptions import NotFittedError

mpl.use("Agg")
import matplotlib.pyplot as plt

from skgroupvae import CxVAERegressor, GroupVAE, plotting
from skgroupvae.plotting import (
    CoverageDisplay,
    GroupEffectsDisplay,
    HistoryDisplay,
    LatentMapDisplay,
    PITDisplay,
    PredictiveCheckDisplay,
    ShrinkageDisplay,
    TranslationDisplay,
)

DISPLAYS = [name for name in plotting.__all__ if name.endswith("Display")]
BETWEEN = {"source_group": "school 0", "target_group": "school 5"}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def data(pupils):
    """`pupils` with a regressor and a GroupVAE fitted on it; tests must not change them."""
    X, y, school = pupils[["effort"]], pupils["score"], pupils["school"]
    table = pupils[["score", "effort"]]
    regressor = CxVAERegressor(max_epochs=2, random_state=0, verbose=False).fit(X, y, groups=school)
    vae = GroupVAE(max_epochs=2, random_state=0, verbose=False).fit(table, groups=school)
    return SimpleNamespace(X=X, y=y, school=school, table=table, regressor=regressor, vae=vae)


def draw(display, data, estimator, **options):
    """A display of either estimator with its own arguments."""
    regression = isinstance(estimator, CxVAERegressor)
    if display in (GroupEffectsDisplay, HistoryDisplay):
        return display.from_estimator(estimator, **options)
    options = {"groups": data.school} | options
    if display is TranslationDisplay:
        options = BETWEEN | options
    if display is PredictiveCheckDisplay:
        options = {"n_samples": 10} | options
    if regression:
        return display.from_estimator(estimator, data.X, data.y, **options)
    if display is not LatentMapDisplay:
        options = {"column": "score"} | options
    return display.from_estimator(estimator, data.table, **options)


CASES = [(name, "regressor") for name in DISPLAYS] + [
    (name, "vae") for name in DISPLAYS if name not in ("PITDisplay", "CoverageDisplay")
]
every_case = pytest.mark.parametrize(("name", "kind"), CASES, ids=["-".join(case) for case in CASES])


@every_case
def test_draws_on_new_axes_with_labels(name, kind, data):
    display = draw(getattr(plotting, name), data, getattr(data, kind))
    assert display.ax_.figure is display.figure_
    assert display.ax_.get_xlabel()
    assert display.ax_.get_ylabel()
    assert display.ax_.has_data()
    assert display.figure_.get_layout_engine() is not None
    display.figure_.canvas.draw()


@every_case
def test_draws_on_the_axes_given_and_again_on_others(name, kind, data):
    figure, (left, right) = plt.subplots(1, 2)
    display = draw(
        getattr(plotting, name), data, getattr(data, kind), ax=left, xlabel="x / m", ylabel="y / s"
    )
    assert display.ax_ is left
    assert display.figure_ is figure
    assert (left.get_xlabel(), left.get_ylabel()) == ("x / m", "y / s")
    assert not right.has_data()
    assert display.plot(ax=right) is display
    assert display.ax_ is right
    assert len(right.lines) == len(left.lines)
    assert len(right.collections) == len(left.collections)
    assert len(plt.get_fignums()) == 1


@every_case
def test_changes_neither_estimator_nor_table_nor_settings_of_matplotlib(name, kind, data):
    estimator = getattr(data, kind)
    before = [pickle.dumps(part) for part in (estimator, data.X, data.y, data.table)], dict(mpl.rcParams)
    draw(getattr(plotting, name), data, estimator)
    after = [pickle.dumps(part) for part in (estimator, data.X, data.y, data.table)], dict(mpl.rcParams)
    assert before == after


@every_case
def test_refuses_what_is_not_fitted(name, kind, data):
    with pytest.raises(NotFittedError):
        draw(getattr(plotting, name), data, type(getattr(data, kind))())


@every_case
def test_refuses_axes_that_are_none(name, kind, data):
    with pytest.raises(TypeError, match="ax must be a matplotlib Axes or None, got tuple"):
        draw(getattr(plotting, name), data, getattr(data, kind), ax=plt.subplots())


@every_case
def test_says_what_to_install_before_computing(name, kind, data, monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    unfitted = type(getattr(data, kind))()
    with pytest.raises(ImportError, match=r"pip install 'skgroupvae\[plot\]'"):
        draw(getattr(plotting, name), data, unfitted)


@pytest.mark.parametrize("display", [PITDisplay, CoverageDisplay])
def test_calibration_needs_a_predictive_distribution(display, data):
    with pytest.raises(TypeError, match=f"GroupVAE has no pit, which {display.__name__} needs; pass one"):
        display.from_estimator(data.vae, data.table, data.y, groups=data.school)


# --- labels


WITH_LABELS = [TranslationDisplay, ShrinkageDisplay, PredictiveCheckDisplay, LatentMapDisplay]


def numbers(display):
    return [value for value in vars(display).values() if isinstance(value, np.ndarray)]


@pytest.mark.parametrize("display", WITH_LABELS)
@pytest.mark.parametrize("kind", ["regressor", "vae"])
def test_group_column_gives_the_same_numbers(display, kind, data):
    estimator = getattr(data, kind)
    by_column = type(estimator)(max_epochs=2, random_state=0, verbose=False, group_column="school")
    wide = SimpleNamespace(
        X=data.X.assign(school=data.school), y=data.y, table=data.table.assign(school=data.school)
    )
    if kind == "regressor":
        by_column.fit(wide.X, wide.y)
    else:
        by_column.fit(wide.table)
    wide.school = None
    expected, found = draw(display, data, estimator), draw(display, wide, by_column)
    assert numbers(found)
    for left, right in zip(numbers(expected), numbers(found), strict=True):
        np.testing.assert_array_equal(left, right)
    assert by_column.group_column == "school"


def test_labels_of_two_columns_are_tuples(data):
    table = data.table.assign(school=data.school, district=1)
    model = GroupVAE(max_epochs=2, random_state=0, group_column=["district", "school"]).fit(table)
    display = TranslationDisplay.from_estimator(
        model, table, source_group=(1, "school 0"), target_group=(1, "school 5"), column="effort"
    )
    np.testing.assert_array_equal(display.source, data.table["effort"][data.school == "school 0"])


@pytest.mark.parametrize("display", WITH_LABELS)
def test_labels_missing_twice_or_too_few_are_refused(display, data):
    with pytest.raises(ValueError, match="groups is missing; pass one label a row"):
        draw(display, data, data.regressor, groups=None)
    with pytest.raises(ValueError, match="groups has 3 labels but X has"):
        draw(display, data, data.regressor, groups=["a", "b", "c"])
    by_column = GroupVAE(max_epochs=1, random_state=0, group_column="school")
    by_column.fit(data.table.assign(school=data.school))
    with pytest.raises(ValueError, match="both given"):
        draw(display, data, by_column)


@pytest.mark.parametrize("display", [TranslationDisplay, ShrinkageDisplay, PredictiveCheckDisplay])
def test_outcomes_and_columns_that_cannot_be_used_are_refused(display, data):
    options = {"groups": data.school} | (BETWEEN if display is TranslationDisplay else {})
    with pytest.raises(ValueError, match="y is missing; pass one number a row"):
        display.from_estimator(data.regressor, data.X, **options)
    with pytest.raises(ValueError, match=r"y has 5 rows but X has"):
        display.from_estimator(data.regressor, data.X, data.y[:5], **options)
    with pytest.raises(ValueError, match=r"column is missing; choose one of \['score', 'effort'\]"):
        display.from_estimator(data.vae, data.table, **options)
    with pytest.raises(ValueError, match=r"column 'age' is not a column of X; choose one of"):
        display.from_estimator(data.vae, data.table, column="age", **options)


@pytest.mark.parametrize("display", WITH_LABELS)
@pytest.mark.parametrize("container", [pl.from_pandas, np.asarray], ids=["polars", "array"])
def test_other_containers_give_the_same_numbers(display, container, data):
    model = GroupVAE(max_epochs=2, random_state=0).fit(container(data.table), groups=data.school.to_numpy())
    options = {} if display is LatentMapDisplay else {"column": 0}
    other = SimpleNamespace(table=container(data.table), school=list(data.school))
    expected, found = draw(display, data, data.vae, **options), draw(display, other, model, **options)
    for left, right in zip(numbers(expected), numbers(found), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)


# --- what only one of the displays does with an estimator


def test_translation_of_a_regressor_is_that_of_the_estimator(data):
    display = draw(TranslationDisplay, data, data.regressor)
    here = (data.school == "school 0").to_numpy()
    moved = data.regressor.translate(data.X[here], data.y[here], **BETWEEN)
    np.testing.assert_array_equal(display.source, data.y[here])
    np.testing.assert_array_equal(display.target, data.y[data.school == "school 5"])
    np.testing.assert_allclose(display.translated, moved)
    assert display.labels == ("source: school 0", "target: school 5", "translated")
    assert display.ax_.get_xlabel() == "score"


def test_translation_of_a_group_without_rows_is_refused(data):
    with pytest.raises(ValueError, match="target_group 'school X' has no rows in groups; pass one of"):
        draw(TranslationDisplay, data, data.regressor, target_group="school X")


def test_effects_of_an_estimator_are_those_of_its_table(data):
    effects = data.regressor.group_effects_
    for effect in ("Intercept", "effort"):
        display = draw(GroupEffectsDisplay, data, data.regressor, effect=effect)
        np.testing.assert_array_equal(display.mean, effects[effect])
        np.testing.assert_array_equal(display.sd, effects[f"{effect} sd"])
        assert display.labels == list(effects.index)
        assert display.ax_.get_xlabel() == f"effect: {effect}"
    assert draw(GroupEffectsDisplay, data, data.regressor).name == "Intercept"


def test_effects_can_be_codes(data):
    for model in (data.vae, data.regressor):
        display = draw(GroupEffectsDisplay, data, model, effect="u1")
        np.testing.assert_array_equal(display.mean, model.group_codes_["u1"])
        np.testing.assert_array_equal(display.sd, model.group_codes_std_["u1"])
    assert draw(GroupEffectsDisplay, data, data.vae).name == "u0"


def test_effects_that_do_not_exist_are_refused(data):
    with pytest.raises(ValueError, match=r"effect 'age' is not one of .* choose one of \['Intercept', 'eff"):
        draw(GroupEffectsDisplay, data, data.regressor, effect="age")


def test_map_of_u_has_a_point_a_group_and_of_v_a_point_a_row(data):
    u, v = (codes.to_numpy() if isinstance(codes, pd.DataFrame) else codes for codes in
            data.vae.transform(data.table, groups=data.school))  # fmt: skip
    display = draw(LatentMapDisplay, data, data.vae, color="score")
    first = ~data.school.duplicated().to_numpy()
    np.testing.assert_array_equal(display.codes, u[first])
    means = data.y.groupby(data.school, sort=False).mean()
    np.testing.assert_allclose(display.color, means)
    assert display.color.name == "score"
    display = draw(LatentMapDisplay, data, data.vae, kind="v", codes=[1, 0])
    np.testing.assert_array_equal(display.codes, v[:, [1, 0]])
    assert display.ax_.get_xlabel() == "instance code v1"
    assert display.ax_.get_ylabel() == "instance code v0"


def test_map_of_a_group_takes_its_most_frequent_category(data):
    kind = data.y.gt(data.y.median()).map({True: "high", False: "low"})
    display = draw(LatentMapDisplay, data, data.vae, color=kind.rename("kind"))
    expected = kind.groupby(data.school, sort=False).agg(lambda own: own.mode()[0])
    assert list(display.color) == list(expected)


def test_map_reads_stacked_codes_and_frames(data):
    expected = draw(LatentMapDisplay, data, data.vae, kind="v").codes
    for model in (
        GroupVAE(max_epochs=2, random_state=0, stack_codes=True),
        GroupVAE(max_epochs=2, random_state=0).set_output(transform="pandas"),
    ):
        model.fit(data.table, groups=data.school)
        np.testing.assert_array_equal(draw(LatentMapDisplay, data, model, kind="v").codes, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "w"}, "kind must be 'u'"),
        ({"codes": [2]}, r"codes must be one or two of 0 to 1, got \[2\]"),
        ({"codes": [0, 1, 0]}, "codes must be one or two of"),
        ({"color": "age"}, "color 'age' is not a column of X"),
        ({"color": [1.0, 2.0]}, "color has 2 rows but X has"),
    ],
)
def test_map_refuses_in_one_line(options, message, data):
    with pytest.raises(ValueError, match=message) as error:
        draw(LatentMapDisplay, data, data.vae, **options)
    assert "\n" not in str(error.value)


def test_history_of_a_closed_form_fit_is_refused(data):
    linear = CxVAERegressor(decoder="linear", random_state=0).fit(data.X, data.y, groups=data.school)
    with pytest.raises(ValueError, match="history_ has no epochs"):
        HistoryDisplay.from_estimator(linear)


def test_history_draws_held_out_groups_dashed(data):
    model = GroupVAE(max_epochs=3, early_stopping=True, random_state=0).fit(data.table, groups=data.school)
    ax = HistoryDisplay.from_estimator(model, columns=["loss", "-reconstruction"]).ax_
    expected = [
        ("-", model.history_["loss"]),
        ("--", model.history_["validation_loss"]),
        ("-", -model.history_["reconstruction"]),
        ("--", -model.history_["validation_reconstruction"]),
    ]
    for line, (style, values) in zip(ax.lines, expected, strict=False):
        assert line.get_linestyle() == style
        np.testing.assert_allclose(line.get_ydata(), values)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["loss", "-reconstruction", "training", "held out"]


@pytest.mark.parametrize("columns", [["age"], "loss", []])
def test_history_refuses_columns(columns, data):
    with pytest.raises(ValueError, match=r"history_ has no column 'age'|columns must be a list of columns"):
        HistoryDisplay.from_estimator(data.vae, columns=columns)


def test_pit_and_coverage_read_the_estimators_pit(data):
    pit = data.regressor.pit(data.X, data.y, groups=data.school)
    for display in (PITDisplay, CoverageDisplay):
        np.testing.assert_array_equal(draw(display, data, data.regressor).pit, pit)


def test_check_of_a_regressor_uses_its_draws(data):
    display = draw(PredictiveCheckDisplay, data, data.regressor, n_samples=7, random_state=3)
    draws = data.regressor.sample_y(data.X, 7, groups=data.school, random_state=3)
    expected = pd.DataFrame(draws).groupby(data.school.to_numpy(), sort=False).mean()
    np.testing.assert_allclose(display.drawn, expected)
    assert display.ax_.get_xlabel() == "mean of score in the group"


def test_shrinkage_of_random_intercepts_is_that_of_the_mixed_model(data):
    model = CxVAERegressor(decoder="linear", random_slopes=None, random_state=0)
    model.fit(data.X, data.y, groups=data.school)
    display = ShrinkageDisplay.from_estimator(model, data.X, data.y, groups=data.school)
    # The prediction for a new group is an average over draws, whose error is the same in every row.
    np.testing.assert_allclose(display.inferred, model.group_effects_["Intercept"], atol=0.05)
    between, within = model.variance_components_["sd"] ** 2
    factor = display.n_rows * between / (display.n_rows * between + within)
    np.testing.assert_allclose(display.inferred, factor * display.raw, atol=0.05)


def test_shrinkage_of_a_groupvae_tends_to_the_overall_mean(exam):
    model = GroupVAE(decoder="linear", regularizer=None, random_state=0, max_epochs=20)
    model.fit(exam.X, groups=exam.groups)
    display = ShrinkageDisplay.from_estimator(model, exam.X, groups=exam.groups)
    assert display.overall == pytest.approx(exam.X.mean())
    raw, inferred = display.raw - display.overall, display.inferred - display.overall
    assert 0.5 < (inferred @ raw) / (raw @ raw) < 1.0
