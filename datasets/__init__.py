"""Paired image data: `open_data` gives a `PairedData`, `train_batches` and `eval_batches` give its batches."""

from ddbm.symmetry.pairs import Batch

from .augmentation import Augmentation
from .base import Item, PairedData
from .catalogue import DATASETS, open_data
from .loader import batches_of, eval_batches, train_batches

__all__ = [
    "DATASETS",
    "Augmentation",
    "Batch",
    "Item",
    "PairedData",
    "batches_of",
    "eval_batches",
    "open_data",
    "train_batches",
]
