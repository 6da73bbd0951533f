"""Latents encoded once: what is stored, that it can be killed, and that training on it is training on the images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import open_data
from datasets.latents import Latents
from ddbm.codecs import Codec, open_codec
from ddbm.codecs.symmetric import Symmetric
from ddbm.files import checkpoint
from ddbm.training.trainer import Trainer
from ddbm.translation import tiles
from scripts import encode_dataset, train
from tests.ddbm.codecs.small import autoencoder
from tests.ddbm.codecs.test_symmetric import written
from tests.ddbm.runs import contents, one_line, refused

TURNS = [(flip, turns) for flip in (0, 1) for turns in range(4)]
RUN = (
    "--schedule vp --model_channels 8 --num_head_channels 8 --channel_mult 1,1 --num_res_blocks 1 --batch_size 3 "
    "--attention_resolutions 4 --optimizer adam --lr 1e-3 --tensorboard false --device cpu --log_interval 1"
).split()


def paint(folder, count=5, size=16, mode="RGBA", kinds=("",)):
    """Pairs of noise to train on, in classes, and one to validate; of those with alpha every second one has a hole."""
    rng = np.random.default_rng(3)
    for i in range(count + 1):
        part = f"{'train' if i < count else 'val'}/%s/{kinds[i % len(kinds)]}"
        for side, channels in (("source", "L" if mode == "L" else mode), ("target", "RGB" if mode == "L" else mode)):
            pixels = rng.integers(0, 256, (size, size, {"L": 1, "RGB": 3, "RGBA": 4}[channels]), np.uint8)
            if channels == "RGBA":
                pixels[..., 3] = 255
                pixels[1:5, 2:4, 3] = 255 * (i % 2)
            path = folder / (part % side) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.squeeze()).save(path)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A codec that commutes with nothing, pairs, and their latents under D4."""
    root = tmp_path_factory.mktemp("latents")
    written(autoencoder("plain", "none"), root / "codec")
    paint(root / "pairs")
    packed(root, root / "pack", "--latents", "sample")
    return root


def flags(place, out, *more):
    own = ["--dataset", "mine", "--data_dir", place / "pairs", "--codec", place / "codec", "--augment", "D4"]
    return [str(word) for word in (*own, "--out", out, "--batch_size", 2, "--device", "cpu", *more)]


def packed(place, out, *more):
    assert encode_dataset.main(flags(place, out, *more)) == 0
    return out


def arrays(folder):
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}


def turned(x, flip, turns):
    return torch.from_numpy(np.rot90(x.numpy()[..., ::-1] if flip else x.numpy(), turns, (-2, -1)).copy())


@pytest.mark.parametrize(("mode", "kinds", "latents"), [("RGBA", ("a", "b"), "sample"), ("L", ("",), "mode")])
def test_every_copy_is_turned_and_then_encoded(place, tmp_path, mode, kinds, latents):
    """Also what is grey on one side; masks in latent pixels and classes where the data have them."""
    paint(tmp_path / "pairs", mode=mode, kinds=kinds)
    classes = ["--num_classes", 2 * (kinds != ("",))]
    packed(place, tmp_path / "pack", "--data_dir", tmp_path / "pairs", "--latents", latents, *classes)
    data = open_data("mine", "train", data_dir=str(tmp_path / "pairs"), num_classes=classes[1])
    network, found, pack = (
        open_codec(str(place / "codec")).network,
        arrays(tmp_path / "pack"),
        Latents(tmp_path / "pack"),
    )
    assert found.keys() == ({"target", "source"} if mode == "L" else {"target", "source", "mask", "label"})
    assert found["target"].shape == found["source"].shape == (5, 8, 4 if latents == "mode" else 8, 4, 4)
    assert len(pack) == 5 and found["target"].dtype == np.float32
    for i in range(5):
        item = data.get(i, None)
        for k, (flip, turns) in enumerate(TURNS):
            got = pack.turned(i, (flip, turns))
            for side in ("target", "source"):
                x = turned(getattr(item, side), flip, turns)[None]
                mean, logvar = network.moments(x.repeat(1, 4 - x.shape[1], 1, 1) if x.shape[1] == 1 else x)
                wanted = (torch.cat([mean, logvar.exp().sqrt()], 1) if latents == "sample" else mean)[0].detach()
                np.testing.assert_allclose(found[side][i, k], wanted, rtol=0, atol=1e-5)
                assert torch.equal(getattr(got, side), torch.from_numpy(found[side][i, k]))
            assert got.label == item.label
            if mode == "L":
                assert got.mask is None
                continue
            hole = torch.zeros(1, 4, 4, dtype=torch.bool)
            hole[0, :2, :1] = "0" in data.names[i] or "2" in data.names[i] or "4" in data.names[i]  # rows 1 to 4
            assert torch.equal(got.mask, turned(~hole, flip, turns)) and np.array_equal(found["mask"][i, k], got.mask)
    assert torch.equal(pack.get(2, None).target, pack.turned(2, (0, 0)).target)


@pytest.mark.parametrize("where", ["posterior", "write"])
def test_killed_it_goes_on(place, tmp_path, monkeypatch, capsys, where):
    calls = []

    class Killed(Exception):
        pass

    def run(own, limit):
        def counted(*args):
            calls.append(1)
            if len(calls) > limit:
                raise Killed
            return own(*args)

        return counted

    kept = Symmetric.posterior
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if where == "posterior":
            patch.setattr(Symmetric, "posterior", run(kept, 2 * 8 + 5))  # within the second batch
        else:
            patch.setattr(encode_dataset, "write_rows", run(encode_dataset.write_rows, 4))  # its source is not written
        packed(place, tmp_path / "pack", "--latents", "sample")
    with one_line(tmp_path / "pack", "holds latents of 2 of 5 pairs: the command that began it goes on"):
        Latents(tmp_path / "pack")
    calls.clear()
    monkeypatch.setattr(Symmetric, "posterior", run(kept, 2 * 2 * 8))
    packed(place, tmp_path / "pack", "--latents", "sample")
    assert len(calls) == 2 * 2 * 8  # two batches of both sides
    names = {path.name for path in (place / "pack").iterdir()}
    assert names == {path.name for path in (tmp_path / "pack").iterdir()} >= {"mask.npy", "latents.json"}
    assert all((place / "pack" / n).read_bytes() == (tmp_path / "pack" / n).read_bytes() for n in names - {".lock"})
    assert "pack holds 5 pairs, 8 copies each" in capsys.readouterr().out
    packed(place, tmp_path / "pack", "--latents", "sample")
    assert "is finished" in capsys.readouterr().out and len(calls) == 2 * 2 * 8


def test_large_images_are_encoded_in_tiles(place, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "SIDE", 3)
    pack = Latents(packed(place, tmp_path / "pack", "--latents", "sample", "--whole", 15, "--augment", "H"))
    whole, codec = Latents(place / "pack"), open_codec(str(place / "codec"))
    x = open_data("mine", "train", data_dir=str(place / "pairs")).get(1, None).source
    wanted = tiles.encoded_by(codec.encode, codec, turned(x, 1, 0)[None].numpy())[0]
    found = pack.turned(1, (1, 0)).source
    np.testing.assert_allclose(found[:4], wanted, atol=1e-5)
    assert (
        found.shape == (8, 4, 4) and (found[4:] > 0).all() and not torch.allclose(found, whole.turned(1, (1, 0)).source)
    )


def test_bf16_is_asked_for(place, tmp_path):
    found, exact = arrays(packed(place, tmp_path / "pack", "--precision", "bf16")), arrays(place / "pack")
    error = np.abs(found["target"] - exact["target"][:, :, :4]).mean() / np.abs(exact["target"][:, :, :4]).mean()
    assert 1e-4 < error < 0.05


def test_crops_at_random_are_said(place, tmp_path, capsys):
    said = "note: training cuts these pairs at random; their latents are those of one fixed crop each"
    packed(place, tmp_path / "a", "--fit", "crop", "--image_size", 8)
    assert said in capsys.readouterr().out
    packed(place, tmp_path / "b")
    assert said not in capsys.readouterr().out


def test_what_does_not_fit_is_refused(place, tmp_path):
    def mistaken(*words, more=(), out=None):
        refused(encode_dataset.main, flags(place, out or place / "pack", "--latents", "sample", *more), *words)

    written(autoencoder("plain", "none", model_channels=16), tmp_path / "codec")
    paint(tmp_path / "pairs", count=4)
    before = (place / "pack" / "latents.json").read_bytes()
    held = (place / "pack", "holds latents by another codec, of other data or with other settings", "another --out")
    mistaken(*held, "codec: ", more=["--codec", tmp_path / "codec"])
    mistaken(*held, "train_pairs: 5 -> 4", more=["--data_dir", tmp_path / "pairs"])
    mistaken(*held, "train_pairs: 5 -> 1", more=["--split", "val"])
    mistaken(*held, "(group: D4 -> H)", more=["--augment", "H"])
    mistaken(*held, "(latents: sample -> mode)", more=["--latents", "mode"])
    mistaken(*held, "(precision: fp32 -> bf16)", more=["--precision", "bf16"])
    mistaken(*held, "(whole: 1024 -> 8)", more=["--whole", 8])
    mistaken(*held, "height: 16 -> 12", more=["--image_size", 12])
    mistaken(*held, "(source_white: 0.0 -> 200.0; train_source_mean: ", more=["--source_white", 200])
    assert (place / "pack" / "latents.json").read_bytes() == before
    new = tmp_path / "new"
    mistaken("16x18 cannot be cut into latent pixels of 4x4: use --image_size 16x16", more=["--image_size", "16x18",
             "--augment", "H"], out=new)  # fmt: skip
    mistaken("group D4 turns images by 90 degrees", more=["--image_size", "16x8"], out=new)
    mistaken("pixels makes no latents", more=["--codec", "pixels"], out=new)
    mistaken("--codec", "--out", "are needed", more=["--codec", ""], out=new)
    mistaken("gs://bucket/pack must be a folder of this machine", out="gs://bucket/pack")
    assert not new.exists()
    mistaken(place / "codec", "holds something else already, such as checkpoints", out=place / "codec")


def test_a_full_disk_is_said(place, tmp_path, monkeypatch):
    def begin(*args):
        pack = own(*args)
        (tmp_path / "pack" / "source.npy").unlink()
        (tmp_path / "pack" / "source.npy").symlink_to("/dev/full")
        return pack

    own = encode_dataset.begin
    monkeypatch.setattr(encode_dataset, "begin", begin)
    with one_line("cannot write", "source.npy: No space left on device", kind=OSError):
        packed(place, tmp_path / "pack")


# ---------------------------------------------------------------------------------------------------------- training


def trained(place, run, *more, steps=3, augment="D4"):
    own = ["--dataset", "mine", "--data_dir", place / "pairs", "--codec", place / "codec", "--run_dir", run]
    assert train.main([*RUN, *map(str, (*own, "--augment", augment, "--total_steps", steps, *more))]) == 0
    return run


def losses(run):
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record.get("loss", record.get("val_loss")) for record in records]


@pytest.mark.parametrize(("latents", "augment"), [("mode", "D4"), ("sample", "C2")])
def test_training_on_them_is_training_on_the_images(place, tmp_path, monkeypatch, latents, augment):
    """For a codec that does not commute. The encoder is called for validation alone."""
    how = {"augment": augment}
    images = trained(place, tmp_path / "images", "--latents", latents, **how)
    own, validating = Codec.distribution, []

    def distribution(codec, x):
        assert not isinstance(codec, Symmetric) or validating
        return own(codec, x)

    def validation_loss(trainer, batches):
        validating.append(1)
        found = validate(trainer, batches)
        validating.clear()
        return found

    validate = Trainer.validation_loss
    monkeypatch.setattr(Codec, "distribution", distribution)
    monkeypatch.setattr(Trainer, "validation_loss", validation_loss)
    more = ("--packed", place / "pack", "--latents", latents)
    run = trained(place, tmp_path / "packed", *more, **how)
    assert losses(run) == pytest.approx(losses(images), rel=1e-5) and len(losses(run)) == 4
    headers = [checkpoint.read_header(checkpoint.latest(folder, print)) for folder in (run, images)]
    assert headers[0]["codec"] == headers[1]["codec"]
    for name in ("shift", "scale"):
        assert headers[0][name] == pytest.approx(headers[1][name], rel=1e-5, abs=1e-5)


def test_runs_are_resumed_exactly_and_may_go_on_with_the_images(place, tmp_path, capsys):
    pack = ("--packed", place / "pack")
    whole, run = trained(place, tmp_path / "whole", *pack), trained(place, tmp_path / "run", *pack, steps=2)
    assert "latents 4x4x4 encoded before" in capsys.readouterr().out
    trained(place, run, *pack)
    newest = [contents(checkpoint.latest(folder, print))[0]["model"] for folder in (whole, run)]
    assert all(torch.equal(newest[0][name], value) for name, value in newest[1].items())
    capsys.readouterr()
    trained(place, run, steps=4)
    assert f"packed: {place / 'pack'} -> \n" in capsys.readouterr().out


def test_latents_of_something_else_are_refused(place, tmp_path):
    def mistaken(*words, more=(), pack=place / "pack"):
        own = ["--dataset", "mine", "--data_dir", place / "pairs", "--codec", place / "codec", "--augment", "D4"]
        run = ["--packed", pack, "--run_dir", tmp_path / "run", "--total_steps", 1]
        refused(train.main, [*RUN, *own, *run, *more], *words)
        assert not (tmp_path / "run").exists()

    written(autoencoder("plain", "none", model_channels=16), tmp_path / "codec")
    paint(tmp_path / "pairs", count=4)
    other = ("is of another codec or other pairs", "scripts.encode_dataset")
    mistaken(*other, "codec: ", more=["--codec", tmp_path / "codec"])
    mistaken(*other, "train_pairs: 5 -> 4", more=["--data_dir", tmp_path / "pairs"])
    mistaken(*other, "image_size: native -> 8", "height: 16 -> 8", more=["--image_size", 8])
    mistaken(*other, "(target_resize: bilinear -> nearest)", more=["--target_resize", "nearest"])
    mistaken("--codec pixels knows none", more=["--codec", "pixels"])
    mistaken("holds no latents", "scripts.encode_dataset makes them", pack=tmp_path / "nowhere")
    small = packed(place, tmp_path / "small", "--augment", "H")
    mistaken(f"--augment D4 needs copies that --packed {small} lacks", pack=small)
    mistaken("--latents sample", small, "the most likely ones alone", more=["--augment", "H", "--latents", "sample"],
             pack=small)  # fmt: skip
