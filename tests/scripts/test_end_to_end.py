"""The whole road as a user walks it, in small: own pairs, launchers, evaluator, report."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.report import __main__ as report
from tests.scripts.report.reports import few
from tests.scripts.sampling_runs import ROOT, environment

TINY = (
    "--model_channels 8 --num_head_channels 8 --channel_mult 1,2 --attention_resolutions 16 --batch_size 4 "
    "--optimizer adam --log_interval 2 --val_interval 4 --save_interval 2 --lr 1e-3 --dropout 0.1 --device cpu "
    "--layers tied --group D4 --num_res_blocks 1"
).split()


def done(*words, cwd, **extra):
    """What a command prints."""
    own = environment(VENV=sys.prefix, WORKDIR=str(cwd), **extra)
    process = subprocess.run([*map(str, words)], cwd=cwd, env=own, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_train_sample_evaluate_report(tmp_path, capsys, monkeypatch):
    """In a directory with a space in its name; grey sources and coloured targets, unknown to args.sh."""
    home = tmp_path / "a user's home"
    rng = np.random.default_rng(0)
    for side, shape in (("source", (16, 16)), ("target", (16, 16, 3))):
        (home / "data" / side).mkdir(parents=True)
        for i in range(40):
            Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(home / "data" / side / f"{i:02}.png")
    own = dict(cwd=home, DATA_DIR=str(home / "data"))
    done("bash", ROOT / "train_ddbm.sh", "my_pairs", "ve", *TINY, "--total_steps", 6, **own)
    sampling = ("bash", ROOT / "sample_ddbm.sh", "my_pairs", "ve", home / "my_pairs_ve", 0.2, 1, "val", "--nfe", 5)
    samples, reference = (Path(x) for x in done(*sampling, cwd=home).splitlines() if x.endswith(".npz"))
    assert samples.name == "samples_4x16x16x3_nfe5.npz" and reference.name == "reference_4x16x16x3.npz"
    with np.load(samples) as s, np.load(reference) as r:  # every tenth pair is held out
        assert s["arr_0"].shape == r["arr_0"].shape == (4, 16, 16, 3) and r["source"].shape == (4, 16, 16, 1)
        assert s["arr_0"].dtype == r["arr_0"].dtype == np.uint8 and s["names"].tolist() == ["09", "19", "29", "39"]
    record = json.loads((samples.parent / "sampling.json").read_text())
    assert (record["settings"]["churn"], record["settings"]["sampler"], record["nfe"]) == (0.2, "heun", 5)
    scores = done(sys.executable, ROOT / "evaluations/evaluator.py", reference, samples, cwd=home, PYTHONPATH="")
    assert all(name in scores for name in ("mse", "psnr", "ssim"))
    few(monkeypatch)
    assert report.main([str(home / "my_pairs_ve")]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("linear map", "source itself", "equivariance error", "report.html"))
