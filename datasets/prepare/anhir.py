"""ANHIR (Borovec et al. 2020): consecutive sections in two stains, registered by their landmarks."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ddbm.settings import setting

from ..images import Picture, read_image, told
from ..listing import is_picture, walk
from .cutting import name_of, places, tissue
from .recipe import Job, Made, Pair, Plan, Recipe, Split, flat, folder_of, parts_of

ABOUT = """consecutive sections, a stain → another, warped by landmarks (49 sets of tissue)

From https://anhir.grand-challenge.org/Data, after registration (CC BY-NC-SA 4.0): dataset_medium, 13 GB of images,
each tissue at a scale of its own (--scale), and an archive of landmarks. --source: the folder with

  images/lung-lesion_1/scale-50pc/29-041-Izd2-w35-He-les1.jpg      in folders of a tissue and a scale
  landmarks/lung-lesion_1/scale-50pc/29-041-Izd2-w35-He-les1.csv   number, X, Y: pixels of that scale, from the top left

Pairs without landmarks, as the challenge keeps those of the targets that it evaluates, are left out. --source_stain and
--target_stain are words in the names of images: He and proSPC of lung lesions, or HE and ER of breast (scale-20pc).
The source is warped onto the target: by thin plate splines that pass through all landmarks, or the affine map of least
squares (--warp). Patches of which less than --tissue is tissue on either side, whose middle is outside the landmarks,
or that leave the source are left out. A set of tissue stays in one part."""


OFF = 2.0  # pixels by which a landmark may lie outside, as some were set on the very border


@dataclass(frozen=True)
class Anhir(Split):
    """Files in, pairs out."""

    source_stain: str = setting("HE", "word in the names of the sources, capitals do not count")
    target_stain: str = setting("proSPC", "word in the names of the targets")
    scale: str = setting("scale-50pc", "folder of a scale")
    warp: str = setting("spline", "how sources are registered", choices=("spline", "affine"))
    image_size: int = setting(256, "pixels a side of the patches", above=0)
    tissue: float = setting(0.2, "share of tissue that a patch has at least", below=1)


def plan(settings: Anhir) -> Plan:
    root = folder_of(settings)
    images: dict[str, list[Path]] = {}
    landmarks: dict[tuple[str, str], Path] = {}
    for path, system in sorted(walk(root)):
        if system or path.parent.name != settings.scale:
            continue
        if is_picture(path):
            images.setdefault(path.parent.parent.name, []).append(path)
        elif path.suffix.lower() == ".csv":
            landmarks[path.parent.parent.name, path.stem] = path
    if not images:
        raise ValueError(f"{root}: no images in folders TISSUE/{settings.scale}; set --scale to what is there")
    jobs: list[tuple[str, tuple[Path, ...]]] = []
    left_out: list[str] = []
    for tissue_set, paths in images.items():
        sides = [
            [p for p in paths if has_word(p.stem, stain)] for stain in (settings.source_stain, settings.target_stain)
        ]
        for pair in product(*sides):
            if pair[0] == pair[1]:
                raise ValueError(
                    f"{pair[0]}: its name has both '{settings.source_stain}' and '{settings.target_stain}'; set "
                    "--source_stain and --target_stain to words that tell the stains apart"
                )
            tables = [landmarks.get((tissue_set, path.stem)) for path in pair]
            lacking = [path for path, table in zip(pair, tables, strict=True) if table is None]
            left_out += [f"{tissue_set}: {pair[0].name} and {pair[1].name}, no landmarks of {path.name}"
                         for path in lacking[:1]]  # fmt: skip
            if not lacking:
                jobs.append((tissue_set, (*pair, *filter(None, tables))))
    if not jobs and left_out:
        raise ValueError(
            f"{root}: none of {len(left_out)} pairs has landmarks ({left_out[0]}); extract their archive here"
        )
    if not jobs:
        raise ValueError(
            f"{root}: no set holds both '{settings.source_stain}' and '{settings.target_stain}'; set --source_stain "
            f"and --target_stain to words in the names, such as of {paths[0].name}"
        )
    parts = parts_of([name for name, _ in jobs], settings, "sets of tissue")
    named = [Job(f"{name}/{files[0].stem}/{files[1].stem}", parts[name], files) for name, files in jobs]
    return Plan(flat(named), len(jobs), (), left_out)


def has_word(name: str, word: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", name, re.IGNORECASE) is not None


def read_landmarks(path: Path) -> dict[str, tuple[float, float]]:
    """Number -> (x, y) in pixels. Raises ValueError, naming the file and line, for what is no such table."""
    with told(path), path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    head = [word.strip().upper() for word in rows[0]] if rows else []
    if head.count("X") != 1 or head.count("Y") != 1:
        raise ValueError(f"{path}: begins with {rows[:1]}, expected columns X and Y as in ANHIR's landmarks")
    x, y = head.index("X"), head.index("Y")
    found = {}
    for line, row in enumerate(rows[1:], 2):
        if not any(row):
            continue
        try:
            point = float(row[x]), float(row[y])
        except (ValueError, IndexError):
            raise ValueError(f"{path}: line {line} is {row}, expected a number, X and Y; correct it") from None
        found[row[0] if x and y else str(line)] = point
    return found


def matched(paths: tuple[Path, Path], least: int) -> np.ndarray:
    """The landmarks that both files have: float64 [2, N, 2], (y, x) in pixels. Raises ValueError for too few."""
    here, there = map(read_landmarks, paths)
    numbers = [number for number in here if number in there]
    if len(numbers) < least:
        raise ValueError(
            f"{paths[0]} and {paths[1]} share {len(numbers)} landmarks, expected {least} or more; remove the pair"
        )
    return np.array([[side[number][::-1] for number in numbers] for side in (here, there)])


class Warp:
    """Where a point of the target lies in the source, from landmarks [N, 2] of both, (y, x)."""

    def __init__(self, target: np.ndarray, source: np.ndarray, kind: str) -> None:
        from scipy.interpolate import RBFInterpolator
        from scipy.spatial import Delaunay

        self.hull = Delaunay(target)
        if kind == "spline":
            self.map = RBFInterpolator(target, source, kernel="thin_plate_spline")
        else:
            solution = np.linalg.lstsq(np.c_[target, np.ones(len(target))], source, rcond=None)[0]
            self.map = lambda points: np.c_[points, np.ones(len(points))] @ solution

    def inside(self, point: tuple[float, float]) -> bool:
        """Whether a point of the target lies among its landmarks, where the map is known."""
        return bool(self.hull.find_simplex(point) >= 0)

    def patch(self, image: np.ndarray, place: tuple[int, int], size: int) -> np.ndarray | None:
        """The source's pixels where those of a patch of the target lie, bilinear; None where some lie outside."""
        from scipy.ndimage import map_coordinates

        rows, columns = np.mgrid[:size, :size].reshape(2, -1) + np.array(place)[:, None]
        where = self.map(np.stack([rows, columns], -1).astype(np.float64)).T
        limits = np.array(image.shape[:2])[:, None] - 1
        if (where < -0.5).any() or (where > limits + 0.5).any():
            return None
        layers = [
            map_coordinates(layer.astype(np.float32), where, order=1, mode="nearest")
            for layer in np.moveaxis(image, -1, 0)
        ]
        return np.rint(np.stack(layers, -1)).astype(image.dtype).reshape(size, size, -1)  # means: within the type


def make(settings: Anhir, job: Job) -> Made:
    source, target = (read_image(path).pixels for path in job.files[:2])
    points = matched((job.files[2], job.files[3]), 3)
    for side, path, image in zip(points, job.files[2:], (source, target), strict=True):
        outside = (side < -OFF).any(1) | (side > np.array(image.shape[:2]) + OFF).any(1)
        if outside.any():
            y, x = side[outside][0]
            height, width = image.shape[:2]
            raise ValueError(
                f"{path}: the landmark {x:g}, {y:g} (X, Y) lies outside its image of {width}x{height} pixels; correct "
                "it, or see whether both are of one scale"
            )
    size = settings.image_size
    if min(target.shape[:2]) < size:
        raise ValueError(
            f"{job.files[1]}: {target.shape[0]}x{target.shape[1]} pixels, smaller than --image_size {size}"
        )
    for path, picture in zip(job.files, (source, target), strict=False):
        if picture.dtype.kind != "u":
            raise ValueError(f"{path}: pixels are {picture.dtype}, expected 8 or 16 bits; convert it")
    try:
        warp = Warp(points[1], points[0], settings.warp)
    except (ValueError, RuntimeError):  # of Qhull, or a matrix that is singular
        raise ValueError(
            f"{job.files[3]}: its landmarks lie on a line or at one place, which makes no map; correct them, or remove "
            "the pair"
        ) from None

    def pairs() -> Iterator[Pair]:
        for place in places(target.shape, size):
            patch = target[place[0] : place[0] + size, place[1] : place[1] + size]
            if not warp.inside((place[0] + size / 2, place[1] + size / 2)) or tissue(patch) < settings.tissue:
                continue
            warped = warp.patch(source, place, size)
            if warped is not None and tissue(warped) >= settings.tissue:
                yield Pair(name_of(job.name.replace("/", "_"), place), Picture(warped, None), Picture(patch, None))

    return Made(pairs(), {"landmarks": points.shape[1]})


def training(settings: Anhir) -> tuple[str, dict[str, Any]]:
    return "anhir", {} if settings.image_size == 256 else {"image_size": settings.image_size}


ANHIR = Recipe(Anhir, ABOUT, plan, make, training)
