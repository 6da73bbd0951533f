"""A folder of sources without targets, for a trained model: what counts as one, what is refused, and how it is read."""

import numpy as np
import pytest
import torch

from datasets import open_data
from ddbm.config import Config, DataConfig, Header, ImageShape

FOLDERS = {"source_folder": "x", "target_folder": "y"}
NORMALS = {"source_suffix": "_n"}
PHOTOS = {"target_suffix": "_t"}
RIGHT = {"source_half": "right"}


def trained(layout="two_folders", native=(8, 8), channels=3, **more):
    """What a model says of its pairs, which lay elsewhere."""
    return Header(Config(DataConfig("mine", "/elsewhere")), ImageShape(channels, 3, 8, 8, 0), 1, (), layout, native)


def put(make, root, *names, width=8):
    for seed, name in enumerate(names):
        make.write(root / name, make.noise(8, width, seed=seed))


def opened(root, like, split="auto", **options):
    return open_data("mine", split, like, sources=True, data_dir=str(root), **options)


@pytest.mark.parametrize(
    ("files", "layout", "split", "options", "names"),
    [
        ("source/b.png source/a/c.png", "two_folders", "auto", {}, "all: a/c b"),
        ("A/a.png", "two_folders", "auto", {}, "all: a"),
        ("A/a.png", "side_by_side", "auto", {}, "all: a"),
        ("A/a.png", "", "auto", {}, "all: a"),
        ("x/a.png", "two_folders", "auto", FOLDERS, "all: a"),
        ("B/a.png", "two_folders", "auto", RIGHT, "all: a"),
        ("source/a.png", "two_folders", "auto", RIGHT, "all: a"),
        ("A/a_n.png", "two_folders", "auto", NORMALS, "all: a"),
        ("a.png b/c.png", "two_folders", "auto", {}, "all: a b/c"),
        ("a.png", "", "auto", {}, "all: a"),
        ("a.png", "side_by_side", "auto", {}, "all: a"),
        ("s/a_n.png s/b_n.png", "suffix", "auto", NORMALS, "all: s/a s/b"),
        ("a.png b.png", "suffix", "auto", PHOTOS, "all: a b"),
        ("1_a_n.png 1_b_n.png 2_a_n.png 2_b_n.png", "suffix", "auto", NORMALS, "all: 1_a 1_b 2_a 2_b"),
        ("test/source/a.png train/source/b.png", "two_folders", "auto", {}, "test: a"),
        ("source/test/a.png source/train/b.png", "two_folders", "auto", {}, "test: a"),
        ("testA/a.png trainA/b.png", "two_folders", "auto", {}, "test: a"),
        ("Validation/a.png train/b.png", "two_folders", "auto", {}, "test: a"),
        ("val/a.png test/b.png", "two_folders", "val", {}, "val: a"),
        ("val/a.png train/b.png", "two_folders", "all", {}, "all: train/b val/a"),
        ("val/a.png train/b.png", "two_folders", "train", {}, "train: b"),
        ("train/a.png train/b.png train/c.png", "two_folders", "auto", {}, "test: c"),
        ("train/a.png train/b.png train/c.png", "two_folders", "train", {}, "train: a b"),
        ("a.png b.png c.png", "two_folders", "test", {}, "test: c"),
        ("a.png b.png c.png", "two_folders", "train", {}, "train: a b"),
    ],
)
def test_what_is_taken_as_sources(make, tmp_path, files, layout, split, options, names):
    put(make, tmp_path, *files.split())
    data = opened(tmp_path, trained(layout), split, **options)
    assert f"{data.split}: {' '.join(data.names)}" == names and not data.targets and data.layout == "sources"
    assert f"no targets found, {len(data)} images are taken as sources" in data.notice
    assert ("no split folders" in data.notice) == names.startswith("all: ") * (split == "auto")
    assert ("no test split, using val" in data.notice) == ("Validation" in files)
    assert ("every 10th, or the last" in data.notice) == (files.count(".png") == 3)


@pytest.mark.parametrize(
    ("files", "layout", "width", "options", "problem"),
    [
        ("A/a.png A/b.png B/a.png", "two_folders", 8, {}, "b.png: no partner"),
        ("A/a.png B/", "two_folders", 8, {}, "a.png: no partner of that name in .*B"),
        ("test/A/a.png train/A/a.png train/B/", "two_folders", 8, {}, "B has no targets|found .*A but not .*B"),
        ("B/a.png", "two_folders", 8, {}, "found .*B but not .*A"),
        ("A/a.png", "two_folders", 8, RIGHT, "found .*A but not .*B"),
        ("A/a.png source/a.png", "two_folders", 8, {}, "found .*source but not .*target"),
        ("a/1.png b/1.png", "two_folders", 8, {}, "no pairs of layout two_folders found"),
        ("a.txt", "two_folders", 8, {}, "no pairs of layout two_folders found"),
        ("A/x.txt", "two_folders", 8, {}, "found .*A but not .*B"),
        ("A/a_n.png A/b.png", "two_folders", 8, NORMALS, "found .*A but not .*B"),
        ("a.png", "two_folders", 16, {}, "a.png: 8x16 pixels look like two images of 8x8 .* put them into a folder so"),
        ("1_A.png 1_B.png 2_A.png 2_B.png", "two_folders", 8, {}, "such as 1_A and 1_B, as the sides of pairs do; if"),
        ("a_n.png a.png", "suffix", 8, NORMALS, ""),
        ("a_n.png b.png", "suffix", 8, NORMALS, "a_n.png: no target a"),
        ("b.png a_t.png", "suffix", 8, PHOTOS, "a_t.png: no source a"),
        ("s/a.png", "suffix", 8, PHOTOS, "none of 1 images is named NAME_t"),
        ("a.png", "side_by_side", 16, {}, ""),
        ("a.png", "", 16, {}, ""),
        ("source/a.png", "side_by_side", 16, {}, ""),
        ("train/a.png", "two_folders", 8, {"split": "val"}, "found 1 pair, expected at least 2"),
        ("test/A/a.png", "two_folders", 8, {"split": "train"}, "found .*A but not .*B"),
    ],
)
def test_what_is_refused_or_still_pairs(make, tmp_path, files, layout, width, options, problem):
    for name in files.split():
        if name.endswith(".png"):
            put(make, tmp_path, name, width=width)
        elif name.endswith("/"):
            (tmp_path / name).mkdir(parents=True)
        else:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("")
    if problem:
        with pytest.raises(ValueError, match=problem) as error:
            opened(tmp_path, trained(layout), **options)
        assert "\n" not in str(error.value)
    else:
        assert opened(tmp_path, trained(layout), **options).targets


def test_only_for_a_trained_model_that_asks(make, tmp_path):
    put(make, tmp_path, "A/a.png", "A/b.png")
    for like, sources in ((None, True), (trained(), False)):
        with pytest.raises(ValueError, match=r"found .*A but not .*B; add it"):
            open_data("mine", "auto", like, sources=sources, data_dir=str(tmp_path))


def test_older_checkpoints_say_less(make, tmp_path):
    """Without the size of the training pairs a lone image may be both of a pair, but not in two folders."""
    put(make, tmp_path, "a.png")
    assert opened(tmp_path, trained("side_by_side", ())).targets and opened(tmp_path, trained("", ())).targets
    assert not opened(tmp_path, trained("two_folders", ())).targets


@pytest.mark.parametrize(("name", "channels"), [("x.png", 4), ("x.tif", 5)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_size": "6x10", "source_resize": "nearest"},
        {"image_size": "6", "fit": "stretch", "source_white": 200, "source_black": 20},
        {"image_size": "6", "fit": "crop"},
    ],
)
def test_sources_are_read_as_those_of_pairs(make, tmp_path, name, channels, options):
    """Random crops too; the target is mid-grey, of the model's channels."""
    source = make.noise(12, 14, channels)
    source[:7, :, 3] = 0
    make.write(tmp_path / "pairs/A" / name, source)
    make.write(tmp_path / "pairs/B" / name, make.noise(12, 14, 1))
    make.write(tmp_path / "alone/A" / name, source)
    like = trained(native=(12, 14), channels=2)
    pairs, alone = (opened(tmp_path / place, like, **options) for place in ("pairs", "alone"))
    assert (pairs.target_channels, alone.target_channels, pairs.targets, alone.targets) == (1, 2, True, False)
    assert (alone.size, alone.native, alone.source_channels) == (pairs.size, (12, 14), pairs.source_channels)
    for seed in (None, 1):
        one, other = (data.get(0, seed and np.random.default_rng(seed)) for data in (pairs, alone))
        assert torch.equal(one.source, other.source) and other.source.std() > 0.1
        assert (one.mask is None) == (name == "x.tif") == (other.mask is None)
        assert one.mask is None or torch.equal(one.mask, other.mask)
        assert other.target.shape == (2, *alone.size) and not other.target.any()


def test_labels_levels_and_unlike_files(make, tmp_path):
    put(make, tmp_path, "dog/1.png", "cat/1.png")
    like = Header(Config(), ImageShape(3, 3, 8, 8, 2), 1, ("cat", "dog"), "two_folders", (8, 8))
    data = opened(tmp_path, like, num_classes=2)
    assert data.names == ["cat/1", "dog/1"] and [data.get(i, None).label for i in range(2)] == [0, 1]
    put(make, tmp_path, "eel/1.png")
    with pytest.raises(ValueError, match="class folder 'eel' is none of the model's"):
        opened(tmp_path, like, num_classes=2)
    dark = np.ones((8, 8, 3), np.uint8)
    for n in range(2):
        make.write(tmp_path / "dark" / f"{n}.png", dark)
    assert "sources hold no value above 1 of 255" in opened(tmp_path / "dark", trained()).notice
    make.write(tmp_path / "dark/1.png", dark[..., 0])
    with pytest.raises(ValueError, match=r"1.png: source has 1 channels, expected 3"):
        opened(tmp_path / "dark", trained()).get(1, None)
