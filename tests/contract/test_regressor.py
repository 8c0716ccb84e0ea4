"""CxVAERegressor: predictions, groups, context, translation, the choice of a model, files, and bad input."""

from __future__ import annotations

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from skgroupvae import CxVAERegressor
from skgroupvae.data.outcome_reader import OutcomeReader
from skgroupvae.model import prediction
from skgroupvae.model.families import GaussianFamily
from skgroupvae.model.posteriors import FullNormal


def quick(**kwargs):
    """Unfitted, with a network that is trained for a fraction of a second."""
    short = {"decoder": "mlp", "max_epochs": 2, "hidden_sizes": (8,), "random_state": 0, "verbose": False}
    return CxVAERegressor(**short | kwargs)


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
def table(schools):
    return schools[["x", "sex"]], schools["y"].to_numpy(), schools["school"]


@pytest.fixture(scope="module")
def linear(table):
    """Linear mixed model; tests must not change it."""
    X, y, groups = table
    return quick(decoder="linear", random_slopes=["x"]).fit(X, y, groups=groups)


@pytest.fixture(scope="module")
def fitted(table):
    """Network; tests must not change it."""
    X, y, groups = table
    return quick().fit(X, y, groups=groups)


def attributes(model):
    return dict(vars(model))


def is_unchanged(model, before):
    after = vars(model)
    return after.keys() == before.keys() and all(after[name] is value for name, value in before.items())


# --- the linear mixed model


def test_linear_decoder_is_the_mixed_model_of_statsmodels(linear, schools):
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
    assert linear.is_mixed_model_
    assert linear.history_.empty


def test_covariance_of_random_effects_is_that_of_statsmodels():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 15)
    x = rng.normal(2.0, 3.0, size=600)
    effects = rng.multivariate_normal([0.0, 0.0], [[1.0, 0.3], [0.3, 0.25]], 40)[groups]
    y = 1.0 + 2.0 * x + effects[:, 0] + effects[:, 1] * x + rng.normal(size=600)
    table = pd.DataFrame({"x": x, "y": y})
    theirs = smf.mixedlm("y ~ x", table, groups=groups, re_formula="1 + x").fit(reml=False)
    model = quick(decoder="linear", random_slopes=["x"]).fit(table[["x"]], y, groups=groups)
    np.testing.assert_allclose(model.random_effects_covariance_, theirs.cov_re, rtol=1e-2)


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


def test_linear_predictions_are_those_of_the_normal_posterior(linear, table):
    """Mean, sd, density, probability and quantiles of known groups in closed form."""
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
    np.testing.assert_allclose(linear.pit(X, y, groups=groups), normal.cdf(y), atol=0.01)


def test_predicted_means_of_the_linear_mixed_model_are_exact():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 10)
    x, y = rng.normal(size=(100, 1)), rng.normal(size=100) + 0.5 * rng.normal(size=10).repeat(10)
    model = quick(decoder="linear", random_slopes=None).fit(x, y, groups=groups)
    intercept, slope = model.fixed_effects_["estimate"]
    np.testing.assert_allclose(model.predict(x), intercept + slope * x[:, 0], rtol=1e-9)


def test_new_groups_have_the_prior(linear, table):
    X, _, groups = table
    fixed = linear.fixed_effects_["estimate"]
    expected = fixed["Intercept"] + fixed["x"] * X["x"] + fixed["sex[M]"] * (X["sex"] == "M")
    for labels in (None, ["new"] * len(X)):
        mean, std = linear.predict(X, groups=labels, return_std=True)
        np.testing.assert_allclose(mean, expected, atol=0.05)
        assert (std > linear.predict(X, groups=groups, return_std=True)[1]).all()


# --- the likelihood of groups


def test_group_log_likelihood_is_the_mixed_models(linear, table):
    X, y, groups = table
    of_groups = linear.group_log_likelihood(X, y, groups=groups, context="prior")
    assert list(of_groups.index) == list(groups.unique())
    assert of_groups.sum() == pytest.approx(linear.mixed_model_log_likelihood_, rel=1e-9)
    # The chain rule: one row after the other.
    both = linear.group_log_likelihood(X[:2], y[:2], groups=["new"] * 2, context="prior")
    first = linear.group_log_likelihood(X[:1], y[:1], groups=["new"], context="prior")
    second = linear.group_log_likelihood(X[1:2], y[1:2], groups=["new"], context=(X[:1], y[:1], ["new"]))
    assert both.iloc[0] == pytest.approx(first.iloc[0] + second.iloc[0], abs=1e-8)


@pytest.mark.parametrize("name", ["linear", "fitted"])
def test_what_the_fit_knows_is_context_of_group_log_likelihood(name, table, request):
    model, (X, y, groups) = request.getfixturevalue(name), table
    stored = model.group_log_likelihood(X, y, groups=groups)
    new = [f"new {label}" for label in groups]
    told = model.group_log_likelihood(X, y, groups=new, context=(X, y, new))
    np.testing.assert_allclose(stored, told, rtol=1e-6)
    # What is known already takes nothing of the likelihood away.
    assert stored.sum() > model.group_log_likelihood(X, y, groups=groups, context="prior").sum()
    with pytest.raises(ValueError, match="context='nothing' must be a triple"):
        model.group_log_likelihood(X, y, groups=groups, context="nothing")


def test_a_group_far_from_its_posterior_is_integrated_all_the_same(fitted, table):
    """A proposal that misses the mode made held-out groups of a network look impossible."""
    X, y, groups = table
    batch = OutcomeReader.learn(
        X, y, groups, None, kind="numeric", family="gaussian", formula=None, random_slopes="auto",
        group_column=None, owner="a test",
    )[1].batch  # fmt: skip
    q_u = fitted.model_.infer(batch)
    exact = prediction.group_log_likelihoods(fitted.model_, batch, q_u, 2048)
    far = FullNormal(q_u.loc + 4.0, 0.1 * q_u.root, q_u.log_det + q_u.loc.shape[1] * np.log(0.1))
    np.testing.assert_allclose(
        prediction.group_log_likelihoods(fitted.model_, batch, far), exact, rtol=0.0, atol=0.05
    )


# --- weights


def test_a_row_of_weight_two_is_two_rows(table):
    X, y, groups = table
    weights = np.random.default_rng(0).integers(0, 3, len(X))
    again = np.repeat(np.arange(len(X)), weights)
    weighted = quick(decoder="linear").fit(X, y, groups=groups, sample_weight=weights)
    repeated = quick(decoder="linear").fit(X.iloc[again], y[again], groups=groups.iloc[again])
    # The columns are standardized by other moments, which changes no estimate; the optimizer stops near it.
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


@pytest.mark.parametrize("name", ["linear", "fitted"])
def test_context_equals_knowing_the_group_from_the_fit(name, table, request):
    model, (X, y, groups) = request.getfixturevalue(name), table
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


def test_labels_of_another_type_are_told(table):
    X, y, _ = table
    model = quick(decoder="linear").fit(X, y, groups=np.arange(len(X)) % 10)
    with pytest.warns(UserWarning, match="the type differs"):
        model.predict(X[:2], groups=["3", "4"])


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
    with pytest.raises(ValueError, match="strict_groups=True needs a label for each row"):
        fitted.predict(X[:2], strict_groups=True)


def test_rows_come_back_in_the_order_they_came(fitted, table):
    X, _, groups = table
    order = np.random.default_rng(0).permutation(len(X))
    np.testing.assert_allclose(
        fitted.predict(X.iloc[order], groups=groups.iloc[order]), fitted.predict(X, groups=groups)[order]
    )


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_the_order_of_rows_does_not_change_a_fit(decoder, schools):
    shuffled = schools.sample(frac=1.0, random_state=3)
    one, other = (
        quick(decoder=decoder).fit(t[["x", "sex"]], t["y"], groups=t["school"]) for t in (schools, shuffled)
    )
    X, groups = schools[["x", "sex"]], schools["school"]
    np.testing.assert_allclose(one.predict(X, groups=groups), other.predict(X, groups=groups), rtol=1e-7)


def test_group_column_equals_groups(fitted, schools):
    X, columns = schools[["x", "sex"]], ["x", "sex", "school"]
    model = quick(group_column="school").fit(schools[columns], schools["y"])
    np.testing.assert_array_equal(
        model.predict(schools[columns]), fitted.predict(X, groups=schools["school"])
    )
    some, new = schools[columns][:9].assign(school="new"), ["new"] * 9
    np.testing.assert_array_equal(
        model.predict(some, context=(some, schools["y"][:9], None)),
        fitted.predict(X[:9], groups=new, context=(X[:9], schools["y"][:9], new)),
    )
    with pytest.raises(ValueError, match="neither the fit nor the context"):
        model.predict(some, strict_groups=True)


def test_units_of_columns_and_outcome_do_not_change_the_fit(schools):
    numbers = schools[["x"]]
    model = quick().fit(numbers, schools["y"], groups=schools["school"])
    other = quick().fit(numbers * 100.0 - 5.0, schools["y"] * 8.0 + 3.0, groups=schools["school"])
    np.testing.assert_allclose(
        other.predict(numbers * 100.0 - 5.0, groups=schools["school"]),
        model.predict(numbers, groups=schools["school"]) * 8.0 + 3.0,
        rtol=1e-3,
    )


def test_rows_without_groups_are_no_rows_of_the_groups_of_the_fit(linear, table):
    X, y, groups = table
    with pytest.raises(ValueError, match="groups is missing"):
        linear.update_groups(X[:3], y[:3])
    with pytest.raises(ValueError, match=r"context=\(X, y, groups\) has no groups"):
        linear.predict(X, groups=groups, context=(X[:3], y[:3], None))


# --- linear model or network


def test_five_groups_are_too_few_for_a_network(schools):
    few = schools[schools["school"].isin([f"s{i}" for i in range(5)])]
    X, y, groups = few[["x"]], few["y"], few["school"]
    model, linear = (quick(decoder=name).fit(X, y, groups=groups) for name in ("auto", "linear"))
    assert model.is_mixed_model_
    assert "5 groups are too few" in model.summary()
    np.testing.assert_array_equal(model.predict(X, groups=groups), linear.predict(X, groups=groups))


@pytest.mark.slow
def test_folds_in_processes_give_the_same_choice(schools):
    some = schools[schools["school"].isin([f"s{i}" for i in range(20)])]
    one, other = (
        quick(decoder="auto", hidden_sizes=(4,), n_jobs=n_jobs)
        .fit(some[["x"]], some["y"], groups=some["school"])
        .summary()
        for n_jobs in (None, 2)
    )
    assert "held-out groups" in one  # the choice is part of it
    assert other == one


def test_a_network_that_ended_below_its_start_says_so(table):
    X, y, groups = table
    with pytest.warns(ConvergenceWarning, match="below the mixed model that it started at") as caught:
        quick(learning_rate=1.0).fit(X, y, groups=groups)
    assert {warning.filename for warning in caught} == {__file__}


def test_a_network_learns_with_all_its_parameters(fitted, table):
    X, y, groups = table
    start = quick(learning_rate=1e-12).fit(X, y, groups=groups).model_
    for (name, learned), at_start in zip(fitted.model_.named_parameters(), start.parameters(), strict=True):
        assert (learned - at_start).abs().max() > 1e-6, name


def test_groups_of_one_size_tell_nothing_of_a_new_one(fitted):
    assert not fitted.is_mixed_model_
    assert not fitted.new_group_codes_.any()


def test_encoders_of_group_vae_have_a_likelihood(table):
    X, y, groups = table
    model = quick(group_encoder="deepsets", regularizer="context").fit(X, y, groups=groups)
    assert np.isfinite(model.predict(X, groups=groups)).all()
    assert np.isfinite(model.group_log_likelihood(X, y, groups=groups)).all()


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
    if family == "ordinal":
        np.testing.assert_array_equal(model.classes_, [0.0, 2.0, 4.0, 6.0])


@pytest.mark.parametrize("labels", [None, "known", "new"])
def test_samples_have_the_predicted_moments(labels, linear, table):
    X, _, groups = table
    of = {None: None, "known": groups, "new": np.array([f"new {g}" for g in groups])}[labels]
    mean, std = linear.predict(X, groups=of, return_std=True)
    draws = linear.sample_y(X, 4000, groups=of, random_state=0)
    # 4,000 draws: five standard errors.
    np.testing.assert_allclose(draws.mean(1), mean, atol=5 * std.max() / 4000**0.5 + 0.02)
    np.testing.assert_allclose(draws.std(1), std, rtol=0.1)


class Wide(GaussianFamily):
    """A family of the user's."""


def test_a_family_of_the_users(linear, table, tmp_path):
    X, y, groups = table
    model = quick(family=Wide, decoder="linear", random_slopes=["x"]).fit(X, y, groups=groups)
    np.testing.assert_allclose(model.predict(X, groups=groups), linear.predict(X, groups=groups))
    model.save(tmp_path / "model.safetensors")
    loaded = CxVAERegressor.load(tmp_path / "model.safetensors", family=Wide)
    np.testing.assert_array_equal(loaded.predict(X, groups=groups), model.predict(X, groups=groups))
    with pytest.raises(ValueError, match="is no family"):
        quick(family=lambda: None).fit(X, y, groups=groups)


# --- translation and codes


def test_translation_to_the_own_group_changes_nothing(fitted, table):
    X, y, groups = table
    np.testing.assert_allclose(fitted.translate(X, y, groups, groups), y, rtol=1e-4, atol=1e-4)


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
    # The average group has no effect.
    average = linear.translate(X[some], y[some], "s1", "average")
    np.testing.assert_allclose(average - y[some], linear.predict(X[some]) - both[1], atol=0.02)


def test_translation_comes_in_the_container_of_the_outcome(linear, schools):
    X, y, groups = schools[["x", "sex"]], schools["y"], schools["school"]
    moved = linear.translate(X, y, groups, "s3")
    assert isinstance(moved, pd.Series)
    assert moved.index.equals(y.index)
    assert moved.name == "y"
    plain = linear.translate(X, y.to_numpy(), groups, "s3")
    assert isinstance(plain, np.ndarray)
    np.testing.assert_array_equal(plain, moved)
    # A new source is inferred from these rows.
    assert linear.translate(X, y, "unheard of", "s3").shape == y.shape


def test_unknown_target_is_refused(fitted, table):
    X, y, groups = table
    with pytest.raises(ValueError, match=r"target_group \['nowhere'\] does not occur in the fit.*context"):
        fitted.translate(X[:3], y[:3], source_group="s1", target_group="nowhere")
    with pytest.raises(ValueError, match="target_group must be one group label or one label a row"):
        fitted.translate(X, y, groups)


def test_transform_gives_u_by_group_and_v_standard_normal(fitted, table):
    X, y, groups = table
    u, v = fitted.transform(X, y, groups=groups)
    np.testing.assert_allclose(u, fitted.group_codes_.loc[groups], atol=1e-6)
    assert v.shape == (600, 1)
    assert abs(v.mean()) < 0.1
    assert 0.7 < v.std() < 1.3
    with pytest.raises(ValueError, match="y is missing"):
        fitted.transform(X)


def test_summary_names_what_was_fitted(linear):
    text = linear.summary()
    for word in ("gaussian", "600", "30 of 20 to 20 rows", "sex[M]", "Residual"):
        assert word in text


# --- scikit-learn and files


def test_grid_search_with_group_column(schools):
    search = GridSearchCV(quick(group_column="school"), {"decoder": ["linear", "mlp"]}, cv=GroupKFold(3))
    search.fit(schools[["x", "sex", "school"]], schools["y"], groups=schools["school"])
    assert search.best_score_ > 0.5


def test_same_seed_same_fit_and_clone(fitted, table):
    X, y, groups = table
    again = clone(fitted).fit(X, y, groups=groups)
    np.testing.assert_array_equal(again.predict(X, groups=groups), fitted.predict(X, groups=groups))


def test_parameters_set_after_the_fit_change_nothing_that_was_learned(table):
    X, y, groups = table
    model = quick(decoder="linear").fit(X, y, groups=groups)
    before = model.predict(X, groups=groups)
    model.set_params(
        family="poisson", decoder="mlp", group_column="nothing", formula="y ~ z", random_slopes=None
    )
    np.testing.assert_array_equal(model.predict(X, groups=groups), before)
    for result in (
        model.transform(X, y, groups=groups),
        model.translate(X, y, groups, "s1"),
        model.score_samples(X, y, groups=groups),
        model.group_log_likelihood(X, y, groups=groups),
        model.sample_y(X, groups=groups, random_state=0),
        model.summary(),
    ):
        assert result is not None
    model.update_groups(X[:3], y[:3], groups=groups[:3])


@pytest.mark.parametrize("name", ["linear", "fitted"])
def test_files_and_pickles_keep_all(name, table, request, tmp_path):
    model, (X, _, groups) = request.getfixturevalue(name), table
    model.save(tmp_path / "model.safetensors")
    joblib.dump(model, tmp_path / "model.joblib")
    for back in (
        CxVAERegressor.load(tmp_path / "model.safetensors"),
        joblib.load(tmp_path / "model.joblib"),
        pickle.loads(pickle.dumps(model)),
    ):
        np.testing.assert_array_equal(back.predict(X, groups=groups), model.predict(X, groups=groups))
        pd.testing.assert_frame_equal(back.group_effects_, model.group_effects_)
        pd.testing.assert_frame_equal(back.marginal_effects_, model.marginal_effects_)
        assert back.summary() == model.summary()


# Codes of a regression are inferred from outcomes, and scikit-learn's checks transform without them.
_NEEDS_Y = "the check calls transform(X) without y, which the codes are inferred from"
EXPECTED_FAILURES = dict.fromkeys(
    (
        "check_dict_unchanged",
        "check_dtype_object",
        "check_estimators_dtypes",
        "check_estimators_pickle",
        "check_f_contiguous_array_estimator",
        "check_fit_idempotent",
        "check_methods_sample_order_invariance",
        "check_methods_subset_invariance",
        "check_transformer_data_not_an_array",
        "check_transformer_general",
        "check_transformer_preserve_dtypes",
    ),
    _NEEDS_Y,
) | {
    "check_pipeline_consistency": "the check makes one array of what transform returns, two of other widths",
    # Above the same is tested with groups, where it holds.
    "check_sample_weight_equivalence_on_dense_data": (
        "the check fits without groups, so that a row that is repeated makes one more group"
    ),
}


@pytest.fixture
def _numpy_state_restored(global_state_guard):
    """Put back what scikit-learn's own checks change: one shuffles by numpy's global generator."""
    state = np.random.get_state()
    yield
    np.random.set_state(state)


# test_sklearn_checks.py has the checks of the default and of decoder="linear".
@pytest.mark.usefixtures("_numpy_state_restored")
@pytest.mark.filterwarnings("ignore:CxVAERegressor was fitted without groups")
@parametrize_with_checks(
    [quick(hidden_sizes=(4,), max_epochs=1, batch_size=64)],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
    xfail_strict=True,
)
def test_a_network_passes_every_check_that_has_outcomes(estimator, check):
    check(estimator)


# --- bad input


@pytest.mark.parametrize(
    ("changes", "outcome", "message"),
    [
        ({}, [np.nan] + [1.0] * 599, "y contains NaN.*row 0"),
        ({}, np.ones(600), "y is constant"),
        ({}, np.ones(3), "y has 3 outcomes but X has 600"),
        ({"family": "poisson"}, np.r_[-1.0, np.ones(599)], "y must be counts"),
        ({"family": "bernoulli"}, np.r_[2.0, np.ones(599)], "y must be 0 or 1"),
        ({"family": "ordinal"}, np.r_[2.0, np.ones(599)], "y has 2 levels"),
        ({"random_slopes": ["height"]}, np.arange(600.0), "random_slopes names 'height'"),
    ],
)
def test_bad_outcomes_are_refused_and_leave_the_estimator(changes, outcome, message, table):
    X, _, groups = table
    model = quick(**changes)
    before = attributes(model)
    with pytest.raises(ValueError, match=message):
        model.fit(X, outcome, groups=groups)
    assert is_unchanged(model, before)


def test_a_failed_fit_leaves_the_earlier_one(table):
    X, y, groups = table
    model = quick(decoder="linear").fit(X, y, groups=groups)
    before = attributes(model)
    with pytest.raises(ValueError, match="NaN"):
        model.fit(X, np.where(y > 10.0, np.nan, y), groups=groups)
    assert is_unchanged(model, before)


def test_several_bars_are_refused(schools):
    formula = "y ~ x + (1 | school) + (1 | sex)"
    with pytest.raises(ValueError, match=r"formula has the random parts .* takes one grouping factor"):
        CxVAERegressor(formula=formula).fit(schools)


def test_unseen_category_is_treated_as_missing_with_a_warning(fitted, table):
    X, _, _ = table
    with pytest.warns(UserWarning, match=r"column 'sex'.*\['D'\].*not seen"):
        other = fitted.predict(X[:1].assign(sex="D"))
    low, high = sorted(fitted.predict(X[:1].assign(sex=sex))[0] for sex in "FM")
    assert low < other[0] < high


def test_warnings_of_predictions_point_here(fitted, table):
    X, y, groups = table
    unseen = X[:2].assign(sex="D")
    calls = {
        "predict": lambda: fitted.predict(unseen, groups=groups[:2]),
        "score_samples": lambda: fitted.score_samples(unseen, y[:2], groups=groups[:2]),
        "sample_y": lambda: fitted.sample_y(unseen, groups=groups[:2], random_state=0),
        "transform": lambda: fitted.transform(unseen, y[:2], groups=groups[:2]),
        "translate": lambda: fitted.translate(unseen, y[:2], "s1", "s2"),
        "context": lambda: fitted.predict(X[:2], context=(X[:2], y[:2], ["elsewhere"] * 2)),
    }
    files = {}
    for name, call in calls.items():
        with pytest.warns(UserWarning, match="the fit has not seen|are ignored") as caught:
            call()
        files[name] = {warning.filename for warning in caught}
    assert files == {name: {__file__} for name in calls}


@pytest.mark.parametrize("family", ["bernoulli", "poisson"])
def test_outcomes_that_a_family_cannot_have_are_refused_after_the_fit_too(family):
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(60, 1)), np.repeat(np.arange(6), 10)
    model = quick(family=family, decoder="linear", random_slopes=None, max_epochs=1)
    model.fit(x, rng.integers(0, 2, 60), groups=groups)
    for method in (model.score_samples, model.update_groups, model.pit):
        with pytest.raises(ValueError, match=family):
            method(x, np.full(60, -0.5), groups=groups)
