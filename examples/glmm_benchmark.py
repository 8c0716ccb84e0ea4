"""CxVAERegressor beside other generalised linear mixed models, on simulated 0/1 outcomes and counts.

    python examples/glmm_benchmark.py                              # everything, 5 seeds
    python examples/glmm_benchmark.py --family poisson --seeds 1

A world: 200 groups of 15 rows and 50 groups more, one covariate x ~ N(0, 1), and a random intercept and
slope that are independent and normal. A fifth of the rows of the 200 groups is held out (``known``), and all
rows of the 50 (``new``). Figures, means over the seeds: intercept, slope and the two standard deviations, to
compare with the truth in the first line of each family; the mean log predictive probability of held-out rows
in nats; seconds a fit, predictions included.

Every model integrates over what it knows of a row's predictor, at its estimates of the other parameters: by
Gauss-Hermite quadrature where that is normal, in CxVAERegressor by 256 quasi-random draws of u. ``truth``
has the true parameters and the exact posterior of u, by quadrature in both dimensions. statsmodels' models
are its variational fits (priors: sd 1 of the logarithms of the standard deviations, 2 of the coefficients),
with two independent random effects as in the world, and so are GPBoost's, by its Laplace approximation;
CxVAERegressor has a correlation to learn as well. The parameters in its lines are its tables: of the fit for
the linear decoder, of the start of the fit (penalised quasi-likelihood) for the other.
Needs the extra ``benchmark``: statsmodels and, where it is installed, gpboost.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import gammaln, logsumexp
from statsmodels.genmod.bayes_mixed_glm import BinomialBayesMixedGLM, PoissonBayesMixedGLM

from skgroupvae import CxVAERegressor

try:
    import gpboost
except ImportError:
    gpboost = None

# Intercept, slope, and the standard deviations of both between groups.
TRUTH = {"bernoulli": (0.3, 0.7, 1.0, 0.5), "poisson": (0.3, 0.5, 0.6, 0.3)}
N_GROUPS, N_NEW, N_ROWS = 200, 50, 15
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
LOG_WEIGHTS = np.log(WEIGHTS / WEIGHTS.sum())


class Rows(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    groups: np.ndarray

    def at(self, which: np.ndarray) -> Rows:
        return Rows(*(values[which] for values in self))


class Result(NamedTuple):
    """Parameters as in TRUTH, and log probabilities of the held-out rows (nan where there are none)."""

    parameters: np.ndarray
    known: float
    new: float


def simulate(family: str, seed: int) -> tuple[Rows, Rows, Rows]:
    """Rows to learn from, held-out rows of the same groups, and rows of new groups."""
    rng = np.random.default_rng(seed)
    intercept, slope, *sds = TRUTH[family]
    groups = np.repeat(np.arange(N_GROUPS + N_NEW), N_ROWS)
    x = rng.normal(size=len(groups))
    u = rng.normal(size=(N_GROUPS + N_NEW, 2)) * sds
    eta = intercept + slope * x + u[groups, 0] + u[groups, 1] * x
    y = rng.poisson(np.exp(eta)) if family == "poisson" else rng.random(len(x)) < 1.0 / (1.0 + np.exp(-eta))
    rows, new = Rows(x, y.astype(float), groups), groups >= N_GROUPS
    held_out = rng.random(len(groups)) < 0.2
    return rows.at(~new & ~held_out), rows.at(~new & held_out), rows.at(new)


def log_prob(family: str, y: np.ndarray, eta: np.ndarray) -> np.ndarray:
    if family == "poisson":
        return y * eta - np.exp(eta) - gammaln(y + 1.0)
    return -np.logaddexp(0.0, np.where(y > 0.5, -eta, eta))


def normal_predictor(family: str, y: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> float:
    """Mean log predictive probability where the predictor of each row is normal."""
    eta = mean[:, None] + np.sqrt(variance)[:, None] * NODES
    return float(logsumexp(log_prob(family, y[:, None], eta) + LOG_WEIGHTS, axis=1).mean())


def truth(family: str, train: Rows, known: Rows, new: Rows) -> Result:
    intercept, slope, sd, sd_slope = TRUTH[family]
    u, v = (grid.ravel() for grid in np.meshgrid(NODES * sd, NODES * sd_slope, indexing="ij"))
    prior = np.add.outer(LOG_WEIGHTS, LOG_WEIGHTS).ravel()

    def by_node(rows: Rows) -> np.ndarray:
        eta = intercept + slope * rows.x[:, None] + u + v * rows.x[:, None]
        return log_prob(family, rows.y[:, None], eta)

    posterior = np.tile(prior, (N_GROUPS, 1))
    np.add.at(posterior, train.groups, by_node(train))
    posterior -= logsumexp(posterior, axis=1, keepdims=True)
    return Result(
        np.array(TRUTH[family]),
        float(logsumexp(posterior[known.groups] + by_node(known), axis=1).mean()),
        float(logsumexp(prior + by_node(new), axis=1).mean()),
    )


def ours(family: str, train: Rows, known: Rows, new: Rows, decoder: str) -> Result:
    model = CxVAERegressor(
        family, decoder=decoder, random_slopes=["x"], n_prediction_samples=256, random_state=0, verbose=False
    )
    model.fit(pd.DataFrame({"x": train.x}), train.y, groups=train.groups)
    scores = [
        float(model.score_samples(pd.DataFrame({"x": part.x}), part.y, groups=part.groups).mean())
        for part in (known, new)
    ]
    return Result(np.array([*model.fixed_effects_["estimate"], *model.variance_components_["sd"]]), *scores)


def bayes_mixed_glm(family: str, train: Rows, known: Rows, new: Rows) -> Result:
    at = (np.arange(len(train.x)), train.groups)
    intercepts = sparse.csr_matrix((np.ones(len(train.x)), at), shape=(len(train.x), N_GROUPS))
    slopes = sparse.csr_matrix((train.x, at), shape=(len(train.x), N_GROUPS))
    kind = PoissonBayesMixedGLM if family == "poisson" else BinomialBayesMixedGLM
    model = kind(
        train.y,
        np.column_stack([np.ones(len(train.x)), train.x]),
        sparse.hstack([intercepts, slopes]).tocsr(),
        np.repeat([0, 1], N_GROUPS),
        vcp_p=1.0,
        fe_p=2.0,
    )
    fit = model.fit_vb()
    fixed, sds = np.asarray(fit.fe_mean), np.exp(np.asarray(fit.vcp_mean))
    effect, error = (np.asarray(part).reshape(2, N_GROUPS) for part in (fit.vc_mean, fit.vc_sd))

    def predictor(x: np.ndarray, effect: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = fixed[0] + effect[0] + (fixed[1] + effect[1]) * x
        return mean, error[0] ** 2 + (error[1] * x) ** 2

    of_known = predictor(known.x, effect[:, known.groups], error[:, known.groups])
    of_new = predictor(new.x, np.zeros((2, 1)), np.broadcast_to(sds[:, None], (2, len(new.x))))
    scores = [normal_predictor(family, part.y, *of) for part, of in ((known, of_known), (new, of_new))]
    return Result(np.r_[fixed, sds], *scores)


def gp_boost(family: str, train: Rows, known: Rows, new: Rows) -> Result:
    model = gpboost.GPModel(
        group_data=train.groups,
        group_rand_coef_data=train.x[:, None],
        ind_effect_group_rand_coef=[1],
        likelihood="poisson" if family == "poisson" else "bernoulli_logit",
        num_parallel_threads=1,
    )
    model.fit(y=train.y, X=np.column_stack([np.ones(len(train.x)), train.x]))
    scores = []
    for part in (known, new):
        latent = model.predict(
            X_pred=np.column_stack([np.ones(len(part.x)), part.x]),
            group_data_pred=part.groups,
            group_rand_coef_data_pred=part.x[:, None],
            predict_var=True,
            predict_response=False,
        )
        scores.append(normal_predictor(family, part.y, np.asarray(latent["mu"]), np.asarray(latent["var"])))
    fixed, variances = (np.asarray(get()).ravel()[:2] for get in (model.get_coef, model.get_cov_pars))
    return Result(np.r_[fixed, np.sqrt(variances)], *scores)


MODELS = {
    "truth": truth,
    "CxVAERegressor, linear": lambda *a: ours(*a, "linear"),
    "CxVAERegressor": lambda *a: ours(*a, "mlp"),
    "BayesMixedGLM": bayes_mixed_glm,
}
if gpboost is not None:
    MODELS["GPBoost"] = gp_boost


def cells(numbers: np.ndarray, width: int, digits: int) -> str:
    return "".join(" " * (width - 1) + "-" if np.isnan(n) else f"{n:{width}.{digits}f}" for n in numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=list(TRUTH), action="append")
    parser.add_argument("--model", choices=list(MODELS), action="append")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    heads = ("intercept", "slope", "sd", "sd slope", "known", "new", "s a fit")
    print(f"{'family':11s}{'model':24s}" + "".join(f"{head:>10s}" for head in heads))
    for family in options.family or TRUTH:
        worlds = [simulate(family, seed) for seed in range(options.seeds)]
        for label in options.model or MODELS:
            start = time.perf_counter()
            results = [MODELS[label](family, *world) for world in worlds]
            seconds = (time.perf_counter() - start) / len(worlds)
            row = np.array([[*r.parameters, r.known, r.new] for r in results]).mean(axis=0)
            last = "" if label == "truth" else f"{seconds:10.1f}"
            print(
                f"{family:11s}{label:24s}" + cells(row[:4], 10, 3) + cells(row[4:], 10, 4) + last, flush=True
            )


if __name__ == "__main__":
    main()
