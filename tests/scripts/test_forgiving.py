"""Training on pairs that are damaged, moved and out of place: it goes on the same, and says what it passed over."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import open_data
from datasets.skipping import LIST
from ddbm.config import Config, DataConfig, ModelConfig, TrainConfig
from ddbm.files import checkpoint
from ddbm.model import BridgeModel, ImageShape
from ddbm.symmetry.pairs import Batch
from ddbm.training.objectives import objective_of
from scripts import train

TINY = (
    "--dataset mine --image_size 16 --model_channels 8 --num_head_channels 8 --channel_mult 1,2 --batch_size 2 "
    "--attention_resolutions 8 --num_res_blocks 1 --optimizer adam --device cpu --augment D4 --augment_angle 180 "
    "--augment_scale 0.1 --augment_shift 1 --align_tolerance 1 --mask circle --save_interval 2 --val_interval 2 "
    "--degrade noise:20 --ema_sigma_rel= --tensorboard false --eval_interval 2 --eval_images 2 --eval_nfe 2"
).split()


@pytest.fixture
def pairs(tmp_path):
    for part, count in (("train", 5), ("val", 3)):
        for side in ("source", "target"):
            (tmp_path / "data" / part / side).mkdir(parents=True)
            for n in range(count):
                pixels = np.random.default_rng((n, count)).integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / side / f"{n}.png")
    for name in ("train/target/3.png", "val/source/0.png"):
        (tmp_path / "data" / name).write_bytes(b"broken")
    return tmp_path / "data"


def trained(pairs, run, steps, *more):
    flags = ["--data_dir", pairs, "--run_dir", run, "--total_steps", steps, *more]
    return train.main([*TINY, *map(str, flags)])


def test_a_run_that_stops_and_goes_on_is_the_same(pairs, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"val/source/0\.png: cannot be read"):
        trained(pairs, tmp_path / "none", 4)
    assert trained(pairs, tmp_path / "whole", 6, "--skip_unreadable", "true") == 0
    for steps in (2, 6):
        assert trained(pairs, tmp_path / "parts", steps, "--skip_unreadable", "true") == 0
    weights = [checkpoint.read_weights(checkpoint.path_of(tmp_path / run, 6), "model") for run in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for run in ("whole", "parts"):
        listed = (tmp_path / run / LIST).read_text().splitlines()
        assert sorted(line.split(": ")[0].rsplit("/data/")[1] for line in listed) == [
            "train/target/3.png", "val/source/0.png"
        ]  # fmt: skip
    assert "warning: passed over (1 so far): " in capsys.readouterr().err


def test_tolerance_is_of_the_training_alone():
    """Of a target that is moved the training's loss is that of the least of the shifts, validation's of none."""
    small = ModelConfig(model_channels=8, num_head_channels=8, channel_mult=(1,), num_res_blocks=1)
    shape = ImageShape(1, 1, 8, 8, 0)
    found = []
    for tolerance in (0, 1):
        config = Config(model=small, train=TrainConfig(align_tolerance=tolerance))
        torch.manual_seed(0)
        model = BridgeModel(config, shape)
        objective = objective_of(config.train, model)
        images = torch.rand(2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        batch = Batch(*images, torch.arange(2), None, None)
        network = torch.nn.Identity()
        network.forward = lambda x, *more, **named: x[:, :1]
        draw = objective.draw(model, batch, 2, slice(0, 2))
        found.append((objective(model, network, {}, draw), objective.validation(model, network, batch)))
    (strict, validation), (least, same) = found
    assert torch.equal(validation, same) and (least <= strict).all() and (least < strict).any()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--augment_scale", "1"], "--augment_scale must be below 1"),
        (["--augment_angle=-3"], "--augment_angle must be 0 or more"),
        (["--align_tolerance", "1.5"], "expected int, found '1.5'"),
        (["--mask", "square"], "unknown mask 'square'"),
        (["--skip_unreadable", "true", "--augment_shift", "8"], "that moves most of an image of 16x16"),
        (["--skip_unreadable", "true", "--align_tolerance", "8"], "that moves most of an image of 16x16 pixels out of"),
        (["--degrade", "fog:1"], "unknown degradation 'fog'"),
    ],
)
def test_mistakes(pairs, tmp_path, flags, said):
    with pytest.raises(ValueError, match=said):
        trained(pairs, tmp_path / "run", 1, *flags)


def test_latents_are_neither_moved_nor_out_of_place(monkeypatch):
    data = open_data("histology", "val", image_size="16")
    for flags in ({"augment_angle": 1}, {"augment_scale": 0.5}, {"augment_shift": 1}, {}):
        settings, degrade = TrainConfig(packed="x", **flags), "" if flags else "noise:1"
        with pytest.raises(
            ValueError, match="--packed x holds pairs as they lie: leave --augment_angle, _scale, _shift and"
        ):
            train.open_packed(Config(DataConfig(degrade=degrade), train=settings), "abc", data)
    monkeypatch.setattr(train, "open_codec", lambda name: SimpleNamespace(digest="abc"))
    with pytest.raises(ValueError, match="--align_tolerance counts pixels, and --codec has none"):
        train.build(Config(train=TrainConfig(align_tolerance=1)), None, data, data, torch.device("cpu"))
