"""Codecs: bridges between latents instead of pixels. `open_codec(text)` gives one."""

from .base import Codec, Pixels, Stored
from .standardised import Standardised, measure
from .table import CODECS, open_codec

__all__ = ["CODECS", "Codec", "Pixels", "Standardised", "Stored", "measure", "open_codec"]
