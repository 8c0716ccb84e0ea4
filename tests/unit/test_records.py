"""Records as JSON and arrays: the same to the last bit, their declared fields and no others."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from skgroupvae.batch import RandomTerm
from skgroupvae.data.checks import SeenColumns
from skgroupvae.data.columns import Column
from skgroupvae.data.outcome_reader import OutcomeReader
from skgroupvae.data.reader import ObservationReader
from skgroupvae.mixed_model.linear import LinearMixedModel
from skgroupvae.model.families import FAMILIES, GaussianFamily
from skgroupvae.model.spec import LatentSpec, ScoreSpec
from skgroupvae.model.summaries import Summaries
from skgroupvae.persistence.records import RECORDS, StateWriter, is_custom, read_data, read_state
from skgroupvae.state import Choice, FittedState, KnownGroups, ScoreState


def formula(u, v):
    return torch.cat([3.0 * u[:, :1] + v[:, :1], u[:, :1]], dim=-1)


class Learned(nn.Module):
    """A decoder with a parameter and a buffer."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([2.0]))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, u, v):
        return formula(self.slope * u, v)


def state_of(decoder="mlp", labels=("b", "a", "c"), **choices) -> FittedState:
    """A state with an untrained model of two columns."""
    rng = np.random.RandomState(0)
    X = pd.DataFrame(rng.normal(3.0, 2.0, (12, 2)), columns=["score", "effort"])
    reader, table = ObservationReader.learn(X, np.repeat(np.arange(3), 4), None, None, "GroupVAE")
    parts = {
        "group_encoder": "deepsets",
        "instance_encoder": "conditional",
        "regularizer": None,
        "decoder": decoder,
        "n_group_codes": 2,
        "n_instance_codes": 1,
        "hidden_sizes": (4,),
        "center": tuple(reader.center.tolist()),
        "scale": tuple(reader.scale.tolist()),
    }
    spec = LatentSpec(**parts | choices)
    model = spec.build(torch.Generator().manual_seed(3)).eval().requires_grad_(False).double()
    model.set_value_moments(table.batch)
    covariance = torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=torch.float64)
    mixed_model = LinearMixedModel(
        fixed=torch.tensor([[0.1, -0.0]], dtype=torch.float64),
        fixed_covariance=covariance,
        loadings=(covariance.tril(),),
        residual=covariance.tril(),
        log_likelihood=-17.1,
        effects=(torch.arange(6.0, dtype=torch.float64).reshape(3, 2),),
        parameters=torch.linspace(-1.0, 1.0, 6, dtype=torch.float64),
        parameters_covariance=torch.eye(6, dtype=torch.float64),
        terms=(RandomTerm((0,)),),
        method="ml",
        converged=True,
    )
    return FittedState(
        reader=reader,
        spec=spec,
        model=model,
        groups=KnownGroups(pd.Index(labels, tupleize_cols=False), Summaries.of_rows(model, table.batch.to())),
        history=pd.DataFrame({"epoch": [1, 2], "loss": [np.nan, 0.1]}),
        mixed_model=mixed_model,
        choice=Choice("network", "it was asked for", 0.25),
    )


def score_state_of(family="gaussian", n_outcomes=1, formula=None, levels=(), **choices) -> ScoreState:
    """A state of a regression with an untrained model."""
    rng, groups = np.random.RandomState(0), np.repeat(list("bac"), 4)
    X = pd.DataFrame({"x": rng.normal(size=12), "sex": list("fmm") * 4})
    y = np.column_stack([rng.randint(1, 5, 12) for _ in range(n_outcomes)])
    kind = FAMILIES[family].kind if isinstance(family, str) else family.kind
    said = {"formula": formula, "random_slopes": "auto", "group_column": None}
    outcome = y[:, 0] if n_outcomes == 1 else y
    reader, table = OutcomeReader.learn(
        X, outcome, groups, None, kind=kind, family=str(family), owner="CxVAERegressor", **said
    )
    parts = {
        "family": family,
        "levels": tuple(column.levels or () for column in reader.columns),
        "n_columns": len(reader.design.names),
        "random": tuple(reader.random),
        "n_extra_codes": 1,
        "group_encoder": "mixed_model",
        "regularizer": None,
        "hidden_sizes": (4,),
        "has_network": True,
    }
    spec = ScoreSpec(**parts | choices)
    model = spec.build(torch.Generator().manual_seed(3)).eval().requires_grad_(False).double()
    model.set_value_moments(table.batch)
    return ScoreState(
        reader=reader,
        spec=spec,
        model=model,
        groups=KnownGroups(table.labels, Summaries.of_rows(model, table.batch.to())),
        history=pd.DataFrame({"loss": [0.5]}),
        mixed_model=state_of().mixed_model,
        choice=Choice("network", "it pays", 0.25),
        n_rows=12,
        n_cells=(12.0,) * n_outcomes,
        marginal_effects=pd.DataFrame({"estimate": [0.5, np.nan]}, index=["x", "sex[m]"]),
    )


def identical(one, other) -> bool:
    """Same type and bytes, records and Modules by their parts."""
    if type(one) is not type(other):
        return False
    if isinstance(one, nn.Module):
        return identical(dict(one.state_dict()), dict(other.state_dict()))
    if dataclasses.is_dataclass(one):
        return identical(vars(one), vars(other))
    if isinstance(one, torch.Tensor):
        return identical(one.numpy(), other.numpy())
    if isinstance(one, np.ndarray) and one.dtype != object:
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, pd.Index):
        return one.identical(other)
    if isinstance(one, pd.DataFrame):
        return one.equals(other) and one.columns.identical(other.columns) and one.index.identical(other.index)
    if isinstance(one, (tuple, list, np.ndarray)):
        return len(one) == len(other) and all(map(identical, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(identical, one.values(), other.values()))
    return one == other


def encoded(state) -> tuple[dict, dict, dict]:
    """JSON that went through text, arrays, and what was left out."""
    write = StateWriter({})
    document = write(state, "state")
    return json.loads(json.dumps(document, allow_nan=False)), write.tensors, write.custom


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"decoder": "linear"},
        {"noise_scale": (0.1, 2.0), "regularizer": "context", "hidden_sizes": (3, 5)},
        {"group_encoder": "product_with_prior", "instance_encoder": "conditional_network"},
        {"labels": (("x", 1), ("y",), 3.5)},
        {"labels": pd.to_datetime(["2020-01-01", "2021-02-03", "1999-01-01"]).tz_localize("Europe/Paris")},
        {"n_group_codes": np.int64(2)},
    ],
    ids=lambda choices: "-".join(choices) or "default",
)
def test_round_trip(choices):
    state = state_of(**choices)
    document, tensors, custom = encoded(state)
    assert custom == {}
    back = read_state(document, tensors, {})
    assert identical(state, back)
    assert not back.model.training
    assert all(p.dtype == torch.float64 and not p.requires_grad for p in back.model.parameters())
    assert encoded(back)[0] == document


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"has_network": False},
        {"is_frozen": True, "n_extra_codes": 0},
        {"n_outcomes": 2},
        {"family": "ordinal", "n_outcomes": 2},
        {"family": "negative_binomial", "regularizer": "context", "group_encoder": "average"},
        {"formula": "~ poly(x, 2) * sex"},
    ],
    ids=lambda choices: "-".join(choices) or "default",
)
def test_round_trip_of_a_regression(choices):
    pytest.importorskip("formulaic")
    state = score_state_of(**choices)
    document, tensors, custom = encoded(state)
    assert custom == {}
    back = read_state(document, tensors, {})
    assert identical(state, back)
    assert not back.model.training
    assert all(p.dtype == torch.float64 and not p.requires_grad for p in back.model.parameters())
    assert encoded(back)[0] == document
    assert identical(back.reader.formula, state.reader.formula)


class OwnFamily(GaussianFamily):
    """A family of the user's."""


def test_custom_family_is_left_out():
    state = score_state_of(family=OwnFamily)
    document, tensors, custom = encoded(state)
    assert custom == {"family": OwnFamily}
    assert read_state(document, tensors, {"family": OwnFamily}).spec.family is OwnFamily
    with pytest.raises(ValueError, match=r"ScoreSpec lacks the fields \['family'\]"):
        read_state(document, tensors, {})


def test_states_are_not_mixed_up():
    """The records of one kind of state in the place of those of the other."""
    document, tensors, _ = encoded(score_state_of())
    other, others_tensors, _ = encoded(state_of())
    for field in ("reader", "spec"):
        foreign = changed(document, [field], _pair(other, field)[1])
        assert f" as {field}" in refusal(foreign, others_tensors | tensors)


def test_tensors_have_the_names_of_their_fields():
    state = state_of()
    _, tensors, _ = encoded(state)
    assert {f"network.{name}" for name in state.model.state_dict()} <= set(tensors)
    assert {"state.groups.summaries.totals", "state.mixed_model.parameters"} <= set(tensors)


def test_every_record_is_a_frozen_dataclass_with_readable_fields():
    for name, record in RECORDS.items():
        assert record.__name__ == name
        assert dataclasses.is_dataclass(record)
        assert record.__dataclass_params__.frozen


def test_custom_parts_are_left_out():
    state = state_of(Learned(), group_encoder=_factory)
    with torch.no_grad():
        state.model.decoder.formula.slope.fill_(7.0)
    document, tensors, custom = encoded(state)
    assert custom == {"group_encoder": _factory, "decoder": state.spec.decoder}
    fresh = Learned()
    back = read_state(document, tensors, {"group_encoder": _factory, "decoder": fresh, "other": 1})
    assert back.spec.decoder is fresh
    assert fresh.slope.item() == 2.0
    assert identical(state.model, back.model)
    with pytest.raises(ValueError, match=r"LatentSpec lacks the fields \['decoder'\]"):
        read_state(document, tensors, {"group_encoder": _factory})
    with pytest.raises(ValueError, match=r"formula\.slope differs"):
        read_state(document, tensors, {"group_encoder": _factory, "decoder": formula})


def _factory(n_features, n_group_codes, hidden, generator):
    from skgroupvae.model.encoders import AverageEncoder

    return AverageEncoder(n_features, n_group_codes, hidden, generator)


def test_custom_is_what_can_be_called():
    for value in (formula, Learned, Learned(), len):
        assert is_custom(value)
    for value in ("mlp", None, 3, torch.device("cpu"), np.float32(1.0), [formula]):
        assert not is_custom(value)


class OtherColumn(Column):
    """A subclass, which would come back as something else."""


@dataclasses.dataclass(frozen=True)
class SeenColumnsOfAnother:
    n_features: int


def test_other_classes_are_not_written():
    for value in (OtherColumn("a", "numeric"), SeenColumnsOfAnother(3), Learned(), formula):
        with pytest.raises(TypeError, match=r"cannot save state.x: it holds a .*joblib"):
            StateWriter({})(value, "state.x")


FRAME = pd.DataFrame({("a", 1): [1, 2], ("b", 2): [True, False]}, index=pd.Index([0.5, 1.5], name="x"))
FRAME.columns = pd.Index([("a", 1), ("b", 2)], tupleize_cols=False)
FRAME[3], FRAME[4] = ["x", "y"], pd.to_datetime(["2020", "2021"]).tz_localize("UTC")
VALUES = {
    "scalars": [None, True, 1, 1.5, np.nan, -np.inf, "ä\ud800", (1, [2, (3.0,)])],
    "dictionary": {1: "a", "b": {(2, 3.0): [None]}},
    "arrays": [np.array(3.0), np.zeros((0, 3)), np.arange(6).reshape(2, 3).T, np.array([1 + 2j])],
    "other arrays": [
        np.array([["a", None]], dtype=object),
        np.array(["ab", "c"]),
        np.float16([1, 2]),
        np.arange(3, dtype=">i4"),
    ],
    "numpy": [np.float64(1.0), np.bool_(False), np.str_(""), np.timedelta64(3, "D"), np.longdouble(1) / 3],
    "frame": FRAME,
    "empty frame": FRAME.iloc[:0],
    "frame by two levels": pd.concat({"score": FRAME, "effort": FRAME}, names=["outcome"]),
    "device": torch.device("cpu"),
}


def same(one, other) -> bool:
    """As `identical`, NaN being itself."""
    if isinstance(one, (tuple, list)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return identical(one, other) or (type(one) is type(other) and one != one and other != other)


@pytest.mark.parametrize("kind", VALUES)
def test_data_of_every_kind(kind):
    value, write = VALUES[kind], StateWriter({})
    document = json.loads(json.dumps(write(value, "x"), allow_nan=False))
    back = read_data(document, write.tensors)
    assert same(value, back)
    if kind == "arrays":
        assert back[2].flags.f_contiguous
        back[0][...] = 4.0  # no view of something read-only
    if kind == "frame":
        assert list(back.dtypes) == list(FRAME.dtypes)


@pytest.mark.parametrize("value", [np.arange(6.0)[::2], pd.concat([FRAME, FRAME])], ids=["array", "frame"])
def test_what_was_read_is_written_as_before(value):
    """Also where it was a view of every other number."""
    write = StateWriter({})
    document = write(value, "x")
    again = StateWriter({})
    assert again(read_data(document, write.tensors), "x") == document
    assert again.tensors.keys() == write.tensors.keys()


def test_a_random_state_goes_on_where_it_was():
    state, write = np.random.RandomState(3), StateWriter({})
    state.normal()
    back = read_data(json.loads(json.dumps(write(state, "x"))), write.tensors)
    assert back.normal() == state.normal()
    assert back.randint(2**31) == state.randint(2**31)


def test_data_of_unknown_kinds_are_named():
    for value in (object(), {1, 2}, np.zeros(2, dtype=[("a", int)]), np.ma.masked_array([1.0]), b"bytes"):
        with pytest.raises(TypeError, match=f"cannot save mystery: it holds a .*{type(value).__name__}"):
            StateWriter({})([value], "mystery")


def test_equal_arrays_are_stored_once():
    write = StateWriter({})
    array = np.arange(3.0)
    documents = [write(array, "a"), write(array.copy(), "b"), write(array.astype(np.float32), "c")]
    assert list(write.tensors) == ["a", "c"]
    assert documents[0] == documents[1]
    # What a network learned has its own names, whatever it is equal to.
    write(array, "network.weight")
    assert "network.weight" in write.tensors


def test_labels_that_data_cannot_tell():
    state = state_of()
    labels = pd.period_range("2020", periods=3, freq="M")
    state = state.replaced(groups=dataclasses.replace(state.groups, labels=labels))
    with pytest.raises(TypeError, match=r"cannot save state.groups.labels: it holds a Period"):
        encoded(state)


# Documents that no StateWriter wrote


def changed(document, at, value):
    """Copy of a document with another value at a place: names of fields, and positions in tuples."""
    document = copy.deepcopy(document)
    inner = document
    for name in at[:-1]:
        inner = _pair(inner, name)[1] if isinstance(name, str) else inner["tuple"][name]
    _pair(inner, at[-1])[1] = value
    return document


def _pair(encoded, name) -> list:
    ((_, fields),) = encoded.items()
    return next(pair for pair in fields if pair[0] == name)


@pytest.fixture(scope="module")
def whole():
    return encoded(state_of())[:2]


def refusal(document, tensors, custom=None) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        read_state(document, tensors, custom or {})
    return str(caught.value)


def test_unknown_records(whole):
    document, tensors = whole
    for value in ({"Popen": [["args", "touch canary"]]}, {"os.system": ["touch canary"]}, {"Batch": []}):
        assert "which this version does not have" in refusal(changed(document, ["choice"], value), tensors)
    for value in (None, [], {}, 3, "FittedState", {"Choice": []}, {"dict": []}, {"FittedState": [], "a": 1}):
        assert "holds no fitted state" in refusal(value, tensors)


def test_records_are_not_parameters(whole):
    with pytest.raises(KeyError):
        read_data({"Choice": [["model", "a"], ["reason", "b"], ["gain", None]]}, whole[1])


def test_fields_that_are_missing_or_too_many(whole):
    document, tensors = whole
    for name in [field.name for field in dataclasses.fields(FittedState)]:
        less = {"FittedState": [pair for pair in document["FittedState"] if pair[0] != name]}
        assert f"its FittedState lacks the fields ['{name}']" in refusal(less, tensors)
    more = {"FittedState": [*document["FittedState"], ["__class__", 1]]}
    assert "its FittedState has the fields ['__class__']" in refusal(more, tensors)
    twice = {"FittedState": [*document["FittedState"], document["FittedState"][0]]}
    assert "has a field twice" in refusal(twice, tensors)
    choice = _pair(document, "choice")[1]["Choice"]
    assert "Choice lacks" in refusal(changed(document, ["choice"], {"Choice": choice[:2]}), tensors)
    # What is left out is for the parts of a model alone.
    assert "Choice lacks" in refusal(
        changed(document, ["choice"], {"Choice": choice[1:]}), tensors, {"model": 1}
    )


WRONG = [
    (["reader", "owner"], 3),
    (["reader", "columns"], {"tuple": [{"tuple": []}]}),
    (["reader", "has_groups"], "yes"),
    (["reader", "seen"], {"RandomTerm": [["columns", {"tuple": []}], ["factor", 0]]}),
    (["spec", "decoder"], {"device": ["cpu"]}),
    (["spec", "decoder"], 3),
    (["spec", "hidden_sizes"], [4]),
    (["spec", "hidden_sizes"], {"tuple": ["4"]}),
    (["spec", "n_group_codes"], 2.0),
    (["spec"], None),
    (["groups", "labels"], "abc"),
    (["groups", "summaries", "totals"], [1.0]),
    (["mixed_model", "terms"], {"tuple": [1]}),
    (["choice", "gain"], "large"),
    (["history"], {"dict": []}),
]


@pytest.mark.parametrize(("at", "value"), WRONG, ids=[".".join(at) for at, _ in WRONG])
def test_values_of_another_type(at, value, whole):
    document, tensors = whole
    assert f" as {at[-1]}" in refusal(changed(document, at, value), tensors)


def test_column_of_an_unknown_kind(whole):
    document, tensors = whole
    assert "is not a kind of column" in refusal(
        changed(document, ["reader", "columns", 0, "kind"], "x"), tensors
    )


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (["spec", "n_group_codes"], 10**8),
        (["spec", "n_group_codes"], 10**15),
        (["spec", "n_instance_codes"], 10**8),
        (["spec", "hidden_sizes"], {"tuple": [10**5, 10**5]}),
        (["spec", "hidden_sizes"], {"tuple": [10**30]}),
        (["spec", "hidden_sizes"], {"tuple": [-1]}),
        (["spec", "n_group_codes"], 3),
        (["spec", "decoder"], "no such decoder"),
        (["spec", "decoder"], "linear"),
        (["model"], {"dict": []}),
        (["model"], None),
    ],
    ids=str,
)
def test_models_that_the_file_does_not_hold(at, value, whole):
    document, tensors = whole
    # Which of torch's errors a size meets is its own; `saving.load` makes them one error.
    with pytest.raises((ValueError, RuntimeError, KeyError, TypeError, OverflowError, AttributeError)):
        read_state(changed(document, at, value), tensors, {})


def test_learned_tensors_are_not_cast(whole):
    document, tensors = whole
    ((name, value),) = _pair(document, "model")[1]["dict"][:1]
    (array,) = value["tensor"]
    single = {**tensors, "single": tensors[array["array"][3]].astype(np.float32)}
    other = {"tensor": [{"array": ["<f4", array["array"][1], "C", "single"]}]}
    rest = _pair(document, "model")[1]["dict"][1:]
    message = refusal(changed(document, ["model"], {"dict": [[name, other], *rest]}), single)
    assert f"{name} differs" in message


def test_data_that_are_asked_for_again_and_again():
    tensors = {"x": np.zeros(2**21)}
    array = {"array": ["<f8", [2**21], "C", "x"]}
    with pytest.raises(ValueError, match="far more data than it holds"):
        read_data({"tuple": [array] * 40}, tensors)
    # Arrays of objects that each ask twice for the next.
    tensors = {}
    for depth in range(40):
        asked = json.dumps([{"array": ["|O", [2], "C", f"x{depth + 1}"]}] * 2)
        tensors[f"x{depth}"] = np.frombuffer(asked.encode(), dtype=np.uint8)
    tensors["x40"] = np.frombuffer(b"[1, 2]", dtype=np.uint8)
    with pytest.raises(ValueError, match="far more data than it holds"):
        read_data({"array": ["|O", [2], "C", "x0"]}, tensors)


def test_names_of_columns():
    for names in (None, np.array(["a", "b"], dtype=object)):
        state = dataclasses.replace(state_of(), reader=_reader(names))
        assert identical(state.reader, read_state(*encoded(state)[:2], {}).reader)


def _reader(names) -> ObservationReader:
    columns = (Column("a", "numeric", 0.1, 2.0, family="normal"), Column("b", "ordered", levels=(1.0, 2.0)))
    return ObservationReader("GroupVAE", SeenColumns(2, names), columns, False)
