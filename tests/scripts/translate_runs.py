"""Tiny runs that translate, pictures to be translated, and what comes of them."""

import numpy as np
import tifffile
import torch
from PIL import Image

from ddbm.config import BridgeConfig, Config, DataConfig, ModelConfig
from ddbm.files import checkpoint
from ddbm.model import BridgeModel, Header, ImageShape
from ddbm.settings import to_dict
from scripts import translate as script

RGB = np.random.default_rng(1).integers(0, 256, (21, 27, 3), np.uint8)
PLAIN = ("uint8", "uint8", "png")


def make_run(folder, *, channels=(3, 3), classes=(), data=None, native=(16, 16), stored=PLAIN, step=1, **model):
    """A run with one checkpoint of random weights, for images of 16 x 16."""
    config = Config(
        data=DataConfig(**{"dataset": "paired", "image_size": "16"} | (data or {})),
        bridge=BridgeConfig(schedule="vp"),
        model=ModelConfig(
            **dict(model_channels=8, channel_mult=(1, 2), num_res_blocks=1, num_head_channels=8)
            | dict(attention_resolutions=(8,)) | model
        ),
    )  # fmt: skip
    images = ImageShape(*channels, 16, 16, len(classes))
    torch.manual_seed(step)
    network = BridgeModel(config, images).network
    weights = {name: value + 0.05 * torch.randn_like(value) for name, value in network.state_dict().items()}
    header = Header(config, images, step, classes=classes, native=native, stored=stored)
    checkpoint.write(checkpoint.path_of(folder, step), to_dict(header), {"ema": weights}, {})
    return folder


def put(path, pixels=RGB, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        colours = "minisblack" if pixels.ndim == 2 else "rgb"
        tifffile.imwrite(path, pixels, **({"metadata": None, "photometric": colours} | how))
    else:
        Image.fromarray(pixels).save(path, **how)
    return path


def pictures(folder):
    """Bytes by relative name, but for the record."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in (".lock", script.RECORD)
    }  # fmt: skip


def translated(run, inputs, out, *flags, code=0):
    words = [run, *inputs, "--out", out, "--nfe", 2, "--device", "cpu", *flags]
    assert script.main([str(word) for word in words]) == code
    return pictures(out)


def close(found, wanted):
    """The same pixels but for rounding."""
    assert found.shape == wanted.shape and np.abs(found.astype(int) - wanted.astype(int)).max() <= 1
