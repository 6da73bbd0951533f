"""What a recipe is, one a data set: how raw files become pairs."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from ddbm.settings import Settings, setting

from ..images import Picture

PARTS = ("train", "val", "test")
OFFICIAL = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Common(Settings):
    """Files in, pairs out."""

    source: str = setting("", "the raw files, a folder or an archive; needed", changes="nothing")
    out: str = setting("", "folder to write to; needed", changes="nothing")
    seed: int = setting(0, "of all that is drawn: splits, places, noise")
    workers: int = setting(0, "processes (0: this one alone)", changes="nothing")


@dataclass(frozen=True)
class Split(Common):
    """Files in, pairs out."""

    val: float = setting(
        0.1, "share of patients, slides or images that is held out as val, where there is none", below=1
    )
    test: float = setting(0.1, "the same as test", below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val + self.test >= 1:
            raise ValueError(
                f"--val {self.val:g} and --test {self.test:g} leave nothing to train on: give less than 1 in all"
            )


class Job(NamedTuple):
    """What one process does at a time: a picture, a slide, a volume; it is done whole or again."""

    name: str  # no other job has it
    split: str
    files: tuple[Path, ...] = ()  # read for it alone
    more: Any = None


class Plan(NamedTuple):
    """All jobs, made when they are asked for."""

    jobs: Iterable[Job]
    total: int | None  # None where it shows only at their end
    shared: tuple[Path, ...] = ()  # files that many jobs read
    left_out: Sequence[str] = ()  # what cannot become pairs, and why


def alone(settings: Common) -> bool:
    """Whether sources are prepared without targets, for a trained model."""
    return not getattr(settings, "targets", True)


class Pair(NamedTuple):
    """One pair."""

    name: str  # relative path without extension
    source: Picture
    target: Picture | None  # None: a source without target


class Stored(NamedTuple):
    """A file of both sides of a pair, as it was."""

    name: str  # relative path with its extension
    content: bytes


class Made(NamedTuple):
    """What a job makes, pair by pair, and what the manifest shall say of it."""

    pairs: Iterable[Pair | Stored]
    about: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Recipe:
    """How a data set is prepared; `S` is its settings.

    plan: S -> Plan, which opens no picture; make: (S, Job) -> Made, in a process of its own; flags: S -> the settings
    of `DataConfig` by which the reader finds the pairs; training: (the DATASET of args.sh, further flags).
    """

    settings: type[Common]
    about: str  # where the raw files come from, under which terms, how large, and how they lie
    plan: Callable[[Any], Plan]
    make: Callable[[Any, Job], Made]
    training: Callable[[Any], tuple[str, Mapping[str, Any]]]
    flags: Callable[[Any], Mapping[str, Any]] = field(default=lambda settings: {})


def flat(jobs: list[Job]) -> list[Job]:
    """The same jobs. Raises ValueError for two whose pairs would have one name, as theirs have "_" for "/"."""
    seen: dict[tuple[str, str], Job] = {}
    for job in jobs:
        other = seen.setdefault((job.split, job.name.replace("/", "_")), job)
        if other is not job and other.name != job.name:
            raise ValueError(f"{job.files[0]} and {other.files[0]} would become pairs of one name; rename one")
    return jobs


def folder_of(settings: Common) -> Path:
    """The folder of raw files. Raises ValueError for a file, as of an archive."""
    path = Path(settings.source).expanduser()
    if not path.is_dir():
        raise ValueError(
            f"{path}: is a file, expected the folder of raw files; extract an archive first (tar -xf, unzip)"
        )
    return path


def official(path: PurePath, root: Path | str = "") -> str:
    """The part that a folder above a file names, in any capitals: train, val, test, or "" """
    return next((OFFICIAL[name.lower()] for name in path.relative_to(root).parts[:-1] if name.lower() in OFFICIAL), "")


def parts_of(groups: Iterable[str], settings: Split, what: str) -> dict[str, str]:
    """The part of every group: what belongs together (a patient, a slide) is never torn apart.

    Raises ValueError where there are too few of them.
    """
    names = sorted(set(groups))
    held = {part: max(1, round(share * len(names))) if share else 0 for part, share in shares(settings)}
    if sum(held.values()) >= len(names):
        raise ValueError(
            f"{settings.source}: {len(names)} {what} cannot be split into {', '.join(p for p in held if held[p])} and "
            "train, one part would be empty; add some, or give --val 0 --test 0"
        )
    order = np.random.default_rng(settings.seed).permutation(len(names))
    labels = [part for part in held for _ in range(held[part])]
    labels += ["train"] * (len(names) - len(labels))
    return {names[i]: label for i, label in zip(order, labels, strict=True)}


def shares(settings: Split) -> list[tuple[str, float]]:
    return [("test", settings.test), ("val", settings.val)]


def completed(
    known: Mapping[str, str], settings: Split, what: str, group: Callable[[str], str] = str
) -> dict[str, str]:
    """The part of every name; known: what the owners say of it, or "".

    Where they say nothing of any, all are split; where they have no val, groups of their train are held out for it.
    """
    if not any(known.values()):
        parts = parts_of(map(group, known), settings, what)
        return {name: parts[group(name)] for name in known}
    if missing := [name for name, part in known.items() if not part]:
        raise ValueError(
            f"{settings.source}: {missing[0]} lies in no folder train, val or test, others do ({len(missing)} such "
            "files); move it there"
        )
    if "val" in known.values() or not settings.val:
        return dict(known)
    training = [name for name, part in known.items() if part == "train"]
    held = parts_of(map(group, training), only_val(settings), what)
    return {name: held[group(name)] if part == "train" else part for name, part in known.items()}


def only_val(settings: Split) -> Split:
    return Split(source=settings.source, seed=settings.seed, val=settings.val, test=0)


def grouping(pattern: str) -> Callable[[str], str]:
    """What of a name tells its group: the first bracket of a regular expression, or all it matches; "": the name.

    Raises ValueError for no regular expression, and then for a name that it does not match.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"--group_by '{pattern}' is no regular expression ({error}); correct it") from None

    def group(name: str) -> str:
        match = expression.search(name)
        if not match:
            raise ValueError(f"--group_by '{pattern}' does not match '{name}'; correct it, or rename the file")
        return ((expression.groups and match[1]) or match[0]) if pattern else name

    return group


def rng_of(settings: Common, name: str) -> np.random.Generator:
    """A generator for a name alone: what is drawn does not depend on order, or on processes."""
    return np.random.default_rng([settings.seed, *name.encode()])
