"""The metrics equal those of independent libraries."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import dice as dissimilarity
from skimage.metrics import contingency_table, mean_squared_error, peak_signal_noise_ratio, structural_similarity

from evaluations.evaluator import evaluate

MASKED = ["dice", "accuracy", "precision", "recall"]
ALEXNET = "alexnet-owt-7be5be79.pth"
Pairs = tuple[np.ndarray, np.ndarray]


def test_pixel_metrics_equal_skimage(pairs: Pairs) -> None:
    metrics = evaluate(*pairs, batch_size=3)["metrics"]
    for n, (x, y) in enumerate(zip(*pairs, strict=True)):
        x, y = x / 255, y / 255
        assert metrics["mse"]["per_image"][n] == pytest.approx(mean_squared_error(x, y), rel=1e-12)
        expected = peak_signal_noise_ratio(x, y, data_range=1)
        assert metrics["psnr"]["per_image"][n] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_ssim_equals_skimage(channels: int) -> None:
    random = np.random.default_rng(channels)
    x = random.integers(0, 256, (2, 530, 24, channels), dtype=np.uint8)  # high: piq would halve a 512 px side
    y = np.clip(x + random.normal(0, 40, x.shape), 0, 255).astype(np.uint8)
    ours = evaluate(x, y, ["ssim"])["metrics"]["ssim"]["per_image"]
    for n in range(2):
        window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        _, full = structural_similarity(x[n] / 255, y[n] / 255, data_range=1, channel_axis=2, full=True, **window)
        assert ours[n] == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-4)


def test_identical_pairs(pairs: Pairs) -> None:
    result = evaluate(pairs[0], pairs[0])
    assert {name: score["mean"] for name, score in result["metrics"].items()} == pytest.approx(
        {"mse": 0, "psnr": 80, "ssim": 1}
    )
    assert result["notes"] == ["psnr counts 4 identical pair(s) as 80 dB"]


@pytest.mark.parametrize("channels", [1, 2])
def test_mask_metrics_equal_scipy_and_skimage(channels: int) -> None:
    random = np.random.default_rng(channels)
    reference = np.where(random.random((5, 13, 9, channels)) < 0.3, 255, 0).astype(np.uint8)
    sample = random.integers(0, 256, reference.shape, dtype=np.uint8)
    sample[0, 0, 0, 0], sample[0, 0, 1, 0] = 127, 128  # the last level outside the mask, the first inside
    metrics = evaluate(reference, sample, MASKED, batch_size=2)["metrics"]
    for n, (actual, predicted) in enumerate(zip(reference == 255, sample >= 128, strict=True)):
        table = contingency_table(actual.astype(int).ravel(), predicted.astype(int).ravel()).toarray()
        assert metrics["dice"]["per_image"][n] == pytest.approx(1 - dissimilarity(actual.ravel(), predicted.ravel()))
        assert metrics["accuracy"]["per_image"][n] == pytest.approx(np.trace(table) / table.sum())
        assert metrics["precision"]["per_image"][n] == pytest.approx(table[1, 1] / table[:, 1].sum())
        assert metrics["recall"]["per_image"][n] == pytest.approx(table[1, 1] / table[1].sum())
    for name in MASKED:
        assert metrics[name]["mean"] == pytest.approx(np.mean(metrics[name]["per_image"]))


def test_empty_masks() -> None:
    """Rows: both empty, nothing predicted, nothing there, the whole of it, all but the whole."""
    empty, half, full = (np.full((4, 4, 1), 0, np.uint8) for _ in range(3))
    half[:2], full[:] = 255, 255
    reference = np.stack([empty, half, empty, half, half])
    sample = np.stack([empty, empty, half, half, full - half])
    metrics = evaluate(reference, sample, MASKED)["metrics"]
    assert metrics["dice"]["per_image"] == [1, 0, 0, 1, 0]
    assert metrics["accuracy"]["per_image"] == [1, 0.5, 0.5, 1, 0]
    assert metrics["precision"]["per_image"] == [1, 0, 0, 1, 0]
    assert metrics["recall"]["per_image"] == [1, 0, 0, 1, 0]


def test_dice_is_the_harmonic_mean_of_precision_and_recall() -> None:
    random = np.random.default_rng(3)
    reference, sample = (np.where(random.random((40, 3, 3, 1)) < 0.15, 255, 0).astype(np.uint8) for _ in range(2))
    metrics = evaluate(reference, sample, MASKED)["metrics"]
    dice, precision, recall = (np.array(metrics[name]["per_image"]) for name in ("dice", "precision", "recall"))
    assert {0, 1} < set(dice)
    assert dice * (precision + recall) == pytest.approx(2 * precision * recall)


def test_mean_is_over_images_whatever_the_batch(pairs: Pairs) -> None:
    whole, parts = (evaluate(*pairs, batch_size=size)["metrics"] for size in (64, 3))
    for name, score in whole.items():
        assert score["mean"] == pytest.approx(np.mean(score["per_image"]))
        assert score["std"] == pytest.approx(np.std(score["per_image"]))
        assert score["per_image"] == pytest.approx(parts[name]["per_image"], rel=1e-10)


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_equals_package(pairs: Pairs, weights: Path, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, sample = (images[..., :channels] for images in pairs)
    ours = evaluate(reference, sample, ["lpips"], weights=weights, batch_size=3)["metrics"]["lpips"]

    import lpips
    from torchvision.models import alexnet

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backbone = alexnet(weights=None)
        backbone.load_state_dict(torch.load(weights / ALEXNET, weights_only=True), strict=False)
        monkeypatch.setattr(lpips.pretrained_networks.tv, "alexnet", lambda pretrained: backbone)
        network = lpips.LPIPS(net="alex", verbose=False)
    x, y = (
        torch.from_numpy(images.repeat(3 // channels, axis=3) / 127.5 - 1).permute(0, 3, 1, 2).float()
        for images in (reference, sample)
    )
    with torch.no_grad():
        expected = network(x, y).flatten()
    assert expected.min() > 0
    assert ours["per_image"] == pytest.approx(expected.tolist(), rel=1e-4)
