"""Published autoencoders of latent diffusion: `AutoencoderKL` of diffusers (SD 1.x and 2.x, SDXL, SD3, FLUX).

Read by our own hand from safetensors that lie on this machine, whole and by name; diffusers gives the network. Nothing
is fetched and nothing is executed. Its convolutions of stride 2 commute with no group; for symmetry average over one.
"""

import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ..files import checkpoint, storage
from .base import Codec, digest_of

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of the attention, until 2023
EXPECTED = (
    f"expected pixels, a run or checkpoint of our own codec, or an AutoencoderKL: a directory with {CONFIG} and "
    "*.safetensors (or with vae/ inside), such a file beside its config.json, or the name of a model in the hub's cache"
)


class KL(Codec):
    """latents = (z - shift_factor) · scaling_factor, as diffusion models see them. Its precision: fp32 or bf16."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, settings = network, network.config
        self.factor = 2 ** (len(settings["block_out_channels"]) - 1)
        self.image_channels, self.latent_channels = settings["in_channels"], settings["latent_channels"]
        self.scaling, self.shifted = float(settings["scaling_factor"]), float(settings["shift_factor"] or 0)
        deciding = [settings["act_fn"], settings["norm_num_groups"], self.scaling, self.shifted]
        self.digest = digest_of(network.state_dict(), deciding)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network.encode(x, return_dict=False)[0]
        return (found.mean - self.shifted) * self.scaling, found.std * self.scaling

    def decoded(self, z: Tensor) -> Tensor:
        return self.network.decode(z / self.scaling + self.shifted, return_dict=False)[0]


def open_kl(place: str | Path) -> KL:
    """The codec of a directory, a file, or a model that was downloaded. Raises ValueError for what is none."""
    file = located(place)
    config = file.with_name(CONFIG)
    if not config.is_file():
        raise ValueError(f"{file} has no {CONFIG} beside it, which says how the autoencoder is built: {EXPECTED}")
    content = storage.read_json(config)
    kind = content.get("_class_name") if isinstance(content, dict) else None
    if kind != "AutoencoderKL":
        raise ValueError(f"{config} describes {kind or 'nothing known'}, expected AutoencoderKL")
    scaling, shift = content.get("scaling_factor"), content.get("shift_factor") or 0
    if not _number(scaling) or not _number(shift) or scaling <= 0:
        raise ValueError(
            f"{config}: missing scaling factor, found {scaling!r}, and shift_factor {shift!r}: add those that it was "
            'trained with, "scaling_factor": 0.18215 for SD 1.x and 2.x, 0.13025 for SDXL'
        )
    kind_of_network = autoencoder_class()
    try:
        network = kind_of_network.from_config(content)
    except Exception as error:  # diffusers raises many kinds
        raise ValueError(f"{config} cannot be built by diffusers: {_first_line(error)}") from None
    into, out = network.config["in_channels"], network.config["out_channels"]
    if into != out:
        raise ValueError(f"{config}: images have {into} channels going in and {out} coming out, expected as many")
    try:
        weights = safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as safetensors: {_first_line(error)}") from None
    checkpoint.load_weights(network, _renamed(weights, content), file)
    return KL(network)


def located(place: str | Path) -> Path:
    """The file of weights that a place names."""
    path = Path(place)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"{path} is no safetensors file{_pickled(path.suffix in PICKLED)}: {EXPECTED}")
        return path
    if not path.is_dir():
        path = _cached(str(place))
    folder = path / "vae" if (path / "vae" / CONFIG).is_file() else path
    files = sorted(folder.glob("*.safetensors"))
    if folder / WEIGHTS in files:
        return folder / WEIGHTS
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "no *.safetensors"
        pickled = any(file.suffix in PICKLED for file in folder.glob("*"))
        raise ValueError(f"{folder} has {found}{_pickled(pickled and not files)}: {EXPECTED}")
    return files[0]


def _pickled(found: bool) -> str:
    return ", and pickled weights may execute code, so they are not read; convert them" if found else ""


def _cached(name: str) -> Path:
    """Where the hub's cache has a model, without asking the network."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        with suppress(Exception):  # it is not there, the name can be none, or the package is missing
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(name, local_files_only=True))
    raise ValueError(f"no codec at {name}, which is neither here nor in the hub's cache: {EXPECTED}")


def autoencoder_class() -> Any:
    """diffusers' class; imported only here."""
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ValueError(
            f"a codec of this kind needs diffusers, which cannot be imported ({_first_line(error)}): "
            "pip install -e '.[latent]'"
        ) from None
    return AutoencoderKL


def _renamed(weights: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Weights by their names of today, from those of older versions and of latent diffusion's own files."""
    if any("decoder.up.0." in name for name in weights):
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        weights = convert_ldm_vae_checkpoint(weights, config)
    old = re.compile(rf"(?<=\.attentions\.0\.)({'|'.join(OLD_NAMES)})(?=\.)")
    return {old.sub(lambda found: OLD_NAMES[found[0]], name): value for name, value in weights.items()}


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
