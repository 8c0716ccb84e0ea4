"""Tables of a mixed model in the units of the data, and average marginal effects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import unsettled
from scipy.special import expit
from scipy_families import distribution

from skgroupvae.batch import Batch, RandomTerm, Segments
from skgroupvae.data.design import PlainDesign
from skgroupvae.mixed_model.generalized import newton_posterior
from skgroupvae.mixed_model.initialize import start_at_mixed_model
from skgroupvae.mixed_model.linear import fit_linear_mixed_model
from skgroupvae.mixed_model.marginal import marginal_effects
from skgroupvae.mixed_model.tables import MixedModelTables
from skgroupvae.model.families import BernoulliFamily, GaussianFamily, PoissonFamily
from skgroupvae.model.spec import ScoreSpec

RANDOM = (0, 1)
CENTER, SCALE = np.array([3.0, -1.0]), np.array([2.0, 0.5])
NAMES = ["Intercept", "x", "sex[M]"]


def covariates(seed=0, n_groups=60):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), rng.integers(1, 9, n_groups))
    x = pd.DataFrame({"x": rng.normal(5.0, 3.0, len(groups)), "sex": rng.choice(["F", "M"], len(groups))})
    return rng, groups, x


def table(n_outcomes=2, kind="numeric"):
    """The table, its design, and rows in the units of the model and of the table."""
    rng, groups, x = covariates()
    design = PlainDesign.learn(x)
    raw = design.transform(x) * design.scale + design.center
    effects = rng.multivariate_normal([0.0, 0.0], [[1.0, 0.4], [0.4, 0.8]], groups.max() + 1)[groups]
    slopes = 0.2 * rng.normal(size=effects.shape)[groups] * raw[:, 1:2]
    fixed = [[1.0, 0.5], [0.3, -0.2], [0.5, 1.0]]
    y = raw @ fixed + effects + slopes + rng.normal(size=effects.shape) @ [[1.0, 0.5], [0.0, 0.7]]
    y = y[:, :n_outcomes]
    if kind == "count":
        y = rng.poisson(np.exp(0.2 * y)).astype(float)
    elif kind == "binary":
        y = (y > 2.0).astype(float)
    factors = (Segments.of_sizes(torch.from_numpy(np.bincount(groups))),)
    weights = torch.ones(len(groups), dtype=torch.float64)
    values, columns = torch.from_numpy(y), torch.from_numpy(design.transform(x))
    center, scale = torch.from_numpy(CENTER[:n_outcomes]), torch.from_numpy(SCALE[:n_outcomes])
    in_model = Batch((values - center) / scale if kind == "numeric" else values, columns, weights, factors)
    return design, in_model, Batch(values, torch.from_numpy(raw), weights, factors)


def tables_of(fitted, design, n_outcomes=2, family=GaussianFamily, outcomes=("a", "b")):
    families = [family() for _ in range(n_outcomes)]
    units = (CENTER, SCALE) if families[0].is_continuous else (np.zeros(2), np.ones(2))
    return MixedModelTables(
        fitted, design, families, outcomes[:n_outcomes], *(part[:n_outcomes] for part in units)
    )


def test_tables_are_those_of_a_fit_in_the_units_of_the_table():
    """The likelihood does not depend on the units, so both ways give the same numbers."""
    design, in_model, in_units = table()
    tables = tables_of(fit_linear_mixed_model(in_model, [RandomTerm(RANDOM)]), design)
    plain = replace(design, center=np.zeros(3), scale=np.ones(3))
    fitted = fit_linear_mixed_model(in_units, [RandomTerm(RANDOM)])
    direct = MixedModelTables(fitted, plain, [GaussianFamily()] * 2, ["a", "b"], np.zeros(2), np.ones(2))
    np.testing.assert_allclose(tables.fixed_effects(), direct.fixed_effects(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        tables.random_effects_covariance(), direct.random_effects_covariance(), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(tables.residual_covariance(), direct.residual_covariance(), rtol=1e-4)
    # The intervals are by the delta method, at a maximum that two searches find to some digits.
    np.testing.assert_allclose(tables.variance_components(), direct.variance_components(), rtol=1e-2)
    np.testing.assert_allclose(fitted.residual @ fitted.residual.T, direct.residual_covariance())


def test_several_outcomes_are_the_outer_level():
    design, batch, _ = table()
    fitted = fit_linear_mixed_model(batch, [RandomTerm(RANDOM)])
    tables = tables_of(fitted, design)
    fixed, components = tables.fixed_effects(), tables.variance_components()
    assert list(fixed.index) == [(outcome, name) for outcome in "ab" for name in NAMES]
    expected = [(outcome, name) for outcome in "ab" for name in ["Intercept", "x", "Residual"]]
    assert list(components.index) == expected
    covariance, residual = tables.random_effects_covariance(), tables.residual_covariance()
    assert list(covariance.index) == list(covariance.columns) == [(o, n) for o in "ab" for n in NAMES[:2]]
    assert list(residual.index) == list(residual.columns) == ["a", "b"]
    sds = components["sd"]
    np.testing.assert_allclose(sds.drop("Residual", level=1), np.sqrt(np.diag(covariance)))
    np.testing.assert_allclose(sds.xs("Residual", level=1), np.sqrt(np.diag(residual)))
    assert (components["lower"] < sds).all()
    assert (sds < components["upper"]).all()
    shares = tables.intraclass_correlation()
    assert list(shares.index) == ["a", "b"]
    psi, sigma = (root @ root.T for root in (fitted.loadings[0], fitted.residual))
    between, within = psi.diagonal()[::2], sigma.diagonal()
    np.testing.assert_allclose(shares["estimate"], between / (between + within))
    assert (shares["lower"] < shares["estimate"]).all()
    assert (shares["estimate"] < shares["upper"]).all()


def test_the_residual_is_no_component_of_what_has_none():
    design, batch, _ = table(kind="count")
    fitted = fit_linear_mixed_model(batch, [RandomTerm(RANDOM)], residual="diagonal")
    tables = tables_of(fitted, design, family=PoissonFamily)
    assert list(tables.variance_components().index) == [(o, n) for o in "ab" for n in NAMES[:2]]
    np.testing.assert_allclose(
        tables.variance_components()["sd"], np.sqrt(np.diag(tables.random_effects_covariance()))
    )
    assert tables.intraclass_correlation().shape == (2, 3)


def model_of(name, n_outcomes, hidden=False):
    spec = ScoreSpec(
        family=name,
        levels=((),) * n_outcomes,
        n_columns=3,
        random=RANDOM,
        n_extra_codes=1,
        group_encoder="mixed_model",
        regularizer=None,
        hidden_sizes=(8,),
        has_network=hidden,
    )
    return spec.build(torch.Generator().manual_seed(0))


def fitted_model(name, batch, hidden=False):
    model = model_of(name, batch.values.shape[1], hidden)
    fitted = start_at_mixed_model(model, batch, 0.1, torch.Generator().manual_seed(0))
    return fitted, model.double()


def test_marginal_effects_of_a_linear_model_are_its_coefficients():
    design, batch, _ = table()
    fitted, model = fitted_model("gaussian", batch)
    fixed = tables_of(fitted, design).fixed_effects()
    error = fixed["std_error"].to_numpy().reshape(2, 3)[:, 1:].T
    # At the prior, whose draws come in pairs about zero: no group's slope is in it.
    q_u = newton_posterior(model, batch)
    prior = type(q_u)(0.0 * q_u.loc, q_u.root, q_u.log_det)
    effects = marginal_effects(model, design, batch, prior, ["a", "b"], SCALE, error)
    assert list(effects.index) == [(outcome, name) for outcome in "ab" for name in NAMES[1:]]
    np.testing.assert_allclose(effects, fixed.drop("Intercept", level=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), [("gaussian", "numeric"), ("poisson", "count")])
def test_marginal_effects_of_a_network_are_differences_of_expected_outcomes(name, kind):
    """At codes that are known, so that nothing is averaged but the rows."""
    design, batch, _ = table(1, kind)
    weights = torch.from_numpy(np.random.default_rng(1).integers(1, 4, batch.n_rows).astype(float))
    batch = replace(batch, weights=weights)
    model = unsettled(fitted_model(name, batch, hidden=True)[1], 0.05).requires_grad_(False)
    q_u, error, unit = newton_posterior(model, batch), np.array([[0.1], [0.2]]), 2.0
    certain = type(q_u)(q_u.loc, 0.0 * q_u.root, q_u.log_det)
    found = marginal_effects(model, design, batch, certain, ["a"], [unit], error)

    def expected(columns, shift=0.0):
        eta = model.decoder(columns, batch.groups.expand(q_u.loc)).numpy()[:, 0] + [shift, *[0.0] * n_rest]
        means = distribution(name, model.decoder.likelihood.family_of(0), eta).mean()
        return unit * np.average(means, weights=weights)

    n_rest = model.decoder.likelihood.n_parameters - 1
    step = torch.tensor([0.0, 0.01, 0.0], dtype=torch.float64)
    slope = expected(batch.design + step) - expected(batch.design - step)
    assert found.loc["x", "estimate"] == pytest.approx(slope / (0.02 * design.scale[1]), rel=5e-3)
    both = [batch.design.clone() for _ in range(2)]
    for columns, value in zip(both, (0.0, 1.0), strict=True):
        columns[:, 2] = (value - design.center[2]) / design.scale[2]
    # The package has the mean of a skewed outcome by 15 nodes.
    tolerance = 1e-5 if kind == "count" else 2e-3
    change = expected(both[1]) - expected(both[0])
    assert found.loc["sex[M]", "estimate"] == pytest.approx(change, rel=tolerance)
    # By the delta method, in units of the outcome: the errors are those of the linear predictor, in them.
    in_predictor = (expected(batch.design, 0.01) - expected(batch.design, -0.01)) / 0.02 / unit
    np.testing.assert_allclose(found["std_error"], error[:, 0] * in_predictor, rtol=2e-3)
    np.testing.assert_allclose(found["upper"], found["estimate"] + 1.959964 * found["std_error"])
    assert list(found.index) == NAMES[1:]


# --- one outcome against the dense model in units ---


class Dense:
    """The mixed model of one outcome in units, the covariance of each group written out.

    Its parameters are the logarithms of the sds of intercepts, slopes and residuals, and the inverse
    hyperbolic tangent of the correlation of the random effects.
    """

    def __init__(self, batch):
        self.y, self.x = batch.values[:, 0].numpy(), batch.design.numpy()
        self.groups = [batch.groups.codes.numpy() == g for g in range(batch.groups.n_groups)]

    @staticmethod
    def covariance(parameters):
        sd, rho = np.exp(parameters[:2]), np.tanh(parameters[3])
        return np.outer(sd, sd) * np.array([[1.0, rho], [rho, 1.0]]), np.exp(2.0 * parameters[2])

    @staticmethod
    def parameters(psi, variance):
        sd = np.sqrt(np.diag(psi))
        return np.array([*np.log(sd), 0.5 * np.log(variance), np.arctanh(psi[0, 1] / sd.prod())])

    def covariances(self, parameters):
        psi, variance = self.covariance(parameters)
        for rows in self.groups:
            z = self.x[rows][:, RANDOM]
            yield rows, z @ psi @ z.T + variance * np.eye(rows.sum())

    def fixed(self, parameters):
        """Generalized least squares: coefficients and their covariance."""
        information = pull = 0.0
        for rows, v in self.covariances(parameters):
            weighted = np.linalg.solve(v, self.x[rows]).T
            information = information + weighted @ self.x[rows]
            pull = pull + weighted @ self.y[rows]
        return np.linalg.solve(information, pull), np.linalg.inv(information)

    def log_likelihood(self, parameters):
        beta, _ = self.fixed(parameters)
        total = 0.0
        for rows, v in self.covariances(parameters):
            rest = self.y[rows] - self.x[rows] @ beta
            total -= 0.5 * (np.linalg.slogdet(2 * np.pi * v)[1] + rest @ np.linalg.solve(v, rest))
        return total

    def parameters_covariance(self, at, step=1e-3):
        steps = step * np.eye(4)
        hessian = np.array(
            [
                [
                    sum(a * b * self.log_likelihood(at + a * h + b * k) for a in (1, -1) for b in (1, -1))
                    for k in steps
                ]
                for h in steps
            ]
        )
        return np.linalg.inv(-hessian / (4.0 * step**2))


OF_KIND = {"numeric": GaussianFamily, "count": PoissonFamily, "binary": BernoulliFamily}


@pytest.fixture(scope="module", params=OF_KIND)
def one_outcome(request):
    """Kind, design, tables, and the dense model with its parameters at the estimates and their covariance.

    Of counts and of 0 and 1 the mixed model is that of working outcomes, in units of the predictor.
    """
    design, batch, in_units = table(1)
    if request.param != "numeric":
        batch = replace(batch, values=in_units.values)
    fitted = fit_linear_mixed_model(batch, [RandomTerm(RANDOM)])
    tables = tables_of(fitted, design, 1, OF_KIND[request.param])
    dense = Dense(in_units)
    psi, residual = tables.random_effects_covariance(), tables.residual_covariance()
    assert list(psi.index) == list(psi.columns) == NAMES[:2]
    at = dense.parameters(psi.to_numpy(), residual.iloc[0, 0])
    return request.param, design, tables, dense, at, dense.parameters_covariance(at)


def test_covariances_of_one_outcome_are_of_greatest_likelihood(one_outcome):
    _, _, _, dense, at, _ = one_outcome
    gradient = [
        (dense.log_likelihood(at + h) - dense.log_likelihood(at - h)) / 2e-4 for h in 1e-4 * np.eye(4)
    ]
    np.testing.assert_allclose(gradient, 0.0, atol=1e-3)


def test_fixed_effects_of_one_outcome_are_generalized_least_squares(one_outcome):
    _, _, tables, dense, at, _ = one_outcome
    fixed, (estimate, covariance) = tables.fixed_effects(), dense.fixed(at)
    error = np.sqrt(np.diag(covariance))
    assert list(fixed.index) == NAMES
    expected = [estimate, error, estimate - 1.959964 * error, estimate + 1.959964 * error]
    np.testing.assert_allclose(fixed, np.transpose(expected), rtol=1e-6)


def test_intervals_of_one_outcome_are_from_the_observed_information(one_outcome):
    kind, _, tables, _, at, covariance = one_outcome
    components, error = tables.variance_components(), np.sqrt(np.diag(covariance))
    n_rows = 3 if kind == "numeric" else 2
    assert list(components.index) == ["Intercept", "x", "Residual"][:n_rows]
    expected = np.exp(at[:, None] + error[:, None] * [0.0, -1.959964, 1.959964])
    # Second differences of the likelihood.
    np.testing.assert_allclose(components, expected[:n_rows], rtol=1e-3)


def test_intraclass_correlation_of_one_outcome(one_outcome):
    """Nakagawa et al. (2017) at the mean covariates, its interval by the delta method on the logit."""
    kind, design, tables, dense, at, covariance = one_outcome
    beta, _ = dense.fixed(at)
    at_mean = beta @ [1.0, *design.center[1:]]

    def logit(parameters):
        between, (_, variance) = between_at_mean(dense, design, parameters), dense.covariance(parameters)
        if kind == "count":
            # The mean of the log-normal, which moves with the variance between groups.
            variance = np.log1p(np.exp(-(at_mean + 0.5 * between)))
        elif kind == "binary":
            variance = np.pi**2 / 3.0
        return np.log(between / variance)

    slope = np.array([(logit(at + h) - logit(at - h)) / 2e-4 for h in 1e-4 * np.eye(4)])
    error = np.sqrt(slope @ covariance @ slope)
    expected = expit(logit(at) + error * np.array([0.0, -1.959964, 1.959964]))
    np.testing.assert_allclose(tables.intraclass_correlation().iloc[0], expected, rtol=1e-3)


def between_at_mean(dense, design, parameters):
    z = np.array([1.0, design.center[1]])
    return z @ dense.covariance(parameters)[0] @ z
