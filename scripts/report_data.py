"""What a report is made of: a run, its sets of samples, and the pairs that these belong to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets import open_data
from ddbm.config import Config, SampleConfig
from ddbm.files import checkpoint, npz
from ddbm.files.storage import location
from ddbm.model import Header
from ddbm.settings import from_dict
from ddbm.training import logger
from evaluations.images import Images, load_images, order_digest

from .common import find_checkpoint
from .sample import FREE, checkpoint_digest

RECORD = "sampling.json"
BLOCK = 256  # images read at once
NAMED = {"split", "sampler", "nfe"}  # settings of samples that are always said


class SampleSet(NamedTuple):
    """A folder that scripts/sample.py wrote."""

    folder: Path
    record: dict[str, Any]
    settings: SampleConfig
    samples: Images
    reference: Images

    @property
    def nfe(self) -> int:
        return int(self.record["nfe"])

    def side(self, name: str) -> np.ndarray:
        """An array of the reference, by its key."""
        assert self.reference.path is not None
        return npz.read(self.reference.path, name)[name]

    def pairs(self, index: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Source, sample and target of some pairs, uint8 `[H, W, C]`."""
        assert self.reference.path is not None and self.samples.path is not None
        places = ((self.reference.path, "source"), (self.samples.path, "arr_0"), (self.reference.path, "arr_0"))
        source, sample, target = (take(path, key, index) for path, key in places)
        return list(zip(source, sample, target, strict=True))


class Run(NamedTuple):
    """A run and the samples shown of it.

    gone: why the checkpoint of the samples cannot be used, "" if it can. names: of the pairs; empty where the data is
    not there any more, or is other data.
    """

    path: Path
    config: Config
    checkpoint: Path
    gone: str
    log: list[dict[str, Any]]
    shown: SampleSet
    names: Sequence[str]

    def name_of(self, index: int) -> str:
        """What people call a pair."""
        return f"#{index} {self.names[index]}" if self.names else f"#{index}"


def read_run(path: Path, samples: str) -> Run:
    """The run in a directory, with its samples of that name, "" the newest."""
    if not path.is_dir():
        raise ValueError(f"no run at {path}: give the directory that training wrote, with checkpoints and samples")
    newest = find_checkpoint(path)
    shown = choose_set(path, samples)
    name = shown.record["checkpoint"]
    own, gone = path / ("reconstructed" if "_sigma_" in name else "checkpoints") / name, ""
    if not (own / checkpoint.MANIFEST).is_file():
        gone = f"checkpoint {name}, which the samples are of, is no longer there"
    elif shown.record.get("checkpoint_digest", digest := checkpoint_digest(own)) != digest:
        gone = f"checkpoint {name} was written anew since it was sampled from"
    header = newest if gone else own
    config = from_dict(Header, checkpoint.read_header(header), str(header / "config.json")).config
    return Run(path, config, own, gone, logger.read(path / "log.jsonl"), shown, pair_names(config, shown))


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
        files = [folder / record[side] for side in ("samples", "reference")]
        given = record["settings"]
        int(record["nfe"]), str(record["checkpoint"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): sample again, or choose others with --samples") from None
    settings = from_dict(SampleConfig, given, str(path))
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} is not there any more: sample again, or choose others with --samples")
    if "source" not in npz.keys(files[1]):
        raise ValueError(f"{files[1]} holds no sources: sample again, or choose others with --samples")
    return SampleSet(folder, record, settings, load_images(files[0]), load_images(files[1]))


def take(path: Path, key: str, index: Sequence[int]) -> list[np.ndarray]:
    """Some images of an array, which need not fit in memory."""
    found: dict[int, np.ndarray] = {}
    start = 0
    for part in npz.rows(path, key, BLOCK):
        found |= {i: part[i - start].copy() for i in index if start <= i < start + len(part)}
        start += len(part)
    return [found[i] for i in index]


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
    place = shown.settings.data_dir or config.data.data_dir
    try:
        names = open_data(
            split=shown.settings.split, **asdict(config.data) | {"data_dir": location(place) if place else ""}
        ).names
    except (ValueError, OSError):
        return []
    names = names[: len(shown.samples)]
    return names if order_digest(names) == shown.record.get("order_digest") else []


def written(value: object) -> str:
    """A setting as it is given on the command line."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def label(settings: SampleConfig) -> str:
    """The sampler, and what else about the samples is not the default, but for the number of evaluations."""
    parts = [settings.sampler]
    for f in fields(settings):
        value = getattr(settings, f.name)
        if f.name not in FREE and f.name not in NAMED and value != f.default:
            parts.append(f"{f.name} {written(value)}")
    return ", ".join(parts)
