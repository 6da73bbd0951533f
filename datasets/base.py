"""What every data set offers: `PairedData`, and an `Item` of it; how it is asked for is `ddbm.config.DataConfig`."""

from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from .skipping import Skipped


class Item(NamedTuple):
    """One pair; both images have the same height and width, each its own number of channels."""

    target: Tensor  # float32 [C, H, W] in [-1, 1]; mid-grey, all 0, where the data has no targets
    source: Tensor  # float32 [C', H, W] in [-1, 1]
    mask: Tensor | None  # bool [1, H, W], True where both images are defined, both are 0 elsewhere; None: everywhere
    label: int | None  # 0 ... num_classes - 1, None without classes

    def within(self, inside: Tensor) -> "Item":
        """The pair, not defined outside of `inside`, bool [1, H, W], either."""
        mask = inside if self.mask is None else self.mask & inside
        return self._replace(target=self.target * mask, source=self.source * mask, mask=mask)


class Pairs(Protocol):
    """What batches are made of."""

    def __len__(self) -> int: ...

    def get(self, index: int, rng: np.random.Generator | None) -> Item:
        """The pair at `index`; `rng` places random crops, None means deterministic."""
        ...


class PairedData(Pairs, Protocol):
    """A split of a paired data set, read lazily."""

    size: tuple[int, int]  # height, width of every item
    source_channels: int
    target_channels: int
    targets: bool  # whether there are any; without them the channels are those that the model makes
    num_classes: int  # 0: no labels
    classes: list[str]  # their names, those of labels 0, 1, ...; or empty
    split: str  # train, val, test, or all
    layout: str  # how its pairs lie on the disk, or ""
    native: tuple[int, int]  # height, width of the first pair, before it was fitted
    stored: tuple[str, str, str]  # types of a source's and of a target's pixels in the files, and a target's format
    notice: str  # one line a script may print, or ""
    names: list[str]  # a readable name for each index
    first: int  # the pair that sizes, channels and marks are those of
    skipped: Skipped | None  # what was passed over, where that was asked for
