"""Codecs by kind; the table `CODECS`."""

from collections.abc import Callable
from pathlib import Path

from ..config import ImageShape
from ..files import checkpoint, stores
from .base import Codec, Pixels
from .kl import open_kl
from .symmetric import open_symmetric

CODECS: dict[str, Callable[[str], Codec]] = {
    "pixels": lambda text: Pixels(),
    "symmetric": open_symmetric,  # our own, of any kind of layers
    "kl": open_kl,
}


def kind_of(text: str) -> str:
    """The kind of codec that a setting means, by what lies there."""
    if text == "pixels":
        return text
    path = Path(text)
    ours = (path / "checkpoints").is_dir() or path.name == "checkpoints" or (path / checkpoint.MANIFEST).exists()
    return "symmetric" if stores.is_store(text) or ours else "kl"


def open_codec(text: str, images: ImageShape | None = None) -> Codec:
    """The codec of a setting, frozen, in evaluation mode; images: what it must take.

    text: "pixels", a run or checkpoint of our own codec, or an AutoencoderKL (`open_kl`). Raises ValueError.
    """
    codec = CODECS[kind_of(text)](text)
    if images is not None:
        codec.shape(images)
    return codec.eval().requires_grad_(False)
