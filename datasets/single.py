"""Read the source of a translation: of any size and without a target, to the values that training read."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ddbm.config import DataConfig, Header, parse_size
from ddbm.files.canvas import canvas

from .images import level_note
from .large import open_image
from .masks import circle, mask_beside, read_mask
from .paired import Side, fitted


class Source(NamedTuple):
    """image: float32 [C, H, W] in [-1, 1]; mask: bool [1, H, W], True where it is defined, or None; kind: the type of
    the pixels in the file; note: what is odd about their levels, or "".
    """

    image: np.ndarray
    mask: np.ndarray | None
    kind: str
    note: str


def read_source(
    path: Path, options: DataConfig, channels: int, factors: tuple[float, float], folder: Path | None = None,
    trained: tuple[int, int] | None = None,
) -> Source:  # fmt: skip
    """The file as sources of a training with these options are read, its rows and columns resized by `factors`.

    folder: where arrays lie that are larger than memory should be; trained: height and width of the training's images,
    unless the options say them. Raises ValueError, naming the file, for one that
    cannot be read or has another number of channels.
    """
    side = Side("source", options.source_white, options.source_black, options.source_resize)
    levels = bool(side.white or side.black)
    opened = open_image(path, levels)
    pixels: np.ndarray | None = None
    mask: np.ndarray | None = None
    white, top = 0, 0.0
    for rows, columns, picture in opened.parts:
        found = picture.pixels.shape[2]
        if found != channels:
            raise ValueError(f"{path}: has {found} channels, the model takes {channels}: convert the file")
        if pixels is None:
            whole = (opened.height, opened.width, found)
            pixels = picture.pixels if picture.pixels.shape == whole else canvas(whole, folder, picture.pixels.dtype)
        if pixels is not picture.pixels:
            pixels[rows, columns] = picture.pixels
        if picture.mask is not None:
            if mask is None:
                mask = canvas((1, *pixels.shape[:2]), folder, bool)
                mask[:] = True
            mask[0, rows, columns] = picture.mask
        white, top = picture.white, max(top, float(picture.pixels.max()))
    assert pixels is not None
    if file := mask_beside(path, options):
        inside = read_mask(file, pixels.shape[:2])[None]
        mask = inside if mask is None else mask & inside
    note = "" if levels else level_note([np.array([[[top]]], pixels.dtype)], "the model takes {full} as white")
    side = side._replace(white=side.white or white)
    size = tuple(max(1, round(n * factor)) for n, factor in zip(pixels.shape[:2], factors, strict=True))
    seen = None if mask is None else torch.from_numpy(mask)
    everything = (slice(None), slice(None))
    image, seen = fitted(pixels, seen, (size[0], size[1]), everything, side, path, folder)
    trained = trained or parse_size(options.image_size)
    if options.mask == "circle" and size == trained:  # larger images are no such set
        seen = circle(*size) if seen is None else circle(*size) & seen
    if seen is not None:
        image *= seen
    return Source(image.numpy(), None if seen is None else seen.numpy(), pixels.dtype.name, note)


def other_type(source: Source, header: Header) -> str:
    """What to say of a file whose pixels are of another type than those of the training; "" for the same."""
    trained, white = header.stored[0] if header.stored else source.kind, header.config.data.source_white
    if source.kind == trained:
        return ""
    said = f"{white:g} is white, as in training" if white else "white is the full scale of each"
    return f"holds {source.kind}, the model was trained on {trained}: {said}"
