"""family="binomial": proportions, trials, and the same fit as rows of 0 and 1."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import minimize
from scipy.special import expit, logsumexp
from sklearn.metrics import r2_score

from skgroupvae import CxVAERegressor

N_GROUPS = 40
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(200)


def quick(family="binomial", **kwargs):
    settings = {
        "decoder": "linear",
        "random_slopes": None,
        "max_epochs": 2,
        "random_state": 0,
        "verbose": False,
    }
    return CxVAERegressor(family, **settings | kwargs)


@pytest.fixture(scope="module")
def clinics():
    """240 rows of 40 clinics, with 1 to 29 patients a row, and how many of them recovered."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(N_GROUPS), 6)
    x, trials = rng.normal(size=(240, 1)), rng.integers(1, 30, 240)
    rate = expit(0.3 + 0.5 * x[:, 0] + 0.9 * rng.normal(size=N_GROUPS)[groups])
    successes = rng.binomial(trials, rate)
    return x, np.column_stack([successes, trials - successes]), groups


@pytest.fixture(scope="module")
def model(clinics):
    x, y, groups = clinics
    return quick(max_epochs=60, n_prediction_samples=256).fit(x, y, groups=groups)


def fixed_and_sd(model):
    """Intercept and slope in the units of x, and the sd of the random intercept."""
    return *model.fixed_effects_["estimate"], model.variance_components_.loc["Intercept", "sd"]


# --- the fit


def test_fit_is_that_of_weighted_rows_of_0_and_1(clinics):
    x, y, groups = clinics
    ours = quick().fit(x, y, groups=groups)
    outcome = np.repeat([1.0, 0.0], len(x))
    rows = quick("bernoulli").fit(
        np.r_[x, x], outcome, groups=np.r_[groups, groups], sample_weight=y.T.ravel()
    )
    # A network has the tables of its start, which no draw is in.
    starts = [
        quick(family, decoder="mlp", max_epochs=1).fit(*table, groups=labels, sample_weight=weights)
        for family, table, labels, weights in (
            ("binomial", (x, y), groups, None),
            ("bernoulli", (np.r_[x, x], outcome), np.r_[groups, groups], y.T.ravel()),
        )
    ]
    for name in ("fixed_effects_", "variance_components_"):
        np.testing.assert_allclose(*(getattr(start, name) for start in starts), rtol=1e-3)
    # Trained for two epochs, with other draws.
    np.testing.assert_allclose(ours.predict(x, groups=groups), rows.predict(x, groups=groups), atol=0.02)
    effects = rows.group_effects_.loc[ours.group_effects_.index]
    np.testing.assert_allclose(ours.group_effects_["Intercept"], effects["Intercept"], atol=0.02)
    assert (ours.group_effects_["n_rows"] == 6).all()


def test_fit_is_near_maximum_likelihood(model, clinics):
    x, y, groups = clinics
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)

    def log_likelihood(parameters):
        intercept, slope, sd = parameters
        eta = (intercept + slope * x[:, 0])[:, None] + sd * nodes
        log_prob = stats.binom.logpmf(y[:, :1], y.sum(1)[:, None], expit(eta))
        by_group = np.zeros((N_GROUPS, len(nodes)))
        np.add.at(by_group, groups, log_prob)
        return logsumexp(by_group + np.log(weights / weights.sum()), axis=1).sum()

    best = minimize(lambda p: -log_likelihood(p), [0.3, 0.5, 0.8])
    # A confidence region of 95 % for the three of them reaches 3.9 nats down.
    assert log_likelihood(fixed_and_sd(model)) > -best.fun - 1.0


def test_weights_multiply_trials(clinics):
    x, y, groups = clinics
    doubled = quick().fit(x, 2 * y, groups=groups)
    weighted = quick().fit(x, y, groups=groups, sample_weight=np.full(len(x), 2.0))
    np.testing.assert_allclose(doubled.predict(x, groups=groups), weighted.predict(x, groups=groups))
    np.testing.assert_allclose(
        doubled.score(x, y, groups=groups),
        r2_score(y[:, 0] / y.sum(1), doubled.predict(x, groups=groups), sample_weight=y.sum(1)),
    )


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_context_counts_trials(decoder, clinics):
    x, y, groups = clinics
    model = quick(decoder=decoder, hidden_sizes=(8,)).fit(x, y, groups=groups)
    some, new = groups == 3, np.full(6, "new")
    known = model.predict(x[some], groups=groups[some])
    context = (x[some], y[some], new)
    np.testing.assert_allclose(model.predict(x[some], groups=new, context=context), known, rtol=1e-6)
    model.update_groups(x[some], y[some], groups=new)
    np.testing.assert_allclose(model.predict(x[some], groups=new), known, rtol=1e-6)


# --- predictions


def test_new_groups_are_predicted_by_the_integral_over_the_prior(model, clinics):
    """Probability, moments, quantiles and PIT of counts of a new group, by quadrature over u."""
    x, y, _ = clinics
    intercept, slope, sd = fixed_and_sd(model)
    rates = expit((intercept + slope * x)[:20] + sd * NODES)
    weights = WEIGHTS / WEIGHTS.sum()
    count, trials = y[:20, :1], y[:20].sum(1)
    exact = stats.binom.pmf(count, trials[:, None], rates) @ weights
    np.testing.assert_allclose(model.score_samples(x[:20], y[:20]), np.log(exact), atol=0.02)
    mean, std = model.predict(x[:20], return_std=True, trials=trials)
    np.testing.assert_allclose(mean, rates @ weights, atol=2e-3)
    variance = (rates * (1 - rates)) @ weights / trials + (rates - mean[:, None]) ** 2 @ weights
    np.testing.assert_allclose(std, np.sqrt(variance), atol=2e-3)
    upper = stats.binom.cdf(count, trials[:, None], rates) @ weights
    pit = model.pit(x[:20], y[:20])
    assert (pit <= upper + 5e-3).all()
    assert (pit >= upper - exact - 5e-3).all()
    reached = (
        stats.binom.cdf(model.predict_quantiles(x[:20], 0.7, trials=trials), trials[:, None], rates) @ weights
    )
    assert (reached >= 0.695).all()
    assert (reached - exact.max() <= 0.705).all()


def test_samples_are_counts_with_the_predicted_moments(model, clinics):
    x, _, groups = clinics
    trials = np.arange(1, len(x) + 1)
    draws = model.sample_y(x, 500, groups=groups, random_state=0, trials=trials)
    assert ((draws >= 0) & (draws <= trials[:, None]) & (draws == np.round(draws))).all()
    mean, std = model.predict(x, groups=groups, return_std=True, trials=trials)
    # 500 draws: five standard errors.
    assert (np.abs(draws.mean(1) / trials - mean) <= 5 * std / np.sqrt(500) + 1e-9).all()
    one = model.sample_y(x, 5, groups=groups, random_state=0)
    np.testing.assert_array_equal(one, model.sample_y(x, 5, groups=groups, random_state=0, trials=1))
    assert set(np.unique(one)) == {0.0, 1.0}


def test_calibration_of_simulated_counts(model, clinics):
    x, y, groups = clinics
    trials = y.sum(1)
    counts = model.sample_y(x, groups=groups, random_state=0, trials=trials)[:, 0]
    pit = model.pit(x, np.column_stack([counts, trials - counts]), groups=groups)
    # 240 uniform values, whose mean has an sd of 0.019 and, as rows of a group share a draw of u, more.
    assert abs(pit.mean() - 0.5) < 0.08
    assert abs(pit.var() - 1.0 / 12.0) < 0.03


def test_scores_and_translations_are_of_counts(model, clinics):
    x, y, groups = clinics
    _, v = model.transform(x, y, groups=groups)
    assert abs(v.mean()) < 0.1
    assert 0.8 < v.std() < 1.1
    trials, best = y.sum(1), model.group_effects_["Intercept"].idxmax()
    worst = groups == model.group_effects_["Intercept"].idxmin()
    moved, interval = model.translate(
        x[worst], y[worst], source_group=groups[worst], target_group=best, quantiles=[0.1, 0.9]
    )
    assert (moved > y[worst, 0]).all()
    assert (interval <= trials[worst, None]).all()
    assert (np.round(interval[:, 1]) >= interval[:, 0]).all()
    frame = pd.DataFrame(y[worst], columns=["yes", "no"], index=np.flatnonzero(worst))
    named = model.translate(x[worst], frame, source_group=groups[worst], target_group=best)
    assert list(named.columns) == ["yes"]
    assert named.index.equals(frame.index)
    np.testing.assert_array_equal(named["yes"], moved)


# --- scikit-learn, files and errors


def test_tables_and_files(model, clinics, tmp_path):
    x, y, groups = clinics
    frame = pd.DataFrame(y, columns=["yes", "no"])
    same = quick().fit(x, frame, groups=groups)
    np.testing.assert_array_equal(same.predict(x), quick().fit(x, y.tolist(), groups=groups).predict(x))
    model.save(tmp_path / "model.safetensors")
    loaded = CxVAERegressor.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(
        loaded.score_samples(x, y, groups=groups), model.score_samples(x, y, groups=groups)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[:, 0], r"2 columns, successes and failures, got shape \(240,\); pass np.column_stack"),
        (lambda y: np.c_[y, y], r"2 columns.*got shape \(240, 4\)"),
        (lambda y: y / 10.0, "counts of successes and failures"),
        (lambda y: -y, "counts of successes and failures"),
        (lambda y: y * (np.arange(240) != 7)[:, None], "no trial in row 7; drop"),
        (lambda y: np.where(np.arange(240)[:, None] == 5, np.nan, y), "NaN.*row 5"),
        (lambda y: y[:9], "y has 9 outcomes but X has 240 rows"),
        (lambda y: np.full((240, 2), "a"), "y must be the numbers of successes and failures"),
        (lambda y: y * [1, 0] + [1, 0], r"y is constant \(1 in every row\)"),
    ],
)
def test_bad_outcomes_are_refused(change, message, clinics):
    x, y, groups = clinics
    estimator = quick()
    with pytest.raises(ValueError, match=message):
        estimator.fit(x, change(y), groups=groups)
    assert not hasattr(estimator, "model_")


@pytest.mark.parametrize("trials", [0, 1.5, -2, [1, 2], "many", np.nan])
def test_bad_trials_are_refused(trials, model, clinics):
    with pytest.raises(ValueError, match="trials must be"):
        model.predict_quantiles(clinics[0], 0.5, trials=trials)


def test_trials_are_for_binomial_outcomes(clinics):
    x, y, groups = clinics
    other = quick("gaussian").fit(x, y[:, 0], groups=groups)
    for ask in (
        other.predict,
        other.sample_y,
        lambda x, trials: other.predict_quantiles(x, 0.5, trials=trials),
    ):
        with pytest.raises(ValueError, match="trials is for family='binomial', not 'gaussian'"):
            ask(x, trials=np.full(len(x), 2))
    np.testing.assert_array_equal(other.predict(x, trials=None), other.predict(x))
