"""Every way to lay out pairs is found in the same order; anything doubtful is refused in one line."""

from pathlib import Path

import numpy as np
import pytest

from datasets import open_data

DIODE = Path(__file__).parents[3] / "shared" / "data" / "diode"


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
def test_two_folders(make, tmp_path, sides):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        make.two_folders(tmp_path, count, [side.format(split) for side in sides])
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        data = open_data("mine", split, data_dir=str(tmp_path))
        assert len(data) == count and data.notice == ""
        assert np.array_equal(make.stored(data.get(0, None).target), make.noise(seed=0))
        assert np.array_equal(make.stored(data.get(0, None).source), make.noise(seed=100))


def test_named_folders_and_other_extensions(make, tmp_path):
    put(make, tmp_path, "train/he/a.png", "train/he/sub/b.tif", "train/ihc/a.tif", "train/ihc/sub/b.png")
    put(make, tmp_path, "val/he/c.png", "val/ihc/c.png")
    data = open_data("mine", "train", data_dir=str(tmp_path), source_folder="he", target_folder="ihc")
    assert data.names == ["a", "sub/b"]
    refused("it holds he, ihc", tmp_path)
    refused("give both", tmp_path, source_folder="he")


@pytest.mark.parametrize(("half", "first"), [("left", slice(0, 8)), ("right", slice(8, 16))])
def test_side_by_side(make, tmp_path, half, first):
    put(make, tmp_path, "train/a.png", "val/a.png", width=16)
    data = open_data("mine", "train", data_dir=str(tmp_path), source_half=half)
    item, whole = data.get(0, None), make.noise(width=16)
    assert np.array_equal(make.stored(item.source), whole[:, first]) and f"the {half} one" in data.notice
    target = np.delete(whole, np.r_[first], axis=1)
    assert np.array_equal(make.stored(item.target), target)
    assert open_data("mine", "train", data_dir=str(tmp_path), layout="side_by_side").notice == ""


def test_side_by_side_of_odd_width(make, tmp_path):
    put(make, tmp_path, "train/a.png", "val/a.png", width=15)
    refused("a.png: 8x15 pixels, expected an even width", tmp_path)


def test_suffix(make, tmp_path):
    put(make, tmp_path, "train/x/a.png", "train/x/a_normal.png", "train/x/a_depth.png", "val/b.png", "val/b_normal.png")
    data = open_data("mine", "train", data_dir=str(tmp_path), source_suffix="_normal")
    assert data.names == ["x/a"] and data.pairs[0].source.name == "a_normal.png"
    refused("named NAME_edge", tmp_path, source_suffix="_edge")
    put(make, tmp_path, "train/x/c_normal.png")
    refused(r"c_normal.png: no target c.\* beside it", tmp_path, source_suffix="_normal")


@pytest.mark.skipif(not DIODE.is_dir(), reason="needs the DIODE samples beside the checkout")
def test_suffix_on_diode():
    data = [open_data("diode", s, data_dir=str(DIODE), source_suffix="_normal") for s in ("train", "val", "test")]
    assert [len(d) for d in data] == [9, 1, 1] and data[1].names == data[2].names
    assert data[0].size == (256, 256) and data[0].source_channels == data[0].target_channels == 3
    assert not set(data[0].names) & set(data[1].names)


def test_order_is_sorted_and_litter_is_ignored(make, tmp_path):
    names = ["b/1", "a/2", "a-b/0", "a/10", "c"]
    put(make, tmp_path, *(f"train/{side}/{name}.png" for name in names for side in "AB"))
    put(
        make,
        tmp_path,
        "val/A/a.png",
        "val/B/a.png",
        "train/A/.hidden.png",
        "train/A/__MACOSX/x.png",
        "train/A/.x/y.png",
    )
    (tmp_path / "train/A/notes.txt").write_text("not an image")
    data = open_data("mine", "train", data_dir=str(tmp_path))
    assert data.names == sorted(names, key=lambda name: name.split("/"))


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
    assert open_data("mine", "train", data_dir=str(tmp_path)).names == ["a"]


def test_labels_are_sorted_folders_of_the_training_split(make, tmp_path):
    put(make, tmp_path, *(f"train/{side}/{kind}/1.png" for side in "AB" for kind in ("dog", "cat")))
    put(make, tmp_path, "val/A/dog/1.png", "val/B/dog/1.png")
    options = {"data_dir": str(tmp_path), "num_classes": 2}
    data = open_data("mine", "train", **options)
    assert [data.get(i, None).label for i in range(2)] == [0, 1] and data.names == ["cat/1", "dog/1"]
    assert open_data("mine", "val", **options).get(0, None).label == 1
    assert open_data("mine", "val", data_dir=str(tmp_path)).get(0, None).label is None
    refused(r"found 2 class folders \(cat, dog\), but num_classes is 3", tmp_path, num_classes=3)
    put(make, tmp_path, "val/A/eel/1.png", "val/B/eel/1.png")
    refused("class folder 'eel'", tmp_path, "val", num_classes=2)
    put(make, tmp_path, "train/A/1.png", "train/B/1.png")
    refused("1.png: lies in no class folder", tmp_path, num_classes=2)


def test_labels_side_by_side(make, tmp_path):
    put(make, tmp_path, "train/cat/1.png", "train/dog/1.png", "val/dog/1.png")
    data = open_data("mine", "val", data_dir=str(tmp_path), num_classes=2)
    assert data.get(0, None).label == 1


@pytest.mark.parametrize(
    ("files", "options", "pattern"),
    [
        ([], {}, "holds nothing; expected train/"),
        (["odd/a.png"], {}, "holds odd; expected train/"),
        (["train/A/a.png"], {}, "found .*A but not .*B"),
        (["trainA/a.png"], {}, "found .*trainA but not .*trainB"),
        (["train/A/a.png", "train/A/b.png", "train/A/c.png", "train/B/a.png"], {}, r"b.png: no partner.*\(2 such"),
        (["train/A/a.png", "train/B/a.png", "train/B/b.png"], {}, r"b.png: no partner.*\(1 such"),
        (["train/A/a.png", "train/B/a.png", "train/A/a.tif"], {}, "a.tif: differs from a.png only in its extension"),
        (["train/A/a.png", "train/B/a.png", "train/a.png"], {}, "ambiguous"),
        (["train/A/a.png", "train/B/a.png", "trainA/a.png", "trainB/a.png"], {}, "ambiguous"),
        (["train/notes.txt"], {}, "no pairs found, it holds notes.txt"),
        (["train/A/x.txt", "train/B/x.txt"], {}, "no images found"),
        (["val/A/a.png", "val/B/a.png"], {}, "no training pairs"),
        (["a.png"], {}, "found 1 pair"),
        (["train/A/a.png", "train/B/a.png"], {"layout": "suffix"}, "layout suffix needs source_suffix"),
        (["a.png"], {"layout": "two_folders", "source_suffix": "_x"}, "source_suffix is for layout suffix"),
    ],
)
def test_refusals(make, tmp_path, files, options, pattern):
    for name in files:
        if name.endswith(".txt"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("")
        else:
            put(make, tmp_path, name)
    refused(pattern, tmp_path, **options)


def test_folder_refusals(make, tmp_path):
    refused("does not exist; set DATA_DIR", tmp_path / "gone", kind=FileNotFoundError)
    put(make, tmp_path, "a.png")
    refused("is a file", tmp_path / "a.png", kind=FileNotFoundError)
    refused("set DATA_DIR=/path", "")
    with pytest.raises(ValueError, match="set DATA_DIR=/path"):
        open_data("paired", "train")


@pytest.mark.parametrize(
    "options",
    [
        {"split": "tset"},
        {"fit": "pad"},
        {"layout": "pile"},
        {"source_half": "top"},
        {"image_size": "big"},
        {"source_white": -1.0},
        {"target_white": float("nan")},
        {"num_classes": -1},
    ],
)
def test_unknown_values(tmp_path, options):
    refused(next(iter(options)), tmp_path, **options)
