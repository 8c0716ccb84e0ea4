"""Tables in and out: pandas, polars, dtypes, nested labels, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import sklearn
from conftest import quick
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skgroupvae import CxVAERegressor, GroupVAE

pl = pytest.importorskip("polars")

GROUP_VAE = quick()
REGRESSOR = CxVAERegressor(decoder="linear", random_slopes=None, random_state=0)
both = pytest.mark.parametrize("estimator", [GROUP_VAE, REGRESSOR], ids=lambda e: type(e).__name__)


@pytest.fixture(scope="module")
def nested(pupils):
    """`pupils` with labels of two columns: district, and school within it."""
    district = pupils["school"].str[-1].astype(int) % 3
    return pupils.assign(district=district, school=pupils["school"].str[-1])


def of_polars(table):
    return pl.from_dict(table.to_dict("list"))


def data_of(estimator, table):
    """The table of a GroupVAE; for a regression its covariates, and the score as the outcome."""
    if isinstance(estimator, GroupVAE):
        return (table,)
    if isinstance(table, np.ndarray):
        return np.delete(table, 0, axis=1), table[:, 0]
    return table[[name for name in dict.fromkeys(table.columns) if name != "score"]], table["score"]


def fitted(estimator, table, groups=None, **parameters):
    return clone(estimator).set_params(**parameters).fit(*data_of(estimator, table), groups=groups)


def codes(model, table, groups=None):
    """u and v side by side."""
    return np.hstack(model.transform(*data_of(model, table), groups=groups))


def moved(model, table, target):
    """The rows in another group, the labels in the table."""
    X, *y = data_of(model, table)
    return model.translate(X, *(y or [None]), target_group=target)


# --- polars


@both
def test_polars_gives_the_numbers_of_pandas(estimator, pupils):
    table = of_polars(pupils)
    of_pandas, model = (fitted(estimator, t, group_column="school") for t in (pupils, table))
    np.testing.assert_array_equal(codes(model, table), codes(of_pandas, pupils))
    assert list(model.feature_names_in_) == list(of_pandas.feature_names_in_)
    assert model.feature_names_in_[-1] == "effort"


@both
def test_polars_without_a_group_column(estimator, pupils):
    table = of_polars(pupils)
    model = fitted(estimator, table.drop("school"), table["school"])
    expected = fitted(estimator, pupils.drop(columns="school"), pupils["school"])
    np.testing.assert_array_equal(model.group_codes_, expected.group_codes_)


def test_polars_columns_of_every_kind_are_covariates(pupils):
    kind, late = np.tile(["a", "b", "c"], 21)[: len(pupils)], np.arange(len(pupils)) % 2 == 0
    table = pupils.assign(kind=kind, late=late, rank=np.arange(len(pupils)))
    as_polars = of_polars(table).with_columns(
        pl.col("kind").cast(pl.Categorical), pl.col("rank").cast(pl.UInt8)
    )
    of_pandas, model = (fitted(REGRESSOR, t, group_column="school") for t in (table, as_polars))
    assert list(model.fixed_effects_.index) == ["Intercept", "effort", "kind[b]", "kind[c]", "late", "rank"]
    np.testing.assert_allclose(model.fixed_effects_, of_pandas.fixed_effects_, rtol=1e-10)


def test_translate_returns_polars_with_the_types_of_the_input(pupils):
    table = of_polars(pupils).with_columns(
        pl.col("score").cast(pl.Float32), pl.col("school").cast(pl.Categorical)
    )
    model = fitted(GROUP_VAE, of_polars(pupils), group_column="school")
    result = moved(model, table, "school 3")
    assert result.schema == table.schema
    assert set(result["school"].cast(pl.String)) == {"school 3"}
    numbers = moved(model, pupils.astype({"score": np.float32}), "school 3")
    np.testing.assert_allclose(result["effort"].to_numpy(), numbers["effort"], rtol=1e-12)


# scikit-learn's own words for a table of one outcome.
@pytest.mark.filterwarnings("ignore:A column-vector y was passed")
def test_translated_outcomes_come_in_the_container_of_y(pupils):
    model = fitted(REGRESSOR, pupils, group_column="school")
    X, y = data_of(model, pupils)
    of_pandas = model.translate(X, y, target_group="school 3")
    assert of_pandas.index.equals(y.index)
    assert of_pandas.name == "score"
    frame = model.translate(X, y.to_frame(), target_group="school 3")
    pd.testing.assert_frame_equal(frame, of_pandas.to_frame())
    array = model.translate(X, y.to_numpy(), target_group="school 3")
    assert type(array) is np.ndarray
    series = model.translate(*data_of(model, of_polars(pupils)), target_group="school 3")
    assert isinstance(series, pl.Series)
    assert series.name == "score"
    table = model.translate(X, of_polars(pupils)[["score"]], target_group="school 3")
    assert isinstance(table, pl.DataFrame)
    assert table.columns == ["score"]
    for values in (frame["score"], array, series.to_numpy(), table["score"].to_numpy()):
        np.testing.assert_array_equal(values, of_pandas)


def test_several_outcomes_come_in_the_container_of_y(pupils):
    outcomes = pupils.assign(other=np.sqrt(pupils["score"].abs()))[["other", "score"]]
    model = clone(REGRESSOR).fit(pupils[["effort"]], outcomes, groups=pupils["school"])
    results = {
        name: model.translate(pupils[["effort"]], y, pupils["school"], "school 3")
        for name, y in (
            ("pandas", outcomes),
            ("polars", of_polars(outcomes)),
            ("numpy", outcomes.to_numpy()),
        )
    }
    assert results["pandas"].index.equals(outcomes.index)
    assert list(results["pandas"].columns) == results["polars"].columns == ["other", "score"]
    for name in ("polars", "numpy"):
        np.testing.assert_array_equal(results[name], results["pandas"])
    # By name, as the methods read them.
    swapped = model.translate(pupils[["effort"]], outcomes[["score", "other"]], pupils["school"], "school 3")
    pd.testing.assert_frame_equal(swapped[["other", "score"]], results["pandas"])


def test_integers_come_back_as_floats_for_they_are_means():
    rng = np.random.default_rng(0)
    table = pl.DataFrame({"count": rng.poisson(5, 40), "g": np.repeat(np.arange(8), 5)})
    rebuilt = quick(group_column="g").fit(table).reconstruct(table)
    assert rebuilt.schema == {"count": pl.Float64, "g": pl.Int64}


# --- containers of codes


@both
@pytest.mark.parametrize("kind", ["default", "pandas", "polars"])
@pytest.mark.parametrize("stacked", [False, True])
def test_set_output_for_u_and_v(kind, stacked, estimator, pupils):
    table, school = pupils.drop(columns="school"), pupils["school"]
    model = clone(estimator).set_params(stack_codes=stacked).set_output(transform=kind)
    data = data_of(estimator, table)
    result = model.fit_transform(*data, groups=school)
    parts = [result] if stacked else result
    u, v = (["u0", "u1"], ["v0", "v1"]) if isinstance(estimator, GroupVAE) else (["u0"], ["v0"])
    assert list(model.get_feature_names_out()) == u + v
    frame = {"default": np.ndarray, "pandas": pd.DataFrame, "polars": pl.DataFrame}[kind]
    assert all(isinstance(part, frame) for part in parts)
    if kind != "default":
        assert [[*part.columns] for part in parts] == ([u + v] if stacked else [u, v])
    if kind == "pandas":
        assert all(part.index.equals(table.index) for part in parts)
    by_row = (
        model.set_params(stack_codes=True).set_output(transform="default").transform(*data, groups=school)
    )
    np.testing.assert_array_equal(np.hstack([np.asarray(part) for part in parts]), by_row)
    np.testing.assert_allclose(by_row[:, 0], model.group_codes_.loc[school, "u0"])


@both
def test_unknown_container(estimator):
    with pytest.raises(ValueError, match=r"transform='arrow' is not a container.*'polars'"):
        clone(estimator).set_output(transform="arrow")


def test_codes_of_a_regression_go_through_the_fit_of_a_pipeline_and_no_further(pupils):
    """A Pipeline gives y to the fit of a step in its middle, and to nothing that comes after."""
    with sklearn.config_context(enable_metadata_routing=True):
        middle = clone(REGRESSOR).set_params(stack_codes=True)
        pipeline = make_pipeline(StandardScaler(), middle, LinearRegression())
        pipeline.fit(pupils[["effort"]], pupils["score"], groups=pupils["school"])
        assert pipeline[-1].n_features_in_ == 2
        with pytest.raises(ValueError, match="y is missing: transform infers codes from outcomes"):
            pipeline.predict(pupils[["effort"]], groups=pupils["school"])


# --- dtypes of pandas


def test_each_float_column_keeps_its_width(X, school, pupils_model):
    mixed = X.astype({"score": np.float32})
    assert (pupils_model.reconstruct(mixed, groups=school).dtypes == mixed.dtypes).all()


@both
def test_nullable_columns_without_gaps_are_numbers(estimator, pupils):
    nullable = pupils.convert_dtypes().astype({"score": "Float64", "effort": "Float64"})
    assert nullable["score"].dtype == "Float64"
    model, expected = (fitted(estimator, t, group_column="school") for t in (nullable, pupils))
    np.testing.assert_array_equal(codes(model, nullable), codes(expected, pupils))


# --- nested labels


@both
def test_a_list_of_columns_makes_labels_that_are_tuples(estimator, nested):
    model = fitted(estimator, nested, group_column=["district", "school"])
    labels = list(zip(nested["district"], nested["school"], strict=True))
    by_hand = fitted(estimator, nested[["score", "effort"]], labels)
    np.testing.assert_array_equal(model.group_codes_, by_hand.group_codes_)
    assert set(model.group_codes_.index) == set(labels)


def test_translation_writes_each_part_of_a_nested_label_in_its_column(nested):
    model = fitted(GROUP_VAE, nested, group_column=["district", "school"])
    result = moved(model, nested, (1, "4"))
    assert list(result.columns) == list(nested.columns)
    assert (result.dtypes == nested.dtypes).all()
    assert set(result["district"]) == {1}
    assert set(result["school"]) == {"4"}


def test_outcomes_are_translated_to_a_nested_label(nested):
    model = fitted(REGRESSOR, nested, group_column=["district", "school"])
    labels = list(zip(nested["district"], nested["school"], strict=True))
    effect = model.group_effects_["Intercept"]
    shift = effect[[(1, "4")]].iloc[0] - np.array([effect[[label]].iloc[0] for label in labels])
    np.testing.assert_allclose(moved(model, nested, (1, "4")) - nested["score"], shift, atol=1e-8)


@both
def test_nested_labels_of_an_array(estimator, nested):
    numbers = nested.assign(school=nested["school"].astype(int)).to_numpy(dtype=float)
    assert list(nested.columns) == ["score", "effort", "school", "district"]
    model = fitted(estimator, numbers, group_column=[-2, -1])
    named = fitted(estimator, nested, group_column=["school", "district"])
    np.testing.assert_allclose(model.group_codes_, named.group_codes_)


@both
def test_a_row_without_part_of_its_label_is_refused(estimator, nested):
    gap = nested["district"].astype(float).where(np.arange(len(nested)) > 0)
    with pytest.raises(ValueError, match=r"groups has 1 missing labels \(first at row 0\)"):
        fitted(estimator, nested.assign(district=gap), group_column=["district", "school"])


# --- what is refused


@both
@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([], r"group_column=\[\] names no column"),
        (["school", "class"], "group_column='class' is not a column of X"),
        (["school", -1], "names a column twice"),
    ],
)
def test_group_columns_that_cannot_be(column, message, estimator, pupils):
    with pytest.raises(ValueError, match=message):
        fitted(estimator, pupils, group_column=column)


@both
@pytest.mark.parametrize("column", [None, "school"])
def test_duplicate_column_names(column, estimator, pupils):
    twice = pd.concat([pupils, pupils[["effort"]]], axis=1)
    with pytest.raises(ValueError, match=r"duplicate column names \['effort'\]; rename or drop"):
        fitted(estimator, twice, group_column=column)


@both
def test_group_column_absent_at_transform(estimator, pupils):
    model = fitted(estimator, pupils, group_column="school")
    with pytest.raises(ValueError, match="group_column='school' is not a column of X"):
        codes(model, pupils.drop(columns="school"))


@both
def test_target_label_that_does_not_fit_the_columns(estimator, nested):
    model = fitted(estimator, nested, group_column=["district", "school"])
    with pytest.raises(ValueError, match=r"target_group .* does not occur in the fit"):
        moved(model, nested, "school 3")
