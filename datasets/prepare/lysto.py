"""LYSTO (Jiao et al. 2024): patches of tissue with stained lymphocytes, noisy and as they were."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddbm.settings import setting

from ..degradations import noise
from ..images import Picture, told
from .recipe import Job, Made, Pair, Plan, Recipe, Split, parts_of, rng_of

ABOUT = """patches of 299² of breast, colon and prostate, noisy → as they were (20,000 patches)

From https://zenodo.org/records/3513571, under the terms said there and at https://lysto.grand-challenge.org:
training.h5, at most 5.4 GB, with

  x      uint8 [20000, 299, 299, 3]  the patches
  y      [20000]                     numbers of lymphocytes, not used
  organ  [20000]                     begins with breast, colon or prostate

--source: that file. --crops patches of --image_size pixels are cut from each, disjoint, at random. The file does not
say which patches are of one slide. Runs of --run patches stay in one part, in case those of a slide follow each other,
which could not be confirmed. The sources have Gaussian noise of --noise grey levels, rounded and clipped to 8 bits; the
script of SPDM adds none, but shrinks 64² to 16² and back."""


@dataclass(frozen=True)
class Lysto(Split):
    """Files in, pairs out."""

    image_size: int = setting(64, "pixels a side of what is cut out", above=0)
    crops: int = setting(1, "disjoint ones of every patch", above=0)
    noise: float = setting(25.0, "standard deviation of the noise, in grey levels of 255")
    run: int = setting(100, "patches that follow each other and stay in one part", above=0)
    organ: str = setting("", "what its name begins with, such as colon; empty: all")


def opened(path: Path) -> Any:
    """The HDF5 file, as a context. Raises ValueError, naming it, for what is none, and ImportError with its remedy."""
    try:
        import h5py
    except ImportError:
        raise ValueError("lysto reads HDF5 by h5py: pip install -e '.[hdf5]'") from None
    with told(path):
        return h5py.File(path, "r")


def plan(settings: Lysto) -> Plan:
    path = Path(settings.source).expanduser()
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected the file training.h5; name it")
    with opened(path) as file:
        wanted = ("x", "organ") if settings.organ else ("x",)
        if missing := [key for key in wanted if key not in file]:
            raise ValueError(
                f"{path}: has no data set '{missing[0]}', it holds {', '.join(file) or 'none'}; "
                "give LYSTO's training.h5"
            )
        if groups := [key for key in wanted if not hasattr(file[key], "shape")]:
            raise ValueError(f"{path}: {groups[0]} is a group, expected a data set; give LYSTO's training.h5")
        shape = file["x"].shape
        if len(shape) != 4 or shape[3] != 3 or file["x"].dtype != np.uint8:
            raise ValueError(f"{path}: x is {file['x'].dtype} {shape}, expected uint8 [N, 299, 299, 3]")
        for key in ("y", "organ"):
            if key in file and len(file[key]) != shape[0]:
                raise ValueError(f"{path}: {key} has {len(file[key])} entries, x has {shape[0]}; download it again")
        organs = names_of(file["organ"][:], path) if settings.organ else [""] * shape[0]
    chosen = [i for i, organ in enumerate(organs) if organ.startswith(settings.organ)]
    if not chosen:
        raise ValueError(f"{path}: no organ begins with '{settings.organ}', there are {', '.join(sorted(set(organs)))}")
    most = (shape[1] // settings.image_size) * (shape[2] // settings.image_size)
    if settings.crops > most:
        raise ValueError(
            f"--crops {settings.crops}: {shape[1]}x{shape[2]} pixels hold {most} disjoint ones of "
            f"{settings.image_size}; give fewer, or a smaller --image_size"
        )
    runs: dict[str, list[int]] = {}
    for i in chosen:
        runs.setdefault(f"{i // settings.run:05d}", []).append(i)
    parts = parts_of(runs, settings, f"runs of {settings.run} patches")
    return Plan([Job(run, parts[run], (), numbers) for run, numbers in runs.items()], len(runs), (path,))


def names_of(stored: np.ndarray, path: Path) -> list[str]:
    """Names of organs. Raises ValueError, naming the file, for what is no text."""
    if stored.dtype.kind not in "SO":
        raise ValueError(f"{path}: organ is {stored.dtype}, expected names such as colon_2; leave out --organ")
    return [str(name, "utf-8", "replace") for name in stored]


def make(settings: Lysto, job: Job) -> Made:
    path = Path(settings.source).expanduser()

    def pairs() -> Iterator[Pair]:
        with opened(path) as file:
            for i in job.more:
                with told(path):
                    patch = file["x"][i]
                rng = rng_of(settings, str(i))
                for k, (top, left) in enumerate(corners(patch.shape, settings.image_size, settings.crops, rng)):
                    target = patch[top : top + settings.image_size, left : left + settings.image_size]
                    source = noise(target, settings.noise, rng)
                    yield Pair(f"{i:05d}_{k}", Picture(source, None), Picture(target, None))

    return Made(pairs())


def corners(shape: tuple[int, ...], size: int, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(top, left) of disjoint squares: of a grid that begins anywhere, some."""
    counts = [n // size for n in shape[:2]]
    starts = [int(rng.integers(n - size * k + 1)) for n, k in zip(shape, counts, strict=False)]
    cells = rng.permutation(counts[0] * counts[1])[:count]
    return [(starts[0] + size * int(c // counts[1]), starts[1] + size * int(c % counts[1])) for c in cells]


def training(settings: Lysto) -> tuple[str, dict[str, Any]]:
    return "lysto64", {} if settings.image_size == 64 else {"image_size": settings.image_size}


LYSTO = Recipe(Lysto, ABOUT, plan, make, training)
