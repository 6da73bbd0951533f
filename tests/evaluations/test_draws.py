"""Metrics of several draws: known numbers, laws known in closed form, masks, files and memory."""

import json
import tracemalloc

import numpy as np
import pytest
import torch

from evaluations import draws
from evaluations.evaluator import evaluate, main
from evaluations.images import Images, load_images
from evaluations.metrics import METRICS, resolve

NAMES = [name for name, metric in METRICS.items() if metric.draws]


@pytest.fixture
def files(tmp_path):
    """What saves a reference and samples, [N, K, H, W, C], and gives their paths."""

    def save(reference, drawn, **more):
        np.savez(tmp_path / "ref.npz", arr_0=reference, **more)
        np.savez(tmp_path / "sample.npz", arr_0=drawn[:, 0], draws=drawn)
        return tmp_path / "ref.npz", tmp_path / "sample.npz"

    return save


def measured(reference, drawn, names, **settings):
    """By `evaluate`, of arrays."""
    walk = Images(drawn[:, 0].shape, sliced(drawn[:, 0]), draws=sliced(drawn), number=drawn.shape[1])
    return evaluate(reference, walk, names, **settings)["metrics"]


def sliced(array):
    def walk(count, rank=0, ranks=1):
        for start in range(rank * count, len(array), ranks * count):
            yield array[start : start + count]

    return walk


def test_known_numbers():
    """Draws that are off by 0.1, 0.2 and -0.4: the best, their average, and their deviation."""
    y = torch.full((2, 1, 12, 12), 0.5, dtype=torch.float64)
    x = torch.stack([y + d for d in (0.1, 0.2, -0.4)], 1)
    inside = torch.ones(2, 1, 12, 12, dtype=torch.bool)
    expected = {
        "best_mse": 0.01, "best_psnr": 20, "mean_mse": (0.1 / 3) ** 2, "mean_psnr": -20 * np.log10(0.1 / 3),
        "spread": np.std([0.1, 0.2, -0.4], ddof=1),
    }  # fmt: skip
    for name, value in expected.items():
        assert METRICS[name].compute(x, y, inside).tolist() == pytest.approx([value] * 2)
    for name, other in (("best_ssim", x[:, 0]), ("mean_ssim", x.mean(1))):
        assert torch.equal(METRICS[name].compute(x, y, inside), METRICS["ssim"].compute(other, y, inside))


@pytest.mark.parametrize(
    ("drawn", "inner", "outer"),
    [
        ([1, 2, 3, 4], 0, 0),
        ([1, 2, 3, 9], 0, 1),
        ([1, 2, 8, 9], 1, 1),
        ([1, 8, 9, 9], 0, 1),
        ([8, 8, 9, 9], 0, 0),
        ([1, 2, 3, 5], 0, 0.5),
        ([1, 2, 5, 9], 0.5, 1),
        ([5, 5, 5, 5], 0.2, 0.6),
        ([1, 5, 5, 9], 1 / 3, 1),
    ],
)
def test_ranks_of_a_truth_of_5(drawn, inner, outer):
    """Four draws have the levels 0.2, between the 2nd and 3rd, and 0.6; ties count in equal parts."""
    x = torch.tensor(drawn, dtype=torch.float64).view(1, 4, 1, 1, 1).expand(-1, -1, 2, 3, 3)
    y, inside = torch.full((1, 2, 3, 3), 5.0, dtype=torch.float64), torch.ones(1, 1, 3, 3, dtype=torch.bool)
    score = draws.calibrated(draws.calibration(x, y, inside).numpy(), 4)
    assert score.curve == {"levels": [0.2, 0.6], "coverage": pytest.approx([inner, outer])}
    assert score.mean == pytest.approx((abs(inner - 0.2) + abs(outer - 0.6)) / 2) and score.interval is None


@pytest.mark.parametrize(
    ("number", "levels"), [(2, [1 / 3]), (3, [0.5]), (5, [1 / 3, 2 / 3]), (9, [0.2, 0.4, 0.6, 0.8])]
)
@pytest.mark.parametrize("grey", [1.5, 40])
def test_calibration_of_gaussians(number, levels, grey):
    """One law for truth and draws covers what it should, also where a few grey levels tie; too narrow ones less."""
    rng = np.random.default_rng(number)
    centre = rng.uniform(60, 190, (60, 1, 16, 16, 1))

    def made(count, scale):
        return np.rint(centre + scale * grey * rng.standard_normal((60, count, 16, 16, 1))).astype(np.uint8)

    truth = made(1, 1)[:, 0]
    right, narrow, wide = (measured(truth, made(number, s), ["calibration"])["calibration"] for s in (1, 0.4, 2.5))
    assert right["curve"]["levels"] == pytest.approx(levels)
    np.testing.assert_allclose(right["curve"]["coverage"], levels, atol=0.02)
    assert right["mean"] < 0.02 < 0.05 < min(narrow["mean"], wide["mean"]) and right["per_image"] is None
    assert all(a < b for a, b in zip(narrow["curve"]["coverage"], levels, strict=True))
    assert all(a > b for a, b in zip(wide["curve"]["coverage"], levels, strict=True))
    low, high = narrow["interval"]
    assert low < narrow["mean"] < high < low + 0.05


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_batches_files_and_closed_forms(files, batch):
    """By NumPy, whatever is read at once."""
    rng = np.random.default_rng(0)
    reference, drawn = (rng.integers(0, 256, (5, *k, 12, 13, 3), dtype=np.uint8) for k in ((), (3,)))
    ref, sample = files(reference, drawn)
    found = evaluate(load_images(ref), load_images(sample), NAMES, batch_size=batch)["metrics"]
    x, y = drawn / 255, reference / 255
    errors = ((x - y[:, None]) ** 2).mean((2, 3, 4))
    assert found["best_mse"]["per_image"] == pytest.approx(errors.min(1))
    assert found["best_psnr"]["per_image"] == pytest.approx(-10 * np.log10(errors.min(1)))
    assert found["mean_mse"]["per_image"] == pytest.approx(((x.mean(1) - y) ** 2).mean((1, 2, 3)))
    assert found["spread"]["per_image"] == pytest.approx(x.std(1, ddof=1).mean((1, 2, 3)))
    each = [evaluate(reference, np.ascontiguousarray(drawn[:, k]), ["ssim"])["metrics"]["ssim"] for k in range(3)]
    assert found["best_ssim"]["per_image"] == pytest.approx(np.max([score["per_image"] for score in each], 0))
    low, high = np.sort(drawn, 1)[:, 0], np.sort(drawn, 1)[:, -1]
    assert found["calibration"]["curve"]["coverage"][0] == pytest.approx(
        ((low < reference) & (reference < high)).mean(), abs=0.01
    )
    assert all(score["features"] == "pixels" and score["n_reference"] == 5 for score in found.values())


def test_only_pixels_inside_the_mask_count(files):
    """By what the images cut to a mask that is a rectangle have; a pair of which nothing is seen counts nowhere."""
    rng = np.random.default_rng(1)
    reference, drawn = (rng.integers(0, 256, (3, *k, 24, 20, 2), dtype=np.uint8) for k in ((), (4,)))
    mask = np.zeros((3, 24, 20, 1), bool)
    mask[:2, 3:19, 2:15] = True  # nothing of the third
    ref, sample = files(reference, drawn, mask=mask)
    found = evaluate(load_images(ref), load_images(sample), NAMES)["metrics"]
    cut = measured(reference[:2, 3:19, 2:15], drawn[:2, :, 3:19, 2:15], NAMES)
    assert found["calibration"]["curve"]["coverage"] == pytest.approx(cut["calibration"]["curve"]["coverage"])
    for name in {*NAMES} - {"calibration"}:
        assert found[name]["per_image"] == pytest.approx([*cut[name]["per_image"], np.nan], nan_ok=True), name
        assert (found[name]["mean"], found[name]["compared"]) == pytest.approx((cut[name]["mean"],) * 2)


def test_the_command(files, tmp_path, capsys):
    """The curve is in the JSON; `all` has these metrics where there are draws; one line says what is missing."""
    rng = np.random.default_rng(2)
    reference, drawn = (rng.integers(0, 256, (4, *k, 12, 12, 3), dtype=np.uint8) for k in ((), (2,)))
    ref, sample = map(str, files(reference, drawn))
    main([ref, sample, "--metric", "all", "--features", "raw"])
    report = json.loads((tmp_path / "sample_metrics.json").read_text())["metrics"]
    assert set(NAMES) < set(report) and set(report["calibration"]["curve"]) == {"levels", "coverage"}
    assert "curve" not in report["spread"] and report["best_mse"]["compared"] == report["best_mse"]["mean"]
    assert "calibration" in capsys.readouterr().out
    np.savez(sample, arr_0=drawn[:, 0, :10], draws=drawn[:, :, :10])
    np.savez(tmp_path / "low.npz", reference[:, :10])
    low = map(load_images, (tmp_path / "low.npz", sample))
    assert {"ssim", "best_ssim"} < set(evaluate(*low, ["all"], features="raw")["unavailable"])
    for other in ({}, {"draws": drawn[:, :1]}, {"draws": drawn[:3]}, {"draws": drawn / 255}):
        np.savez(sample, arr_0=drawn[:, 0], **other)
        with pytest.raises(ValueError, match=r"^spread: the sample has one draw .* sample with --draws K"):
            main([ref, sample, "--metric", "mse", "spread"])
        main([ref, sample, "--metric", "all", "--features", "raw", "--out", str(tmp_path / "new.json")])
        report = json.loads((tmp_path / "new.json").read_text())
        assert not set(NAMES) & {*report["metrics"], *report["unavailable"]}
        (tmp_path / "new.json").unlink()
    assert set(NAMES) < set(resolve(["all"], "raw", "none"))
    np.savez(tmp_path / "statistics.npz", mu_raw=np.zeros(448), sigma_raw=np.eye(448))
    np.savez(sample, arr_0=drawn[:, 0], draws=drawn)
    with pytest.raises(ValueError, match=r"^spread: .*expected images as REF"):
        main([str(tmp_path / "statistics.npz"), sample, "--metric", "spread"])


def test_sources_without_targets(files, tmp_path):
    rng = np.random.default_rng(3)
    reference, drawn = (rng.integers(0, 256, (4, *k, 12, 12, 3), dtype=np.uint8) for k in ((), (2,)))
    _, sample = files(reference, drawn)
    np.savez(path := tmp_path / "sources.npz", source=reference, mask=np.ones((4, 12, 12, 1), bool))
    for words in ([path, sample], [sample, path]):
        with pytest.raises(ValueError, match="sources without targets, so nothing can be compared: give the") as error:
            main([*map(str, words)])
        assert "\n" not in str(error.value)


def test_memory_holds_as_many_draws_as_images(files):
    """Not all draws of a batch of images."""
    drawn = np.zeros((16, 16, 48, 48, 3), np.uint8)
    ref, sample = map(load_images, files(drawn[:, 0], drawn))
    tracemalloc.start()
    evaluate(ref, sample, ["spread"], batch_size=16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * drawn[0].size
