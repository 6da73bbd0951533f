"""The law of the times of training, and what is learned of the losses' size."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm, truncnorm

from ddbm.bridges.bridge import Bridge
from ddbm.config import BridgeConfig, TrainConfig
from ddbm.files import checkpoint
from ddbm.training.objectives import Denoising, Draw
from ddbm.training.times import Uncertainty, draw_times, uniform_times
from tests.ddbm.runs import assert_same, batches, contents, one_line, save, trainer

LOGNORMAL = dict(time_sampling="lognormal", time_mean=-1.7, time_std=1.3)


@pytest.mark.parametrize("schedule", ["ve", "vp"])
@pytest.mark.parametrize(("mean", "std"), [(-0.4, 1.0), (-1.7, 1.3), (-6.0, 2.0)])
def test_the_noise_of_times_is_lognormal(schedule, mean, std):
    """log(c/b) against SciPy's normal, truncated where t_min is: exactly, quantile by quantile, and as a sample."""
    bridge = Bridge(BridgeConfig(schedule=schedule, sigma_max=20))
    settings = TrainConfig(time_sampling="lognormal", time_mean=mean, time_std=std)
    u = torch.linspace(0, 0.9999, 2001, dtype=torch.float64)
    t = draw_times(settings, bridge, u)
    _, b, c = bridge.coefficients(t)
    _, b_0, c_0 = bridge.coefficients(bridge.time(bridge.t_min))
    law = truncnorm(((c_0 / b_0).log().item() - mean) / std, np.inf, mean, std)
    np.testing.assert_allclose((c / b).log(), law.ppf(u), rtol=1e-6, atol=1e-6)
    assert t.dtype == torch.float64 and t.min() >= bridge.t_min and t.max() <= bridge.T and (t.diff() > 0).all()
    drawn = draw_times(settings, bridge, torch.rand(4000, generator=torch.Generator().manual_seed(0)).double())
    _, b, c = bridge.coefficients(drawn)
    assert kstest((c / b).log(), law.cdf).pvalue > 0.01
    ends = draw_times(settings, bridge, torch.tensor([0.0, 1 - 2**-53, 1.0]).double())
    assert ends[0] == pytest.approx(bridge.t_min) and ends[2] == bridge.T and ends.isfinite().all()


def test_uniform_times():
    bridge, u = Bridge(BridgeConfig(sigma_min=0.5, sigma_max=8.5)), torch.tensor([0.0, 0.25, 1.0]).double()
    for t in (uniform_times(bridge, u), draw_times(TrainConfig(), bridge, u)):
        assert t.tolist() == [0.5, 2.5, 8.5]


def test_times_of_a_step_follow_from_seed_and_step_and_validation_from_neither_setting(monkeypatch):
    t, seen, honest = trainer(seed=4, **LOGNORMAL), [], Denoising.__call__
    monkeypatch.setattr(Denoising, "__call__", lambda *given: seen.append(given[-1].t) or honest(*given))
    for batch in itertools.islice(batches(), 2):
        t.train_step(batch)
    trainer(seed=4, **LOGNORMAL).train_step(next(batches()))
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])
    _, b, c = t.model.bridge.coefficients(torch.cat(seen))
    assert norm(-1.7, 1.3).cdf((c / b).log()).min() > 1e-3
    one, other = trainer(), trainer(loss_weighting="learned", **LOGNORMAL)
    assert one.validation_loss([next(batches())]) == other.validation_loss([next(batches())])


def test_the_weighting_is_the_formula_and_least_where_it_is_the_logarithm():
    torch.manual_seed(0)
    own, loss, c_noise = Uncertainty(), torch.rand(5) + 0.1, torch.linspace(-2000, 1000, 5)
    assert torch.equal(own(loss, c_noise), loss)  # at the beginning
    own.weight.data.normal_()
    u = own.fourier(c_noise) @ own.weight / 128**0.5
    torch.testing.assert_close(own(loss, c_noise), loss * torch.exp(-u) + u)
    own = Uncertainty()
    adam = torch.optim.Adam(own.parameters(), lr=0.03)
    for _ in range(800):
        adam.zero_grad()
        own(loss, c_noise).sum().backward()
        adam.step()
    u = loss - own(torch.zeros(5), c_noise).detach()
    torch.testing.assert_close(own(torch.zeros(5), c_noise), loss.log(), atol=0.02, rtol=0)
    torch.testing.assert_close(own(loss, c_noise), 1 + loss.log(), atol=1e-3, rtol=0)
    assert u.isfinite().all()


@pytest.mark.parametrize("micro", [0, 2])
def test_a_step_descends_the_weighted_loss_and_reports_the_other(micro, monkeypatch):
    t = trainer(dropout=0.0, optimizer="adam", grad_clip=0.0, loss_weighting="learned", microbatch=micro)
    torch.nn.init.normal_(t.uncertainty.weight)
    for p in t.model.network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    own = t.uncertainty
    parameters = [*t.model.network.parameters(), own.weight]
    draws, honest = [], Denoising.__call__
    monkeypatch.setattr(Denoising, "__call__", lambda *given: draws.append(given[-1]) or honest(*given))
    held = [p.detach().clone() for p in parameters]
    reported = t.train_step(next(batches()))
    gradients = [p.grad.clone() for p in parameters]
    with torch.no_grad():
        for p, value in zip(parameters, held, strict=True):
            p.copy_(value)
    assert t.optimizer.parameters[-1] is own.weight and len(t.averages["ema"].weights) == len(parameters) - 1
    draw = Draw(*(torch.cat([getattr(d, k) for d in draws]) for k in ("target", "source")), None, None,
                *(torch.cat([getattr(d, k) for d in draws]) for k in ("t", "noise")))  # fmt: skip
    loss = honest(Denoising(), t.model, t.model.network, {}, draw)
    u = own.fourier(250 * draw.t.log().float()) @ own.weight / 128**0.5
    wanted = torch.autograd.grad((loss / u.exp() + u).mean(), parameters)
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert reported.item() == pytest.approx(loss.mean().item(), rel=1e-5) and gradients[-1].abs().max() > 1e-3


def test_the_weighting_is_saved_and_must_be_there(tmp_path):
    t = trainer(loss_weighting="learned", optimizer="adam")
    for batch in itertools.islice(batches(), 3):
        t.train_step(batch)
    save(t, tmp_path)
    path = checkpoint.latest(tmp_path, print)
    files, state, _ = contents(path)
    assert torch.equal(state["uncertainty"]["weight"], t.uncertainty.weight) and state["uncertainty"].keys() == {
        "weight"
    }
    assert not any("uncertainty" in name for tensors in files.values() for name in tensors)
    again = trainer(loss_weighting="learned", optimizer="adam")
    again.restore(path)
    assert torch.equal(again.uncertainty.weight, t.uncertainty.weight) and again.uncertainty.weight.abs().max() > 0
    assert_same(again.optimizer.state_dict()["adam"]["state"], t.optimizer.state_dict()["adam"]["state"])
    with one_line("loss_weighting: learned -> fixed"):
        trainer(optimizer="adam").restore(path)
    plain = trainer(optimizer="adam")
    assert plain.begin_from(path) == []
    state["optimizer"]["adam"]["state"][len(t.optimizer.parameters) - 1]["exp_avg"] = torch.zeros(3)
    with one_line("not that of an optimizer"):
        again._optimizer_state(state, path)
    with one_line("does not fit its settings", "weight is nothing"):
        again._copy(dict(again.uncertainty.named_parameters()), {}, path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(loss_weighting="learnt"), ["learnt", "fixed, learned"]),
        (dict(time_sampling="log-normal"), ["log-normal", "uniform, lognormal"]),
        (dict(LOGNORMAL, time_std=0.0), ["--time_std must be above 0"]),
        (dict(LOGNORMAL, time_mean=-30.0), ["--time_mean -30", "--time_std 1.3", "-5.76 or more"]),
        (dict(lr_decay_steps=-1), ["--lr_decay_steps must be 0 or more"]),
        (dict(loss_weighting="learned", parallel="fsdp"), ["--loss_weighting learned", "--parallel ddp"]),
    ],
    ids=str,
)
def test_what_is_refused(settings, words):
    with one_line(*words):
        trainer(**settings)
