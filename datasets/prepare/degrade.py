"""Any folder of pictures, and the same made worse."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ddbm.settings import setting

from ..degradations import degraded, eight_bits, parsed
from ..images import Picture, decoded, told
from .raw import data_of, names_of, pictures
from .recipe import OFFICIAL, Job, Made, Pair, Plan, Recipe, Split, completed, grouping, official, rng_of
from .resizing import covering

ABOUT = """any pictures (ImageNet, LSUN, AFHQ, your own), made worse → as they were

From a folder, zip or tar (.gz, .bz2, .xz) of pictures of 8 bits, under the terms of its owners; folders train, val and
test inside are kept, else pictures are split. --degrade has the steps, in order, each rounded and clipped to 8 bits:

  noise:25        Gaussian, standard deviation in grey levels      mask_center:0.5  a box in the middle, share of a side
  blur:2          Gaussian, standard deviation in pixels           mask_random:0.5  single pixels, share of all
  downsample:4    means of 4x4 pixels, enlarged again (bicubic)    mask_brush:5     so many strokes
  jpeg:20         JPEG of this quality                             stain:0          0 hematoxylin, 1 eosin, 2 DAB
  l0:0.02         few gradients (L0 smoothing), weight

What is drawn belongs to seed and name alone. Training with --degrade, as it is printed, draws the sources of train
anew at every epoch; without it they are the files."""


@dataclass(frozen=True)
class Degrade(Split):
    """Files in, pairs out."""

    degrade: str = setting("noise:25", "NAME:NUMBER[,NAME:NUMBER...], what is done to the sources")
    image_size: int = setting(0, "pixels a side to which pictures are scaled first, the middle square; 0: as they are")
    colour: str = setting(
        "rgb", "what pictures become; stored: as they are, all grey or all colour", choices=("rgb", "grey", "stored")
    )
    group_by: str = setting("", "regular expression of what in a name belongs into one split, its first bracket")


def plan(settings: Degrade) -> Plan:
    parsed(settings.degrade)
    source = Path(settings.source).expanduser()
    names = names_of(source)
    known = {name: official(PurePosixPath(name)) for name in names}
    parts = completed(known, settings, "pictures or groups", grouping(settings.group_by))

    def jobs() -> Iterator[Job]:
        for name, found in pictures(source):
            files, more = ((found,), None) if isinstance(found, Path) else ((), found)
            folders, last = PurePosixPath(name).parts[:-1], PurePosixPath(name).stem
            inner = PurePosixPath(*(p for p in folders if p.lower() not in OFFICIAL), last)
            yield Job(f"{parts[name]}/{inner}", parts[name], files, more)

    return Plan(jobs(), len(names), () if source.is_dir() else (source,))


def make(settings: Degrade, job: Job) -> Made:
    path, steps = job.files[0] if job.files else Path(settings.source) / job.name, parsed(settings.degrade)
    with told(path):
        picture = decoded(io.BytesIO(data_of(job)))
    if picture.pixels.dtype != np.uint8:
        raise ValueError(f"{path}: pixels are {picture.pixels.dtype}, expected 8 bits a channel; convert it")
    picture = coloured(picture, settings.colour, path)
    if settings.image_size:
        picture = covering(picture, settings.image_size, path)
    try:
        worse = degraded(picture.pixels, steps, rng_of(settings, job.name), picture.mask)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; set another --image_size, or change --degrade") from None
    return Made([Pair(job.name.removeprefix(f"{job.split}/"), Picture(worse, picture.mask), picture)])


def coloured(picture: Picture, colour: str, path: Path) -> Picture:
    """In one number of channels, as pictures of both kinds lie together: grey three times, or RGB's luma (BT.601).

    Raises ValueError for others than these.
    """
    channels = picture.pixels.shape[2]
    if colour == "stored" or channels == {"rgb": 3, "grey": 1}[colour]:
        return picture
    if channels not in (1, 3):
        raise ValueError(f"{path}: {channels} channels, expected grey or RGB; set --colour stored")
    if channels == 1:
        return picture._replace(pixels=picture.pixels.repeat(3, -1))
    return picture._replace(pixels=eight_bits(picture.pixels @ np.array([[0.299], [0.587], [0.114]])))


def training(settings: Degrade) -> tuple[str, dict[str, Any]]:
    return "degraded", {"image_size": settings.image_size or "native", "degrade": settings.degrade}


DEGRADE = Recipe(Degrade, ABOUT, plan, make, training)
