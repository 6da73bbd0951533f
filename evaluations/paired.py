"""Metrics of an image against its reference: functions of x, y, inside to float64 values [B].

x, y: float64 [B, C, H, W] in [0, 1], mid-grey outside the masks; inside: bool [B, 1, H, W], where the pairs are
defined. No number depends on what is outside; NaN where nothing of a pair is inside.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW, SIGMA = 11, 1.5  # pixels, of structural similarity
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents of ms_ssim


def mean(values: Tensor, inside: Tensor) -> Tensor:
    """Mean over channels and pixels inside: [B, C, H, W] -> [B]."""
    inside = inside.expand_as(values)
    return (values * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3))


def mse(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """Mean squared difference over the pixels and channels of an image on the [0, 1] scale.

    In [0, 1], lower is better. Wang & Bovik 2009.
    """
    return mean((x - y).square(), inside)


def mae(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """Mean absolute difference over the pixels and channels of an image on the [0, 1] scale.

    In [0, 1], lower is better. Willmott & Matsuura 2005.
    """
    return mean((x - y).abs(), inside)


def psnr(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, 10 log10(1 / mse), in dB, as scikit-image has it.

    In [0, ∞], higher is better; an identical pair has ∞, and the mean is over the pairs that differ. Wang & Bovik 2009.
    """
    return -10 * mse(x, y, inside).log10()


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Structural similarity of every window inside the image, [B, C, H - 10, W - 10], and without its luminance."""
    from piq.functional import gaussian_filter  # which imports all of torchvision

    channels = x.shape[1]
    kernel = gaussian_filter(WINDOW, SIGMA, device=x.device, dtype=x.dtype).repeat(channels, 1, 1, 1)
    windows = torch.cat([x, y, x * x, y * y, x * y])
    a, b, aa, bb, ab = F.conv2d(windows, kernel, groups=channels).chunk(5)
    structure = (2 * (ab - a * b) + 0.03**2) / (aa - a * a + bb - b * b + 0.03**2)
    return (2 * a * b + 0.01**2) / (a * a + b * b + 0.01**2) * structure, structure


def _whole_windows(inside: Tensor) -> Tensor:
    """Which windows lie wholly inside: bool [B, 1, H - 10, W - 10]."""
    return F.max_pool2d((~inside).float(), WINDOW, 1) == 0


def ssim(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """Structural similarity, 11 px Gaussian window (σ 1.5) wholly inside, native resolution, mean over channels.

    In [-1, 1], higher is better. Wang et al. 2004.
    """
    return mean(_similarity(x, y)[0], _whole_windows(inside))


def ms_ssim(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """Structural similarity over five scales, each half the one before; 161 px a side or more.

    In [0, 1], higher is better. Wang, Simoncelli & Bovik 2003.
    """
    values = x.new_ones(x.shape[:2])
    for scale, power in enumerate(SCALES):
        if scale:  # an odd side begins with its first row or column twice
            pad = [max(n % 2 for n in x.shape[2:]), 0] * 2
            x, y, hidden = (F.pad(each, pad, mode="replicate") for each in (x, y, (~inside).float()))
            x, y, inside = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2), F.max_pool2d(hidden, 2) == 0
        whole, structure = (of.flatten(0, 1)[:, None] for of in _similarity(x, y))
        windows = _whole_windows(inside).repeat_interleave(x.shape[1], 0)
        values = values * mean(whole if power == SCALES[-1] else structure, windows).view_as(values).relu() ** power
    return values.mean(1)


def lpips(x: Tensor, y: Tensor, inside: Tensor, network: nn.Module) -> Tensor:
    """Learned perceptual distance, AlexNet, v0.1, native resolution; grey images are repeated to three channels.

    Where both are mid-grey nothing differs, so the mean over the image, over the share of it that is inside, is that
    over the inside. In [0, ∞), lower is better. Zhang et al. 2018, by the package lpips.
    """
    distance = network(*(2 * image.expand(-1, 3, -1, -1).float() - 1 for image in (x, y))).flatten()
    return distance / inside.double().mean((1, 2, 3))


def lpips_vgg(x: Tensor, y: Tensor, inside: Tensor, network: nn.Module) -> Tensor:
    """Learned perceptual distance, VGG16, v0.1, native resolution; grey images are repeated to three channels.

    In [0, ∞), lower is better. Zhang et al. 2018, by the package lpips.
    """
    return lpips(x, y, inside, network)


def _overlap(x: Tensor, y: Tensor, inside: Tensor, of_sample: int, of_reference: int, threshold: float) -> Tensor:
    """Share of the sample's mask, of the reference's, or of both together, that lies in both masks; float64 [B].

    Where there are no such pixels it is 1 if both masks are empty and 0 if not: so a sample without a finding is
    perfect where there is none, and dice stays the harmonic mean of precision and recall.
    x: the sample, whose pixels belong to the mask above the threshold; y: the reference, 0 or 1; all channels count.
    """
    predicted, actual = (x > threshold) & inside, (y > 0.5) & inside
    shared, predicted, actual = (part.sum((1, 2, 3)).double() for part in (predicted & actual, predicted, actual))
    whole = of_sample * predicted + of_reference * actual
    part = (of_sample + of_reference) * shared
    found = torch.where(whole > 0, part / whole.clamp(min=1), (predicted + actual == 0).double())
    return found.where(inside.any(3).any(2).any(1), torch.nan)


def dice(x: Tensor, y: Tensor, inside: Tensor, threshold: float = 0.5) -> Tensor:
    """Overlap of two masks, 2 TP / (2 TP + FP + FN), which is the F1 score; 1 where both masks are empty.

    In [0, 1], higher is better. Dice 1945.
    """
    return _overlap(x, y, inside, 1, 1, threshold)


def accuracy(x: Tensor, y: Tensor, inside: Tensor, threshold: float = 0.5) -> Tensor:
    """Share of pixels whose class is right, (TP + TN) / N. In [0, 1], higher is better. Taha & Hanbury 2015."""
    return mean(((x > threshold) == (y > 0.5)).double(), inside)


def mask_precision(x: Tensor, y: Tensor, inside: Tensor, threshold: float = 0.5) -> Tensor:
    """Share of the sample's mask that is right, TP / (TP + FP); of an empty one: 1 if the reference is empty, else 0.

    In [0, 1], higher is better. Taha & Hanbury 2015.
    """
    return _overlap(x, y, inside, 1, 0, threshold)


def mask_recall(x: Tensor, y: Tensor, inside: Tensor, threshold: float = 0.5) -> Tensor:
    """Share of the reference's mask that is found, TP / (TP + FN); of an empty one: 1 if the sample is empty, else 0.

    In [0, 1], higher is better. Taha & Hanbury 2015.
    """
    return _overlap(x, y, inside, 0, 1, threshold)
