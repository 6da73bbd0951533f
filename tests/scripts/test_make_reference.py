"""A reference holds the targets, their order, statistics and where all that comes from; the evaluator takes it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import open_data
from ddbm.symmetry.groups import GROUPS, act
from evaluations.evaluator import evaluate
from evaluations.images import load_images, order_digest, to_bytes
from evaluations.references import load_reference
from scripts.make_reference import main


@pytest.fixture(autouse=True)
def no_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("DDBM_CACHE", "none")
    monkeypatch.delenv("DDBM_WEIGHTS", raising=False)


@pytest.fixture
def folder(tmp_path):
    """Eleven pairs of 12 x 12 px in a folder of tests."""
    random = np.random.default_rng(0)
    for side in ("source", "target"):
        (tmp_path / "pairs" / "test" / side).mkdir(parents=True)
        for n in range(11):
            image = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            image.save(tmp_path / "pairs" / "test" / side / f"{n:02}.png")
    return tmp_path / "pairs"


def arguments(folder, out, *more):
    return ["--dataset", "mine", "--data_dir", str(folder), "--batch_size", "4", *more, str(out)]


def test_targets_order_statistics_and_provenance(folder, tmp_path, capsys):
    out = tmp_path / "r.npz"
    assert main(arguments(folder, out)) == 0
    shown = capsys.readouterr().out
    assert "11 images of 12 x 12 px, 3 channel(s); statistics of raw" in shown and "no statistics of inception" in shown
    data = open_data("mine", "test", data_dir=str(folder))
    targets = to_bytes(torch.stack([data.get(n, None).target for n in range(11)]))
    images = load_images(out)
    np.testing.assert_array_equal(np.load(out)["arr_0"], targets)
    assert "mask" not in np.load(out)
    assert images.order == order_digest(data.names) and len(images.order) == 64

    reference = load_reference(out)
    assert reference.provenance["dataset"] == "mine" and reference.provenance["n"] == 11
    assert reference.provenance["data"]["data_dir"] == "pairs"  # no path of this machine
    assert str(tmp_path) not in json.dumps(reference.provenance)
    sample = np.random.default_rng(1).integers(0, 256, targets.shape, dtype=np.uint8)
    stored = evaluate(reference, sample, ["mse", "fd_raw"])
    direct = evaluate(targets, sample, ["mse", "fd_raw"])
    for name in ("mse", "fd_raw"):
        assert stored["metrics"][name]["mean"] == pytest.approx(direct["metrics"][name]["mean"], rel=1e-9)
        assert stored["metrics"][name]["n_reference"] == 11
    assert not any("nobody says" in note or "computed again" in note for note in stored["notes"])
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("group", ["H", "D4"])
def test_a_group_brings_every_turned_copy(folder, tmp_path, group):
    """And the Fréchet distance to it is the one against the augmented reference."""
    plain, out = tmp_path / "r.npz", tmp_path / "g.npz"
    assert main(arguments(folder, plain)) == 0
    assert main(arguments(folder, out, "--group", group, "--statistics", "raw")) == 0
    targets = torch.from_numpy(np.load(plain)["arr_0"]).permute(0, 3, 1, 2)
    turned = torch.stack([act(g, targets) for g in GROUPS[group].elements], 1).flatten(0, 1).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(np.load(out)["arr_0"], turned.numpy())
    assert load_images(out).order != load_images(plain).order
    sample = np.random.default_rng(1).integers(0, 256, targets.permute(0, 2, 3, 1).shape, dtype=np.uint8)
    found = evaluate(load_reference(out), sample, ["fd_raw"])["metrics"]["fd_raw"]
    name = "fd_raw_augmented"
    expected = evaluate(load_reference(plain), sample, [name], group=group)["metrics"][name]
    assert found["mean"] == pytest.approx(expected["mean"], rel=1e-6)
    assert found["n_reference"] == expected["n_reference"] == 11 * len(GROUPS[group])


def test_what_the_source_alone_does_not_define(folder, tmp_path):
    """Is written as a mask, and mid-grey in the other set: the folder against its reference is identical."""
    image = Image.open(folder / "test" / "source" / "03.png")
    image.putalpha(Image.fromarray(np.where(np.arange(144).reshape(12, 12) % 12 < 5, 0, 255).astype(np.uint8)))
    image.save(folder / "test" / "source" / "03.png")
    for group in ("none", "H"):
        assert main(arguments(folder, tmp_path / f"{group}.npz", "--group", group, "--statistics", "raw")) == 0
    expected = np.ones((22, 12, 12, 1), bool)
    expected[6, :, :5], expected[7, :, 7:] = False, False
    np.testing.assert_array_equal(np.load(tmp_path / "H.npz")["mask"], expected)
    sides = [load_images(folder / "test" / "target"), load_images(tmp_path / "none.npz")]
    for one, other in (sides, sides[::-1], (sides[1], sides[1])):
        found = evaluate(one, other, ["mse"], batch_size=3)
        assert found["metrics"]["mse"]["mean"] == 0
        assert "1 pair(s) are measured inside their masks alone" in found["notes"][0]


def test_histology_by_default(tmp_path):
    assert main(["--image_size", "32", "--split", "val", str(tmp_path / "h.npz")]) == 0
    assert load_images(tmp_path / "h.npz").shape == (64, 32, 32, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--group", "D3"], "unknown group 'D3'"),
        (["--statistics", "clip"], "unknown extractor 'clip': known are inception, dinov2, raw"),
        (["--statistics", "inception"], "weights .* not found"),
        (["--weights", "nowhere"], "--weights nowhere: no such file or folder"),
        (["--split", "tset"], "tset"),
        (["--image_size", "12x8", "--group", "C4"], "needs square ones, not 12x8"),
    ],
    ids=str,
)
def test_refuses(folder, tmp_path, words, message, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        main(arguments(folder, tmp_path / "r.npz", *words))
    assert not (tmp_path / "r.npz").exists()


def test_refuses_a_place_that_is_none(folder, tmp_path):
    for out in (tmp_path / "r.txt", tmp_path / "none" / "r.npz"):
        with pytest.raises(ValueError, match=r"name an \.npz file in a directory that exists"):
            main(arguments(folder, out))
