"""Two folders of large pictures that show the same: stains of one section, or a photograph and its mask."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddbm.settings import setting

from ..images import Picture, read_image
from ..layouts import why_alone
from ..listing import is_picture, walk
from .cutting import cut, name_of, places, tissue
from .recipe import OFFICIAL, Job, Made, Pair, Plan, Recipe, Split, completed, flat, folder_of, grouping

BCI = """stained sections HE → IHC, registered (4,873 pairs of 1024²), and others that lie alike

From https://bupt-ai-cz.github.io/BCI (Liu et al. 2022), not for commerce, several GB. --source: the folder with

  HE/train/00000_train_1+.png  IHC/train/00000_train_1+.png  HE/test/...  IHC/test/...

Any two folders of registered pictures with equal names will do (--source_folder, --target_folder), such as HER2match's
or your own: train/, val/, test/ in or above them are kept, else pictures are split. --group_by is a regular expression
on the names whose first bracket is what belongs into one part, patient or slide: '^([^_]+)_' for PATIENT_3.png. The
names of BCI do not tell the patient. Patches with less tissue than --tissue on either side are left out."""
FIVES = """fundus photographs → masks of their vessels (600 + 200 of 2048²)

From https://doi.org/10.6084/m9.figshare.19688169 (Jin et al. 2022; CC BY 4.0), 1.6 GB, a .rar. --source: the folder
extracted from it, with

  train/Original/1_A.png  train/Ground truth/1_A.png  test/Original/...  test/Ground truth/...

The owners' test is kept, a share of their train is val. --image_size 512 cuts patches, 0 leaves pictures whole; what a
model makes of patches is joined by `python -m datasets.prepare back`. Masks are grey, 0 or 255."""


@dataclass(frozen=True)
class Aligned(Split):
    """Files in, pairs out."""

    image_size: int = setting(256, "pixels a side of the patches; 0: whole pictures")
    tissue: float = setting(0.2, "share of tissue that a patch has at least", below=1)
    source_folder: str = setting("HE", "folder of the sources")
    target_folder: str = setting("IHC", "folder of the targets")
    group_by: str = setting("", "regular expression of what in a name belongs into one part, its first bracket")


@dataclass(frozen=True)
class Fives(Split):
    """Files in, pairs out."""

    image_size: int = setting(512, "pixels a side of the patches; 0: whole pictures")


def plan_fives(settings: Fives) -> Plan:
    return plan(Aligned(**vars(settings), source_folder="Original", target_folder="Ground truth"))


def plan(settings: Aligned) -> Plan:
    sides = [found(settings, folder) for folder in (settings.source_folder, settings.target_folder)]
    for here, there, folder in (
        (sides[0], sides[1], settings.target_folder), (sides[1], sides[0], settings.source_folder)
    ):  # fmt: skip
        if not here:
            raise ValueError(
                f"{settings.source}: no images in folders {settings.source_folder} or {settings.target_folder}; name "
                "them by --source_folder and --target_folder"
            )
        if alone := [key for key in here if key not in there]:
            why = why_alone(alone[0][1], [name for _, name in there])
            raise ValueError(
                f"{here[alone[0]]}: no picture of that name in {folder} ({len(alone)} such files){why and '; '}{why}; "
                "add it, or remove this one"
            )
    group = grouping(settings.group_by)
    known = {"/".join(key): key[0] for key in sides[0]}
    parts = completed(known, settings, "pictures or groups", lambda name: group(name.split("/", 1)[1]))
    jobs = [
        Job("/".join(filter(None, key)), parts["/".join(key)], (sides[0][key], sides[1][key]), key[1])
        for key in sides[0]
    ]
    return Plan(flat(jobs), len(jobs))


def found(settings: Aligned, folder: str) -> dict[tuple[str, str], Path]:
    """(part or "", relative name without it, the folder and extension) -> path."""
    root, pictures = folder_of(settings), dict[tuple[str, str], Path]()
    for path, system in sorted(walk(root)):
        parts = path.relative_to(root).parts
        if system or not is_picture(path) or folder not in parts[:-1]:
            continue
        split = next((OFFICIAL[part.lower()] for part in parts[:-1] if part.lower() in OFFICIAL), "")
        inner = [part for part in parts[:-1] if part != folder and part.lower() not in OFFICIAL]
        other = pictures.setdefault((split, "/".join([*inner, path.stem])), path)
        if other != path:
            raise ValueError(f"{path}: has the name of {other}; remove one")
    return pictures


def make(mask: bool, settings: Aligned | Fives, job: Job) -> Made:
    source, target = map(read_image, job.files)
    if source.pixels.shape[:2] != target.pixels.shape[:2]:
        raise ValueError(f"{job.files[0]} and {job.files[1]} differ in size; they must be registered to one")
    for path, picture in zip(job.files, (source, target), strict=True):
        if picture.pixels.dtype.kind != "u":
            raise ValueError(f"{path}: pixels are {picture.pixels.dtype}, expected 8 or 16 bits; convert it")
    if mask:
        highest, full = int(target.pixels.max()), np.iinfo(target.pixels.dtype).max
        if 0 < highest <= full / 2:
            raise ValueError(f"{job.files[1]}: no value above {highest}, expected a mask of 0 and {full}; rescale it")
        target = Picture(as_mask(target.pixels), target.mask)
    name, size = job.more.replace("/", "_"), settings.image_size
    shape = source.pixels.shape[:2]
    if not size:
        return Made([Pair(name, source, target)], {"shape": list(shape)})
    if min(shape) < size:
        raise ValueError(
            f"{job.files[0]}: {shape[0]}x{shape[1]} pixels, smaller than a patch of {size}; set --image_size"
        )
    least = settings.tissue if isinstance(settings, Aligned) else 0.0

    def pairs() -> Iterator[Pair]:
        for place in places(shape, size):
            pair = cut(source, place, size), cut(target, place, size)
            if not least or min(tissue(picture.pixels) for picture in pair) >= least:
                yield Pair(name_of(name, place), *pair)

    return Made(pairs(), {"name": name, "shape": list(shape)})


def as_mask(pixels: np.ndarray) -> np.ndarray:
    """Whatever is brighter than the middle of its type as 255, one channel."""
    return np.where(pixels.max(-1, keepdims=True) > np.iinfo(pixels.dtype).max / 2, 255, 0).astype(np.uint8)


def training(name: str, usual: int, settings: Aligned | Fives) -> tuple[str, dict[str, Any]]:
    if name == "stains":
        symmetric = {"layers": "tied", "group": "D4", "augment": "D4"}
        return name, {"image_size": settings.image_size or "native", "fit": "crop"} | symmetric
    return name, {} if settings.image_size in (0, usual) else {"image_size": settings.image_size}


ALIGNED = Recipe(Aligned, BCI, plan, partial(make, False), partial(training, "stains", 256))
FIVES_RECIPE = Recipe(Fives, FIVES, plan_fives, partial(make, True), partial(training, "fives", 512))
