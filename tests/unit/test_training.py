"""The training loop: reproducible, held-out groups whole and unseen, best epoch kept, Ctrl-C survived."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from skgroupvae.batch import Batch, Segments, whole_group_batches
from skgroupvae.training import (
    HISTORY_TERMS,
    Callback,
    EarlyStopping,
    Progress,
    TrainingSettings,
    Trials,
    callbacks,
    history_table,
    resolve_schedule,
    train,
)
from skgroupvae.training.loop import Loop
from skgroupvae.training.objectives import EncoderObjective

# In nats per row, as documented at GroupVAE.history_.
TERMS = ["loss", "reconstruction", "kl_u", "kl_v", "mutual_information"]
SIZES = (1, 3, 5, 2, 4, 6, 2, 3)


@dataclass(frozen=True)
class Terms:
    reconstruction: torch.Tensor
    kl_u: torch.Tensor
    kl_v: torch.Tensor
    v: torch.Tensor

    @property
    def elbo(self):
        return self.reconstruction - self.kl_u - self.kl_v


class LinearDecoder(nn.Linear):
    def penalty(self):
        return 0.01 * self.weight.square().sum()

    def rate_factors(self):
        return [(self.bias, 2.0)]


class Critic(nn.Linear):
    """Code against the mean of the group."""

    def forward(self, x, v, segments, generator):
        mean = segments.expand(segments.sum(x) / segments.sizes[:, None])
        pairs = torch.cat([mean, v], dim=1), torch.cat([mean, v.roll(1, 0)], dim=1)
        joint, product = (torch.tanh(super(Critic, self).forward(pair)[:, 0]) for pair in pairs)
        return joint.mean() - product.exp().mean().log()


class LinearModel(nn.Module):
    """Codes and rows are linear in each other, with unit noise; two columns, u and v of one number each."""

    def __init__(self, has_instance_encoder=True, has_regularizer=True):
        super().__init__()
        with torch.random.fork_rng():  # a new layer draws from torch's global generator
            self.group_encoder, self.decoder = nn.Linear(2, 1), LinearDecoder(2, 2)
            self.instance_encoder = nn.Linear(3, 1) if has_instance_encoder else None
            self.regularizer = Critic(3, 1) if has_regularizer else None
        generator = torch.Generator().manual_seed(2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.0, 0.5, generator=generator)

    def inputs(self, batch):
        return batch.values

    def codes(self, batch, generator):
        groups = batch.groups
        loc_u = self.group_encoder(groups.sum(batch.values) / groups.sizes[:, None])
        u = loc_u + torch.randn(loc_u.shape, generator=generator)
        loc_v = batch.values[:, :1] * 0
        if self.instance_encoder is not None:
            loc_v = self.instance_encoder(torch.cat([batch.values, groups.expand(u)], dim=1))
        return loc_u, u, loc_v, loc_v + torch.randn(loc_v.shape, generator=generator)

    def elbo(self, batch, generator):
        loc_u, u, loc_v, v = self.codes(batch, generator)
        fit = self.decoder(torch.cat([batch.groups.expand(u), v], dim=1))
        log_px = -0.5 * ((batch.values - fit).square() + math.log(2 * math.pi)).sum(1)
        kl_v = batch.groups.sum(0.5 * loc_v.square().sum(1))
        return Terms(batch.groups.sum(log_px), 0.5 * loc_u.square().sum(1), kl_v, v)

    def encoder_bound(self, batch, generator):
        return self.elbo(batch.thinned(generator), generator).elbo

    def start_simulating(self, batch, generator):
        self.simulates = True

    def stop_simulating(self):
        self.simulates = False

    def importance_correction(self, batch, n_samples, generator):
        return 0.1 * torch.stack([self.elbo(batch, generator).elbo for _ in range(n_samples)]).mean(0)


def settings(**changes) -> TrainingSettings:
    defaults = {
        "max_epochs": 3,
        "batch_size": 3,
        "learning_rate": 0.01,
        "n_decoder_samples": 4,
        "regularizer_weight": 1.0,
        "n_iter_no_change": 20,
    }
    return TrainingSettings(**defaults | changes)


def table(*others: Segments) -> Batch:
    """Rows of eight ragged groups with two columns."""
    n_rows = sum(SIZES)
    values = torch.randn(n_rows, 2, generator=torch.Generator().manual_seed(1)) + 1.0
    factors = (Segments.of_sizes(torch.tensor(SIZES)), *others)
    return Batch(values, torch.ones(n_rows, 1), torch.ones(n_rows), factors).to(dtype=torch.float32)


@pytest.fixture
def model() -> LinearModel:
    return LinearModel()


def fit(model, validation=(), seed=3, batch=None, callbacks=(), **changes) -> list[dict[str, float]]:
    return train(
        model,
        table() if batch is None else batch,
        settings(**changes),
        train_groups=torch.tensor([group for group in range(len(SIZES)) if group not in validation]),
        validation_groups=torch.tensor(validation, dtype=torch.long),
        generator=torch.Generator().manual_seed(seed),
        callbacks=callbacks,
    )


def state(model) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def equal(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


class States(Callback):
    """The weights after each epoch."""

    def __init__(self):
        self.states = []

    def on_epoch_end(self, loop, record):
        self.states.append(state(loop.model))


def test_the_same_seed_gives_the_same_fit_to_the_bit():
    results = []
    for seed in (3, 3, 4):
        model = LinearModel()
        results.append((fit(model, seed=seed), state(model)))
    assert results[0][0] == results[1][0]
    assert equal(results[0][1], results[1][1])
    assert not equal(results[0][1], results[2][1])


def test_history_has_one_record_an_epoch_whose_parts_add_up(model):
    history = fit(model, validation=[1, 4], regularizer_weight=0.5)
    assert len(history) == 3
    for record in history:
        assert list(record) == TERMS + [f"validation_{name}" for name in TERMS]
        assert all(type(value) is float and math.isfinite(value) for value in record.values())
        for prefix in ("", "validation_"):
            loss, reconstruction, kl_u, kl_v, information = (record[prefix + name] for name in TERMS)
            assert loss == pytest.approx(kl_u + kl_v - reconstruction + 0.5 * information)


def test_history_is_in_nats_per_row(model):
    # Learning next to nothing, one epoch's record is the ELBO of the untrained model over all rows.
    batch = table()
    draws = [
        model.elbo(batch, torch.Generator().manual_seed(seed)).elbo.sum().item() / batch.n_rows
        for seed in range(100)
    ]
    (record,) = fit(model, max_epochs=1, learning_rate=1e-9)
    elbo = record["reconstruction"] - record["kl_u"] - record["kl_v"]
    assert abs(elbo - np.mean(draws)) < 4 * np.std(draws)


def test_history_table_counts_on_from_earlier_fits():
    shown = history_table([dict.fromkeys(HISTORY_TERMS, 0.0)] * 2, n_before=3)
    assert list(shown.columns) == TERMS
    assert list(shown.index) == [4, 5]
    assert shown.index.name == "epoch"


def test_loss_falls(model):
    history = fit(model, max_epochs=40)
    first, last = (np.mean([r["loss"] for r in part]) for part in (history[:5], history[-5:]))
    assert last < first - 0.1


def test_model_without_regularizer_and_instance_encoder():
    history = fit(LinearModel(has_instance_encoder=False, has_regularizer=False), validation=[1])
    for record in history:
        assert record["mutual_information"] == record["validation_mutual_information"] == 0.0
        assert record["kl_v"] == 0.0


def test_every_part_is_learned(model):
    before = state(model)
    fit(model)
    after = model.state_dict()
    for part in ("group_encoder", "instance_encoder", "decoder", "regularizer"):
        assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith(part))


@pytest.mark.parametrize("part", ["group_encoder", "decoder"])
def test_a_frozen_part_stays(model, part):
    getattr(model, part).requires_grad_(False)
    before = state(getattr(model, part))
    fit(model)
    assert equal(before, state(getattr(model, part)))


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_the_critic_reaches_the_model_through_its_weight_only(weight):
    results = []
    for shift in (0.0, 0.3):
        model = LinearModel()
        with torch.no_grad():
            model.regularizer.weight += shift
        fit(model, regularizer_weight=weight)
        results.append(state(model.instance_encoder))
    assert equal(*results) == (weight == 0.0)


def test_thinned_groups_teach_the_group_encoder_only(model):
    EncoderObjective(model, torch.Generator().manual_seed(0)).backward(table())
    taught = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert taught == ["group_encoder.weight", "group_encoder.bias"]
    model.encoder_bound = lambda batch, generator: None
    assert len(fit(model, n_decoder_samples=1)) == 3


def test_the_decoder_is_corrected_on_the_first_groups_of_a_batch(model):
    seen = []
    correction = model.importance_correction

    def spy(batch, n_samples, generator):
        seen.append((batch.groups.n_groups, batch.n_rows, n_samples))
        return correction(batch, n_samples, generator)

    model.importance_correction = spy
    fit(model, max_epochs=1, batch_size=8)
    assert seen == [(8, sum(SIZES), 4)]
    seen.clear()
    fit(model, n_decoder_samples=1)
    assert seen == []


@pytest.mark.parametrize("n_factors", [1, 2])
def test_first_groups_are_those_that_indexing_takes(n_factors):
    codes = torch.arange(sum(SIZES)) % 3
    other = Segments(codes, torch.bincount(codes).double())
    batch = table(*[other] * (n_factors - 1))
    part, expected = batch.first_groups(3), batch.take_groups(torch.arange(3))
    assert torch.equal(part.values, expected.values)
    assert len(part.factors) == len(expected.factors) == n_factors
    for one, two in zip(part.factors, expected.factors, strict=True):
        assert torch.equal(one.codes, two.codes)
        assert torch.equal(one.sizes, two.sizes)
    assert batch.first_groups(8) is batch


def test_held_out_groups_do_not_teach():
    states = []
    for value in (0.0, 77.0):
        model, batch = LinearModel(), table()
        # Other values in the held-out rows, and in no other row.
        batch.values[torch.isin(batch.groups.codes, torch.tensor([2, 5]))] += value
        fit(model, validation=[2, 5], batch=batch)
        states.append(state(model))
    assert equal(*states)


def test_every_training_group_is_seen_whole_once_an_epoch(model):
    batch, seen, elbo = table(), [], model.elbo

    def spy(part, generator):
        if part.n_rows != batch.n_rows:
            blocks = part.values.split(part.groups.sizes.long().tolist())
            seen.append([tuple(block[:, 0].tolist()) for block in blocks])
        return elbo(part, generator)

    model.elbo = spy
    model.encoder_bound = lambda part, generator: None
    fit(model, validation=[0], max_epochs=2, n_decoder_samples=1, batch=batch)
    groups = [tuple(block[:, 0].tolist()) for block in batch.values.split(SIZES)]
    # Seven groups in batches of three: three steps, then the held-out group, in each of two epochs.
    for epoch in (seen[:4], seen[4:]):
        assert [len(part) for part in epoch] == [3, 3, 1, 1]
        assert sorted(group for part in epoch[:3] for group in part) == sorted(groups[1:])
        assert epoch[3] == groups[:1]
    assert seen[:3] != seen[4:7]  # shuffled


def test_validation_record_uses_the_same_draws_at_every_epoch(model):
    # A model that learns nothing; the critic, which has a rate of its own, moves the information only.
    history = fit(model, validation=[1, 2], learning_rate=1e-12)
    for name in ("reconstruction", "kl_u", "kl_v"):
        assert history[0][f"validation_{name}"] == pytest.approx(history[2][f"validation_{name}"], rel=1e-5)


def test_early_stopping_ends_at_the_best_epoch(model):
    spy = States()
    history = fit(
        model,
        validation=[2, 5],
        callbacks=[spy],
        early_stopping=True,
        n_iter_no_change=3,
        max_epochs=60,
        learning_rate=0.3,
    )
    losses = [
        -sum(s * r[f"validation_{n}"] for s, n in zip((1, -1, -1), TERMS[1:4], strict=True)) for r in history
    ]
    best = int(np.argmin(losses))
    assert len(history) == best + 1 + 3 < 60
    assert equal(state(model), spy.states[best])
    assert not equal(spy.states[best], spy.states[-1])


def test_early_stopping_does_not_count_improvements_below_tol(model):
    history = fit(model, validation=[2, 5], early_stopping=True, n_iter_no_change=2, tol=1e6, max_epochs=20)
    assert len(history) == 3  # the first epoch is the best, then two without improvement


def test_without_early_stopping_the_last_epoch_stays(model):
    spy = States()
    assert len(fit(model, validation=[2, 5], max_epochs=5, n_iter_no_change=1, callbacks=[spy])) == 5
    assert equal(state(model), spy.states[-1])


def fail_in_epoch(model, number: int, failure, n_steps: int = 3) -> None:
    """Call `failure` in the second step of that epoch."""
    elbo, steps = model.elbo, []

    def failing(batch, generator):
        if torch.is_grad_enabled():
            steps.append(1)
            if len(steps) == n_steps * (number - 1) + 2:
                return failure(elbo(batch, generator))
        return elbo(batch, generator)

    model.elbo = failing
    model.encoder_bound = lambda batch, generator: None
    model.importance_correction = lambda batch, n_samples, generator: 0.0 * model.decoder.bias


def interrupt(terms):
    raise KeyboardInterrupt


def not_finite(terms):
    return Terms(terms.reconstruction * math.nan, terms.kl_u, terms.kl_v, terms.v)


def test_interrupt_keeps_the_epochs_done_and_warns(model):
    fail_in_epoch(model, 3, interrupt)
    message = "fit was interrupted after 2 of 9 epochs; the estimator keeps what it learned so far"
    with pytest.warns(UserWarning, match=message) as caught:
        history = fit(model, max_epochs=9)
    assert len(history) == 2
    assert caught[0].filename == __file__  # the caller of `train`


def test_interrupt_in_the_first_epoch_leaves_a_usable_model(model):
    fail_in_epoch(model, 1, interrupt)
    with pytest.warns(UserWarning, match="interrupted after 0 of 3"):
        history = fit(model)
    assert history == []
    assert list(history_table(history).columns) == TERMS
    assert len(fit(model)) == 3


def test_interrupted_early_stopping_ends_at_the_best_epoch(model):
    spy = States()
    fail_in_epoch(model, 4, interrupt)
    with pytest.warns(UserWarning, match="interrupted after 3"):
        history = fit(model, validation=[2], early_stopping=True, max_epochs=9, callbacks=[spy])
    best = int(
        np.argmin(
            [r["validation_kl_u"] + r["validation_kl_v"] - r["validation_reconstruction"] for r in history]
        )
    )
    assert equal(state(model), spy.states[best])


def test_a_second_interrupt_is_raised(model):
    class Again(Callback):
        def on_end(self, loop):
            raise KeyboardInterrupt

    fail_in_epoch(model, 2, interrupt)
    with pytest.warns(UserWarning, match="interrupted"), pytest.raises(KeyboardInterrupt):
        fit(model, callbacks=[Again()])


def test_a_failure_is_raised_and_ends_the_callbacks(model):
    ended = []

    class End(Callback):
        def on_end(self, loop):
            ended.append(len(loop.history))

    def failure(terms):
        raise RuntimeError("the model's own")

    fail_in_epoch(model, 2, failure)
    with pytest.raises(RuntimeError, match="own"):
        fit(model, callbacks=[End()])
    assert ended == [1]


def test_a_fit_that_diverges_keeps_its_last_finite_epoch(model):
    spy = States()
    fail_in_epoch(model, 3, not_finite)
    with pytest.warns(UserWarning, match=r"diverged after 2 of 9 epochs.*smaller learning_rate than 0.01"):
        history = fit(model, max_epochs=9, callbacks=[spy])
    assert len(history) == len(spy.states) == 2
    assert equal(state(model), spy.states[-1])


def test_a_gradient_that_is_not_finite_in_the_last_step_is_noticed(model):
    # The loss of the step is finite: only the weights show it.
    before, elbo = state(model), model.elbo

    def overflowing(batch, generator):
        terms = elbo(batch, generator)
        root = (model.decoder.bias - model.decoder.bias.detach()).sum().abs().sqrt()
        return Terms(terms.reconstruction + root, terms.kl_u, terms.kl_v, terms.v)

    model.elbo = overflowing
    with pytest.warns(UserWarning, match="diverged after 0 of 1"):
        assert fit(model, max_epochs=1, batch_size=8) == []
    assert equal(state(model), before)


def test_interrupt_after_a_step_that_diverged_returns_to_the_last_epoch(model):
    spy = States()

    def spoil(terms):
        with torch.no_grad():
            model.decoder.bias.fill_(math.inf)
        raise KeyboardInterrupt

    fail_in_epoch(model, 3, spoil)
    with pytest.warns(UserWarning, match="interrupted|diverged") as caught:
        fit(model, callbacks=[spy])
    assert [str(w.message).split(" after")[0] for w in caught] == ["fit was interrupted", "fit diverged"]
    assert equal(state(model), spy.states[-1])


def test_a_caller_without_gradients_may_fit():
    models = LinearModel(), LinearModel()
    expected = fit(models[0], validation=[1])
    with torch.no_grad():
        assert fit(models[1], validation=[1]) == expected
        assert not torch.is_grad_enabled()
    assert equal(state(models[0]), state(models[1]))


class Rates(Callback):
    """The optimizer's rates at each step."""

    def on_start(self, loop):
        self.rates, step = [], loop.optimizer.step

        def spy():
            self.rates.append([group["lr"] for group in loop.optimizer.param_groups])
            return step()

        loop.optimizer.step = spy


def test_rates_follow_one_cycle_and_the_decoder_its_factors(model):
    spy = Rates()
    with warnings.catch_warnings():
        # Torch misses its own wrapper around the step that is spied on.
        warnings.simplefilter("ignore")
        fit(model, max_epochs=20, callbacks=[spy])
    rates = np.array(spy.rates)
    assert rates.shape == (60, 2)
    np.testing.assert_allclose(rates[:, 1], 2.0 * rates[:, 0])
    assert rates[:, 0].max() == pytest.approx(0.01, rel=0.01)
    assert rates[0, 0] < 0.001
    assert rates[-1, 0] < 0.0001


def test_one_incremental_pass_over_few_groups_has_no_warm_up(model):
    spy = Rates()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(model, max_epochs=1, is_incremental=True, callbacks=[spy])
    rates = [rate for rate, _ in spy.rates]
    assert 0.008 < rates[0] <= 0.01
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0.001


def test_a_limit_of_rows_may_cut_every_epoch_into_other_batches(model, monkeypatch):
    # The number of batches then depends on the order of the groups, and the schedule must not run out.
    monkeypatch.setitem(whole_group_batches.__kwdefaults__, "max_rows", 11)
    assert len(fit(model, max_epochs=60)) == 60


def test_hooks_are_called_in_order(model):
    calls = []

    class Spy(Callback):
        def on_start(self, loop):
            assert isinstance(loop, Loop)
            calls.append("start")

        def on_epoch_end(self, loop, record):
            assert loop.history[-1] is record
            assert equal(loop.state, state(model))
            calls.append(f"epoch {len(loop.history)}")

        def should_stop(self):
            calls.append("stop?")
            return len(calls) > 4

        def on_end(self, loop):
            calls.append("end")

    assert len(fit(model, max_epochs=9, callbacks=[Spy()])) == 2
    assert calls == ["start", "epoch 1", "stop?", "epoch 2", "stop?", "end"]


def trial(model, sums, n_groups=20, n_epochs=1, max_epochs=20, start=0.0):
    """A trial whose groups gain these sums, one question after the other, with a standard error of 1."""
    noise = torch.linspace(-1.0, 1.0, n_groups, dtype=torch.float64)
    noise = noise / noise.std() / n_groups**0.5
    answers = iter([torch.full_like(noise, start / n_groups), *(noise + x / n_groups for x in sums)])
    trials = Trials(lambda: next(answers), n_epochs)
    fit(model, max_epochs=max_epochs, callbacks=[trials])
    return trials


@pytest.mark.parametrize(
    ("sums", "n_asked", "is_clear"),
    [
        ([-1.0] * 20, 5, False),  # it never gains
        ([0.5] * 20, 9, False),  # by less than a standard error
        ([3.0] * 20, 20, False),  # it gains, and goes on
        ([3.0, 3.0, 6.0, 6.0, 6.0], 5, True),  # clearly
        ([2.0, 4.0, 3.0, 2.0, 1.0, 0.0], 6, False),  # longer training loses
    ],
)
def test_a_trial_ends_where_the_answer_is_clear(model, sums, n_asked, is_clear):
    trials = trial(model, sums)
    assert len(trials.answers) == len(trials.epochs) == n_asked
    assert trials.is_clear == is_clear


def test_a_trial_that_starts_below_has_time_to_rise(model):
    rising = trial(model, [-9.5, -9.0, -8.0, -7.0, -6.0, *[3.0] * 15], start=-10.0)
    # Once it is 5 standard errors up it is asked a fifth as often, and goes on whatever it loses for a while.
    assert rising.epochs == [1, 2, 3, 4, 5, 6, 10, 15, 20]
    assert len(trial(model, [3.0, 4.0, 6.0, 7.0, 4.9, *[3.0] * 15], start=-10.0).answers) == 8
    assert len(trial(model, [-9.5] * 20, start=-10.0).answers) == 9  # by less than a standard error
    assert len(trial(model, [-10.5] * 20, start=-10.0).answers) == 5


def test_a_trial_asks_now_and_then_and_at_the_end(model):
    assert trial(model, [3.0] * 4, n_epochs=3, max_epochs=10).epochs == [3, 6, 9, 10]
    # Of few groups no gain is clear.
    assert not trial(model, [9.0] * 6, n_groups=6, max_epochs=6).is_clear


def test_early_stopping_restores_before_other_callbacks_end(model):
    ended = {}

    class End(Callback):
        def on_end(self, loop):
            ended.update(state(loop.model))

    fit(model, validation=[2], early_stopping=True, n_iter_no_change=1, max_epochs=20, callbacks=[End()])
    assert equal(ended, state(model))


def test_a_new_early_stopping_has_nothing_to_restore(model):
    assert not EarlyStopping(3).should_stop()
    assert EarlyStopping(3).best_state is None


def test_the_bar_shows_epochs_and_losses(model, capsys):
    fit(model, validation=[1], callbacks=[Progress(True)])
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "epoch" in shown
    assert "loss=" in shown
    assert "validation=" in shown


def test_a_fit_without_held_out_groups_shows_its_loss_alone(model, capsys):
    fit(model, callbacks=[Progress(True)])
    shown = capsys.readouterr().err
    assert "loss=" in shown
    assert "validation" not in shown


def test_an_interrupted_fit_closes_its_bar(model, capsys):
    fail_in_epoch(model, 2, interrupt)
    with pytest.warns(UserWarning, match="interrupted after 1"):
        fit(model, callbacks=[Progress(True)])
    assert "1/3" in capsys.readouterr().err


@pytest.mark.parametrize("verbose", [False, "auto"])
def test_nobody_watching_sees_nothing(model, verbose, capsys):
    fit(model, callbacks=[Progress(verbose)])
    assert capsys.readouterr().err == ""


def test_a_short_fit_shows_no_automatic_bar(model, monkeypatch, capsys):
    monkeypatch.setattr(callbacks, "_is_interactive", lambda: True)
    fit(model, callbacks=[Progress("auto")])
    assert "loss" not in capsys.readouterr().err


def test_without_tqdm(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(callbacks, "_is_interactive", lambda: True)
    assert len(fit(model, callbacks=[Progress("auto")])) == 3
    with pytest.raises(ImportError, match=r"skgroupvae\[progress\]"):
        Progress(True)


def test_given_schedule_is_kept():
    assert resolve_schedule(7, 11, 1000) == (7, 11)
    assert resolve_schedule(7, "auto", 1000)[0] == 7
    assert resolve_schedule("auto", 11, 1000)[1] == 11


@pytest.mark.parametrize("n_groups", [1, 2, 7, 8, 9, 65, 500, 2048, 32_768])
@pytest.mark.parametrize("asked", [None, 800])
def test_auto_schedule_has_as_many_steps_for_any_number_of_groups(n_groups, asked):
    max_epochs, batch_size = resolve_schedule("auto", "auto", n_groups, asked)
    assert min(n_groups, 8) <= batch_size <= min(256, max(8, n_groups // 8))
    # Half an epoch is lost or won by rounding to whole epochs: 64 of 128 steps at the most here.
    n_steps = max_epochs * math.ceil(n_groups / batch_size)
    assert n_steps == pytest.approx(asked or 1250, abs=64)


def test_auto_schedule_is_at_least_one_epoch():
    assert resolve_schedule("auto", "auto", 10_000_000) == (1, 256)


def test_more_groups_never_mean_more_epochs():
    epochs = [resolve_schedule("auto", "auto", 2**power)[0] for power in range(3, 22)]
    assert epochs == sorted(epochs, reverse=True)
