"""What a notebook shows of an estimator."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_html_repr

from skgroupvae import CxVAERegressor, GroupVAE

TINY = {"max_epochs": 2, "hidden_sizes": (4,), "random_state": 0, "verbose": False}
GROUP_VAE = GroupVAE(1, 1, batch_size=6, n_importance_samples=10, **TINY)
REGRESSOR = CxVAERegressor(random_slopes=None, **TINY)
both = pytest.mark.parametrize("estimator", [GROUP_VAE, REGRESSOR], ids=lambda e: type(e).__name__)


@pytest.fixture(scope="module")
def rows():
    """40 rows of 8 groups: a covariate, and an outcome that is not linear in it."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), 5)
    x = rng.normal(size=(40, 1))
    return x, 100.0 * (x[:, 0] ** 2 + rng.normal(size=8)[groups] + rng.normal(size=40)), groups


def fitted(estimator, rows, factor=1.0, **parameters):
    """The estimator fitted to the outcome in other units: a GroupVAE to it alone."""
    x, y, groups = rows
    data = (factor * y[:, None],) if isinstance(estimator, GroupVAE) else (x, factor * y)
    return clone(estimator).set_params(**parameters).fit(*data, groups=groups)


def shown_facts(model) -> dict[str, str]:
    """What the table below scikit-learn's diagram says."""
    table = model._repr_html_().rsplit("<table>", 1)[1]
    return dict(re.findall(r"<b>(.*?)</b></td><td[^>]*>(.*?)</td>", table))


@both
def test_an_estimator_that_is_not_fitted_shows_what_scikit_learn_shows(estimator):
    html = estimator._repr_html_()
    assert "sk-estimator" in html
    assert "Log-likelihood" not in html
    # Not the whole text: the ids of scikit-learn's diagram count up.
    assert abs(len(html) - len(estimator_html_repr(estimator))) < 20


def test_a_fitted_model_shows_groups_codes_and_log_likelihood(exam, exam_model):
    facts = shown_facts(exam_model)
    sizes = np.unique(exam.groups, return_counts=True)[1]
    assert facts["Groups"] == f"24 of {sizes.min()} to {sizes.max()} rows"
    assert (facts["Group codes"], facts["Instance codes"]) == ("2", "1")
    assert facts["Model"] == "network (decoder=&quot;mlp&quot;)"
    assert "ELBO of the last epoch" in facts["Log-likelihood"]
    assert "sk-estimator" in exam_model._repr_html_()
    assert exam_model._repr_mimebundle_()["text/html"].count("<table>") == 1


def test_a_fitted_regression_shows_its_random_effects_as_group_codes(rows):
    x, y, groups = rows
    model = clone(REGRESSOR).set_params(decoder="mlp", random_slopes=[0], n_extra_codes=2)
    facts = shown_facts(model.fit(x, np.column_stack([y, y[::-1]]), groups=groups))
    assert facts["Groups"] == "8 of 5 to 5 rows"
    # A constant and a slope for each of the two outcomes, and two codes that only the network sees.
    assert (facts["Group codes"], facts["Instance codes"]) == ("6", "2")
    assert facts["Model"] == "network (decoder=&quot;mlp&quot;)"
    assert "sk-estimator" in model._repr_html_()
    assert model._repr_mimebundle_()["text/html"].count("<table>") == 1


@both
def test_the_reason_of_the_choice_is_shown(estimator, rows):
    model = fitted(estimator, rows, decoder="auto")
    shown = shown_facts(model)["Model"]
    assert re.fullmatch(r"(linear|network) \(.+\)", shown)
    assert shown in model.summary()


@both
def test_the_bound_of_a_network_is_in_the_units_of_the_table(estimator, rows):
    models = [fitted(estimator, rows, factor, decoder="mlp") for factor in (1.0, 10.0)]
    elbos = []
    for model in models:
        facts = shown_facts(model)
        assert "(ELBO of the last epoch)" in facts["Log-likelihood"]
        assert shown_facts(pickle.loads(pickle.dumps(model))) == facts
        elbos.append(float(facts["Log-likelihood"].split()[2]))
    assert elbos[0] - elbos[1] == pytest.approx(np.log(10.0), abs=2e-3)


@both
def test_a_linear_model_shows_its_exact_log_likelihood_in_the_units_of_the_table(estimator, rows):
    model = fitted(estimator, rows, decoder="linear")
    x, y, groups = rows
    data = (y[:, None],) if isinstance(estimator, GroupVAE) else (x, y)
    total = model.group_log_likelihood(*data, groups=groups, context="prior").sum()
    facts = shown_facts(model)
    assert facts["Log-likelihood"] == f"{total:,.1f} nats (linear mixed model)"
    assert facts["Model"] == "linear (decoder=&quot;linear&quot;)"
    assert shown_facts(pickle.loads(pickle.dumps(model))) == facts


def test_a_linear_mixed_model_shows_what_the_regression_says(rows):
    model = fitted(REGRESSOR, rows, decoder="linear")
    shown = shown_facts(model)["Log-likelihood"]
    assert shown == f"{model.mixed_model_log_likelihood_:,.1f} nats (linear mixed model)"


@both
def test_the_text_display_and_pipelines_stay_those_of_scikit_learn(estimator, rows):
    model = fitted(estimator, rows, decoder="linear")
    with sklearn.config_context(display="text"):
        assert not hasattr(model, "_repr_html_")
    assert type(model).__name__ in make_pipeline(StandardScaler(), model)._repr_html_()
