"""Which times a training spends its steps on: losses by value, bins by hand, the command."""

import numpy as np
import pytest
import torch

from benchmarks import times
from ddbm.config import BridgeConfig
from ddbm.symmetry.pairs import Batch
from scripts import train
from tests.ddbm.runs import refused
from tests.ddbm.test_model import model


def test_bins_by_hand():
    t, loss = torch.tensor([[1.0, 2.0], [2.5, 8.0]]), torch.tensor([[1.0, 3.0], [4.0, 8.0]])
    head, *lines = times.table(t, loss, torch.tensor([1.0, 2.0, 4.0, 6.0, 8.0]))
    assert len(head) == 5 and [line[2:] for line in lines] == [
        ["25.0 %", "1", "6.2 %"], ["50.0 %", "3.5", "43.8 %"], ["0.0 %", "–", "0.0 %"], ["25.0 %", "8", "50.0 %"],
    ]  # fmt: skip
    assert [line[:2] for line in lines] == [["1", "2"], ["2", "4"], ["4", "6"], ["6", "8"]]


def test_losses_by_value():
    """Times evenly by the law of training; the weighted error of a network that answers nothing."""
    net = model(bridge=BridgeConfig(schedule="vp"))
    for p in net.parameters():
        torch.nn.init.zeros_(p)
    target, source = torch.rand(2, 3, 3, 8, 8) * 2 - 1
    t, loss = times.losses(net, Batch(target, source, torch.arange(3), None, None), 4, seed=2)
    np.testing.assert_allclose(t.flatten(), 1e-4 + (1 - 1e-4) * (np.arange(12) + 0.5) / 12)
    generator = torch.Generator().manual_seed(2)
    for i in range(4):
        noise = torch.randn(target.shape, generator=generator)
        scalings = net.bridge.precondition(t[i])
        x = net.bridge.state(target, source, t[i], noise).double()
        error = (scalings.c_skip.view(-1, 1, 1, 1) * x - target).square().mean((1, 2, 3)) * scalings.weight
        torch.testing.assert_close(loss[i], error, rtol=1e-4, atol=1e-5)


def test_a_trained_run(tmp_path, capsys):
    flags = "--dataset histology --schedule ve --image_size 16 --model_channels 8 --num_head_channels 8 --total_steps 1"
    more = "--channel_mult 1,2 --backbone edm2 --time_sampling lognormal --time_std 0.5 --tensorboard false"
    assert train.main([*flags.split(), *more.split(), "--run_dir", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    run = f"{tmp_path / 'run'} --num_images 3 --draws 8 --bins 4 --device cpu"
    assert times.main(run.split()) == 0
    lines = capsys.readouterr().out.splitlines()[-6:]
    assert lines[0] == "lognormal times of ve; loss of the averaged network"
    cells = [line.replace(" %", "").split() for line in lines[2:]]
    assert [float(c[0]) for c in cells] == pytest.approx([0.002 * 40000 ** (i / 4) for i in range(4)], rel=0.01)
    assert sum(float(c[2]) for c in cells) == pytest.approx(100, abs=0.3)
    assert float(cells[2][2]) > 60  # noise near e^-0.4, and that of the target's half
    refused(times.main, [tmp_path / "none"], "none")
