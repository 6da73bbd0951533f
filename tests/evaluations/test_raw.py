"""The map of random filters never changes, and distances by it rank sets of images."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from evaluations import raw
from evaluations.networks import NETWORKS


def test_the_filters_are_the_same_for_ever() -> None:
    assert NETWORKS["raw"](None, torch.device("cpu")).weights.startswith("4a2429021d083af0")
    assert raw.FEATURES == 448


def test_first_layer_by_scipy() -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (3, 9, 8))
    kernels = raw.filters()
    found = raw.features(kernels, torch.from_numpy(image)[None].float())[0].numpy()
    for channel in (0, 63):
        kernel = kernels[0][channel].numpy()
        value = sum(correlate(image[c], kernel[c], mode="constant") for c in range(3)).clip(0)
        assert found[channel] == pytest.approx(value.mean(), rel=1e-4)
        assert found[64 + channel] == pytest.approx(value.std(), rel=1e-4)
