"""Metrics of an image against its reference: functions of x and y, float64 [B, C, H, W] in [0, 1], to values [B]."""

import piq
import torch
from torch import Tensor, nn


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference over the pixels and channels of an image on the [0, 1] scale.

    In [0, 1], lower is better. Wang & Bovik 2009.
    """
    return (x - y).square().flatten(1).mean(1)


def mae(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference over the pixels and channels of an image on the [0, 1] scale.

    In [0, 1], lower is better. Willmott & Matsuura 2005.
    """
    return (x - y).abs().flatten(1).mean(1)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, 10 log10(1 / mse), in dB, as scikit-image has it.

    In [0, ∞], higher is better; an identical pair has ∞, and the mean is over the pairs that differ. Wang & Bovik 2009.
    """
    return -10 * mse(x, y).log10()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity, 11 px Gaussian window (σ 1.5) inside the image, native resolution, mean over channels.

    In [-1, 1], higher is better. Wang et al. 2004, by piq.
    """
    return piq.ssim(x, y, data_range=1.0, downsample=False, reduction="none")


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity over five scales, each half the one before; 161 px a side or more.

    In [0, 1], higher is better. Wang, Simoncelli & Bovik 2003, by piq.
    """
    return piq.multi_scale_ssim(x, y, data_range=1.0, reduction="none")


def lpips(x: Tensor, y: Tensor, network: nn.Module) -> Tensor:
    """Learned perceptual distance, AlexNet, v0.1, native resolution; grey images are repeated to three channels.

    In [0, ∞), lower is better. Zhang et al. 2018, by the package lpips.
    """
    return network(*(2 * image.expand(-1, 3, -1, -1).float() - 1 for image in (x, y))).flatten()


def lpips_vgg(x: Tensor, y: Tensor, network: nn.Module) -> Tensor:
    """Learned perceptual distance, VGG16, v0.1, native resolution; grey images are repeated to three channels.

    In [0, ∞), lower is better. Zhang et al. 2018, by the package lpips.
    """
    return lpips(x, y, network)


def _overlap(x: Tensor, y: Tensor, of_sample: int, of_reference: int, threshold: float) -> Tensor:
    """Share of the sample's mask, of the reference's, or of both together, that lies in both masks; float64 [B].

    Where there are no such pixels it is 1 if both masks are empty and 0 if not: so a sample without a finding is
    perfect where there is none, and dice stays the harmonic mean of precision and recall.
    x: the sample, whose pixels belong to the mask above the threshold; y: the reference, 0 or 1; all channels count.
    """
    predicted, actual = (x > threshold).flatten(1), (y > 0.5).flatten(1)
    shared, predicted, actual = (pixels.sum(1).double() for pixels in (predicted & actual, predicted, actual))
    whole = of_sample * predicted + of_reference * actual
    part = (of_sample + of_reference) * shared
    return torch.where(whole > 0, part / whole.clamp(min=1), (predicted + actual == 0).double())


def dice(x: Tensor, y: Tensor, threshold: float = 0.5) -> Tensor:
    """Overlap of two masks, 2 TP / (2 TP + FP + FN), which is the F1 score; 1 where both masks are empty.

    In [0, 1], higher is better. Dice 1945.
    """
    return _overlap(x, y, 1, 1, threshold)


def accuracy(x: Tensor, y: Tensor, threshold: float = 0.5) -> Tensor:
    """Share of pixels whose class is right, (TP + TN) / N. In [0, 1], higher is better. Taha & Hanbury 2015."""
    return ((x > threshold) == (y > 0.5)).flatten(1).double().mean(1)


def mask_precision(x: Tensor, y: Tensor, threshold: float = 0.5) -> Tensor:
    """Share of the sample's mask that is right, TP / (TP + FP); of an empty one: 1 if the reference is empty, else 0.

    In [0, 1], higher is better. Taha & Hanbury 2015.
    """
    return _overlap(x, y, 1, 0, threshold)


def mask_recall(x: Tensor, y: Tensor, threshold: float = 0.5) -> Tensor:
    """Share of the reference's mask that is found, TP / (TP + FN); of an empty one: 1 if the sample is empty, else 0.

    In [0, 1], higher is better. Taha & Hanbury 2015.
    """
    return _overlap(x, y, 0, 1, threshold)
