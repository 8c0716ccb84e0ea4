"""`persistence/saving.py`: files of older formats."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from skgroupvae import GroupVAE
from skgroupvae.persistence import saving


@pytest.fixture
def older(tmp_path):
    """A file as an older version might have written it: one parameter had another name."""
    path = tmp_path / "model"
    model = GroupVAE(1, 1, decoder="linear", tol=0.25, random_state=0).fit(
        np.arange(8.0)[:, None] ** 2, groups=list("ab") * 4
    )
    model.save(path)
    with safetensors.safe_open(path, framework="np") as file:
        document = json.loads(file.metadata()["skgroupvae"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    document["parameters"]["old_name"] = document["parameters"].pop("tol")
    document["format"] = 0
    document["sha256"] = saving._digest(document, tensors)
    path.write_bytes(safetensors.numpy.save(tensors, metadata={"skgroupvae": json.dumps(document)}))
    return path


def test_an_older_format_is_read_by_its_migration(older, monkeypatch):
    def renamed(document, tensors):
        document["parameters"]["tol"] = document["parameters"].pop("old_name")
        return document, tensors

    monkeypatch.setattr(saving, "_MIGRATIONS", {0: renamed})
    assert GroupVAE.load(older).tol == 0.25


def test_a_format_without_a_migration_is_refused(older):
    with pytest.raises(ValueError, match="in format 0, which this version does not read; load it with that"):
        GroupVAE.load(older)


def test_a_migration_that_fails_is_one_error(older, monkeypatch):
    monkeypatch.setattr(saving, "_MIGRATIONS", {0: lambda document, tensors: (document["no such"], tensors)})
    with pytest.raises(ValueError, match=r"^cannot load .*KeyError.*no such.*$"):
        GroupVAE.load(older)
