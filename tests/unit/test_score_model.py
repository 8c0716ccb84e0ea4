"""The regressor's training loop: reproducible, held-out groups unseen, best epoch kept, Ctrl-C survived."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from skgroupvae import CxVAERegressor
from skgroupvae.groups import GroupIndex, iter_group_batches
from skgroupvae.progress import no_progress
from skgroupvae.regression import training
from skgroupvae.regression.training import TrainingSettings, fit_network, resolve_schedule

# In nats per row, as documented at CxVAERegressor.history_.
TERMS = ["loss", "reconstruction", "kl_u", "kl_v", "mutual_information"]
SIZES = (1, 3, 5, 2, 4, 6, 2, 3)


def settings(**changes) -> TrainingSettings:
    defaults = {
        "max_epochs": 3,
        "batch_size": 3,
        "learning_rate": 0.01,
        "n_decoder_samples": 4,
        "regularizer_weight": 1.0,
        "early_stopping": False,
        "n_iter_no_change": 20,
        "tol": 0.0,
    }
    return TrainingSettings(**defaults | changes)


def table():
    """Covariate, outcome and labels of eight ragged groups."""
    rng = np.random.RandomState(0)
    groups = rng.permutation(np.repeat(np.arange(len(SIZES)), SIZES))
    x = rng.normal(size=(len(groups), 1))
    return x, 0.5 * x[:, 0] + rng.normal(size=8)[groups] + rng.normal(size=len(groups)), groups


def quick(**changes) -> CxVAERegressor:
    defaults = {"hidden_sizes": (8,), "regularizer": "context", "random_slopes": None, "random_state": 0}
    return CxVAERegressor(**defaults | {"verbose": False} | changes)


@pytest.fixture
def problem():
    """A network at its mixed model, with its rows and their index."""
    x, y, groups = table()
    model, generator = quick(max_epochs=1).fit(x, y, groups=groups), torch.Generator().manual_seed(2)
    rows = model._rows(model._inner(y), model._design.transform(x))
    index = GroupIndex.from_labels(groups)
    network = model._network_of(False, generator)
    model._start(network, rows, index, generator)
    return network, rows.float(), index


def fit(problem, validation=(), seed=3, progress=no_progress, **changes) -> list[dict[str, float]]:
    network, x, index = problem
    validation = np.array(validation, dtype=np.intp)
    return fit_network(
        network,
        x,
        index,
        settings(**changes),
        train_groups=np.setdiff1d(np.arange(index.n_groups), validation),
        validation_groups=validation,
        generator=torch.Generator().manual_seed(seed),
        progress=progress,
    )


def state(network) -> dict[str, torch.Tensor]:
    return copy.deepcopy(network.state_dict())


def equal(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_seed_gives_the_same_fit_to_the_bit(problem):
    start = state(problem[0])
    first = fit(problem), state(problem[0])
    problem[0].load_state_dict(start)
    second = fit(problem), state(problem[0])
    problem[0].load_state_dict(start)
    other = fit(problem, seed=4), state(problem[0])
    assert first[0] == second[0]
    assert equal(first[1], second[1])
    assert not equal(first[1], other[1])


def test_history_has_one_record_an_epoch_whose_parts_add_up(problem):
    history = fit(problem, validation=[1, 4], regularizer_weight=0.5)
    assert len(history) == 3
    for record in history:
        assert list(record) == TERMS + [f"validation_{name}" for name in TERMS]
        assert np.isfinite(list(record.values())).all()
        for prefix in ("", "validation_"):
            loss, reconstruction, kl_u, kl_v, information = (record[prefix + name] for name in TERMS)
            assert loss == pytest.approx(kl_u + kl_v - reconstruction + 0.5 * information)


def test_history_is_in_nats_per_row(problem):
    # Learning next to nothing, one epoch's record is the ELBO of the network as it was over all rows.
    network, x, index = problem
    rows, segments = index.rows_of(np.arange(index.n_groups))
    draws = [
        network.elbo(x[rows], segments, torch.Generator().manual_seed(seed)).elbo.sum().item() / len(x)
        for seed in range(100)
    ]
    (record,) = fit(problem, max_epochs=1, learning_rate=1e-9)
    elbo = record["reconstruction"] - record["kl_u"] - record["kl_v"]
    assert abs(elbo - np.mean(draws)) < 4 * np.std(draws)


def test_loss_falls(problem):
    with torch.no_grad():
        problem[0].decoder.fixed += 1.0  # away from the mixed model
    history = fit(problem, max_epochs=30)
    first, last = (np.mean([r["loss"] for r in part]) for part in (history[:5], history[-5:]))
    assert last < first - 0.1


def test_network_without_regularizer_reports_no_information(problem):
    problem[0].regularizer = None
    assert [record["mutual_information"] for record in fit(problem)] == [0.0] * 3


def test_every_part_is_learned(problem):
    before = state(problem[0])
    fit(problem)
    after = problem[0].state_dict()
    for part in ("group_encoder", "decoder", "regularizer"):
        assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith(part)), (
            part
        )


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_the_critic_reaches_the_model_through_its_weight_only(problem, weight):
    start, results = state(problem[0]), []
    for shift in (0.0, 0.3):
        problem[0].load_state_dict(start)
        with torch.no_grad():
            problem[0].regularizer.regularizer.pair_network[0].weight += shift
        fit(problem, regularizer_weight=weight)
        results.append(state(problem[0].decoder))
    assert equal(*results) == (weight == 0.0)


def test_held_out_groups_do_not_teach(problem):
    network, x, index = problem
    held_out = [2, 5]
    start = state(network)
    fit(problem, validation=held_out)
    expected = state(network)
    network.load_state_dict(start)
    # Another outcome in the held-out rows, and in no other row.
    x[np.isin(index.codes, held_out), 0] = 77.0
    fit(problem, validation=held_out)
    assert equal(state(network), expected)


def test_every_training_group_is_seen_whole_once_an_epoch(problem, monkeypatch):
    network, x, index = problem
    seen: list[list[tuple[float, ...]]] = []
    elbo = network.elbo

    def spy(rows, segments, generator):
        seen.append(
            [tuple(sorted(block[:, 0].tolist())) for block in rows.split(segments.sizes.long().tolist())]
        )
        return elbo(rows, segments, generator)

    monkeypatch.setattr(network, "elbo", spy)
    fit(problem, validation=[0], max_epochs=2)
    expected = sorted(
        tuple(sorted(x[index.codes == group, 0].tolist())) for group in range(index.n_groups) if group != 0
    )
    held_out = [tuple(sorted(x[index.codes == 0, 0].tolist()))]
    # Seven groups in batches of three: three steps, then the held-out group, in each of two epochs.
    for epoch in (seen[:4], seen[4:]):
        assert [len(batch) for batch in epoch] == [3, 3, 1, 1]
        assert sorted(group for batch in epoch[:3] for group in batch) == expected
        assert epoch[3] == held_out
    assert seen[:3] != seen[4:7]  # shuffled


def test_validation_record_uses_the_same_draws_at_every_epoch(problem):
    # A model that learns nothing; the critic, which has a rate of its own, moves the information only.
    history = fit(problem, validation=[1, 2], learning_rate=1e-12)
    for name in ("reconstruction", "kl_u", "kl_v"):
        assert history[0][f"validation_{name}"] == pytest.approx(history[2][f"validation_{name}"], rel=1e-5)


def states_by_epoch(monkeypatch) -> list[dict]:
    """The weights after each epoch, filled in during the fit."""
    states = []
    run_epoch = training._Trainer.run_epoch

    def spy(self):
        run_epoch(self)
        states.append(state(self.network))

    monkeypatch.setattr(training._Trainer, "run_epoch", spy)
    return states


def elbo_losses(history) -> list[float]:
    return [r["validation_kl_u"] + r["validation_kl_v"] - r["validation_reconstruction"] for r in history]


def test_early_stopping_ends_at_the_best_epoch(problem, monkeypatch):
    states = states_by_epoch(monkeypatch)
    history = fit(
        problem, validation=[2, 5], early_stopping=True, n_iter_no_change=3, max_epochs=60, learning_rate=0.1
    )
    best = int(np.argmin(elbo_losses(history)))
    assert len(history) == best + 1 + 3 < 60
    assert equal(state(problem[0]), states[best])
    assert not equal(states[best], states[-1])


def test_early_stopping_does_not_count_improvements_below_tol(problem):
    history = fit(problem, validation=[2, 5], early_stopping=True, n_iter_no_change=2, tol=1e6, max_epochs=20)
    assert len(history) == 3  # the first epoch is the best, then two without improvement


def test_without_early_stopping_the_last_epoch_stays(problem, monkeypatch):
    states = states_by_epoch(monkeypatch)
    history = fit(problem, validation=[2, 5], max_epochs=5, n_iter_no_change=1)
    assert len(history) == 5
    assert equal(state(problem[0]), states[-1])


def interrupt_in_epoch(number: int, monkeypatch) -> None:
    """Ctrl-C in the middle of that epoch."""
    step, n_steps = training._Trainer._step, []

    def interrupted(self, batch):
        n_steps.append(1)
        if len(self.history) == number - 1 and len(n_steps) % 3 == 2:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(training._Trainer, "_step", interrupted)


def test_interrupt_keeps_the_epochs_done_and_warns(problem, monkeypatch):
    interrupt_in_epoch(3, monkeypatch)
    with pytest.warns(UserWarning, match="interrupted after 2 of 9 epochs"):
        history = fit(problem, max_epochs=9)
    assert len(history) == 2


def test_interrupted_early_stopping_ends_at_the_best_epoch(problem, monkeypatch):
    states = states_by_epoch(monkeypatch)
    interrupt_in_epoch(4, monkeypatch)
    with pytest.warns(UserWarning, match="interrupted after 3"):
        history = fit(problem, validation=[2], early_stopping=True, max_epochs=9)
    assert equal(state(problem[0]), states[int(np.argmin(elbo_losses(history)))])


@pytest.mark.parametrize("epoch", [1, 3])
def test_an_interrupted_regressor_is_usable(epoch, monkeypatch):
    x, y, groups = table()
    interrupt_in_epoch(epoch, monkeypatch)
    model = quick(max_epochs=9, batch_size=3)
    with pytest.warns(UserWarning, match=f"interrupted after {epoch - 1} of 9"):
        model.fit(x, y, groups=groups)
    assert model.n_iter_ == len(model.history_) == epoch - 1
    assert list(model.history_.columns) == TERMS
    assert np.isfinite(model.predict(x, groups=groups)).all()


def test_a_limit_of_rows_may_cut_every_epoch_into_other_batches(problem, monkeypatch):
    # The number of batches then depends on the order of the groups, and the schedule must not run out.
    monkeypatch.setitem(iter_group_batches.__kwdefaults__, "max_rows", 11)
    assert len(fit(problem, max_epochs=60)) == 60


def test_progress_sees_every_epoch(problem):
    seen = []

    def progress(numbers, history):
        for number in numbers:
            yield number
            seen.append((number, len(history), "loss" in history[-1]))

    fit(problem, progress=progress)
    assert seen == [(0, 1, True), (1, 2, True), (2, 3, True)]


def test_given_schedule_is_kept():
    assert resolve_schedule(7, 11, 1000) == (7, 11)
    assert resolve_schedule(7, "auto", 1000)[0] == 7
    assert resolve_schedule("auto", 11, 1000)[1] == 11


@pytest.mark.parametrize("n_groups", [1, 2, 7, 8, 9, 65, 500, 2048, 32_768])
def test_auto_schedule_has_as_many_steps_as_asked_for_whatever_the_number_of_groups(n_groups):
    max_epochs, batch_size = resolve_schedule("auto", "auto", n_groups, 800)
    assert min(n_groups, 8) <= batch_size <= min(256, max(8, n_groups // 8))
    # Half an epoch is lost or won by rounding to whole epochs: 64 of 128 steps at the most here.
    assert max_epochs * math.ceil(n_groups / batch_size) == pytest.approx(800, abs=64)
