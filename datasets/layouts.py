"""Find the pairs of a split below a folder: file names only, no image is opened."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ddbm.config import DataConfig

from .images import EXTENSIONS

ALIASES = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
EXPECTED = (
    "expected train/, val/ or test/ with A|B images side by side, or with source/ + target/ (or A/ + B/) inside, "
    "or trainA/ + trainB/ and so on, or source/ + target/ without splits; name others by "
    "--layout, --source_folder and --target_folder, or --source_suffix"
)


class Pair(NamedTuple):
    name: str  # relative path without extension
    source: Path
    target: Path  # equal to source when the file holds both


class Site(NamedTuple):
    """A place that holds pairs."""

    layout: str
    source: Path
    target: Path  # equal to source, but for two_folders


class Found(NamedTuple):
    layout: str
    pairs: list[Pair]  # sorted by name, never empty
    classes: list[str]  # sorted; empty when no classes are asked for
    notice: str


def find_pairs(root: Path, split: str, options: DataConfig) -> Found:
    """The pairs of a split, or of its stand-in where its folder is missing (said in the notice)."""
    order = {"train": ("train", "val", "test"), "val": ("val", "test", "train"), "test": ("test", "val", "train")}
    own, other, last = order[split]
    notices: list[str] = []
    site, held_out = _site(root, own, options), False
    if split == "train":
        elsewhere = _site(root, other, options) or _site(root, last, options)
        if site is None and elsewhere:
            raise ValueError(f"{root}: found {elsewhere.source} but no training pairs; {EXPECTED}")
        held_out = elsewhere is None
    elif site is None:
        site = _site(root, other, options)
        if site:
            notices.append(f"no {own} split, using {other}")
        else:
            site, held_out = _site(root, last, options), True
    if site is None:
        site = _site(root, "", options)
    if site is None:
        raise _nothing(root)
    if site.layout == "side_by_side" and options.layout == "auto":
        side = "left" if options.source_half == "left" else "right"
        notices.append(f"each image is split into halves, the {side} one is the source")

    pairs = _pairs(site, options)
    classes: list[str] = []
    if options.num_classes:
        training = site if held_out or split == "train" else _site(root, "train", options) or site
        classes = sorted({class_of(pair) for pair in (pairs if training == site else _pairs(training, options))})
        if len(classes) != options.num_classes:
            raise ValueError(
                f"{training.source}: found {len(classes)} class folders ({_some(classes)}), "
                f"but num_classes is {options.num_classes}; make them equal"
            )
        strange = sorted({class_of(pair) for pair in pairs} - set(classes))
        if strange:
            raise ValueError(f"{site.source}: class folder '{strange[0]}' is not one of {_some(classes)}; rename it")
    if held_out:
        if len(pairs) < 2:
            raise ValueError(f"{site.source}: found 1 pair, expected at least 2 to split into train and val; add pairs")
        held = set(range(9, len(pairs), 10)) or {len(pairs) - 1}
        pairs = [pair for i, pair in enumerate(pairs) if (i in held) == (split != "train")]
        notices.append(
            f"no val or test folder, {len(held)} of the pairs (every 10th, or the last) are held out as both"
        )
    return Found(site.layout, pairs, classes, f"{root}: {'; '.join(notices)}" if notices else "")


def class_of(pair: Pair) -> str:
    """The first folder of a pair's name. Raises ValueError for a file outside class folders."""
    if "/" not in pair.name:
        raise ValueError(f"{pair.source}: lies in no class folder, expected CLASS/NAME; move it or set num_classes 0")
    return pair.name.split("/")[0]


def _site(root: Path, split: str, options: DataConfig) -> Site | None:
    """The one place with pairs of a split ("" for the folder itself), None if there is none."""
    known = options.layout
    if known == "auto":  # unless other settings imply it
        known = "suffix" if options.source_suffix else "two_folders" if options.source_folder else "auto"
    sides = [("source", "target"), ("A", "B")]
    if options.source_folder:
        sides = [(options.source_folder, options.target_folder)]
    sites: list[Site] = []
    for name in ALIASES[split] if split else ("",):
        folder = root / name
        if known in ("auto", "two_folders"):
            couples = [(folder / a, folder / b) for a, b in sides]
            if split:
                couples += [(root / a / name, root / b / name) for a, b in sides]
                couples += [] if options.source_folder else [(root / f"{name}A", root / f"{name}B")]
            for source, target in couples:
                if source.is_dir() and target.is_dir():
                    sites.append(Site("two_folders", source, target))
                elif source.is_dir() or target.is_dir():
                    there, missing = (source, target) if source.is_dir() else (target, source)
                    raise ValueError(f"found {there} but not {missing}; both are needed for pairs, or set --layout")
        if known == "side_by_side":
            halves = [(folder / a, folder / b) for a, b in sides] + [(root / f"{name}A", root / f"{name}B")]
            for source, target in halves:
                if source.is_dir() and target.is_dir():
                    raise ValueError(
                        f"found {source} and {target}, but layout side_by_side expects both images of a pair in one "
                        "file; set --layout two_folders"
                    )
        if known in ("side_by_side", "suffix"):
            sites += [Site(known, folder, folder)] if folder.is_dir() else []
        elif known == "auto":
            depth = None if options.num_classes and not sites else 1
            sites += [Site("side_by_side", folder, folder)] if next(_images(folder, depth), None) else []
        if split and folder.is_dir() and not sites:
            raise _nothing(folder)
    if len(sites) > 1:
        places = ", ".join(f"{site.source} ({site.layout})" for site in sites)
        raise ValueError(f"{root}: ambiguous, found pairs in {places}; keep one of them or choose with --layout")
    return sites[0] if sites else None


def _pairs(site: Site, options: DataConfig) -> list[Pair]:
    sources = _by_name(site.source)
    if site.layout == "two_folders":
        targets = _by_name(site.target)
        for here, there, place in ((sources, targets, site.target), (targets, sources, site.source)):
            alone = [name for name in here if name not in there]
            if alone:
                raise ValueError(f"{here[alone[0]]}: no partner of that name in {place} ({len(alone)} such files)")
    elif site.layout == "suffix":
        suffix, files = options.source_suffix, sources
        sources = {name.removesuffix(suffix): path for name, path in files.items() if name.endswith(suffix)}
        targets = {name: files[name] for name in sources if name in files}
        alone = [name for name in sources if name not in targets]
        if alone:
            found = sources[alone[0]]
            raise ValueError(f"{found}: no target {Path(alone[0]).name}.* beside it ({len(alone)} such files)")
        if files and not sources:
            raise ValueError(f"{site.source}: none of {len(files)} images is named NAME{suffix}; set --source_suffix")
    else:
        targets = sources
    if not sources:
        raise ValueError(f"{site.source}: no images found, expected {', '.join(EXTENSIONS)}")
    return [Pair(name, sources[name], targets[name]) for name in sorted(sources, key=lambda name: name.split("/"))]


def _by_name(folder: Path) -> dict[str, Path]:
    """All images below a folder by relative path without extension, sorted."""
    files: dict[str, Path] = {}
    for path in sorted(_images(folder)):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise ValueError(f"{path}: differs from {files[name].name} only in its extension; remove one of them")
        files[name] = path
    return files


def _images(folder: Path, depth: int | None = None) -> Iterator[Path]:
    """Image files below a folder (through links too), unsorted; hidden ones and __MACOSX are left out."""
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [] if depth == 1 else [name for name in folders if name[0] != "." and name != "__MACOSX"]
        yield from (Path(place, f) for f in files if f[0] != "." and Path(f).suffix.lower() in EXTENSIONS)


def _nothing(folder: Path) -> ValueError:
    found = sorted(path.name for path in folder.iterdir() if path.name[0] != ".")
    return ValueError(f"{folder}: no pairs found, it holds {_some(found) or 'nothing'}; {EXPECTED}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
