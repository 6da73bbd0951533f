"""Grids of volumes: one that both sides of a pair share, and the way back to the source's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .series import toolkit


@dataclass(frozen=True)
class Grid:
    """Voxels x, y, z; mm a voxel; mm of the middle of the first; directions of the axes as the columns of a matrix."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]  # 9 numbers, row by row

    def alike(self, other: "Grid") -> bool:
        near = [np.allclose(getattr(self, n), getattr(other, n), atol=1e-4) for n in ("spacing", "origin", "direction")]
        return self.size == other.size and all(near)


def grid_of(image: Any) -> Grid:
    return Grid(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def upright(image: Any) -> Any:
    """The same volume, its axes in the order and sense of LPS: slices are axial, left is left everywhere."""
    return toolkit().DICOMOrient(image, "LPS")


def common(reference: Grid, spacing: Sequence[float], size: int) -> Grid:
    """A grid about the middle of the reference; spacing: mm of x, y, z, 0: its own; size: voxels in x and y, 0: to its
    edges.
    """
    step = np.where(np.array(spacing) > 0, spacing, reference.spacing)
    extent = np.array(reference.size) * reference.spacing
    count = np.maximum(1, np.rint(extent / step - 1e-6)).astype(int)
    if size:
        count[:2] = size
    axes = np.reshape(reference.direction, (3, 3))
    middle = reference.origin + axes @ ((np.array(reference.size) - 1) / 2 * reference.spacing)
    origin = middle - axes @ ((count - 1) / 2 * step)
    return Grid(tuple(count.tolist()), tuple(step.tolist()), tuple(origin.tolist()), reference.direction)


def resized(grid: Grid, width: int, height: int) -> Grid:
    """The grid of the same box with other numbers of voxels in x and y."""
    count = np.array([width, height, grid.size[2]])
    step = np.array(grid.spacing) * grid.size / count
    axes = np.reshape(grid.direction, (3, 3))
    origin = grid.origin + axes @ ((step - grid.spacing) / 2)
    return Grid(tuple(count.tolist()), tuple(step.tolist()), tuple(origin.tolist()), grid.direction)


def onto(image: Any, grid: Grid, fill: float, nearest: bool = False) -> Any:
    """The volume on another grid, trilinear, `fill` outside; as it is where the grids are one."""
    if grid.alike(grid_of(image)):
        return image
    itk = toolkit()
    how = itk.sitkNearestNeighbor if nearest else itk.sitkLinear
    return itk.Resample(
        image, grid.size, itk.Transform(), how, grid.origin, grid.spacing, grid.direction, fill, image.GetPixelID()
    )


def middle(grid: Grid, width: int, height: int) -> Grid:
    """So many of its voxels in x and y, as a picture's middle is cut out."""
    first = np.array([(grid.size[0] - width) // 2, (grid.size[1] - height) // 2, 0])
    origin = grid.origin + np.reshape(grid.direction, (3, 3)) @ (first * grid.spacing)
    return Grid((width, height, grid.size[2]), grid.spacing, tuple(origin.tolist()), grid.direction)


def covered(image: Any, grid: Grid) -> np.ndarray:
    """Where on a grid a volume has values, bool [z, y, x]."""
    found: np.ndarray = toolkit().GetArrayFromImage(onto(image * 0 + 1, grid, 0, nearest=True)) > 0.5
    return found


def on(array: np.ndarray, grid: Grid) -> Any:
    """An array [z, y, x] as the volume on a grid."""
    image = toolkit().GetImageFromArray(array)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image
