"""Training of an autoencoder: its losses against their formulas, its draws, and exact resume."""

import copy
import itertools

import numpy as np
import pytest
import torch

from ddbm.codecs.symmetric import Autoencoder
from ddbm.config import CodecConfig, CodecRun, CodecShape, CodecTrainConfig
from ddbm.files import checkpoint
from ddbm.ranks import distributed
from ddbm.symmetry.frames import seed_of
from ddbm.symmetry.groups import GROUPS, act
from ddbm.training.autoencoding import AutoencoderModel, Autoencoding, Draw
from ddbm.training.loop import train
from ddbm.training.trainer import Trainer
from tests.ddbm.runs import DEVICE, assert_same, batches, contents, one_line, save, validation

BOTH = ("target", "source")


def perceptual(x, y):
    """Stands for one: edges."""
    return (x.diff(dim=3) - y.diff(dim=3)).abs().mean((1, 2, 3))


def trainer(sides=BOTH, seen=perceptual, codec=None, group="D4", **settings):
    small = dict(
        factor=4, latent_channels=4, model_channels=8, num_res_blocks=1, channel_mult=(1, 1, 1), layers="plain"
    )
    config = CodecRun(
        codec=CodecConfig(**small | (codec or {})),
        train=CodecTrainConfig(
            **dict(total_steps=8, batch_size=4, lr=1e-2, optimizer="adam", log_interval=2) | settings
        ),
    )
    torch.manual_seed(0)
    network = Autoencoder(config.codec, 1)
    for parameter in network.parameters():
        if parameter.abs().max() == 0:  # what begins as the identity
            torch.nn.init.normal_(parameter, std=0.2)
    model = AutoencoderModel(network, CodecShape(1))
    return Trainer(config, model, Autoencoding(config.train, GROUPS[group], sides, seen), DEVICE)


def masked(batch):
    mask = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.4
    return batch._replace(mask=mask, target=batch.target * mask, source=batch.source * mask)


WEIGHTS = dict(l1_weight=0.7, l2_weight=0.4, kl_weight=0.3, perceptual_weight=0.6, equivariance_weight=0.9)


@pytest.mark.parametrize("sides", [BOTH, ("source",)], ids=len)
@pytest.mark.parametrize("inside", [False, True])
def test_the_losses_are_the_formulas(inside, sides):
    """Of every image by itself, in float64; the loss of a pair is the mean of its images'."""
    t, batch, g = trainer(sides, **WEIGHTS), next(batches()), (1, 1)
    batch = masked(batch) if inside else batch
    mask = batch.mask if inside else torch.ones(4, 1, 8, 8, dtype=torch.bool)
    noise = torch.randn(4, len(sides), 4, 2, 2)
    drawn = Draw(t.objective.images(t.model, batch), batch.mask, noise, g)
    found = t.objective(t.model, t.model.network, {}, drawn)
    network, expected = t.model.network.double(), torch.zeros(4, len(sides)).double()
    for i, (j, side) in itertools.product(range(4), enumerate(sides)):
        x, m = getattr(batch, side)[i : i + 1].double(), mask[i : i + 1]
        mean, logvar = network.moments(x)
        z = mean + (0.5 * logvar).exp() * noise[i, j]
        y = network.decoded(z)
        divergence = (mean**2 + logvar.exp() - 1 - logvar).sum() / 2
        back, turned = network.decoded(act(g, z)) - act(g, x), network.moments(act(g, x))[0] - act(g, mean)
        expected[i, j] = (
            0.7 * (y - x)[m].abs().mean() + 0.4 * ((y - x)[m] ** 2).mean() + 0.3 * divergence / 64
            + 0.6 * perceptual(y * m, x) + 0.9 * (back[act(g, m)].abs().mean() + turned.abs().mean())
        )  # fmt: skip
    torch.testing.assert_close(found.double(), expected.mean(1), rtol=1e-5, atol=1e-6)


def test_validation_is_of_the_most_likely_latents():
    """Without noise and without what is random, whatever the batch."""
    t, batch = trainer(**WEIGHTS), masked(next(batches()))
    network, losses = t.averaged_network(), []
    for side in BOTH:
        x = getattr(batch, side)
        with torch.no_grad():
            y, mean, logvar = network(x)
        error, count = (y - x) * batch.mask, batch.mask.sum((1, 2, 3))
        loss = 0.7 * error.abs().sum((1, 2, 3)) / count + 0.4 * error.square().sum((1, 2, 3)) / count
        divergence = (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3)) / 2
        losses.append(loss + 0.3 * divergence / 64 + 0.6 * perceptual(y * batch.mask, x))
    wanted = torch.stack(losses).mean().item()
    for parts in ([batch], [batch.rows(slice(3)), batch.rows(slice(3, 4))]):
        assert t.validation_loss(parts) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_draws_its_share_of_what_one_would_draw(monkeypatch, rank):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    t, draws, honest = trainer(seed=7, batch_size=8, microbatch=2, **WEIGHTS), [], Autoencoding.__call__
    monkeypatch.setattr(Autoencoding, "__call__", lambda *given: draws.append(given[-1]) or honest(*given))
    t.step, batch = 3, masked(next(batches()))
    t.train_step(batch)
    torch.manual_seed(seed_of(7, 3))
    noise = torch.randn(8, 2, 4, 2, 2)
    g = GROUPS["D4"].elements[int(torch.randint(8, ()))]
    assert g != (0, 0) and len(draws) == 2
    for i, draw in enumerate(draws):
        rows = slice(2 * i, 2 * i + 2)
        assert torch.equal(draw.noise, noise[4 * rank :][rows]) and draw.g == g
        assert torch.equal(draw.images, torch.stack([batch.target, batch.source], 1)[rows])
        assert torch.equal(draw.mask, batch.mask[rows])


def test_grey_images_are_repeated_for_an_autoencoder_of_colours():
    t, batch = trainer(), next(batches())
    t.model.images = CodecShape(3)
    batch = batch._replace(target=torch.rand(4, 3, 8, 8))
    images = t.objective.images(t.model, batch)
    assert torch.equal(images[:, 0], batch.target) and torch.equal(images[:, 1], batch.source.repeat(1, 3, 1, 1))


def test_microbatches_change_nothing_but_rounding():
    one, many = trainer(**WEIGHTS), trainer(microbatch=1, **WEIGHTS)
    batch = masked(next(batches()))
    assert one.train_step(batch).item() == pytest.approx(many.train_step(batch).item(), rel=1e-5)
    for a, b in zip(one.optimizer.parameters, many.optimizer.parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_few_steps_make_the_loss_smaller(precision):
    t, batch = trainer(precision=precision, **WEIGHTS | dict(kl_weight=1e-6, equivariance_weight=0.1)), next(batches())
    smooth = {side: getattr(batch, side)[..., :2, :2].repeat_interleave(4, 2).repeat_interleave(4, 3) for side in BOTH}
    losses = [t.train_step(batch._replace(**smooth)).item() for _ in range(30)]
    assert np.mean(losses[-5:]) < 0.8 * losses[0] and t.optimizer.state["skipped"] <= 3


@pytest.mark.parametrize("settings", [WEIGHTS, dict(precision="fp16", ema_rate=(0.9, 0.99), microbatch=2)], ids=len)
def test_resuming_is_exact(tmp_path, settings):
    """8 steps are 5 steps, a new process's start and 3 steps, bit for bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    train(trainer(**settings), batches(), validation, whole)
    first = trainer(**settings)
    for _ in range(5):
        first.train_step(next(batches(first.step)))
    save(first, parts)
    torch.manual_seed(123)
    second = trainer(**settings)
    with torch.no_grad():
        for parameter in second.model.parameters():
            parameter.zero_()
    assert second.restore(checkpoint.latest(parts, print)) == [] and second.step == 5
    train(second, batches(5), validation, parts)
    paths = [checkpoint.latest(p, print) for p in (whole, parts)]
    assert [p.name for p in paths] == ["step_00000008"] * 2
    assert_same(contents(paths[0])[:2], contents(paths[1])[:2])


def test_what_a_run_cannot_go_on_with(tmp_path):
    t = trainer()
    t.train_step(next(batches()))
    save(t, tmp_path)
    path = checkpoint.latest(tmp_path, print)
    with one_line("latent_channels: 4 -> 5"):
        trainer(codec=dict(latent_channels=5)).restore(path)
    with one_line("perceptual: auto -> raw"):
        trainer(perceptual="raw").restore(path)
    assert trainer(kl_weight=1.0).restore(path) == ["kl_weight: 1e-06 -> 1.0"]
    other = trainer()
    other.model.images = CodecShape(1, "{}")
    with one_line("kl:  -> {}"):
        other.restore(path)
    with one_line("another network (latent_channels: 4 -> 5)"):
        trainer(codec=dict(latent_channels=5)).begin_from(path)
    fresh = trainer()
    before = copy.deepcopy(fresh.model.network.state_dict())
    assert fresh.begin_from(path) == [] and fresh.step == 0
    assert any(not torch.equal(before[name], value) for name, value in fresh.model.network.state_dict().items())


def test_it_is_trained_at_no_noise_level():
    with pytest.raises(NotImplementedError):
        trainer().objective.c_noise(None, None)
