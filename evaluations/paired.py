"""Metrics of an image against its reference: functions of x and y, float64 [B, C, H, W] in [0, 1], to values [B]."""

import piq
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

    In [0, ∞), higher is better. An identical pair, whose PSNR is infinite, counts as the best that 8-bit images that
    differ can have: one value off by one level, 10 log10(255² C H W). Wang & Bovik 2009.
    """
    return -10 * mse(x, y).clamp(min=1 / (255**2 * x[0].numel())).log10()


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
