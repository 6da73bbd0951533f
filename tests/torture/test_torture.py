"""The kill tests in short, and that they would notice: a changed tensor, a damaged file, a step that was lost."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch

from tests.torture import __main__ as torture
from tests.torture import run

STEPS = 30
LAST = f"checkpoints/step_{STEPS:08d}"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Modes in one directory, so that they share the run that was left alone."""
    return torture.Torture(torture.TortureConfig(steps=STEPS), tmp_path_factory.mktemp("torture"))


@pytest.mark.parametrize(("mode", "kills"), [("kill", 2), ("term", 1), ("disk", 1), ("ranks", 1)])
def test_every_mode(bench, mode, kills):
    bench.config = replace(bench.config, kills=kills)
    seen = bench.run(mode)
    assert seen["times hit"] == kills and seen["starts"] > kills and seen["aimed at a save"] == kills // 2
    assert seen["identical to one left alone"] == seen["runs"] > 0
    assert seen["tensors and values compared"] > 1000 and (mode != "term" or seen["steps done again"] == 0)


def test_what_differs_is_damaged_or_left_is_found(bench, tmp_path):
    alone = bench.alone([*run.SETTINGS, "--total_steps", str(STEPS), "--seed", "0"], 1)[0]
    copy = Path(shutil.copytree(alone, tmp_path / "copy"))
    assert run.compare(alone, copy)[1] == [] and run.check_whole(copy) > 1 and run.leftovers(copy) == []
    for name in (f"{LAST}/state.pt", "ema/step_*", "run.json"):
        path = min(copy.glob(name))
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(ValueError):
            run.check_whole(copy)
        path.write_bytes(content)
    (copy / "checkpoints" / ".step_00000099.1").mkdir()
    assert run.leftovers(copy) == ["checkpoints/.step_00000099.1"]

    weights = safetensors.torch.load_file(copy / LAST / "model.safetensors")
    weights["head.bias"][0] += 1e-6
    safetensors.torch.save_file(weights, copy / LAST / "model.safetensors")
    lines = (copy / "log.jsonl").read_text().splitlines(keepends=True)
    (copy / "log.jsonl").write_text("".join(line for line in lines if not line.startswith('{"step": 7,')))
    assert run.compare(alone, copy)[1] == [f"{LAST}/model/head.bias", "log/7/loss (missing)"]
    shutil.rmtree(copy / LAST)
    min((copy / "ema").iterdir()).unlink()
    found = run.compare(alone, copy)[1]
    assert f"{LAST}/config/step (missing)" in found and any(f.startswith("ema/") for f in found)
