"""Pairs in a store: found, refused and read as those in a local folder."""

import multiprocessing

import numpy as np
import pytest
import torch

from datasets import open_data, train_batches
from ddbm.files.storage import location
from tests.ddbm.files.stores import ROOTS

LAYOUTS = {
    "two_folders": ("train/A/a/0.png train/B/a/0.tif train/A/1.jpg train/B/1.jpg val/A/2.png val/B/2.png", {}),
    "beside_splits": (" ".join(f"source/{n:02}.png target/{n:02}.png" for n in range(12)), {}),
    "side_by_side": ("train/x.png train/y.bmp train/z.webp test/x.png", {"source_half": "right"}),
    "suffix": ("s/a.png s/a_normal.png s/t/b.tif s/t/b_normal.png s/t/b_depth.png", {"source_suffix": "_normal"}),
    "classes": ("train/A/cat/1.png train/B/cat/1.png train/A/dog/2.png train/B/dog/2.png", {"num_classes": 2}),
    "litter": ("A/1.png B/1.png A/2.png B/2.png A/.x.png A/.x/y.png A/__MACOSX/q.png A/notes.txt", {}),
    "odd names": ("A/ü#1%2?.png B/ü#1%2?.png A/[x]&+.png B/[x]&+.png", {}),
    "16 bit": ("A/1.png B/1.png A/2.tif B/2.tif", {"dtype": np.uint16}),
}
REFUSED = {
    "nothing": [],
    "one folder": ["train/A/a.png"],
    "no partner": ["train/A/a.png", "train/A/b.png", "train/B/a.png"],
    "twice": ["train/A/a.png", "train/B/a.png", "train/A/a.tif"],
    "ambiguous": ["train/A/a.png", "train/B/a.png", "train/a.png"],
    "no images": ["train/A/x.txt", "train/B/x.txt"],
    "no training": ["val/A/a.png", "val/B/a.png"],
    "other": ["odd/a.png"],
}


@pytest.fixture(params=ROOTS)
def remote(request, server):
    return location(f"{ROOTS[request.param]}/my data")


def put(make, folder, remote, names, dtype=np.uint8):
    """Files below a local folder, and the same in a store."""
    folder.mkdir()
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("not an image")
        else:
            make.write(path, make.noise(8, 16, seed=seed, dtype=dtype))
        (remote / name).write_bytes(path.read_bytes())
    return folder, remote


def told(error, place):
    return type(error), str(error).replace(str(place), "HERE")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_are_those_of_a_local_folder(make, tmp_path, remote, layout):
    names, options = LAYOUTS[layout]
    options = dict(options)
    places = put(make, tmp_path / "data", remote, names.split(), options.pop("dtype", np.uint8))
    for split in ("train", "val"):
        own, other = (open_data("mine", split, data_dir=place, **options) for place in places)
        assert own.names == other.names and own.size == other.size and len(own) > 0
        assert own.notice.replace(str(places[0]), "") == other.notice.replace(str(places[1]), "")
        for index in range(len(own)):
            for a, b in zip(own.get(index, None), other.get(index, None), strict=True):
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("names", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_in_a_local_folder_is_in_a_store(make, tmp_path, remote, names):
    places = put(make, tmp_path / "data", remote, [*names, "readme/x.txt"])
    errors = []
    for place in places:
        with pytest.raises(ValueError, match=r".") as error:
            open_data("mine", "train", data_dir=place)
        errors.append(told(error.value, place))
    assert errors[0] == errors[1] and "\n" not in errors[1][1]


def test_places_that_are_no_folder(make, tmp_path, remote):
    places = put(make, tmp_path / "data", remote, ["x.png"])
    for name in ("gone", "x.png"):
        errors = []
        for place in places:
            with pytest.raises(FileNotFoundError) as error:
                open_data("mine", "train", data_dir=place / name)
            errors.append(told(error.value, place))
        assert errors[0] == errors[1]


def test_a_damaged_file_is_named(make, tmp_path, remote):
    put(make, tmp_path / "data", remote, ["A/1.png", "B/1.png", "A/2.png", "B/2.png"])
    data = open_data("mine", "val", data_dir=remote)
    for content in (b"<html>\n</html>", b"", (remote / "A" / "2.png").read_bytes()[:60]):
        (remote / "A" / "2.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"2\.png: cannot be read") as error:
            data.get(0, None)
        assert str(error.value).startswith(str(remote / "A")) and "\n" not in str(error.value)


def test_a_store_that_fails_is_one_line(make, tmp_path, remote, server):
    server.ill = lambda request: 403
    with pytest.raises(OSError, match="my data: ") as error:
        open_data("mine", "train", data_dir=remote)
    assert "\n" not in str(error.value)


def test_an_image_is_two_requests(make, tmp_path, server):
    remote = location("gs://bucket/data")
    put(make, tmp_path / "data", remote, ["A/1.png", "B/1.png", "A/2.tif", "B/2.jpg"])
    data = open_data("mine", "train", data_dir=remote)
    server.asked.clear()
    data.get(0, None)
    assert len(server.asked) == 4


FORKS = multiprocessing.get_all_start_methods()[0] == "fork"  # else the workers know nothing of the server
WORKERS = [0, pytest.param(2, marks=pytest.mark.skipif(not FORKS, reason="needs forked workers"))]


@pytest.mark.parametrize("workers", WORKERS)
def test_batches_by_processes(make, tmp_path, remote, workers):
    places = put(make, tmp_path / "data", remote, [f"{side}/{n}.png" for side in "AB" for n in range(12)])
    batches = []
    for place in places:
        data = open_data("mine", "train", data_dir=place)
        loader = train_batches(data, batch_size=3, seed=0, workers=workers)
        batches.append([next(loader) for _ in range(3)])
        del loader
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a.target, b.target) and torch.equal(a.source, b.source) and torch.equal(a.index, b.index)
