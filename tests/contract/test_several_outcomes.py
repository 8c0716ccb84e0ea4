"""Several outcomes of one model: they share the codes of a group, and cells may be missing."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, GroupKFold

from skgroupvae import CxVAERegressor
from skgroupvae.plotting import GroupEffectsDisplay

NAMES = ["math", "reading"]
TABLES = ["fixed_effects_", "marginal_effects_", "variance_components_", "group_effects_"]


def quick(**kwargs):
    settings = {"decoder": "linear", "random_slopes": ["x"], "random_state": 0, "verbose": False}
    return CxVAERegressor(**settings | kwargs)


@pytest.fixture(scope="module")
def pupils():
    """Covariates, two marks whose group effects and residuals are correlated, and schools of 200 pupils."""
    rng = np.random.default_rng(0)
    school = np.repeat([f"s{i}" for i in range(20)], 10)
    X = pd.DataFrame({"x": rng.normal(size=200), "sex": rng.choice(["F", "M"], 200)})
    root = np.linalg.cholesky([[1.0, 0.8], [0.8, 1.0]])
    level, slope = rng.normal(size=(20, 2)) @ root.T, 0.5 * rng.normal(size=(20, 2))
    slopes = np.array([1.0, -0.5]) + slope.repeat(10, axis=0)
    marks = level.repeat(10, axis=0) + slopes * X[["x"]].to_numpy() + 0.7 * rng.normal(size=(200, 2)) @ root.T
    marks = 3.0 + marks * [1.0, 10.0]
    return X, pd.DataFrame(marks, columns=NAMES), school


@pytest.fixture(scope="module")
def gaps(pupils):
    """The marks, an eighth of the cells missing, and both of one row."""
    marks = pupils[1]
    gaps = marks.mask(np.random.default_rng(1).random(marks.shape) < 0.125)
    gaps.iloc[7] = np.nan
    return gaps


@pytest.fixture(scope="module")
def both(pupils):
    """Linear mixed model of complete marks; tests must not change it."""
    X, Y, school = pupils
    return quick().fit(X, Y, groups=school)


@pytest.fixture(scope="module")
def partly(pupils, gaps):
    """Linear mixed model of marks with gaps; tests must not change it."""
    return quick().fit(pupils[0], gaps, groups=pupils[2])


@pytest.fixture(scope="module")
def network(pupils, gaps):
    """Network of marks with gaps; tests must not change it."""
    X, _, school = pupils
    return quick(decoder="mlp", max_epochs=2, hidden_sizes=(4,)).fit(X, gaps, groups=school)


@pytest.fixture(scope="module")
def apart(pupils):
    """A fit of each mark alone."""
    X, Y, school = pupils
    return [quick().fit(X, Y[name], groups=school) for name in NAMES]


def cells_of(model, X):
    """Mean (2 N,) and covariance (2 N, 2 N) of the marks of N rows of a new group, by the model's tables.

    All rows of one mark come before those of the other.
    """
    ones = np.ones(len(X))
    z = np.column_stack([ones, X["x"]])
    design = np.column_stack([z, X["sex"] == "M"])
    mean = design @ model.fixed_effects_["estimate"].to_numpy().reshape(2, 3).T
    effects = np.kron(np.eye(2), z)
    sds = model.variance_components_["sd"].unstack()["Residual"][NAMES].to_numpy()
    residual = model.model_.decoder.likelihood.correlation.numpy() * np.outer(sds, sds)
    covariance = effects @ model.random_effects_covariance_.to_numpy() @ effects.T
    return mean.T.ravel(), covariance + np.kron(residual, np.diag(ones))


def given(model, X, Y, n_asked):
    """Mean and covariance of the marks of the first rows of a new group, given those of its other rows."""
    mean, covariance = cells_of(model, X)
    row = np.tile(np.arange(len(X)), 2)
    asked, known = row < n_asked, (row >= n_asked) & Y.notna().to_numpy().T.ravel()
    gain = covariance[np.ix_(asked, known)] @ np.linalg.inv(covariance[np.ix_(known, known)])
    values = Y.to_numpy().T.ravel()[known]
    return (
        mean[asked] + gain @ (values - mean[known]),
        covariance[np.ix_(asked, asked)] - gain @ covariance[np.ix_(known, asked)],
    )


# --- what is learned


def test_tables_have_the_outcome_as_outer_level(both, apart):
    for name in TABLES:
        table = getattr(both, name)
        assert list(dict.fromkeys(table.index.get_level_values(0))) == NAMES
        for outcome, model in zip(NAMES, apart, strict=True):
            alone = getattr(model, name)
            assert list(table.loc[outcome].index) == list(alone.index)
            assert list(table.columns) == list(alone.columns)
    for outcome, model in zip(NAMES, apart, strict=True):
        # The other mark tells more of a coefficient, and moves it by less than its error.
        difference = (both.fixed_effects_.loc[outcome] - model.fixed_effects_)["estimate"]
        assert (difference.abs() < model.fixed_effects_["std_error"]).all()
        np.testing.assert_allclose(
            both.variance_components_.loc[outcome, "sd"], model.variance_components_["sd"], rtol=0.2
        )
    covariance = both.random_effects_covariance_
    assert list(covariance.index) == [(name, effect) for name in NAMES for effect in ("Intercept", "x")]
    assert covariance.index.equals(covariance.columns)
    assert list(both.intraclass_correlation_.index) == NAMES
    interval = both.intraclass_correlation_interval_
    assert list(interval.columns) == ["lower", "upper"]
    assert (interval["lower"] < both.intraclass_correlation_).all()
    assert (both.intraclass_correlation_ < interval["upper"]).all()
    # Codes are those of a group, whatever the outcomes.
    assert both.group_codes_.shape == (20, 4)
    assert both.is_mixed_model_ is True
    assert both.n_iter_ == 0
    assert both.n_features_in_ == 2
    assert list(both.feature_names_in_) == ["x", "sex"]


@pytest.mark.parametrize("name", ["both", "partly"])
def test_likelihood_is_that_of_one_normal_a_group(name, pupils, gaps, request):
    """u integrated out in closed form, and the cells that are missing left out."""
    model, (X, Y, school) = request.getfixturevalue(name), pupils
    Y = gaps if name == "partly" else Y
    exact = []
    for label in dict.fromkeys(school):
        rows = school == label
        mean, covariance = cells_of(model, X[rows])
        values = Y[rows].to_numpy().T.ravel()
        seen = ~np.isnan(values)
        normal = stats.multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)])
        exact.append(normal.logpdf(values[seen]))
    of_groups = model.group_log_likelihood(X, Y, groups=school, context="prior")
    np.testing.assert_allclose(of_groups, exact, rtol=1e-8)
    assert model.mixed_model_log_likelihood_ == pytest.approx(np.sum(exact), rel=1e-8)


def test_the_fit_has_the_greatest_likelihood(pupils, both, apart):
    """Two separate fits are a model of both marks, whose correlations are 0."""
    assert both.mixed_model_log_likelihood_ > sum(model.mixed_model_log_likelihood_ for model in apart) + 10.0


def test_the_order_of_the_outcomes_does_not_matter(pupils, both):
    X, Y, school = pupils
    swapped = quick().fit(X, Y[NAMES[::-1]], groups=school)
    assert swapped.mixed_model_log_likelihood_ == pytest.approx(both.mixed_model_log_likelihood_, abs=1e-6)
    np.testing.assert_allclose(
        swapped.predict(X, groups=school)[:, ::-1] / [1.0, 10.0],
        both.predict(X, groups=school) / [1.0, 10.0],
        atol=1e-4,  # the search for the maximum ends near it
    )


# --- every method


@pytest.mark.parametrize("name", ["partly", "network"])
def test_shapes(name, pupils, gaps, request):
    model, (X, Y, school) = request.getfixturevalue(name), pupils
    assert model.predict(X, groups=school).shape == (200, 2)
    assert model.predict(X[:5], groups=school[:5], return_std=True)[1].shape == (5, 2)
    assert model.predict_quantiles(X[:5], [0.1, 0.5, 0.9], groups=school[:5]).shape == (5, 3, 2)
    assert model.sample_y(X[:5], 4, groups=school[:5], random_state=0).shape == (5, 4, 2)
    assert model.pit(X, Y, groups=school).shape == (200, 2)
    u, v = model.transform(X, gaps, groups=school)
    assert (u.shape, v.shape) == ((200, 4 + (name == "network")), (200, 2))
    assert (v[gaps.isna().to_numpy()] == 0.0).all()
    np.testing.assert_allclose(u, model.group_codes_.loc[school], atol=1e-6)
    moved, bounds = model.translate(X, gaps, school, "s3", quantiles=[0.1, 0.5, 0.9])
    assert list(moved.columns) == NAMES
    assert moved.index.equals(gaps.index)
    assert bounds.shape == (200, 3, 2)
    assert (bounds[:, 0] <= bounds[:, 2]).all()
    assert model.score_samples(X, gaps, groups=school).shape == (200,)
    assert np.isfinite(model.score_samples(X, gaps, groups=school)).all()
    assert np.isfinite(model.group_log_likelihood(X, gaps, groups=school)).all()
    assert model.score(X, gaps, groups=school) > 0.3


def test_predictions_given_context_are_those_of_the_normal(partly, pupils, gaps):
    """Mean, sd, density, probability and quantiles of three rows, from others with gaps."""
    X, Y = pupils[0][:15], gaps[:15]
    mean, covariance = given(partly, X, Y, 3)
    new, sd = ["new"] * 15, np.sqrt(covariance.diagonal())
    asked = {"groups": new[:3], "context": (X[3:], Y[3:], new[3:])}
    found, found_sd = partly.predict(X[:3], return_std=True, **asked)
    np.testing.assert_allclose(found, mean.reshape(2, 3).T, rtol=1e-6)
    margins = stats.norm(mean.reshape(2, 3).T, sd.reshape(2, 3).T)
    # 64 quasi-random draws of u.
    np.testing.assert_allclose(found_sd, margins.std(), rtol=0.02)
    complete = pupils[1][:3]
    np.testing.assert_allclose(partly.pit(X[:3], complete, **asked), margins.cdf(complete), atol=0.01)
    np.testing.assert_allclose(
        partly.predict_quantiles(X[:3], [0.25], **asked)[:, 0], margins.ppf(0.25), atol=0.02 * sd.max()
    )
    density = partly.score_samples(X[:3], complete, **asked)
    for row in range(3):
        at = [row, 3 + row]
        normal = stats.multivariate_normal(mean[at], covariance[np.ix_(at, at)])
        assert density[row] == pytest.approx(normal.logpdf(complete.iloc[row]), abs=0.03)
    # A mark that is missing is left out of its row's density.
    of_math = partly.score_samples(X[:3], complete.assign(reading=np.nan), **asked)
    np.testing.assert_allclose(of_math, stats.norm(mean[:3], sd[:3]).logpdf(complete["math"]), atol=0.02)
    pit = partly.pit(X[:3], complete.assign(reading=np.nan), **asked)
    np.testing.assert_array_equal(np.isnan(pit), [[False, True]] * 3)


def test_score_is_the_mean_over_the_outcomes(both, partly, pupils, gaps):
    X, Y, school = pupils
    weights = np.arange(200.0)
    mean = both.predict(X, groups=school)
    assert both.score(X, Y, groups=school, sample_weight=weights) == pytest.approx(
        r2_score(Y, mean, sample_weight=weights)
    )
    known, mean = gaps.notna(), partly.predict(X, groups=school)
    of_each = [r2_score(gaps.loc[known[n], n], mean[known[n], j]) for j, n in enumerate(NAMES)]
    assert partly.score(X, gaps, groups=school) == pytest.approx(np.mean(of_each))


def test_codes_and_translations_of_the_linear_model(both, pupils):
    X, Y, school = pupils
    mean = both.predict(X, groups=school)
    sds = both.variance_components_["sd"].unstack()["Residual"][NAMES].to_numpy()
    _, v = both.transform(X, Y, groups=school)
    np.testing.assert_allclose(v, (Y - mean) / sds, atol=1e-6)
    # A translation adds the difference of the groups' effects.
    moved = both.translate(X, Y, school, "s1")
    np.testing.assert_allclose(moved - Y, both.predict(X, groups=["s1"] * 200) - mean, atol=1e-6)
    np.testing.assert_array_equal(both.translate(X, Y.to_numpy(), school, "s1"), moved)


def test_samples_have_the_covariance_of_the_model(both, pupils):
    """Of two rows of one new group: within a row, across rows and across marks."""
    X = pupils[0][:2]
    mean, covariance = cells_of(both, X)
    draws = both.sample_y(X, 20_000, groups=["new"] * 2, random_state=0).transpose(2, 0, 1).reshape(4, -1)
    sd = np.sqrt(covariance.diagonal())
    # 20,000 draws: five standard errors of a mean, and of a correlation near 0.
    np.testing.assert_allclose((draws.mean(1) - mean) / sd, 0.0, atol=5 / 20_000**0.5)
    np.testing.assert_allclose(
        np.cov(draws) / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=5 * (2 / 20_000) ** 0.5
    )


def test_update_groups_is_context_that_stays(pupils, gaps):
    X, Y, school = pupils
    model = quick().fit(X, Y, groups=school)
    new = np.full(9, "new")
    expected = model.predict(X[:9], groups=new, context=(X[:9], gaps[:9], new))
    assert model.update_groups(X[:9], gaps[:9], groups=new) is model
    np.testing.assert_allclose(model.predict(X[:9], groups=new), expected, rtol=1e-9)
    assert model.group_effects_.loc[("reading", "new"), "n_rows"] == 9
    before = model.group_effects_
    with pytest.raises(ValueError, match="y contains infinite values"):
        model.update_groups(X[:9], Y[:9].assign(reading=np.inf), groups=new)
    assert model.group_effects_ is before


def test_summary_and_html_name_the_outcomes(both):
    text = both.summary()
    for name in NAMES:
        assert f"Intraclass correlation of {name}" in text
        assert f"{name} " in text.partition("Fixed effects")[2]
    assert "20 of 10 to 10 rows" in text
    assert f"{both.mixed_model_log_likelihood_:,.1f} nats" in both._repr_html_()


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_outcomes_without_names_and_their_levels(decoder, pupils):
    X, Y, school = pupils
    X, Y, school = X[:60], Y[:60], school[:60]
    levels = np.digitize(Y, [2.0, 4.0]) * [1.0, 1.5]
    model = quick(family="ordinal", decoder=decoder, random_slopes=None, max_epochs=1, hidden_sizes=(4,))
    model.fit(X, levels, groups=school)
    assert list(model.fixed_effects_.index.unique(0)) == ["y0", "y1"]
    np.testing.assert_array_equal(model.classes_, [[0.0, 1.0, 2.0], [0.0, 1.5, 3.0]])
    np.testing.assert_array_equal(np.unique(model.sample_y(X, 9, random_state=0)[..., 1]), [0.0, 1.5, 3.0])
    assert (model.predict(X, groups=school) <= [2.0, 3.0]).all()
    # Two levels together are no likelier than one of them.
    together = model.score_samples(X, levels, groups=school)
    for kept in ([True, False], [False, True]):
        alone = model.score_samples(X, np.where(kept, levels, np.nan), groups=school)
        assert (together < alone).all()
        assert (alone < 0.0).all()


# --- outcomes that are missing


def test_a_missing_outcome_is_told_by_the_other(both, pupils):
    X, Y, _ = pupils
    known = Y[:1].assign(reading=np.nan)
    low, high = (
        both.predict(X[:1], groups=["new"], context=(X[:1], known.assign(math=mark), ["new"]))[0, 1]
        for mark in (0.0, 6.0)
    )
    assert high > low + 1.0


def test_a_row_of_nothing_known_tells_nothing(pupils, gaps, partly):
    X, _, school = pupils
    kept = np.arange(200) != 7  # of which both marks are missing
    model = quick().fit(X[kept], gaps[kept], groups=school[kept])
    assert model.mixed_model_log_likelihood_ == pytest.approx(partly.mixed_model_log_likelihood_, abs=1e-6)
    np.testing.assert_allclose(
        model.predict(X, groups=school) / [1.0, 10.0],
        partly.predict(X, groups=school) / [1.0, 10.0],
        atol=1e-4,  # the covariates are standardized by other moments, and the search ends near the maximum
    )
    nothing = gaps[:9].assign(**dict.fromkeys(NAMES, np.nan))
    new = ["new"] * 9
    np.testing.assert_allclose(
        partly.predict(X[:9], groups=new, context=(X[:9], nothing, new)), partly.predict(X[:9]), rtol=1e-9
    )


def test_weights_count_rows_whose_outcomes_are_missing_too(pupils, gaps):
    X, _, school = pupils
    weights = np.arange(200) % 3
    again = np.repeat(np.arange(200), weights)
    weighted = quick().fit(X, gaps, groups=school, sample_weight=weights)
    repeated = quick().fit(X.iloc[again], gaps.iloc[again], groups=school[again])
    assert weighted.mixed_model_log_likelihood_ == pytest.approx(
        repeated.mixed_model_log_likelihood_, abs=1e-5
    )
    np.testing.assert_allclose(
        weighted.predict(X, groups=school) / [1.0, 10.0],
        repeated.predict(X, groups=school) / [1.0, 10.0],
        atol=1e-3,  # by other moments of the covariates, as above
    )


# --- scikit-learn and files


def test_one_column_is_one_outcome(pupils, apart):
    X, Y, school = pupils
    with pytest.warns(DataConversionWarning):
        model = quick().fit(X, Y[["math"]], groups=school)
    assert model.fixed_effects_.index.nlevels == 1
    np.testing.assert_array_equal(model.predict(X, groups=school), apart[0].predict(X, groups=school))


def test_fits_of_one_and_of_several_outcomes_leave_nothing_behind(pupils):
    X, Y, school = pupils
    model = quick().fit(X, Y["math"], groups=school)
    single = set(vars(model))
    model.fit(X, Y, groups=school)
    assert model.predict(X).shape == (200, 2)
    assert set(vars(model.fit(X, Y["math"], groups=school))) == single
    assert model.predict(X).shape == (200,)


@pytest.mark.parametrize("name", ["partly", "network"])
@pytest.mark.parametrize("door", ["pickle", "file"])
def test_pickle_save_and_load(name, door, pupils, gaps, request, tmp_path):
    model, (X, _, school) = request.getfixturevalue(name), pupils
    if door == "pickle":
        again = pickle.loads(pickle.dumps(model))
    else:
        model.save(tmp_path / "model.safetensors")
        again = CxVAERegressor.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.predict(X, groups=school), model.predict(X, groups=school))
    np.testing.assert_array_equal(
        again.score_samples(X, gaps, groups=school), model.score_samples(X, gaps, groups=school)
    )
    for table in TABLES:
        pd.testing.assert_frame_equal(getattr(again, table), getattr(model, table))
    assert again.summary() == model.summary()
    assert set(vars(again)) == set(vars(model))


def test_names_that_are_numbers_are_kept_as_text(pupils, tmp_path):
    X, Y, school = pupils
    model = quick().fit(X, Y.set_axis([3, 5], axis=1), groups=school)
    assert list(model.fixed_effects_.index.unique(0)) == ["3", "5"]
    assert not hasattr(clone(model), "fixed_effects_")
    np.testing.assert_array_equal(
        model.score_samples(X, Y.set_axis([3, 5], axis=1)[[5, 3]]), model.score_samples(X, Y.to_numpy())
    )


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


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_what_goes_on_goes_on_with_every_outcome(method, network, pupils, gaps):
    X, _, school = pupils
    model = pickle.loads(pickle.dumps(network)).set_params(warm_start=True)
    getattr(model, method)(X, gaps, groups=school)
    before, after = network.predict(X, groups=school), model.predict(X, groups=school)
    assert after.shape == (200, 2)
    assert (np.abs(after - before).max(axis=0) > 1e-3).all()
    assert model.n_iter_ == (2 if method == "fit" else 3)


def test_partial_fit_of_the_linear_model_adds_rows_with_gaps(pupils, gaps):
    X, Y, school = pupils
    model, updated = (quick().fit(X[:150], Y[:150], groups=school[:150]) for _ in range(2))
    model.partial_fit(X[150:], gaps[150:], groups=school[150:])
    updated.update_groups(X[150:], gaps[150:], groups=school[150:])
    pd.testing.assert_frame_equal(model.group_effects_, updated.group_effects_)


def test_codes_are_named(pupils):
    X, Y, school = pupils
    model = quick().set_output(transform="pandas").fit(X, Y, groups=school)
    u, v = model.transform(X, Y, groups=school)
    assert list(v.columns) == ["v0", "v1"]
    assert [*u.columns, *v.columns] == list(model.get_feature_names_out())
    stacked = model.set_params(stack_codes=True).transform(X, Y, groups=school)
    np.testing.assert_array_equal(stacked.to_numpy(), np.hstack([u, v]))


# --- warnings and errors


def test_one_warning_of_missing_groups_that_points_here(pupils):
    X, Y, _ = pupils
    with pytest.warns(UserWarning, match="fitted without groups") as caught:
        quick(random_slopes=None).fit(X[:30], Y[:30])
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda Y: Y.assign(math=1.0), "outcome 'math' of y is constant"),
        (lambda Y: Y.assign(math=np.nan), "outcome 'math': y is missing in every row"),
        (lambda Y: Y.assign(math=np.inf), "y contains infinite values"),
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
    with pytest.raises(ValueError, match="neither the fit nor the context has"):
        both.predict(X[:1], groups=["nowhere"], strict_groups=True)
    with pytest.raises(ValueError, match="y must be one number a row"):
        apart[0].score_samples(X, Y, groups=school)


def test_a_display_asks_for_one_outcome(both):
    with pytest.raises(ValueError, match=r"column is missing; choose one of \['math', 'reading'\]"):
        GroupEffectsDisplay.from_estimator(both)
    assert GroupEffectsDisplay.from_estimator(both, column="math") is not None
