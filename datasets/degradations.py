"""What makes a picture worse, each a function of a picture of 8 bits, a number and a generator.

All but `jpeg` and `l0` are laws that do not change when the picture is turned or mirrored.
"""

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ddbm.settings import choose

GREY = 128  # of what is lost: nearest to 0 for the network
BRUSH = 8  # a stroke is as wide as the side by this
Degrade = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
Steps = Sequence[tuple[str, float]]  # names and numbers, in their order


def noise(image: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of a standard deviation of `level` grey levels, rounded and clipped to 8 bits."""
    return eight_bits(image + rng.normal(0, level, image.shape))


def blur(image: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian of a standard deviation of `radius` pixels; edges go on as they end."""
    from scipy.ndimage import gaussian_filter

    return eight_bits(gaussian_filter(image.astype(np.float64), (radius, radius, 0), mode="nearest"))


def downsample(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Means of factor x factor pixels, and those enlarged again, bicubic; the factor divides the size."""
    height, width = image.shape[:2]
    n = int(factor)
    if height % n or width % n:
        raise ValueError(f"downsample:{n} does not divide {height}x{width} pixels")
    means = image.reshape(height // n, n, width // n, n, -1).mean((1, 3))
    layers = [Image.fromarray(layer.astype(np.float32)) for layer in np.moveaxis(means, -1, 0)]
    return eight_bits(
        np.stack([np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC)) for layer in layers], -1)
    )


def jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    """Through JPEG of this quality, 1 to 100."""
    if image.shape[2] not in (1, 3):
        raise ValueError(f"jpeg takes 1 or 3 channels, found {image.shape[2]}")
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "jpeg", quality=int(quality))
    return np.asarray(Image.open(file)).reshape(image.shape)


def mask_center(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A box in the middle, `share` of height and width, is lost."""
    lost = np.zeros(image.shape[:2], bool)
    edges = [int(n * (1 - share) / 2 + 0.5) for n in image.shape[:2]]  # the same on both sides
    rows, columns = (slice(edge, n - edge) for edge, n in zip(edges, image.shape, strict=False))
    lost[rows, columns] = True
    return without(image, lost)


def mask_random(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Each pixel is lost with this probability."""
    return without(image, rng.random(image.shape[:2]) < share)


def mask_brush(image: np.ndarray, strokes: float, rng: np.random.Generator) -> np.ndarray:
    """So many straight strokes of a round brush, between points anywhere, are lost."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    lost = np.zeros((height, width), bool)
    for _ in range(int(strokes)):
        (y0, x0), (y1, x1) = rng.random((2, 2)) * (height, width) - 0.5  # pixels have their centres at whole numbers
        along = ((y - y0) * (y1 - y0) + (x - x0) * (x1 - x0)) / max((y1 - y0) ** 2 + (x1 - x0) ** 2, 1e-9)
        along = along.clip(0, 1)
        lost |= np.hypot(y - y0 - along * (y1 - y0), x - x0 - along * (x1 - x0)) < min(height, width) / BRUSH / 2
    return without(image, lost)


def stain(image: np.ndarray, kept: float, rng: np.random.Generator) -> np.ndarray:
    """One stain alone: 0 hematoxylin, 1 eosin, 2 DAB, by colour deconvolution (Ruifrok & Johnston 2001)."""
    from skimage.color import hed2rgb, rgb2hed

    n = int(kept)
    if image.shape[2] != 3 or n > 2:
        raise ValueError(f"stain takes RGB and 0, 1 or 2, found {image.shape[2]} channels and {n}")
    stains = rgb2hed(image)
    return eight_bits(hed2rgb(stains * (np.arange(3) == n)) * 255)


def l0(image: np.ndarray, weight: float, rng: np.random.Generator) -> np.ndarray:
    """Few gradients other than 0 (Xu, Lu, Xu, Jia 2011, Algorithm 1, kappa 2); weight: their λ, such as 0.02.

    Half-quadratic splitting: gradients whose squares, summed over the channels, are below λ/β become 0, then the
    picture with these gradients is solved for, exactly, on a torus.
    """
    found = image / 255.0
    axes, original = (0, 1), np.fft.fft2(found, axes=(0, 1))
    squares = sum(
        np.abs(np.exp(2j * np.pi * np.fft.fftfreq(n)) - 1).reshape(shape) ** 2
        for n, shape in zip(image.shape, ((-1, 1, 1), (1, -1, 1)), strict=False)
    )
    beta = 2 * weight
    while 0 < beta < 1e5:
        steps = [np.roll(found, -1, axis) - found for axis in axes]
        small = sum((step**2).sum(-1, keepdims=True) for step in steps) < weight / beta
        back = sum(np.roll(step * ~small, 1, axis) - step * ~small for axis, step in zip(axes, steps, strict=True))
        found = np.fft.ifft2((original + beta * np.fft.fft2(back, axes=axes)) / (1 + beta * squares), axes=axes).real
        beta *= 2
    return eight_bits(found * 255)


DEGRADATIONS: dict[str, Degrade] = {
    f.__name__: f for f in (noise, blur, downsample, jpeg, mask_center, mask_random, mask_brush, stain, l0)
}


NUMBERS = {"jpeg": "a quality", "mask_center": "a share of 1", "mask_random": "a share of 1", "stain": "a stain"}
MOST = {"jpeg": 100.0, "mask_center": 1.0, "mask_random": 1.0, "stain": 2.0}
WHOLE = {"downsample": 1, "jpeg": 1, "mask_brush": 0, "stain": 0}  # those that take whole numbers, from which on


def parsed(text: str) -> Steps:
    """`blur:2,noise:25` as names and numbers, in this order. Raises ValueError."""
    steps = []
    for word in filter(None, map(str.strip, text.split(","))):
        name, _, number = word.partition(":")
        choose(DEGRADATIONS, name, "degradation")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value < np.inf:
            raise ValueError(f"--degrade {word}: expected {name}:NUMBER of 0 or more, such as {name}:1")
        if value > MOST.get(name, value):
            raise ValueError(f"--degrade {word}: expected {MOST[name]:g} at most, as {NUMBERS[name]}")
        if name in WHOLE and (value != int(value) or value < WHOLE[name]):
            raise ValueError(f"--degrade {word}: expected a whole number of {WHOLE[name]} or more")
        steps.append((name, value))
    if not steps:
        raise ValueError(f"--degrade names nothing: give NAME:NUMBER[,NAME:NUMBER...] of {', '.join(DEGRADATIONS)}")
    return steps


def degraded(image: np.ndarray, steps: Steps, rng: np.random.Generator, mask: np.ndarray | None = None) -> np.ndarray:
    """uint8 [H, W, C] after all steps, each rounded and clipped to 8 bits.

    mask: bool [H, W], True where it is defined; what is hidden becomes the mean of what is seen before, as its colours
    mean nothing.
    """
    if mask is not None and mask.any():
        image = np.where(mask[..., None], image, eight_bits(image[mask].mean(0)))
    for name, value in steps:
        image = DEGRADATIONS[name](image, value, rng)
    return image


def eight_bits(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def without(image: np.ndarray, lost: np.ndarray) -> np.ndarray:
    return np.where(lost[..., None], GREY, image).astype(np.uint8)
