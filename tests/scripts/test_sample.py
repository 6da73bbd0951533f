"""Sampling a data set: resumable, in any batches, in bounded memory, and all that is written."""

import hashlib
import json
import tracemalloc

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from datasets import Item, open_data
from ddbm.config import SampleConfig
from ddbm.files import stores
from ddbm.model import Samples
from scripts import sample, sampling_files
from scripts.sampling_store import Store, missing
from tests.ddbm.files.stores import ROOTS
from tests.scripts.sampling_runs import (
    COUNT,
    Counter,
    arrays,
    assert_close,
    assert_same_files,
    drawn,
    killed_after,
    make_run,
    sampled,
)  # fmt: skip


@pytest.mark.parametrize(("work", "calls", "sizes"), [("draw", 2, [4, 2]), ("write_reference", 0, [])])
def test_killed_it_samples_the_rest(model, expected, tmp_path, monkeypatch, capsys, work, calls, sizes):
    killed_after(monkeypatch, calls, model, tmp_path, work=work)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", ".parts"]
    assert drawn(monkeypatch, model, tmp_path) == sizes
    assert not (tmp_path / ".parts").exists()
    assert f"{COUNT - sum(sizes)} of {COUNT} images were sampled before" in capsys.readouterr().out
    assert_same_files(tmp_path, expected)


@pytest.mark.parametrize("name", ["samples.npy", "nfe.npy"])
@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-30])])
def test_images_in_a_file_that_is_gone_or_cut_are_sampled_again(model, expected, tmp_path, monkeypatch, name, damage):
    killed_after(monkeypatch, 3, model, tmp_path)
    damage(tmp_path / ".parts" / name)
    assert drawn(monkeypatch, model, tmp_path) == [4, 4, 4, 2]
    assert_same_files(tmp_path, expected)


def old_layout(folder, starts, samples):
    """What an unfinished sampling was before: a file for every batch, of which the second is cut off."""
    store = folder / ".parts"
    header = json.loads((store / "header.json").read_text())
    del header["reader"], header["marks"]
    (store / "header.json").write_text(json.dumps(header))
    for start, stop in starts:
        part = samples["arr_0"][start:stop]
        np.savez(store / f"{start:08}_{stop:08}.npz", sample=part, target=part, source=part, nfe=np.array(4))
    (store / "samples.npy").unlink()
    (store / "nfe.npy").unlink()
    cut = store / "00000004_00000008.npz"
    cut.write_bytes(cut.read_bytes()[:-30])


def test_parts_of_an_older_version_are_taken_over(model, expected, tmp_path, monkeypatch, capsys):
    killed_after(monkeypatch, 1, model, tmp_path)
    old_layout(tmp_path, [(0, 4), (4, 8), (8, 12)], arrays(expected, "samples"))
    with pytest.raises(ValueError, match=r"12 images of an unfinished sampling .*\(seed: 0 -> 1\)"):
        sampled(model, tmp_path, "--seed", 1)
    killed_after(monkeypatch, 1, model, tmp_path)
    assert sorted(p.name for p in (tmp_path / ".parts").iterdir()) == ["header.json", "nfe.npy", "samples.npy"]
    capsys.readouterr()
    assert drawn(monkeypatch, model, tmp_path) == [2] and "note: an older version sampled" in capsys.readouterr().out
    assert_same_files(tmp_path, expected)


@pytest.mark.parametrize("batch", [3, 16])
def test_it_goes_on_in_batches_of_another_size(model, expected, tmp_path, monkeypatch, batch):
    killed_after(monkeypatch, 3, model, tmp_path)
    assert drawn(monkeypatch, model, tmp_path, batch=batch) == [2]
    assert_close(tmp_path, expected)
    own, other = (arrays(folder, "reference") for folder in (tmp_path, expected))
    assert own.keys() == other.keys() and all(np.array_equal(own[name], other[name]) for name in own)


def test_another_number_of_images_goes_on_too(model, expected, tmp_path, monkeypatch, capsys):
    killed_after(monkeypatch, 3, model, tmp_path)
    assert drawn(monkeypatch, model, tmp_path, "--png", "true", count=6) == []
    assert len(list(tmp_path.glob("*/*.png"))) == 6
    assert "note: 6 images more of an unfinished sampling are kept in" in capsys.readouterr().out
    for kind in ("samples", "reference"):
        assert np.array_equal(arrays(tmp_path, kind)["arr_0"], arrays(expected, kind)["arr_0"][:6])


def test_missing_images_keep_their_batches():
    there = np.zeros(18, int)
    assert missing(there[:10], 4) == [range(4), range(4, 8), range(8, 10)]
    there[4:8] = there[10:14] = 1
    assert missing(there, 4) == [range(4), range(8, 10), range(14, 16), range(16, 18)]
    assert missing(there[:12], 8) == [range(4), range(8, 10)]
    assert missing(there[:7], 100) == [range(4)]


def test_images_of_another_sampling_are_refused(model, tmp_path, monkeypatch):
    out = tmp_path / "out"
    killed_after(monkeypatch, 2, model, out)
    for flags, said in (
        (["--seed", 1], "seed: 0 -> 1"),
        (["--sampler", "heun"], "sampler: dbim -> heun"),
        (["--precision", "bf16"], "precision: fp32 -> bf16"),
        (["--split", "val"], "split: test -> val"),
    ):
        with pytest.raises(ValueError, match=rf"8 images of an unfinished sampling .*\({said}\).* --restart"):
            sampled(model, out, *flags)
    other = make_run(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="checkpoint_digest: "):
        sampled(other, out)
    fresh = sampled(other, tmp_path / "fresh")
    drawn = Counter(monkeypatch, sample, "draw")
    assert_same_files(sampled(other, out, "--restart"), fresh)
    assert sum(drawn.sizes) == COUNT


class Memory(Counter):
    """Holds so many images."""

    limit = 2

    def __call__(self, model, source, **settings):
        self.sizes.append(len(source))
        if len(source) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return self.own(model, source, **settings)


def test_a_batch_that_does_not_fit_is_halved(model, expected, tmp_path, monkeypatch, capsys):
    memory = Memory(monkeypatch, sample, "sample")
    sampled(model, tmp_path, batch=8)
    assert memory.sizes == [8, 4, 2, 2, 4, 2, 2, 6, 3, 1, 2, 3, 1, 2]
    out = capsys.readouterr().out
    assert "note: 8 images at once do not fit the memory" in out and out.count("note: 4 images at once") == 1
    assert_close(tmp_path, expected)
    memory.limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        sampled(model, tmp_path / "other", batch=2)


def test_what_is_written(model, expected, monkeypatch, tmp_path):
    samples, reference, record = arrays(expected, "samples"), arrays(expected, "reference"), expected / "sampling.json"
    assert samples["arr_0"].shape == reference["source"].shape == (COUNT, 16, 16, 3)
    assert samples["arr_0"].std() > 10 and reference["mask"].all() and reference["mask"].shape == (COUNT, 16, 16, 1)
    data = open_data("histology", "test", image_size="16")
    for i in (0, 5, COUNT - 1):
        item = data.get(i, None)
        for name, image in (("arr_0", item.target), ("source", item.source)):
            assert np.array_equal(reference[name][i], ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    order = hashlib.sha256("\n".join(data.names[:COUNT]).encode()).hexdigest()
    assert samples["order_digest"] == reference["order_digest"] == order and samples["order_digest"].shape == ()
    assert samples["names"].tolist() == reference["names"].tolist() == data.names[:COUNT]
    manifest = (model / "checkpoints" / "step_00000001" / "manifest.json").read_bytes()
    wanted = {
        "checkpoint_digest": hashlib.sha256(manifest).hexdigest(), "order_digest": order, "nfe": 4,
        "dataset": "histology", "split": "test", "count": COUNT,
    }  # fmt: skip
    assert wanted.items() <= json.loads(record.read_text()).items()
    with Image.open(expected / "grid.png") as picture:
        assert picture.size[0] > 6 * 64
    asked, own = [], sample.sample
    monkeypatch.setattr(sample, "sample", lambda *a, **k: asked.append(k["trajectory"]) or own(*a, **k))
    sampled(model, tmp_path, count=4)
    assert asked == [False] and not list(tmp_path.glob("trajectory*"))  # none is kept unless it is asked for


def test_the_most_evaluations_of_a_batch_are_said(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "draw", lambda model, batch, *_: Samples(batch.target, len(batch.index)))
    sampled(model, tmp_path, count=6)  # batches of 4 and 2
    assert (tmp_path / "samples_6x16x16x3_nfe4.npz").is_file()


def test_the_folder_is_named_by_what_decides_the_samples():
    assert sample.describe(SampleConfig(nfe=7, split="val"), "") == "val_dbim_nfe7_eta0_seed0"
    told = SampleConfig(nfe=7, split="test", order=3, grid="karras", weights="ema_0.5", precision="bf16", num_samples=2)
    assert sample.describe(told, "") == "test_dbim_nfe7_karras_order3_eta0_seed0_ema_0.5_bf16_first2"
    places = ("", "/a/data", "/b/data", "/c/data")
    names = {sample.describe(SampleConfig(data_dir=place), "/a/data") for place in places}
    assert len(names) == 3


def test_pngs_are_the_rows_of_the_npz(model, expected, tmp_path, monkeypatch):
    stale = tmp_path / "samples_14x16x16x3_nfe4"
    stale.mkdir()
    (stale / "000099_old.png").write_bytes(b"")
    sampled(model, tmp_path)
    assert drawn(monkeypatch, model, tmp_path, "--png", "true") == []  # those of the npz
    files = sorted(stale.iterdir())
    assert [f.name for f in files[:2]] == ["000000_row0_column128.png", "000001_row0_column144.png"]
    for folder in (tmp_path, expected):
        assert np.array_equal([np.asarray(Image.open(f)) for f in files], arrays(folder, "samples")["arr_0"])


def test_pngs_are_transparent_outside_the_mask(tmp_path):
    """So the evaluator leaves out there what it leaves out of the npz."""
    from evaluations.evaluator import evaluate
    from evaluations.images import Levels, load_images

    run = make_run(tmp_path / "run", data={"mask": "circle"})
    sampled(run, tmp_path / "out", "--png", "true")
    (folder,) = (tmp_path / "out").glob("samples_*/")
    samples, reference = arrays(tmp_path / "out", "samples"), next((tmp_path / "out").glob("reference_*.npz"))
    for n, path in enumerate(sorted(folder.iterdir())):
        with Image.open(path) as image:
            pixels = np.asarray(image)
        assert image.mode == "RGBA" and np.array_equal(pixels[..., :3], samples["arr_0"][n])
        assert np.array_equal(pixels[..., 3:] > 0, samples["mask"][n]) and not pixels[0, 0, 3]
    by_npz, by_files = (
        evaluate(load_images(path), load_images(reference), ["mse"], device="cpu")["metrics"]["mse"]["mean"]
        for path in (folder.with_suffix(".npz"), folder)
    )
    assert by_npz == by_files
    found = load_images(folder, Levels(0, 10))  # of files of data, of which 10 is white
    assert "its files are samples, of which 255 is white" in found.notice
    assert np.array_equal(next(found.walk(COUNT)), next(load_images(folder).walk(COUNT)))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, None)])
def test_pngs_are_grey_or_rgb(tmp_path, channels, mode):
    for side in ("source", "target"):
        (tmp_path / "data" / side / "a b").mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng(i).integers(0, 255, (16, 16, channels), np.uint8)
            tifffile.imwrite(tmp_path / "data" / side / "a b" / f"{i:02}.tif", pixels.squeeze())
    data = {"dataset": "mine", "data_dir": str(tmp_path / "data"), "image_size": "native"}
    run = make_run(tmp_path / "run", data=data, channels=(channels, channels))
    if mode is None:
        with pytest.raises(ValueError, match="2 channels"):
            sampled(run, tmp_path / "out", "--png", "true")
        assert not (tmp_path / "out").exists()
        return
    sampled(run, tmp_path / "out", "--png", "true", "--trajectory", 1)
    (path,) = (tmp_path / "out").glob("samples_*/*.png")
    with Image.open(path) as image:
        assert (image.mode, path.name) == (mode, "000000_a_b_09.png")
    assert (tmp_path / "out" / "trajectory_000000_a_b_09.png").is_file()


@pytest.mark.parametrize("schedule", ["vp", "ve"])
def test_trajectories(tmp_path, schedule):
    run = make_run(tmp_path / "run", schedule=schedule)
    out = sampled(run, tmp_path / "out", "--trajectory", 2, "--nfe", 12, count=3)
    assert len(list(out.glob("trajectory_*.png"))) == 2
    samples, reference = arrays(out, "samples")["arr_0"], arrays(out, "reference")
    side, step = 96, 98  # enlarged six times, a gap of 2
    with Image.open(out / "trajectory_000001_row0_column144.png") as picture:
        assert picture.size == (90 + 11 * step - 2, 16 + 2 * step - 2)
        pixels = np.asarray(picture)

    def cell(row, column):
        top, left = 16 + row * step, 90 + column * step
        return pixels[top : top + side : 6, left : left + side : 6]

    assert np.array_equal(cell(0, 0), reference["source"][1]) and np.array_equal(cell(0, 1), reference["source"][1])
    assert np.abs(cell(0, 9).astype(int) - samples[1]).max() <= 1  # sampled alone
    assert np.array_equal(cell(0, 10), reference["arr_0"][1])
    assert np.abs(cell(1, 8).astype(int) - samples[1]).mean() < 2 and (cell(1, 0) == 255).all()
    middle = cell(0, 4)
    assert middle.std() > 40 and np.isin(middle, (0, 255)).mean() < 0.3  # noise that can be seen, not saturated


def test_switches_of_speed(model, expected, tmp_path, monkeypatch):
    """Compiled, traced as for a GPU but run by PyTorch's own kernels."""
    networks = []
    compile_module = torch.nn.Module.compile

    def traced(self, mode):
        networks.append((self, mode))
        compile_module(self, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    sampled(model, tmp_path, "--compile", "reduce-overhead", "--tf32", "true", batch=COUNT)
    assert [mode for _, mode in networks] == ["reduce-overhead"]
    assert_close(tmp_path, expected)


def test_mistakes_come_before_any_folder(model, tmp_path):
    for flags, words in (
        (["--sampler", "eulr"], "unknown sampler 'eulr': known are heun, dbim"),
        (["--grid", "square"], "unknown grid 'square': known are"),
        (["--sampler", "heun", "--nfe", 1], "heun needs --nfe 2"),
        (["--sampler", "dbim", "--order", 4], "--order must be 1 or 2 or 3, found 4"),
        (["--sampler", "dbim", "--eta", 1.5], r"--eta must lie in \[0, 1\], found 1.5"),
        (["--sampler", "dbim", "--guidance", 2], "--guidance means nothing to sampler dbim"),
        (["--sampler", "ecsi", "--order", 2], "--order means nothing to sampler ecsi"),
        (["--trajectory", -1], "--trajectory must be 0 or more"),
    ):
        with pytest.raises(ValueError, match=words):
            sampled(model, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said(model, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    def begin(store, *args):
        header = own(store, *args)
        store.samples.unlink()
        store.samples.symlink_to("/dev/full")
        return header

    own = Store.begin
    with monkeypatch.context() as patch:
        patch.setattr(Store, "begin", begin)
        with pytest.raises(OSError, match=r"cannot write .*samples.npy: No space left on device"):
            sampled(model, tmp_path)
    monkeypatch.setattr(sampling_files, "write_pixels", full)
    with pytest.raises(OSError, match=r"cannot write .*000000_row0_column128: No space left on device"):
        sampled(model, tmp_path, "--png", "true")


def test_a_folder_that_other_ranks_do_not_see(model, tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "write", lambda *args: None)
    with pytest.raises(ValueError, match=r"image 0 is gone from .*\.parts: .* all ranks see"):
        sampled(model, tmp_path)


@pytest.mark.parametrize("root", ROOTS)
def test_in_a_store(server, root, model, expected, tmp_path, monkeypatch):
    """What was begun lies on this machine, unless an older version began it: it left its parts in the store."""
    out, flags = f"{ROOTS[root]}/out", ("--png", "true", "--trajectory", 1)
    killed_after(monkeypatch, 2, model, tmp_path / "old")
    old_layout(tmp_path / "old", [(0, 4), (4, 8)], arrays(expected, "samples"))
    for path in (tmp_path / "old" / ".parts").iterdir():
        server.objects[f"out/.parts/{path.name}"] = path.read_bytes()
    killed_after(monkeypatch, 1, model, out, *flags)
    assert list(server.objects) == ["out/.parts/header.json"]
    drawn = Counter(monkeypatch, sample, "draw")
    for sizes in ([4, 2, 1], []):  # the last for the trajectory
        sampled(model, out, *flags)
        assert drawn.sizes == sizes
        drawn.sizes.clear()
        assert len(server.objects) == 4 + COUNT + 1 + 1 and "out/.parts/header.json" in server.objects
        for kind in ("samples", "reference"):
            own, other = (arrays(folder, kind) for folder in (stores.fetched(out), expected))
            assert own.keys() == other.keys() and all(np.array_equal(own[name], other[name]) for name in own)


def test_memory_holds_a_batch_not_the_file(model, tmp_path, monkeypatch):
    """Also where only some batches have a mask: everywhere else it is True."""

    class Many:
        size, source_channels, target_channels, targets = (64, 64), 1, 3, True
        names = tuple(map(str, range(256)))

        def __len__(self):
            return 256

        def get(self, index, rng):
            mask = torch.zeros(1, 64, 64, dtype=torch.bool) if index == 20 else None
            return Item(torch.full((3, 64, 64), index / 127.5 - 1), torch.zeros(1, 64, 64), mask, None)

    data = Many()
    batch = 16 * 64 * 64 * 3 * 4  # as float32
    tracemalloc.start()
    sample.write_reference(tmp_path / "all.npz", data, 250, SampleConfig(batch_size=16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * batch and (tmp_path / "all.npz").stat().st_size > 250 * 64 * 64 * 5
    with np.load(tmp_path / "all.npz") as written:
        assert list(written) == ["arr_0", "source", "mask", "names", "order_digest"]
        assert np.array_equal(written["arr_0"][:, 5, 6, 2], np.arange(250)) and (written["source"] == 128).all()
        outside = ~written["mask"]
        assert outside.shape == (250, 64, 64, 1) and outside[20].all() and outside.sum() == 64 * 64
    assert [path.name for path in tmp_path.iterdir()] == ["all.npz"]


def test_unfinished_images_of_another_shape_are_not_thrown_away(tmp_path):
    Store(tmp_path, (10, 4, 4, 3)).begin({"split": "test"}, False)
    Store(tmp_path, (10, 4, 4, 3)).write(2, np.ones((5, 4, 4, 3), np.uint8), 3)
    with pytest.raises(ValueError, match=r"holds 5 images of an unfinished sampling.*split: test -> val"):
        Store(tmp_path, (9, 4, 4, 3)).begin({"split": "val"}, False)
    Store(tmp_path, (10, 4, 4, 3)).begin({"split": "test"}, False)
    assert Store(tmp_path, (10, 4, 4, 3)).evaluations().tolist() == [0, 0, 3, 3, 3, 3, 3, 0, 0, 0]
