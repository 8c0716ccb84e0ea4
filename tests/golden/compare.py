"""The recorded figures: reading, writing, and what moved beyond tolerance."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cases import CASES, EXACT, TRAINED, Figures

__all__ = ["FIGURES", "TOLERANCES", "Tolerance", "moved", "read", "write"]

FIGURES = Path(__file__).with_name("figures.json")
# Significant digits that are kept; the tolerances are far wider.
_DIGITS = 10


@dataclass(frozen=True)
class Tolerance:
    """A figure may move by relative * |recorded| + of_scale * (largest recorded entry of the figure) + floor.

    The floor is for figures that are 0 but for rounding.
    """

    relative: float
    of_scale: float
    floor: float

    def of(self, recorded: np.ndarray) -> np.ndarray:
        return self.relative * np.abs(recorded) + self.of_scale * scale_of(recorded) + self.floor


# How far figures move that should not was measured: every value x of a table became
# x * (1 + 1e-9 * x / max|x|), which keeps ties and the order of groups, and every case was computed again.
# Exact linear models are a likelihood maximized in float64, and an optimizer stops where it is flat to
# rounding. They moved by 2e-8 of a figure's scale at most: 1e-5 leaves room for another order of sums or
# another stop of the optimizer, and not for another formula. Trained networks learn in float32 (rounding
# 1e-7) for a few dozen steps of Adam, which divides a gradient by its own size and so makes whole steps of
# the rounding of small ones. They moved by 6e-6 at most, and the mutual information, which is near 0 after so
# few epochs, by 1e-4 or 3e-7 nats, hence the floor. 1e-3 is far above that, and below what another order of
# groups did (3e-3 to 0.3). A learning rate 3 % higher moves figures of 27 of the 29 trained cases.
TOLERANCES = {
    EXACT: Tolerance(relative=1e-5, of_scale=1e-6, floor=1e-10),
    TRAINED: Tolerance(relative=1e-3, of_scale=1e-3, floor=1e-5),
}


def scale_of(recorded: np.ndarray) -> float:
    finite = np.abs(recorded[np.isfinite(recorded)])
    return float(finite.max()) if len(finite) else 0.0


def moved(name: str, recorded: Figures, figures: Figures) -> dict[str, str]:
    """Figures of a case that are not as recorded, each with the size of its move."""
    tolerance = TOLERANCES[CASES[name][0]]
    moves = {}
    for figure in [*recorded, *(figure for figure in figures if figure not in recorded)]:
        if figure not in figures:
            moves[figure] = "is gone"
        elif figure not in recorded:
            moves[figure] = "is new"
        elif text := _move(recorded[figure], figures[figure], tolerance):
            moves[figure] = text
    return moves


def _move(before: np.ndarray, after: np.ndarray, tolerance: Tolerance) -> str:
    """What changed of one figure; empty where it is as recorded."""
    if before.shape != after.shape:
        return f"has {len(after)} entries, not {len(before)}"
    # Infinite and missing values must be where they were.
    with np.errstate(invalid="ignore"):
        same = (before == after) | (np.isnan(before) & np.isnan(after))
        difference = np.where(same, 0.0, np.abs(after - before))
    allowed = np.where(np.isfinite(before), tolerance.of(before), 0.0)
    difference = np.where(np.isnan(difference), np.inf, difference)
    beyond = difference > allowed
    if not beyond.any():
        return ""
    worst = int(np.argmax(np.where(beyond, difference, -1.0)))
    size = difference[worst] / (scale_of(before) or 1.0)
    return (
        f"{before[worst]:.6g} -> {after[worst]:.6g} at entry {worst}, a move of {size:.2g} of the figure's "
        f"scale; {beyond.sum()} of {len(before)} entries moved"
    )


def read() -> dict[str, Figures]:
    """Recorded figures by case; none if there is no file yet."""
    if not FIGURES.exists():
        return {}
    recorded = json.loads(FIGURES.read_text())
    return {
        case: {name: np.array(values, dtype=np.float64) for name, values in figures.items()}
        for case, figures in recorded.items()
    }


def write(recorded: dict[str, Figures]) -> None:
    """One figure a line, so that a diff names what moved."""
    cases = []
    for case, figures in recorded.items():
        lines = [
            f"  {json.dumps(name)}: {json.dumps([float(f'{value:.{_DIGITS}g}') for value in values])}"
            for name, values in figures.items()
        ]
        cases.append(f"{json.dumps(case)}: {{\n" + ",\n".join(lines) + "\n}")
    FIGURES.write_text("{\n" + ",\n".join(cases) + "\n}\n")
