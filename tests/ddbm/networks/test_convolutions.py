"""Convolutions with shared kernels, against averages and sums over the group as they are defined."""

import ctypes

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddbm.networks import convolutions, native
from ddbm.networks.convolutions import GroupConv, TiedConv2d, folded
from ddbm.symmetry.groups import GROUPS, act, inverse, multiply

groups = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
ORBITS = {"none": 9, "H": 6, "V": 6, "C2": 5, "C4": 3, "D2": 4, "D4": 3}  # of the pixels of a 3x3 kernel


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


def by_sums(monkeypatch, group, into=2, out=3, kernel_size=3, **kind):
    monkeypatch.setattr(convolutions, "sums_pay", lambda weight, orbits: True)
    return TiedConv2d(into, out, kernel_size, group).to(**kind)


def average_of_kernels(conv, x, group):
    """The definition: the kernel is the mean of its turned copies."""
    return F.conv2d(x, torch.stack([act(g, conv.weight) for g in group.elements]).mean(0), conv.bias, 1, conv.padding)


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("kind", [torch.float64, torch.float32], ids=str)
def test_sums_of_neighbours_are_the_convolution(name, kind, monkeypatch):
    """Forward and the gradients of image, kernel and bias, whatever lies where in memory."""
    conv, tolerance = by_sums(monkeypatch, GROUPS[name], dtype=kind), 1e-12 if kind == torch.float64 else 1e-5
    assert conv.kernel().shape == (ORBITS[name], 3, 2)
    for shape in ((2, 2, 5, 7), (1, 2, 1, 6), (3, 2, 4, 1), (0, 2, 3, 3), (1, 2, 1, 1)):
        for memory in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape, dtype=kind).contiguous(memory_format=memory).requires_grad_()
            found, wanted = conv(x), average_of_kernels(conv, x, GROUPS[name])
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
            grad, inputs = torch.randn(wanted.shape, dtype=kind), (x, conv.weight, conv.bias)
            for a, b in zip(*(torch.autograd.grad(y, inputs, grad) for y in (found, wanted)), strict=True):
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@groups
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_gradients_of_sums_of_neighbours(group, kernel_size, monkeypatch):
    conv = by_sums(monkeypatch, group, 2, 2, kernel_size, dtype=torch.float64)
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: conv(x), (x, conv.weight, conv.bias))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_sums_of_neighbours_in_half_precision(kind, autocast, monkeypatch):
    """To the rounding of 3 sums and 3 products with 16 channels, none of which is larger than their length."""
    group = GROUPS["D4"]
    conv = by_sums(monkeypatch, group, 16, 4)
    x = torch.randn(2, 16, 6, 6)
    wanted = average_of_kernels(conv, x, group)
    if not autocast:
        conv, x = conv.to(kind), x.to(kind)
    with torch.autocast("cpu", kind, enabled=autocast):
        found = conv(x)
    assert found.dtype == kind
    found.float().sum().backward()
    assert conv.weight.grad.isfinite().all() and conv.weight.grad.dtype == conv.weight.dtype
    length = F.conv2d(x.float().square().sum(1, keepdim=True).sqrt(), torch.ones(1, 1, 3, 3), padding=1).amax()
    error = (found.float() - wanted).abs().amax() / (length * conv.weight.float().flatten(1).norm(dim=1).amax())
    assert error < 4 * torch.finfo(kind).eps


def test_tied_convolutions_take_the_way_that_was_faster():
    """By PyTorch, sums on a CPU from 16 channels a free value on, of the smaller side; not when compiled."""
    for group, into, out, shape in (
        ("D4", 48, 64, (3, 64, 48)), ("D4", 47, 64, (64, 47, 3, 3)), ("D4", 64, 47, (47, 64, 3, 3)),
        ("H", 96, 96, (6, 96, 96)), ("H", 95, 96, (96, 95, 3, 3)),
    ):  # fmt: skip
        assert TiedConv2d(into, out, 3, GROUPS[group]).kernel().shape == shape
    assert not convolutions.sums_pay(torch.empty(64, 64, 3, 3, device="meta"), 3)
    conv, x = TiedConv2d(48, 48, 3, GROUPS["D4"]), torch.randn(1, 48, 5, 5)
    graphs = []
    compiled = torch.compile(conv, backend=lambda graph, _: graphs.append(str(graph.graph)) or graph, fullgraph=True)
    torch.testing.assert_close(compiled(x), conv(x), rtol=1e-5, atol=1e-5)
    assert "index_select" in graphs[0]


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


NATIVE = pytest.mark.skipif(native.library("convolution") is None, reason="no C++ compiler")
WIDE = [("D4", 8, 8), ("D4", 32, 16), ("D4", 24, 48), *((name, 16, 24) for name in ("H", "V", "C2", "C4", "D2"))]
TIED = [("D4", 16, 32), ("D4", 24, 8), ("H", 16, 24), ("V", 24, 16), ("C4", 8, 40), ("C2", 48, 96), ("D2", 96, 48)]


@NATIVE
@pytest.mark.parametrize(
    ("kind", "name", "into", "out"), [(GroupConv, *case) for case in WIDE] + [(TiedConv2d, *case) for case in TIED]
)
def test_convolutions_by_cpp(kind, name, into, out, monkeypatch):
    """Against the kernel laid out, forward and all gradients; whatever lies where in memory."""
    group, threads = GROUPS[name], torch.get_num_threads()
    n = len(group) if kind is GroupConv else 1
    conv = kind(into * n, out * n, 3, group)
    for shape in ((2, 6, 6), (1, 1, 1), (0, 4, 4), (3, 5, 5) if group.turns else (3, 5, 7), (1, 32, 32), (7, 3, 3)):
        torch.set_num_threads({1: threads, 7: 1}.get(shape[0], 3))  # of seven small images several are taken at once
        x = torch.randn(shape[0], into * n, *shape[1:])
        x = (x if shape[0] == 2 else x.contiguous(memory_format=torch.channels_last)).requires_grad_()
        inputs, grad = (x, conv.weight, conv.bias), torch.randn(shape[0], out * n, *shape[1:])
        with monkeypatch.context() as patch:
            patch.setattr(conv, "maps", None)
            patch.setattr(convolutions, "sums_pay", lambda *_: False)
            wanted = conv(x)
        found = conv(x)
        assert ("Native" in type(found.grad_fn).__name__) == (shape[0] > 0)
        with torch.no_grad(), folded(conv):
            assert conv.kernel().ndim == 1 and torch.equal(conv(x), found)
        ours, theirs = ((y, *torch.autograd.grad(y, inputs, grad)) for y in (found, wanted))
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape and (a - b).norm() <= 2e-6 * b.norm()
    torch.set_num_threads(threads)


@NATIVE
@pytest.mark.parametrize("kind", [GroupConv, TiedConv2d])
def test_where_cpp_does_not_convolve(kind, monkeypatch):
    """Other types of numbers and sizes of kernels, channels that are no whole vectors, lifting and projection."""
    group = GROUPS["D4"]
    conv, x = kind(64, 64, 3, group), torch.randn(1, 64, 4, 4)
    wanted = conv(x)
    with torch.no_grad(), folded(conv), torch.autocast("cpu", torch.bfloat16):
        half = conv(x)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), wanted, rtol=0.05, atol=0.05)
        with monkeypatch.context() as patch:  # laid out once for that, too
            patch.setattr(conv, "laid_out", None)
            assert torch.equal(conv(x), half)
    for odd in (torch.randn(1, 56, 4, 4), torch.randn(1, 128, 4, 4), x.double()):
        with pytest.raises(RuntimeError):
            conv(odd)
    torch.testing.assert_close(conv.double()(x.double()).float(), wanted, rtol=1e-4, atol=1e-5)
    others = [kind(64, 64, 5, group), kind(64, 24 if kind is GroupConv else 12, 3, group)]
    others += [GroupConv(64, 8, 3, group, "project"), GroupConv(8, 64, 3, group, "lift")] * (kind is GroupConv)
    others += [TiedConv2d(64, out, 3, GROUPS[name]) for out, name in ((8, "C2"), (16, "D2"))]
    others += [TiedConv2d(384, 384, 3, group)]
    for conv in others:
        into = conv.channels[1] if isinstance(conv, GroupConv) else conv.in_channels
        y = conv(torch.randn(1, into, 4, 4))
        assert "Native" not in type(y.grad_fn).__name__


@pytest.fixture
def no_libraries(monkeypatch):
    monkeypatch.delenv("DDBM_NATIVE", raising=False)
    monkeypatch.delenv("DDBM_CACHE", raising=False)
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def test_without_a_compiler(monkeypatch, capsys, tmp_path, no_libraries):
    """One note, and PyTorch's kernels."""
    monkeypatch.setenv("DDBM_CACHE", str(tmp_path))
    for name, note in (("no-such-g++", "no-such-g++ is not installed"), ("false", "returned non-zero")):
        native.library.cache_clear()
        monkeypatch.setenv("CXX", name)
        assert native.library("convolution") is None and native.library("convolution") is None
        assert (words := capsys.readouterr().err).count("PyTorch's take longer") == 1 and note in words
        assert GroupConv(64, 64, 3, GROUPS["D4"])(torch.randn(1, 64, 4, 4)).shape == (1, 64, 4, 4)
    native.library.cache_clear()
    monkeypatch.setenv("DDBM_NATIVE", "0")
    assert native.library("convolution") is None and not capsys.readouterr().err
    monkeypatch.setenv("DDBM_NATIVE", "no")
    with pytest.raises(ValueError, match="DDBM_NATIVE is 'no', expected 1"):
        native.library("norm")


@NATIVE
def test_kernels_are_compiled_once(monkeypatch, capsys, tmp_path, no_libraries):
    """And found in the cache, but after a change; where there is none they serve this process."""
    ran, run, target = [], native.subprocess.run, ["this"]

    def watched(words, **options):
        ran.append(words)
        done = run(words, **options)
        if "--help=target" in words:
            done.stdout += target[0]
        return done

    monkeypatch.setattr(native.subprocess, "run", watched)
    monkeypatch.setattr(native, "HERE", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".cache" / "ddbm"

    def compiles(answer, header=""):
        native.library.cache_clear(), ran.clear()
        (tmp_path / "some.h").write_text(header)
        (tmp_path / "answer.cpp").write_text(f'extern "C" int answer() {{ return {answer}; }}')
        assert native.library("answer").answer() == answer
        return len(ran) == 2  # the other asks for the processor

    assert [compiles(n) for n in (7, 7, 8, 7)] == [True, False, True, False]
    assert [compiles(7, "//"), compiles(7)] == [True, False] and len(list(folder.iterdir())) == 3
    target[0] = "another"
    assert compiles(7) and not compiles(7)
    load, damaged = ctypes.CDLL, [OSError("file too short")]
    monkeypatch.setattr(
        ctypes, "CDLL", lambda path: load(path) if not damaged else (_ for _ in ()).throw(damaged.pop())
    )
    assert compiles(7) and not compiles(7) and not capsys.readouterr().err
    for name, value in (("DDBM_CACHE", "none"), ("DDBM_CACHE", str(tmp_path / "some.h" / "in"))):
        monkeypatch.setenv(name, value)
        assert compiles(9) and "answer.cpp is compiled anew at every start" in capsys.readouterr().err
    monkeypatch.delenv("DDBM_CACHE")
    monkeypatch.setattr(native.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert compiles(9) and "set DDBM_CACHE" in capsys.readouterr().err


@groups
def test_group_convolutions_have_one_over_g_of_the_weights_and_begin_as_others(group):
    n = len(group)
    conv, plain = GroupConv(16 * n, 8 * n, 3, group), nn.Conv2d(16 * n, 8 * n, 3)
    for own, other in zip(conv.parameters(), plain.parameters(), strict=True):
        assert own.numel() * n == other.numel()
        assert own.abs().max() <= (bound := (16 * n * 9) ** -0.5) and (own.ndim == 1 or own.abs().max() > 0.9 * bound)


@pytest.mark.parametrize("kind", [TiedConv2d, GroupConv])
@pytest.mark.parametrize("channels", [8, 4, 64])
def test_kernels_are_laid_out_once_inside_of_folded_and_kept_nowhere_else(kind, channels, monkeypatch):
    group = GROUPS["C4" if channels == 4 else "D4"]
    conv, calls = kind(channels, channels, 3, group), []
    fresh = conv.expand
    assert conv.laid_out().numel() <= 9 * channels**2 and list(conv.state_dict()) == ["weight", "bias"]
    monkeypatch.setattr(conv, "expand", lambda: calls.append("expand") or fresh())
    conv.register_forward_hook(lambda *_: calls.append("conv"))
    x, network = torch.randn(1, channels, 6, 6), nn.Sequential(conv, nn.SiLU(), conv)
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
