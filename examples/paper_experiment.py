"""The experiment of the CxVAE paper (section 6): its models, protocols and errors, and the exact posterior.

``paper_tables.py`` runs it and prints the tables; ``paper_figures.py`` draws the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, cpu_count, delayed
from numpy.typing import NDArray
from sklearn.utils import Bunch

from skgroupvae import PUBLISHED_MODELS, GroupVAE
from skgroupvae.datasets import exam_scores_posterior, make_exam_scores
from skgroupvae.metrics import (
    group_code_error,
    instance_code_error,
    reconstruction_error,
    standard_error,
    translation_error,
)

N_TEST_GROUPS = 2048
EXACT = "exact posterior"


@dataclass(frozen=True)
class Protocol:
    """How the data are simulated, which noise the models assume, and which estimate is judged."""

    description: str
    data_noise: float
    # None learns the noise scale; the exact posterior then has that of the data.
    noise_scale: float | None
    # Errors of one posterior draw instead of those of the posterior mean.
    from_draws: bool

    @property
    def exact_noise(self) -> float:
        return self.data_noise if self.noise_scale is None else self.noise_scale


PROTOCOLS = {
    "published": Protocol(
        "data without noise, noise variance fixed at 0.5, errors of posterior draws", 0.0, 0.5**0.5, True
    ),
    "paper-data": Protocol(
        "data without noise, noise scale learned, errors of posterior means", 0.0, None, False
    ),
    "stated": Protocol("data with noise 1, noise scale learned, errors of posterior means", 1.0, None, False),
}

_CXVAE = dict(PUBLISHED_MODELS["CxVAE"])
TABLE_1 = {name: dict(choices) for name, choices in PUBLISHED_MODELS.items()}
TABLE_2 = {
    "CxVAE": _CXVAE,
    "u: average": _CXVAE | {"group_encoder": "average"},
    "u: product": _CXVAE | {"group_encoder": "product"},
    "u: product with prior": _CXVAE | {"group_encoder": "product_with_prior"},
    "v: unconditional": _CXVAE | {"instance_encoder": "unconditional"},
    # The default of GroupVAE: starts at the decoder's posterior and learns a correction.
    "v: start at the decoder": _CXVAE | {"instance_encoder": "conditional"},
    "regularizer: none": _CXVAE | {"regularizer": None},
    "regularizer: instance": _CXVAE | {"regularizer": "instance"},
}


def formula(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The true mean of a score, 2 mu + (sigma² + 1) v."""
    return 2 * u[:, :1] + (u[:, 1:] ** 2 + 1) * v


@dataclass(frozen=True)
class Estimates:
    """What a model, or the exact posterior, says about the test rows: u by group, the rest by row."""

    u: NDArray[np.float64]
    v: NDArray[np.float64]
    reconstructed: NDArray[np.float64]
    translated: NDArray[np.float64]
    log_likelihood: float


def draw_data(protocol: Protocol, seed: int, n_groups: int) -> tuple[Bunch, Bunch, NDArray[np.intp]]:
    """Training groups, test groups and the target of each test group; the same for all models.

    Whole groups are translated, and every group is the target of exactly one, as in section 5.1 of the paper.
    """
    train = make_exam_scores(n_groups, noise=protocol.data_noise, random_state=2 * seed)
    test = make_exam_scores(N_TEST_GROUPS, noise=protocol.data_noise, random_state=2 * seed + 1)
    shift = np.random.RandomState(seed).randint(1, N_TEST_GROUPS)
    return train, test, (np.arange(N_TEST_GROUPS) + shift) % N_TEST_GROUPS


def make_model(protocol: Protocol, choices: Mapping[str, Any], seed: int, **options: Any) -> GroupVAE:
    return GroupVAE(
        2,
        1,
        decoder=formula,
        noise_scale=protocol.noise_scale,
        random_state=seed,
        verbose=False,
        **choices,
        **options,
    )


def ask_model(
    model: GroupVAE, protocol: Protocol, test: Bunch, target: NDArray[np.intp], seed: int
) -> Estimates:
    """Estimates of a fitted model."""
    first = np.unique(test.groups, return_index=True)[1]
    log_likelihood = model.score(test.X, groups=test.groups, context="prior")
    if protocol.from_draws:
        u, v = model.sample_codes(test.X, groups=test.groups, random_state=seed)
        reconstructed = model.inverse_transform(u, v)
        translated = model.inverse_transform(u[first][target[test.groups]], v)
    else:
        u, v = model.transform(test.X, groups=test.groups)
        reconstructed = model.reconstruct(test.X, groups=test.groups)
        # Test groups need labels that were not in the fit: a label of the fit would stand for that group, and
        # its rows in the fit would be used.
        new = len(model.group_codes_)
        translated = model.translate(test.X, test.groups + new, target[test.groups] + new)
    return Estimates(u[first], v[:, 0], reconstructed[:, 0], translated[:, 0], log_likelihood)


def ask_exact(protocol: Protocol, test: Bunch, target: NDArray[np.intp], seed: int) -> Estimates:
    """Estimates of the exact posterior under the noise that the protocol's models assume."""
    exact = exam_scores_posterior(test.X, test.groups, noise=protocol.exact_noise)
    own, other = test.groups, target[test.groups]
    if protocol.from_draws:
        u, v = exact.sample(random_state=seed)
        location, scale = 2 * u[:, 0], u[:, 1] ** 2 + 1
        reconstructed = location[own] + scale[own] * v
        translated = location[other] + scale[other] * v
    else:
        # The sign of sigma is not identified; its absolute value is as good a code.
        u, v = np.column_stack([exact.mu, exact.abs_sigma]), exact.v
        reconstructed = exact.reconstruct()
        translated = exact.translate(other)
    return Estimates(u, v, reconstructed, translated, exact.log_likelihood_per_row)


def errors(estimates: Estimates, test: Bunch, target: NDArray[np.intp], seed: int) -> dict[str, float]:
    """All errors of the tables, as mean squared errors (the paper reports 100 times these)."""
    truth = true_translation(test, target)
    return {
        "reconstruction": reconstruction_error(test.X, estimates.reconstructed),
        "translation": translation_error(truth, estimates.translated),
        "translation_se": standard_error((estimates.translated - truth) ** 2, test.groups),
        "u_pred": group_code_error(estimates.u, test.u, random_state=seed),
        "u_pred_squared": group_code_error(
            estimates.u, np.column_stack([test.mu, test.sigma**2]), random_state=seed
        ),
        # Each half has 25,000 rows, plenty for one code.
        "v_pred": instance_code_error(estimates.v, test.v, n_splits=2, random_state=seed),
        "log_likelihood": estimates.log_likelihood,
    }


def true_translation(test: Bunch, target: NDArray[np.intp]) -> NDArray[np.float64]:
    """The rows that the true process gives at the target's codes, without noise."""
    other = target[test.groups]
    return 2 * test.mu[other] + (test.sigma[other] ** 2 + 1) * test.v


def run_model(
    protocol_name: str, name: str, choices: Mapping[str, Any], seed: int, n_groups: int, options: dict
) -> dict[str, Any]:
    """One row of results: fit a model and judge it on the test groups."""
    protocol = PROTOCOLS[protocol_name]
    train, test, target = draw_data(protocol, seed, n_groups)
    start = time.perf_counter()
    model = make_model(protocol, choices, seed, **options).fit(train.X, groups=train.groups)
    seconds = time.perf_counter() - start
    estimates = ask_model(model, protocol, test, target, seed)
    # Much of the error on the same rows is common to both, so their difference is far more precise.
    truth = true_translation(test, target)
    best = ask_exact(protocol, test, target, seed)
    difference = (estimates.translated - truth) ** 2 - (best.translated - truth) ** 2
    return {
        "protocol": protocol_name,
        "model": name,
        "seed": seed,
        "noise_scale": float(model.noise_scale_[0]),
        "fit_seconds": seconds,
        **errors(estimates, test, target, seed),
        "translation_excess_se": standard_error(difference, test.groups),
    }


def run_exact(protocol_name: str, seed: int) -> dict[str, Any]:
    """The same row of results for the exact posterior."""
    protocol = PROTOCOLS[protocol_name]
    _, test, target = draw_data(protocol, seed, 1)
    result = errors(ask_exact(protocol, test, target, seed), test, target, seed)
    return {"protocol": protocol_name, "model": EXACT, "seed": seed, **result}


def run_all(
    protocols: list[str],
    seeds: range,
    n_groups: int,
    options: dict,
    n_jobs: int,
    report: Callable[[str], None],
) -> pd.DataFrame:
    """Results of all models and of the exact posterior, one row per protocol, model and seed."""
    models = TABLE_1 | TABLE_2
    tasks = [(run_exact, (protocol, seed)) for protocol in protocols for seed in seeds] + [
        (run_model, (protocol, name, choices, seed, n_groups, options))
        for protocol in protocols
        for seed in seeds
        for name, choices in models.items()
    ]
    rows = []
    for row in in_parallel(tasks, n_jobs):
        rows.append(row)
        report(f"[{len(rows)}/{len(tasks)}] {row['protocol']}, {row['model']}, seed {row['seed']}")
    return pd.DataFrame(rows)


def in_parallel(tasks: list[tuple[Callable[..., Any], tuple[Any, ...]]], n_jobs: int) -> Iterator[Any]:
    """Results of the tasks in the order in which they finish."""
    n_threads = max(1, cpu_count() // n_jobs) if n_jobs > 1 else None
    return Parallel(n_jobs=n_jobs, return_as="generator_unordered")(
        delayed(_run_in_worker)(task, arguments, n_threads) for task, arguments in tasks
    )


def _run_in_worker(task: Callable[..., Any], arguments: tuple[Any, ...], n_threads: int | None) -> Any:
    if n_threads is not None:
        # Only in a worker process: workers that each use every core slow one another down.
        torch.set_num_threads(n_threads)
    return task(*arguments)
