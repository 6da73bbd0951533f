"""What is evaluated: images from an npz, a folder or memory, walked over in batches and never copied whole."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor, uint8

from datasets.images import EXTENSIONS, level_note, read_image, scaled
from datasets.layouts import ALIASES, why_alone
from datasets.listing import left_out, listed
from ddbm.files import npz

ORDER, NAMES = "order_digest", "names"  # keys in an npz
SIDES = ("source", "target", "A", "B")  # folders of a data set of pairs
GREY = 128  # of pixels that are transparent, as in samples
ORIENTATION = 274  # tag of EXIF and TIFF
PROBES = 3  # files that are read before a note about their levels
CHUNK = 1 << 21  # bytes read at once where nobody says how many images
# (count, rank=0, ranks=1): images in their order, `count` at a time; the rank-th of these and every ranks-th from there
Walk = Callable[..., Iterator[np.ndarray]]
Pick = Callable[[Sequence[int], int], np.ndarray]  # images of these numbers, or (1) their masks


@dataclass(frozen=True)
class Images:
    """uint8 images of `shape` [N, H, W, C], to be walked over as often as one likes.

    path: where they lie, if not in memory; names: of their pairs, or of the files of a folder without extension; ()
    if unknown; order: `order_digest` of the pairs, "" if unknown; pick: where any
    can be read; mask: walks over bool [B, H, W, 1], True where the pairs are defined, None: everywhere; notice: what
    was left out; draws: walks over uint8 [B, K, H, W, C], K draws of every image, None: there are no others.
    """

    shape: tuple[int, ...]
    walk: Walk
    path: Path | None = None
    names: tuple[str, ...] = ()
    order: str = ""
    pick: Pick | None = None
    mask: Walk | None = None
    notice: str = ""
    draws: Walk | None = None
    number: int = 1  # K, of draws

    def __len__(self) -> int:
        return self.shape[0]

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of shape and pixels."""
        found = hashlib.sha256(str(self.shape).encode())
        for batch in self._chunks(self.walk):
            found.update(np.ascontiguousarray(batch).data)
        return found.hexdigest()

    @cached_property
    def levels(self) -> list[int]:
        """The values of masks, among 0, 1 and 255; of other images those up to where it is seen that they are none.

        Where the pairs are not defined no value counts.
        """
        found: set[int] = set()
        for batch, *seen in zip(*(self._chunks(walk) for walk in (self.walk, self.mask) if walk), strict=True):
            values = batch[np.broadcast_to(seen[0], batch.shape)] if seen else batch.ravel()
            found |= set(np.flatnonzero(np.bincount(values)).tolist())
            if found - {0, 1, 255}:
                break
        return sorted(found)

    def _chunks(self, walk: Walk) -> Iterator[np.ndarray]:
        return walk(max(1, CHUNK // int(np.prod(self.shape[1:]))))


class Levels(NamedTuple):
    """The values of files that are black and white, as `datasets` has them; white 0: 255, 65535 or 1.0 by type."""

    black: float = 0.0
    white: float = 0.0


BY_TYPE = Levels()


def load_images(path: str | Path, levels: Levels = BY_TYPE) -> Images:
    """The images of an npz with key `arr_0`, or of a folder and those below, in the order of the data sets.

    levels: of the files of a folder, which are clipped at both, in 256 steps.
    Raises FileNotFoundError if `path` is missing and ValueError if its content is not uint8 [N, H, W, C].
    """
    path = existing(path)
    if path.is_dir():
        return _folder(path, levels)
    found = npz.keys(path)
    refuse_sources(path, found)
    if "arr_0" not in found:
        raise ValueError(f"{path}: found keys {npz.listed(found)}; expected arr_0")
    shape, _, dtype = npz.header(path, "arr_0")
    kept, names = npz.read(path, *{ORDER, NAMES}.intersection(found)), ()
    if NAMES in kept and kept[NAMES].dtype.kind == "U" and len(set(kept[NAMES].flat)) == len(kept[NAMES]) == shape[0]:
        names = tuple(kept[NAMES].tolist())
    order = order_digest(names) if names else str(kept.get(ORDER, ""))
    masked = "mask" in found and npz.header(path, "mask")[::2] == ((*shape[:3], 1), bool)
    walk, mask, draws = (partial(npz.rows, path, key) for key in ("arr_0", "mask", "draws"))
    images = Images(_checked(shape, dtype, str(path)), walk, path, names, order, mask=mask if masked else None)
    several, _, kind = npz.header(path, "draws") if "draws" in found else ((), False, dtype)
    if kind == dtype and len(several) == 5 and (several[0], *several[2:]) == shape and several[1] > 1:
        return replace(images, draws=draws, number=several[1])
    return images


def refuse_sources(path: Path, found: Sequence[str]) -> None:
    """Raises ValueError for what sampling writes where there are no targets; found: the keys of the file."""
    if "arr_0" not in found and "source" in found:
        raise ValueError(
            f"{path} holds sources without targets, so nothing can be compared: give the targets in its place, a "
            "folder or an npz with arr_0, or add them to the folder of the sources and sample again"
        )


def as_images(images: "np.ndarray | Images", name: str, mask: np.ndarray | None = None) -> Images:
    """An array as images; `name` says whose it is. Raises ValueError unless it is uint8 [N, H, W, C].

    mask: bool [N, H, W, 1], True where the pairs are defined; None: everywhere.
    """
    if isinstance(images, Images):
        return images
    seen = None if mask is None else _sliced(len(mask), mask.__getitem__)
    return Images(_checked(images.shape, images.dtype, name), _sliced(len(images), images.__getitem__), mask=seen)


def order_digest(names: Sequence[str]) -> str:
    """SHA-256, in hex, over the names of the pairs in their order."""
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()


def file_name(index: int, name: str) -> str:
    """A plain word for an image of a data set, of which every image has another; as words they keep the order."""
    return f"{index:06}_" + re.sub(r"[^\w.-]+", "_", name)[-50:]


def to_bytes(images: Tensor) -> np.ndarray:
    """float `[B, C, H, W]` in [-1, 1] -> uint8 `[B, H, W, C]`."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(uint8).permute(0, 2, 3, 1).cpu().numpy()


def as_pairs(reference: Images, sample: Images) -> tuple[Images, Images, str]:
    """Both in the order in which they belong together, and what is to be said of it.

    By their names where both have them, or by what these differ in, which is said; else by the digest of the names.
    Other npz files and arrays have the order of their rows. Raises ValueError where they are other images.
    """
    if len(reference) != len(sample):
        raise ValueError(
            f"{len(reference)} images in the reference and {len(sample)} in the sample; expected as many, row n of one "
            "belonging to row n of the other: sample every source once"
        )
    one, other = reference.names, sample.names
    numbered = one and other and (_numbered(one) == other or one == _numbered(other))
    if numbered or (reference.order and reference.order == sample.order):
        return reference, sample, ""
    if not (reference.order and sample.order):
        without = " and ".join(name for name, side in (("REF", reference), ("SAMPLE", sample)) if not side.order)
        note = f"order not known: no {NAMES} nor {ORDER} in {without}; paired row by row"
        return reference, sample, note if reference.path or sample.path else ""
    apart, files = set(one).isdisjoint(other), reference.pick or sample.pick
    keys = (_core(one), _core(other)) if apart else (one, other)
    if files and one and sorted(keys[0]) == sorted(keys[1]):
        first = f"{one[0]} with {other[keys[1].index(keys[0][0])]}"
        note = f"paired by what their names differ in: {first}" if apart else ""
        if sample.pick:
            return reference, _arranged(sample, *keys), note
        return _arranged(reference, *reversed(keys)), sample, note
    alone = [sorted(set(names) - set(others)) for names, others in ((one, other), (other, one))]
    why = why_alone(alone[0][0], alone[1]) if all(alone) else ""
    if files and apart and not why:
        few = " and ".join(names[0] for names in (one, other) if names)
        return reference, sample, f"order not known: the names are not those of the pairs ({few}); paired as sorted"
    if files or why:
        others = f"the sample has others, such as {alone[1][0]}: give the images of the same pairs, or name all alike"
        raise ValueError(
            f"{len(alone[0])} names of the reference are not in the sample, such as {alone[0][0]}; {why or others}"
        )
    raise ValueError(
        f"reference and sample hold other pairs, or another order ({ORDER} {reference.order[:8]} and "
        f"{sample.order[:8]}): sample the split that the reference was made of"
    )


def in_pairs(
    sample: Images, reference: Images, count: int, rank: int = 0, ranks: int = 1, draws: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of both as `Walk` has them, mid-grey outside the masks; draws: of the sample all draws.

    The third: bool [B, H, W, 1], where the masks of both say that a pair is defined.
    """
    own = sample.draws if draws else sample.walk
    assert own is not None
    walks = [own, reference.walk, *(side.mask for side in (sample, reference) if side.mask)]
    for x, y, *seen in zip(*(walk(count, rank, ranks) for walk in walks), strict=True):
        inside = np.logical_and.reduce([np.ones_like(y[..., :1], bool), *seen])
        seen_of_x = inside[:, None] if draws else inside
        yield np.where(seen_of_x, x, np.uint8(GREY)), np.where(inside, y, np.uint8(GREY)), inside


def _numbered(names: Sequence[str]) -> tuple[str, ...]:
    """Names of a data set as those of the files that sampling writes."""
    return tuple(file_name(n, name) for n, name in enumerate(names))


def _core(names: Sequence[str]) -> Sequence[str]:
    """Names without what all of them begin and end with, as fake_ or _B; no word or number is cut."""
    for _ in range(2):
        begin = len(re.sub(r"([^\W_]|(?<=\d)\.)+$", "", os.path.commonprefix(list(names))))  # noqa: RUF071
        names = [name[begin:][::-1] for name in names]
    return names


def _arranged(images: Images, wanted: Sequence[str], names: Sequence[str]) -> Images:
    """The same images in the order of the names that are wanted; names: what they are called for it."""
    assert images.pick is not None
    place = {name: n for n, name in enumerate(names)}
    walk, mask = _picked(images.pick, [place[name] for name in wanted], images.mask is not None)
    return replace(images, walk=walk, mask=mask, pick=None)


def _picked(pick: Pick, rows: Sequence[int], masked: bool) -> tuple[Walk, Walk | None]:
    """The walks over images of these numbers, and over their masks if there are any."""

    def of(part: int) -> Walk:
        return _sliced(len(rows), lambda some: pick(rows[some], part))

    return of(0), of(1) if masked else None


def existing(path: str | Path) -> Path:
    """`path` as a Path; FileNotFoundError if there is nothing."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected an npz or a folder of images")
    return path


def _folder(path: Path, levels: Levels) -> Images:
    """The image files of a folder and those below, read when they are wanted."""
    if (path / "sampling.json").is_file():
        raise ValueError(f"{path} holds samples as npz; give its samples_*.npz and reference_*.npz")
    inside = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    parts = {*SIDES, *(name + side for names in ALIASES.values() for name in names for side in ("", "A", "B"))}
    if mixed := [name for name in inside if {name, name.lower(), name[:-1].lower() + name[-1:]} & parts]:
        raise ValueError(f"{path} holds {', '.join(mixed)}, the parts of a data set; give one folder of images")
    found, own = listed(path), ""
    if levels != BY_TYPE and (path.parent / "sampling.json").is_file():
        levels, own = BY_TYPE, "its files are samples, of which 255 is white"
    if not found.pictures:
        raise ValueError(f"{path}: no images; expected files ending in {', '.join(EXTENSIONS)}")
    names = tuple(sorted(found.pictures, key=lambda name: name.split("/")))
    files = [found.pictures[name] for name in names]
    heads = {_size(files[0]): files[0]}
    shape = _read(files[0], levels)[0].shape

    def read(file: Path) -> tuple[np.ndarray, np.ndarray]:
        image, seen = _read(file, levels)
        if image.shape != shape:
            raise ValueError(
                f"{file}: shape {image.shape}, but {files[0].name} has {shape}; bring all images of a folder to "
                "one height, width and number of channels"
            )
        return image, seen

    def pick(rows: Sequence[int], part: int) -> np.ndarray:
        return np.stack([read(files[n])[part] for n in rows])

    masks: list[Path] = []  # the files that may have one
    for file in files:  # now, not after hours of reading
        head = _size(file)
        if heads.setdefault(head, file) == file:
            read(file)
        masks += [file] if not head or head[3] or "A" in str(head[2]) else []
    masked = any(read_image(file).mask is not None for file in masks)
    chosen = sorted({len(files) * n // PROBES for n in range(1, PROBES)} | {0, len(files) - 1})
    advice = "give --white {level}"
    probed = (read_image(files[n]).pixels for n in chosen if levels == BY_TYPE)
    notes = [own, level_note(probed, advice), *left_out([found])]
    notice = "; ".join(filter(None, notes))
    walk, mask = _picked(pick, range(len(files)), masked)
    return Images((len(files), *shape), walk, path, names, order_digest(names), pick, mask, notice)


def _size(file: Path) -> tuple[object, ...]:
    """What the head of a file says of size, channels, alpha and orientation; nothing where it has to be read for it."""
    try:
        with Image.open(file) as head:
            exif = Image.Image.getexif(head)  # that of PNG reads it whole
            return *head.size, head.mode, "transparency" in head.info, exif.get(ORIENTATION)
    except Exception:  # each format raises its own kinds; reading the file tells what is wrong
        return ()


def _read(file: Path, levels: Levels) -> tuple[np.ndarray, np.ndarray]:
    """One image as the data sets have it, uint8 [H, W, C], mid-grey where it is transparent.

    And bool [H, W, 1], True where it is not.
    """
    pixels, mask, white = read_image(file, levels != BY_TYPE)
    if pixels.dtype != np.uint8 or levels != BY_TYPE:
        pixels = to_bytes(scaled(pixels, levels.white or white, file, levels.black)[None])[0]
    seen = np.ones((*pixels.shape[:2], 1), bool) if mask is None else mask[..., None]
    return np.where(seen, pixels, np.uint8(GREY)), seen


def _sliced(total: int, read: Callable[[slice], np.ndarray]) -> Walk:
    """The walk over images of which any row can be read."""

    def walk(count: int, rank: int = 0, ranks: int = 1) -> Iterator[np.ndarray]:
        for start in range(rank * count, total, ranks * count):
            yield np.ascontiguousarray(read(slice(start, start + count)))

    return walk


def _checked(shape: tuple[int, ...], dtype: np.dtype, name: str) -> tuple[int, ...]:
    """The shape, if this is uint8 [N, H, W, C] with at least one value; `name` says whose."""
    channels_first = len(shape) == 4 and shape[1] in (1, 3) and shape[3] > 4
    if dtype != np.uint8 or len(shape) != 4 or min(shape) < 1 or channels_first:
        raise ValueError(
            f"{name}: {dtype} of shape {shape}; expected uint8 of [N, H, W, C], levels 0 to 255; store x * 255 of "
            "[0, 1], or (x + 1) * 127.5 of [-1, 1], rounded; x.transpose(0, 2, 3, 1) of [N, C, H, W]"
        )
    return shape
