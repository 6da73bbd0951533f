"""Find the pairs of a split below a folder: file names only, no image is opened."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace
from os.path import commonprefix  # of texts, not of paths
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from ddbm.config import DataConfig, Header

from .images import EXTENSIONS
from .listing import Listing, is_picture, left_out, listed, shown, some, walk
from .masks import masks_of
from .rows import Row
from .splits import held_out_of, refuse_shared

ALIASES = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
LAST_WORD = r"([_\-. ]+(?=[^_\-. /]*[^\W\d])[^_\-. /]+|(?<=\d)[^\W\d_]+)$"  # with a letter in it
PARTS = "in train/, val/, test/ or without splits"
EXPECTED = {
    "auto": "train/, val/ or test/ with A|B images side by side, or with source/ + target/ (or A/ + B/) inside, "
    "or trainA/ + trainB/ and so on, or source/ + target/ without splits; name others by "
    "--layout, --source_folder and --target_folder, or --source_suffix",
    "side_by_side": f"images with both sides of a pair beside each other, {PARTS}",
    "two_folders": f"source/ + target/ (or A/ + B/, or the names given by --source_folder, --target_folder) {PARTS}",
    "suffix": f"the two images of a pair in one folder, told apart by the ends of their names, {PARTS}",
}


class Pair(NamedTuple):
    name: str  # relative path without extension, and without what tells the sides apart
    source: Path
    target: Path  # equal to source when the file holds both
    kind: str  # its class folder; "" where no classes are asked for
    mask: Path | None = None  # file that says where both are defined
    row: Row | None = None  # where it lies if not in files of its own, whose names are for messages then


class Site(NamedTuple):
    """A place that holds pairs."""

    layout: str
    source: Path
    target: Path  # equal to source, but for two_folders


class NoTargets(ValueError):
    """A part has sources alone, so far."""


class Found(NamedTuple):
    split: str  # as asked for; of auto what it was taken for
    layout: str
    pairs: list[Pair]  # sorted by name, never empty
    classes: list[str]  # of the labels 0, 1, ...; empty when no classes are asked for
    notices: list[str]  # what is to be said of them


def find_pairs(
    root: Path, split: str, options: DataConfig, like: Header | None = None, alone: list[Path] | None = None
) -> Found:
    """The pairs of a split, or of its stand-in where its folder is missing (said in the notice).

    split: also "all", every pair of the folder; "auto": all where there are no split folders, else test. like: of a
    trained model, whose layout and class names hold for the pairs too. alone: gets the files of two folders that have
    no partner, which raise ValueError without it.
    """
    guessed = like is None and options.layout == "auto"
    other = like is not None and options.data_dir != like.config.data.data_dir
    if like is not None and like.layout and options.layout == "auto":
        options = replace(options, layout=like.layout)
    notices: list[str] = []
    if split == "auto":
        split = "test" if any(_present(root, part, options) for part in ALIASES) else "all"
        if split == "all":
            notices.append("no split folders, so all its pairs are meant (--split test: the held-out ones alone)")
    sites, held_out = _sites(root, split, options, notices)
    part, site = next(iter(sites.items()))
    if site.layout == "side_by_side" and (guessed or other):
        notices.append(f"each image is split into halves, the {options.source_half} one is the source")
    if site.layout != "side_by_side" and options.source_half == "right" and (like is None or like.layout):
        lettered = any(name.upper().endswith("B") for name in site.target.relative_to(root).parts)
        if site.layout == "suffix" or options.source_folder or not lettered:
            raise ValueError(
                f"{site.source}: --source_half right is for A|B side by side and for folders A, B; here the sides have "
                "names of their own: exchange these, by --source_folder and --target_folder or the suffixes"
            )
        sites = {part: Site(site.layout, site.target, site.source) for part, site in sites.items()}
        notices.append("the source is B, the target A")

    seen: dict[Path, Listing] = {}
    pairs: list[Pair] = []
    for part, site in sites.items():
        prefix = f"{part}/" if len(sites) > 1 else ""
        pairs += [pair._replace(name=prefix + pair.name) for pair in _pairs(site, options, seen, alone)]
    if guessed and site.layout == "side_by_side":
        _refuse_ends(site, [pair.name for pair in pairs])
    used = {path for pair in pairs for path in (pair.source, pair.target, pair.mask)}
    if others := [path.name for listing in seen.values() for path in listing.pictures.values() if path not in used]:
        notices.append(f"left out {len(others)} images of other names, or without a partner (such as {others[0]})")
    classes: list[str] = []
    training = _site(root, "train", options) if split in ("val", "test") and not held_out else None
    known = _pairs(training, options, {}) if training and (options.num_classes or options.group_by) else pairs
    if options.group_by and known is not pairs:
        refuse_shared(pairs, known, site.source, options)
    if options.num_classes:
        classes = classes_of(pairs, known, site.source, options, like, notices)
    if held_out:
        pairs = held_out_of(pairs, split, site.source, options, notices)
    notices += left_out(seen.values())
    return Found(split, site.layout, pairs, classes, notices)


def _sites(root: Path, split: str, options: DataConfig, notices: list[str]) -> tuple[dict[str, Site], bool]:
    """The places of a split, by part, and whether every tenth of their pairs is held out. Raises if there are none."""

    problems: list[ValueError] = []

    def usable(part: str, but: type[ValueError] = ValueError) -> Site | None:
        """The place of a part; none if it has no pairs yet, such as the sources of a test to come."""
        try:
            site = _site(root, part, options)
            if site is not None and not _has_targets(site, options):
                raise NoTargets(f"{site.target} has no targets; add them")
        except but as problem:
            problems.append(problem)
            if part != "train":
                notices.append(f"{part} is left aside: {problem}")
            return None
        return site

    training = _site(root, "train", options) if split == "train" else usable("train")
    if training is not None:  # the others must be alike
        options = replace(options, layout=training.layout)
    if split == "all":
        sites = {part: site for part in ALIASES if (site := usable(part))}
        held_out = False
    else:
        held_out, sites = False, {split: training} if training and split == "train" else {}
        if split == "train":
            elsewhere = usable("val") or usable("test")
            if training is None and elsewhere:
                raise ValueError(f"{root}: found {elsewhere.source} but no training pairs; expected {EXPECTED['auto']}")
            held_out = elsewhere is None
        elif (site := usable(split, NoTargets)) is not None:
            sites = {split: site}
        elif (site := usable(other := "test" if split == "val" else "val")) is not None:
            notices.append(f"no {split} split, using {other}")
            sites = {other: site}
        else:
            held_out, sites = True, {"train": training} if training else {}
    if not sites:
        site = _site(root, "", options)
        if site is None:
            raise problems[0] if problems else _nothing(root, options)
        sites = {"": site}
    return sites, held_out


def _present(root: Path, part: str, options: DataConfig) -> bool:
    try:
        return _site(root, part, options) is not None
    except ValueError:
        return True


def _site(root: Path, part: str, options: DataConfig) -> Site | None:
    """The one place with pairs of a part ("" for the folder itself), None if there is none."""
    known = options.layout
    if known == "auto":  # unless other settings imply it
        suffix = "either" if options.source_suffix or options.target_suffix else "auto"
        known = "two_folders" if options.source_folder else suffix
    sites: list[Site] = []
    for name in ALIASES[part] if part else ("",):
        folder = inside(root, name) if name else root
        for source, target in couples(root, name, options) if known != "suffix" else []:
            if known == "side_by_side":
                if source.is_dir() and target.is_dir():
                    raise ValueError(
                        f"found {source} and {target}, but layout side_by_side expects both images of a pair in one "
                        "file; join them, or train with --layout two_folders"
                    )
            elif source.is_dir() and target.is_dir():
                beside = known == "either" and folder.is_dir() and _has_targets(Site("suffix", folder, folder), options)
                sites += [] if beside else [Site("two_folders", source, target)]
            elif known != "either" and (source.is_dir() or target.is_dir()):
                there, missing, kind = (source, target, NoTargets) if source.is_dir() else (target, source, ValueError)
                raise kind(f"found {there} but not {missing}; add it, or rename the other where it is no side of pairs")
        if known in ("side_by_side", "suffix") or (known == "either" and not sites):
            layout = "suffix" if known == "either" else known
            sites += [Site(layout, folder, folder)] if folder.is_dir() else []
        elif known == "auto" and folder.is_dir():
            deep = bool(options.num_classes) and not sites
            beside = any(is_picture(path) and not system for path, system in walk(folder, deep))
            sites += [Site("side_by_side", folder, folder)] if beside else []
        if part and folder.is_dir() and not sites:
            raise _nothing(folder, options)
    if len(sites) > 1:
        places = ", ".join(f"{site.source} ({site.layout})" for site in sites)
        raise ValueError(f"{root}: ambiguous, found pairs in {places}; keep one of them or choose with --layout")
    return sites[0] if sites else None


def couples(root: Path, name: str, options: DataConfig) -> list[tuple[Path, Path]]:
    """Where sources and targets of a part of this name ("" for the folder itself) may lie."""
    within = Path.joinpath if options.source_folder else inside
    sides, ends = [("source", "target"), ("A", "B")], ("A", "B")
    if options.source_folder:
        sides, ends = [(options.source_folder, options.target_folder)], (options.source_folder, options.target_folder)
        if all(end.startswith("train") for end in ends):  # trainB, trainA: so testB, testA
            ends = (ends[0].removeprefix("train"), ends[1].removeprefix("train"))
    folder = inside(root, name) if name else root
    found = [(within(folder, a), within(folder, b)) for a, b in sides]
    if name:
        found += [(inside(within(root, a), name), inside(within(root, b), name)) for a, b in sides]
        found += [(inside(root, f"{name}{ends[0]}"), inside(root, f"{name}{ends[1]}"))]
    return found


def inside(above: Path, name: str) -> Path:
    """A folder of a known name in another, whatever its capitals; A, B as they are, for a and b may be classes."""
    spellings = (name, name.lower(), name.upper(), name.capitalize(), name[0].upper() + name[1:])
    paths = [above / spelling for spelling in reversed(spellings[: None if name[1:] else 1])]
    found = {path.stat().st_ino: path for path in paths if path.is_dir()}
    if len(found) > 1:
        raise ValueError(f"{' and '.join(map(str, found.values()))} differ in capitals alone; rename one of them")
    return next(iter(found.values()), above / name)


def _has_targets(site: Site, options: DataConfig) -> bool:
    if site.layout == "suffix":
        names = listed(site.source).pictures
        return bool(stems_of(names, options.source_suffix).keys() & stems_of(names, options.target_suffix).keys())
    return any(is_picture(path) and not system for path, system in walk(site.target))


def _pairs(site: Site, options: DataConfig, seen: dict[Path, Listing], alone: list[Path] | None = None) -> list[Pair]:
    """All pairs of a place, sorted; seen: filled with the listings of its folders; alone: as in `find_pairs`."""
    for folder in (site.source, site.target):
        if folder not in seen:
            seen[folder] = listed(folder)
    masks, files = masks_of(site.source, seen[site.source].pictures, options, seen)
    own = set(masks.values())
    others = {name: path for name, path in seen[site.target].pictures.items() if path not in own}
    if not files and not others:
        raise ValueError(f"{site.source}: no images found, expected {', '.join(EXTENSIONS)}")
    ends = (options.source_suffix, options.target_suffix)
    if site.layout == "side_by_side":
        ends = ("", "")
    sources, targets = stems_of(files, ends[0]), stems_of(others, ends[1])
    if site.layout == "suffix":
        names = {name for stems, end in zip((sources, targets), ends, strict=True) if end for name in stems}
        if not names:
            end, flag = (ends[0], "source") if ends[0] else (ends[1], "target")
            raise ValueError(f"{site.source}: none of {len(files)} images is named NAME{end}; set --{flag}_suffix")
        for here, there, side, end in (
            (sources, targets, "target", ends[1]), (targets, sources, "source", ends[0])
        ):  # fmt: skip
            if lonely := sorted(names & here.keys() - there.keys()):
                partner = f"{Path(lonely[0]).name}{end}.*"
                raise ValueError(f"{here[lonely[0]]}: no {side} {partner} beside it ({len(lonely)} such files)")
        sources = {name: sources[name] for name in names}
    elif site.layout == "two_folders":
        for all_files, stems, end in ((files, sources, ends[0]), (others, targets, ends[1])):
            if odd := [path for name, path in all_files.items() if not name.endswith(end)]:
                raise ValueError(f"{odd[0]}: not named NAME{end} as its suffix says ({len(odd)} such files)")
            assert len(stems) == len(all_files)
        for here, there, place in ((sources, targets, site.target), (targets, sources, site.source)):
            lonely = [name for name in here if name not in there]
            if lonely and alone is not None:
                alone += [here[name] for name in lonely]
            elif lonely:
                why = why_alone(lonely[0], there) or _why_suffix(sources, targets, ends)
                why = why or "; ".join(left_out([seen[place]]))
                problem = f"no partner of that name in {place} ({len(lonely)} such files)"
                raise ValueError(f"{here[lonely[0]]}: {problem}{why and '; '}{why}")
        sources = {name: path for name, path in sources.items() if name in targets}
    return in_order(sources, targets, masks, options)


def in_order(
    sources: Mapping[str, Path], targets: Mapping[str, Path], masks: Mapping[str, Path], options: DataConfig
) -> list[Pair]:
    """The files of both sides and their masks, by name, as sorted pairs."""
    if (options.mask_folder or options.mask_suffix) and (bare := sorted(sources.keys() - masks.keys())):
        flag = f"--mask_folder {options.mask_folder}" if options.mask_folder else f"--mask_suffix {options.mask_suffix}"
        wanted = f"mask named {Path(bare[0]).name}{options.mask_suffix}.* by {flag}"
        raise ValueError(f"{sources[bare[0]]}: no {wanted} ({len(bare)} such files); add it")
    kinds = {name: _class_of(name, path) if options.num_classes else "" for name, path in sources.items()}
    names = sorted(sources, key=lambda name: name.split("/"))
    return [Pair(name, sources[name], targets[name], kinds[name], masks.get(name)) for name in names]


def stems_of(files: Mapping[str, Path], end: str) -> dict[str, Path]:
    """The files whose names end so, by their names without it."""
    return {name.removesuffix(end): path for name, path in files.items() if name.endswith(end)}


def why_alone(name: str, others: Iterable[str]) -> str:
    """What a name and its partner differ in, if it is hard to see."""

    def plain(name: str) -> str:
        return unicodedata.normalize("NFC", name)

    for other in others:
        if plain(other) == plain(name):
            how = "convmv -r --notest -f utf8 -t utf8 --nfc FOLDER"
            return f"there it differs in its Unicode form alone (NFC, NFD); rename the files of one side: {how}"
        if plain(other).casefold() == plain(name).casefold():
            return f"there it is '{other}', which differs in capitals alone; rename one"
    return ""


def _why_suffix(sources: Iterable[str], targets: Iterable[str], given: tuple[str, str]) -> str:
    """The flags for names that differ by their ends, if those are the same for all files of a side."""
    sides = [set(sources), set(targets)]
    ends = [commonprefix([name[::-1] for name in side])[::-1] for side in sides]  # noqa: RUF071
    starts = [[end[i:] for i in range(len(end)) if end[i] in "_-. "] + [""] for end in ends]
    for source, target in ((s, t) for s in starts[0][::-1] for t in starts[1][::-1] if s != t):
        if {name.removesuffix(source) for name in sides[0]} == {name.removesuffix(target) for name in sides[1]}:
            flags = _suffix_flags(source + given[0], target + given[1])
            return f"their names seem to end apart: --layout two_folders {flags}"
    return ""


def _suffix_flags(source: str, target: str) -> str:
    ends = (("source", source), ("target", target))
    return " ".join(f"--{side}_suffix={quote(end)}" for side, end in ends if end)


def _refuse_ends(site: Site, names: list[str]) -> None:
    """Raises ValueError for images that are the sides of pairs, told apart by their ends, not halves."""
    sides, name = {"source": "target", "target": "source", "A": "B", "B": "A"}, site.source.name
    other = sides.get(name) or sides.get(name.lower(), "")
    if other and (beside := inside(site.source.parent, other)).is_dir():
        raise ValueError(f"{site.source} has {beside.name} beside it: give {beside.parent}, or --layout side_by_side")
    if grouped := ends_of_sides(names):
        example, ends = grouped
        raise ValueError(
            f"{site.source}: names come in groups, such as {example}; where these are the sides of a pair set --layout "
            f"suffix {_suffix_flags(*ends)}, where every image holds both sides --layout side_by_side"
        )


def ends_of_sides(names: Iterable[str]) -> tuple[str, tuple[str, str]] | None:
    """If names are the two or three of each NAME, told apart by their ends: two such names, in words, and the ends."""
    stems = {name: re.sub(LAST_WORD, "", name) for name in names}
    bare = set(stems.values())
    groups: dict[str, set[str]] = {}
    for name, stem in stems.items():
        stem = name if name in bare else stem
        groups.setdefault(stem, set()).add(name[len(stem) :])
    ends = sorted(next(iter(groups.values())))
    if len(groups) > 1 and len(ends) in (2, 3) and all(found == set(ends) for found in groups.values()):
        return " and ".join(min(groups) + end for end in ends[:2]), (ends[0], ends[1])
    return None


def _class_of(name: str, path: Path) -> str:
    """The first folder of a name. Raises ValueError for a file outside class folders."""
    if "/" not in name:
        raise ValueError(f"{path}: lies in no class folder, expected CLASS/NAME; move it or set num_classes 0")
    return name.split("/")[0]


def classes_of(
    pairs: list[Pair], training: list[Pair], place: Path, options: DataConfig, like: Header | None, notices: list[str]
) -> list[str]:
    """The class names of the labels 0, 1, ...: those of a trained model, else the folders of the training pairs."""
    named = like is not None and like.classes
    classes = list(named) if named else sorted({pair.kind for pair in training})
    if not named and len(classes) != options.num_classes:
        raise ValueError(
            f"{place}: found {len(classes)} class folders ({some(classes)}), "
            f"but num_classes is {options.num_classes}; make them equal"
        )
    if strange := sorted({pair.kind for pair in pairs} - set(classes)):
        whose = "the model's" if named else "the training pairs'"
        problem = f"class folder '{strange[0]}' is none of {whose} ({some(classes)})"
        raise ValueError(f"{place}: {problem}; rename it, or leave it out")
    if not named and like is not None and options.data_dir != like.config.data.data_dir:
        labels = ", ".join(f"{name} {label}" for label, name in enumerate(classes))
        notices.append(f"the checkpoint does not name its classes, here they are taken as {labels}")
    return classes


def _nothing(folder: Path, options: DataConfig) -> ValueError:
    found = sorted(shown(path.name) for path in folder.iterdir() if path.name[0] != ".")
    deeper = {path.relative_to(folder).parts[0] for path, system in walk(folder) if is_picture(path) and not system}
    inner, parts = sorted(shown(name) for name in deeper), re.compile("(?i)train|test|val|source|target")
    advice = ""
    if len(inner) > 1 and options.layout == "auto" and not any(map(parts.match, inner)):
        flags = f"--source_folder {quote(inner[0])} --target_folder {quote(inner[1])}"
        sides = f", sides {flags}" if len(inner) == 2 else ""
        advice = f"as its folders hold images: classes need --num_classes {len(inner)}{sides}; "
    kind, holds = "" if options.layout == "auto" else f" of layout {options.layout}", some(found) or "nothing"
    return ValueError(f"{folder}: no pairs{kind} found, it holds {holds}; {advice}expected {EXPECTED[options.layout]}")
