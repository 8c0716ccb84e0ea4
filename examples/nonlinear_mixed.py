"""How much of the gap between a linear mixed model and the truth the network closes on simulated curves.

    python examples/nonlinear_mixed.py
    python examples/nonlinear_mixed.py --groups 100        # quick

1,000 groups of 20 rows with curves and spreads of their own (``skgroupvae.nonlinear``). ``known``: 20 % of
the rows are held out, and their groups are known from the rest; ``context``: 20 % of the groups are new, and
half of their rows are given. The figures are negative log predictive densities of the held-out rows, in nats
per row, of ``decoder="linear"``, of ``decoder="mlp"``, and of the exact posterior.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from skgroupvae import CxVAERegressor
from skgroupvae.nonlinear import make_nonlinear_mixed, nonlinear_mixed_log_density

CASES = ("known", "context")


def judge(case: str, seed: int, n_groups: int = 1000, **parameters: Any) -> dict[str, float]:
    """Negative log densities of the linear mixed model, the network and the truth; share of the gap closed.

    `parameters` are those of the network.
    """
    data = make_nonlinear_mixed(n_groups, random_state=seed)
    X, y, groups = data.X, data.y, data.groups
    draws = np.random.RandomState(seed).rand(len(y))
    if case == "known":
        train, test, given = draws >= 0.2, draws < 0.2, None
        known = (X[train], y[train], groups[train])
    else:
        held_out = groups >= 0.8 * n_groups
        train, test, half = ~held_out, held_out & (draws >= 0.5), held_out & (draws < 0.5)
        known = given = (X[half], y[half], groups[half])
    nlpd = {}
    for decoder, more in (("linear", {}), ("mlp", parameters)):
        model = CxVAERegressor(decoder=decoder, random_state=seed, verbose=False, **more)
        model.fit(X[train], y[train], groups=groups[train])
        nlpd[decoder] = -model.score_samples(X[test], y[test], groups=groups[test], context=given).mean()
    exact = -nonlinear_mixed_log_density(X[test], y[test], groups[test], context=known).mean()
    closed = (nlpd["linear"] - nlpd["mlp"]) / (nlpd["linear"] - exact)
    return {**nlpd, "exact": exact, "closed": closed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="data sets (default: 1)")
    parser.add_argument("--groups", type=int, default=1000, help="groups of 20 rows (default: 1000)")
    options = parser.parse_args()
    for seed in range(options.seeds):
        for case in CASES:
            start = time.perf_counter()
            r = judge(case, seed, options.groups)
            print(
                f"seed {seed} {case:8s} linear {r['linear']:.4f}  network {r['mlp']:.4f}  "
                f"exact {r['exact']:.4f}  gap closed {100 * r['closed']:.1f} %  "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
