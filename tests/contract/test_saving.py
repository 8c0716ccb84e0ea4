"""Saved files: the same estimator to the last bit, or one clear error, and never any code that runs."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import stat
import struct
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd
import pytest
import safetensors
import safetensors.numpy
import torch
from saved_files import KEY, contents, write_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from skgroupvae import PUBLISHED_MODELS, CxVAERegressor, GroupVAE, persistence
from skgroupvae.model.encoders import AverageEncoder, DeepSetsEncoder
from skgroupvae.model.families import GaussianFamily
from skgroupvae.model.regularizers import ContextRegularizer

SHORT = {"decoder": "mlp", "max_epochs": 1, "hidden_sizes": (4,), "n_decoder_samples": 2, "verbose": False}
ESTIMATORS = {
    "GroupVAE": GroupVAE(batch_size=6, n_importance_samples=10, random_state=0, **SHORT),
    "CxVAERegressor": CxVAERegressor(n_prediction_samples=8, random_state=0, **SHORT),
}
both = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


class Fit(NamedTuple):
    """A fitted estimator and what it was fitted to."""

    model: Any
    data: tuple
    groups: Any = None


def data_of(estimator, table) -> tuple:
    """The two columns of a GroupVAE; covariates and outcome of a regression."""
    others = [name for name in table.columns if name not in ("score", "effort")]
    if isinstance(estimator, GroupVAE):
        return (table[["score", "effort", *others]],)
    return table[["effort", *others]], table["score"]


def fit_of(estimator, table, groups=None, **parameters) -> Fit:
    model, data = clone(estimator).set_params(**parameters), data_of(estimator, table)
    return Fit(model.fit(*data, groups=groups), data, groups)


@pytest.fixture(scope="module", params=ESTIMATORS)
def fitted(request, pupils) -> Fit:
    """Each of the two; tests must not change it."""
    return fit_of(ESTIMATORS[request.param], pupils[["score", "effort"]], pupils["school"])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def table(pupils):
    return pupils[["score", "effort"]]


def plain(value):
    """A value in a form that `identical` compares: Modules as dicts, tensors as arrays."""
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, nn.Module):
        return {name: tensor.numpy() for name, tensor in value.state_dict().items()}
    if isinstance(value, np.random.RandomState):
        return value.get_state()
    return value.to_frame() if isinstance(value, pd.Series) else value


def identical(one, other) -> bool:
    """Same type, dtype and bytes."""
    one, other = plain(one), plain(other)
    if isinstance(one, np.ndarray) and one.dtype != object:
        same = type(other) is np.ndarray and (one.dtype, one.shape) == (other.dtype, other.shape)
        return same and one.tobytes() == other.tobytes()
    if isinstance(one, pd.Index):
        return (
            type(one) is type(other)
            and one.identical(other)
            and list(map(type, one)) == list(map(type, other))
        )
    if isinstance(one, pd.DataFrame):
        parts = [
            (x.index, x.columns, *(x.iloc[:, j].to_numpy() for j in range(x.shape[1]))) for x in (one, other)
        ]
        return len(parts[0]) == len(parts[1]) and all(map(identical, *parts))
    if isinstance(one, (tuple, list, np.ndarray)):
        return type(one) is type(other) and len(one) == len(other) and all(map(identical, one, other))
    if isinstance(one, dict):
        return type(one) is type(other) and identical(list(one.items()), list(other.items()))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def learned(model) -> dict:
    """Learned attributes by name."""
    return {name: value for name, value in sorted(vars(model).items()) if name.endswith("_")}


def as_bytes(model) -> bytes:
    """All that an estimator is, as its file."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(os.path.join(folder, "file"))
        return Path(folder, "file").read_bytes()


def assert_same(model, loaded):
    assert type(loaded) is type(model)
    for one, other in ((learned(model), learned(loaded)), (model.get_params(), loaded.get_params())):
        assert list(one) == list(other)
        for name in one:
            assert identical(one[name], other[name]), name
    assert not loaded.model_.training
    assert all(p.dtype == torch.float64 and not p.requires_grad for p in loaded.model_.parameters())
    assert as_bytes(model) == as_bytes(loaded)


def assert_works_the_same(fit: Fit, loaded):
    model, data, groups = fit
    assert_same(model, loaded)
    asks = [
        lambda m: m.transform(*data, groups=groups),
        lambda m: m.score_samples(*data, groups=groups),
        lambda m: m.score(*data, groups=groups) if groups is not None else None,
        lambda m: m.group_log_likelihood(*data, groups=groups, context="prior"),
        lambda m: m.summary(),
    ]
    if isinstance(model, GroupVAE):
        labels = list(model.group_codes_.index[:2])
        asks += [
            lambda m: m.transform(*data, groups=groups, return_std=True),
            lambda m: m.reconstruct(*data, groups=groups),
            lambda m: m.sample(2, 3, random_state=0),
            lambda m: m.sample(groups=labels, random_state=0),
        ]
        if groups is not None:
            asks.append(lambda m: m.translate(*data, source_group=groups, target_group=labels[-1]))
    else:
        asks += [
            lambda m: m.predict(data[0], groups=groups, return_std=True),
            lambda m: (
                m.predict(data[0], groups=groups, context=(*data, groups)) if groups is not None else None
            ),
            lambda m: m.predict_quantiles(data[0], [0.1, 0.5], groups=groups),
            lambda m: m.sample_y(data[0], 2, groups=groups, random_state=0),
            lambda m: m.pit(*data, groups=groups),
        ]
        if groups is not None:
            asks.append(lambda m: m.translate(*data, source_group=groups, target_group="average"))
    for ask in asks:
        assert identical(ask(model), ask(loaded))


def saved(model, path, **custom):
    model.save(path)
    return type(model).load(path, **custom)


def refusal(path, cls=GroupVAE, **arguments) -> str:
    with pytest.raises(ValueError, match="cannot load") as caught:
        cls.load(path, **arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert repr(os.fspath(path)) in message
    assert len(message) < 900
    return message


def save_and_refuse(model, path) -> str:
    model.save(path)
    return refusal(path, type(model))


# --- the same estimator


@pytest.mark.parametrize("name", PUBLISHED_MODELS)
def test_published_models(name, table, school, path):
    fit = fit_of(ESTIMATORS["GroupVAE"], table, school, **PUBLISHED_MODELS[name])
    assert_works_the_same(fit, saved(fit.model, path))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("GroupVAE", {"group_encoder": "product_with_prior", "instance_encoder": "conditional_network"}),
        ("GroupVAE", {"decoder": "linear", "hidden_sizes": [8]}),
        ("GroupVAE", {"noise_scale": np.array([3.0, 0.004]), "n_instance_codes": 1}),
        (
            "GroupVAE",
            {"early_stopping": True, "max_epochs": 4, "n_iter_no_change": 1, "validation_fraction": 0.3},
        ),
        ("GroupVAE", {"n_group_codes": np.int64(3), "learning_rate": np.float32(0.01)}),
        ("GroupVAE", {"device": torch.device("cpu"), "regularizer_weight": 0, "stack_codes": True}),
        ("CxVAERegressor", {"decoder": "linear", "random_slopes": None}),
        ("CxVAERegressor", {"decoder": "auto"}),
        ("CxVAERegressor", {"random_slopes": ["effort"], "n_extra_codes": 0, "hidden_sizes": [3, 5]}),
        ("CxVAERegressor", {"group_encoder": "product_with_prior", "regularizer": "instance"}),
        ("CxVAERegressor", {"n_extra_codes": np.int64(2), "learning_rate": np.float32(0.01)}),
        ("CxVAERegressor", {"device": torch.device("cpu"), "stack_codes": True, "weight_penalty": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value)[:40],
)
def test_parameters(name, parameters, table, school, path):
    fit = fit_of(ESTIMATORS[name], table, school, **copy.deepcopy(parameters))
    loaded = saved(fit.model, path)
    assert_works_the_same(fit, loaded)
    assert clone(loaded).get_params().keys() == fit.model.get_params().keys()


@both
def test_it_goes_on_as_the_original_would(estimator, table, school, path):
    """Also in its random draws."""
    fit = fit_of(estimator, table, school, random_state=np.random.RandomState(3))
    loaded = saved(fit.model, path)
    before = fit.model.group_codes_
    again = [m.fit(*fit.data, groups=school).group_codes_ for m in (fit.model, loaded)]
    assert identical(*again)
    assert not identical(again[0], before)


@pytest.mark.parametrize(
    "family", ["student_t", "bernoulli", "binomial", "poisson", "negative_binomial", "ordinal"]
)
def test_families(family, pupils, path):
    grade = pd.cut(pupils["score"], 4, labels=False)
    y = np.column_stack([grade, 4 - grade]) if family == "binomial" else grade
    model = CxVAERegressor(family, decoder="linear", random_slopes=None, max_epochs=1, random_state=0)
    X, school = pupils[["effort"]], pupils["school"]
    fit = Fit(model.fit(X, grade > 1 if family == "bernoulli" else y, groups=school), (X, y), school)
    if family == "bernoulli":
        fit = fit._replace(data=(X, grade > 1))
    assert_works_the_same(fit, saved(fit.model, path))


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_several_outcomes_with_gaps(decoder, pupils, path):
    y = pupils[["score", "effort"]].mask(np.arange(len(pupils))[:, None] % 9 == [0, 4])
    X = pd.DataFrame(
        {"kind": np.tile(["a", "b", "c"], 21)[: len(y)], "age": np.arange(len(y))}, index=y.index
    )
    model = clone(ESTIMATORS["CxVAERegressor"]).set_params(decoder=decoder)
    fit = Fit(model.fit(X, y, groups=pupils["school"]), (X, y), pupils["school"])
    assert_works_the_same(fit, saved(fit.model, path))


@both
def test_what_was_learned_later(estimator, table, school, path):
    fit = fit_of(estimator, table, school)
    few = tuple(part[:9] for part in fit.data)
    fit.model.partial_fit(*few, groups=school[:9])
    fit.model.update_groups(*few, groups=["new"] * 9)
    loaded = saved(fit.model, path)
    assert_works_the_same(fit, loaded)
    for model in (fit.model, loaded):
        model.partial_fit(*few, groups=["newer"] * 9)
    assert_same(fit.model, loaded)


EVERY_KIND = {
    "str": ["a", "b", "", "ä 😀", "e", "f\n"],
    "int": [3, -1, 0, 2**40, 5, 6],
    "int8": np.arange(6, dtype=np.int8),
    "uint64": np.arange(6, dtype=np.uint64) + 2**63,
    "float": [0.1, -0.0, 1e300, np.inf, 2.5, 3.0],
    "bool": np.array([True, False] * 3),
    "fixed-width str": np.array(list("abcdef")),
    "object": np.array([1, "a", 2.5, True and "b", ("a", 1), np.float32(0.5)], dtype=object),
    "int beyond 64 bit": [10**30, 1, 2, 3, 4, 5],
    "tuple": [("a", 1), ("a", 2), ("b", (1, 2.5)), ("b", (True, "x")), (), ("c",)],
    "tuple of numpy": [
        (np.int64(j), np.str_("a"), np.bool_(True), np.datetime64("2020-01-01", "s")) for j in range(6)
    ],
    "datetime64[ns]": pd.date_range("2020-01-01", periods=6).as_unit("ns"),
    "datetime64[s]": np.array(
        ["2020-01-01", "1066-10-14", "2021", "2022", "2023", "2024"], dtype="datetime64[s]"
    ),
    "Timestamp": [pd.Timestamp("2020-01-01") + pd.Timedelta(days=j) for j in range(6)],
    "time zone": pd.date_range("2020-10-24", periods=6, freq="12h", tz="Europe/Berlin"),
    "timedelta": pd.timedelta_range("1D", periods=6),
    "Timestamps in tuples": [
        (pd.Timestamp("2020-01-01", tz=z), j) for j in range(3) for z in (None, "Asia/Tokyo")
    ],
    "category": pd.Categorical(list("abcdef")),
    "Int64": pd.array(range(6), dtype="Int64"),
}


@both
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_labels_of_every_kind(kind, estimator, path):
    numbers = pd.DataFrame(np.random.RandomState(0).normal(size=(18, 2)), columns=["score", "effort"])
    labels = EVERY_KIND[kind]
    rows = np.arange(18) % 6
    labels = [labels[row] for row in rows] if isinstance(labels, list) else labels[rows]
    fit = fit_of(estimator, numbers, labels, decoder="linear")
    loaded = saved(fit.model, path)
    assert_same(fit.model, loaded)
    assert loaded.group_codes_.index.dtype == fit.model.group_codes_.index.dtype
    assert not isinstance(loaded.group_codes_.index, pd.MultiIndex)
    codes = [model.transform(*fit.data, groups=labels) for model in (fit.model, loaded)]
    assert identical(*codes)
    moved = [model.translate(*fit.data, labels, labels[4]) for model in (fit.model, loaded)]
    assert identical(*moved)


@both
@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([frozenset({j}) for j in range(3)], "frozenset"),
        ([(1, b"bytes"), (2, b"more"), (3, b"")], "bytes"),
        (list(pd.period_range("2020", periods=3, freq="M")), "PeriodIndex|Period"),
        ([SimpleNamespace, int, str], "type"),
    ],
    ids=["frozenset", "bytes", "Period", "class"],
)
def test_labels_of_other_kinds_are_refused(labels, kind, estimator, path):
    numbers = pd.DataFrame({"score": np.arange(6.0) ** 2, "effort": np.arange(6.0)})
    model = fit_of(estimator, numbers, labels * 2, decoder="linear").model
    with pytest.raises(TypeError, match=rf"cannot save state.groups.labels.*({kind}).*joblib.dump") as caught:
        model.save(path)
    assert "labels: to strings" in str(caught.value)
    assert os.listdir(path.parent) == []


@both
def test_names_of_columns_and_output_container(estimator, table, school, path):
    fit = fit_of(clone(estimator).set_output(transform="pandas"), table, school)
    loaded = saved(fit.model, path)
    assert_works_the_same(fit, loaded)
    assert isinstance(loaded.transform(*fit.data, groups=school)[0], pd.DataFrame)
    X, *y = fit.data
    with pytest.raises(ValueError, match="feature names"):
        loaded.transform(X.rename(columns={"effort": "other"}), *y, groups=school)


@both
@pytest.mark.parametrize("column", ["school", ["school"], -1], ids=str)
def test_group_column(column, estimator, pupils, path):
    fit = fit_of(estimator, pupils, group_column=column)
    assert_works_the_same(fit, saved(fit.model, path))


@both
@pytest.mark.filterwarnings("ignore:.* was fitted without groups")
def test_no_groups_and_interrupted_fit(estimator, table, path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    # As Ctrl-C in the first epoch.
    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    with pytest.warns(UserWarning, match="interrupted after 0 of 1 epochs"):
        fit = fit_of(estimator, table)
    monkeypatch.undo()
    assert fit.model.history_.empty
    assert_works_the_same(fit, saved(fit.model, path))


def test_equal_labels_are_stored_once(fitted, path):
    fitted.model.save(path)
    _, tensors = contents(path)
    assert len([name for name, array in tensors.items() if b"school 3" in array.tobytes()]) == 1
    assert {name.split(".")[0] for name in tensors} == {"network", "state"}
    assert {f"network.{name}" for name in fitted.model.model_.state_dict()} <= set(tensors)


# --- parameters that no file can hold


class Learned(nn.Module):
    """A decoder with a parameter of its own, a shared one and a buffer."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([2.0]))
        self.same_slope = self.slope
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, u, v):
        return torch.cat([self.slope * u[:, :1], v[:, :1]], dim=-1)


def formula(u, v):
    return torch.cat([3.0 * u[:, :1] + v[:, :1], v[:, :1]], dim=-1)


def other_formula(u, v):
    return torch.cat([v[:, :1], u[:, :1]], dim=-1)


def average(n_features, n_group_codes, hidden, generator):
    return AverageEncoder(n_features, n_group_codes, hidden, generator)


class OwnFamily(GaussianFamily):
    """A family of the user's."""


def test_learned_decoder(table, school, path):
    fit = fit_of(ESTIMATORS["GroupVAE"], table, school, decoder=Learned())
    assert float(fit.model.model_.decoder.formula.slope) != 2.0
    assert "a Module of yours (Learned)" in save_and_refuse(fit.model, path)
    assert_works_the_same(fit, GroupVAE.load(path, decoder=fit.model.decoder))
    fresh = Learned()
    loaded = GroupVAE.load(path, decoder=fresh)
    assert loaded.decoder is fresh
    assert identical(loaded.model_, fit.model.model_)
    assert fresh.slope.item() == 2.0  # what is passed is copied, as in `fit`


CUSTOM = {
    "GroupVAE": {"decoder": formula, "group_encoder": AverageEncoder},
    "CxVAERegressor": {
        "family": OwnFamily,
        "group_encoder": AverageEncoder,
        "regularizer": ContextRegularizer,
    },
}


@pytest.mark.parametrize("name", CUSTOM)
def test_formulas_families_and_factories(name, table, school, path):
    estimator, custom = ESTIMATORS[name], CUSTOM[name]
    fit = fit_of(estimator, table, school, **custom)
    message, first = save_and_refuse(fit.model, path), next(iter(custom))
    kinds = {"decoder": "function of yours (formula)", "family": "class of yours (OwnFamily)"}
    assert f"{first} was a {kinds[first]}" in message
    assert "group_encoder was a class of yours (AverageEncoder)" in message
    assert (
        f"no file can hold; pass load(path, {', '.join(f'{part}=...' for part in sorted(custom))})" in message
    )
    assert_works_the_same(fit, type(estimator).load(path, **custom))
    assert "group_encoder was" in refusal(path, type(estimator), **{first: custom[first]})
    assert "no parameter verbose" in refusal(path, type(estimator), **custom, verbose=True)
    assert "no parameter nonsense" in refusal(path, type(estimator), **custom, nonsense=1)


def test_modules_for_parts_of_a_regression(table, school, path):
    module = DeepSetsEncoder(2, 2, (3,), torch.Generator().manual_seed(0))
    fit = fit_of(ESTIMATORS["CxVAERegressor"], table, school, group_encoder=module, random_slopes=None)
    assert "a Module of yours (DeepSetsEncoder)" in save_and_refuse(fit.model, path)
    assert_works_the_same(fit, CxVAERegressor.load(path, group_encoder=module))
    other = DeepSetsEncoder(2, 2, (4,), torch.Generator().manual_seed(0))
    assert "its choices do not give its model" in refusal(path, CxVAERegressor, group_encoder=other)


def test_custom_part_that_is_not_that_of_the_fit(table, school, path):
    custom = {"decoder": formula, "group_encoder": average}
    fit_of(ESTIMATORS["GroupVAE"], table, school, **custom).model.save(path)
    assert "decoder.formula.slope differs" in refusal(path, **custom | {"decoder": Learned()})
    assert "ZeroDivisionError" in refusal(path, **custom | {"decoder": lambda u, v: 1 / 0})
    assert "no parameter" in refusal(path, **custom, instance_encoder=formula)


def test_custom_part_in_one_of_the_two_places(table, school, path):
    """A parameter that was changed after the fit is stored beside what the fit had."""
    model = fit_of(ESTIMATORS["GroupVAE"], table, school, decoder=formula).model.set_params(decoder="linear")
    assert "decoder was a function of yours (formula)" in save_and_refuse(model, path)
    loaded = GroupVAE.load(path, decoder=formula)
    assert loaded.decoder == "linear"
    assert_same(model, loaded)
    model = fit_of(ESTIMATORS["GroupVAE"], table, school).model.set_params(decoder=formula)
    assert "decoder was a function of yours (formula)" in save_and_refuse(model, path)
    loaded = GroupVAE.load(path, decoder=formula)
    assert loaded.decoder is formula
    assert_same(model, loaded)


def test_custom_part_that_took_the_place_of_another(table, school, path):
    model = fit_of(ESTIMATORS["GroupVAE"], table, school, decoder=formula).model
    model.set_params(decoder=other_formula)
    with pytest.warns(UserWarning, match=r"decoder was changed after the fit.*\(formula\)") as caught:
        model.save(path)
    assert caught[0].filename == __file__
    loaded = GroupVAE.load(path, decoder=formula)
    assert identical(loaded.group_codes_, model.group_codes_)
    assert identical(loaded.sample(2, 3, random_state=0), model.sample(2, 3, random_state=0))


def test_stored_parameter_cannot_be_passed(fitted, path):
    fitted.model.save(path)
    assert "leaves out no parameter decoder" in refusal(path, type(fitted.model), decoder=formula)


CHANGES = {
    "GroupVAE": [{"n_group_codes": 5}, {"decoder": "linear"}, {"hidden_sizes": (1,)}, {"verbose": True}],
    "CxVAERegressor": [
        {"family": "poisson", "n_extra_codes": 3},
        {"decoder": "linear", "hidden_sizes": (1,)},
        {"formula": "y ~ z"},
        {"group_column": "nothing", "random_slopes": None},
    ],
}


def test_parameters_changed_after_the_fit(fitted, path):
    for change in CHANGES[type(fitted.model).__name__]:
        model = copy.deepcopy(fitted.model).set_params(**change)
        loaded = saved(model, path)
        assert_works_the_same(fitted._replace(model=model), loaded)
        assert loaded.get_params().items() >= change.items()


def test_parameters_that_nothing_can_be_built_of(fitted, path):
    fitted.model.save(path)
    before = path.read_bytes()
    codes = {"n_group_codes": 0} if isinstance(fitted.model, GroupVAE) else {"family": "no such family"}
    for change in ({"max_epochs": -1}, codes):
        with pytest.raises(ValueError, match=r"cannot save .*could not be loaded") as caught:
            copy.deepcopy(fitted.model).set_params(**change).save(path)
        assert len(str(caught.value).splitlines()) == 1
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]


# --- devices


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_device_that_is_missing(fitted, path, no_cuda):
    cls, model = type(fitted.model), copy.deepcopy(fitted.model).set_params(device="cuda")
    model.save(path)
    with pytest.warns(UserWarning, match="device='cuda', which is not available.*on the CPU") as caught:
        loaded = cls.load(path)
    assert caught[0].filename == __file__
    assert loaded.device == "cpu"
    assert_same(fitted.model, loaded.set_params(device="auto"))
    model.set_params(device=torch.device("cuda", 1)).save(path)
    with pytest.warns(UserWarning, match="not available"):
        cls.load(path)
    assert cls.load(path, device="cpu").device == "cpu"
    assert cls.load(path, device=torch.device("cpu")).device == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda", "meta", "nonsense", 7, []], ids=str)
def test_device_asked_for_must_exist(device, fitted, path, no_cuda):
    fitted.model.save(path)
    assert "is not available on this machine" in refusal(path, type(fitted.model), device=device)


# --- pickle and joblib


@pytest.mark.parametrize("how", ["pickle", "joblib", "deepcopy"])
def test_other_ways_to_keep_it(how, fitted, path):
    before = as_bytes(fitted.model)
    if how == "pickle":
        loaded = pickle.loads(pickle.dumps(fitted.model))
    elif how == "joblib":
        joblib.dump(fitted.model, path)
        loaded = joblib.load(path)
    else:
        loaded = copy.deepcopy(fitted.model)
    assert_works_the_same(fitted, loaded)
    assert as_bytes(fitted.model) == before


@both
def test_unfitted_estimator_is_pickled_and_cloned(estimator):
    model = clone(estimator).set_params(device="cuda", random_state=3)
    assert pickle.loads(pickle.dumps(model)).get_params() == model.get_params()
    assert clone(model).get_params() == model.get_params()


def test_pickle_of_a_model_on_cuda(fitted, no_cuda, monkeypatch):
    model = copy.deepcopy(fitted.model).set_params(device="cuda")
    network = model.model_
    # There is no such device here, so what shows is that a copy was moved and the model left alone.
    device_of = property(lambda self: torch.device("cuda" if self is network else "cpu"))
    monkeypatch.setattr(type(network), "device", device_of)
    assert model.__getstate__()["model_"] is not network
    assert model.model_ is network
    content = pickle.dumps(model)
    monkeypatch.undo()
    assert_works_the_same(fitted._replace(model=model), pickle.loads(content))
    model.device = "nonsense"
    pickle.loads(pickle.dumps(model))


# --- modes of files, and what is no file


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


posix = pytest.mark.skipif(os.name == "nt", reason="modes and pipes of POSIX")


@posix
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o000])
def test_new_file_has_the_mode_of_any_new_file(mask, fitted, path, tmp_path):
    with umask(mask):
        (tmp_path / "plain").write_text("")
        fitted.model.save(path)
    assert mode_of(path) == mode_of(tmp_path / "plain") == 0o666 & ~mask


@posix
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o640, 0o755])
def test_existing_file_keeps_its_mode(mode, fitted, path, tmp_path):
    path.write_text("older")
    path.chmod(mode)
    (tmp_path / "link").symlink_to(path)
    with umask(0o027):
        fitted.model.save(tmp_path / "link")
    assert mode_of(path) == mode
    type(fitted.model).load(path)


@posix
def test_private_file_is_never_readable_by_others(fitted, path, monkeypatch):
    path.write_text("older")
    path.chmod(0o600)
    seen, read = [], safetensors.safe_open

    def watched(scratch, **arguments):
        seen.append(mode_of(scratch))
        return read(scratch, **arguments)

    monkeypatch.setattr(safetensors, "safe_open", watched)
    with umask(0):
        fitted.model.save(path)
    assert seen == [0o600]


@posix
def test_pipe_and_device_are_refused_and_left(fitted, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link", "/dev/null"):
        for what, use in (("save", fitted.model.save), ("load", type(fitted.model).load)):
            with pytest.raises(
                ValueError, match=rf"cannot {what} '.*': it is a pipe or a device; name a file"
            ):
                use(path)
    assert stat.S_ISFIFO(os.stat(pipe).st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_missing_files_and_directories(fitted, tmp_path):
    save, load = fitted.model.save, type(fitted.model).load
    with pytest.raises(IsADirectoryError):
        save(tmp_path)
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "nothing" / "model")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
    assert os.listdir(tmp_path) == []


def test_failed_save_keeps_the_older_file(fitted, path, monkeypatch):
    fitted.model.save(path)
    before = path.read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    for where, name in ((os, "fsync"), (os, "chmod"), (os, "replace"), (safetensors, "safe_open")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, full_disk)
            with pytest.raises((OSError, ValueError), match="No space"):
                fitted.model.save(path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]


def test_link_is_followed_and_relative_paths_work(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("real")
    fitted.model.save("link")
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "real").is_symlink()
    assert_same(fitted.model, type(fitted.model).load(b"real"))


# --- files that are whole, but not for us


@both
def test_unfitted_is_not_saved(estimator, path):
    with pytest.raises(NotFittedError):
        clone(estimator).save(path)
    assert not path.exists()


def test_without_safetensors(fitted, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for use in (fitted.model.save, type(fitted.model).load):
        with pytest.raises(ImportError, match=re.escape('pip install "skgroupvae[save]"')):
            use(path)


class OtherVAE(GroupVAE):
    """Another class of estimator."""


def test_another_class(fitted, path):
    fitted.model.save(path)
    name = type(fitted.model).__name__
    assert f"it holds a {name}; use {name}.load" in refusal(path, OtherVAE)
    other = CxVAERegressor if isinstance(fitted.model, GroupVAE) else GroupVAE
    assert f"it holds a {name}; use {name}.load" in refusal(path, other)
    # Neither does the state of one make the other.
    document, tensors = contents(path)
    write_file(path, document | {"class": other.__name__, "parameters": {}}, tensors)
    refusal(path, other)


def test_foreign_files(fitted, path):
    cls = type(fitted.model)
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(3)}, metadata={"format": "pt"}))
    assert "a safetensors file, but not one of skgroupvae" in refusal(path, cls)
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(3)}))
    assert "a safetensors file, but not one of skgroupvae" in refusal(path, cls)
    for content in (b"", b"text\n", pickle.dumps(fitted.model), np.random.RandomState(0).bytes(5000)):
        path.write_bytes(content)
        assert "not a file of skgroupvae" in refusal(path, cls)


def test_versions(fitted, path):
    cls = type(fitted.model)
    fitted.model.save(path)
    document, tensors = contents(path)
    assert document["format"] == 1
    write_file(path, document | {"format": 7, "version": "9.9"}, tensors)
    assert "written by skgroupvae 9.9 in format 7; this version reads up to 1; upgrade" in refusal(path, cls)
    write_file(path, document | {"format": 0, "version": "0.0.1"}, tensors)
    assert "written by skgroupvae 0.0.1 in format 0" in refusal(path, cls)


def test_parameters_that_came_later(fitted, path):
    cls, name = type(fitted.model), "learning_rate"
    copy.deepcopy(fitted.model).set_params(learning_rate=0.5).save(path)
    document, tensors = contents(path)
    del document["parameters"][name]
    write_file(path, document, tensors)
    assert cls.load(path).learning_rate == cls().learning_rate
    document["parameters"]["of_the_future"] = 1
    write_file(path, document, tensors)
    assert "of_the_future" in refusal(path, cls)


def test_fresh_process(exam, exam_model, tmp_path):
    fit = Fit(
        CxVAERegressor(decoder="linear", random_state=0), (np.arange(len(exam.X))[:, None], exam.X[:, 0])
    )
    fit.model.fit(*fit.data, groups=exam.groups).save(tmp_path / "CxVAERegressor")
    exam_model.save(tmp_path / "GroupVAE")
    np.savez(tmp_path / "data.npz", X=exam.X, x=fit.data[0], groups=exam.groups)
    program = (
        "import numpy as np; from skgroupvae import CxVAERegressor, GroupVAE\n"
        "data = np.load('data.npz'); X, x, groups = data['X'], data['x'], data['groups']\n"
        "print(float.hex(GroupVAE.load('GroupVAE').score(X, groups=groups)))\n"
        "print(float.hex(CxVAERegressor.load('CxVAERegressor').score(x, X[:, 0], groups=groups)))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(persistence.__file__).parents[2])}
    answer = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    expected = exam_model.score(exam.X, groups=exam.groups), fit.model.score(*fit.data, groups=exam.groups)
    assert answer.stdout.split() == list(map(float.hex, expected))


# --- files that are damaged or hostile


@pytest.fixture(scope="module", params=["GroupVAE", "CxVAERegressor"])
def tiny(request, tmp_path_factory):
    """A very small model, and its file; that of a regression has a formula."""
    x, labels = np.arange(8.0), ["a", "b", "c", "d"] * 2
    parameters = {
        "max_epochs": 1,
        "decoder": "mlp",
        "hidden_sizes": (2,),
        "random_state": 0,
        "verbose": False,
    }
    if request.param == "GroupVAE":
        model = GroupVAE(1, 1, noise_scale=[1.0], **parameters).fit(x[:, None], groups=labels)
    else:
        pytest.importorskip("formulaic")
        table = pd.DataFrame({"y": x**2, "x": x, "sex": list("mmfm") * 2, "g": labels})
        model = CxVAERegressor(formula="y ~ poly(x, 2) + sex + (1 | g)", **parameters).fit(table)
    file = tmp_path_factory.mktemp("tiny") / "model"
    model.save(file)
    return SimpleNamespace(cls=type(model), content=file.read_bytes(), model=model, contents=contents(file))


def outcome(path, tiny, *, same=False) -> str:
    """How loading ends: refused on one line, or an estimator, with `same` the one that was saved."""
    try:
        loaded = tiny.cls.load(path)
    except Exception as caught:
        error = caught
    else:
        error = None
    if error is not None:
        assert type(error) is ValueError, error
        assert len(str(error).splitlines()) == 1
        assert repr(os.fspath(path)) in str(error)
        return "refused"
    if same:
        assert_same(tiny.model, loaded)
    return "loaded"


def mutated(content: bytes, kind: int, rng: np.random.RandomState) -> bytes:
    header = 8 + struct.unpack("<Q", content[:8])[0]
    # Half of the time in the header, which is most of what there is to get wrong.
    where = int(rng.randint(header if rng.rand() < 0.5 else len(content)))
    if kind == 0:
        return content[:where]
    if kind == 1:
        return content[:where] + bytes([content[where] ^ (1 << int(rng.randint(8)))]) + content[where + 1 :]
    if kind == 2:
        return content[:where] + rng.bytes(int(rng.randint(1, 9))) + content[where:]
    if kind == 3:
        return content[:where] + content[where + int(rng.randint(1, 9)) :]
    if kind == 4:
        other = int(rng.randint(len(content) - 16))
        return content[:where] + content[other : other + 16] + content[where + 16 :]
    if kind == 5:
        lengths = [0, 1, header - 9, header - 7, len(content), 2**31, 2**40, 2**63, 2**64 - 1]
        length = lengths[rng.randint(len(lengths))]
        return struct.pack("<Q", length) + content[8:]
    return struct.pack("<Q", int(rng.randint(1, 60))) + b"{" + rng.bytes(int(rng.randint(1, 200)))


def test_mutated_files(tiny, path):
    rng = np.random.RandomState(0)
    outcomes = []
    for number in range(420):
        path.write_bytes(mutated(tiny.content, number % 7, rng))
        outcomes.append(outcome(path, tiny, same=True))
    assert outcomes.count("refused") > 390


def test_one_wrong_bit_of_the_data_is_called_damage(tiny, path):
    header = 8 + struct.unpack("<Q", tiny.content[:8])[0]
    for where in np.random.RandomState(0).randint(header, len(tiny.content), 20):
        changed = bytes([tiny.content[where] ^ 1])
        path.write_bytes(tiny.content[:where] + changed + tiny.content[where + 1 :])
        assert "damaged" in refusal(path, tiny.cls)


def test_every_truncation_at_a_boundary(tiny, path):
    header = 8 + struct.unpack("<Q", tiny.content[:8])[0]
    for stop in (*range(12), header - 1, header, header + 1, len(tiny.content) - 1):
        path.write_bytes(tiny.content[:stop])
        assert outcome(path, tiny) == "refused"
    path.write_bytes(tiny.content + b"\0")
    assert outcome(path, tiny) == "refused"


HOSTILE = [
    None,
    True,
    -1,
    0,
    10**9,
    10**30,
    1e308,
    "",
    "os.system",
    "__class__",
    "a\nb\u2028c",
    "cuda",
    [],
    [None],
    {},
    {"float": ["nan"]},
    {"float": [["x"]]},
    {"os.system": ["touch canary"]},
    {"tuple": []},
    {"tuple": [10**6, 10**6]},
    {"dict": [[[], 1]]},
    {"device": ["meta"]},
    {"scalar": ["|O", "0" * 16]},
    {"scalar": ["<f8,O", "0" * 32]},
    {"scalar": ["<M8[ns]", "00" * 8]},
    {"scalar": ["<U99999999", ""]},
    {"timestamp": [0, "dateutil//etc/passwd"]},
    {"timestamp": [0, "../../../etc/passwd"]},
    {"range": [0, 10**18, 1, None]},
    {"range": [0, 10**10, 1, {"dict": []}]},
    {"array": ["<f8", [10**12], "C", "state.mixed_model.parameters"]},
    {"array": ["<f8", [0, 10**15], "C", "state.mixed_model.parameters"]},
    {"array": ["<U0", [10**12], "C", "state.mixed_model.parameters"]},
    {"array": ["|O", [1], "C", "state.mixed_model.parameters"]},
    {"array": ["<f8", [float("nan")], "C", "state.mixed_model.parameters"]},
    {"array": ["<f8", [-1], "Q", "nothing"]},
    {"tensor": [{"array": ["<f8", [0, 10**15], "C", "nothing"]}]},
    {
        "frame": [
            {"range": [0, 10**10, 1, None]},
            {"range": [0, 1, 1, None]},
            [{"range": [0, 10**10, 1, None]}],
        ]
    },
    {"frame": [{"range": [0, 2**24, 1, None]}, {"range": [0, 1, 1, None]}, [1]]},
    {"datetimes": [{"range": [0, 10**10, 1, None]}, None, None]},
    {"index": [{"range": [0, 10**10, 1, None]}, None, None]},
    {"multi_index": [[{"range": [0, 10**10, 1, None]}], ["a"]]},
    {"multi_index": [[[1, 2], [1]], [None, {"dict": []}]]},
    {"random_state": ["MT19937", {"array": ["<u4", [624], "C", "state.mixed_model.fixed"]}, 10**9, 0, 0.0]},
    {"FittedState": []},
    {"ScoreState": [["spec", None]]},
    {"LatentSpec": [["decoder"]]},
    {"Choice": [["model", "a"], ["reason", "b"], ["gain", None]]},
    {"RandomTerm": [[[], 1]]},
    {"Formula": [["outcome", "y"], ["terms", [[["open('canary', 'w')", "python"]]]], ["random", []]]},
    {"Formula": [["outcome", "y"], ["terms", [[["open('canary', 'w')", "literal"]]]], ["random", []]]},
]


def places(value, at=()):
    """Paths to all values inside a JSON document."""
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def at_place(document, at):
    for key in at:
        document = document[key]
    return document


def replaced(document, at, value):
    """Copy of a document with another value at that place."""
    if not at:
        return value
    document = copy.copy(document)
    document[at[0]] = replaced(document[at[0]], at[1:], value)
    return document


def place_of(document, field) -> tuple:
    """Where a field of the state stands."""
    ((name, fields),) = document["state"].items()
    return "state", name, [name for name, _ in fields].index(field), 1


@pytest.mark.filterwarnings("ignore:.*was saved with device")
def test_edited_documents(tiny, path, monkeypatch, tmp_path):
    """Forged with a digest that is right: refused, or an estimator of data that is other data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("it ran a command"))
    rng = np.random.RandomState(1)
    document, tensors = tiny.contents
    anywhere = [at for at in places(document) if at and at != ("sha256",)]
    for number in range(400):
        edited = document
        for _ in range(1 + number % 2):
            at = anywhere[rng.randint(len(anywhere))]
            try:
                edited = replaced(edited, at, HOSTILE[rng.randint(len(HOSTILE))])
            except (KeyError, IndexError, TypeError):
                continue  # the first edit took that place away
        write_file(path, edited, tensors, is_sealed=number % 4 > 0)
        outcome(path, tiny, same=number % 4 == 0)
    assert os.listdir(tmp_path) == [path.name]


def test_missing_and_additional_entries(tiny, path):
    document, tensors = tiny.contents
    for name in document:
        write_file(
            path, {k: v for k, v in document.items() if k != name}, tensors, is_sealed=name != "sha256"
        )
        assert outcome(path, tiny) == "refused", name
    parameters = document["parameters"]
    for name in parameters:
        less = {k: v for k, v in parameters.items() if k != name}
        write_file(path, document | {"parameters": less}, tensors)
        outcome(path, tiny)
    for name in ("transform", "_validate_params", "__class__", "__init__", "fit", "not a name", "model_\n"):
        write_file(path, document | {"parameters": parameters | {name: 1}}, tensors)
        assert outcome(path, tiny) == "refused", name
    write_file(path, document | {"parameters": parameters | {"max_epochs": 9}}, tensors)
    assert tiny.cls.load(path).max_epochs == 9


def test_missing_and_additional_fields_of_records(tiny, path):
    document, tensors = tiny.contents
    records = [
        at for at in places(document["state"]) if at and isinstance(at[-1], str) and at[-1][0].isupper()
    ]
    names = {at[-1] for at in records}
    assert names > {"Column", "Choice", "LinearMixedModel", "Summaries"}
    assert "Formula" in names or tiny.cls is GroupVAE
    for at in (("state", *at) for at in records):
        fields = at_place(document, at)
        for number in range(len(fields)):
            changed = [*fields[:number], *fields[number + 1 :]]
            write_file(path, replaced(document, at, changed), tensors)
            assert outcome(path, tiny) == "refused", (at, fields[number][0])
        for name in ("_device", "__class__", "__init__", "not a name"):
            write_file(path, replaced(document, at, [*fields, [name, 1]]), tensors)
            assert outcome(path, tiny) == "refused"


def test_hostile_values_everywhere_they_could_be_built(tiny, path):
    document, tensors = tiny.contents
    for value in HOSTILE:
        for where in (
            ("class",),
            ("format",),
            ("version",),
            ("custom",),
            ("state",),
            place_of(document, "model"),
        ):
            write_file(path, replaced(document, where, value), tensors)
            harmless = {
                "version": "[nan]" not in repr(value),  # only messages show it, but NaN has no digest
                "format": value is True,  # True is 1
                "custom": value in ("", [], {}),
            }
            expected = "loaded" if harmless.get(where[-1], False) else "refused"
            assert outcome(path, tiny) == expected, (where, value)


@pytest.mark.parametrize(
    "choices",
    [
        {"hidden_sizes": {"tuple": [200_000, 200_000]}},
        {"hidden_sizes": {"tuple": [4096] * 1000}},
        {"n_group_codes": 10**10},
        {"n_instance_codes": 10**8, "hidden_sizes": {"tuple": [1000]}},
    ],
    ids=lambda choices: str(choices)[:40],
)
def test_network_larger_than_the_file_takes_no_memory(choices, tiny, path):
    document, tensors = tiny.contents
    if tiny.cls is CxVAERegressor:
        others = {"n_group_codes": "n_extra_codes", "n_instance_codes": "n_columns"}
        choices = {others.get(name, name): value for name, value in choices.items()}
    at = place_of(document, "spec")
    ((kind, fields),) = at_place(document, at).items()
    assert choices.keys() <= dict(fields).keys()
    larger = {kind: [[name, choices.get(name, value)] for name, value in fields]}
    write_file(path, replaced(document, at, larger), tensors)
    refusal(path, tiny.cls)


def test_clear_words_for_hostile_states(tiny, path):
    document, tensors = tiny.contents
    ((state, fields),) = document["state"].items()
    at = place_of(document, "spec")
    ((kind, choices),) = at_place(document, at).items()

    def with_spec(**changes):
        pairs = [[name, changes.get(name, value)] for name, value in choices]
        pairs += [[name, changes[name]] for name in changes.keys() - dict(choices).keys()]
        return replaced(document, at, {kind: pairs})["state"]

    custom, codes = (
        ("decoder", "n_group_codes") if tiny.cls is GroupVAE else ("group_encoder", "n_extra_codes")
    )
    for changed, message in (
        ({"Popen": []}, "it holds no fitted state"),
        ({state: [*fields, ["extra", 1]]}, f"its {state} has the fields ['extra']"),
        ({state: fields[1:]}, f"its {state} lacks the fields ['reader']"),
        (with_spec(**{custom: {"Popen": []}}), "it has records ['Popen']"),
        (with_spec(__call__=1), f"its {kind} has the fields ['__call__']"),
        (with_spec(hidden_sizes={"tuple": [10**4, 10**4]}), "larger model than it holds"),
        (with_spec(**{codes: 2}), "its choices do not give its model"),
    ):
        write_file(path, document | {"state": changed}, tensors)
        assert message in refusal(path, tiny.cls)


def test_deep_nesting_and_long_numbers(tiny, path):
    document, tensors = tiny.contents
    deep = "[" * 100_000 + "]" * 100_000
    for text in (
        deep,
        json.dumps(document).replace('"format": 1', f'"format": {deep}'),
        json.dumps(document).replace('"format": 1', f'"format": {"9" * 10_000}'),
        json.dumps(document).replace('"format": 1', '"format": NaN'),
        json.dumps(document)[:-1],
        "null",
        "[]",
        '"text"',
        "\ufeff{}",
    ):
        path.write_bytes(safetensors.numpy.save(tensors, metadata={KEY: text}))
        assert outcome(path, tiny) == "refused"
    nested = json.loads("[" * 900 + "]" * 900)
    for where in (("state",), place_of(document, "choice"), ("parameters", "verbose"), ("custom",)):
        write_file(path, replaced(document, where, nested), tensors)
        assert outcome(path, tiny) == "refused"


def test_tensors_of_another_shape_or_type(tiny, path):
    document, tensors = tiny.contents
    matrices = (name for name, tensor in tensors.items() if tensor.ndim == 2 and len(tensor))
    name = next(name for name in matrices if name.startswith("network."))
    for array in (
        tensors[name].astype(np.float32),
        tensors[name][:-1],
        np.zeros((0, 1)),
    ):
        write_file(path, document, tensors | {name: array})
        refusal(path, tiny.cls)
    header = {name: {"dtype": "F64", "shape": [2**62, 2**62], "data_offsets": [0, 8]}}
    text = json.dumps(header | {"__metadata__": {KEY: json.dumps(document)}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    refusal(path, tiny.cls)


def test_nothing_unpickles_or_evaluates():
    files = sorted(Path(persistence.__file__).parent.glob("*.py"))
    assert {"saving.py", "records.py", "values.py"} <= {file.name for file in files}
    for file in files:
        calls = r"(?<!\.)\b(eval|exec|__import__)\(|torch\.load|import_module|import (pickle|marshal|joblib)"
        assert not re.search(calls, file.read_text())
