"""Diffusion bridges with exact group symmetry: `load(path)` a model, `sample(model, source)` from it."""

from .model import BridgeModel, Samples, load, sample

__all__ = ["BridgeModel", "Samples", "load", "sample"]
