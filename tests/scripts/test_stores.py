"""Data, work directory and checkpoints in a store: the same run as on a disk, also after being killed anywhere."""

import numpy as np
import pytest
from PIL import Image

from ddbm.files import blobs, checkpoint
from ddbm.files.storage import location
from ddbm.training import logger
from scripts import check_equivariance, reconstruct_ema, sample, train
from tests.ddbm.files.stores import ROOTS
from tests.ddbm.runs import assert_same, contents

SMALL = (
    "--dataset pairs --schedule vp --image_size 8 --model_channels 8 --channel_mult 1,2 --num_res_blocks 1 "
    "--num_head_channels 8 --total_steps 6 --save_interval 2 --val_interval 3 --log_interval 1 --batch_size 2 "
    "--keep_checkpoints 2 --optimizer adam --ema_sigma_rel 0.1 --ema_snapshots 3 --ema_interval 1 --device cpu"
).split()


@pytest.fixture(params=ROOTS)
def root(request, server):
    return ROOTS[request.param]


def pairs(folder):
    """Twelve pairs in two folders, written as any path can be."""
    for side in ("A", "B"):
        for number in range(12):
            with ((folder / "train" / side).parent / side / f"{number}.png").open("wb") as file:
                pixels = np.random.default_rng((number, ord(side))).integers(0, 255, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(file, "PNG")
    return str(folder)


def trained(data, run, *flags):
    return train.main([*SMALL, "--data_dir", data, "--run_dir", str(run), *flags])


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    for side in ("A", "B"):
        (folder / "data" / "train" / side).mkdir(parents=True)
    assert trained(pairs(folder / "data"), folder / "run") == 0
    return folder / "run"


def assert_same_run(run, expected):
    assert [step for step, _ in checkpoint.steps(run)] == [step for step, _ in checkpoint.steps(expected)]
    own, other = (contents(checkpoint.latest(r, warn=pytest.fail)) for r in (run, expected))
    assert_same(own[:2], other[:2])
    logs = [
        [(line["step"], line["loss"]) for line in logger.read(r / "log.jsonl") if "loss" in line]
        for r in (run, expected)
    ]
    assert logs[0] == logs[1]
    snapshots = [sorted(p.name for p in (r / "ema").iterdir()) for r in (run, expected)]
    assert snapshots[0] == snapshots[1]


def test_the_whole_road(root, server, expected, capsys):
    data, run = pairs(location(f"{root}/data")), location(f"{root}/work/run")
    assert trained(data, run) == 0 and trained(data, run) == 0
    assert "is finished" in capsys.readouterr().out
    assert_same_run(run, expected)
    assert any("tensorboard/events" in name for name in server.objects) and "work/run/run.json" in server.objects
    assert reconstruct_ema.main([str(run), "--sigma_rel", "0.1"]) == 0
    assert sample.main([str(run), "--sampler", "dbim", "--nfe", "2", "--num_samples", "1"]) == 0
    assert check_equivariance.main([str(run), "--group", "H", "--nfe", "2"]) in (0, 1)
    assert trained(data, run, "--restart", "--total_steps", "2") == 0
    assert checkpoint.latest(location(f"{root}/work/run.old1"), warn=pytest.fail).name == "step_00000006"
    assert not [name for name in server.objects if "/." in name and not name.endswith("/.lock")]


class Killed(BaseException):
    """Like SIGKILL, nothing handles it."""


def test_killed_at_any_request(server, expected, monkeypatch, capsys):
    """Every few requests the run ends without a word; the same command goes on."""
    data, run = pairs(location("gs://bucket/data")), location("gs://bucket/run")
    kills, request = 0, blobs.Pool.request

    def until(limit):
        left = iter(range(limit))

        def counted(self, *args, **how):
            if next(left, None) is None:
                raise Killed
            return request(self, *args, **how)

        return counted

    monkeypatch.setattr(checkpoint.Writer, "submit", lambda self, write: write())
    for limit in (150, 170, 190, 210, 230, 250, 270, 290, 310, 330, 350, 10_000):
        monkeypatch.setattr(blobs.Pool, "request", until(limit))
        try:
            assert trained(data, run) == 0
            break
        except Killed:
            kills += 1
    assert kills > 2
    assert_same_run(run, expected)
