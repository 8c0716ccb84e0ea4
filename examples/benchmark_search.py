"""Seconds that a grid search takes with one worker and with two, and the threads that the workers use.

A search of 8 fits (4 candidates, 2 folds, no refit) alternates between n_jobs=1 and n_jobs=2; the ratio is
that of the fastest run of each. On two free cores it should be 1.6 or more. The fits have ``decoder="mlp"``.

    python examples/benchmark_search.py
    python examples/benchmark_search.py --repeats 5 --max-epochs 60
"""

from __future__ import annotations

import argparse
import os
import time

import joblib
import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn import config_context
from sklearn.model_selection import GridSearchCV, GroupKFold

from skgroupvae import GroupVAE
from skgroupvae.datasets import make_exam_scores

N_GROUPS = 128
GRID = {"regularizer_weight": [0.1, 1.0], "learning_rate": [0.003, 0.01]}
TARGET = 1.6


def usable_cores() -> int:
    """Cores that this process may run on; the machine can have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def look_inside(seconds: float) -> tuple[int, int, str | None]:
    """Prepare a worker for fits; returns its process id, torch's threads and OMP_NUM_THREADS."""
    small = make_exam_scores(8, random_state=0)
    GroupVAE(decoder="linear", random_state=0, verbose=False).fit(small.X, groups=small.groups)
    time.sleep(seconds)  # so that the next task goes to the other worker
    return os.getpid(), torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")


def warm_up(n_workers: int) -> dict[int, tuple[int, str | None]]:
    """Threads of each worker by process id, once every worker has imported torch and fitted a model."""
    seen: dict[int, tuple[int, str | None]] = {}
    for _ in range(20):
        for pid, n_threads, variable in Parallel(n_jobs=n_workers)(
            delayed(look_inside)(0.5) for _ in range(n_workers)
        ):
            seen[pid] = n_threads, variable
        if len(seen) == n_workers:
            return seen
    raise RuntimeError(f"saw {len(seen)} of {n_workers} workers; close other programs and run again")


def run(data, n_jobs: int, max_epochs: int) -> tuple[float, np.ndarray]:
    """Seconds of one search, and its scores."""
    model = GroupVAE(decoder="mlp", max_epochs=max_epochs, random_state=0, verbose=False)
    search = GridSearchCV(model, GRID, cv=GroupKFold(2), refit=False, n_jobs=n_jobs, error_score="raise")
    start = time.perf_counter()
    search.fit(data.X, groups=data.groups)
    return time.perf_counter() - start, search.cv_results_["mean_test_score"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--max-epochs", type=int, default=20, help="epochs per fit (default: 20)")
    options = parser.parse_args()

    # With n_jobs=1 the fits run in this process, where joblib does not limit threads: one, as in a worker.
    torch.set_num_threads(1)
    data = make_exam_scores(N_GROUPS, random_state=0)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    scores = {}
    print(f"cores: {usable_cores()}, load: {os.getloadavg()[0]:.1f}, rows: {len(data.X)}, fits per search: 8")
    with (
        config_context(enable_metadata_routing=True),
        # joblib's documented limit: it sets OMP_NUM_THREADS (and those of MKL, OpenBLAS, ...) in each worker.
        joblib.parallel_config(backend="loky", inner_max_num_threads=1),
    ):
        workers = warm_up(2)
        for pid, (n_threads, variable) in workers.items():
            print(f"worker {pid}: torch.get_num_threads() = {n_threads}, OMP_NUM_THREADS = {variable}")
        for _ in range(options.repeats):
            for n_jobs in seconds:
                taken, scores[n_jobs] = run(data, n_jobs, options.max_epochs)
                seconds[n_jobs].append(taken)
                print(f"n_jobs={n_jobs}: {taken:.1f} s", flush=True)
        print("same workers throughout:", warm_up(2).keys() == workers.keys())
    print("same scores:", np.array_equal(scores[1], scores[2]))
    ratio = min(seconds[1]) / min(seconds[2])
    print(
        f"fastest: {min(seconds[1]):.1f} s and {min(seconds[2]):.1f} s, ratio: {ratio:.2f} (target: {TARGET})"
    )
    if usable_cores() < 2 or os.getloadavg()[0] > 2.5:
        print("note: fewer than two free cores; the ratio says little about an idle machine")


if __name__ == "__main__":
    main()
