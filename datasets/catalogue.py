"""The table of data sets and the one way to open them."""

from collections.abc import Callable
from pathlib import Path

from .base import SPLITS, Options, PairedData, choose
from .histology import Histology
from .paired import FolderPairs


def open_data(
    dataset: str,
    split: str,
    *,
    data_dir: str | Path = "",
    image_size: str = "native",
    fit: str = "resize",
    layout: str = "auto",
    source_half: str = "left",
    source_folder: str = "",
    target_folder: str = "",
    source_suffix: str = "",
    source_white: float = 0.0,
    target_white: float = 0.0,
    num_classes: int = 0,
) -> PairedData:
    """Open a split (train, val, test) of a known data set, or of the pairs below `data_dir` under any other name.

    `data_dir` may be an address of a store, `image_size` is native, N or HxW pixels; `source_white` and
    `target_white` are the pixel values that become 1 (0: 255, 65535 or 1.0 by pixel type). Raises ValueError or
    OSError (FileNotFoundError where nothing is there), one line, for anything a user can get wrong.
    """
    choose("split", split, SPLITS)
    if dataset not in DATASETS and not data_dir:
        known = ", ".join(DATASETS)
        raise ValueError(f"unknown dataset '{dataset}', known: {known}; for your own pairs set DATA_DIR=/path")
    options = Options(
        data_dir=data_dir,
        image_size=image_size,
        fit=fit,
        layout=layout,
        source_half=source_half,
        source_folder=source_folder,
        target_folder=target_folder,
        source_suffix=source_suffix,
        source_white=source_white,
        target_white=target_white,
        num_classes=num_classes,
    )
    return DATASETS.get(dataset, FolderPairs)(split, options)


DATASETS: dict[str, Callable[[str, Options], PairedData]] = {
    "histology": Histology,
    "paired": FolderPairs,
}
