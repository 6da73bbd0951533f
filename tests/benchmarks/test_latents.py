"""What latents give: the tables of the command, from runs of a few steps on small pictures."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import latents
from datasets import open_data
from ddbm import load, sample
from ddbm.codecs import open_codec
from scripts import train, train_codec
from tests.ddbm.runs import refused

SMALL = "--image_size 32 --batch_size 2 --optimizer adam --tensorboard false --device cpu --total_steps".split()
CODEC = "--dataset retina --factor 4 --model_channels 8 --channel_mult 1,1,1 --num_res_blocks 1".split()
BRIDGE = (
    "--dataset retina --schedule vp --model_channels 8 --channel_mult 1,2 --num_res_blocks 1 --num_head_channels 8 "
    "--attention_resolutions 4 --layers tied --group D4"
).split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    for main, flags, name, steps in (
        (train_codec.main, CODEC, "codec", "2"),
        (train.main, [*BRIDGE, "--codec", str(home / "codec")], "latents", "3"),
        (train.main, BRIDGE, "pixels", "4"),
    ):
        assert main([*flags, *SMALL, steps, "--run_dir", str(home / name)]) == 0
    return home


def lines(capsys, *words):
    assert latents.main([str(word) for word in words]) == 0
    return [line.split("  ") for line in capsys.readouterr().out.splitlines() if line.strip()]


def table(found):
    return {cells[0].strip(): [cell.strip() for cell in cells[1:] if cell.strip()] for cells in found}


def test_answers(runs, capsys, monkeypatch):
    """Squared errors of four test images by hand; the steps that each training took."""
    data = open_data(dataset="retina", split="test", image_size="32")
    batch = [data.get(i, None) for i in range(4)]
    target, source = (torch.stack([getattr(item, side) for item in batch]) for side in ("target", "source"))
    monkeypatch.setattr(latents, "open_split", lambda *_, **__: data)
    monkeypatch.setattr(type(data), "__len__", lambda self: 4)
    monkeypatch.setattr(latents, "watched", lambda command: (float(len(command[-1])), 0))
    monkeypatch.setattr(latents, "interleaved", lambda works, rounds: {name: np.ones(1) / 4 for name in works})
    found = table(lines(capsys, "--run", runs / "latents", "--pixels", runs / "pixels", "--nfe", 2, "--device", "cpu"))
    codec = open_codec(str(runs / "codec"))
    wanted = {"source itself": source, "target, encoded and decoded": codec.decode(codec.encode(target), 3)}
    wanted |= {f"{name}: one sample": sample(load(runs / name), source, nfe=2).x_0 for name in ("latents", "pixels")}
    draws = [sample(load(runs / "pixels"), source, nfe=2, seed=seed).x_0 for seed in range(4)]
    wanted["pixels: mean of 4 samples"] = torch.stack(draws).mean(0)
    for name, images in wanted.items():
        assert float(found[name][0]) == pytest.approx((images - target).square().mean().item() / 4, abs=2e-5), name
    assert found["latents: one sample"][-1] == "0.250" and found["source itself"][-1] == "–"
    for name, steps in (("codec", 2), ("latents", 3), ("pixels", 4)):
        assert found[name][:3] == [str(steps), "0.250", f"{steps / 4:.0f}"]
    assert found["codec"][3] == "–" and float(found["pixels"][3]) > 0
    alone = table(lines(capsys, "--run", runs / "latents", "--pixels", "", "--nfe", 2, "--device", "cpu"))
    assert list(alone) == [name for name in found if not name.startswith("pixels")]
    assert alone["latents: one sample"] == found["latents: one sample"]


def test_steps_are_those_of_training(runs):
    """A bridge's step encodes a batch of its pairs."""
    counted, program = [], latents.train.BRIDGE

    def build(*given):
        built = program.build(*given)
        encode = built.model.codec.encode
        built.model.codec.encode = lambda x, noise=None: counted.append(tuple(x.shape)) or encode(x, noise)
        return built

    header = latents.header_of(latents.find_checkpoint(runs / "latents"))
    latents.stepping(SimpleNamespace(build=build), header, torch.device("cpu"))()
    assert counted == [(2, 3, 32, 32)] * 2


def test_tiles(runs, capsys, monkeypatch):
    """A codec that sees 3 latent pixels around decodes in tiles what it decodes at once but near their borders."""
    monkeypatch.setattr(latents.in_tiles, "SIDE", 24)
    monkeypatch.setattr(latents, "SIDE", 128)
    heads, *rows = lines(capsys, "tiles", "--run", runs / "latents", "--device", "cpu")
    assert heads[0] == "128², tiles of 96²"
    whole, blended, beside = (table([row])[row[0]] for row in rows)
    assert float(whole[-1]) == 0 < float(blended[-1]) < float(beside[-1])
    picture = torch.from_numpy(latents.pictures()[0][576:704, 576:704].transpose(2, 0, 1) / 127.5 - 1).float()
    codec = open_codec(str(runs / "codec"))
    decoded = codec.decode(codec.encode(picture[None]), 3)[0].numpy()
    mean, largest, within, most = latents.jumps(decoded, [32, 96])
    assert whole[:5] == [f"{mean:.4f}", f"{within:.4f}", f"{mean / within:.3f}", f"{largest:.3f}", f"{most:.3f}"]


def test_equivariance(tmp_path, capsys, monkeypatch):
    pytest.importorskip("diffusers")
    kept = {name: latents.CODECS[name] for name in ("own, tied", "AutoencoderKL, tuned")}
    monkeypatch.setattr(latents, "CODECS", kept)
    monkeypatch.setattr(latents, "GROUP", "H")
    monkeypatch.setattr(latents.check_equivariance, "TILES", 2)
    words = ["equivariance", "--steps", 1, "--out", tmp_path, "--device", "cpu"]
    own, other = list(table(lines(capsys, *words)).values())[1:]
    assert max(map(float, own)) < 1e-5 and float(own[-1]) == 0
    encoder, bridge, decoder, none, average, canonical = map(float, other)
    assert min(encoder, decoder, none) > 1e-2 and max(bridge, average) < 1e-5 and canonical == 0
    tuned, random = (open_codec(str(tmp_path / name)) for name in ("AutoencoderKL_tuned", "kl"))
    assert tuned.digest != random.digest and (tuned.factor, tuned.latent_channels) == (4, 4)


def test_mistakes(runs, tmp_path):
    refused(latents.main, ["seams"], "unknown subject 'seams'", "answers, equivariance, tiles")
    refused(latents.main, ["tiles", "--run", str(tmp_path / "none")], "no checkpoint at")
