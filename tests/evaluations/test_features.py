"""Features: one pass for all metrics of an extractor, none where the cache has them, the same on several ranks."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ddbm.ranks import distributed
from ddbm.ranks.distributed import World
from evaluations import raw
from evaluations.evaluator import evaluate, main
from evaluations.features import Cache, open_cache

ALL = ["fd_raw", "kd_raw", "inv_fd_raw_max", "inv_fd_raw_spread", "fd_raw_augmented"]


@pytest.fixture
def counted(monkeypatch):
    """The images that the network sees, batch by batch."""
    seen, honest = [], raw.features
    monkeypatch.setattr(raw, "features", lambda kernels, x: seen.append(len(x)) or honest(kernels, x))
    return seen


def test_one_pass_for_all_metrics(squares, counted):
    """Every image once, and once more for every turn that somebody needs."""
    evaluate(*squares, ["fd_raw", "kd_raw"], batch_size=16)
    assert counted == [16, 14, 16, 16, 8]
    counted.clear()
    evaluate(*squares, ALL, group="C2", batch_size=64)
    assert counted == [30, 30, 40, 40]
    counted.clear()
    evaluate(*squares, ["inv_fd_raw_max"], group="C2", batch_size=64)
    assert counted == [30, 30]  # needs no reference


def test_cache(squares, counted, tmp_path):
    """Found by content, for whatever asks; what is damaged or missing is computed again, and nothing else."""
    place = tmp_path / "below" / "cache"
    cache = Cache(place)
    first = evaluate(*squares, ALL, group="H", cache=cache)
    counted.clear()
    assert evaluate(squares[0].copy(), squares[1], ALL, group="H", cache=cache) == first and not counted
    files = sorted(place.iterdir())
    assert len(files) == 6 and not any(file.name.startswith(".") for file in files)
    rows = next(file for file in files if file.name.endswith("rows.npz"))
    whole, content = rows.read_bytes(), np.load(rows)["rows"]
    damaged = [whole[:-50], whole[:2000] + b"?" + whole[2001:], b""]
    foreign = [{"other": content}, {"rows": content[:-1]}, {"rows": content[:, 1:]}, {"rows": content * np.nan}]
    for wrong in [*damaged, *foreign]:
        rows.write_bytes(wrong) if isinstance(wrong, bytes) else np.savez(rows, **wrong)
        assert evaluate(*squares, ["kd_raw"], cache=cache)["metrics"]["kd_raw"] == first["metrics"]["kd_raw"]
        assert sum(counted) in map(len, squares) and rows.read_bytes() == whole
        counted.clear()
    moments = next(file for file in files if "gaussian" in file.name)
    np.savez(moments, mu=np.zeros(3), sigma=np.eye(3))
    again = evaluate(*squares, ALL, group="H", cache=cache)["metrics"]
    assert counted and all(again[name]["mean"] == pytest.approx(first["metrics"][name]["mean"]) for name in ALL)
    counted.clear()
    evaluate(squares[0][::-1], squares[1], ["fd_raw"], cache=cache)
    assert sum(counted) == 40


def test_the_cache_knows_weights(squares, monkeypatch, tmp_path):
    """Another network of the same name, other weights: its own features, found or not."""
    cache, names = Cache(tmp_path / "cache"), ["fd_raw"]
    first = evaluate(*squares, names, cache=cache)
    monkeypatch.setattr(raw, "SEED", 7)
    other = evaluate(*squares, names)
    for _ in range(2):
        assert evaluate(*squares, names, cache=cache) == other != first
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_a_cache_that_cannot_be_written(squares, counted, tmp_path, capsys):
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "below")
    assert evaluate(*squares, ["fd_raw"], cache=cache)["metrics"] == evaluate(*squares, ["fd_raw"])["metrics"]
    assert capsys.readouterr().err.count("features are not kept") == 1


def test_where_the_cache_is(tmp_path, monkeypatch):
    assert open_cache(None).folder == tmp_path / "cache"  # $DDBM_CACHE
    assert open_cache("none").folder is None
    assert open_cache(str(tmp_path)).folder == tmp_path
    monkeypatch.delenv("DDBM_CACHE")
    assert open_cache(None).folder == Path.home() / ".cache" / "ddbm"


def test_grey_is_repeated(squares):
    grey = [images[..., :1] for images in squares]
    scores = [evaluate(*sets, ["fd_raw"])["metrics"]["fd_raw"] for sets in (grey, [g.repeat(3, 3) for g in grey])]
    assert scores[0]["mean"] == pytest.approx(scores[1]["mean"], rel=1e-6)


def test_ranks_give_the_numbers_of_one(squares, counted, tmp_path, capsys, monkeypatch):
    """Two, of which one has fewer batches; then one, with and without what the two left in the cache."""
    for name, images in zip("rs", squares, strict=True):
        np.savez(tmp_path / f"{name}.npz", images[:30], draws=np.stack([images[:30], images[:30] // 2], 1))
    metrics = [*ALL, "mse", "ssim", "best_mse", "calibration"]
    here, meeting, values = threading.local(), threading.Barrier(2, timeout=60), {}
    words = [str(tmp_path / name) for name in ("r.npz", "s.npz")]
    words += ["--metric", ",".join(metrics), "--group", "H", "--batch_size", "12", "--device", "cpu"]

    def gather(value):
        values[here.rank] = value
        meeting.wait()
        found = [values[0], values[1]]
        meeting.wait()
        return found

    def rank(number):
        here.rank = number
        return main(words)

    with monkeypatch.context() as ranks, ThreadPoolExecutor(2) as threads:
        ranks.setattr(distributed, "world_of", lambda environment: World(here.rank, 2))
        ranks.setattr(distributed, "gather", gather)
        ranks.setattr(distributed, "from_main", lambda work: gather(work() if here.rank == 0 else None)[0])
        assert list(threads.map(rank, range(2))) == [0, 0]
    shown = capsys.readouterr().out
    assert sum(counted) == 2 * 2 * 30  # the work was shared
    assert [line.split()[0] for line in shown.splitlines()[:3]] == ["metric", *metrics[:2]]
    assert shown.count("written to") == 1 and len(list((tmp_path / "cache").iterdir())) == 6
    outputs = [json.loads((tmp_path / "s_metrics.json").read_text())["metrics"]]
    for cache in ("none", str(tmp_path / "cache")):
        assert main([*words, "--cache", cache]) == 0
        outputs.append(json.loads((tmp_path / "s_metrics.json").read_text())["metrics"])
    for name in metrics:
        for other in outputs[1:]:
            assert other[name]["mean"] == pytest.approx(outputs[0][name]["mean"], rel=1e-9)
    for name in ("best_mse", "calibration"):
        assert outputs[0][name] == outputs[1][name]
    assert outputs[0]["kd_raw"] == outputs[1]["kd_raw"]  # of the same features in the same order
    assert outputs[0]["ssim"]["per_image"] == outputs[1]["ssim"]["per_image"]
