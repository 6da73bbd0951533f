"""The whole network: equivariance with random parameters everywhere, sizes, channels, labels, precisions."""

import itertools

import pytest
import torch
from torch import nn

from ddbm.bridges.samplers import SAMPLERS
from ddbm.config import BridgeConfig, Config, ModelConfig
from ddbm.model import SYMMETRIZE, BridgeModel, ImageShape, sample
from ddbm.networks.layers import LAYERS
from ddbm.symmetry.averaging import Averaged, equivariance_error
from ddbm.symmetry.groups import GROUPS, act, inverse

groups = pytest.mark.parametrize("group", GROUPS)
SMALL = dict(model_channels=8, channel_mult=(1, 3), num_res_blocks=1, num_head_channels=8, dropout=0.0)


def model(group="D4", layers="tied", schedule="ve", size=8, channels=(3, 3), classes=0, attention=(4,), **settings):
    torch.manual_seed(0)
    shape = ImageShape(*channels, *((size, size) if isinstance(size, int) else size), classes)
    config = Config(
        bridge=BridgeConfig(schedule=schedule),
        model=ModelConfig(**(SMALL | dict(group=group, layers=layers, attention_resolutions=attention) | settings)),
    )
    made = BridgeModel(config, shape).eval()
    for parameter in made.parameters():  # no zero-initialised hiding place
        nn.init.normal_(parameter, std=0.15)
    return made


@groups
@pytest.mark.parametrize("layers", [kind for kind in LAYERS if kind != "plain"])
@pytest.mark.parametrize("channels", [(3, 3), (1, 2)])
@pytest.mark.parametrize(("size", "mult", "attention"), [(8, (1, 3), ()), (8, (1, 3), (8, 4)), (7, (3,), (7,))])
def test_symmetric_networks_are_equivariant(group, layers, channels, size, mult, attention):
    """Random parameters everywhere; even and odd sizes, odd multipliers, attention on and off."""
    net = model(group, layers, size=size, channels=channels, channel_mult=mult, attention=attention)
    x, source = torch.randn(2, channels[0], size, size), torch.randn(2, channels[1], size, size)
    t = torch.tensor([-3.0, 700.0])
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        net.network.to(dtype)
        y = net.network(x.to(dtype), t, source.to(dtype))
        assert y.shape == x.shape and y.std() > 1e-3
        for g in GROUPS[group].elements:
            turned = net.network(act(g, x).to(dtype), t, act(g, source).to(dtype))
            assert (turned - act(g, y)).norm() / y.norm() < bound


def test_regular_c4_keeps_chirality_and_tied_c4_on_3x3_cannot():
    x, source, t = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.zeros(2)
    for layers, mirrored in (("regular", False), ("tied", True)):
        net = model("C4", layers)
        y, turned = net.network(x, t, source), net.network(x.flip(-1), t, source.flip(-1))
        error = (turned - y.flip(-1)).norm() / y.norm()
        assert error < 1e-5 if mirrored else error > 1e-2


def test_plain_networks_are_not():
    net = model("D4", "plain")
    x, source, t = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8), torch.zeros(1)
    errors = equivariance_error(lambda z: net.network(z[:, :3], t, z[:, 3:]), torch.cat([x, source], 1), GROUPS["D4"])
    assert min(e.item() for e in errors.values()) > 1e-2


def can(group, layers, symmetrize):
    """The group of one element has nothing to average over."""
    return group != "none" or symmetrize == "none"


WAYS = [(kind, "none") for kind in LAYERS if kind != "plain"] + [("plain", way) for way in SYMMETRIZE if way != "none"]


CASES = [(g, *way, "dbim") for g in GROUPS for way in WAYS if can(g, *way)]
CASES += [("D4", *way, sampler) for sampler in SAMPLERS for way in WAYS if sampler != "dbim"]


@pytest.mark.parametrize(("group", "layers", "symmetrize", "sampler"), CASES)
@pytest.mark.parametrize("schedule", ["ve", "vp"])
def test_sampling_is_equivariant_path_by_path(group, sampler, schedule, layers, symmetrize):
    """Every group, and every sampler under all elements there are; all ways, 20 steps, random parameters and noise."""
    net = model(group, layers, schedule=schedule)
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1
    settings, steps = {"dbim": ({"eta": 0.7}, 20), "heun": ({}, 59), "ode": ({"rtol": 1.0}, 200)}.get(sampler, ({}, 20))
    nfe = steps * (len(GROUPS[group]) if symmetrize == "average" else 1)

    elements = GROUPS[group].elements
    samples = sample(
        net, torch.cat([act(g, source) for g in elements]), index=[0, 1] * len(elements),
        sampler=sampler, nfe=nfe, symmetrize=symmetrize, seed=3, **settings,
    )  # fmt: skip
    assert samples.nfe == nfe or SAMPLERS[sampler].adaptive
    straight, *turned = samples.x_0.split(2)
    for g, output in zip(elements[1:], turned, strict=True):
        error = (output - act(g, straight)).flatten(1).norm(dim=1) / straight.flatten(1).norm(dim=1)
        assert error.max() < 1e-5
        assert symmetrize != "canonical" or error.max() == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("symmetrize", SYMMETRIZE)
def test_an_image_depends_on_seed_and_index_alone(sampler, symmetrize):
    if sampler == "ode" and symmetrize == "average":
        pytest.skip("takes half a minute; the table above has it")
    net = model().double()
    source = torch.rand(7, 3, 8, 8, dtype=torch.float64) * 2 - 1
    settings = dict(sampler=sampler, nfe=24, seed=5, symmetrize=symmetrize)
    if sampler == "ode":
        settings |= dict(nfe=1600, rtol=1.0)
    whole = sample(net, source, **settings).x_0
    backwards = sample(net, source.flip(0), index=range(6, -1, -1), **settings).x_0.flip(0)
    alone = torch.cat([sample(net, source[i : i + 1], index=[i], **settings).x_0 for i in range(7)])
    for other in (backwards, alone):
        torch.testing.assert_close(whole, other, rtol=0, atol=1e-10)
        assert torch.equal(levels(whole), levels(other))
    assert not torch.allclose(whole, sample(net, source, **(settings | {"seed": 6})).x_0, atol=1e-3)


def levels(x):
    """8-bit values."""
    return ((x + 1) * 127.5).round()


@pytest.mark.parametrize("group", ["H", "V", "C2", "D2"])
@pytest.mark.parametrize("symmetrize", ["average", "canonical"])
def test_rectangles_can_be_symmetrized_without_quarter_turns(group, symmetrize):
    net = model("none", "plain", size=(8, 12))
    source = torch.rand(2, 3, 8, 12) * 2 - 1
    settings = dict(nfe=8 * len(GROUPS[group]), symmetrize=symmetrize, group=group)
    errors = equivariance_error(lambda s: sample(net, s, **settings).x_0, source, GROUPS[group])
    assert all(e.max() < 1e-5 for e in errors.values())
    with pytest.raises(ValueError, match="square"):
        sample(net, source, nfe=40, symmetrize=symmetrize, group="C4")


def test_the_average_is_the_formula_and_the_same_in_parts(monkeypatch):
    """mean over g of g^-1 D(g x, t, g x_T), also when the memory holds no more than three elements at once."""
    net, group = model("none", "plain", classes=3).double(), GROUPS["D4"]
    x, source = torch.rand(2, 2, 3, 8, 8, dtype=torch.float64) * 2 - 1
    label, t = torch.tensor([2, 0]), torch.tensor(1.3, dtype=torch.float64)
    whole = Averaged(net.denoiser, source, label, group)
    each = [act(inverse(g), net.denoiser(act(g, source), label)(act(g, x), t)) for g in group.elements]
    torch.testing.assert_close(whole(x, t), torch.stack(each).mean(0), rtol=1e-12, atol=1e-12)

    def small(sources, labels):
        denoise = net.denoiser(sources, labels)

        def limited(y, u):
            if len(y) > 3 * 2:
                raise torch.OutOfMemoryError("no room")
            return denoise(y, u)

        return limited

    parts = Averaged(small, source, label, group)
    torch.testing.assert_close(parts(x, t), whole(x, t), rtol=1e-12, atol=1e-12)
    assert parts.at_once == 2


def test_layers_and_symmetrization_combine():
    """Tied C4 layers averaged over nothing more still commute; a plain model may borrow a group for sampling."""
    net, source = model("C4", "tied"), torch.rand(2, 3, 8, 8) * 2 - 1
    for way in ("average", "canonical"):
        errors = equivariance_error(lambda s, way=way: sample(net, s, nfe=20, symmetrize=way).x_0, source, GROUPS["C4"])
        assert all(e.max() < 1e-5 for e in errors.values())
    plain = model("none", "plain")
    errors = equivariance_error(lambda s: sample(plain, s, nfe=8, group="D4").x_0, source, GROUPS["D4"])
    assert min(e.min().item() for e in errors.values()) > 1e-3  # turned noise alone is not enough


def test_rectangles_odd_multipliers_and_levels():
    net = model("D2", size=(8, 20), channel_mult=(1, 3, 5), attention=())
    source = torch.rand(1, 3, 8, 20)
    assert sample(net, source, nfe=5).x_0.shape == source.shape
    net = model("C4", size=7, channel_mult=(3,), attention=())  # an odd size needs no halving
    assert sample(net, torch.rand(1, 3, 7, 7), nfe=5).x_0.shape == (1, 3, 7, 7)


def test_channel_multipliers_and_attention_levels_by_size():
    for size, mult in ((32, (1, 2, 3, 4)), (64, (1, 2, 3, 4)), (128, (1, 1, 2, 3, 4)), (256, (1, 1, 2, 2, 4, 4))):
        net = model("none", "plain", size=size, channel_mult=(), attention=(32, 16, 8), model_channels=8)
        stages = [s for s in net.network.encoder if hasattr(s.residual, "conv_in")]
        widths = [s.residual.conv_out.out_channels // 8 for s in stages]
        assert [w for w, s in zip(widths, stages, strict=True) if s.residual.resample.__class__ is nn.Identity] == [
            *mult
        ]
        with_attention = {size // 2**i for i, s in enumerate(stages[::2]) if s.attention is not None}
        assert with_attention == {32, 16, 8} & {size // 2**i for i in range(len(mult))}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(size=9), ["9x9", "halved 1 times", "--image_size"]),
        (dict(group="C4", size=(8, 12)), ["square", "8x12"]),
        (dict(layers="tide"), ["tide", "plain, tied", "did you mean tied"]),
        (dict(layers="regular", model_channels=12), ["--model_channels 12", "group D4", "--model_channels 16"]),
        (dict(layers="regular", model_channels=30, channel_mult=(2, 4)), ["2,4", "--model_channels 32"]),
        (
            dict(layers="regular", model_channels=16, num_head_channels=12),
            ["whole fields of 8", "--num_head_channels 8"],
        ),
        (dict(model_channels=96, channel_mult=(1, 1), num_head_channels=36), ["96", "--num_head_channels 32"]),
        (
            dict(model_channels=32, channel_mult=(5, 6), num_head_channels=64, attention=(8, 4)),
            ["160, 192", "--num_head_channels 32"],
        ),
        (dict(group="D5"), ["D5", "C4"]),
        (dict(schedule="vex"), ["vex", "vp_simple"]),
        (dict(num_head_channels=5), ["--num_head_channels"]),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused(change, words):
    with pytest.raises(ValueError) as error:
        model(**change)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(sampler="euler"), ["euler", "heun, dbim"]),
        (dict(sampler="dbim", churn=0.3), ["churn", "order, eta"]),
        (dict(nfe=0), ["nfe"]),
        (dict(symmetrize="mean"), ["mean", "average, canonical"]),
        (dict(symmetrize="average", nfe=7), ["7", "8 evaluations"]),
        (dict(group="D9"), ["D9", "D4"]),
    ],
    ids=str,
)
def test_sampling_refuses_what_does_not_fit(arguments, words):
    with pytest.raises(ValueError) as error:
        sample(model(), torch.rand(1, 3, 8, 8), **arguments)
    assert all(word in str(error.value) for word in words)
    with pytest.raises(ValueError, match="--group"):
        sample(model("none", "plain"), torch.rand(1, 3, 8, 8), nfe=8, symmetrize="canonical")
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        sample(model(), torch.rand(1, 2, 8, 8), nfe=4)


def test_class_labels_reach_the_network():
    net = model(classes=3)
    source = torch.rand(2, 3, 8, 8)
    one, two = (sample(net, source, nfe=4, label=torch.tensor([0, c])).x_0 for c in (1, 2))
    assert torch.equal(one[0], two[0]) and not torch.allclose(one[1], two[1], atol=1e-4)


def test_bf16_runs_the_network_alone_in_half_precision():
    net, source = model(), torch.rand(2, 3, 8, 8)
    exact = sample(net, source, nfe=6).x_0
    net.precision = "bf16"
    half = sample(net, source, nfe=6).x_0
    assert half.dtype == torch.float32 and not torch.equal(half, exact)
    errors = equivariance_error(lambda s: sample(net, s, nfe=6).x_0, source, GROUPS["D4"])
    assert max(e.max().item() for e in errors.values()) < 0.1  # bf16 has 8 bits


def test_noise_stays_inside_the_mask():
    net, source = model(channel_mult=(1,), attention=()), torch.zeros(1, 3, 8, 8)
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., :4] = True
    seen = []
    net.network = Recorder(seen)
    sample(net, source, nfe=9, mask=mask)
    assert all(torch.equal(x[..., 4:], torch.zeros_like(x[..., 4:])) for x in seen)
    assert any(x[..., :4].abs().sum() > 0 for x in seen)


class Recorder(nn.Module):
    """A network that answers 0 and remembers its input."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen
        self.weight = nn.Parameter(torch.zeros(1))  # a model has a type

    def check_size(self, height, width):
        """Takes any."""

    def forward(self, x, t, condition=None, label=None):
        self.seen.append(x)
        return torch.zeros_like(x)


def test_every_pair_of_names_builds():
    for layers, group in itertools.product(LAYERS, GROUPS):
        assert model(group, layers).group.name == group


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(index=[0]), ["index", "2 in index"]),
        (dict(index=[0, -1]), ["integers from 0 on"]),
        (dict(seed=1.5), ["seed", "1.5"]),
        (dict(mask=torch.ones(2, 1, 8, 8)), ["mask must be bool [2, 1, 8, 8]", "float32"]),
        (dict(mask=torch.ones(1, 1, 8, 8, dtype=torch.bool)), ["[1, 1, 8, 8]"]),
        (dict(label=torch.tensor([0, 1])), ["0 classes", "no label"]),
        (dict(order="3"), ["--order", "'3'"]),
        (dict(eta="0.5"), ["--eta", "'0.5'"]),
        (dict(nfe=20.0), ["--nfe", "20.0"]),
        (dict(nfe=0), ["dbim needs --nfe 1 or more, found 0"]),
        (dict(sampler="heun", guidance=float("nan")), ["--guidance", "nan"]),
    ],
    ids=str,
)
def test_arguments_of_the_wrong_kind_are_named(arguments, words):
    with pytest.raises(ValueError) as error:
        sample(model(), torch.rand(2, 3, 8, 8), **arguments)
    assert all(word in str(error.value) for word in words), error.value


def test_a_trajectory_holds_every_evaluation():
    """At the last of them the state is the sample before its last step, and the estimate the sample, on any frame."""
    net, source = model(), torch.rand(2, 3, 8, 8) * 2 - 1
    for symmetrize in SYMMETRIZE:
        nfe = 5 * (8 if symmetrize == "average" else 1)
        plain = sample(net, source, nfe=nfe, symmetrize=symmetrize)
        whole = sample(net, source, nfe=nfe, symmetrize=symmetrize, trajectory=True)
        assert plain.trajectory is None and torch.equal(plain.x_0, whole.x_0)
        t, x, D = whole.trajectory
        assert t.shape == (5,) and t[0] == net.bridge.T and (t.diff() < 0).all()
        assert x.shape == D.shape == (5, 2, 3, 8, 8) and D.abs().max() <= 1
        torch.testing.assert_close(x[0], source)
