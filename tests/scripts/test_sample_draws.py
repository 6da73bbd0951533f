"""Several draws of every image: their seeds, going on with them, and what is written."""

import json

import numpy as np
import pytest
import torch

from ddbm.config import SampleConfig
from ddbm.model import load
from ddbm.model import sample as sample_by
from ddbm.symmetry.frames import seed_of
from evaluations.images import load_images, to_bytes
from scripts import sample
from scripts.sampling_store import Store
from tests.scripts.sampling_runs import Counter, Killed, arrays, assert_same_files, drawn, killed_after, sampled

COUNT, DRAWS = 6, ("--draws", 3)


@pytest.fixture(scope="module")
def three(model, tmp_path_factory):
    return sampled(model, tmp_path_factory.mktemp("three"), *DRAWS, count=COUNT)


def test_every_draw_has_noise_of_its_own(model, expected, three):
    """The first that of one draw; the others as Python draws them with the seeds that are documented."""
    found = arrays(three, "samples")
    assert list(found) == ["arr_0", "names", "order_digest", "draws"]
    assert found["draws"].shape == (COUNT, 3, 16, 16, 3) and found["draws"].dtype == np.uint8
    assert np.array_equal(found["draws"][:, 0], found["arr_0"]) and (three / "samples_6x16x16x3_nfe4.npz").exists()
    one = arrays(expected, "samples")["arr_0"][:COUNT].astype(int)
    assert np.abs(found["arr_0"].astype(int) - one).max() <= 1  # the last two in a batch of another size
    source = torch.from_numpy(arrays(three, "reference")["source"] / 127.5 - 1).permute(0, 3, 1, 2).float()
    network = load(model, device="cpu")
    for draw in (1, 2):
        other = to_bytes(sample_by(network, source, nfe=4, seed=seed_of(0, draw)).x_0)
        assert np.abs(found["draws"][:, draw].astype(int) - other).max() <= 1
        assert np.abs(found["draws"][:, draw].astype(int) - one).mean() > 2
    record = json.loads((three / "sampling.json").read_text())
    assert record["draws"] == record["depends_on"]["draws"] == 3 and record["nfe"] == 4
    assert load_images(three / record["samples"]).number == 3 and not (three / ".parts").exists()


@pytest.mark.parametrize("calls", [1, 3, 5])
def test_killed_it_keeps_every_finished_draw(model, three, tmp_path, monkeypatch, capsys, calls):
    killed_after(monkeypatch, calls, model, tmp_path, *DRAWS, count=COUNT)
    assert drawn(monkeypatch, model, tmp_path, *DRAWS, count=COUNT) == [4, 2, 4, 2, 4, 2][calls:]
    assert f"{sum([4, 2, 4, 2, 4, 2][:calls])} of 18 draws were sampled before" in capsys.readouterr().out
    assert_same_files(tmp_path, three)


def test_more_images_keep_the_draws_of_those_before(model, three, tmp_path, monkeypatch):
    sampled(model, tmp_path, *DRAWS, count=4)
    assert drawn(monkeypatch, model, tmp_path, *DRAWS, count=COUNT) == [2, 2, 2]
    assert_same_files(tmp_path, three)
    assert drawn(monkeypatch, model, tmp_path, *DRAWS, "--png", "true", "--trajectory", 1, count=COUNT) == [1]
    assert len(list(tmp_path.glob("samples_*/*.png"))) == COUNT


def test_another_number_of_draws_is_another_sampling(model, expected, tmp_path, monkeypatch):
    """One draw is what there was before there were several."""
    record = json.loads((expected / "sampling.json").read_text())
    assert "draws" not in record["depends_on"] and record["draws"] == 1
    assert list(arrays(expected, "samples")) == ["arr_0", "names", "order_digest"]
    sampled(model, tmp_path / "one", count=2)
    with pytest.raises(ValueError, match=r"holds 2 images of another sampling \(draws: 1 -> 3\)"):
        sampled(model, tmp_path / "one", *DRAWS, count=2)
    killed_after(monkeypatch, 1, model, tmp_path / "three", *DRAWS, count=2)
    with pytest.raises(ValueError, match=r"unfinished sampling .*\(draws: 3 -> 1\)"):
        sampled(model, tmp_path / "three", count=2)
    with pytest.raises(ValueError, match="--draws must be above 0, found 0"):
        sampled(model, tmp_path / "none", "--draws", 0)
    assert sample.describe(SampleConfig(nfe=7, split="val", draws=4), "") == "val_dbim_nfe7_eta0_seed0_draws4"


def test_the_store_keeps_draws_apart(tmp_path):
    store = Store(tmp_path, (4, 2, 2, 1), 3)
    store.begin({}, False)
    store.write(1, np.full((2, 2, 2, 1), 7, np.uint8), 5, 2)
    store.write(0, np.full((1, 2, 2, 1), 9, np.uint8), 6)
    assert store.evaluations().reshape(3, 4).tolist() == [[6, 0, 0, 0], [0] * 4, [0, 5, 5, 0]]
    assert (store.count(), store.count(2), store.count(1)) == (3, 2, 1)
    assert store.images(3)[:, :, 0, 0, 0].tolist() == [[9, 0, 0], [0] * 3, [0, 7, 7]]


def test_a_draw_that_is_lost_is_said(model, tmp_path, monkeypatch):
    own = Store.write

    def write(store, start, images, nfe, draw=0):
        if (start, draw) != (4, 1):
            own(store, start, images, nfe, draw)

    monkeypatch.setattr(Store, "write", write)
    with pytest.raises(ValueError, match=r"image 4 is gone from .*\.parts"):
        sampled(model, tmp_path, *DRAWS, count=COUNT)


def test_killed_while_the_files_are_written(model, three, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        Counter(patch, sample, "write_samples", 0)
        sampled(model, tmp_path, *DRAWS, count=COUNT)
    assert drawn(monkeypatch, model, tmp_path, *DRAWS, count=COUNT) == []
    assert_same_files(tmp_path, three)
