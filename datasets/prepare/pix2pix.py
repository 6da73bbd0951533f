"""The archives of pix2pix (Isola et al. 2017): both images of a pair beside each other in a JPEG."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from ddbm.settings import setting

from ..images import Picture, decoded, told
from ..writing import png_bytes
from .raw import data_of, pictures
from .recipe import Common, Job, Made, Plan, Recipe, Stored, official
from .resizing import covering

ABOUT = """{what}, side by side

From {where}, {size}; made for research by
Isola, Zhu, Zhou, Efros (CVPR 2017), no licence is named. --source: the .tar.gz as it is, or the folder extracted from
it, with {parts} inside. Files are kept as they are unless --image_size makes them smaller.

  curl -LO {where}/{name}.tar.gz
  python -m datasets.prepare {name} --source {name}.tar.gz --out data/{name}"""
WHERE = "http://efrosgans.eecs.berkeley.edu/pix2pix/datasets"


@dataclass(frozen=True)
class SideBySide(Common):
    """Files in, pairs out."""

    image_size: int = setting(0, "pixels a side of each image; 0: as they are")


def plan(settings: SideBySide) -> Plan:
    source = Path(settings.source).expanduser()

    def jobs() -> Iterator[Job]:
        for name, found in pictures(source):
            path = PurePosixPath(name)
            split = official(path)
            if not split:
                raise ValueError(
                    f"{source}: {name} lies in no folder train, val or test, as in the owners' archive; move it"
                )
            files, more = ((found,), None) if isinstance(found, Path) else ((), found)
            yield Job(f"{split}/{path.name}", split, files, more)

    return Plan(jobs(), None, () if source.is_dir() else (source,))


def make(settings: SideBySide, job: Job) -> Made:
    path = job.files[0] if job.files else Path(settings.source) / job.name
    data = data_of(job)
    with told(path):
        picture = decoded(io.BytesIO(data))
    width = picture.pixels.shape[1]
    if width % 2:
        raise ValueError(f"{path}: {width} pixels wide, expected two images side by side; remove it")
    name = PurePosixPath(job.name).name
    if not settings.image_size:
        return Made([Stored(name, data)])
    halves = (picture.pixels[:, : width // 2], picture.pixels[:, width // 2 :])
    small = [covering(Picture(half, None), settings.image_size, path).pixels for half in halves]
    return Made([Stored(str(PurePosixPath(name).with_suffix(".png")), png_bytes(np.concatenate(small, 1)))])


def flags(half: str, settings: SideBySide) -> dict[str, str]:
    return {"layout": "side_by_side", "source_half": half}


def recipe(name: str, what: str, size: str, parts: str, half: str, preset: str) -> Recipe:
    about = ABOUT.format(what=what, where=WHERE, size=size, parts=parts, name=name)
    side = partial(flags, half)

    def training(settings: SideBySide) -> tuple[str, dict[str, str]]:
        own = {"image_size": str(settings.image_size)} if settings.image_size else {}
        return preset, own if preset == "e2h" else side(settings) | ({"image_size": "256"} | own)

    return Recipe(SideBySide, about, plan, make, training, side)


EDGES = recipe("edges2handbags", "edges → handbags (138,567 pairs of 256²)", "8 GB", "train/ and val/", "left", "e2h")
FACADES = recipe(
    "facades", "labels → facades (606 pairs of 256²)", "30 MB", "train/, val/ and test/", "right", "facades"
)
