"""The study gives arms their time, trains, measures, and goes on where it was stopped."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import study
from datasets import Batch

SMALL = "--dataset histology --schedule vp --image_size 16 --model_channels 8 --num_head_channels 8 --channel_mult 1"


def test_tiles_are_the_squares_of_an_image_row_by_row(monkeypatch):
    monkeypatch.setattr(study, "TILE", 2)
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    wanted = [image[y : y + 2, x : x + 2] for image in images for y in (0, 2) for x in (0, 2, 4)]
    assert np.array_equal(study.tiles(images), wanted)
    assert np.array_equal(study.tiles(images[:, :1, :1]), images[:, :1, :1])


def test_measures_of_known_answers(monkeypatch):
    """Draws lie one or two 8-bit levels on this or that side of the truth; those of 5 evaluations alone are exact."""
    truth = torch.full((4, 3, 12, 12), -0.5).index_fill_(3, torch.tensor([5]), 0.5).mul(127.5).round().div(127.5)
    offsets, level, calls = (2, -1, -2, -3), 2 / 255, []

    def draw(model, source, nfe, seed):
        calls.append((nfe, seed))
        if len(source) != len(truth):  # the equivariance error: 0.25 is added to what lies above the middle
            return SimpleNamespace(x_0=source + 0.25 * (torch.arange(12) < 4)[:, None])
        return SimpleNamespace(x_0=truth + (0 if nfe == 5 else offsets[seed] * level))

    monkeypatch.setattr(study, "sample", draw)
    monkeypatch.setattr(
        study, "translate", lambda *_, answer: SimpleNamespace(mean=truth + {"mean": 4}[answer] * level)
    )
    found = study.measure(None, Batch(truth, truth, torch.arange(4), None, None))
    assert list(found) == list(study.FORMS)
    for name, levels in (("mse of the estimate at T", 4), ("mse of a sample", 2), ("mse of the mean of 4", 1)):
        assert found[name] == pytest.approx((levels / 255) ** 2, rel=1e-4)
    assert found["psnr of the mean"] == pytest.approx(20 * np.log10(255), rel=1e-4)
    assert found["psnr of a sample"] == pytest.approx(20 * np.log10(255 / 2), rel=1e-4)
    assert found["ssim of a sample"] < found["ssim of the mean"] < 1
    assert [found[f"fd_raw, {nfe}"] > 1e-9 for nfe in (3, 5, 10, 20)] == [True, False, True, True]
    assert calls[:8] == [*((10, seed) for seed in range(4)), (3, 0), (5, 0), (10, 0), (20, 0)]
    assert set(calls[8:]) == {(3, 0)} and found["equivariance error"] > 0.1


def test_the_table_and_the_plot():
    seeds = [{name: 1.0 + number + seed for number, name in enumerate(study.FORMS)} for seed in (0, 2)]
    results = {"one": {"steps": 3, "seeds": seeds}, "two": {"steps": 4, "seeds": seeds[:1]}}
    heads, _, one, two = study.table(results).splitlines()
    assert heads.split(" | ")[2:4] == ["mse of the estimate at T", "mse of the mean of 4"]
    assert one.startswith("| one | 3 | 2.00000 ± 1.41421 | 3.00000 ± 1.41421 | 4.00 ± 1.41 |")
    assert two.startswith("| two | 4 | 1.00000 | 2.00000 | 3.00 |")
    for name, axes in zip(study.SHOWN, study.plot(results, "task").axes, strict=True):
        place = 1 + list(study.FORMS).index(name)
        drawn = [(line.get_xdata(), line.get_ydata()) for line in axes.lines]
        assert [np.ravel(x).tolist() for x, _ in drawn] == [[place, place + 2], [place + 1], [place], [place]]
        assert [np.ravel(y).tolist() for _, y in drawn] == [[0, 0], [0], [1], [1]]


def test_arms_get_the_same_time(monkeypatch):
    """Also one that comes later, when the machine takes twice as long for everything."""
    seconds = {"a": 0.5, "b": 0.25, "c": 2.0}
    monkeypatch.setattr(study, "stepping", lambda config: config)
    monkeypatch.setattr(study.train, "parse", lambda flags: flags)
    monkeypatch.setattr(study, "interleaved", lambda works, _: {arm: np.full(9, seconds[arm]) for arm in works})
    kept = {"minutes": 2.0, "results": {}}
    study.begin({"a": ["a"], "b": ["b"]}, kept)
    seconds.update({arm: 2 * value for arm, value in seconds.items()})
    study.begin({"a": ["a"], "b": ["b"], "c": ["c"]}, kept)
    assert {arm: own["steps"] for arm, own in kept["results"].items()} == {"a": 240, "b": 480, "c": 60}


def test_a_stopped_study_goes_on(tmp_path, capsys, monkeypatch):
    """With networks of a few channels: all arms before the next seed; nothing is trained twice; arms and seeds grow."""
    trained, own, measured = [], study.train.main, []
    monkeypatch.setattr(study.train, "main", lambda argv: trained.append(argv[-1]) or own(argv))
    arms = {"one": SMALL.split(), "two": [*SMALL.split(), "--lr", "1e-3"]}

    def measure(model):
        if len(measured) == 1 and len(trained) == 2:
            raise KeyboardInterrupt
        measured.append(model.config.train.lr)
        return {"number": float(len(measured))}

    def study_of(arms, seeds, minutes=1e-9):
        return study.carry_out(tmp_path, arms, minutes, seeds, measure)

    with pytest.raises(KeyboardInterrupt):
        study_of(arms, 2)
    results = study_of(arms, 2)
    assert "is finished" in capsys.readouterr().out  # the one that was trained but not measured
    assert [name.rsplit("/")[-1] for name in trained] == ["one_0", "two_0", "two_0", "one_1", "two_1"]
    assert measured == [1e-4, 1e-3, 1e-4, 1e-3] and results["two"]["seeds"] == [{"number": 2.0}, {"number": 4.0}]
    assert results == json.loads((tmp_path / "study.json").read_text())["results"] == study_of(arms, 1)
    assert len(trained) == 5 and not list(tmp_path.glob("*_0"))
    study_of({"one": arms["one"], "three": [*SMALL.split(), "--lr", "2e-3"]}, 1)
    assert trained[5:] == [str(tmp_path / "three_0")]
    with pytest.raises(ValueError, match="other flags of two: give the same, or another --out"):
        study_of({**arms, "two": arms["one"]}, 1)
    with pytest.raises(ValueError, match="--minutes 1e-09"):
        study_of(arms, 1, minutes=1)


def test_the_command(tmp_path, capsys, monkeypatch):
    """Flags of every arm are ones that training knows; unknown names are refused."""
    asked = []
    monkeypatch.setattr(study, "carry_out", lambda *how: asked.append(how) or {})
    monkeypatch.setattr(study, "plot", lambda *_: SimpleNamespace(savefig=lambda file, format: file.write(b"png")))
    (tmp_path / "staining").mkdir()
    assert study.main(["staining", "--out", str(tmp_path), "--arms", "regular,edm2", "--seeds", "1"]) == 0
    ((out, arms, minutes, seeds, measure),) = asked
    assert (out, list(arms), minutes, seeds) == (tmp_path / "staining", ["vp", "edm2", "regular"], 6.0, 1)
    configs = {arm: study.train.parse(flags)[0] for arm, flags in arms.items()}
    assert {(c.data.image_size, c.bridge.schedule, c.train.batch_size) for c in configs.values()} == {("64", "vp", 8)}
    assert (configs["edm2"].model.backbone, configs["vp"].model.layers) == ("edm2", "tied")
    assert measure is study.measured and (tmp_path / "staining/study.png").read_bytes() == b"png"
    (tmp_path / "denoising").mkdir()
    assert study.main(["denoising", "--out", str(tmp_path)]) == 0 and list(asked[1][1]) == list(study.ARMS)
    for flags in asked[1][1].values():
        study.train.parse(flags)
    for argv in (["staning"], ["staining", "--arms", "edm3"]):
        with pytest.raises(ValueError, match="did you mean"):
            study.main(argv)
