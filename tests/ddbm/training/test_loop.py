"""The loop around the steps: when it saves, looks back and stops, what it keeps, and how it ends."""

import itertools
import json
import os
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ddbm.config import EvalConfig, TrainConfig
from ddbm.files import checkpoint
from ddbm.ranks import distributed
from ddbm.training import averages, logger
from ddbm.training.loop import due, owed, snapshot_due, train
from ddbm.training.stopping import SIGNALS, Stop, Stopped
from tests.ddbm.runs import Looks, batches, poison, validation
from tests.ddbm.runs import trainer as any_trainer


def trainer(eval=None, **settings):
    """One that is fast."""
    plain = dict(channel_mult=(1,), layers="plain", group="none")
    t = any_trainer(model=plain, **dict(tensorboard=False, ema_sigma_rel=()) | settings)
    object.__setattr__(t.config, "eval", EvalConfig(**eval or {}))
    return t


def going_on(run, **settings):
    t = trainer(**settings)
    t.restore(checkpoint.latest(run, print))
    return t


def poisoned(*steps):
    for step, batch in enumerate(batches(), 1):
        yield poison(batch) if step in steps else batch


def saved(run):
    return [step for step, _ in checkpoint.steps(run)]


def logged(run, name):
    return {r["step"]: r[name] for r in logger.read(run / "log.jsonl") if name in r}


def until(step, then, each=lambda: batches()):
    """The batches up to a step, then what `then` does before the next."""
    for number, batch in enumerate(each(), 1):
        if number == step + 1:
            then()
        yield batch


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def fail():
    raise ValueError("3.png: cannot be read")


@pytest.mark.parametrize(
    ("settings", "looks", "validated", "seen", "kept"),
    [  # of 13 steps; the averages are kept 4 times, or as often as they are updated
        (dict(val_interval=5, ema_snapshots=4), 6, [5, 10, 13], [6, 12, 13], [3, 6, 9, 12, 13]),
        (dict(val_interval=20, ema_snapshots=4, ema_interval=2), 0, [13], [], [4, 8, 12]),
        (dict(val_interval=13, ema_snapshots=2, ema_interval=4), 13, [13], [13], [8, 12]),
        (dict(val_interval=4, ema_snapshots=99, ema_interval=6), 20, [4, 8, 12, 13], [13], [6, 12]),
        (dict(val_interval=4, ema_sigma_rel=()), 20, [4, 8, 12, 13], [13], []),
    ],
)
def test_what_is_due_after_which_step(settings, looks, validated, seen, kept):
    done = [SimpleNamespace(step=n, settings=TrainConfig(total_steps=13, **settings)) for n in range(1, 14)]
    assert [t.step for t in done if due(t, looks)[0]] == validated
    assert [t.step for t in done if due(t, looks)[1]] == seen
    assert [t.step for t in done if snapshot_due(t)] == kept


def test_a_whole_run(tmp_path, capsys):
    """Log, checkpoints, averages and looks of 12 steps; the second look of 4 is the best, and its checkpoint kept."""
    settings = dict(keep_checkpoints=1, val_interval=6, log_interval=5, ema_sigma_rel=(0.1,), ema_snapshots=2)
    sent, scores = [], iter([1.0, 3.0, 2.0, 2.5])
    t = trainer(eval=dict(eval_interval=3), tensorboard=True, **settings)
    looks = Looks(scores.__next__)
    assert train(t, batches(), validation, tmp_path, evaluation=looks, sent=lambda: sent.append(saved(tmp_path)))
    assert list(logged(tmp_path, "loss")) == [3, 5, 6, 9, 10, 12] and list(logged(tmp_path, "val_loss")) == [6, 12]
    assert logged(tmp_path, "eval_psnr") == {3: 1, 6: 3, 9: 2, 12: 2.5}
    assert saved(tmp_path) == [6, 12] and checkpoint.best(tmp_path)["checkpoint"] == "step_00000006"
    assert [step for step, _ in averages.snapshots(tmp_path)] == [6, 12] and sent[-1] == [6, 12]
    pictures = sorted((tmp_path / "eval").iterdir())
    assert [p.name for p in pictures] == [f"step_{n:08d}.png" for n in (3, 6, 9, 12)]
    assert np.asarray(Image.open(pictures[0])).shape == (4, 4, 3) and t.model.network.training
    assert 1 <= capsys.readouterr().err.count("training:") <= 2  # the bar does not fill a file
    assert next((tmp_path / "tensorboard").iterdir()).read_bytes().count(b"samples") == 4
    rates = logged(tmp_path, "lr")
    assert rates[12] == t.optimizer.adam.param_groups[0]["lr"] and logged(tmp_path, "memory_gib")[12] > 0.05


def test_nothing_is_saved_while_steps_are_left_out(tmp_path):
    """Steps 4 and 5 are left out: the checkpoint of step 4 is written at step 6; the log counts them."""
    train(trainer(save_interval=4, keep_checkpoints=0), poisoned(4, 5), validation, tmp_path)
    assert saved(tmp_path) == [6, 8, 12]
    assert logged(tmp_path, "skipped_steps") == {4: 1, **dict.fromkeys((5, 6, 8, 10, 12), 2)}
    losses = logged(tmp_path, "loss")
    assert losses[5] is None and all(losses[step] > 0 for step in (4, 6, 8))  # of steps 3 and 4; of 5; ...


@pytest.mark.parametrize(
    ("settings", "bad", "words", "kept"),
    [
        (dict(save_interval=2, max_skipped=4, keep_checkpoints=2), range(6, 13), "last 4 steps before step 9", [2, 4]),
        (dict(total_steps=50, max_skipped=3), range(5, 51), "last 5 steps before step 9", []),
    ],
)
def test_weights_that_exploded_end_training_and_leave_good_checkpoints(tmp_path, settings, bad, words, kept):
    """At the first step that many, or where it is not looked at for the log, at the next multiple."""
    with pytest.raises(ValueError, match=rf"the {words} had no finite .* untouched"):
        train(trainer(**settings, log_interval=100), poisoned(*bad), validation, tmp_path)
    assert saved(tmp_path) == kept


@pytest.mark.parametrize(
    ("data", "problem", "kept"),
    [
        (until(3, terminate), "", [3]),
        (until(4, terminate, lambda: poisoned(4, 5)), "", [6]),  # waits for a step that is not left out
        (until(3, fail), "3.png", [3]),
        (until(3, fail, lambda: poisoned(3)), "3.png", []),
    ],
    ids=["stop", "stop while left out", "unreadable", "unreadable while left out"],
)
def test_what_ends_training_between_two_batches_comes_after_a_checkpoint(tmp_path, data, problem, kept):
    if problem:
        with pytest.raises(ValueError, match=problem):
            train(trainer(log_interval=100), data, validation, tmp_path)
    else:
        assert not train(trainer(), data, validation, tmp_path)
    assert saved(tmp_path) == kept


def test_an_image_that_another_rank_cannot_read_ends_training_alike(tmp_path, monkeypatch):
    """When ranks meet at the end, which a launcher soon kills, the checkpoint is on the disk."""
    asked, met = itertools.count(), []
    monkeypatch.setattr(distributed, "barrier", lambda: met.append(saved(tmp_path)))
    monkeypatch.setattr(distributed, "largest", lambda own: 2 if next(asked) == 3 else own)
    monkeypatch.setattr(distributed, "gather", lambda own: [own, "theirs.png: cannot be read"])
    with pytest.raises(ValueError, match=r"theirs.png"):
        train(trainer(log_interval=100), batches(), validation, tmp_path)
    assert met == [[3]]


def test_a_validation_that_cannot_be_read_or_is_stopped_loses_nothing_and_is_made_up_for(tmp_path):
    settings = dict(val_interval=6)
    with pytest.raises(ValueError, match=r"3.png"):
        train(trainer(**settings), batches(), lambda: until(1, fail), tmp_path)
    assert saved(tmp_path) == [6]
    for _ in range(2):
        t = going_on(tmp_path, **settings)
        assert owed(t, tmp_path) == (True, False)
        assert not train(t, batches(6), lambda: until(1, terminate), tmp_path) and t.step == 6
    assert train(going_on(tmp_path, **settings), batches(6), validation, tmp_path)
    assert list(logged(tmp_path, "val_loss")) == [6, 12]


def test_a_stop_ends_a_look_that_is_made_up_for(tmp_path):
    def interrupted(between):
        between()
        terminate()
        between()
        raise AssertionError("a batch after the stop")

    t = trainer(eval=dict(eval_interval=6))
    network = t.model.network
    assert not train(t, batches(), validation, tmp_path, evaluation=Looks(lambda: 1.0, interrupted))
    assert t.step == 6 and t.model.network is network and owed(t, tmp_path) == (False, True)
    assert train(t, batches(6), validation, tmp_path, evaluation=Looks(lambda: 1.0))
    assert list(logged(tmp_path, "eval_psnr")) == [6, 12] and owed(t, tmp_path) == (False, False)


def test_the_time_limit_saves_and_stops_but_not_before_a_step(tmp_path, monkeypatch):
    t = trainer(time_limit=1.0)
    for step in (1, 2):
        assert not train(t, batches(t.step), validation, tmp_path, begun=time.monotonic() - 1000)
        assert saved(tmp_path)[-1] == step
    clock = SimpleNamespace(monotonic=itertools.count(10, 10).__next__)  # 10 s a look: after a minute, 6 steps
    monkeypatch.setattr("ddbm.training.stopping.time", clock)
    assert not train(t, batches(2), validation, tmp_path, begun=0)
    assert saved(tmp_path)[-1] == 2 + 6


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_once_and_ctrl_c_twice_ends(number):
    old = signal.getsignal(number)
    assert {s.name for s in SIGNALS} == {"SIGINT", "SIGTERM", "SIGUSR1"}
    with Stop() as stop:
        assert not stop
        stop.check()
        os.kill(os.getpid(), number)
        assert stop
        with pytest.raises(Stopped):
            stop.check()
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        else:
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == old


def test_only_scores_of_the_same_settings_are_compared(tmp_path):
    """Values by start: 5 and 4 of 6 images; 3, of 2 images, which replaces them; 2, which does not."""
    t = trainer(total_steps=1)
    for number, (images, value) in enumerate([(6, 5.0), (6, 4.0), (2, 3.0), (2, 2.0)], 1):
        object.__setattr__(t.config, "eval", EvalConfig(eval_interval=1, eval_images=images))
        object.__setattr__(t.settings, "total_steps", number)
        train(t, batches(t.step), validation, tmp_path, evaluation=Looks(lambda value=value: value))
        expected = {1: 5.0, 2: 5.0, 3: 3.0, 4: 3.0}[number]
        assert json.loads((tmp_path / "best.json").read_text())["value"] == expected


def on_two_ranks(monkeypatch, *works):
    """What each work returns, or the exception it raises, as ranks that meet in `largest`."""
    values, meeting, results = {}, threading.Barrier(2, timeout=10), {}

    def largest(value):
        values[threading.get_ident()] = value
        meeting.wait()
        worst = max(values.values())
        meeting.wait()
        return worst

    def run(rank):
        try:
            results[rank] = works[rank]()
        except Stopped as error:
            results[rank] = error

    monkeypatch.setattr(distributed, "largest", largest)
    threads = [threading.Thread(target=run, args=[rank]) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(2)]


def test_ranks_with_unequal_shares_stop_together(monkeypatch):
    def whole():
        return list(Stop().watched("abc"))

    assert on_two_ranks(monkeypatch, whole, lambda: list(Stop().watched("d"))) == [["a", "b", "c"], ["d"]]
    other = Stop()

    def asked():
        for letter in other.watched("d"):
            other.asked = True
            return [letter, *other.watched("")]

    assert all(isinstance(end, Stopped) for end in on_two_ranks(monkeypatch, whole, asked))
