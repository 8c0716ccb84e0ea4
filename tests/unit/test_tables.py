"""Tables of a mixed model in the units of the data, and average marginal effects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from skgroupvae.batch import Batch, RandomTerm, Segments
from skgroupvae.data.design import PlainDesign
from skgroupvae.mixed_model.generalized import newton_posterior
from skgroupvae.mixed_model.initialize import start_at_mixed_model
from skgroupvae.mixed_model.linear import fit_linear_mixed_model
from skgroupvae.mixed_model.marginal import marginal_effects
from skgroupvae.mixed_model.tables import MixedModelTables
from skgroupvae.model.families import FAMILIES, BernoulliFamily, GaussianFamily, PoissonFamily
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


# --- With the old files: all below goes when they go. ---


def old_design(design):
    from skgroupvae.design import Design

    return Design(
        names=list(design.names),
        indicators=list(design.indicators),
        centre=design.center,
        scale=design.scale,
    )


@pytest.mark.parametrize("kind", ["numeric", "count", "binary"])
def test_one_outcome_is_as_before(kind):
    from skgroupvae.regression.mixed_model import LinearMixedModel
    from skgroupvae.regression.tables import MixedModelTables as OldTables

    family = {"numeric": GaussianFamily, "count": PoissonFamily, "binary": BernoulliFamily}[kind]
    design, batch, _ = table(1, kind)
    fitted = fit_linear_mixed_model(batch, [RandomTerm(RANDOM)])
    new = tables_of(fitted, design, 1, family)
    known = LinearMixedModel(
        fitted.fixed[:, 0],
        fitted.fixed_covariance,
        fitted.loadings[0],
        float(fitted.residual),
        fitted.log_likelihood,
        fitted.effects[0],
        fitted.parameters_covariance,
    )
    old = OldTables(known, old_design(design), RANDOM, float(new.center[0]), float(new.scale[0]), family())
    for name in ("fixed_effects", "variance_components", "random_effects_covariance"):
        pd.testing.assert_frame_equal(getattr(new, name)(), getattr(old, name)())
    np.testing.assert_allclose(new.intraclass_correlation().iloc[0], old.intraclass_correlation())


@pytest.mark.parametrize(("name", "kind"), [("gaussian", "numeric"), ("poisson", "count")])
def test_marginal_effects_of_one_outcome_are_as_before(name, kind):
    from skgroupvae import families as old_families
    from skgroupvae.regression.decoder import RegressionDecoder
    from skgroupvae.regression.encoder import FullNormal as OldNormal
    from skgroupvae.regression.encoder import MixedModelEncoder
    from skgroupvae.regression.marginal import marginal_effects as old_marginal_effects
    from skgroupvae.regression.network import RegressionNetwork

    design, batch, _ = table(1, kind)
    _, model = fitted_model(name, batch, hidden=True)
    generator = torch.Generator()
    family = old_families.FAMILIES[name]()
    decoder = RegressionDecoder(family, 3, RANDOM, 3, (8,), generator).double()
    state = model.decoder.state_dict()
    decoder.load_state_dict(
        {
            key: state[key.replace("family.", "likelihood.families.0.")].reshape(value.shape)
            for key, value in decoder.state_dict().items()
        }
    )
    network = RegressionNetwork(MixedModelEncoder(3, 3, (), generator), decoder)
    rows = torch.cat([batch.values, batch.weights[:, None], batch.design], dim=1)
    q_u, error = newton_posterior(model, batch), np.array([0.1, 0.2])
    old_q, codes = OldNormal(q_u.loc, q_u.root, q_u.log_det), batch.groups.codes.numpy()
    known = old_marginal_effects(network, old_design(design), rows, codes, old_q, 2.0, error)
    found = marginal_effects(model, design, batch, q_u, ["a"], [2.0], error[:, None])
    assert FAMILIES[name] is type(model.decoder.likelihood.family_of(0))
    pd.testing.assert_frame_equal(found, known)
