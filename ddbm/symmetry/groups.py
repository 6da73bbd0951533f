"""Finite groups that act on the pixel grid, as data.

An element is `(flip, quarter_turns)`: mirror left-right first (if flip), then turn counter-clockwise by
quarter turns. H mirrors left-right (the width axis), V mirrors top-bottom. This is the only place that says so.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

Element = tuple[int, int]  # (flip, quarter_turns)
IDENTITY: Element = (0, 0)


def act(g: Element, x: Tensor) -> Tensor:
    """g · x for images or kernels `[..., H, W]`; a quarter turn swaps H and W."""
    flip, turns = g
    return torch.rot90(x.flip(-1) if flip else x, turns, (-2, -1))


def view(g: Element, x: np.ndarray) -> np.ndarray:
    """g · x as a view of the same memory: what is written there is written into x."""
    flip, turns = g
    return np.rot90(np.flip(x, -1) if flip else x, turns, (-2, -1))


def multiply(g: Element, h: Element) -> Element:
    """The product g h: `act(multiply(g, h), x) == act(g, act(h, x))`."""
    (f, k), (e, m) = g, h
    return ((f + e) % 2, (k + (-m if f else m)) % 4)  # F R = R^-1 F


def inverse(g: Element) -> Element:
    """The element with `multiply(inverse(g), g) == (0, 0)`: a mirror is its own inverse."""
    flip, turns = g
    return g if flip else (0, -turns % 4)


@dataclass(frozen=True)
class Group:
    """A finite group: its elements in a fixed order, the identity first."""

    name: str
    elements: tuple[Element, ...]

    def __len__(self) -> int:
        return len(self.elements)

    @cached_property
    def products(self) -> tuple[tuple[int, ...], ...]:
        """`products[i][j]` is the index of `elements[i] elements[j]`."""
        index = {g: i for i, g in enumerate(self.elements)}
        return tuple(tuple(index[multiply(g, h)] for h in self.elements) for g in self.elements)

    @cached_property
    def inverses(self) -> tuple[int, ...]:
        """`inverses[i]` is the index of the inverse of `elements[i]`."""
        return tuple(self.elements.index(inverse(g)) for g in self.elements)

    @property
    def turns(self) -> bool:
        """Whether a quarter turn is among the elements, so that images must be square."""
        return any(k % 2 for _, k in self.elements)

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError where the group does not act on `height x width` images."""
        if self.turns and height != width:
            raise ValueError(
                f"group {self.name} turns images by 90 degrees and needs square ones, not {height}x{width}: "
                "use a square --image_size, or one of the groups H, V, C2, D2"
            )


GROUPS = {
    group.name: group
    for group in (
        Group("none", ((0, 0),)),
        Group("H", ((0, 0), (1, 0))),
        Group("V", ((0, 0), (1, 2))),
        Group("C2", ((0, 0), (0, 2))),
        Group("C4", ((0, 0), (0, 1), (0, 2), (0, 3))),
        Group("D2", ((0, 0), (0, 2), (1, 0), (1, 2))),
        Group("D4", ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3))),
    )
}
