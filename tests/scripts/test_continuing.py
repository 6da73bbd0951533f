"""Which checkpoint a run goes on with: its own newest, never one of another run, and only on its own data."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from scripts import train
from tests.ddbm.runs import refused

TINY = (
    "--dataset mine --schedule vp --model_channels 8 --num_head_channels 8 --channel_mult 1,2 --num_res_blocks 1 "
    "--attention_resolutions 4 --optimizer adam --batch_size 2 --total_steps 2 --tensorboard false --device cpu"
).split()


@pytest.fixture
def pairs(tmp_path):
    for side in ("source", "target"):
        (tmp_path / "data" / side).mkdir(parents=True)
        for i in range(4):
            paint(tmp_path / "data" / side / f"{i}.png", 100)
    return tmp_path / "data"


def paint(path, value):
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def flags(data, run, *more):
    return [*TINY, "--data_dir", str(data), "--run_dir", str(run), *map(str, more)]


def trained(argv):
    assert train.main(argv) == 0


def test_a_run_that_began_from_a_checkpoint_goes_on_by_the_same_command(tmp_path, pairs, capsys):
    """Also when that checkpoint has moved, or is gone."""
    trained(flags(pairs, tmp_path / "source"))
    stale = tmp_path / "run" / "ema" / "step_00000001.safetensors"  # of a start that never came to a checkpoint
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")

    rates = ("--ema_rate", "0.5,0.9999")  # a new run may have others than the checkpoint
    trained(flags(pairs, tmp_path / "run", "--resume", tmp_path / "source", *rates))
    assert "nothing to train, " in capsys.readouterr().out

    def further(steps, path):
        trained(flags(pairs, tmp_path / "run", "--resume", path, "--total_steps", steps, *rates))

    further(3, tmp_path / "source")
    assert not stale.exists()
    further(4, tmp_path / "source" / "checkpoints" / "step_00000002")
    (tmp_path / "source").rename(tmp_path / "moved")
    further(5, tmp_path / "source")
    newest = tmp_path / "run" / "checkpoints" / "step_00000005"
    newest.rename(newest.with_name(".step_00000005.old"))  # as a kill leaves it that comes while it is written again
    further(6, tmp_path / "moved")
    said = capsys.readouterr().out
    for step in (3, 4, 5):
        assert f"continuing {tmp_path / 'run' / 'checkpoints' / f'step_{step:08d}'}" in said


def test_two_runs_are_not_mixed(tmp_path, pairs):
    source, other, run = (tmp_path / name for name in ("source", "other", "run"))
    trained(flags(pairs, source))
    trained(flags(pairs, other, "--total_steps", 4))
    narrow = flags(pairs, tmp_path / "narrow", "--begin_from", source, "--model_channels", 16)
    refused(train.main, narrow, "another network (model_channels: 8 -> 16): use its settings")
    trained(flags(pairs, run, "--resume", source, "--total_steps", 3))
    before = sorted(run.rglob("*"))
    more = flags(pairs, run, "--total_steps", 5)
    refused(train.main, [*more, "--resume", other], f"began from {source}", str(other), "another --run_dir")
    refused(train.main, flags(pairs, other, "--resume", run), "of its own", str(run), "another --run_dir")
    assert before == sorted(run.rglob("*"))
    (run / "checkpoints" / "step_00000003" / "ema.safetensors").write_bytes(b"")
    refused(train.main, [*more, "--resume", other], "another --run_dir")  # nor over what is damaged


def test_copies_of_own_checkpoints_are_compared_by_their_step(tmp_path, pairs, capsys):
    run = tmp_path / "run"
    trained(flags(pairs, run, "--save_interval", 1, "--total_steps", 3))
    shutil.copytree(run / "checkpoints" / "step_00000002", run / "bk" / "zbest")
    (run / "checkpoints" / "step_00000003").rename(run / "bk" / "best")
    more = flags(pairs, run, "--total_steps", 4, "--resume")
    trained([*more, str(run / "bk" / "best")])
    assert f"continuing {run / 'bk' / 'best'}" in capsys.readouterr().out
    assert [start["step"] for start in json.loads((run / "run.json").read_text())["starts"]] == [0, 3]
    refused(train.main, [*more, str(run / "bk" / "zbest")], "already has step_00000004", "zbest")


def test_other_data_are_refused_unless_the_run_is_new(tmp_path, pairs, capsys):
    """Fewer pairs, other names, and other pictures under the same names; a copy elsewhere is the same data."""
    run = tmp_path / "run"
    trained(flags(pairs, run))
    fewer, renamed, painted, copy = (
        shutil.copytree(pairs, tmp_path / name) for name in ("fewer", "renamed", "painted", "copy")
    )
    for side in ("source", "target"):
        (fewer / side / "3.png").unlink()
        (renamed / side / "0.png").rename(renamed / side / "7.png")
    for i in range(4):
        paint(painted / "target" / f"{i}.png", 200)
        paint(painted / "source" / f"{i}.png", 0)
    means = ("train_target_mean: -0.21", "train_source_mean: -0.21")
    for data, *words in ((fewer, "train_pairs: 3 -> 2"), (renamed, "train_names: "), (painted, *means)):
        refused(train.main, flags(data, run, "--total_steps", 3), "other data", *words, "another --run_dir")
    trained(flags(copy, run, "--total_steps", 3))
    for steps in (4, 5):
        trained(flags(painted, tmp_path / "new", "--resume", run, "--dataset", "painted", "--total_steps", steps))
    said = capsys.readouterr().out
    assert "dataset: mine -> painted" in said and f"continuing {tmp_path / 'new' / 'checkpoints'}" in said
