"""Files of estimators with a fitted state: the same to the last bit, or one clear error; modes and pipes."""

from __future__ import annotations

import copy
import json
import os
import re
import stat
import struct
import sys
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import safetensors
import safetensors.numpy
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import nn

from skgroupvae import persistence, saving
from skgroupvae.batch import RandomTerm
from skgroupvae.data.reader import ObservationReader
from skgroupvae.mixed_model.linear import LinearMixedModel
from skgroupvae.model.encoders import AverageEncoder
from skgroupvae.model.spec import LatentSpec
from skgroupvae.model.summaries import Summaries
from skgroupvae.state import Choice, FittedState, KnownGroups

KEY = "skgroupvae"
X, LABELS = np.arange(16.0).reshape(8, 2) ** 1.5, list("abcd") * 2


class Standin(BaseEstimator):
    """An estimator whose fit learns no more than the columns' units."""

    _parameter_constraints = {  # noqa: RUF012
        "decoder": [str, callable],
        "group_encoder": [str, callable],
        "n_group_codes": [int],
        "random_state": "no_validation",
        "device": [str, torch.device],
    }

    def __init__(
        self, decoder="mlp", group_encoder="deepsets", n_group_codes=1, random_state=None, device="cpu"
    ):
        self.decoder = decoder
        self.group_encoder = group_encoder
        self.n_group_codes = n_group_codes
        self.random_state = random_state
        self.device = device

    def fit(self, X, groups):
        reader, table = ObservationReader.learn(X, groups, None, "GroupVAE")
        moments = tuple(reader.center.tolist()), tuple(reader.scale.tolist())
        spec = LatentSpec(
            self.group_encoder, "conditional", None, self.decoder, self.n_group_codes, 1, (3,), *moments
        )
        model = spec.build(torch.Generator().manual_seed(1)).eval().requires_grad_(False).double()
        eye = torch.eye(2, dtype=torch.float64)
        mixed_model = LinearMixedModel(
            fixed=eye[:1],
            fixed_covariance=eye,
            loadings=(eye,),
            residual=eye,
            log_likelihood=-1.5,
            effects=(eye,),
            parameters=eye[0],
            parameters_covariance=eye,
            terms=(RandomTerm((0,)),),
            method="ml",
            converged=True,
        )
        groups = KnownGroups(table.labels, Summaries.of_rows(model, table.batch))
        history = pd.DataFrame({"epoch": [1], "loss": [0.5]})
        self._keep(FittedState(reader, spec, model, groups, history, mixed_model, Choice("network", "asked")))
        return self

    def _keep(self, state):
        codes = state.groups.posterior(state.model).mean
        self.group_codes_ = pd.DataFrame(codes.numpy(), index=state.groups.labels)
        self._state = state


class Other(Standin):
    """Another class of estimator."""


class Learned(nn.Module):
    """A decoder with a parameter."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([2.0]))

    def forward(self, u, v):
        return torch.cat([self.slope * u[:, :1], v[:, :1]], dim=-1)


def formula(u, v):
    return torch.cat([u[:, :1], v[:, :1]], dim=-1)


def other_formula(u, v):
    return torch.cat([v[:, :1], u[:, :1]], dim=-1)


@pytest.fixture(scope="module")
def fitted():
    return Standin(random_state=np.random.RandomState(3)).fit(X, LABELS)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def contents(path) -> tuple[dict, dict]:
    with safetensors.safe_open(path, framework="np") as file:
        return json.loads(file.metadata()[KEY]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def sealed(path, document, tensors):
    """Write a file with the digest that its content has, as an attacker can."""
    document = {k: v for k, v in document.items() if k != "sha256"}
    document["sha256"] = persistence._digest(document, tensors)
    path.write_bytes(safetensors.numpy.save(tensors, metadata={KEY: json.dumps(document)}))


def refusal(path, cls=Standin, device=None, **custom) -> str:
    with pytest.raises(ValueError, match="cannot load") as caught:
        saving.load(cls, path, device, custom)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert repr(os.fspath(path)) in message
    assert len(message) < 900
    return message


def as_file(model, tmp_path) -> bytes:
    """All that an estimator is, as the bytes of its file."""
    saving.save(model, tmp_path / "compared")
    return (tmp_path / "compared").read_bytes()


# The same estimator


def test_round_trip(fitted, path, tmp_path):
    saving.save(fitted, path)
    loaded = saving.load(Standin, path)
    assert loaded.group_codes_.equals(fitted.group_codes_)
    assert as_file(loaded, tmp_path) == path.read_bytes()
    assert type(loaded) is Standin
    assert loaded.random_state.rand() == copy.deepcopy(fitted.random_state).rand()
    assert sorted(os.listdir(tmp_path)) == ["compared", path.name]


def test_parameters_changed_after_the_fit(fitted, path, tmp_path):
    model = copy.deepcopy(fitted).set_params(n_group_codes=7, decoder="linear")
    saving.save(model, path)
    loaded = saving.load(Standin, path)
    assert (loaded.n_group_codes, loaded.decoder) == (7, "linear")
    assert (loaded._state.spec.n_group_codes, loaded._state.spec.decoder) == (1, "mlp")
    assert loaded.group_codes_.equals(fitted.group_codes_)
    assert as_file(loaded, tmp_path) == path.read_bytes()


def test_output_container(fitted, path):
    class WithOutput(Standin):
        def set_output(self, *, transform):
            self._sklearn_output_config = {"transform": transform}
            return self

    model = WithOutput().fit(X, LABELS).set_output(transform="pandas")
    saving.save(model, path)
    assert saving.load(WithOutput, path)._sklearn_output_config == {"transform": "pandas"}


# Parameters that no file can hold


def test_custom_parts(path, tmp_path):
    decoder = Learned()
    model = Standin(decoder=decoder, group_encoder=AverageEncoder).fit(X, LABELS)
    with torch.no_grad():
        model._state.model.decoder.formula.slope.fill_(5.0)
    saving.save(model, path)
    message = refusal(path)
    assert "decoder was a Module of yours (Learned)" in message
    assert "group_encoder was a class of yours (AverageEncoder)" in message
    assert "pass load(path, decoder=..., group_encoder=...)" in message
    assert "group_encoder was" in refusal(path, decoder=decoder)
    assert "no parameter tol" in refusal(path, decoder=decoder, group_encoder=AverageEncoder, tol=1)
    assert "decoder.formula.slope differs" in refusal(path, decoder=formula, group_encoder=AverageEncoder)
    loaded = saving.load(Standin, path, None, {"decoder": decoder, "group_encoder": AverageEncoder})
    assert loaded.decoder is decoder
    assert loaded._state.spec.decoder is decoder
    assert decoder.slope.item() == 2.0
    assert loaded._state.model.decoder.formula.slope.item() == 5.0
    assert as_file(loaded, tmp_path) == path.read_bytes()


def test_custom_part_in_one_of_the_two_places(fitted, path):
    model = Standin(decoder=formula).fit(X, LABELS).set_params(decoder="linear")
    saving.save(model, path)
    assert "decoder was a function of yours (formula)" in refusal(path)
    loaded = saving.load(Standin, path, None, {"decoder": formula})
    assert (loaded.decoder, loaded._state.spec.decoder) == ("linear", formula)
    model = copy.deepcopy(fitted).set_params(decoder=formula)
    saving.save(model, path)
    assert "decoder was a function of yours (formula)" in refusal(path)
    loaded = saving.load(Standin, path, None, {"decoder": formula})
    assert (loaded.decoder, loaded._state.spec.decoder) == (formula, "mlp")


def test_custom_part_that_took_the_place_of_another(path):
    model = Standin(decoder=formula).fit(X, LABELS).set_params(decoder=other_formula)
    with pytest.warns(UserWarning, match=r"decoder was changed after the fit.*\(formula\)") as caught:
        saving.save(model, path)
    assert caught[0].filename == __file__
    loaded = saving.load(Standin, path, None, {"decoder": formula})
    assert loaded.group_codes_.equals(model.group_codes_)


def test_stored_parameter_cannot_be_passed(fitted, path):
    saving.save(fitted, path)
    assert "leaves out no parameter decoder" in refusal(path, decoder=formula)


# Devices


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_device_that_is_missing(fitted, path, no_cuda):
    saving.save(copy.deepcopy(fitted).set_params(device="cuda"), path)
    with pytest.warns(UserWarning, match="device='cuda', which is not available.*on the CPU") as caught:
        loaded = saving.load(Standin, path)
    assert caught[0].filename == __file__
    assert loaded.device == "cpu"
    assert saving.load(Standin, path, "auto").device == "auto"
    for device in ("cuda", "meta", "nonsense", 7):
        assert "is not available on this machine" in refusal(path, device=device)


# Modes of files, and what is no file


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
        saving.save(fitted, path)
    assert mode_of(path) == mode_of(tmp_path / "plain") == 0o666 & ~mask


@posix
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o640, 0o755])
def test_existing_file_keeps_its_mode(mode, fitted, path, tmp_path):
    path.write_text("older")
    path.chmod(mode)
    (tmp_path / "link").symlink_to(path)
    with umask(0o027):
        saving.save(fitted, tmp_path / "link")
    assert mode_of(path) == mode
    saving.load(Standin, path)


@posix
def test_private_file_is_never_readable_by_others(fitted, path, monkeypatch):
    path.write_text("older")
    path.chmod(0o600)
    seen, read = [], persistence._read

    def watched(scratch):
        seen.append(mode_of(scratch))
        return read(scratch)

    monkeypatch.setattr(saving, "_read", watched)
    with umask(0):
        saving.save(fitted, path)
    assert seen == [0o600]


@posix
def test_pipe_and_device_are_refused_and_left(fitted, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link", "/dev/null"):
        for what, use in (
            ("save", lambda p: saving.save(fitted, p)),
            ("load", lambda p: saving.load(Standin, p)),
        ):
            with pytest.raises(
                ValueError, match=rf"cannot {what} '.*': it is a pipe or a device; name a file"
            ):
                use(path)
    assert stat.S_ISFIFO(os.stat(pipe).st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_directories(fitted, tmp_path):
    with pytest.raises(IsADirectoryError):
        saving.save(fitted, tmp_path)
    with pytest.raises(IsADirectoryError):
        saving.load(Standin, tmp_path)
    with pytest.raises(FileNotFoundError):
        saving.save(fitted, tmp_path / "nothing" / "model")
    with pytest.raises(FileNotFoundError):
        saving.load(Standin, tmp_path / "nothing")
    assert os.listdir(tmp_path) == []


def test_failed_save_keeps_the_older_file(fitted, path, monkeypatch):
    saving.save(fitted, path)
    before = path.read_bytes()

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    for where, name in ((os, "fsync"), (os, "chmod"), (os, "replace"), (saving, "_read")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, full_disk)
            with pytest.raises((OSError, ValueError), match="No space"):
                saving.save(fitted, path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]


# Files that are whole, but not for us


def test_unfitted_is_not_saved(path):
    with pytest.raises(NotFittedError):
        saving.save(Standin(), path)
    assert not path.exists()


def test_without_safetensors(fitted, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for use in (lambda: saving.save(fitted, path), lambda: saving.load(Standin, path)):
        with pytest.raises(ImportError, match=re.escape('pip install "skgroupvae[save]"')):
            use()


def test_another_class(fitted, path):
    saving.save(fitted, path)
    assert "it holds a Standin; use Standin.load" in refusal(path, Other)


def test_parameters_that_came_later(fitted, path):
    saving.save(fitted, path)
    document, tensors = contents(path)
    del document["parameters"]["n_group_codes"]
    sealed(path, document, tensors)
    assert saving.load(Standin, path).n_group_codes == 1
    document["parameters"]["of_the_future"] = 1
    sealed(path, document, tensors)
    assert "of_the_future" in refusal(path)


def test_label_that_data_cannot_tell(path):
    model = Standin().fit(X, [frozenset(label) for label in LABELS])
    with pytest.raises(TypeError, match=r"cannot save state\.groups\.labels: it holds a frozenset"):
        saving.save(model, path)
    assert not path.exists()


# Files that are damaged or hostile


def test_damaged_and_truncated(fitted, path):
    saving.save(fitted, path)
    content = path.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for stop in (0, 1, 7, 8, 9, header - 1, header, header + 1, len(content) - 1):
        path.write_bytes(content[:stop])
        refusal(path)
    rng = np.random.RandomState(0)
    for where in rng.randint(header, len(content), 20):
        path.write_bytes(content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :])
        assert "damaged" in refusal(path)
    path.write_bytes(content + b"\0")
    refusal(path)
    for foreign in (b"text\n", rng.bytes(3000), safetensors.numpy.save({"a": np.zeros(3)})):
        path.write_bytes(foreign)
        assert "skgroupvae" in refusal(path)


HOSTILE = [
    None,
    -1,
    10**9,
    10**30,
    "a\nb\u2028c",
    [],
    {},
    {"os.system": ["touch canary"]},
    {"Choice": [["model", "a"], ["reason", "b"], ["gain", None]]},
    {"FittedState": []},
    {"LatentSpec": [["decoder"]]},
    {"RandomTerm": [[[], 1]]},
    {"tuple": [10**6, 10**6]},
    {"device": ["meta"]},
    {"scalar": ["|O", "0" * 16]},
    {"timestamp": [0, "dateutil//etc/passwd"]},
    {"range": [0, 10**18, 1, None]},
    {"array": ["<f8", [10**12], "C", "state.mixed_model.parameters"]},
    {"array": ["|O", [1], "C", "state.mixed_model.parameters"]},
    {"tensor": [{"array": ["<f8", [0, 10**15], "C", "nothing"]}]},
]


def places(value, at=()):
    """Paths to all values inside a JSON document."""
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def replaced(document, at, value):
    """Copy of a document with another value at that place."""
    if not at:
        return value
    document = copy.copy(document)
    document[at[0]] = replaced(document[at[0]], at[1:], value)
    return document


def test_hostile_documents(fitted, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saving.save(fitted, path)
    document, tensors = contents(path)
    everywhere = [
        at for at in places(document) if at and at[0] in ("parameters", "state", "output", "custom")
    ]
    rng, messages = np.random.RandomState(0), []
    for number in range(500):
        at, value = everywhere[rng.randint(len(everywhere))], HOSTILE[number % len(HOSTILE)]
        sealed(path, replaced(document, at, value), tensors)
        try:
            saving.load(Standin, path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 400
    assert all(repr(os.fspath(path)) in message and len(message.splitlines()) == 1 for message in messages)
    assert os.listdir(tmp_path) == [path.name]


def test_clear_words_for_hostile_states(fitted, path):
    saving.save(fitted, path)
    document, tensors = contents(path)
    fields = document["state"]["FittedState"]
    spec = dict(fields)["spec"]["LatentSpec"]

    def with_spec(**changes):
        pairs = [[name, changes.get(name, value)] for name, value in spec]
        pairs += [[name, changes[name]] for name in changes.keys() - dict(spec).keys()]
        changed = [["spec", {"LatentSpec": pairs}] if name == "spec" else [name, x] for name, x in fields]
        return {"FittedState": changed}

    for state, message in (
        ({"Popen": []}, "it holds no fitted state"),
        ({"FittedState": [*fields, ["extra", 1]]}, "its FittedState has the fields ['extra']"),
        ({"FittedState": fields[1:]}, "its FittedState lacks the fields ['reader']"),
        (with_spec(decoder={"Popen": []}), "it has records ['Popen']"),
        (with_spec(__call__=1), "its LatentSpec has the fields ['__call__']"),
        (with_spec(hidden_sizes={"tuple": [10**5, 10**4]}), "larger network than it holds"),
        (with_spec(n_group_codes=2), "its choices do not give its model"),
    ):
        sealed(path, document | {"state": state}, tensors)
        assert message in refusal(path)
