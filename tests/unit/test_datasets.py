"""The exact posterior of the exam scores against independent methods: a test of the reference itself."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from skgroupvae.datasets import exam_scores_posterior, make_exam_scores

# A few scores each, so that the posterior is wide and far from normal.
TINY_GROUPS = {
    "one row": [1.3],
    "three rows": [-0.4, 2.5, 3.1],
    "wide": [-9.0, 4.0, 11.0, 0.5],
}


def posterior_of(scores, noise=1.0):
    return exam_scores_posterior(np.array(scores), np.zeros(len(scores)), noise=noise)


def trapezoid(values, step):
    """Integral over the first axis; for smooth functions that vanish at the ends its error is negligible."""
    return step * values.sum(axis=0)


def normal_density(deviation, sd):
    """As scipy's, which takes three times as long."""
    return np.exp(-0.5 * (deviation / sd) ** 2) / (np.sqrt(2.0 * np.pi) * sd)


def brute_force(scores, noise):
    """Every integral on a plain grid, without algebra of normals: over mu, sigma and the v of each row."""
    mu = np.linspace(-6.0, 6.0, 161)
    sigma = np.linspace(-5.0, 5.0, 201)
    v = np.linspace(-7.0, 7.0, 561)
    prior = np.multiply.outer(stats.norm.pdf(mu), stats.norm.pdf(sigma))
    likelihood, v_moment = [], []
    for score in scores:
        # (v, sigma) for one mu at a time, to stay small.
        spread = v[:, None] * (sigma**2 + 1.0)
        by_mu = [stats.norm.pdf(v)[:, None] * normal_density(score - 2.0 * at - spread, noise) for at in mu]
        likelihood.append(np.array([trapezoid(p, v[1] - v[0]) for p in by_mu]))
        v_moment.append(np.array([trapezoid(v[:, None] * p, v[1] - v[0]) for p in by_mu]))
    joint = prior * np.prod(likelihood, axis=0)
    step = (mu[1] - mu[0]) * (sigma[1] - sigma[0])
    evidence = joint.sum() * step

    def expected(value):
        return float((joint * value).sum() * step / evidence)

    mu_mean = expected(mu[:, None])
    return {
        "log_likelihood": np.log(evidence),
        "mu": mu_mean,
        "mu_sd": np.sqrt(expected((mu[:, None] - mu_mean) ** 2)),
        "scale": expected(sigma**2 + 1.0),
        "abs_sigma": expected(abs(sigma)),
        "v": [expected(moment / one) for moment, one in zip(v_moment, likelihood, strict=True)],
    }


@pytest.mark.parametrize("noise", [1.0, 0.7])
@pytest.mark.parametrize("scores", TINY_GROUPS.values(), ids=TINY_GROUPS.keys())
def test_posterior_equals_brute_force_on_a_grid(scores, noise):
    exact, grid = posterior_of(scores, noise), brute_force(scores, noise)
    # The grid cuts |sigma| at 5, which has prior mass 6e-7. The kink of |sigma| at 0 costs the trapezoid
    # about step² / 6 times the density, 2e-4.
    assert exact.log_likelihood[0] == pytest.approx(grid["log_likelihood"], abs=1e-4)
    assert exact.abs_sigma[0] == pytest.approx(grid["abs_sigma"], abs=5e-4)
    for name in ("mu", "mu_sd", "scale"):
        assert getattr(exact, name)[0] == pytest.approx(grid[name], abs=1e-4), name
    np.testing.assert_allclose(exact.v, grid["v"], atol=1e-4)


@pytest.mark.parametrize("noise", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("scores", TINY_GROUPS.values(), ids=TINY_GROUPS.keys())
def test_log_likelihood_equals_scipy(scores, noise):
    # Given sigma the scores are jointly normal: 2 mu makes all covariances 4.
    def density(sigma):
        variance = (sigma**2 + 1.0) ** 2 + noise**2
        covariance = 4.0 + variance * np.eye(len(scores))
        return stats.multivariate_normal.pdf(scores, cov=covariance) * stats.halfnorm.pdf(sigma)

    likelihood, _ = integrate.quad(density, 0.0, np.inf, epsabs=0.0, epsrel=1e-10)
    assert posterior_of(scores, noise).log_likelihood[0] == pytest.approx(np.log(likelihood), abs=1e-8)


def test_posterior_equals_importance_sampling():
    scores = np.array(TINY_GROUPS["three rows"])
    rng = np.random.default_rng(0)
    n_draws = 200_000
    mu, sigma = rng.standard_normal((2, n_draws))
    scale = sigma**2 + 1.0
    total = scale**2 + 1.0
    log_weights = stats.norm.logpdf(scores[:, None], 2.0 * mu, np.sqrt(total)).sum(axis=0)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    # One draw of v from its normal posterior given mu and sigma, so that v is sampled and not integrated.
    v = scale / total * (scores[:, None] - 2.0 * mu) + rng.standard_normal((3, n_draws)) / np.sqrt(total)
    exact = posterior_of(scores)

    def agrees(draws, value):
        estimate = (weights * draws).sum()
        # Delta-method standard error of a self-normalized estimate.
        return abs(estimate - value) < 5 * np.sqrt((weights**2 * (draws - estimate) ** 2).sum())

    assert agrees(mu, exact.mu[0])
    assert agrees(scale, exact.scale[0])
    assert agrees(abs(sigma), exact.abs_sigma[0])
    assert agrees((mu - exact.mu[0]) ** 2, exact.mu_sd[0] ** 2)
    assert all(agrees(draws, value) for draws, value in zip(v, exact.v, strict=True))


@pytest.mark.slow
def test_posterior_equals_metropolis():
    # Shares no formula with the package: a random walk on (mu, sigma, v) under the model as stated.
    scores = np.array(TINY_GROUPS["three rows"])
    rng = np.random.default_rng(0)
    n_chains, n_steps, n_burn = 4000, 1500, 500
    state = rng.standard_normal((2 + len(scores), n_chains))

    def log_density(state):
        mean = 2.0 * state[0] + (state[1] ** 2 + 1.0) * state[2:]
        return -0.5 * (state**2).sum(axis=0) - 0.5 * ((scores[:, None] - mean) ** 2).sum(axis=0)

    current = log_density(state)
    sums = np.zeros((3 + len(scores), n_chains))
    for step in range(n_steps):
        proposal = state + 0.5 * rng.standard_normal(state.shape)
        proposed = log_density(proposal)
        accept = np.log(rng.uniform(size=n_chains)) < proposed - current
        state[:, accept], current[accept] = proposal[:, accept], proposed[accept]
        if step >= n_burn:
            sums += np.vstack([state[0], abs(state[1]), state[1] ** 2 + 1.0, state[2:]])
    means = sums / (n_steps - n_burn)
    exact = posterior_of(scores)
    expected = np.concatenate([[exact.mu[0], exact.abs_sigma[0], exact.scale[0]], exact.v])
    # Chains are independent, so the spread of their means is the standard error.
    standard_error = means.std(axis=1, ddof=1) / np.sqrt(n_chains)
    assert (standard_error < 0.02).all()
    assert (abs(means.mean(axis=1) - expected) < 5 * standard_error).all()


def test_draws_have_the_posterior_moments():
    # The same group 20,000 times over: one call to sample is 20,000 draws from one posterior.
    scores, n_draws = TINY_GROUPS["three rows"], 20_000
    exact = exam_scores_posterior(np.tile(scores, n_draws), np.repeat(np.arange(n_draws), 3))
    u, v = exact.sample(random_state=0)
    draws = {
        "mu": (u[:, 0], exact.mu[0]),
        "sigma": (u[:, 1], 0.0),
        "abs_sigma": (abs(u[:, 1]), exact.abs_sigma[0]),
        "scale": (u[:, 1] ** 2 + 1.0, exact.scale[0]),
        "mu variance": ((u[:, 0] - exact.mu[0]) ** 2, exact.mu_sd[0] ** 2),
    } | {f"v{k}": (v[k::3], exact.v[k]) for k in range(3)}
    for name, (draw, mean) in draws.items():
        assert abs(draw.mean() - mean) < 5 * draw.std() / np.sqrt(n_draws), name


def test_draws_of_u_and_v_are_joint():
    # The residual x - 2 mu - (sigma² + 1) v of joint draws is noise given the data. Its second moment by the
    # grid of |sigma| is not public, but with noise 0.1 it must be small; independent draws of u and v leave
    # the uncertainty of u, about 1.
    data = make_exam_scores(300, noise=0.1, random_state=0)
    u, v = exam_scores_posterior(data.X, data.groups, noise=0.1).sample(random_state=0)
    own = u[data.groups]
    residual = data.X[:, 0] - 2.0 * own[:, 0] - (own[:, 1] ** 2 + 1.0) * v
    assert residual.std() == pytest.approx(0.1, rel=0.1)


def test_draws_repeat_with_a_seed():
    exact = posterior_of(TINY_GROUPS["wide"])
    first, second, other = exact.sample(1), exact.sample(1), exact.sample(2)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert not np.array_equal(first[0], other[0])


def test_truth_is_covered_as_often_as_the_posterior_says():
    # Under the model, E[(mu - E[mu | x])²] = E[Var(mu | x)] and E[error | x] = 0; so for |sigma| and v.
    data = make_exam_scores(4000, random_state=0)
    exact = exam_scores_posterior(data.X, data.groups)
    z = (data.mu - exact.mu) / exact.mu_sd
    assert abs((z**2).mean() - 1.0) < 5 * (z**2).std() / np.sqrt(len(z))
    pairs = [
        (exact.mu, data.mu),
        (exact.abs_sigma, abs(data.sigma)),
        (exact.scale, data.sigma**2 + 1.0),
    ]
    for estimate, truth in pairs:
        error = estimate - truth
        # A posterior mean errs neither on average nor with its own value.
        for product in (error, error * (estimate - estimate.mean())):
            assert abs(product.mean()) < 5 * product.std() / np.sqrt(len(error))


def test_posterior_mean_of_v_without_noise_inverts_the_model():
    data = make_exam_scores(500, noise=0.0, random_state=0)
    exact = exam_scores_posterior(data.X, data.groups, noise=0.0)
    u, v = exact.sample(random_state=0)
    own = u[data.groups]
    np.testing.assert_allclose(2.0 * own[:, 0] + (own[:, 1] ** 2 + 1.0) * v, data.X[:, 0], atol=1e-10)
    # v errs only as u does, so much less than with noise 1, where its error is 0.33.
    assert np.mean((exact.v - data.v) ** 2) < 0.1
    assert np.isfinite(exact.log_likelihood).all()


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_groups_of_any_size_are_finite(noise):
    rng = np.random.default_rng(0)
    mu, sigma, n_rows = 0.7, 1.2, 100_000
    large = 2.0 * mu + (sigma**2 + 1.0) * rng.standard_normal(n_rows) + noise * rng.standard_normal(n_rows)
    x = np.concatenate([[0.3], large, [0.0, 0.0], [1e4]])
    groups = np.concatenate([[5], np.full(n_rows, 2), [9, 9], [1]])
    exact = exam_scores_posterior(x, groups, noise=noise)
    for name in ("mu", "mu_sd", "scale", "abs_sigma", "v", "log_likelihood"):
        assert np.isfinite(getattr(exact, name)).all(), name
    u, v = exact.sample(random_state=0)
    assert np.isfinite(u).all()
    assert np.isfinite(v).all()
    # With 100,000 rows the prior does not matter: the posterior means are the maximum-likelihood
    # estimates to a tenth of their standard errors, 0.004 for mu and 0.006 for the scale.
    assert exact.mu[1] == pytest.approx(0.5 * large.mean(), abs=4e-4)
    assert exact.scale[1] == pytest.approx(np.sqrt(large.var() - noise**2), abs=6e-4)
    assert exact.mu_sd[1] == pytest.approx(0.5 * np.sqrt((sigma**2 + 1.0) ** 2 + noise**2) / 316.2, rel=0.05)


def test_labels_and_order_of_rows_do_not_matter():
    data = make_exam_scores(40, random_state=0)
    names = np.array([f"school {g}" for g in data.groups])
    shuffle = np.random.default_rng(0).permutation(len(names))
    plain = exam_scores_posterior(data.X, data.groups)
    mixed = exam_scores_posterior(data.X[shuffle, 0], names[shuffle])
    assert mixed.labels[0] == names[shuffle[0]]
    np.testing.assert_array_equal(mixed.labels[mixed.codes], names[shuffle])
    np.testing.assert_allclose(mixed.v, plain.v[shuffle], atol=1e-9)
    np.testing.assert_allclose(mixed.mu[mixed.codes], plain.mu[data.groups][shuffle], atol=1e-9)
    assert mixed.log_likelihood_per_row == pytest.approx(plain.log_likelihood_per_row)


def test_log_likelihood_per_row_is_the_share_of_the_table():
    data = make_exam_scores(10, random_state=0)
    exact = exam_scores_posterior(data.X, data.groups)
    assert exact.log_likelihood_per_row == pytest.approx(exact.log_likelihood.sum() / len(data.X))


def test_translation_is_the_posterior_mean():
    # Groups are independent, so the mean of the product is the product of the means: draws must agree.
    n_draws = 20_000
    scores = np.array([*TINY_GROUPS["three rows"], *TINY_GROUPS["wide"]])
    exact = exam_scores_posterior(
        np.tile(scores, n_draws), np.repeat(np.arange(2 * n_draws), [3, 4] * n_draws)
    )
    target = exact.codes ^ 1
    u, v = exact.sample(random_state=0)
    draws = (2.0 * u[target, 0] + (u[target, 1] ** 2 + 1.0) * v).reshape(n_draws, 7)
    expected = exact.translate(target).reshape(n_draws, 7)[0]
    assert (abs(draws.mean(axis=0) - expected) < 5 * draws.std(axis=0) / np.sqrt(n_draws)).all()


def test_translate_refuses_the_own_group():
    data = make_exam_scores(3, random_state=0)
    exact = exam_scores_posterior(data.X, data.groups)
    target = (data.groups + 1) % 3
    assert exact.translate(target).shape == data.groups.shape
    target[5] = data.groups[5]
    with pytest.raises(ValueError, match=r"^target must differ from each row's own group"):
        exact.translate(target)


def test_posterior_names_bad_input():
    with pytest.raises(ValueError, match=r"^X must have one column of scores"):
        exam_scores_posterior(np.zeros((3, 2)), [0, 0, 1])
    with pytest.raises(ValueError, match=r"^groups has 2 labels for 3 rows of X"):
        exam_scores_posterior(np.zeros(3), [0, 1])


def test_make_exam_scores_shapes_and_contents():
    data = make_exam_scores(20, noise=0.0, min_group_size=3, mean_extra_size=2.0, random_state=0)
    n_rows = len(data.v)
    assert data.X.shape == (n_rows, 1)
    assert data.groups.shape == (n_rows,)
    assert data.u.shape == (20, 2)
    np.testing.assert_array_equal(data.u, np.column_stack([data.mu, data.sigma]))
    np.testing.assert_array_equal(np.unique(data.groups), np.arange(20))
    assert np.bincount(data.groups).min() >= 3
    assert data.noise == 0.0
    own = data.u[data.groups]
    np.testing.assert_allclose(data.X[:, 0], 2.0 * own[:, 0] + (own[:, 1] ** 2 + 1.0) * data.v)


def test_make_exam_scores_moments():
    data = make_exam_scores(20_000, noise=0.5, random_state=0)
    sizes = np.bincount(data.groups)
    # Poisson(16) + 8: mean 24, variance 16.
    assert abs(sizes.mean() - 24.0) < 5 * 4.0 / np.sqrt(20_000)
    assert sizes.var() == pytest.approx(16.0, rel=5 * np.sqrt(2 / 20_000))
    for code in (data.mu, data.sigma, data.v):
        assert abs(code.mean()) < 5 / np.sqrt(len(code))
        assert code.var() == pytest.approx(1.0, rel=5 * np.sqrt(2 / len(code)))
    own = data.u[data.groups]
    noise = data.X[:, 0] - 2.0 * own[:, 0] - (own[:, 1] ** 2 + 1.0) * data.v
    assert noise.std() == pytest.approx(0.5, rel=5 * np.sqrt(0.5 / len(noise)))
    assert abs(np.corrcoef(noise, data.v)[0, 1]) < 5 / np.sqrt(len(noise))


def test_make_exam_scores_seed():
    first, again, other = (make_exam_scores(5, random_state=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.X, again.X)
    assert not np.array_equal(first.mu, other.mu)
    rng = np.random.RandomState(0)
    np.testing.assert_array_equal(make_exam_scores(5, random_state=rng).X, first.X)
    assert not np.array_equal(make_exam_scores(5, random_state=rng).mu, first.mu)


def test_reconstruction_is_the_mean_of_posterior_draws():
    data = make_exam_scores(3, random_state=0)
    exact = exam_scores_posterior(data.X, data.groups)
    draws = []
    for seed in range(4000):
        u, v = exact.sample(random_state=seed)
        draws.append(2 * u[data.groups, 0] + (u[data.groups, 1] ** 2 + 1) * v)
    # A draw of a row has a standard deviation below 1, so a mean of 4,000 one below 0.016; five of them.
    np.testing.assert_allclose(np.mean(draws, axis=0), exact.reconstruct(), atol=0.08)
