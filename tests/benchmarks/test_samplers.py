"""The closed forms of the samplers' benchmark, and that it runs to its end in small."""

import pytest
import torch

from benchmarks import samplers
from ddbm.bridges.bridge import Bridge
from ddbm.config import BridgeConfig
from scripts import train


@pytest.mark.parametrize("schedule", ["ve", "vp"])
def test_the_mixture_s_denoiser_is_the_posterior_mean(schedule):
    """E[x_0 | x_t, x_T] against a sum over a fine lattice of x_0."""
    pair = samplers.Mixture(Bridge(BridgeConfig(schedule=schedule)), deviation=0.2)
    x_T = torch.tensor([0.3, -0.4], dtype=torch.float64).reshape(1, 2, 1, 1)
    line = torch.linspace(-2.5, 2.5, 501, dtype=torch.float64)
    lattice = torch.cartesian_prod(line, line)
    squares = (lattice[None] - pair.means(x_T).reshape(4, 1, 2)).square().sum(-1)
    prior = torch.exp(-squares / (2 * pair.deviation**2)).sum(0)
    for share in (0.05, 0.4, 0.9):
        t = torch.tensor(share * pair.bridge.T, dtype=torch.float64)
        a, b, c = pair.bridge.coefficients(t)
        x = a * x_T + b * torch.tensor([0.2, -0.1], dtype=torch.float64).reshape(1, 2, 1, 1) + 0.5 * c
        likelihood = -((x - a * x_T).reshape(1, 2) - b * lattice).square().sum(-1) / (2 * c**2)
        posterior = prior * torch.exp(likelihood - likelihood.max())
        mean = (posterior[:, None] * lattice).sum(0) / posterior.sum()
        torch.testing.assert_close(pair.denoise(x, t, x_T).flatten(), mean, rtol=0, atol=1e-6)


def test_sliced_wasserstein_of_a_shift_is_its_length_over_the_root_of_the_dimension():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 2, dtype=torch.float64, generator=generator)
    shift = torch.tensor([3.0, 4.0], dtype=torch.float64)
    directions = 20 * [samplers.sliced_wasserstein(x, x + shift, generator)]
    assert sum(directions) / 20 == pytest.approx(5 / 2**0.5, rel=0.15)
    assert samplers.sliced_wasserstein(x, x.flip(0), generator) == 0


def test_the_mixture(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(samplers, "POINTS", 50)
    monkeypatch.setattr(samplers, "BUDGETS", (5, 10))
    assert samplers.main(["--seeds", "1", "--plot", str(tmp_path / "plot.png")]) == 0
    out = capsys.readouterr().out
    assert out.count("| dbim 3, ") == 6 and out.count("truth itself") == 2 and out.count("| ode, karras * |") == 2
    assert out.count(" * |") == 2 * (len(samplers.WAYS) + 1)
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_trained_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(samplers, "BUDGETS", (8,))
    flags = (
        "--dataset histology --schedule vp --image_size 16 --model_channels 8 --num_head_channels 8 --channel_mult 1,2"
    )
    run = tmp_path / "run"
    assert train.main([*flags.split(), "--num_res_blocks", "1", "--total_steps", "1", "--run_dir", str(run)]) == 0
    capsys.readouterr()
    argv = ["--num_images", "3", "--metrics", "mse,psnr", "--plot", str(tmp_path / "plot.png"), "--device", "cpu"]
    assert samplers.main([str(run), *argv]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line[:3] == "| d"]
    assert [row[0] for row in rows] == 2 * ["dbim 1", "dbim 1, eta 1", "dbim 2", "dbim 3", "dbmsolver"]
    assert all(float(row[1]) > 0 for row in rows) and (tmp_path / "plot.png").is_file()
