"""Shows what training makes of its pairs: `python -m scripts.show_augmentation OUT.png --dataset D [--flag value ...]`.

The flags are those of training. Every row has its first samples, after one more step: read, with `--degrade`, and
fitted; `--augment`; the moves of `--augment_angle`, `_scale` and `_shift`. White is masked.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from datasets import Augmentation, Item
from datasets.loader import TrainSamples
from ddbm.config import Config
from ddbm.files.storage import write_whole
from ddbm.symmetry.groups import GROUPS
from evaluations.images import to_bytes

from . import common, training
from .common import open_split, run
from .pictures import rgb

SAMPLES, GAP, HEAD, WIDEST = 3, 4, 14, 480  # pixels
OUT = {"out": "the picture to write, a PNG"}


def steps_of(config: Config) -> list[str]:
    """What is done, a name for each row."""
    settings, data = config.train, config.data
    moves = {name: getattr(settings, f"augment_{name}") for name in ("angle", "scale", "shift")}
    said = [f"--augment_{name} {value:g}" for name, value in moves.items() if value]
    read = [f"--degrade {data.degrade}"] if data.degrade else []
    read += [f"--fit {data.fit}", *(["--mask circle"] if data.mask == "circle" else [])]
    return [f"read, {', '.join(read)}", f"--augment {settings.augment}", ", ".join(said) or "no moves"]


def views(item: Item) -> list[np.ndarray]:
    """Source and target, uint8 [H, W, 3], white outside of the mask; of other than 3 channels the first, in grey."""
    hidden = np.zeros(item.target.shape[1:], bool) if item.mask is None else ~item.mask[0].numpy()
    return [np.where(hidden[..., None], 255, rgb(to_bytes(image[None]))[0]) for image in (item.source, item.target)]


def main(argv: Sequence[str]) -> int:
    config, extra = training.parse(Config, argv, common.TABLES, OUT)
    out, settings = Path(extra.out), config.train
    if out.suffix.lower() != ".png" or not out.absolute().parent.is_dir():
        raise ValueError(f"'{out}': expected the name of a PNG file in a folder that exists")
    data = open_split(config.data, "train")
    GROUPS[settings.augment].check_size(*data.size)
    (height, width), names = data.size, steps_of(config)
    samples = TrainSamples(data, settings.seed, Augmentation.of(settings, config.data), config.data.skip_unreadable)
    zoom = -(-WIDEST // (2 * SAMPLES * width))  # so that what is said has room
    height, width = zoom * height, zoom * width
    block = 2 * width + GAP
    sheet = Image.new("RGB", (SAMPLES * block - GAP, len(names) * (height + HEAD)), "white")
    for column in range(SAMPLES):
        first = samples[column]
        if isinstance(first, ValueError):
            raise first
        for row, step in enumerate(samples.steps(column, first.number)):
            for k, view in enumerate(views(step)):
                picture = Image.fromarray(view.repeat(zoom, 0).repeat(zoom, 1))
                sheet.paste(picture, (column * block + k * width, row * (height + HEAD) + HEAD))
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        draw.text((2, row * (height + HEAD) + 1), f"{row + 1}. {name}: source, target", fill="black")
    write_whole(out, lambda file: sheet.save(file, "PNG"))
    print(out)
    return 0


if __name__ == "__main__":
    run(main)
