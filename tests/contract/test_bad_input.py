"""Bad input gets one line that names the argument and the remedy, and leaves the estimator as it was.

Odd input that makes sense works: see the end of the file.
"""

from __future__ import annotations

import copy
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.exceptions import NotFittedError

from skgroupvae import GroupVAE, batch
from skgroupvae.estimators import latent_fit
from skgroupvae.model.decoders import CodeDecoder

N = 12
COLUMNS = ["score", "effort"]


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


# name: (X, groups, constructor arguments, what the message must say, in this order)
BAD_FITS = {
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
    "many text columns": (WIDE.astype(str), GROUPS, {}, "X.*non-numeric.*(drop|encode)"),
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
    "no codes": (table(), GROUPS, {"n_group_codes": 0}, r"n_group_codes.*\[1.*0"),
    "fractional codes": (table(), GROUPS, {"n_instance_codes": 1.5}, "n_instance_codes.*int.*1.5"),
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


def fast(**parameters) -> GroupVAE:
    defaults = {
        "decoder": "mlp",
        "max_epochs": 1,
        "batch_size": 2,
        "hidden_sizes": (4,),
        "n_importance_samples": 2,
    }
    return GroupVAE(**defaults | {"random_state": 0, "verbose": False} | parameters)


@pytest.fixture(scope="module")
def fitted() -> GroupVAE:
    return fast(decoder=formula).fit(table(), groups=GROUPS)


def snapshot(model: GroupVAE) -> dict:
    """Attributes by name, with copies of what could change in place."""
    return {name: (value, copy.deepcopy(value)) for name, value in vars(model).items()}


def assert_as_before(model: GroupVAE, before: dict) -> None:
    assert set(vars(model)) == set(before)
    for name, (value, copied) in before.items():
        assert vars(model)[name] is value, name
        if isinstance(value, torch.nn.Module):
            assert all(
                torch.equal(a, b) for a, b in zip(value.parameters(), copied.parameters(), strict=True)
            )
        elif isinstance(value, (pd.DataFrame, np.ndarray)):
            np.testing.assert_array_equal(value, copied)


NAMES_DIFFER = "The feature names should match those that were passed during fit.\n"


def assert_refused(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    text = str(caught.value)
    # What is wrong with names is said in scikit-learn's own words, which other tools look for.
    assert "\n" not in text or text.startswith(NAMES_DIFFER)
    assert re.search(message, " ".join(text.split())), text
    # A line to be read, not an estimator's or a table's printout.
    assert len(text) < 400


@pytest.mark.parametrize(("X", "groups", "parameters", "message"), BAD_FITS.values(), ids=BAD_FITS)
def test_fit_refuses_in_one_line_and_stays_unfitted(X, groups, parameters, message):
    model = fast(**parameters)
    before = snapshot(model)
    assert_refused(lambda: model.fit(X, groups=groups), message)
    assert_as_before(model, before)


@pytest.mark.parametrize(("X", "groups", "parameters", "message"), BAD_FITS.values(), ids=BAD_FITS)
def test_a_refused_fit_leaves_the_earlier_fit(X, groups, parameters, message, fitted):
    model = copy.deepcopy(fitted).set_params(**parameters)
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError)):
        model.fit(X, groups=groups)
    assert_as_before(model, before)


def test_a_failure_during_training_leaves_the_earlier_fit(fitted):
    def fails_later(u, v):
        if len(u) > 3:
            raise RuntimeError("later")
        return formula(u, v)

    model = copy.deepcopy(fitted).set_params(decoder=fails_later)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="later"):
        model.fit(table() * 2, groups=GROUPS)
    assert_as_before(model, before)
    result = model.set_params(decoder=formula).transform(table(), groups=GROUPS)
    for first, second in zip(result, fitted.transform(table(), groups=GROUPS), strict=True):
        np.testing.assert_array_equal(first, second)


BAD_UPDATES = {
    "update_groups with NaN": lambda m: m.update_groups(with_cell(np.nan), groups=GROUPS),
    "update_groups with too few labels": lambda m: m.update_groups(table(), groups=GROUPS[:3]),
    "partial_fit with NaN": lambda m: m.partial_fit(with_cell(np.nan), groups=GROUPS),
    "partial_fit with other columns": lambda m: m.partial_fit(table()[["score"]], groups=GROUPS),
    "partial_fit with a parameter of no use": lambda m: m.set_params(learning_rate=-1.0).partial_fit(
        table(), groups=GROUPS
    ),
    "partial_fit with other shapes": lambda m: m.set_params(n_group_codes=1, decoder="mlp").partial_fit(
        table(), groups=GROUPS
    ),
    "warm start with other shapes": lambda m: m.set_params(
        n_group_codes=1, decoder="mlp", warm_start=True
    ).fit(table(), groups=GROUPS),
    "output container": lambda m: m.set_output(transform="xarray"),
}


@pytest.mark.parametrize("call", BAD_UPDATES.values(), ids=BAD_UPDATES)
@pytest.mark.parametrize("decoder", ["mlp", formula], ids=["mlp", "formula"])
def test_a_failed_update_leaves_the_estimator(call, decoder):
    model = fast(decoder=decoder).fit(table(), groups=GROUPS)
    parameters = set(model.get_params())
    before = {name: value for name, value in snapshot(model).items() if name not in parameters}
    results = model.transform(table(), groups=GROUPS)
    with pytest.raises((ValueError, TypeError)) as caught:
        call(model)
    assert "\n" not in str(caught.value) or str(caught.value).startswith(NAMES_DIFFER)
    after = {name: value for name, value in vars(model).items() if name not in parameters}
    assert after.keys() == before.keys()
    assert all(after[name] is value for name, (value, _) in before.items())
    for first, second in zip(results, model.transform(table(), groups=GROUPS), strict=True):
        np.testing.assert_array_equal(first, second)


def test_no_bad_decoder_is_seen_by_training(monkeypatch):
    monkeypatch.setattr(latent_fit, "train", lambda *args, **kwargs: pytest.fail("training started"))
    for decoder in (lambda u, v: v[:, :1], WrongShape(2, 2, 2)):
        with pytest.raises(ValueError, match="decoder"):
            fast(decoder=decoder).fit(table(), groups=GROUPS)


# name: (X, groups, message)
BAD_TABLES = {
    "too few columns": (table()[["score"]], GROUPS, "(feature|column).*effort"),
    "too few columns in an array": (table().to_numpy()[:, :1], GROUPS, "X has 1 feature.*expecting 2"),
    "too many columns": (np.zeros((N, 3)), GROUPS, "X has 3 features.*expecting 2"),
    "other names": (table().set_axis(["score", "zeal"], axis=1), GROUPS, "(name|column).*zeal"),
    "other order of names": (table()[COLUMNS[::-1]], GROUPS, "order"),
    **{
        name: (X, groups, message)
        for name, (X, groups, parameters, message) in BAD_FITS.items()
        if not parameters
    },
}
# These change the number or names of the columns too, and either complaint would do.
for _name in (
    "NaN in many columns",
    "many text columns",
    "dates",
    "categories",
    "three-dimensional table",
    "no columns",
):
    del BAD_TABLES[_name]
METHODS = (
    "reconstruct",
    "score",
    "score_samples",
    "group_log_likelihood",
    "sample_codes",
    "update_groups",
    "partial_fit",
)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize(("X", "groups", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_transform_refuses_bad_tables_in_one_line(X, groups, message, fitted):
    before = snapshot(fitted)
    assert_refused(lambda: fitted.transform(X, groups=groups), message)
    assert_as_before(fitted, before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "bad", ["too few columns in an array", "fewer labels than rows", "NaN cell", "no rows"]
)
@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_other_methods_refuse_as_transform_does(bad, method, fitted):
    X, groups, message = BAD_TABLES[bad]
    assert_refused(lambda: getattr(fitted, method)(X, groups=groups), message)


CALLS = {
    "transform": lambda model: model.transform(table(), groups=GROUPS),
    "reconstruct": lambda model: model.reconstruct(table(), groups=GROUPS),
    "score": lambda model: model.score(table(), groups=GROUPS),
    "score_samples": lambda model: model.score_samples(table(), groups=GROUPS),
    "group_log_likelihood": lambda model: model.group_log_likelihood(table(), groups=GROUPS),
    "sample_codes": lambda model: model.sample_codes(table(), groups=GROUPS),
    "update_groups": lambda model: model.update_groups(table(), groups=GROUPS),
    "summary": lambda model: model.summary(),
    "save": lambda model: model.save("nowhere.safetensors"),
    "translate": lambda model: model.translate(table(), GROUPS, "a"),
    "inverse_transform": lambda model: model.inverse_transform(np.zeros((2, 2)), np.zeros((2, 2))),
    "sample": lambda model: model.sample(2, 2),
    "get_feature_names_out": lambda model: model.get_feature_names_out(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_methods_before_fit_say_so(call):
    with pytest.raises(NotFittedError, match=r"GroupVAE.*not fitted.*'fit'") as caught:
        call(fast())
    assert "\n" not in str(caught.value)


X0 = table()
BAD_TRANSLATIONS = {
    "unknown target": (lambda m: m.translate(X0, GROUPS, "z"), r"target_group \['z'\].*context="),
    "one unknown target of many": (
        lambda m: m.translate(X0, GROUPS, ["z", *GROUPS[1:]]),
        r"target.*\['z'\].*context",
    ),
    "unknown tuple": (lambda m: m.translate(X0, GROUPS, ("a", 1)), r"target_group \[\('a', 1\)\].*context="),
    "no target": (lambda m: m.translate(X0, GROUPS, None), "target_group.*one group label or one"),
    "no source": (lambda m: m.translate(X0, None, target_group="a"), "source_group.*one group label or one"),
    "too few sources": (lambda m: m.translate(X0, GROUPS[:3], "a"), "source_group.*3 labels.*12 rows"),
    "too many targets": (lambda m: m.translate(X0[:1], "a", GROUPS), "target_group.*12 labels.*1 row"),
    "missing source": (lambda m: m.translate(X0, [None, *GROUPS[1:]], "a"), "source_group.*1 missing.*drop"),
    "missing target": (lambda m: m.translate(X0, GROUPS, np.nan), "target_group.*missing"),
    "target of lists": (lambda m: m.translate(X0, GROUPS, [["a"]] * N), "target_group.*hashable"),
    "target of a table": (lambda m: m.translate(X0, GROUPS, table()), "target_group.*label"),
    "target of a dict": (lambda m: m.translate(X0, GROUPS, {"a": 1}), "target_group.*label"),
    "wrong columns": (lambda m: m.translate(X0[["score"]], GROUPS, "a"), "(feature|column).*effort"),
    "context without groups": (lambda m: m.translate(X0, GROUPS, "z", context=X0), r"context.*\(X, groups\)"),
    "context of one": (lambda m: m.translate(X0, GROUPS, "z", context=(X0,)), r"context.*\(X, groups\)"),
    "context of None": (lambda m: m.translate(X0, GROUPS, "z", context=(X0, None)), "context.*groups"),
    "context of other length": (
        lambda m: m.translate(X0, GROUPS, "z", context=(X0, ["z"])),
        "context.*1 label",
    ),
    "context with NaN": (
        lambda m: m.translate(X0, GROUPS, "z", context=(with_cell(np.nan), GROUPS)),
        "context.*NaN",
    ),
}


def test_context_without_groups_is_not_read_as_groups_by_number():
    model = fast().fit(table(), groups=np.repeat([0, 1, 2], 4))
    with pytest.raises(ValueError, match=r"context.*\(X, groups\)"):
        model.translate(table(), 0, 1, context=(table(), None))


@pytest.mark.parametrize(("call", "message"), BAD_TRANSLATIONS.values(), ids=BAD_TRANSLATIONS)
def test_translate_refuses_in_one_line(call, message, fitted):
    before = snapshot(fitted)
    assert_refused(lambda: call(fitted), message)
    assert_as_before(fitted, before)


U, V = np.zeros((4, 2)), np.zeros((4, 2))
BAD_CODES = {
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
    "unknown group to sample": (
        lambda m: m.sample(groups=["a", "z"]),
        "groups.*'z'.*group_codes_",
    ),
    "one label to sample": (lambda m: m.sample(groups="abc", random_state=0), "groups"),
    "negative number of groups": (lambda m: m.sample(-1, random_state=0), "n_groups"),
    "negative group size": (lambda m: m.sample(1, -2, random_state=0), "group_size"),
    "weights that differ in length": (
        lambda m: m.score(X0, groups=GROUPS, sample_weight=[1.0]),
        "sample_weight",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD_CODES.values(), ids=BAD_CODES)
def test_other_methods_refuse_in_one_line(call, message, fitted):
    assert_refused(lambda: call(fitted), message)


# --- odd input that works


def assert_usable(model: GroupVAE, X, groups) -> None:
    for values in model.transform(X, groups=groups, return_std=True):
        assert len(values) == len(X)
        assert np.isfinite(np.asarray(values)).all()
    assert np.isfinite(np.asarray(model.reconstruct(X, groups=groups), dtype=float)).all()
    assert np.isfinite(model.score(X, groups=groups))
    assert np.isfinite(model.history_.to_numpy()).all()
    labels = list(dict.fromkeys(groups))
    moved = model.translate(X, list(groups), labels[-1])
    assert np.shape(moved) == np.shape(X)
    assert np.isfinite(np.asarray(moved, dtype=float)).all()


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


@pytest.mark.parametrize(
    "parameters",
    [{}, {"group_encoder": "product", "max_epochs": 20}, {"decoder": "linear"}, {"decoder": "auto"}],
    ids=["network", "product", "linear", "auto"],
)
@pytest.mark.parametrize(("X", "groups"), ODD_TABLES.values(), ids=ODD_TABLES)
def test_odd_tables_work(X, groups, parameters):
    model = fast(**parameters).fit(X, groups=groups)
    assert_usable(model, X, groups)
    if isinstance(X, pd.DataFrame):
        moved = model.translate(X, groups, groups[0])
        assert moved.columns.equals(X.columns)
        assert moved.index.equals(X.index)


def test_constant_columns_come_back_as_they_are():
    X = np.column_stack([BIG, np.full(30, 7.25)])
    groups = [0, 1, 2] * 10
    model = fast(max_epochs=20).fit(X, groups=groups)
    np.testing.assert_allclose(model.reconstruct(X, groups=groups)[:, 2], 7.25, atol=0.2)


def test_rows_of_singleton_groups_are_modelled_no_worse_than_by_one_normal():
    # Nothing tells u from v here, but the rows are plain normals, and a short fit must not lose that. Two
    # standard normals have a log-likelihood of -2.84 on average, and one nat is a lot to lose.
    X = np.random.RandomState(0).normal(size=(200, 2))
    model = fast(decoder="linear", max_epochs=5, batch_size=20, n_importance_samples=100).fit(
        X, groups=range(200)
    )
    assert model.score(X, groups=range(200)) > -2.84 - 1.0


def test_int_labels_in_a_float_column():
    X = np.column_stack([BIG, [1.0, 2.0, 5.0] * 10])
    model = fast(group_column=2).fit(X)
    assert model.group_codes_.index.tolist() == [1, 2, 5]
    moved = model.translate(X, None, target_group=5)
    assert (moved[:, 2] == 5).all()
    np.testing.assert_array_equal(moved, model.translate(X, None, target_group=5.0))


def test_group_column_beside_columns_named_by_numbers():
    X = pd.DataFrame(BIG)
    X["school"] = ["a", "b", "c"] * 10
    model = fast(group_column="school").fit(X)
    moved = model.translate(X, None, target_group="b")
    assert moved.columns.tolist() == [0, 1, "school"]
    assert (moved["school"] == "b").all()


def test_very_unequal_groups():
    sizes = [5000, 1, 1, 2]
    X = np.random.RandomState(0).normal(size=(sum(sizes), 2))
    groups = np.repeat(np.arange(4), sizes)
    assert_usable(fast().fit(X, groups=groups), X, groups)


def test_group_larger_than_a_batch_of_rows(monkeypatch):
    # Whole groups always: one that holds more rows than a batch may is a batch of its own.
    defaults = batch.whole_group_batches.__kwdefaults__
    limit = defaults["max_rows"]
    monkeypatch.setitem(defaults, "max_rows", 10)
    X = np.random.RandomState(0).normal(size=(60, 2))
    labels = np.repeat(np.arange(5), [25, 4, 3, 20, 8])
    limited = fast().fit(X, groups=labels)
    assert_usable(limited, X, labels)
    parts = limited.transform(X, groups=labels)
    monkeypatch.setitem(defaults, "max_rows", limit)
    for first, second in zip(parts, limited.transform(X, groups=labels), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise_scale", [1e-6, 1e4])
def test_noise_scale_out_of_range_is_refused_in_the_units_of_the_column(noise_scale):
    x = np.random.default_rng(0).normal(size=(20, 1))
    with pytest.raises(
        ValueError, match=r"noise_scale must lie between .* standard deviations of its column"
    ):
        GroupVAE(1, 1, noise_scale=noise_scale, random_state=0).fit(x, groups=np.repeat(np.arange(4), 5))
