"""Latents with the mean and the standard deviation that the bridge expects, measured on the training latents."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..networks.convolutions import folded
from ..symmetry.groups import Group
from ..symmetry.pairs import Batch
from .base import Codec

CONSTANT = 1e-6  # of 1 + |mean|: a standard deviation below is rounding


class Standardised(Codec):
    """Another codec's latents z as (z - shift) · scale, channel by channel.

    shift, scale: a number a channel, as `measure` finds them; kept by the header of the bridge, no part of the weights
    or of the digest. Raises ValueError for numbers that cannot be.
    """

    def __init__(self, codec: Codec, shift: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__()
        fine = all(map(math.isfinite, (*shift, *scale))) and all(s > 0 for s in scale)
        if not fine or not len(shift) == len(scale) == codec.latent_channels:
            raise ValueError(
                f"latents have {codec.latent_channels} channels, expected as many shifts and positive scales, found "
                f"{list(shift)} and {list(scale)}"
            )
        self.codec = codec
        self.factor, self.image_channels, self.latent_channels = codec.factor, codec.image_channels, len(scale)
        self.clip, self.digest = codec.clip, codec.digest
        self.register_buffer("shift", torch.tensor(shift)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(scale)[:, None, None], persistent=False)
        self.shift: Tensor
        self.scale: Tensor

    def commutes(self, group: Group) -> bool:
        return self.codec.commutes(group)

    def distribution(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.codec.distribution(x)
        return (mean - self.shift) * self.scale, std * self.scale

    def decoded(self, z: Tensor) -> Tensor:
        return self.codec.decoded(z / self.scale + self.shift)


@torch.inference_mode()
def measure(
    codec: Codec, batches: Iterable[Batch], sigma_data: float = 0.5
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(shift, scale) of every channel, so that latents of targets and sources have mean 0 and std `sigma_data`.

    In float64 (Chan et al. 1979: means and squares of parts, joined), of latents whose cell is inside the mask; the
    most likely ones. A channel that is constant keeps scale 1. Batches lie on the codec's device.
    """
    count = 0
    mean = squares = torch.zeros(codec.latent_channels, dtype=torch.float64)
    with folded(codec):
        for batch in batches:
            inside = None if batch.mask is None else codec.mask(batch.mask)[:, 0]
            for images in (batch.target, batch.source):
                z = codec.encode(images).movedim(1, -1)
                values = (z.flatten(0, 2) if inside is None else z[inside]).double().cpu()
                if not len(values):
                    continue
                own, step = values.mean(0), values.mean(0) - mean
                share = len(values) / (count + len(values))
                count += len(values)
                mean = mean + step * share
                squares = squares + (values - own).square().sum(0) + step.square() * len(values) * (1 - share)
    if not count:
        raise ValueError("latents cannot be measured: no image has a latent pixel inside its mask")
    std = (squares / count).sqrt()
    scale = torch.where(std > CONSTANT * (1 + mean.abs()), sigma_data / std, 1.0)
    return tuple(mean.tolist()), tuple(scale.tolist())
