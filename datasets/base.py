"""What every data set offers (`PairedData`, `Item`) and how it is asked for (`Options`)."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

SPLITS = ("train", "val", "test")
LAYOUTS = ("auto", "side_by_side", "two_folders", "suffix")


class Item(NamedTuple):
    """One pair; both images have the same height and width, each its own number of channels."""

    target: Tensor  # float32 [C, H, W] in [-1, 1]
    source: Tensor  # float32 [C', H, W] in [-1, 1]
    mask: Tensor | None  # bool [1, H, W], True where both images are defined, both are 0 elsewhere; None: everywhere
    label: int | None  # 0 ... num_classes - 1, None without classes


class PairedData(Protocol):
    """A split of a paired data set, read lazily."""

    size: tuple[int, int]  # height, width of every item
    source_channels: int
    target_channels: int
    num_classes: int  # 0: no labels
    notice: str  # one line a script may print, or ""
    names: list[str]  # a readable name for each index

    def __len__(self) -> int: ...

    def get(self, index: int, rng: np.random.Generator | None) -> Item:
        """The pair at `index`; `rng` places random crops, None means deterministic."""
        ...


@dataclass(frozen=True)
class Options:
    """The settings of `open_data`; a value outside the listed ones is refused here, once."""

    data_dir: str | Path = ""
    image_size: str = "native"
    fit: str = "resize"
    layout: str = "auto"
    source_half: str = "left"
    source_folder: str = ""
    target_folder: str = ""
    source_suffix: str = ""
    source_white: float = 0.0
    target_white: float = 0.0
    num_classes: int = 0

    def __post_init__(self) -> None:
        parse_size(self.image_size)
        choose("fit", self.fit, ("resize", "crop"))
        choose("layout", self.layout, LAYOUTS)
        choose("source_half", self.source_half, ("left", "right"))
        for name in ("source_white", "target_white", "num_classes"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number >= 0 (0: automatic)")
        if bool(self.source_folder) != bool(self.target_folder):
            raise ValueError(
                f"source_folder '{self.source_folder}' and target_folder '{self.target_folder}': give both or neither"
            )
        if self.layout == "suffix" and not self.source_suffix:
            raise ValueError("layout suffix needs source_suffix, e.g. --source_suffix _normal")
        wanted = {"suffix": self.source_suffix, "two_folders": self.source_folder}
        given = [layout for layout, value in wanted.items() if value]
        if len(given) > 1 or (given and self.layout not in ("auto", given[0])):
            raise ValueError(
                f"layout {self.layout} with source_suffix '{self.source_suffix}' and source_folder "
                f"'{self.source_folder}': source_suffix is for layout suffix, source_folder for two_folders; keep one"
            )

    @property
    def known_layout(self) -> str:
        """The layout that the settings name or imply, "auto" where the folders decide."""
        if self.layout != "auto":
            return self.layout
        return "suffix" if self.source_suffix else "two_folders" if self.source_folder else "auto"


def choose(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a value that is not among the known ones."""
    if value not in known:
        raise ValueError(f"{name} '{value}' is unknown, expected one of: {', '.join(known)}")


def parse_size(text: str) -> tuple[int, int] | None:
    """`"64"` or `"64x96"` (height x width) as (height, width) in pixels; None for `"native"`."""
    if text == "native":
        return None
    match = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", text, re.ASCII)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not height or not width:
        raise ValueError(f"image_size '{text}' is no size; expected native, N or HxW in pixels, e.g. 64 or 64x96")
    return height, width
