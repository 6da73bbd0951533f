"""FID, KID, inception score, precision and recall are torch-fidelity's own, end to end, on fixed random weights."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluations.evaluator import evaluate

INCEPTION = "weights-inception-2015-12-05.pth"
COUNT = 12


class Rows(torch.utils.data.Dataset):
    """Images [N, H, W, 3] one by one, as torch-fidelity reads them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def sets() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [12, 24, 20, 3] each: some like those of the other set, most of one brighter, two of the other noise."""
    random = np.random.default_rng(3)
    reference, sample = random.integers(0, 60, (2, COUNT, 6, 5, 3)).repeat(4, axis=2).repeat(4, axis=3)
    reference[-2:] = random.integers(0, 2, reference[-2:].shape) * 255
    sample[4:] += 14 * np.arange(4, COUNT)[:, None, None, None]
    return reference.astype(np.uint8), sample.astype(np.uint8)


def test_all_equal_torch_fidelity(weights: Path) -> None:
    import torch_fidelity

    reference, sample = sets()
    names = ["fid", "kid", "is", "precision", "recall"]
    ours = evaluate(reference, sample, names, weights=weights, batch_size=COUNT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch_fidelity.calculate_metrics(
            input1=Rows(sample), input2=Rows(reference), fid=True, kid=True, isc=True, prc=True,
            feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights / INCEPTION),
            kid_subset_size=COUNT, batch_size=COUNT, cuda=False, cache=False, save_cpu_ram=True, verbose=False,
        )  # fmt: skip
    scores = ours["metrics"]
    for name, key in {
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "is": "inception_score_mean",
        "precision": "precision",
        "recall": "recall",
    }.items():
        assert scores[name]["mean"] == pytest.approx(theirs[key], rel=1e-6), name
    assert scores["is"]["std"] == pytest.approx(theirs["inception_score_std"], rel=1e-6)
    assert 0 < scores["precision"]["mean"] < 1 and 0 < scores["recall"]["mean"] < 1
    assert any("12 images" in note and "biased upwards" in note and "kid" in note for note in ours["notes"])
    assert any("subsets of all 12 images" in note for note in ours["notes"])
    assert any("not comparable" in note for note in ours["notes"])
    low, high = scores["kid"]["interval"]
    assert low < scores["kid"]["mean"] < high
