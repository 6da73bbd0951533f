"""A published autoencoder that is trained further: `AutoencoderKL` as the trainer takes it, and back to diffusers."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..files.storage import whole_directory
from ..symmetry.frames import NoiseSource
from .kl import KL, autoencoder_class, open_kl


class Tuned(nn.Module):
    """An AutoencoderKL with the methods of our `Autoencoder`; its latents are neither shifted nor scaled."""

    blocks: tuple[nn.Module, ...] = ()  # FSDP gathers it as a whole

    def __init__(self, kl: Any) -> None:
        super().__init__()
        codec = KL(kl)
        self.kl, self.factor = kl, codec.factor
        self.channels, self.latent_channels = codec.image_channels, codec.latent_channels

    @property
    def description(self) -> str:
        """How diffusers builds it, as JSON."""
        kept = {name: value for name, value in self.kl.config.items() if not name.startswith("_")}
        return json.dumps(kept, sort_keys=True)

    @property
    def checkpointed(self) -> bool:
        return bool(self.kl.is_gradient_checkpointing)

    @checkpointed.setter
    def checkpointed(self, again: bool) -> None:
        (self.kl.enable_gradient_checkpointing if again else self.kl.disable_gradient_checkpointing)()

    def normalise_weights(self) -> None:
        """After a step of the optimiser: nothing."""

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the latents."""
        found = self.kl.encode(x, return_dict=False)[0]
        return found.mean.to(x.dtype), found.logvar.to(x.dtype)

    def decoded(self, z: Tensor) -> Tensor:
        """Images of latents, not clamped."""
        return self.kl.decode(z, return_dict=False)[0].to(z.dtype)

    def forward(self, x: Tensor, noise: NoiseSource | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, mean and log variance, as of `Autoencoder`."""
        mean, logvar = self.moments(x)
        z = mean if noise is None else mean + (logvar / 2).exp() * noise(mean)
        return self.decoded(z), mean, logvar


def opened(place: str) -> Tuned:
    """The one of a directory, a file, or a model in the hub's cache. Raises ValueError."""
    return Tuned(open_kl(place).network)


def rebuilt(description: str) -> Tuned:
    """With weights that are still to be loaded."""
    return Tuned(autoencoder_class().from_config(json.loads(description)))


def export(network: Tuned, folder: Path) -> None:
    """Writes it as diffusers does, safetensors and config.json, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_directory(folder) as aside:
        network.kl.save_pretrained(aside, safe_serialization=True)
