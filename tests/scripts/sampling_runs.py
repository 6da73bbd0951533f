"""A tiny model for tests of sampling, samplings that are killed, and the files that they write."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ddbm.config import BridgeConfig, Config, DataConfig, ModelConfig
from ddbm.files import checkpoint
from ddbm.model import BridgeModel, Header, ImageShape
from ddbm.settings import to_dict
from scripts import sample

ROOT = Path(__file__).parent.parent.parent
COUNT = 14
OURS = "DATA_DIR|WORKDIR|VENV|PYTHON|NGPU|N?NODE|NETWORK|LAUNCHER|IMAGE|BUILD|DOCKER|DDBM_|EVAL_|SAMPLER|NFE|ORDER|ETA"
RANKS = "RANK|WORLD_SIZE|LOCAL_RANK|MASTER_|SLURM|NCCL_|GLOO_|WANDB_|OMP_"


def environment(**extra):
    """That of a process of its own: no settings but these, and a thread."""
    clean = {name: value for name, value in os.environ.items() if not re.match(f"{OURS}|{RANKS}", name)}
    return clean | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | extra


def make_run(folder, *, schedule="vp", data=None, channels=(3, 3), step=1, seed=0, **described):
    """A run with one checkpoint of random weights, which does something at every pixel; described: by its header."""
    config = Config(
        data=DataConfig(**({"dataset": "histology", "image_size": "16"} | (data or {}))),
        bridge=BridgeConfig(schedule=schedule),
        model=ModelConfig(
            model_channels=8, channel_mult=(1, 2), num_res_blocks=1, num_head_channels=8, attention_resolutions=(8,)
        ),
    )
    images = ImageShape(*channels, 16, 16, 0)
    torch.manual_seed(seed)
    model = BridgeModel(config, images)
    weights = {name: value + 0.05 * torch.randn_like(value) for name, value in model.network.state_dict().items()}
    header = to_dict(Header(config, images, step, **described))
    checkpoint.write(checkpoint.path_of(folder, step), header, {"ema": weights}, {})
    return folder


def arrays(folder, kind):
    """The arrays of `samples_*.npz` or `reference_*.npz`."""
    (path,) = folder.glob(f"{kind}_*.npz")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def assert_same_files(folder, other):
    """Both hold the same npz and pictures, byte for byte."""
    names = [{p.relative_to(f) for p in f.rglob("*") if p.suffix in (".npz", ".png")} for f in (folder, other)]
    assert names[0] == names[1] and len(names[0]) >= 3
    for name in names[0]:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def sampled(run, out, *flags, count=COUNT, batch=4):
    own = ["--nfe", 4, "--num_samples", count, "--batch_size", batch, "--out_dir", out, "--device", "cpu"]
    assert sample.main([str(word) for word in (run, *own, *flags)]) == 0
    return out


def assert_close(folder, other):
    """But for rounding, as in batches of another size."""
    own, others = (arrays(each, "samples")["arr_0"].astype(int) for each in (folder, other))
    assert np.abs(own - others).max() <= 1


class Killed(Exception):
    pass


class Counter:
    """Stands for a function; counts images and raises after some calls."""

    def __init__(self, monkeypatch, module, name, calls=10**6):
        self.own, self.left, self.sizes = getattr(module, name), calls, []
        monkeypatch.setattr(module, name, self)

    def __call__(self, model, source, *args, **settings):
        if self.left == 0:
            raise Killed
        self.left -= 1
        self.sizes.append(len(getattr(source, "index", source)))  # of a batch, or of sources
        return self.own(model, source, *args, **settings)


def killed_after(monkeypatch, calls, *command, work="draw", **settings):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        Counter(patch, sample, work, calls)
        sampled(*command, **settings)


def drawn(monkeypatch, *command, **settings):
    """The sizes of the batches that a sampling draws."""
    counter = Counter(monkeypatch, sample, "draw")
    sampled(*command, **settings)
    return counter.sizes
