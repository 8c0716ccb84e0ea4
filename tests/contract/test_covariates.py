"""Covariates of `GroupVAE` against dense normals and statsmodels, in every container and every method."""

from __future__ import annotations

import copy
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import linear_group_posterior, linear_log_likelihood, linear_parts
from refusals import assert_as_before, assert_refused, snapshot
from scipy.stats import multivariate_normal, norm
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.formula.api import mixedlm

from skgroupvae import GroupVAE
from skgroupvae.data.reader import ObservationReader
from skgroupvae.mixed_model.latent import fit_group_means, start_latent_model
from skgroupvae.model.decoders import CodeDecoder
from skgroupvae.model.spec import LatentSpec

VALUES, NAMES = ["score", "effort"], ["age", "sex"]
EFFECTS = {"f": 0.0, "m": 8.0, "x": -4.0}
linear = partial(
    GroupVAE, n_group_codes=2, n_instance_codes=2, decoder="linear", random_state=0, verbose=False
)


def simulated(n_groups: int, seed: int) -> pd.DataFrame:
    """Two values given age, sex and a school, in shuffled rows of ragged groups."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, n_groups)
    school = np.repeat(np.arange(n_groups), sizes)
    n_rows, level = len(school), rng.normal(size=(n_groups, 2)) @ [[1.0, 0.3], [0.0, 0.8]]
    own = rng.normal(size=(n_rows, 2)) @ [[1.0, 0.5], [0.0, 1.0]]
    # Ages differ between schools too, so that leaving them out would bias what is known of a school.
    age = rng.uniform(20.0, 50.0, n_rows) + 10.0 * rng.uniform(size=n_groups)[school]
    sex = rng.choice(list(EFFECTS), n_rows)
    effect = np.array([EFFECTS[one] for one in sex])
    table = pd.DataFrame(
        {
            "age": age,
            "score": 50.0 + 10.0 * level[school, 0] + 6.0 * own[:, 0] + 0.5 * age + effect,
            "sex": sex,
            "effort": 0.01 * (level[school, 1] + own[:, 1] - 0.05 * age),
            "school": [f"s{k}" for k in school],
        }
    )
    return table.sample(frac=1.0, random_state=seed).set_index(np.arange(100, 100 + n_rows))


@pytest.fixture(scope="module")
def people():
    return simulated(16, 0)


@pytest.fixture(scope="module")
def later():
    """More rows of the same schools, and of new ones."""
    return simulated(20, 1)


@pytest.fixture(scope="module")
def by_name(people):
    """The linear model with named columns and a group column; tests must not change it."""
    return linear(group_column="school").fit(people, covariates=NAMES)


@pytest.fixture(scope="module")
def by_table(people):
    """The same with labels and covariates of their own; tests must not change it."""
    return linear().fit(people[VALUES], groups=people["school"], covariates=people[NAMES])


@pytest.fixture(scope="module")
def small(quick):
    """Factory of the smallest estimators with a network."""
    return partial(
        quick, max_epochs=1, batch_size=12, hidden_sizes=(4,), n_decoder_samples=1, n_importance_samples=2
    )


@pytest.fixture
def routing():
    with config_context(enable_metadata_routing=True):
        yield


def of(table: pd.DataFrame) -> dict:
    """What `by_table` takes beside the values."""
    return {"groups": table["school"], "covariates": table[NAMES]}


def design_of(table: pd.DataFrame, fitted: pd.DataFrame) -> np.ndarray:
    """Age and two of three sexes (N, 3), standardized by the rows of the fit."""

    def coded(rows):
        return np.column_stack([rows["age"], rows["sex"] == "m", rows["sex"] == "x"]).astype(float)

    return (coded(table) - coded(fitted).mean(0)) / coded(fitted).std(0)


class Dense:
    """The linear mixed model of a fitted decoder as dense normals of a group's rows, in the units of X."""

    def __init__(self, model: GroupVAE, fitted: pd.DataFrame) -> None:
        decoder, scale = model.model_.decoder, fitted[VALUES].to_numpy().std(0)
        intercept, W_u, W_v, variances = linear_parts(decoder)
        self.fitted, self.noise = fitted, np.diag(variances * scale**2)
        self.W_u, self.W_v = scale[:, None] * W_u, scale[:, None] * W_v
        self.effects = decoder.covariate_loadings.weight.numpy().T * scale
        self.intercept = fitted[VALUES].to_numpy().mean(0) + scale * intercept

    def mean(self, table: pd.DataFrame) -> np.ndarray:
        """Of rows of the average group (N, D)."""
        return self.intercept + design_of(table, self.fitted) @ self.effects

    def parts(self, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Slopes of the K * D values in (u, v_1, ..., v_K), their covariance, and what is left of them."""
        n_rows = len(rows)
        slopes = np.hstack([np.kron(np.ones((n_rows, 1)), self.W_u), np.kron(np.eye(n_rows), self.W_v)])
        covariance = slopes @ slopes.T + np.kron(np.eye(n_rows), self.noise)
        return slopes, covariance, (rows[VALUES].to_numpy() - self.mean(rows)).ravel()

    def log_density(self, rows: pd.DataFrame) -> float:
        """Of all rows of one group together."""
        _, covariance, residual = self.parts(rows)
        return float(multivariate_normal(np.zeros(len(residual)), covariance).logpdf(residual))

    def posterior(self, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of (u, v_1, ..., v_K) of one group."""
        slopes, covariance, residual = self.parts(rows)
        gain = slopes.T @ np.linalg.inv(covariance)
        return gain @ residual, np.eye(slopes.shape[1]) - gain @ slopes

    def group(self, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of u of one group."""
        mean, covariance = self.posterior(rows)
        return mean[:2], covariance[:2, :2]

    def instance(self, rows: pd.DataFrame, label) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of (u, v) of the row `label`, where u is known from all of these rows."""
        mean, covariance = self.posterior(rows)
        at = 2 + 2 * rows.index.get_loc(label)
        where = [0, 1, at, at + 1]
        return mean[where], covariance[np.ix_(where, where)]


@pytest.fixture(scope="module")
def dense(by_table, people):
    return Dense(by_table, people)


def by_school(table: pd.DataFrame) -> dict:
    return dict(list(table.groupby("school", sort=False)))


# --- the linear model is exact


def test_likelihoods_are_dense_normals(by_table, dense, people, later):
    for table in (people, later):
        exact = pd.Series({name: dense.log_density(rows) for name, rows in by_school(table).items()})
        values = by_table.group_log_likelihood(table[VALUES], **of(table), context="prior")
        pd.testing.assert_series_equal(values, exact, rtol=1e-8, check_names=False)
        score = by_table.score(table[VALUES], **of(table), context="prior")
        assert score == pytest.approx(exact.sum() / len(table), rel=1e-8)
    alone = by_table.score_samples(later[VALUES], **of(later), context="prior")
    exact = [dense.log_density(later.iloc[[k]]) for k in range(len(later))]
    np.testing.assert_allclose(alone, exact, rtol=1e-8)


def test_likelihoods_given_what_is_known_are_differences(by_table, by_name, dense, people, later):
    """Of dense normals, from what rows of the fit and of a context with its own covariates tell."""
    context, new = later.iloc[::2], later.iloc[1::2]
    rows = {"fit": by_school(people), "context": by_school(context)}
    expected = {"fit": {}, "context": {}}
    for name, scored in by_school(new).items():
        of_fit = [rows["fit"][name]] if name in rows["fit"] else []
        of_context = [rows["context"][name]] if name in rows["context"] else []
        for kind, known in (("fit", of_fit), ("context", of_fit + of_context)):
            before = dense.log_density(pd.concat(known)) if known else 0.0
            expected[kind][name] = dense.log_density(pd.concat([*known, scored])) - before
    # One row a table, or the columns of X: the same.
    triple = (context[VALUES], context["school"], context[NAMES])
    for kind, of_table, of_name in (("fit", None, None), ("context", triple, (context, None))):
        values = by_table.group_log_likelihood(new[VALUES], **of(new), context=of_table)
        np.testing.assert_allclose(values[list(expected[kind])], list(expected[kind].values()), rtol=1e-7)
        named = by_name.group_log_likelihood(new, context=of_name)
        pd.testing.assert_series_equal(named, values, check_exact=True)


def test_codes_are_posteriors_of_dense_normals(by_table, dense, later):
    u, v, u_std, v_std = by_table.transform(later[VALUES], **of(later), return_std=True)
    for rows in by_school(later).values():
        mean, covariance = dense.posterior(rows)
        sd = np.sqrt(np.diag(covariance))
        for part, found_u, found_v in ((mean, u, v), (sd, u_std, v_std)):
            where = later.index.get_indexer(rows.index)
            np.testing.assert_allclose(found_u[where], np.tile(part[:2], (len(rows), 1)), atol=1e-8)
            np.testing.assert_allclose(found_v[where], part[2:].reshape(-1, 2), atol=1e-8)


def test_reconstructions_are_posterior_means(by_table, dense, later):
    values = by_table.reconstruct(later[VALUES], **of(later))
    for rows in by_school(later).values():
        slopes, _, _ = dense.parts(rows)
        expected = dense.mean(rows) + (slopes @ dense.posterior(rows)[0]).reshape(-1, 2)
        np.testing.assert_allclose(values.loc[rows.index], expected, rtol=1e-8)


def test_known_codes_are_those_of_the_rows_of_the_fit(by_table, dense, people):
    for name, rows in by_school(people).items():
        mean, covariance = dense.group(rows)
        np.testing.assert_allclose(by_table.group_codes_.loc[name], mean, atol=1e-8)
        np.testing.assert_allclose(
            by_table.group_codes_std_.loc[name], np.sqrt(np.diag(covariance)), atol=1e-8
        )


def test_draws_of_codes_have_the_moments_of_the_posterior(by_table, dense, later):
    rows = by_school(later)["s2"]
    draws = np.array(
        [
            np.hstack(by_table.sample_codes(rows[VALUES], **of(rows), random_state=seed))[0]
            for seed in range(400)
        ]
    )
    mean, covariance = dense.posterior(rows)
    standard_error = np.sqrt(np.diag(covariance)[:4] / len(draws))
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean[:4]), 4 * standard_error)
    np.testing.assert_allclose(np.cov(draws.T), covariance[:4, :4], atol=0.25)


def test_no_other_effects_are_likelier(by_table, dense, people):
    groups = by_school(people).values()
    best = sum(map(dense.log_density, groups))
    for part in ("effects", "intercept", "W_u", "W_v"):
        value = getattr(dense, part)
        scale = people[VALUES].to_numpy().std(0)
        step = 0.01 * np.broadcast_to(
            scale if part in ("effects", "intercept") else scale[:, None], value.shape
        )
        for position in np.ndindex(value.shape):
            for sign in (-1.0, 1.0):
                other = copy.copy(dense)
                moved = value.copy()
                moved[position] += sign * step[position]
                setattr(other, part, moved)
                assert sum(map(other.log_density, groups)) < best + 1e-6, (part, position)


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_the_mixed_model_is_that_of_statsmodels(people, small, decoder):
    reference = mixedlm("score ~ age + C(sex)", people, groups=people["school"]).fit(reml=False)
    model = small(1, 1, decoder=decoder, group_column="school")
    model.fit(people[["score", *NAMES, "school"]], covariates=NAMES)
    text = model.summary()
    log_likelihood = float(re.search(r"Log-likelihood.*?(-?[\d.]+)$", text, re.MULTILINE)[1])
    assert log_likelihood == pytest.approx(reference.llf, abs=1e-3)
    row = re.search(r"^score (.*)$", text, re.MULTILINE)[1].split()
    header = re.search(r"^ +intercept.*$", text, re.MULTILINE)[0]
    assert re.findall(r"effect of (\S+)", header) == ["age", "sex[m]", "sex[x]"]
    effects = reference.fe_params
    expected = [
        effects["Intercept"],
        np.sqrt(reference.cov_re.iloc[0, 0]),
        np.sqrt(reference.scale),
        *effects[["age", "C(sex)[T.m]", "C(sex)[T.x]"]],
    ]
    np.testing.assert_allclose([float(cell) for cell in row], expected, rtol=1e-3)
    if decoder == "linear":
        exact = model.group_log_likelihood(people[["score", *NAMES, "school"]], context="prior").sum()
        assert exact == pytest.approx(reference.llf, abs=1e-3)
        deviations = [people["age"].std(ddof=0), *((people["sex"] == s).std(ddof=0) for s in "mx")]
        slopes = model.model_.decoder.covariate_loadings.weight[0].numpy() * people["score"].std(ddof=0)
        np.testing.assert_allclose(slopes / deviations, expected[3:], rtol=1e-3)


@given(seed=st.integers(0, 10_000), n_columns=st.integers(1, 3))
def test_a_covariate_of_noise_cannot_lower_the_likelihood_in_sample(seed, n_columns):
    table = simulated(10, seed)
    noise = np.random.default_rng(seed).normal(size=(len(table), n_columns))
    values = []
    for covariates in (table[["age"]].to_numpy(), np.column_stack([table["age"], noise])):
        given = {"groups": table["school"], "covariates": covariates}
        model = linear().fit(table[VALUES], **given)
        values.append(model.group_log_likelihood(table[VALUES], **given, context="prior").sum())
    assert values[1] > values[0] - 1e-4


def test_groups_of_one_row_are_a_regression(people):
    with pytest.warns(UserWarning, match="without groups"):
        model = linear().fit(people[VALUES], covariates=people[NAMES])
    constant = np.ones((len(people), 1))
    design = np.hstack([constant, design_of(people, people)])
    values = people[VALUES].to_numpy()
    residual = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    exact = multivariate_normal(np.zeros(2), residual.T @ residual / len(people)).logpdf(residual).mean()
    assert model.score(people[VALUES], covariates=people[NAMES]) == pytest.approx(exact, rel=1e-6)


# --- where a network starts


@pytest.fixture(scope="module")
def started(people):
    """An untrained network at the linear mixed model, and the table."""
    reader, table = ObservationReader.learn(people[VALUES], people["school"], people[NAMES], None, "GroupVAE")
    design = reader.covariates.design
    spec = LatentSpec(
        "deepsets",
        "conditional",
        "context",
        "mlp",
        2,
        2,
        (8, 8),
        tuple(reader.center),
        tuple(reader.scale),
        None,
        tuple(design.center[1:]),
        tuple(design.scale[1:]),
    )
    model = spec.build(torch.Generator().manual_seed(3)).double()
    start_latent_model(model, fit_group_means(table.batch, 2))
    return model.requires_grad_(False), table


def without_effects(model, batch) -> np.ndarray:
    """Rows less what covariates add to their mean, standing by group."""
    return (batch.values - batch.covariates @ model.decoder.covariate_loadings.weight.mT).numpy()


def test_a_network_starts_at_the_likelihood_of_the_linear_model(started, by_table, people):
    model, table = started
    batch = table.batch
    x, sizes = without_effects(model, batch), batch.groups.sizes.long().numpy()
    exact = (
        linear_log_likelihood(model.decoder, x, sizes).sum()
        - len(x) * np.log(people[VALUES].std(ddof=0)).sum()
    )
    # Its noise is not below a floor.
    linear_score = by_table.score(people[VALUES], **of(people), context="prior")
    assert exact / len(x) == pytest.approx(linear_score, abs=1e-4)


def test_a_network_starts_at_the_exact_posteriors(started):
    model, table = started
    batch = table.batch
    x, sizes = without_effects(model, batch), batch.groups.sizes.long().numpy()
    q_u = model.infer(batch)
    means, covariances = linear_group_posterior(model.decoder, x, sizes)
    np.testing.assert_allclose(q_u.loc, means, atol=1e-5)
    np.testing.assert_allclose(q_u.scale, np.sqrt([np.diag(one) for one in covariances]), atol=1e-5)
    # v given u: the joint normal of v and x, conditioned.
    u = torch.randn(len(sizes), 2, generator=torch.Generator().manual_seed(0)).double()
    intercept, W_u, W_v, variances = linear_parts(model.decoder)
    gain = W_v.T @ np.linalg.inv(W_v @ W_v.T + np.diag(variances))
    expected = (x - intercept - batch.groups.expand(u).numpy() @ W_u.T) @ gain.T
    q_v = model.instance_posterior(batch, u)
    np.testing.assert_allclose(q_v.loc, expected, atol=1e-6)
    precision = np.eye(2) + W_v.T @ np.diag(1.0 / variances) @ W_v
    np.testing.assert_allclose(q_v.scale, np.tile(np.diag(precision) ** -0.5, (len(x), 1)), rtol=1e-5)


def test_a_network_starts_at_the_means_of_the_linear_model(started, by_table, people):
    # Whatever rotates the codes; what of the residual is noise is a convention, another one for a network.
    model, table = started
    batch = table.batch
    u = batch.groups.expand(model.infer(batch).loc)
    mean = model.decoder.mean(u, torch.zeros(len(u), 2).to(u), batch.covariates)
    values = table.in_given_order(mean.detach())
    expected = by_table.inverse_transform(
        by_table.transform(people[VALUES], **of(people))[0],
        np.zeros((len(people), 2)),
        covariates=of(people)["covariates"],
    )
    scale = people[VALUES].to_numpy().std(0)
    np.testing.assert_allclose(values, (expected - people[VALUES].mean().to_numpy()) / scale, atol=1e-3)


# --- what does not matter


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_names_of_columns_are_the_same_columns_as_a_table(people, later, small, decoder):
    named = small(decoder=decoder).fit(
        people.drop(columns="school"), groups=people["school"], covariates=NAMES
    )
    table = small(decoder=decoder).fit(people[VALUES], **of(people))
    pd.testing.assert_frame_equal(named.group_codes_, table.group_codes_, check_exact=True)
    first, second = (model.model_.state_dict() for model in (named, table))
    assert all(torch.equal(first[name], second[name]) for name in second)
    X, groups = later.drop(columns="school"), later["school"]
    assert named.score(X, groups=groups) == table.score(later[VALUES], **of(later))
    assert named.score(X, groups=groups, covariates=NAMES) == named.score(X, groups=groups)
    assert named.n_features_in_ == 2
    assert named.feature_names_in_.tolist() == VALUES
    assert named.summary() == table.summary()


def test_one_column_may_be_named_alone(people, later):
    models = [
        linear(group_column="school").fit(people.drop(columns="sex"), covariates=c)
        for c in ("age", ["age"], ("age",))
    ]
    scores = {model.score(later.drop(columns="sex"), covariates="age") for model in models}
    series = linear().fit(people[VALUES], groups=people["school"], covariates=people["age"])
    scores.add(series.score(later[VALUES], groups=later["school"], covariates=later["age"]))
    flat = linear().fit(people[VALUES], groups=people["school"], covariates=people["age"].to_numpy())
    scores.add(flat.score(later[VALUES], groups=later["school"], covariates=later["age"].to_numpy()))
    assert len(scores) == 1


def test_the_place_of_the_columns_of_x_does_not_matter(by_name, people, later):
    # Of covariates by name the order is that of the fit.
    assert by_name.score(later) == by_name.score(later[["school", "sex", *VALUES, "age"]])


def recoded(table: pd.DataFrame) -> pd.DataFrame:
    """Ages in months since another date, and sexes in another order."""
    sex = pd.Categorical(table["sex"], categories=["x", "f", "m"])
    return table.assign(age=1000.0 - 12.0 * table["age"], sex=sex)


def test_units_and_the_order_of_categories_do_not_matter(by_name, people, later):
    other = linear(group_column="school").fit(recoded(people), covariates=NAMES[::-1])
    for context in (None, "prior"):
        same = other.score(recoded(later), context=context)
        assert same == pytest.approx(by_name.score(later, context=context), abs=1e-6)
    moved = other.translate(recoded(later), None, "s3")[VALUES]
    scale = people[VALUES].std()
    pd.testing.assert_frame_equal(
        moved / scale, by_name.translate(later, None, "s3")[VALUES] / scale, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_the_order_of_rows_does_not_matter(people, later, small, decoder):
    known = later[later["school"].isin(people["school"])]
    # A network draws by row: what is compared is the model before it draws, hence no step of any size.
    make = partial(small, decoder=decoder, group_column="school", learning_rate=1e-12)
    shuffled = people.sample(frac=1.0, random_state=5)
    first, second = (make().fit(table, covariates=NAMES) for table in (people, shuffled))
    codes = second.group_codes_.loc[first.group_codes_.index]
    np.testing.assert_allclose(first.group_codes_, codes, atol=1e-5)
    order = known.sample(frac=1.0, random_state=6)
    values = first.translate(known, None, "s3")
    pd.testing.assert_frame_equal(first.translate(order, None, "s3").loc[known.index], values, rtol=1e-9)
    pd.testing.assert_frame_equal(second.translate(known, None, "s3"), values, rtol=1e-4, atol=1e-5)


# --- containers


def test_translate_keeps_the_container_and_its_covariates(by_name, later):
    moved = by_name.translate(later, None, "s3")
    assert moved.columns.tolist() == later.columns.tolist()
    pd.testing.assert_index_equal(moved.index, later.index)
    pd.testing.assert_frame_equal(moved[NAMES], later[NAMES])
    assert (moved["school"] == "s3").all()
    assert not np.allclose(moved[VALUES], later[VALUES])
    kept = by_name.reconstruct(later)
    assert kept.columns.tolist() == later.columns.tolist()
    pd.testing.assert_frame_equal(kept[[*NAMES, "school"]], later[[*NAMES, "school"]])


def test_dtypes_are_kept(by_name, people, later):
    narrow = later.astype({"score": np.float32, "age": np.int64, "sex": "category"})
    moved = by_name.translate(narrow, None, "s3")
    pd.testing.assert_series_equal(moved.dtypes, narrow.dtypes)
    pd.testing.assert_frame_equal(moved[NAMES], narrow[NAMES])


def test_polars_tables(by_name, by_table, people, later):
    pl = pytest.importorskip("polars")

    def polars(table):
        return pl.DataFrame({name: table[name].to_list() for name in table.columns})

    model = linear(group_column="school").fit(polars(people), covariates=NAMES)
    pd.testing.assert_frame_equal(model.group_codes_, by_name.group_codes_, check_exact=True)
    moved = model.translate(polars(later), None, "s3")
    assert isinstance(moved, pl.DataFrame)
    assert moved.columns == later.columns.tolist()
    for name in NAMES:
        assert moved[name].to_list() == later[name].to_list()
    np.testing.assert_allclose(
        moved.select(VALUES).to_numpy(), by_name.translate(later, None, "s3")[VALUES], rtol=1e-9
    )
    moved = by_table.translate(
        polars(later[VALUES]), later["school"].to_list(), "s3", covariates=polars(later[NAMES])
    )
    assert moved.columns == VALUES


def test_arrays_with_a_table_of_covariates(by_table, people, later):
    given = {"groups": people["school"].to_numpy(), "covariates": people[NAMES]}
    model = linear().fit(people[VALUES].to_numpy(), **given)
    np.testing.assert_array_equal(model.group_codes_, by_table.group_codes_)
    moved = model.translate(later[VALUES].to_numpy(), later["school"], "s3", covariates=later[NAMES])
    assert isinstance(moved, np.ndarray)
    expected = by_table.translate(later[VALUES], later["school"], "s3", covariates=later[NAMES])
    assert expected.columns.tolist() == VALUES
    np.testing.assert_array_equal(moved, expected)
    numbers = (model.score(later[VALUES].to_numpy(), **of(later)), by_table.score(later[VALUES], **of(later)))
    assert numbers[0] == numbers[1]


def test_the_index_of_the_covariates_does_not_matter(by_table, later):
    # Rows are told by their place, as everywhere.
    other = by_table.score(
        later[VALUES], groups=later["school"], covariates=later[NAMES].reset_index(drop=True)
    )
    assert other == by_table.score(later[VALUES], **of(later))


# --- translation


def test_translations_are_those_of_the_mixed_model(by_table, by_name, dense, people, later):
    """Means and intervals in closed form, of rows of known schools: what is known of u is from the fit."""
    known = by_school(people)
    levels = [0.05, 0.5, 0.9]
    target_mean, target_cov = dense.group(known["s3"])
    moved, intervals = by_name.translate(people, None, "s3", quantiles=levels)
    average, around_average = by_name.translate(people, None, "average", quantiles=levels)
    for name, rows in known.items():
        for label in rows.index:
            mean, covariance = dense.instance(rows, label)
            own, variance = dense.W_v @ mean[2:], dense.W_v @ covariance[2:, 2:] @ dense.W_v.T
            center = dense.mean(rows.loc[[label]])[0] + own
            place = people.index.get_loc(label)
            both = np.hstack([dense.W_u, dense.W_v])
            for found, spread, at, added in (
                (moved, intervals, target_mean, target_cov),
                (average, around_average, np.zeros(2), np.zeros((2, 2))),
            ):
                expected = center + dense.W_u @ at
                total = variance + dense.W_u @ added @ dense.W_u.T
                if found is moved and name == "s3":  # it stays: one u, which v goes with
                    expected = center + dense.W_u @ mean[:2]
                    total = both @ covariance @ both.T
                np.testing.assert_allclose(found.loc[label, VALUES].astype(float), expected, rtol=1e-7)
                sd = np.sqrt(np.diag(total))
                exact = expected[:, None] + sd[:, None] * norm.ppf(levels)
                np.testing.assert_allclose(spread[place], exact, rtol=1e-6, atol=1e-9)


def test_intervals_of_a_network_that_learned_nothing_are_about_those_of_the_linear_model(people, small):
    noise = 0.2 * people[VALUES].to_numpy().std(0)
    same = {"group_column": "school", "n_instance_codes": 2, "noise_scale": noise}
    model = small(learning_rate=1e-12, **same).fit(people, covariates=NAMES)
    levels = [0.1, 0.5, 0.9]
    by_name = linear(**same).fit(people, covariates=NAMES)
    found, exact = (m.translate(people, None, "s3", quantiles=levels)[1] for m in (model, by_name))
    # By 512 draws, where those of v do not know of each other's correlation.
    scale = people[VALUES].to_numpy().std(0)[:, None]
    assert np.abs((found - exact) / scale).max() < 0.25
    assert np.abs((found - exact) / scale).mean() < 0.05


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_translation_to_the_own_group_is_the_reconstruction(people, small, decoder):
    model = small(decoder=decoder, group_column="school").fit(people, covariates=NAMES)
    moved = model.translate(people, None, people["school"])
    pd.testing.assert_frame_equal(moved, model.reconstruct(people), rtol=1e-6)


def test_the_average_group_has_no_effect_of_groups_and_keeps_that_of_age():
    """A sum of all three, with hardly any own part: what is left after the move is a line in age."""
    rng = np.random.default_rng(0)
    site = np.repeat(np.arange(12), 20)
    label = np.array([f"site {k}" for k in site])
    age = rng.uniform(20.0, 60.0, len(site)) + 2.0 * site
    shift = 30.0 * rng.normal(size=12)
    own = rng.normal(size=len(site))
    table = pd.DataFrame({"thickness": 3.0 * age + shift[site] + own, "age": age, "site": label})
    model = linear(n_group_codes=1, n_instance_codes=1, group_column="site").fit(table, covariates="age")
    moved = model.translate(table, None, "average")
    slope, _ = np.polyfit(age, moved["thickness"], 1)
    assert slope == pytest.approx(3.0, abs=0.05)
    left = (moved["thickness"] - 3.0 * age).groupby(site).mean()
    assert left.std() < 1.0 < 10.0 < (table["thickness"] - 3.0 * age).groupby(site).mean().std()
    # The closed form: shrunken means of groups, from variances and a slope of another program.
    reference = mixedlm("thickness ~ age", table, groups=table["site"]).fit(reml=False)
    effects = pd.Series({name: effect.iloc[0] for name, effect in reference.random_effects.items()})
    noise_share = model.model_.decoder.noise_scale.numpy()[0] ** 2 * table["thickness"].std(ddof=0) ** 2
    residual = table["thickness"] - reference.fittedvalues
    kept = 1.0 - noise_share / reference.scale
    expected = table["thickness"] - effects[label].to_numpy() - (1.0 - kept) * residual
    np.testing.assert_allclose(moved["thickness"], expected, atol=0.02)


def test_new_groups_are_inferred_from_rows_and_their_covariates(by_table, dense, later):
    # Among rows of schools of the fit.
    moved = by_table.translate(later[VALUES], later["school"], "s3", covariates=later[NAMES])
    new = later[~later["school"].isin(by_table.group_codes_.index)]
    assert new["school"].nunique() > 1
    target = dense.W_u @ by_table.group_codes_.loc["s3"].to_numpy()
    for rows in by_school(new).values():
        own = dense.posterior(rows)[0][2:].reshape(-1, 2)
        expected = dense.mean(rows) + own @ dense.W_v.T + target
        np.testing.assert_allclose(moved.loc[rows.index], expected, rtol=1e-7)


def test_a_target_known_from_a_context_with_covariates(by_table, by_name, dense, later):
    context = by_school(later)["s19"]
    rows = by_school(later)["s2"]
    triple = (context[VALUES], ["new"] * len(context), context[NAMES])
    moved = by_table.translate(rows[VALUES], "alone", "new", covariates=rows[NAMES], context=triple)
    own = dense.posterior(rows)[0][2:].reshape(-1, 2)
    expected = dense.mean(rows) + own @ dense.W_v.T + dense.W_u @ dense.group(context)[0]
    np.testing.assert_allclose(moved, expected, rtol=1e-7)
    named = by_name.translate(rows, "alone", "new", context=(context.assign(school="new"), None))
    np.testing.assert_array_equal(named[VALUES], moved)


# --- codes to rows


def test_inverse_transform_adds_the_effects_of_covariates(by_table, by_name, dense, later):
    rows = later.iloc[:5]
    u, v = (pd.DataFrame(np.random.default_rng(k).normal(size=(5, 2)), index=rows.index) for k in range(2))
    expected = dense.mean(rows) + u.to_numpy() @ dense.W_u.T + v.to_numpy() @ dense.W_v.T
    decoded = by_table.inverse_transform(u, v, covariates=rows[NAMES])
    assert decoded.columns.tolist() == VALUES
    np.testing.assert_allclose(decoded, expected, rtol=1e-7)
    # Of named columns X itself will do, or a table with these columns.
    for table in (rows, rows[NAMES], rows[NAMES[::-1]]):
        pd.testing.assert_frame_equal(
            by_name.inverse_transform(u, v, covariates=table), decoded, check_exact=True
        )
    stacked = by_table.inverse_transform(np.hstack([u, v]), covariates=rows[NAMES])
    np.testing.assert_array_equal(stacked, decoded)


def test_samples_have_the_moments_of_the_model_given_covariates(by_name, dense, people):
    rows = pd.concat([people.iloc[[0, 1]]] * 4000)
    draws, labels = by_name.sample(4000, 2, covariates=rows, random_state=0)
    np.testing.assert_array_equal(labels, np.repeat(np.arange(4000), 2))
    covariance = dense.parts(people.iloc[[0, 1]])[1]
    pairs = draws.reshape(4000, 4)
    standard_error = np.sqrt(np.diag(covariance) / 4000)
    np.testing.assert_array_less(
        np.abs(pairs.mean(0) - dense.mean(people.iloc[[0, 1]]).ravel()), 4 * standard_error
    )
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(np.cov(pairs.T) / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=0.1)


def test_samples_of_known_groups(by_table, dense, people):
    rows = pd.concat([people[NAMES].iloc[[0]]] * 4000)
    draws, _ = by_table.sample(groups=["s3"], group_size=4000, covariates=rows, random_state=0)
    # One draw of u: only the spread within is known exactly.
    covariance = dense.W_v @ dense.W_v.T + dense.noise
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(np.cov(draws.T) / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=0.1)
    target = by_table.group_codes_.loc["s3"].to_numpy()
    u_sd = np.sqrt(np.diag(dense.W_u @ dense.group(by_school(people)["s3"])[1] @ dense.W_u.T))
    center = dense.mean(people.iloc[[0]])[0] + dense.W_u @ target
    np.testing.assert_array_less(np.abs(draws.mean(0) - center), 4 * u_sd + 4 * sd / np.sqrt(4000))


# --- unseen categories


def rows_with_the_mean_of_sexes(table: pd.DataFrame, fitted: pd.DataFrame, dense: Dense) -> np.ndarray:
    """Means (N, D) of rows of the average group where sex counts as the mean over those of the fit."""
    design = design_of(table.assign(sex="f"), fitted)
    design[:, 1:] = 0.0
    return dense.intercept + design @ dense.effects


def test_an_unseen_category_is_the_mean_and_warns_once(by_table, by_name, dense, people, later):
    strange = later.assign(sex=np.where(np.arange(len(later)) % 2, "q", "r"))
    zeros = np.zeros((len(strange), 2))
    expected = rows_with_the_mean_of_sexes(strange, people, dense)
    message = r"column 'sex' of {} has categories \['[qr]', '[qr]'\] that the fit has not seen"
    calls = {
        "covariates": [
            lambda: by_table.inverse_transform(zeros, zeros, covariates=strange[NAMES]),
            lambda: by_table.score(strange[VALUES], **of(strange)),
            lambda: by_table.translate(strange[VALUES], "s2", "s3", covariates=strange[NAMES]),
            lambda: by_table.transform(strange[VALUES], **of(strange)),
        ],
        "X": [
            lambda: by_name.reconstruct(strange),
            lambda: by_name.group_log_likelihood(strange),
            lambda: by_name.translate(strange, None, "average"),
        ],
        "covariates of context": [
            lambda: by_table.score(
                later[VALUES],
                **of(later),
                context=(strange[VALUES], strange["school"], strange[NAMES]),
            )
        ],
        "X of context": [lambda: by_name.score(later, context=(strange, None))],
    }
    for name, of_name in calls.items():
        for call in of_name:
            with pytest.warns(UserWarning, match=message.format(name)) as record:
                found = call()
            assert len(record) == 1
            assert record[0].filename == __file__
            if call is calls["covariates"][0]:
                np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_a_missing_category_is_an_unseen_one(by_table, later):
    missing = later[NAMES].assign(sex=None)
    with pytest.warns(UserWarning, match="column 'sex' of covariates has categories"):
        value = by_table.score(later[VALUES], groups=later["school"], covariates=missing)
    with pytest.warns(UserWarning, match="column 'sex' of covariates has categories"):
        other = by_table.score(later[VALUES], groups=later["school"], covariates=missing.assign(sex="q"))
    assert value == other


# --- more rows


def test_update_groups_adds_rows_with_their_covariates(by_table, by_name, dense, people, later):
    for model, more in ((by_table, of(later)), (by_name, {})):
        X = later[VALUES] if more else later
        for method in ("update_groups", "partial_fit"):  # a linear model has nothing to learn
            updated = getattr(copy.deepcopy(model), method)(X, **more)
            both = by_school(pd.concat([people, later]))
            for name, rows in both.items():
                mean, _ = dense.group(rows)
                np.testing.assert_allclose(updated.group_codes_.loc[name], mean, atol=1e-7)


@pytest.mark.parametrize("how", ["names", "table"])
def test_partial_fit_of_a_network(people, later, small, how):
    model = small(group_column="school") if how == "names" else small()
    given = [{"covariates": NAMES}, {}] if how == "names" else [of(people), of(later)]
    parts = [people, later] if how == "names" else [people[VALUES], later[VALUES]]
    model.partial_fit(parts[0], **given[0])
    before = model.model_.decoder.covariate_loadings.weight.clone()
    assert model.n_iter_ == 1
    model.partial_fit(parts[1], **given[1])
    assert model.n_iter_ == 2
    assert set(model.group_codes_.index) == set(people["school"]) | set(later["school"])
    assert not torch.equal(before, model.model_.decoder.covariate_loadings.weight)
    assert np.isfinite(model.score(parts[1], **({} if how == "names" else of(later))))


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_warm_start(people, later, small, decoder):
    model = small(decoder=decoder, warm_start=True, learning_rate=1e-12).fit(people[VALUES], **of(people))
    first = {name: value.clone() for name, value in model.model_.state_dict().items()}
    model.fit(later[VALUES], **of(later))
    assert set(model.group_codes_.index) == set(later["school"])
    if decoder == "linear":
        # Whatever standardizes the columns, the likeliest model of these rows is the same.
        fresh = small(decoder=decoder).fit(later[VALUES], **of(later))
        score = model.score(later[VALUES], **of(later), context="prior")
        assert score == pytest.approx(fresh.score(later[VALUES], **of(later), context="prior"), abs=1e-6)
        assert model.summary() == fresh.summary()
    else:
        for name in ("decoder.covariate_loadings.weight", "covariate_effects"):
            torch.testing.assert_close(model.model_.state_dict()[name], first[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("how", ["names", "table"])
def test_a_file_holds_the_covariates(people, later, small, tmp_path, how):
    for decoder in ("linear", "mlp"):
        model = small(decoder=decoder, group_column="school" if how == "names" else None)
        model.fit(
            *((people,) if how == "names" else (people[VALUES],)),
            **({"covariates": NAMES} if how == "names" else of(people)),
        )
        model.save(tmp_path / "model.safetensors")
        loaded = GroupVAE.load(tmp_path / "model.safetensors")
        X, given = (later, {}) if how == "names" else (later[VALUES], of(later))
        assert loaded.score(X, **given) == model.score(X, **given)
        assert loaded.summary() == model.summary()
        strange = later.assign(sex="q")
        with pytest.warns(UserWarning, match=f"of {'X' if how == 'names' else 'covariates'} has categories"):
            loaded.score(
                *((strange,) if how == "names" else (strange[VALUES],)),
                **({} if how == "names" else of(strange)),
            )
        source = None if how == "names" else later["school"]
        only = {} if how == "names" else {"covariates": later[NAMES]}
        one, other = (m.translate(X, source, "s3", **only) for m in (model, loaded))
        pd.testing.assert_frame_equal(one, other, check_exact=True)


# --- formulas


def test_a_formula_has_covariates_in_their_units(people, later):
    seen = []

    def formula(u, v, c):
        seen.append(c.detach().clone())
        return torch.cat(
            [50.0 + 10.0 * u[:, :1] + 6.0 * v[:, :1] + 0.5 * c[:, :1] + 8.0 * c[:, 1:2], 0.01 * v[:, 1:]],
            dim=1,
        )

    model = GroupVAE(
        1, 2, decoder=formula, max_epochs=1, random_state=0, verbose=False, n_importance_samples=2
    )
    model.fit(people[VALUES], **of(people))
    seen.clear()
    u, v = np.full((4, 1), 0.5), np.full((4, 2), -1.0)
    rows = later.iloc[:4]
    decoded = model.inverse_transform(u, v, covariates=rows[NAMES])
    in_units = np.column_stack([rows["age"], rows["sex"] == "m", rows["sex"] == "x"]).astype(float)
    np.testing.assert_allclose(seen[0], in_units, rtol=1e-5, atol=1e-5)
    expected = 50.0 + 5.0 - 6.0 + 0.5 * rows["age"] + 8.0 * (rows["sex"] == "m")
    np.testing.assert_allclose(decoded[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(decoded[:, 1], -0.01, rtol=1e-4)
    # Every row has its own covariates wherever the formula is asked.
    moved = model.translate(people[VALUES], people["school"], "average", covariates=people[NAMES])
    assert np.isfinite(moved).all(axis=None)
    order = people.sample(frac=1.0, random_state=3)
    again = model.translate(order[VALUES], order["school"], "average", covariates=order[NAMES])
    pd.testing.assert_frame_equal(again.loc[people.index], moved, rtol=1e-9)


@pytest.mark.parametrize(
    ("formula", "complaint"),
    [
        (
            lambda u, v: u + v,
            r"TypeError on u of shape \(3, 2\) and v of shape \(3, 2\) and covariates of shape \(3, 3\)",
        ),
        (lambda u, v, c: u[:, :1] + c[:, :1], r"decoder returned shape \(3, 1\).*\(3, 2\)"),
        (lambda u, v, c: u + v + c[:, 5:6], "raised RuntimeError|raised IndexError|returned"),
        (lambda u, v, c: u + c, r"raised RuntimeError.*covariates of shape \(3, 3\)"),
    ],
)
def test_a_formula_that_does_not_fit_is_refused(people, formula, complaint):
    model = GroupVAE(2, 2, decoder=formula, random_state=0)
    before = snapshot(model)
    assert_refused(lambda: model.fit(people[VALUES], **of(people)), "^decoder.*")
    assert_refused(lambda: model.fit(people[VALUES], **of(people)), complaint)
    assert_as_before(model, before)


def test_a_formula_of_two_arguments_stays_one_without_covariates(people):
    model = GroupVAE(2, 2, decoder=lambda u, v, c: u + v, random_state=0)
    assert_refused(lambda: model.fit(people[VALUES], groups=people["school"]), "^decoder raised TypeError")


class Location(CodeDecoder):
    """A decoder of the user's own, with a parameter for covariates."""

    def __init__(self, n_features, n_group_codes, n_instance_codes, n_covariates=0):
        super().__init__(n_features, n_group_codes, n_instance_codes, n_covariates)
        self.effects = torch.nn.Parameter(torch.zeros(n_covariates, n_features))

    def mean(self, u, v, covariates=None):
        mean = u[..., :1] + v[..., : self.n_features]
        return mean if covariates is None else mean + covariates @ self.effects


def test_a_decoder_of_the_users_own_learns_effects(people, small):
    model = small(1, 2, decoder=Location(2, 1, 2, 3), max_epochs=4).fit(people[VALUES], **of(people))
    effects = model.model_.decoder.effects
    assert (effects.abs() > 1e-3).all()
    assert np.isfinite(model.score(people[VALUES], **of(people)))


@pytest.mark.parametrize("n_covariates", [0, 2])
def test_a_decoder_of_another_number_of_covariates_is_refused(people, n_covariates):
    model = GroupVAE(1, 2, decoder=Location(2, 1, 2, n_covariates), random_state=0)
    before = snapshot(model)
    assert_refused(lambda: model.fit(people[VALUES], **of(people)), "^decoder.*covariates.*3")
    assert_as_before(model, before)


# --- pipelines and searches


CV = GroupKFold(3)
GRID = {"learning_rate": [0.001, 0.05]}
SAME = ["school", *NAMES]


def folds(table):
    return list(CV.split(table, groups=table["school"]))


def scores_by_hand(model, table, candidates=({},)) -> np.ndarray:
    """Held-out scores (n_candidates, n_folds) of a plain loop with tables of covariates."""
    scores = []
    for candidate in candidates:
        for train, test in folds(table):
            fitted = (
                clone(model).set_params(**candidate).fit(table[VALUES].iloc[train], **of(table.iloc[train]))
            )
            scores.append(fitted.score(table[VALUES].iloc[test], **of(table.iloc[test])))
    return np.array(scores).reshape(len(candidates), -1)


def split_scores(search) -> np.ndarray:
    return np.array([search.cv_results_[f"split{fold}_test_score"] for fold in range(3)]).T


def scaled(kept) -> ColumnTransformer:
    """Scales the values and leaves the rest beside them, under their own names."""
    columns = [("scale", StandardScaler(), VALUES), ("keep", "passthrough", kept)]
    return ColumnTransformer(columns, verbose_feature_names_out=False).set_output(transform="pandas")


@pytest.mark.parametrize("values", ["names", "table"])
def test_search_with_routing(people, small, routing, values):
    X = people[[*VALUES, *NAMES]] if values == "names" else people[VALUES]
    covariates = NAMES if values == "names" else people[NAMES]
    search = GridSearchCV(small(), GRID, cv=CV, error_score="raise")
    search.fit(X, groups=people["school"], covariates=covariates)
    by_hand = scores_by_hand(small(), people, search.cv_results_["params"])
    np.testing.assert_array_equal(split_scores(search), by_hand)
    alone = small(**search.best_params_).fit(people[VALUES], **of(people))
    pd.testing.assert_frame_equal(search.best_estimator_.group_codes_, alone.group_codes_, check_exact=True)
    routed = search.score(X, groups=people["school"], covariates=covariates)
    assert routed == alone.score(people[VALUES], **of(people))


def test_search_without_routing(people, small):
    search = GridSearchCV(small(group_column="school"), GRID, cv=CV, error_score="raise")
    search.fit(people, groups=people["school"], covariates=NAMES)
    by_hand = scores_by_hand(small(), people, search.cv_results_["params"])
    np.testing.assert_array_equal(split_scores(search), by_hand)
    np.testing.assert_array_equal(
        np.hstack(search.transform(people)), np.hstack(search.best_estimator_.transform(people))
    )


def test_cross_validation_with_and_without_routing(people, small):
    expected = scores_by_hand(small(), people)[0]
    params = {"covariates": NAMES}
    without = cross_val_score(
        small(group_column="school"),
        people,
        groups=people["school"],
        params=params,
        cv=CV,
        error_score="raise",
    )
    np.testing.assert_array_equal(without, expected)
    with config_context(enable_metadata_routing=True):
        params = {"groups": people["school"], "covariates": people[NAMES]}
        routed = cross_val_score(small(), people[VALUES], params=params, cv=CV, error_score="raise")
    np.testing.assert_array_equal(routed, expected)


@pytest.mark.parametrize("is_routed", [False, True])
def test_pipeline(people, later, is_routed):
    """Linear models, which do not see the scaling: the codes are those of the estimator alone."""
    model = linear(group_column="school")
    pipeline = make_pipeline(scaled(SAME), model)
    alone = clone(model).fit(people, covariates=NAMES)
    with config_context(enable_metadata_routing=is_routed):
        name = "covariates" if is_routed else "groupvae__covariates"
        pipeline.fit(people, **{name: NAMES})
        u, v = pipeline.transform(later)
    shift = pipeline.score(later) - alone.score(later)
    assert shift == pytest.approx(np.log(people[VALUES].std(ddof=0)).sum(), abs=1e-8)
    for found, expected in zip((u, v), alone.transform(later), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert pipeline[-1].feature_names_in_.tolist() == VALUES


def test_pipeline_takes_a_table_with_routing(people, later, routing):
    pipeline = make_pipeline(StandardScaler(), linear()).fit(people[VALUES], **of(people))
    alone = linear().fit(people[VALUES], **of(people))
    for found, expected in zip(
        pipeline.transform(later[VALUES], **of(later)),
        alone.transform(later[VALUES], **of(later)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_search_over_a_pipeline_with_routing(people, small, routing):
    pipeline = make_pipeline(scaled(NAMES), small())
    grid = {"groupvae__learning_rate": GRID["learning_rate"]}
    search = GridSearchCV(pipeline, grid, cv=CV, error_score="raise")
    search.fit(people, groups=people["school"], covariates=NAMES)
    for value, row in zip(GRID["learning_rate"], split_scores(search), strict=True):
        for score, (train, test) in zip(row, folds(people), strict=True):
            scaler = scaled(NAMES).fit(people.iloc[train])
            parts = [scaler.transform(people.iloc[which]) for which in (train, test)]
            fitted = small(learning_rate=value).fit(
                parts[0], groups=people["school"].iloc[train], covariates=NAMES
            )
            assert score == fitted.score(parts[1], groups=people["school"].iloc[test])


# --- what is refused


FEW = simulated(6, 2)
N = len(FEW)
SEEN, GIVEN, LABELS = FEW[VALUES], FEW[NAMES], FEW["school"]
ZEROS = np.zeros((N, 2))
# name: (X, covariates, message)
BAD_FITS = {
    "no such column": (
        FEW,
        ["age", "size"],
        r"^covariates \['size'\] are not columns of X.*pass a table that has them",
    ),
    "twice": (FEW, ["age", "age"], r"^covariates=\['age', 'age'\] names a column twice; name each once"),
    "every column": (SEEN, VALUES, r"^covariates=.*all columns of X; leave at least one"),
    "names for an array": (SEEN.to_numpy(), ["age"], "^covariates=.*X is not a data frame; pass a data"),
    "name for an array": (SEEN.to_numpy(), "age", "^covariates=.*X is not a data frame; pass a data"),
    "fewer rows": (
        SEEN,
        GIVEN.iloc[:-1],
        f"^covariates must have one row for each of {N} rows, got {N - 1}; pass",
    ),
    "no rows": (SEEN, GIVEN.iloc[:0], "^covariates is empty.*pass at least one row"),
    "no columns": (SEEN, FEW[[]], "^covariates has no column of data.*pass one or more"),
    "no columns in an array": (SEEN, np.zeros((N, 0)), "^covariates cannot be used.*Pass a"),
    "three dimensions": (
        SEEN,
        np.zeros((N, 2, 2)),
        "^covariates must be names of columns of X or a table.*pass a",
    ),
    "NaN": (SEEN, GIVEN.assign(age=np.nan), r"^covariates contains NaN.*\['age'\]; drop or impute"),
    "infinite": (SEEN, np.full(N, np.inf), "^covariates contains infinite values.*replace or drop"),
    "NaN in X": (FEW.assign(age=np.nan), NAMES, r"^X contains NaN.*\['age'\]; drop or impute"),
    "missing category": (
        SEEN,
        GIVEN.assign(sex=[None] + ["f"] * (N - 1)),
        r"^covariates.*\['sex'\]; drop",
    ),
    "complex": (SEEN, np.ones(N) * 1j, "^covariates: Complex data not supported; pass real"),
    "duplicate names": (
        SEEN,
        pd.concat([GIVEN] * 2, axis=1),
        "^covariates has duplicate.*rename or drop",
    ),
    "duplicate columns of X": (
        pd.concat([FEW, FEW["age"]], axis=1),
        ["age"],
        "^X has duplicate.*rename or drop",
    ),
    "values for names": (
        FEW,
        FEW["sex"].tolist(),
        "^covariates .* are not columns of X.*pass a table that has them",
    ),
    "dictionary": (SEEN, {"age": FEW["age"].tolist()}, "^covariates.*[Pp]ass"),
    "set": (SEEN, {"age"}, "^covariates.*[Pp]ass"),
    "number": (SEEN, 3, "^covariates must be names of columns of X or a table.*got int; pass a"),
    "ragged": (SEEN, [[1.0, 2.0]] * (N - 1) + [[1.0]], "^covariates.*[Pp]ass"),
    "empty list": (FEW, [], "^covariates is empty.*pass"),
}


@pytest.mark.parametrize(("X", "covariates", "message"), BAD_FITS.values(), ids=BAD_FITS)
def test_a_refused_fit_changes_nothing(X, covariates, message, by_table):
    X = X.drop(columns="school") if "school" in getattr(X, "columns", ()) else X
    for model in (linear(), by_table):
        before = snapshot(model)
        assert_refused(partial(model.fit, X, groups=LABELS, covariates=covariates), message)
        assert_as_before(model, before)


LEFT_OUT = "^covariates must be left out:.*fitted with the columns .* of X"
# name: (how the model was fitted, call, message)
BAD_CALLS = {
    "missing": (
        "table",
        lambda m: m.score(SEEN, groups=LABELS),
        "^covariates is missing:.*pass theirs, one row a row",
    ),
    "names": (
        "table",
        lambda m: m.score(FEW, groups=LABELS, covariates=NAMES),
        "^covariates names columns, but.*pass one",
    ),
    "fewer rows": (
        "table",
        lambda m: m.transform(SEEN, groups=LABELS, covariates=GIVEN.iloc[1:]),
        "^covariates must have one row for each of.*pass as many",
    ),
    "fewer columns": (
        "table",
        lambda m: m.transform(SEEN, groups=LABELS, covariates=GIVEN[["age"]]),
        "^covariates: The feature names",
    ),
    "other order": (
        "table",
        lambda m: m.reconstruct(SEEN, groups=LABELS, covariates=GIVEN[NAMES[::-1]]),
        "^covariates: The .* same order",
    ),
    "array of one": (
        "array",
        lambda m: m.score(SEEN, groups=LABELS, covariates=np.ones((N, 1))),
        "^covariates: X has 1 features.*expecting 2",
    ),
    "NaN": (
        "table",
        lambda m: m.score_samples(SEEN, groups=LABELS, covariates=GIVEN.assign(age=np.nan)),
        r"^covariates contains NaN.*\['age'\]; drop",
    ),
    "text": (
        "table",
        lambda m: m.score(SEEN, groups=LABELS, covariates=GIVEN.assign(age="old")),
        "'age' must be numbers, as in the fit.*correct",
    ),
    "text in X": (
        "names",
        lambda m: m.score(FEW.assign(age="old")),
        "'age' must be numbers, as in the fit.*correct",
    ),
    "NaN in X": ("names", lambda m: m.score(FEW.assign(age=np.nan)), r"^X contains NaN.*\['age'\]; drop"),
    "no such column": (
        "names",
        lambda m: m.transform(FEW.drop(columns="sex")),
        r"^covariates \['sex'\] are not columns of X",
    ),
    "array for names": (
        "names",
        lambda m: m.inverse_transform(ZEROS, ZEROS, covariates=SEEN),
        r"^covariates \['age', 'sex'\] are not columns of covariates",
    ),
    "other names": ("names", lambda m: m.score(FEW, covariates=["age"]), LEFT_OUT),
    "a table instead": ("names", lambda m: m.score(FEW, covariates=GIVEN), LEFT_OUT),
    "partial_fit without": ("table", lambda m: m.partial_fit(SEEN, groups=LABELS), "^covariates is missing"),
    "update_groups without": (
        "table",
        lambda m: m.update_groups(SEEN, groups=LABELS),
        "^covariates is missing",
    ),
    "partial_fit of other names": ("names", lambda m: m.partial_fit(FEW, covariates=["age"]), LEFT_OUT),
    "translate without": ("table", lambda m: m.translate(SEEN, LABELS, "s0"), "^covariates is missing"),
    "sample without": (
        "table",
        lambda m: m.sample(2, 2, random_state=0),
        "^covariates is missing.*pass a table",
    ),
    "sample of fewer": (
        "table",
        lambda m: m.sample(3, 2, random_state=0, covariates=GIVEN.iloc[:5]),
        "^covariates must have one row for each of 6 rows, got 5; pass",
    ),
    "decode without": (
        "names",
        lambda m: m.inverse_transform(np.zeros((N, 4))),
        "^covariates is missing.*pass a table",
    ),
    "context without": (
        "table",
        lambda m: m.score(SEEN, groups=LABELS, covariates=GIVEN, context=(SEEN, LABELS)),
        "^covariates of context is missing.*pass theirs",
    ),
    "context of fewer rows": (
        "table",
        lambda m: m.score(SEEN, groups=LABELS, covariates=GIVEN, context=(SEEN, LABELS, GIVEN.iloc[1:])),
        "^covariates of context must have one row.*pass as many",
    ),
    "context of other names": (
        "names",
        lambda m: m.score(FEW, context=(FEW, None, ["sex"])),
        "^covariates of context must be left out",
    ),
    "context of four": (
        "table",
        lambda m: m.score(SEEN, groups=LABELS, covariates=GIVEN, context=(SEEN, LABELS, GIVEN, GIVEN)),
        "^context must be a pair",
    ),
    "none in the fit": (
        "none",
        lambda m: m.score(SEEN, groups=LABELS, covariates=GIVEN),
        "^covariates is given, but.*leave it out",
    ),
    "none in the fit, names": (
        "none",
        lambda m: m.transform(SEEN, groups=LABELS, covariates=NAMES),
        "^covariates is given, but.*leave it out",
    ),
    "none in the fit, context": (
        "none",
        lambda m: m.score(SEEN, groups=LABELS, context=(SEEN, LABELS, GIVEN)),
        "^covariates of context is given, but.*leave it out",
    ),
    "none in the fit, sample": (
        "none",
        lambda m: m.sample(2, 2, random_state=0, covariates=GIVEN.iloc[:4]),
        "^covariates.*fitted without.*leave it out",
    ),
}


@pytest.fixture(scope="module")
def refusing():
    """Fitted models by how they have covariates; tests must not change them."""
    return {
        "table": linear().fit(SEEN, groups=LABELS, covariates=GIVEN),
        "array": linear().fit(
            SEEN, groups=LABELS, covariates=np.column_stack([FEW["age"], FEW["sex"] == "m"]).astype(float)
        ),
        "names": linear(group_column="school").fit(FEW, covariates=NAMES),
        "none": linear().fit(SEEN, groups=LABELS),
    }


@pytest.mark.parametrize(("kind", "call", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_refused_call_changes_nothing(kind, call, message, refusing):
    model = refusing[kind]
    before = snapshot(model)
    assert_refused(lambda: call(model), message)
    assert_as_before(model, before)


def test_a_warm_start_keeps_whether_there_are_covariates(refusing):
    for kind, more in (("table", {}), ("none", {"covariates": GIVEN})):
        model = copy.deepcopy(refusing[kind]).set_params(warm_start=True)
        before = snapshot(model)
        assert_refused(
            lambda model=model, more=more: model.fit(SEEN, groups=LABELS, **more),
            "^covariates is (missing|given)",
        )
        assert_as_before(model, before)
