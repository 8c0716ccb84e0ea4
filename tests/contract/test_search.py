"""Groups through scikit-learn's own tools: each result is that of a plain loop, not merely a number.

First with metadata routing, where nobody requests anything; then without it, where `group_column` is the way.
"""

from __future__ import annotations

from functools import partial

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import Ridge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    GroupShuffleSplit,
    HalvingGridSearchCV,
    LeaveOneGroupOut,
    LeavePGroupsOut,
    RandomizedSearchCV,
    StratifiedGroupKFold,
    cross_val_predict,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

COLUMNS = ["score", "effort"]
GRID = {"learning_rate": [0.001, 0.05]}
CV = GroupKFold(3)
HALVING = {"resource": "max_epochs", "min_resources": 1, "max_resources": 2, "factor": 2}
SEARCHES = {
    "grid": partial(GridSearchCV, cv=CV, error_score="raise"),
    "randomized": partial(RandomizedSearchCV, n_iter=2, random_state=0, cv=CV, error_score="raise"),
    "halving": partial(HalvingGridSearchCV, **HALVING, cv=CV, error_score="raise"),
}


@pytest.fixture(scope="module")
def quick(quick):
    """Smaller still: what is tested here is where groups go, and each test fits many times."""
    return partial(
        quick, max_epochs=1, batch_size=12, hidden_sizes=(4,), n_decoder_samples=1, n_importance_samples=2
    )


@pytest.fixture(scope="module")
def y(pupils):
    """Something to predict from codes."""
    return pupils["score"].rank() + pupils["effort"].rank()


@pytest.fixture(scope="module")
def folds(X, school):
    return list(CV.split(X, groups=school))


@pytest.fixture
def routing():
    with config_context(enable_metadata_routing=True):
        yield


def score_by_hand(model, X, school, train, test) -> float:
    model = clone(model).fit(X.iloc[train], groups=school.iloc[train])
    return model.score(X.iloc[test], groups=school.iloc[test])


def scores_by_hand(model, X, school, folds, candidates=({},)) -> np.ndarray:
    """Held-out scores (n_candidates, n_folds) of a plain loop."""
    models = [clone(model).set_params(**candidate) for candidate in candidates]
    return np.array([[score_by_hand(model, X, school, *fold) for fold in folds] for model in models])


def scores_by_fold(search) -> np.ndarray:
    """Held-out scores (n_candidates, n_folds) of a search."""
    n_folds = search.n_splits_
    return np.array([search.cv_results_[f"split{fold}_test_score"] for fold in range(n_folds)]).T


def assert_same_fit(model, alone):
    pd.testing.assert_frame_equal(model.group_codes_, alone.group_codes_, check_exact=True)


# --- with routing: pipelines


def test_last_step_of_a_pipeline(X, school, quick, routing):
    pipeline = make_pipeline(StandardScaler(), quick()).fit(X, groups=school)
    scaled = StandardScaler().fit_transform(X)
    alone = quick().fit(scaled, groups=school)
    assert_same_fit(pipeline[-1], alone)
    np.testing.assert_array_equal(
        np.hstack(pipeline.transform(X, groups=school)), np.hstack(alone.transform(scaled, groups=school))
    )
    assert pipeline.score(X, groups=school) == alone.score(scaled, groups=school)


def ridge_by_hand(X, school, y, quick, train, test):
    """Ridge on the codes of scaled rows, and the codes of the test rows."""
    scaler = StandardScaler().fit(X.iloc[train])
    codes = quick(stack_codes=True).fit(scaler.transform(X.iloc[train]), groups=school.iloc[train])
    u_v = [codes.transform(scaler.transform(X.iloc[i]), groups=school.iloc[i]) for i in (train, test)]
    return Ridge().fit(u_v[0], y.iloc[train]), u_v[1]


def test_middle_step_of_a_pipeline(X, school, y, quick, folds, routing):
    pipeline = make_pipeline(StandardScaler(), quick(stack_codes=True), Ridge())
    scores = cross_val_score(pipeline, X, y, cv=CV, params={"groups": school}, error_score="raise")
    for score, (train, test) in zip(scores, folds, strict=True):
        ridge, codes = ridge_by_hand(X, school, y, quick, train, test)
        assert score == pytest.approx(ridge.score(codes, y.iloc[test]), rel=1e-12)
    # predict transforms on its way, and is passed the groups for that.
    fitted = clone(pipeline).fit(X.iloc[train], y.iloc[train], groups=school.iloc[train])
    predicted = fitted.predict(X.iloc[test], groups=school.iloc[test])
    np.testing.assert_allclose(predicted, ridge.predict(codes), rtol=1e-12)


def codes_by_hand(X, school, quick, train, test):
    model = quick(stack_codes=True).fit(X.iloc[train], groups=school.iloc[train])
    return model.transform(X.iloc[test], groups=school.iloc[test])


def test_column_transformer(X, school, quick, folds, routing):
    train, test = folds[0]
    columns = ColumnTransformer([("codes", quick(stack_codes=True), COLUMNS)], remainder="passthrough")
    wide = X.assign(other=1.0)
    columns.fit(wide.iloc[train], groups=school.iloc[train])
    codes = codes_by_hand(X, school, quick, train, test)
    table = columns.transform(wide.iloc[test], groups=school.iloc[test])
    np.testing.assert_array_equal(table, np.column_stack([codes, np.ones(len(test))]))
    names = ["codes__u0", "codes__u1", "codes__v0", "codes__v1", "remainder__other"]
    assert columns.get_feature_names_out().tolist() == names
    together = clone(columns).fit_transform(wide.iloc[train], groups=school.iloc[train])
    np.testing.assert_array_equal(together[:, :4], codes_by_hand(X, school, quick, train, train))


def test_feature_union(X, school, quick, folds, routing):
    train, test = folds[0]
    union = FeatureUnion([("codes", quick(stack_codes=True)), ("scaled", StandardScaler())])
    union.fit(X.iloc[train], groups=school.iloc[train])
    codes = codes_by_hand(X, school, quick, train, test)
    scaled = StandardScaler().fit(X.iloc[train]).transform(X.iloc[test])
    table = union.transform(X.iloc[test], groups=school.iloc[test])
    np.testing.assert_array_equal(table, np.hstack([codes, scaled]))
    together = clone(union).fit_transform(X.iloc[train], groups=school.iloc[train])
    np.testing.assert_array_equal(together[:, :4], codes_by_hand(X, school, quick, train, train))


# --- with routing: searches


@pytest.mark.parametrize("kind", SEARCHES)
def test_search(kind, X, school, quick, folds, routing):
    search = SEARCHES[kind](quick(), GRID).fit(X, groups=school)
    candidates = search.cv_results_["params"]
    assert {params["learning_rate"] for params in candidates} == set(GRID["learning_rate"])
    if kind == "halving":
        assert [params["max_epochs"] for params in candidates] == [1, 1, 2]
    by_hand = scores_by_hand(quick(), X, school, folds, candidates)
    np.testing.assert_array_equal(scores_by_fold(search), by_hand)
    if kind != "halving":  # which chooses among the last candidates only
        assert search.best_index_ == by_hand.mean(axis=1).argmax()
    alone = quick(**search.best_params_).fit(X, groups=school)
    assert_same_fit(search.best_estimator_, alone)
    assert search.score(X, groups=school) == alone.score(X, groups=school)


def test_transform_of_a_search_does_not_take_groups(X, school, quick, routing):
    search = GridSearchCV(quick(stack_codes=True), GRID, cv=CV).fit(X, groups=school)
    with pytest.raises(TypeError, match="groups"):
        search.transform(X, groups=school)
    codes = search.best_estimator_.transform(X, groups=school)
    assert codes.shape == (len(X), 4)


def scaled_score_by_hand(model, X, school, train, test) -> float:
    scaler = StandardScaler().fit(X.iloc[train])
    model.fit(scaler.transform(X.iloc[train]), groups=school.iloc[train])
    return model.score(scaler.transform(X.iloc[test]), groups=school.iloc[test])


def test_search_over_a_pipeline(X, school, quick, folds, routing):
    pipeline = Pipeline([("scale", StandardScaler()), ("codes", quick())])
    grid = {"codes__learning_rate": GRID["learning_rate"]}
    search = GridSearchCV(pipeline, grid, cv=CV, error_score="raise").fit(X, groups=school)
    for value, row in zip(GRID["learning_rate"], scores_by_fold(search), strict=True):
        for score, fold in zip(row, folds, strict=True):
            assert score == scaled_score_by_hand(quick(learning_rate=value), X, school, *fold)


def test_search_inside_a_cross_validation(X, school, quick, folds, routing):
    search = GridSearchCV(quick(), GRID, cv=GroupKFold(2))
    scores = cross_val_score(search, X, cv=CV, params={"groups": school}, error_score="raise")
    for score, (train, test) in zip(scores, folds, strict=True):
        inner = clone(search).fit(X.iloc[train], groups=school.iloc[train])
        assert score == inner.best_estimator_.score(X.iloc[test], groups=school.iloc[test])


@pytest.mark.parametrize("tool", [cross_validate, cross_val_score])
def test_cross_validation(tool, pupils, X, school, quick, folds):
    with config_context(enable_metadata_routing=True):
        routed = tool(quick(), X, params={"groups": school}, cv=CV, error_score="raise")
    by_column = tool(quick(group_column="school"), pupils, groups=school, cv=CV, error_score="raise")
    for scores in (routed, by_column):
        scores = scores["test_score"] if tool is cross_validate else scores
        np.testing.assert_array_equal(scores, scores_by_hand(quick(), X, school, folds)[0])


def test_codes_of_held_out_rows_come_from_the_models_of_a_cross_validation(X, school, quick, routing):
    """cross_val_predict refuses all but four methods, and all that has no predict: PCA, and GroupVAE."""
    model = quick(stack_codes=True)
    with pytest.raises(ValueError, match="cross_val_predict must be"):
        cross_val_predict(model, X, params={"groups": school}, cv=CV, method="transform")
    with pytest.raises(ValueError, match="implementing 'fit' and 'predict'"):
        cross_val_predict(model, X, params={"groups": school}, cv=CV)
    results = cross_validate(
        model, X, params={"groups": school}, cv=CV, return_estimator=True, return_indices=True
    )
    for fitted, train, test in zip(results["estimator"], *results["indices"].values(), strict=True):
        codes = fitted.transform(X.iloc[test], groups=school.iloc[test])
        np.testing.assert_array_equal(codes, codes_by_hand(X, school, quick, train, test))


def test_cross_val_predict_of_a_pipeline(pupils, X, school, y, quick, folds):
    """scikit-learn passes groups to fit, but not to predict: each test row is then a group of its own."""
    by_hand = {"alone": np.empty(len(X)), "grouped": np.empty(len(X))}
    for train, test in folds:
        codes = quick(stack_codes=True).fit(X.iloc[train], groups=school.iloc[train])
        ridge = Ridge().fit(codes.transform(X.iloc[train], groups=school.iloc[train]), y.iloc[train])
        for name, labels in (("alone", np.arange(len(test))), ("grouped", school.iloc[test])):
            by_hand[name][test] = ridge.predict(codes.transform(X.iloc[test], groups=labels))
    pipeline = make_pipeline(quick(stack_codes=True), Ridge())
    with (
        config_context(enable_metadata_routing=True),
        pytest.warns(UserWarning, match=r"fitted with groups and now got none.*group_column"),
    ):
        predicted = cross_val_predict(pipeline, X, y, params={"groups": school}, cv=CV)
    np.testing.assert_allclose(predicted, by_hand["alone"], rtol=1e-12)
    assert np.abs(predicted - by_hand["grouped"]).max() > 0.1
    # The remedy: labels in the table reach every method with it. The groups here are the splitter's.
    pipeline = make_pipeline(quick(stack_codes=True, group_column="school"), Ridge())
    predicted = cross_val_predict(pipeline, pupils, y, groups=school, cv=CV)
    np.testing.assert_allclose(predicted, by_hand["grouped"], rtol=1e-12)


# --- without routing


@pytest.mark.parametrize("kind", SEARCHES)
def test_group_column_in_a_search(kind, pupils, X, school, quick, folds):
    search = SEARCHES[kind](quick(group_column="school"), GRID).fit(pupils, groups=school)
    expected = scores_by_hand(quick(), X, school, folds, search.cv_results_["params"])
    np.testing.assert_array_equal(scores_by_fold(search), expected)
    # transform of a search has no room for groups, and needs none.
    alone = quick(**search.best_params_).fit(X, groups=school)
    np.testing.assert_array_equal(
        np.hstack(search.transform(pupils)), np.hstack(alone.transform(X, groups=school))
    )


def scale_and_keep_school() -> ColumnTransformer:
    """Scales the columns and leaves the labels beside them, under their own name."""
    columns = [("scale", StandardScaler(), COLUMNS), ("keep", "passthrough", ["school"])]
    return ColumnTransformer(columns, verbose_feature_names_out=False).set_output(transform="pandas")


def test_group_column_behind_a_column_transformer(pupils, X, school, quick, folds):
    pipeline = make_pipeline(scale_and_keep_school(), quick(group_column="school"))
    scores = cross_val_score(pipeline, pupils, groups=school, cv=CV, error_score="raise")
    for score, fold in zip(scores, folds, strict=True):
        assert score == scaled_score_by_hand(quick(), X, school, *fold)


def test_group_column_in_the_middle_of_a_pipeline(pupils, X, school, y, quick, folds):
    codes = quick(group_column="school", stack_codes=True)
    pipeline = make_pipeline(scale_and_keep_school(), codes, Ridge())
    scores = cross_val_score(pipeline, pupils, y, groups=school, cv=CV, error_score="raise")
    for score, (train, test) in zip(scores, folds, strict=True):
        ridge, codes = ridge_by_hand(X, school, y, quick, train, test)
        assert score == pytest.approx(ridge.score(codes, y.iloc[test]), rel=1e-12)


def test_group_column_in_a_feature_union(pupils, X, school, quick):
    first = ColumnTransformer([("scaled", StandardScaler(), COLUMNS)])
    union = FeatureUnion([("codes", quick(group_column="school", stack_codes=True)), ("scaled", first)])
    codes = quick(stack_codes=True).fit_transform(X, groups=school)
    expected = np.hstack([codes, StandardScaler().fit_transform(X)])
    np.testing.assert_array_equal(union.fit_transform(pupils), expected)


def test_groups_that_reach_the_splitter_only_are_warned_of(X, school, quick):
    search = GridSearchCV(quick(), GRID, cv=CV)
    message = r"without groups.*set_config\(enable_metadata_routing=True\).*group_column"
    with pytest.warns(UserWarning, match=message) as record:
        search.fit(X, groups=school)
    # Two candidates in three folds and the refit.
    assert len([w for w in record if "without groups" in str(w.message)]) == 7


# --- what the score of a splitter means


SPLITTERS = {
    "GroupKFold": GroupKFold(3),
    "StratifiedGroupKFold": StratifiedGroupKFold(2),
    "LeaveOneGroupOut": LeaveOneGroupOut(),
    "GroupShuffleSplit": GroupShuffleSplit(3, test_size=0.3, random_state=0),
    "LeavePGroupsOut": LeavePGroupsOut(2),
}


@pytest.mark.parametrize("name", SPLITTERS)
def test_score_of_unseen_groups_is_that_of_their_own_rows(name, X, school, quick, routing):
    few = school.isin(sorted(school.unique())[:6])
    X, school, cv = X[few], school[few], SPLITTERS[name]
    y = (school == school.max()) | (school == school.min())
    options = {"return_estimator": True, "return_indices": True, "error_score": "raise"}
    results = cross_validate(quick(), X, y, params={"groups": school}, cv=cv, **options)
    assert len(results["test_score"]) == cv.get_n_splits(X, y, school)
    for model, test, score in zip(
        results["estimator"], results["indices"]["test"], results["test_score"], strict=True
    ):
        rows, labels, known = X.iloc[test], school.iloc[test], model.group_codes_.index
        assert not labels.isin(known).any()
        # The label is only a label: under names that the fit knows, the score is the same.
        renamed = labels.map(dict(zip(labels.unique(), [*known, "new", "other"], strict=False)))
        assert model.score(rows, groups=renamed, context="prior") == score
        # Codes of a held-out group need no other group.
        together = np.hstack(model.transform(rows, groups=labels))
        log_likelihood = 0.0
        for label in labels.unique():
            own = np.asarray(labels == label)
            alone = np.hstack(model.transform(rows[own], groups=labels[own]))
            np.testing.assert_allclose(together[own], alone, rtol=1e-6, atol=1e-9)
            log_likelihood += model.group_log_likelihood(rows[own], groups=labels[own]).sum()
        assert score == pytest.approx(log_likelihood / len(rows), rel=1e-9)


# --- workers


def without_times(search) -> dict[str, np.ndarray]:
    return {name: values for name, values in search.cv_results_.items() if "time" not in name}


def assert_same_results(first, second):
    first, second = without_times(first), without_times(second)
    assert list(first) == list(second)
    for name in first:
        np.testing.assert_array_equal(np.asarray(first[name]), np.asarray(second[name]), err_msg=name)


@pytest.fixture(scope="module")
def search_alone(pupils, school, quick):
    return GridSearchCV(quick(group_column="school"), GRID, cv=CV).fit(pupils, groups=school)


@pytest.mark.slow  # each worker imports torch
def test_two_workers_give_the_results_of_one(search_alone, pupils, school):
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        parallel = clone(search_alone).set_params(n_jobs=2).fit(pupils, groups=school)
    assert_same_results(parallel, search_alone)
    assert_same_fit(parallel.best_estimator_, search_alone.best_estimator_)


@pytest.mark.slow
def test_routing_reaches_the_workers(search_alone, X, school, quick, routing):
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        search = GridSearchCV(quick(), GRID, cv=CV, n_jobs=2, error_score="raise").fit(X, groups=school)
    np.testing.assert_array_equal(scores_by_fold(search), scores_by_fold(search_alone))


def test_dask_runs_a_search(search_alone, pupils, school):
    distributed = pytest.importorskip("distributed")
    one = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with (
        distributed.LocalCluster(**one) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        remote = clone(search_alone).fit(pupils, groups=school)
    assert_same_results(remote, search_alone)
