"""Pictures for people: grids of images."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

GAP = 2


def file_name(index: int, name: str) -> str:
    """A plain word for an image of a data set, of which every image has another; as words they keep the order."""
    return f"{index:06}_" + re.sub(r"[^\w.-]+", "_", name)[-50:]


def rgb(images: np.ndarray) -> np.ndarray:
    """uint8 `[N, H, W, C]` -> `[N, H, W, 3]`: grey is repeated, of many channels the first three shown."""
    channels = images.shape[-1]
    return images[..., :3] if channels >= 3 else images[..., :1].repeat(3, -1)


def difference(a: np.ndarray, b: np.ndarray, times: int) -> np.ndarray:
    """|a - b| of uint8 images, enlarged; white from 255 on."""
    return (times * np.abs(a.astype(int) - b)).clip(max=255).astype(np.uint8)


def evenly(length: int, count: int) -> list[int]:
    """At most `count` positions from the first to the last."""
    chosen: list[int] = np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()
    return chosen


def grid(columns: Sequence[np.ndarray], rows: int = 16, groups: int = 2) -> np.ndarray:
    """One picture, uint8 `[H, W, 3]`: row by row the images of `columns` side by side, in `groups` groups of columns.

    At most `rows * groups` images, evenly chosen; small images are enlarged by a whole factor.
    """
    count = min(len(columns[0]), rows * groups)
    groups = min(groups, count)
    chosen = evenly(len(columns[0]), count)
    factor = max(1, round(64 / columns[0].shape[1]))
    columns = [rgb(c[chosen]).repeat(factor, 1).repeat(factor, 2) for c in columns]
    height, width = columns[0].shape[1:3]
    rows = -(-count // groups)
    block = len(columns) * (width + GAP) + 4 * GAP
    canvas = np.full((rows * (height + GAP) - GAP, groups * block - 5 * GAP, 3), 255, np.uint8)
    for i in range(count):
        top, left = (i % rows) * (height + GAP), (i // rows) * block
        for j, column in enumerate(columns):
            x = left + j * (width + GAP)
            canvas[top : top + height, x : x + width] = column[i]
    return canvas


def strip(columns: Sequence[Sequence[np.ndarray]], names: Sequence[str], rows: Sequence[str]) -> Image.Image:
    """A sheet with a column for every element of a group, given by name."""
    return sheet(columns, [f"g = {name}" for name in names], rows)


def sheet(
    columns: Sequence[Sequence[np.ndarray | None]], heads: Sequence[str], rows: Sequence[str] = ()
) -> Image.Image:
    """One picture of columns of images `[H, W, C]`, None for no image, each column read downwards, with names."""
    known = [image for column in columns for image in column if image is not None]
    factor = max(1, round(96 / known[0].shape[0]))
    height, width = (factor * max(image.shape[axis] for image in known) for axis in (0, 1))
    left, top = 90 if rows else 0, 16
    size = (left + len(columns) * (width + GAP) - GAP, top + len(columns[0]) * (height + GAP) - GAP)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for i, row in enumerate(rows):
        draw.text((2, top + i * (height + GAP) + height // 2), row, "black")
    for j, column in enumerate(columns):
        x = left + j * (width + GAP)
        draw.text((x, 1), heads[j], "black")
        for i, image in enumerate(column):
            if image is not None:
                large = rgb(image[None])[0].repeat(factor, 0).repeat(factor, 1)
                canvas.paste(Image.fromarray(large), (x, top + i * (height + GAP)))
    return canvas
