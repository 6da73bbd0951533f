"""The metrics. A new one is one function and one line in `METRICS`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import piq
import torch
from torch import Tensor, nn

from evaluations.features import FEATURES, alexnet_lpips, feature_statistics, frechet_distance, inception, to_rgb
from evaluations.images import Statistics


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference over the pixels and channels of an image on the [0, 1] scale.

    In [0, 1], lower is better. x, y: float64 [B, C, H, W] in [0, 1] -> [B].
    """
    return (x - y).square().flatten(1).mean(1)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, 10 log10(1 / (mse + 1e-8)) in dB, as piq defines it.

    In [0, 80], higher is better: the 1e-8 gives an identical pair 80 dB and takes 0.005 dB at 50 dB.
    x, y: float64 [B, C, H, W] in [0, 1] -> [B].
    """
    return piq.psnr(x, y, data_range=1.0, reduction="none")


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity, 11 px Gaussian window (σ 1.5) inside the image, native resolution, mean over channels.

    In [-1, 1], higher is better. Wang et al. 2004, by piq. x, y: float64 [B, C, H, W] in [0, 1], H, W >= 11 -> [B].
    """
    return piq.ssim(x, y, data_range=1.0, downsample=False, reduction="none")


def lpips(x: Tensor, y: Tensor, network: nn.Module) -> Tensor:
    """Learned perceptual distance, AlexNet, v0.1; grey images are repeated to three channels.

    In [0, ∞), lower is better. Zhang et al. 2018, by the package lpips. x, y: float64 [B, 1 or 3, H, W] in [0, 1]
    -> [B].
    """
    return network(to_rgb(2 * x - 1).float(), to_rgb(2 * y - 1).float()).flatten()


def fid(reference: np.ndarray | Statistics, sample: np.ndarray, network: nn.Module, batch_size: int) -> float:
    """Fréchet Inception distance between two sets of images; grey images are repeated to three channels.

    In [0, ∞), lower is better, biased upwards for few images. Heusel et al. 2017, features by torch-fidelity.
    reference, sample: uint8 [N >= 2, H, W, 1 or 3].
    """
    if isinstance(reference, Statistics):
        mu, sigma = reference.mu, reference.sigma
    else:
        mu, sigma = feature_statistics(reference, network, batch_size)
    return frechet_distance(mu, sigma, *feature_statistics(sample, network, batch_size))


class Counts(NamedTuple):
    """Pixels of an image, all channels counted: in both masks, in the sample's, in the reference's; float64 [B].

    TP = shared, FP = predicted - shared, FN = actual - shared, as in Taha & Hanbury 2015 (BMC Medical Imaging 15:29).
    """

    shared: Tensor
    predicted: Tensor
    actual: Tensor

    def ratio(self, part: Tensor, whole: Tensor) -> Tensor:
        """part / whole; where whole is 0, it is 1 if both masks are empty and 0 if not.

        So a sample without a finding is perfect where there is none, and dice stays the harmonic mean of precision and
        recall.
        """
        agreed = (self.predicted + self.actual == 0).double()
        return torch.where(whole > 0, part / whole.clamp(min=1), agreed)


def count(x: Tensor, y: Tensor) -> Counts:
    """x: the sample, a pixel of the mask from level 128 on; y: the reference, 0 or 1. Both float64 [B, C, H, W]."""
    predicted, actual = ((image > 0.5).flatten(1) for image in (x, y))  # 127 / 255 < 0.5 < 128 / 255
    return Counts(*(pixels.sum(1).double() for pixels in (predicted & actual, predicted, actual)))


def dice(x: Tensor, y: Tensor) -> Tensor:
    """Overlap of two masks, 2 TP / (2 TP + FP + FN), which is the F1 score; 1 where both masks are empty.

    In [0, 1], higher is better. Dice 1945. x, y as in `count` -> [B].
    """
    counts = count(x, y)
    return counts.ratio(2 * counts.shared, counts.predicted + counts.actual)


def accuracy(x: Tensor, y: Tensor) -> Tensor:
    """Share of pixels whose class is right, (TP + TN) / N. In [0, 1], higher is better. x, y as in `count` -> [B]."""
    return ((x > 0.5) == (y > 0.5)).flatten(1).double().mean(1)


def precision(x: Tensor, y: Tensor) -> Tensor:
    """Share of the sample's mask that is right, TP / (TP + FP); of an empty one: 1 if the reference is empty, else 0.

    In [0, 1], higher is better. x, y as in `count` -> [B].
    """
    counts = count(x, y)
    return counts.ratio(counts.shared, counts.predicted)


def recall(x: Tensor, y: Tensor) -> Tensor:
    """Share of the reference's mask that is found, TP / (TP + FN); of an empty one: 1 if the sample is empty, else 0.

    In [0, 1], higher is better. x, y as in `count` -> [B].
    """
    counts = count(x, y)
    return counts.ratio(counts.shared, counts.actual)


def check_mask(reference: np.ndarray) -> None:
    """Raise ValueError unless every value of the images, uint8 [N, H, W, C], is 0 or 255."""
    for n, image in enumerate(reference):
        grey = image[(image != 0) & (image != 255)]
        if grey.size:
            raise ValueError(
                f"image {n} of the reference is no mask: it holds the value {grey[0]}; expected 0 and 255 alone; "
                "choose a metric for images, such as mse"
            )


@dataclass(frozen=True)
class Metric:
    """A metric and what it needs.

    Paired: `compute(x, y[, network])` maps batches in [0, 1] to one value a pair. Otherwise `compute(reference, sample,
    network, batch_size)` maps whole sets to one number. `network(weights, device)` loads the network.
    """

    compute: Callable[..., Any]
    higher_is_better: bool
    paired: bool = True
    smallest: int = 1  # pixels a side
    fewest: int = 1  # images
    channels: tuple[int, ...] | None = None  # None: any number
    masks: bool = False  # of masks alone: the reference holds 0 and 255
    network: Callable[[str | Path | None, torch.device], nn.Module] | None = None

    def check(self, reference: np.ndarray | Statistics, sample: np.ndarray) -> None:
        """Raise ValueError if these images, uint8 [N, H, W, C], cannot be measured."""
        _, height, width, channels = sample.shape
        if min(height, width) < self.smallest:
            raise ValueError(f"images are {height} x {width} px; expected at least {self.smallest} a side")
        if self.channels and channels not in self.channels:
            known = " or ".join(map(str, self.channels))
            raise ValueError(f"images have {channels} channels; expected {known}; choose the channels first")
        sets = [sample] if isinstance(reference, Statistics) else [reference, sample]
        if (fewest := min(map(len, sets))) < self.fewest:
            raise ValueError(f"found {fewest} image; expected at least {self.fewest} in each set")
        if isinstance(reference, Statistics):
            if self.paired:
                raise ValueError(
                    f"{reference.path} holds statistics (mu, sigma); expected images; give the images as REF"
                )
            if reference.mu.shape != (FEATURES,):
                raise ValueError(
                    f"{reference.path} has {len(reference.mu)} features; expected InceptionV3's {FEATURES}"
                )
        elif self.masks:
            check_mask(reference)


METRICS = {
    "mse": Metric(mse, higher_is_better=False),
    "psnr": Metric(psnr, higher_is_better=True),
    "ssim": Metric(ssim, higher_is_better=True, smallest=11),
    "lpips": Metric(lpips, higher_is_better=False, smallest=31, channels=(1, 3), network=alexnet_lpips),
    "fid": Metric(fid, higher_is_better=False, paired=False, fewest=2, channels=(1, 3), network=inception),
    "dice": Metric(dice, higher_is_better=True, masks=True),
    "accuracy": Metric(accuracy, higher_is_better=True, masks=True),
    "precision": Metric(precision, higher_is_better=True, masks=True),
    "recall": Metric(recall, higher_is_better=True, masks=True),
}
