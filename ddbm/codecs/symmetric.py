"""Our own convolutional autoencoder, that commutes with a group by construction where its layers do."""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from ..config import CodecConfig, CodecHeader
from ..files import checkpoint
from ..networks.layers import LAYERS, PixelNorm
from ..networks.unet import ResidualBlock, check_fields, check_size, memory_format
from ..settings import choose, from_dict
from ..symmetry.frames import NoiseSource
from ..symmetry.groups import GROUPS, Group
from . import tuned
from .base import Codec, digest_of
from .kl import KL

LEAST, MOST = -30.0, 20.0  # of the logarithm of variances, as in latent diffusion (Rombach et al. 2022)


class Autoencoder(nn.Module):
    """Levels of residual blocks, halved by averaging, doubled by repeating pixels; latents turn as images do.

    Nothing in it sees the whole image, so that large ones can be encoded and decoded part by part.

    Built from its settings for images of so many channels. Raises ValueError, with a remedy, for channels that
    cannot be cut into fields.
    """

    def __init__(self, settings: CodecConfig, channels: int) -> None:
        super().__init__()
        self.settings, self.channels = settings, channels
        self.factor, self.latent_channels = settings.factor, settings.latent_channels
        layers = choose(LAYERS, settings.layers, "layers")(choose(GROUPS, settings.group, "group"), PixelNorm)
        check_fields(settings, settings.multipliers, layers)
        widths = [settings.model_channels * m for m in settings.multipliers]
        self.levels = len(widths)

        def level(width: int, out: int, resample: str) -> list[nn.Module]:
            first = ResidualBlock(layers, width, out, 0, 0.0, resample)
            return [first, *(ResidualBlock(layers, out, out, 0, 0.0) for _ in range(settings.num_res_blocks - 1))]

        self.image_in, self.encoder = layers.lift(channels, widths[0]), nn.ModuleList()
        for i, out in enumerate(widths):
            self.encoder.extend(level(widths[max(0, i - 1)], out, "down" if i else ""))
        self.moments_out = layers.project(widths[-1], 2 * settings.latent_channels)

        self.latent_in, self.decoder = layers.lift(settings.latent_channels, widths[-1]), nn.ModuleList()
        widths.reverse()
        for i, out in enumerate(widths):
            self.decoder.extend(level(widths[max(0, i - 1)], out, "up" if i else ""))
        self.image_out = layers.project(widths[-1], channels)
        self.checkpointed = False  # recompute the blocks' activations in the backward pass

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless images of this size can be cut into latent pixels."""
        check_size(height, width, cell=self.settings.factor)

    @property
    def blocks(self) -> list[nn.Module]:
        """What the network is made of, in the order of use, but for the first and last layers of both parts."""
        return [*self.encoder, *self.decoder]

    def normalise_weights(self) -> None:
        """After a step of the optimiser: nothing."""

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the latents, of the images' type."""
        h = self._run(self.encoder, self.image_in(x.contiguous(memory_format=memory_format(x.device))))
        mean, logvar = self.moments_out(F.silu(h)).to(x.dtype).chunk(2, 1)
        return mean.clone(), logvar.clamp(LEAST, MOST)  # no view: FSDP hangs its gradients on what comes out

    def decoded(self, z: Tensor) -> Tensor:
        """Images of latents, not clamped."""
        h = self._run(self.decoder, self.latent_in(z.contiguous(memory_format=memory_format(z.device))))
        return self.image_out(F.silu(h)).to(z.dtype)

    def forward(self, x: Tensor, noise: NoiseSource | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, mean and log variance; with noise, of a sample of the posterior: mean + std · noise(mean)."""
        mean, logvar = self.moments(x)
        z = mean if noise is None else mean + (logvar / 2).exp() * noise(mean)
        return self.decoded(z), mean, logvar

    def _run(self, blocks: Iterable[nn.Module], h: Tensor) -> Tensor:
        again = self.checkpointed and torch.is_grad_enabled()
        for block in blocks:
            h = recomputed(block, h, use_reentrant=False) if again else block(h)
        return h


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of N(mean, exp(logvar)) from N(0, 1), `[B]`: nats an image, the sum over all latents.

    Latent diffusion weighs this by 1e-6 beside the absolute error summed over all pixels and channels. Beside the mean
    error, divide by the image's C · H · W for the same weight.
    """
    return (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1) / 2


class Symmetric(Codec):
    """An `Autoencoder` as a codec. The digest is of its weights as they are now."""

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        settings, self.network = network.settings, network
        self.factor, self.image_channels = settings.factor, network.channels
        self.latent_channels = settings.latent_channels
        deciding = ("layers", "group", "factor", "num_res_blocks")  # beside shapes and names
        self.digest = digest_of(network.state_dict(), {name: getattr(settings, name) for name in deciding})

    def commutes(self, group: Group) -> bool:
        own = self.network.settings
        return own.layers != "plain" and {*group.elements} <= {*GROUPS[own.group].elements}

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.network.moments(x)
        return mean, (logvar / 2).exp()

    def decoded(self, z: Tensor) -> Tensor:
        return self.network.decoded(z)


def open_symmetric(place: str | Path) -> Codec:
    """The codec of a checkpoint, or of the newest of a run or store. Raises ValueError for what holds none."""
    found = checkpoint.find(place, print)
    header = from_dict(CodecHeader, checkpoint.read_header(found, "codec"), str(found / checkpoint.CONFIG))
    weights, shape = checkpoint.read_weights(found, "ema"), header.images
    if shape.kl:
        published = tuned.rebuilt(shape.kl)
        checkpoint.load_weights(published, weights, found)
        return KL(published.kl)
    network = Autoencoder(header.config.codec, shape.channels)
    checkpoint.load_weights(network, weights, found)
    return Symmetric(network)
