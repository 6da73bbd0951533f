"""Diffusion bridges with exact group symmetry: `load(path)` a model, `sample` from it, `translate` one's own images."""

import importlib.util
import sys

if importlib.util.find_spec("torch") is None:
    sys.exit(f"error: {sys.executable} lacks PyTorch: source .venv/bin/activate (bash scripts/setup.sh makes .venv)")

from .model import BridgeModel, Samples, load, sample
from .translation.answers import Answers, translate

__all__ = ["Answers", "BridgeModel", "Samples", "load", "sample", "translate"]
