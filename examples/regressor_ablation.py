"""What each part of CxVAERegressor's network contributes: one part at a time is removed or replaced.

    python examples/regressor_ablation.py                    # all variants, about two minutes each
    python examples/regressor_ablation.py --variant default --variant "deepsets encoder"
    python examples/regressor_ablation.py --variant default --groups 100 --table ScotsSec

All fits have ``decoder="mlp"``: what is compared is how the network is fitted, not whether to keep it.

Prints the percentage of the gap in log density between the linear mixed model and the exact predictive
density that is closed on simulated curves (``examples/nonlinear_mixed.py``: rows of known groups, and of new
groups with context), and the mean gain in nats per row over the linear mixed model on three real tables
(``examples/choose_defaults.py``: known, new, context). Needs the extra ``benchmark``.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import choose_defaults
import nonlinear_mixed
import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from skgroupvae.estimators import score_fit
from skgroupvae.mixed_model.initialize import start_at_mixed_model
from skgroupvae.model.encoders import NewtonEncoder
from skgroupvae.model.mixed_decoder import MixedModelDecoder
from skgroupvae.model.model import ScoreModel
from skgroupvae.training import resolve_schedule

TABLES = ("ScotsSec", "bdf", "egsingle")


def nothing(*args: Any, **kwargs: Any) -> None:
    """Replaces a method that is removed."""


def sleep_phase(model, batch, generator):
    """Replaces the ELBO on parts of groups: log q(u) of groups that are simulated from the decoder.

    As in wake-sleep (Hinton et al. 1995) and in simulation-based inference. Its optimum has the mean and the
    covariance of the model's posterior, at any number of rows.
    """
    part = batch.thinned(generator)
    with torch.no_grad():
        u = torch.randn(part.groups.n_groups, model.decoder.n_group_codes, generator=generator)
        v = torch.randn(part.values.shape, generator=generator)
        eta = model.decoder(part.design, part.groups.expand(u))
        simulated = replace(part, values=model.decoder.likelihood.at_scores(v, eta))
    return model.infer(simulated).log_prob(u)


def newton_step(n_features, n_group_codes, hidden, generator):
    """Group encoder that is one step of Newton's method, with no learned correction."""
    return NewtonEncoder(n_features, 1, n_group_codes, (), generator)


def start_without_estimates(model, batch, penalty_weight, generator):
    """Everything that the usual start does, but coefficients, loadings and scales stay where they were built.

    The linear model is what gains are measured against: it keeps its estimates.
    """
    parameters = (model.decoder.fixed, model.decoder.raw_loadings, model.decoder.shape)
    built = [parameter.detach().clone() for parameter in parameters]
    fitted = start_at_mixed_model(model, batch, penalty_weight, generator)
    if model.decoder.network is not None:
        with torch.no_grad():
            for parameter, value in zip(parameters, built, strict=True):
                parameter.copy_(value)
    return fitted


def replaced(owner: Any, name: str, instead: Any = nothing) -> Callable[[], Any]:
    return lambda: patch.object(owner, name, instead)


def times_the_steps(factor: float) -> Callable[[], Any]:
    def schedule(max_epochs: Any, batch_size: Any, n_groups: int, auto_steps: float) -> tuple[int, int]:
        return resolve_schedule(max_epochs, batch_size, n_groups, factor * auto_steps)

    return replaced(score_fit, "resolve_schedule", schedule)


# name: (what is patched, parameters)
VARIANTS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "default": (nullcontext, {}),
    "no start at the mixed model": (
        replaced(score_fit, "start_at_mixed_model", start_without_estimates),
        {},
    ),
    "no start at the groups' curves": (replaced(MixedModelDecoder, "start_curves"), {}),
    "no code beside the effects": (nullcontext, {"n_extra_codes": 0}),
    "deepsets encoder": (nullcontext, {"group_encoder": "deepsets"}),
    "Newton's step alone": (nullcontext, {"group_encoder": newton_step}),
    "whole groups only": (replaced(ScoreModel, "thinned_elbo"), {}),
    "sleep phase for parts of groups": (replaced(ScoreModel, "thinned_elbo", sleep_phase), {}),
    "decoder by the ELBO": (nullcontext, {"n_decoder_samples": 1}),
    "no prior on the weights": (nullcontext, {"weight_penalty": 0.0}),
    "context regularizer": (nullcontext, {"regularizer": "context"}),
    "half the steps": (times_the_steps(0.5), {}),
    "twice the steps": (times_the_steps(2.0), {}),
}


def judge(name: str, seed: int, n_groups: int, tables: list[str]) -> tuple[np.ndarray, int]:
    """Shares of the gap closed (known, context) and gains (known, new, context); fits below their start."""
    change, parameters = VARIANTS[name]
    with change(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        closed = [
            nonlinear_mixed.judge(case, seed, n_groups, **parameters)["closed"]
            for case in nonlinear_mixed.CASES
        ]
        gains = np.mean([choose_defaults.gains(table, seed, **parameters) for table in tables], axis=0)
    n_below = sum(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return np.array([*closed, *gains]), n_below


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=list(VARIANTS), action="append")
    parser.add_argument("--table", choices=list(choose_defaults.TABLES), action="append")
    parser.add_argument("--groups", type=int, default=1000, help="simulated groups (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{'variant':34s}{'gap closed, %':>18s}{'gain, nats per row':>27s}")
    print(f"{'':34s}{'known':>9s}{'context':>9s}{'known':>9s}{'new':>9s}{'context':>9s}")
    for name in options.variant or VARIANTS:
        start = time.perf_counter()
        figures, n_below = judge(name, options.seed, options.groups, options.table or list(TABLES))
        values = "".join(f"{100 * share:9.1f}" for share in figures[:2])
        values += "".join(f"{gain:9.4f}" for gain in figures[2:])
        note = f"  {n_below} fits ended below the mixed model" if n_below else ""
        print(f"{name:34s}{values}{time.perf_counter() - start:7.0f} s{note}", flush=True)


if __name__ == "__main__":
    main()
