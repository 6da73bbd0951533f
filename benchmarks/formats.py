"""How fast are pairs read? `python -m benchmarks.formats [--flag value ...]`: a folder of PNG against other formats.

Pairs of random pixels are written once and converted by `datasets.pack`; all formats are read in turns, pair by pair
and in random order, as training reads them. Medians over rounds.
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

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


def main(argv: Sequence[str]) -> int:
    settings, _ = from_flags(FormatsConfig, argv)
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        places = {"folder": Path(folder, "pairs")}
        for n in range(settings.pairs):
            for side in ("source", "target"):
                pixels = rng.integers(0, 256, (settings.size, settings.size, 3), np.uint8)
                write_pixels(places["folder"] / "train" / side / f"{n:05}", Picture(pixels, None))
        for name in (name for name, package in NEEDS.items() if find_spec(package)):
            places[name] = Path(folder, f"pairs.{name}")
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                pack.main([str(places["folder"]), str(places[name]), "--format", name])
        datas = {name: open_data("pairs", "train", data_dir=str(place)) for name, place in places.items()}
        times = interleaved({name: reading(data) for name, data in datas.items()}, settings.rounds)
    rows = [["format", "ms a pair", "times faster"]]
    for name, seconds in times.items():
        milliseconds = 1000 * np.median(seconds) / len(datas[name])
        rows.append([name, f"{milliseconds:.3f}", f"{np.median(times['folder'] / seconds):.1f}"])
    print(aligned(rows))
    return 0


if __name__ == "__main__":
    run(main)
