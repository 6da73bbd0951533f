"""Bridges between latents through the commands: our own codec, and a tiny, random one of diffusers."""

import json
import math
import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import open_data
from datasets.images import read_image
from ddbm import load, sample, translate
from ddbm.codecs import open_codec
from ddbm.config import SampleConfig
from ddbm.files import checkpoint
from scripts import check_equivariance, export, train, train_codec
from scripts import sample as sampling
from scripts import translate as translating
from scripts.common import find_checkpoint, header_of
from scripts.report import __main__ as report
from scripts.report.runs import read_run
from scripts.report.scores import certify_samples
from scripts.studio import Choice, Input, Studio, turned_input
from tests.ddbm.codecs.test_kl import saved
from tests.ddbm.runs import refused
from tests.scripts.sampling_runs import arrays

COMMON = (
    "--dataset mine --image_size native --batch_size 4 --optimizer adam --lr 1e-2 --tensorboard false --device cpu "
    "--ema_rate 0.5 --log_interval 1"
).split()
CODEC = "--factor 4 --model_channels 8 --num_res_blocks 1 --channel_mult 1,1,1 --layers tied".split()
BRIDGE = [
    *"--schedule vp --model_channels 8 --channel_mult 1,2 --num_res_blocks 1 --num_head_channels 8".split(),
    *"--attention_resolutions 2 --layers tied --group H --augment H --best_metric mse".split(),
]
RANDOM = np.random.default_rng(1)
PICTURE = RANDOM.integers(0, 256, (40, 56, 3), np.uint8)


def done(main, *words):
    """A command that ends well."""
    assert main([str(word) for word in words]) == 0


def pairs(folder, count, *shape):
    """Smooth and random pictures of 16 pixels a side."""
    for side in ("source", "target"):
        (folder / side).mkdir(parents=True)
        for i in range(count):
            picture = Image.fromarray(RANDOM.integers(0, 256, (4, 4, *shape), np.uint8)).resize((16, 16))
            picture.save(folder / side / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Pairs in mine/, and in own/ a codec of two steps."""
    home = tmp_path_factory.mktemp("home")
    flags = ["--data_dir", pairs(home / "mine", 20, 3), "--run_dir", home / "own", "--save_interval", 1]
    done(train_codec.main, *COMMON, *CODEC, *flags, "--total_steps", 2)
    return home


def trained(home, codec, run, *flags):
    own = ["--codec", codec, "--run_dir", run, "--data_dir", home / "mine"]
    done(train.main, *COMMON, *BRIDGE, *own, *flags)
    return run


@pytest.fixture(scope="module", params=["own", "kl"])
def run(request, home):
    """A run of 2 steps that went on to 4, and looked at samples at its end."""
    run, kind = home / f"run of {request.param}", home / request.param
    if request.param == "kl":
        saved(kind)
    trained(home, kind, run, "--total_steps", 2)
    return trained(home, kind, run, "--total_steps", 4, "--eval_interval", 4)


def kind_of(run):
    return run.name.split()[-1]


def val(home):
    return open_data(dataset="mine", data_dir=str(home / "mine"), split="val")


def to_bytes(images):
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).numpy()


def test_trained_resumed_and_looked_at(run, home):
    """What is scored are images, and the header knows the codec."""
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3, 4]
    assert all(math.isfinite(line["loss"]) for line in log if "loss" in line)
    header = header_of(find_checkpoint(run))
    assert header.codec == open_codec(str(home / kind_of(run))).digest and len(header.shift) == len(header.scale) == 4
    target, source = (
        torch.stack([getattr(val(home).get(i, None), side) for i in range(2)]) for side in ("target", "source")
    )
    error = to_bytes(sample(load(run), source).x_0) / 255.0 - to_bytes(target) / 255.0
    (look,) = (line for line in log if "eval_mse" in line)
    assert look["eval_mse"] == pytest.approx(np.square(error).mean(), rel=1e-3)
    whole = trained(home, home / kind_of(run), home / f"whole {kind_of(run)}", "--total_steps", 4)
    a, b = (checkpoint.read_weights(find_checkpoint(each), "ema") for each in (run, whole))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def moved(run, home, tmp_path):
    """Where the run's codec lies for as long as a test takes."""
    shutil.move(home / kind_of(run), tmp_path / "moved")
    yield tmp_path / "moved"
    shutil.move(tmp_path / "moved", home / kind_of(run))


def test_a_codec_that_has_moved(run, home, moved, tmp_path, monkeypatch):
    """It, and another one: every command says so, and takes --codec, also as a path from here."""
    flags = ["--device", "cpu", "--nfe", 2]
    other = home / "own" if kind_of(run) == "kl" else moved / "checkpoints" / "step_00000001"
    Image.fromarray(PICTURE[:16, :16]).save(tmp_path / "a.png")
    into = [tmp_path / "a.png", "--out", tmp_path / "to"]
    for main, more in ((sampling.main, ["--split", "val"]), (translating.main, into), (check_equivariance.main, [])):
        refused(main, [run, *more, *flags], "codec has moved", str(home / kind_of(run)), "--codec")
        refused(main, [run, *more, *flags, "--codec", other], f"the codec at {other} is another", "--codec")
    where = ["--data_dir", home / "mine", "--run_dir", run, "--total_steps", 5]
    refused(train.main, [*COMMON, *BRIDGE, *where, "--codec", other], "codec: ", " -> ")
    with pytest.raises(ValueError, match="codec has moved"):
        load(run)
    monkeypatch.chdir(tmp_path)
    done(sampling.main, run, "--split", "val", *flags, "--codec", "moved")
    done(translating.main, run, *into, *flags, "--codec", "moved")
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "to" / "a.png")),
        translate(load(run, codec="moved"), PICTURE[:16, :16], nfe=2).sample,
    )
    monkeypatch.chdir("/")
    shown = read_run(run, "", "run")
    assert certify_samples(shown, "H", torch.device("cpu")).line["map"] == "dbim"
    assert f"the codec at {other} is another" in certify_samples(shown, "H", torch.device("cpu"), str(other)).words
    lost = shown._replace(shown=shown.shown._replace(settings=SampleConfig(nfe=2)))
    assert "codec has moved" in certify_samples(lost, "H", torch.device("cpu")).words
    assert certify_samples(lost, "H", torch.device("cpu"), str(moved)).line["map"] == "dbim"
    monkeypatch.setattr(report, "certify_samples", Mock(side_effect=ValueError("asked")))
    refused(report.main, [run, "--device", "cpu", "--codec", moved], "asked")
    assert report.certify_samples.call_args.args[3] == str(moved)


def test_samples_are_images(run, home, tmp_path):
    """Of the command as of the function."""
    flags = ["--nfe", 3, "--batch_size", 1, "--split", "val", "--out_dir", tmp_path, "--png", "true", "--trajectory", 1]
    done(sampling.main, run, *flags, "--device", "cpu")
    wanted = to_bytes(sample(load(run), torch.stack([val(home).get(i, None).source for i in range(2)]), nfe=3).x_0)
    found = arrays(tmp_path, "samples")["arr_0"]
    assert found.shape == (2, 16, 16, 3) and np.abs(found.astype(int) - wanted).max() <= 1
    assert len([*tmp_path.glob("trajectory_*.png")]) == 1
    refused(export.main, [run, tmp_path / "out"], "bridge between latents", "no codec")


def test_pictures_of_any_size_in_windows(run, tmp_path):
    """Two of one odd size go through together, as alone; what lies outside a mask stays there."""
    (tmp_path / "in").mkdir()
    mask = np.ones((33, 22), np.uint8) * 255
    mask[:9, :6] = 0
    pictures = {"a": PICTURE, "b": RANDOM.integers(0, 256, (33, 22, 3), np.uint8)}
    pictures |= {"c": RANDOM.integers(0, 256, (33, 22, 3), np.uint8), "d": np.dstack([pictures["b"], mask])}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    done(translating.main, run, tmp_path / "in", "--out", tmp_path / "out", "--nfe", 2, "--device", "cpu")
    model = load(run)
    for name, pixels in pictures.items():
        found, seen = read_image(tmp_path / "out" / f"{name}.png"), mask > 0 if name == "d" else None
        wanted = translate(model, pixels[..., :3], mask=seen, nfe=2).sample
        assert found.pixels.shape == wanted.shape and (found.mask is None) == (seen is None)
        inside = slice(None) if seen is None else seen
        assert np.abs(found.pixels.astype(int) - wanted)[inside].max() <= 1 and wanted.std() > 1
        assert seen is None or np.array_equal(found.mask, seen)


def certified(run, out, *flags):
    """Exit code, what it says of the model, and the summary by maps."""
    words = [run, "--num_images", 1, "--device", "cpu", "--out_dir", out, *flags]
    code = check_equivariance.main([str(word) for word in words])
    (file,) = out.glob("equivariance_*.json")
    content = json.loads(file.read_text())
    assert file.with_suffix(".png").exists()
    return code, content["how"], {line["map"]: line for line in content["summary"]}


def test_certificate(run, tmp_path):
    """Of every part; our own codec turns, the other does not; what is an image has differences of images."""
    own, parts = kind_of(run) == "own", ["encoder", "network", "denoiser", "decoder"]
    code, how, lines = certified(run, tmp_path, "--nfe", 4)
    assert list(lines)[:4] == parts and "translate 48x48" in lines and code == (0 if own else 1)
    assert ("does not turn by construction" in how) != own
    symmetric = set(lines) if own else {"network", "denoiser"}
    assert {name for name, line in lines.items() if line["largest"] < 1e-5} == symmetric
    assert {name for name, line in lines.items() if line["delta_x0"] is None} == {*parts[:3]}


@pytest.mark.parametrize("run", ["kl"], indirect=True)
@pytest.mark.parametrize(("symmetrize", "allowed"), [("canonical", 0), ("average", 1e-5)])
def test_any_codec_is_made_symmetric(run, symmetrize, allowed, tmp_path):
    """Exactly in canonical frames, and by averages of encoder, denoiser and decoder as one map."""
    code, _, lines = certified(run, tmp_path, "--nfe", 6, "--symmetrize", symmetrize)
    errors = {name: line["largest"] for name, line in lines.items()}
    assert code == 0 and errors.pop("encoder") > 1e-2 < errors.pop("decoder") and max(errors.values()) < 1e-5
    assert all(error <= allowed for name, error in errors.items() if name not in ("network", "denoiser"))


def test_the_page_says_what_turns(run):
    studio, own = Studio(load(run), header_of(find_checkpoint(run))), kind_of(run) == "own"
    given = Input("a", (np.moveaxis(PICTURE, -1, 0)[:, :16, :16] / 127.5 - 1).astype(np.float32))
    choice = Choice("sample", 0, "dbim", 2, 0, "none", "H", None)
    first, turned = (studio.translate(each, choice) for each in (given, turned_input(given, (1, 0))))
    said = studio.difference(turned, first, (1, 0))
    assert ("what is left is rounding" in said) == own != ("Nothing in the codec makes the answer turn" in said)


def test_what_does_not_fit_is_refused(home, tmp_path):
    flags = [*COMMON, *BRIDGE, "--run_dir", tmp_path / "run", "--data_dir", home / "mine", "--codec"]
    size = "images of 20x20 cannot be cut into latent pixels of 4x4 and halved 1 times: use --image_size 16x16"
    refused(train.main, [*flags, home / "own", "--image_size", "20"], size)
    refused(train.main, [*flags, tmp_path / "none"], f"no codec at {tmp_path / 'none'}")
    refused(train.main, [*flags, "auto"], "no codec at auto")
    assert not (tmp_path / "run").exists()
    run = trained(home, "pixels", tmp_path / "pixels", "--total_steps", 1)
    bridge = "of no bridge: give a run of scripts.train"
    refused(sampling.main, [home / "own"], bridge)
    refused(train.main, [*flags, "pixels", "--run_dir", tmp_path / "new", "--resume", home / "own"], bridge)
    own = [*COMMON, *CODEC, "--data_dir", home / "mine", "--run_dir", tmp_path / "new", "--resume", run]
    refused(train_codec.main, own, "of no codec: give a run of scripts.train_codec")
    refused(sampling.main, [run, "--codec", home / "own"], "between pixels", "leave it out")
    refused(train.main, [*flags, home / "own", "--run_dir", run, "--total_steps", 2], "codec: pixels -> ")


def test_a_codec_of_other_channels_is_refused(home, tmp_path):
    saved(tmp_path, in_channels=1, out_channels=1)
    flags = [*COMMON, *BRIDGE, "--data_dir", home / "mine", "--run_dir", tmp_path / "run", "--codec", tmp_path]
    refused(train.main, flags, "images of 1 channels", "the sources have 3", "--codec")
