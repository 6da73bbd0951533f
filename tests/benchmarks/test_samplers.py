"""The closed forms of the samplers' benchmark, and that it runs to its end in small."""

import pytest
import torch

from benchmarks import samplers
from ddbm.bridges.bridge import Bridge
from scripts import train


@pytest.mark.parametrize("bridge", ["ve", "vp", "linear, noise on the source"])
def test_the_mixture_s_denoiser_is_the_posterior_mean(bridge):
    """E[x_0 | x_t, x_T] against a sum over a fine lattice of x_0."""
    pair, double = samplers.Mixture(Bridge(samplers.BRIDGES[bridge]), deviation=0.2), torch.float64
    x_T, x_0 = (torch.tensor(pixel, dtype=double).reshape(1, 2, 1, 1) for pixel in ([0.3, -0.4], [0.2, -0.1]))
    lattice = torch.cartesian_prod(*2 * [torch.linspace(-2.5, 2.5, 501, dtype=double)])
    squares = (lattice[None] - pair.means(x_T).reshape(4, 1, 2)).square().sum(-1)
    prior = torch.exp(-squares / (2 * pair.deviation**2)).sum(0)
    for t in torch.tensor([0.05, 0.4, 0.9], dtype=double) * pair.bridge.T:
        a, b, c = pair.bridge.coefficients(t)
        x = a * x_T + b * x_0 + 0.5 * c
        likelihood = -((x - a * x_T).reshape(1, 2) - b * lattice).square().sum(-1) / (2 * c**2)
        posterior = (prior * torch.exp(likelihood - likelihood.max()))[:, None]
        mean = (posterior * lattice).sum(0) / posterior.sum()
        torch.testing.assert_close(pair.denoise(x, t, x_T).flatten(), mean, rtol=0, atol=1e-6)


def test_sliced_wasserstein_of_a_shift_is_its_length_over_the_root_of_the_dimension():
    generator = torch.Generator().manual_seed(0)
    x, shift = torch.randn(500, 2, dtype=torch.float64, generator=generator), torch.tensor([3.0, 4.0])
    found = [samplers.sliced_wasserstein(x, x + shift, generator) for _ in range(20)]
    assert sum(found) / 20 == pytest.approx(5 / 2**0.5, rel=0.15)
    assert samplers.sliced_wasserstein(x, x.flip(0), generator) == 0


def tables(argv, capsys):
    """Cells of every table that the benchmark prints, a row a sampler, by its name."""
    assert samplers.main(argv) == 0
    found = [text.splitlines()[2:] for text in capsys.readouterr().out.split("| sampler |")[1:]]
    rows = [[line.strip("| ").split(" | ") for line in lines if line[:1] == "|"] for lines in found]
    return [{name: cells for name, *cells in table} for table in rows]


def test_the_mixture(monkeypatch, capsys):
    monkeypatch.setattr(samplers, "POINTS", 50)
    monkeypatch.setattr(samplers, "BUDGETS", (5, 10))
    monkeypatch.setattr(samplers, "BRIDGES", {name: samplers.BRIDGES[name] for name in ("vp", "ve")})
    vp, ve = tables(["--seeds", "1"], capsys)
    assert list(vp) == list(ve) == [f"{way}, {grid}" for way in samplers.WAYS for grid in samplers.GRIDS]
    assert float(vp["dbim 2, uniform"][1]) < float(vp["dbim 1, uniform"][0]) < float(ve["heun, karras"][0])
    assert vp["dbmsolver, karras"][0].endswith(" (4)") and "(" not in vp["dbim 2, karras"][0]
    vp, ve = tables(["--seeds", "1", "--samplers", "ecsi,dbim 2", "--grids", "own,log_snr"], capsys)
    assert (
        list(vp) == ["ecsi", "ecsi, log_snr", "dbim 2", "dbim 2, log_snr"]
        and len(set(vp["ecsi"] + vp["ecsi, log_snr"])) == 4
    )
    for flag, name in (("--samplers", "ecsy"), ("--grids", "log-snr")):
        with pytest.raises(ValueError, match="did you mean"):
            samplers.main([flag, name])


def test_a_trained_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(samplers, "BUDGETS", (8,))
    flags = "--dataset histology --schedule vp --image_size 16 --model_channels 8 --num_head_channels 8 --total_steps 1"
    assert train.main([*flags.split(), "--channel_mult", "1,2", "--run_dir", str(tmp_path / "run")]) == 0
    run = f"{tmp_path / 'run'} --num_images 3 --metrics mse,psnr --device cpu"
    mse, psnr = tables(run.split(), capsys)
    assert list(mse) == list(psnr) == list(samplers.WAYS)
    assert all(float(cell.split()[0]) > 0 for (cell,) in [*mse.values(), *psnr.values()])
