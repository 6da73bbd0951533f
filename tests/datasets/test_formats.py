"""Pairs of any format are those of the folder: splits, names, pixels, masks, classes, batches."""

import pickle
import shlex
import shutil
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from datasets import Augmentation, eval_batches, open_data, shards, train_batches
from datasets.images import Unreadable
from datasets.pack import main
from ddbm.symmetry.groups import GROUPS
from tests.datasets.alike import equal

FORMATS = {"packed": "pack", "hdf5": "pack.h5", "zip": "pack.zip", "shards": "pack", "folder": "pack"}


def packed(root, tmp_path, format, *flags):
    if format == "shards":
        pytest.importorskip("litdata")
    out = tmp_path / FORMATS[format]
    assert main([str(root), str(out), "--format", format, *flags]) == 0
    return str(out)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_the_folder_and_back(make, tmp_path, format):
    root = tmp_path / "pairs"
    for part, count in (("train", 5), ("val", 2)):
        for kind in ("a", "b"):
            for n in range(count):
                for side in ("source", "target"):
                    make.write(root / part / side / kind / f"{n}.png", make.noise(seed=n, channels=3))
                seen = make.noise(channels=1, seed=n) if n % 2 else np.full((8, 8, 1), 255, np.uint8)
                make.write(root / part / "mask" / kind / f"{n}.png", seen)
    how, flags = {"num_classes": 2}, ["--num_classes", "2"]
    pack = packed(root, tmp_path, format, *flags, "--mask_folder", "mask")
    back = tmp_path / "back"
    assert main([pack, str(back), "--format", "folder", *flags]) == 0
    for part in ("train", "val"):
        folder = open_data("x", part, data_dir=str(root), mask_folder="mask", **how)
        assert folder.names[0] == "a/0"
        equal(folder, open_data("x", part, data_dir=pack, **how))
        equal(folder, open_data("x", part, data_dir=str(back), **how))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("format", [name for name in FORMATS if name != "folder"])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_two_ranks_and_a_kill_see_the_batches_of_the_folder(make, tmp_path, workers, format):
    root = make.two_folders(tmp_path / "pairs", 12)
    make.two_folders(tmp_path / "pairs", 2, sides=("val/source", "val/target"))
    data = open_data("x", "train", data_dir=packed(root, tmp_path, format))
    how = {"batch_size": 4, "seed": 3, "augmentation": Augmentation(elements=GROUPS["D4"].elements)}
    whole = train_batches(open_data("x", "train", data_dir=root), **how)
    seen = []
    ranks = [train_batches(data, **how, workers=workers, rank=rank, ranks=2) for rank in range(2)]
    for step in range(3):
        if step == 2:  # killed before it
            ranks = [train_batches(data, **how, workers=workers, rank=r, ranks=2, start_step=2) for r in range(2)]
        expected, parts = next(whole), [next(batches) for batches in ranks]
        for name in ("target", "source", "index"):
            assert torch.equal(getattr(expected, name), torch.cat([getattr(part, name) for part in parts]))
        seen += torch.cat([part.index for part in parts]).tolist()
    assert sorted(seen) == list(range(12))


@pytest.mark.parametrize("inside", ["", "pairs/"])
@pytest.mark.parametrize("sides", [("train/A", "train/B"), ("trainA", "trainB"), ("source", "target")])
def test_a_folder_zipped_as_it_is(make, tmp_path, inside, sides):
    root = make.two_folders(tmp_path / "pairs", 11, sides=sides, channels=1, dtype=np.uint16)
    place = shutil.make_archive(str(tmp_path / "other"), "zip", tmp_path if inside else root, inside or None)
    for part in ("train", "val"):
        folder, data = (open_data("x", part, data_dir=str(each)) for each in (root, place))
        equal(folder, pickle.loads(pickle.dumps(data)))  # as a spawned worker gets it


def hdf5(path, **more):
    with h5py.File(path, "w") as file:
        for key, values in more.items():
            file[key] = values
    return str(path)


def test_hdf5_as_others_write_it(make, tmp_path):
    source, target = (np.stack([make.noise(seed=seed + n) for n in range(12)]) for seed in (0, 50))
    place = tmp_path / "x.h5"
    with h5py.File(place, "w") as file:
        file.create_dataset("source", data=source, compression="gzip", chunks=(1, 8, 8, 3))
        file["target"], file["class"] = target, np.arange(12) // 6
    data = open_data("x", "all", data_dir=str(place), num_classes=2)
    assert data.classes == ["0", "1"] and data.names[:2] == ["00", "01"]
    for n in range(12):
        item = data.get(n, None)
        assert np.array_equal(make.stored(item.source), source[n]) and np.array_equal(
            make.stored(item.target), target[n]
        )
        assert item.label == n // 6
    assert open_data("x", "val", data_dir=str(place)).names == ["09"]  # every tenth


def test_hdf5_says_that_the_disk_is_too_full(make, tmp_path, monkeypatch):
    root, two = make.two_folders(tmp_path / "pairs", 3), 2 * 8 * 8 * 3
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * two - 1))
    with pytest.raises(ValueError, match=rf"has room for {3 * two - 1} bytes, the pairs take {3 * two}; make some"):
        packed(root, tmp_path, "hdf5")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * two))
    packed(root, tmp_path, "hdf5")


@pytest.mark.parametrize("format", ["folder", "zip"])
def test_names_that_files_cannot_have(make, tmp_path, format, capsys):
    pixels = np.stack([make.noise(seed=n) for n in range(4)])
    split = ["train"] * 3 + ["val"]
    for n, (names, said) in enumerate([
        (["a", "b", "a"], "'a' of train: two pairs have it"), (["a", "b", "B"], "but for capitals or"),
        (["a", "\u00e9", "e\u0301"], "Unicode form"), (["a" * 250, "b", "c"], "has no such name"),
        (["a", "../../b", "c"], r"'\.\./\.\./b' of train: a file of a data set has no such name; give the rows other"),
        *((["a", odd, "c"], "has no such name") for odd in (str(tmp_path / "b"), "", ".b", "d/.e/f", "Thumbs/b", "..")),
    ]):  # fmt: skip
        place = hdf5(tmp_path / f"{n}.h5", source=pixels, target=pixels, name=[*names, "z"], split=split)
        with pytest.raises(ValueError, match=said):
            packed(place, tmp_path, format)
        assert {path.suffix for path in tmp_path.iterdir()} == {".h5"}
    place = hdf5(tmp_path / "x.h5", source=pixels, target=pixels, name=["b", "c/d", "a", "z"], split=split)
    assert open_data("x", "train", data_dir=place).names == ["b", "c/d", "a"]
    pack = packed(place, tmp_path, format)
    assert "note: files are in the order of their names, the pairs here are not" in capsys.readouterr().out
    assert open_data("x", "train", data_dir=pack).names == ["a", "b", "c/d"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "flags",
    [
        ["--layout", "side_by_side", "--source_half", "right"], ["--source_half", "right"],
        ["--layout", "suffix", "--source_suffix", "_normal"],
    ],
)  # fmt: skip
def test_the_flags_that_are_said_train_on_a_pack(make, tmp_path, format, flags, capsys):
    root = tmp_path / "pairs"
    for n in range(12):
        left, right = make.noise(seed=n), make.noise(seed=50 + n)
        if "side_by_side" in flags:
            make.write(root / f"{n:02d}.png", np.concatenate([left, right], 1))
        elif "suffix" in flags:
            make.write(root / f"{n:02d}.png", left), make.write(root / f"{n:02d}_normal.png", right)
        else:
            make.write(root / f"A/{n:02d}.png", left), make.write(root / f"B/{n:02d}.png", right)
    pack = packed(root, tmp_path, format, *flags)
    said = capsys.readouterr().out.splitlines()[-1].partition("the same flags")[2]
    words = [*flags, *shlex.split(said.removeprefix(", but "))]
    assert bool(said) == (format in ("folder", "zip"))
    how = {name[2:]: value for name, value in zip(words[::2], words[1::2], strict=True)}  # the last of a name counts
    before = dict(zip((flag[2:] for flag in flags[::2]), flags[1::2], strict=True))
    equal(open_data("x", "train", data_dir=str(root), **before), open_data("x", "train", data_dir=pack, **how))


def test_mistakes(make, tmp_path):
    pixels = np.stack([make.noise(seed=n) for n in range(3)])
    good = {"source": pixels, "target": pixels}
    whole = hdf5(tmp_path / "good.h5", **good)
    for key in ("source", "mask"):
        with h5py.File(tmp_path / f"{key}.h5", "w") as file:
            file.create_group(key)
            for other in good.keys() - {key}:
                file[other] = pixels
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["source"], file["target"] = pixels, h5py.SoftLink("/nowhere")
    root = make.two_folders(tmp_path / "pairs", 3)
    archive = shutil.make_archive(str(tmp_path / "good"), "zip", root)
    for name, place in (("cut.h5", whole), ("cut.zip", archive)):
        (tmp_path / name).write_bytes(Path(place).read_bytes()[:-99])
    broken = bytearray(Path(archive).read_bytes())
    start = broken.index(b"IDAT")
    broken[start + 20] ^= 255
    (tmp_path / "broken.zip").write_bytes(broken)
    (tmp_path / "notes").write_text("none")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as file:
        file.writestr("readme.txt", "none")
    for place, said in (
        (hdf5(tmp_path / "a.h5", source=pixels), "a.h5: no dataset 'target', it holds source; expected"),
        (hdf5(tmp_path / "b.h5", **good, **{"class": [1, 2]}), r"class has shape \[2\], expected \[3\] as source has"),
        (hdf5(tmp_path / "c.h5", source=pixels, target=pixels[:2]), r"shape \[2, 8, 8, 3\], expected \[3, 8, 8\]"),
        (hdf5(tmp_path / "d.h5", **good, split=["train", "val", "x"]), "split holds 'x', expected train, val or test"),
        (hdf5(tmp_path / "e.h5", source=pixels[..., 0], target=pixels), r"shape \[3, 8, 8\], expected 4 axes"),
        (
            hdf5(tmp_path / "f.h5", **good, **{"class": [0.5, 1, 2]}),
            "class is float64, expected texts or whole numbers",
        ),
        (
            hdf5(tmp_path / "g.h5", **good, name=np.array([b"a", b"\xff", b"c"])),
            "g.h5: name holds bytes that are no text",
        ),
        (tmp_path / "link.h5", "link.h5: target is a group, or a link that leads nowhere"),
        (tmp_path / "source.h5", "source.h5: source is a group, or a link that leads nowhere"),
        (tmp_path / "mask.h5", "mask.h5: mask is a group, or a link"),
        (tmp_path / "cut.h5", r"cut.h5: cannot be read as HDF5 \(.*truncated.*\); copy or make it again"),
        (tmp_path / "cut.zip", r"cut.zip: cannot be read as a zip archive \(.*\); copy or make it again"),
        (tmp_path / "empty.zip", "empty.zip: no pairs found, it holds readme.txt"),
        (tmp_path / "broken.zip", r"png: cannot be read \(Bad CRC-32"),
        (tmp_path / "notes", r"notes is a file, expected a folder, or an archive"),
        (tmp_path / "none", "none does not exist"),
    ):
        with pytest.raises((ValueError, OSError), match=said) as error:
            data = open_data("x", "all", data_dir=str(place))
            [data.get(n, None) for n in range(len(data))]
        assert "\n" not in str(error.value)


def test_truncated_and_damaged_shards(make, tmp_path, monkeypatch):
    """Pairs of a damaged chunk are unreadable, at once and by name; those of the others are not."""
    monkeypatch.setattr(shards, "CHUNK", 15_000)  # two pairs
    whole = packed(make.two_folders(tmp_path / "pairs", 6, height=32, width=32), tmp_path, "shards")
    damages = {
        "cut": (lambda old: old[:-9], r"chunk-0-1.bin: has \d+ bytes, expected \d+; copy or make it again"),
        "empty": (lambda old: b"", "chunk-0-1.bin: has 0 bytes, expected"),
        "other": (
            lambda old: old[:40] + b"\xff" * 40 + old[80:],
            r"other: pair 2 cannot be read \(.*\); copy or make it",
        ),
        "gone": (None, "chunk-0-1.bin: has 0 bytes"),
    }
    for name, (damage, said) in damages.items():
        place = Path(shutil.copytree(whole, tmp_path / name))
        chunk = place / "chunk-0-1.bin"
        content = chunk.read_bytes()
        chunk.unlink() if damage is None else chunk.write_bytes(damage(content))
        data = open_data("x", "all", data_dir=str(place), skip_unreadable=True)
        with pytest.raises(Unreadable, match=said) as error:
            [data.get(n, None) for n in range(6)]
        assert "\n" not in str(error.value)
        seen = torch.cat([batch.index for batch in eval_batches(data, batch_size=1, skip=True)]).tolist()
        assert seen == [0, 1, 4, 5] if name != "other" else {0, 1, 4, 5} <= {*seen}


def test_a_damaged_chunk_of_hdf5_is_named(make, tmp_path):
    pixels = np.stack([make.noise(32, 32, seed=n) for n in range(6)])
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for side in ("source", "target"):
            file.create_dataset(side, data=pixels, compression="gzip", chunks=(1, 32, 32, 3))
        place = file["source"].id.get_chunk_info(2).byte_offset
    content = bytearray((tmp_path / "x.h5").read_bytes())
    content[place : place + 60] = b"\xff" * 60
    (tmp_path / "x.h5").write_bytes(content)
    data = open_data("x", "all", data_dir=str(tmp_path / "x.h5"), skip_unreadable=True)
    assert sum(len(batch.index) for batch in eval_batches(data, batch_size=2, skip=True)) == 5
    assert len(data.skipped.problems) == 1
    with pytest.raises(Unreadable, match=r"x.h5: pair 2 cannot be read \(.*\); copy or make it again$"):
        data.get(2, None)


@pytest.mark.parametrize("format, package", [("hdf5", "h5py"), ("shards", "litdata")])
def test_a_missing_package(make, tmp_path, monkeypatch, format, package):
    pack = packed(make.two_folders(tmp_path / "pairs"), tmp_path, format)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"{package} .*: pip install -e '.\[{format}\]'"):
        open_data("x", "train", data_dir=pack)
