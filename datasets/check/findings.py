"""What is wrong with pairs, from looks at all of them. A new check is a function and a line of `CHECKS`."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ddbm.config import DataConfig, parse_size
from ddbm.symmetry.groups import GROUPS

from ..images import level_note
from ..parts import PARTS
from .looks import Look, highest
from .measures import CLEARLY, MOST_APART, NEAR, SAME, apart, correlation, fits

SIDES = ("source", "target")
OFF = 2  # pixels from which on a pair is said to be out of place
CHUNK = 1 << 12  # images whose hashes are compared at once
MOST = 1 << 11  # pairs that fit badly, the worst, whose targets are compared with each other's sources
BETTER = 0.35  # of Fisher's z, by which another partner, or a turn, must fit better
LIKE = 0.25  # share of all pairs that fit worse than those that are mended must
ELEMENTS = {(0, 1): "a quarter turn left", (0, 2): "a half turn", (0, 3): "a quarter turn right", (1, 0): "a mirror"}


class Finding(NamedTuple):
    """A fault; names: of the pairs that have it, the worst first."""

    kind: str
    text: str
    names: list[str]


def unreadable(looks: Sequence[Look], options: DataConfig) -> Iterator[Finding]:
    """Files that cannot be read, and pairs of which the sizes differ."""
    bad = [each for each in looks if each.problem]
    if bad:
        yield Finding("unreadable", f"{len(bad)} pair(s) cannot be read: {bad[0].problem}", [each.name for each in bad])


def uneven(looks: Sequence[Look], options: DataConfig) -> Iterator[Finding]:
    """Images of other channels or another type than most of their side."""
    for side, name in enumerate(SIDES):
        for what, of in (("channels", lambda g: g.shape[2]), ("type of pixels", lambda g: g.kind)):
            counts = Counter(of(each.sides[side]) for each in looks)
            usual = counts.most_common(1)[0][0]
            if others := [each for each in looks if of(each.sides[side]) != usual]:
                first = others[0].sides[side]
                said = f"{len(others)} {name}(s) have another {what} than the others, {usual}: {first.path}"
                yield Finding("uneven", f"{said} has {of(first)}", [each.name for each in others])


def levels(looks: Sequence[Look], options: DataConfig) -> Iterator[Finding]:
    """Values that use a part of the range of their type alone."""
    for side, name in enumerate(SIDES):
        if note := level_note(highest(looks, side, options), f"train with --{name}_white {{level}}"):
            yield Finding("range", f"{name}s hold {note}", [])


def empty(looks: Sequence[Look], options: DataConfig) -> Iterator[Finding]:
    """Pairs with nothing inside their masks."""
    if hidden := [each.name for each in looks if not each.seen]:
        yield Finding("empty mask", f"{len(hidden)} pair(s) are hidden whole by their masks: {hidden[0]}", hidden)


def small(looks: Sequence[Look], options: DataConfig) -> Iterator[Finding]:
    """Pairs out of which --fit crop cannot cut an image of the size that is asked for."""
    height, width = (parse_size(options.image_size) or (0, 0)) if options.fit == "crop" else (0, 0)
    found = [each for each in looks if each.sides[0].shape[0] < height or each.sides[0].shape[1] < width]
    if found:
        rows, columns = found[0].sides[0].shape[:2]
        text = f"{len(found)} pair(s) are smaller than the crop {height}x{width}: {found[0].name} of {rows}x{columns}"
        yield Finding("small", f"{text}; take a smaller --image_size, or --fit resize", [each.name for each in found])


def duplicates(looks: Sequence[Look], options: DataConfig) -> Iterator[Finding]:
    """Images of equal pixels within a split, but for those of one colour; labels where both sides are equal."""
    for side, name in enumerate(SIDES):
        known: dict[tuple[str, ...], Look] = {}
        twins: list[tuple[Look, Look]] = []
        for each in looks:
            own, other = each.sides[side], each.sides[1 - side]
            first = known.setdefault((each.split, own.digest, other.digest if own.labels else ""), each)
            twins += [(first, each)] if own.digest and first is not each else []
        if twins:
            first, second = twins[0]
            text = f"{len(twins)} {name}(s) are the same as another of {first.split}: {first.name} and {second.name}"
            yield Finding("duplicate", text, [b.name for _, b in twins])


def leaks(looks: Sequence[Look], options: DataConfig) -> Iterator[Finding]:
    """Images that lie in two splits, also where they were stored anew: by hashes, then by their small pictures; labels
    where that holds for both sides.

    Where images of train are alike, as digits, heads and eyes are, those of two splits must be clearly more so.
    """
    for side, name in enumerate(SIDES):
        parts = {split: [each for each in looks if each.split == split and each.sides[side].digest] for split in PARTS}
        training = parts["train"]
        found = [
            each for some, others in (("val", "train"), ("test", "train"), ("test", "val"))
            for each in _alike(parts[some], parts[others], side)
        ]  # fmt: skip
        if found:
            some = training[:: max(1, len(training) // CHUNK)]
            natural = {frozenset(map(id, each.pair)): each.apart for each in _alike(some, training, side)}
            usual = sorted(natural.values())[max(1, len(some) // 100) :]  # but for copies that train holds of its own
            found = [each for each in found if not usual or each.apart <= usual[0] * CLEARLY]
        if found:
            found.sort(key=lambda each: each.apart)
            a, b = found[0].pair
            names = list(dict.fromkeys(each.pair[0].name for each in found))
            count = len({(each.pair[0].split, each.pair[0].name) for each in found})
            text = f"{count} {name}(s) lie in two splits: {a.name} ({a.split}) and {b.name} ({b.split})"
            yield Finding("leak", f"{text}; take them out of one, or split by --group_by", names)


class Alike(NamedTuple):
    """Two images that may be one; apart: as `measures.apart` has it."""

    apart: float
    pair: tuple[Look, Look]


def _alike(some: Sequence[Look], others: Sequence[Look], side: int) -> Iterator[Alike]:
    """Those of each that look alike; of labels both sides must."""
    if not (some and others):
        return
    known = np.stack([each.sides[side].hash for each in others]).astype(np.float32)
    for i in range(0, len(some), CHUNK):
        part = some[i : i + CHUNK]
        bits = (64 - np.stack([each.sides[side].hash for each in part]).astype(np.float32) @ known.T) / 2
        for a, b in np.argwhere(bits <= NEAR):
            both = part[a], others[b]
            labels = all(each.sides[side].labels for each in both)
            sides = (side, 1 - side) if labels else (side,)
            smalls = [[each.sides[n].small.astype(np.float32) for each in both] for n in sides]
            if both[0] is not both[1] and all(np.array_equal(*two) or correlation(*two) > SAME for two in smalls):
                far = max(apart(*two) for two in smalls)
                yield from [Alike(far, both)] if far <= MOST_APART else []


def shifted(looks: Sequence[Look], options: DataConfig) -> Iterator[Finding]:
    """Targets that lie off their sources."""
    off = sorted((each for each in looks if _distance(each) >= OFF), key=_distance, reverse=True)
    if off:
        rows, columns = off[0].shift
        text = f"{len(off)} target(s) lie off their sources: {off[0].name} by {rows} rows and {columns} columns"
        far = max(map(abs, off[0].shift))
        if 2 * len(off) > len(looks):
            middle = np.median([each.shift for each in off], 0)
            text += f"; in the median by {middle[0]:g} rows and {middle[1]:g} columns"
            far = int(np.abs(middle).max())
        near = f", or see --align_tolerance {far}" if far <= 8 else ""  # its cost grows with the square
        yield Finding("shift", f"{text}; register them anew{near}", [each.name for each in off])


def turned(looks: Sequence[Look], options: DataConfig) -> Iterator[Finding]:
    """Pairs of which one image fits the other better when it is turned, while the others do not."""
    known = [each for each in looks if each.likeness is not None]
    table = np.array([each.likeness for each in known])
    if not len(known) or np.median(table.argmax(1)) != 0:
        return
    gains = table.max(1) - table[:, 0]
    wrong = [i for i in np.argsort(-gains) if gains[i] > BETTER and table[i].max() >= np.quantile(table[:, 0], LIKE)]
    if wrong:
        element = GROUPS["D4"].elements[int(table[wrong[0]].argmax())]
        how = ELEMENTS.get(element, "a mirror and a turn")
        text = f"{len(wrong)} source(s) fit their targets better after {how}: {known[wrong[0]].name}"
        yield Finding("turned", text, [known[i].name for i in wrong])


def swapped(looks: Sequence[Look], options: DataConfig) -> Iterator[Finding]:
    """Pairs that fit badly, while each source fits the other's target well."""
    own = np.concatenate([np.diag(fits(*_smalls([each]))) for each in looks])
    poor = [i for i in np.argsort(own) if own[i] < np.median(own) - BETTER][:MOST]
    if not poor:
        return
    table, alone = fits(*_smalls([looks[i] for i in poor])), own[poor]
    both = np.minimum(table, table.T)
    better = (both > np.maximum(alone[:, None], alone) + BETTER) & (both >= np.quantile(own, LIKE))
    found = [(looks[poor[a]], looks[poor[b]]) for a, b in np.argwhere(np.triu(better, 1))]
    if found:
        a, b = found[0]
        text = f"{len(found)} time(s) two pairs seem to have exchanged their targets: {a.name} and {b.name}"
        yield Finding("swapped", text, [each.name for both in found for each in both])


def _smalls(looks: Sequence[Look]) -> list[list[np.ndarray]]:
    """The small pictures of all sources, and of all targets."""
    return [[each.sides[side].small.astype(np.float32) for each in looks] for side in (0, 1)]


def _distance(each: Look) -> float:
    return float(np.hypot(*each.shift))


CHECKS: tuple[Callable[[Sequence[Look], DataConfig], Iterator[Finding]], ...] = (
    uneven, levels, empty, small, duplicates, leaks, shifted, turned, swapped,
)  # fmt: skip


def findings(looks: Sequence[Look], options: DataConfig) -> list[Finding]:
    """Everything that is wrong."""
    whole = [each for each in looks if not each.problem]
    checks = CHECKS if whole else ()
    return [*unreadable(looks, options), *(found for check in checks for found in check(whole, options))]
