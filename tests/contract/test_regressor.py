"""CxVAERegressor: predictions, groups, context, translation, and bad input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold

from skgroupvae import CxVAERegressor
from skgroupvae.regression import prediction


def quick(**kwargs):
    return CxVAERegressor(
        **{"max_epochs": 2, "hidden_sizes": (8,), "random_state": 0, "verbose": False} | kwargs
    )


@pytest.fixture(scope="module")
def schools():
    """600 pupils of 30 schools with a random intercept and slope, a category, and a label."""
    rng = np.random.default_rng(0)
    school = np.repeat([f"s{i}" for i in range(30)], 20)
    x, sex = rng.normal(3.0, 2.0, 600), rng.choice(["F", "M"], 600)
    level, slope = rng.normal(size=30).repeat(20), 0.3 * rng.normal(size=30).repeat(20)
    y = 10.0 + 2.0 * x + 1.5 * (sex == "M") + level + slope * (x - 3.0) + 0.5 * rng.normal(size=600)
    return pd.DataFrame({"x": x, "sex": sex, "school": school, "y": y}).sample(frac=1.0, random_state=1)


@pytest.fixture(scope="module")
def linear(schools):
    return quick(decoder="linear", random_slopes=["x"]).fit(
        schools[["x", "sex"]], schools["y"], groups=schools["school"]
    )


@pytest.fixture(scope="module")
def fitted(schools):
    return quick().fit(schools[["x", "sex"]], schools["y"], groups=schools["school"])


@pytest.fixture(scope="module")
def table(schools):
    return schools[["x", "sex"]], schools["y"].to_numpy(), schools["school"]


# --- the linear mixed model


def test_linear_decoder_is_the_mixed_model_of_statsmodels(linear, schools):
    smf = pytest.importorskip("statsmodels.formula.api")
    theirs = smf.mixedlm("y ~ x + sex", schools, groups="school", re_formula="1 + x").fit(reml=False)
    order = ["Intercept", "x", "sex[T.M]"]
    np.testing.assert_allclose(
        linear.fixed_effects_["estimate"], theirs.fe_params[order], atol=0.05 * theirs.bse_fe.min()
    )
    np.testing.assert_allclose(linear.fixed_effects_["std_error"], theirs.bse_fe[order], rtol=0.05)
    sds = np.sqrt([*np.diag(theirs.cov_re), theirs.scale])
    np.testing.assert_allclose(linear.variance_components_["sd"], sds, rtol=0.05)
    assert linear.mixed_model_log_likelihood_ == pytest.approx(theirs.llf, abs=0.01)
    blups = pd.DataFrame(theirs.random_effects).T.loc[linear.group_effects_.index]
    at_mean = blups.iloc[:, 0] + blups["x"] * schools["x"].mean()
    assert np.corrcoef(linear.group_effects_["Intercept"], at_mean)[0, 1] > 0.999
    assert np.corrcoef(linear.group_effects_["x"], blups["x"])[0, 1] > 0.999


def test_marginal_effects_of_the_linear_model_are_its_coefficients(linear):
    columns = ["x", "sex[M]"]
    np.testing.assert_allclose(
        linear.marginal_effects_.loc[columns], linear.fixed_effects_.loc[columns], rtol=1e-6, atol=0.02
    )  # the mean of the random slopes of these 30 groups is not exactly 0


def test_marginal_effects_are_on_the_scale_of_the_outcome(table):
    X, _, groups = table
    outcome = (X["x"] + np.random.default_rng(0).logistic(size=len(X)) > 3.0).astype(float)
    model = quick(family="bernoulli", decoder="linear", random_slopes=None).fit(X, outcome, groups=groups)
    moved = [model.predict(X.assign(x=X["x"] + step), groups=groups).mean() for step in (-0.2, 0.2)]
    # 2,000 rows would be used, so all of them; 16 draws of u against 64.
    assert model.marginal_effects_.loc["x", "estimate"] == pytest.approx(np.diff(moved)[0] / 0.4, rel=0.02)


def test_pit_is_that_of_the_normal_posterior(linear, table):
    X, y, groups = table
    mean, std = linear.predict(X, groups=groups, return_std=True)
    np.testing.assert_allclose(linear.pit(X, y, groups=groups), stats.norm.cdf(y, mean, std), atol=0.01)


def test_linear_predictions_are_those_of_the_normal_posterior(linear, table):
    """Mean, sd, density and quantiles of known groups in closed form."""
    X, y, groups = table
    mean, std = linear.predict(X, groups=groups, return_std=True)
    normal = stats.norm(mean, std)
    np.testing.assert_allclose(
        linear.score_samples(X, y, groups=groups), normal.logpdf(y), atol=0.02
    )  # 64 quasi-random draws
    np.testing.assert_allclose(
        linear.predict_quantiles(X, [0.05, 0.5], groups=groups),
        np.column_stack([normal.ppf(0.05), mean]),
        atol=0.02,
    )


def test_new_groups_have_the_prior(linear, table):
    X, _, groups = table
    fixed = linear.fixed_effects_["estimate"]
    expected = fixed["Intercept"] + fixed["x"] * X["x"] + fixed["sex[M]"] * (X["sex"] == "M")
    for labels in (None, ["new"] * len(X)):
        mean, std = linear.predict(X, groups=labels, return_std=True)
        np.testing.assert_allclose(mean, expected, atol=0.05)
        assert (std > linear.predict(X, groups=groups, return_std=True)[1]).all()


# --- weights


def test_a_row_of_weight_two_is_two_rows(table):
    X, y, groups = table
    weights = np.random.default_rng(0).integers(0, 3, len(X))
    again = np.repeat(np.arange(len(X)), weights)
    weighted = quick(decoder="linear").fit(X, y, groups=groups, sample_weight=weights)
    repeated = quick(decoder="linear").fit(X.iloc[again], y[again], groups=groups.iloc[again])
    # The columns are standardised by other moments, which changes no estimate; the optimiser stops near it.
    for name in ("fixed_effects_", "variance_components_"):
        left, right = getattr(weighted, name), getattr(repeated, name)
        np.testing.assert_allclose(left, right.loc[left.index], rtol=1e-3, atol=1e-3)
    assert weighted.mixed_model_log_likelihood_ == pytest.approx(repeated.mixed_model_log_likelihood_)
    np.testing.assert_allclose(
        weighted.predict(X, groups=groups), repeated.predict(X, groups=groups), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_a_row_of_weight_zero_is_no_row(decoder, table):
    X, y, groups = table
    kept = groups != "s3"
    without = quick(decoder=decoder).fit(X[kept], y[kept], groups=groups[kept])
    zero = quick(decoder=decoder).fit(X, y, groups=groups, sample_weight=kept.to_numpy(float))
    np.testing.assert_array_equal(zero.predict(X, groups=groups), without.predict(X, groups=groups))


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0, -1.0], "Negative values"), ([0.0, 0.0], "zero"), ([np.nan, 1.0], "NaN")],
)
def test_weights_that_cannot_be_used(weights, message, table):
    X, y, groups = table
    with pytest.raises(ValueError, match=message):
        quick().fit(X[:2], y[:2], groups=groups[:2], sample_weight=weights)


# --- groups and context


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_context_equals_knowing_the_group_from_the_fit(decoder, table, schools):
    X, y, groups = table
    model = quick(decoder=decoder).fit(X, y, groups=groups)
    some = (groups == "s3").to_numpy()
    known = model.predict(X[some], groups=groups[some])
    inferred = model.predict(
        X[some], groups=["new"] * some.sum(), context=(X[some], y[some], ["new"] * some.sum())
    )
    np.testing.assert_allclose(inferred, known, rtol=1e-6)


def test_context_adds_to_what_is_known(fitted, table):
    X, y, groups = table
    some = (groups == "s3").to_numpy()
    _, before = fitted.predict(X[some], groups=groups[some], return_std=True)
    _, after = fitted.predict(
        X[some], groups=groups[some], context=(X[some], y[some], groups[some]), return_std=True
    )
    assert after.mean() < before.mean()


@pytest.mark.parametrize("groups", [["s1", "s2"], None])
def test_context_of_other_groups_is_ignored_with_a_warning(groups, fitted, table):
    X, y, _ = table
    context = (X[:2], y[:2], ["elsewhere"] * 2)
    with pytest.warns(UserWarning, match=r"context has groups \['elsewhere'\].*ignored"):
        mean = fitted.predict(X[:2], groups=groups, context=context)
    np.testing.assert_array_equal(mean, fitted.predict(X[:2], groups=groups))


@pytest.mark.filterwarnings("error::UserWarning")
def test_context_of_groups_that_are_asked_about_does_not_warn(fitted, table):
    X, y, _ = table
    for labels in ([("a", 1), ("b", 2)], [1, "one"]):
        fitted.predict(X[:2], groups=labels, context=(X[:2], y[:2], labels))


def test_few_groups_keep_the_mixed_model_where_the_network_does_not_pay(schools, monkeypatch):
    """A world that is linear, and 12 schools of it."""
    monkeypatch.setattr("skgroupvae.regression_fit._FEW_GROUPS", 40)
    few = schools[schools["school"].isin([f"s{i}" for i in range(12)])]
    X, y, groups = few[["x"]], few["y"], few["school"]
    model = CxVAERegressor(max_epochs=20, random_state=0).fit(X, y, groups=groups)
    assert model.is_mixed_model_
    linear = CxVAERegressor(decoder="linear", random_state=0).fit(X, y, groups=groups)
    np.testing.assert_allclose(model.predict(X, groups=groups), linear.predict(X, groups=groups), rtol=1e-6)


def test_few_groups_keep_a_network_that_pays(monkeypatch):
    """Curves of 30 groups that no straight line is near: the gain is 0.5 nats a row and more."""
    monkeypatch.setattr("skgroupvae.regression_fit._FEW_GROUPS", 40)
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 30)
    x = rng.uniform(-2.0, 2.0, (900, 1))
    y = np.sin(2.0 * x[:, 0]) * (2.0 + rng.normal(size=30)[groups]) + 0.3 * rng.normal(size=900)
    model = CxVAERegressor(max_epochs=20, random_state=0).fit(x, y, groups=groups)
    assert not model.is_mixed_model_


def test_update_groups_equals_all_rows_at_once(table):
    X, y, groups = table
    model = quick().fit(X, y, groups=groups)
    rows = np.arange(40)
    labels = np.repeat(["a", "b"], 20)
    once = model.predict(X.iloc[rows], groups=labels, context=(X.iloc[rows], y[rows], labels))
    model.update_groups(X.iloc[rows[::2]], y[rows[::2]], groups=labels[::2])
    model.update_groups(X.iloc[rows[1::2]], y[rows[1::2]], groups=labels[1::2])
    np.testing.assert_allclose(model.predict(X.iloc[rows], groups=labels), once, atol=1e-5)
    assert model.group_effects_.loc["a", "n_rows"] == 20


def test_strict_groups_refuses_unknown_labels(fitted, table):
    X, _, _ = table
    with pytest.raises(ValueError, match=r"groups has the label 'nowhere'.*strict_groups=False"):
        fitted.predict(X[:2], groups=["s1", "nowhere"], strict_groups=True)


def test_rows_come_back_in_the_order_they_came(fitted, table):
    X, _, groups = table
    order = np.random.default_rng(0).permutation(len(X))
    np.testing.assert_allclose(
        fitted.predict(X.iloc[order], groups=groups.iloc[order]), fitted.predict(X, groups=groups)[order]
    )


def test_group_column_equals_groups(fitted, schools):
    model = quick(group_column="school").fit(schools[["x", "sex", "school"]], schools["y"])
    np.testing.assert_array_equal(
        model.predict(schools[["x", "sex", "school"]]),
        fitted.predict(schools[["x", "sex"]], groups=schools["school"]),
    )


def test_units_of_columns_and_outcome_do_not_change_the_fit(schools):
    numbers = schools[["x"]]
    model = quick().fit(numbers, schools["y"], groups=schools["school"])
    other = quick().fit(numbers * 100.0 - 5.0, schools["y"] * 8.0 + 3.0, groups=schools["school"])
    np.testing.assert_allclose(
        other.predict(numbers * 100.0 - 5.0, groups=schools["school"]),
        model.predict(numbers, groups=schools["school"]) * 8.0 + 3.0,
        rtol=1e-3,
    )


# --- distribution


@pytest.mark.parametrize(
    "family", ["gaussian", "student_t", "bernoulli", "poisson", "negative_binomial", "ordinal"]
)
def test_every_family_predicts_a_distribution(family, table):
    X, y, groups = table
    outcome = {
        "gaussian": y,
        "student_t": y,
        "negative_binomial": np.floor(np.exp(1.0 + 0.15 * (y - y.mean()))),
        "bernoulli": (y > np.median(y)).astype(float),
        "poisson": np.floor(np.exp(1.0 + 0.15 * (y - y.mean()))),
        "ordinal": np.digitize(y, np.quantile(y, [0.2, 0.5, 0.9])) * 2.0,
    }[family]
    model = quick(family=family).fit(X, outcome, groups=groups)
    _, std = model.predict(X, groups=groups, return_std=True)
    quantiles = model.predict_quantiles(X, [0.1, 0.5, 0.9], groups=groups)
    assert (std > 0).all()
    assert (np.diff(quantiles) >= 0).all()
    assert model.score(X, outcome, groups=groups) > 0.2
    # Rows of the fit: about 0.8 of them between; discrete outcomes reach the bounds more often.
    inside = ((outcome >= quantiles[:, 0]) & (outcome <= quantiles[:, 2])).mean()
    assert inside > 0.75
    density = model.score_samples(X, outcome, groups=groups)
    assert density.shape == (len(X),)
    assert np.isfinite(density).all()
    if family not in ("gaussian", "student_t"):
        assert (density <= 0).all()
    # Outcomes drawn from the prediction: 600 uniform values, whose mean has an sd of 0.012 and, as rows of a
    # group share a draw of u, somewhat more.
    simulated = model.sample_y(X, groups=groups, random_state=0)[:, 0]
    pit = model.pit(X, simulated, groups=groups)
    assert abs(pit.mean() - 0.5) < 0.06
    assert abs(pit.var() - 1.0 / 12.0) < 0.02


def test_network_learns_spread_that_depends_on_a_covariate():
    """Heteroscedastic rows: the mixed model cannot see it; the true gain is 0.13 nats a row."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(60), 25)
    x = rng.uniform(-1, 1, (1500, 1))
    spread = np.exp(1.0 * x[:, 0])
    y = x[:, 0] + rng.normal(size=60)[groups] + spread * rng.normal(size=1500)
    train = groups < 40
    scores = [
        CxVAERegressor(decoder=decoder, random_state=0)
        .fit(x[train], y[train], groups=groups[train])
        .score_samples(x[~train], y[~train])
        .mean()
        for decoder in ("linear", "mlp")
    ]
    # On seeds 0 to 4 of the data the gain was 0.08 to 0.14.
    assert scores[1] > scores[0] + 0.05


# --- translation


def test_translation_to_the_own_group_changes_nothing(fitted, table):
    X, y, groups = table
    np.testing.assert_allclose(
        fitted.translate(X, y, source_group=groups, target_group=groups), y, rtol=1e-4, atol=1e-4
    )


def test_translation_keeps_the_order_of_rows_with_the_same_covariates(fitted, table):
    X, y, _ = table
    same = pd.concat([X.iloc[[0]]] * 30)
    outcomes = np.linspace(y.min(), y.max(), 30)
    moved = fitted.translate(same, outcomes, source_group="s1", target_group="s2")
    assert (np.diff(moved) > 0).all()


def test_translation_of_a_linear_model_adds_the_difference_of_effects(linear, table):
    X, y, groups = table
    some = (groups == "s1").to_numpy()
    moved, interval = linear.translate(
        X[some], y[some], source_group="s1", target_group="s2", quantiles=[0.05, 0.95]
    )
    both = [linear.predict(X[some], groups=[label] * some.sum()) for label in ("s2", "s1")]
    np.testing.assert_allclose(moved - y[some], both[0] - both[1], atol=0.02)
    assert (interval[:, 0] < moved).all()
    assert (moved < interval[:, 1]).all()


def test_unknown_target_is_refused(fitted, table):
    X, y, _ = table
    with pytest.raises(ValueError, match=r"target_group 'nowhere' does not occur in the fit.*context"):
        fitted.translate(X[:3], y[:3], source_group="s1", target_group="nowhere")


def test_transform_gives_u_by_group_and_v_standard_normal(fitted, table):
    X, y, groups = table
    u, v = fitted.transform(X, y, groups=groups)
    np.testing.assert_allclose(u, fitted.group_codes_.loc[groups], atol=1e-6)
    assert v.shape == (600, 1)
    assert abs(v.mean()) < 0.1
    assert 0.7 < v.std() < 1.3
    with pytest.raises(ValueError, match="y is missing"):
        fitted.transform(X)


@pytest.mark.parametrize("labels", [None, "known", "new"])
def test_samples_have_the_predicted_moments(labels, linear, table):
    X, _, groups = table
    of = {None: None, "known": groups, "new": np.array([f"new {g}" for g in groups])}[labels]
    mean, std = linear.predict(X, groups=of, return_std=True)
    draws = linear.sample_y(X, 4000, groups=of, random_state=0)
    # 4,000 draws: five standard errors.
    np.testing.assert_allclose(draws.mean(1), mean, atol=5 * std.max() / 4000**0.5 + 0.02)
    np.testing.assert_allclose(draws.std(1), std, rtol=0.1)


def test_summary_names_what_was_fitted(linear):
    text = linear.summary()
    for word in ("gaussian", "600", "30 of 20 to 20 rows", "sex[M]", "Residual"):
        assert word in text


# --- scikit-learn


def test_grid_search_with_group_column(schools):
    search = GridSearchCV(quick(group_column="school"), {"decoder": ["linear", "mlp"]}, cv=GroupKFold(3))
    search.fit(schools[["x", "sex", "school"]], schools["y"], groups=schools["school"])
    assert search.best_score_ > 0.5


def test_same_seed_same_fit_and_clone(fitted, table):
    X, y, groups = table
    again = clone(fitted).fit(X, y, groups=groups)
    np.testing.assert_array_equal(again.predict(X, groups=groups), fitted.predict(X, groups=groups))


def test_save_and_load(fitted, table, tmp_path):
    X, _, groups = table
    fitted.save(tmp_path / "model.safetensors")
    loaded = CxVAERegressor.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.predict(X, groups=groups), fitted.predict(X, groups=groups))
    pd.testing.assert_frame_equal(loaded.group_effects_, fitted.group_effects_)


def test_gradients_reach_every_parameter(table):
    X, y, groups = table
    model = quick(max_epochs=1).fit(X, y, groups=groups)
    fresh = model._empty_network(torch.Generator().manual_seed(0)).state_dict()
    unchanged = [
        name for name, value in model.network_.state_dict().items()
        if value.dtype.is_floating_point and "nodes" not in name and "weights" not in name
        and torch.equal(value.float(), fresh[name])
    ]  # fmt: skip
    assert not unchanged


# --- bad input


@pytest.mark.parametrize(
    ("changes", "outcome", "message"),
    [
        ({}, [np.nan] + [1.0] * 599, "y contains NaN.*row 0"),
        ({}, np.ones(600), "y is constant"),
        ({}, np.ones(3), "y has 3 outcomes but X has 600"),
        ({"family": "poisson"}, np.r_[-1.0, np.ones(599)], "y must be counts"),
        ({"family": "bernoulli"}, np.r_[2.0, np.ones(599)], "y must be 0 or 1"),
        ({"family": "ordinal"}, np.r_[2.0, np.ones(599)], "y has 2 grades"),
        ({"random_slopes": ["height"]}, np.arange(600.0), "random_slopes names 'height'"),
    ],
)
def test_bad_outcomes_are_refused_and_leave_the_estimator(changes, outcome, message, table):
    X, _, groups = table
    model = quick(**changes)
    with pytest.raises(ValueError, match=message):
        model.fit(X, outcome, groups=groups)
    assert not hasattr(model, "network_")


def test_unseen_category_is_treated_as_missing_with_a_warning(fitted, table):
    X, _, _ = table
    with pytest.warns(UserWarning, match=r"column 'sex'.*\['D'\].*not seen"):
        other = fitted.predict(X[:1].assign(sex="D"))
    low, high = sorted(fitted.predict(X[:1].assign(sex=sex))[0] for sex in "FM")
    assert low < other[0] < high


def test_a_new_group_is_that_of_a_random_row():
    rng = np.random.default_rng(0)
    sizes = rng.choice([2, 30], 300)
    level = np.where(sizes == 30, 0.6, -0.6) + 0.8 * rng.normal(size=300)  # variance 1 over the groups
    groups = np.repeat(np.arange(300), sizes)
    x = rng.normal(size=(len(groups), 1))
    y = level[groups] + 0.5 * rng.normal(size=len(groups))
    model = CxVAERegressor(random_slopes=None, max_epochs=2, random_state=0).fit(x, y, groups=groups)
    # Of the rows 15 in 16 are of large groups: their mean is 0.525 above that of the groups. The levels' own
    # variation moves a mean over 150 groups by 0.065, and shrinkage takes 2 % off.
    expected = level[groups].mean() - level.mean()
    assert abs(model.predict(x[:1])[0] - level.mean() - expected) < 0.1
    mixed = CxVAERegressor(decoder="linear", random_slopes=None, random_state=0).fit(x, y, groups=groups)
    assert not mixed.new_group_codes_.any()


def test_equal_groups_have_no_size_to_tell_of():
    loc, sizes = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.full((50,), 7.0)
    assert not prediction.mean_by_rows(loc, sizes).any()


def test_counts_of_new_groups_stay_near_those_of_the_mixed_model():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 4)
    x = rng.normal(size=(240, 1))
    y = rng.poisson(np.exp(1.0 + 0.5 * x[:, 0] + 1.2 * rng.normal(size=60)[groups]))
    linear = CxVAERegressor("poisson", decoder="linear", random_slopes=None, random_state=0)
    expected = linear.fit(x, y, groups=groups).predict(x)
    model = CxVAERegressor("poisson", random_slopes=None, random_state=0).fit(x, y, groups=groups)
    # The networks move the logarithm of a mean by 1 at most; coefficients move besides.
    assert (model.predict(x) < 5.0 * expected).all()


@pytest.mark.parametrize("family", ["bernoulli", "poisson"])
def test_outcomes_that_a_family_cannot_have_are_refused_after_the_fit_too(family):
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(60, 1)), np.repeat(np.arange(6), 10)
    model = CxVAERegressor(family, decoder="linear", random_slopes=None, max_epochs=1, random_state=0)
    model.fit(x, rng.integers(0, 2, 60), groups=groups)
    for method in (model.score_samples, model.update_groups, model.pit):
        with pytest.raises(ValueError, match=family):
            method(x, np.full(60, -0.5), groups=groups)


def test_rows_without_groups_are_no_rows_of_the_groups_of_the_fit():
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(60, 1)), np.repeat(np.arange(6), 10)
    y = rng.normal(size=60)
    model = CxVAERegressor(decoder="linear", random_slopes=None, random_state=0).fit(x, y, groups=groups)
    with pytest.raises(ValueError, match="groups is missing"):
        model.update_groups(x[:3], y[:3])
    with pytest.raises(ValueError, match="groups is missing"):
        model.predict(x, groups=groups, context=(x[:3], y[:3], None))


def test_covariance_of_random_effects_is_that_of_statsmodels():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 15)
    x = rng.normal(2.0, 3.0, size=600)
    effects = rng.multivariate_normal([0.0, 0.0], [[1.0, 0.3], [0.3, 0.25]], 40)[groups]
    y = 1.0 + 2.0 * x + effects[:, 0] + effects[:, 1] * x + rng.normal(size=600)
    table = pd.DataFrame({"x": x, "y": y})
    theirs = smf.mixedlm("y ~ x", table, groups=groups, re_formula="1 + x").fit(reml=False)
    model = CxVAERegressor(decoder="linear", random_slopes=["x"], random_state=0)
    model.fit(table[["x"]], y, groups=groups)
    np.testing.assert_allclose(model.random_effects_covariance_, theirs.cov_re, rtol=1e-2)


def test_predicted_means_of_the_linear_mixed_model_are_exact():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 10)
    x, y = rng.normal(size=(100, 1)), rng.normal(size=100) + 0.5 * rng.normal(size=10).repeat(10)
    model = CxVAERegressor(decoder="linear", random_slopes=None, random_state=0).fit(x, y, groups=groups)
    intercept, slope = model.fixed_effects_["estimate"]
    # But for parameters that are kept in single precision.
    np.testing.assert_allclose(model.predict(x), intercept + slope * x[:, 0], rtol=1e-6)
