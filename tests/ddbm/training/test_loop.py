"""The loop around the steps: when it saves, when it stops, what it keeps."""

import itertools
import json
import os
import signal
import threading
import time

import pytest

from ddbm.config import EvalConfig
from ddbm.files import checkpoint
from ddbm.ranks import distributed
from ddbm.training import averages, logger
from ddbm.training.loop import owed, train
from ddbm.training.stopping import Stop, Stopped
from tests.ddbm.runs import Looks, batches, poison, trainer, validation


def poisoned(*steps):
    for step, batch in enumerate(batches(), 1):
        yield poison(batch) if step in steps else batch


def saved(run):
    return [step for step, _ in checkpoint.steps(run)]


def test_nothing_is_saved_while_steps_are_left_out(tmp_path):
    """Steps 4 and 5 are left out: the checkpoint of step 4 is written at step 6."""
    train(trainer(save_interval=4, keep_checkpoints=0), poisoned(4, 5), validation, tmp_path)
    assert saved(tmp_path) == [6, 8, 12]


def test_weights_that_exploded_do_not_push_out_good_checkpoints(tmp_path):
    t = trainer(save_interval=2, max_skipped=4, keep_checkpoints=2, log_interval=100)
    with pytest.raises(ValueError, match=r"the last 4 steps before step 9 .* untouched"):
        train(t, poisoned(*range(6, 13)), validation, tmp_path)
    assert saved(tmp_path) == [2, 4]


def test_steps_left_out_are_seen_without_the_log(tmp_path):
    t = trainer(total_steps=50, max_skipped=3, log_interval=100)
    with pytest.raises(ValueError, match="the last 5 steps before step 9"):
        train(t, poisoned(*range(5, 51)), validation, tmp_path)


def test_a_stop_while_steps_are_left_out_waits_for_one_that_is_not(tmp_path):
    def interrupted():
        for step, batch in enumerate(poisoned(4, 5), 1):
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    assert not train(trainer(), interrupted(), validation, tmp_path)
    assert saved(tmp_path) == [6]


def test_a_stop_ends_a_validation_that_is_made_up_for(tmp_path):
    read = []

    def interrupted():
        for batch in itertools.islice(batches(1000), 50):
            read.append(batch)
            os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    first = trainer(val_interval=6)
    assert not train(first, batches(), interrupted, tmp_path)
    assert first.step == 6 and len(read) <= 2 and saved(tmp_path) == [6]
    second = trainer(val_interval=6)
    second.restore(checkpoint.latest(tmp_path, print))
    assert owed(second, tmp_path) == (True, False)
    assert train(second, batches(6), validation, tmp_path)
    assert [r["step"] for r in logger.read(tmp_path / "log.jsonl") if "val_loss" in r] == [6, 12]


def looking(t, **settings):
    object.__setattr__(t.config, "eval", EvalConfig(**settings))
    return t


def test_a_stop_ends_a_look_that_is_made_up_for(tmp_path):
    def interrupted(between):
        between()
        os.kill(os.getpid(), signal.SIGTERM)
        between()
        raise AssertionError("a batch after the stop")

    first = looking(trainer(), eval_interval=6)
    network = first.model.network
    assert not train(first, batches(), validation, tmp_path, evaluation=Looks(lambda: 1.0, interrupted))
    assert first.step == 6 and first.model.network is network
    assert owed(first, tmp_path) == (False, True)
    assert train(first, batches(6), validation, tmp_path, evaluation=Looks(lambda: 1.0))
    assert [r["step"] for r in logger.read(tmp_path / "log.jsonl") if "eval_psnr" in r] == [6, 12]


def test_a_limit_that_is_over_at_the_start_still_does_a_step(tmp_path):
    t = trainer(time_limit=1.0)
    for step in (1, 2):
        assert not train(t, batches(t.step), validation, tmp_path, begun=time.monotonic() - 1000)
        assert saved(tmp_path)[-1] == step


@pytest.mark.parametrize(("interval", "steps"), [(1, [4, 8, 12, 13]), (5, [5, 10])])
def test_the_last_averages_are_kept(tmp_path, interval, steps):
    t = trainer(total_steps=13, ema_snapshots=3, ema_interval=interval)
    train(t, batches(), validation, tmp_path)
    assert [step for step, _ in averages.snapshots(tmp_path)] == steps


def test_only_scores_of_the_same_settings_are_compared(tmp_path):
    """Values by start: 5 and 4 of 6 images; 3, of 2 images, which replaces them; 2, which does not."""
    for number, (images, value) in enumerate([(6, 5.0), (6, 4.0), (2, 3.0), (2, 2.0)], 1):
        t = looking(trainer(total_steps=2 * number), eval_interval=2, eval_images=images)
        if newest := checkpoint.latest(tmp_path, print):
            t.restore(newest)
        train(t, batches(t.step), validation, tmp_path, evaluation=Looks(lambda value=value: value))
        expected = {1: 5.0, 2: 5.0, 3: 3.0, 4: 3.0}[number]
        assert json.loads((tmp_path / "best.json").read_text())["value"] == expected


def test_the_bar_does_not_fill_a_file(tmp_path, capsys):
    train(trainer(log_interval=1), batches(), validation, tmp_path)
    assert 1 <= capsys.readouterr().err.count("training:") <= 2


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
    assert on_two_ranks(
        monkeypatch, lambda: list(Stop().watched("abc")), lambda: list(Stop().watched("d"))
    ) == [["a", "b", "c"], ["d"]]  # fmt: skip
    other = Stop()

    def asked():
        for letter in other.watched("d"):
            other.asked = True
            return [letter, *other.watched("")]

    assert all(
        isinstance(end, Stopped) for end in on_two_ranks(monkeypatch, lambda: list(Stop().watched("abc")), asked)
    )
