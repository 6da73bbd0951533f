"""Metrics of masks: the reference is 0 or 255, a sample's pixel belongs to the mask from level 128 on."""

import torch
from torch import Tensor


def _overlap(x: Tensor, y: Tensor, of_sample: int, of_reference: int) -> Tensor:
    """Share of the sample's mask, of the reference's, or of both together, that lies in both masks; float64 [B].

    Where there are no such pixels it is 1 if both masks are empty and 0 if not: so a sample without a finding is
    perfect where there is none, and dice stays the harmonic mean of precision and recall.
    x: the sample, y: the reference, 0 or 1; both float64 [B, C, H, W], all channels counted.
    """
    predicted, actual = ((image > 0.5).flatten(1) for image in (x, y))  # 127 / 255 < 0.5 < 128 / 255
    shared, predicted, actual = (pixels.sum(1).double() for pixels in (predicted & actual, predicted, actual))
    whole = of_sample * predicted + of_reference * actual
    part = (of_sample + of_reference) * shared
    return torch.where(whole > 0, part / whole.clamp(min=1), (predicted + actual == 0).double())


def dice(x: Tensor, y: Tensor) -> Tensor:
    """Overlap of two masks, 2 TP / (2 TP + FP + FN), which is the F1 score; 1 where both masks are empty.

    In [0, 1], higher is better. Dice 1945.
    """
    return _overlap(x, y, 1, 1)


def accuracy(x: Tensor, y: Tensor) -> Tensor:
    """Share of pixels whose class is right, (TP + TN) / N. In [0, 1], higher is better. Taha & Hanbury 2015."""
    return ((x > 0.5) == (y > 0.5)).flatten(1).double().mean(1)


def mask_precision(x: Tensor, y: Tensor) -> Tensor:
    """Share of the sample's mask that is right, TP / (TP + FP); of an empty one: 1 if the reference is empty, else 0.

    In [0, 1], higher is better. Taha & Hanbury 2015.
    """
    return _overlap(x, y, 1, 0)


def mask_recall(x: Tensor, y: Tensor) -> Tensor:
    """Share of the reference's mask that is found, TP / (TP + FN); of an empty one: 1 if the sample is empty, else 0.

    In [0, 1], higher is better. Taha & Hanbury 2015.
    """
    return _overlap(x, y, 0, 1)
