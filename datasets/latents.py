"""Latents of training pairs that were encoded once, as `scripts.encode_dataset` writes them.

DIR/latents.json     what they are of, and how far it came: a `Pack`
    target.npy       float32 [N, |G|, C, h, w]: of every pair the latents of its turned copies, the most likely
                     ones; with `latents` sample [N, |G|, 2 C, h, w], standard deviations after them
    source.npy       the same
    mask.npy         bool [N, |G|, 1, h, w], True where the whole latent pixel is defined; if any pair has a mask
    label.npy        int64 [N]; if there are classes
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbm.config import DataConfig, ImageShape
from ddbm.files.storage import read_json
from ddbm.settings import differences, from_dict, other_data, to_dict, values
from ddbm.symmetry.groups import IDENTITY, Element

from .base import Item

RECORD = "latents.json"


@dataclass(frozen=True)
class Pack:
    """What `latents.json` says."""

    codec: str  # its digest
    data: DataConfig
    images: ImageShape
    marks: dict[str, Any]  # what the pairs are known by
    group: str
    elements: tuple[Any, ...]  # (flip, quarter turns) of the copies, in their order
    latents: str  # mode, or sample: with standard deviations
    precision: str  # of the encoder
    whole: int  # pixels a side of the largest images that were encoded as a whole
    shape: tuple[int, ...]  # of target.npy and source.npy
    done: int = 0  # pairs
    masked: bool = False  # whether any of these has a mask

    def apart(self, other: "Pack", *more: str) -> list[str]:
        """`name: own -> other` where codec or pairs differ, or one of more fields."""
        each = [
            {"codec": pack.codec[:8]} | values(pack.data, deciding=True) | to_dict(pack.images)
            | {name: getattr(pack, name) for name in more}
            for pack in (self, other)
        ]  # fmt: skip
        return differences(*each) + other_data(self.marks, other.marks)


def read_pack(folder: Path) -> Pack:
    """What a folder of latents says of itself. Raises ValueError for any other."""
    path = folder / RECORD
    if not path.is_file():
        raise ValueError(f"{folder} holds no latents, there is no {RECORD}: scripts.encode_dataset makes them")
    return from_dict(Pack, read_json(path), str(path))


class Latents:
    """Training pairs as latents, each with its turned copies. Raises ValueError for what is not whole."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pack = folder, read_pack(folder)
        count, done = self.pack.shape[0], self.pack.done
        if done < count:
            raise ValueError(f"{folder} holds latents of {done} of {count} pairs: the command that began it goes on")
        self.position: dict[Element, int] = {(f, k): i for i, (f, k) in enumerate(self.pack.elements)}
        shape = self.pack.shape
        self.target, self.source = (self._opened(side, shape, np.float32) for side in ("target", "source"))
        self.mask = self._opened("mask", (*shape[:2], 1, *shape[3:]), bool) if self.pack.masked else None
        self.label = self._opened("label", shape[:1], np.int64) if self.pack.images.num_classes else None

    def __reduce__(self) -> Any:  # to a worker a memory map would travel as an array
        return Latents, (self.folder,)

    def __len__(self) -> int:
        return self.pack.shape[0]

    def get(self, index: int, rng: np.random.Generator | None) -> Item:
        return self.turned(index, IDENTITY)

    def turned(self, index: int, g: Element) -> Item:
        """The copy of a pair that was turned by g before it was encoded."""
        at = index, self.position[g]

        def copy(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.array(array[at]))

        mask = None if self.mask is None else copy(self.mask)
        return Item(copy(self.target), copy(self.source), mask, None if self.label is None else int(self.label[index]))

    def _opened(self, name: str, shape: tuple[int, ...], kind: type) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.shape != shape or array.dtype != kind:
                raise ValueError
        except (OSError, ValueError, EOFError):
            raise ValueError(f"{path} is gone or damaged: encode into another folder") from None
        return array
