"""FID, KID, inception score, precision and recall are torch-fidelity's own, end to end, on fixed random weights."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluations.evaluator import evaluate

INCEPTION = "weights-inception-2015-12-05.pth"
COUNT = 12


def sets() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [12, 24, 20, 3] each: some like those of the other set, most of one brighter, two of the other noise."""
    random = np.random.default_rng(3)
    reference, sample = random.integers(0, 60, (2, COUNT, 6, 5, 3)).repeat(4, axis=2).repeat(4, axis=3)
    reference[-2:] = random.integers(0, 2, reference[-2:].shape) * 255
    sample[4:] += 14 * np.arange(4, COUNT)[:, None, None, None]
    return reference.astype(np.uint8), sample.astype(np.uint8)


def test_all_equal_torch_fidelity(weights: Path, tmp_path: Path) -> None:
    import torch_fidelity

    reference, sample = sets()
    names = ["fid", "kid", "is", "precision", "recall"]
    ours = evaluate(reference, sample, names, weights=weights, batch_size=COUNT)
    for name, images in (("r", reference), ("s", sample)):
        (tmp_path / name).mkdir()
        for n, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{n:02}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch_fidelity.calculate_metrics(
            input1=str(tmp_path / "s"), input2=str(tmp_path / "r"), fid=True, kid=True, isc=True, prc=True,
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
