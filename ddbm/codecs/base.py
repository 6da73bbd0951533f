"""What stands between images and the bridge: an autoencoder, or nothing (`Pixels`)."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..config import ImageShape
from ..networks.unet import check_size
from ..symmetry.frames import NoiseSource
from ..symmetry.groups import Group


class Codec(nn.Module):
    """Images float32 `[B, C, H, W]` in [-1, 1] to latents `[B, latent_channels, H / factor, W / factor]`, and back.

    A kind of codec says what its `posterior` is and how latents are `decoded`. Both run with gradients as without.
    """

    factor: int  # pixels along each axis that a latent pixel stands for
    image_channels: int
    latent_channels: int
    clip: tuple[float, float] | None = None  # within what the denoiser's estimates lie; None: anywhere
    digest: str  # of all that decides what it does, whatever the file was; see `digest_of`

    def train(self, mode: bool = True) -> "Codec":
        """Stays in evaluation mode: what is trained is a bridge behind it."""
        return super().train(False)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of images with `image_channels` channels."""
        raise NotImplementedError

    def decoded(self, z: Tensor) -> Tensor:
        """Images with `image_channels` channels, not clamped."""
        raise NotImplementedError

    def commutes(self, group: Group) -> bool:
        """Whether latents and images turn as what they are made of, by construction."""
        return False

    def shape(self, pixels: ImageShape) -> ImageShape:
        """That of the latents, both sides'. Raises ValueError for sizes and channels that do not fit."""
        self._check_channels(pixels.source_channels, "sources")
        self._check_channels(pixels.target_channels, "targets")
        check_size(pixels.height, pixels.width, cell=self.factor)
        return dataclasses.replace(
            pixels,
            target_channels=self.latent_channels,
            source_channels=self.latent_channels,
            height=pixels.height // self.factor,
            width=pixels.width // self.factor,
        )

    def encode(self, x: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """The most likely latents, or, with noise, a sample: mean + std · noise(mean)."""
        mean, std = self.distribution(x)
        return mean if noise is None else mean + std * noise(mean)

    def distribution(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The `posterior` of images that may be grey, which are repeated; of their type, whatever it is computed in."""
        self._check_channels(x.shape[1], "images")
        grey = x.shape[1] != self.image_channels
        mean, std = self.posterior(x.repeat(1, self.image_channels, 1, 1) if grey else x)
        return mean.to(x.dtype), std.to(x.dtype)

    def decode(self, z: Tensor, channels: int) -> Tensor:
        """Images in [-1, 1]; with 1 channel where the codec has more, the mean of them."""
        self._check_channels(channels, "images")
        x = self.decoded(z).to(z.dtype).clamp(-1, 1)
        return x if channels == self.image_channels else x.mean(1, keepdim=True)

    def mask(self, m: Tensor) -> Tensor:
        """bool `[B, 1, H, W]` to `[B, 1, H / factor, W / factor]`: True where the whole cell is inside."""
        return m.unflatten(3, (-1, self.factor)).unflatten(2, (-1, self.factor)).all(5).all(3)

    def _check_channels(self, channels: int, what: str) -> None:
        if channels not in (1, self.image_channels):
            raise ValueError(
                f"the codec takes images of {self.image_channels} channels, or of 1, which it repeats, and the {what} "
                f"have {channels}: use another --codec, or pixels"
            )


class Pixels(Codec):
    """No codec: latents are the images."""

    factor, clip, digest = 1, (-1.0, 1.0), ""
    image_channels = latent_channels = 0  # as the images

    def commutes(self, group: Group) -> bool:
        return True

    def shape(self, pixels: ImageShape) -> ImageShape:
        return pixels

    def encode(self, x: Tensor, noise: NoiseSource | None = None) -> Tensor:
        return x

    def decode(self, z: Tensor, channels: int) -> Tensor:
        return z

    def mask(self, m: Tensor) -> Tensor:
        return m


class Stored(Codec):
    """Stands where a codec was, for latents that it has encoded before (scripts.encode_dataset).

    What it takes for images `[B, C or 2 C, h, w]` are their means and, where they were kept, standard deviations.
    """

    factor = 1

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.latent_channels = self.image_channels = latent_channels
        self.digest = ""

    def distribution(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = x[:, : self.latent_channels], x[:, self.latent_channels :]
        return mean, std if std.shape[1] else torch.zeros_like(mean)


def digest_of(weights: Mapping[str, Tensor], settings: object) -> str:
    """SHA-256 of settings (as JSON) and of names, types, shapes and bytes of weights, in the order of their names."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(weights):
        value = weights[name].detach().cpu()
        digest.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
