"""How much of the gap between a linear mixed model and the truth CxVAERegressor closes on simulated curves.

    python examples/nonlinear_mixed.py

1,000 groups of 20 rows with curves and spreads of their own (``skgroupvae.nonlinear``). ``known``: 20 % of
the rows are held out, the rest of their groups fitted; ``context``: 200 groups are new, half of their rows
given.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from skgroupvae import CxVAERegressor
from skgroupvae.nonlinear import make_nonlinear_mixed, nonlinear_mixed_log_density


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--max-epochs", type=int, default=None)
    options = parser.parse_args()
    more = {} if options.max_epochs is None else {"max_epochs": options.max_epochs}
    for seed in range(options.seeds):
        data = make_nonlinear_mixed(random_state=seed)
        X, y, groups = data.X, data.y, data.groups
        some = np.random.RandomState(seed).rand(len(y))
        held_out = groups >= 800
        cases = {
            "known": (some >= 0.2, np.zeros(len(y), bool), some < 0.2),
            "context": (~held_out, held_out & (some < 0.5), held_out & (some >= 0.5)),
        }
        for name, (train, context, test) in cases.items():
            start = time.perf_counter()
            given = (X[context], y[context], groups[context]) if context.any() else None
            nlpd = {}
            for decoder in ("linear", "mlp"):
                model = CxVAERegressor(
                    decoder=decoder, random_state=seed, **(more if decoder == "mlp" else {})
                )
                model.fit(X[train], y[train], groups=groups[train])
                nlpd[decoder] = -model.score_samples(
                    X[test], y[test], groups=groups[test], context=given
                ).mean()
            known = given if given is not None else (X[train], y[train], groups[train])
            exact = -nonlinear_mixed_log_density(X[test], y[test], groups[test], context=known).mean()
            closed = (nlpd["linear"] - nlpd["mlp"]) / (nlpd["linear"] - exact)
            print(
                f"seed {seed} {name:8s} linear {nlpd['linear']:.4f}  ours {nlpd['mlp']:.4f}  "
                f"exact {exact:.4f}  "
                f"gap closed {100 * closed:.1f} %  {time.perf_counter() - start:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
