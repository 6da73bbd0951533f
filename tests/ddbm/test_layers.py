import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddbm.groups import GROUPS, act
from ddbm.layers import LAYERS, Attention, GroupNorm, TiedConv2d, downsample, upsample

groups = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)


@groups
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_tied_kernel_is_the_average_over_the_group(group, kernel_size):
    conv = TiedConv2d(2, 4, kernel_size, group).double()
    average = torch.stack([act(g, conv.weight) for g in group.elements]).mean(0)
    torch.testing.assert_close(conv.kernel(), average, rtol=1e-14, atol=1e-15)


@groups
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tied_kernel_is_exactly_invariant_in_its_own_type(group, dtype):
    conv = TiedConv2d(3, 5, 3, group).to(dtype)
    for g in group.elements:
        assert torch.equal(conv.kernel(), act(g, conv.kernel()))
    assert conv.kernel().dtype == dtype


@groups
def test_tied_convolution_calls_the_convolution_once(group, monkeypatch):
    conv, calls, real = TiedConv2d(3, 4, 3, group), [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    assert conv(torch.randn(2, 3, 8, 8)).shape == (2, 4, 8, 8)
    assert len(calls) == 1


@groups
def test_nothing_of_the_symmetry_is_stored_or_trained(group):
    tied, plain = TiedConv2d(3, 4, 3, group), nn.Conv2d(3, 4, 3)
    assert {k: v.shape for k, v in tied.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert [n for n, _ in tied.named_parameters()] == ["weight", "bias"]


def test_tied_c4_on_3x3_is_tied_d4_and_on_5x5_is_not():
    """Centre, edge, corner: an invariant 3x3 kernel cannot tell left from right turns."""
    for kernel_size, same in ((3, True), (5, False)):
        c4, d4 = (TiedConv2d(2, 3, kernel_size, GROUPS[name]) for name in ("C4", "D4"))
        d4.load_state_dict(c4.state_dict())
        assert torch.allclose(c4.kernel(), d4.kernel(), atol=1e-6) is same


@groups
def test_resampling_commutes_with_the_group(group):
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for g in group.elements:
        torch.testing.assert_close(downsample(act(g, x)), act(g, downsample(x)), rtol=1e-14, atol=1e-15)
        assert torch.equal(upsample(act(g, x)), act(g, upsample(x)))


def test_attention_is_softmax_attention():
    """Against the formula, head by head, with the queries, keys and values of all heads one after another."""
    torch.manual_seed(0)
    attention = Attention(12, 4).double()
    nn.init.normal_(attention.out.weight)
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    q, k, v = attention.qkv(attention.norm(x).flatten(2)).chunk(3, 1)
    heads = []
    for i in range(0, 12, 4):
        weights = (q[:, i : i + 4].transpose(1, 2) @ k[:, i : i + 4] / 2).softmax(-1)
        heads.append((weights @ v[:, i : i + 4].transpose(1, 2)).transpose(1, 2))
    wanted = x + attention.out(torch.cat(heads, 1)).view_as(x)
    torch.testing.assert_close(attention(x), wanted)


def test_heads_that_do_not_fit_are_refused_with_one_that_does():
    with pytest.raises(ValueError, match="--num_head_channels 32") as error:
        Attention(96, 36)
    assert "96" in str(error.value)
    Attention(96, 32)


def test_norm_is_computed_in_float32():
    norm = GroupNorm(48)
    x = (torch.randn(2, 48, 4, 4) + 300).bfloat16()
    assert norm(x).dtype == torch.bfloat16 and norm.num_groups == 16
    torch.testing.assert_close(norm(x).float(), nn.GroupNorm(16, 48)(x.float()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_makes_layers_of_the_channels_asked_for(kind):
    layers = LAYERS[kind](GROUPS["D4"])
    x = torch.randn(2, 8, 6, 6)
    assert layers.conv(8, 16)(x).shape == (2, 16, 6, 6)
    assert layers.conv(8, 16, 1)(x).shape == (2, 16, 6, 6)
    assert layers.dropout(0.5)(layers.attention(8, 4)(layers.norm(8)(x))).shape == x.shape
