"""The command: report, exit status and one line for every mistake."""

import json
import re

import numpy as np
import pytest

from evaluations.evaluator import evaluate, main
from evaluations.metrics import METRICS, describe

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
IMAGES = {"mse", "mae", "psnr", "ssim"}  # of images of this size, without weights


@pytest.fixture
def files(pairs, tmp_path):
    np.savez(tmp_path / "ref.npz", pairs[0])
    np.savez(tmp_path / "sample.npz", pairs[1])
    return str(tmp_path / "ref.npz"), str(tmp_path / "sample.npz")


def refused(arguments, capsys):
    """The one line of an error."""
    with pytest.raises((ValueError, OSError)) as caught:
        main(arguments)
    assert capsys.readouterr().out == "" and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def scored(files, tmp_path, capsys):
    """Exit status, report and what is printed of the command with these words."""

    def run(*words, reference=files[0]):
        capsys.readouterr()
        status = main([str(reference), files[1], "--device", "cpu", "--metric", *words])
        return status, json.loads((tmp_path / "sample_metrics.json").read_text()), capsys.readouterr().out

    return run


def test_every_number_says_what_it_is_of(scored, weights):
    """Count, features, weights, resizing, reference and interval, printed and in the file."""
    status, report, shown = scored("mse", "lpips", "--metric", "fd_raw,kd_raw", "--weights", str(weights))
    lines = {line.split()[0]: line for line in shown.splitlines() if line.split()[0] in METRICS}
    assert status == 0 and list(lines) == list(report["metrics"]) == ["mse", "lpips", "fd_raw", "kd_raw"]
    for name, score in report["metrics"].items():
        assert lines[name].split(score["features"])[0].split()[-2:] == ["4", "4"]
        assert "↓" in lines[name] and (score["n"], score["n_reference"]) == (4, 4)
        assert f"{score['features']}: " in shown and f"resizing {score['resizing']}" in shown
        assert score["weights"][:8] in shown
        if name != "fd_raw":
            low, high = score["interval"]
            assert low < score["mean"] < high and f"{low:.5g} .. {high:.5g}" in lines[name]
    assert "reference: " in shown and "ref.npz, 4 images of 40 x 36 px, 3 channel(s)" in shown
    assert "fd_raw of 4 images (fewer than 2048): biased upwards" in shown and "kd_raw is not" in shown


def test_all(pairs, scored, tmp_path):
    status, report, shown = scored("all")
    assert status == 1 and set(report["metrics"]) == IMAGES
    assert "download failed" in report["unavailable"]["fid"] and "--weights" in report["unavailable"]["lpips"]
    assert "not computed: fid, sfid, kid, precision, recall" in shown
    assert shown.count("not computed: ") < len(report["unavailable"])
    (tmp_path / "sample_metrics.json").unlink()
    _, report, _ = scored("all", "--features", "raw")
    assert set(report["metrics"]) == {*IMAGES, "fd_raw", "kd_raw"}
    assert set(report["unavailable"]) == {"ms_ssim"} and "161" in report["unavailable"]["ms_ssim"]
    np.savez(statistics := tmp_path / "statistics.npz", mu_raw=np.zeros(448), sigma_raw=np.eye(448))
    _, report, _ = scored("all", "--features", "raw", reference=statistics)
    assert set(report["metrics"]) == {"fd_raw"} and report["metrics"]["fd_raw"]["std"] is None
    assert "expected images" in report["unavailable"]["mse"]
    assert evaluate(pairs[0][:3], pairs[1], ["all"], features="raw")["metrics"].keys() == {"fd_raw", "kd_raw"}


def test_help_lists_every_metric(capsys):
    for words in ("--metric help", "--metric=help", "--metric help,fid", "--metric fid help"):
        with pytest.raises(SystemExit, match="0"):
            main(words.split())
        shown = capsys.readouterr().out
        assert shown == "\n\n".join(map(describe, METRICS)) + "\n" and "Kynkäänniemi et al. 2019" in shown
    for name, metric in METRICS.items():
        assert f"{name}: " in shown and f"{'higher' if metric.higher_is_better else 'lower'} is better" in describe(
            name
        )


def test_masks(pairs, files, scored, tmp_path, capsys):
    """Metrics of masks are part of `all` where REF is a mask, and refused in one line where it is not."""
    masks = ["dice", "accuracy", "mask_precision", "mask_recall"]
    np.savez(mask := tmp_path / "mask.npz", np.where(pairs[0] > 100, 255, 0).astype(np.uint8))
    assert list(scored("all", reference=mask)[1]["metrics"]) == ["mse", "mae", "psnr", "ssim", *masks]
    assert set(scored("all", "dice", "--features", "raw")[1]["unavailable"]) == {"ms_ssim", "dice"}
    for name in masks:
        line = refused([*files, "--metric", "mse", name], capsys)
        assert line.startswith(f"{name}: the reference is no mask: it holds the value ")
    ones = (pairs[0] > 100).astype(np.uint8)
    with pytest.raises(ValueError, match="the value 1; expected 0 and 255 alone: multiply a mask of 0 and 1 by 255"):
        evaluate(ones, ones, ["dice"])
    strict, loose = (
        scored("dice", "--dice_threshold", t, reference=mask)[1]["metrics"]["dice"] for t in ("0.9", "0.1")
    )
    assert strict["mean"] != loose["mean"]
    assert refused([*files, "--metric", "mse", "--dice_threshold", "128"], capsys).startswith(
        "--dice_threshold must lie"
    )
    assert any("multiply by 255" in note for note in evaluate(ones * 255, ones, ["dice"])["notes"])


def test_refuses_arguments(files, tmp_path, capsys):
    known, offline = ", ".join([*METRICS, "all"]), ".*; without weights: --features raw (fd_raw)$"
    for words, message in {
        "--metric mse fdi": ".*; did you mean fid?$",
        "--metric xyz": f"unknown metric 'xyz': known are {known}$",
        "--metric inv_fid_max": "inv_fid_max needs a group: add --group D4",
        "--metric is --features raw": "is needs the weights of a network; --features raw has fd_raw, kd_raw",
        "--features Raw": "unknown features 'Raw': known are inception, raw; did you mean raw?$",
        "--device gpu": "unknown device 'gpu': known are auto, cpu, cuda, cuda:N$",
        "--metric ,": "no metric",
        "--batch_size 0": "batch_size 0; expected at least 1$",
        f"--out {files[0]}": ".*name a new JSON file$",
        f"--out {tmp_path}": ".*name a new JSON file$",
        f"--out {tmp_path}/no/x.json": "cannot write",
        "--metric fid": f"fid: weights {INCEPTION} not found {offline}",
        f"--metric lpips --weights {files[0]}": f"lpips: {files[0]}: not a file of w",
        "--metric fd_raw --group d4": "unknown group 'd4': .*did you mean D4?",
        "--metric inv_fid_max --group C4": "group C4 turns images by 90 degrees and needs square ones, not 40x36",
    }.items():
        assert re.match(re.sub(r"([?()])", r"\\\1", message), refused([*files, *words.split()], capsys)), words
    assert "required: REF, SAMPLE" in refused(["--metric", "mse", *files], capsys)


def test_results_of_the_same_images_are_kept(pairs, files, scored, tmp_path):
    """In the order of the table; the newer number of a metric; those of other images or groups go, and it is said."""

    scored("fd_raw")
    _, report, shown = scored("mse,psnr")
    assert list(report["metrics"]) == ["mse", "psnr", "fd_raw"] and "keeps fd_raw, computed of the same ima" in shown
    assert report["metrics"]["mse"] == evaluate(*pairs, ["mse"])["metrics"]["mse"]
    assert "keeps" not in scored("mse,psnr,fd_raw")[2]
    scored("inv_fd_raw_max", "--group", "H")
    _, report, _ = scored("mae")
    assert list(report["metrics"]) == ["mse", "mae", "psnr", "fd_raw", "inv_fd_raw_max"] and report["group"] == "H"
    other = "results of another reference or sample"
    for said, change, *words in (
        ("results of another group, H", lambda: None, "inv_fd_raw_mean", "--group", "V"),
        (other, lambda: np.savez(files[0], pairs[0], mu_raw=np.zeros(448), sigma_raw=np.eye(448)), "mae"),
        (other, lambda: np.savez(files[1], pairs[1][::-1]), "mae"),
        ("other things than results", lambda: (tmp_path / "sample_metrics.json").write_text("[1]"), "mae"),
    ):
        change()
        _, report, shown = scored(*words)
        assert list(report["metrics"]) == words[:1] and f"held {said}; it is replaced" in shown


@pytest.mark.parametrize(
    ("reference", "sample", "name", "message"),
    [
        (np.s_[:3], np.s_[:], "mse", "mse: 3 images in the reference and 4 in the sample"),
        (np.s_[..., :1], np.s_[:], "fid", r"is 40 x 36 px, 1 channel\(s\), and the sample 40 x 36 px, 3 channel\(s\)"),
        (np.s_[:], np.s_[:, :30], "fid", r"the sample 30 x 36 px, 3 channel\(s\); expected equal"),
        (np.s_[:], np.s_[:, :, :18], "mse", r"channel\(s\); expected equal sizes and channels; of files of A.B take"),
        (np.s_[:, :10], np.s_[:, :10], "ssim", "ssim: images are 10 x 36 px; expected at least 11"),
        (np.s_[..., :2], np.s_[..., :2], "lpips", "lpips: images have 2 channels; expected 1 or 3"),
        (np.s_[:], np.s_[:1], "fid", r"fid: found 1 image\(s\); expected at least 2"),
        (np.s_[:], np.s_[0], "fid", r"sample: uint8 of shape \(40, 36, 3\); expected uint8"),
    ],
)
def test_refuses_images(pairs, reference, sample, name, message):
    with pytest.raises(ValueError, match=message):
        evaluate(pairs[0][reference], pairs[1][sample], ["mse", name] if name == "ssim" else [name])
