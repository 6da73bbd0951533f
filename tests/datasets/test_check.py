"""`datasets.check` finds every fault that is made, names its files, and is silent where there is none."""

import re
import shlex
import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image

from datasets.check import page as page_module
from datasets.check.__main__ import CheckConfig, main
from datasets.check.looks import look
from datasets.layouts import Pair
from datasets.sizes import proposed
from ddbm.config import DataConfig
from ddbm.settings import from_flags
from tests.datasets.test_measures import SIDE, texture

KINDS = {
    "unmatched",
    "unreadable",
    "uneven",
    "range",
    "empty mask",
    "small",
    "duplicate",
    "leak",
    "shift",
    "turned",
    "swapped",
}


def pair_of(seed):
    """Source and target: one darker and inverted, the other in colour."""
    target = texture(seed)
    noise = np.random.default_rng((seed, 1)).normal(0, 8, target.shape)
    source = np.clip(220 - 0.7 * target + noise, 0, 255).astype(np.uint8)
    return source, np.stack([target, 255 - target, target // 2], -1)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    root = tmp_path_factory.mktemp("clean")
    for part, count, first in (("train", 16, 0), ("test", 6, 100)):
        for side in ("source", "target"):
            (root / part / side).mkdir(parents=True)
        for n in range(count):
            for side, image in zip(("source", "target"), pair_of(first + n), strict=True):
                Image.fromarray(image).save(root / part / side / f"{n:02}.png")
    return root


@pytest.fixture
def pairs(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "my pairs")


def checked(root, capsys, *flags):
    """Status, kinds of faults, and everything printed."""
    status = main([str(root), "--out", str(root.parent / "check.html"), *flags])
    printed = capsys.readouterr().out
    return status, {word for word in re.findall(r"^([a-z ]+): ", printed, re.M) if word in KINDS}, printed


def change(path, change):
    Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def test_clean_pairs_raise_no_alarm(pairs, capsys):
    status, kinds, printed = checked(pairs, capsys)
    assert (status, kinds) == (0, set()) and "nothing is wrong" in printed
    assert re.search(r"train +16 +64x64 +1 x uint8, .* 3 x uint8", printed) and "\ntest  6" in printed
    assert "orientations: they look alike under D4" in printed
    page = (pairs.parent / "check.html").read_text()
    assert "Nothing is wrong." in page and page.count("<figure>") == 22 and "<svg" in page
    assert not re.search(r"(src|href)=.http", page)  # nothing is fetched


def test_the_command_starts_a_training_of_these_pairs(pairs, capsys):
    from ddbm.config import Config

    flags = ["--source_white", "200", "--dataset", "tissue"]
    *_, printed = checked(pairs, capsys, *flags)
    place, *words = shlex.split(printed.split("train by: ")[1])
    assert place == f"DATA_DIR={pairs}" and words[:4] == ["bash", "train_ddbm.sh", "tissue", "i2sb"]
    config, _ = from_flags(Config, words[4:])
    assert (config.data.source_white, config.data.image_size) == (200, "64")
    assert (config.model.layers, config.model.group, config.train.augment) == ("tied", "D4", "D4")


@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        ({(480, 640)}, "256x320"), ({(640, 480)}, "320x256"), ({(256, 257)}, "256"), ({(100, 900)}, "96x896"),
        ({(480, 640), (500, 500)}, "256"), ({(64, 64)}, "64"), ({(31, 99)}, "32x96"), ({(28, 28)}, "32"),
        ({(48, 64)}, "48x64"), ({(40, 36)}, "40x32"), ({(100, 100)}, "96"), ({(28, 60), (64, 64)}, "32"),
    ],
)  # fmt: skip
def test_the_proposed_size_has_the_shape_of_the_pairs(sizes, size):
    assert proposed(sizes) == size


def test_equal_labels_are_no_fault(pairs, capsys):
    """Masks without a finding, and those of one shape, are alike in many pairs."""
    for path in pairs.rglob("target/*.png"):
        Image.fromarray(np.where(texture(7) > 128, 255, 0).astype(np.uint8)).save(path)
    assert checked(pairs, capsys)[:2] == (0, set())
    duplicate(pairs)
    for side in ("source", "target"):
        shutil.copy(pairs / f"train/{side}/05.png", pairs / f"test/{side}/02.png")
    status, kinds, printed = checked(pairs, capsys)
    assert (status, kinds) == (1, {"duplicate", "leak"})
    for name in ("source", "target"):
        assert f"1 {name}(s) are the same" in printed and f"1 {name}(s) lie in two splits" in printed


def test_a_leak_of_whole_pairs_with_constant_targets(pairs, capsys):
    """Source of two values, targets of one: both sides are equal, though nothing correlates."""
    for path in pairs.rglob("*/*/*.png"):
        image = np.asarray(Image.open(path))
        flat = (
            np.full_like(image, 100) if path.parent.name == "target" else np.where(image > 128, 255, 0).astype(np.uint8)
        )
        Image.fromarray(flat).save(path)
    shutil.copy(pairs / "train/source/03.png", pairs / "test/source/01.png")
    _, kinds, printed = checked(pairs, capsys)
    assert "leak" in kinds and "1 source(s) lie in two splits: 01 (test) and 03 (train)" in printed


def test_histograms_run_from_black_to_white(tmp_path):
    values = np.linspace(-1000, 3000, 64, dtype=np.float32).reshape(8, 8)
    for side in ("source", "target"):
        (tmp_path / side).mkdir()
        tifffile.imwrite(tmp_path / side / "a.tif", values)
    options = DataConfig(
        "x", source_black=-1000, source_white=3000, target_black=-1000, target_white=1000, layout="two_folders"
    )
    pair = Pair("a", tmp_path / "source/a.tif", tmp_path / "target/a.tif", "")
    source, target = look(pair, "train", "two_folders", options).sides
    assert (source.histogram == 1).all()
    assert target.histogram.sum() == 64 and target.histogram[-1] > 31 and target.histogram[:32].sum() == 16


def leak(root):
    """The same picture, stored anew with losses."""
    image = Image.open(root / "train/target/03.png")
    image.save(root / "test/target/02.jpg", quality=90)
    (root / "test/target/02.png").unlink()
    return "leak", r"1 target\(s\) lie in two splits: 02 \(test\) and 03 \(train\)"


def duplicate(root):
    shutil.copy(root / "train/source/03.png", root / "train/source/09.png")
    shutil.copy(root / "train/target/03.png", root / "train/target/09.png")
    return "duplicate", r"1 source\(s\) are the same as another of train: 03 and 09"


def shift(root):
    change(root / "train/target/05.png", lambda image: np.roll(image, (3, -2), (0, 1)))
    change(root / "train/target/09.png", lambda image: np.roll(image, -2, 1))
    change(root / "train/target/12.png", lambda image: np.roll(image, 1, 0))
    said = "05 by 3 rows and -2 columns; register them anew, or see --align_tolerance 3"
    return "shift", rf"2 target\(s\) lie off their sources: {said}"


def swapped(root):
    a, b = (root / f"train/target/{n}.png" for n in ("04", "11"))
    a.rename(root / "other.png"), b.rename(a), (root / "other.png").rename(b)
    return "swapped", r"1 time\(s\) two pairs seem to have exchanged their targets: (04 and 11|11 and 04)"


def turned(root):
    change(root / "train/source/07.png", lambda image: np.rot90(image, -1))
    return "turned", r"1 source\(s\) fit their targets better after a quarter turn left: 07"


def twelve_bits(root):
    for part in ("train", "test"):
        for path in (root / part / "source").iterdir():
            tifffile.imwrite(path.with_suffix(".tif"), np.asarray(Image.open(path)).astype(np.uint16) * 16)
            path.unlink()
    return "range", r"sources hold no value above \d+ of 65535 \(22 looked at\): .*train with --source_white 4095"


def nothing_in_it(root):
    (root / "train/source/02.png").write_bytes(b"")
    return "unreadable", r"1 pair\(s\) cannot be read: .*train/source/02\.png: cannot be read"


def alone(root):
    (root / "train/target/02.png").unlink()
    return "unmatched", r"1 file\(s\) have no partner: .*train/source/02\.png"


def grey_among_colours(root):
    change(root / "train/target/02.png", lambda image: image[..., 0])
    return "uneven", r"1 target\(s\) have another channels than the others, 3: .*02\.png has 1"


FAULTS = [leak, duplicate, shift, swapped, turned, twelve_bits, nothing_in_it, alone, grey_among_colours]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_fault_is_found_and_no_other(pairs, capsys, fault, monkeypatch):
    monkeypatch.setattr(page_module, "_charts", lambda looks: "")  # which take long to draw
    kind, text = fault(pairs)
    status, kinds, printed = checked(pairs, capsys)
    assert status == 1 and kinds == {kind} and re.search(f"^{kind}: {text}", printed, re.M)
    assert ("--source_white 4095 " in printed.split("train by: ")[1]) == (kind == "range")
    page = (pairs.parent / "check.html").read_text()
    assert f">{kind}</h2>" in page and "Nothing is wrong." not in page


def test_masks_that_hide_everything_and_processes(pairs, capsys):
    for part in ("train", "test"):
        (pairs / part / "mask").mkdir()
        for path in (pairs / part / "source").iterdir():
            seen = np.full((SIDE, SIDE), 0 if path.stem == "01" and part == "test" else 255, np.uint8)
            Image.fromarray(seen).save(pairs / part / "mask" / path.name)
    status, kinds, printed = checked(pairs, capsys, "--mask_folder", "mask")
    assert (status, kinds) == (1, {"empty mask"}) and "1 pair(s) are hidden whole by their masks: 01" in printed


def test_pairs_side_by_side_without_splits(tmp_path, capsys):
    (tmp_path / "pairs").mkdir()
    for n in range(12):
        source, target = pair_of(n)
        source = np.stack([source] * 3, -1)
        Image.fromarray(np.concatenate([source, target], 1)).save(tmp_path / "pairs" / f"{n:02}.png")
    status, kinds, printed = checked(tmp_path / "pairs", capsys, "--workers", "1")
    assert (status, kinds) == (0, set()) and "every 10th, or the last" in printed and "train  11  64x64" in printed


def test_values_that_a_training_refuses(tmp_path, capsys):
    for n in range(10):
        for side in ("source", "target"):
            (tmp_path / f"pairs/{side}").mkdir(parents=True, exist_ok=True)
            image = texture(n).astype(np.float32) / (1 if n == 3 else 255)
            tifffile.imwrite(tmp_path / f"pairs/{side}/{n}.tif", image)
    tifffile.imwrite(tmp_path / "pairs/target/5.tif", np.full((SIDE, SIDE), np.nan, np.float32))
    status, kinds, printed = checked(tmp_path / "pairs", capsys)
    assert status == 1 and "unreadable" in kinds and "2 pair(s) cannot be read" in printed
    assert "3.tif: pixels lie in" in printed
    status, kinds, printed = checked(tmp_path / "pairs", capsys, "--source_white", "255", "--target_white", "255")
    assert "1 pair(s) cannot be read" in printed and "5.tif: holds NaN or infinite pixels" in printed


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "nowhere does not exist"),
        (["--out", "a.png"], "expected the name of an HTML file"),
        (["--fitt", "crop"], "unknown flag"),
    ],
)
def test_mistakes(pairs, flags, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        main([*([str(pairs)] if flags else ["nowhere"]), *flags])
    assert CheckConfig().out == "check.html"


def test_where_all_targets_lie_off_the_median_is_said(pairs, capsys):
    for path in pairs.rglob("target/*.png"):
        change(path, lambda image: np.roll(image, (0, 3), (0, 1)))
    _, kinds, printed = checked(pairs, capsys)
    assert (
        kinds == {"shift"}
        and "in the median by 0 rows and 3 columns; register them anew, or see --align_tolerance 3" in printed
    )


def test_pictures_of_the_page_are_as_training_sees_them():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    assert (page_module._picture(pixels, 0, 0) == pixels[..., :3]).all()
    assert (page_module._picture(pixels[..., :2], 0, 0) == pixels[..., :1]).all()
    deep = (pixels[..., :1].astype(np.uint16) + 300) * 10
    assert (page_module._picture(deep, 5550, 3000) == pixels[..., :1]).all()


@pytest.mark.parametrize("own", [0.3, 0.12, 0.08])
def test_what_is_alike_by_nature_is_no_leak(tmp_path, capsys, own):
    """As heads and eyes are; the same picture is, in any two splits, stored anew with losses, too."""
    common = texture(0).astype(float)
    for part, count, first in (("train", 40, 0), ("val", 4, 100), ("test", 4, 200)):
        for n in range(count):
            for k, side in enumerate(("source", "target")):
                image = common + own * (texture(first + n + 1) - 128.0)
                (tmp_path / "pairs" / part / side).mkdir(parents=True, exist_ok=True)
                image = Image.fromarray((255 * k + (1 - 2 * k) * image.clip(0, 255)).astype(np.uint8))
                image.save(tmp_path / f"pairs/{part}/{side}/{n:02}.png")
    assert checked(tmp_path / "pairs", capsys)[:2] == (0, set())
    for part, other, name in (("val", "test", "03"), ("train", "test", "07"), ("train", "val", "11")):
        copy = tmp_path / f"pairs/{other}/target/02.png"
        kept = copy.read_bytes()
        Image.open(tmp_path / f"pairs/{part}/target/{name}.png").save(tmp_path / "stored.jpg", quality=90)
        Image.open(tmp_path / "stored.jpg").save(copy)
        _, kinds, printed = checked(tmp_path / "pairs", capsys)
        assert "leak" in kinds and f"1 target(s) lie in two splits: 02 ({other}) and {name} ({part})" in printed
        copy.write_bytes(kept)


def test_pairs_smaller_than_the_crop(pairs, capsys):
    for size, wrong in (("64x65", True), ("65x64", True), ("64", False), ("native", False)):
        status, kinds, printed = checked(pairs, capsys, "--image_size", size, "--fit", "crop")
        assert (status, kinds) == ((1, {"small"}) if wrong else (0, set()))
        assert (f"22 pair(s) are smaller than the crop {size}: 00 of 64x64; take a smaller" in printed) == wrong
    assert checked(pairs, capsys, "--image_size", "65")[:2] == (0, set())


def test_a_copy_within_train_hides_no_leak(pairs, capsys):
    for source, copy in (("train/target/03", "train/target/05"), ("train/target/07", "test/target/02")):
        Image.open(pairs / f"{source}.png").save(pairs / "stored.jpg", quality=75)
        Image.open(pairs / "stored.jpg").save(pairs / f"{copy}.png")
    (pairs / "stored.jpg").unlink()
    _, kinds, printed = checked(pairs, capsys)
    assert "leak" in kinds and "1 target(s) lie in two splits: 02 (test) and 07 (train)" in printed


def test_a_training_that_is_not_square_gets_no_quarter_turns(pairs, capsys):
    *_, printed = checked(pairs, capsys, "--image_size", "32x48")
    assert "--image_size 32x48 --layers tied --group D2 --augment D2" in printed
