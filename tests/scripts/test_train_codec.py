"""The command that trains autoencoders: whole runs, what it measures and says, ranks, published ones trained on."""

import json
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from datasets import open_data
from ddbm.codecs import open_codec, tuned
from ddbm.config import CodecTrainConfig
from evaluations import raw
from scripts import train, train_codec
from scripts.pictures import evenly
from tests.ddbm.runs import refused
from tests.scripts.sampling_runs import ROOT, environment

BASE = (
    "--dataset histology --image_size 16 --batch_size 4 --total_steps 4 --log_interval 1 --save_interval 2 --lr 1e-3 "
    "--optimizer adam --tensorboard false --device cpu --ema_rate 0.9"
).split()
TINY = [*BASE, *"--factor 4 --model_channels 8 --num_res_blocks 1 --channel_mult 1,1,1 --layers tied --group H".split()]
TURNED = "--equivariance_weight 0.5 --equivariance_group D4 --microbatch 2 --kl_weight 0.1".split()


def trained(run, *flags, base=TINY):
    assert train_codec.main([*base, "--run_dir", str(run), *map(str, flags)]) == 0
    return run


def tensors(run, step=4):
    path = run / "checkpoints" / f"step_{step:08d}"
    return {f"{p.stem}/{k}": v for p in path.glob("*.safetensors") for k, v in safetensors.torch.load_file(p).items()}


def records(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("codec") / "one", *TURNED)


def test_a_whole_run(one, tmp_path, capsys):
    """Measured before and after, once; what it leaves is a codec."""
    measured = json.loads((one / "codec.json").read_text())
    assert {when: numbers.pop("step") for when, numbers in measured.items()} == {"before": 0, "after": 4}
    names = ["mse", "psnr", "encoder_equivariance", "decoder_equivariance"]
    assert all(list(numbers) == names for numbers in measured.values())
    assert measured["after"]["mse"] < measured["before"]["mse"]
    assert all(measured["before"][f"{part}_equivariance"] > 1e-3 for part in ("encoder", "decoder"))  # of mirrors
    codec = open_codec(str(one))
    data = open_data(dataset="histology", image_size="16", split="val")
    x = torch.stack([side for i in evenly(len(data), 64) for side in data.get(i, None)[:2]])
    bytes_of = [((images + 1) * 127.5).round() / 255 for images in (x, codec.decode(codec.encode(x), 3))]
    assert (bytes_of[0] - bytes_of[1]).square().mean().item() == pytest.approx(measured["after"]["mse"], rel=1e-3)
    before = (one / "codec.json").read_bytes()
    trained(one, *TURNED)
    said = capsys.readouterr().out
    assert "is finished: 4 of 4 steps" in said and "mse" not in said and (one / "codec.json").read_bytes() == before


def test_steps_are_exactly_resumed(one, tmp_path):
    run = trained(tmp_path / "run", *TURNED, "--total_steps", 2)
    assert json.loads((run / "codec.json").read_text())["after"]["step"] == 2
    trained(run, *TURNED)
    a, b = tensors(one), tensors(run)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    again, whole = (json.loads((folder / "codec.json").read_text()) for folder in (run, one))
    assert again == whole
    refused(train_codec.main, [*TINY, "--run_dir", run, "--latent_channels", 8], "latent_channels: 4 -> 8")
    refused(
        train.main,
        ["--run_dir", run, "--dataset", "histology", "--image_size", "16"],
        "of no bridge: give a run of scripts.train",
    )


def test_two_ranks_train_the_codec_of_one(one, tmp_path):
    """The same weights and averages up to the order of sums, against the distance of two steps.

    But for biases in front of a normalisation: they have no gradient but rounding, which Adam enlarges.
    """
    flags = [*TINY, *TURNED, "--microbatch", "1", "--run_dir", str(tmp_path / "two"), "--parallel", "fsdp"]
    start = [sys.executable, "-m", "scripts.torchrun", "--standalone", "--nproc_per_node", "2"]
    command = [*start, "-m", "scripts.train_codec", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment())
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    assert done.stdout.count("finished 4 steps") == done.stdout.count("after") == 1
    a, b, before = tensors(one), tensors(tmp_path / "two"), tensors(one, 2)
    assert a.keys() == b.keys()
    learned = [name for name in a if "norm" in name or not name.endswith("bias")]
    for kind in {name.split("/")[0] for name in a}:
        apart, moved = (
            torch.cat([(a[k] - other[k]).flatten() for k in learned if k.startswith(f"{kind}/")]).norm()
            for other in (b, before)
        )
        assert apart < 1e-3 * moved, kind
    for mine, theirs in zip(records(one), records(tmp_path / "two"), strict=True):
        for key in mine.keys() - {"images_per_s", "memory_gib"}:
            assert theirs[key] == pytest.approx(mine[key], rel=1e-3), key


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, scaling_factor=0.3,
    )  # fmt: skip
    vae.save_pretrained(folder := tmp_path_factory.mktemp("kl") / "vae")
    return folder


def test_a_published_autoencoder_is_trained_further(published, tmp_path, capsys):
    """It begins as it is, what is written is what the run holds, and stopped it goes on exactly."""
    flags = ["--from_kl", published, *TURNED, "--to_kl", tmp_path / "out", "--checkpoint_blocks", "true"]
    run = trained(tmp_path / "run", *flags, base=BASE)
    said, measured = capsys.readouterr().out, json.loads((run / "codec.json").read_text())
    assert f"AutoencoderKL of {published}" in said and f"written as diffusers does: {tmp_path / 'out'}" in said
    old, ours, theirs = (open_codec(str(place)) for place in (published, run, tmp_path / "out"))
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    for f in (lambda codec: codec.encode(x), lambda codec: codec.decode(codec.encode(x), 3)):
        torch.testing.assert_close(f(ours), f(theirs))
        assert (f(ours) - f(old)).abs().max() > 1e-3
    network, noise = tuned.opened(str(published)).eval(), torch.randn(2, 4, 8, 8)
    posterior = network.kl.encode(x).latent_dist
    y, mean, logvar = network(x, lambda like: noise)
    torch.testing.assert_close(y, network.kl.decode(posterior.mean + posterior.std * noise).sample)
    torch.testing.assert_close((mean, logvar), (posterior.mean, posterior.logvar))
    assert ours.scaling == 0.3 and measured["after"]["mse"] < measured["before"]["mse"]
    part = trained(tmp_path / "part", *flags, "--total_steps", 2, base=BASE)
    trained(part, *flags, base=BASE)
    a, b = tensors(run), tensors(part)
    assert all(torch.equal(a[name], b[name]) for name in a)
    refused(train_codec.main, [*TINY, "--run_dir", run], "kl: {", "factor: ")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--image_size", "2"], ["2x2", "--image_size 4x4"]),
        (["--group", "none", "--layers", "plain", "--equivariance_weight", "1"], ["--equivariance_group"]),
        (["--perceptual", "vgg"], ["vgg", "vgg16, alexnet, raw"]),
        (["--perceptual", "vgg16"], ["weights vgg16-397923af.pth are not on this machine: get https", "DDBM_WEIGHTS"]),
        (["--perceptual", "alexnet"], ["--perceptual alexnet needs images of 31 pixels"]),
        (["--sides", "left"], ["left", "both, target, source"]),
        (["--equivariance_group", "C5"], ["C5", "known are"]),
        (["--to_kl", "x"], ["--to_kl", "--from_kl"]),
        (["--from_kl", "nowhere"], ["--from_kl brings its own network"]),
        (["--restart", "--resume", "x"], ["--restart"]),
    ],
    ids=" ".join,
)
def test_mistakes(flags, words, tmp_path, monkeypatch):
    monkeypatch.setenv("DDBM_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    refused(train_codec.main, [*TINY, "--run_dir", tmp_path / "run", *flags], *words)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_something_else_is_not_written_to(published, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    for folder in (tmp_path / "mine", published):
        flags = [*BASE, "--run_dir", tmp_path / "run", "--from_kl", published, "--to_kl", folder]
        refused(train_codec.main, flags, f"--to_kl {folder} holds something else")


@pytest.mark.parametrize(
    ("sides", "channels", "fit", "said"),
    [
        ("both", (3, 3), (["target", "source"], 3), ""),
        ("both", (3, 1), (["target", "source"], 3), ""),
        ("both", (2, 3), (["source"], 3), "targets have 2 channels, the others 3"),
        ("source", (3, 1), (["source"], 1), ""),
        ("target", (3, 1), (["target"], 3), ""),
    ],
)
def test_which_images_fit(sides, channels, fit, said, capsys):
    class Data:
        target_channels, source_channels = channels

    assert train_codec.fitting(sides, Data) == fit
    out = capsys.readouterr().out
    assert said in out and bool(out) == bool(said)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_raw_loss_is_of_what_random_filters_see(channels, capsys):
    class Data:
        size = (16, 16)

    name, loss = train_codec.perceptual_of(CodecTrainConfig(), Data, torch.device("cpu"))
    assert name == "raw" and "weights of VGG16 are not here" in capsys.readouterr().out
    x, y = torch.rand(2, 4, channels, 16, 16) * 2 - 1
    colours = [range(3)] if channels == 3 else [[c] * 3 for c in range(channels)]
    filters, wanted = raw.filters(), []
    for chosen in colours:
        a, b = x[:, chosen], y[:, chosen]
        for layer, kernel in enumerate(filters):
            if layer:
                a, b = (torch.nn.functional.avg_pool2d(image, 2) for image in (a, b))
            a, b = (torch.nn.functional.conv2d(v, kernel, padding="same").relu() for v in (a, b))
            wanted.append((a - b).square().mean((1, 2, 3)))
    torch.testing.assert_close(loss(x, y), torch.stack(wanted).mean(0))
    assert (loss(x, x) == 0).all() and train_codec.perceptual_of(
        CodecTrainConfig(perceptual_weight=0.0), Data, torch.device("cpu")
    ) == ("auto", None)


@pytest.mark.parametrize(("name", "file"), [("alexnet", "alexnet-owt.pth"), ("auto", "vgg16.pth")])
def test_lpips_where_its_weights_are(name, file, tmp_path, monkeypatch):
    """As the package computes it, with gradients for the image and none for the network."""
    from lpips import LPIPS
    from torchvision import models

    class Data:
        size = (32, 32)

    net = "alexnet" if name == "alexnet" else "vgg16"
    torch.manual_seed(0)
    state = getattr(models, net)(weights=None).features.state_dict()
    torch.save({f"features.{key}": value for key, value in state.items()}, tmp_path / file)
    monkeypatch.setenv("DDBM_WEIGHTS", str(tmp_path))
    found, loss = train_codec.perceptual_of(CodecTrainConfig(perceptual=name), Data, torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = LPIPS(net="alex" if net == "alexnet" else "vgg", pnet_rand=True, verbose=False).eval()
    package.net.load_state_dict({key: state[key.split(".", 1)[1]] for key in package.net.state_dict()})
    x, y = (torch.rand(2, 3, 3, 32, 32) * 2 - 1).requires_grad_()
    torch.testing.assert_close(loss(x, y), package(x, y).flatten(), rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss(x, y).sum(), x)
    assert found == net and gradient.abs().max() > 0


def test_pairs_of_two_kinds(tmp_path, capsys):
    """Grey sources beside colour targets; others that are not square."""
    rng = np.random.default_rng(0)
    wide = {("wide", side): (8, 16) for side in ("source", "target")}
    for (folder, side), shape in ({("data", "source"): (8, 8), ("data", "target"): (8, 8, 3)} | wide).items():
        (tmp_path / folder / side).mkdir(parents=True)
        for i in range(10, 30):
            Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(tmp_path / folder / side / f"{i}.png")
    flags = ["--dataset", "mine", "--data_dir", tmp_path / "data", "--image_size", "native", "--total_steps", "1"]
    run = trained(tmp_path / "run", *flags, "--sides", "both")
    assert "images: target, source" in capsys.readouterr().out
    assert open_codec(str(run)).image_channels == 3
    (tmp_path / "data/target/29.png").write_bytes(b"")  # of the validation, measured before and after
    trained(tmp_path / "grey", *flags, "--sides", "source", "--skip_unreadable", "true")
    assert open_codec(str(tmp_path / "grey")).image_channels == 1
    wide = [*TINY, *flags, "--data_dir", tmp_path / "wide", "--run_dir", tmp_path / "no"]
    refused(train_codec.main, [*wide, "--equivariance_group", "C4"], "C4", "square")
    refused(train_codec.main, [*wide, "--group", "D4", "--equivariance_group", "H"], "D4", "square")


def test_the_launcher(tmp_path):
    """The presets, then the words of the command line; --from_kl brings those of published ones."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)

    def launched(*words, **extra):
        own = environment(VENV=str(tmp_path / "venv"), WORKDIR="runs", **extra)
        command = ["bash", str(ROOT / "scripts" / "train_codec.sh"), *words]
        return subprocess.run(command, capture_output=True, text=True, env=own, cwd=tmp_path)

    words = launched("histology", "--lr", "1").stdout.split()
    assert words[:2] == ["-m", "scripts.train_codec"] and "--factor" in words and "--l2_weight" not in words
    assert " ".join(words).endswith("--dataset histology --run_dir runs/histology_codec --lr 1")
    parsed, _ = train_codec.parse(words[2:])
    assert (parsed.codec.factor, parsed.train.lr, parsed.data.image_size) == (4, 1.0, "32")
    words = launched("mine", "--from_kl", "vae", DATA_DIR="my", NGPU="2").stdout.split()
    assert "scripts.torchrun" in words and " ".join(words).endswith(
        "--dataset mine --data_dir my --run_dir runs/mine_codec --from_kl vae"
    )
    parsed, extra = train_codec.parse(words[words.index("scripts.train_codec") + 1 :])
    s = parsed.train
    assert (s.l1_weight, s.l2_weight, s.kl_weight, s.perceptual_weight, extra.from_kl) == (0, 0.5, 1e-6, 0.002, "vae")
    assert launched("--help").stdout.split() == ["-m", "scripts.train_codec", "--help"]
    for wrong in ([], ["--lr", "1"], ["a/b"]):
        done = launched(*wrong)
        assert done.returncode == 2 and re.fullmatch(r"error: .*\n", done.stderr), done.stderr
