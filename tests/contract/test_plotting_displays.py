"""What all displays have in common, on quickly fitted estimators, and how they read tables and labels."""

from __future__ import annotations

import builtins
import pickle
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import BaseEstimator, RegressorMixin, clone
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
# With a network, which a dozen schools would not be given.
SHORT = {"decoder": "mlp", "max_epochs": 2, "random_state": 0, "verbose": False}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def data(pupils):
    """`pupils` with a regressor and a GroupVAE fitted on it; tests must not change them."""
    X, y, school = pupils[["effort"]], pupils["score"], pupils["school"]
    table = pupils[["score", "effort"]]
    regressor = CxVAERegressor(**SHORT).fit(X, y, groups=school)
    vae = GroupVAE(**SHORT).fit(table, groups=school)
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
    by_column = clone(estimator).set_params(group_column="school")
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
    model = GroupVAE(decoder="mlp", max_epochs=2, random_state=0, group_column=["district", "school"]).fit(
        table
    )
    display = TranslationDisplay.from_estimator(
        model, table, source_group=(1, "school 0"), target_group=(1, "school 5"), column="effort"
    )
    np.testing.assert_array_equal(display.source, data.table["effort"][data.school == "school 0"])


@pytest.mark.parametrize("display", WITH_LABELS)
def test_labels_missing_twice_or_too_few_are_refused(display, data):
    with pytest.raises(ValueError, match="groups is missing; pass one label per row"):
        draw(display, data, data.regressor, groups=None)
    with pytest.raises(ValueError, match="groups has 3 labels but X has"):
        draw(display, data, data.regressor, groups=["a", "b", "c"])
    by_column = GroupVAE(decoder="linear", random_state=0, group_column="school")
    by_column.fit(data.table.assign(school=data.school))
    with pytest.raises(ValueError, match="both given"):
        draw(display, data, by_column)


@pytest.mark.parametrize("display", [TranslationDisplay, ShrinkageDisplay, PredictiveCheckDisplay])
def test_outcomes_and_columns_that_cannot_be_used_are_refused(display, data):
    options = {"groups": data.school} | (BETWEEN if display is TranslationDisplay else {})
    with pytest.raises(ValueError, match="y is missing; pass one number per row"):
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
    model = GroupVAE(decoder="mlp", max_epochs=2, random_state=0).fit(
        container(data.table), groups=data.school.to_numpy()
    )
    options = {} if display is LatentMapDisplay else {"column": 0}
    other = SimpleNamespace(table=container(data.table), school=list(data.school))
    expected, found = draw(display, data, data.vae, **options), draw(display, other, model, **options)
    for left, right in zip(numbers(expected), numbers(found), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)


# --- formulas that name outcome and groups


@pytest.fixture(scope="module", params=["pandas", "polars"])
def by_formula(request, data):
    """Table with outcome and labels, and a model fitted by formula to the rows of `data.regressor`."""
    table = data.X.assign(**{"the score": data.y, "school": data.school})
    if request.param == "polars":
        table = pl.DataFrame({name: list(table[name]) for name in table})
    model = CxVAERegressor(formula="`the score` ~ effort + (1 + effort | school)", **SHORT)
    return SimpleNamespace(table=table, model=model.fit(table))


FORMULA_DISPLAYS = [
    TranslationDisplay,
    ShrinkageDisplay,
    PredictiveCheckDisplay,
    LatentMapDisplay,
    PITDisplay,
    CoverageDisplay,
    GroupEffectsDisplay,
]


@pytest.mark.parametrize("display", FORMULA_DISPLAYS)
@pytest.mark.parametrize("beside", [False, True], ids=["in the table", "passed too"])
def test_formula_gives_the_same_numbers_as_separate_arguments(display, beside, data, by_formula):
    options = {"y": data.y, "groups": data.school} if beside else {}
    if display is TranslationDisplay:
        options |= BETWEEN
    if display is PredictiveCheckDisplay:
        options |= {"n_samples": 10}
    expected = draw(display, data, data.regressor)
    if display is GroupEffectsDisplay:
        found = display.from_estimator(by_formula.model)
    else:
        found = display.from_estimator(by_formula.model, by_formula.table, **options)
    assert numbers(found)
    for left, right in zip(numbers(expected), numbers(found), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-9)
    if display is TranslationDisplay:
        assert found.name == ("score" if beside else "the score")


def test_shrinkage_with_a_formula_is_prediction_minus_that_of_a_new_group(by_formula):
    display = ShrinkageDisplay.from_estimator(by_formula.model, by_formula.table)
    table = by_formula.table
    if isinstance(table, pl.DataFrame):
        table = pd.DataFrame({name: table[name].to_numpy() for name in table.columns})
    new = by_formula.model.predict(table.assign(school="not in the fit"))
    difference = pd.Series(by_formula.model.predict(table) - new, index=table.index)
    expected = difference.groupby(table["school"], sort=False).mean()
    assert (expected.abs() > 0.01).all()
    np.testing.assert_allclose(display.inferred, expected)
    raw = (table["the score"] - new).groupby(table["school"], sort=False).mean()
    np.testing.assert_allclose(display.raw, raw)
    assert display.labels == list(expected.index)


def test_a_new_group_of_a_formula_has_a_label_that_no_group_of_the_fit_has(data):
    table = data.X.assign(score=data.y, school=data.school.replace("school 3", "a new group"))
    model = CxVAERegressor(formula="score ~ effort + (1 | school)", decoder="linear", random_state=0).fit(
        table
    )
    display = ShrinkageDisplay.from_estimator(model, table)
    assert (np.abs(display.inferred) > 1e-6).all()


def test_formula_without_groups_takes_them_from_the_argument_or_column(data):
    table = data.X.assign(score=data.y, school=data.school)
    options = {"decoder": "linear", "random_state": 0, "formula": "score ~ effort"}
    beside = CxVAERegressor(**options).fit(table, groups=data.school)
    expected = ShrinkageDisplay.from_estimator(beside, table, groups=data.school)
    within = CxVAERegressor(group_column="school", **options).fit(table)
    found = ShrinkageDisplay.from_estimator(within, table)
    np.testing.assert_allclose(found.inferred, expected.inferred)
    assert (np.abs(found.inferred) > 1e-6).all()


def test_a_table_without_the_columns_of_the_formula_is_refused(data, by_formula):
    with pytest.raises(ValueError, match=r"formula 'the score' is not a column of X; choose one of"):
        ShrinkageDisplay.from_estimator(by_formula.model, data.X, groups=data.school)


# --- several outcomes


class TwoOutcomes(RegressorMixin, BaseEstimator):
    """Predicts the mean of each group, and its negative, for two outcomes of one model."""

    formula = group_column = None
    family = "gaussian"

    def fit(self):
        labels = pd.Index(["a", "b"])
        both = pd.MultiIndex.from_product([["math", "art"], labels])
        self.group_codes_ = pd.DataFrame({"u0": [1.0, 2.0]}, index=labels)
        self.group_codes_std_ = self.group_codes_
        effects = {"Intercept": [1.0, 2.0, -1.0, -2.0], "Intercept sd": 0.5}
        self.group_effects_ = pd.DataFrame(effects, index=both)
        return self

    def predict(self, X, groups=None):
        level = np.zeros(len(X)) if groups is None else np.where(np.asarray(groups) == "a", 1.0, 2.0)
        return np.column_stack([level, -level])

    def pit(self, X, y, groups=None, context=None, random_state=None):
        return np.tile([0.25, 0.75], (len(X), 1))

    def sample_y(self, X, n_samples, groups=None, random_state=None):
        return np.repeat(self.predict(X, groups)[:, None], n_samples, axis=1)

    def translate(self, X, y, *, source_group, target_group):
        assert list(y.columns) == ["math", "art"]
        return y.to_numpy() + np.array([10.0, 20.0])


def test_displays_draw_one_of_several_outcomes():
    X, groups = np.zeros((3, 1)), ["a", "a", "b"]
    Y = pd.DataFrame({"math": [1.0, 2.0, 3.0], "art": [4.0, 5.0, 6.0]})
    model, options = TwoOutcomes().fit(), {"groups": groups, "column": "art"}
    shrinkage = ShrinkageDisplay.from_estimator(model, X, Y, **options)
    np.testing.assert_allclose(shrinkage.raw, [4.5, 6.0])
    np.testing.assert_allclose(shrinkage.inferred, [-1.0, -2.0])
    check = PredictiveCheckDisplay.from_estimator(model, X, Y, n_samples=4, **options)
    np.testing.assert_allclose(check.drawn, [[-1.0] * 4, [-2.0] * 4])
    np.testing.assert_allclose(check.observed, [4.5, 6.0])
    moved = TranslationDisplay.from_estimator(model, X, Y, source_group="a", target_group="b", **options)
    np.testing.assert_allclose(moved.translated, [24.0, 25.0])
    assert moved.name == "art"
    np.testing.assert_allclose(PITDisplay.from_estimator(model, X, Y, **options).pit, 0.75)
    effects = GroupEffectsDisplay.from_estimator(model, column="art")
    np.testing.assert_allclose(effects.mean, [-1.0, -2.0])
    assert effects.labels == ["a", "b"]
    with pytest.raises(ValueError, match=r"column is missing; choose one of \['math', 'art'\]"):
        GroupEffectsDisplay.from_estimator(model)
    with pytest.raises(ValueError, match="column 'sport' is not a column"):
        PITDisplay.from_estimator(model, X, Y, groups=groups, column="sport")
    with pytest.raises(ValueError, match=r"column is missing; choose one of \['math', 'art'\]"):
        ShrinkageDisplay.from_estimator(model, X, Y, groups=groups)


def test_displays_draw_one_of_the_outcomes_of_a_regressor(data):
    """Of one model of both, as of the tables and methods of the estimator itself."""
    Y = data.table.assign(luck=np.random.default_rng(0).normal(size=len(data.y)))[["score", "luck"]]
    X, groups = data.X, data.school
    model = CxVAERegressor(decoder="linear", random_state=0).fit(X, Y, groups=groups)
    here, options = (groups == "school 0").to_numpy(), {"groups": groups, "column": "luck"}
    moved = TranslationDisplay.from_estimator(model, X, Y, **BETWEEN, **options)
    expected = model.translate(X[here], Y[here], **BETWEEN)
    np.testing.assert_allclose(moved.translated, expected["luck"])
    np.testing.assert_array_equal(moved.source, Y["luck"][here])
    effects = GroupEffectsDisplay.from_estimator(model, column="luck")
    np.testing.assert_array_equal(effects.mean, model.group_effects_.loc["luck", "Intercept"])
    pit = model.pit(X, Y, groups=groups)[:, 1]
    for display in (PITDisplay, CoverageDisplay):
        np.testing.assert_array_equal(display.from_estimator(model, X, Y, **options).pit, pit)
    shrinkage = ShrinkageDisplay.from_estimator(model, X, Y, **options)
    change = (model.predict(X, groups=groups) - model.predict(X))[:, 1]
    by_group = pd.Series(change, index=X.index).groupby(groups, sort=False).mean()
    np.testing.assert_allclose(shrinkage.inferred, by_group)
    check = PredictiveCheckDisplay.from_estimator(model, X, Y, n_samples=5, random_state=1, **options)
    draws = model.sample_y(X, 5, groups=groups, random_state=1)[..., 1]
    drawn = pd.DataFrame(draws, index=X.index).groupby(groups, sort=False).mean()
    np.testing.assert_allclose(check.drawn, drawn)
    v = LatentMapDisplay.from_estimator(model, X, Y, groups=groups, kind="v", codes=[1])
    np.testing.assert_array_equal(v.codes[:, 0], model.transform(X, Y, groups=groups)[1][:, 1])


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


@pytest.mark.parametrize("kind", ["u", "v"])
def test_map_of_a_regressor_reads_stacked_codes(kind, data):
    stacked = CxVAERegressor(stack_codes=True, **SHORT)
    stacked.fit(data.X, data.y, groups=data.school)
    expected = draw(LatentMapDisplay, data, data.regressor, kind=kind)
    found = draw(LatentMapDisplay, data, stacked, kind=kind)
    np.testing.assert_array_equal(found.codes, expected.codes)
    assert found.names == expected.names


def test_map_reads_stacked_codes_and_frames(data):
    expected = draw(LatentMapDisplay, data, data.vae, kind="v").codes
    for model in (
        GroupVAE(decoder="mlp", max_epochs=2, random_state=0, stack_codes=True),
        GroupVAE(decoder="mlp", max_epochs=2, random_state=0).set_output(transform="pandas"),
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
    model = GroupVAE(decoder="mlp", max_epochs=3, early_stopping=True, random_state=0).fit(
        data.table, groups=data.school
    )
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
