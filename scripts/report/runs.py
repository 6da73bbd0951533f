"""The runs of a report, and the sets of samples that each of them has."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddbm.config import Config, SampleConfig
from ddbm.files import checkpoint, npz
from ddbm.files.storage import read_json
from ddbm.settings import from_dict, values
from ddbm.training import logger
from evaluations.images import Images, load_images, order_digest

from ..common import find_checkpoint, header_of, open_splits
from ..sample import checkpoint_digest
from ..sampling_store import RECORD

NAMED = {"split", "sampler", "nfe"}  # settings of samples that are always said


class SampleSet(NamedTuple):
    """A folder that scripts/sample.py wrote."""

    folder: Path
    record: dict[str, Any]
    settings: SampleConfig
    samples: Images
    reference: Images

    def images(self, side: str, index: Sequence[int] | slice = slice(None)) -> np.ndarray:
        """Some images of source, sample or target, uint8 `[N, H, W, C]`."""
        path, key = self.folder / self.record["reference"], "source" if side == "source" else "arr_0"
        return npz.read(self.folder / self.record["samples"] if side == "sample" else path, key)[key][index]

    @property
    def way(self) -> str:
        """The sampler, and what else is not the default, but for the number of evaluations."""
        usual = values(SampleConfig())
        own = {name: value for name, value in values(self.settings, deciding=True).items() if name not in NAMED}
        return ", ".join([self.settings.sampler, *(f"{k} {written(v)}" for k, v in own.items() if v != usual[k])])


class Run(NamedTuple):
    """A run, under a name that no other one has, and the samples shown of it.

    gone: why the checkpoint of the samples cannot be used, "" if it can. start: what run.json says of the newest.
    pairs: their names; empty where the data is not there any more, or is other data.
    """

    name: str
    path: Path
    config: Config
    checkpoint: Path
    gone: str
    log: list[dict[str, Any]]
    start: dict[str, Any]
    shown: SampleSet
    pairs: Sequence[str]


def read_run(path: Path, samples: str, name: str) -> Run:
    """The run in a directory, with samples in the folder of that name, or the newest whose folder's name ends so.

    Of held-out pairs, where it has such.
    """
    folders = set_folders(path)
    if not folders:
        advice = f"run bash sample_ddbm.sh DATASET SCHEDULE {path} first, or copy the run here from its store"
        raise ValueError(f"{path} is no folder with a run that has samples: {advice}")
    fitting = [f for f in folders if f.name == samples]
    fitting = fitting or [f for f in folders if not samples or f.name.endswith(f"_{samples}")]
    if not fitting:
        raise ValueError(f"{path} has no samples '{samples}': there are {', '.join(f.name for f in folders)}")
    shown, gone = open_set(sorted(fitting, key=_telling)[-1]), ""
    sampled = shown.record["checkpoint"]
    own = path / ("reconstructed" if "_sigma_" in sampled else "checkpoints") / sampled
    if not (own / checkpoint.MANIFEST).is_file():
        gone = f"checkpoint {sampled}, which the samples are of, is no longer there"
    elif shown.record.get("checkpoint_digest", digest := checkpoint_digest(own)) != digest:
        gone = f"checkpoint {sampled} was written anew since it was sampled from"
    header = find_checkpoint(path) if gone else own
    config = header_of(header).config
    start, pairs = {}, []
    with suppress(OSError, ValueError, LookupError, TypeError):
        start = dict(read_json(path / "run.json")["starts"][-1])
    with suppress(OSError, ValueError):
        place, split = shown.settings.data_dir, shown.settings.split
        (data,) = open_splits(config.data, split, data_dir=place, like=header_of(header), quiet=True)
        names = data.names[: len(shown.samples)]
        pairs = names if order_digest(names) == shown.record.get("order_digest") else []
    return Run(name, path, config, own, gone, logger.read(path / "log.jsonl"), start, shown, pairs)


def logged(runs: Sequence[Run], key: str) -> dict[str, list[tuple[int, float | None]]]:
    """What the logs have of a name, by run: (step, value)."""
    return {run.name: [(line["step"], line[key]) for line in run.log if key in line] for run in runs}


def set_folders(run_dir: Path) -> list[Path]:
    """The folders of finished samples, the oldest first."""
    found = sorted((run_dir / "samples").glob(f"*/{RECORD}"), key=lambda path: (path.stat().st_mtime_ns, path))
    return [path.parent for path in found]


def without_targets(folder: Path) -> bool:
    """Whether the samples in a folder are of sources alone."""
    with suppress(OSError, ValueError, TypeError):
        return "sources" in read_json(folder / RECORD)
    return False


def _telling(folder: Path) -> int:
    """How much samples tell: of unseen pairs most, of sources alone least; damaged ones are not passed over."""
    with suppress(OSError, ValueError, AttributeError):
        return 0 if without_targets(folder) else 1 + (read_json(folder / RECORD).get("split") != "train")
    return 2


def open_set(folder: Path) -> SampleSet:
    """The samples in a folder; raises ValueError, naming the file, for what is not there or damaged."""
    path = folder / RECORD
    if without_targets(folder):
        raise ValueError(
            f"{path}: samples of sources without targets, which nothing can be compared with; sample pairs with "
            "targets, or choose others with --samples"
        )
    try:
        record = read_json(path)
        settings = from_dict(SampleConfig, record["settings"], str(path))
        int(record["nfe"]), str(record["checkpoint"])
        npz.header(folder / record["reference"], "source")
        samples, reference = (load_images(folder / record[side]) for side in ("samples", "reference"))
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__} "
        raise ValueError(f"{path}: {kind}{error}; sample again, or choose others with --samples") from None
    return SampleSet(folder, record, settings, samples, reference)


def other_pairs(one: SampleSet, other: SampleSet) -> str:
    """Why two sets of samples cannot be compared image by image; "" if they can."""
    if len(one.samples) != len(other.samples):
        return f"{len(other.samples)} pairs, not {len(one.samples)}"
    digests = [each.record.get("order_digest", "") for each in (one, other)]
    same = digests[0] == digests[1] or not all(digests)
    return "" if same and one.reference.digest == other.reference.digest else "other pairs, or another order"


def written(value: object) -> str:
    """A setting as it is given on the command line."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.lower() if isinstance(value, bool) else text
