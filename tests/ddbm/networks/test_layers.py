"""The layers, against averages and sums over the group as they are defined."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddbm.config import ImageShape, ModelConfig
from ddbm.networks.convolutions import GroupConv, TiedConv2d, folded
from ddbm.networks.layers import Attention, GroupNorm, PlainLayers, RegularLayers
from ddbm.networks.unet import ResidualBlock, UNet
from ddbm.symmetry.groups import GROUPS, act, inverse, multiply

groups = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)


@groups
def test_tied_convolution(group):
    """Its kernel is the average over the group, exactly invariant in its own type; nothing else is stored."""
    for kernel_size in (1, 3, 5):
        conv = TiedConv2d(2, 4, kernel_size, group).double()
        average = torch.stack([act(g, conv.weight) for g in group.elements]).mean(0)
        torch.testing.assert_close(conv.kernel(), average, rtol=1e-14, atol=1e-15)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        kernel = conv.to(dtype).kernel()
        assert kernel.dtype == dtype and all(torch.equal(kernel, act(g, kernel)) for g in group.elements)
    conv, plain = TiedConv2d(2, 4, 5, group), nn.Conv2d(2, 4, 5, padding=2)
    assert {k: v.shape for k, v in conv.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert [n for n, _ in conv.named_parameters()] == ["weight", "bias"]
    plain.load_state_dict({"weight": conv.kernel(), "bias": conv.bias})
    x = torch.randn(2, 2, 7, 8)
    torch.testing.assert_close(conv(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert conv.kernel().dtype == torch.float32


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


def group_convolution(x, conv, group, kind):
    """The defining sums of Cohen & Welling 2016, one pixel of the kernel at a time."""
    k = conv.kernel_size
    into = [(0, 0)] if kind == "lift" else group.elements
    out = [(0, 0)] if kind == "project" else group.elements
    x = x.unflatten(1, (-1, len(into)))
    r = k // 2
    padded = F.pad(x.flatten(1, 2), (r, r, r, r)).unflatten(1, x.shape[1:3])
    height, width = x.shape[-2:]
    y = torch.zeros(len(x), len(conv.weight), len(out), height, width, dtype=x.dtype)
    for i, h in enumerate(out):
        for j, h_in in enumerate(into):
            u = 0 if kind else group.elements.index(multiply(inverse(h), h_in))
            turn = h if kind != "project" else h_in
            kernel = act(turn, conv.weight[:, :, u])
            for a in range(k):
                for b in range(k):
                    window = padded[:, :, j, a : a + height, b : b + width]
                    y[:, :, i] += torch.einsum("oc,bchw->bohw", kernel[:, :, a, b], window)
    return (y + conv.bias[:, None, None, None]).flatten(1, 2)


@groups
@pytest.mark.parametrize("kind", ["", "lift", "project"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_group_convolution_is_its_defining_sum(group, kind, kernel_size):
    n = len(group)
    into, out = (2 if kind == "lift" else 2 * n), (3 if kind == "project" else 3 * n)
    conv = GroupConv(into, out, kernel_size, group, kind).double()
    x = torch.randn(2, into, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(conv(x), group_convolution(x, conv, group, kind), rtol=1e-12, atol=1e-12)


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


@groups
def test_group_convolutions_have_one_over_g_of_the_weights_and_begin_as_others(group):
    n = len(group)
    conv, plain = GroupConv(16 * n, 8 * n, 3, group), nn.Conv2d(16 * n, 8 * n, 3)
    for own, other in zip(conv.parameters(), plain.parameters(), strict=True):
        assert own.numel() * n == other.numel()
        assert own.abs().max() <= (bound := (16 * n * 9) ** -0.5) and (own.ndim == 1 or own.abs().max() > 0.9 * bound)


@pytest.mark.parametrize("kind", [TiedConv2d, GroupConv])
def test_kernels_are_laid_out_once_inside_of_folded_and_kept_nowhere_else(kind, monkeypatch):
    conv, calls = kind(8, 8, 3, GROUPS["D4"]), []
    fresh, conv2d = conv.expand, F.conv2d
    assert fresh().shape == (8, 8, 3, 3) and list(conv.state_dict()) == ["weight", "bias"]
    monkeypatch.setattr(conv, "expand", lambda: calls.append("expand") or fresh())
    monkeypatch.setattr(F, "conv2d", lambda *a, **k: calls.append("conv") or conv2d(*a, **k))
    x, network = torch.randn(1, 8, 6, 6), nn.Sequential(conv, nn.SiLU(), conv)
    with torch.no_grad(), folded(network):
        with folded(network):
            network(x)
        network(x)
        assert calls.count("expand") == 1 and calls.count("conv") == 4
        changed = conv.weight.data
        changed.mul_(2)
        torch.testing.assert_close(2 * conv.kernel(), fresh())  # as they were
        with torch.enable_grad():  # but a layer that is trained is not kept
            assert conv.kernel().requires_grad and torch.equal(conv.kernel(), fresh())
        assert torch.equal(conv.kernel(), fresh())
    for change in (lambda: changed.mul_(2), lambda: conv.half().float(), lambda: conv.double()):
        with pytest.raises(KeyError), torch.inference_mode(), folded(network):
            assert torch.equal(conv.kernel(), fresh())
            raise KeyError
        change()
        with torch.no_grad():
            assert torch.equal(conv.kernel(), fresh())
    assert conv.kernel().requires_grad and conv.kernel() is not conv.kernel()


def test_channels_of_a_dropped_field_are_dropped_independently():
    """Dropout acts on every value alone, so that the group, which permutes values, leaves its law as it is."""
    block = ResidualBlock(RegularLayers(GROUPS["C4"]), 8, 8, 16, dropout=0.5)
    kept = (block.dropout(torch.ones(64, 8, 16, 16)) > 0).float()
    assert abs(kept.mean() - 0.5) < 0.01
    assert torch.corrcoef(kept.transpose(0, 1).flatten(1)).fill_diagonal_(0).abs().max() < 0.05


@pytest.mark.parametrize(("size", "advice"), [((12, 10), "12x8"), ((10, 12), "8x12"), ((1, 4), "4x4")], ids=str)
def test_sizes_that_cannot_be_halved_from_level_to_level(size, advice):
    settings = ModelConfig(model_channels=4, channel_mult=(1, 1, 1), num_head_channels=4)
    UNet(settings, ImageShape(1, 1, 12, 8, 0), GROUPS["none"])
    with pytest.raises(ValueError, match=rf"cannot be halved 2 times: use --image_size {advice}, .* has 3 entries"):
        UNet(settings, ImageShape(1, 1, *size, 0), GROUPS["none"])
