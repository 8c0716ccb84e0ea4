"""GroupVAE(decoder="location_scale"), and when decoder="auto" takes it."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from skgroupvae import GroupVAE

COLUMNS = ["score", "effort"]


def rows(n_groups: int, size: int, sd_of_scales: float, seed: int):
    """Two columns of groups that differ in location and, maybe, in scale; a covariate; and the groups."""
    rng = np.random.RandomState(seed)
    groups = np.repeat(np.arange(n_groups), size)
    age = rng.normal(size=len(groups))
    locations, scales = (
        0.5 * rng.normal(size=(n_groups, 2)),
        np.exp(sd_of_scales * rng.normal(size=(n_groups, 2))),
    )
    rest = rng.normal(size=(len(groups), 2)) @ np.array([[1.0, 0.4], [0.0, 0.9]])
    X = 10.0 + 3.0 * (0.5 * age[:, None] + locations[groups] + scales[groups] * rest)
    return pd.DataFrame(X, columns=COLUMNS), age[:, None], np.array([f"site {i}" for i in groups])


def estimator(**parameters) -> GroupVAE:
    return GroupVAE(**{"decoder": "location_scale", "random_state": 0, "verbose": False} | parameters)


@pytest.fixture(scope="module")
def sites():
    return rows(10, 40, 0.4, seed=0)


@pytest.fixture(scope="module")
def model(sites):
    X, age, groups = sites
    return estimator().fit(X, groups=groups, covariates=age)


def test_every_method_answers(model, sites, tmp_path):
    pytest.importorskip("safetensors")
    X, age, groups = sites
    model.save(tmp_path / "model.safetensors")
    loaded = GroupVAE.load(tmp_path / "model.safetensors")
    first, second = (
        [
            *fitted.transform(X, groups=groups, covariates=age, return_std=True),
            fitted.reconstruct(X, groups=groups, covariates=age),
            *fitted.translate(X, groups, "site 3", covariates=age, quantiles=[0.1, 0.9]),
            fitted.translate(X, groups, "average", covariates=age),
            fitted.score(X, groups=groups, covariates=age),
            fitted.score_samples(X, groups=groups, covariates=age),
            fitted.group_log_likelihood(X, groups=groups, covariates=age, context="prior"),
            *fitted.sample_codes(X, groups=groups, covariates=age, random_state=0),
            fitted.sample(2, 3, covariates=age[:6], random_state=0)[0],
            fitted.group_codes_,
        ]
        for fitted in (model, loaded)
    )
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(np.asarray(a)).all()
    assert loaded.summary() == model.summary()


def test_rows_come_back_and_codes_decode(model, sites):
    X, age, groups = sites
    np.testing.assert_allclose(model.reconstruct(X, groups=groups, covariates=age), X, atol=1e-3)
    own = model.translate(X, groups, groups, covariates=age)
    np.testing.assert_allclose(own, X, atol=1e-3)
    u, v = model.transform(X, groups=groups, covariates=age)
    # The codes are means over what is not known of the group.
    np.testing.assert_allclose(model.inverse_transform(u, v, covariates=age), X, atol=0.5)


def test_the_summary_tells_the_scales(model):
    text = model.summary()
    assert re.search(r'^Model: +location_scale \(decoder="location_scale"\)$', text, flags=re.MULTILINE)
    assert "sd of log scale between groups" in text
    # Log scales of 10 sites have an sd of 0.4.
    spread = [
        float(re.search(rf"^{name} +(\S+ +){{3}}(\S+)", text, flags=re.MULTILINE)[2]) for name in COLUMNS
    ]
    assert all(0.2 < sd < 0.7 for sd in spread)
    assert model.history_.empty


def test_groups_learn_from_further_rows_as_from_all_at_once(model, sites):
    X, age, groups = sites
    more, more_age, labels = rows(12, 5, 0.4, seed=1)
    for method in ("update_groups", "partial_fit"):
        after = estimator().fit(X, groups=groups, covariates=age)
        getattr(after, method)(more, groups=labels, covariates=more_age)
        assert len(after.group_codes_) == 12
        both = (pd.concat([X, more]), np.r_[groups, labels], np.r_[age, more_age])
        u = model.transform(both[0], groups=both[1], covariates=both[2])[0]
        expected = pd.DataFrame(u, index=both[1]).groupby(level=0).first()
        np.testing.assert_allclose(after.group_codes_.loc[expected.index], expected, atol=1e-7)


def test_scores_do_not_depend_on_other_groups_or_the_order_of_rows(model, sites):
    X, age, groups = sites
    whole = model.group_log_likelihood(X, groups=groups, covariates=age, context="prior")
    order = np.random.RandomState(0).permutation(len(X))
    shuffled = model.group_log_likelihood(
        X.iloc[order], groups=groups[order], covariates=age[order], context="prior"
    )
    np.testing.assert_allclose(shuffled[whole.index], whole, rtol=1e-6)
    some = groups == "site 3"
    alone = model.group_log_likelihood(X[some], groups=groups[some], covariates=age[some], context="prior")
    np.testing.assert_allclose(alone["site 3"], whole["site 3"], rtol=1e-6)


def test_a_number_of_group_codes_is_kept(sites):
    X, age, groups = sites
    for n_codes in (2, 3, 4, 6):
        model = estimator(n_group_codes=n_codes).fit(X, groups=groups, covariates=age)
        assert model.group_codes_.shape == (10, n_codes)
        assert np.isfinite(model.score(X, groups=groups, covariates=age))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"noise_scale": 0.1}, "leave noise_scale out"),
        ({"n_instance_codes": 1}, "n_instance_codes must be that or 'auto'"),
        ({"n_group_codes": 1}, "n_group_codes must be at least 2"),
    ],
)
def test_parameters_that_do_not_go_with_it_are_refused(parameters, message, sites):
    X, _, groups = sites
    with pytest.raises(ValueError, match=message):
        estimator(**parameters).fit(X, groups=groups)
    # Unasked, it is then no candidate.
    assert "scales" not in estimator(decoder="auto", **parameters).fit(X, groups=groups).summary()


@pytest.mark.parametrize("n_groups", [5, 10])
def test_rows_that_do_not_tell_scales_end_at_the_linear_model_with_a_warning(n_groups):
    X, _, groups = rows(n_groups, 8, 0.4, seed=2)
    if n_groups == 10:
        X["effort"] = pd.factorize(groups)[0] % 3
    with pytest.warns(UserWarning, match="the fit is of the linear model: scales of groups need") as caught:
        model = estimator().fit(X, groups=groups)
    assert caught[0].filename == __file__
    linear = estimator(decoder="linear").fit(X, groups=groups)
    pd.testing.assert_frame_equal(model.group_codes_, linear.group_codes_, check_exact=True)


# --- decoder="auto"


def test_auto_takes_scales_that_pay_with_10_groups(sites):
    X, age, groups = sites
    model = estimator(decoder="auto").fit(X, groups=groups, covariates=age)
    text = model.summary()
    assert re.search(
        r"^Model: +location_scale \(scales of groups pay: .* of 10 held-out groups", text, re.MULTILINE
    )
    assert "10 groups are too few for a network" in text
    named = estimator().fit(X, groups=groups, covariates=age)
    pd.testing.assert_frame_equal(model.group_codes_, named.group_codes_, check_exact=True)


@pytest.mark.parametrize("seed", range(4))
def test_auto_leaves_out_scales_of_groups_that_have_one(seed):
    X, _, groups = rows(12, 20, 0.0, seed=seed)
    model = estimator(decoder="auto").fit(X, groups=groups)
    assert re.search(r"^Model: +linear \(scales of groups do not pay: ", model.summary(), re.MULTILINE)
    linear = estimator(decoder="linear").fit(X, groups=groups)
    pd.testing.assert_frame_equal(model.group_codes_, linear.group_codes_, check_exact=True)


def test_auto_does_not_ask_5_groups():
    X, _, groups = rows(5, 40, 0.8, seed=0)
    model = estimator(decoder="auto").fit(X, groups=groups)
    assert re.search(r"^Model: +linear \(5 groups are too few", model.summary(), re.MULTILINE)


def test_a_network_is_on_trial_against_the_model_of_scales():
    X, _, groups = rows(24, 20, 0.5, seed=3)
    model = estimator(decoder="auto", max_epochs=2).fit(X, groups=groups)
    text = model.summary()
    assert re.search(
        r"^Model: +location_scale \(scales of groups pay: .*; a network does not pay: ", text, re.MULTILINE
    )
