"""Formulas of a regression: that of a table without one, statsmodels' estimates, files that run nothing."""

from __future__ import annotations

import copy
import json
import pickle
import sys

import numpy as np
import pandas as pd
import pytest
from saved_files import contents, write_file
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score

from skgroupvae import CxVAERegressor

pytest.importorskip("formulaic")

RICH = (
    "y ~ sex * poly(x, 2) + bs(age, df=4, extrapolation='extend') + C(year, Sum) + center(age):x"
    " + np.log(x**2 + 1) + (poly(x, 2) | school)"
)


def model_of(formula, **kwargs):
    return CxVAERegressor(formula=formula, **{"decoder": "linear", "random_state": 0} | kwargs)


@pytest.fixture(scope="module")
def pupils():
    """300 pupils of 30 schools, shuffled, with an index of their own."""
    rng = np.random.default_rng(0)
    school = np.repeat([f"s{i}" for i in range(30)], 10)
    x, sex = rng.normal(3.0, 2.0, 300), rng.choice(["F", "M"], 300)
    age, year = rng.uniform(5.0, 9.0, 300), rng.choice([2001, 2002, 2003], 300)
    level, slope = rng.normal(size=30).repeat(10), 0.3 * rng.normal(size=30).repeat(10)
    y = 10.0 + 2.0 * x + (1.5 + 0.5 * x) * (sex == "M") + 0.4 * (year == 2002) + level + slope * (x - 3.0)
    y += np.sin(age) + 0.5 * rng.normal(size=300)
    table = pd.DataFrame({"x": x, "sex": sex, "age": age, "year": year, "school": school, "y": y})
    return table.sample(frac=1.0, random_state=1)


@pytest.fixture(scope="module")
def rich(pupils):
    """A formula with everything in it; tests must not change it."""
    return model_of(RICH).fit(pupils)


def without_formula(pupils):
    return CxVAERegressor(decoder="linear", random_slopes=["x"], random_state=0).fit(
        pupils[["x", "sex"]], pupils["y"], groups=pupils["school"]
    )


# --- the model


def test_the_plain_formula_is_the_table_without_one(pupils):
    model, plain = model_of("y ~ x + sex + (1 + x | school)").fit(pupils), without_formula(pupils)
    covariates, labels = pupils[["x", "sex"]], pupils["school"]
    np.testing.assert_allclose(
        model.predict(pupils.drop(columns="y")), plain.predict(covariates, groups=labels), atol=1e-10
    )
    np.testing.assert_allclose(
        model.score_samples(pupils), plain.score_samples(covariates, pupils["y"], groups=labels), atol=1e-10
    )
    assert list(model.fixed_effects_.index) == ["Intercept", "x", "sex[T.M]"]
    assert list(model.group_effects_.columns) == ["Intercept", "Intercept sd", "x", "x sd", "n_rows"]
    assert list(model.feature_names_in_) == ["x", "sex"]
    # A category goes from off to on, for the network as well.
    np.testing.assert_allclose(model.marginal_effects_, plain.marginal_effects_, atol=1e-10)


def test_the_network_sees_the_same_design(pupils):
    options = {"decoder": "mlp", "max_epochs": 2, "hidden_sizes": (4,), "verbose": False}
    model = model_of("y ~ x + sex + (x | school)", **options).fit(pupils)
    plain = CxVAERegressor(random_slopes=["x"], random_state=0, **options)
    plain.fit(pupils[["x", "sex"]], pupils["y"], groups=pupils["school"])
    np.testing.assert_allclose(
        model.predict(pupils), plain.predict(pupils[["x", "sex"]], groups=pupils["school"]), atol=1e-6
    )


def test_interactions_and_categories_are_those_of_statsmodels(pupils):
    smf = pytest.importorskip("statsmodels.formula.api")
    fixed = "y ~ x * sex + C(year)"
    theirs = smf.mixedlm(fixed, pupils, groups="school", re_formula="1 + x").fit(reml=False, method="lbfgs")
    model = model_of(f"{fixed} + (1 + x | school)").fit(pupils)
    ours = model.fixed_effects_.loc[theirs.fe_params.index]
    assert set(ours.index) == set(model.fixed_effects_.index)
    np.testing.assert_allclose(ours["estimate"], theirs.fe_params, atol=0.01 * theirs.bse_fe.min())
    np.testing.assert_allclose(ours["std_error"], theirs.bse_fe, rtol=0.02)
    assert model.mixed_model_log_likelihood_ == pytest.approx(theirs.llf, abs=0.01)


def test_knots_and_centers_are_those_of_the_fit(rich, pupils):
    """Rows alone are predicted as among all others, whose moments and quantiles differ."""
    some = (pupils["x"] > 4.0) & (pupils["sex"] == "M")
    np.testing.assert_allclose(rich.predict(pupils[some]), rich.predict(pupils)[some.to_numpy()], rtol=1e-10)


def test_a_term_of_many_columns_varies_by_group(rich):
    wanted = ["Intercept", "poly(x, 2)[1]", "poly(x, 2)[2]", "Residual"]
    assert list(rich.variance_components_.index) == wanted


def test_a_category_may_vary_by_group_and_interactions_may(pupils):
    model = model_of("y ~ x * sex + (x:sex + sex | school)").fit(pupils)
    assert list(model.variance_components_.index)[:-1] == ["Intercept", "sex[T.M]", "x:sex[T.M]"]


@pytest.mark.parametrize("decoder", ["linear", "mlp", "auto"])
@pytest.mark.filterwarnings("error::UserWarning")
def test_a_formula_may_have_no_covariates(decoder, pupils):
    model = model_of(
        "y ~ 1 + (1 | school)", decoder=decoder, max_epochs=2, hidden_sizes=(4,), verbose=False
    ).fit(pupils)
    assert model.n_features_in_ == 0
    assert list(model.fixed_effects_.index) == ["Intercept"]
    assert model.predict(pupils[["school"]]).shape == (300,)


def test_formulas_without_a_random_part_take_groups_and_slopes(pupils):
    reference = model_of("y ~ x + sex + (x | school)").fit(pupils).predict(pupils)
    groups = model_of("y ~ x + sex", random_slopes=["x"]).fit(pupils, groups=pupils["school"])
    np.testing.assert_allclose(groups.predict(pupils, groups=pupils["school"]), reference, atol=1e-10)
    column = model_of("~ x + sex", random_slopes=["x"], group_column="school").fit(pupils, pupils["y"])
    np.testing.assert_allclose(column.predict(pupils), reference, atol=1e-10)
    by_term = model_of("y ~ poly(x, 2) + sex", random_slopes=["poly(x, 2)", "sex[T.M]"])
    by_term.fit(pupils, groups=pupils["school"])
    assert list(by_term.group_effects_)[:-1:2] == ["Intercept", "poly(x, 2)[1]", "poly(x, 2)[2]", "sex[T.M]"]


def test_categories_keep_the_order_of_their_column_and_drop_what_does_not_occur(pupils):
    sex = pd.Categorical(pupils["sex"], categories=["X", "M", "F"])
    model = model_of("y ~ x + sex + (1 | school)").fit(pupils.assign(sex=sex))
    assert list(model.fixed_effects_.index) == ["Intercept", "x", "sex[T.F]"]
    np.testing.assert_allclose(model.predict(pupils), model.predict(pupils.assign(sex=sex)))


def test_nullable_and_polars_columns(pupils):
    polars = pytest.importorskip("polars")
    model = model_of("y ~ x * sex + C(year) + (x | school)").fit(pupils)
    other = pupils.astype({"year": "Int64", "x": "Float64", "sex": "string", "school": "category"})
    for table in (other, polars.DataFrame(pupils.to_dict("list"))):
        np.testing.assert_allclose(clone(model).fit(table).predict(table), model.predict(pupils), atol=1e-8)


# --- outcome, groups, context


def test_methods_read_outcome_and_groups_from_the_table(rich, pupils):
    assert rich.score(pupils) == rich.score(pupils, pupils["y"])
    u, v = rich.transform(pupils)
    assert (u.shape, v.shape) == ((300, 3), (300, 1))
    assert rich.pit(pupils).shape == (300,)
    assert rich.predict_quantiles(pupils.drop(columns="y"), [0.1, 0.9]).shape == (300, 2)
    assert rich.sample_y(pupils, 2, random_state=0).shape == (300, 2)
    of_groups = rich.group_log_likelihood(pupils, context="prior")
    assert of_groups.sum() == pytest.approx(rich.mixed_model_log_likelihood_)
    moved = rich.translate(pupils[:5], target_group="s1")
    expected = rich.translate(
        pupils[:5], pupils["y"][:5], source_group=pupils["school"][:5], target_group="s1"
    )
    np.testing.assert_array_equal(moved, expected)


def test_context_and_updates_are_tables(pupils):
    seen, new = pupils[pupils["school"] != "s3"], pupils[pupils["school"] == "s3"]
    model = model_of("y ~ x + sex + (x | school)").fit(seen)
    expected = model.predict(new, context=(new, new["y"], None))
    np.testing.assert_array_equal(model.predict(new, context=new), expected)
    assert not np.allclose(model.predict(new), expected)
    model.update_groups(new)
    np.testing.assert_allclose(model.predict(new), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "method", ["score", "score_samples", "pit", "transform", "group_log_likelihood", "update_groups"]
)
def test_outcomes_are_not_made_up(method, pupils):
    model = model_of("~ x + (1 | school)").fit(pupils, pupils["y"])
    with pytest.raises(ValueError, match="y is missing"):
        getattr(model, method)(pupils)
    with pytest.raises(ValueError, match="y of context is missing"):
        model.predict(pupils, context=pupils)


def test_the_labels_of_the_table_may_be_passed_beside_it(rich, pupils):
    np.testing.assert_array_equal(rich.predict(pupils, groups=pupils["school"]), rich.predict(pupils))


def test_several_outcomes_beside_a_formula(pupils):
    outcomes = pupils[["y", "age"]]
    model = model_of("~ x + sex + (1 | school)").fit(pupils, outcomes)
    plain = CxVAERegressor(decoder="linear", random_slopes=None, random_state=0)
    plain.fit(pupils[["x", "sex"]], outcomes, groups=pupils["school"])
    expected = plain.predict(pupils[["x", "sex"]], groups=pupils["school"])
    np.testing.assert_allclose(model.predict(pupils), expected, atol=1e-10)
    assert model.mixed_model_log_likelihood_ == pytest.approx(plain.mixed_model_log_likelihood_)


def test_transformed_outcomes(pupils):
    regressor = TransformedTargetRegressor(
        model_of("~ x + sex + (x | school)"), func=np.log, inverse_func=np.exp
    )
    positive = pupils.assign(y=np.exp(pupils["y"] / 10.0))
    regressor.fit(positive, positive["y"])
    direct = model_of("log_y ~ x + sex + (x | school)").fit(pupils.assign(log_y=pupils["y"] / 10.0))
    np.testing.assert_allclose(regressor.predict(positive), np.exp(direct.predict(pupils)), rtol=1e-10)


def test_searches_need_no_outcome(pupils):
    search = GridSearchCV(
        model_of("y ~ x + (1 | school)"),
        {"formula": ["y ~ x + (1 | school)", "y ~ x * sex + (x | school)"]},
        cv=GroupKFold(3),
    )
    search.fit(pupils, groups=pupils["school"])
    assert search.best_params_["formula"] == "y ~ x * sex + (x | school)"
    scores = cross_val_score(model_of("~ x + (1 | school)"), pupils, pupils["y"], cv=3)
    assert (scores > 0.5).all()


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_fit_goes_on_with_its_formula_alone(method, pupils):
    first, more = pupils[:200], pupils[200:]
    options = {"decoder": "mlp", "max_epochs": 2, "hidden_sizes": (8,), "warm_start": True, "verbose": False}
    model = model_of("y ~ x + sex + (1 + x | school)", **options).fit(first)
    alone = CxVAERegressor(random_slopes=["x"], group_column="school", random_state=0, **options)
    alone.fit(first[["x", "sex", "school"]], first["y"])
    getattr(model, method)(more)
    getattr(alone, method)(more[["x", "sex", "school"]], more["y"])
    np.testing.assert_allclose(
        model.predict(pupils), alone.predict(pupils[["x", "sex", "school"]]), rtol=1e-5
    )
    with pytest.raises(ValueError, match="not that of the fit"):
        getattr(model.set_params(formula="y ~ x + (1 | school)"), method)(more)


# --- unseen categories


def test_unseen_categories_get_the_mean_over_those_of_the_fit(rich, pupils):
    """The linear predictor is linear in the design, so that the mean of the design gives the mean of it."""
    rows = pupils[:4].copy()
    rows["year"] = [2010, 2001, 2010, 2002]
    rows["sex"] = np.array(["F", None, "other", "M"], dtype=object)
    with (
        pytest.warns(
            UserWarning, match=r"'sex' of X has categories \[(None|nan), 'other'\] that the fit has not seen"
        ),
        pytest.warns(UserWarning, match=r"'year' of X has categories \[2010\]"),
    ):
        predicted = rich.predict(rows)

    def mean_over(column, table, predict):
        share = pupils[column].value_counts(normalize=True)
        return sum(share[level] * predict(table.assign(**{column: level})) for level in share.index)

    expected = [
        mean_over("year", rows[:1], rich.predict),
        mean_over("sex", rows[1:2], rich.predict),
        mean_over("sex", rows[2:3], lambda part: mean_over("year", part, rich.predict)),
        rich.predict(rows[3:]),
    ]
    np.testing.assert_allclose(predicted, np.concatenate(expected), rtol=1e-10)


@pytest.mark.parametrize("method", ["predict", "score_samples", "transform", "update_groups"])
def test_unseen_categories_warn_at_the_line_of_the_caller(method, rich, pupils):
    with pytest.warns(UserWarning, match="'sex' of X has categories") as caught:
        getattr(copy.deepcopy(rich), method)(pupils.assign(sex="other"))
    assert {warning.filename for warning in caught} == {__file__}


# --- refusals; tests/unit/test_formula.py has all that a text or a design can get wrong


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("y ~ x + (1 | school) + (1 | year)", r"formula has the random parts .*takes one grouping factor"),
        ("y ~ 0 + x + (1 | school)", r"formula takes the intercept away \("),
        ("y ~ x +", "formula has 'x \\+', which cannot be read"),
        ("y ~ height + (1 | school)", r"formula names \['height'\], which X does not have; its columns are"),
        ("height ~ x + (1 | school)", r"formula names \['height'\], which X does not have"),
        ("y ~ x + (1 | class)", r"formula names \['class'\], which X does not have"),
        ("y ~ log(x - 100) + (1 | school)", r"formula gives NaN.*\['log\(x - 100\)'\].*row 0 of X; drop"),
        ("y ~ log(sex) + (1 | school)", "formula cannot be evaluated on X"),
        ("y ~ x.mean() + (1 | school)", "formula has"),
    ],
)
def test_formulas_that_cannot_be_used(formula, message, pupils):
    model = model_of(formula)
    with pytest.raises(ValueError, match=message) as caught:
        model.fit(pupils)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert vars(model) == vars(model_of(formula))


@pytest.mark.parametrize(
    ("parameters", "arguments", "message"),
    [
        ({"random_slopes": ["x"]}, {}, "random_slopes=.* formula has the random part.*leave one"),
        ({"random_slopes": None}, {}, "random_slopes=None is given.*leave one"),
        ({"group_column": "school"}, {}, "group_column='school' is given.*leave one"),
        ({}, {"groups": np.arange(300)}, "groups= is given, but formula has the groups.*leave groups out"),
        (
            {},
            {"y": np.arange(300.0)},
            "y is given, but formula has the outcome 'y'.*begin the formula with '~'",
        ),
        ({"formula": "~ x + (1 | school)"}, {}, "y is missing"),
        ({"formula": "y ~ x", "random_slopes": ["sex"]}, {}, "random_slopes names 'sex', which is no term"),
        ({"formula": 5}, {}, "'formula' parameter"),
    ],
)
@pytest.mark.filterwarnings("ignore:CxVAERegressor was fitted without groups")
def test_what_is_said_twice_or_not_at_all(parameters, arguments, message, pupils):
    model = model_of("y ~ x + (1 | school)").set_params(**parameters)
    with pytest.raises(ValueError, match=message):
        model.fit(pupils, **arguments)


def test_tables_that_do_not_fit(rich, pupils):
    with pytest.raises(ValueError, match="formula needs a table with named columns, got ndarray"):
        rich.predict(pupils.to_numpy())
    with pytest.raises(ValueError, match=r"formula names \['school'\]"):
        rich.predict(pupils.drop(columns="school"))
    with pytest.raises(ValueError, match=r"X contains NaN or infinite values in columns \['x'\]"):
        rich.predict(pupils.assign(x=np.nan))
    with pytest.raises(ValueError, match=r"X contains NaN or infinite values in columns \['sex'\]"):
        clone(rich).fit(pupils.assign(sex=[None, *pupils["sex"][1:]]))
    with pytest.raises(ValueError, match="formula cannot be evaluated on X"):
        rich.predict(pupils.assign(x="high"))
    with pytest.raises(ValueError, match="X is empty"):
        model_of("y ~ 1 + (1 | school)").fit(pupils[:0])
    with pytest.raises(NotFittedError):
        clone(rich).score(pupils)
    splines = model_of("y ~ bs(age, df=4) + (1 | school)").fit(pupils)
    with pytest.raises(ValueError, match=r"formula cannot be evaluated on X.*extrapolation"):
        splines.predict(pupils.assign(age=20.0))


def test_formulaic_is_an_extra(pupils, monkeypatch):
    monkeypatch.setitem(sys.modules, "formulaic", None)
    with pytest.raises(ImportError, match=r'pip install "skgroupvae\[formula\]"'):
        model_of("y ~ x + (1 | school)").fit(pupils)


# --- copies and files


def test_save_load_pickle_and_clone(rich, pupils, tmp_path):
    rich.save(tmp_path / "model.safetensors")
    loaded = CxVAERegressor.load(tmp_path / "model.safetensors")
    few = pupils[pupils["x"] > 4.0].assign(sex="other")
    with pytest.warns(UserWarning, match="'sex'"):
        expected = rich.predict(few)
    for other in (loaded, pickle.loads(pickle.dumps(rich)), copy.deepcopy(rich)):
        with pytest.warns(UserWarning, match="'sex'"):
            np.testing.assert_array_equal(other.predict(few), expected)
        assert other.score(pupils) == rich.score(pupils)
    again = clone(loaded).fit(pupils)
    np.testing.assert_array_equal(again.predict(pupils), rich.predict(pupils))


def test_what_cannot_be_stored_is_one_error(pupils, tmp_path):
    table = pupils.assign(band=pd.cut(pupils["age"], 3))
    model = model_of("y ~ band + (1 | school)").fit(table)
    assert model.predict(table).shape == (300,)
    with pytest.raises(TypeError, match=r"cannot save state\.reader\.design\..*: it holds a Interval"):
        model.save(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["python", "lookup", "literal", "eval"])
def test_no_file_makes_load_or_predict_run_what_is_not_listed(method, rich, pupils, tmp_path):
    path, trace = tmp_path / "model.safetensors", tmp_path / "trace"
    code = f"open('{trace}', 'w')"
    rich.save(path)
    document, tensors = contents(path)
    factor = '["np.log(x ** 2 + 1)", "python"]'
    assert factor in json.dumps(document["state"])
    state = json.loads(json.dumps(document["state"]).replace(factor, json.dumps([code, method])))
    parameters = document["parameters"] | {"formula": f"y ~ {code} + (1 | school)"}
    write_file(path, document | {"state": state, "parameters": parameters}, tensors)
    if method == "lookup":  # a column of that name, which a table may even have
        loaded = CxVAERegressor.load(path)
        with pytest.raises(ValueError, match="formula names"):
            loaded.predict(pupils)
        with pytest.raises(ValueError, match="may call only"):
            loaded.fit(pupils)
    else:
        with pytest.raises(ValueError, match=r"cannot load.*formula has"):
            CxVAERegressor.load(path)
    assert not trace.exists()
