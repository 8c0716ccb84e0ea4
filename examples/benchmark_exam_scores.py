"""Excess risk, log-likelihood, seconds and memory of CxVAE on the exam-scores problem at the paper's size.

Errors are mean squared errors; ``excess_%`` is how far they are above those of the exact posterior on the
same 2,048 new groups. One line per protocol and seed:

    python examples/benchmark_exam_scores.py                 # all protocols, 3 seeds
    python examples/benchmark_exam_scores.py --seeds 1 --protocol stated
    python examples/benchmark_exam_scores.py --seeds 1 --protocol stated --n-groups 1024 --set max_epochs=10
"""

from __future__ import annotations

import argparse
import re
import resource
import time
from pathlib import Path

import numpy as np
from sklearn.neural_network import MLPRegressor

from skgroupvae import GroupVAE
from skgroupvae.datasets import exam_scores_posterior, make_exam_scores

N_TEST_GROUPS = 2048
# Each row is translated to this many groups, because translation errors are heavy-tailed.
N_TARGETS = 8


def formula(u, v):
    """The true mean of a score, 2 mu + (sigma^2 + 1) v."""
    return 2.0 * u[:, :1] + (u[:, 1:] ** 2 + 1.0) * v


PROTOCOLS = {
    # name: (noise of the data, estimator arguments)
    "stated": (1.0, {"decoder": formula}),
    "stated, noise known": (1.0, {"decoder": formula, "noise_scale": 1.0}),
    "paper-data": (0.0, {"decoder": formula}),
    "mlp": (1.0, {"decoder": "mlp"}),
    "mlp, noise known": (1.0, {"decoder": "mlp", "noise_scale": 1.0}),
}


def squared_error(estimate, truth):
    return float(np.mean((estimate - truth) ** 2))


def peak_memory() -> float:
    """Peak resident memory of this process, in GiB; getrusage may report that of a parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1)) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30  # bytes on macOS


def run(protocol: str, seed: int, n_groups: int, options: dict) -> dict[str, float]:
    """Fit once and compare with the exact posterior."""
    noise, arguments = PROTOCOLS[protocol]
    train = make_exam_scores(n_groups, noise=noise, random_state=2 * seed)
    test = make_exam_scores(N_TEST_GROUPS, noise=noise, random_state=2 * seed + 1)
    exact = exam_scores_posterior(test.X, test.groups, noise=noise)
    step = np.random.RandomState(seed).randint(1, N_TEST_GROUPS, (N_TARGETS, len(test.groups)))
    targets = (test.groups + step) % N_TEST_GROUPS
    start = time.perf_counter()
    model = GroupVAE(2, 1, random_state=seed, verbose=False, n_importance_samples=500, **arguments, **options)
    model.fit(train.X, groups=train.groups)
    result = {"fit_s": time.perf_counter() - start, "noise": float(model.noise_scale_[0])}

    u, v, u_std, _ = model.transform(test.X, groups=test.groups, return_std=True)
    first = np.unique(test.groups, return_index=True)[1]
    labels = test.groups.astype(object) + n_groups * 10  # labels that were not in the fit
    moved, best_moved, truth = [], [], []
    for target in targets:
        new = target.astype(object) + n_groups * 10
        moved.append(model.translate(test.X, labels, new)[:, 0])
        best_moved.append(exact.translate(target))
        truth.append(2 * test.mu[target] + (test.sigma[target] ** 2 + 1) * test.v)

    def excess(name, estimate, best, true):
        result[name] = squared_error(estimate, true)
        result[f"{name}_excess_%"] = 100 * (result[name] / squared_error(best, true) - 1)

    if arguments["decoder"] is formula:
        scale = u[first, 1] ** 2 + u_std[first, 1] ** 2 + 1
        excess("v", v[:, 0], exact.v, test.v)
        excess("mu", u[first, 0], exact.mu, test.mu)
        excess("scale", scale, exact.scale, test.sigma**2 + 1)
    else:
        fitted = model.transform(train.X[:100_000], groups=train.groups[:100_000])[1]
        probe = MLPRegressor(hidden_layer_sizes=(32, 32), early_stopping=True, random_state=seed)
        probe.fit(fitted, train.v[:100_000])
        excess("v", probe.predict(v), exact.v, test.v)
    excess("translation", *map(np.concatenate, (moved, best_moved, truth)))
    start = time.perf_counter()
    result["loglik_gap"] = (
        model.score(test.X, groups=test.groups, context="prior") - exact.log_likelihood_per_row
    )
    result["score_s"] = time.perf_counter() - start
    result["peak_GiB"] = peak_memory()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", choices=list(PROTOCOLS), action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--n-groups", type=int, default=32768)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="estimator argument")
    options = parser.parse_args()
    arguments = {name: eval(value) for name, value in (item.split("=", 1) for item in options.set)}
    for protocol in options.protocol or PROTOCOLS:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            result = run(protocol, seed, options.n_groups, arguments)
            figures = " ".join(f"{name}={value:.4g}" for name, value in result.items())
            print(f"{protocol:20s} seed {seed} {figures}", flush=True)


if __name__ == "__main__":
    main()
