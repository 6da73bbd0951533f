"""The picture's rows are the samples of the loader, with one step of augmentation more each."""

from itertools import islice

import numpy as np
import pytest
from PIL import Image

from datasets import Augmentation, open_data, train_batches
from datasets.augmentation import Affine
from ddbm.symmetry.groups import GROUPS
from scripts.show_augmentation import GAP, HEAD, SAMPLES, main
from tests.datasets.make import two_folders


def test_every_row_is_a_training_with_one_step_more(tmp_path, capsys):
    how = {"dataset": "mine", "data_dir": two_folders(tmp_path / "pairs", 7, height=32, width=32), "mask": "circle"}
    how |= {"degrade": "mask_random:0.5", "image_size": "16"}
    flags = [word for name, value in how.items() for word in (f"--{name}", value)]
    more = "--seed 3 --augment D4 --augment_angle 90 --augment_scale 0.2 --augment_shift 2"
    assert main([str(tmp_path / "a.png"), *flags, *more.split()]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "a.png")
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet.shape == (3 * (80 + HEAD), SAMPLES * (160 + GAP) - GAP, 3)  # 5 times as large
    steps = GROUPS["D4"].elements, Affine(90, 0.2, 2)
    data = open_data(split="train", **how)
    for row in range(3):
        (batch,) = islice(train_batches(data, batch_size=SAMPLES, seed=3, augmentation=Augmentation(*steps[:row])), 1)
        assert batch.index.tolist() != [0, 1, 2]
        for column in range(SAMPLES):
            for k, image in enumerate((batch.source[column], batch.target[column])):
                top, left = row * (80 + HEAD) + HEAD, column * (160 + GAP) + 80 * k
                shown = sheet[top : top + 80, left : left + 80]
                assert (shown == shown[::5, ::5].repeat(5, 0).repeat(5, 1)).all()
                shown = shown[::5, ::5]
                levels = ((image + 1) * 127.5).round().permute(1, 2, 0).numpy()
                assert (shown == np.where(batch.mask[column, 0, ..., None].numpy(), levels, 255)).all()


def test_mistakes(tmp_path):
    for out in ("a.jpg", "none/a.png"):
        with pytest.raises(ValueError, match=r"a\.\w+': expected the name of a PNG file in a folder that exists"):
            main([str(tmp_path / out), "--dataset", "denoising"])


def test_a_damaged_file_is_passed_over_as_in_training(tmp_path):
    pairs = tmp_path / "pairs"
    flags = ["--dataset", "mine", "--data_dir", two_folders(pairs, 7, height=32, width=32), "--augment", "none"]
    data = open_data(dataset="mine", data_dir=str(pairs), split="train")
    name = next(iter(train_batches(data, batch_size=1, seed=0))).index
    next(pairs.rglob(f"{data.names[int(name)]}.png")).write_bytes(b"")
    with pytest.raises(ValueError, match="cannot identify its format"):
        main([str(tmp_path / "a.png"), *flags])
    assert main([str(tmp_path / "a.png"), *flags, "--skip_unreadable", "true"]) == 0
