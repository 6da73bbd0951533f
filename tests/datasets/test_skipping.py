"""A file that cannot be read ends a training, or is passed over, said once, listed, and moves no other."""

from itertools import islice

import numpy as np
import pytest
import torch

from datasets import eval_batches, open_data, train_batches
from datasets.skipping import LIST, Skipped


@pytest.fixture
def broken(make, tmp_path):
    root = make.two_folders(tmp_path, 12)
    for name in ("train/source/0.png", "train/target/4.png"):
        (tmp_path / name).write_bytes(b"broken")
    for n in range(3):
        for side in ("source", "target"):
            make.write(tmp_path / "val" / side / f"{n}.png", make.noise(seed=n))
    return root


def opened(root, **more):
    return open_data("mine", "train", data_dir=root, skip_unreadable=True, **more)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_the_order_of_the_others_stays(broken, make, tmp_path, capsys, workers):
    data = opened(broken)
    assert capsys.readouterr().err == ""  # what was found by then is said with the folder
    data.skipped.write_into(tmp_path)
    order = np.random.default_rng((7, 0)).permutation(12)
    batches = list(islice(train_batches(data, batch_size=4, seed=7, workers=workers, skip=True), 3))
    found = torch.cat([batch.index for batch in batches]).tolist()
    bad = {data.names.index(name) for name in ("0", "4")}
    assert [i for i, n in zip(found, order, strict=True) if n not in bad] == [n for n in order if n not in bad]
    for place, n in enumerate(order):
        if n in bad:  # the next that can be read
            following = [order[(place + k) % 12] for k in range(12)]
            assert found[place] == next(k for k in following if k not in bad)
        image = make.stored(torch.cat([batch.target for batch in batches])[place])
        assert np.array_equal(image, make.noise(seed=int(data.names[found[place]])))
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2 and warnings[0].startswith("warning: passed over (1 so far): ")
    assert "cannot be read" in warnings[1] and "(2 so far)" in warnings[1]


def test_validation_leaves_them_out(broken):
    batches = list(eval_batches(opened(broken), batch_size=1, skip=True))
    names = [opened(broken).names[i] for batch in batches for i in batch.index.tolist()]
    assert len(names) == 10 and not {"0", "4"} & set(names)


def test_without_being_told_so_the_file_is_an_error(broken):
    with pytest.raises(ValueError, match=r"source/0\.png: cannot be read"):
        open_data("mine", "train", data_dir=broken)
    with pytest.raises(ValueError, match=r"(source/0|target/4)\.png: cannot be read"):
        list(islice(train_batches(opened(broken), batch_size=4, seed=7), 3))


def test_pairs_that_do_not_fit_are_still_an_error(make, tmp_path):
    root = make.two_folders(tmp_path, 3)
    make.write(tmp_path / "train/target/1.png", make.noise(channels=1))
    with pytest.raises(ValueError, match="has 1 channels, expected 3 as in 0"):
        list(islice(train_batches(opened(root), batch_size=2, seed=0, skip=True), 2))


def test_where_nothing_can_be_read(broken, tmp_path):
    data = opened(broken)
    for n in range(12):
        (tmp_path / f"train/source/{n}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 12 pairs can be read; .*cannot be read"):
        next(train_batches(data, batch_size=2, seed=0, skip=True))
    with pytest.raises(ValueError, match=r"source/9\.png: cannot be read"):
        opened(broken)


def test_the_list_goes_on_with_a_run(tmp_path, capsys):
    skipped = Skipped()
    skipped.tell("a")
    skipped.write_into(tmp_path)
    for problem in ("b", "a", "b"):
        skipped.tell(problem)
    assert (tmp_path / LIST).read_text() == "a\nb\n" and capsys.readouterr().err.count("\n") == 2
    again = Skipped()
    again.tell("b")
    again.write_into(tmp_path)
    again.tell("a"), again.tell("c")
    assert (tmp_path / LIST).read_text() == "a\nb\nc\n"
    assert capsys.readouterr().err.splitlines()[-1] == "warning: passed over (3 so far): c"
