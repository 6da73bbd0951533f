"""The metrics equal those of independent libraries, and say what they are."""

import warnings

import numpy as np
import piq
import pytest
import torch
from scipy.spatial.distance import dice as dissimilarity
from skimage.metrics import contingency_table, mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torch.nn.functional import avg_pool2d

from evaluations.evaluator import evaluate
from evaluations.metrics import METRICS, resolve

MASKED = ["dice", "accuracy", "mask_precision", "mask_recall"]
BACKBONES = {"lpips": ("alex", "alexnet", "alexnet-owt.pth"), "lpips_vgg": ("vgg", "vgg16", "vgg16.pth")}


def test_names():
    """Each once, in the order asked; `all` is what the features and the group allow."""
    assert resolve(["psnr", "mse", "psnr"], "inception", "none") == ["psnr", "mse"]
    everything = resolve(["all"], "inception", "D4")
    assert {name for name in METRICS if "raw" not in name} == set(everything)
    assert set(everything) - set(resolve(["all"], "inception", "none")) == {
        "fid_augmented", "inv_fid_mean", "inv_fid_max", "inv_fid_spread"
    }  # fmt: skip
    offline = resolve(["all"], "raw", "none")
    assert {"mse", "dice", "fd_raw", "kd_raw"} < set(offline) and not {"lpips", "fid"} & set(offline)
    assert resolve(["mse", "fid", "kid", "inv_fid_max"], "raw", "C4") == ["mse", "fd_raw", "kd_raw", "inv_fd_raw_max"]
    every = "inv_fid_mean or inv_fid_max or inv_fid_spread"
    for word, near in {"fidd": "fid", "FID": "fid", "MS-SSIM": "ms_ssim", "All": "all", "inv_fid": every}.items():
        with pytest.raises(ValueError, match=rf"unknown metric '{word}': known are .*; did you mean {near}\?"):
            resolve([word], "inception", "none")


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pixel_metrics_equal_skimage(channels):
    random = np.random.default_rng(channels)
    reference = random.integers(0, 256, (2, 530, 24, channels), dtype=np.uint8)  # high: piq would halve a 512 px side
    sample = np.clip(reference + random.normal(0, 40, reference.shape), 0, 255).astype(np.uint8)
    metrics = evaluate(reference, sample, ["mse", "mae", "psnr", "ssim"], batch_size=1)["metrics"]
    for n, (x, y) in enumerate(zip(reference / 255, sample / 255, strict=True)):
        assert metrics["mae"]["per_image"][n] == pytest.approx(np.abs(x - y).mean(), rel=1e-12)
        assert metrics["mse"]["per_image"][n] == pytest.approx(mean_squared_error(x, y), rel=1e-12)
        expected = peak_signal_noise_ratio(x, y, data_range=1)
        assert metrics["psnr"]["per_image"][n] == pytest.approx(expected, abs=1e-4)
        window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        _, full = structural_similarity(x, y, data_range=1, channel_axis=2, full=True, **window)
        assert metrics["ssim"]["per_image"][n] == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-4)


def test_psnr_of_pairs_that_hardly_differ():
    """By scikit-image down to the smallest difference; infinite for none, left out of mean and interval and said."""
    reference = np.full((3, 20, 16, 1), 100, np.uint8)
    sample = reference.copy()
    sample[1, 0, 0, 0], sample[2, :3] = 101, 102
    found = evaluate(reference, sample, ["psnr"])
    expected = [peak_signal_noise_ratio(reference[n] / 255, sample[n] / 255, data_range=1) for n in (1, 2)]
    score = found["metrics"]["psnr"]
    assert score["per_image"] == pytest.approx([np.inf, *expected], abs=1e-9)
    assert (score["mean"], score["std"]) == pytest.approx((np.mean(expected), np.std(expected)))
    assert score["interval"] == pytest.approx([expected[1], expected[0]]) and score["n"] == 3
    assert score["compared"] == pytest.approx(np.mean([expected[0], *expected]))  # the smallest difference there is
    said = "psnr: 1 identical pair(s), of infinite value; mean, std and interval are those of the other 2"
    assert found["notes"] == [said]


def test_a_set_against_itself_is_perfect(weights):
    """In every metric of pairs, to the last bit."""
    images = np.where(np.random.default_rng(0).random((1, 164, 162, 1)) < 0.3, 255, 0).astype(np.uint8)
    names = [name for name, metric in METRICS.items() if metric.paired]
    found = evaluate(images, images.copy(), names, weights)["metrics"]
    zero = {"mse", "mae", "lpips", "lpips_vgg"}
    assert {name: score["per_image"] for name, score in found.items()} == {
        name: [np.inf if name == "psnr" else float(name not in zero)] for name in names
    }


def test_ms_ssim_by_its_definition():
    """Wang, Simoncelli & Bovik 2003: contrast and structure at five scales, luminance at the last."""
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (2, 48, 44, 3)).repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    y = np.clip(x + random.normal(0, 40, x.shape), 0, 255).astype(np.uint8)
    found = evaluate(x, y, ["ms_ssim"])["metrics"]["ms_ssim"]["per_image"]
    planes = [torch.from_numpy(images / 255).permute(0, 3, 1, 2).reshape(6, 1, 192, 176) for images in (x, y)]
    expected = torch.ones(6)
    for n, power in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        whole, structure = piq.ssim(*planes, data_range=1.0, downsample=False, reduction="none", full=True)
        expected = expected * (whole if n == 4 else structure) ** power
        planes = [avg_pool2d(plane, 2) for plane in planes]
    assert found == pytest.approx(expected.view(2, 3).mean(1).tolist(), abs=1e-4)


@pytest.mark.parametrize(("channels", "first"), [(1, 128), (2, 128), (1, 52)])
def test_mask_metrics_equal_scipy_and_skimage(channels, first):
    """first: the lowest level inside the mask."""
    random = np.random.default_rng(channels)
    reference = np.where(random.random((5, 13, 9, channels)) < 0.3, 255, 0).astype(np.uint8)
    sample = random.integers(0, 256, reference.shape, dtype=np.uint8)
    sample[0, 0, 0, 0], sample[0, 0, 1, 0] = first - 1, first
    how = {} if first == 128 else {"dice_threshold": 0.2}  # 51 / 255
    metrics = evaluate(reference, sample, MASKED, batch_size=2, **how)["metrics"]
    for n, (actual, predicted) in enumerate(zip(reference == 255, sample >= first, strict=True)):
        table = contingency_table(actual.astype(int).ravel(), predicted.astype(int).ravel()).toarray()
        assert metrics["dice"]["per_image"][n] == pytest.approx(1 - dissimilarity(actual.ravel(), predicted.ravel()))
        assert metrics["accuracy"]["per_image"][n] == pytest.approx(np.trace(table) / table.sum())
        assert metrics["mask_precision"]["per_image"][n] == pytest.approx(table[1, 1] / table[:, 1].sum())
        assert metrics["mask_recall"]["per_image"][n] == pytest.approx(table[1, 1] / table[1].sum())


def test_empty_masks():
    """Rows: both empty, nothing predicted, nothing there, the whole of it, all but the whole."""
    empty, half, full = (np.full((4, 4, 1), 0, np.uint8) for _ in range(3))
    half[:2], full[:] = 255, 255
    reference = np.stack([empty, half, empty, half, half])
    sample = np.stack([empty, empty, half, half, full - half])
    metrics = evaluate(reference, sample, MASKED)["metrics"]
    assert metrics["dice"]["per_image"] == [1, 0, 0, 1, 0]
    assert metrics["accuracy"]["per_image"] == [1, 0.5, 0.5, 1, 0]
    assert metrics["mask_precision"]["per_image"] == [1, 0, 0, 1, 0]
    assert metrics["mask_recall"]["per_image"] == [1, 0, 0, 1, 0]


@pytest.mark.parametrize(("name", "channels"), [("lpips", 1), ("lpips", 3), ("lpips_vgg", 3)])
def test_lpips_equals_package(pairs, weights, name, channels, monkeypatch):
    reference, sample = (images[:2, ..., :channels] for images in pairs)
    ours = evaluate(reference, sample, [name], weights=weights, batch_size=3)
    assert any("not comparable" in note for note in ours["notes"])

    import lpips
    import torchvision

    net, model, file = BACKBONES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.device("meta"):  # its features alone are used
            backbone = getattr(torchvision.models, model)(weights=None)
        backbone.load_state_dict(torch.load(weights / file, weights_only=True), strict=False, assign=True)
        monkeypatch.setattr(lpips.pretrained_networks.tv, model, lambda pretrained: backbone)
        network = lpips.LPIPS(net=net, verbose=False)
    x, y = (
        torch.from_numpy(images.repeat(3 // channels, axis=3) / 127.5 - 1).permute(0, 3, 1, 2).float()
        for images in (reference, sample)
    )
    with torch.no_grad():
        expected = network(x, y).flatten()
    assert expected.min() > 0
    assert ours["metrics"][name]["per_image"] == pytest.approx(expected.tolist(), rel=1e-4)
