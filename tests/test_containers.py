"""Tables in and out: pandas, polars, dtypes, nested labels, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skgroupvae import CxVAERegressor, GroupVAE

pl = pytest.importorskip("polars")


@pytest.fixture(scope="module")
def nested(pupils):
    """`pupils` with labels of two columns: district, and school within it."""
    district = pupils["school"].str[-1].astype(int) % 3
    return pupils.assign(district=district, school=pupils["school"].str[-1])


def both(model, table):
    return np.hstack(model.transform(table))


# --- polars


@pytest.fixture(scope="module")
def polars_model(pupils, quick):
    return quick(group_column="school").fit(pl.from_dict(pupils.to_dict("list")))


def test_polars_gives_the_numbers_of_pandas(polars_model, pupils, quick):
    model = quick(group_column="school").fit(pupils)
    np.testing.assert_array_equal(
        both(model, pupils), both(polars_model, pl.from_dict(pupils.to_dict("list")))
    )
    assert list(polars_model.feature_names_in_) == ["score", "effort"]


def test_polars_without_a_group_column(pupils, quick, pupils_model):
    table = pl.from_dict(pupils.to_dict("list"))
    model = quick().fit(table.drop("school"), groups=table["school"])
    np.testing.assert_array_equal(model.group_codes_, pupils_model.group_codes_)


def test_translate_returns_polars_with_the_types_of_the_input(polars_model, pupils):
    table = pl.from_dict(pupils.to_dict("list")).with_columns(
        pl.col("score").cast(pl.Float32), pl.col("school").cast(pl.Categorical)
    )
    moved = polars_model.translate(table, None, target_group="school 3")
    assert moved.schema == table.schema
    assert set(moved["school"].cast(pl.String)) == {"school 3"}
    numbers = polars_model.translate(pupils.astype({"score": np.float32}), None, target_group="school 3")
    np.testing.assert_allclose(moved["effort"].to_numpy(), numbers["effort"], rtol=1e-12)


def test_integers_come_back_as_floats_for_they_are_means(quick):
    rng = np.random.default_rng(0)
    table = pl.DataFrame({"count": rng.poisson(5, 40), "g": np.repeat(np.arange(8), 5)})
    rebuilt = quick(group_column="g").fit(table).reconstruct(table)
    assert rebuilt.schema == {"count": pl.Float64, "g": pl.Int64}


@pytest.mark.parametrize("kind", ["pandas", "polars"])
@pytest.mark.parametrize("stacked", [False, True])
def test_set_output_for_u_and_v(kind, stacked, pupils, X, school, quick):
    model = quick(stack_codes=stacked).set_output(transform=kind).fit(X, groups=school)
    codes = model.transform(X, groups=school)
    names = [[*table.columns] for table in ([codes] if stacked else codes)]
    assert names == ([["u0", "u1", "v0", "v1"]] if stacked else [["u0", "u1"], ["v0", "v1"]])
    frame = {"pandas": pd.DataFrame, "polars": pl.DataFrame}[kind]
    assert all(isinstance(table, frame) for table in ([codes] if stacked else codes))


@pytest.mark.parametrize("kind", ["default", "pandas", "polars"])
@pytest.mark.parametrize("stacked", [False, True])
def test_set_output_for_codes_of_a_regression(kind, stacked, pupils):
    X, y, school = pupils[["effort"]], pupils["score"], pupils["school"]
    model = CxVAERegressor(decoder="linear", random_slopes=None, stack_codes=stacked, random_state=0)
    codes = model.set_output(transform=kind).fit_transform(X, y, groups=school)
    parts = [codes] if stacked else codes
    assert list(model.get_feature_names_out()) == ["u0", "v0"]
    assert isinstance(parts[0], {"pandas": pd.DataFrame, "polars": pl.DataFrame}.get(kind, np.ndarray))
    if kind != "default":
        assert [[*table.columns] for table in parts] == ([["u0", "v0"]] if stacked else [["u0"], ["v0"]])
    if kind == "pandas":
        assert parts[0].index.equals(X.index)
    by_row = model.set_params(stack_codes=True).set_output(transform="default").transform(X, y, groups=school)
    np.testing.assert_allclose(by_row[:, 0], model.group_codes_.loc[school, "u0"])
    np.testing.assert_array_equal(np.hstack([np.asarray(part) for part in parts]), by_row)


def test_codes_of_a_regression_go_through_the_fit_of_a_pipeline_and_no_further(pupils):
    """A Pipeline gives y to the fit of a step in its middle, and to nothing that comes after."""
    codes = CxVAERegressor(decoder="linear", random_slopes=None, stack_codes=True, random_state=0)
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(StandardScaler(), codes, LinearRegression())
        pipeline.fit(pupils[["effort"]], pupils["score"], groups=pupils["school"])
        assert pipeline[-1].n_features_in_ == 2
        with pytest.raises(ValueError, match="y is missing: transform infers codes from outcomes"):
            pipeline.predict(pupils[["effort"]], groups=pupils["school"])


# --- dtypes of pandas


def test_each_float_column_keeps_its_width(X, school, pupils_model):
    mixed = X.astype({"score": np.float32})
    assert (pupils_model.reconstruct(mixed, groups=school).dtypes == mixed.dtypes).all()


# --- nested labels


def test_a_list_of_columns_makes_labels_that_are_tuples(nested, quick):
    model = quick(group_column=["district", "school"]).fit(nested)
    labels = list(zip(nested["district"], nested["school"], strict=True))
    by_hand = quick().fit(nested[["score", "effort"]], groups=labels)
    np.testing.assert_array_equal(model.group_codes_, by_hand.group_codes_)
    assert set(model.group_codes_.index) == set(labels)


def test_translation_writes_each_part_of_a_nested_label_in_its_column(nested, quick):
    model = quick(group_column=["district", "school"]).fit(nested)
    moved = model.translate(nested, None, target_group=(1, "4"))
    assert list(moved.columns) == list(nested.columns)
    assert (moved.dtypes == nested.dtypes).all()
    assert set(moved["district"]) == {1}
    assert set(moved["school"]) == {"4"}


def test_nested_labels_of_an_array(nested, quick):
    numbers = nested.assign(school=nested["school"].astype(int)).to_numpy(dtype=float)
    model = quick(group_column=[2, -1]).fit(numbers)
    named = quick(group_column=["school", "district"]).fit(nested)
    np.testing.assert_allclose(model.group_codes_, named.group_codes_)


def test_a_row_without_part_of_its_label_is_refused(nested, quick):
    with pytest.raises(ValueError, match=r"groups has 1 missing labels \(first at row 0\)"):
        quick(group_column=["district", "school"]).fit(
            nested.assign(district=nested["district"].astype(float).where(np.arange(len(nested)) > 0))
        )


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_column": []}, r"group_column=\[\] names no column"),
        ({"group_column": ["school", "class"]}, "group_column='class' is not a column of X"),
        ({"group_column": ["school", 2]}, "names a column twice"),
    ],
)
def test_group_columns_that_cannot_be(arguments, message, pupils, quick):
    with pytest.raises(ValueError, match=message):
        quick(**arguments).fit(pupils)


@pytest.mark.parametrize("column", [None, "school"])
def test_duplicate_column_names(column, pupils, quick):
    twice = pd.concat([pupils, pupils[["score"]]], axis=1)
    with pytest.raises(ValueError, match=r"duplicate column names \['score'\]; rename or drop"):
        quick(group_column=column).fit(twice)


def test_group_column_absent_at_transform(polars_model, pupils):
    with pytest.raises(ValueError, match="group_column='school' is not a column of X"):
        polars_model.transform(pupils.drop(columns="school"))


def test_target_label_that_does_not_fit_the_columns(nested, quick):
    model = quick(group_column=["district", "school"]).fit(nested)
    with pytest.raises(ValueError, match=r"target_group .* does not occur in the fit"):
        model.translate(nested, None, target_group="school 3")


def test_unknown_container():
    with pytest.raises(ValueError, match=r"transform='arrow' is not a container.*'polars'"):
        GroupVAE().set_output(transform="arrow")
