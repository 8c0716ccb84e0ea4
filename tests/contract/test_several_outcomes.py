"""Several outcomes: what separate fits give, put together."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning
from sklearn.model_selection import GridSearchCV, GroupKFold

from skgroupvae import CxVAERegressor
from skgroupvae.plotting import GroupEffectsDisplay

NAMES = ["math", "reading"]


def quick(**kwargs):
    settings = {"decoder": "linear", "random_slopes": ["x"], "random_state": 0, "verbose": False}
    return CxVAERegressor(**settings | kwargs)


@pytest.fixture(scope="module")
def pupils():
    """Covariates, two marks, and schools of 200 pupils."""
    rng = np.random.default_rng(0)
    school = np.repeat([f"s{i}" for i in range(20)], 10)
    X = pd.DataFrame({"x": rng.normal(size=200), "sex": rng.choice(["F", "M"], 200)})
    marks = {
        name: 3.0 + scale * (X["x"] + rng.normal(size=20).repeat(10) + rng.normal(size=200))
        for name, scale in zip(NAMES, (1.0, 10.0), strict=True)
    }
    return X, pd.DataFrame(marks), school


@pytest.fixture(scope="module")
def both(pupils):
    X, Y, school = pupils
    return quick().fit(X, Y, groups=school)


@pytest.fixture(scope="module")
def apart(pupils):
    X, Y, school = pupils
    return [quick().fit(X, Y[name], groups=school) for name in NAMES]


def each(apart, ask):
    """Answers of the separate fits, the outcomes on a last axis."""
    return np.stack([ask(model, j) for j, model in enumerate(apart)], axis=-1)


# --- what is learned


def test_tables_have_the_outcome_as_outer_level(both, apart):
    for name in (
        "fixed_effects_",
        "marginal_effects_",
        "variance_components_",
        "group_effects_",
        "group_codes_",
    ):
        table = getattr(both, name)
        assert table.index.names[0] == "outcome"
        for outcome, model in zip(NAMES, apart, strict=True):
            pd.testing.assert_frame_equal(table.loc[outcome], getattr(model, name), check_names=False)
    for name in ("intraclass_correlation_", "mixed_model_log_likelihood_", "is_mixed_model_", "n_iter_"):
        assert getattr(both, name).to_dict() == {
            outcome: getattr(model, name) for outcome, model in zip(NAMES, apart, strict=True)
        }
    np.testing.assert_array_equal(
        both.intraclass_correlation_interval_.loc["math", ["lower", "upper"]],
        apart[0].intraclass_correlation_interval_,
    )
    assert both.n_features_in_ == 2
    assert list(both.feature_names_in_) == ["x", "sex"]
    assert list(both.outcomes_) == NAMES


def test_an_outcome_learns_nothing_from_the_others(pupils, both):
    """Also with a network, whose fit draws at random."""
    X, Y, school = pupils
    np.testing.assert_array_equal(
        both.predict(X, groups=school)[:, ::-1],
        quick().fit(X, Y[NAMES[::-1]], groups=school).predict(X, groups=school),
    )
    net = {"decoder": "mlp", "max_epochs": 1, "hidden_sizes": (4,)}
    some = np.isin(school, ["s0", "s1", "s2", "s3"])
    X, Y, school = X[some], Y[some], school[some]
    together = quick(**net).fit(X, Y, groups=school)
    alone = quick(**net).fit(X, Y["reading"], groups=school)
    np.testing.assert_array_equal(together.predict(X, groups=school)[:, 1], alone.predict(X, groups=school))


# --- every method


def test_predictions_are_those_of_separate_fits(both, apart, pupils):
    X, Y, school = pupils
    new = np.full(5, "new")
    context = (X[:5], Y[:5], new)
    mean, std = both.predict(X[:5], groups=new, context=context, return_std=True)
    answers = [
        model.predict(X[:5], groups=new, context=(X[:5], Y[name][:5], new), return_std=True)
        for name, model in zip(NAMES, apart, strict=True)
    ]
    for part, ours in enumerate((mean, std)):
        np.testing.assert_array_equal(ours, np.column_stack([answer[part] for answer in answers]))
    quantiles = both.predict_quantiles(X, [0.1, 0.5, 0.9], groups=school)
    assert quantiles.shape == (200, 3, 2)
    np.testing.assert_array_equal(
        quantiles, each(apart, lambda model, j: model.predict_quantiles(X, [0.1, 0.5, 0.9], groups=school))
    )
    with pytest.raises(ValueError, match="neither the fit nor the context has"):
        both.predict(X[:1], groups=["nowhere"], strict_groups=True)


def test_scores_are_those_of_separate_fits(both, apart, pupils):
    X, Y, school = pupils
    columns = [Y[name] for name in NAMES]
    np.testing.assert_array_equal(
        both.pit(X, Y, groups=school), each(apart, lambda m, j: m.pit(X, columns[j], groups=school))
    )
    np.testing.assert_allclose(
        both.score_samples(X, Y, groups=school),
        each(apart, lambda m, j: m.score_samples(X, columns[j], groups=school)).sum(-1),
    )
    weights = np.arange(200.0)
    assert both.score(X, Y, groups=school, sample_weight=weights) == pytest.approx(
        each(apart, lambda m, j: m.score(X, columns[j], groups=school, sample_weight=weights)).mean()
    )


def test_codes_and_translations_are_those_of_separate_fits(both, apart, pupils):
    X, Y, school = pupils
    columns = [Y[name] for name in NAMES]
    codes = [m.transform(X, column, groups=school) for m, column in zip(apart, columns, strict=True)]
    for ours, parts in zip(both.transform(X, Y, groups=school), zip(*codes, strict=True), strict=True):
        np.testing.assert_array_equal(ours, np.hstack(parts))
    np.testing.assert_array_equal(
        quick().fit_transform(X, Y, groups=school)[1], np.hstack([v for _, v in codes])
    )
    moved = {"source_group": school, "target_group": "s1", "quantiles": [0.1, 0.5, 0.9]}
    mean, interval = both.translate(X, Y, **moved)
    np.testing.assert_array_equal(mean, each(apart, lambda m, j: m.translate(X, columns[j], **moved)[0]))
    np.testing.assert_array_equal(interval, each(apart, lambda m, j: m.translate(X, columns[j], **moved)[1]))
    assert interval.shape == (200, 3, 2)


def test_samples_of_the_outcomes_are_independent_draws(both, apart, pupils):
    X, _, school = pupils
    draws = both.sample_y(X, 30, groups=school, random_state=0)
    assert draws.shape == (200, 30, 2)
    state = np.random.RandomState(0)
    np.testing.assert_array_equal(
        draws, each(apart, lambda m, j: m.sample_y(X, 30, groups=school, random_state=state))
    )
    mean, std = both.predict(X, groups=school, return_std=True)
    residuals = ((draws - mean[:, None]) / std[:, None]).reshape(-1, 2)
    # Draws of one seed for both would correlate at 1; 20 groups of 30 draws of u are worth some 600 rows.
    assert abs(np.corrcoef(residuals.T)[0, 1]) < 0.15


def test_update_groups_updates_each_outcome(pupils):
    X, Y, school = pupils
    model = quick().fit(X, Y, groups=school)
    new = np.full(5, "new")
    expected = model.predict(X[:5], groups=new, context=(X[:5], Y[:5], new))
    assert model.update_groups(X[:5], Y[:5], groups=new) is model
    np.testing.assert_allclose(model.predict(X[:5], groups=new), expected, rtol=1e-9)
    assert model.group_effects_.loc[("reading", "new"), "n_rows"] == 5
    before = model.group_effects_
    bad = Y[:5].assign(reading=np.inf)
    with pytest.raises(ValueError, match=r"outcome 'reading'.*infinite"):
        model.update_groups(X[:5], bad, groups=new)
    assert model.group_effects_ is before
    assert (model.outcomes_["math"].group_effects_.loc["new", "n_rows"]) == 5


def test_summary_and_html_name_the_outcomes(both, apart):
    text = both.summary()
    for name, model in zip(NAMES, apart, strict=True):
        assert name in text
        assert model.summary() in text
        assert f"{name}: Log-likelihood" in both._repr_html_()


def test_outcomes_without_names_and_their_grades(pupils):
    X, Y, school = pupils
    X, school = X[:60], school[:60]
    grades = np.digitize(Y[:60], [0.0, 4.0]) * [1.0, 1.5]
    settings = {"family": "ordinal", "random_slopes": None, "max_epochs": 1}
    model = quick(**settings).fit(X, grades, groups=school)
    alone = quick(**settings).fit(X, grades[:, 1], groups=school)
    assert list(model.outcomes_) == ["y0", "y1"]
    np.testing.assert_array_equal(model.classes_, [[0.0, 1.0, 2.0], [0.0, 1.5, 3.0]])
    np.testing.assert_array_equal(model.predict(X, groups=school)[:, 1], alone.predict(X, groups=school))


# --- outcomes that are missing


def test_rows_of_unknown_outcome_are_left_out_for_that_outcome(pupils):
    X, Y, school = pupils
    known = np.arange(200) % 3 != 0
    some = Y.assign(math=Y["math"].where(known))
    model = quick().fit(X, some, groups=school, sample_weight=np.arange(1.0, 201.0))
    alone = quick().fit(
        X[known], Y["math"][known], groups=school[known], sample_weight=np.arange(1.0, 201.0)[known]
    )
    new = np.full(9, "new")
    ours = model.predict(X[:9], groups=new, context=(X[:9], some[:9], new))
    theirs = alone.predict(
        X[:9], groups=new, context=(X[:9][known[:9]], Y["math"][:9][known[:9]], new[known[:9]])
    )
    np.testing.assert_array_equal(ours[:, 0], theirs)
    assert model.group_effects_.loc["reading", "n_rows"].sum() == 200
    assert model.group_effects_.loc["math", "n_rows"].sum() == known.sum()
    # An outcome of which the context knows nothing has the prior.
    nothing = Y[:9].assign(math=np.nan)
    np.testing.assert_array_equal(
        model.predict(X[:9], groups=new, context=(X[:9], nothing, new))[:, 0], model.predict(X[:9])[:, 0]
    )
    model.update_groups(X[:9], nothing, groups=new)
    assert ("math", "new") not in model.group_codes_.index
    assert ("reading", "new") in model.group_codes_.index


# --- scikit-learn and files


def test_parameters_set_after_the_fit_reach_every_outcome(both, apart, pupils):
    X, Y, school = pupils
    few = pickle.loads(pickle.dumps(both)).set_params(n_prediction_samples=4)
    alone = clone(apart[1]).fit(X, Y["reading"], groups=school).set_params(n_prediction_samples=4)
    np.testing.assert_array_equal(few.predict(X, groups=school)[:, 1], alone.predict(X, groups=school))
    assert both.outcomes_["reading"].n_prediction_samples == 64


def test_one_column_is_one_outcome(pupils, apart):
    X, Y, school = pupils
    with pytest.warns(DataConversionWarning):
        model = quick().fit(X, Y[["math"]], groups=school)
    assert not hasattr(model, "outcomes_")
    np.testing.assert_array_equal(model.predict(X, groups=school), apart[0].predict(X, groups=school))


def test_fits_of_one_and_of_several_outcomes_leave_nothing_behind(pupils):
    X, Y, school = pupils
    model = quick().fit(X, Y["math"], groups=school)
    single = set(vars(model))
    model.fit(X, Y, groups=school)
    assert not {name for name in single if name.startswith("_")} & set(vars(model))
    assert model.predict(X).shape == (200, 2)
    assert set(vars(model.fit(X, Y["math"], groups=school))) == single
    assert model.predict(X).shape == (200,)


def test_clone_pickle_save_and_load(both, pupils, tmp_path):
    X, Y, school = pupils
    assert not hasattr(clone(both), "outcomes_")
    both.save(tmp_path / "model.safetensors")
    numbered = quick().fit(X, Y.set_axis([3, 5], axis=1), groups=school)
    numbered.save(tmp_path / "numbered.safetensors")
    assert list(CxVAERegressor.load(tmp_path / "numbered.safetensors").outcomes_) == [3, 5]
    for again in (
        pickle.loads(pickle.dumps(both)),
        CxVAERegressor.load(tmp_path / "model.safetensors"),
    ):
        np.testing.assert_array_equal(again.predict(X, groups=school), both.predict(X, groups=school))
        np.testing.assert_array_equal(
            again.score_samples(X, Y, groups=school), both.score_samples(X, Y, groups=school)
        )
        pd.testing.assert_frame_equal(again.group_effects_, both.group_effects_)
        assert set(vars(again)) == set(vars(both))


def test_grid_search_and_group_column(pupils, both):
    X, Y, school = pupils
    table = X.assign(school=school)
    search = GridSearchCV(quick(group_column="school"), {"random_slopes": [None, ["x"]]}, cv=GroupKFold(2))
    search.fit(table, Y, groups=school)
    scores = [
        clone(search.best_estimator_)
        .fit(table.iloc[train], Y.iloc[train])
        .score(table.iloc[test], Y.iloc[test])
        for train, test in GroupKFold(2).split(table, Y, school)
    ]
    assert search.best_score_ == pytest.approx(np.mean(scores))
    model = quick(group_column="school").fit(table, Y)
    np.testing.assert_array_equal(model.predict(table), both.predict(X, groups=school))


def test_one_warning_of_missing_groups_that_points_here(pupils):
    X, Y, _ = pupils
    with pytest.warns(UserWarning, match="fitted without groups") as caught:
        quick(random_slopes=None).fit(X[:30], Y[:30])
    assert [warning.filename for warning in caught] == [__file__]


def test_warnings_of_predictions_point_here(both, apart, pupils):
    X = pupils[0][:2].assign(sex="D")
    for model in (both, apart[0]):
        with pytest.warns(UserWarning, match=r"categories \['D'\] that the fit has not seen") as caught:
            model.predict(X)
        assert {warning.filename for warning in caught} == {__file__}


# --- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda Y: Y.assign(math=1.0), "outcome 'math': y is constant"),
        (lambda Y: Y.assign(math=np.nan), "outcome 'math': y is missing in every row"),
        (lambda Y: Y[:9], "y has 9 outcomes but X has 200 rows"),
        (lambda Y: Y.set_axis(["a", "a"], axis=1), r"y has duplicate column names \['a'\]"),
        (lambda Y: np.zeros((200, 2, 2)), "y must be one number a row"),
        (lambda Y: [[1.0], [1.0, 2.0]], "y must be one number a row"),
    ],
)
def test_outcomes_that_cannot_be_used(change, message, pupils):
    X, Y, school = pupils
    model = quick()
    with pytest.raises(ValueError, match=message):
        model.fit(X, change(Y), groups=school)
    assert vars(model) == vars(quick())


def test_later_outcomes_must_be_those_of_the_fit(both, apart, pupils):
    X, Y, school = pupils
    swapped = both.score_samples(X, Y[NAMES[::-1]], groups=school)
    np.testing.assert_array_equal(swapped, both.score_samples(X, Y.to_numpy(), groups=school))
    with pytest.raises(ValueError, match=r"y lacks the outcomes \['reading'\]"):
        both.score_samples(X, Y[["math"]], groups=school)
    with pytest.raises(ValueError, match=r"y must have one column for each.*\['math', 'reading'\].*\(200,\)"):
        both.score_samples(X, Y["math"], groups=school)
    with pytest.raises(ValueError, match="y of context must have one column for each"):
        both.predict(X, groups=school, context=(X, Y["math"], school))
    with pytest.raises(ValueError, match="context must be a triple"):
        both.predict(X, groups=school, context=(X, Y))
    with pytest.raises(ValueError, match="y is missing: transform"):
        both.transform(X)
    with pytest.raises(ValueError, match="outcome 'math': y contains NaN"):
        both.pit(X, Y.assign(math=np.nan), groups=school)
    with pytest.raises(ValueError, match="y must be one number a row"):
        apart[0].score_samples(X, Y, groups=school)
    with pytest.raises(TypeError, match="missing a required argument: 'X'"):
        both.predict()


def test_a_display_asks_for_one_outcome(both):
    with pytest.raises(ValueError, match=r"several outcomes; pass.*outcomes_\['math'\]"):
        GroupEffectsDisplay.from_estimator(both)
    assert GroupEffectsDisplay.from_estimator(both.outcomes_["math"]) is not None


def test_codes_of_several_outcomes_are_named_by_outcome(pupils):
    X, Y, school = pupils
    model = quick().set_output(transform="pandas").fit(X, Y, groups=school)
    u, v = model.transform(X, Y, groups=school)
    assert list(v.columns) == ["math_v0", "reading_v0"]
    assert [*u.columns, *v.columns] == list(model.get_feature_names_out())
    stacked = model.set_params(stack_codes=True).transform(X, Y, groups=school)
    np.testing.assert_array_equal(stacked.to_numpy(), np.hstack([u, v]))


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_what_goes_on_goes_on_with_each_outcome(method, pupils):
    X, Y, school = pupils
    model = quick(decoder="mlp", max_epochs=2, warm_start=True).fit(X, Y, groups=school)
    alone = {name: copy.deepcopy(part) for name, part in model.outcomes_.items()}
    getattr(model, method)(X, Y, groups=school)
    together = model.predict(X, groups=school)
    for j, (name, part) in enumerate(alone.items()):
        before = part.predict(X, groups=school)
        after = getattr(part, method)(X, Y[name], groups=school).predict(X, groups=school)
        np.testing.assert_array_equal(together[:, j], after)
        assert not np.allclose(before, after)
