"""How much of the gap between a linear mixed model and the truth CxVAERegressor closes on simulated curves.

    python examples/nonlinear_mixed.py

1,000 groups of 20 rows with curves and spreads of their own (``skgroupvae.nonlinear``). ``known``: 20 % of
the rows are held out, the rest of their groups fitted; ``context``: 200 groups are new, half of their rows
given.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from skgroupvae import CxVAERegressor
from skgroupvae.nonlinear import make_nonlinear_mixed, nonlinear_mixed_log_density

CASES = ("known", "context")


def judge(case: str, seed: int, **parameters: Any) -> dict[str, float]:
    """Negative log density of the linear mixed model, ours and the truth, and the share of the gap closed."""
    data = make_nonlinear_mixed(random_state=seed)
    X, y, groups = data.X, data.y, data.groups
    some = np.random.RandomState(seed).rand(len(y))
    if case == "known":
        train, test, given = some >= 0.2, some < 0.2, None
        known = (X[train], y[train], groups[train])
    else:
        held_out = groups >= 800
        train, test, half = ~held_out, held_out & (some >= 0.5), held_out & (some < 0.5)
        known = given = (X[half], y[half], groups[half])
    nlpd = {}
    for decoder, more in (("linear", {}), ("mlp", parameters)):
        model = CxVAERegressor(decoder=decoder, random_state=seed, verbose=False, **more)
        model.fit(X[train], y[train], groups=groups[train])
        nlpd[decoder] = -model.score_samples(X[test], y[test], groups=groups[test], context=given).mean()
    exact = -nonlinear_mixed_log_density(X[test], y[test], groups[test], context=known).mean()
    closed = (nlpd["linear"] - nlpd["mlp"]) / (nlpd["linear"] - exact)
    return {"linear": nlpd["linear"], "ours": nlpd["mlp"], "exact": exact, "closed": closed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    for seed in range(options.seeds):
        for case in CASES:
            start = time.perf_counter()
            r = judge(case, seed)
            print(
                f"seed {seed} {case:8s} linear {r['linear']:.4f}  ours {r['ours']:.4f}  "
                f"exact {r['exact']:.4f}  gap closed {100 * r['closed']:.1f} %  "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
