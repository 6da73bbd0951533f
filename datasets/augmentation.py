"""Elements of a group; turns by any angle, changes of scale and small translations: one draw for all of a pair."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, log1p, pi, sin

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbm.config import DataConfig, RunConfig
from ddbm.symmetry.groups import GROUPS, IDENTITY, Element, act

from .base import Item
from .masks import circle


def turned(item: Item, element: Element) -> Item:
    """The pair under an element of a group: one draw for all its images."""
    mask = None if item.mask is None else act(element, item.mask)
    return item._replace(target=act(element, item.target), source=act(element, item.source), mask=mask)


@dataclass(frozen=True)
class Affine:
    """The largest moves of a training pair; all 0: it stays as it is, and nothing is drawn.

    angle: degrees, either way; what turns keeps the circle inscribed in its image alone. scale: it is enlarged or made
    smaller by at most 1 + this. shift: whole pixels along each axis. resize: how target and source are interpolated.
    """

    angle: float = 0.0
    scale: float = 0.0
    shift: int = 0
    resize: tuple[str, str] = ("bilinear", "bilinear")

    def __call__(self, item: Item, rng: np.random.Generator) -> Item:
        if not (self.angle or self.scale or self.shift):
            return item
        turn = rng.uniform(-self.angle, self.angle) * pi / 180
        factor = float(np.exp(rng.uniform(-1, 1) * log1p(self.scale)))
        right, down = (int(n) for n in rng.integers(-self.shift, self.shift, 2, endpoint=True))
        matrix = factor * torch.tensor([[cos(turn), sin(turn)], [-sin(turn), cos(turn)]], dtype=torch.float64)
        item = moved(item, matrix, (right, down), self.resize)
        return item.within(circle(*item.target.shape[1:])) if self.angle else item


STILL = Affine()


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training pair that was read and fitted."""

    elements: tuple[Element, ...] = (IDENTITY,)
    affine: Affine = STILL

    @classmethod
    def of(cls, settings: RunConfig, data: DataConfig) -> "Augmentation":
        """That of a training."""
        resize = (data.target_resize, data.source_resize)
        return cls(
            GROUPS[settings.augment].elements,
            Affine(settings.augment_angle, settings.augment_scale, settings.augment_shift, resize),
        )

    def steps(self, item: Item, rng: np.random.Generator) -> Iterator[Item]:
        """The pair after each step, in their order; the last is what training sees."""
        yield (item := turned(item, self.element(rng)))
        yield self.affine(item, rng)

    def element(self, rng: np.random.Generator) -> Element:
        return self.elements[rng.integers(len(self.elements))]


def moved(item: Item, matrix: Tensor, shift: tuple[int, int], resize: tuple[str, str]) -> Item:
    """The pair under x -> matrix x + shift, float64 [2, 2] and pixels, of (column, row) about the centre.

    What comes from outside the images is not defined; what is hidden counts for nothing, and seen is what is seen by
    more than half, on both sides.
    """
    height, width = item.target.shape[1:]
    rows, columns = (torch.arange(n, dtype=torch.float64) + 0.5 - n / 2 for n in (height, width))
    places = torch.stack(torch.broadcast_tensors(columns - shift[0], rows[:, None] - shift[1]), -1)
    grid = (places @ torch.linalg.inv(matrix).T) * torch.tensor([2 / width, 2 / height], dtype=torch.float64)
    inside = torch.ones(1, height, width, dtype=torch.bool) if item.mask is None else item.mask
    images, masks = [], []
    for image, mode in zip((item.target, item.source), resize, strict=True):
        both = torch.cat([image * inside, inside.float()]).double()[None]
        found = F.grid_sample(both, grid[None], mode, "zeros", align_corners=False)[0]
        masks.append(found[-1:] > 0.5)
        images.append((found[:-1] / found[-1:].clamp(min=0.5)).clamp(-1, 1).float())
    return item._replace(target=images[0], source=images[1], mask=None).within(masks[0] & masks[1])
