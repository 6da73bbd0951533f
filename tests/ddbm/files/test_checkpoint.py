"""Checkpoints: whole or not there, refused when damaged or of another kind, kept and pruned."""

import hashlib
import itertools
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ddbm import load
from ddbm.files import checkpoint
from tests.ddbm.runs import assert_same, batches, one_line, save, trainer


def write(run, *steps, **weights):
    """Small checkpoints of a run; the last one's path."""
    tensors = {"w": torch.arange(3.0)}
    for step in steps:
        path = checkpoint.path_of(run, step)
        checkpoint.write(path, {"step": step}, weights or {"ema": tensors, "model": tensors}, {"step": step})
    return path


def steps(run):
    return [step for step, _ in checkpoint.steps(run)]


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    t = trainer(dropout=0.0, keep_checkpoints=2, optimizer="adam", lr_warmup_steps=0)
    for batch in itertools.islice(batches(), 3):
        t.train_step(batch)
        save(t, run)
    return run


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def test_load_gives_the_average_in_evaluation_mode(saved, run, capsys):
    assert steps(saved) == [2, 3]
    model, raw = load(saved), load(saved / "checkpoints" / "step_00000003", weights="model")
    assert not model.training and model.config.model.group == "D4"
    average = checkpoint.read_weights(saved / "checkpoints" / "step_00000003", "ema")
    assert_same(dict(model.network.state_dict()), average)
    assert not torch.equal(model.network.head.bias, raw.network.head.bias)
    (checkpoint.path_of(run, 3) / "state.pt").unlink()
    older = checkpoint.path_of(run, 2)
    assert_same(dict(load(run).network.state_dict()), checkpoint.read_weights(older, "ema"))
    assert "step_00000003 is damaged" in capsys.readouterr().out
    rewrite(older, "ema.safetensors", safetensors.torch.save({"a": torch.ones(1)}))
    with one_line(older, "does not fit its settings"):
        load(older)


def rewrite(path, name, data):
    """Replaces a file and makes the manifest fit; without data it is listed no more."""
    files = json.loads((path / "manifest.json").read_text())["files"]
    if data is None:
        del files[name]
    else:
        (path / name).write_bytes(data)
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest(path, files=files)


def manifest(path, **change):
    content = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(content | change))


def changed(path):
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


DAMAGE = {
    "truncated": (lambda path: os.truncate(path / "ema.safetensors", 20), "ema.safetensors is 20 bytes long, not"),
    "changed": (lambda path: changed(path / "model.safetensors"), "model.safetensors is changed"),
    "missing": (lambda path: (path / "state.pt").unlink(), "state.pt is missing"),
    "petabyte": (lambda path: os.truncate(path / "state.pt", 2**43), "state.pt is 8796093022208 bytes long, not"),
    "unfinished": (lambda path: (path / "manifest.json").unlink(), "has no manifest.json"),
    "no config": (lambda path: rewrite(path, "config.json", None), "found ema.saf.*expected config.json, state.pt and"),
    "no state": (lambda path: rewrite(path, "state.pt", None), "found config.json, ema.safetensors"),
    "no weights": (lambda path: [rewrite(path, f"{n}.safetensors", None) for n in ("ema", "model")], "found config"),
    "no file": (lambda path: manifest(path, files={}), "found no file"),
    "elsewhere": (lambda path: rewrite(path, "../x.safetensors", b""), "beside it"),
    "cut": (lambda path: (path / "manifest.json").write_text('{"format": '), "damaged"),
    "deep": (lambda path: (path / "manifest.json").write_text('{"format": ' + "[" * 10**5), "damaged"),
    "numbers": (lambda path: manifest(path, files={"config.json": {"size": [], "sha256": 1}}), "damaged"),
    "endless": (lambda path: manifest(path, files={"config.json": {"size": float("inf"), "sha256": 1}}), "damaged"),
    "other": (lambda path: manifest(path, format="ddbm-checkpoint-99"), "another kind: found format 'ddbm-ch"),
    "deep kind": (lambda path: manifest(path, format=json.loads("[" * 900 + "]" * 900)), "another kind: found format"),
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, how):
    newest = write(tmp_path, 2, 3)
    damage, words = DAMAGE[how]
    damage(newest)
    said = []
    assert checkpoint.latest(tmp_path, said.append).name == "step_00000002"
    assert len(said) == 1 and str(newest) in said[0] and "\n" not in said[0]
    with pytest.raises(ValueError, match=words):
        checkpoint.find(newest, said.append)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000002")
    with pytest.raises(ValueError, match="has no whole checkpoint: train first"):
        checkpoint.find(tmp_path, said.append)


def test_a_checkpoint_that_cannot_be_read_is_named_and_passed_over(tmp_path, monkeypatch):
    """A disk or a network that fails, for the newest alone."""
    write(tmp_path, 2, 3)
    honest = checkpoint._digest

    def failing(file):
        if file.parent.name == "step_00000003":
            raise OSError(5, "Input/output error", str(file))
        return honest(file)

    monkeypatch.setattr(checkpoint, "_digest", failing)
    said = []
    assert checkpoint.latest(tmp_path, said.append).name == "step_00000002"
    assert len(said) == 1 and "step_00000003 cannot be read (Input/output error)" in said[0]
    checkpoint.prune(tmp_path, 1)
    assert steps(tmp_path) == [2, 3]  # the one that can be read stays


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def torch_bytes(state, tmp_path):
    torch.save(state, tmp_path / "state.pt")
    return (tmp_path / "state.pt").read_bytes()


@pytest.mark.parametrize("data", [(2**50).to_bytes(8, "little") + b"{}", b""])
def test_weights_that_claim_more_than_there_is(tmp_path, data):
    """Also with a manifest that was made to fit; of a petabyte nothing is asked for."""
    rewrite(path := write(tmp_path, 1), "ema.safetensors", data)
    with one_line("ema.safetensors cannot be read as safetensors"):
        checkpoint.read_weights(checkpoint.find(path, print), "ema")
    with pytest.raises(ValueError, match=r"holds no weights 'teacher', only ema, model$"):
        checkpoint.read_weights(path, "teacher")


def moments(*shape, name="exp_avg"):
    """A state of the optimiser whose first moments are one number, spread over any shape."""
    own = {"step": torch.tensor(1.0), "exp_avg_sq": torch.zeros(1), name: torch.zeros(1).expand(shape)}
    return {"optimizer": {"adam": {"state": {0: own}}, "counts": {}}}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (Evil(), "more than tensors"),
        (moments(2**50), "not that of an optimizer"),
        (moments(1, name="other"), "not that of an optimizer"),
        ({"optimizer": []}, "not that of an optimizer"),
        ({}, "not that of an optimizer"),
    ],
    ids=["code", "petabytes", "names", "kind", "nothing"],
)
def test_a_state_that_is_none_is_refused_and_nothing_executed(run, tmp_path, monkeypatch, state, words):
    monkeypatch.chdir(tmp_path)
    newest = run / "checkpoints" / "step_00000003"
    rewrite(newest, "state.pt", torch_bytes(state, tmp_path))
    with one_line(words):
        trainer(dropout=0.0).restore(newest)
    assert not (tmp_path / "executed").exists()
    load(newest)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 1}, "unknown settings colour"),
        ({"dropout": "much"}, "dropout: expected float, found 'much'"),
        ({"dropout": json.loads("[" * 900 + "]" * 900)}, r"dropout: expected float, found \[\["),
        ({"group": "D5"}, "unknown group 'D5'"),
    ],
    ids=["unknown", "mistyped", "deep", "nameless"],
)
def test_a_header_that_does_not_fit_is_refused(run, change, words):
    newest = run / "checkpoints" / "step_00000003"
    header = checkpoint.read_header(newest)
    model = {"model": header["config"]["model"] | change}
    rewrite(newest, "config.json", json.dumps(header | {"config": header["config"] | model}).encode())
    with pytest.raises(ValueError, match=words):
        load(newest)
    for text in ("[]", "{}", '{"step": "1"}'):
        rewrite(newest, "config.json", text.encode())
        with pytest.raises(ValueError, match=r"config.json is damaged: expected settings with a step"):
            load(newest)


def test_other_settings_and_data_are_refused_in_a_run_by_name_and_data_taken_in_a_new_one(run, tmp_path):
    """By what differs; a mean up to a decoder's rounding; a checkpoint that does not know its data is taken."""
    unknown = run / "checkpoints" / "step_00000003"
    for change, words in (
        (dict(model=dict(channel_mult=(1, 1))), "channel_mult: "),
        (dict(ema_sigma_rel=(0.07,)), "rel: "),
        (dict(ema_rate=(0.5,)), "ema_rate: "),
    ):
        with pytest.raises(ValueError, match=words):
            trainer(**{"dropout": 0.0} | change).restore(unknown)
    data = {"train_pairs": 4, "train_names": "ab12", "train_source_mean": 0.25}
    t = trainer(dropout=0.0)
    t.data = data
    save(t, tmp_path / "known")
    known = checkpoint.latest(tmp_path / "known", print)
    for change in ({"train_pairs": 5}, {"train_names": "cd34"}, {"train_source_mean": 0.5}):
        t.data = data | change
        ((name, value),) = change.items()
        with pytest.raises(ValueError, match=rf"or data \({name}: {data[name]} -> {value}\)"):
            t.restore(known)
        t.restore(unknown)
        t.restore(known, new_run=True)
    t.data = data | {"train_source_mean": 0.251}
    t.restore(known)


def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    write(tmp_path, 2)
    monkeypatch.setattr(torch, "save", full)
    message = r"^cannot write .*step_00000009: No space left on device; earlier checkpoints are untouched$"
    with pytest.raises(OSError, match=message):
        write(tmp_path, 9)
    assert names(tmp_path) == ["step_00000002"]
    writer = checkpoint.Writer()  # in a thread, it reaches training at the next call
    for then in (lambda: writer.submit(print), writer.wait):
        writer.submit(full)
        with pytest.raises(OSError, match="No space left"):
            then()
    done = []
    with pytest.raises(KeyError), checkpoint.Writer() as writer:  # what is under way is written before an error goes on
        writer.submit(lambda: time.sleep(0.1) or done.append(1))
        raise KeyError
    assert done == [1]


@pytest.mark.parametrize(
    ("keep", "every", "best", "damaged", "left"),
    [
        (2, 0, "", (), [5, 6]),
        (0, 2, "", (), [1, 2, 3, 4, 5, 6]),
        (1, 3, "", (), [3, 6]),
        (2, 0, "step_00000002", (), [2, 5, 6]),
        (2, 0, "", (5, 6), [4, 5, 6]),
        (3, 0, "", (6,), [4, 5, 6]),
        (2, 0, "../checkpoints/step_00000002", (), [5, 6]),
    ],
)
def test_pruning_spares_the_newest_multiples_the_best_and_the_newest_whole_one(
    tmp_path, keep, every, best, damaged, left
):
    write(tmp_path, *range(1, 7))
    (tmp_path / "best.json").write_text(json.dumps({"checkpoint": best}))
    for step in damaged:
        (checkpoint.path_of(tmp_path, step) / "state.pt").unlink()
    checkpoint.prune(tmp_path, keep, every)
    assert names(tmp_path) == [f"step_{step:08d}" for step in left]


@pytest.mark.parametrize(
    "text", ["{}", "[1]", '{"checkpoint": 1}', '{"checkpoint": "step_00000009"}', "[" * 10**5, '{"checkpoint": "%s"}'],
    ids=["nothing", "list", "number", "gone", "deep", "absolute"],
)  # fmt: skip
def test_the_best_is_a_checkpoint_of_the_run(tmp_path, text):
    path = write(tmp_path, 1)
    (tmp_path / "best.json").write_text(text % path if "%s" in text else text)
    assert checkpoint.best(tmp_path) == {}
    (tmp_path / "best.json").write_text('{"checkpoint": "step_00000001", "value": 2}')
    assert checkpoint.best(tmp_path) == {"checkpoint": "step_00000001", "value": 2}


def test_links_and_strays_with_a_checkpoints_name_stay_and_end_nothing(tmp_path):
    """An old checkpoint that was moved to another disk and linked back, a link to nowhere, a file."""
    run, away = tmp_path / "run", tmp_path / "away"
    (link := write(run, 1)).rename(away)
    link.symlink_to(away)
    checkpoint.path_of(run, 2).touch()
    checkpoint.path_of(run, 3).symlink_to("nowhere")
    for left in (".step_00000009.1", ".step_00000008.gone", ".step_00000007.old"):  # of kills, none of them whole
        (run / "checkpoints" / left).mkdir()
    (run / "checkpoints" / ".step_00000000.old").symlink_to(away)  # as an earlier version left it
    write(run, 4, 5)
    checkpoint.prune(run, 1)
    assert steps(run) == [0, 1, 2, 3, 5] and len(names(run)) == 5
    assert checkpoint.read_state(checkpoint.find(link, print)) == {"step": 1}
    for step in (1, 2, 3):  # written again they are the run's own, and what was linked stays what it was
        assert not write(run, step).is_symlink()
    assert checkpoint.read_state(away) == {"step": 1}


@pytest.mark.parametrize("old_is_whole", [True, False])
@pytest.mark.parametrize("then", ["looked at", "written"])
def test_a_kill_at_any_rename_of_a_step_written_again_loses_nothing(tmp_path, monkeypatch, old_is_whole, then):
    """The folder as it was at every rename is copied, and gone on with."""
    run, kills, rename = tmp_path / "run", [], Path.rename
    newest = write(run, 1, 2)
    (newest / "mark").write_text("old")
    if not old_is_whole:
        (newest / "state.pt").unlink()

    def killed(path, to):
        kills.append(shutil.copytree(run, tmp_path / str(len(kills))))
        return rename(path, to)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        write(run, 2)
    assert len(kills) == 2 and names(run) == ["step_00000001", "step_00000002"]
    assert checkpoint.path_of(kills[0], 2).exists() and not checkpoint.path_of(kills[1], 2).exists()
    for number, left in enumerate(kills):
        if then == "written":
            write(left, 3)
            shutil.rmtree(checkpoint.path_of(left, 3))
            assert not any(name.startswith(".") for name in names(left))
        held = names(left)
        checkpoint.latest(left, lambda message: None)  # as a reader does, of a run that may go on
        assert names(left) == held
        checkpoint.put_back(left / "checkpoints")
        found = checkpoint.latest(left, lambda message: None)
        assert found.name == ("step_00000001" if number == 0 and not old_is_whole else "step_00000002")
        assert checkpoint.read_state(found) == {"step": int(found.name[-1])}
        assert (found / "mark").exists() == (number == 0 and old_is_whole)


def test_what_is_written_is_computed_on_one_core():
    """And only that: those who train, and threads to come, keep theirs."""
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(3)
    with checkpoint.Writer() as writer:
        writer.submit(lambda: found.append((torch.ones(10**6).half().isfinite().all(), torch.get_num_threads())))
    with ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3
    torch.set_num_threads(threads)
    assert found == [(True, 1)]
