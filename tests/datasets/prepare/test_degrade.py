"""Any folder or archive of pictures, made worse."""

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.images import Picture
from datasets.prepare.degrade import coloured
from tests.datasets.prepare.raws import image, photographs, saved


@pytest.fixture
def raw(tmp_path):
    return photographs(tmp_path).rename(tmp_path / "raw")


def pixels(path):
    return np.asarray(Image.open(path))


def test_targets_are_the_pictures(raw, prepare):
    manifest, out, said = prepare("degrade", "--degrade", "mask_random:0.5")
    assert (
        manifest["pairs"] == {"train": 3, "val": 1, "test": 1}
        and "train_ddbm.sh degraded i2sb --image_size 32x40 --degrade mask_random:0.5" in said
    )
    targets = sorted(out.rglob("target/*/*.png"))
    assert len(targets) == 5
    for target in targets:
        inner = target.relative_to(target.parents[1])
        assert (pixels(target) == pixels(raw / inner)).all()
        source = pixels(target.parents[2] / "source" / inner)
        gone = (source == 128).all(-1)
        assert 0.3 < gone.mean() < 0.7 and (source[~gone] == pixels(target)[~gone]).all()


def test_grey_among_colours(tmp_path, prepare):
    """As in ImageNet: alike in channels, as they are or by Pillow's luma."""
    pictures = {"grey": image(8, 8, 1, channels=1), "colour": image(8, 8, 2)}
    for name, picture in pictures.items():
        saved(tmp_path / f"raw/{name}.png", picture)
    flags = ["--val", 0, "--test", 0, "--degrade", "blur:0"]
    for part, kind in (("a", "grey"), ("b", "colour")):
        saved(tmp_path / f"alike/{part}/{kind}.png", pictures["colour"])
    _, out, _ = prepare("degrade", *flags, "--colour", "stored", source="alike", out="alike_out")
    assert np.array_equal(pixels(out / "train/source/a/grey.png"), np.asarray(pictures["colour"]))
    with pytest.raises(
        ValueError, match=r"^grey.png makes pictures of 1 and 1 channels, colour.png of 3 and 3: convert"
    ):
        prepare("degrade", *flags, "--colour", "stored", out="mixed")
    for colour, mode in (("rgb", "RGB"), ("grey", "L")):
        _, out, _ = prepare("degrade", *flags, "--colour", colour, out=colour)
        for name, picture in pictures.items():
            expected = np.asarray(picture.convert(mode)).astype(int)
            for side in ("source", "target"):
                assert np.abs(pixels(out / f"train/{side}/{name}.png") - expected).max() <= (colour == "grey")
    with pytest.raises(ValueError, match=r"a.tif: 2 channels, expected grey or RGB; set --colour stored"):
        coloured(Picture(np.zeros((4, 4, 2), np.uint8), None), "rgb", Path("a.tif"))


def test_owners_parts_and_groups(tmp_path, prepare):
    for part, count in (("train", 6), ("test", 2)):
        for i in range(count):
            saved(tmp_path / f"raw/{part}/p{i // 2}_{i}.png", image(8, 8, i))
    manifest, _, _ = prepare("degrade", "--group_by", "p[0-9]", "--val", 0.3)
    assert manifest["pairs"] == {"train": 4, "val": 2, "test": 2}
    assert len({name.split("_")[0] for name in manifest["splits"]["val"]}) == 1


def test_zip_gives_the_same(raw, tmp_path, prepare, bytes_below):
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as packed:
        for path in sorted(raw.rglob("*.png")):
            packed.write(path, path.relative_to(raw))
    found = [bytes_below(prepare("degrade", source=source, out=f"out_{source}")[1]) for source in ("raw", "raw.zip")]
    assert {k: v for k, v in found[0].items() if k != "manifest.json"} == {
        k: v for k, v in found[1].items() if k != "manifest.json"
    }


def test_grey_alpha_and_sizes(tmp_path, prepare):
    saved(tmp_path / "raw/grey.png", image(8, 12, channels=1))
    clear = image(8, 12, channels=4)
    clear.putalpha(Image.fromarray(np.repeat([[0], [255]], 4, 0).astype(np.uint8).repeat(12, 1)))
    saved(tmp_path / "raw/clear.png", clear)
    _, out, _ = prepare("degrade", "--val", 0, "--test", 0, "--image_size", 4)
    assert pixels(out / "train/target/grey.png").shape == (4, 4, 3)
    assert pixels(out / "train/source/clear.png").shape == (4, 4, 4)
    assert (pixels(out / "train/source/clear.png")[:2, :, 3] == 0).all()


def test_archives_of_other_kinds(raw, tmp_path, prepare):
    """Encrypted, and of a method that zipfile does not have, by the bits that say so."""
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as packed:
        for path in sorted(raw.rglob("*.png")):
            packed.write(path, path.relative_to(raw))
    content = (tmp_path / "raw.zip").read_bytes()
    for name, at, value in (("locked", 6, 1), ("other", 8, 9)):  # flags and method, of local headers and of the list
        changed = bytearray(content)
        for start, offset in ((b"PK\3\4", at), (b"PK\1\2", at + 2)):
            place = -1
            while (place := content.find(start, place + 1)) >= 0:
                changed[place + offset] = value
        (tmp_path / f"{name}.zip").write_bytes(changed)
        with pytest.raises(ValueError, match=rf"{name}.zip: cannot be read as zip or tar, .*give the extracted"):
            prepare("degrade", source=f"{name}.zip", out=name)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_tars_are_the_folder_and_links_in_them_are_refused(raw, tmp_path, prepare, kind):
    with tarfile.open(tmp_path / f"raw.tar.{kind}", f"w:{kind}") as packed:
        packed.add(raw, ".")
    _, out, _ = prepare("degrade", "--degrade", " noise:3, blur:1", source=f"raw.tar.{kind}", out="packed")
    _, folder, _ = prepare("degrade", "--degrade", "noise:3,blur:1", out="folder")
    names = sorted(path.relative_to(folder) for path in folder.rglob("*/*.png"))
    assert names and all((out / name).read_bytes() == (folder / name).read_bytes() for name in names)
    (raw / "link.png").symlink_to(next(raw.rglob("*.png")))
    with tarfile.open(tmp_path / f"raw.tar.{kind}", f"w:{kind}") as packed:
        packed.add(raw, ".")
    with pytest.raises(ValueError, match=r"raw.tar.*: ./link.png is a link to .*; give the extracted folder"):
        prepare("degrade", source=f"raw.tar.{kind}", out="linked")


def test_mistakes(raw, tmp_path, prepare, make):
    picture = next(raw.rglob("*.png"))
    with pytest.raises(ValueError, match=r"png: is a picture, expected a folder or an archive of pictures"):
        prepare("degrade", source=picture, out="one")
    with pytest.raises(ValueError, match="unknown degradation 'fog'"):
        prepare("degrade", "--degrade", "fog:1")
    with pytest.raises(ValueError, match=r"\.png: downsample:5 does not divide 12x16 pixels; set another --image_size"):
        prepare("degrade", "--degrade", "downsample:5", out="size")
    make.write(tmp_path / "deep/a.png", make.noise(8, 8, dtype=np.uint16))
    with pytest.raises(ValueError, match=r"a.png: pixels are uint16, expected 8 bits a channel; convert it"):
        prepare("degrade", "--val", 0, "--test", 0, source="deep", out="deep_out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no images found; give the folder or archive"):
        prepare("degrade", source="empty", out="empty_out")
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.raises(ValueError, match=r"text.zip: cannot be read as zip or tar, .gz, .bz2, .xz "):
        prepare("degrade", source="text.zip", out="zip_out")


def test_capitals_of_the_owners_parts_do_not_count(tmp_path, prepare):
    for name in ("Train/val/a", "Train/b", "TEST/train"):
        saved(tmp_path / f"raw/{name}.png", image(8, 8))
    manifest, _, _ = prepare("degrade", "--val", 0)
    assert manifest["splits"] == {"train": ["train/a", "train/b"], "test": ["test/train"]}
