"""Averages of any width from a run's snapshots, as checkpoints that everything else accepts."""

import pytest
import safetensors.torch
import torch

from ddbm import load
from ddbm.files import checkpoint
from ddbm.training import averages
from scripts import reconstruct_ema, sample, train
from tests.ddbm import runs

TINY = (
    "--dataset histology --model_channels 8 --num_head_channels 8 --channel_mult 1,2 --attention_resolutions 8 "
    "--batch_size 2 --total_steps 4 --device cpu --layers tied --group D4 --num_res_blocks 1 --image_size 16"
).split()
TRACKED = (0.05, 0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 4 steps and snapshots after each; the weights of a step are the first ones and a walk."""
    run = tmp_path_factory.mktemp("run")
    assert train.main([*TINY, "--run_dir", str(run)]) == 0
    for path in (run / "ema").iterdir():
        path.unlink()
    first = checkpoint.read_weights(checkpoint.find(run, print), "model")
    generator = torch.Generator().manual_seed(0)
    walk = {name: weight.double() for name, weight in first.items()}
    tracked = {sigma: {name: torch.zeros_like(w) for name, w in walk.items()} for sigma in TRACKED}
    for step in range(1, 5):
        for weight in walk.values():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=torch.float64), alpha=0.1)
        for sigma, average in tracked.items():
            beta = averages.power_rate(sigma, step)
            for name, weight in walk.items():
                average[name].lerp_(weight, 1 - beta)
        averages.write_snapshot(run, step, tracked)
    return run


def refused(argv, *words):
    runs.refused(reconstruct_ema.main, argv, *words)


def test_reconstructed_checkpoints_load_and_sample(run, capsys):
    before = [p.name for p in (run / "checkpoints").iterdir()]
    assert reconstruct_ema.main([str(run), "--sigma_rel", "0.05", "0.1,0.0625", "0.05"]) == 0
    out = capsys.readouterr().out.splitlines()
    folder = run / "reconstructed"
    names = [f"step_00000004_sigma_{width}" for width in ("0.050", "0.100", "0.0625")]
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)
    assert [line.split(":")[0] for line in out[:3]] == [str(folder / name) for name in names]
    assert "residual 0.00%, from 4 snapshots" in out[0]
    stored = safetensors.torch.load_file(run / "ema" / "step_00000004.safetensors")
    for sigma, name in zip(TRACKED, names, strict=False):
        model = load(folder / name)
        assert not model.training and model.config.model.group == "D4"
        for parameter, weight in model.network.state_dict().items():
            torch.testing.assert_close(weight, stored[f"{sigma}/{parameter}"].float(), rtol=1e-3, atol=1e-4)
    between = load(folder / names[2]).network.state_dict()
    assert not torch.equal(between["head.bias"], load(folder / names[0]).network.state_dict()["head.bias"])
    assert checkpoint.read_header(folder / names[2])["step"] == 4
    record = checkpoint.read_state(folder / names[2])["reconstruction"]
    assert record["sigma_rel"] == 0.0625 and record["snapshots"] == [1, 2, 3, 4] and 0 < record["residual"] < 0.1

    argv = [folder / names[2], "--nfe", 3, "--num_samples", 2]
    assert sample.main([str(a) for a in argv]) == 0
    written = list((run / "samples").glob(f"{names[2]}_*/samples_2x16x16x3_nfe3.npz"))
    assert len(written) == 1
    assert before == [p.name for p in (run / "checkpoints").iterdir()]
    assert load(run).config.train.total_steps == 4  # the run's own newest checkpoint is what it was


def test_another_step_and_once_more(run, capsys):
    """The same step and width again replaces what was there; an interrupted one leaves nothing visible."""
    folder = run / "reconstructed"
    left = folder / ".step_00000002_sigma_0.200.1"
    left.mkdir(parents=True)
    for _ in range(2):
        assert reconstruct_ema.main([str(run), "--step", "2", "--sigma_rel", "0.2"]) == 0
        assert "from 2 snapshots" in capsys.readouterr().out
        checkpoint.verify(folder / "step_00000002_sigma_0.200")
        assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_mistakes(run, tmp_path):
    refused([run], "required: --sigma_rel")
    refused([run, "--sigma_rel"], "--sigma_rel")
    refused([run, "--sigma_rel", "0.1", "wide"], "could not convert string to float: 'wide'")
    refused([run, "--sigma_rel", "0.1", "0.5"], "sigma_rel 0.5 is no width", "0.2887")
    refused([run, "--sigma_rel", "0.1", "--stepp", 3], "--stepp")
    refused([run, "--sigma_rel", "0.1", "--step", 9], "step 9 is outside the snapshots", "1 to 4")
    refused([run, "--sigma_rel", "0.1", "--step", 0], "step 0 is outside the snapshots", "1 to 4")
    refused([tmp_path / "no", "--sigma_rel", "0.1"], str(tmp_path / "no"))
    refused([run / "checkpoints" / "step_00000004", "--sigma_rel", "0.1"], "no snapshots", "directory of a run")
    refused([tmp_path, "--sigma_rel", "0.1"], str(tmp_path))
    (tmp_path / "reconstructed").write_text("")
    (tmp_path / "ema").symlink_to(run / "ema")
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    refused([tmp_path, "--sigma_rel", "0.1"], "cannot write to", "reconstructed")
