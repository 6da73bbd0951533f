"""EDM2's layers, blocks and network: by their formulas, and what they are for, magnitudes that stay 1."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from torch import nn

from ddbm.config import ImageShape, ModelConfig
from ddbm.networks.convolutions import SharedKernel, folded
from ddbm.networks.edm2 import (
    EDM2,
    Block,
    CosineAttention,
    Fourier,
    Linear,
    Preserving,
    mp_cat,
    mp_silu,
    mp_sum,
    normalised,
)  # fmt: skip
from ddbm.symmetry.groups import GROUPS, act
from tests.ddbm.networks.test_convolutions import NATIVE, group_convolution
from tests.ddbm.runs import batches, poison, trainer

KINDS = [("plain", "none"), *((kind, group) for kind in ("tied", "regular") for group in GROUPS if group != "none")]
kinds = pytest.mark.parametrize(("kind", "group"), KINDS)


def size(x, *axes):
    """Root mean square."""
    return x.detach().double().square().mean(axes or None).sqrt()


def layers_of(kind, group):
    return EDM2.LAYERS[kind](GROUPS[group])


def silu(x):
    return x / (1 + np.exp(-x)) / 0.596


def test_operations_by_value():
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal((2, n, 3, 4)) for n in (4, 4, 12))
    ours = [torch.from_numpy(x) for x in (a, b, c)]
    np.testing.assert_allclose(mp_silu(ours[0]), silu(a), rtol=1e-12)
    np.testing.assert_allclose(mp_sum(*ours[:2], 0.3), (0.7 * a + 0.3 * b) / np.sqrt(0.49 + 0.09), rtol=1e-12)
    wanted = np.concatenate([a * np.sqrt(16 / 4) / np.sqrt(2), c * np.sqrt(16 / 12) / np.sqrt(2)], 1)
    np.testing.assert_allclose(mp_cat(ours[0], ours[2]), wanted, rtol=1e-12)
    for axis in (1, -1):
        wanted = c / (np.sqrt((c**2).mean(axis, keepdims=True)) + 1e-4)
        np.testing.assert_allclose(normalised(ours[2], axis), wanted, rtol=1e-12)
    x = torch.zeros(1, 4, 1, 1, requires_grad=True)
    normalised(x).sum().backward()
    assert x.grad.isfinite().all()
    half = normalised((ours[2] * 5000).half())  # whose squares float16 does not hold
    assert half.dtype == torch.float16 and abs(size(half) - 1) < 1e-3


def test_operations_keep_magnitudes():
    torch.manual_seed(0)
    a, b = torch.randn(2, 64, 64, 32), 3 * torch.randn(2, 64, 64, 32)
    for y in (mp_silu(a), mp_sum(a, b / 3, 0.3), mp_sum(a, b / 3, 0.8), mp_cat(a, b[:, :8] / 3), normalised(b)):
        assert abs(size(y) - 1) < 0.01
    halves = mp_cat(a, b[:, :8] / 3).split([64, 8], 1)
    assert abs(halves[0].square().sum() / halves[1].square().sum() - 1) < 0.03


def test_features_of_time():
    """√2 cos(2π (f c_noise/1000 + φ)); f are quantiles of N(0, 1), φ spread evenly; of magnitude 1 at any time."""
    fourier, c_noise = Fourier(64), torch.tensor([-2000.0, -1553.7, -1.0, 0.0, 1095.0])
    i = np.arange(64)
    turns = c_noise.numpy()[:, None] / 1000 * norm.ppf((i + 0.5) / 64) + i * (5**0.5 - 1) / 2 % 1
    np.testing.assert_allclose(fourier(c_noise), np.sqrt(2) * np.cos(2 * np.pi * turns), atol=2e-5)
    assert not fourier.state_dict() and ((size(fourier(c_noise), 1) - 1).abs() < 0.15).all()
    times = torch.linspace(-2000, 1100, 500)
    assert abs(size(fourier(times)) - 1) < 0.01


def parts(layers, fields=3):
    """Convolutions of all kinds between features and images."""
    n = fields * layers.unit
    return [layers.lift(4, n), layers.conv(n, 2 * n), layers.conv(n, n, 1), layers.project(n, 3)]


def orbit_mean(weight, group):
    return torch.stack([act(g, weight) for g in GROUPS[group].elements]).mean(0)


@kinds
def test_weights_have_norm_1_where_it_counts(kind, group):
    """Every output's kernel; what is stored has a root mean square of 1; again after a step in any direction."""
    torch.manual_seed(0)
    for layer in [*parts(layers_of(kind, group)), Linear(5, 4)]:
        assert [*layer.state_dict()] == [name for name, _ in layer.named_parameters()] == ["weight"]
        for _ in range(2):
            assert (size(layer.weight.flatten(1), 1) - 1).abs().max() < 2e-6
            kernel = layer.laid_out()
            if kernel.ndim == 3:  # orbits, out, in
                kernel = kernel.permute(1, 2, 0).index_select(2, layer.orbit)
            torch.testing.assert_close(kernel.flatten(1).norm(dim=1), torch.ones(len(kernel)))
            layer.weight.data += torch.randn_like(layer.weight)
            off = copy.deepcopy(layer).laid_out()
            layer.normalise()
            torch.testing.assert_close(layer.laid_out(), off)  # the kernel stays as it was
        if kind == "tied" and layer.weight.ndim == 4:
            torch.testing.assert_close(layer.weight, orbit_mean(layer.weight, group))
        before = layer.weight.clone()
        layer.normalise()
        assert torch.equal(layer.weight, before)


@kinds
def test_layers_keep_magnitudes_at_the_beginning(kind, group):
    """White images of variance 1, and constant ones inside the image."""
    torch.manual_seed(1)
    layers = layers_of(kind, group)
    for layer in parts(layers, 16):
        channels = layer.channels[1] if kind == "regular" else layer.in_channels
        x = torch.randn(8, channels, 16, 16)
        outputs = layer(x)
        assert abs(size(outputs) - 1) < 0.1  # zeros at the margins
        assert abs(size(outputs[..., 1:-1, 1:-1]) - 1) < 0.03
    conv = layers.conv(64 * layers.unit, 64 * layers.unit)
    alike = torch.randn(8, 64 * layers.unit, 1, 1).expand(-1, -1, 5, 5)
    assert abs(size(conv(alike)[..., 2, 2]) - 1) < 0.08


@kinds
def test_layers_by_value(kind, group):
    torch.manual_seed(2)
    layers, g = layers_of(kind, group), GROUPS[group]
    for layer, how in zip(parts(layers), ("lift", "", "", "project"), strict=True):
        layer.double()
        layer.weight.data.normal_()
        k = layer.kernel_size if kind == "regular" else layer.kernel_size[0]
        into = layer.channels[1] if kind == "regular" else layer.in_channels
        x = torch.randn(2, into, 5, 5, dtype=torch.float64)
        if kind == "regular":
            exact = copy.deepcopy(layer)
            copies = len(g) if how == "project" else 1
            exact.weight.data /= (copies * layer.weight.square().flatten(1).sum(1)).sqrt().view(-1, 1, 1, 1, 1)
            wanted = group_convolution(x, exact, g, how)
        else:
            kernel = orbit_mean(layer.weight, group) if kind == "tied" else layer.weight
            wanted = F.conv2d(x, kernel / kernel.flatten(1).norm(dim=1).view(-1, 1, 1, 1), padding=k // 2)
        torch.testing.assert_close(layer(x), wanted)
        with torch.no_grad(), folded(layer):
            torch.testing.assert_close(layer(x), wanted)
    linear = Linear(6, 4)
    linear.weight.data.normal_()
    x = torch.randn(3, 6)
    torch.testing.assert_close(linear(x), x @ (linear.weight / linear.weight.norm(dim=1, keepdim=True)).T)


@kinds
def test_gradients_are_orthogonal_to_weights(kind, group):
    torch.manual_seed(3)
    for layer in parts(layers_of(kind, group)):
        x = torch.randn(2, layer.channels[1] if kind == "regular" else layer.in_channels, 6, 6)
        layer(x).pow(3).sum().backward()
        weight, gradient = layer.weight.detach().flatten(1), layer.weight.grad.flatten(1)
        cosine = (weight * gradient).sum(1) / weight.norm(dim=1) / gradient.norm(dim=1)
        assert cosine.abs().max() < 1e-5 and gradient.norm(dim=1).min() > 1e-3


@NATIVE
@pytest.mark.parametrize("kind", ["tied", "regular"])
def test_convolutions_by_cpp_are_normalised_too(kind, monkeypatch):
    conv = layers_of(kind, "D4").conv(64, 192)
    x, grad = torch.randn(2, 64, 6, 6, requires_grad=True), torch.randn(2, 192, 6, 6)
    conv.weight.data.normal_()
    found = conv(x)
    assert "Native" in type(found.grad_fn).__name__
    ours = [found, *torch.autograd.grad(found, (x, conv.weight), grad)]
    with torch.no_grad(), folded(conv):
        assert conv.kernel().ndim == 1 and torch.equal(conv(x), found)
    monkeypatch.setattr(conv, "maps", None)
    wanted = conv(x)
    for a, b in zip(ours, [wanted, *torch.autograd.grad(wanted, (x, conv.weight), grad)], strict=True):
        assert (a - b).norm() <= 3e-6 * b.norm()


@pytest.mark.parametrize("channels", [8, 12])
@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("resample", ["", "down", "up"])
@pytest.mark.parametrize("kind", ["plain", "regular"])
def test_a_block_by_its_formula(kind, resample, decoder, channels):
    torch.manual_seed(4)
    layers = layers_of(kind, "C4" if kind == "regular" else "none")
    block = Block(layers, channels, 12, 6, 0.0, resample, decoder).double()
    block.gain.data.fill_(0.7)
    x, embedding = torch.randn(2, channels, 4, 4).double(), torch.randn(2, 6).double()
    y = {"": x, "down": F.avg_pool2d(x, 2), "up": x.repeat_interleave(2, 2).repeat_interleave(2, 3)}[resample]
    skip = block.skip if channels != 12 else (lambda v: v)
    if not decoder:
        y = skip(y)
        y = y / (y.square().mean(1, keepdim=True).sqrt() + 1e-4)
    h = block.conv_in(F.silu(y) / 0.596)
    scale = 1 + 0.7 * block.embed(embedding)
    h = h * (scale.repeat_interleave(4, 1) if kind == "regular" else scale)[:, :, None, None]
    h = block.conv_out(F.silu(h) / 0.596)
    y = skip(y) if decoder else y
    wanted = (0.7 * y + 0.3 * h) / (0.7**2 + 0.3**2) ** 0.5
    torch.testing.assert_close(block(x, embedding), wanted)
    block.float()
    with torch.autocast("cpu", torch.float16):
        large = block(1e3 * x.half(), embedding.float())
    assert large.dtype == torch.float16 and (large.abs().max() == 256 if decoder else large.abs().max() < 20)
    assert not decoder or block(1e3 * x.float(), embedding.float()).abs().max() > 300


def test_blocks_drop_in_training_alone():
    block = Block(layers_of("regular", "C4"), 8, 8, 16, 0.5, "", False)
    x, embedding = torch.randn(2, 8, 6, 6), torch.randn(2, 16)
    assert torch.equal(block.eval()(x, embedding), block(x, embedding))
    assert not torch.equal(block.train()(x, embedding), block(x, embedding))


def test_attention_by_its_formula():
    """Queries, keys and values of every head have a root mean square of 1."""
    torch.manual_seed(5)
    attention = CosineAttention(layers_of("plain", "none"), 12, 4).double()
    x = 5 * torch.randn(2, 12, 3, 5, dtype=torch.float64)
    q, k, v = attention.qkv(x).flatten(2).chunk(3, 1)
    heads = []
    for i in range(0, 12, 4):
        a, b, c = (u[:, i : i + 4] / (u[:, i : i + 4].square().mean(1, keepdim=True).sqrt() + 1e-4) for u in (q, k, v))
        heads.append((((a.transpose(1, 2) @ b) / 2).softmax(-1) @ c.transpose(1, 2)).transpose(1, 2))
    wanted = (0.7 * x + 0.3 * attention.out(torch.cat(heads, 1).view_as(x))) / 0.58**0.5
    torch.testing.assert_close(attention(x), wanted)
    with torch.autocast("cpu", torch.float16):
        assert attention.float()(1e3 * x.half()).abs().max() == 256


def network(kind="plain", group="none", classes=0, **settings):
    torch.manual_seed(6)
    sizes = dict(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, num_head_channels=16, dropout=0.0)
    config = ModelConfig(
        **(sizes | dict(attention_resolutions=(8,), layers=kind, group=group, backbone="edm2") | settings)
    )
    return EDM2(config, ImageShape(1, 2, 16, 16, classes), GROUPS[group])


def test_ends_of_the_network_by_their_formulas():
    """Embedding of time and label, the constant channel, skips that are joined, the gain that begins at 0."""
    net, seen = network(classes=3).double(), {}
    x, y, t, label = torch.randn(2, 1, 16, 16), torch.randn(2, 2, 16, 16), torch.tensor([-900.0, 30.0]), [2, 0]
    assert net(x.double(), t, y.double(), torch.tensor(label)).abs().max() == 0
    net.gain.data.fill_(1.5)
    for name in ("stem", "head", "encoder.0", "decoder.0", "middle_out"):
        net.get_submodule(name).register_forward_hook(lambda _, i, o, name=name: seen.update({name: (i, o)}))
    out = net(x.double(), t, y.double(), torch.tensor(label))
    time = net.embed(net.fourier(t).double())
    of_label = torch.stack([net.embed_label.values()[:, c] for c in label]) * 3**0.5
    wanted = F.silu((time + of_label) / 2**0.5) / 0.596
    torch.testing.assert_close(seen["encoder.0"][0][1], wanted)
    torch.testing.assert_close(seen["stem"][0][0], torch.cat([x, y, torch.ones(2, 1, 16, 16)], 1).double())
    deep = seen["middle_out"][1]
    torch.testing.assert_close(seen["decoder.0"][0][0][:, : deep.shape[1]], deep)  # as many channels as the skip
    torch.testing.assert_close(out, 1.5 * seen["head"][1])
    normalising = {name for name, m in net.named_modules() if isinstance(m, Block) and not m.decoder}
    assert normalising == {f"encoder.{i}.residual" for i in range(3)}
    with pytest.raises(AssertionError, match="needs labels"):
        net(x.double(), t, y.double())


def magnitudes(net, x, t, y):
    """Of what every block returns."""
    found = []
    hooks = [b.register_forward_hook(lambda _, i, output: found.append(size(output).item())) for b in net.blocks]
    net(x, t, y)
    for hook in hooks:
        hook.remove()
    return found


@kinds
def test_a_network_keeps_magnitudes_at_the_beginning(kind, group):
    net = network(kind, group, model_channels=64, num_res_blocks=2)
    x, y, t = torch.randn(4, 1, 16, 16), torch.randn(4, 2, 16, 16), torch.linspace(-2000, 1000, 4)
    found = magnitudes(net, x, t, y)
    assert len(found) == 14 and all(0.6 < m < 1.6 for m in found), found
    if kind == "plain":
        assert all(0.8 < m < 1.15 for m in found), found


@pytest.mark.parametrize(("kind", "group"), [("plain", "none"), ("tied", "D4"), ("regular", "C4")])
def test_magnitudes_after_steps(kind, group):
    """Weights have theirs after every step, with a rate at which ADM's grow; activations remain of that order."""
    settings = dict(optimizer="adam", lr=0.02, lr_warmup_steps=0)
    t = trainer(model=dict(backbone="edm2", layers=kind, group=group, model_channels=16), **settings)
    net, before = t.model.network, copy.deepcopy(t.model.network)
    for step in range(30):
        t.train_step(next(batches(step)))
    for layer, old in zip(net.modules(), before.modules(), strict=True):
        if isinstance(layer, Preserving):
            assert (size(layer.weight.flatten(1), 1) - 1).abs().max() < 2e-6
            assert (layer.weight - old.weight).norm() > 0.01 * old.weight.norm() or layer is net.embed
    images = torch.randn(2, 4, 1, 8, 8)
    assert all(0.5 < m < 3 for m in magnitudes(net.eval(), images[0], torch.linspace(-2000, 0, 4), images[1]))
    held = {name: value.clone() for name, value in net.state_dict().items()}
    t.train_step(poison(next(batches(1))))
    assert all(torch.equal(held[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("kind", ["plain", "tied", "regular"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(kind, dtype):
    """By autocast, near float32, with gradients; attention by a fused kernel."""
    net = network(kind, "C4" if kind != "plain" else "none", model_channels=16)
    net.gain.data.fill_(1)
    x, y, t = torch.randn(2, 1, 16, 16), torch.randn(2, 2, 16, 16), torch.tensor([-900.0, 30.0])
    wanted = net(x, t, y)
    with torch.autocast("cpu", dtype):
        found = net(x, t, y)
    found.float().square().mean().backward()
    assert (found.float() - wanted).norm() < 0.03 * wanted.norm() and found.dtype == dtype
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in net.parameters())


def test_layers_are_shared_kernels_and_nothing_else_is_stored():
    net = network("regular", "D4", classes=2)
    stored = {name for name, _ in net.named_parameters()}
    assert stored == set(net.state_dict()) and {name.split(".")[-1] for name in stored} == {"weight", "gain"}
    layers = [m for m in net.modules() if isinstance(m, SharedKernel)]
    weights = sum(name.endswith("weight") for name in stored)
    assert len(layers) == weights and not any(isinstance(m, (nn.GroupNorm, nn.Embedding)) for m in net.modules())
    assert math.isclose(sum(p.numel() for p in net.parameters() if p.numel() == 1), sum("gain" in n for n in stored))
