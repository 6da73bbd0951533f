"""What holds for every recipe: the reader finds the pairs, a bridge trains on them, and twice is the same."""

import shlex
from itertools import islice

import numpy as np
import pytest
import torch

from datasets import open_data, train_batches
from datasets.prepare.__main__ import main
from datasets.prepare.table import RECIPES
from ddbm.config import BridgeConfig, Config, DataConfig, ModelConfig, TrainConfig
from ddbm.model import BridgeModel, ImageShape
from ddbm.settings import from_flags
from ddbm.training.objectives import objective_of
from ddbm.training.trainer import Trainer
from tests.datasets.prepare.raws import RAWS


@pytest.mark.parametrize("name", RECIPES)
def test_a_bridge_trains_on_it(name, tmp_path, capsys, bytes_below):
    write, flags = RAWS[name]
    source = write(tmp_path)
    for out in ("out", "again"):
        assert main([name, "--source", str(source), "--out", str(tmp_path / out), *flags.split()]) == 0
    assert bytes_below(tmp_path / "out") == bytes_below(tmp_path / "again")
    said = capsys.readouterr().out.splitlines()[-1].replace("again", "out")

    words = shlex.split(said)
    assert words[:3] == [f"DATA_DIR={tmp_path / 'out'}", "bash", "train_ddbm.sh"] and words[4] == "i2sb"
    known, _ = from_flags(Config, words[5:])
    settings = RECIPES[name].flags(from_flags(RECIPES[name].settings, flags.split())[0])
    data = open_data("prepared", "train", data_dir=str(tmp_path / "out"), **settings | {"image_size": "8"})
    if words[3] not in ("e2h", "diode"):  # whose presets say it
        assert {key: getattr(known.data, key) for key in settings} == settings
    config = Config(
        data=DataConfig(dataset="prepared"), bridge=BridgeConfig(schedule="vp"),
        model=ModelConfig(model_channels=8, channel_mult=(1, 2), num_res_blocks=1, num_head_channels=8),
        train=TrainConfig(total_steps=2, batch_size=2, optimizer="adam"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = BridgeModel(config, ImageShape(data.target_channels, data.source_channels, 8, 8, 0))
    before = [p.clone() for p in model.parameters()]
    trainer = Trainer(config, model, objective_of(config.train, model), torch.device("cpu"))
    losses = [float(trainer.train_step(batch)) for batch in islice(train_batches(data, batch_size=2, seed=0), 2)]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert np.isfinite(losses).all()
