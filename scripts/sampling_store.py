"""The images of a sampling that has not ended, so that it goes on after a kill; and what a folder of one holds.

    OUT/.parts/
        header.json     what the images depend on, so that no other sampling goes on with them
        samples.npy     uint8 [K N, H, W, C], K draws, one after the other, of the N images of the data; a hole in the
                        file where there is none yet
        nfe.npy         uint32 [K N], the evaluations an image took; 0: it is not there yet

A finished one is known by its `sampling.json`, and a folder holds one alone.

All ranks write the bytes of their own images into these files (`canvas.write_rows`).
"""

import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ddbm.files.canvas import make_rows, write_rows
from ddbm.files.storage import named, read_json, write_whole
from ddbm.settings import differences, other_data
from evaluations.images import order_digest

RECORD = "sampling.json"
WRITTEN = re.compile(
    r"((samples|reference|sources)_\d+x\d+x\d+x\d+(_nfe\d+)?(\.npz|/.*)?|trajectory_\d{6}_.*\.png|grid\.png|sampling\.json)"
)  # what sampling writes into a folder
PART = re.compile(r"(\d{8})_(\d{8})\.npz")  # a file for every batch, as versions before this one wrote them


class Store:
    """The images of a sampling of `shape`, `[N, H, W, C]`, each drawn `draws` times, into the directory `out`."""

    def __init__(self, out: Path, shape: tuple[int, ...], draws: int = 1) -> None:
        self.out, self.draws, self.folder = out, draws, out / ".parts"
        self.shape = (draws * shape[0], *shape[1:])
        self.header, self.samples, self.nfe = (self.folder / f for f in ("header.json", "samples.npy", "nfe.npy"))

    def begin(self, header: dict[str, Any], restart: bool) -> dict[str, Any]:
        """Takes up what a sampling with this header left; with `restart` nothing. Returns what it is known by.

        Raises ValueError for images of another sampling, as they may be hours of work.
        """
        header = json.loads(json.dumps(header))
        if restart:
            self.remove()
        paths = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        parts = [(int(match[1]), int(match[2]), path) for path in paths if (match := PART.fullmatch(path.name))]
        if held := np.count_nonzero(self.marks()) + sum(stop - start for start, stop, _ in parts):
            known: dict[str, Any] = {}
            with suppress(FileNotFoundError, ValueError):
                known = read_json(self.header)
            if differing := apart(known, header):
                raise ValueError(
                    f"{self.out} holds {held} images of an unfinished sampling with other settings "
                    f"({'; '.join(differing)}): use those to go on with it, another --out_dir, or --restart to throw "
                    "them away"
                )
            header = known
        else:
            self.remove()
            with named(self.folder):
                self.folder.mkdir()
            write_whole(self.header, json.dumps(header, indent=2).encode())
        if not self.count():
            for path, kind, shape in ((self.samples, np.uint8, self.shape), (self.nfe, np.uint32, self.shape[:1])):
                make_rows(path, shape, kind)
        for start, _, path in parts:  # batches of an older version; a damaged one is sampled again
            damage = (ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile)
            with suppress(*damage), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                self.write(start, arrays["sample"], int(arrays["nfe"]))
            path.unlink()
        return header

    def marks(self) -> np.ndarray:
        """The evaluations of the images that are there, whatever sampling they are of."""
        with suppress(FileNotFoundError, ValueError, EOFError):  # cut off, or never whole
            return np.asarray(np.load(self.nfe))
        return np.zeros(0, np.uint32)

    def evaluations(self) -> np.ndarray:
        """Those that every image of the data took, uint32 [K N], draw by draw; 0 where it is not there."""
        with suppress(FileNotFoundError, ValueError, EOFError):
            marks = self.marks()
            if np.load(self.samples, mmap_mode="r").shape == self.shape and marks.shape == self.shape[:1]:
                return marks
        return np.zeros(self.shape[:1], np.uint32)

    def count(self, below: int | None = None) -> int:
        """How many images are there, of the first `below` of every draw or of all."""
        return int((self.evaluations().reshape(self.draws, -1)[:, :below] > 0).sum())

    def images(self, count: int) -> np.ndarray:
        """The first `count` images of every draw, uint8 `[K, count, H, W, C]`, which lie on the disk."""
        return np.load(self.samples, mmap_mode="r").reshape(self.draws, -1, *self.shape[1:])[:, :count]

    def write(self, start: int, images: np.ndarray, nfe: int, draw: int = 0) -> None:
        """Keeps the images from `start` on, uint8 `[B, H, W, C]`: first they are on the disk, then they count."""
        start += draw * self.shape[0] // self.draws
        for path, rows in ((self.samples, images), (self.nfe, np.full(len(images), nfe, np.uint32))):
            write_rows(path, start, rows, self.shape[0])

    def remove(self) -> None:
        """Nothing counts any more once `nfe.npy` is gone."""
        self.nfe.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def apart(known: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What two samplings depend on differently; of the reader and the data's marks an older version said nothing."""
    own = {name: value for name, value in wanted.items() if name in known or name not in ("reader", "marks")}
    usual = {"draws": 1}  # where it does not say
    differing = differences(usual | known | {"marks": 0}, usual | own | {"marks": 0})
    differing += other_data(known.get("marks", {}), wanted.get("marks", {}))
    return [re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1", text) for text in differing]


def finished(out: Path, header: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What `sampling.json` says of the images in a folder, empty if there is none.

    header: what the images asked for depend on; names: of all pairs. Raises ValueError for those of another sampling.
    """
    try:
        record = dict(read_json(out / RECORD))
        kept, settings = int(record["count"]), dict(record["settings"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    wanted, known = json.loads(json.dumps(header)), record.get("depends_on")
    if known is None:  # an older version said less
        known = {name: value for name, value in (settings | record).items() if name in wanted and name != "data_dir"}
        wanted = {name: wanted[name] for name in known}
    differing = apart(known, wanted)
    if record.get("order_digest", "") not in ("", order_digest(names[:kept])):
        differing.append("other pairs, or another order")
    if differing:
        raise ValueError(
            f"{out} holds {kept} images of another sampling ({'; '.join(differing)}): give another --out_dir, or "
            "--restart to replace it"
        )
    return record


def missing(evaluations: np.ndarray, batch_size: int) -> list[range]:
    """The images without evaluations, batch by batch: batch k is of images k batch_size to the next's.

    So a batch is made of the same images whatever the number of ranks, and whichever were finished before.
    """
    runs: list[range] = []
    for i in np.flatnonzero(evaluations == 0).tolist():
        if runs and runs[-1].stop == i and i % batch_size:
            runs[-1] = range(runs[-1].start, i + 1)
        else:
            runs.append(range(i, i + 1))
    return runs
