"""How near images lie to the targets of the training: what was copied from there is seen at once."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbm.symmetry.groups import IDENTITY, Element, act, inverse, view

SIDE = 32  # pixels a side, at most, that are compared; larger images are made smaller, by the means of equal blocks


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The root mean square over values of 8 bits by which images differ that are SIDE a side at most, float64 [N].

    a, b: uint8 [N, H, W, C].
    """
    difference = _small(a).double() - _small(b).double()
    return difference.square().mean((1, 2, 3)).sqrt().numpy()


def nearest(
    images: np.ndarray,
    targets: Iterable[np.ndarray],
    elements: Sequence[Element] = (IDENTITY,),
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Of every image the nearest of the targets, turned by one of the elements; uint8 [N, H, W, C] as `images`.

    targets: batches, of which one at a time is in memory.
    """
    small = _small(images).to(device)
    turned = torch.stack([act(g, small).flatten(1) for g in elements], 1)  # of an image, in place of the targets
    own, least = turned.square().sum(-1, keepdim=True), np.full(len(images), np.inf)
    found = np.zeros_like(images)
    for batch in targets:
        others = _small(batch).to(device).flatten(1)
        squares = own - 2 * turned @ others.T + others.square().sum(-1)  # [N, elements, B]
        values, places = squares.flatten(1).min(1)
        for i in np.flatnonzero(values.cpu().numpy() < least):
            g, place = divmod(int(places[i]), len(batch))
            found[i] = view(inverse(elements[g]), batch[place].transpose(2, 0, 1)).transpose(1, 2, 0)
            least[i] = values[i]
    return found


def _small(images: np.ndarray) -> Tensor:
    """uint8 [N, H, W, C] -> float32 [N, C, h, w] around 0."""
    height, width = images.shape[1:3]
    factor = -(-max(height, width) // SIDE)
    size = (-(-height // factor), -(-width // factor))
    parts = []
    for start in range(0, len(images), 64):  # as floats large images would be many times as large
        values = torch.from_numpy(np.ascontiguousarray(images[start : start + 64])).permute(0, 3, 1, 2).float() - 127.5
        parts.append(values if factor == 1 else F.adaptive_avg_pool2d(values, size))
    return torch.cat(parts)
