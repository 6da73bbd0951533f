"""The metrics equal those of independent libraries."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from evaluations.evaluator import evaluate

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
