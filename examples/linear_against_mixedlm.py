"""decoder="linear" compared with statsmodels' MixedLM by maximum likelihood, on four real data sets.

    python examples/linear_against_mixedlm.py

Prints the largest difference between fixed effects, in standard errors, and between standard deviations, in
percent; the smaller correlation of the group effects with the BLUPs; and both log-likelihoods.
Needs the extra ``benchmark``.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from mixed_model_benchmark import TABLES, load

from skgroupvae import CxVAERegressor


def compare(name: str) -> str:
    X, y, groups = load(name)
    _, _, _, covariates, slope, _ = TABLES[name]
    # Group effects are reported at the mean covariates; centering makes both intercepts the same.
    X = X.assign(**{slope: X[slope] - X[slope].mean()})
    ours = CxVAERegressor(decoder="linear", random_slopes=[slope]).fit(X, y, groups=groups)
    theirs = smf.mixedlm(
        "y ~ " + " + ".join(covariates), X.assign(y=y), groups=groups, re_formula=f"1 + {slope}"
    ).fit(reml=False, method=["lbfgs", "powell"])
    names = {label: label.replace("[T.", "[") for label in theirs.fe_params.index}
    fixed = theirs.fe_params.rename(names)
    error = theirs.bse_fe.rename(names)
    shift = ((ours.fixed_effects_["estimate"] - fixed) / error).abs().max()
    sds = np.sqrt([*np.diag(theirs.cov_re), theirs.scale])
    spread = np.abs(ours.variance_components_["sd"].to_numpy() / sds - 1.0).max()
    blups = pd.DataFrame(theirs.random_effects).T.loc[ours.group_effects_.index]
    effects = ours.group_effects_[["Intercept", slope]].to_numpy()
    likeness = min(np.corrcoef(effects[:, j], blups.to_numpy()[:, j])[0, 1] for j in range(2))
    return (
        f"{name:11s}{shift:12.4f}{100 * spread:10.3f}{likeness:14.6f}"
        f"{ours.mixed_model_log_likelihood_:15.4f}{theirs.llf:15.4f}"
    )


def main() -> None:
    warnings.simplefilter("ignore")
    print(f"{'table':11s}{'fixed / SE':>12s}{'SD / %':>10s}{'correlation':>14s}{'ours':>15s}{'MixedLM':>15s}")
    for name in TABLES:
        print(compare(name), flush=True)


if __name__ == "__main__":
    main()
