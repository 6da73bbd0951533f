"""Latents on the disk as pairs: the copy that was turned before, in batches, and what is not whole."""

import dataclasses
import json
import pickle
from itertools import islice

import numpy as np
import pytest
import torch

from datasets import Augmentation, batches_of, train_batches
from datasets.latents import Latents, Pack, read_pack
from ddbm.config import DataConfig, ImageShape
from ddbm.settings import to_dict
from ddbm.symmetry.groups import GROUPS
from tests.ddbm.runs import one_line

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
GROUP = GROUPS["D2"]


@pytest.fixture
def folder(tmp_path):
    """5 pairs under D2, with masks and 3 classes; numbers at random."""
    return packed(tmp_path / "pack", classes=3, masked=True)


def packed(folder, classes=0, masked=False, **changes):
    shape, rng = (5, 4, 2, 3, 4), np.random.default_rng(1)
    images, data = ImageShape(3, 1, 12, 16, classes), DataConfig("mine", num_classes=classes)
    marks = {"train_pairs": 5, "train_names": "abc", "train_source_mean": 0.25}
    pack = Pack("0123456789", data, images, marks, "D2", GROUP.elements, "mode", "fp32", 64, shape, 5, masked)
    folder.mkdir()
    (folder / "latents.json").write_text(json.dumps(to_dict(dataclasses.replace(pack, **changes))))
    for side in ("target", "source"):
        np.save(folder / f"{side}.npy", rng.normal(size=shape).astype(np.float32))
    if masked:
        np.save(folder / "mask.npy", rng.random((5, 4, 1, 3, 4)) > 0.5)
    if classes:
        np.save(folder / "label.npy", rng.integers(0, 3, 5))
    return folder


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_take_the_copy_of_the_drawn_element(folder, workers):
    """In the order and with the elements of training on images, whose loader only turns."""
    target, source, mask, label = (np.load(folder / f"{n}.npy") for n in ("target", "source", "mask", "label"))
    elements = (GROUP.elements[2], GROUP.elements[0], GROUP.elements[1])
    batches = train_batches(
        Latents(folder),
        batch_size=3,
        seed=4,
        start_step=1,
        augmentation=Augmentation(elements=elements),
        workers=workers,
    )
    drawn = set()
    for step, batch in enumerate(islice(batches, 6), 1):
        for j in range(3):
            epoch, position = divmod(3 * step + j, 5)
            i = int(np.random.default_rng((4, epoch)).permutation(5)[position])
            k = (2, 0, 1)[int(np.random.default_rng((4, 1, 3 * step + j)).integers(3))]
            drawn.add(k)
            assert batch.index[j] == i and batch.label[j] == label[i]
            for found, wanted in ((batch.target, target), (batch.source, source), (batch.mask, mask)):
                assert np.array_equal(found[j], wanted[i, k])
    assert drawn == {0, 1, 2}
    (whole,) = batches_of(Latents(folder), [range(5)], workers)
    assert np.array_equal(whole.source, source[:, 0]) and whole.target.dtype == torch.float32


def test_without_masks_and_classes(tmp_path):
    pairs = Latents(packed(tmp_path / "pack"))
    item = pairs.get(3, np.random.default_rng(0))
    assert item.mask is None and item.label is None and len(pairs) == 5
    item.target.zero_()  # a copy
    assert pairs.get(3, None).target.all()


def test_a_worker_opens_the_files_itself(folder):
    sent = pickle.dumps(Latents(folder))
    assert len(sent) < 1000 and torch.equal(pickle.loads(sent).get(1, None).source, Latents(folder).get(1, None).source)


def test_what_sets_packs_apart(folder):
    pack = read_pack(folder)
    assert pack == dataclasses.replace(pack) and pack.apart(pack, "group", "whole") == []
    others = {
        "codec": ("abcdefghijk", "codec: 01234567 -> abcdefgh"),
        "data": (dataclasses.replace(pack.data, fit="crop", data_dir="elsewhere"), "fit: resize -> crop"),
        "images": (dataclasses.replace(pack.images, width=20), "width: 16 -> 20"),
        "marks": (pack.marks | {"train_pairs": 6, "train_source_mean": 0.2501}, "train_pairs: 5 -> 6"),
        "whole": (32, "whole: 64 -> 32"),
    }
    for name, (value, said) in others.items():
        assert pack.apart(dataclasses.replace(pack, **{name: value}), "group", "whole") == [said]
    assert pack.apart(dataclasses.replace(pack, whole=32, done=2, masked=False)) == []


def test_what_is_not_whole_is_refused(folder, tmp_path):
    with one_line(tmp_path, "holds no latents, there is no latents.json: scripts.encode_dataset makes them"):
        Latents(tmp_path)
    with one_line("half holds latents of 2 of 5 pairs: the command that began it goes on"):
        Latents(packed(tmp_path / "half", done=2))
    path, record = folder / "latents.json", json.loads((folder / "latents.json").read_text())
    for change, words in (
        (lambda r: r.pop("marks"), "is damaged: it lacks marks"),
        (lambda r: r.update(more=1), "unknown settings more"),
        (lambda r: r.update(shape=[5, 4, 1, 3, 4]), "target.npy is gone or damaged: encode into another folder"),
    ):
        changed = json.loads(json.dumps(record))
        change(changed)
        path.write_text(json.dumps(changed))
        with one_line(folder, words):
            Latents(folder)
    path.write_text(json.dumps(record))
    for name in ("target", "source", "mask", "label"):
        array = folder / f"{name}.npy"
        held, values = array.read_bytes(), np.load(array)
        for spoil in (
            array.unlink,
            lambda array=array, held=held: array.write_bytes(held[:-1]),
            lambda array=array, held=held: array.write_bytes(held[:20]),
            lambda array=array, values=values: np.save(array, values.astype(np.float16)),
        ):
            spoil()
            with one_line(array, "is gone or damaged"):
                Latents(folder)
        array.write_bytes(held)
    assert len(Latents(folder)) == 5
