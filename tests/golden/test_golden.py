"""The golden master: figures of fitted models are those recorded before the rebuild.

Where a figure is to move, say so in DEVIATIONS.md and run ``python tests/golden/regenerate.py``. The
tolerances, and why they are what they are, are in compare.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES, EXACT, compute
from compare import TOLERANCES, moved, read

RECORDED = read()


def test_every_case_is_recorded():
    assert list(RECORDED) == list(CASES)


# Exact linear models: 1e-5 of a figure, and 1e-6 of its largest entry. Trained networks: 1e-3 of both.
@pytest.mark.parametrize("name", CASES)
def test_figures_are_as_recorded(name):
    moves = moved(name, RECORDED[name], compute(name))
    assert not moves, "\n".join([f"{len(moves)} figures moved"] + [f"{k}: {v}" for k, v in moves.items()])


@pytest.mark.parametrize("name", ["linear_sleepstudy", "network_default"])
def test_a_move_beyond_tolerance_is_seen(name):
    recorded, tolerance = RECORDED[name], TOLERANCES[CASES[name][0]]
    assert not moved(name, recorded, recorded)
    for figure, values in recorded.items():
        for step, n_moved in ((0.5, 0), (2.0, 1)):
            changed = values.copy()
            changed[-1] += step * tolerance.of(values)[-1]
            assert len(moved(name, recorded, recorded | {figure: changed})) == n_moved, figure
        assert moved(name, recorded, recorded | {figure: np.full_like(values, np.nan)}) == {
            figure: moved(name, recorded, {figure: np.full_like(values, np.nan)})[figure]
        }
        assert moved(name, recorded, {k: v for k, v in recorded.items() if k != figure}) == {
            figure: "is gone"
        }


def test_exact_models_have_the_narrow_tolerance():
    exact = [name for name, (kind, _) in CASES.items() if kind == EXACT]
    assert all(name.startswith("linear_") for name in exact)
    assert TOLERANCES[EXACT].relative < 1e-4
