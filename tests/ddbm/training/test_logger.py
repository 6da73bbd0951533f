"""The log: read back by other programs' parsers, after kills, full disks and restarts."""

import io
import json
import math
import os
import resource
import sys
import types

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddbm.training import logger
from ddbm.training.logger import Logger


def strict(run):
    """The JSON Lines, every line by a parser that knows no NaN."""
    text = (run / "log.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def curves(run):
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, events


def same_everywhere(run):
    records, found = strict(run), curves(run)[0]
    assert records and records == logger.read(run / "log.jsonl")
    for name in {*found, *(name for record in records for name in record)} - {"step"}:
        assert found[name] == [(r["step"], np.float32(r[name])) for r in records if name in r]


@pytest.fixture
def modules(monkeypatch):
    """Sets or, with None, hides a module."""
    return lambda name, module: monkeypatch.setitem(sys.modules, name, module)


def test_every_place_holds_the_same_numbers(tmp_path):
    log = Logger(tmp_path, 0)
    log.write(1, loss=0.1)
    log.write(2, loss=1 / 3, images_per_s=1234.5678901234567)
    log.write(3, **{"loss": np.float32(1e-7), "eval, mean": 2})
    log.write(4, images_per_s=7)
    log.close()
    assert [list(r) for r in strict(tmp_path)][1:3] == [
        ["step", "loss", "images_per_s"],
        ["step", "loss", "eval, mean"],
    ]
    assert strict(tmp_path)[1]["loss"] == 1 / 3
    same_everywhere(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "tensorboard"]


def test_numbers_that_are_not_finite(tmp_path):
    log = Logger(tmp_path, 0)
    for step, value in enumerate((math.nan, math.inf, -math.inf, 1.0), 1):
        log.write(step, loss=value)
    log.write(5, other=1)
    assert [record.get("loss") for record in strict(tmp_path)][:4] == [None, None, None, 1]
    curve = [value for _, value in curves(tmp_path)[0]["loss"]]
    assert math.isnan(curve[0]) and curve[1:] == [math.inf, -math.inf, 1.0]
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": NaN}\n')  # as Python writes it by itself
    Logger(tmp_path, 1)
    assert strict(tmp_path) == [{"step": 1, "loss": None}]


def test_starting_again_forgets_what_came_after(tmp_path):
    log = Logger(tmp_path, 0)
    for step in (10, 20, 30, 40):
        log.write(step, loss=step / 8)
        log.picture(step, "grid", np.full((4, 4, 3), step, np.uint8))
    log.write(40, only_late=1.0)
    log = Logger(tmp_path, 25)
    assert [r["step"] for r in strict(tmp_path)] == [10, 20]
    log.write(30, loss=100.0)
    Logger(tmp_path, 30).write(40, loss=200.0)
    same_everywhere(tmp_path)
    assert strict(tmp_path)[2:] == [{"step": 30, "loss": 100}, {"step": 40, "loss": 200}]
    loss, events = curves(tmp_path)
    assert loss == {"loss": [(10, 1.25), (20, 2.5), (30, 100), (40, 200)], "only_late": []}
    assert [image.step for image in events.Images("grid")] == [10, 20]


def test_a_kill_at_any_byte(tmp_path):
    log = Logger(tmp_path, 0, tensorboard=False)
    for step in (1, 2, 3):
        log.write(step, loss=step / 3, images_per_s=float(step))
    whole, records = (tmp_path / "log.jsonl").read_bytes(), strict(tmp_path)
    lines = {len(b"".join(whole.splitlines(True)[:i])) for i in range(5)}
    for cut in range(len(whole) + 1):
        (tmp_path / "log.jsonl").write_bytes(whole[:cut])
        log = Logger(tmp_path, 3, tensorboard=False)
        ended = sum(line <= cut + 1 for line in lines) - 1  # the last byte of a line is not needed
        assert strict(tmp_path) == records[:ended]
        log.write(4, loss=4.0)
        assert strict(tmp_path)[-1] == {"step": 4, "loss": 4.0}


def test_an_event_file_that_a_kill_cut_short(tmp_path):
    log = Logger(tmp_path, 0)
    log.write(1, loss=1.0)
    log.write(2, loss=2.0)
    (file,) = (tmp_path / "tensorboard").iterdir()
    os.truncate(file, file.stat().st_size - 5)
    Logger(tmp_path, 1).write(2, loss=3.0)
    assert curves(tmp_path)[0] == {"loss": [(1, 1.0), (2, 3.0)]}


def test_a_picture_is_the_same_pixels(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    log = Logger(tmp_path, 0)
    log.write(3, loss=1.0)
    log.picture(3, "samples", image)
    (event,) = curves(tmp_path)[1].Images("samples")
    assert (event.step, event.height, event.width) == (3, 5, 7)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), image)
    assert strict(tmp_path) == [{"step": 3, "loss": 1.0}]


def test_damaged_lines_are_dropped(tmp_path):
    good = '{"step": 1, "loss": 2.0}\n'
    (tmp_path / "log.jsonl").write_bytes(good.encode() + b'\0\0\xff\n7\n[1]\n{"loss": 3}\n\n{"step": "a"}\n')
    assert logger.read(tmp_path / "log.jsonl") == [{"step": 1, "loss": 2.0}]
    Logger(tmp_path, 5, tensorboard=False)
    assert (tmp_path / "log.jsonl").read_text() == good
    assert logger.read(tmp_path / "none.jsonl") == []


def test_a_disk_that_fills_up_and_empties_again(tmp_path, capsys):
    """Files may not grow past a limit for a while: writes fail, the last of them after a part of the line."""
    log = Logger(tmp_path, 0)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    log.write(1, loss=1 / 3)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (301, old[1]))
    try:
        for step in range(2, 40):
            log.write(step, loss=step / 3, **({"val_loss": 1.0} if step == 30 else {}))
            log.picture(step, "grid", picture)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    whole = strict(tmp_path)
    assert 3 < len(whole) < 20 and [r["step"] for r in whole] == list(range(1, len(whole) + 1))
    for step in (40, 41):
        log.write(step, loss=0.5, late=1.0)
        log.picture(step, "grid", picture)
    assert [r["step"] for r in strict(tmp_path)] == [*range(1, len(whole) + 1), 40, 41]
    found, events = curves(tmp_path)
    assert found["late"] == [(40, 1.0), (41, 1.0)] and found["loss"][-2:] == [(40, 0.5), (41, 0.5)]
    assert [image.step for image in events.Images("grid")] == [40, 41]
    messages = capsys.readouterr().err.splitlines()
    assert len(messages) == 2  # the log and TensorBoard, once each
    assert all("cannot write" in m and "File too large" in m and "training goes on" in m for m in messages)


def test_only_what_is_asked_for_is_imported(tmp_path, modules):
    modules("tensorboard", None)  # importing raises ImportError
    modules("wandb", None)
    log = Logger(tmp_path, 0, tensorboard=False)
    log.write(1, loss=1.0)
    log.picture(1, "grid", np.zeros((2, 2, 3), np.uint8))
    log.close()
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize(
    ("missing", "arguments", "words"),
    [
        ("tensorboard", {}, ["pip install tensorboard", "--tensorboard false"]),
        ("wandb", {"wandb": "project"}, ["pip install 'ddbm[wandb]'"]),
    ],
)
def test_a_package_that_is_missing(tmp_path, modules, missing, arguments, words):
    for name in [m for m in sys.modules if m.split(".")[0] == missing]:
        modules(name, None)
    modules(missing, None)
    with pytest.raises(ValueError) as error:
        Logger(tmp_path, 0, **arguments)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
    modules(missing, types.ModuleType(missing))  # a folder of that name in the current directory
    with pytest.raises(ValueError, match="pip install"):
        Logger(tmp_path, 0, **arguments)


class FakeRun:
    def __init__(self):
        self.calls, self.broken = [], False

    def log(self, values, step):
        if self.broken:
            raise BrokenPipeError("the service\nis gone")
        self.calls.append((step, values))

    def finish(self):
        self.calls.append("finish")


@pytest.fixture
def wandb(modules):
    fake, runs, starts = types.ModuleType("wandb"), [], []

    def init(**arguments):
        starts.append(arguments)
        runs.append(FakeRun())
        return runs[-1]

    fake.init, fake.Image, fake.runs, fake.starts = init, lambda image: ("image", image), runs, starts
    modules("wandb", fake)
    return fake


def test_weights_and_biases(tmp_path, wandb):
    image = np.zeros((2, 2, 3), np.uint8)
    log = Logger(tmp_path, 0, tensorboard=False, wandb="bridges", config={"lr": 1})
    log.write(5, loss=0.5, count=2)
    log.picture(5, "grid", image)
    log.close()
    Logger(tmp_path, 5, tensorboard=False, wandb="bridges").write(6, loss=math.inf)
    first, second = wandb.starts
    assert first["project"] == "bridges" and first["config"] == {"lr": 1} and first["dir"] == str(tmp_path)
    assert first["id"] and first["id"] == second["id"] and first["resume"] == second["resume"] == "allow"
    assert wandb.runs[0].calls == [(5, {"loss": 0.5, "count": 2}), (5, {"grid": ("image", image)}), "finish"]
    assert wandb.runs[1].calls == [(6, {"loss": math.inf})]
    (tmp_path / "other").mkdir()
    Logger(tmp_path / "other", 0, tensorboard=False, wandb="bridges")
    assert wandb.starts[2]["id"] != first["id"]


def test_weights_and_biases_that_fail(tmp_path, wandb, capsys):
    log = Logger(tmp_path, 0, tensorboard=False, wandb="bridges")
    wandb.runs[0].broken = True
    for step in (1, 2, 3):
        log.write(step, loss=1.0)
    log.picture(3, "grid", np.zeros((2, 2, 3), np.uint8))
    assert len(strict(tmp_path)) == 3
    assert capsys.readouterr().err.splitlines() == ["warning: WandB: the service; training goes on, its log has a gap"]

    def no_account(**_arguments):
        raise RuntimeError("api_key not configured\nlong explanation")

    wandb.init = no_account
    with pytest.raises(ValueError, match=r"api_key not configured\).*WANDB_MODE=offline") as error:
        Logger(tmp_path, 0, tensorboard=False, wandb="bridges")
    assert "\n" not in str(error.value)
