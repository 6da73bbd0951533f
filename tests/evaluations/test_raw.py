"""The map of random filters never changes, and distances by it rank sets of images."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate, uniform_filter

from evaluations import raw
from evaluations.evaluator import evaluate
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


def test_it_ranks(squares: tuple[np.ndarray, np.ndarray]) -> None:
    """The more noise or blur, the farther; other images of the same kind are nearer than any of these."""
    reference, other = squares[0][:20], squares[0][20:]
    random = np.random.default_rng(2)

    def noisy(strength: float) -> np.ndarray:
        return np.clip(other + random.normal(0, strength, other.shape), 0, 255).astype(np.uint8)

    for worse in ([other, noisy(15), noisy(40)], [other, *(uniform_filter(other, (0, n, n, 0)) for n in (3, 6))]):
        for name in ("fd_raw", "kd_raw"):
            values = [evaluate(reference, images, [name])["metrics"][name]["mean"] for images in worse]
            assert values == sorted(values) and values[-1] > 1.5 * values[0]
