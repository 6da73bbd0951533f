"""The benchmark of costs runs to its end for every subject, at sizes at which its numbers mean nothing."""

import numpy as np
import pytest
import torch

from benchmarks import cost
from ddbm.ranks import distributed

TINY = (
    "--image_size 16 --model_channels 8 --channel_mult 1,2 --num_head_channels 8 --attention_resolutions , "
    "--batch_size 2 --total_steps 40 --save_interval 10 --log_interval 5 --ema_snapshots 10 --ema_interval 2 "
    "--device cpu"
)
CASES = {
    "layers": ["plain", "tied", "regular", "regular_wide"],
    "loader": ["step", "loader, 0 workers", "loader, 1 workers", "loader, 2 workers"],
    "sampling": ["naive loop", "one at a time", "sample"],
    "evaluation": list(cost.METRICS),
    "training": ["bare step", "3 averages", "a snapshot of averages", "a line of the log", "a checkpoint"],
    "loop": ["bare", "loop"],
    "ranks": ["alone", "DDP"],
}


@pytest.fixture
def measured(monkeypatch, capsys):
    """The rows that a subject prints, without measuring memory in other processes."""

    def rows(subject, *argv):
        monkeypatch.setitem(cost.SUBJECTS, subject, cost.SUBJECTS[subject]._replace(memory=False))
        assert cost.main([subject, "--rounds", "2", "--counts", "4", "--flags", TINY, *argv]) == 0
        lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
        return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]

    return rows


@pytest.mark.parametrize("subject", cost.SUBJECTS)
def test_a_row_for_every_case(measured, monkeypatch, subject):
    if subject == "ranks":
        for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1"}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("MASTER_PORT", str(distributed._free_port()))
    try:
        rows = measured(subject)
    finally:
        distributed.stop()
    assert [row["case"] for row in rows] == CASES[subject]
    assert all(float(row["s"]) > 0 for row in rows) and float(rows[0]["/ first"]) == 1
    if subject == "training":
        assert [row["once in"] for row in rows] == ["1", "2", "4", "5", "10"]
    if subject == "layers":
        sizes = {row["case"]: float(row["parameters"].split()[0]) for row in rows}
        assert sizes["plain"] == sizes["tied"] > sizes["regular"]


def test_columns():
    first, times = cost.Case(lambda: None, images=2), np.array([1.0, 2.0, 3.0])
    twice = cost.columns(cost.Case(lambda: None, images=12), first, np.array([3.0, 6.0, 12.0]), times)
    assert twice == {"s": "6", "images/s": "2", "/ first": "2", "from": "1.5", "to": "2"}
    rare = cost.columns(cost.Case(lambda: None, every=10, notes={"once in": "10"}), first, 5 * times, times)
    assert rare == {"s": "10", "/ first": "0.5", "from": "0.5", "to": "0.5", "once in": "10"}


def test_everything_takes_turns():
    order = []
    times = cost.interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == list("ababab") and {name: len(row) for name, row in times.items()} == {"a": 3, "b": 3}


def test_memory_of_one_case(tmp_path):
    config = cost.parse([*cost.preset_flags("histology_vp"), *TINY.split()])[0]
    found = cost.peak("evaluation", config, tmp_path, 12, "mse,psnr,ssim")
    assert float(found["MiB"]) > float(found["with the work"]) >= 0


def test_settings_are_those_of_the_launcher():
    config = cost.parse(cost.preset_flags("histology_vp"))[0]
    assert (config.train.batch_size, config.train.optimizer, config.bridge.schedule) == (16, "adam", "vp")
    assert (config.model.layers, config.model.group, config.data.image_size) == ("tied", "D4", "32")


@pytest.mark.parametrize(
    ("argv", "words"),
    [(["layer"], "did you mean layers"), (["ranks"], "torchrun"), (["layers", "--preset", "my_vp"], "names no size")],
)
def test_mistakes(argv, words):
    with pytest.raises(ValueError, match=words):
        cost.main(argv)
    assert not torch.distributed.is_initialized()
