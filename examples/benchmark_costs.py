"""What a fit costs: seconds and peak memory by rows and groups, for both estimators.

    python examples/benchmark_costs.py                 # everything, minutes
    python examples/benchmark_costs.py --rows 1000
    python examples/benchmark_costs.py --rows 1000 --decoder auto

Each line is measured in a process of its own with one thread, so that peak memory is that of this fit; it is
given in excess of a process that has imported the package. ``predict`` is ``transform`` for GroupVAE and
``predict_quantiles`` of three levels for CxVAERegressor, on all rows. ``decoder="mlp"`` always fits the
network. With ``decoder="auto"``, the default, the seconds include the fits to groups held out; the fit ended
at the linear mixed model where the number of epochs is 0.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time

import numpy as np

ROWS = (1_000, 10_000, 100_000)
GROUP_SIZES = (10, 100)
DECODERS = ("mlp", "auto", "linear")
N_FEATURES = 5
# ru_maxrss is in bytes on macOS and in KiB on Linux.
MIB = 2.0**20 if sys.platform == "darwin" else 2.0**10


def table(n_rows: int, group_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Five covariates, an outcome and groups: a mixed model with one curve."""
    rng = np.random.default_rng(0)
    groups = np.arange(n_rows) // group_size
    level = rng.normal(size=(groups[-1] + 1, N_FEATURES))
    X = level[groups] + rng.normal(size=(n_rows, N_FEATURES))
    y = X[:, 0] + np.sin(X[:, 1]) + level[groups, 2] + rng.normal(size=n_rows)
    return X, y, groups


def measure(name: str, decoder: str, n_rows: int, group_size: int) -> tuple[float, float, float, int]:
    """Seconds to fit and to predict, MiB above the import, and epochs."""
    import torch

    from skgroupvae import CxVAERegressor, GroupVAE

    torch.set_num_threads(1)
    X, y, groups = table(n_rows, group_size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if name == "GroupVAE":
        model = GroupVAE(decoder=decoder, random_state=0, verbose=False).fit(X, groups=groups)
        fitted = time.perf_counter()
        model.transform(X, groups=groups)
    else:
        model = CxVAERegressor(decoder=decoder, random_state=0, verbose=False).fit(X, y, groups=groups)
        fitted = time.perf_counter()
        model.predict_quantiles(X, [0.05, 0.5, 0.95], groups=groups)
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return fitted - start, done - fitted, (peak - before) / MIB, model.n_iter_


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument("--decoder", choices=DECODERS, default="mlp", help="default: %(default)s")
    options = parser.parse_args()
    print(f'decoder="{options.decoder}"\n')
    print("| estimator | rows | groups | epochs | fit, s | predict, s | memory, MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    context = multiprocessing.get_context("spawn")
    for name in ("GroupVAE", "CxVAERegressor"):
        for n_rows in options.rows or ROWS:
            for group_size in GROUP_SIZES:
                with context.Pool(1) as pool:
                    arguments = (name, options.decoder, n_rows, group_size)
                    fit, predict, memory, n_epochs = pool.apply(measure, arguments)
                print(
                    f"| {name} | {n_rows:,} | {n_rows // group_size:,} | {n_epochs} | {fit:.1f} | "
                    f"{predict:.1f} | {memory:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
