"""Pairs made as stated, scores step by step, which layers can tell left from right, and a run to its end in small."""

import gzip
import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import orientation, study
from datasets import open_data
from ddbm.config import Config, ImageShape, ModelConfig
from ddbm.model import BridgeModel
from ddbm.symmetry.averaging import equivariance_error
from ddbm.symmetry.groups import GROUPS
from ddbm.symmetry.pairs import Batch
from scripts import train

TURNED = [lambda x, f=f, k=k: np.rot90(x[:, :, ::-1] if f else x, k, (1, 2)) for f in (0, 1) for k in range(4)][1:]


def lost(source, target):
    """Which pixels differ, whether to white; the others are as they were."""
    changed = (source != target).any(-1)
    assert set(np.unique(source[changed])) == {0, 255} and np.ptp(source[changed], axis=-1).max() == 0
    return changed, source[..., 0] == 255


def test_patches_of_the_parts_share_no_pixel():
    """On a picture whose colours say where they lie."""
    y, x = np.indices((512, 512))
    parts = orientation.patches(np.stack([y % 256, x % 256, 64 + y // 256 * 2 + x // 256], -1).astype(np.uint8))
    held = {part: np.zeros((512, 512), int) for part in parts}
    noise = {}
    for part, (sources, targets) in parts.items():
        for target in targets:
            code = target.astype(int)
            rows, columns = code[..., 0] + (code[..., 2] - 64) // 2 * 256, code[..., 1] + code[..., 2] % 2 * 256
            assert np.array_equal(rows - rows[0, 0], y[:32, :32]) and np.array_equal(
                columns - columns[0, 0], x[:32, :32]
            )
            held[part][rows, columns] += 1
        noise[part] = lost(sources, targets)
    assert not (held["train"] * held["val"]).any() and held["train"].max() == 16  # a pixel lies in (32 / 8)² patches
    assert (held["train"] > 0).sum() == 10 * 128**2 and np.array_equal(held["val"][256:, 256:], np.ones((256, 256)))
    changed, white = noise["val"]
    assert abs(changed.mean() - 0.5) < 4 * 0.5 / 256 and abs(white[changed].mean() - 0.5) < 4 * 0.5 / 180


def write_digits(folder, images, magic=2051):
    folder.mkdir(exist_ok=True)
    with gzip.open(folder / orientation.DIGITS, "wb") as file:
        file.write(struct.pack(">4i", magic, *images.shape) + images.tobytes())


def test_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(orientation, "HELD", 5)
    images = np.random.default_rng(0).integers(1, 255, (40, 28, 28), np.uint8)
    write_digits(tmp_path, images)
    parts = orientation.digits(str(tmp_path))
    for part, own in (("val", images[:5]), ("train", images[5:])):
        source, target = parts[part]
        assert source.shape == target.shape == (len(own), 32, 32, 1) and target.sum() == own.sum(dtype=int)
        assert np.array_equal(target[:, 2:30, 2:30, 0], own)
    changed, white = lost(*(side[:, 2:30, 2:30] for side in parts["train"]))
    assert abs(changed.mean() - 0.5) < 0.02 and abs(white[changed].mean() - 0.5) < 0.02
    assert (changed[0] != changed[1]).mean() > 0.4  # every digit has noise of its own


def outward(image, middle, radius, turn):
    """Brightness on the way from the middle outward, turning left (1) or right (-1); the best of many directions."""
    way = np.linspace(1, radius / orientation.PITCH * 2 * np.pi, 60)
    angles = np.linspace(0, 2 * np.pi, 48)[:, None] + turn * way
    r = orientation.PITCH * way / (2 * np.pi)
    rows, columns = middle[0] - r * np.sin(angles), middle[1] + r * np.cos(angles)
    return image[np.rint(rows).astype(int).clip(0, 15), np.rint(columns).astype(int).clip(0, 15)].mean(1).max()


def test_a_mirror_changes_the_sense_of_spirals_and_a_turn_does_not(monkeypatch):
    """The target says of every spiral what walking along it finds, and the opposite of what a mirror shows."""
    monkeypatch.setattr(orientation, "SPIRALS", {"train": 3, "val": 12})
    parts = orientation.spirals("")
    assert len(parts["train"][0]) == 3 and not np.array_equal(parts["train"][0], parts["val"][0][:3])
    seen, pictures = [], [side[..., 0] for side in parts["val"]]
    ways = [
        (1, lambda x: x),
        (1, lambda x: np.rot90(x, 1, (1, 2))),
        (-1, lambda x: x[:, ::-1]),
        (-1, lambda x: x[:, :, ::-1]),
    ]
    for sign, move in ways:
        sources, targets = map(move, pictures)
        for source, target in zip(sources, targets, strict=True):
            for y, x in ((0, 0), (0, 16), (16, 0), (16, 16)):
                image, disc = (side[y : y + 16, x : x + 16] for side in (source, target))
                inside = disc != 128
                assert len(np.unique(disc[inside])) == 1 and not image[~inside].any()
                radius = (inside.sum() / np.pi) ** 0.5
                assert 4.5 < radius < 7.5
                left = np.subtract(*(outward(image, np.argwhere(inside).mean(0), radius, turn) for turn in (1, -1)))
                seen.append(sign * (1 if disc[inside][0] == 255 else -1))
                assert left * seen[-1] > 0
    assert 0.25 < np.mean(np.array(seen[:48]) > 0) < 0.75


def batch_of(source, target):
    return Batch(*(torch.from_numpy(side) for side in (target, source)), torch.arange(len(source)), None, None)


def test_turned_scores_step_by_step():
    source, target = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16)).astype(np.float32) / 127.5 - 1
    ramp = np.linspace(0, 1, 16, dtype=np.float32)
    found = orientation.quality(lambda x: x * torch.from_numpy(ramp), batch_of(source[:, None], target[:, None]))
    errors = [
        (np.rint((move(source) * ramp + 1) * 127.5) - np.rint((move(target) + 1) * 127.5)) / 255 for move in TURNED
    ]
    upright = (np.rint((source * ramp + 1) * 127.5) - np.rint((target + 1) * 127.5)) / 255
    mse = np.square(errors).mean((2, 3))
    assert found["mse, turned"] == pytest.approx(mse.mean()) and mse.shape == (7, 3)
    assert found["psnr, turned"] == pytest.approx((-10 * np.log10(mse)).mean())
    assert found["mse, upright"] == pytest.approx(np.square(upright).mean())
    assert found["mse, upright"] != pytest.approx(mse.mean(), rel=1e-3)
    assert list(found) == sorted(orientation.FORMS, key=lambda name: name.endswith("turned"))


def test_senses_are_counted_spiral_by_spiral():
    target = np.full((2, 1, 32, 32), 0.004, np.float32)
    for row, column, sign in ((5, 9, 1), (8, 22, -1), (24, 7, -1), (23, 25, 1)):
        target[..., row - 4 : row + 4, column - 4 : column + 4] = sign
    answer = 0.1 * target + 0.02
    answer[1, 0, 1:9, 5:13] = -0.1  # one of eight is wrong
    answer[0, 0, 4:7, 20:23] = 1.0  # some of another's pixels, which are outweighed
    answer[0, 0, 4:12, 18:26][answer[0, 0, 4:12, 18:26] < 0] = -0.5
    found = orientation.senses(lambda x: torch.from_numpy(answer), batch_of(target, target))
    assert found["share right"] == 7 / 8
    squares = np.square(np.rint((answer + 1) * 127.5) - np.rint((target + 1) * 127.5)).mean() / 255**2
    assert found["mse"] == pytest.approx(squares)


def test_moments():
    source, target = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 8, 1)).astype(np.uint8)
    target = target // 4 + source // 4
    x, y = (side.astype(float) / 127.5 - 1 for side in (source, target))
    deviation, common = ((x.var() + y.var()) / 2) ** 0.5, (x * y).mean() - x.mean() * y.mean()
    _, sigma_data, _, cov_xy = orientation.moments(source, target)
    assert float(sigma_data) == pytest.approx(deviation, rel=0.01) and float(cov_xy) == pytest.approx(common, rel=0.01)


@pytest.mark.parametrize(("layers", "mirrors"), [("tied", True), ("regular", False)])
def test_tied_quarter_turns_are_blind_to_mirrors(layers, mirrors):
    """A 3x3 kernel that quarter turns leave alone is its own mirror image: tied C4 is D4. Regular C4 is C4 alone."""
    torch.manual_seed(0)
    settings = ModelConfig(
        model_channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,), num_head_channels=16,
        dropout=0, layers=layers, group="C4",
    )  # fmt: skip
    network = BridgeModel(Config(model=settings), ImageShape(1, 1, 16, 16, 0)).network.eval()
    for weights in network.parameters():
        nn.init.normal_(weights, std=0.3)
    with torch.no_grad():
        images = torch.randn(2, 1, 16, 16)
        errors = equivariance_error(lambda x: network(x, torch.zeros(2), x), images, GROUPS["D4"])
    for (flip, _), error in errors.items():
        assert error.max() < 1e-5 if mirrors or not flip else error.min() > 1e-3


@pytest.fixture
def small(monkeypatch):
    """Networks of a few channels, a few pairs, and a list of the trainings that were begun."""
    tiny = "--model_channels 8 --channel_mult 1,2 --num_head_channels 8 --batch_size 2 --device cpu"
    monkeypatch.setattr(orientation, "COMMON", f"{orientation.COMMON} {tiny}")
    monkeypatch.setattr(orientation, "HELD", 4)
    monkeypatch.setattr(orientation, "SPIRALS", {"train": 4, "val": 2})
    monkeypatch.setattr(orientation, "NFE", 2)
    monkeypatch.setattr(study, "ROUNDS", 1)
    begun, own = [], train.main
    monkeypatch.setattr(study.train, "main", lambda argv: begun.append(argv) or own(argv))
    return begun


def rows_of(text):
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_a_study_of_digits_in_small(tmp_path, small, capsys):
    """Ways that are exact score turned pairs as upright ones; the same command again trains no more."""
    write_digits(tmp_path / "mnist", np.random.default_rng(0).integers(0, 256, (9, 28, 28), np.uint8))
    out = tmp_path / "out" / "digits"
    argv = ["digits", "--minutes", "0.001", "--seeds", "1", "--mnist", f"{tmp_path}/mnist", "--out", f"{out.parent}"]
    assert orientation.main(argv) == 0 and len(small) == 3
    head, *rows = rows_of(first := capsys.readouterr().out)
    assert head == ["arm", "steps", *orientation.FORMS]
    names = ["plain", "plain + canonical", "plain + average", "tied D4", "regular D4"]
    assert [row[0] for row in rows] == names
    for name, own in json.loads((out / "study.json").read_text())["results"].items():
        config = train.parse([*own["flags"], "--run_dir", "run"])[0]
        assert config.train.augment == "none" and config.bridge.cov_xy > 0 and config.data.data_dir == f"{out}/pairs"
        assert f"{config.model.layers} {config.model.group}".removesuffix(" none") == name
        for scores in own["seeds"]:
            exact = {key.partition(", psnr, upright")[0] for key in scores if key.endswith("psnr, upright")}
            assert exact == ({"none", "canonical", "average"} if name == "plain" else {"none"})
            for way in exact:
                upright, turned = (scores[f"{way}, psnr, {side}"] for side in ("upright", "turned"))
                assert (abs(upright - turned) < 0.002) == (name != "plain" or way != "none")
    with Image.open(out / "orientation.png") as figure:
        assert figure.size == (1350, 450)
    held = orientation.digits(argv[6])["val"]
    data = open_data("digits", "val", data_dir=str(out / "pairs"), image_size="32")
    for index in range(4):
        item = data.get(index, None)
        for side, image in zip(held, (item.source, item.target), strict=True):
            assert np.array_equal(side[index, ..., 0], ((image[0] + 1) * 127.5).round().numpy())
    for arm in names[:1] + names[3:]:
        source, answer, truth = np.load(out / f"{arm}.npy")
        assert answer.shape == (2, 32, 32, 1)
        for side, images in zip(held, (source, truth), strict=True):
            assert np.array_equal(np.rot90(side[::2], 1, (1, 2)), images)
    (out / "orientation.png").unlink()
    assert orientation.main(argv) == 0 and len(small) == 3 and (out / "orientation.png").exists()
    assert rows_of(capsys.readouterr().out) == rows_of(first)


def test_a_study_of_spirals_in_small(tmp_path, small, capsys):
    assert orientation.main(["spirals", "--minutes", "0.001", "--seeds", "1", "--out", str(tmp_path)]) == 0
    head, *rows = rows_of(capsys.readouterr().out)
    assert head == ["arm", "steps", "share right", "mse"] and (tmp_path / "spirals" / "orientation.png").exists()
    assert [row[0] for row in rows] == ["plain", "tied C4", "tied D4", "regular C4", "regular D4"]
    assert all(0 <= float(row[2]) <= 1 for row in rows)


def test_refusals(tmp_path):
    write_digits(tmp_path, np.zeros((1, 28, 28), np.uint8), magic=2049)
    cases = [(["spiral"], "did you mean spirals"), (["digits"], orientation.DIGITS)]
    cases.append((["digits", "--mnist", str(tmp_path)], "no IDX file of images"))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / orientation.DIGITS).write_bytes((tmp_path / orientation.DIGITS).read_bytes()[:30])
    cases.append((["digits", "--mnist", f"{tmp_path}/cut"], "no IDX file of images"))
    for argv, text in cases:
        with pytest.raises(ValueError, match=text) as error:
            orientation.main([*argv, "--out", str(tmp_path / "out")])
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
