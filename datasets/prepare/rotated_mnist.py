"""Rotated MNIST: digits turned at random, and the same made worse."""

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddbm.settings import setting

from ..degradations import degraded, parsed
from ..images import Picture, told
from .recipe import Job, Made, Pair, Plan, Recipe, Split, folder_of, parts_of, rng_of

ABOUT = """digits turned at random, made worse → as they were (60,000 + 10,000 of 28²)

From http://yann.lecun.com/exdb/mnist, or its mirrors (LeCun, Cortes, Burges; CC BY-SA 3.0), 12 MB. --source: the folder
of

  train-images-idx3-ubyte  train-labels-idx1-ubyte  t10k-images-idx3-ubyte  t10k-labels-idx1-ubyte

as they are or with .gz. t10k is test, a share of train is val; where there is one of them alone it is split. Digits
lie in a folder a class, for --num_classes 10. --degrade makes the task: noise:64 denoising, mask_center:0.5 inpainting,
downsample:4 super-resolution, or any other of `datasets.prepare degrade --help`."""
FILES = {"train": "train", "t10k": "test"}
BLOCK = 500  # digits a job
IMAGES, LABELS = 0x803, 0x801  # magic numbers: unsigned bytes in three dimensions, and in one


@dataclass(frozen=True)
class RotatedMnist(Split):
    """Files in, pairs out."""

    turns: str = setting("C4", "how digits are turned, each at random", choices=("none", "C4", "D4", "any"))
    degrade: str = setting("noise:64", "NAME:NUMBER[,NAME:NUMBER...], what is done to the sources")
    image_size: int = setting(32, "pixels a side, by a black margin", above=27)


def plan(settings: RotatedMnist) -> Plan:
    parsed(settings.degrade)
    root = folder_of(settings)
    found = {start: (beside(root, start, "images"), beside(root, start, "labels")) for start in FILES}
    there = {start: paths for start, paths in found.items() if paths[0]}
    if not there:
        raise ValueError(f"{root}: holds neither train-images-idx3-ubyte nor t10k-images-idx3-ubyte (or .gz); add them")
    jobs: list[Job] = []
    for start, (images, labels) in there.items():
        if images is None or labels is None:
            raise ValueError(f"{images}: its labels {start}-labels-idx1-ubyte are missing; add them beside it")
        count, known = len(idx(images, IMAGES)), len(idx(labels, LABELS))
        if known != count:
            raise ValueError(f"{labels}: has {known} labels, but {images.name} has {count} images; download both again")
        own = (
            settings if len(there) == 1 else Split(source=settings.source, seed=settings.seed, val=settings.val, test=0)
        )
        names = [f"{i:05d}" for i in range(count)]
        held = dict.fromkeys(names, "test") if start == "t10k" and len(there) > 1 else parts_of(names, own, "digits")
        for part in sorted(set(held.values())):
            numbers = [i for i, name in enumerate(names) if held[name] == part]
            blocks = [numbers[k : k + BLOCK] for k in range(0, len(numbers), BLOCK)]
            jobs += [Job(f"{start}_{part}_{k}", part, (), (images, labels, block)) for k, block in enumerate(blocks)]
    return Plan(jobs, len(jobs), tuple(path for paths in there.values() for path in paths if path))


def beside(root: Path, start: str, kind: str) -> Path | None:
    """The file of images or labels, also where an archive tool wrote a dot for the dash."""
    number = {"images": 3, "labels": 1}[kind]
    names = [f"{start}-{kind}{mark}idx{number}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    return next((root / name for name in names if (root / name).is_file()), None)


def idx(path: Path, magic: int) -> np.ndarray:
    """An IDX file of unsigned bytes, whose last number of `magic` is its dimensions. Raises ValueError, naming it."""
    with told(path):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if int.from_bytes(data[:4], "big") != magic:
            raise ValueError(f"begins with {data[:4].hex()}, expected {magic:08x} of IDX")
        dimensions = magic & 0xFF
        shape = tuple(np.frombuffer(data, ">u4", dimensions, 4).tolist())
        rest = len(data) - 4 - 4 * dimensions
        if rest != np.prod(shape):
            raise ValueError(f"{rest} bytes follow, expected {'x'.join(map(str, shape))}: truncated?")
        return np.frombuffer(data, np.uint8, -1, 4 + 4 * dimensions).reshape(shape)


def make(settings: RotatedMnist, job: Job) -> Made:
    images, labels, numbers = job.more
    digits, kinds, steps = idx(images, IMAGES), idx(labels, LABELS), parsed(settings.degrade)
    if digits.shape[1] > settings.image_size or digits.shape[2] > settings.image_size:
        raise ValueError(f"{images}: {digits.shape[1]}x{digits.shape[2]} pixels; set a larger --image_size")

    def pairs() -> Iterator[Pair]:
        for i in numbers:
            rng = rng_of(settings, f"{images.name.split('-')[0]}/{i}")
            target = TURNS[settings.turns](padded(digits[i], settings.image_size), rng)[..., None]
            worse = degraded(target, steps, rng)
            yield Pair(f"{kinds[i]}/{images.name.split('-')[0]}_{i:05d}", Picture(worse, None), Picture(target, None))

    return Made(pairs())


def padded(digit: np.ndarray, size: int) -> np.ndarray:
    room = [size - n for n in digit.shape]
    return np.pad(digit, [(n // 2, n - n // 2) for n in room])


def quarter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.rot90(image, int(rng.integers(4)))


def mirrored(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    turned = quarter(image, rng)
    return turned[:, ::-1] if rng.integers(2) else turned


def anyhow(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """About the middle by any angle, bilinear."""
    from scipy.ndimage import rotate

    turned = rotate(image.astype(np.float64), rng.uniform(0, 360), reshape=False, order=1)
    return np.rint(turned).clip(0, 255).astype(np.uint8)


TURNS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "none": lambda image, rng: image, "C4": quarter, "D4": mirrored, "any": anyhow,
}  # fmt: skip


def training(settings: RotatedMnist) -> tuple[str, dict[str, Any]]:
    group = {"none": "none", "D4": "D4"}.get(settings.turns, "C4")  # any angle: turns, yet no mirror
    own: dict[str, Any] = {"image_size": settings.image_size, "model_channels": 64}
    own |= {"channel_mult": "1,2,2"} if settings.image_size not in (32, 64) else {}
    return "rotated_mnist", own | ({"layers": "regular", "group": group} if group != "none" else {})


ROTATED_MNIST = Recipe(RotatedMnist, ABOUT, plan, make, training)
