"""What an autoencoder is trained to do: to give its images back, from latents that turn as they do."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..bridges.preconditioning import mean_inside
from ..codecs.symmetric import kl
from ..config import CodecHeader, CodecShape, CodecTrainConfig
from ..model import autocast
from ..settings import differences, to_dict
from ..symmetry.groups import IDENTITY, Element, Group, act
from ..symmetry.pairs import Batch
from .objectives import Copies

Perceptual = Callable[[Tensor, Tensor], Tensor]  # float32 images [N, C, H, W] in [-1, 1] and others -> [N]


class AutoencoderModel(nn.Module):
    """An autoencoder as the trainer takes it.

    network: x, noise -> reconstruction, mean and log variance; it has `moments` of images, `decoded` latents, `factor`
    and `latent_channels`, too.
    """

    header, section = CodecHeader, "codec"

    def __init__(self, network: Any, images: CodecShape) -> None:
        super().__init__()
        self.network, self.images, self.precision = network, images, "fp32"
        self.described = dict[str, Any]()  # what the header says beside

    def differing(self, header: CodecHeader) -> list[str]:
        """In what a checkpoint is made for other images, as `name: old -> new`."""
        return differences(to_dict(header.images), to_dict(self.images))

    def adopt(self, header: CodecHeader) -> None:
        """Takes over what a checkpoint says: nothing."""


class Draw(NamedTuple):
    """Both images of pairs, or one, `[B, S, C, H, W]`; where they are defined, `[B, 1, H, W]`; noise as the latents."""

    images: Tensor
    mask: Tensor | None
    noise: Tensor | None
    g: Element = IDENTITY  # the same for all

    def rows(self, part: slice) -> "Draw":
        mask, noise = (None if x is None else x[part] for x in (self.mask, self.noise))
        return Draw(self.images[part], mask, noise, self.g)


class Autoencoding:
    """Errors of the reconstruction, KL divergence of the latents, perceptual loss, and what is left of equivariance.

    sides: of the pairs, "target" or "source"; grey ones are repeated where the autoencoder takes colours.
    """

    follows: Mapping[str, float] = {}
    uncertainty: nn.Module | None = None

    def __init__(
        self, settings: CodecTrainConfig, group: Group, sides: Sequence[str], perceptual: Perceptual | None
    ) -> None:
        self.settings, self.group, self.sides, self.perceptual = settings, group, sides, perceptual

    def images(self, model: AutoencoderModel, batch: Batch) -> Tensor:
        """Those of a batch that it is trained on, `[B, S, C, H, W]`."""
        size = (-1, model.images.channels, -1, -1)
        return torch.stack([getattr(batch, side).expand(*size) for side in self.sides], 1)

    def draw(self, model: AutoencoderModel, batch: Batch, count: int, own: slice) -> Draw:
        """Noise of the latents and an element of the group."""
        images, network = self.images(model, batch), model.network
        cells = [side // network.factor for side in images.shape[3:]]
        shape = (count, len(self.sides), network.latent_channels, *cells)
        noise = torch.randn(shape, dtype=images.dtype, device=images.device)[own]
        g = self.group.elements[int(torch.randint(len(self.group), ()))]
        return Draw(images, batch.mask, noise, g)

    def __call__(self, model: AutoencoderModel, network: nn.Module, copies: Copies, draw: Draw) -> Tensor:
        loss, x, mean, z, mask = self._reconstruction(model, network, draw)
        if self.settings.equivariance_weight:
            # its parts, after its own pass: DDP waits for gradients, not calls; FSDP has what is outermost gathered
            own: Any = getattr(network, "module", network)
            g, turned = draw.g, act(draw.g, x)
            with autocast(x.device, model.precision):
                back, latents = own.decoded(act(g, z)), own.moments(turned)[0]
            apart = mean_inside((back.float() - turned).abs(), None if mask is None else act(g, mask))
            apart = apart + mean_inside((latents.float() - act(g, mean)).abs(), None)
            loss = loss + self.settings.equivariance_weight * apart
        return loss.unflatten(0, (-1, len(self.sides))).mean(1)

    def c_noise(self, model: AutoencoderModel, draw: Draw) -> Tensor:
        raise NotImplementedError("there is no noise level that an autoencoder is trained at")

    def validation(self, model: AutoencoderModel, network: nn.Module, batch: Batch) -> Tensor:
        """The loss of reconstructing from the most likely latents."""
        loss, *_ = self._reconstruction(model, network, Draw(self.images(model, batch), batch.mask, None))
        return loss.unflatten(0, (-1, len(self.sides))).mean(1)

    def _reconstruction(
        self, model: AutoencoderModel, network: nn.Module, draw: Draw
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """The loss of every image, `[B S]`; then the images, means and samples of their latents, and their masks."""
        s, x = self.settings, draw.images.flatten(0, 1)
        noise = None if draw.noise is None else draw.noise.flatten(0, 1)
        mask = None if draw.mask is None else draw.mask.repeat_interleave(len(self.sides), 0)
        with autocast(x.device, model.precision):
            found = network(x, None if noise is None else lambda like: noise)
        y, mean, logvar = (part.float() for part in found)
        loss = s.l1_weight * mean_inside((y - x).abs(), mask) + s.l2_weight * mean_inside((y - x).square(), mask)
        loss = loss + s.kl_weight * kl(mean, logvar) / x[0].numel()
        if self.perceptual:  # outside the mask images are 0
            loss = loss + s.perceptual_weight * self.perceptual(y if mask is None else y * mask, x)
        z = mean if noise is None else mean + (logvar / 2).exp() * noise
        return loss, x, mean, z, mask
