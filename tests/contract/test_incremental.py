"""Fits that go on: update_groups, partial_fit, warm_start, and scores in context."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skgroupvae import GroupVAE
from skgroupvae.datasets import make_exam_scores

ENCODERS = ("deepsets", "average", "product", "product_with_prior")


@pytest.fixture(scope="module")
def more():
    """Rows of 12 groups, half of them with labels that `exam` has too."""
    data = make_exam_scores(12, random_state=5)
    return data.X, data.groups + 18


def parameters(model):
    return {name: value.clone() for name, value in model.model_.state_dict().items()}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_update_groups_equals_all_rows_at_once(encoder, exam, more, quick):
    model = quick(2, 1, group_encoder=encoder).fit(exam.X, groups=exam.groups)
    before = parameters(model)
    both = np.vstack([exam.X, more[0]]), np.concatenate([exam.groups, more[1]])
    u, _ = model.transform(both[0], groups=both[1])
    assert model.update_groups(*more[:1], groups=more[1]) is model
    at = model.group_codes_.index.get_indexer(both[1])
    np.testing.assert_allclose(model.group_codes_.to_numpy()[at], u, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in parameters(model).items())


def test_update_groups_one_row_at_a_time_equals_all_at_once(exam, more, quick):
    model = quick(2, 1).fit(exam.X, groups=exam.groups)
    once = copy.deepcopy(model).update_groups(more[0], groups=more[1])
    for row, label in zip(more[0], more[1], strict=True):
        model.update_groups(row[None], groups=[label])
    np.testing.assert_allclose(model.group_codes_.loc[once.group_codes_.index], once.group_codes_, atol=1e-5)


def test_bad_rows_leave_the_groups_as_they_were(exam, quick):
    model = quick(2, 1).fit(exam.X, groups=exam.groups)
    codes = model.group_codes_
    with pytest.raises(ValueError, match="NaN"):
        model.update_groups([[np.nan]], groups=[0])
    assert model.group_codes_ is codes


def test_first_partial_fit_is_fit(exam, quick):
    whole = quick(2, 1).fit(exam.X, groups=exam.groups)
    part = quick(2, 1).partial_fit(exam.X, groups=exam.groups)
    assert all(torch.equal(parameters(whole)[name], value) for name, value in parameters(part).items())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_partial_fit_learns_and_keeps_the_evidence_of_earlier_rows(encoder, exam, more, quick):
    model = quick(2, 1, group_encoder=encoder).fit(exam.X, groups=exam.groups)
    before, epochs = parameters(model), model.n_iter_
    model.partial_fit(more[0], groups=more[1])
    after = parameters(model)
    assert model.n_iter_ == epochs + 1 == model.history_.index[-1]
    assert not torch.equal(before["decoder.network.0.weight"], after["decoder.network.0.weight"])
    assert torch.equal(
        before["group_encoder.row_network.0.weight"], after["group_encoder.row_network.0.weight"]
    )
    both = np.vstack([exam.X, more[0]]), np.concatenate([exam.groups, more[1]])
    u, _ = model.transform(both[0], groups=both[1])
    at = model.group_codes_.index.get_indexer(both[1])
    np.testing.assert_allclose(model.group_codes_.to_numpy()[at], u, atol=1e-5)


def test_partial_fit_learns_from_a_single_batch(exam, quick):
    """A cycle of one step would end where it starts, at a rate near zero."""
    model = quick(2, 1).fit(exam.X, groups=exam.groups)
    before = parameters(model)["decoder.network.0.weight"]
    model.partial_fit(exam.X[:8], groups=["new"] * 8)
    moved = (parameters(model)["decoder.network.0.weight"] - before).abs().max()
    assert 1e-4 < moved < 1e-2  # a tenth of 0.01, less or more


def test_partial_fit_refuses_other_columns_and_leaves_the_estimator(exam, quick):
    model = quick(2, 1).fit(exam.X, groups=exam.groups)
    fitted = model.model_
    with pytest.raises(ValueError, match="2 features"):
        model.partial_fit(np.ones((4, 2)), groups=[0, 0, 1, 1])
    assert model.model_ is fitted


def test_partial_fit_over_batches_of_groups_improves_on_the_first():
    data = make_exam_scores(120, random_state=0)
    held_out = make_exam_scores(200, random_state=100)
    model = GroupVAE(2, 1, decoder="mlp", max_epochs=2, random_state=0, n_importance_samples=50)
    scores = []
    for part in range(6):
        rows = data.groups // 20 == part
        model.partial_fit(data.X[rows], groups=data.groups[rows])
        scores.append(model.score(held_out.X, groups=held_out.groups, context="prior"))
    # Each call is one pass over 20 groups; from the first to the last 0.044, 0.010 and 0.016 nats for
    # the data
    # of seeds 0 to 2. (After a first call with 100 groups the start is so good that little is left to learn.)
    assert scores[-1] > scores[0] + 0.01
    assert len(model.group_codes_) == 120


def test_warm_start_goes_on_where_the_last_fit_ended(exam, quick):
    model = quick(2, 1, warm_start=True, learning_rate=1e-9).fit(exam.X, groups=exam.groups)
    first, codes = parameters(model), (np.zeros((1, 2)), np.ones((1, 1)))
    decoded = model.inverse_transform(*codes)
    model.fit(exam.X * 3.0 + 1.0, groups=exam.groups)
    for name, value in parameters(model).items():
        if not name.startswith("regularizer"):
            torch.testing.assert_close(value, first[name], atol=1e-6, rtol=1e-5)
    # The units are those of the first fit; a clone learns those of its own table.
    np.testing.assert_allclose(model.inverse_transform(*codes), decoded, rtol=1e-5)
    fresh = clone(model).fit(exam.X * 3.0 + 1.0, groups=exam.groups)
    np.testing.assert_allclose(fresh.inverse_transform(*codes), 3.0 * decoded + 1.0, rtol=1e-3)


def test_warm_start_with_other_shapes_is_refused(exam, quick):
    model = quick(2, 1, warm_start=True).fit(exam.X, groups=exam.groups)
    codes = model.group_codes_
    with pytest.raises(ValueError, match="warm_start=False"):
        model.set_params(n_group_codes=3).fit(exam.X, groups=exam.groups)
    assert model.group_codes_ is codes


def test_warm_start_keeps_a_fixed_noise_fixed(exam, quick):
    model = quick(2, 1, warm_start=True, noise_scale=0.7).fit(exam.X, groups=exam.groups)
    model.fit(exam.X, groups=exam.groups)
    np.testing.assert_allclose(model.noise_scale_, 0.7, rtol=1e-6)


@pytest.mark.parametrize(("decoder", "tolerance"), [("linear", 1e-9), ("mlp", 0.01)])
def test_context_scores_are_those_of_the_chain_rule(decoder, tolerance):
    """log p(all) = log p(some) + log p(rest | some): exact for the linear model, else as good as q(u) is."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(150), 8)
    x = rng.normal(size=(150, 1))[groups] @ np.ones((1, 3)) + 0.5 * rng.normal(size=(1200, 3))
    model = GroupVAE(1, 1, decoder=decoder, max_epochs=60, random_state=0, n_importance_samples=64).fit(
        x, groups=groups
    )
    some = np.arange(1200) % 8 < 3
    labels = groups + 1000  # new to the fit
    total = model.group_log_likelihood(x, groups=labels).sum()
    start = model.group_log_likelihood(x[some], groups=labels[some]).sum()
    context = x[some], labels[some]
    rest = model.group_log_likelihood(x[~some], groups=labels[~some], context=context).sum()
    alone = model.group_log_likelihood(x[~some], groups=labels[~some]).sum()
    # Per row: where q(u) is learned, the two sides differ by its error; without context they are 0.1 apart.
    assert abs(start + rest - total) < tolerance * 1200
    assert start + alone < total - 0.05 * 1200


@pytest.mark.parametrize("method", ["score_samples", "group_log_likelihood"])
def test_what_the_fit_stored_is_context(method, exam_model, exam, more):
    values, labels = getattr(exam_model, method), exam.groups
    stored, new = values(exam.X, groups=labels), labels + 1000
    same = values(exam.X, groups=new, context=(exam.X, new))
    np.testing.assert_allclose(stored, same, rtol=1e-9)
    assert np.abs(stored - values(exam.X, groups=labels, context="prior")).max() > 0.01
    unknown = values(more[0], groups=more[1] + 500)
    np.testing.assert_allclose(unknown, values(more[0], groups=more[1] + 500, context="prior"), rtol=1e-9)


def test_a_pair_adds_to_what_the_fit_stored(exam, more, quick):
    model = quick(2, 1).fit(exam.X, groups=exam.groups)
    rows, labels = exam.X + 0.5, exam.groups
    told = model.group_log_likelihood(rows, groups=labels, context=more)
    updated = copy.deepcopy(model).update_groups(more[0], groups=more[1])
    np.testing.assert_allclose(told, updated.group_log_likelihood(rows, groups=labels), rtol=1e-9)


def test_partial_fit_of_a_linear_model_is_update_groups(exam, more, quick):
    model = quick(2, 1, decoder="linear").fit(exam.X, groups=exam.groups)
    part = copy.deepcopy(model).partial_fit(more[0], groups=more[1])
    model.update_groups(more[0], groups=more[1])
    assert part.group_codes_.equals(model.group_codes_)
    assert part.n_iter_ == 0
    assert part.history_.empty
