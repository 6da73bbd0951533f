"""The whole road as a user walks it, in small: launchers, evaluator, report, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddbm.training import logger

ROOT = Path(__file__).parent.parent.parent
TINY = (
    "--model_channels 8 --num_head_channels 8 --channel_mult 1,2 --attention_resolutions 16 --batch_size 4"
    " --optimizer adam --log_interval 2 --val_interval 4 --save_interval 2 --lr 1e-3 --dropout 0.1 --device cpu"
).split()


def environment(**extra):
    return {**os.environ, "VENV": sys.prefix, "OMP_NUM_THREADS": "1", **extra}


def shell(*words, cwd, **extra):
    """Runs a command; returns the finished process."""
    return subprocess.run(
        [*map(str, words)], cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=300
    )


def done(process):
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def mistake(process, *words):
    """The process ended with one line that holds all words."""
    assert process.returncode not in (0, 1), process.stdout + process.stderr
    lines = [line for line in process.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), process.stderr
    assert all(word in lines[0] for word in words), lines[0]


def width(picture):
    with Image.open(picture) as image:
        return image.size[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on histology, started from a directory of its own with a space in its name."""
    home = tmp_path_factory.mktemp("a user's home")
    command = ("bash", ROOT / "train_ddbm.sh", "histology", "vp", "--total_steps", 6, *TINY)
    done(shell(*command, cwd=home, WORKDIR=str(home / "runs")))
    return home / "runs" / "histology_vp"


def test_incremental_training_continues_scores_and_keeps_the_best(run, tmp_path):
    """From the checkpoint of another run; its looks at steps 8 and 10."""
    newest = run / "checkpoints" / "step_00000006"
    looks = ["--eval_images", 3, "--eval_nfe", 4, "--best_metric", "mse", "--keep_checkpoints", 1]
    command = ["bash", ROOT / "train_ddbm_incremental.sh", "histology", "vp", newest, "--total_steps", 10]
    extra = dict(WORKDIR=str(tmp_path), EVAL_INTERVAL="2")
    done(shell(*command, *TINY, *looks, cwd=tmp_path, **extra))
    folder = tmp_path / "histology_vp"
    scores = {r["step"]: r["eval_mse"] for r in logger.read(folder / "log.jsonl") if "eval_mse" in r}
    assert scores.keys() == {8, 10}
    best = json.loads((folder / "best.json").read_text())
    assert {key: best[key] for key in ("checkpoint", "metric", "value")} == {
        "checkpoint": f"step_{min(scores, key=scores.get):08d}",
        "metric": "mse",
        "value": min(scores.values()),
    }
    assert {p.name for p in (folder / "checkpoints").glob("step_*")} == {best["checkpoint"], "step_00000010"}
    assert width(folder / "eval" / "step_00000010.png") > 3 * 32
    assert "eval_equivariance" in (folder / "log.jsonl").read_text()
    assert list((folder / "tensorboard").iterdir())
    assert [start["step"] for start in json.loads((folder / "run.json").read_text())["starts"]] == [6]
    bad = shell(*command, *TINY, "--best_metric", "dice", cwd=tmp_path, **extra)
    mistake(bad, "dice", "mask")


def test_sample_evaluate_report(run):
    sampling = ("bash", ROOT / "sample_ddbm.sh", "histology", "vp", run)
    out = done(shell(*sampling, 0.2, 1, "val", "--nfe", 5, "--num_samples", 5, "--batch_size", 3, cwd=run))
    samples, reference = (Path(line) for line in out.splitlines() if line.endswith(".npz"))
    assert samples.name == "samples_5x32x32x3_nfe5.npz" and reference.name == "reference_5x32x32x3.npz"
    with np.load(samples) as s, np.load(reference) as r:
        assert s["arr_0"].shape == r["arr_0"].shape == r["source"].shape == (5, 32, 32, 3)
        assert s["arr_0"].dtype == r["arr_0"].dtype == np.uint8
        first = s["arr_0"]
    other = run / "again"
    done(
        shell(*sampling, 0.2, 1, "val", "--nfe", 5, "--num_samples", 4, "--batch_size", 1, "--out_dir", other, cwd=run)
    )
    with np.load(other / "samples_4x32x32x3_nfe5.npz") as again:  # another batch size: the same images
        assert np.abs(first[:4].astype(int) - again["arr_0"]).max() <= 1
    assert width(samples.parent / "grid.png") > 300

    out = done(shell(sys.executable, ROOT / "evaluations/evaluator.py", reference, samples, cwd=run))
    assert all(name in out for name in ("mse", "psnr", "ssim"))

    out = done(shell(sys.executable, "-m", "scripts.report", run, cwd=run, PYTHONPATH=str(ROOT)))
    assert all(word in out for word in ("linear map", "source itself", "equivariance error", "report.html"))
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 12 and "http" not in page
    assert all(word in page for word in ("psnr", "tied", "Δx̂0", "linear map"))
    assert width(run / "report.png") > 1000


def test_own_pairs_without_an_entry_in_args(tmp_path):
    """Two folders, a grey source and a coloured target, a name that args.sh does not know."""
    data = tmp_path / "my data"
    rng = np.random.default_rng(0)
    for side, shape in (("source", (16, 16)), ("target", (16, 16, 3))):
        (data / side).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(data / side / f"{i:02}.png")
    settings = dict(cwd=tmp_path, DATA_DIR=str(data), WORKDIR=str(tmp_path))
    done(shell("bash", ROOT / "train_ddbm.sh", "my_pairs", "ve", *TINY, "--total_steps", 2, **settings))
    out = done(
        shell("bash", ROOT / "sample_ddbm.sh", "my_pairs", "ve", tmp_path / "my_pairs_ve", "--nfe", 3, **settings)
    )
    assert "samples_1x16x16x3_nfe3.npz" in out  # every tenth pair is the test set


def test_mistakes_at_the_launchers(run, tmp_path):
    train, sample = ROOT / "train_ddbm.sh", ROOT / "sample_ddbm.sh"
    here = dict(cwd=tmp_path, WORKDIR=str(tmp_path / "w"), DATA_DIR="")
    mistake(shell("bash", train, **here), "usage")
    mistake(shell("bash", train, "histologi", "ve", **here), "dataset 'histologi' needs", "mean histology?", "DATA_DIR")
    mistake(shell("bash", train, "histology", "vee", **here), "unknown schedule 'vee'", "vp_simple")
    elsewhere = {**here, "DATA_DIR": str(tmp_path)}
    mistake(shell("bash", train, "histology", "vp", **elsewhere), "without a folder", str(tmp_path), "unset DATA_DIR")
    mistake(shell("bash", train, "histology", "ve", NETWORK="round", **here), "round", "regular_wide")
    mistake(shell("bash", sample, "histology", "vp", **here), "usage")
    mistake(shell("bash", sample, "histology", "ve", run, **here), "ve", "trained with vp")
    mistake(shell("bash", train, "histology", "ve", **{**here, "VENV": str(tmp_path / "none")}), "setup.sh")
    assert not (tmp_path / "w").exists()


def test_settings_that_were_used_stand_beside_the_samples(run):
    out = done(
        shell("bash", ROOT / "sample_ddbm.sh", "histology", "vp", run, 0.2, "--nfe", 5, "--num_samples", 2, cwd=run)
    )
    found = list(run.glob("samples/*first2*/sampling.json"))
    assert found and "first2" in out
    for path in found:
        record = json.loads(path.read_text())
        assert record["settings"]["churn"] == 0.2 and record["nfe"] == 5
        assert (path.parent / record["samples"]).is_file()
