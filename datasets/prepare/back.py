"""The way back: translated slices as volumes with the geometry of the source, translated patches as pictures."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddbm.files import npz
from ddbm.files.folders import make_directory
from ddbm.files.storage import read_json
from ddbm.settings import Settings, setting

from ..images import Picture, read_image
from ..listing import listed
from ..paired import resized_to
from ..writing import write_pixels
from .cutting import PLACE, joined, name_of, places
from .engine import MANIFEST
from .grids import Grid, middle, on, onto, resized
from .series import toolkit

HALF = np.float32(0.499)  # of what a voxel is interpolated from must be known, but for rounding
SLICE = re.compile(r"(.+)_z\d+")
SAMPLING = "sampling.json"  # of a folder that scripts.sample wrote
ABOUT = """Joins what was cut: translated slices to volumes, translated patches to pictures

--source is a folder of files named as the sources were, as scripts.translate writes them, or that of a sampling, whose
levels are the 256 from black to white; --like the prepared folder,
whose manifest says what they are slices of. A volume gets size, spacing, origin and directions of the source's file (or
of the prepared grid: --grid prepared), and where nothing was prepared, or a mask hides it, what is nothing there: air,
or 0.

  python -m scripts.translate workdir/ct_pet_i2sb data/ct_pet/test/source --out slices
  python -m datasets.prepare back --source slices --like data/ct_pet --out volumes"""


@dataclass(frozen=True)
class Back(Settings):
    """Slices or patches in, volumes or pictures out."""

    source: str = setting("", "folder of translated files; needed")
    like: str = setting("", "the prepared folder; needed")
    out: str = setting("", "folder to write to; needed")
    suffix: str = setting("", "end of the files' names, such as _mean")
    ending: str = setting(".nii.gz", "format of volumes", choices=(".nii.gz", ".nii", ".mha", ".nrrd"))
    overwrite: bool = setting(False, "whether to replace what is there")
    grid: str = setting("source", "geometry of volumes", choices=("source", "prepared"))


def join(settings: Back) -> list[Path]:
    """Writes every volume or picture of which slices or patches are there, and returns their paths.

    Raises ValueError where some of its slices are missing, or none is there of any.
    """
    source, like = Path(settings.source).expanduser(), Path(settings.like).expanduser()
    if not source.is_dir() or (source.parent / SAMPLING).exists():
        whole = f": give {source.parent}, that of the sampling" if (source.parent / SAMPLING).exists() else ""
        raise ValueError(f"--source {source}: expected the folder of translated files, or of a sampling{whole}")
    if not (like / MANIFEST).is_file():
        raise ValueError(f"--like {like}: no folder with {MANIFEST}; expected one that datasets.prepare wrote")
    manifest = read_json(like / MANIFEST)
    about, size = manifest["about"], manifest["settings"].get("image_size", 0)
    fit = "stretch"  # translations show the whole of their sources
    if (source / SAMPLING).exists():
        files, fit = sampled(source)
    else:
        files = translated(source, settings.suffix)
    out, written, made = Path(settings.out).expanduser(), list[Path](), set[str]()
    patches: dict[str, list[str]] = {}  # by their pictures
    slices: dict[str, list[str]] = {}  # by their volumes
    for name in files:
        for pattern, known in ((PLACE, patches), (SLICE, slices)):
            if match := pattern.fullmatch(name):
                known.setdefault(match[1], []).append(name)
    pictures_of: dict[str, list[Mapping[str, Any]]] = {}  # those of one name, in several parts
    for entry in about.values():
        pictures_of.setdefault(entry.get("name", ""), []).append(entry)
    for entry in about.values():
        if "grid" in entry:
            names = [f"{entry['name']}_z{z:04d}" for z in entry["slices"]]
        else:
            names = patches.get(entry.get("name", ""), [])
        there = [name for name in names if name in files]
        if not there or entry["name"] in made:  # of another part
            continue
        if "grid" not in entry:  # the one that was cut into these
            entry = min(pictures_of[entry["name"]], key=lambda each: len({*names} ^ patches_of(each, size)))
        if len(there) < len(names):
            missing = next(name for name in names if name not in files)
            raise ValueError(
                f"{source}: {missing} is missing ({len(names) - len(there)} such files); translate all of it"
            )
        if others := sorted({*slices.get(entry["name"], [])} - {*names}) if "grid" in entry else []:
            raise ValueError(f"{source}: {like} has no slice {others[0]}; give as --like what was translated")
        pictures = {name: files[name]() for name in names}
        made.add(entry["name"])
        if "grid" in entry:
            written.append(volume(entry, pictures, fit, out, settings))
            continue
        found = next(iter(pictures.values())).pixels.shape[:2]
        if found != (size, size):
            sizes = f"patches of {found[0]}x{found[1]} pixels, but {size}x{size} were prepared"
            raise ValueError(f"{source}: {sizes}; translate or sample by a model of --image_size {size}")
        written.append(picture(entry, pictures, out, settings))
    if not written:
        inner = {name.rpartition("/")[0] for name in files if "/" in name}
        hint = f"; give a folder of its own, such as {source / min(inner)}" if inner else ""
        raise ValueError(
            f"{source}: holds nothing of {like}, whose files have names such as {example(about)}{settings.suffix}{hint}"
        )
    return written


def patches_of(entry: Mapping[str, Any], size: int) -> set[str]:
    return {name_of(entry["name"], place) for place in places(entry["shape"], size)}


def translated(source: Path, suffix: str) -> dict[str, Callable[[], Picture]]:
    """What reads every file of a folder, by the name of its source."""
    files = listed(source).pictures.items()
    ours = ((name, path) for name, path in files if name.endswith(suffix))
    return {name.removesuffix(suffix): partial(read_image, path, stored=True) for name, path in ours}


def sampled(source: Path) -> tuple[dict[str, Callable[[], Picture]], str]:
    """What gives every sample of a sampling, as values of the files that its model was trained on, and their --fit."""
    record = read_json(source / SAMPLING)
    if "fit" not in record.get("levels", {}):
        raise ValueError(f"{source / SAMPLING}: of an older version, which kept no levels; sample again, --restart")
    path, (kind, black, white) = source / record["samples"], (record["levels"][k] for k in ("kind", "black", "white"))
    masked = ("mask",) if "mask" in npz.keys(path) else ()
    arrays = npz.read(path, "arr_0", "names", *masked)

    def picture(n: int) -> Picture:
        values = black + arrays["arr_0"][n].astype(np.float64) / 255 * (white - black)
        values = np.rint(values) if np.dtype(kind).kind in "ui" else values
        return Picture(values.astype(kind), arrays["mask"][n][..., 0] if masked else None)

    pictures: dict[str, Callable[[], Picture]] = {
        Path(str(name)).name: partial(picture, n) for n, name in enumerate(arrays["names"])
    }
    return pictures, str(record["levels"]["fit"])


def example(about: Mapping[str, Any]) -> str:
    entry: Mapping[str, Any] = next(iter(about.values()), {})
    name = entry.get("name", "NAME")
    return f"{name}_z{entry['slices'][0]:04d}" if "slices" in entry else f"{name}_y00000_x00000"


def free(path: Path, settings: Back) -> Path:
    """The path. Raises ValueError where something is there that is not to be overwritten."""
    if path.exists() and not settings.overwrite:
        raise ValueError(f"{path} is there already: choose another --out, or give --overwrite true")
    make_directory(path.parent)
    return path


def volume(entry: Mapping[str, Any], slices: Mapping[str, Picture], fit: str, out: Path, settings: Back) -> Path:
    """slices: by name, in the order of `entry["slices"]`, each [H, W, 1], fitted so."""
    first = next(iter(slices.values())).pixels
    if first.shape[2] != 1:
        raise ValueError(f"{settings.source}: slices have {first.shape[2]} channels, expected 1")
    grids = {key: Grid(**{k: tuple(v) for k, v in entry[key].items()}) for key in ("grid", "source")}
    values, known = np.zeros((2, grids["grid"].size[2], *first.shape[:2]), np.float32)
    for z, (name, (pixels, mask, _)) in zip(entry["slices"], slices.items(), strict=True):
        if pixels.shape != first.shape:
            raise ValueError(f"{settings.source}: {name} is {pixels.shape[:2]} pixels, others are {first.shape[:2]}")
        known[z] = 1 if mask is None else mask
        values[z] = pixels[..., 0] * known[z]
    (height, width), own = first.shape[:2], grids["grid"]
    rows, columns = resized_to(fit, (height, width), (own.size[1], own.size[0]))
    itk, grid = toolkit(), middle(resized(own, columns, rows), width, height)
    images = [on(part, grid) for part in (values, known)]
    if settings.grid == "source":
        grid = grids["source"]
        images = [onto(image, grid, 0) for image in images]
    values, known = map(itk.GetArrayFromImage, images)  # means of what is known, where that is half or more
    image = on(np.where(known >= HALF, values / known.clip(HALF), np.float32(entry["fill"])), grid)
    if first.dtype.kind == "i":
        image = itk.Cast(itk.Round(image), itk.sitkInt16)
    path = free(out / f"{entry['name']}{settings.ending}", settings)
    aside = path.with_name(f".{os.getpid()}.{path.name}")  # of the same ending, by which the format is chosen
    try:
        itk.WriteImage(image, str(aside))
        stored = itk.GetArrayFromImage(itk.ReadImage(str(aside)))
        if not np.array_equal(stored, itk.GetArrayViewFromImage(image)):  # nobody says that the disk is full
            raise RuntimeError
        aside.replace(path)
    except RuntimeError:
        raise ValueError(f"{path}: cannot be written whole; make room on the disk, or choose another --out") from None
    finally:
        aside.unlink(missing_ok=True)
    return path


def picture(entry: Mapping[str, Any], patches: Mapping[str, Picture], out: Path, settings: Back) -> Path:
    """patches: by name, which tells where they lie."""
    places = {(int(m[2]), int(m[3])): patches[name] for name in patches if (m := PLACE.fullmatch(name))}
    shape = entry["shape"][0], entry["shape"][1]
    try:
        pixels = joined({place: patch.pixels for place, patch in places.items()}, shape)
    except ValueError as error:
        raise ValueError(f"{settings.source}: of {entry['name']} {error}; translate all of its patches") from None
    masks = {place: np.ones(pixels.shape[:2]) if mask is None else mask for place, (pixels, mask, _) in places.items()}
    seen = joined({place: mask[..., None].astype(np.float32) for place, mask in masks.items()}, shape)[..., 0] > 0.5
    there = [free(out / f"{entry['name']}{ending}", settings) for ending in (".png", ".tif")]
    path = write_pixels(out / entry["name"], Picture(pixels, None if seen.all() else seen))
    for other in there:
        if other != path:
            other.unlink(missing_ok=True)
    return path
