"""What users call: shapes, order, containers, units, groups through Pipelines and searches."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import exam_formula, linear_group_posterior, linear_log_likelihood, linear_parts
from scipy.stats import norm
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skgroupvae import PUBLISHED_MODELS, GroupVAE
from skgroupvae.estimators import latent_fit
from skgroupvae.model.encoders import AverageEncoder
from skgroupvae.model.spec import DECODERS, GROUP_ENCODERS, INSTANCE_ENCODERS, REGULARIZERS

COLUMNS = ["score", "effort"]


@pytest.fixture(scope="module")
def column_model(pupils, quick):
    """Fitted with the labels in a column of the table."""
    return quick(group_column="school").fit(pupils)


# --- fit


@pytest.mark.parametrize("model", PUBLISHED_MODELS)
def test_published_models_are_reached_by_their_constructor_arguments(model, X, school, quick):
    parts = PUBLISHED_MODELS[model]
    network = quick(**parts).fit(X, groups=school).model_
    assert type(network.group_encoder) is GROUP_ENCODERS[parts["group_encoder"]]
    assert type(network.instance_encoder) is INSTANCE_ENCODERS[parts["instance_encoder"]]
    assert type(network.regularizer) is REGULARIZERS.get(parts["regularizer"], type(None))


def test_the_default_is_cxvae_with_an_instance_encoder_that_starts_at_the_posterior():
    default = {name: getattr(GroupVAE(), name) for name in PUBLISHED_MODELS["CxVAE"]}
    assert default == {**PUBLISHED_MODELS["CxVAE"], "instance_encoder": "conditional"}
    assert PUBLISHED_MODELS["CxVAE"]["instance_encoder"] == "conditional_network"


@pytest.mark.parametrize("decoder", [*DECODERS, exam_formula])
@pytest.mark.parametrize("regularizer", [*REGULARIZERS, None])
@pytest.mark.parametrize("instance_encoder", INSTANCE_ENCODERS)
@pytest.mark.parametrize("group_encoder", GROUP_ENCODERS)
def test_every_combination_of_the_family_fits(
    group_encoder, instance_encoder, regularizer, decoder, exam, quick
):
    X, groups = exam.X[:60], exam.groups[:60]
    model = quick(
        2,
        1,
        group_encoder=group_encoder,
        instance_encoder=instance_encoder,
        regularizer=regularizer,
        decoder=decoder,
        max_epochs=1,
        n_importance_samples=4,
    ).fit(X, groups=groups)
    assert np.isfinite(model.score(X, groups=groups))
    assert np.isfinite(model.history_.to_numpy()).all()


def test_parts_can_be_factories_and_modules(X, school, quick):
    module = AverageEncoder(2, 2, (4,), torch.Generator().manual_seed(0))
    before = copy.deepcopy(module.state_dict())
    model = quick(group_encoder=module, instance_encoder=INSTANCE_ENCODERS["unconditional"]).fit(
        X, groups=school
    )
    assert type(model.model_.group_encoder) is AverageEncoder
    assert model.model_.group_encoder is not module  # copied: the user's own is a parameter
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert type(model.model_.instance_encoder) is INSTANCE_ENCODERS["unconditional"]


class SlopeFormula(torch.nn.Module):
    """x = level + slope v, the slope to be learned."""

    def __init__(self, slope=5.0):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(slope))

    def forward(self, u, v):
        return u[:, :1] + self.slope * v


def test_parameters_of_a_module_decoder_are_learned_on_a_copy(quick):
    rng = np.random.RandomState(0)
    groups = np.repeat(np.arange(60), 8)
    X = (rng.normal(size=60)[groups] + 2.0 * rng.normal(size=480) + 0.2 * rng.normal(size=480))[:, None]
    formula = SlopeFormula()
    model = quick(
        1, 1, decoder=formula, noise_scale=0.2, max_epochs=100, batch_size=20, learning_rate=0.05
    ).fit(X, groups=groups)
    # 480 rows know the slope to 1 / sqrt(2 * 420), 3.4 %; four of them.
    assert abs(model.model_.decoder.formula.slope.item()) == pytest.approx(2.0, rel=0.14)
    assert formula.slope.item() == 5.0
    assert formula.slope.requires_grad


def test_double_precision_formula_works(exam, quick):
    def formula(u, v):
        return exam_formula(u.double(), v.double())

    model = quick(2, 1, decoder=formula).fit(exam.X, groups=exam.groups)
    same = quick(2, 1, decoder=exam_formula).fit(exam.X, groups=exam.groups)
    np.testing.assert_allclose(model.group_codes_, same.group_codes_, atol=1e-3)


def test_formula_may_hold_single_precision_constants(exam, quick):
    # Matrix products do not mix precisions, and the codes may come in either.
    loadings = torch.tensor([[2.0], [0.5]])
    model = quick(2, 1, decoder=lambda u, v: u @ loadings + v).fit(exam.X, groups=exam.groups)
    u, v = model.transform(exam.X, groups=exam.groups)
    np.testing.assert_allclose(model.inverse_transform(u, v), u @ loadings.numpy() + v, rtol=1e-5, atol=1e-5)
    assert np.isfinite(model.score(exam.X, groups=exam.groups))


def test_fitted_attributes(pupils_model, X, school):
    model = pupils_model
    assert model.n_features_in_ == 2
    assert model.feature_names_in_.tolist() == COLUMNS
    assert model.n_iter_ == 2
    assert model.history_.index.tolist() == [1, 2]
    assert list(model.history_) == ["loss", "reconstruction", "kl_u", "kl_v", "mutual_information"]
    assert model.noise_scale_.shape == (2,)
    assert (model.noise_scale_ > 0).all()


def test_group_codes_are_labeled_in_order_of_first_appearance(pupils_model, X, school):
    expected = list(dict.fromkeys(school))
    for table in (pupils_model.group_codes_, pupils_model.group_codes_std_):
        assert table.index.tolist() == expected
        assert table.columns.tolist() == ["u0", "u1"]
    u, _, u_std, _ = pupils_model.transform(X, groups=school, return_std=True)
    np.testing.assert_allclose(pupils_model.group_codes_.loc[school], u, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pupils_model.group_codes_std_.loc[school], u_std, rtol=1e-4)


@pytest.mark.parametrize("noise_scale", [0.05, [3.0, 0.005]])
def test_given_noise_scale_is_kept_in_the_units_of_x(noise_scale, X, school, quick):
    model = quick(noise_scale=noise_scale).fit(X, groups=school)
    np.testing.assert_allclose(model.noise_scale_, np.broadcast_to(noise_scale, 2), rtol=1e-6)


def test_history_of_early_stopping_has_held_out_columns_too(X, school, quick):
    model = quick(early_stopping=True, validation_fraction=0.25).fit(X, groups=school)
    half = [name for name in model.history_ if not name.startswith("validation_")]
    assert list(model.history_) == half + [f"validation_{name}" for name in half]


@pytest.mark.parametrize(("fraction", "n_held_out"), [(0.25, 3), (0.01, 1), (0.99, 11)])
def test_early_stopping_holds_out_whole_groups(fraction, n_held_out, X, school, quick, monkeypatch):
    seen = {}
    train = latent_fit.train

    def spy(*args, train_groups, validation_groups, **kwargs):
        seen.update(train=train_groups.tolist(), validation=validation_groups.tolist())
        return train(*args, train_groups=train_groups, validation_groups=validation_groups, **kwargs)

    monkeypatch.setattr(latent_fit, "train", spy)
    quick(early_stopping=True, validation_fraction=fraction).fit(X, groups=school)
    assert len(seen["validation"]) == n_held_out
    assert sorted([*seen["train"], *seen["validation"]]) == list(range(12))


def test_same_random_state_gives_the_same_fit_to_the_bit(X, school, quick):
    first, second, other = (quick(random_state=s).fit(X, groups=school) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(first.history_, second.history_, check_exact=True)
    pd.testing.assert_frame_equal(first.group_codes_, second.group_codes_, check_exact=True)
    assert not first.history_.equals(other.history_)


def test_random_state_instance_advances(X, school, quick):
    random_state = np.random.RandomState(0)
    first, second = (quick(random_state=random_state).fit(X, groups=school) for _ in range(2))
    assert not first.history_.equals(second.history_)


def test_refit_starts_anew(X, school, quick):
    model = quick().fit(X.to_numpy()[:, :1], groups=school)
    again = model.fit(X, groups=school)
    assert again is model
    fresh = quick().fit(X, groups=school)
    pd.testing.assert_frame_equal(model.history_, fresh.history_, check_exact=True)


def test_missing_groups_make_every_row_its_own_and_warn_at_the_callers_line(X, quick):
    with pytest.warns(UserWarning, match=r"without groups.*pass groups= to fit.*group_column") as record:
        model = quick().fit(X)
    assert len(model.group_codes_) == len(X)
    (warning,) = [w for w in record if "without groups" in str(w.message)]
    assert "\n" not in str(warning.message)
    assert warning.filename == __file__


def test_missing_groups_at_transform_make_every_row_its_own_with_a_warning(pupils_model, X):
    with pytest.warns(UserWarning, match=r"fitted with groups and now got none.*pass groups=.*group_column"):
        u, v = pupils_model.transform(X)
    alone = pupils_model.transform(X.iloc[[5]], groups=["any"])
    np.testing.assert_allclose(u[5], alone[0][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(v[5], alone[1][0], rtol=1e-4, atol=1e-5)


# --- transform


def test_transform_returns_one_row_of_each_code_a_row(pupils_model, X, school):
    u, v = pupils_model.transform(X, groups=school)
    assert u.shape == (len(X), 2)
    assert v.shape == (len(X), 2)
    for label in school.unique():
        assert len(np.unique(u[school == label], axis=0)) == 1  # u repeats within a group


def test_transform_can_return_standard_deviations(pupils_model, X, school):
    u, v, u_std, v_std = pupils_model.transform(X, groups=school, return_std=True)
    plain = pupils_model.transform(X, groups=school)
    np.testing.assert_array_equal(u, plain[0])
    np.testing.assert_array_equal(v, plain[1])
    assert u_std.shape == u.shape
    assert v_std.shape == v.shape
    assert (u_std > 0).all()
    assert (v_std > 0).all()


def test_stack_codes_puts_u_and_v_side_by_side(pupils_model, X, school):
    stacked = copy.copy(pupils_model).set_params(stack_codes=True)
    codes, stds = stacked.transform(X, groups=school, return_std=True)
    apart = pupils_model.transform(X, groups=school, return_std=True)
    np.testing.assert_array_equal(codes, np.hstack(apart[:2]))
    np.testing.assert_array_equal(stds, np.hstack(apart[2:]))
    np.testing.assert_array_equal(stacked.transform(X, groups=school), codes)


def test_feature_names_out_are_u_then_v(pupils_model):
    assert pupils_model.get_feature_names_out().tolist() == ["u0", "u1", "v0", "v1"]


def test_set_output_gives_data_frames_with_the_index_of_x(pupils_model, X, school):
    model = copy.copy(pupils_model).set_output(transform="pandas")
    u, v = model.transform(X, groups=school)
    expected = pupils_model.transform(X, groups=school)
    for table, values, names in ((u, expected[0], ["u0", "u1"]), (v, expected[1], ["v0", "v1"])):
        pd.testing.assert_frame_equal(table, pd.DataFrame(values, index=X.index, columns=names))
    stacked = model.set_params(stack_codes=True).transform(X, groups=school)
    pd.testing.assert_frame_equal(stacked, pd.concat([u, v], axis=1))
    assert stacked.columns.tolist() == model.get_feature_names_out().tolist()


def test_global_output_configuration_is_followed(pupils_model, X, school):
    with config_context(transform_output="pandas"):
        u, _ = pupils_model.transform(X, groups=school)
    assert isinstance(u, pd.DataFrame)
    assert isinstance(pupils_model.transform(X, groups=school)[0], np.ndarray)


def test_fit_transform_equals_fit_then_transform(X, school, quick):
    model = quick()
    at_once = model.fit_transform(X, groups=school)
    for first, second in zip(at_once, model.transform(X, groups=school), strict=True):
        np.testing.assert_array_equal(first, second)
    for first, second in zip(at_once, quick().fit(X, groups=school).transform(X, groups=school), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_have_the_precision_of_x(dtype, X, school, quick):
    values = X.to_numpy().astype(dtype)
    model = quick().fit(values, groups=school)
    results = [
        *model.transform(values, groups=school, return_std=True),
        *model.sample_codes(values, groups=school, random_state=0),
        model.reconstruct(values, groups=school),
        model.translate(values, school, "school 5"),
    ]
    assert {result.dtype for result in results} == {np.dtype(dtype)}


def test_float32_gives_the_results_of_float64(X, school, quick):
    narrow, wide = (
        quick().fit(X.to_numpy().astype(d), groups=school).reconstruct(X.to_numpy().astype(d), groups=school)
        for d in (np.float32, np.float64)
    )
    np.testing.assert_allclose(narrow, wide, rtol=1e-3)


def test_array_like_tables_give_the_results_of_arrays(X, school, quick):
    values = X.to_numpy()
    expected = quick().fit(values, groups=school).transform(values, groups=school)
    for table, labels in (
        (values.tolist(), list(school)),
        (np.asfortranarray(values), np.array(school, dtype=str)),
    ):
        actual = quick().fit(table, groups=labels).transform(table, groups=labels)
        for first, second in zip(actual, expected, strict=True):
            np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


# --- decode


def test_inverse_transform_decodes_in_the_units_of_x(exam_model, exam, quick):
    model = quick(2, 1, decoder=exam_formula).fit(exam.X, groups=exam.groups)
    u, v = model.transform(exam.X, groups=exam.groups)
    expected = exam_formula(torch.tensor(u), torch.tensor(v)).numpy()
    np.testing.assert_allclose(model.inverse_transform(u, v), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(model.inverse_transform(np.hstack([u, v])), model.inverse_transform(u, v))


def test_inverse_transform_of_data_frames_is_a_data_frame(pupils_model, X, school):
    model = copy.copy(pupils_model).set_output(transform="pandas")
    u, v = model.transform(X, groups=school)
    decoded = model.inverse_transform(u, v)
    expected = pupils_model.inverse_transform(u.to_numpy(), v.to_numpy())
    pd.testing.assert_frame_equal(decoded, pd.DataFrame(expected, index=X.index, columns=COLUMNS))


def test_inverse_transform_round_trips_where_there_is_no_noise(quick):
    # Two columns, two instance codes, next to no noise: what is encoded is decoded.
    rng = np.random.RandomState(0)
    groups = np.repeat(np.arange(20), 5)
    X = rng.normal(size=(100, 2)) @ [[3.0, 1.0], [0.0, 2.0]] + rng.normal(size=(20, 2))[groups]
    model = quick(decoder="linear", noise_scale=0.01).fit(X, groups=groups)
    u, v = model.transform(X, groups=groups)
    np.testing.assert_allclose(model.inverse_transform(u, v), X, atol=0.1)


def test_reconstruct_keeps_container_order_and_units(pupils_model, X, school):
    table = pupils_model.reconstruct(X, groups=school)
    assert table.index.equals(X.index)
    assert table.columns.tolist() == COLUMNS
    array = pupils_model.reconstruct(X.to_numpy(), groups=school)
    np.testing.assert_array_equal(table, array)
    # Within the spread of the column, whatever its units.
    assert (np.abs(array - X.to_numpy()).mean(axis=0) < X.std().to_numpy()).all()


# --- translate


def test_translate_takes_one_label_or_one_a_row(pupils_model, X, school):
    rows = X[school == "school 3"]
    one = pupils_model.translate(rows, "school 3", "school 5")
    many = pupils_model.translate(rows, ["school 3"] * len(rows), np.array(["school 5"] * len(rows)))
    pd.testing.assert_frame_equal(one, many)
    assert one.index.equals(rows.index)
    assert one.columns.tolist() == COLUMNS


def test_translate_row_by_row_equals_translate_label_by_label(pupils_model, X, school):
    targets = pd.Series(np.random.RandomState(0).permutation(school), index=X.index)
    at_once = pupils_model.translate(X, school, targets)
    for target in targets.unique():
        own = targets == target
        part = pupils_model.translate(X[own], school[own], target)
        np.testing.assert_allclose(at_once[own], part, rtol=1e-5, atol=1e-6)


def test_translate_to_the_own_group_equals_reconstruct(pupils_model, X, school):
    own = pupils_model.translate(X, school, school)
    np.testing.assert_allclose(own, pupils_model.reconstruct(X, groups=school), rtol=1e-5, atol=1e-6)


def test_translate_keeps_v_and_swaps_u(exam, quick):
    model = quick(2, 1, decoder=exam_formula, max_epochs=5).fit(exam.X, groups=exam.groups)
    _, v = model.transform(exam.X, groups=exam.groups)
    other = exam.groups != 7
    mean, std = model.group_codes_.loc[7], model.group_codes_std_.loc[7]
    # u and v of two groups are independent: 2 E mu + (E sigma^2 + 1) E v.
    expected = 2 * mean["u0"] + (mean["u1"] ** 2 + std["u1"] ** 2 + 1) * v[other]
    moved = model.translate(exam.X[other], exam.groups[other], 7)
    np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-3)


def test_translate_of_a_known_source_uses_the_evidence_of_the_fit(pupils_model, X, school):
    rows = X[school == "school 5"]
    whole = pupils_model.translate(rows, "school 5", "school 3")
    part = pupils_model.translate(rows.iloc[:2], "school 5", "school 3")
    np.testing.assert_allclose(part, whole.iloc[:2], rtol=1e-5, atol=1e-6)


def test_translate_infers_a_new_source_from_the_rows_themselves(pupils_model, X, school):
    rows = X[school == "school 5"]
    known = pupils_model.translate(rows, "school 5", "school 3")
    new = pupils_model.translate(rows, "somewhere else", "school 3")
    np.testing.assert_allclose(new, known, rtol=1e-5, atol=1e-6)


def test_new_source_groups_are_inferred_each_from_its_own_rows(pupils_model, X, school):
    # In an order that is not that of their labels, and beside groups of the fit.
    renamed = school.map(lambda name: f"new {name}" if name in ("school 3", "school 5", "school 9") else name)
    order = renamed.iloc[::-1].index
    moved = pupils_model.translate(X.loc[order], renamed.loc[order], "school 4")
    for name in renamed.unique():
        own = renamed.index[renamed == name]
        alone = pupils_model.translate(X.loc[own], name, "school 4")
        np.testing.assert_allclose(moved.loc[own], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [int, float, bool, "category"])
def test_the_average_group_in_a_column_of_labels_of_another_type(pupils, X, school, dtype):
    codes = school.astype("category").cat.codes
    labels = (codes % 2 == 0) if dtype is bool else codes.astype(dtype)
    model = GroupVAE(decoder="linear", group_column="school", random_state=0).fit(X.assign(school=labels))
    moved = model.translate(X.assign(school=labels), None, "average")
    assert (moved["school"] == "average").all()
    plain = GroupVAE(decoder="linear", random_state=0).fit(X, groups=labels)
    by_row = plain.translate(X, labels, "average")
    np.testing.assert_allclose(moved[["score", "effort"]], by_row, rtol=1e-5, atol=1e-6)


def test_translate_infers_a_new_target_from_context(pupils_model, X, school):
    rows, context = X[school == "school 3"], X[school == "school 5"]
    known = pupils_model.translate(rows, "school 3", "school 5")
    new = pupils_model.translate(rows, "school 3", "new", context=(context, ["new"] * len(context)))
    np.testing.assert_allclose(new, known, rtol=1e-5, atol=1e-6)


def test_context_adds_to_what_is_known_of_a_group_of_the_fit(X, school, quick):
    # Fitted with half of a group's rows, told the other half: as though fitted evidence held them all.
    late = np.zeros(len(X), dtype=bool)
    late[np.flatnonzero(school == "school 5")[::2]] = True
    model = quick().fit(X[~late], groups=school[~late])
    rows = X[school == "school 3"]
    told = model.translate(rows, "school 3", "school 5", context=(X[late], school[late]))
    all_at_once = model.translate(
        rows, "school 3", "new", context=(X[school == "school 5"], ["new"] * (school == "school 5").sum())
    )
    np.testing.assert_allclose(told, all_at_once, rtol=1e-5, atol=1e-6)
    assert not np.allclose(told, model.translate(rows, "school 3", "school 5"), rtol=1e-3)


def test_translate_between_two_new_groups_of_the_table(pupils_model, X, school):
    pair = school.isin(["school 3", "school 5"])
    renamed = "new " + school[pair]
    target = renamed.map({"new school 3": "new school 5", "new school 5": "new school 3"})
    known = pupils_model.translate(X[pair], school[pair], [label.removeprefix("new ") for label in target])
    np.testing.assert_allclose(pupils_model.translate(X[pair], renamed, target), known, rtol=1e-5, atol=1e-6)


LABEL_KINDS = {
    "tuples": lambda i: ("school", int(i)),
    "ints": int,
    "numpy ints": np.int64,
    "mixed": lambda i: ("a", int(i)) if i % 3 == 0 else (str(i) if i % 3 == 1 else int(i)),
    "timestamps": lambda i: pd.Timestamp("2020-01-01") + pd.Timedelta(days=int(i)),
    "timestamps with zone": lambda i: pd.Timestamp("2020-01-01", tz="CET") + pd.Timedelta(days=int(i)),
    "datetime64": lambda i: np.datetime64("2020-01-01") + int(i),
    "bools": lambda i: bool(i % 2),
}


@pytest.mark.parametrize("make_label", LABEL_KINDS.values(), ids=LABEL_KINDS)
def test_translate_takes_labels_of_any_hashable_kind(make_label, X, school, quick):
    numbers = pd.factorize(school)[0]
    labels = [make_label(i) for i in numbers]
    reference = quick().fit(X, groups=numbers % 2 if isinstance(labels[0], bool) else numbers)
    model = quick().fit(X, groups=labels)
    target = labels[0]
    expected = reference.translate(
        X, list(reference.group_codes_.index[:1]) * len(X), reference.group_codes_.index[0]
    )
    np.testing.assert_allclose(model.translate(X, target, target), expected, rtol=1e-5, atol=1e-6)
    per_row = model.translate(X, labels, labels)
    np.testing.assert_allclose(per_row, model.reconstruct(X, groups=labels), rtol=1e-5, atol=1e-6)
    assert list(dict.fromkeys(labels)) == model.group_codes_.index.tolist()


def test_translate_takes_categorical_labels_with_unused_levels(X, school, quick):
    labels = pd.Series(pd.Categorical(school, [*sorted(school.unique()), "never"]), index=X.index)
    model = quick().fit(X, groups=labels)
    assert len(model.group_codes_) == school.nunique()
    expected = quick().fit(X, groups=school).translate(X, school, "school 5")
    pd.testing.assert_frame_equal(model.translate(X, labels, "school 5"), expected)


# --- group_column


def test_group_column_equals_groups(column_model, pupils_model, pupils, X, school):
    pd.testing.assert_frame_equal(column_model.group_codes_, pupils_model.group_codes_, check_exact=True)
    assert column_model.n_features_in_ == 2
    assert column_model.feature_names_in_.tolist() == COLUMNS
    for first, second in zip(
        column_model.transform(pupils), pupils_model.transform(X, groups=school), strict=True
    ):
        np.testing.assert_array_equal(first, second)
    assert column_model.score(pupils) == pupils_model.score(X, groups=school)


def test_group_column_comes_back_in_its_place_with_the_labels(column_model, pupils, pupils_model, X, school):
    for column in ("school", 2, -1):
        model = copy.copy(column_model).set_params(group_column=column)
        moved = model.translate(pupils, None, target_group="school 5")
        assert moved.columns.tolist() == pupils.columns.tolist()
        assert moved.index.equals(pupils.index)
        assert (moved["school"] == "school 5").all()
        expected = pupils_model.translate(X, school, "school 5")
        pd.testing.assert_frame_equal(moved[COLUMNS], expected)
        rebuilt = model.reconstruct(pupils)
        pd.testing.assert_series_equal(rebuilt["school"], pupils["school"])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_group_column_keeps_its_place_and_dtype(place, pupils, quick):
    table = pupils[COLUMNS].copy()
    table.insert(place, "school", pupils["school"].astype("category"))
    rebuilt = quick(group_column="school").fit(table).reconstruct(table)
    assert rebuilt.columns.tolist() == table.columns.tolist()
    pd.testing.assert_series_equal(rebuilt["school"], table["school"])


def test_group_column_of_a_numeric_array(X, school, pupils_model, quick):
    numbers = pd.factorize(school)[0]
    table = np.insert(X.to_numpy(), 1, numbers, axis=1)
    for column in (1, -2):
        model = quick(group_column=column).fit(table)
        np.testing.assert_allclose(model.group_codes_, pupils_model.group_codes_, rtol=1e-5, atol=1e-6)
        target = pupils_model.group_codes_.index[4]
        moved = model.translate(table, None, target_group=4)
        assert (moved[:, 1] == 4).all()
        np.testing.assert_allclose(
            np.delete(moved, 1, axis=1), pupils_model.translate(X, school, target), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_array_equal(model.reconstruct(table)[:, 1], numbers)


def test_group_column_of_an_array_of_objects(pupils, column_model, quick):
    table = pupils.to_numpy()
    model = quick(group_column=2).fit(table)
    moved = model.translate(table, None, target_group="school 5")
    expected = column_model.translate(pupils, None, target_group="school 5")
    assert moved.shape == table.shape
    assert (moved[:, 2] == "school 5").all()
    np.testing.assert_allclose(moved[:, :2].astype(float), expected[COLUMNS], rtol=1e-5)


def test_translate_takes_explicit_sources_before_the_group_column(column_model, pupils):
    moved = column_model.translate(pupils, source_group="school 3", target_group="school 5")
    plain = column_model.translate(pupils.assign(school="school 3"), None, target_group="school 5")
    pd.testing.assert_frame_equal(moved, plain)


def test_context_with_a_group_column(column_model, pupils):
    context = pupils[pupils["school"] == "school 5"].assign(school="new")
    new = column_model.translate(pupils, None, target_group="new", context=(context, None))
    known = column_model.translate(pupils, None, target_group="school 5")
    not_moved = pupils["school"] != "school 5"
    np.testing.assert_allclose(new.loc[not_moved, COLUMNS], known.loc[not_moved, COLUMNS], rtol=1e-5)


# --- sample


def test_sample_of_new_groups(pupils_model):
    X, labels = pupils_model.sample(3, 4, random_state=0)
    assert X.shape == (12, 2)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    again, _ = pupils_model.sample(3, 4, random_state=0)
    np.testing.assert_array_equal(X, again)
    assert not np.array_equal(X, pupils_model.sample(3, 4, random_state=1)[0])


@pytest.fixture(scope="module")
def formula_model(exam, quick):
    return quick(2, 1, decoder=exam_formula, noise_scale=0.5).fit(exam.X, groups=exam.groups)


def test_sample_has_the_moments_of_the_model(formula_model):
    X, _ = formula_model.sample(4000, 5, random_state=0)
    # x = 2 mu + (sigma^2 + 1) v + e: mean 0, variance 4 + E (sigma^2 + 1)^2 + 0.25 = 4 + 6 + 0.25, where the
    # covariance within a group is 4. Over 4,000 groups the mean has the sd sqrt((4 + 6.25 / 5) / 4000) = .036
    # and, with the heavy tails of sigma^2 v, the variance to about 3 %; four of each.
    assert X.mean() == pytest.approx(0.0, abs=4 * 0.036)
    assert X.var() == pytest.approx(10.25, rel=0.12)
    means = X.reshape(4000, 5).mean(axis=1)
    assert means.var() == pytest.approx(4 + 6.25 / 5, rel=0.12)


def test_sample_of_known_groups_follows_their_posterior(formula_model):
    X, labels = formula_model.sample(group_size=4000, groups=[7, 3], random_state=0)
    assert labels.tolist() == [7] * 4000 + [3] * 4000
    # One draw of u a call, so the mean of a sample is 2 mu for that draw.
    for number, label in enumerate((7, 3)):
        mean, std = (
            formula_model.group_codes_.loc[label, "u0"],
            formula_model.group_codes_std_.loc[label, "u0"],
        )
        rows = X[4000 * number : 4000 * (number + 1)]
        assert abs(rows.mean() - 2 * mean) < 2 * 4 * std + 4 * rows.std() / np.sqrt(4000)


def test_sample_codes_are_draws_from_the_posterior(exam, quick):
    model = quick(2, 1, decoder=exam_formula, max_epochs=30).fit(exam.X, groups=exam.groups)
    u, v, u_std, v_std = model.transform(exam.X, groups=exam.groups, return_std=True)
    draws = [model.sample_codes(exam.X, groups=exam.groups, random_state=seed) for seed in range(200)]
    for mean, std, values in ((u, u_std, [d[0] for d in draws]), (v, v_std, [d[1] for d in draws])):
        values = np.array(values)
        # 200 draws of each of some 600 values: the largest z-score stays below 5. The moments of v come from
        # five points of u, so they are held to a tenth of an sd; 200 draws know an sd to 5 %, four of them.
        assert (np.abs(values.mean(axis=0) - mean) < 5 * std / np.sqrt(200) + 0.1 * std).all()
        np.testing.assert_allclose(values.std(axis=0), std, rtol=0.3)
    first = draws[0][0]
    assert all(len(np.unique(first[exam.groups == g], axis=0)) == 1 for g in range(24))


def test_sample_codes_are_decided_by_their_random_state(pupils_model, X, school):
    first, again, other = (pupils_model.sample_codes(X, groups=school, random_state=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


# --- score


CONTEXTS = pytest.mark.parametrize("context", [None, "prior"])


@CONTEXTS
def test_score_is_the_log_likelihood_of_the_groups_per_row(context, pupils_model, X, school):
    by_group = pupils_model.group_log_likelihood(X, groups=school, context=context)
    assert by_group.index.tolist() == list(dict.fromkeys(school))
    score = pupils_model.score(X, groups=school, context=context)
    assert score == pytest.approx(by_group.sum() / len(X))


@CONTEXTS
def test_score_uses_sample_weight(context, pupils_model, X, school):
    by_group = pupils_model.group_log_likelihood(X, groups=school, context=context)
    by_row = (by_group / school.value_counts()).loc[school]
    weight = np.arange(len(X), dtype=float)
    weighted = pupils_model.score(X, groups=school, sample_weight=weight, context=context)
    assert weighted == pytest.approx(np.average(by_row, weights=weight))
    one = pupils_model.score(X, groups=school, sample_weight=np.ones(len(X)), context=context)
    assert one == pytest.approx(by_row.mean())


@CONTEXTS
def test_score_samples_are_those_of_each_row_by_itself(context, pupils_model, X, school):
    together = pupils_model.score_samples(X, groups=school, context=context)
    assert together.shape == (len(X),)
    for row in range(0, len(X), 7):
        own = X.iloc[[row]], [school.iloc[row]]
        (alone,) = pupils_model.score_samples(own[0], groups=own[1], context=context)
        assert together[row] == pytest.approx(alone, rel=1e-9)
        assert pupils_model.score(own[0], groups=own[1], context=context) == pytest.approx(alone, rel=1e-9)


def test_score_is_a_function_of_model_and_data(pupils_model, X, school):
    assert pupils_model.score(X, groups=school) == pupils_model.score(X, groups=school)
    by_row = pupils_model.score_samples(X, groups=school)
    np.testing.assert_array_equal(by_row, pupils_model.score_samples(X, groups=school))


def test_labels_that_the_fit_does_not_know_are_scored_by_the_prior(pupils_model, X, school):
    new = "new " + school
    assert pupils_model.score(X, groups=new) == pupils_model.score(X, groups=school, context="prior")
    np.testing.assert_array_equal(
        pupils_model.score_samples(X, groups=new),
        pupils_model.score_samples(X, groups=school, context="prior"),
    )


@pytest.mark.filterwarnings("ignore:GroupVAE was fitted with")
def test_rows_without_labels_are_new_groups_whatever_the_labels_of_the_fit_are(X, quick):
    # The labels of the fit are the numbers that rows without labels are counted by.
    for model in (quick().fit(X, groups=np.arange(len(X)) // 2), quick().fit(X)):
        other = X.iloc[::-1]
        for method in (model.score, model.score_samples, model.group_log_likelihood):
            np.testing.assert_array_equal(method(other), method(other, context="prior"))
    codes = model.group_codes_.copy()
    model.update_groups(other)
    assert len(model.group_codes_) == 2 * len(X)
    assert model.group_codes_.index.is_unique
    np.testing.assert_allclose(model.group_codes_.loc[codes.index], codes, rtol=1e-12)


def test_rows_without_labels_do_not_add_to_groups(X, school, quick):
    model = quick().fit(X, groups=school)
    with pytest.raises(ValueError, match="groups is missing, and GroupVAE was fitted with groups"):
        model.update_groups(X)


def test_score_is_a_density_in_the_units_of_x(X, school, quick):
    # A density of c x is that of x over |c|: the fit sees the same standardised rows, the score the units.
    factors = np.array([100.0, 100.0])
    plain, scaled = (
        quick().fit(table, groups=school).score_samples(table, groups=school)
        for table in (X.to_numpy(), X.to_numpy() * factors)
    )
    np.testing.assert_allclose(scaled, plain - np.log(factors).sum(), atol=1e-3)
    plain, scaled = (
        quick().fit(table, groups=school).group_log_likelihood(table, groups=school)
        for table in (X.to_numpy(), X.to_numpy() * factors)
    )
    sizes = school.value_counts().loc[plain.index]
    np.testing.assert_allclose(scaled, plain - sizes * np.log(factors).sum(), atol=1e-3)


def test_score_of_the_linear_model_is_that_of_its_multivariate_normal(quick):
    # One row a group: log p(x) is a plain normal with the variances of both codes and the noise.
    X = np.random.RandomState(0).normal(100.0, 15.0, size=(200, 1))
    model = quick(1, 1, decoder="linear", noise_scale=5.0)
    model.fit(X, groups=np.arange(200))
    decoder = model.model_.decoder
    loadings = np.array([decoder.group_loadings.weight.item(), decoder.instance_loadings.weight.item()])
    mean = X.mean() + X.std() * decoder.group_loadings.bias.item()
    sd = np.sqrt(X.var() * (loadings**2).sum() + 25.0)
    by_row = model.score_samples(X, groups=np.arange(200), context="prior")
    expected = norm.logpdf(X[:, 0], mean, sd)
    # A noise of the user's is kept in single precision.
    np.testing.assert_allclose(by_row, expected, rtol=1e-7)
    score = model.score(X, groups=np.arange(200), context="prior")
    assert score == pytest.approx(expected.mean(), rel=1e-7)


# --- the linear model against dense normal densities


@pytest.fixture(scope="module")
def ragged():
    """Rows (N, 3) that stand by group in six groups of 1 to 9, and more of four of them and a new one."""
    rng = np.random.RandomState(4)
    sizes = np.array([1, 3, 9, 5, 2, 7])
    groups = np.repeat(np.arange(6), sizes)
    new = np.repeat([0, 2, 3, 5, 6], [2, 4, 1, 3, 5])
    means = rng.normal(size=(7, 3)) @ rng.normal(size=(3, 3))
    X, more = (
        [10.0, 0.0, -3.0] + (means[g] + rng.normal(size=(len(g), 3))) * [5.0, 0.01, 1.0]
        for g in (groups, new)
    )
    return X, groups, more, new


@pytest.fixture(scope="module", params=[(2, 2), (3, 3), (1, 1)], ids=str)
def linear_model(request, ragged, quick):
    return quick(*request.param, decoder="linear").fit(ragged[0], groups=ragged[1])


def dense(model, fitted, X, sizes) -> np.ndarray:
    """Log density (G,) of rows that stand by group, in the units of the table that was fitted."""
    sizes = np.asarray(sizes)
    standard = (X - fitted.mean(axis=0)) / fitted.std(axis=0)
    values = linear_log_likelihood(model.model_.decoder, standard, sizes)
    return values - sizes * np.log(fitted.std(axis=0)).sum()


def test_the_linear_model_does_not_train(linear_model):
    assert linear_model.history_.empty
    assert list(linear_model.history_) == [
        "loss",
        "reconstruction",
        "kl_u",
        "kl_v",
        "mutual_information",
    ]
    assert linear_model.history_.to_numpy().dtype.kind == "f"
    assert linear_model.n_iter_ == 0


def test_log_likelihoods_of_the_linear_model_are_those_of_dense_normals(linear_model, ragged):
    X, groups, _, _ = ragged
    expected = dense(linear_model, X, X, np.bincount(groups))
    by_group = linear_model.group_log_likelihood(X, groups=groups, context="prior")
    np.testing.assert_allclose(by_group, expected, rtol=1e-8)
    assert by_group.sum() == pytest.approx(expected.sum(), rel=1e-9)
    score = linear_model.score(X, groups=groups, context="prior")
    assert score == pytest.approx(expected.sum() / len(X), rel=1e-9)


def test_log_likelihood_of_the_full_linear_model_is_that_of_its_summary(ragged, quick):
    X, groups, _, _ = ragged
    model = quick(3, 3, decoder="linear").fit(X, groups=groups)
    total = model.group_log_likelihood(X, groups=groups, context="prior").sum()
    (shown,) = re.findall(r"Log-likelihood of the linear mixed model: *(-?[\d.]+)", model.summary())
    assert float(shown) == pytest.approx(total, abs=2e-3)


def test_what_is_known_of_groups_conditions_their_log_likelihoods(linear_model, ragged):
    X, groups, more, new = ragged
    labels, sizes = np.unique(new, return_counts=True)
    by_group = linear_model.group_log_likelihood(more, groups=new)
    assert by_group.index.tolist() == labels.tolist()
    for label, size in zip(labels, sizes, strict=True):
        known, rows = X[groups == label], more[new == label]
        (joint,) = dense(linear_model, X, np.vstack([known, rows]), [len(known) + size])
        before = dense(linear_model, X, known, [len(known)])[0] if len(known) else 0.0
        assert by_group[label] == pytest.approx(joint - before, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("kind", ["fit", "prior", "pair"])
def test_score_samples_of_the_linear_model_are_those_of_dense_conditional_normals(kind, linear_model, ragged):
    X, groups, more, new = ragged
    context = {"fit": None, "prior": "prior", "pair": (more, new)}[kind]
    asked = X[::-1] + 0.1  # in another order, and not the rows of the fit themselves
    actual = linear_model.score_samples(asked, groups=groups[::-1], context=context)
    for value, row, label in zip(actual, asked, groups[::-1], strict=True):
        parts = [] if kind == "prior" else [X[groups == label]]
        parts += [more[new == label]] if kind == "pair" else []
        known = np.vstack([np.empty((0, 3)), *parts])
        (joint,) = dense(linear_model, X, np.vstack([known, row]), [len(known) + 1])
        before = dense(linear_model, X, known, [len(known)])[0] if len(known) else 0.0
        assert value == pytest.approx(joint - before, rel=1e-7, abs=1e-7)


def test_codes_of_the_linear_model_are_the_exact_posterior(linear_model, ragged):
    X, groups, _, _ = ragged
    standard = (X - X.mean(axis=0)) / X.std(axis=0)
    means, covariances = linear_group_posterior(linear_model.model_.decoder, standard, np.bincount(groups))
    codes = linear_model.group_codes_.loc[range(6)]
    np.testing.assert_allclose(codes, means, rtol=1e-7, atol=1e-9)
    stds = [np.sqrt(np.diag(c)) for c in covariances]
    np.testing.assert_allclose(linear_model.group_codes_std_.loc[range(6)], stds, rtol=1e-7)


def test_quantiles_of_translations_of_the_linear_model_are_those_of_normals(linear_model, ragged):
    X, groups, _, _ = ragged
    source, target = 2, 3
    rows = X[groups == source]
    levels = [0.1, 0.5, 0.9]
    mean, intervals = linear_model.translate(rows, source, target, quantiles=levels)
    assert intervals.shape == (*rows.shape, 3)
    np.testing.assert_array_equal(mean, linear_model.translate(rows, source, target))
    decoder = linear_model.model_.decoder
    standard = (X - X.mean(axis=0)) / X.std(axis=0)
    _, covariances = linear_group_posterior(decoder, standard, np.bincount(groups))
    _, loadings, slopes, variances = linear_parts(decoder)
    precision = slopes.T / variances
    of_v = np.linalg.inv(np.eye(slopes.shape[1]) + precision @ slopes)
    pull = slopes @ of_v @ precision @ loadings  # how far a change of the source's u moves what v explains
    covariance = loadings @ covariances[target] @ loadings.T + slopes @ of_v @ slopes.T
    covariance += pull @ covariances[source] @ pull.T
    sd = np.sqrt(np.diag(covariance)) * X.std(axis=0)
    expected = mean[..., None] + sd[:, None] * norm.ppf(levels)
    np.testing.assert_allclose((intervals - expected) / sd[:, None], 0.0, atol=1e-6)


def test_quantiles_of_rows_that_stay_are_those_of_their_reconstruction(quick, ragged):
    # u and v together nearly are the row itself: what is known of their sum is far more than of either.
    X, groups, _, _ = ragged
    model = quick(3, 3, decoder="linear", noise_scale=0.02 * X.std(axis=0)).fit(X, groups=groups)
    mean, intervals = model.translate(X, groups, groups, quantiles=[0.05, 0.95])
    np.testing.assert_allclose(mean, model.reconstruct(X, groups=groups), rtol=1e-7, atol=1e-9)
    # The posterior sd of the mean of a row is below that of its noise.
    assert (np.diff(intervals) < 2 * 1.7 * 0.02 * X.std(axis=0)[:, None]).all()


@pytest.mark.parametrize("decoder", ["mlp", "linear"])
def test_quantiles_of_translations_bracket_them(decoder, X, school, quick):
    model = quick(decoder=decoder).fit(X, groups=school)
    moved, intervals = model.translate(X, school, "school 5", quantiles=[0.9, 0.1, 0.5])
    pd.testing.assert_frame_equal(moved, model.translate(X, school, "school 5"))
    assert intervals.shape == (*X.shape, 3)
    other = np.asarray(school != "school 5")
    high, low, middle = np.moveaxis(intervals[other], -1, 0)
    assert (low < moved[other]).all(axis=None)
    assert (moved[other] < high).all(axis=None)
    assert ((low < middle) & (middle < high)).all()
    one, at = model.translate(X, school, "average", quantiles=0.5)
    assert at.shape == (*X.shape, 1)
    assert np.isfinite(one.to_numpy()).all()


@pytest.mark.parametrize("quantiles", [0.0, 1.0, [0.5, 1.5], [np.nan], [[0.1], [0.9]]])
def test_quantiles_lie_between_0_and_1(quantiles, pupils_model, X, school):
    with pytest.raises(ValueError, match=r"quantiles must hold levels strictly between 0 and 1"):
        pupils_model.translate(X, school, "school 5", quantiles=quantiles)


@pytest.mark.parametrize("method", ["score", "score_samples", "group_log_likelihood"])
def test_labels_of_another_type_warn(method, exam, exam_model):
    text = exam.groups.astype(str)
    with pytest.warns(
        UserWarning, match=r"groups has labels.*str here, int in the fit.*new groups"
    ) as record:
        values = getattr(exam_model, method)(exam.X, groups=text)
    (warning,) = record
    assert warning.filename == __file__
    np.testing.assert_array_equal(values, getattr(exam_model, method)(exam.X, groups=text, context="prior"))
    # Numbers that are equal are the same label, whatever their type.
    same = getattr(exam_model, method)(exam.X, groups=exam.groups.astype(float))
    np.testing.assert_array_equal(same, getattr(exam_model, method)(exam.X, groups=exam.groups))


# --- parameters that are set after the fit


CHANGES = {
    "n_group_codes": {"n_group_codes": 5},
    "n_instance_codes": {"n_instance_codes": 4},
    "decoder": {"decoder": exam_formula},
    "linear": {"decoder": "linear"},
    "auto": {"decoder": "auto"},
    "hidden_sizes": {"hidden_sizes": (7, 3, 2)},
    "group_encoder": {"group_encoder": "product"},
    "instance_encoder": {"instance_encoder": "unconditional"},
    "regularizer": {"regularizer": None},
    "noise_scale": {"noise_scale": 0.3},
}


def every_result(model, X, school) -> list:
    """What each method gives, by value."""
    return [
        *model.transform(X, groups=school, return_std=True),
        model.reconstruct(X, groups=school),
        model.translate(X, school, "school 5"),
        model.score(X, groups=school),
        model.score_samples(X, groups=school),
        model.group_log_likelihood(X, groups=school),
        model.inverse_transform(*model.transform(X, groups=school)),
        *model.sample_codes(X, groups=school, random_state=0),
        model.sample(2, 3, random_state=0)[0],
        model.get_feature_names_out(),
        model.group_codes_,
        model.summary(),
    ]


def assert_same_results(actual, expected):
    for first, second in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("fitted", ["mlp", "linear"])
@pytest.mark.parametrize("change", CHANGES)
def test_set_params_after_the_fit_changes_no_method(change, fitted, X, school, quick, tmp_path):
    pytest.importorskip("safetensors")
    model = quick(decoder=fitted).fit(X, groups=school)
    expected = every_result(model, X, school)
    model.set_params(**CHANGES[change])
    assert_same_results(every_result(model, X, school), expected)
    model.save(tmp_path / "model.safetensors")
    # A formula is no part of the file, and is asked for again.
    custom = {name: value for name, value in CHANGES[change].items() if callable(value)}
    loaded = GroupVAE.load(tmp_path / "model.safetensors", **custom)
    assert_same_results(every_result(loaded, X, school), expected)
    assert_same_results(every_result(pickle.loads(pickle.dumps(model)), X, school), expected)
    before = model.group_codes_.copy()
    model.update_groups(X, groups="new " + school)
    np.testing.assert_allclose(model.group_codes_.loc[before.index], before, rtol=1e-12)
    # The next fit asks for what was set.
    n_codes = CHANGES[change].get("n_group_codes")
    model.fit(X, groups=school)
    assert n_codes is None or model.group_codes_.shape[1] == n_codes


# --- decoder="auto"


def test_auto_with_few_groups_is_the_linear_model(X, school, quick):
    few = school.isin(sorted(school.unique())[:5])
    auto, linear = (quick(decoder=decoder).fit(X[few], groups=school[few]) for decoder in ("auto", "linear"))
    pd.testing.assert_frame_equal(auto.group_codes_, linear.group_codes_, check_exact=True)
    assert auto.history_.empty
    assert "5 groups are too few" in auto.summary()


@pytest.mark.filterwarnings("ignore:fit diverged")
def test_auto_is_linear_where_the_network_diverges(exam):
    model = GroupVAE(learning_rate=1e30, random_state=0, verbose=False).fit(exam.X, groups=exam.groups)
    assert model.history_.empty
    assert "does not pay" in model.summary()


@pytest.mark.parametrize("decoder", ["auto", "mlp", "linear"])
def test_the_summary_says_which_model_and_why(decoder, X, school, quick):
    model = quick(decoder=decoder).fit(X, groups=school)
    text = model.summary()
    kind = "linear" if model.history_.empty else "network"
    why = (
        r"\(scales of .*; 12 groups are too few for a network\)"
        if decoder == "auto"
        else rf'\(decoder="{decoder}"\)'
    )
    assert re.search(rf"^Model: +{kind} {why}$", text, flags=re.MULTILINE)
    assert re.search(r"^Rows: +61$", text, flags=re.MULTILINE)
    assert re.search(r"^Groups: +12 of 1 to 12 rows$", text, flags=re.MULTILINE)
    for name in COLUMNS:
        assert re.search(rf"^{name} ", text, flags=re.MULTILINE)


# --- scikit-learn

NON_DEFAULT = {
    "n_group_codes": 1,
    "n_instance_codes": 1,
    "group_encoder": "average",
    "instance_encoder": "unconditional",
    "regularizer": "instance",
    "regularizer_weight": 0.5,
    "decoder": exam_formula,
    "noise_scale": np.array([1.5]),
    "hidden_sizes": [4, 5],
    "max_epochs": 2,
    "batch_size": 5,
    "learning_rate": 0.003,
    "n_decoder_samples": 3,
    "early_stopping": True,
    "validation_fraction": 0.3,
    "n_iter_no_change": 4,
    "tol": 0.01,
    "n_importance_samples": 7,
    "group_column": 1,
    "stack_codes": True,
    "n_jobs": 2,
    "random_state": 5,
    "device": torch.device("cpu"),
    "verbose": False,
} | {"n_group_codes": 2, "warm_start": True}


def test_non_default_covers_every_parameter():
    defaults = GroupVAE().get_params()
    assert set(NON_DEFAULT) == set(defaults)
    for name, value in NON_DEFAULT.items():
        assert value is not defaults[name]
        assert str(value) != str(defaults[name])


def test_fit_and_every_method_leave_the_parameters_alone(exam):
    model = GroupVAE(**NON_DEFAULT)
    before = {name: (value, copy.deepcopy(value)) for name, value in model.get_params().items()}
    table = np.column_stack([exam.X, exam.groups])
    model.fit(table)
    model.transform(table)
    model.score(table)
    model.translate(table, None, target_group=3)
    model.sample(2, 2, random_state=0)
    for name, value in model.get_params().items():
        original, copied = before[name]
        assert value is original, name
        assert np.array_equal(value, copied), name


def test_clone_of_a_fitted_estimator_is_unfitted_and_equal(exam):
    model = GroupVAE(**NON_DEFAULT).fit(np.column_stack([exam.X, exam.groups]))
    fresh = clone(model)
    assert not hasattr(fresh, "model_")
    for name, value in fresh.get_params().items():
        assert np.array_equal(value, NON_DEFAULT[name]), name


def test_clone_keeps_the_output_container(X, school, quick):
    model = clone(quick(stack_codes=True).set_output(transform="pandas")).fit(X, groups=school)
    assert isinstance(model.transform(X, groups=school), pd.DataFrame)


@pytest.mark.parametrize("decoder", ["mlp", exam_formula, SlopeFormula()], ids=["mlp", "function", "module"])
def test_pickle_keeps_every_result(decoder, exam, quick):
    model = quick(2, 1, decoder=decoder, n_importance_samples=5).fit(exam.X, groups=exam.groups)
    loaded = pickle.loads(pickle.dumps(model))
    for first, second in zip(
        loaded.transform(exam.X, groups=exam.groups), model.transform(exam.X, groups=exam.groups), strict=True
    ):
        np.testing.assert_array_equal(first, second)
    assert loaded.score(exam.X, groups=exam.groups) == model.score(exam.X, groups=exam.groups)
    np.testing.assert_array_equal(loaded.translate(exam.X, 1, 2), model.translate(exam.X, 1, 2))
    pd.testing.assert_frame_equal(loaded.history_, model.history_)


def test_deepcopy_is_independent(exam, quick):
    model = quick(2, 1).fit(exam.X, groups=exam.groups)
    before = model.transform(exam.X, groups=exam.groups)[1]
    copy.deepcopy(model).set_params(random_state=3).fit(exam.X * 2, groups=exam.groups)
    np.testing.assert_array_equal(model.transform(exam.X, groups=exam.groups)[1], before)


@pytest.fixture
def routing():
    with config_context(enable_metadata_routing=True):
        yield


def test_groups_reach_the_last_step_of_a_pipeline(X, school, quick, routing):
    pipeline = make_pipeline(StandardScaler(), quick()).fit(X, groups=school)
    scaled = StandardScaler().fit_transform(X)
    alone = quick().fit(scaled, groups=school)
    pd.testing.assert_frame_equal(pipeline[-1].group_codes_, alone.group_codes_, check_exact=True)
    for first, second in zip(
        pipeline.transform(X, groups=school), alone.transform(scaled, groups=school), strict=True
    ):
        np.testing.assert_array_equal(first, second)
    assert pipeline.score(X, groups=school) == alone.score(scaled, groups=school)
    again = clone(pipeline).fit_transform(X, groups=school)
    np.testing.assert_array_equal(again[1], alone.transform(scaled, groups=school)[1])


def test_groups_reach_the_middle_step_of_a_pipeline(X, school, quick, routing):
    pipeline = Pipeline([("codes", quick(stack_codes=True)), ("scale", StandardScaler())])
    pipeline.set_output(transform="pandas").fit(X, groups=school)
    codes = quick(stack_codes=True).fit_transform(X, groups=school)
    table = pipeline.transform(X, groups=school)
    np.testing.assert_allclose(table, StandardScaler().fit_transform(codes), atol=1e-6)
    assert table.columns.tolist() == ["u0", "u1", "v0", "v1"]


def scores_by_hand(model, X, school, values) -> np.ndarray:
    """Held-out scores (n_values, n_folds) of a plain loop."""
    return np.array(
        [
            [
                clone(model)
                .set_params(learning_rate=value)
                .fit(X.iloc[train], groups=school.iloc[train])
                .score(X.iloc[test], groups=school.iloc[test])
                for train, test in GroupKFold(3).split(X, groups=school)
            ]
            for value in values
        ]
    )


GRID = {"learning_rate": [0.001, 0.05]}


def test_groups_reach_every_fold_of_a_search(X, school, quick, routing):
    search = GridSearchCV(quick(), GRID, cv=GroupKFold(3), error_score="raise").fit(X, groups=school)
    by_fold = np.array([search.cv_results_[f"split{fold}_test_score"] for fold in range(3)]).T
    np.testing.assert_array_equal(by_fold, scores_by_hand(quick(), X, school, GRID["learning_rate"]))
    assert len(search.best_estimator_.group_codes_) == school.nunique()
    assert search.score(X, groups=school) == search.best_estimator_.score(X, groups=school)


def test_groups_reach_a_pipeline_inside_a_search(X, school, quick, routing):
    pipeline = Pipeline([("scale", StandardScaler()), ("codes", quick())])
    grid = {f"codes__{name}": values for name, values in GRID.items()}
    search = GridSearchCV(pipeline, grid, cv=GroupKFold(3), error_score="raise").fit(X, groups=school)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(search.best_estimator_[-1].group_codes_) == school.nunique()


def test_groups_reach_cross_validate(X, school, quick, routing):
    scores = cross_validate(quick(), X, params={"groups": school}, cv=GroupKFold(3), error_score="raise")
    expected = scores_by_hand(quick(), X, school, [quick().learning_rate])
    np.testing.assert_array_equal(scores["test_score"], expected[0])


def test_group_column_needs_no_routing_in_a_search(pupils, X, school, quick):
    search = GridSearchCV(quick(group_column="school"), GRID, cv=GroupKFold(3), error_score="raise")
    search.fit(pupils, groups=school)  # groups for the splitter
    by_fold = np.array([search.cv_results_[f"split{fold}_test_score"] for fold in range(3)]).T
    np.testing.assert_array_equal(by_fold, scores_by_hand(quick(), X, school, GRID["learning_rate"]))
    assert len(search.best_estimator_.group_codes_) == school.nunique()


def test_group_column_needs_no_routing_in_a_pipeline(pupils, column_model, quick):
    pipeline = Pipeline(
        [("codes", quick(group_column="school", stack_codes=True)), ("scale", StandardScaler())]
    )
    codes = np.hstack(column_model.transform(pupils))
    np.testing.assert_allclose(
        pipeline.fit_transform(pupils), StandardScaler().fit_transform(codes), atol=1e-6
    )


def test_one_row_a_group_starts_with_half_the_variance_in_each_code():
    x = np.random.default_rng(0).normal(size=(300, 2))
    model = GroupVAE(2, 2, decoder="linear", random_state=0).fit(x, groups=np.arange(300))
    # The half within groups is v, and next to nothing is noise.
    assert (model.noise_scale_ < 1e-3 * x.std(0)).all()
    slopes = model.model_.decoder.instance_loadings.weight
    np.testing.assert_allclose((slopes @ slopes.T).diagonal().numpy(), 0.5, rtol=1e-3)
    loadings = model.model_.decoder.group_loadings.weight
    np.testing.assert_allclose((loadings @ loadings.T).diagonal().numpy(), 0.5, rtol=1e-3)
