"""What each part of CxVAERegressor buys: the default with one part taken away or exchanged at a time.

    python examples/regressor_ablation.py                    # all variants, about two minutes each
    python examples/regressor_ablation.py --variant default --variant "deepsets encoder"

Prints the share of the gap in log density between the linear mixed model and the exact predictive density
that is closed on simulated curves (``examples/nonlinear_mixed.py``: rows of known groups, and of new groups
with context), and the gain in nats a row over the linear mixed model on three real tables
(``examples/choose_defaults.py``: known, new, context). Needs the extra ``benchmark``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import choose_defaults
import nonlinear_mixed
import numpy as np
import torch

from skgroupvae import regression_fit
from skgroupvae.regression.decoder import RegressionDecoder
from skgroupvae.regression.encoder import MixedModelEncoder
from skgroupvae.regression.network import RegressionNetwork

TABLES = ("ScotsSec", "bdf", "egsingle")


def nothing(*args: Any, **kwargs: Any) -> None:
    """Takes the place of a method that is taken away."""


def sleep_phase(network, x, segments, generator):
    """In place of the ELBO on parts of groups: log q(u) of groups that the decoder made up.

    As in wake-sleep (Hinton et al. 1995) and simulation-based inference; its optimum is the mean and
    covariance of the posterior of the model, at any number of rows.
    """
    kept, part = segments.thinned(generator)
    decoder, rows = network.decoder, x[kept]
    with torch.no_grad():
        u = torch.randn(part.n_groups, decoder.n_group_codes, generator=generator)
        v = torch.randn(len(rows), generator=generator)
        y = decoder.family.at_score(v, decoder(rows[:, 2:], part.expand(u)))
    q_u = network.posterior(part.sum(network.evidence(torch.cat([y[:, None], rows[:, 1:]], 1))), part.sizes)
    noise = torch.linalg.solve_triangular(q_u.root, (u - q_u.loc)[..., None], upper=True)
    return -0.5 * noise.square().sum((-2, -1)) - q_u.log_det


def without_correction(init: Callable[..., None]) -> Callable[..., None]:
    """Constructor of an encoder that is one step of Newton's method and nothing more."""
    return lambda self, n_columns, n_codes, hidden, generator: init(self, n_columns, n_codes, (), generator)


def but_for_linear(start: Callable[..., None]) -> Callable[..., None]:
    """No start at the mixed model for a decoder with networks; the linear one is the yardstick."""
    return lambda decoder, model: start(decoder, model) if decoder.network is None else None


def taken(owner: type, name: str, instead: Any = nothing) -> Any:
    return patch.object(owner, name, instead)


def times_the_steps(factor: float) -> Any:
    names = ("_AUTO_STEPS_PER_ROOT", "_MIN_AUTO_STEPS", "_MAX_AUTO_STEPS")
    return patch.multiple(regression_fit, **{name: factor * getattr(regression_fit, name) for name in names})


# name: (what is patched, parameters)
VARIANTS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "default": (nullcontext, {}),
    "no start at the mixed model": (
        lambda: taken(RegressionDecoder, "start_from", but_for_linear(RegressionDecoder.start_from)),
        {},
    ),
    "no start at the groups' curves": (lambda: taken(RegressionNetwork, "start_curves"), {}),
    "no code beside the effects": (nullcontext, {"n_extra_codes": 0}),
    "deepsets encoder": (nullcontext, {"group_encoder": "deepsets"}),
    "Newton's step alone": (
        lambda: taken(MixedModelEncoder, "__init__", without_correction(MixedModelEncoder.__init__)),
        {},
    ),
    "whole groups only": (lambda: taken(RegressionNetwork, "encoder_elbo"), {}),
    "sleep phase for parts of groups": (lambda: taken(RegressionNetwork, "encoder_elbo", sleep_phase), {}),
    "decoder by the ELBO": (nullcontext, {"n_decoder_samples": 1}),
    "no prior on the weights": (nullcontext, {"weight_penalty": 0.0}),
    "context regulariser": (nullcontext, {"regularizer": "context"}),
    "half the steps": (lambda: times_the_steps(0.5), {}),
    "twice the steps": (lambda: times_the_steps(2.0), {}),
}


def judge(name: str, seed: int) -> list[float]:
    """Gap closed (known, context), and gain on the tables (known, new, context)."""
    change, parameters = VARIANTS[name]
    with change():
        closed = [nonlinear_mixed.judge(case, seed, **parameters)["closed"] for case in ("known", "context")]
        gains = np.mean([choose_defaults.gains(table, seed, **parameters) for table in TABLES], axis=0)
    return [*closed, *gains]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=list(VARIANTS), action="append")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{'variant':34s}{'gap closed, %':>18s}{'gain, nats a row':>26s}")
    print(f"{'':34s}{'known':>9s}{'context':>9s}{'known':>9s}{'new':>9s}{'context':>9s}")
    for name in options.variant or VARIANTS:
        start = time.perf_counter()
        known, context, *gains = judge(name, options.seed)
        values = f"{100 * known:9.1f}{100 * context:9.1f}" + "".join(f"{gain:9.4f}" for gain in gains)
        print(f"{name:34s}{values}{time.perf_counter() - start:7.0f} s", flush=True)


if __name__ == "__main__":
    main()
