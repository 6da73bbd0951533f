"""DIODE (Vasiljevic et al. 2019): surface normals, or depth, and the photograph."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddbm.settings import setting

from ..images import Picture, read_image, told
from ..listing import walk
from .recipe import Job, Made, Pair, Plan, Recipe, Split, completed, folder_of, official
from .resizing import covering

ABOUT = """normals or depth → photograph, 1024x768 (8,574 + 325 indoors, 16,884 + 446 outdoor)

From https://diode-dataset.org (MIT licence): train.tar.gz 81 GB, val.tar.gz 2.6 GB, and the normals apart from them,
train_normals.tar.gz 126 GB, val_normals.tar.gz 4.6 GB. --source: the folder all of them were extracted in; files are
found by their names,

  SCENE_SCAN_indoors_AAA_EEE.png          the photograph, or ..._outdoor_AAA_EEE.png
  SCENE_SCAN_indoors_AAA_EEE_normal.npy   float [768, 1024, 3], zero where unknown; or _normal.png, RGBA
  SCENE_SCAN_indoors_AAA_EEE_depth.npy    float [768, 1024, 1] in metres, and _depth_mask.npy; or _depth.png

The owners' train and val are kept; files in neither are split by scene. Normals are stored as 8 bits from -1 to 1,
depth as 16 bits from 0 to --depth_max; what is unknown is transparent, which the reader takes for a mask."""


@dataclass(frozen=True)
class Diode(Split):
    """Files in, pairs out."""

    input: str = setting("normal", "what the photograph is made from", choices=("normal", "depth"))
    scenes: str = setting("outdoor", "which, outdoor as the papers", choices=("outdoor", "indoors", "all"))
    depth_max: float = setting(300.0, "metres that become white", above=0)
    image_size: int = setting(0, "pixels a side, the middle square; 0: as they are")


def plan(settings: Diode) -> Plan:
    root = folder_of(settings)
    files: dict[str, Path] = {}
    for path, system in sorted(walk(root)):
        if not system and path.suffix.lower() in (".png", ".npy"):
            name = path.stem + (path.suffix if path.stem.endswith(("_normal", "_depth")) else "")
            if (other := files.setdefault(name, path)) != path:
                raise ValueError(f"{path}: has the name of {other}; remove one")
    photos = {
        name: path for name, path in files.items()
        if path.suffix.lower() == ".png" and not path.stem.endswith(("_normal", "_depth"))
        and (settings.scenes == "all" or f"_{settings.scenes}_" in f"_{name}_")
    }  # fmt: skip
    if not photos:
        raise ValueError(
            f"{root}: no photographs of {settings.scenes} scenes, such as 00022_00193_{settings.scenes}_000_010.png, "
            "are found; extract the archives there, or set --scenes"
        )
    parts = completed({name: official(path, root) for name, path in photos.items()}, settings, "scenes", scene)
    jobs = [Job(name, parts[name], (path, *inputs(files, name, path, settings.input))) for name, path in photos.items()]
    return Plan(jobs, len(jobs))


def scene(name: str) -> str:
    return name.split("_")[0]


def inputs(files: dict[str, Path], name: str, photo: Path, kind: str) -> list[Path]:
    """The files of the source: the array before the picture, and the mask of depth."""
    found = files.get(f"{name}_{kind}.npy") or files.get(f"{name}_{kind}.png")
    if found is None:
        raise ValueError(f"{photo}: {name}_{kind}.npy or .png is missing; extract its archive too, or set --input")
    if kind == "normal" or found.suffix == ".png":
        return [found]
    if f"{name}_depth_mask" not in files:
        raise ValueError(f"{found}: {name}_depth_mask.npy is missing; extract the archive again")
    return [found, files[f"{name}_depth_mask"]]


def make(settings: Diode, job: Job) -> Made:
    photo, first = job.files[:2]
    if first.suffix.lower() == ".png":
        source = read_image(first)
    elif settings.input == "normal":
        source = normals(array(first, 3))
    else:
        source = depths(array(first, 1), array(job.files[2], 1), settings.depth_max)
    target = read_image(photo)
    if source.pixels.shape[:2] != target.pixels.shape[:2]:
        raise ValueError(f"{first} and {photo} differ in size; extract their archives again")
    if settings.image_size:
        source = covering(source, settings.image_size, first, "nearest")
        target = covering(target, settings.image_size, photo)
    return Made([Pair(job.name, source, target)])


def array(path: Path, channels: int) -> np.ndarray:
    """Float64 [H, W, channels] of an .npy file. Raises ValueError, naming it, for another shape or a damaged one."""
    with told(path):
        values = np.load(path, allow_pickle=False)
        values = values[..., None] if values.ndim == 2 else values
        if values.ndim != 3 or values.shape[2] != channels:
            raise ValueError(f"has shape {values.shape}, expected height, width and {channels}")
        return values.astype(np.float64)


def normals(vectors: np.ndarray) -> Picture:
    """Unit vectors [H, W, 3] as 8 bits, 0 for -1 and 255 for 1; a zero vector, or NaN, is masked."""
    known = np.linalg.norm(np.nan_to_num(vectors), axis=-1) > 0.5
    values = np.where(known[..., None], vectors, 0)
    return Picture(np.rint((values + 1) / 2 * 255).clip(0, 255).astype(np.uint8), None if known.all() else known)


def depths(metres: np.ndarray, mask: np.ndarray, most: float) -> Picture:
    """Depths [H, W, 1] as 16 bits, `most` and beyond for 65535; unknown where the mask is 0."""
    known = (mask[..., 0] > 0) & np.isfinite(metres[..., 0])
    values = np.where(known[..., None], metres, 0)
    return Picture(np.rint(values / most * 65535).clip(0, 65535).astype(np.uint16), None if known.all() else known)


def flags(settings: Diode) -> dict[str, Any]:
    return {"layout": "suffix", "source_suffix": f"_{settings.input}"}


def training(settings: Diode) -> tuple[str, dict[str, Any]]:
    own = {} if settings.input == "normal" else {"source_suffix": f"_{settings.input}"}
    return "diode", own | ({"image_size": settings.image_size} if settings.image_size else {})


DIODE = Recipe(Diode, ABOUT, plan, make, training, flags)
