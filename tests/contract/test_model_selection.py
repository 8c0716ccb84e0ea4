"""Splits that keep some rows of held-out groups in the training set, and the score of the others."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_sklearn_checks import EXPECTED_FAILURES

from skgroupvae import GroupVAE
from skgroupvae.model_selection import ContextGroupKFold, ContextLogLikelihood

COLUMNS = ["score", "effort"]
SIZES = [1, 2, 3, 5, 7, 12, 4, 6, 1, 9, 8, 3]


def table(n_rows: int) -> np.ndarray:
    return np.zeros((n_rows, 1))


def folds(cv: ContextGroupKFold, groups) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(cv.split(table(len(groups)), groups=groups))


@pytest.fixture(scope="module")
def groups() -> np.ndarray:
    """Labels of ragged groups, shuffled."""
    labels = np.repeat([f"school {i:02}" for i in range(len(SIZES))], SIZES)
    return np.random.RandomState(0).permutation(labels)


# --- what a split is


@given(
    sizes=st.lists(st.integers(1, 9), min_size=3, max_size=12),
    n_context=st.one_of(st.integers(1, 5), st.floats(0.01, 0.99)),
    shuffle=st.booleans(),
    seed=st.integers(0, 5),
)
def test_a_split_scores_rows_of_groups_whose_context_is_in_training(sizes, n_context, shuffle, seed):
    labels = np.random.RandomState(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    cv = ContextGroupKFold(3, n_context=n_context, shuffle=shuffle, random_state=seed if shuffle else None)
    held_out, scored = [], []
    for train, test in folds(cv, labels):
        np.testing.assert_array_equal(np.sort(np.r_[train, test]), np.arange(len(labels)))
        assert (np.diff(train) > 0).all()
        assert (np.diff(test) > 0).all()
        held_out.extend(np.unique(labels[test]))
        scored.extend(test)
        for group in np.unique(labels[test]):
            size, n_train = sizes[group], (labels[train] == group).sum()
            wanted = n_context if isinstance(n_context, int) else max(int(n_context * size + 1e-9), 1)
            assert n_train == min(wanted, size - 1)
    # Each group is held out once, with at least one scored row; no row is scored twice.
    assert sorted(held_out) == list(range(len(sizes)))
    assert len(set(scored)) == len(scored)


def test_folds_are_balanced_by_rows_as_those_of_groupkfold(groups):
    cv = ContextGroupKFold(3, shuffle=False)
    plain = GroupKFold(3).split(table(len(groups)), groups=groups)
    for (_, test), (_, whole) in zip(folds(cv, groups), plain, strict=True):
        assert set(groups[test]) == set(groups[whole])
    for seed in range(5):
        rows = [
            np.isin(groups, groups[test]).sum()
            for _, test in folds(ContextGroupKFold(3, random_state=seed), groups)
        ]
        assert max(rows) - min(rows) <= 1


def test_without_shuffling_the_context_is_the_first_rows_of_the_table(groups):
    for train, test in folds(ContextGroupKFold(3, n_context=2, shuffle=False), groups):
        for group in np.unique(groups[test]):
            rows, context = np.flatnonzero(groups == group), train[groups[train] == group]
            np.testing.assert_array_equal(context, rows[: min(2, len(rows) - 1)])


def test_a_fraction_that_rounds_down_to_a_whole_number_is_that_number():
    labels = np.repeat([0, 1], 100)
    train, _ = folds(ContextGroupKFold(2, n_context=0.29, random_state=0), labels)[0]
    assert np.bincount(labels[train]).min() == 29  # 0.29 * 100 is slightly below it


def same(first, second) -> bool:
    return all(
        np.array_equal(a, b) for pair in zip(first, second, strict=True) for a, b in zip(*pair, strict=True)
    )


def test_an_integer_seed_gives_the_same_folds_and_another_gives_others(groups):
    cv = ContextGroupKFold(3, random_state=1)
    assert same(folds(cv, groups), folds(cv, groups))
    assert not same(folds(cv, groups), folds(ContextGroupKFold(3, random_state=2), groups))
    rng = np.random.RandomState(1)
    assert same(folds(ContextGroupKFold(3, random_state=rng), groups), folds(cv, groups))


def test_folds_do_not_depend_on_how_groups_are_mixed_in_the_table(groups):
    cv = ContextGroupKFold(3, random_state=0)
    # Rows of a group stay in their order; the groups move.
    order = np.argsort([hash(str(label)) % 7 for label in groups], kind="stable")
    for (train, test), (train_moved, test_moved) in zip(
        folds(cv, groups), folds(cv, groups[order]), strict=True
    ):
        np.testing.assert_array_equal(np.sort(order[test_moved]), test)
        np.testing.assert_array_equal(np.sort(order[train_moved]), train)


ALIKE = {
    "list": list,
    "tuple": tuple,
    "object array": lambda labels: labels.astype(object),
    "Series": pd.Series,
    "shuffled index": lambda labels: pd.Series(labels, index=np.arange(len(labels))[::-1]),
    "Index": pd.Index,
    "Categorical": pd.Categorical,
    "categorical Series": lambda labels: pd.Series(labels, dtype="category"),
    "polars": pl.Series,
    "tuples": lambda labels: [("town", label) for label in labels],
    "tuples in a Series": lambda labels: pd.Series([("town", label) for label in labels]),
    "codes": lambda labels: pd.factorize(labels, sort=True)[0],
}


@pytest.mark.parametrize("kind", ALIKE)
def test_labels_of_any_kind_give_the_same_folds(kind, groups):
    cv = ContextGroupKFold(3, random_state=0)
    assert same(folds(cv, groups), folds(cv, ALIKE[kind](groups)))


def test_labels_that_do_not_sort_have_an_order_of_their_own():
    labels = [1, "a", ("b", 2), 1, "a", ("b", 2), 2.5, 2.5]
    cv = ContextGroupKFold(2, random_state=0)
    moved = labels[2:] + labels[:2]
    tested = [{labels[row] for row in test} for _, test in folds(cv, labels)]
    assert tested == [{moved[row] for row in test} for _, test in folds(cv, moved)]


# --- as a scikit-learn object


def test_repr_number_of_splits_and_pickle(groups):
    cv = ContextGroupKFold(3, n_context=2, random_state=0)
    assert repr(cv) == "ContextGroupKFold(n_context=2, n_splits=3, random_state=0, shuffle=True)"
    assert cv.get_n_splits() == cv.get_n_splits(table(3), None, [1, 2, 3]) == 3
    again = pickle.loads(pickle.dumps(cv))
    assert same(folds(again, groups), folds(cv, groups))
    assert clone(cv, safe=False).n_context == 2


BAD_PARAMETERS = {
    "one fold": ({"n_splits": 1}, "n_splits.*at least 2"),
    "half a fold": ({"n_splits": 2.5}, "n_splits.*integer"),
    "a yes": ({"n_splits": True}, "n_splits.*integer"),
    "no context": ({"n_context": 0}, "n_context.*at least 1.*GroupKFold"),
    "negative": ({"n_context": -1}, "n_context"),
    "all of it": ({"n_context": 1.0}, "n_context.*strictly between"),
    "none of it": ({"n_context": 0.0}, "n_context.*strictly between"),
    "NaN": ({"n_context": float("nan")}, "n_context"),
    "a word": ({"n_context": "half"}, "n_context.*fraction.*number"),
    "a yes for context": ({"n_context": True}, "n_context"),
    "None": ({"n_context": None}, "n_context"),
    "shuffle": ({"shuffle": "yes"}, "shuffle must be True or False"),
    "an idle seed": ({"shuffle": False, "random_state": 0}, "random_state has no effect.*shuffle=True"),
}


@pytest.mark.parametrize("case", BAD_PARAMETERS)
def test_bad_parameters_are_refused_at_once(case):
    parameters, message = BAD_PARAMETERS[case]
    with pytest.raises(ValueError, match=message) as error:
        ContextGroupKFold(**parameters)
    assert "\n" not in str(error.value)


BAD_GROUPS = {
    "None": (None, "groups must not be None.*pass"),
    "too few": (
        [0, 0, 0, 1, 1, 1],
        "n_splits=3 is more than the 2 distinct labels of groups.*lower",
    ),
    "missing": ([0, 1, None, 2, 3, None], "groups has 2 missing labels.*row 2.*drop"),
    "NaN": (np.array([0, 1, 2, np.nan, 4, 5]), "groups has 1 missing label"),
    "a table": (np.zeros((6, 2)), "groups must be one-dimensional.*tuples"),
    "a data frame": (pd.DataFrame({"a": range(6), "b": range(6)}), "groups must be one-dimensional.*tuples"),
    "too short": ([0, 1, 2], "inconsistent numbers of samples"),
}


@pytest.mark.parametrize("case", BAD_GROUPS)
def test_bad_groups_are_refused_on_one_line(case):
    labels, message = BAD_GROUPS[case]
    with pytest.raises(ValueError, match=message) as error:
        list(ContextGroupKFold(3).split(table(6), groups=labels))
    assert "\n" not in str(error.value)


def test_labels_that_cannot_be_hashed_are_refused():
    with pytest.raises(TypeError, match=r"groups must hold hashable labels.*tuples"):
        list(ContextGroupKFold(3).split(table(6), groups=[[0], [1], [2], [3], [4], [5]]))


# --- the score


CV = ContextGroupKFold(3, random_state=0)


@pytest.fixture(scope="module")
def by_hand(X, school, quick):
    """Held-out score of each fold, in a plain loop."""
    return np.array(
        [
            quick()
            .fit(X.iloc[train], groups=school.iloc[train])
            .score(X.iloc[test], groups=school.iloc[test])
            for train, test in CV.split(X, groups=school)
        ]
    )


@pytest.fixture
def routing():
    with config_context(enable_metadata_routing=True):
        yield


def test_routing_passes_groups_to_the_splitter_the_fit_and_the_scorer(X, school, quick, by_hand, routing):
    for scoring, name in ((ContextLogLikelihood(), "score"), ({"known": ContextLogLikelihood()}, "known")):
        results = cross_validate(
            quick(), X, params={"groups": school}, cv=CV, scoring=scoring, error_score="raise"
        )
        np.testing.assert_array_equal(results[f"test_{name}"], by_hand)


def test_without_routing_the_column_is_enough(pupils, school, quick, by_hand):
    results = cross_validate(
        quick(group_column="school"),
        pupils,
        groups=school,
        cv=CV,
        scoring=ContextLogLikelihood(),
        error_score="raise",
    )
    np.testing.assert_array_equal(results["test_score"], by_hand)


def test_what_the_score_means(X, school, quick):
    """The other rows of a group given some of its rows: p(all) / p(some), by the chain rule."""
    train, test = next(iter(CV.split(X, groups=school)))
    model = quick(n_importance_samples=200).fit(X.iloc[train], groups=school.iloc[train])
    known = ContextLogLikelihood()(model, X.iloc[test], groups=school.iloc[test])
    context = train[np.isin(school.iloc[train], school.iloc[test])]
    both = np.r_[context, test]
    of_all, of_some = (
        model.group_log_likelihood(X.iloc[i], groups=school.iloc[i], context="prior").sum()
        for i in (both, context)
    )
    chain_rule = (of_all - of_some) / len(test)
    # A short fit leaves q(u) rough, so the two agree only in part (0.07 nats); without context the score is
    # 0.28 nats away.
    unknown = model.score(X.iloc[test], groups=school.iloc[test], context="prior")
    assert abs(known - chain_rule) < 0.5 * abs(unknown - chain_rule)


def pipeline(model):
    return make_pipeline(StandardScaler(), model)


@pytest.fixture(scope="module")
def scaled_by_hand(X, school, quick):
    scores = []
    for train, test in CV.split(X, groups=school):
        scaler = StandardScaler().fit(X.iloc[train])
        model = quick().fit(scaler.transform(X.iloc[train]), groups=school.iloc[train])
        scores.append(model.score(scaler.transform(X.iloc[test]), groups=school.iloc[test]))
    return np.array(scores)


def test_the_scorer_reaches_through_a_pipeline(X, school, quick, scaled_by_hand, routing):
    results = cross_validate(
        pipeline(quick().set_score_request(context=True)),
        X,
        params={"groups": school},
        cv=CV,
        scoring=ContextLogLikelihood(),
        error_score="raise",
    )
    np.testing.assert_array_equal(results["test_score"], scaled_by_hand)


def test_the_scorer_reaches_through_a_pipeline_without_routing(pupils, school, quick, scaled_by_hand):
    scale = ColumnTransformer(
        [("scale", StandardScaler(), COLUMNS)], remainder="passthrough", verbose_feature_names_out=False
    )
    model = make_pipeline(scale.set_output(transform="pandas"), quick(group_column="school"))
    results = cross_validate(
        model, pupils, groups=school, cv=CV, scoring=ContextLogLikelihood(), error_score="raise"
    )
    np.testing.assert_allclose(results["test_score"], scaled_by_hand, rtol=1e-9)


def test_the_scorer_in_a_nested_search(pupils, school, quick):
    """The outer folds are scored by the model that the search of the fold found best."""
    grid, known = {"n_group_codes": [1, 2]}, ContextLogLikelihood()
    inner = GridSearchCV(quick(group_column="school"), grid, cv=CV, scoring=known)
    train, test = next(iter(CV.split(pupils, groups=school)))
    inner.fit(pupils.iloc[train], groups=school.iloc[train])
    expected = inner.best_estimator_.score(pupils.iloc[test])
    assert known(inner, pupils.iloc[test]) == expected


def test_the_scorer_is_printed_and_pickled():
    assert repr(pickle.loads(pickle.dumps(ContextLogLikelihood()))) == "ContextLogLikelihood()"


# --- a search that finds the truth


def linear_table(seed: int, n_groups: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Six columns from two group codes (loadings 1.6 and 1.2, orthogonal) and an instance code; noise 0.5."""
    rng = np.random.RandomState(seed)
    group_loadings = np.linalg.qr(rng.normal(size=(6, 2)))[0] * [1.6, 1.2]
    instance_loadings = 0.6 * rng.normal(size=(1, 6))
    groups = np.repeat(np.arange(n_groups), 3 + rng.poisson(3, n_groups))
    u, v = rng.normal(size=(n_groups, 2)), rng.normal(size=(len(groups), 1))
    noise = 0.5 * rng.normal(size=(len(groups), 6))
    return u[groups] @ group_loadings.T + v @ instance_loadings + noise, groups


# Too few group codes miss a loading of 1.2 beside noise of 0.5: that costs 0.4 to 0.8 nats per row. Too many
# cost thousandths of a nat, as the fit gives the third code almost no loading, and may be ahead by as little.
SMALL = {"batch_size": 27, "hidden_sizes": (8,), "n_decoder_samples": 8, "n_importance_samples": 50}
CANDIDATES = {
    "linear": (GroupVAE(2, 6, decoder="linear"), {"n_group_codes": [1, 2, 3]}),
    "mlp": (
        GroupVAE(2, 1, decoder="mlp", max_epochs=40, random_state=0, verbose=False, **SMALL),
        [
            {"n_group_codes": [1, 2, 3], "regularizer": ["context"], "regularizer_weight": [0.1, 1.0]},
            {"n_group_codes": [1, 2, 3], "regularizer": [None]},
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("decoder", CANDIDATES)
def test_held_out_likelihood_finds_the_number_of_group_codes(decoder, routing):
    X, groups = linear_table(2)
    model, grid = CANDIDATES[decoder]
    model = clone(model).set_params(random_state=0)
    search = GridSearchCV(model, grid, cv=GroupKFold(3), refit=False, error_score="raise").fit(
        X, groups=groups
    )
    scores = pd.Series(search.cv_results_["mean_test_score"])
    best = scores.groupby([params["n_group_codes"] for params in search.cv_results_["params"]]).max()
    assert search.best_params_["n_group_codes"] >= 2
    assert best[2] > best.max() - 0.01
    assert best[2] - best[1] > 0.3


# --- docs/sklearn.md

PAGE = (Path(__file__).parents[2] / "docs" / "sklearn.md").read_text(encoding="utf-8")


def test_page_lists_the_checks_that_fail():
    listed = re.findall(r"^\| `(check_\w+)` \|", PAGE, flags=re.MULTILINE)
    assert listed == sorted(EXPECTED_FAILURES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:GroupVAE was fitted with groups")
def test_output_shown_on_the_page_is_what_its_blocks_print(capsys):
    namespace: dict[str, object] = {"__name__": "__main__"}
    shown = re.findall(
        r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", PAGE, flags=re.DOTALL | re.MULTILINE
    )
    assert sum(bool(output) for _, output in shown) >= 5
    for code, output in shown:
        capsys.readouterr()
        exec(code, namespace)
        assert not output or capsys.readouterr().out == output
