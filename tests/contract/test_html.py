"""What a notebook shows of an estimator."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import sklearn
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_html_repr

from skgroupvae import CxVAERegressor, GroupVAE
from skgroupvae.html import fit_facts


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), 5)
    x = rng.normal(size=(40, 1))
    return x, 100.0 * (x[:, 0] + rng.normal(size=8)[groups] + rng.normal(size=40)), groups


def shown_facts(model) -> dict[str, str]:
    """What the table below scikit-learn's diagram says."""
    table = model._repr_html_().rsplit("<table>", 1)[1]
    return dict(re.findall(r"<b>(.*?)</b></td><td[^>]*>(.*?)</td>", table))


@pytest.mark.parametrize("estimator", [GroupVAE(), CxVAERegressor()], ids=lambda e: type(e).__name__)
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


def test_the_log_likelihood_is_in_the_units_of_the_table(exam, quick):
    in_points, in_tenths = (quick().fit(factor * exam.X, groups=exam.groups) for factor in (1.0, 10.0))
    elbos = [float(shown_facts(model)["Log-likelihood"].split()[2]) for model in (in_points, in_tenths)]
    assert elbos[0] - elbos[1] == pytest.approx(np.log(10.0), abs=2e-3)


def test_a_linear_model_shows_its_exact_log_likelihood_in_the_units_of_the_table(exam, quick):
    model = quick(1, 1, decoder="linear").fit(exam.X, groups=exam.groups)
    total = model.group_log_likelihood(exam.X, groups=exam.groups, context="prior").sum()
    facts = shown_facts(model)
    assert facts["Log-likelihood"] == f"{total:,.1f} nats (linear mixed model)"
    assert facts["Model"] == "linear (decoder=&quot;linear&quot;)"
    assert shown_facts(pickle.loads(pickle.dumps(model))) == facts


def test_a_linear_mixed_model_shows_its_exact_log_likelihood(rows):
    x, y, groups = rows
    model = CxVAERegressor(decoder="linear", random_slopes=None, random_state=0).fit(x, y, groups=groups)
    assert fit_facts(model)["Log-likelihood"] == (
        f"{model.mixed_model_log_likelihood_:,.1f} nats (linear mixed model)"
    )
    assert "linear mixed model" in model._repr_html_()


def test_a_regression_with_a_network_shows_its_bound(rows):
    x, y, groups = rows
    model = CxVAERegressor(max_epochs=1, random_state=0).fit(x, y, groups=groups)
    assert "ELBO of the last epoch" in fit_facts(model)["Log-likelihood"]
    assert fit_facts(pickle.loads(pickle.dumps(model))) == fit_facts(model)


def test_the_text_display_and_pipelines_stay_those_of_scikit_learn(exam_model):
    with sklearn.config_context(display="text"):
        assert not hasattr(exam_model, "_repr_html_")
    assert "GroupVAE" in make_pipeline(StandardScaler(), exam_model)._repr_html_()
