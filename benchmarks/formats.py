"""How fast are pairs read? `python -m benchmarks.formats [--flag value ...]`: a folder of PNG against other formats.

Pairs cut from photographs that come with scikit-image are written once and converted by `datasets.pack`; all formats
are read in turns, pair by pair and in random order, as training reads them. Medians over rounds, each over all pairs;
"MiB more" is what a process of its own holds more after reading all of them than after a tenth.
"""

import io
import multiprocessing
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from skimage.data import astronaut, immunohistochemistry, retina

from datasets import PairedData, open_data, pack
from datasets.images import Picture
from datasets.writing import write_pixels
from ddbm.settings import Settings, from_flags, setting
from scripts.common import aligned, run

from .cost import Work, interleaved

NEEDS = {"packed": "numpy", "hdf5": "h5py", "zip": "zipfile", "shards": "litdata"}  # formats, and their packages


@dataclass(frozen=True)
class FormatsConfig(Settings):
    """The benchmark"""

    pairs: int = setting(1000, "pairs of three channels", above=0)
    size: int = setting(64, "pixels a side", above=0)
    rounds: int = setting(9, "passes over the pairs", above=0)


def reading(data: PairedData) -> Work:
    order = np.random.default_rng(0).permutation(len(data))
    return lambda: [data.get(int(index), None) for index in order]


def kept(place: str) -> float:
    """MiB of its own, without mapped files, that this process holds more after an epoch than after its first tenth."""
    data = open_data("pairs", "train", data_dir=place)
    order, held = np.random.default_rng(0).permutation(len(data)), []
    for part in (order[: len(data) // 10], order):
        for index in part:
            data.get(int(index), None)
        held.append(int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 2**10)
    return held[1] - held[0]


def cut(pictures: Sequence[np.ndarray], size: int, n: int) -> np.ndarray:
    """A square of `size` pixels of a picture [H, W, 3], the n-th of a fixed stream."""
    rng, picture = np.random.default_rng(n), pictures[n % len(pictures)]
    top, left = (int(rng.integers(room - size + 1)) for room in picture.shape[:2])
    return picture[top : top + size, left : left + size]


def main(argv: Sequence[str]) -> int:
    settings, _ = from_flags(FormatsConfig, argv)
    pictures = [astronaut(), immunohistochemistry(), retina()]
    if settings.size > (most := min(min(picture.shape[:2]) for picture in pictures)):
        raise ValueError(f"--size {settings.size}: the smallest photograph has {most} pixels a side")
    with TemporaryDirectory() as folder:
        places = {"folder": Path(folder, "pairs")}
        for n in range(settings.pairs):
            pixels = cut(pictures, settings.size, n)
            for side in ("source", "target"):
                write_pixels(places["folder"] / "train" / side / f"{n:05}", Picture(pixels, None))
        for name in (name for name, package in NEEDS.items() if find_spec(package)):
            places[name] = Path(folder, f"pairs.{name}")
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                pack.main([str(places["folder"]), str(places[name]), "--format", name])
        datas = {name: open_data("pairs", "train", data_dir=str(place)) for name, place in places.items()}
        times = interleaved({name: reading(data) for name, data in datas.items()}, settings.rounds)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as alone:
            more = dict(zip(places, alone.map(kept, map(str, places.values()), 1), strict=True))
    rows = [["format", "ms a pair", "times faster", "MiB more"]]
    for name, seconds in times.items():
        milliseconds = 1000 * np.median(seconds) / len(datas[name])
        rows.append([name, f"{milliseconds:.3f}", f"{np.median(times['folder'] / seconds):.1f}", f"{more[name]:.1f}"])
    print(aligned(rows))
    return 0


if __name__ == "__main__":
    run(main)
