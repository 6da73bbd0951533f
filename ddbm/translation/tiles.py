"""Large images through a codec: in tiles that lie symmetrically and are blended, one at a time."""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..codecs import Codec, Pixels
from ..files.canvas import canvas
from ..model import BridgeModel
from ..networks.convolutions import folded
from ..symmetry.averaging import averaged
from ..symmetry.groups import Group
from .windows import Axis, axis

SIDE, OVERLAP = 64, 0.25  # latent pixels of a tile, and the least share of it in common with the next


def encoded(
    model: BridgeModel, images: np.ndarray, group: Group | None = None, folder: Path | None = None
) -> np.ndarray:
    """The most likely latents of images float32 `[B, C, H, W]`, by tiles; group: averaged over it.

    folder: where arrays larger than `canvas.DISK` lie.
    """
    if isinstance(model.codec, Pixels):
        return images
    return encoded_by(averaged(model.encode, group) if group else model.encode, model.codec, images, folder=folder)


def encoded_by(
    run: Callable[[Tensor], Tensor], codec: Codec, images: np.ndarray, parts: int = 1, folder: Path | None = None
) -> np.ndarray:
    """The same of any `run`, which makes `parts` times the codec's channels of a tile."""
    size = [n // codec.factor for n in images.shape[2:]]
    out, axes = canvas((len(images), parts * codec.latent_channels, *size), folder), _axes(size)
    return _blended(codec, run, images, [a.finer(codec.factor) for a in axes], axes, out)


def decoded(model: BridgeModel, z: np.ndarray, group: Group | None = None, folder: Path | None = None) -> np.ndarray:
    """Images float32 `[B, C, H, W]` in [-1, 1] of latents, in the same way.

    Norms of a published codec see a tile and not the image, so this is not what it makes of the whole (docs/latent.md).
    """
    codec = model.codec
    if isinstance(codec, Pixels):
        return z
    axes = _axes(z.shape[2:])
    shape = (len(z), model.images.target_channels, *(n * codec.factor for n in z.shape[2:]))
    run = averaged(model.decode, group) if group else model.decode
    return _blended(codec, run, z, axes, [a.finer(codec.factor) for a in axes], canvas(shape, folder))


def _axes(size: Sequence[int]) -> list[Axis]:
    """Of square tiles, so that quarter turns fit them."""
    side = min(SIDE, *size)
    return [axis(n, side, OVERLAP) for n in size]


@torch.inference_mode()
def _blended(
    codec: Codec, run: Callable[[Tensor], Tensor], x: np.ndarray, before: list[Axis], after: list[Axis], out: np.ndarray
) -> np.ndarray:
    """out plus what `run` makes of every tile, by its shares; before, after: where the tiles lie in x and in out."""
    device = next(codec.parameters()).device
    with folded(codec):
        for image, i, j in product(range(len(x)), *(range(len(a.starts)) for a in before)):
            rows, columns = _tile(before, i, j)
            cut = torch.from_numpy(np.ascontiguousarray(x[image, :, rows, columns])).to(device)
            share = after[0].shares[i][:, None] * after[1].shares[j]
            rows, columns = _tile(after, i, j)
            out[image, :, rows, columns] += run(cut[None])[0].cpu().numpy() * share
    return out


def _tile(axes: list[Axis], i: int, j: int) -> tuple[slice, slice]:
    """Its rows and columns."""
    rows, columns = (slice(a.starts[n], a.starts[n] + a.shares.shape[1]) for a, n in zip(axes, (i, j), strict=True))
    return rows, columns
