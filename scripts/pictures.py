"""Pictures for people: grids of images, and the way from a source to its sample."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from datasets import Batch
from ddbm.files.storage import write_whole
from ddbm.model import BridgeModel, Samples
from evaluations.images import to_bytes

GAP = 2
SHOWN = 8  # states in a strip


def rgb(images: np.ndarray) -> np.ndarray:
    """uint8 `[..., C]` -> `[..., 3]`: grey is repeated, of many channels the first three shown."""
    return images[..., :3] if images.shape[-1] >= 3 else images[..., :1].repeat(3, -1)


def difference(a: np.ndarray, b: np.ndarray, times: int) -> np.ndarray:
    """|a - b| of uint8 images, enlarged; white from 255 on."""
    return (times * np.abs(a.astype(int) - b)).clip(max=255).astype(np.uint8)


def evenly(length: int, count: int) -> list[int]:
    """At most `count` positions from the first to the last."""
    return [int(position) for position in np.linspace(0, length - 1, min(count, length)).round()]


def grid(columns: Sequence[np.ndarray], rows: int = 16, groups: int = 2) -> np.ndarray:
    """One picture, uint8 `[H, W, 3]`: row by row the images of `columns` side by side, in `groups` groups of columns.

    At most `rows * groups` images, evenly chosen; small images are enlarged by a whole factor.
    """
    count = min(len(columns[0]), rows * groups)
    groups = min(groups, count)
    rows = -(-count // groups)
    chosen, empty = evenly(len(columns[0]), count), rows * groups - count
    factor = max(1, round(64 / columns[0].shape[1]))
    large = [rgb(column[chosen]).repeat(factor, 1).repeat(factor, 2) for column in columns]
    spaced = [np.pad(c, ((0, empty), (0, GAP), (0, GAP), (0, 0)), constant_values=255) for c in large]
    lines = np.pad(np.concatenate(spaced, 2), ((0, 0), (0, 0), (0, 4 * GAP), (0, 0)), constant_values=255)
    blocks = lines.reshape(groups, rows * lines.shape[1], *lines.shape[2:])
    return np.concatenate(blocks, 1)[:-GAP, : -5 * GAP]


def sheet(
    columns: Sequence[Sequence[np.ndarray | None]], heads: Sequence[str], rows: Sequence[str] = ()
) -> Image.Image:
    """One picture of columns of images `[H, W, C]`, None for no image, each column read downwards, with names."""
    known = [image for column in columns for image in column if image is not None]
    factor = max(1, round(96 / known[0].shape[0]))
    height, width = (factor * max(image.shape[axis] for image in known) for axis in (0, 1))
    left, top, across, down = 90 if rows else 0, 16, width + GAP, height + GAP
    canvas = Image.new("RGB", (left + len(columns) * across - GAP, top + len(columns[0]) * down - GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for i, row in enumerate(rows):
        draw.text((2, top + i * down + height // 2), row, "black")
    for j, (head, column) in enumerate(zip(heads, columns, strict=True)):
        draw.text((left + j * across, 1), head, "black")
        for i, image in enumerate(column):
            if image is not None:
                large = rgb(image).repeat(factor, 0).repeat(factor, 1)
                canvas.paste(Image.fromarray(large), (left + j * across, top + i * down))
    return canvas


def draw_trajectory(path: Path, model: BridgeModel, samples: Samples, batch: Batch, targets: bool = True) -> None:
    """Writes a strip of pictures of the samples of a batch of one image.

    source | states x_t above the estimates of x_0 made from them | sample | target, without which `targets` is False.
    The noise in a state is far stronger than the image under VE, so it is drawn as `Bridge.shown` gives it.
    """
    way = samples.trajectory
    assert way is not None
    states = to_bytes(way.x[:, 0] if model.codec.digest else model.bridge.shown(way.x[:, 0], way.t))
    estimates = to_bytes(way.D[:, 0])
    source, sample, target = (to_bytes(image)[0] for image in (batch.source, samples.x_0, batch.target))
    times = [f"t = {t:.3g}" for t in way.t.tolist()]
    steps = evenly(len(states), SHOWN)
    columns = [[source, None], *([states[i], estimates[i]] for i in steps), [sample, None], [target, None]]
    heads = ["source", *(times[i] for i in steps), "sample", "target"]
    shown = len(heads) if targets else -1
    strip = sheet(columns[:shown], heads[:shown], ["x_t", "estimate"])
    write_whole(path, lambda file: strip.save(file, "PNG"))
