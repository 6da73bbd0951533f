"""The table of data sets and the one way to open them."""

from collections.abc import Callable
from typing import Any

from ddbm.config import DataConfig
from ddbm.settings import choose

from .base import PairedData
from .histology import Histology
from .paired import FolderPairs

SPLITS = ("train", "val", "test")


def open_data(dataset: str, split: str, **settings: Any) -> PairedData:
    """Open a split (train, val, test) of a known data set, or of the pairs below `data_dir` under any other name.

    settings: those of `DataConfig`. Raises ValueError or OSError (FileNotFoundError where nothing is there), one line,
    for anything a user can get wrong.
    """
    choose(dict.fromkeys(SPLITS), split, "split")
    config = DataConfig(dataset, **settings)
    if dataset not in DATASETS and not config.data_dir:
        known = ", ".join(DATASETS)
        raise ValueError(f"unknown dataset '{dataset}', known: {known}; for your own pairs set DATA_DIR=/path")
    return DATASETS.get(dataset, FolderPairs)(split, config)


DATASETS: dict[str, Callable[[str, DataConfig], PairedData]] = {"histology": Histology, "paired": FolderPairs}
