"""The log: read back by other programs' parsers, after kills, full disks and restarts."""

import io
import json
import math
import os
import resource
import sys
import types
from unittest.mock import Mock, call

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddbm.training import logger
from ddbm.training.logger import Logger
from tests.ddbm.runs import one_line

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 34, 3), dtype=np.uint8)


def strict(run):
    """The JSON Lines, every line by a parser that knows no NaN."""
    text = (run / "log.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def curves(run):
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, events


@pytest.fixture
def modules(monkeypatch):
    """Sets or, with None, hides a module."""
    return lambda name, module: monkeypatch.setitem(sys.modules, name, module)


def test_every_place_holds_the_same_numbers_and_pictures(tmp_path):
    log = Logger(tmp_path, 0)
    log.write(1, loss=0.1)
    log.write(2, loss=1 / 3, images_per_s=1234.5678901234567)
    log.write(3, **{"loss": np.float32(1e-7), "eval, mean": 2})
    for step, value in enumerate((math.nan, math.inf, -math.inf), 4):
        log.write(step, late=value)
    log.picture(3, "samples", PICTURE)
    log.close()
    records, (found, events) = strict(tmp_path), curves(tmp_path)
    assert [" ".join(r) for r in records[:3]] == ["step loss", "step loss images_per_s", "step loss eval, mean"]
    assert records[3:] == [{"step": step, "late": None} for step in (4, 5, 6)]  # not finite
    assert str(found.pop("late")) == "[(4, nan), (5, inf), (6, -inf)]"
    assert (records[1]["loss"], repr(records[2]["eval, mean"])) == (1 / 3, "2")
    assert records == logger.read(tmp_path / "log.jsonl")
    for name in ("loss", "images_per_s", "eval, mean"):
        assert found.pop(name) == [(r["step"], np.float32(r[name])) for r in records if name in r]
    (event,) = events.Images("samples")
    assert (event.step, event.height, event.width, found) == (3, 32, 34, {})
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), PICTURE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "tensorboard"]


def test_starting_again_forgets_what_came_after(tmp_path):
    """Also where a kill cut the events short."""
    log = Logger(tmp_path, 0)
    for step in (10, 20, 30, 40):
        log.picture(step, "grid", np.full((4, 4, 3), step, np.uint8))
        log.write(step, loss=step / 8)
    log.write(40, only_late=1.0)
    (file,) = (tmp_path / "tensorboard").iterdir()
    os.truncate(file, file.stat().st_size - 5)
    log = Logger(tmp_path, 20)
    assert [r["step"] for r in strict(tmp_path)] == [10, 20]
    log.write(30, loss=100.0)
    Logger(tmp_path, 30).write(40, loss=200.0)
    assert strict(tmp_path)[2:] == [{"step": 30, "loss": 100}, {"step": 40, "loss": 200}]
    found, events = curves(tmp_path)
    assert found == {"loss": [(10, 1.25), (20, 2.5), (30, 100), (40, 200)]}
    assert [image.step for image in events.Images("grid")] == [10, 20]


def test_a_kill_at_any_byte_and_damaged_lines(tmp_path, modules):
    """Only what is asked for is imported."""
    modules("tensorboard", None)  # importing raises ImportError
    modules("wandb", None)
    path, log = tmp_path / "log.jsonl", Logger(tmp_path, 0, tensorboard=False)
    for step in (1, 2):
        log.write(step, loss=step / 3)
    log.picture(2, "grid", PICTURE)
    log.close()
    whole, records = path.read_bytes(), strict(tmp_path)
    lines = {len(b"".join(whole.splitlines(True)[:i])) for i in range(4)}
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        log = Logger(tmp_path, 3, tensorboard=False)
        ended = sum(line <= cut + 1 for line in lines) - 1  # the last byte of a line is not needed
        assert strict(tmp_path) == records[:ended]
        log.write(4, loss=4.0)
        assert strict(tmp_path)[-1] == {"step": 4, "loss": 4.0}
    good, deep = b'{"step": 1, "loss": NaN}\n', b"[" * 10**5  # NaN as Python writes it by itself
    path.write_bytes(good + b'\0\0\xff\n7\n[1]\n{"loss": 3}\n\n{"step": "a"}\n' + deep + b'\n{"step": 9}\n')
    Logger(tmp_path, 5, tensorboard=False)
    assert strict(tmp_path) == [{"step": 1, "loss": None}] and [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]
    assert logger.read(tmp_path / "none.jsonl") == []


def test_a_disk_that_fills_up_and_empties_again(tmp_path, capsys):
    """Files may not grow past a limit for a while: writes fail, the last of them after a part of the line."""
    log = Logger(tmp_path, 0)
    log.write(1, loss=1 / 3)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (301, old[1]))
    try:
        for step in range(2, 40):
            log.write(step, loss=step / 3, **({"val_loss": 1.0} if step == 30 else {}))
            log.picture(step, "grid", PICTURE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    whole = strict(tmp_path)
    assert 3 < len(whole) < 20 and [r["step"] for r in whole] == list(range(1, len(whole) + 1))
    for step in (40, 41):
        log.write(step, loss=0.5, late=1.0)
        log.picture(step, "grid", PICTURE)
    assert [r["step"] for r in strict(tmp_path)] == [*range(1, len(whole) + 1), 40, 41]
    found, events = curves(tmp_path)
    assert found["late"] == [(40, 1.0), (41, 1.0)] and found["loss"][-2:] == [(40, 0.5), (41, 0.5)]
    assert [image.step for image in events.Images("grid")] == [40, 41]
    messages = capsys.readouterr().err.splitlines()
    assert len(messages) == 2  # the log and TensorBoard, once each
    assert all("cannot write" in m and "File too large" in m and "training goes on" in m for m in messages)


@pytest.mark.parametrize(
    ("missing", "arguments", "words"),
    [
        ("tensorboard", {}, "pip install tensorboard, or give --tensorboard false"),
        ("wandb", {"wandb": "project"}, "pip install 'ddbm[wandb]'"),
    ],
)
def test_a_package_that_is_missing(tmp_path, modules, missing, arguments, words):
    for name in [m for m in sys.modules if m.split(".")[0] == missing]:
        modules(name, None)
    for there in (None, types.ModuleType(missing)):  # the latter: a folder of that name in the current directory
        modules(missing, there)
        with one_line(words):
            Logger(tmp_path, 0, **arguments)


def test_weights_and_biases(tmp_path, modules, capsys):
    """A run is gone on with by its id; one that breaks is said once; without an account nothing begins."""
    fake, runs = Mock(), [Mock(), Mock(), Mock()]
    fake.init.side_effect = [*runs, RuntimeError("api_key not configured\nlong explanation")]
    runs[2].log.side_effect = BrokenPipeError("the service\nis gone")
    modules("wandb", fake)
    (other := tmp_path / "other").mkdir()

    def begun(run, step):
        return Logger(run, step, tensorboard=False, wandb="bridges", config={"lr": 1})

    log = begun(tmp_path, 0)
    log.write(5, loss=0.5, count=2)
    log.picture(5, "grid", PICTURE)
    log.close()
    begun(tmp_path, 5).write(6, loss=math.inf)
    log = begun(other, 0)
    for step in (1, 2, 3):
        log.write(step, loss=1.0)
    log.picture(3, "grid", PICTURE)
    assert len(strict(other)) == 3
    assert capsys.readouterr().err.splitlines() == ["warning: WandB: the service; training goes on, its log has a gap"]

    ids = [(run / "wandb_id").read_text() for run in (tmp_path, other)]
    common = dict(project="bridges", config={"lr": 1}, resume="allow")
    wanted = [call(id=ids[0], name=tmp_path.name, dir=str(tmp_path), **common)] * 2
    assert ids[0] != ids[1] and len(ids[0]) == 16
    assert fake.init.call_args_list == [*wanted, call(id=ids[1], name="other", dir=str(other), **common)]
    logged = [call({"loss": 0.5, "count": 2}, step=5), call({"grid": fake.Image.return_value}, step=5)]
    assert runs[0].log.call_args_list == logged and fake.Image.call_args_list[0].args[0] is PICTURE
    assert runs[0].finish.called and runs[1].log.call_args_list == [call({"loss": math.inf}, step=6)]
    with one_line("api_key not configured)", "WANDB_MODE=offline"):
        begun(tmp_path, 0)
