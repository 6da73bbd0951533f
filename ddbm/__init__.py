"""Diffusion bridges with exact group symmetry: `load(path)` a model, `sample` from it, `translate` one's own images."""

from . import entrance  # noqa: F401  before what imports PyTorch

# isort: split
from .model import BridgeModel, Samples, load, sample
from .translation.answers import Answers, translate

__all__ = ["Answers", "BridgeModel", "Samples", "load", "sample", "translate"]
