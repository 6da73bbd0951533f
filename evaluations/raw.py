"""A feature map without training, for where no weights are to be had: fixed random filters, the same everywhere.

Three layers of random convolutions with rectifiers, each at half the resolution of the one before; the features of an
image are the mean and the standard deviation of every channel: 2 (64 + 64 + 96) = 448. They are no FID.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SEED = 2024
LAYERS = ((64, 3, 5), (64, 64, 3), (96, 64, 3))  # channels out and in, pixels a side of the kernel
FEATURES = 2 * sum(channels for channels, _, _ in LAYERS)


def filters() -> list[Tensor]:
    """float32 [out, in, k, k], variance 2 / fan-in; from numpy's RandomState, whose stream is frozen for ever."""
    random = np.random.RandomState(SEED)
    drawn = [random.standard_normal((out, into, k, k)) * np.sqrt(2 / (into * k * k)) for out, into, k in LAYERS]
    return [torch.from_numpy(kernel.astype(np.float32)) for kernel in drawn]


def maps(kernels: list[Tensor], x: Tensor) -> list[Tensor]:
    """What every layer makes of images [B, 3, H, W] in [-1, 1], H, W >= 4; 0, mid-grey, stands beyond the border."""
    found: list[Tensor] = []
    for kernel in kernels:
        x = F.conv2d(F.avg_pool2d(x, 2) if found else x, kernel, padding="same").relu()
        found.append(x)
    return found


def features(kernels: list[Tensor], x: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1], H, W >= 8 -> [B, 448]."""
    flat = [found.flatten(2) for found in maps(kernels, x)]
    return torch.cat([part for x in flat for part in (x.mean(2), x.std(2, unbiased=False))], 1)
