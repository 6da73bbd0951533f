"""Where pairs are defined beside their alpha: by a file for each, or inside the circle of the image."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddbm.config import DataConfig

from .images import EXTENSIONS, read_image
from .listing import Listing, listed


@lru_cache(maxsize=4)
def circle(height: int, width: int) -> Tensor:
    """Bool [1, height, width], True where the centre of a pixel lies in the inscribed circle."""
    rows, columns = (torch.arange(n) + 0.5 - n / 2 for n in (height, width))
    return (rows[:, None] ** 2 + columns**2 <= (min(height, width) / 2) ** 2)[None]


def masks_of(
    folder: Path, files: Mapping[str, Path], options: DataConfig, seen: dict[Path, Listing]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """The masks of a folder of sources by the names of their pairs, and of its files those that are none.

    They lie in `mask_folder`, beside the folder or in it, or above it in a folder of its name, as source/train and
    mask/train do; without one, in the folder itself, told apart by `mask_suffix`. seen: gets the listing of their
    folder. Raises ValueError where there is no such folder.
    """
    place, name, end = folder, options.mask_folder, options.mask_suffix
    if not (name or end):
        return {}, dict(files)
    if name:
        found = [each for each in _places(folder, name) if each.is_dir()]
        if not found:
            raise ValueError(f"{folder}: no folder of masks {name} beside it or in it; add it, or see --mask_folder")
        place = found[0]
    if place not in seen:
        seen[place] = listed(place)
    masks = {name.removesuffix(end): path for name, path in seen[place].pictures.items() if name.endswith(end)}
    own = set(masks.values())
    return masks, {name: path for name, path in files.items() if path not in own}


def _places(folder: Path, name: str) -> list[Path]:
    above = folder.parent
    return [above.parent / name / folder.name, above / name / folder.name, folder / name, above / name]


def mask_beside(path: Path, options: DataConfig) -> Path | None:
    """The mask of a single image that lies as the sources of a training do; None where there is none."""
    name, end = options.mask_folder, options.mask_suffix
    if not (name or end):
        return None
    stem = path.stem.removesuffix(options.source_suffix) + end
    places = _places(path.parent, name) if name else [path.parent]
    files = (place / f"{stem}{ending}" for place in places for ending in EXTENSIONS)
    return next((file for file in files if file.is_file()), None)


def is_mask(path: Path, options: DataConfig) -> bool:
    """Whether a file among such images is the mask of another."""
    name, end = options.mask_folder, options.mask_suffix
    return path.parent.name == name if name else bool(end) and path.stem.endswith(end)


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Bool [H, W], True where a mask is brighter than half of its brightest pixel, in any channel.

    Raises ValueError, naming the file, for one of another height and width than `size`, and for numbers of labels.
    """
    pixels, alpha, _ = read_image(path)
    if pixels.shape[:2] != size:
        found, wanted = ("x".join(map(str, shape)) for shape in (pixels.shape[:2], size))
        raise ValueError(f"{path}: the mask is {found} pixels but its pair {wanted}; they must have equal size")
    top = pixels.max()
    if 1 < top < 128 and len(np.unique(pixels)) > 2:
        raise ValueError(f"{path}: holds numbers from 0 to {top:g}, as labels are, no mask; make it of 0 and 255")
    inside = (pixels > top / 2).any(-1)
    return inside if alpha is None else inside & alpha
