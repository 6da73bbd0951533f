"""Metrics of masks: the reference is 0 or 255, a sample's pixel belongs to the mask from level 128 on."""

from typing import NamedTuple

import torch
from torch import Tensor


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

    In [0, 1], higher is better. Dice 1945.
    """
    counts = count(x, y)
    return counts.ratio(2 * counts.shared, counts.predicted + counts.actual)


def accuracy(x: Tensor, y: Tensor) -> Tensor:
    """Share of pixels whose class is right, (TP + TN) / N. In [0, 1], higher is better. Taha & Hanbury 2015."""
    return ((x > 0.5) == (y > 0.5)).flatten(1).double().mean(1)


def mask_precision(x: Tensor, y: Tensor) -> Tensor:
    """Share of the sample's mask that is right, TP / (TP + FP); of an empty one: 1 if the reference is empty, else 0.

    In [0, 1], higher is better. Taha & Hanbury 2015.
    """
    counts = count(x, y)
    return counts.ratio(counts.shared, counts.predicted)


def mask_recall(x: Tensor, y: Tensor) -> Tensor:
    """Share of the reference's mask that is found, TP / (TP + FN); of an empty one: 1 if the sample is empty, else 0.

    In [0, 1], higher is better. Taha & Hanbury 2015.
    """
    counts = count(x, y)
    return counts.ratio(counts.shared, counts.actual)
