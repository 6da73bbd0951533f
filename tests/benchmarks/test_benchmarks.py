"""The benchmarks run to their end, at sizes at which their numbers mean nothing."""

import os
import re
from dataclasses import replace

import pytest
import torch

from benchmarks import loader, training
from ddbm.ranks import distributed

INTERVALS = {"save_interval": 10, "log_interval": 5, "ema_snapshots": 10, "ema_interval": 2}
EVERY = {"averages": 2, "snapshots": 4, "log": 5, "checkpoints": 10, "DDP": 1}
TINY = {"model_channels": 8, "channel_mult": (1, 2), "num_head_channels": 8, "attention_resolutions": ()}


@pytest.fixture
def tiny(monkeypatch):
    """Presets with a tiny network, one thread, and the arguments of the command line."""
    real = training.preset

    def preset(dataset):
        config = real(dataset)
        size = "16" if dataset == "histology" else "32"
        train = replace(config.train, batch_size=2, total_steps=40, **INTERVALS)
        return replace(
            config, data=replace(config.data, image_size=size), model=replace(config.model, **TINY), train=train
        )

    threads, environment = torch.get_num_threads(), dict(os.environ)
    torch.set_num_threads(1)
    for module in (training, loader):
        monkeypatch.setattr(module, "preset", preset)
    yield lambda *argv: monkeypatch.setattr("sys.argv", ["benchmark", *argv])
    distributed.stop()
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_settings_are_those_of_the_launcher():
    config = training.preset("histology")
    assert (config.train.batch_size, config.train.optimizer, config.bridge.schedule) == (16, "adam", "vp")
    assert (config.model.layers, config.model.group, config.data.image_size) == ("tied", "D4", "32")
    assert training.preset("ct_pet").model.model_channels == 128


def test_training(tiny, capsys):
    tiny("--rounds", "4", "--steps", "20")
    training.main()
    out = capsys.readouterr().out
    table = {row[0].split(":")[0]: row[1:] for row in rows(out)[2:]}
    assert list(table) == ["bare step", *EVERY, "sum", "all together, by the loop, 20 steps"]
    assert {name: int(table[name][1]) for name in EVERY} == EVERY
    for cells in table.values():
        assert re.fullmatch(r"-?[\d.]+ ?%", cells[-1])
    for name, every in EVERY.items():
        assert float(table[name][2]) == pytest.approx(float(table[name][0]) / every, abs=0.06)
    assert float(table["sum"][2]) == pytest.approx(sum(float(table[name][2]) for name in EVERY), abs=0.03)
    assert re.search(r"two ranks of 1 threads, 1 images each: [\d.]+ s a step", out)
    assert not torch.distributed.is_initialized() and distributed.size() == 1


def test_loader(tiny, capsys):
    tiny("--rounds", "1", "--batches", "2", "--pairs", "12")
    loader.main()
    table = rows(capsys.readouterr().out)[2:]
    assert [row[:2] for row in table] == [[name, str(n)] for name in ("histology", "ct_pet") for n in loader.WORKERS]
    for row in table:
        rate, step, ratio = (float(cell) for cell in row[2:])
        assert rate > 0 and step > 0 and ratio == pytest.approx(rate / step, rel=0.1)
