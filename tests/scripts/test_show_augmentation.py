"""The picture's rows are the samples of the loader, with one step of augmentation more each."""

from itertools import islice

import numpy as np
import pytest
from PIL import Image

from datasets import Augmentation, open_data, train_batches
from datasets.augmentation import Affine
from ddbm.symmetry.groups import GROUPS
from scripts.show_augmentation import GAP, HEAD, SAMPLES, main

FLAGS = "--dataset denoising --image_size 32 --mask circle --seed 3"


def test_every_row_is_a_training_with_one_step_more(tmp_path, capsys):
    more = "--degrade mask_random:0.5 --augment D4 --augment_angle 90 --augment_scale 0.2 --augment_shift 2"
    assert main([str(tmp_path / "a.png"), *FLAGS.split(), *more.split()]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "a.png")
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    steps = [("mask_random", 0.5)], GROUPS["D4"].elements, Affine(90, 0.2, 2)
    data = open_data("denoising", "train", image_size="32", mask="circle")
    for row in range(4):
        (batch,) = islice(train_batches(data, batch_size=SAMPLES, seed=3, augmentation=Augmentation(*steps[:row])), 1)
        for column in range(SAMPLES):
            for k, image in enumerate((batch.source[column], batch.target[column])):
                top, left = row * (32 + HEAD) + HEAD, column * (64 + GAP) + 32 * k
                shown = sheet[top : top + 32, left : left + 32]
                levels = ((image + 1) * 127.5).round().permute(1, 2, 0).numpy()
                assert (shown == np.where(batch.mask[column, 0, ..., None].numpy(), levels, 255)).all()


def test_mistakes(tmp_path):
    for out in ("a.jpg", "none/a.png"):
        with pytest.raises(ValueError, match=r"a\.\w+': expected the name of a PNG file in a folder that exists"):
            main([str(tmp_path / out), *FLAGS.split()])
