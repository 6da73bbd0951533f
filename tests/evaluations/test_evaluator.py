"""The command: report, exit status and one line for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluations.evaluator import evaluate, main
from evaluations.metrics import METRICS

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
SCRIPT = Path(__file__).parents[2] / "evaluations" / "evaluator.py"
Pairs = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def files(pairs: Pairs, tmp_path: Path) -> tuple[str, str]:
    np.savez(tmp_path / "ref.npz", pairs[0])
    np.savez(tmp_path / "sample.npz", pairs[1])
    return str(tmp_path / "ref.npz"), str(tmp_path / "sample.npz")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error, without its prefix."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err.removeprefix("error: ").strip()


def test_script_from_anywhere(files: tuple[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "ref.npz", "sample.npz"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""
    assert [line.split()[0] for line in done.stdout.splitlines()[:4]] == ["metric", "mse", "psnr", "ssim"]
    report = json.loads((tmp_path / "sample_metrics.json").read_text())
    assert (report["n"], report["reference"], report["sample"]) == (4, "ref.npz", "sample.npz")
    assert len(report["metrics"]["ssim"]["per_image"]) == 4


def test_script_refuses_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "none.npz", "none.npz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: none.npz: no such file") and done.stderr.count("\n") == 1


def test_folder_report_and_names(pairs: Pairs, files: tuple[str, str], tmp_path: Path) -> None:
    for folder, prefix, images in zip(("x", "y"), ("", "fake_"), pairs, strict=True):
        (tmp_path / folder).mkdir()
        for n, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / folder / f"{prefix}{n}.png")
    assert main([str(tmp_path / "x"), str(tmp_path / "y"), "--metric", "mse,psnr", "ssim"]) == 0
    report = json.loads((tmp_path / "y" / "metrics.json").read_text())
    assert report["metrics"] == evaluate(*pairs)["metrics"]
    assert "0.png with fake_0.png" in report["notes"][0]
    assert not list(tmp_path.glob("**/.*"))


def test_all(
    pairs: Pairs, files: tuple[str, str], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    assert main([*files, "--metric", "all", "--out", str(out)]) == 1
    report = json.loads(out.read_text())
    assert set(report["metrics"]) == {"mse", "psnr", "ssim"}
    assert "download failed" in report["unavailable"]["fid"] and "--weights" in report["unavailable"]["lpips"]
    assert "not computed: fid: " in capsys.readouterr().out

    np.savez(tmp_path / "statistics.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    arguments = [str(tmp_path / "statistics.npz"), files[1], "--metric", "all", "--weights", str(weights)]
    assert main(arguments) == 1
    report = json.loads((tmp_path / "sample_metrics.json").read_text())
    assert set(report["metrics"]) == {"fid"} and report["metrics"]["fid"]["std"] is None
    assert "expected images" in report["unavailable"]["mse"]


def test_masks(pairs: Pairs, files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Metrics of masks are part of `all` where REF is a mask, and refused in one line where it is not."""
    masks = ["dice", "accuracy", "precision", "recall"]
    np.savez(tmp_path / "mask.npz", np.where(pairs[0] > 100, 255, 0).astype(np.uint8))
    mask, sample, out = str(tmp_path / "mask.npz"), files[1], tmp_path / "sample_metrics.json"
    assert main([mask, sample, "--metric", *masks]) == 0
    shown = capsys.readouterr().out
    assert list(json.loads(out.read_text())["metrics"]) == masks
    assert all(any(line.split()[:1] == [name] and "↑" in line for line in shown.splitlines()) for name in masks)
    assert main([mask, sample, "--metric", "all"]) == 1  # no weights of lpips and fid here
    assert set(json.loads(out.read_text())["metrics"]) == {"mse", "psnr", "ssim", *masks}

    assert main([*files, "--metric", "all", "dice"]) == 1
    assert set(json.loads(out.read_text())["unavailable"]) == {"lpips", "fid", "dice"}
    capsys.readouterr()
    for name in masks:
        line = refused([*files, "--metric", "mse", name], capsys)
        assert line.startswith(f"{name}: image 0 of the reference is no mask: it holds the value ")
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    assert "expected images" in refused([str(tmp_path / "statistics.npz"), sample, "--metric", "dice"], capsys)


def test_refuses_arguments(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line(*arguments: str) -> str:
        return refused([*files, *arguments], capsys)

    assert line("--metrc", "mse") == "unknown argument --metrc; did you mean --metric?"
    assert line("--metric", "mse", "fdi") == "unknown metric fdi; known: " + ", ".join([*METRICS, "all"])
    assert line("--metric", ",").startswith("no metric")
    assert line("--batch_size", "0") == "batch_size 0; expected at least 1"
    assert "invalid int value" in line("--batch_size", "many")
    assert line("--out", files[0]).endswith("name a new JSON file")
    assert line("--out", str(tmp_path / "no" / "x.json")).startswith("cannot write")
    assert line("--metric", "fid").startswith(f"fid: weights {INCEPTION} not found")
    assert line("--metric", "lpips", "--weights", files[0]).startswith(f"lpips: {files[0]}: not a file of w")
    assert "required: REF, SAMPLE" in refused(["--metric", "mse", *files], capsys)


def test_refuses_images(pairs: Pairs, tmp_path: Path) -> None:
    reference, sample = pairs
    with pytest.raises(ValueError, match="expected equal"):
        evaluate(reference[:3], sample)
    with pytest.raises(ValueError, match="expected equal"):
        evaluate(reference[..., :1], sample, ["fid"])
    with pytest.raises(ValueError, match="ssim: images are 10 x 36 px; expected at least 11"):
        evaluate(reference[:, :10], sample[:, :10], ["mse", "ssim"])
    with pytest.raises(ValueError, match="lpips: images have 2 channels; expected 1 or 3"):
        evaluate(reference[..., :2], sample[..., :2], ["lpips"])
    with pytest.raises(ValueError, match="fid: found 1 image; expected at least 2"):
        evaluate(reference, sample[:1], ["fid"])
    with pytest.raises(ValueError, match=r"sample: float64 in \[0, 1\]"):
        evaluate(reference, sample / 255)


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDBM_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["none.npz", "none.npz"])
