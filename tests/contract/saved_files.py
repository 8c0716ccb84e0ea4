"""What a saved file holds, and files written by hand, as an attacker can."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress

import safetensors
import safetensors.numpy

KEY = "skgroupvae"


def contents(path) -> tuple[dict, dict]:
    """Document and tensors."""
    with safetensors.safe_open(path, framework="np") as file:
        return json.loads(file.metadata()[KEY]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def digest(document, tensors) -> str:
    """SHA-256 of all that a file holds, of the document in the order of its keys."""
    found = hashlib.sha256(json.dumps(document, sort_keys=True, allow_nan=False).encode())
    for name, array in sorted(tensors.items()):
        found.update(json.dumps([name, array.dtype.str, array.shape]).encode() + array.tobytes())
    return found.hexdigest()


def write_file(path, document, tensors, *, is_sealed=True) -> None:
    """Write a file, with the digest that its content has."""
    content = {name: value for name, value in document.items() if name != "sha256"}
    if is_sealed:
        with suppress(ValueError):  # NaN has no digest
            document = content | {"sha256": digest(content, tensors)}
    path.write_bytes(safetensors.numpy.save(tensors, metadata={KEY: json.dumps(document)}))
