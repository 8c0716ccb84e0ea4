"""Bad input gets one line that names the argument and the remedy, and leaves the estimator as it was.

Odd input that makes sense works: see the end of the file.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import NAMES_DIFFER, assert_as_before, assert_refused, snapshot
from scipy import sparse
from sklearn.exceptions import NotFittedError

from skgroupvae import CxVAERegressor, GroupVAE, batch
from skgroupvae.estimators import latent_fit
from skgroupvae.model.decoders import CodeDecoder
from skgroupvae.model.families import GaussianFamily

N = 12
COLUMNS = ["score", "effort"]
OUTCOME, COUNTS = np.random.RandomState(7).normal(size=N), np.arange(N) % 5


def table() -> pd.DataFrame:
    return pd.DataFrame(np.random.RandomState(0).normal(size=(N, 2)), columns=COLUMNS)


GROUPS = np.repeat(["a", "b", "c"], 4)


def with_cell(value) -> pd.DataFrame:
    X = table().astype(object) if isinstance(value, str) else table()
    X.iloc[3, 1] = value
    return X


WIDE = pd.DataFrame(np.ones((N, 200)), columns=[f"column {j}" for j in range(200)])


class WrongShape(CodeDecoder):
    def mean(self, u, v):
        return torch.zeros(*v.shape[:-1], self.n_features + 1)


def formula(u, v):
    return torch.cat([u[:, :1] + v[:, :1], u[:, 1:] + v[:, 1:]], dim=1)


SHORT = {"decoder": "mlp", "max_epochs": 1, "batch_size": 2, "hidden_sizes": (4,)}
SHORT |= {"n_decoder_samples": 2, "random_state": 0, "verbose": False}


def fast(**parameters) -> GroupVAE:
    return GroupVAE(**SHORT | {"n_importance_samples": 2} | parameters)


def fast_regressor(**parameters) -> CxVAERegressor:
    return CxVAERegressor(**SHORT | {"n_prediction_samples": 4} | parameters)


MAKERS = {"GroupVAE": fast, "CxVAERegressor": fast_regressor}
both = pytest.mark.parametrize("name", MAKERS)


def data_of(name, X, y=OUTCOME) -> tuple:
    """A table, and for a regression outcomes of its rows, which are covariates then."""
    return (X,) if name == "GroupVAE" else (X, y)


class Bad(NamedTuple):
    """What a fit must refuse, and what the message must say, in this order."""

    X: Any
    groups: Any
    parameters: dict
    message: str
    y: Any = None

    def data(self, name) -> tuple:
        n_rows = self.X.shape[0] if hasattr(self.X, "shape") else len(self.X)
        return data_of(name, self.X, OUTCOME[:n_rows] if self.y is None else self.y)


# name: (X, groups, constructor arguments, what the message must say, in this order)
COMMON_FITS = {
    # lengths that differ
    "fewer labels than rows": (table(), GROUPS[:5], {}, "groups.*5 labels.*12 rows.*pass one label a row"),
    "more labels than rows": (table(), np.tile(GROUPS, 2), {}, "groups.*24 labels.*12 rows.*pass one"),
    # labels
    "None label": (table(), [None, *GROUPS[1:]], {}, "groups.*1 missing.*row 0.*drop"),
    "NaN label": (table(), np.where(np.arange(N) > 8, np.nan, 1.0), {}, "groups.*3 missing.*row 9.*drop"),
    "NaT label": (table(), pd.to_datetime([None] * N), {}, "groups.*12 missing.*drop"),
    "missing category": (
        table(),
        pd.Categorical([*GROUPS[:8]] + [None] * 4),
        {},
        "groups.*4 missing.*row 8.*drop",
    ),
    "missing nullable": (table(), pd.array([1, None] * 6, dtype="Int64"), {}, "groups.*6 missing.*drop"),
    "two-dimensional labels": (table(), np.zeros((N, 2)), {}, "groups.*one-dimensional.*list of tuples"),
    "labels that are lists": (table(), [["a"]] * N, {}, "groups.*hashable.*such as strings"),
    "one label that is a list": (table(), [*GROUPS[:-1], ["c"]], {}, "groups.*hashable.*such as strings"),
    "a label that is an array": (table(), [*GROUPS[:-1], np.zeros(2)], {}, "groups.*hashable.*such as"),
    "one number for groups": (table(), 5, {}, "groups.*one label a row"),
    "a column name for groups": (table(), "school", {}, "groups.*group_column"),
    "groups twice": (table(), GROUPS, {"group_column": "score"}, "groups.*group_column.*pass one of"),
    # the group column
    "unknown group column": (table(), None, {"group_column": "school"}, "group_column='school'.*columns are"),
    "unknown group column of many": (WIDE, None, {"group_column": "g"}, "group_column='g'.*columns are"),
    "group column out of range": (table().to_numpy(), None, {"group_column": 7}, "group_column=7.*2 columns"),
    "named group column of an array": (
        table().to_numpy(),
        None,
        {"group_column": "g"},
        "group_column.*position",
    ),
    "missing labels in the group column": (
        table().assign(g=[None, *GROUPS[1:]]),
        None,
        {"group_column": "g"},
        "group.*1 missing.*drop",
    ),
    "nothing but the group column": (table()[["score"]], None, {"group_column": "score"}, "X.*column"),
    "text beside the group column of an array": (
        np.column_stack([GROUPS, GROUPS]).astype(object),
        None,
        {"group_column": 0},
        "X.*non-numeric.*(drop|encode)",
    ),
    # cells
    "text in an array": (np.full((N, 2), "x"), GROUPS, {}, "X.*non-numeric.*(drop|encode)"),
    "text in an array of objects": (with_cell("x").to_numpy(), GROUPS, {}, "X.*non-numeric.*(drop|encode)"),
    "complex numbers": (table().to_numpy() * 1j, GROUPS, {}, "[Cc]omplex"),
    "sparse matrix": (sparse.csr_matrix(table()), GROUPS, {}, "[Ss]parse.*X.*toarray"),
    "infinite cell": (with_cell(np.inf), GROUPS, {}, r"X contains inf.*\['effort'\].*(replace|drop)"),
    "minus infinity": (
        with_cell(-np.inf).to_numpy(),
        GROUPS,
        {},
        r"X contains inf.*\[(1|'effort')\].*replace",
    ),
    "NaN in many columns": (WIDE * np.nan, GROUPS, {}, "X contains NaN.*(drop|impute)"),
    "NaN cell": (with_cell(np.nan), GROUPS, {}, r"X contains NaN.*\['effort'\].*(drop|impute)"),
    "missing nullable cell": (
        table().assign(effort=pd.array([1, None] * 6, dtype="Int64")),
        GROUPS,
        {},
        r"X contains NaN.*\['effort'\].*(drop|impute)",
    ),
    # shape
    "no rows": (table().iloc[:0], GROUPS[:0], {}, "X.*empty.*pass at least one row"),
    "no rows in an array": (np.zeros((0, 2)), GROUPS[:0], {}, "X.*empty.*pass at least one row"),
    "rows that differ in length": ([[1.0, 2.0]] * (N - 1) + [[1.0]], GROUPS, {}, "X.*rows differ in length"),
    "an empty list": ([], [], {}, "X"),
    "no columns": (np.zeros((N, 0)), GROUPS, {}, "X.*column"),
    "one-dimensional table": (table()["score"].to_numpy(), GROUPS, {}, "X.*(2D|two-dimensional).*[Rr]eshape"),
    "three-dimensional table": (np.zeros((N, 2, 2)), GROUPS, {}, "X.*(2D|two|dim)"),
    # parameters
    "unknown encoder": (table(), GROUPS, {"group_encoder": "mean"}, "group_encoder.*deepsets.*'mean'"),
    "unknown regularizer": (table(), GROUPS, {"regularizer": "none"}, "regularizer.*context.*'none'"),
    "no epochs": (table(), GROUPS, {"max_epochs": 0}, r"max_epochs.*\[1.*0"),
    "unknown device": (table(), GROUPS, {"device": "gpu"}, "device='gpu'.*use 'auto'"),
    "empty hidden sizes": (table(), GROUPS, {"hidden_sizes": ()}, r"hidden_sizes.*such as \(32, 32\)"),
    "negative hidden sizes": (table(), GROUPS, {"hidden_sizes": (8, -1)}, "hidden_sizes.*positive integers"),
    "hidden sizes of numbers with a point": (
        table(),
        GROUPS,
        {"hidden_sizes": (8.5,)},
        "hidden_sizes.*positive",
    ),
    "ragged hidden sizes": (
        table(),
        GROUPS,
        {"hidden_sizes": ((8, 8), 4)},
        "hidden_sizes.*positive integers",
    ),
}
# Of a table whose columns are all numbers to explain.
GROUP_VAE_FITS = {
    "text column": (
        table().assign(effort="high"),
        GROUPS,
        {},
        r"X.*non-numeric.*\['effort'\].*(drop|encode)",
    ),
    "text cell": (with_cell("x"), GROUPS, {}, "X.*non-numeric.*(drop|encode)"),
    "dates": (
        table().assign(day=pd.Timestamp("2020")),
        GROUPS,
        {},
        r"X.*non-numeric.*\['day'\].*(drop|encode)",
    ),
    "categories": (table().assign(c=pd.Categorical(GROUPS)), GROUPS, {}, r"X.*non-numeric.*\['c'\]"),
    "many text columns": (WIDE.astype(str), GROUPS, {}, "X.*non-numeric.*(drop|encode)"),
    # parameters
    "no codes": (table(), GROUPS, {"n_group_codes": 0}, r"n_group_codes.*\[1.*0"),
    "fractional codes": (table(), GROUPS, {"n_instance_codes": 1.5}, "n_instance_codes.*int.*1.5"),
    "zero noise": (table(), GROUPS, {"noise_scale": 0.0}, "noise_scale.*0"),
    "many noise scales": (table(), GROUPS, {"noise_scale": np.ones(200)}, "noise_scale.*2 of them"),
    "three noise scales for two columns": (
        table(),
        GROUPS,
        {"noise_scale": [1, 1, 1]},
        "noise_scale.*2 of them",
    ),
    "a negative noise scale": (table(), GROUPS, {"noise_scale": [1, -1]}, "noise_scale.*positive"),
    "NaN noise": (table(), GROUPS, {"noise_scale": [1, np.nan]}, "noise_scale.*positive"),
    "infinite noise": (table(), GROUPS, {"noise_scale": [1, np.inf]}, "noise_scale.*positive"),
    "noise scale of text": (table(), GROUPS, {"noise_scale": ["a", "b"]}, "noise_scale.*positive"),
    "no group to hold out": (table(), ["a"] * N, {"early_stopping": True}, "early_stopping.*2 groups.*False"),
    # decoders
    "decoder of one column for two": (
        table(),
        GROUPS,
        {"decoder": lambda u, v: v[:, :1]},
        r"decoder.*\(3, 2\)",
    ),
    "decoder that adds rows": (
        table(),
        GROUPS,
        {"decoder": lambda u, v: (u + v).sum(0)},
        r"decoder.*\(3, 2\)",
    ),
    "decoder that returns numpy": (
        table(),
        GROUPS,
        {"decoder": lambda u, v: np.zeros((3, 2))},
        "decoder.*ndarray",
    ),
    "decoder of one argument": (table(), GROUPS, {"decoder": lambda u: u}, "decoder.*TypeError"),
    "decoder that fails": (table(), GROUPS, {"decoder": lambda u, v: u @ v}, "decoder.*RuntimeError"),
    "decoder that needs numpy": (
        table(),
        GROUPS,
        {"decoder": lambda u, v: torch.from_numpy(np.sin(u.numpy()))},
        "decoder",
    ),
    "Decoder object of the wrong shape": (
        table(),
        GROUPS,
        {"decoder": WrongShape(2, 2, 2)},
        "decoder.*shape",
    ),
    "Decoder object of other codes": (table(), GROUPS, {"decoder": WrongShape(2, 2, 5)}, "decoder"),
}
# Of covariates and outcomes.
REGRESSOR_FITS = {
    "missing category in a fit": (
        table().assign(kind=[None, *"abc" * 3, "a", "b"]),
        GROUPS,
        {},
        r"X contains NaN.*\['kind'\].*(drop|impute)",
    ),
    "unknown slope": (table(), GROUPS, {"random_slopes": ["age"]}, "random_slopes names 'age', which is no"),
    "slope out of range": (
        table().to_numpy(),
        GROUPS,
        {"random_slopes": [7]},
        "random_slopes names '7', which is no",
    ),
    "a word for slopes": (table(), GROUPS, {"random_slopes": "all"}, "random_slopes.*auto.*'all'"),
    "unknown family": (table(), GROUPS, {"family": "normal"}, "family.*gaussian.*'normal'"),
    "a function for a family": (table(), GROUPS, {"family": lambda: 0}, "family=.*is no family.*subclass of"),
    "an instance for a family": (table(), GROUPS, {"family": GaussianFamily()}, "family=?.*(class|callable)"),
    "unknown decoder": (table(), GROUPS, {"decoder": "conv"}, "decoder.*auto.*'conv'"),
    "a formula of codes": (table(), GROUPS, {"decoder": formula}, "decoder.*auto"),
    "negative number of codes": (table(), GROUPS, {"n_extra_codes": -1}, "n_extra_codes.*-1"),
    "no draws": (table(), GROUPS, {"n_prediction_samples": 0}, "n_prediction_samples.*0"),
}
# name: (y, family, message)
BAD_OUTCOMES = {
    "none": (None, "gaussian", "^y is missing.*requires y"),
    "too few": (OUTCOME[:5], "gaussian", "y has 5 outcomes.*12 rows.*pass one"),
    "too many": (np.tile(OUTCOME, 2), "gaussian", "y has 24 outcomes.*12 rows.*pass one"),
    "NaN": (np.where(np.arange(N) == 3, np.nan, OUTCOME), "gaussian", "y contains NaN.*row 3.*drop"),
    "infinite": (np.where(np.arange(N) == 3, np.inf, OUTCOME), "gaussian", "y contains.*inf.*row 3.*drop"),
    "text": (GROUPS, "gaussian", "y must be one number a row.*'a'"),
    "one number": (3.0, "gaussian", "y"),
    "constant": (np.full(N, 2.5), "gaussian", r"y is constant \(2.5 in every row\).*check y"),
    "three-dimensional": (np.zeros((N, 2, 2)), "gaussian", "y must be one number a row"),
    "a column without a value": (
        pd.DataFrame({"a": OUTCOME, "b": np.nan}),
        "gaussian",
        "outcome 'b'.*missing in every row.*leave",
    ),
    "a constant column": (pd.DataFrame({"a": OUTCOME, "b": 1.0}), "gaussian", "outcome 'b'.*constant"),
    "an infinite cell": (
        pd.DataFrame({"a": OUTCOME, "b": [np.inf, *OUTCOME[1:]]}),
        "gaussian",
        "y contains infinite.*row 0.*drop",
    ),
    "two columns of one name": (
        pd.DataFrame(np.outer(OUTCOME, [1, -1]), columns=["a", "a"]),
        "gaussian",
        r"y has duplicate column names \['a'\].*rename",
    ),
    "counts below 0": (np.arange(N) - 1.0, "poisson", "y must be.*counts.*'?poisson'?"),
    "counts that are no whole numbers": (OUTCOME**2, "negative_binomial", "y must be.*counts"),
    "more than 0 and 1": (np.arange(N) % 3, "bernoulli", "y must be 0.*1"),
    "proportions without trials": (OUTCOME**2, "binomial", "y must have 2 columns, successes and failures"),
}
REGRESSOR_FITS |= {
    f"outcomes: {name}": (table(), GROUPS, {"family": family}, message)
    for name, (_, family, message) in BAD_OUTCOMES.items()
    if name != "none"
}


def bad_fits() -> dict[str, tuple[str, Bad]]:
    """Name of an estimator and what it must refuse, by what the test is called."""
    found = {}
    for name, own in (("GroupVAE", GROUP_VAE_FITS), ("CxVAERegressor", REGRESSOR_FITS)):
        for what, (X, groups, parameters, message) in (COMMON_FITS | own).items():
            y = BAD_OUTCOMES[what.removeprefix("outcomes: ")][0] if what.startswith("outcomes: ") else None
            found[f"{name}-{what}"] = name, Bad(X, groups, parameters, message, y)
    return found


BAD_FITS = bad_fits()


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Both, fitted; tests must not change them."""
    return {
        "GroupVAE": fast(decoder=formula).fit(table(), groups=GROUPS),
        "CxVAERegressor": fast_regressor(random_slopes=None).fit(table(), OUTCOME, groups=GROUPS),
    }


# --- fits


@pytest.mark.parametrize(("name", "bad"), BAD_FITS.values(), ids=BAD_FITS)
def test_fit_refuses_in_one_line_and_stays_unfitted(name, bad):
    model = MAKERS[name](**bad.parameters)
    before = snapshot(model)
    assert_refused(lambda: model.fit(*bad.data(name), groups=bad.groups), bad.message)
    assert_as_before(model, before)


@pytest.mark.parametrize(("name", "bad"), BAD_FITS.values(), ids=BAD_FITS)
def test_a_refused_fit_leaves_the_earlier_fit(name, bad, models):
    model = copy.deepcopy(models[name]).set_params(**bad.parameters)
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError)):
        model.fit(*bad.data(name), groups=bad.groups)
    assert_as_before(model, before)


def test_a_regression_needs_outcomes(models):
    assert_refused(lambda: fast_regressor().fit(table(), groups=GROUPS), BAD_OUTCOMES["none"][2])
    for method in ("score", "score_samples", "pit", "transform", "group_log_likelihood", "update_groups"):
        call = getattr(models["CxVAERegressor"], method)
        assert_refused(lambda call=call: call(table(), groups=GROUPS), "^y is missing")


@both
def test_a_failure_during_training_leaves_the_earlier_fit(name, models, monkeypatch):
    model = copy.deepcopy(models[name])
    before, step, calls = snapshot(model), torch.optim.Adam.step, []

    def fails_later(*args, **kwargs):
        calls.append(None)
        if len(calls) > 1:
            raise RuntimeError("later")
        return step(*args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", fails_later)
    with pytest.raises(RuntimeError, match="later"):
        model.fit(*data_of(name, table() * 2, OUTCOME + 1.0), groups=GROUPS)
    monkeypatch.undo()
    assert_as_before(model, before)
    data = data_of(name, table())
    for first, second in zip(
        model.transform(*data, groups=GROUPS), models[name].transform(*data, groups=GROUPS), strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_a_formula_that_fails_during_training_leaves_the_earlier_fit(models):
    def fails_later(u, v):
        if len(u) > 3:
            raise RuntimeError("later")
        return formula(u, v)

    model = copy.deepcopy(models["GroupVAE"]).set_params(decoder=fails_later)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="later"):
        model.fit(table() * 2, groups=GROUPS)
    assert_as_before(model, before)


BAD_UPDATES = {
    "update_groups with NaN": lambda m, data: m.update_groups(*data(with_cell(np.nan)), groups=GROUPS),
    "update_groups with too few labels": lambda m, data: m.update_groups(*data(table()), groups=GROUPS[:3]),
    "partial_fit with NaN": lambda m, data: m.partial_fit(*data(with_cell(np.nan)), groups=GROUPS),
    "partial_fit with other columns": lambda m, data: m.partial_fit(*data(table()[["score"]]), groups=GROUPS),
    "partial_fit with a parameter of no use": lambda m, data: m.set_params(learning_rate=-1.0).partial_fit(
        *data(table()), groups=GROUPS
    ),
    "partial_fit with other shapes": lambda m, data: m.set_params(
        decoder="mlp", hidden_sizes=(3,)
    ).partial_fit(*data(table()), groups=GROUPS),
    "warm start with other shapes": lambda m, data: m.set_params(
        decoder="mlp", hidden_sizes=(3,), warm_start=True
    ).fit(*data(table()), groups=GROUPS),
    "output container": lambda m, data: m.set_output(transform="xarray"),
}
FITTED_WITH = {
    "GroupVAE-mlp": ("GroupVAE", {}),
    "GroupVAE-formula": ("GroupVAE", {"decoder": formula}),
    "CxVAERegressor-mlp": ("CxVAERegressor", {}),
    "CxVAERegressor-poisson": ("CxVAERegressor", {"family": "poisson", "random_slopes": None}),
}


@pytest.fixture(scope="module", params=FITTED_WITH)
def fitted_to_counts(request):
    name, parameters = FITTED_WITH[request.param]
    data = data_of(name, table(), COUNTS)
    return name, MAKERS[name](**parameters).fit(*data, groups=GROUPS), data


@pytest.mark.parametrize("call", BAD_UPDATES.values(), ids=BAD_UPDATES)
def test_a_failed_update_leaves_the_estimator(call, fitted_to_counts):
    name, model, data = fitted_to_counts
    model, settable = copy.deepcopy(model), set(model.get_params())
    before = {name: value for name, value in snapshot(model).items() if name not in settable}
    results = model.transform(*data, groups=GROUPS)
    with pytest.raises((ValueError, TypeError)) as caught:
        call(model, lambda X: data_of(name, X, COUNTS))
    assert "\n" not in str(caught.value) or NAMES_DIFFER in str(caught.value)
    after = {name: value for name, value in vars(model).items() if name not in settable}
    assert after.keys() == before.keys()
    assert all(after[name] is value for name, (value, _) in before.items())
    for first, second in zip(results, model.transform(*data, groups=GROUPS), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("method", ["partial_fit", "fit"])
def test_another_family_cannot_go_on(method, models):
    model = copy.deepcopy(models["CxVAERegressor"]).set_params(family="student_t", warm_start=True)
    before = snapshot(model)
    assert_refused(
        lambda: getattr(model, method)(table(), OUTCOME, groups=GROUPS),
        "family='student_t' is not the 'gaussian' of the fit.*(clone|warm_start)",
    )
    assert_as_before(model, before)


def test_no_bad_decoder_is_seen_by_training(monkeypatch):
    monkeypatch.setattr(latent_fit, "train", lambda *args, **kwargs: pytest.fail("training started"))
    for decoder in (lambda u, v: v[:, :1], WrongShape(2, 2, 2)):
        with pytest.raises(ValueError, match="decoder"):
            fast(decoder=decoder).fit(table(), groups=GROUPS)


# --- methods of a fitted estimator

# name: (X, groups, message)
BAD_TABLES = {
    "too few columns": (table()[["score"]], GROUPS, "(feature|column).*effort"),
    "too few columns in an array": (table().to_numpy()[:, :1], GROUPS, "X has 1 feature.*expecting 2"),
    "too many columns": (np.zeros((N, 3)), GROUPS, "X has 3 features.*expecting 2"),
    "other names": (table().set_axis(["score", "zeal"], axis=1), GROUPS, "(name|column).*zeal"),
    "other order of names": (table()[COLUMNS[::-1]], GROUPS, "order"),
    "text column": (
        table().assign(effort="high"),
        GROUPS,
        r"(X.*non-numeric|column 'effort' must be num)",
    ),
    "text cell": (with_cell("x"), GROUPS, r"(X.*non-numeric|column 'effort' must be numbers)"),
    **{
        name: (X, groups, message)
        for name, (X, groups, parameters, message) in COMMON_FITS.items()
        if not parameters
        # These change the number or names of the columns too, and either complaint would do.
        and name not in ("NaN in many columns", "three-dimensional table", "no columns")
    },
}


@both
@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize(("X", "groups", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_transform_refuses_bad_tables_in_one_line(X, groups, message, name, models):
    model = models[name]
    before = snapshot(model)
    data = Bad(X, groups, {}, message).data(name)
    assert_refused(lambda: model.transform(*data, groups=groups), message)
    assert_as_before(model, before)


METHODS = {
    "GroupVAE": (
        "reconstruct",
        "score",
        "score_samples",
        "group_log_likelihood",
        "sample_codes",
        "update_groups",
        "partial_fit",
    ),
    "CxVAERegressor": (
        "score",
        "score_samples",
        "pit",
        "group_log_likelihood",
        "update_groups",
        "partial_fit",
        "predict",
        "sample_y",
        "predict_quantiles",
    ),
}
WITHOUT_OUTCOMES = {"predict": (), "sample_y": (2,), "predict_quantiles": ([0.5],)}


@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name, methods in METHODS.items() for method in methods]
)
@pytest.mark.parametrize(
    "bad", ["too few columns in an array", "fewer labels than rows", "NaN cell", "no rows"]
)
@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_other_methods_refuse_as_transform_does(bad, name, method, models):
    X, groups, message = BAD_TABLES[bad]
    data = Bad(X, groups, {}, message).data(name)
    if method in WITHOUT_OUTCOMES:
        data = data[:1] + WITHOUT_OUTCOMES[method]
    assert_refused(lambda: getattr(models[name], method)(*data, groups=groups), message)


X0, Y0 = table(), OUTCOME
CALLS = {
    "GroupVAE": {
        "transform": lambda m: m.transform(X0, groups=GROUPS),
        "reconstruct": lambda m: m.reconstruct(X0, groups=GROUPS),
        "score": lambda m: m.score(X0, groups=GROUPS),
        "score_samples": lambda m: m.score_samples(X0, groups=GROUPS),
        "group_log_likelihood": lambda m: m.group_log_likelihood(X0, groups=GROUPS),
        "sample_codes": lambda m: m.sample_codes(X0, groups=GROUPS),
        "update_groups": lambda m: m.update_groups(X0, groups=GROUPS),
        "summary": lambda m: m.summary(),
        "save": lambda m: m.save("nowhere.safetensors"),
        "translate": lambda m: m.translate(X0, GROUPS, "a"),
        "inverse_transform": lambda m: m.inverse_transform(np.zeros((2, 2)), np.zeros((2, 2))),
        "sample": lambda m: m.sample(2, 2),
        "get_feature_names_out": lambda m: m.get_feature_names_out(),
    },
    "CxVAERegressor": {
        "transform": lambda m: m.transform(X0, Y0, groups=GROUPS),
        "predict": lambda m: m.predict(X0, groups=GROUPS),
        "predict_quantiles": lambda m: m.predict_quantiles(X0, 0.5, groups=GROUPS),
        "sample_y": lambda m: m.sample_y(X0, groups=GROUPS),
        "score": lambda m: m.score(X0, Y0, groups=GROUPS),
        "score_samples": lambda m: m.score_samples(X0, Y0, groups=GROUPS),
        "group_log_likelihood": lambda m: m.group_log_likelihood(X0, Y0, groups=GROUPS),
        "pit": lambda m: m.pit(X0, Y0, groups=GROUPS),
        "update_groups": lambda m: m.update_groups(X0, Y0, groups=GROUPS),
        "summary": lambda m: m.summary(),
        "save": lambda m: m.save("nowhere.safetensors"),
        "translate": lambda m: m.translate(X0, Y0, GROUPS, "a"),
        "get_feature_names_out": lambda m: m.get_feature_names_out(),
    },
}


@both
def test_methods_before_fit_say_so(name):
    for call in CALLS[name].values():
        with pytest.raises(NotFittedError, match=rf"{name}.*not fitted.*'fit'") as caught:
            call(MAKERS[name]())
        assert "\n" not in str(caught.value)


# Source and target by what is wrong with them, and the message.
BAD_LABELS = {
    "unknown target": (GROUPS, "z", r"target_group \['z'\].*context="),
    "one unknown target of many": (GROUPS, ["z", *GROUPS[1:]], r"target.*\['z'\].*context"),
    "unknown tuple": (GROUPS, ("a", 1), r"target_group \[\('a', 1\)\].*context="),
    "no target": (GROUPS, None, "target_group.*one group label or one"),
    "no source": (None, "a", "source_group.*one group label or one"),
    "too few sources": (GROUPS[:3], "a", "source_group.*3 labels.*12 rows"),
    "too many targets": (GROUPS, np.tile(GROUPS, 2), "target_group.*24 labels.*12 rows"),
    "missing source": ([None, *GROUPS[1:]], "a", "source_group.*1 missing.*drop"),
    "missing target": (GROUPS, np.nan, "target_group.*missing"),
    "target of lists": (GROUPS, [["a"]] * N, "target_group.*hashable"),
    "target of a table": (GROUPS, table(), "target_group.*label"),
    "target of a dict": (GROUPS, {"a": 1}, "target_group.*label"),
}


@both
@pytest.mark.parametrize(("source", "target", "message"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_translate_refuses_labels_in_one_line(source, target, message, name, models):
    model = models[name]
    before = snapshot(model)
    assert_refused(lambda: model.translate(*data_of(name, X0), source, target), message)
    assert_as_before(model, before)


BAD_CONTEXTS = {
    "without groups": (lambda data: data(X0), r"context.*\(X, (y, )?groups\)"),
    "of one": (lambda data: (X0,), r"context.*\(X, (y, )?groups\)"),
    "of None": (lambda data: (*data(X0), None), "context.*groups"),
    "of other length": (lambda data: (*data(X0), ["z"]), "context.*1 label"),
    "with NaN": (lambda data: (*data(with_cell(np.nan)), GROUPS), "context.*NaN"),
    "with other columns": (lambda data: (*data(X0[["score"]]), GROUPS), "context.*(feature|column).*effort"),
    "of another kind": (lambda data: "prior", r"context"),
}


@both
@pytest.mark.parametrize(("context", "message"), BAD_CONTEXTS.values(), ids=BAD_CONTEXTS)
def test_context_is_refused_in_one_line(context, message, name, models):
    model = models[name]
    before = snapshot(model)
    given = context(lambda X: data_of(name, X))
    assert_refused(lambda: model.translate(*data_of(name, X0), GROUPS, "z", context=given), message)
    if name == "CxVAERegressor":
        assert_refused(lambda: model.predict(X0, groups=GROUPS, context=given), message)
    assert_as_before(model, before)


@both
def test_context_without_groups_is_not_read_as_groups_by_number(name):
    model = MAKERS[name]().fit(*data_of(name, table()), groups=np.repeat([0, 1, 2], 4))
    with pytest.raises(ValueError, match=r"context.*\(X, (y, )?groups\)"):
        model.translate(*data_of(name, table()), 0, 1, context=(*data_of(name, table()), None))


U, V = np.zeros((4, 2)), np.zeros((4, 2))
BAD_CALLS = {
    "GroupVAE": {
        "one row to many groups": (
            lambda m: m.translate(X0[:1], "a", GROUPS),
            "target_group.*12 labels.*1 row",
        ),
        "wrong columns to translate": (
            lambda m: m.translate(X0[["score"]], GROUPS, "a"),
            "(feature|column).*effort",
        ),
        "rows that differ": (lambda m: m.inverse_transform(U, V[:3]), "u and v.*one row"),
        "too few columns": (lambda m: m.inverse_transform(U), r"u and v.*2 and 2 columns"),
        "v too wide": (lambda m: m.inverse_transform(U, np.zeros((4, 3))), "u and v.*2 and 2 columns"),
        "widths that only add up": (
            lambda m: m.inverse_transform(U[:, :1], np.zeros((4, 3))),
            "u and v.*2 and 2",
        ),
        "one-dimensional": (lambda m: m.inverse_transform(U[0], V[0]), "u and v.*2 and 2 columns"),
        "text": (lambda m: m.inverse_transform(np.full((4, 2), "x"), V), "u"),
        "NaN": (lambda m: m.inverse_transform(U * np.nan, V), "u.*NaN"),
        "unknown group to sample": (lambda m: m.sample(groups=["a", "z"]), "groups.*'z'.*group_codes_"),
        "one label to sample": (lambda m: m.sample(groups="abc", random_state=0), "groups"),
        "negative number of groups": (lambda m: m.sample(-1, random_state=0), "n_groups"),
        "negative group size": (lambda m: m.sample(1, -2, random_state=0), "group_size"),
        "weights that differ in length": (
            lambda m: m.score(X0, groups=GROUPS, sample_weight=[1.0]),
            "sample_weight",
        ),
    },
    "CxVAERegressor": {
        "one row to many groups": (
            lambda m: m.translate(X0[:1], Y0[:1], "a", GROUPS),
            "target_group.*12 labels.*1 row",
        ),
        "wrong columns to translate": (
            lambda m: m.translate(X0[["score"]], Y0, GROUPS, "a"),
            "(feature|column).*effort",
        ),
        "outcomes of other rows": (
            lambda m: m.translate(X0, Y0[:3], GROUPS, "a"),
            "y has 3 outcomes.*12 rows",
        ),
        "no outcomes to translate": (lambda m: m.translate(X0, None, GROUPS, "a"), "y is missing"),
        "outcomes of a context": (
            lambda m: m.predict(X0, groups=GROUPS, context=(X0, Y0[:3], GROUPS)),
            "y of context has 3 outcomes.*12 rows",
        ),
        "no outcomes of a context": (
            lambda m: m.predict(X0, groups=GROUPS, context=(X0, None, GROUPS)),
            "y of context is missing",
        ),
        "unknown group to predict": (
            lambda m: m.predict(X0, groups=["z", *GROUPS[1:]], strict_groups=True),
            "groups has the label 'z'.*context=",
        ),
        "no group to predict": (
            lambda m: m.predict(X0, strict_groups=True),
            "strict_groups=True needs a label",
        ),
        "quantile of 1": (lambda m: m.predict_quantiles(X0, [0.5, 1.0]), "q must.*between 0 and 1"),
        "table of quantiles": (lambda m: m.predict_quantiles(X0, [[0.5]]), "q must.*between 0 and 1"),
        "quantile of NaN": (lambda m: m.translate(X0, Y0, GROUPS, "a", quantiles=np.nan), "quantiles must"),
        "trials of another family": (lambda m: m.predict(X0, trials=2), "trials is for family='binomial'"),
        "weights that differ in length": (
            lambda m: m.score(X0, Y0, groups=GROUPS, sample_weight=[1.0]),
            "sample_weight",
        ),
        "too few weights": (
            lambda m: m.score(X0, Y0, groups=GROUPS, sample_weight=[1.0] * 5),
            "sample_weight",
        ),
        "no labels to add to": (lambda m: m.update_groups(X0, Y0), "groups is missing.*pass one label a row"),
        "a word for context": (
            lambda m: m.group_log_likelihood(X0, Y0, groups=GROUPS, context="posterior"),
            "context='posterior' must be.*'prior'",
        ),
    },
}


@pytest.mark.parametrize(
    ("name", "what"), [(name, what) for name, calls in BAD_CALLS.items() for what in calls], ids=str
)
def test_other_calls_are_refused_in_one_line(name, what, models):
    call, message = BAD_CALLS[name][what]
    before = snapshot(models[name])
    assert_refused(lambda: call(models[name]), message)
    assert_as_before(models[name], before)


# --- odd input that works


def assert_usable(model, X, groups) -> None:
    name, labels = type(model).__name__, list(dict.fromkeys(groups))
    y = np.resize(OUTCOME, len(X))
    data = data_of(name, X, y)
    codes = model.transform(*data, groups=groups)
    assert all(len(values) == len(X) and np.isfinite(values).all() for values in codes)
    moved = model.translate(*data, list(groups), labels[-1])
    if name == "GroupVAE":
        stds = model.transform(X, groups=groups, return_std=True)[2:]
        results = [*stds, np.asarray(model.reconstruct(X, groups=groups), dtype=float)]
        assert np.shape(moved) == np.shape(X)
    else:
        mean, std = model.predict(X, groups=groups, return_std=True)
        assert (std > 0).all()
        results = [mean, std, model.predict_quantiles(X, [0.1, 0.9], groups=groups)]
        assert np.shape(moved) == (len(X),)
    assert all(np.isfinite(values).all() for values in [*results, np.asarray(moved, dtype=float)])
    assert np.isfinite(model.score_samples(*data, groups=groups)).all()
    assert np.isfinite(model.group_log_likelihood(*data, groups=groups)).all()
    if len(X) > 1:  # R² of one row is not defined
        assert np.isfinite(model.score(*data, groups=groups))
    assert np.isfinite(model.history_.to_numpy()).all()


def fitted(name, X, groups, **parameters):
    return MAKERS[name](**parameters).fit(*data_of(name, X, np.resize(OUTCOME, len(X))), groups=groups)


rng = np.random.RandomState(3)
BIG = rng.normal(size=(30, 2))
ODD_TABLES = {
    "groups of one row among others": (BIG, [0] * 10 + [1] + [2] * 18 + [3]),
    "every group of one row": (BIG, list(range(30))),
    "one single group": (BIG, ["only"] * 30),
    "one row": (BIG[:1], ["a"]),
    "two rows of two groups": (BIG[:2], ["a", "b"]),
    "two equal rows": (BIG[[0, 0]], ["a", "a"]),
    "a constant column": (np.column_stack([BIG, np.full(30, 7.25)]), [0, 1, 2] * 10),
    "only constant columns": (np.full((30, 2), 1e6), [0, 1, 2] * 10),
    "a column constant within groups": (np.column_stack([BIG, [0.0, 1.0, 2.0] * 10]), [0, 1, 2] * 10),
    "integers": (rng.randint(0, 50, (30, 2)), [0, 1, 2] * 10),
    "small integers": (rng.randint(0, 50, (30, 2)).astype(np.uint8), [0, 1, 2] * 10),
    "bools": (BIG > 0, [0, 1, 2] * 10),
    "columns of many kinds": (
        pd.DataFrame({"i": rng.randint(0, 9, 30), "b": BIG[:, 0] > 0, "f": BIG[:, 1].astype(np.float32)}),
        [0, 1, 2] * 10,
    ),
    "nullable columns": (
        pd.DataFrame({"i": rng.randint(0, 9, 30), "b": BIG[:, 0] > 0}).convert_dtypes(),
        [0, 1, 2] * 10,
    ),
    "columns named by numbers": (pd.DataFrame(BIG), [0, 1, 2] * 10),
    "columns named by tuples": (
        pd.DataFrame(BIG, columns=pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")])),
        [0, 1, 2] * 10,
    ),
    "two equal columns": (BIG[:, [0, 0]], [0, 1, 2] * 10),
    "more columns than rows": (rng.normal(size=(6, 20)), [0, 1, 2] * 2),
    "a far-away column": (BIG + np.array([1e9, 0.0]), [0, 1, 2] * 10),
    "an outlier": (np.vstack([BIG[:-1], [[1e8, -1e8]]]), [0, 1, 2] * 10),
    "labels that are floats": (BIG, [1.0, 2.0, 3.5] * 10),
    "memory in another order": (np.asfortranarray(BIG)[::-1], [0, 1, 2] * 10),
}


WITH = {
    "GroupVAE-network": ("GroupVAE", {}),
    # Many steps, for what stays finite in the first ones alone.
    "GroupVAE-product": ("GroupVAE", {"group_encoder": "product", "max_epochs": 20, "batch_size": 8}),
    "GroupVAE-linear": ("GroupVAE", {"decoder": "linear"}),
    "CxVAERegressor-network": ("CxVAERegressor", {"batch_size": 8}),
    "CxVAERegressor-linear": ("CxVAERegressor", {"decoder": "linear"}),
}


@pytest.mark.parametrize(("name", "parameters"), WITH.values(), ids=WITH)
@pytest.mark.parametrize(("X", "groups"), ODD_TABLES.values(), ids=ODD_TABLES)
def test_odd_tables_work(X, groups, name, parameters):
    model = fitted(name, X, groups, **parameters)
    assert_usable(model, X, groups)
    if name == "GroupVAE" and isinstance(X, pd.DataFrame):
        moved = model.translate(X, groups, groups[0])
        assert moved.columns.equals(X.columns)
        assert moved.index.equals(X.index)


@both
@pytest.mark.parametrize(
    "table", ["every group of one row", "groups of one row among others", "one single group", "one row"]
)
def test_odd_groups_work_with_either_outcome_of_the_choice(table, name):
    X, groups = ODD_TABLES[table]
    assert_usable(fitted(name, X, groups, decoder="auto"), X, groups)


def test_constant_columns_come_back_as_they_are():
    X = np.column_stack([BIG, np.full(30, 7.25)])
    groups = [0, 1, 2] * 10
    model = fast(max_epochs=20).fit(X, groups=groups)
    np.testing.assert_allclose(model.reconstruct(X, groups=groups)[:, 2], 7.25, atol=0.2)


def test_constant_covariates_change_no_prediction():
    groups, y = [0, 1, 2] * 10, np.resize(OUTCOME, 30)
    models = [
        fast_regressor(decoder="linear", random_slopes=[0]).fit(X, y, groups=groups)
        for X in (BIG, np.column_stack([BIG, np.full(30, 7.25)]))
    ]
    predictions = [
        model.predict(X, groups=groups)
        for model, X in zip(models, (BIG, np.column_stack([BIG, np.full(30, 7.25)])), strict=True)
    ]
    np.testing.assert_allclose(*predictions, rtol=1e-6)


def test_rows_of_singleton_groups_are_modeled_no_worse_than_by_one_normal():
    # Nothing tells u from v here, but the rows are plain normals, and a short fit must not lose that. Two
    # standard normals have a log-likelihood of -2.84 on average, and one nat is a lot to lose.
    X = np.random.RandomState(0).normal(size=(200, 2))
    model = fast(decoder="linear", max_epochs=5, batch_size=20, n_importance_samples=100).fit(
        X, groups=range(200)
    )
    assert model.score(X, groups=range(200)) > -2.84 - 1.0


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_outcomes_of_singleton_groups_are_modeled_no_worse_than_by_one_normal(decoder):
    # As above, of one number a row: -1.42 on average.
    X, y = np.random.RandomState(0).normal(size=(2, 200, 1))
    model = fast_regressor(decoder=decoder, batch_size=20).fit(X, y[:, 0], groups=range(200))
    of_rows = model.group_log_likelihood(X, y[:, 0], groups=range(200), context="prior")
    assert of_rows.mean() > -1.42 - 0.5


@both
def test_int_labels_in_a_float_column(name):
    X = np.column_stack([BIG, [1.0, 2.0, 5.0] * 10])
    data = data_of(name, X, np.resize(OUTCOME, 30))
    model = MAKERS[name](group_column=2).fit(*data)
    assert model.group_codes_.index.tolist() == [1, 2, 5]
    moved = model.translate(*data, None, target_group=5)
    np.testing.assert_array_equal(moved, model.translate(*data, None, target_group=5.0))
    if name == "GroupVAE":
        assert (moved[:, 2] == 5).all()


@both
def test_group_column_beside_columns_named_by_numbers(name):
    X = pd.DataFrame(BIG)
    X["school"] = ["a", "b", "c"] * 10
    data = data_of(name, X, np.resize(OUTCOME, 30))
    moved = MAKERS[name](group_column="school").fit(*data).translate(*data, None, target_group="b")
    if name == "GroupVAE":
        assert moved.columns.tolist() == [0, 1, "school"]
        assert (moved["school"] == "b").all()
    else:
        assert moved.shape == (30,)


@both
def test_very_unequal_groups(name):
    sizes = [5000, 1, 1, 2]
    X = np.random.RandomState(0).normal(size=(sum(sizes), 2))
    groups = np.repeat(np.arange(4), sizes)
    assert_usable(fitted(name, X, groups), X, groups)


@both
def test_group_larger_than_a_batch_of_rows(name, monkeypatch):
    # Whole groups always: one that holds more rows than a batch may is a batch of its own.
    defaults = batch.whole_group_batches.__kwdefaults__
    limit = defaults["max_rows"]
    monkeypatch.setitem(defaults, "max_rows", 10)
    X = np.random.RandomState(0).normal(size=(60, 2))
    labels = np.repeat(np.arange(5), [25, 4, 3, 20, 8])
    limited, data = fitted(name, X, labels), data_of(name, X, np.resize(OUTCOME, 60))
    assert_usable(limited, X, labels)
    parts = limited.transform(*data, groups=labels)
    monkeypatch.setitem(defaults, "max_rows", limit)
    for first, second in zip(parts, limited.transform(*data, groups=labels), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise_scale", [1e-6, 1e4])
def test_noise_scale_out_of_range_is_refused_in_the_units_of_the_column(noise_scale):
    x = np.random.default_rng(0).normal(size=(20, 1))
    with pytest.raises(
        ValueError, match=r"noise_scale must lie between .* standard deviations of its column"
    ):
        GroupVAE(1, 1, noise_scale=noise_scale, random_state=0).fit(x, groups=np.repeat(np.arange(4), 5))
