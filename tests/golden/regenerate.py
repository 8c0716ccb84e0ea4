"""Rewrite the golden master, and say which figures moved: ``python tests/golden/regenerate.py``.

A figure that is still within tolerance stays as it was recorded, so that small moves cannot add up unseen.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from cases import CASES, compute
from compare import moved, read, write


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="CASE", nargs="+", choices=CASES, help="only these cases")
    parser.add_argument("--dry-run", action="store_true", help="print what moved, write nothing")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    recorded, start, n_moves = read(), time.perf_counter(), 0
    names = chosen.only or list(CASES)
    for name in names:
        figures, before = compute(name), recorded.get(name)
        if before is None:
            print(f"{name}: new, {len(figures)} figures")
            recorded[name] = figures
            continue
        moves = moved(name, before, figures)
        for figure, text in moves.items():
            print(f"{name}: {figure}: {text}")
        n_moves += len(moves)
        recorded[name] = {
            figure: values if figure in moves else before[figure] for figure, values in figures.items()
        }
    for name in [name for name in recorded if name not in CASES]:
        print(f"{name}: is gone")
        del recorded[name]
    print(f"{n_moves} figures of {len(names)} cases moved ({time.perf_counter() - start:.0f} s)")
    if not chosen.dry_run:
        write({name: recorded[name] for name in CASES if name in recorded})
    return 0


if __name__ == "__main__":
    sys.exit(main())
