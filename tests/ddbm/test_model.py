"""The whole model: samples by value, equivariance with random parameters everywhere, what is refused."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from ddbm.bridges.samplers import SAMPLERS
from ddbm.config import BridgeConfig, Config, ModelConfig
from ddbm.files import checkpoint
from ddbm.model import SYMMETRIZE, BridgeModel, ImageShape, sample
from ddbm.networks.backbones import BACKBONES
from ddbm.networks.layers import LAYERS
from ddbm.symmetry.frames import canonical_frame, seed_of
from ddbm.symmetry.groups import GROUPS, act, inverse
from tests.ddbm.bridges import papers
from tests.ddbm.bridges.test_bridge import OTHER, scalings
from tests.ddbm.runs import one_line

groups = pytest.mark.parametrize("group", GROUPS)
SMALL = dict(model_channels=8, channel_mult=(1, 3), num_res_blocks=1, num_head_channels=8, dropout=0.0)


def model(group="D4", layers="tied", bridge=None, size=8, channels=(3, 3), classes=0, attention=(4,), **settings):
    torch.manual_seed(0)
    shape = ImageShape(*channels, *((size, size) if isinstance(size, int) else size), classes)
    config = Config(
        bridge=bridge or BridgeConfig(),
        model=ModelConfig(**(SMALL | dict(group=group, layers=layers, attention_resolutions=attention) | settings)),
    )
    made = BridgeModel(config, shape).eval()
    for parameter in made.parameters():  # no zero-initialised hiding place
        nn.init.normal_(parameter, std=0.15)
    return made


class Formula(nn.Module):
    """A network of 2 source and 3 target channels that depends on all it is given, and on the place of a pixel."""

    levels = 1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))  # a model has a type

    def forward(self, x, c_noise, source, label):
        where = torch.linspace(-0.5, 1, x.shape[-1], dtype=x.dtype)
        numbers = (c_noise / 300 + 0.3 * label)[:, None, None, None]
        seen = 0 if source is None else source[:, :1] - 0.5 * source[:, 1:]
        return 1.6 * torch.sin(2 * x) + seen + where + numbers


def formula(schedule, condition="source", **more):
    """A model of it, and what is sampled from: sources, masks, labels."""
    bridge = BridgeConfig(schedule=schedule, sigma_min=0.4, sigma_max=3, **OTHER, **more)
    net = model("none", "plain", bridge, channels=(3, 2), classes=3, condition=condition)
    net.network = Formula()
    generator = torch.Generator().manual_seed(5)
    source = torch.rand(2, 2, 8, 8, dtype=torch.float64, generator=generator) * 2 - 1
    mask = torch.rand(2, 1, 8, 8, generator=generator) < 0.8
    return net, source * mask, mask, torch.tensor([2, 0])


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    "how",
    [
        *(dict(schedule=schedule) for schedule in ("ve", "vp", "ve_simple")),
        dict(schedule="linear", gamma_max=0.5, source_noise=0.7),
        dict(schedule="i2sb", beta_min=0.4, beta_max=1.9, condition="none"),
    ],
    ids=str,
)
def test_samples_by_value(how, masked):
    """D clipped to [-1, 1] and 0 outside the mask at every step, noise of (seed, index), the last clip; its way."""
    net, source, mask, label = formula(**how)
    guidance = 1.0 if "source_noise" in how else 1.4
    s, seen = papers.Schedule(net.config.bridge), []
    streams = [torch.Generator().manual_seed(seed_of(9, i)) for i in (5, 2)]
    inside = mask.numpy() if masked else np.ones(1, bool)
    x_T = np.stack([source.numpy().mean(1)] * 3, 1)

    def denoise(x, t):
        skip, out, scale_in, c_noise, _ = scalings(net.config.bridge, s.a(t), s.b(t), s.c2(t) * (t != s.T), t)
        shown = None if "condition" in how else source
        inputs = torch.from_numpy(scale_in * x), torch.full((2,), c_noise, dtype=torch.float32), shown, label
        D = np.clip(skip * x + out * net.network(*inputs).detach().numpy(), -1, 1) * inside
        seen.append((t, x, D))
        return D

    def noise():
        return torch.stack([torch.randn(3, 8, 8, generator=g) for g in streams]).double().numpy() * inside

    wanted = papers.euler_maruyama(s, denoise, x_T, noise, papers.uniform(s, s.T - 1e-4, 4), guidance)
    given = dict(index=[5, 2], mask=mask if masked else None, label=label, trajectory=True)
    given |= dict(sampler="euler_maruyama", nfe=4, grid="uniform", guidance=guidance, seed=9)
    found = sample(net, source, **given)
    assert np.abs(wanted).max() > 1 and np.abs(seen[1][2]).max() == 1 and found.nfe == 4
    np.testing.assert_allclose(found.x_0, wanted.clip(-1, 1), rtol=1e-6, atol=1e-7)
    for ours, theirs in zip(found.trajectory, zip(*seen, strict=True), strict=True):
        np.testing.assert_allclose(ours, np.stack(theirs), rtol=1e-6, atol=1e-6)
    given |= dict(trajectory=False)
    plain = sample(net, source, **given)
    assert plain.trajectory is None and torch.equal(plain.x_0, found.x_0)
    defaults = [sample(net, source, label=label, **kw).x_0 for kw in ({}, dict(seed=0, index=[0, 1], sampler="dbim"))]
    assert torch.equal(*defaults) and sample(net, source, label=label).nfe == 20


def test_symmetrized_samples_by_value():
    """In the canonical frame: the turned source's sample, turned back; the average: that of the averaged network."""
    net, source, mask, label = formula("vp")
    group = GROUPS["D4"]
    frames = [canonical_frame(x, group, m) for x, m in zip(source, mask, strict=True)]
    turned = [torch.stack([act(g, v) for g, v in zip(frames, x, strict=True)]) for x in (source, mask)]
    common = dict(sampler="dbim", eta=0.5, seed=3, label=label, trajectory=True)
    plain = sample(net, turned[0], mask=turned[1], nfe=3, **common)
    found = sample(net, source, mask=mask, nfe=3, symmetrize="canonical", group="D4", **common)
    assert any(g not in ((0, 0), inverse(g)) for g in frames)
    for ours, theirs in ((found.x_0, plain.x_0), (found.trajectory.x[1], plain.trajectory.x[1])):
        assert torch.equal(ours, torch.stack([act(inverse(g), x) for g, x in zip(frames, theirs, strict=True)]))

    averaged = sample(net, source, mask=mask, nfe=24, symmetrize="average", group="D4", **common)
    network = net.network

    class Mean(Formula):
        def forward(self, x, c_noise, source, label):
            every = [act(inverse(g), network(act(g, x), c_noise, act(g, source), label)) for g in group.elements]
            return torch.stack(every).mean(0)

    net.network = Mean()
    direct = sample(net, source, mask=mask, nfe=3, group="D4", **common)
    torch.testing.assert_close(averaged.x_0, direct.x_0)
    assert averaged.nfe == 24 and not torch.allclose(averaged.x_0, plain.x_0, atol=1e-2)


@groups
@pytest.mark.parametrize("layers", [kind for kind in LAYERS if kind != "plain"])
@pytest.mark.parametrize(
    ("channels", "size", "mult", "attention"),
    [((3, 3), 8, (1, 3), ()), ((1, 2), 8, (1, 3), (8, 4)), ((1, 2), 7, (3,), (7,))],
)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_symmetric_networks_are_equivariant(group, layers, channels, size, mult, attention, backbone):
    """Random parameters everywhere; even and odd sizes, odd multipliers, attention on and off."""
    settings = dict(size=size, channels=channels, channel_mult=mult, attention=attention, backbone=backbone)
    net, elements = model(group, layers, **settings).double(), GROUPS[group].elements
    x, source = (torch.randn(2, n, size, size, dtype=torch.float64) for n in channels)
    turned = [torch.cat([act(g, v) for g in elements]) for v in (x, source)]
    with torch.no_grad():
        y, *others = net.network(turned[0], torch.tensor([-3.0, 700.0] * len(elements)), turned[1]).split(2)
    assert y.shape == x.shape and y.std() > 1e-3 and net.group.name == group
    for g, found in zip(elements[1:], others, strict=True):
        assert (found - act(g, y)).norm() / y.norm() < 1e-12


def test_regular_c4_keeps_chirality_and_tied_c4_on_3x3_cannot():
    x, source, t = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.zeros(2)
    cases = (("C4", "regular", False), ("C4", "tied", True), ("D4", "plain", False))
    for backbone, (group, layers, mirrored) in itertools.product(BACKBONES, cases):
        net = model(group, layers, backbone=backbone)
        y, turned = net.network(x, t, source), net.network(x.flip(-1), t, source.flip(-1))
        error = (turned - y.flip(-1)).norm() / y.norm()
        assert error < 1e-5 if mirrored else error > 1e-2


WAYS = [(kind, "none") for kind in LAYERS if kind != "plain"] + [("plain", way) for way in SYMMETRIZE if way != "none"]
CASES = [(g, *way, "dbim", "adm") for g in GROUPS for way in WAYS if g != "none" or way[1] == "none"]
CASES += [("D4", *way, sampler, "adm") for sampler in SAMPLERS for way in WAYS if sampler not in ("dbim", "ode")]
CASES += [(g, *way, "dbim", "edm2") for g, way in itertools.product(("C4", "D4", "H"), WAYS)]
ADAPTIVE = [("C4", "tied", "none"), ("C2", "plain", "average"), ("D4", "plain", "canonical")]


BRIDGES = {
    "ve": dict(schedule="ve"), "vp": dict(schedule="vp"), "linear": dict(schedule="linear", source_noise=0.5),
    "i2sb": dict(schedule="i2sb"), "i2sb_ot": dict(schedule="i2sb", ot=True, source_noise=0.5),
}  # fmt: skip


TABLE = [(bridge, *case) for bridge, case in itertools.product(BRIDGES, CASES)]
TABLE += [(bridge, *ADAPTIVE[i % 3], "ode", "adm") for i, bridge in enumerate(BRIDGES)]


@pytest.mark.parametrize(("bridge", "group", "layers", "symmetrize", "sampler", "backbone"), TABLE)
def test_sampling_is_equivariant_path_by_path(group, sampler, bridge, layers, symmetrize, backbone):
    """Every group, and every sampler under all elements there are; all ways, random parameters and noise.

    Rectangles where there are no quarter turns; one source has all symmetries, and its mask none.
    """
    size = (8, 8) if GROUPS[group].turns else (8, 12)
    condition = "none" if "i2sb" in bridge else "source"
    net = model(group, layers, BridgeConfig(**BRIDGES[bridge]), size=size, condition=condition, backbone=backbone)
    mask = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1)) > 0.3
    source = (torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1) * mask
    source[1] = 0  # mid-grey, as outside of the mask
    settings, steps = {"dbim": ({"eta": 0.7}, 3), "heun": ({}, 11), "ode": ({"rtol": 10.0}, 200)}.get(sampler, ({}, 4))
    nfe = steps * (len(GROUPS[group]) if symmetrize == "average" else 1)

    elements = GROUPS[group].elements
    samples = sample(
        net, torch.cat([act(g, source) for g in elements]), mask=torch.cat([act(g, mask) for g in elements]),
        index=[0, 1] * len(elements), sampler=sampler, nfe=nfe, symmetrize=symmetrize, seed=3, **settings,
    )  # fmt: skip
    assert samples.nfe == nfe or SAMPLERS[sampler].adaptive
    straight, *turned = samples.x_0.split(2)
    for g, output in zip(elements[1:], turned, strict=True):
        error = (output - act(g, straight)).flatten(1).norm(dim=1) / straight.flatten(1).norm(dim=1)
        assert error.max() < 1e-5
        assert symmetrize != "canonical" or error.max() == 0


def test_channel_multipliers_and_attention_levels_by_size():
    for size, mult in ((32, (1, 2, 3, 4)), (64, (1, 2, 3, 4)), (128, (1, 1, 2, 3, 4)), (256, (1, 1, 2, 2, 4, 4))):
        net = model("none", "plain", size=size, channel_mult=(), attention=(32, 16, 8), model_channels=8)
        stages = [s for s in net.network.encoder if hasattr(s.residual, "conv_in")]
        kept = [s for s in stages if isinstance(s.residual.resample, nn.Identity)]
        assert [s.residual.conv_out.out_channels // 8 for s in kept] == [*mult]
        with_attention = {size // 2**i for i, s in enumerate(stages[::2]) if s.attention is not None}
        assert with_attention == {32, 16, 8} & {size // 2**i for i in range(len(mult))}


SOURCE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(2, 1, 8, 8)
SOFT = BridgeConfig(schedule="vp", source_noise=0.2)
EDM2, REGULAR, WIDE = dict(backbone="edm2"), dict(layers="regular"), dict(attention=(8, 4), num_head_channels=36)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(net=dict(size=9)), ["9x9", "halved 1 times", "--image_size"]),
        (dict(net=dict(group="C4", size=(8, 12))), ["square", "8x12"]),
        (dict(net=dict(backbone="edm")), ["unknown backbone 'edm'", "adm, edm2"]),
        (dict(net=EDM2 | dict(layers="tide")), ["tide", "plain, tied", "did you mean tied"]),
        (dict(net=EDM2 | REGULAR | dict(model_channels=12)), ["--model_channels 12", "--model_channels 16"]),
        (dict(net=EDM2 | dict(num_head_channels=5)), ["--num_head_channels"]),
        (dict(net=EDM2 | dict(size=9)), ["9x9", "halved 1 times", "--image_size"]),
        (dict(net=dict(layers="tide")), ["tide", "plain, tied", "did you mean tied"]),
        (dict(net=REGULAR | dict(model_channels=12)), ["--model_channels 12", "group D4", "--model_channels 16"]),
        (dict(net=REGULAR | dict(model_channels=30, channel_mult=(2, 4))), ["2,4", "--model_channels 32"]),
        (dict(net=REGULAR | dict(model_channels=16, num_head_channels=12)), ["whole fields of 8", "_channels 8"]),
        (dict(net=WIDE | dict(model_channels=96, channel_mult=(1, 1))), ["96", "--num_head_channels 32"]),
        (dict(net=WIDE | dict(model_channels=32, channel_mult=(5, 6))), ["160, 192", "channels 32"]),
        (dict(net=dict(group="D5")), ["D5", "C4"]),
        (dict(net=dict(bridge=BridgeConfig("vex"))), ["vex", "vp_simple"]),
        (dict(net=dict(num_head_channels=5)), ["--num_head_channels"]),
        (dict(net=dict(bridge=SOFT, condition="none")), ["--source_noise needs --condition source", "--ot true"]),
        (dict(net=dict(bridge=SOFT), sampler="heun", guidance=0.9), ["--guidance 0.9", "--source_noise"]),
        (dict(sampler="euler"), ["euler", "heun, dbim"]),
        (dict(sampler="dbim", churn=0.3), ["churn", "order, eta"]),
        (dict(symmetrize="mean"), ["mean", "average, canonical"]),
        (dict(symmetrize="average", nfe=7), ["7", "8 evaluations"]),
        (dict(group="D9"), ["D9", "D4"]),
        (dict(net=dict(group="none", layers="plain"), symmetrize="canonical"), ["canonical needs a group", "--group"]),
        (dict(index=[0]), ["index", "2 in index"]),
        (dict(index=[0, -1]), ["integers from 0 on"]),
        (dict(index=[0, True]), ["integers from 0 on"]),
        (dict(index=7), ["index", "7"]),
        (dict(seed=1.5), ["seed", "1.5"]),
        (dict(mask=MASK), ["mask must be bool [2, 1, 8, 8]", "float32"]),
        (dict(mask=MASK[:1].bool()), ["[1, 1, 8, 8]"]),
        (dict(label=torch.tensor([0, 1])), ["0 classes", "no label"]),
        (dict(net=dict(classes=3)), ["3 classes", "say which"]),
        (dict(net=dict(classes=3), label=torch.tensor([0.0, 1])), ["label must be int64 [2]", "float32 [2]"]),
        (dict(net=dict(classes=3), label=torch.tensor([0])), ["label must be int64 [2]", "[1]"]),
        (dict(net=dict(classes=3), label=torch.tensor([0, 3])), ["labels must lie in 0 .. 2", "0 .. 3"]),
        (dict(net=dict(classes=3), label=torch.tensor([-1, 2])), ["labels must lie in 0 .. 2", "-1 .. 2"]),
        (dict(source=SOURCE[:, :2]), ["[B, 3, H, W]", "[2, 2, 8, 8]"]),
        (dict(source=SOURCE[0]), ["[B, 3, H, W]", "[3, 8, 8]"]),
        (dict(source=SOURCE.double()), ["torch.float32", "torch.float64"]),
        (dict(source=SOURCE.tolist()), ["torch.float32", "list"]),
        (dict(source=SOURCE * 255), ["[-1, 1]", "127.5"]),
        (dict(source=SOURCE * 0 - 1.01), ["[-1, 1]"]),
        (dict(source=SOURCE * float("nan")), ["[-1, 1]"]),
        (dict(source=SOURCE[:0], index=[]), ["at least one"]),
        (dict(source=SOURCE[..., :6]), ["square", "8x6"]),
        (dict(net=dict(group="none", layers="plain"), source=SOURCE[..., :7]), ["8x7", "halved"]),
    ],
    ids=lambda case: "-".join(case) if isinstance(case, list) else "",  # the tensors differ from process to process
)
def test_what_does_not_fit_is_refused(arguments, words):
    given = dict(net={}, source=SOURCE) | arguments
    with one_line(*words):
        sample(model(**given.pop("net")), given.pop("source"), **given)


def test_the_limits_are_still_within():
    net = model(classes=3)
    assert net.endpoint(SOURCE) is SOURCE
    one, two = (sample(net, (SOURCE + 1e-3).clamp(max=1.001), nfe=2, label=torch.tensor([0, c])).x_0 for c in (1, 2))
    assert torch.equal(one[0], two[0]) and not torch.allclose(one[1], two[1], atol=1e-4)


def test_weights_of_another_shape_are_named(tmp_path):
    own = {"a": torch.zeros(2), "b": torch.zeros(3, 1)}
    checkpoint.check_weights(own, dict(own), tmp_path)
    for weights, words in (
        ({"a": own["a"]}, "b is nothing, expected [3, 1]"),
        (own | {"c": own["a"]}, "c is [2], expected nothing"),
        ({"a": own["b"], "b": own["a"]}, "a is [3, 1], expected [2]"),
    ):
        with one_line(words, tmp_path):
            checkpoint.check_weights(own, weights, tmp_path)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_network_alone_runs_in_half_precision(precision, backbone):
    net = model(backbone=backbone)
    net.precision, seen = precision, []
    net.network.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    half = sample(net, SOURCE, nfe=2).x_0
    assert half.dtype == torch.float32 and {*seen} == {
        (torch.float32, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
    }
    net.precision = "fp32"
    assert 1e-7 < (sample(net, SOURCE, nfe=2).x_0 - half).abs().max() < 0.1
