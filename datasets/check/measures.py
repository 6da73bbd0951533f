"""What is measured of images: how they look when small, how far two lie apart, and which way their edges run."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dctn
from skimage.feature import structure_tensor
from skimage.filters import gaussian, sobel, window
from skimage.registration import phase_cross_correlation

from ddbm.symmetry.groups import GROUPS, Element, view

SMALL = 64  # pixels a side of what images are recognised by
NEAR = 4  # of 64 bits in which the hashes of one image may differ
SAME = 0.9  # correlation of small images from which on they may be one
MOST_APART = 0.75  # `apart` of images that may be one
CLEARLY = 1 / 3  # of how far apart images are that are alike by nature
LARGE = 512  # pixels a side, at most, of what shifts are measured on
FARTHEST = 16  # pixels
CLEARER = 0.15  # by which a pair must fit better when it is moved
ORIENTED = 128  # pixels a side, at most, of what orientations are measured on


def grey(pixels: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """float32 [H, W] of pixels [H, W, C], mean 0, deviation 1 inside the mask [H, W], 0 outside and if it is flat."""
    values = pixels.mean(-1, dtype=np.float32)
    inside = np.ones(values.shape, bool) if mask is None else mask
    if not inside.any() or not (deviation := values[inside].std()) > 1e-6 * max(1.0, float(np.abs(values).max())):
        return np.zeros_like(values)
    return np.where(inside, (values - values[inside].mean()) / deviation, 0).astype(np.float32)


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """[H, W] as [side, side], by the means of areas."""
    found = F.interpolate(torch.from_numpy(image)[None, None], (side, side), mode="bilinear", antialias=True)
    return found[0, 0].numpy()


def hash_of(small: np.ndarray) -> np.ndarray:
    """The 64 signs, int8 of 1 and -1, of the lowest frequencies but the mean of a small image (pHash, Zauner 2010)."""
    lowest = dctn(small)[:8, :8].ravel()
    return np.where(lowest > np.median(lowest[1:]), 1, -1).astype(np.int8)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two arrays of equal shape, in [-1, 1]; 0 if one of them is flat."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(np.sqrt((a * a).sum() * (b * b).sum()), 1e-12))


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """The mean squared difference of two small images of deviation 1, where it is largest of all eighths by eighths."""
    a, b = ((image - image.mean()) / max(float(image.std()), 1e-6) for image in (a, b))
    return float(((a - b) ** 2).reshape(8, SMALL // 8, 8, SMALL // 8).mean((1, 3)).max())


def fit(a: np.ndarray, b: np.ndarray) -> float:
    """How well two arrays fit, brighter or darker: Fisher's z of their correlation, 0 or more."""
    return float(np.arctanh(min(abs(correlation(a, b)), 0.9999)))


def fits(sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> np.ndarray:
    """How well each of the sources fits each of the targets by what they share most, as `fit` has it."""
    sides = [[np.stack([_unit(view) for view in each]) for each in zip(*map(views, images), strict=True)]
             for images in (sources, targets)]  # fmt: skip
    shared = np.max([np.abs(a @ b.T) for a, b in zip(*sides, strict=True)], 0)
    return np.arctanh(np.minimum(shared, 0.9999))


def _unit(image: np.ndarray) -> np.ndarray:
    values = image.ravel() - image.mean()
    return values / max(float(np.linalg.norm(values)), 1e-6)


def views(image: np.ndarray) -> list[np.ndarray]:
    """What two images of one thing may share: light or dark, edges, and edges without the noise of single pixels."""
    smooth = gaussian(image, 1.5)
    return [smooth, sobel(image), sobel(smooth)]


@lru_cache(maxsize=4)
def hann(shape: tuple[int, ...]) -> np.ndarray:
    """The window that hides the border, where what is seen begins and ends."""
    return window("hann", shape)


def shift_between(source: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    """Rows and columns by which the target lies off its source, both as `grey` makes them: (0, 0) unless it is clear.

    By phase correlation (Kuglin & Hines 1975) of what they may share, where it fits clearly better when it is undone.
    """
    cut = tuple(slice((n - min(n, LARGE)) // 2, (n + min(n, LARGE)) // 2) for n in source.shape)
    taper = hann(source[cut].shape)
    best, most = (0, 0), CLEARER + 8 / min(taper.shape)
    for a, b in zip(views(source[cut]), views(target[cut]), strict=True):
        if a.std() < 1e-6 or b.std() < 1e-6:
            continue
        moved, _, _ = phase_cross_correlation((b - b.mean()) * taper, (a - a.mean()) * taper)
        rows, columns = (int(n) for n in moved)
        if max(abs(rows), abs(columns)) <= min(FARTHEST, *(n // 4 for n in a.shape)):
            gain = fit(*overlap(a, b, (rows, columns))) - fit(a, b)
            best, most = ((rows, columns), gain) if gain > most else (best, most)
    return best


def overlap(source: np.ndarray, target: np.ndarray, shift: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The parts of both that show the same where the target lies off by a shift."""
    ours, theirs = ([slice(max(0, s * n), min(0, s * n) or None) for n in shift] for s in (-1, 1))
    return source[tuple(ours)], target[tuple(theirs)]


def likenesses(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """How well small images fit by what they share most, as `fit` has it, by the element that turns the source, [8]."""
    both = list(zip(views(source), views(target), strict=True))
    return np.array([max(fit(view(g, a), b) for a, b in both) for g in GROUPS["D4"].elements])


def orientation(image: np.ndarray) -> np.ndarray:
    """Which way a square image as `grey` makes it runs, float64 [10], each in [-1, 1].

    Where it is bright (columns, rows); to which side what is not background is skew about its middle; the mean
    direction of its edges, the steep ones before all; the mean of the double and of the fourfold angle of its structure
    tensor, weighted by its coherence: cosine and sine each.
    """
    image = shrunk(image, min(ORIENTED, len(image)))
    columns = np.broadcast_to(np.linspace(-1, 1, len(image)), image.shape)
    bright = [correlation(image, axis) for axis in (columns, columns.T)]
    weight = np.abs(image - np.median(image))
    weight /= max(float(weight.sum()), 1e-12)
    skew = []
    for axis in (columns, columns.T):
        off = (axis - (weight * axis).sum()) ** 3
        skew.append((weight * off).sum() / max((weight * np.abs(off)).sum(), 1e-12))
    down, right = np.gradient(image)
    steep = np.hypot(down, right)
    edges = [float((side * steep).sum() / max((steep**2).sum(), 1e-12)) for side in (right, down)]
    a_rr, a_rc, a_cc = structure_tensor(image, sigma=1.5, mode="nearest", order="rc")
    double = a_cc - a_rr + 2j * a_rc
    strength = np.abs(double)
    unit = double / np.maximum(strength, 1e-12)
    means = [(strength * unit**k).sum() / max(float(strength.sum()), 1e-12) for k in (1, 2)]
    return np.array([*bright, *skew, *edges, *(f(m) for m in means for f in (np.real, np.imag))])


def turned(found: np.ndarray, g: Element) -> np.ndarray:
    """`orientation` of images, [..., 10], that are turned by g."""
    flip, turns = g
    found = found * [-1, 1, -1, 1, -1, 1, 1, -1, 1, -1] if flip else found
    for _ in range(turns):  # a quarter turn: right becomes up
        found = found[..., [1, 0, 3, 2, 5, 4, 6, 7, 8, 9]] * [1, -1, 1, -1, 1, -1, -1, -1, 1, 1]
    return found


def suited(found: np.ndarray, turns: bool = True) -> tuple[str, dict[str, float]]:
    """The largest group under which the orientations of images, [N, 10], look as they do; of every group how far off.

    turns: whether it may hold quarter turns, which the training's size must allow.

    Off is the largest mean change of a number of `orientation` under an element, in units of what chance makes of it
    (1 is 3.5 standard errors, and at least 0.05): above 1 the group does not suit.
    """
    own = {}
    for g in GROUPS["D4"].elements:
        change = found - turned(found, g)
        noise = np.maximum(3.5 * change.std(0) / np.sqrt(len(found)), 0.05)
        own[g] = float((np.abs(change.mean(0)) / noise).max())
    groups = {name: max(own[g] for g in group.elements) for name, group in GROUPS.items()}
    fitting = [name for name, value in groups.items() if value <= 1 and (turns or not GROUPS[name].turns)]
    return max(fitting, key=lambda name: len(GROUPS[name])), groups
