"""The files of a sampling carry the masks that the evaluator needs."""

import numpy as np
import pytest

from evaluations.images import load_images
from scripts.sampling_files import write_samples


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("draws", [1, 2])
def test_samples_have_the_masks_of_their_reference(tmp_path, holes, draws):
    images = np.random.default_rng(0).integers(0, 256, (draws, 70, 4, 5, 3), dtype=np.uint8)
    mask = np.ones((70, 4, 5, 1), bool)
    mask[65, :2] = not holes
    np.savez(tmp_path / "reference.npz", mask=mask)
    write_samples(tmp_path / "samples.npz", images, [str(n) for n in range(70)], tmp_path / "reference.npz")
    found = load_images(tmp_path / "samples.npz")
    assert np.array_equal(np.concatenate(list(found.walk(16))), images[0]) and found.number == draws
    if holes:
        assert np.array_equal(np.concatenate(list(found.mask(16))), mask)
    else:
        assert found.mask is None
