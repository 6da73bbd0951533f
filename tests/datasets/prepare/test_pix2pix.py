"""The archives of pix2pix: A|B in tar.gz, zip and folders."""

import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from datasets import open_data


def jpeg(seed):
    """256 x 512 as in the archives, but smaller: a left half that is dark, a right half that is bright."""
    rng = np.random.default_rng(seed)
    halves = [rng.integers(low, low + 50, (16, 16, 3), np.uint8) for low in (10, 200)]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(halves, 1)).save(file, "jpeg", quality=95)
    return file.getvalue()


FILES = {f"{part}/{i}_AB.jpg": jpeg(i) for part, ids in (("train", range(1, 6)), ("val", (7, 8))) for i in ids}


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "raw.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in [*FILES.items(), ("._hidden.jpg", b""), ("__MACOSX/train/1_AB.jpg", b""), ("README", b"x")]:
            member = tarfile.TarInfo(f"edges2handbags/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_archive_keeps_the_files(archive, prepare):
    manifest, out, said = prepare("edges2handbags", source="raw.tar.gz")
    assert manifest["pairs"] == {"train": 5, "val": 2}
    assert manifest["sources"] == {"raw.tar.gz": hashlib.sha256(archive.read_bytes()).hexdigest()}
    assert {name: (out / name).read_bytes() for name in FILES} == FILES
    assert said.splitlines()[-1] == f"DATA_DIR={out} bash train_ddbm.sh e2h i2sb"
    item = open_data("e2h", "val", data_dir=str(out), layout="side_by_side").get(0, None)
    assert item.source.mean() < -0.5 < 0.5 < item.target.mean()  # edges left, photograph right


def test_facades_are_made_from_the_right_half(archive, prepare):
    _, out, said = prepare("facades", "--image_size", 8, source="raw.tar.gz")
    assert said.splitlines()[-1].endswith(
        "train_ddbm.sh facades i2sb --layout side_by_side --source_half right --image_size 32"
    )
    data = open_data("facades", "train", data_dir=str(out), layout="side_by_side", source_half="right")
    assert data.size == (8, 8) and data.get(0, None).source.mean() > 0.5


def test_smaller_is_the_mean_of_pixels(archive, prepare):
    """Antialiased bilinear to the half: by torch, of the decoded JPEG."""
    import torch

    _, out, _ = prepare("edges2handbags", "--image_size", 8, source="raw.tar.gz")
    whole = torch.tensor(np.array(Image.open(io.BytesIO(FILES["train/1_AB.jpg"])))).permute(2, 0, 1)[None].float()
    halves = [torch.nn.functional.interpolate(h, (8, 8), mode="bilinear", antialias=True) for h in whole.split(16, 3)]
    expected = torch.cat(halves, 3)[0].permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(Image.open(out / "train/1_AB.png")) - expected).max() <= 0.51


def test_folder_zip_and_archive_agree(archive, tmp_path, prepare, bytes_below):
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "raw", filter="data")
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as packed:
        for name, data in FILES.items():
            packed.writestr(f"edges2handbags/{name}", data)
    found = []
    for source in ("raw.tar.gz", "raw", "raw.zip"):
        manifest, out, _ = prepare("edges2handbags", source=source, out=f"out_{source}")
        files = bytes_below(out)
        files.pop("manifest.json")
        found.append((files, manifest["pairs"], manifest["splits"]))
    assert found[0] == found[1] == found[2]
    assert manifest["sources"] != {}


@pytest.mark.parametrize("left", [0.5, 0.97, 0.999])
def test_truncated_archive(archive, left, prepare):
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * left)])
    with pytest.raises(ValueError, match=r"raw.tar.gz: cannot be read as zip or tar, .*download it again"):
        prepare("edges2handbags", source="raw.tar.gz")


def test_a_tar_that_ends_between_two_pictures(tmp_path, archive, prepare):
    with tarfile.open(archive) as stream, tarfile.open(tmp_path / "raw.tar", "w") as plain:
        for member in stream:
            plain.addfile(member, stream.extractfile(member) if member.isfile() else None)
    prepare("edges2handbags", source="raw.tar", out="whole")
    with tarfile.open(tmp_path / "raw.tar") as plain:
        end = [member.offset for member in plain][-1]
    (tmp_path / "raw.tar").write_bytes((tmp_path / "raw.tar").read_bytes()[:end])
    with pytest.raises(
        ValueError, match=r"raw.tar: cannot be read as .*no tar, or its end is missing.*download it again"
    ):
        prepare("edges2handbags", source="raw.tar")


def test_odd_width_and_no_folder(tmp_path, prepare, make):
    make.write(tmp_path / "raw/train/a.png", make.noise(4, 9))
    with pytest.raises(ValueError, match=r"a.png: 9 pixels wide, expected two images"):
        prepare("edges2handbags")
    make.write(tmp_path / "other/a.png", make.noise(4, 8))
    with pytest.raises(ValueError, match=r"a.png lies in no folder train, val or test"):
        prepare("edges2handbags", source="other", out="out2")
