"""Metrics of masks: the reference is 0 or 255, a sample's pixel belongs to the mask from level 128 on."""

import torch
from torch import Tensor


def _counts(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of an image, all channels counted: in both masks, in the sample's, in the reference's; float64 [B].

    x: the sample, y: the reference, 0 or 1; both float64 [B, C, H, W]. TP = shared, FP = predicted - shared, FN =
    actual - shared, as in Taha & Hanbury 2015 (BMC Medical Imaging 15:29).
    """
    predicted, actual = ((image > 0.5).flatten(1) for image in (x, y))  # 127 / 255 < 0.5 < 128 / 255
    shared, predicted, actual = (pixels.sum(1).double() for pixels in (predicted & actual, predicted, actual))
    return shared, predicted, actual


def _ratio(part: Tensor, whole: Tensor, both: Tensor) -> Tensor:
    """part / whole; where whole is 0, it is 1 if both masks are empty and 0 if not.

    So a sample without a finding is perfect where there is none, and dice stays the harmonic mean of precision and
    recall.
    """
    return torch.where(whole > 0, part / whole.clamp(min=1), (both == 0).double())


def dice(x: Tensor, y: Tensor) -> Tensor:
    """Overlap of two masks, 2 TP / (2 TP + FP + FN), which is the F1 score; 1 where both masks are empty.

    In [0, 1], higher is better. Dice 1945.
    """
    shared, predicted, actual = _counts(x, y)
    return _ratio(2 * shared, predicted + actual, predicted + actual)


def accuracy(x: Tensor, y: Tensor) -> Tensor:
    """Share of pixels whose class is right, (TP + TN) / N. In [0, 1], higher is better. Taha & Hanbury 2015."""
    return ((x > 0.5) == (y > 0.5)).flatten(1).double().mean(1)


def mask_precision(x: Tensor, y: Tensor) -> Tensor:
    """Share of the sample's mask that is right, TP / (TP + FP); of an empty one: 1 if the reference is empty, else 0.

    In [0, 1], higher is better. Taha & Hanbury 2015.
    """
    shared, predicted, actual = _counts(x, y)
    return _ratio(shared, predicted, predicted + actual)


def mask_recall(x: Tensor, y: Tensor) -> Tensor:
    """Share of the reference's mask that is found, TP / (TP + FN); of an empty one: 1 if the sample is empty, else 0.

    In [0, 1], higher is better. Taha & Hanbury 2015.
    """
    shared, predicted, actual = _counts(x, y)
    return _ratio(shared, actual, predicted + actual)
