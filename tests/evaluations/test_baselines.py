"""The linear map is least squares, and exact where the truth is linear."""

import numpy as np
import pytest
from scipy.ndimage import correlate

from evaluations import baselines


def test_recovers_a_filter():
    random = np.random.default_rng(0)
    sources = random.integers(0, 256, (3, 24, 20, 2), dtype=np.uint8)
    kernel = random.uniform(-0.01, 0.015, (7, 7, 2))
    filtered = [sum(correlate(s[..., c], kernel[..., c], mode="mirror") for c in range(2)) for s in sources / 255]
    targets = np.stack(filtered)[..., None] + 0.9  # some above 1
    fitted = baselines.fit(sources, targets)
    assert fitted[:-1, 0].reshape(2, 7, 7) == pytest.approx(kernel.transpose(2, 0, 1), abs=1e-10)
    assert fitted[-1, 0] == pytest.approx(0.9, abs=1e-10)
    predicted = baselines.predict(fitted, sources)
    assert predicted.dtype == np.uint8
    np.testing.assert_array_equal(predicted, np.rint(np.clip(targets, 0, 1) * 255).astype(np.uint8))


def test_constant_and_small_sources():
    sources = np.full((1, 8, 8, 1), 51, np.uint8)
    assert (baselines.predict(baselines.fit(sources, sources + 100), sources) == 151).all()
    with pytest.raises(ValueError, match="expected more than 3 a side"):
        baselines.fit(sources[:, :3], sources[:, :3])
