"""What is asked of every call that is refused: one line that says why, and nothing changed."""

from __future__ import annotations

import copy
import re

import numpy as np
import pandas as pd
import pytest
import torch


def snapshot(model) -> dict:
    """Attributes by name, with copies of what could change in place."""
    return {name: (value, copy.deepcopy(value)) for name, value in vars(model).items()}


def assert_as_before(model, before: dict) -> None:
    assert set(vars(model)) == set(before)
    for name, (value, copied) in before.items():
        assert vars(model)[name] is value, name
        if isinstance(value, torch.nn.Module):
            states = value.state_dict(), copied.state_dict()
            assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
        elif isinstance(value, (pd.DataFrame, np.ndarray)):
            np.testing.assert_array_equal(value, copied)


# scikit-learn's own words of names that differ, which other tools look for.
NAMES_DIFFER = "The feature names should match those that were passed during fit.\n"


def assert_refused(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text or NAMES_DIFFER in text
    assert re.search(message, " ".join(text.split())), text
    assert len(text) < 400
