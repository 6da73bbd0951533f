"""Metrics of several draws of every image: functions of x, y, inside to values [B], or rows [B, L].

x: the draws, float64 [B, K, C, H, W] in [0, 1], K > 1; y: the references, [B, C, H, W]; inside: bool [B, 1, H, W],
where the pairs are defined; no number depends on what is outside.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from evaluations import paired
from evaluations.distances import Score, interval_of_mean


def _of_each(metric: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """A metric of every draw, [B, K]."""
    return torch.stack([metric(draw, y, inside) for draw in x.unbind(1)], 1)


def best_mse(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """The smallest mse of the K draws of an image: whether the truth is among what the model holds possible.

    In [0, 1], lower is better, and the lower the more draws there are: compare equal K only. Of samples with --draws K.
    """
    return _of_each(paired.mse, x, y, inside).amin(1)


def best_psnr(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """The largest psnr of the K draws of an image, in dB.

    In [0, ∞], higher is better, and the higher the more draws there are: compare equal K only. Of samples with
    --draws K.
    """
    return _of_each(paired.psnr, x, y, inside).amax(1)


def best_ssim(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """The largest ssim of the K draws of an image.

    In [-1, 1], higher is better, and the higher the more draws there are: compare equal K only. Of samples with
    --draws K.
    """
    return _of_each(paired.ssim, x, y, inside).amax(1)


def mean_mse(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """The mse of the average of the K draws of an image, which is not rounded.

    In [0, 1], lower is better: of all images the mean over what is possible has the lowest. Of samples with --draws K.
    """
    return paired.mse(x.mean(1), y, inside)


def mean_psnr(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """The psnr of the average of the K draws of an image, which is not rounded, in dB.

    In [0, ∞], higher is better. Of samples with --draws K.
    """
    return paired.psnr(x.mean(1), y, inside)


def mean_ssim(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """The ssim of the average of the K draws of an image, which is not rounded.

    In [-1, 1], higher is better. Of samples with --draws K.
    """
    return paired.ssim(x.mean(1), y, inside)


def spread(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """How much the K draws of an image differ: their standard deviation (of K - 1), mean over pixels inside the mask.

    In [0, 0.71] on the [0, 1] scale, higher is better as diversity alone; whether it is right, calibration says. Of
    samples with --draws K.
    """
    return paired.mean(x.std(1), inside)


def calibration(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """How far the share of pixels whose truth lies within the spread of the K draws is from what it should be.

    If truth and draws follow one law, the truth of a pixel lies between the i-th smallest and the i-th largest of its
    draws with probability (K + 1 - 2i) / (K + 1), for i = 1 ... K/2: these are the levels. The number is the mean of
    |share - level| over them, the shares being those of all pixels inside the masks; the JSON has the curve. Where the
    truth equals draws, as 8-bit values do, all ranks that it may have among them count in equal parts.

    In [0, 1], lower is better; shares below their levels mean that the draws are too much alike. Of samples with
    --draws K. After the rank histograms of Hamill 2001.
    """
    count, truth, shares = x.shape[1], y[:, None], []
    low = (x < truth).sum(1)  # the truth's rank is one of low ... high
    high = low + (x == truth).sum(1)
    for i in range(1, count // 2 + 1):
        ranks = (high.clamp(max=count - i) - low.clamp(min=i) + 1).clamp(min=0)
        shares.append((ranks / (high - low + 1).double() * inside).sum((1, 2, 3)))
    return torch.stack([*shares, inside.sum((1, 2, 3)).double() * y.shape[1]], 1)


def calibrated(rows: np.ndarray, count: int) -> Score:
    """The number and the curve of `calibration` of K = `count` draws.

    rows: of all images [N, levels + 1], how many values lie within each level's interval, and how many there are.
    """
    levels = (count + 1 - 2 * np.arange(1, count // 2 + 1)) / (count + 1)

    def coverage(row: np.ndarray) -> np.ndarray:
        return row[:-1] / max(row[-1], np.finfo(float).tiny)

    def error(row: np.ndarray) -> float:
        return float(np.abs(coverage(row) - levels).mean())

    mean = rows.mean(0)
    curve = {"levels": levels[::-1].tolist(), "coverage": coverage(mean)[::-1].tolist()}
    return Score(error(mean), interval=interval_of_mean(rows, error), curve=curve)
