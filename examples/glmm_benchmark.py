"""CxVAERegressor beside other generalized linear mixed models, on simulated 0/1 outcomes and counts.

    python examples/glmm_benchmark.py                              # everything, 5 seeds
    python examples/glmm_benchmark.py --family poisson --seeds 1

A data set has 250 groups of 15 rows, one covariate x ~ N(0, 1), and a random intercept and slope that are
independent and normal. All rows of 50 groups are held out (``new``), and a fifth of the rows of the other 200
(``known``). Figures, means over the seeds: intercept, slope and the two standard deviations, to compare with
the truth in the first line of each family; the mean log predictive probability of held-out rows in nats;
seconds per fit, predictions included.

Every model integrates over what it knows of a row's linear predictor, with its estimates of the other
parameters held fixed: by Gauss-Hermite quadrature where the predictor is normal, in CxVAERegressor by 256
quasi-random draws of u. ``truth`` has the true parameters and the exact posterior of u, by quadrature in both
dimensions. statsmodels' models are its variational fits (priors: normal, SD 1 for the logarithms of the
standard deviations and SD 2 for the coefficients). They, and those of GPBoost by the Laplace approximation,
have two independent random effects, as the truth has; CxVAERegressor also estimates their correlation.

``CxVAERegressor`` has its default settings, which keep the network only where it pays: the last column has
the number of fits that kept it. ``network`` and ``linear`` after its name are ``decoder="mlp"`` and
``decoder="linear"``. The parameters in its lines are those of `fixed_effects_` and `variance_components_`: of
the fitted model where it is the generalized linear mixed model, and of the start of the fit (penalized
quasi-likelihood) where it is the network.
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
    """Parameters as in TRUTH, log probabilities of the held-out rows, and whether a network gave them."""

    parameters: np.ndarray
    known: float
    new: float
    has_network: bool | None = None


def simulate(family: str, seed: int) -> tuple[Rows, Rows, Rows]:
    """Rows to fit, held-out rows of the same groups, and rows of new groups."""
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
    """Mean log predictive probability of rows whose linear predictors are normal."""
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
    parameters = np.array([*model.fixed_effects_["estimate"], *model.variance_components_["sd"]])
    return Result(parameters, *scores, has_network=not model.is_mixed_model_)


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
    "CxVAERegressor": lambda *a: ours(*a, "auto"),
    "CxVAERegressor, network": lambda *a: ours(*a, "mlp"),
    "CxVAERegressor, linear": lambda *a: ours(*a, "linear"),
    "BayesMixedGLM": bayes_mixed_glm,
}
if gpboost is not None:
    MODELS["GPBoost"] = gp_boost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=list(TRUTH), action="append")
    parser.add_argument("--model", choices=list(MODELS), action="append")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    heads = ("intercept", "slope", "sd", "sd slope", "known", "new", "s per fit", "network")
    print(f"{'family':11s}{'model':25s}" + "".join(f"{head:>10s}" for head in heads))
    for family in options.family or TRUTH:
        data_sets = [simulate(family, seed) for seed in range(options.seeds)]
        for label in options.model or MODELS:
            start = time.perf_counter()
            results = [MODELS[label](family, *data) for data in data_sets]
            seconds = (time.perf_counter() - start) / len(data_sets)
            row = np.array([[*r.parameters, r.known, r.new] for r in results]).mean(axis=0)
            line = "".join(f"{number:10.3f}" for number in row[:4])
            line += "".join(f"{number:10.4f}" for number in row[4:])
            if label != "truth":
                line += f"{seconds:10.1f}"
            kept = [r.has_network for r in results if r.has_network is not None]
            if kept:
                line += f"{f'{sum(kept)} of {len(kept)}':>10s}"
            print(f"{family:11s}{label:25s}" + line, flush=True)


if __name__ == "__main__":
    main()
