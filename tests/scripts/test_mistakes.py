"""What a user can get wrong: one line that says what was found and what to do, and nothing overwritten."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddbm.bridges.samplers import SAMPLERS
from ddbm.model import Samples, load
from evaluations.images import to_bytes
from scripts import check_equivariance, common, make_reference, sample, train
from scripts.report import __main__ as report
from tests.ddbm.runs import refused
from tests.scripts.report.reports import few
from tests.scripts.sampling_runs import make_run

ROOT = Path(__file__).parent.parent.parent
TINY = (
    "--dataset histology --image_size 16 --model_channels 8 --num_head_channels 8 --channel_mult 1,2 --batch_size 2 "
    "--attention_resolutions 8 --num_res_blocks 1 --optimizer adam --total_steps 2 --device cpu --layers tied "
    "--group D4"
).split()


def save(path, shape=(16, 16, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, 100, np.uint8)).save(path)


@pytest.fixture
def pairs(tmp_path):
    for side in ("source", "target"):
        for i in range(4):
            save(tmp_path / "data" / side / f"{i}.png")
    return tmp_path / "data"


def attempt(tmp_path, *flags):
    return [*TINY, "--run_dir", tmp_path / "run", *flags]


def own(tmp_path, data, *flags):
    return attempt(tmp_path, "--dataset", "mine", "--data_dir", data, *flags)


def test_data(tmp_path, pairs):
    main = train.main
    refused(main, own(tmp_path, tmp_path / "nowhere"), "nowhere")
    refused(main, attempt(tmp_path, "--data_dir", pairs), "histology comes without a folder", pairs, "my_pairs")
    (tmp_path / "empty").mkdir()
    refused(main, own(tmp_path, tmp_path / "empty"), "empty")
    (pairs / "target" / "2.png").unlink()
    refused(main, own(tmp_path, pairs), "2.png")
    for side in ("source", "target"):
        shutil.copytree(pairs / side, tmp_path / "mixed" / "train" / side)
        shutil.copytree(pairs / side, tmp_path / "mixed" / "val" / side)
    save(tmp_path / "mixed/train/target/2.png")
    save(tmp_path / "mixed/val/target/2.png")
    for side in ("target", "source"):
        save(tmp_path / "mixed/val" / side / "0.png", (16, 16))
        refused(main, own(tmp_path, tmp_path / "mixed"), f"0 of val: {side} has 1 channels, those of train have 3")
        save(tmp_path / "mixed/val" / side / "0.png")
    assert not (tmp_path / "run").exists()
    save(pairs / "target" / "2.png")
    (pairs / "source" / "1.png").write_bytes(b"not an image")
    refused(main, own(tmp_path, pairs), "1.png")  # found while training: what was learnt before it is kept


def test_sizes_and_groups(tmp_path, pairs):
    refused(train.main, own(tmp_path, pairs, "--image_size", "15"), "15x15", "--image_size")
    refused(train.main, own(tmp_path, pairs, "--image_size", "16x32"), "D4", "square")
    refused(
        train.main, own(tmp_path, pairs, "--image_size", "16x32", "--group", "H", "--augment", "C4"), "C4", "square"
    )
    assert not (tmp_path / "run").exists()


def test_names(tmp_path):
    for flag, known in (("schedule", "vp_simple"), ("group", "D2"), ("layers", "tied"), ("augment", "C2")):
        refused(train.main, attempt(tmp_path, f"--{flag}", "nonsense"), "nonsense", known)
    refused(train.main, attempt(tmp_path, "--dataset", "histologi"), "mean histology?", "DATA_DIR")
    refused(train.main, attempt(tmp_path, "--device", "abacus"), "abacus", "cuda")
    refused(train.main, attempt(tmp_path, "--device", "cuda:99"), "cuda:99", "GPUs")


def test_the_folder_of_the_environment_and_notes_once(tmp_path, pairs, capsys, monkeypatch):
    (pairs / "source" / "scan.heic").write_bytes(b"")
    monkeypatch.setenv("DATA_DIR", str(pairs))
    monkeypatch.chdir(tmp_path)
    for steps, run in enumerate(("run", str(tmp_path / "run"), "./run"), 1):  # one run by other names
        argv = [*TINY, "--dataset", "mine", "--run_dir", run, "--total_steps", str(steps)]
        assert train.main(argv) == 0
        said = capsys.readouterr().out
        assert said.count("held out") == said.count("1 .heic") == said.count("note: ") == 1 and "run_dir" not in said
    assert make_reference.main(["--dataset", "mine", "--split", "all", "--statistics", "raw", "r.npz"]) == 0
    assert np.load("r.npz")["names"].tolist() == ["0", "1", "2", "3"]
    monkeypatch.setenv("DATA_DIR", "nowhere")
    refused(check_equivariance.main, ["run", "--device", "cpu"], "data_dir nowhere does not exist")
    monkeypatch.delenv("DATA_DIR")
    refused(make_reference.main, ["--dataset", "mine", "r.npz"], "set DATA_DIR=/path")


def test_directories_that_cannot_be_written(tmp_path, finished):
    file = tmp_path / "file"
    file.write_text("")
    refused(train.main, [*TINY, "--run_dir", file / "run"], "file", "another directory")
    refused(sample.main, [finished, "--nfe", 2, "--out_dir", file / "out"], "file", "another directory")
    for folder in (tmp_path / "none", tmp_path, finished):
        refused(report.main, [folder], folder, "no folder with a run that has samples", "sample_ddbm.sh")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("finished")
    assert train.main([*TINY, "--run_dir", str(run)]) == 0
    return run


def test_runs_are_not_trained_over(finished, tmp_path, capsys):
    start = finished / "checkpoints" / "step_00000002"
    refused(train.main, [*TINY, "--run_dir", finished, "--group", "C4"], "group: D4 -> C4", "--restart")
    refused(train.main, [*TINY, "--run_dir", finished, "--resume", start, "--restart"], "--restart")
    refused(train.main, [*TINY, "--run_dir", finished, "--resume", tmp_path / "no"], "no checkpoint at")
    assert train.main([*TINY, "--run_dir", str(tmp_path / "more"), "--resume", str(start), "--total_steps", "3"]) == 0
    later = tmp_path / "more" / "checkpoints" / "step_00000003"
    assert later.is_dir()
    refused(train.main, [*TINY, "--run_dir", tmp_path / "more", "--resume", finished / "no"], "no checkpoint at")
    capsys.readouterr()
    assert train.main([*TINY, "--run_dir", str(tmp_path / "more"), "--restart"]) == 0
    assert (tmp_path / "more.old1" / "checkpoints" / "step_00000003").is_dir() and not later.exists()
    assert "moved" in capsys.readouterr().out
    (tmp_path / "more" / "checkpoints" / "step_00000002" / "ema.safetensors").write_bytes(b"")
    refused(train.main, [*TINY, "--run_dir", tmp_path / "more"], "whole", "--restart")


def test_classes_and_masks_from_training_to_report(tmp_path, capsys, monkeypatch):
    """Class folders, and targets that are transparent in their left half: mid-grey there in all that is written."""
    rng = np.random.default_rng(0)
    for i in range(12):
        for side in ("source", "target"):
            path = tmp_path / "data" / side / ("cats", "dogs")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 255, (16, 16, 4), np.uint8)
            pixels[..., 3] = 255
            pixels[:, :8, 3] = 0 if side == "target" else 255
            Image.fromarray(pixels).save(path)
    assert train.main([str(a) for a in own(tmp_path, tmp_path / "data", "--num_classes", 2)]) == 0
    run = str(tmp_path / "run")
    header = common.header_of(common.find_checkpoint(run))
    assert (header.classes, header.layout, header.native) == (("cats", "dogs"), "two_folders", (16, 16))
    shutil.copytree(tmp_path / "data", tmp_path / "new")
    for side in ("source", "target"):
        shutil.rmtree(tmp_path / "new" / side / "cats")  # else dogs would be cats
    labels = []
    with monkeypatch.context() as patch:
        patch.setattr(sample, "draw", lambda model, batch, *_: labels.append(batch.label) or Samples(batch.target, 3))
        assert sample.main([run, "--nfe", "3", "--data_dir", str(tmp_path / "new")]) == 0
    assert labels[0].tolist() == [1] * 6
    (tmp_path / "new/source/dogs").rename(tmp_path / "new/source/eels")
    (tmp_path / "new/target/dogs").rename(tmp_path / "new/target/eels")
    refused(sample.main, [run, "--data_dir", tmp_path / "new"], "'eels' is none of the model's (cats, dogs)")
    assert sample.main([run, "--nfe", "3", "--out_dir", str(tmp_path / "run" / "samples" / "s")]) == 0
    files = {p.name.split("_")[0]: np.load(p) for p in (tmp_path / "run" / "samples" / "s").glob("*.npz")}
    reference, samples = files["reference"], files["samples"]
    assert not reference["mask"][:, :, :8].any() and reference["mask"][:, :, 8:].all()
    for images in (samples["arr_0"], reference["arr_0"], reference["source"]):
        assert (images[:, :, :8] == 128).all() and images[:, :, 8:].std() > 1
    for file in files.values():
        file.close()
    assert check_equivariance.main([run, "--nfe", "3", "--num_images", "1", "--group", "H"]) == 0
    few(monkeypatch)
    assert report.main([run, "--device", "cpu", "--group", "H"]) == 0
    assert "the source itself" in capsys.readouterr().out
    assert "Best by psnr" in (tmp_path / "run/report.html").read_text()  # ssim finds no window in 8 columns


def test_restart_leaves_alone_what_is_no_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    refused(train.main, attempt(tmp_path, "--restart"), "not the directory of a run")
    refused(train.main, attempt(tmp_path, "--restart", "false"), "unexpected argument 'false'")
    refused(train.main, attempt(tmp_path, "--layers", "regular", "--group", "none"), "needs a group")
    refused(train.main, attempt(tmp_path, "--channel_mult", "1,0"), "channel_mult", "above 0")
    assert (tmp_path / "run" / "thesis.txt").read_text() == "precious"


def test_changed_settings_are_said_and_the_data_is_found_from_anywhere(tmp_path, pairs, capsys, monkeypatch):
    monkeypatch.chdir(pairs.parent)
    argv = [str(a) for a in own(tmp_path, "data")]
    assert train.main(argv) == 0
    monkeypatch.chdir("/")
    assert sample.main([str(tmp_path / "run"), "--nfe", "2"]) == 0
    shutil.copytree(pairs, tmp_path / "other")
    more = [*argv[:-1], str(tmp_path / "other"), "--total_steps", "3", "--lr", "0.5"]
    assert train.main([str(a) for a in more]) == 0
    said = capsys.readouterr().out
    assert "with other settings:" in said and "lr: 0.0001 -> 0.5" in said and "data_dir:" in said
    for extra in ([], ["--data_dir", str(pairs)]):
        assert sample.main([str(tmp_path / "run"), "--nfe", "2", *extra]) == 0
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 3


def test_sampling(finished, tmp_path, pairs):
    refused(sample.main, [tmp_path / "none"], "no checkpoint at")
    refused(sample.main, [ROOT / "pyproject.toml"], "is a file")
    refused(sample.main, [pairs], "manifest.json")
    refused(sample.main, [finished, "--dataset", "diode"], "diode", "histology")
    refused(sample.main, [finished, "--sampler", "heun", "--churn", "1.5", "--nfe", "5"], "churn", "[0, 1)")
    refused(sample.main, [finished, "--group", "C4", "--nfe", "4"], "C4", "D4", "leave --group out")
    refused(sample.main, [finished, "--symmetrize", "frames"], "frames", "average, canonical")
    refused(sample.main, [finished, "--schedule", "vp"], "schedule vp was asked for", "trained with ve")
    refused(sample.main, [finished, "--split", "tests"], "tests", "train, val, test, all")
    assert not list(finished.glob("samples/*/*.npz"))


def test_certificates(finished, tmp_path, capsys):
    """Exit code 0 within the tolerance, 1 outside; a mistake is refused before any work."""
    argv = ["--nfe", "3", "--num_images", "1", "--device", "cpu"]
    assert check_equivariance.main([str(finished), *argv]) == 0
    record = json.loads((finished / "equivariance_D4.json").read_text())
    fixed = {name for name, own in SAMPLERS.items() if not own.adaptive}
    side = load(finished).images.height
    whole = {f"translate {3 * side}x{3 * side}", f"translate {2 * side}x{3 * side}"}
    assert {row["map"] for row in record["rows"]} == {"network", "denoiser", *fixed, *whole}
    assert len(record["rows"]) == 7 * (2 + len(fixed) + 2) and (finished / "equivariance_D4.png").is_file()
    assert record["group"] == "D4" and record["within_tolerance"]
    refused(check_equivariance.main, [finished, "--group", "D5"], "D5", "C4")
    refused(check_equivariance.main, [tmp_path / "none"], "no checkpoint at")

    run = str(make_run(tmp_path / "plain"))
    refused(check_equivariance.main, [run], "no group", "--group D4")
    refused(sample.main, [run, "--symmetrize", "average"], "needs a group", "--group")
    assert check_equivariance.main([run, "--group", "H", *argv]) == 1
    record = json.loads((tmp_path / "plain" / "equivariance_H.json").read_text())
    assert min(row["largest"] for row in record["rows"]) > 1e-4 and not record["within_tolerance"]
    canonical = ["--group", "H", "--symmetrize", "canonical", "--tolerance", "1e-30", "--out_dir", str(tmp_path)]
    assert check_equivariance.main([run, *argv, *canonical]) == 0
    rows = json.loads((tmp_path / "equivariance_H_canonical.json").read_text())["rows"]
    assert all(row["largest"] == row["changed"] == 0 for row in rows if row["map"] not in ("network", "denoiser"))
    out = capsys.readouterr().out
    assert "within tolerance" in out and "NOT within" in out and "Δx̂0" in out


def test_pixels_survive_the_way_to_bytes():
    levels = torch.arange(256).reshape(1, 1, 16, 16)
    assert np.array_equal(to_bytes(levels / 127.5 - 1)[0, ..., 0], levels[0, 0].numpy())
    assert to_bytes(torch.tensor([[[[-3.0, 3.0]]]])).ravel().tolist() == [0, 255]
