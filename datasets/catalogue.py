"""The table of data sets and the one way to open them."""

from collections.abc import Callable
from typing import Any

from ddbm.config import PARTS, DataConfig, Header
from ddbm.settings import choose, hint

from .base import PairedData
from .denoising import Denoising
from .histology import Histology
from .paired import FolderPairs
from .retina import Retina


def open_data(
    dataset: str, split: str, like: Header | None = None, *, sources: bool = False, **settings: Any
) -> PairedData:
    """Open a part (train, val, test, all) of a known data set, or of the pairs below `data_dir` under any other name.

    like: what a checkpoint says of itself, for new pairs that its model is to be used with: layout and class names are
    taken from it; sources: then a folder without targets will do, too. settings: those of `DataConfig`. Raises
    ValueError or OSError (FileNotFoundError where nothing is there), one line, for anything a user can get wrong.
    """
    choose(dict.fromkeys(PARTS), split, "split")
    config = DataConfig(dataset, **settings)
    if dataset in DATASETS:
        return DATASETS[dataset](split, config)
    if not config.data_dir:
        raise ValueError(
            f"dataset '{dataset}' needs the folder of its pairs: set DATA_DIR=/path (--data_dir); only "
            f"{', '.join(DATASETS)} come without{hint(dataset, DATASETS)}"
        )
    return FolderPairs(split, config, like, sources)


DATASETS: dict[str, Callable[[str, DataConfig], PairedData]] = {  # those without a folder
    "histology": Histology,
    "denoising": Denoising,
    "retina": Retina,
    "retina_latent": Retina,  # with an autoencoder (args.sh)
}
