"""Every way to lay out pairs is found in the same order; anything doubtful is refused in one line."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datasets import layouts, open_data
from ddbm.config import Config, Header, ImageShape

FOLDERS, TWO = ("source_folder", "target_folder"), {"layout": "two_folders"}


def put(make, root, *names, **how):
    for name in names:
        make.write(root / name, make.noise(**how))


def refused(pattern, root, split="train", kind=ValueError, **options):
    with pytest.raises(kind, match=pattern) as error:
        open_data("mine", split, data_dir=str(root), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "sides",
    [("{}/source", "{}/target"), ("{}/A", "{}/B"), ("{}A", "{}B"), ("source/{}", "target/{}"), ("A/{}", "B/{}")],
)
@pytest.mark.parametrize("spelled", [str, str.title, str.upper])
def test_two_folders(make, tmp_path, sides, spelled):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        make.two_folders(tmp_path, count, [spelled(side.format(split)) for side in sides])
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        data = open_data("mine", split, data_dir=str(tmp_path))
        assert len(data) == count and data.notice == ""
        assert np.array_equal(make.stored(data.get(0, None).target), make.noise(seed=0))
        assert np.array_equal(make.stored(data.get(0, None).source), make.noise(seed=100))
        if "B" in sides[1]:
            data = open_data("mine", split, data_dir=str(tmp_path), source_half="right")
            assert np.array_equal(make.stored(data.get(0, None).source), make.noise(seed=0))


@pytest.mark.parametrize(
    "options",
    [
        {"source_half": "right"},
        {"source_folder": "trainB", "target_folder": "trainA"},
        {"source_folder": "B", "target_folder": "A"},
    ],
)
def test_from_B_to_A_in_every_split(make, tmp_path, options):
    make.two_folders(tmp_path, 2, ("trainA", "trainB"))
    make.two_folders(tmp_path, 1, ("testA", "testB"))
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        data = open_data("mine", split, data_dir=str(tmp_path), **options)
        assert len(data) == count and np.array_equal(make.stored(data.get(0, None).source), make.noise(seed=0))
        assert ("source is B" in data.notice) == ("source_half" in options)
    before = Header(Config(), ImageShape(3, 3, 8, 8, 0), 1)  # of a version that ignored it: A to B was trained
    data = open_data("mine", "test", before, data_dir=str(tmp_path), source_half="right")
    assert np.array_equal(make.stored(data.get(0, None).source), make.noise(seed=100))


def test_named_folders_and_other_extensions(make, tmp_path):
    put(make, tmp_path, "train/he/a.png", "train/he/sub/b.tif", "train/ihc/a.tif", "train/ihc/sub/b.png")
    put(make, tmp_path, "val/he/c.png", "val/ihc/c.png")
    data = open_data("mine", "train", data_dir=str(tmp_path), source_folder="he", target_folder="ihc")
    assert data.names == ["a", "sub/b"]
    refused(r"it holds he, ihc; .* --num_classes 2, sides --source_folder he --target_folder ihc", tmp_path)
    refused("give both", tmp_path, source_folder="he")
    named = {"source_folder": "he", "target_folder": "ihc", "source_half": "right"}
    refused("source_half right is for A|B", tmp_path, **named)


@pytest.mark.parametrize(("half", "first"), [("left", slice(0, 8)), ("right", slice(8, 16))])
def test_side_by_side(make, tmp_path, half, first):
    put(make, tmp_path, "train/a.png", "val/a.png", width=16)
    data = open_data("mine", "train", data_dir=str(tmp_path), source_half=half)
    item, whole = data.get(0, None), make.noise(width=16)
    assert np.array_equal(make.stored(item.source), whole[:, first]) and f"the {half} one" in data.notice
    target = np.delete(whole, np.r_[first], axis=1)
    assert np.array_equal(make.stored(item.target), target)
    assert open_data("mine", "train", data_dir=str(tmp_path), layout="side_by_side").notice == ""
    put(make, tmp_path, "train/0.png", width=15)
    refused("0.png: 8x15 pixels, expected an even width", tmp_path)


@pytest.mark.parametrize(
    ("files", "options", "names"),
    [
        ("x/a x/a_n x/a_depth", {"source_suffix": "_n"}, {"x/a": ("x/a_n", "x/a")}),
        ("a a_t b_t b", {"target_suffix": "_t"}, {"a": ("a", "a_t"), "b": ("b", "b_t")}),
        ("1_A 1_B z", {"source_suffix": "_B", "target_suffix": "_A"}, {"1": ("1_B", "1_A")}),
        ("A/1_A B/1_B", {"source_suffix": "_A", "target_suffix": "_B"}, {"1": ("A/1_A", "B/1_B")}),
        ("A/1_A B/1", {"source_suffix": "_A"}, {"1": ("A/1_A", "B/1")}),
        ("A/1_n A/1", {"source_suffix": "_n"}, {"A/1": ("A/1_n", "A/1")}),
        ("A/1_n A/1 B/2 B/2_n", {"source_suffix": "_n"}, {"A/1": ("A/1_n", "A/1"), "B/2": ("B/2_n", "B/2")}),
    ],
)
def test_suffixes(make, tmp_path, files, options, names):
    put(make, tmp_path, *(f"{split}/{name}.png" for name in files.split() for split in ("train", "val")))
    data = open_data("mine", "train", data_dir=str(tmp_path), **options)
    sides = {pair.name: (pair.source, pair.target) for pair in data.pairs}
    assert sides == {name: tuple(tmp_path / "train" / f"{f}.png" for f in pair) for name, pair in names.items()}
    alone = len(files.split()) - 2 * len(names)
    assert (f"left out {alone} images" in data.notice) == (alone > 0)


@pytest.mark.parametrize("names", ["cat car dog dot", "a_1 a_2 b_1 b_2", "1_A 1_B", "1_a 1_b 2_a", "1_A 1_B 2_A 2_C"])
def test_names_that_look_like_no_sides_are_cut_in_halves(make, tmp_path, names):
    put(make, tmp_path, *(f"{split}/{name}.png" for name in names.split() for split in ("train", "val")))
    assert open_data("mine", "train", data_dir=str(tmp_path)).layout == "side_by_side"


def test_order_is_sorted_and_what_is_left_out_is_counted(make, tmp_path):
    names = ["b/1", "a/2", "a-b/0", "a/10", "c", "img (1)", "img-2", "img"]
    put(make, tmp_path, *(f"train/{side}/{name}.png" for name in names for side in "AB"), "val/A/a.png", "val/B/a.png")
    put(make, tmp_path, "train/A/.x.png", "train/A/Thumbs/x.png", "train/A/b/@eaDir/x/y.png", "train/B/.git/y.png")
    for name in ("notes.txt", "README", "B.TXT", "scan.heic", "2.HEIC", "IM1", "b/Thumbs.db"):
        (tmp_path / "train/A" / name).write_text("not an image")
    (tmp_path / "train" / "A" / ".cache").symlink_to("..")  # not followed
    for side in "AB":
        put(make, tmp_path, f"elsewhere/{side}/z.png", f"elsewhere/{side}0.png")
        (tmp_path / "train" / side / "linked").symlink_to(tmp_path / "elsewhere" / side)
        (tmp_path / "train" / side / "d.png").symlink_to(tmp_path / "elsewhere" / f"{side}0.png")
    data = open_data("mine", "train", data_dir=str(tmp_path))
    assert data.names == ["a/10", "a/2", "a-b/0", "b/1", "c", "d", "img", "img (1)", "img-2", "linked/z"]
    assert "left out 3 files of kinds that are not read (2 .heic, 1 no extension)" in data.notice
    assert "left out 4 hidden or system files (" in data.notice and "1 @eaDir" in data.notice


def test_folders_are_listed_once_and_those_of_systems_may_be_closed(make, tmp_path, monkeypatch):
    put(make, tmp_path, *(f"{part}/{side}/{i}.png" for part in ("train", "val") for side in "AB" for i in (1, 2)))
    put(make, tmp_path, "train/A/lost+found/3.png", "train/A/closed/3.png")
    scandir, listed, closed, calls = os.scandir, layouts.listed, ["lost+found"], []

    def scan(folder):
        if Path(folder).name in closed:
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(layouts, "listed", lambda folder: calls.append(folder) or listed(folder))
    refused("closed/3.png: no partner", tmp_path)
    assert sorted(calls) == [tmp_path / "train/A", tmp_path / "train/B"]
    put(make, tmp_path, "halves/1.png", "halves/2.png")
    assert open_data("mine", "all", data_dir=str(tmp_path / "halves")) and calls[2:] == [tmp_path / "halves"]
    closed.append("closed")
    refused("closed: cannot be listed .Permission denied.; make it readable", tmp_path)


@pytest.mark.parametrize("sides", [("source", "target"), ("A", "B"), ("train/A", "train/B")])
@pytest.mark.parametrize(("count", "held"), [(25, [9, 19]), (10, [9]), (4, [3])])
def test_without_split_folders_every_10th_is_held_out(make, tmp_path, sides, count, held):
    put(make, tmp_path, *(f"{side}/{i:02}.png" for side in sides for i in range(count)))
    train, val, test = (open_data("mine", split, data_dir=str(tmp_path)) for split in ("train", "val", "test"))
    assert val.names == test.names == [f"{i:02}" for i in held]
    assert sorted(train.names + val.names) == [f"{i:02}" for i in range(count)]
    assert "held out" in train.notice and "held out" in val.notice


@pytest.mark.parametrize(
    ("there", "asked"), [("validation", "val"), ("valid", "test"), ("test", "val"), ("val", "test")]
)
def test_val_and_test_stand_in_for_each_other(make, tmp_path, there, asked):
    put(make, tmp_path, "train/A/a.png", "train/B/a.png", f"{there}/A/b.png", f"{there}/B/b.png")
    data = open_data("mine", asked, data_dir=str(tmp_path))
    assert data.names == ["b"] and (f"no {asked} split" in data.notice) == (there != "validation")
    put(make, tmp_path, f"{asked}/A/s.png") if there != "validation" else None  # whose targets are still to come
    assert open_data("mine", asked, data_dir=str(tmp_path)).names == ["b"]
    assert open_data("mine", "train", data_dir=str(tmp_path)).names == ["a"]


@pytest.mark.parametrize("sides", [("source", "target"), ("A", "B"), ("Source", "Target"), ("source", "TARGET")])
def test_a_side_alone_is_no_folder_of_pairs(make, tmp_path, sides):
    put(make, tmp_path, *(f"train/{side}/{i}.png" for side in sides for i in range(4)))
    for one, other in (sides, sides[::-1]):
        with pytest.raises(
            ValueError, match=rf"train/{one} has {other} beside it: give .*train, or --layout side_by_side"
        ):
            open_data("mine", "train", data_dir=str(tmp_path / "train" / one))
    halves = open_data("mine", "train", data_dir=str(tmp_path / "train" / sides[0]), layout="side_by_side")
    assert halves.layout == "side_by_side"


def test_what_has_no_targets_yet_is_left_aside(make, tmp_path):
    put(make, tmp_path, *(f"train/{side}/{i}.png" for side in "AB" for i in range(4)), "test/A/s.png")
    for files, reason in ((["test/A/s.png"], "found .*A but not .*B"), (["test/B/x.txt"], "has no targets")):
        for name in files:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("") if name.endswith("txt") else None
        train, val = (open_data("mine", split, data_dir=str(tmp_path)) for split in ("train", "val"))
        assert (train.names, val.names) == (["0", "1", "2"], ["3"])
        assert re.search(f"test is left aside: .*{reason}.*; ", train.notice) and "held out" in train.notice
    assert open_data("mine", "test", data_dir=str(tmp_path)).names == ["3"]
    (tmp_path / "test/A").rename(tmp_path / "test/C")  # and single images beside pairs in two folders
    (tmp_path / "test/B").rename(tmp_path / "test/D")
    put(make, tmp_path, "test/single.png")
    assert open_data("mine", "val", data_dir=str(tmp_path)).names == ["3"]


def test_all_pairs_of_a_folder(make, tmp_path):
    put(make, tmp_path, *(f"flat/{side}/{i:02}.png" for side in "AB" for i in range(12)))
    put(make, tmp_path, *(f"parts/{p}/{side}/{i}.png" for side in "AB" for p in ("train", "val") for i in (0, 1)))
    flat, parts = ({"data_dir": str(tmp_path / name)} for name in ("flat", "parts"))
    for split in ("all", "auto"):
        data = open_data("mine", split, **flat)
        assert (len(data), data.split) == (12, "all") and ("all its pairs are meant" in data.notice) == (
            split == "auto"
        )
    data = open_data("mine", "auto", **parts)
    assert data.names == ["0", "1"] and data.split == "test" and data.pairs[0].source.parts[-3] == "val"
    assert open_data("mine", "all", **parts).names == ["train/0", "train/1", "val/0", "val/1"]
    assert len(open_data("histology", "all")) == 256 and len(open_data("histology", "auto")) == 64


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([f"s{i}_x{j}" for i in "012" for j in "0123"], True),
        ([f"img_{i:02}" for i in range(12)], False),
        ([*"abcdefgh", "i_1", "i_2", "i_3", "i_4"], False),  # most are alone
    ],
)
def test_patches_of_one_slide_in_both_parts_are_told(make, tmp_path, names, told):
    put(make, tmp_path, *(f"{side}/{name}.png" for side in "AB" for name in names))
    assert ("of one slide" in open_data("mine", "train", data_dir=str(tmp_path)).notice) == told


def test_labels_are_the_folders_of_the_training_split_or_of_the_model(make, tmp_path):
    put(make, tmp_path, *(f"train/{side}/{kind}/1.png" for side in "AB" for kind in ("dog", "cat")))
    put(make, tmp_path, "val/A/dog/1.png", "val/B/dog/1.png")
    options = {"data_dir": str(tmp_path), "num_classes": 2}
    data = open_data("mine", "train", **options)
    assert [data.get(i, None).label for i in range(2)] == [0, 1] and data.classes == ["cat", "dog"]
    assert open_data("mine", "val", **options).get(0, None).label == 1
    assert open_data("mine", "val", data_dir=str(tmp_path)).get(0, None).label is None
    put(make, tmp_path / "halves", "train/cat/1.png", "train/dog/1.png", "val/dog/1.png")
    assert open_data("mine", "val", data_dir=str(tmp_path / "halves"), num_classes=2).get(0, None).label == 1
    refused(r"found 2 class folders \(cat, dog\), but num_classes is 3", tmp_path, num_classes=3)
    shape = ImageShape(3, 3, 8, 8, 2)
    put(make, tmp_path / "new", "test/A/dog/1.png", "test/B/dog/1.png")  # some of the classes alone
    new = {"data_dir": str(tmp_path / "new"), "num_classes": 2}
    named = Header(Config(), shape, 1, classes=("cat", "dog"))
    assert open_data("mine", "test", named, **new).get(0, None).label == 1
    put(make, tmp_path / "new", "test/A/eel/1.png", "test/B/eel/1.png")
    with pytest.raises(ValueError, match=r"'eel' is none of the model's \(cat, dog\)"):
        open_data("mine", "test", named, **new)
    assert "taken as dog 0, eel 1" in open_data("mine", "test", Header(Config(), shape, 1), **new).notice
    put(make, tmp_path, "val/A/eel/1.png", "val/B/eel/1.png")
    refused("class folder 'eel'", tmp_path, "val", num_classes=2)
    put(make, tmp_path, "train/A/1.png", "train/B/1.png")
    refused("1.png: lies in no class folder", tmp_path, num_classes=2)


@pytest.mark.parametrize(
    ("layout", "file", "width", "problem"),
    [
        ("side_by_side", "a.png", 10, "8x10 pixels look like one image"),
        ("side_by_side", "a.png", 8, "8x8 pixels look like one image, the model was trained on two of 8x8"),
        ("side_by_side", "A/a.png B/a.png", 8, "layout side_by_side expects both images of a pair in one file"),
        ("two_folders", "a.png", 16, "no pairs of layout two_folders found"),
        ("side_by_side", "a.png", 12, ""),
        ("side_by_side", "1_A.png 1_B.png 2_A.png 2_B.png", 16, ""),
        ("two_folders", "A/a.png B/a.png", 8, ""),
    ],
)
def test_new_pairs_lie_as_those_of_the_model(make, tmp_path, layout, file, width, problem):
    put(make, tmp_path, *file.split(), width=width)
    like = Header(Config(), ImageShape(3, 3, 8, 8, 0), 1, layout=layout, native=(8, 8))
    if problem:
        with pytest.raises(ValueError, match=problem):
            open_data("mine", "auto", like, data_dir=str(tmp_path))
    else:
        data = open_data("mine", "auto", like, data_dir=str(tmp_path))
        halves = layout == "side_by_side"
        assert (len(data), data.layout) == (len(file.split()) if halves else 1, layout)
        assert data.native == (8, width // 2 if halves else width)
        own = Header(Config(data.options), like.images, 1)  # of an old version, about pairs of its own
        for header, said in ((like, True), (own, False), (replace(own, config=Config()), True)):
            notice = open_data("mine", "auto", header, data_dir=str(tmp_path)).notice
            assert ("split into halves" in notice) == (said and halves)


@pytest.mark.parametrize(
    ("files", "options", "pattern"),
    [
        ([], {}, "holds nothing; expected train/"),
        (["odd/a.png"], {}, "holds odd; expected train/"),
        (["test/A/a.png"], {}, "found .*A but not .*B; add it"),
        (["Train/A/a.png", "Train/B/a.png", "train/A/a.png"], {}, "Train and .*train differ in capitals alone"),
        (["Testing/A/a.png", "Training/A/a.png"], {}, "holds Testing, Training; expected train/"),
        (["1_A.png", "1_B.png", "2_A.png", "2_B.png"], {}, "1_A and 1_B; .*layout suffix --source_suffix=_A --target"),
        (["x_a.png", "x_a n.png", "x_b.png", "x_b n.png"], {}, "suffix --target_suffix=' n', .* --layout side_by_side"),
        (["1A.png", "1B.png", "1C.png", "2A.png", "2B.png", "2C.png"], {}, "--source_suffix=A --target_suffix=B,"),
        (["A/1_A.png", "A/2_A.png", "B/1_B.png", "B/2_B.png"], {"source_suffix": "_A"}, "=_A --target_suffix=_B"),
        (["a/0.png", "b/0.png"], {}, "holds a, b; .*classes need --num_classes 2"),
        (["trainA/a.png"], {}, "found .*trainA but not .*trainB"),
        (["trainB/a.png"], {}, "found .*trainB but not .*trainA"),
        (["train/A/a.png", "train/A/b.png", "train/A/c.png", "train/B/a.png"], {}, r"b.png: no partner.*\(2 such"),
        (["train/A/a.png", "train/B/a.png", "train/B/b.png"], {}, r"b.png: no partner.*\(1 such"),
        (["train/A/a.png", "train/B/a.png", "train/A/a.tif"], {}, "a.tif: differs from a.png only in its extension"),
        (["train/A/a.png", "train/B/a.png", "train/a.png"], {}, "ambiguous"),
        (["train/A/a.png", "train/B/a.png", "trainA/a.png", "trainB/a.png"], {}, "ambiguous"),
        (["train/notes.txt"], {}, "no pairs found, it holds notes.txt"),
        (["train/A/x.txt", "train/B/x.txt"], {}, "no images found"),
        (["val/A/a.png", "val/B/a.png"], {}, "no training pairs"),
        (["a.png"], {}, "found 1 pair"),
        (["train/A/a.png", "train/B/a.png"], {"layout": "suffix"}, "layout suffix needs .* --source_suffix"),
        (["a.png"], {"layout": "side_by_side", "source_suffix": "_x"}, "leave out suffixes"),
        (["a.png"], {"source_suffix": "_x", "layout": "suffix"} | dict.fromkeys(FOLDERS, "a"), "one folder"),
        (["train/c_n.png"], {"source_suffix": "_n"}, r"c_n.png: no target c.\* beside it"),
        (["train/c.png"], {"source_suffix": "_n"}, "none of 1 images is named NAME_n; set --source_suffix"),
        (["A/a_A.png", "A/b.png", "B/a.png"], {"source_suffix": "_A"} | TWO, "b.png: not named NAME_A"),
        (["A/1_A.png", "A/2_A.png", "B/1_B.png", "B/2_B.png"], {}, "folders --source_suffix=_A --target_suffix=_B"),
        (["A/a.png", "A/b.png", "B/a.png", "B/B.png"], {}, "b.png: no partner .* it is 'B', .* in capitals alone"),
        (["A/u\u0308.png", "B/\xfc.png"], {}, "Unicode form alone .* --nfc"),
        (["A/u\u0308.png", "A/\xfc.png", "B/\xfc.png"], {}, r"differs from .* only in its Unicode form"),
        (["train/A/a.png", "train/B/a.png", "train/A/\udcce.png"], {}, r"A/\\xce.png: the name is not UTF-8; .*convmv"),
        (["A/a.png", "B/a.png", "A/l -> .."], {}, "A/l/A: a link leads back to a folder that it lies in"),
        (["A/a.png", "B/a.png", "A/b -> nowhere"], {}, "A/b: a broken link, to nowhere"),
        (["A/a.png", "B/a.png", "A/b.png -> b.png"], {}, "b.png: a broken link, to b.png"),
    ],
)
def test_refusals(make, tmp_path, files, options, pattern):
    for name in files:
        path, _, link = name.partition(" -> ")
        if link:
            (tmp_path / path).symlink_to(link)
        elif name.endswith(".txt"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("")
        else:
            put(make, tmp_path, name)
    refused(pattern, tmp_path, **options)


def test_folder_refusals(make, tmp_path):
    refused("does not exist; set DATA_DIR", tmp_path / "gone", kind=FileNotFoundError)
    put(make, tmp_path, "a.png")
    refused("is a file, expected a folder, or an archive", tmp_path / "a.png")
    refused("set DATA_DIR=/path", "")


def test_unknown_values(tmp_path):
    words = {"split": "tset", "fit": "pad", "layout": "pile", "source_half": "top", "image_size": "big"}
    for name, value in (words | {"source_white": -1.0, "target_white": float("nan"), "num_classes": -1}).items():
        refused(name, tmp_path, **{name: value})
