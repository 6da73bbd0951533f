"""Training pairs beside held-out ones, and samples that are copies of the training's targets."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ddbm.config import Config, DataConfig, ModelConfig, TrainConfig
from evaluations.evaluator import evaluate
from scripts import sample
from scripts.report import unseen
from scripts.report.charts import number
from scripts.report.runs import read_run
from scripts.report.unseen import advice, gap, nearest_targets, training_set
from tests.scripts.report.reports import reported, sampled
from tests.scripts.sampling_runs import arrays, make_run

QUICK = ["--group", "none"]
TABLE = "Training and held-out pairs"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Samples of held-out pairs, and of training pairs by other settings and, the newest, by the same."""
    run = make_run(tmp_path_factory.mktemp("runs") / "one")
    sampled(run, "--nfe", 3, "--order", 1, "--eta", 0.5)
    sampled(run, "--nfe", 2, "--order", 1, "--eta", 0.5, "--split", "train")
    sampled(run, "--nfe", 3, "--order", 1, "--eta", 0.5, "--split", "train", count=7)
    return run


def folder_of(run, end):
    (found,) = run.glob(f"samples/*{end}")
    return found


def test_both_stand_beside_each_other(run, capsys):
    page = reported(run, flags=QUICK)
    assert "6 images of val" in page.text  # though others are newer
    ends = ("_train_dbim_nfe3_order1_eta0.5_seed0_first7", "_val_dbim_nfe3_order1_eta0.5_seed0_first6")
    expected = [
        evaluate(arrays(folder, "reference")["arr_0"], arrays(folder, "samples")["arr_0"])["metrics"]
        for folder in (folder_of(run, end) for end in ends)
    ]
    heads, *rows, pairs = page.tables[TABLE]
    assert [head[0] for head in heads] == ["metric", "training pairs", "held-out pairs"]
    assert [row[0][0].split("\xa0")[0] for row in rows] == ["mse", "psnr", "ssim"]
    for row in rows:
        for cell, metrics in zip(row[1:], expected, strict=True):
            own = metrics[row[0][0].split("\xa0")[0]]
            assert cell[:2] == [number(own["mean"]), " … ".join(map(number, own["interval"]))]
    assert [cell[0] for cell in pairs] == ["pairs", "7", "6"]
    psnr, ssim = (expected[0][name]["mean"] - expected[1][name]["mean"] for name in ("psnr", "ssim"))
    said = f"sample: training pairs against held-out ones: PSNR {psnr:+.2f} dB, SSIM {ssim:+.3f}; "
    assert said in page.text and said in capsys.readouterr().out
    assert "Samples of training pairs to compare with" not in page.text
    assert (
        "Left out: step_00000001_train_dbim_nfe2" in page.text
        and "Left out: step_00000001_train_dbim_nfe3" not in page.text
    )


def test_the_advice_makes_them(run, tmp_path):
    copy = tmp_path / "own run"
    shutil.copytree(run, copy)
    for folder in copy.glob("samples/*_train_*"):
        shutil.rmtree(folder)
    page = reported(copy, flags=QUICK)
    assert TABLE not in page.tables
    (words,) = [text for text in page.text.splitlines() if "bash sample_ddbm.sh" in text]
    command = shlex.split(words.partition("to compare with: ")[2])
    assert command[:5] == ["bash", "sample_ddbm.sh", "histology", "vp", str(copy)]
    assert sample.main([*command[4:], "--device", "cpu"]) == 0
    assert TABLE in reported(copy, flags=QUICK).tables
    make_run(copy, step=2)  # the samples are no longer of the newest
    assert str(copy / "checkpoints" / "step_00000001") in advice(read_run(copy, "", "a"))
    shutil.rmtree(copy / "checkpoints" / "step_00000001")
    assert advice(read_run(copy, "", "a")) == ""


def test_only_samples_of_the_same_way_of_the_runs_own_training_pairs(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    record = folder_of(copy, "_train_*_nfe3_*") / "sampling.json"
    known = json.loads(record.read_text())
    assert training_set(read_run(copy, "", "a")).folder == record.parent
    for change in (
        {"checkpoint": "step_00000002"},
        {"checkpoint_digest": "f" * 64},
        {"settings": known["settings"] | {"nfe": 4}},
        {"settings": known["settings"] | {"seed": 1}},
        {"settings": known["settings"] | {"split": "val"}},
    ):
        record.write_text(json.dumps(known | change))
        assert training_set(read_run(copy, "val_dbim_nfe3_order1_eta0.5_seed0_first6", "a")) is None
    record.write_text(json.dumps(known | {"settings": known["settings"] | {"draws": 4, "batch_size": 3}}))
    assert training_set(read_run(copy, "", "a")).folder == record.parent
    newer = shutil.copytree(record.parent, record.parent.with_name("z_train"))
    (newer / "sampling.json").touch()
    assert training_set(read_run(copy, "", "a")).folder == newer
    shutil.rmtree(newer)
    record.write_text("{")
    assert training_set(read_run(copy, "val_dbim_nfe3_order1_eta0.5_seed0_first6", "a")) is None


def test_what_is_shown_of_a_run(run, tmp_path):
    """Held-out pairs rather than newer ones of training, and these rather than sources alone."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    alone = shutil.copytree(folder_of(copy, "_train_*_nfe3_*"), copy / "samples" / "sources")
    record = json.loads((alone / "sampling.json").read_text()) | {"sources": "sources.npz", "split": "test"}
    (alone / "sampling.json").write_text(json.dumps(record))
    assert "_val_" in read_run(copy, "", "a").shown.folder.name
    shutil.rmtree(folder_of(copy, "_val_*"))
    assert "_train_dbim_nfe3" in read_run(copy, "", "a").shown.folder.name


def test_training_pairs_alone_say_nothing_of_others(run):
    page = reported(run, "--samples", folder_of(run, "_train_*_nfe3_*").name, flags=QUICK)
    assert "sample: these are training pairs, so they do not say what the model makes of others" in page.text
    assert TABLE not in page.tables and "nearest of" not in page.text and "bash sample_ddbm.sh" not in page.text


def test_the_verdict_of_the_gap():
    def said(*sides):
        return gap(
            *(
                {n: {"mean": m, "interval": i} for n, (m, *i) in zip(("psnr", "ssim"), side, strict=False)}
                for side in sides
            )
        )

    start = "training pairs against held-out ones: "
    assert said([(20, 19, 21), (0.5, 0.4, 0.6)], [(18, 17, 18.9), (0.55, 0.5, 0.6)]) == (
        f"{start}PSNR +2.00 dB, SSIM -0.050; by PSNR it does better on pairs that it has seen"
    )
    assert said([(20, 19, 21)], [(18, 17, 19)]).endswith("PSNR +2.00 dB; no gap that the 95 % intervals would show")
    assert said([(18, 17, 18.9)], [(20, 19, 21)]).endswith("the held-out pairs are easier than those of training")
    assert said([(18, 17, 19)], [(20, 18.5, 21)]).endswith("no gap that the 95 % intervals would show")
    mixed = said([(20, 19, 21), (0.1, 0.0, 0.2)], [(18, 17, 18.9), (0.55, 0.5, 0.6)])
    assert mixed.endswith(
        "by PSNR it does better on pairs that it has seen; by SSIM the held-out pairs are easier than those of training"
    )
    assert said([(np.inf, 0, 1)], [(18, 17, 19)]) == "training pairs could not be compared with held-out ones"


@pytest.fixture
def own_pairs(tmp_path):
    """A run with 20 training pairs of its own, samples of four held-out ones, and a way to replace these."""
    rng = np.random.default_rng(0)
    targets = {}
    for split, count in (("train", 20), ("test", 4)):
        for side in ("source", "target"):
            folder = tmp_path / "data" / split / side
            folder.mkdir(parents=True)
            pixels = rng.integers(0, 256, (count, 16, 16, 3), np.uint8)
            for i, image in enumerate(pixels):
                Image.fromarray(image).save(folder / f"{i:02}.png")
            targets[split] = pixels
    run = make_run(tmp_path / "run", data={"dataset": "mine", "data_dir": str(tmp_path / "data"), "image_size": "16"})
    folder = run / "samples" / sampled(run, "--split", "test", "--nfe", 2, count=4)

    def replaced(kind, images):
        (path,) = folder.glob(f"{kind}_*.npz")
        np.savez(path, **(arrays(folder, kind) | {"arr_0": images}))

    return run, targets, replaced


def found_in(run, group="none", augment="none"):
    known = read_run(run, "", "a")
    config = Config(known.config.data, known.config.bridge, ModelConfig(group=group), TrainConfig(augment=augment))
    return nearest_targets(known._replace(config=config), CPU)


def test_copies_are_seen(own_pairs):
    run, targets, replaced = own_pairs
    train = targets["train"].astype(float)
    images = arrays(next(run.glob("samples/*")), "samples")["arr_0"].copy()
    images[2], images[0] = targets["train"][7], np.rot90(targets["train"][19])
    images[1] = 255 * (np.arange(16) % 2)[:, None]  # far from all
    replaced("samples", images)
    truths = targets["test"].copy()
    truths[3] = 0.3 * truths[3] + 0.7 * train[4]  # nearer than samples that are no copies
    replaced("reference", truths)

    def brute(image, turns):
        return min(np.sqrt(((np.rot90(t, k) - image) ** 2).mean()) for t in train for k in turns)

    found, words = found_in(run)
    sample, truth = ([brute(image, [0]) for image in side] for side in (images, truths))
    assert found.numbers == np.argsort(sample).tolist() and found.numbers[0] == 2 and found.sample[0] == 0
    assert found.sample == pytest.approx(np.sort(sample)) and found.truth == pytest.approx(
        np.array(truth)[found.numbers]
    )
    assert np.array_equal(found.targets[0], targets["train"][7])
    nearer = sum(value < min(truth) for value in sample)
    assert nearer == 1 < sum(a < b for a, b in zip(sample, truth, strict=True)) and words == (
        f"samples lie {np.median(sample):.1f} (median) from the nearest of 20 training targets, the truths "
        f"{np.median(truth):.1f}; {nearer} of 4 samples are nearer than any truth"
    )
    for settings in ({"group": "C4"}, {"augment": "C4"}, {"group": "C2", "augment": "C4"}):
        found, _ = found_in(run, **settings)
        assert sorted(found.numbers[:2]) == [0, 2] and not found.sample[:2].any()
        assert np.array_equal(found.targets[found.numbers.index(0)], images[0])  # turned as the sample is
        assert found.truth.min() == pytest.approx(min(brute(image, range(4)) for image in truths))


def test_truths_that_were_trained_on(own_pairs):
    run, targets, replaced = own_pairs
    truths = targets["test"].copy()
    truths[1] = targets["train"][0]
    replaced("reference", truths)
    assert found_in(run)[1].endswith("; 1 of the truths are training targets themselves")


def test_some_of_many_training_targets(own_pairs, monkeypatch):
    run, targets, _ = own_pairs
    monkeypatch.setattr(unseen, "TARGETS", 6)
    found, words = found_in(run)
    assert "nearest of 6 of the 20 training targets" in words
    assert all(any(np.array_equal(each, t) for t in targets["train"]) for each in found.targets)
    monkeypatch.setattr(unseen, "IMAGES", 2)
    assert sorted(found_in(run)[0].numbers) == [0, 3]
    monkeypatch.setattr(unseen, "PIXELS", 5 * 16 * 16)
    assert "nearest of 5 of the 20" in found_in(run)[1]
    monkeypatch.setattr(unseen, "PIXELS", 1 << 27)
    monkeypatch.setattr(unseen, "TARGETS", 150)  # more than a batch
    known = read_run(run, "", "a")
    (data,) = unseen.open_splits(known.config.data, "train", quiet=True)
    for count in (20, 7):
        read = np.concatenate(list(unseen.training_targets(data, known.config, count)))
        distinct = {image.tobytes() for image in read}
        assert len(read) == len(distinct) == count and distinct <= {image.tobytes() for image in targets["train"]}


def test_patches_that_lie_anywhere(run, monkeypatch):
    assert (
        "nearest of 50 training targets (patches that may lie anywhere), the"
        in nearest_targets(read_run(run, "", "a"), CPU)[1]
    )
    known = read_run(run, "", "a")
    (data,) = unseen.open_splits(known.config.data, "train", quiet=True)
    monkeypatch.setattr(unseen, "TARGETS", len(data) + 50)
    assert f"nearest of {len(data) + 50} training targets" in nearest_targets(known, CPU)[1]
    read = np.concatenate(list(unseen.training_targets(data, known.config, 150)))
    assert len(read) == 150 and len({image.tobytes() for image in read}) > 145


def test_the_page_shows_the_nearest(own_pairs, tmp_path):
    run, targets, replaced = own_pairs
    images = arrays(next(run.glob("samples/*")), "samples")["arr_0"].copy()
    images[3] = targets["train"][5]
    replaced("samples", images)
    page = reported(run, flags=QUICK)
    captions = [caption for caption in page.captions if "from training" in caption]
    assert len(captions) == 4 and captions[0].startswith("#3 ") and ", from training 0.0, truth " in captions[0]
    sources = {image["alt"]: image["src"] for image in page.images}
    assert sources["nearest of training of pair 3"] == sources["sample of pair 3"] != sources["target of pair 3"]
    assert any(label.endswith("sample: distance to its own: sample, 4 dots") for label in page.charts)
    dots = [each for tag, each in page.tags if tag == "use" and "--s0" in each.get("style", "")][:4]
    across, up = (np.array([float(dot[axis]) for dot in dots]) for axis in "xy")
    sample, truth = np.array([re.findall(r"[\d.]+", caption)[-2:] for caption in captions], float).T
    assert (across - across[0]) / np.ptp(across) == pytest.approx(sample / sample.max(), abs=0.01)
    assert (up[0] - up) / np.ptp(up) == pytest.approx((truth - truth[0]) / np.ptp(truth), abs=0.05)
    shutil.rmtree(tmp_path / "data")
    page = reported(run, flags=QUICK)
    assert "nearest training targets not looked for: " in page.text and "from training" not in page.text


def test_pairs_of_another_size_are_not_compared(own_pairs):
    run, *_ = own_pairs
    known = read_run(run, "", "a")
    other = known._replace(config=Config(DataConfig(dataset="histology", image_size="32")))
    with pytest.raises(ValueError, match="the training pairs are"):
        nearest_targets(other, CPU)


def test_only_the_runs_own_pairs_are_training_pairs(own_pairs, tmp_path):
    run, *_ = own_pairs
    shutil.copytree(tmp_path / "data", tmp_path / "other")
    names = {}
    for split in ("train", "all"):
        for place in ("other", "data"):
            flags = ("--data_dir", tmp_path / place, "--split", split, "--nfe", 2)
            names[split, place] = sampled(run, *flags, count=4)
            if split == "train":
                found = training_set(read_run(run, "test_dbim_nfe2_eta0_seed0_first4", "a"))
                assert found is None if place == "other" else found.folder.name == names["train", "data"]
    for (split, place), name in names.items():
        said = reported(run, "--samples", name, flags=QUICK).text
        which = {"train": "these are training pairs", "all": "there are training pairs among these"}
        assert (which[split] in said) == (place == "data") and ("nearest of 20 " in said) == (place == "other")
