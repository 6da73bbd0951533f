"""Data, work directory and checkpoints in a store: the same run as on a disk, also after being killed anywhere."""

from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from ddbm.files import checkpoint, stores
from ddbm.training import logger
from scripts import check_equivariance, reconstruct_ema, sample, train
from tests.ddbm.files.stores import ROOTS, Killed, killed_after
from tests.ddbm.runs import assert_same, contents

SMALL = (
    "--dataset pairs --schedule vp --image_size 8 --model_channels 8 --channel_mult 1,2 --num_res_blocks 1 "
    "--num_head_channels 8 --total_steps 6 --save_interval 2 --val_interval 3 --log_interval 1 --batch_size 2 "
    "--keep_checkpoints 2 --optimizer adam --ema_sigma_rel 0.1 --ema_snapshots 3 --ema_interval 1 --device cpu"
).split()


def pairs(place):
    """Twelve pairs in two folders."""
    mirror = stores.Mirror(place)
    for side in ("A", "B"):
        (mirror.path / "train" / side).mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng((number, ord(side))).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(mirror.path / "train" / side / f"{number}.png")
    mirror.send()
    return place


def trained(data, run, *flags):
    return train.main([*SMALL, "--data_dir", data, "--run_dir", str(run), *flags])


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    assert trained(pairs(f"{folder}/data"), folder / "run") == 0
    return folder / "run"


def assert_same_run(address, expected):
    """What a store holds is fetched into another folder and compared."""
    run = stores.fetched(address)
    own, other = ([step for step, _ in checkpoint.steps(r)] for r in (run, expected))
    assert own[-len(other) :] == other  # an older one is left where a kill came before its deletion
    own, other = (contents(checkpoint.latest(r, warn=pytest.fail)) for r in (run, expected))
    assert_same(own[:2], other[:2])
    logs = [[(r["step"], r["loss"]) for r in logger.read(p / "log.jsonl") if "loss" in r] for p in (run, expected)]
    assert logs[0] == logs[1]
    snapshots = [sorted(p.name for p in (r / "ema").iterdir()) for r in (run, expected)]
    assert snapshots[0] == snapshots[1]


@pytest.mark.parametrize("kind", ROOTS)
def test_the_whole_road(kind, server, expected, capsys):
    data, run = pairs(f"{ROOTS[kind]}/data"), f"{ROOTS[kind]}/work/run"
    assert trained(data, run) == 0 and trained(data, run) == 0
    assert f"{run} is finished" in capsys.readouterr().out
    assert_same_run(run, expected)
    assert any("tensorboard/events" in name for name in server.objects) and "work/run/run.json" in server.objects
    assert reconstruct_ema.main([run, "--sigma_rel", "0.1"]) == 0
    assert "work/run/reconstructed/step_00000006_sigma_0.100/manifest.json" in server.objects
    assert sample.main([run, "--sampler", "dbim", "--nfe", "2", "--num_samples", "1"]) == 0
    assert any("work/run/samples/" in name and name.endswith("nfe2.npz") for name in server.objects)
    assert check_equivariance.main([run, "--group", "H", "--nfe", "2"]) in (0, 1)
    assert "work/run/equivariance_H.json" in server.objects
    with pytest.raises(ValueError, match="moves a local run aside"):
        trained(data, run, "--restart", "--total_steps", "2")
    other = f"{ROOTS[kind]}/other"
    assert trained(data, other, "--resume", run, "--total_steps", "8") == 0
    assert checkpoint.find(other, warn=pytest.fail).name == "step_00000008"
    assert not [name for name in server.objects if "/." in name]


def test_killed_at_any_request(server, expected, monkeypatch):
    """Every few requests the run ends without a word; the same command goes on."""
    data, run = pairs("gs://bucket/data"), "gs://bucket/run"
    monkeypatch.setattr(checkpoint.Writer, "submit", lambda self, write=lambda: None: (write(), self._then()))
    limits = iter((70, 45, 50, 55, 60, 65, 70, 75, 80, 90, 100, 110, 120, 10_000))
    kills, done = -1, False
    while not done:
        kills += 1
        with suppress(Killed), killed_after(next(limits), monkeypatch):
            assert trained(data, run) == 0
            done = True
    assert kills > 2
    assert_same_run(run, expected)
