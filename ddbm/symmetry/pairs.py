"""A batch of pairs, as data sets yield it and models take it."""

from typing import NamedTuple

import torch
from torch import Tensor

from .groups import Element, act


class Batch(NamedTuple):
    target: Tensor  # float32 [B, C, H, W] in [-1, 1]
    source: Tensor  # float32 [B, C', H, W] in [-1, 1]
    index: Tensor  # type: ignore[assignment]  # int64 [B], the position in the data set (hides tuple.index)
    mask: Tensor | None  # bool [B, 1, H, W], True where the images are defined
    label: Tensor | None  # int64 [B]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device, copied without waiting where the memory allows it."""
        return Batch(*(None if x is None else x.to(device, non_blocking=True) for x in self))  # type: ignore[arg-type]

    def rows(self, part: slice) -> "Batch":
        """A part of the batch."""
        return Batch(*(None if x is None else x[part] for x in self))  # type: ignore[arg-type]

    def turned(self, g: Element) -> "Batch":
        """Every pair turned by g; it keeps its index, and so its noise, which turns with it."""
        mask = None if self.mask is None else act(g, self.mask)
        return self._replace(target=act(g, self.target), source=act(g, self.source), mask=mask)
