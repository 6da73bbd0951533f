"""Find sources that come without targets, for a trained model: by the names of files, and the shape of one image."""

from dataclasses import replace
from math import log
from pathlib import Path

from ddbm.config import DataConfig, Header

from .images import read_image
from .layouts import ALIASES, Found, Pair, classes_of, couples, ends_of_sides, in_order, inside, stems_of
from .listing import Listing, is_picture, left_out, listed, walk
from .masks import masks_of
from .splits import held_out_of

SOURCES = "sources"  # the layout


def find_sources(root: Path, split: str, options: DataConfig, like: Header) -> Found | None:
    """The sources of a split (as in `find_pairs`) of a folder without targets, each a pair of the file with itself.

    They lie in the source's folder of two, whose other is not there, or directly in the folder or its splits. None
    where there are targets, or nothing that is surely a source: then the folder holds pairs, or is refused as such.
    Raises ValueError for images in no folder of their own that look like pairs, while the model's pairs lay otherwise.
    """
    if options.layout == "auto" and like.layout:
        options = replace(options, layout=like.layout)
    places = {name: _couples(root, name, options) for names in [("",), *ALIASES.values()] for name in names}
    if any(target.is_dir() for found in places.values() for _, target in found):
        return None
    folders = {name: [source for source, _ in found if source.is_dir()] for name, found in places.items()}
    loose = not any(folders.values())
    if loose:
        deep = bool(options.num_classes or (options.layout == "suffix" and options.source_suffix))
        every = {name: inside(root, name) if name else root for name in places}
        folders = {name: [folder] if _has_pictures(folder, deep) else [] for name, folder in every.items()}
    by_part = {part: [f for name in names for f in folders[name]] for part, names in ALIASES.items()}
    by_part = {part: found for part, found in by_part.items() if found} or {"": folders[""]}
    if any(len(found) != 1 for found in by_part.values()):
        return None

    notices: list[str] = []
    listings: dict[Path, Listing] = {}
    if split == "auto":
        split = "all" if "" in by_part else "test"
        if split == "all":
            notices.append("no split folders, so all are meant (--split test: every 10th)")
    parts, held_out = _parts(list(by_part), split, notices)
    pairs: list[Pair] = []
    for part in parts:
        folder = by_part[part][0]
        listings[folder] = listed(folder)
        masks, files = masks_of(folder, listings[folder].pictures, options, listings)
        stems = stems_of(files, options.source_suffix)
        others = loose and options.target_suffix and any(name.endswith(options.target_suffix) for name in files)
        if others or len(stems) < len(files):
            return None
        prefix = f"{part}/" if len(parts) > 1 else ""
        pairs += [pair._replace(name=prefix + pair.name) for pair in in_order(stems, stems, masks, options)]
    if not pairs or not _are_sources(pairs, options.layout, loose, like):
        return None
    place, classes = by_part[parts[0]][0], list[str]()
    if options.num_classes:
        classes = classes_of(pairs, pairs, place, options, like, notices)
    if held_out:
        pairs = held_out_of(pairs, split, place, options, notices)
    said = f"no targets found, {len(pairs)} images are taken as sources"
    return Found(split, SOURCES, pairs, classes, [said, *notices, *left_out(listings.values())])


def is_single(size: tuple[int, ...], trained: tuple[int, ...]) -> bool:
    """Whether an image of height and width `size` is more like a training image than two of them side by side are."""
    ratio = size[1] * trained[0] / (size[0] * trained[1])
    return abs(log(ratio)) < abs(log(ratio / 2))


def _couples(root: Path, name: str, options: DataConfig) -> list[tuple[Path, Path]]:
    """As `couples`; none in the layout of one folder, and B is the source where the right half is."""
    if options.layout == "suffix":
        return []
    found = couples(root, name, options)
    if options.source_half != "right" or options.source_folder:
        return found
    lettered = [any(part.upper().endswith("B") for part in b.relative_to(root).parts) for _, b in found]
    return [(b, a) if swap else (a, b) for (a, b), swap in zip(found, lettered, strict=True)]


def _has_pictures(folder: Path, deep: bool) -> bool:
    return folder.is_dir() and any(is_picture(path) and not system for path, system in walk(folder, deep))


def _parts(there: list[str], split: str, notices: list[str]) -> tuple[list[str], bool]:
    """Of the parts that are there ("" for no splits) those of a split; whether every tenth image is held out."""
    if split == "all":
        return there, False
    for part in {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}[split]:
        if part in there:
            notices += [] if part == split else [f"no {split} split, using {part}"]
            return [part], there == ["train"]
    return ([], False) if split == "train" and "" not in there else (there, True)


def _are_sources(pairs: list[Pair], layout: str, loose: bool, like: Header) -> bool:
    """Whether images may be sources; `loose` ones, in no folder of that name, raise ValueError for looking like pairs.

    Where the model's pairs were files of both sides, or where nobody says, these are sources only if they are surely
    no such files.
    """
    path = pairs[0].source
    remedy = f"; if all of {path.parent} are sources, put them into a folder source"
    if loose and layout != "suffix" and (grouped := ends_of_sides(pair.name for pair in pairs)):
        raise ValueError(f"{path.parent}: names come in groups, such as {grouped[0]}, as the sides of pairs do{remedy}")
    beside = layout == "side_by_side" or (loose and layout == "auto")
    if not like.native or not (beside or loose):
        return not beside
    height, width = read_image(path).pixels.shape[:2]
    single = is_single((height, width), like.native)
    if not (single or beside):
        trained = "{}x{}".format(*like.native)
        raise ValueError(
            f"{path}: {height}x{width} pixels look like two images of {trained} side by side, and the model's pairs "
            f"were two files{remedy}"
        )
    return single
