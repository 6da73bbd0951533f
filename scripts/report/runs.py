"""The runs of a report, and the sets of samples that each of them has."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets import open_data
from ddbm.config import Config, SampleConfig
from ddbm.files import checkpoint, npz
from ddbm.model import Header
from ddbm.settings import from_dict, values
from ddbm.training import logger
from evaluations.images import Images, load_images, order_digest

from ..common import find_checkpoint
from ..sample import checkpoint_digest

RECORD = "sampling.json"
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

    gone: why the checkpoint of the samples cannot be used, "" if it can. starts: what run.json says. pairs: their
    names; empty where the data is not there any more, or is other data.
    """

    name: str
    path: Path
    config: Config
    checkpoint: Path
    gone: str
    log: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    shown: SampleSet
    pairs: Sequence[str]


def read_run(path: Path, samples: str, name: str) -> Run:
    """The run in a directory, with its samples of that name, "" the newest."""
    if not path.is_dir():
        raise ValueError(f"no run at {path}: give the directory that training wrote, with checkpoints and samples")
    newest = find_checkpoint(path)
    shown = choose_set(path, samples)
    sampled = shown.record["checkpoint"]
    own, gone = path / ("reconstructed" if "_sigma_" in sampled else "checkpoints") / sampled, ""
    if not (own / checkpoint.MANIFEST).is_file():
        gone = f"checkpoint {sampled}, which the samples are of, is no longer there"
    elif shown.record.get("checkpoint_digest", digest := checkpoint_digest(own)) != digest:
        gone = f"checkpoint {sampled} was written anew since it was sampled from"
    header = newest if gone else own
    config = from_dict(Header, checkpoint.read_header(header), str(header / "config.json")).config
    try:
        starts = json.loads((path / "run.json").read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, LookupError, TypeError):
        starts = []
    log, pairs = logger.read(path / "log.jsonl"), pair_names(config, shown)
    return Run(name, path, config, own, gone, log, starts, shown, pairs)


def set_folders(run_dir: Path) -> list[Path]:
    """The folders of finished samples, the oldest first."""
    found = sorted((run_dir / "samples").glob(f"*/{RECORD}"), key=lambda path: (path.stat().st_mtime_ns, path))
    return [path.parent for path in found]


def choose_set(run_dir: Path, name: str) -> SampleSet:
    """The newest samples, or those in a folder of that name, with or without the checkpoint in front of it."""
    folders = set_folders(run_dir)
    if not folders:
        raise ValueError(f"{run_dir} has no samples: run bash sample_ddbm.sh DATASET SCHEDULE {run_dir} first")
    fitting = [f for f in folders if not name or f.name == name] or [f for f in folders if f.name.endswith(f"_{name}")]
    if not fitting:
        raise ValueError(f"{run_dir} has no samples '{name}': there are {', '.join(f.name for f in folders)}")
    return open_set(fitting[-1])


def open_set(folder: Path) -> SampleSet:
    """The samples in a folder; raises ValueError, naming the file, for what is not there or damaged."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
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
    if all(digests) and digests[0] != digests[1]:
        return f"other pairs, or another order (order_digest {digests[1][:8]}, not {digests[0][:8]})"
    if one.reference.digest != other.reference.digest:
        return "pairs of the same names, but other images"
    return ""


def pair_names(config: Config, shown: SampleSet) -> Sequence[str]:
    """The names of the pairs, if the data is still what it was."""
    data = asdict(config.data) | {"data_dir": shown.settings.data_dir or config.data.data_dir}
    try:
        names = open_data(split=shown.settings.split, **data).names[: len(shown.samples)]
    except (ValueError, OSError):
        return []
    return names if order_digest(names) == shown.record.get("order_digest") else []


def written(value: object) -> str:
    """A setting as it is given on the command line."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
