"""The layers, against averages and sums over the group as they are defined."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddbm.config import ImageShape, ModelConfig
from ddbm.networks import native
from ddbm.networks.edm2 import EDM2, CosineAttention
from ddbm.networks.layers import LAYERS, Attention, GroupNorm, PlainLayers, RegularLayers
from ddbm.networks.unet import ResidualBlock, UNet, memory_format
from ddbm.symmetry.groups import GROUPS

NATIVE = pytest.mark.skipif(native.library("norm") is None, reason="no C++ compiler")
KINDS = [("cpu", torch.float32), *(("cuda", kind) for kind in (torch.float32, torch.bfloat16, torch.float16))]


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("backbone", [UNet, EDM2])
@pytest.mark.parametrize(("device", "kind"), KINDS, ids=str)
def test_attention_never_multiplies_out_its_weights(backbone, layers, device, kind, monkeypatch):
    """Forward and backward by a fused kernel: PyTorch may choose no other, and raises where none will do."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    made = {UNet: Attention, EDM2: CosineAttention}[backbone](backbone.LAYERS[layers](GROUPS["D4"]), 16, 8)
    attention, dense, attend = made.to(device), [], F.scaled_dot_product_attention
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 16, 4, 6, device=device).contiguous(memory_format=layout).requires_grad_()
        with monkeypatch.context() as patch:
            patch.setattr(F, "scaled_dot_product_attention", lambda *qkv: dense.append(qkv) or attend(*qkv))
            patch.setattr("ddbm.networks.layers.fits", lambda *_: False)  # so that features lie as they came
            attention(x)
        with (
            sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]),
            torch.autocast(device, kind, enabled=kind != torch.float32),
        ):
            attention(x).sum().backward()
    assert len(dense) == 2 and all(x.stride(-1) == 1 and x.shape == (2, 2, 24, 8) for qkv in dense for x in qkv)


def test_attention_is_softmax_attention():
    """Against the formula, head by head, with the queries, keys and values of all heads one after another."""
    torch.manual_seed(0)
    attention = Attention(PlainLayers(GROUPS["none"]), 12, 4).double()
    nn.init.normal_(attention.out.weight)
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    q, k, v = attention.qkv(attention.norm(x)).flatten(2).chunk(3, 1)
    heads = []
    for i in range(0, 12, 4):
        weights = (q[:, i : i + 4].transpose(1, 2) @ k[:, i : i + 4] / 2).softmax(-1)
        heads.append((weights @ v[:, i : i + 4].transpose(1, 2)).transpose(1, 2))
    wanted = x + attention.out(torch.cat(heads, 1).view_as(x))
    torch.testing.assert_close(attention(x), wanted)


def test_norm_of_fields_shares_statistics_and_gains():
    norm = GroupNorm(6 * 4, 4).double()
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    assert norm.weight.shape == (6,) and norm.num_groups == 2
    x = torch.randn(3, 24, 5, 5, dtype=torch.float64)
    blocks = x.reshape(3, 2, -1)
    wanted = ((blocks - blocks.mean(-1, True)) / (blocks.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()).view_as(x)
    gains = [p.repeat_interleave(4)[:, None, None] for p in (norm.weight, norm.bias)]
    torch.testing.assert_close(norm(x), wanted * gains[0] + gains[1])
    norm, x = GroupNorm(48, 1), (torch.randn(2, 48, 4, 4) + 300).bfloat16()  # computed in float32
    assert norm(x).dtype == torch.bfloat16 and norm.num_groups == 16
    torch.testing.assert_close(norm(x).float(), nn.GroupNorm(16, 48)(x.float()), rtol=1e-2, atol=1e-2)


def norm_case(order, shape, mean, **how):
    """A norm with gains of its own, features and, where asked for, scale and shift."""
    norm = GroupNorm(shape[1], order)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    values = [torch.randn(shape) + mean]
    if how.pop("film", False):
        values += [*torch.randn(2, *shape[:2])]
    return norm, [value.requires_grad_() for value in values], how


@NATIVE
@pytest.mark.parametrize("order", [1, 4])
@pytest.mark.parametrize("how", [dict(), dict(silu=True), dict(film=True, silu=True)], ids=str)
@pytest.mark.parametrize(
    ("shape", "mean"), [((3, 64, 7, 5), 0), ((1, 96, 32, 32), 300), ((0, 64, 2, 2), 0), ((2, 12, 1, 3), -300)], ids=str
)
def test_norm_by_cpp(order, how, shape, mean):
    """Against PyTorch in float64, values and all gradients; the same bits whatever the number of threads."""
    norm, inputs, rest = norm_case(order, shape, mean, **how)
    exact, doubles = copy.deepcopy(norm).double(), [x.detach().double().requires_grad_() for x in inputs]
    wanted, grad, threads, found = exact(*doubles, **rest), torch.randn(shape), torch.get_num_threads(), []
    theirs = [wanted, *torch.autograd.grad(wanted, [*doubles, *exact.parameters()], grad.double())]
    for count in (1, 3):
        torch.set_num_threads(count)
        y = norm(*inputs, **rest)
        found.append([y, *torch.autograd.grad(y, [*inputs, *norm.parameters()], grad)])
    torch.set_num_threads(threads)
    assert "Normalised" in type(y.grad_fn).__name__
    for one, other, right in zip(*found, theirs, strict=True):
        assert torch.equal(one, other) and (one - right).norm() <= 3e-6 * right.norm()


@NATIVE
def test_what_is_not_finite_stays_so_and_other_types_are_pytorch_s():
    norm = GroupNorm(64)
    for value in (float("nan"), float("inf"), -float("inf")):
        x = torch.randn(2, 64, 3, 3)
        x[1, 3, 1, 1] = value
        for dropout in (0.0, 0.5):
            y = norm(x, silu=True, dropout=dropout)
            assert y[0].isfinite().all() and y[1, 2:4].isnan().all() and y[1, 4:].isfinite().all()
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    for odd in (torch.randn(2, 32, 3, 3), torch.randn(2, 128, 3, 3)):
        with pytest.raises(RuntimeError):
            norm(odd)
    assert "Normalised" not in type(norm.double()(x.double()).grad_fn).__name__


@NATIVE
def test_silu_of_very_large_values():
    norm, values = GroupNorm(4), torch.tensor([0.0, 1e-3, 20.0, 79.0, 81.0, 90.0, 1000.0])
    nn.init.zeros_(norm.weight)
    for z in (*values, *-values):
        nn.init.constant_(norm.bias, z.item())
        x = torch.randn(1, 4, 2, 2)
        y = norm(x, silu=True)
        (found,) = torch.autograd.grad(y.sum(), norm.bias)
        exact = z.double().requires_grad_()
        (wanted,) = torch.autograd.grad(F.silu(exact), exact)
        torch.testing.assert_close(y.double(), F.silu(exact).expand(1, 4, 2, 2), rtol=1e-6, atol=1e-30)
        torch.testing.assert_close(found.double(), 4 * wanted.expand(4), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("p", "kind"), [(0.1, torch.float64), (0.1, torch.float32), (0.5, torch.float32), (1 - 2**-20, torch.float32)]
)
def test_dropout_is_of_every_value_alone(p, kind):
    """So the group, which permutes values, leaves its law as it is; what is kept makes up for what is not."""
    norm, x = GroupNorm(8, 4).to(kind), torch.randn(64, 8, 16, 15, dtype=kind)
    nn.init.zeros_(norm.weight), nn.init.ones_(norm.bias)  # the values are 1 before
    torch.manual_seed(0)
    y = norm(x, dropout=p)
    (gradient,) = torch.autograd.grad(y.sum(), norm.bias)
    share = 1 - (min(round(p * 2**16), 2**16 - 1) / 2**16 if kind == torch.float32 and NATIVE.args[0] is False else p)
    kept = (y > 0).float()
    torch.testing.assert_close(y[y > 0], torch.full_like(y[y > 0], 1 / share))
    torch.testing.assert_close(gradient.sum(), y.sum(), rtol=1e-4, atol=0)
    assert abs(kept.mean() - share) < 4 * (share * (1 - share) / kept.numel()) ** 0.5
    if p < 0.9:  # neither channels nor neighbours know of each other
        channels = kept.transpose(0, 1).flatten(1)
        neighbours = torch.stack([kept.permute(0, 2, 3, 1).flatten()[i : i - 8] for i in range(8)])
        for values in (channels, neighbours):
            assert torch.corrcoef(values).fill_diagonal_(0).abs().max() < 0.05
        torch.manual_seed(0)
        assert torch.equal(norm(x, dropout=p), y) and not torch.equal(norm(x, dropout=p), y)


def test_blocks_drop_in_training_alone():
    block = ResidualBlock(RegularLayers(GROUPS["C4"]), 8, 8, 16, dropout=0.5)
    nn.init.normal_(block.conv_out.weight)
    x, embedding = torch.randn(2, 8, 6, 6), torch.randn(2, 16)
    assert torch.equal(block.eval()(x, embedding), block(x, embedding))
    assert not torch.equal(block.train()(x, embedding), block(x, embedding))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("backbone", [UNet, EDM2])
def test_features_lie_with_their_channels_last(kind, backbone, monkeypatch):
    """On a CPU, from the first convolution to the last; on a GPU where torch.compile makes the kernels."""
    settings = ModelConfig(
        model_channels=16, channel_mult=(1, 2), num_head_channels=8, attention_resolutions=(4,), layers=kind
    )
    network = backbone(settings, ImageShape(3, 3, 8, 8, 0), GROUPS["D4" if kind != "plain" else "none"])
    seen = []
    for module in network.modules():
        if hasattr(module, "kernel_size") or isinstance(module, GroupNorm):
            module.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0], output]))
    network(torch.randn(2, 3, 8, 8), torch.rand(2), torch.randn(2, 3, 8, 8)).sum().backward()
    assert len(seen) > 60 and all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
    assert memory_format(torch.device("cuda")) == torch.contiguous_format
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert memory_format(torch.device("cuda")) == torch.channels_last


@pytest.mark.parametrize(("size", "advice"), [((12, 10), "12x8"), ((10, 12), "8x12"), ((1, 4), "4x4")], ids=str)
def test_sizes_that_cannot_be_halved_from_level_to_level(size, advice):
    settings = ModelConfig(model_channels=4, channel_mult=(1, 1, 1), num_head_channels=4)
    UNet(settings, ImageShape(1, 1, 12, 8, 0), GROUPS["none"])
    with pytest.raises(ValueError, match=rf"cannot be halved 2 times: use --image_size {advice}, .* has 3 entries"):
        UNet(settings, ImageShape(1, 1, *size, 0), GROUPS["none"])
