"""Translation of any size: by value against a statement of its steps, for every sampler, and under every element."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ddbm
from ddbm.bridges.samplers import SAMPLERS, plan
from ddbm.config import BridgeConfig
from ddbm.files import canvas
from ddbm.model import sample
from ddbm.symmetry.frames import Noise, canonical_frame
from ddbm.symmetry.groups import GROUPS, act, inverse
from ddbm.translation.answers import Translator, reflected, translate
from ddbm.translation.sums import Field
from tests.ddbm.bridges import papers
from tests.ddbm.bridges.test_bridge import OTHER, scalings
from tests.ddbm.runs import one_line
from tests.ddbm.test_model import model
from tests.ddbm.translation.test_sums import OFF, field
from tests.ddbm.translation.test_windows import local

RANDOM = np.random.default_rng(6)
SCHEDULES = {name: BridgeConfig(schedule=name, sigma_min=0.4, sigma_max=3, **OTHER) for name in ("ve", "vp")}
SCHEDULES["linear"] = BridgeConfig(schedule="linear", gamma_max=0.4, source_noise=0.5, **OTHER)


def slow_frame(image, group, mask=None):
    """The first in lexicographic order of grey levels of 8 bits, of 16, of values, of the mask; lower ones first."""

    def key(g):
        x = act(g, image).numpy()
        grey = (np.clip(x.astype(np.float32), -1, 1) + 1) * np.float32(127.5)
        seen = [] if mask is None else act(g, mask).flatten().tolist()
        return x.shape, np.rint(grey).ravel().tolist(), np.rint(grey * 257).ravel().tolist(), x.ravel().tolist(), seen

    return min(group.elements, key=key)


@pytest.mark.parametrize("size", [(6, 6), (5, 8), (1, 7), (9, 4)])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_frames_are_those_of_a_slow_comparison(monkeypatch, size, kind):
    """Images that all turns leave alike but for a pixel: by a level, by less, or in the mask."""
    found = set()
    for step in (0.5, 1 / 127.5 / 257 * 3, 1e-6, 0.0):
        for trial in range(8):
            rng, image = np.random.default_rng(trial), torch.zeros(2, *size, dtype=kind)
            for _ in range(2):
                place = rng.integers(2), rng.integers(size[0]), rng.integers(size[1])
                image[place] = rng.choice([-1, 1]) * rng.choice([step, step, 1e-6])
            mask = torch.from_numpy(rng.random((1, *size)) < 0.9)
            for group, seen in itertools.product(GROUPS.values(), (None, mask)):
                found.add(frame := slow_frame(image, group, seen))
                for strip in (1, 7, 1 << 16):
                    monkeypatch.setattr("ddbm.symmetry.frames.STRIP", strip)
                    assert canonical_frame(image, group, seen) == frame
    assert len(found) > (2 if size[0] != size[1] else 5)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def blended(D, x, source, starts):
    """D of windows of 8 x 8 at these rows and columns, weighted by sin² and added up."""
    total, weights = np.zeros((1, 1, *x.shape[2:])), np.sin((np.arange(8) + 0.5) / 8 * np.pi) ** 2
    wanted = np.zeros_like(x)
    for top in starts[0]:
        for left in starts[1]:
            part = (..., slice(top, top + 8), slice(left, left + 8))
            wanted[part] += D(x[part], source[part]) * weights * weights[:, None]
            total[part] += weights * weights[:, None]
    return wanted / total


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("symmetrize", ["none", "canonical", "average"])
def test_answers_by_value(schedule, symmetrize):
    """5 x 13 pixels, reflected to 9 x 13 and fused of windows of 8: draws, their mean and spread, step by step."""
    config, guidance = SCHEDULES[schedule], 1.0 if schedule == "linear" else 1.4
    net, s, group = local(1.0, classes=3, schedule=config), papers.Schedule(config), GROUPS["D2"]
    source, seen = images(2, 2, 5, 13), images(2, 1, 5, 13, seed=1) < 0.7
    label, starts, drawn = torch.tensor([2, 0]), ([0, 1], [0, 1, 4, 5]), []
    shown, inside = [np.pad(x.numpy(), [(0, 0), (0, 0), (2, 2), (0, 0)], "reflect") for x in (source, seen)]
    shown = shown * inside
    frames = [canonical_frame(x, group, m) for x, m in zip(source * seen, seen, strict=True)]
    assert len({*frames}) == 2
    elements = group.elements if symmetrize == "average" else ((0, 0),)

    def turned(x, how):
        return np.stack([act(g, torch.from_numpy(image)).numpy() for g, image in zip(how, x, strict=True)])

    back = [inverse(g) for g in frames]
    if symmetrize == "canonical":
        shown, inside = turned(shown, frames), turned(inside, frames)
    x_T = np.repeat(shown.mean(1, keepdims=True), 3, 1)

    def window(x, y, t):
        skip, out, scale_in, c_noise, _ = scalings(config, s.a(t), s.b(t), s.c2(t) * (t != s.T), t)
        total = 0
        for g in elements:
            ours, theirs = act(g, torch.from_numpy(x)), act(g, torch.from_numpy(np.ascontiguousarray(y)))
            F = net.network(scale_in * ours, torch.full((2,), c_noise), theirs, label).detach()
            total = total + act(inverse(g), skip * ours + out * F).numpy()
        return np.clip(total / len(elements), -1, 1)

    def denoise(x, t):
        return blended(lambda x, y: window(x, y, t), x, shown, starts) * inside

    for draw in range(3):
        numbers = iter(range(99))

        def noise(draw=draw, numbers=numbers):
            plain = field((9, draw, next(numbers)), 3, 9, 13, above=2)
            return turned(np.stack([plain] * 2), [(0, 0)] * 2 if symmetrize == "canonical" else back) * inside

        grid = papers.uniform(s, s.T - 1e-4, 4)
        drawn.append(np.clip(papers.euler_maruyama(s, denoise, x_T, noise, grid, guidance), -1, 1)[:, :, 2:-2])
    if symmetrize == "canonical":
        drawn = [turned(x, back) for x in drawn]
    price = len(elements)
    found = translate(
        net, source, mask=seen[:, 0], label=[2, 0], answer="both", draws=3, keep_draws=True, seed=9, nfe=4 * price,
        sampler="euler_maruyama", grid="uniform", guidance=guidance, symmetrize=symmetrize, group="D2", batch_size=3,
        overlap=0.6, window=8,
    )  # fmt: skip
    assert np.abs(drawn).max() == 1 and (drawn[0] != drawn[1]).any()
    same = 0 if config.source_noise else 2  # the first of every draw, but for noise on the source
    assert found.nfe == (3 * 4 - same) * price
    wanted = (drawn[0], np.mean(drawn, 0), np.std(drawn, 0, ddof=1) / 2, drawn)
    for ours, theirs in zip(found[:4], wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize(("name", "settings"), [*OFF.items(), ("dbim", dict(eta=0.6)), ("dbmsolver", {})])
@pytest.mark.parametrize("schedule", ["vp", "linear"])
def test_of_a_pointwise_network_windows_do_not_show(schedule, name, settings):
    """The sampler on the whole tensor, with the noise of the field."""
    settings = settings | {key: 1.0 for key in settings if key == "guidance" and schedule == "linear"}
    net = local(channels=(2, 2), schedule=SCHEDULES[schedule])
    source, noises = images(1, 2, 17, 21), iter(range(99))
    frame = canonical_frame(source[0], GROUPS["D4"])

    def noise(like):
        shape = (2, 21, 17) if frame[1] % 2 else (2, 17, 21)
        return act(inverse(frame), torch.from_numpy(field((0, 0, next(noises)), *shape)))[None]

    denoise = net.denoiser(source)
    whole = plan(name, net.bridge, 11, **settings)
    with torch.inference_mode():
        wanted, spent = whole.run(lambda x, t: denoise(x, t).clamp(-1, 1), source, noise)
    for how in (dict(), dict(window=6, overlap=0.1, batch_size=2), dict(window=16)):
        found = translate(net, source, sampler=name, nfe=11, group="D4", **settings, **how)
        torch.testing.assert_close(found.sample, wanted.clamp(-1, 1), rtol=0, atol=1e-3)
        assert found.nfe == spent and found[1:4] == (None, None, None)


def test_one_window_is_the_sample_of_the_model(monkeypatch):
    """Of the size of training, where no noise is drawn: what `sample` makes of a network, source and label."""
    monkeypatch.setattr(Field, "add", lambda *given: None)
    monkeypatch.setattr(Noise, "__call__", lambda noise, like: torch.zeros_like(like))
    net, source = model("none", "plain", SCHEDULES["vp"], channels=(3, 1), classes=2), images(2, 1, 8, 8)
    ours = translate(net, source, nfe=5, label=[1, 0]).sample
    torch.testing.assert_close(ours, sample(net, source, nfe=5, label=torch.tensor([1, 0])).x_0, rtol=1e-4, atol=1e-5)


WAYS = [("tied", "none"), ("plain", "average"), ("plain", "canonical"), ("plain", "none")]


@pytest.mark.parametrize(("layers", "symmetrize"), WAYS)
@pytest.mark.parametrize(("group", "size"), [("D4", (17, 17)), ("D2", (13, 18)), ("D4", (9, 13)), ("D4", (3, 5))])
@pytest.mark.parametrize("schedule", ["ve", "linear"])
def test_the_whole_map_is_equivariant(schedule, layers, symmetrize, group, size):
    """Three windows and more a side, odd sizes, rectangles, less than a window; canonical to the last bit."""
    bridge = SCHEDULES[schedule] if schedule == "linear" else None
    net = model(group, "tied" if layers == "tied" else "plain", bridge, channel_mult=(1, 2))
    source, mask = images(3, *size), images(1, *size, seed=3) < 0.6
    source[:, 0] = 0.25  # what the mask must decide is left to it
    how = dict(answer="both", draws=2, nfe=2 * (len(GROUPS[group]) if symmetrize == "average" else 1), eta=0.7)
    how |= dict(symmetrize=symmetrize, group=group, overlap=0.4, seed=5)
    straight = translate(net, source, mask=mask[0], **how)
    errors = []
    for g in GROUPS[group].elements[1:]:
        turned = translate(net, act(g, source), mask=act(g, mask)[0], **how)
        for name in ("sample", "mean", "spread"):
            ours, theirs = getattr(turned, name), act(g, getattr(straight, name))
            errors.append(((ours - theirs).norm() / theirs.norm()).item())
    if (layers, symmetrize) == ("plain", "none"):
        assert max(errors) > 1e-2
    else:
        assert max(errors) == 0 if symmetrize == "canonical" else max(errors) < 1e-5
    assert straight.spread.max() > 1e-3


def test_the_mean_without_draws_is_the_estimate_at_T():
    net = local(channels=(3, 2), schedule=SCHEDULES["vp"])
    source = images(2, 2, 11, 19)
    with torch.inference_mode():
        D = net.denoiser(source)(net.endpoint(source), net.bridge.time(1.0)).clamp(-1, 1)
    mean = translate(net, source, answer="mean")
    torch.testing.assert_close(mean.mean, D, rtol=1e-4, atol=1e-5)
    assert mean.sample is None and mean.spread is None and mean.nfe == 1
    both = translate(net, source, answer="both", nfe=4, keep_draws=True)  # whose sampler asks for it, too
    assert torch.equal(both.mean, mean.mean) and both.nfe == 4 and len(both.draws) == 1
    assert torch.equal(both.sample, translate(net, source, nfe=4).sample) and torch.equal(both.draws[0], both.sample)
    for how, nfe in (
        (dict(answer="both", sampler="euler_maruyama"), 5), (dict(answer="both", sampler="ecsi"), 4),
        (dict(answer="mean", draws=3, sampler="heun", churn=0), 7),
        (dict(answer="both", draws=2, sampler="dbmsolver"), 7),
    ):  # fmt: skip
        net.network.sizes.clear()
        assert Translator(net, nfe=4, **how).nfe == nfe == translate(net, source, nfe=4, **how).nfe
        assert len(net.network.sizes) == nfe
    one = translate(net, source, answer="mean", draws=1, nfe=4)
    assert torch.equal(one.mean, both.sample) and one.spread is None and one.sample is None


def test_on_the_disk_and_strip_by_strip_it_is_the_same(monkeypatch, tmp_path):
    net, mask = model("D4", "plain", channels=(3, 1)), images(2, 1, 19, 12, seed=3).numpy() < 0.6
    source = images(2, 1, 19, 12).numpy()
    how = dict(answer="both", draws=2, nfe=3, eta=0.4, symmetrize="canonical", folder=tmp_path)
    found = Translator(net, **how)(source, mask)
    monkeypatch.setattr(canvas, "DISK", 100)
    monkeypatch.setattr("ddbm.translation.sums.STRIP", 40)
    monkeypatch.setattr("ddbm.symmetry.frames.STRIP", 30)
    kept = {}
    disk = Translator(net, **how)(source, mask, keep=lambda number, images: kept.update({number: np.array(images)}))
    for ours, theirs in zip(disk[:3], found[:3], strict=True):
        assert np.array_equal(ours, theirs)
    assert np.array_equal(kept[0], found.sample) and sorted(kept) == [0, 1] and not [*tmp_path.iterdir()]
    one = Translator(net, **how)(source[:1], mask[:1])
    assert all(type(view) is np.memmap for view in one[:3])  # nothing of the whole's size was in memory
    np.testing.assert_allclose(one.sample, found.sample[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (7, 8), (33, 4)])
def test_small_images_are_reflected(size):
    """As NumPy reflects them, again and again; the middle of the answer is kept."""
    net = local(0.0, schedule=SCHEDULES["vp"])
    source = images(1, 2, *size)
    assert translate(net, source, nfe=2).sample.shape == (1, 3, *size)
    margins = [-(-max(0, 8 - n) // 2) for n in size]
    wanted = np.pad(source.numpy(), [(0, 0), (0, 0), *[(m, m) for m in margins]], "reflect")
    assert np.array_equal(reflected(source.numpy(), [(m, m) for m in margins]), wanted)
    net.network.sizes.clear()
    translate(net, source, answer="mean", overlap=0)
    assert {shape[1:] for shape in net.network.sizes} == {(3, 8, 8)}


@pytest.mark.parametrize(
    ("trained", "window", "size", "side"),
    [
        (8, 16, (5, 5), (8, 8)),  # not less than in training
        (8, 16, (9, 9), (10, 10)),  # nor more than it takes
        (8, 16, (9, 40), (16, 16)),  # square ones for images that turn
        (8, 4, (3, 40), (4, 4)),
        ((4, 8), 0, (30, 30), (4, 8)),
        ((4, 8), 0, (3, 5), (4, 8)),
    ],
)
def test_the_size_of_windows(trained, window, size, side):
    net = local(size=trained)
    translate(net, images(2, *size), answer="mean", window=window)
    assert {shape[2:] for shape in net.network.sizes} == {side}


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.float64])
def test_arrays_of_every_type_are_images(kind):
    net = local(channels=(3, 1), schedule=SCHEDULES["vp"])
    top = np.iinfo(kind).max if np.dtype(kind).kind == "u" else 1
    grey = (RANDOM.integers(0, 256, (9, 12)) / 255 * top).astype(kind)
    tensor = torch.from_numpy(grey.astype(np.float32) / np.float32(top) * 2 - 1)[None]
    how = dict(answer="both", draws=2, nfe=3, keep_draws=True)
    wanted = translate(net, tensor, **how)
    assert wanted.sample.shape == (3, 9, 12) and wanted.draws.shape == (2, 3, 9, 12)
    for given in (grey, grey[..., None], grey[None, ..., None]):
        found = translate(net, given, **how)
        for name in ("sample", "mean", "draws"):
            ours, theirs = getattr(found, name), np.moveaxis(getattr(wanted, name).numpy(), -3, -1)
            ours = ours[..., 0, :, :, :] if given.ndim == 4 else ours
            assert ours.dtype == (kind if top > 1 else np.float32)
            np.testing.assert_allclose(ours / np.float64(top), (theirs + 1) / 2, atol=0.51 / top if top > 1 else 1e-6)
        spread = found.spread[0] if given.ndim == 4 else found.spread
        assert np.array_equal(spread, np.moveaxis(wanted.spread.numpy(), -3, -1)) and spread.dtype == np.float32
    assert translate(local(channels=(1, 1)), grey, answer="mean").mean.shape == (9, 12)
    assert translate(local(channels=(1, 1)), grey[..., None], answer="mean").mean.shape == (9, 12, 1)


def test_masks_and_labels_of_an_image():
    net = local(classes=3, schedule=SCHEDULES["vp"])
    source, mask = images(2, 2, 9, 11), images(9, 11, seed=3) < 0.5
    both = translate(net, source, mask=torch.stack([mask, ~mask]), label=[2, 1], nfe=2, group="D4")
    hidden = source.clone()
    hidden[0, :, ~mask] = images(2, 99, seed=8)[:, : (~mask).sum()]
    for one in (source[0], hidden[0]):
        found = translate(net, one, mask=mask, label=2, nfe=2, group="D4").sample
        torch.testing.assert_close(found, both.sample[0])
        assert (found[:, ~mask] == 0).all() and (found[:, mask] != 0).all()
    one, two = (translate(net, source, label=label, nfe=2).sample for label in (1, [1, 1]))
    assert torch.equal(one, two)
    array = np.moveaxis(source[0].numpy() + 1, 0, -1) / 2
    found = translate(net, array, mask=mask.numpy(), label=2, nfe=2, group="D4").sample
    np.testing.assert_allclose(np.moveaxis(found, -1, 0) * 2 - 1, both.sample[0], atol=1e-5)


def test_images_and_batches_do_not_show():
    """Of a network whose D depends on neighbours, too; noise is that of the position alone."""
    net = model("none", "plain", schedule := SCHEDULES["vp"])
    assert net.config.bridge == schedule
    source = images(3, 3, 12, 17)
    every = translate(net, source, nfe=3, answer="both", draws=2).mean
    for i, image in enumerate(source):
        for size in (1, 5):
            alone = translate(net, image, nfe=3, answer="mean", draws=2, batch_size=size)
            torch.testing.assert_close(alone.mean, every[i], rtol=1e-4, atol=1e-5)
    one, two = (translate(net, source[0], nfe=3, seed=seed).sample for seed in (0, 1))
    assert (one - two).abs().max() > 1e-3


def test_the_work_that_is_done_adds_up():
    shares = []
    for how in (dict(answer="both", draws=3, nfe=4), dict(answer="mean"), dict(nfe=5, sampler="euler_maruyama")):
        Translator(local(), **how)(images(2, 2, 9, 20).numpy(), tick=shares.append)
        assert sum(shares) == pytest.approx(1) and min(shares) > 0
        shares.clear()
    assert Translator(local(size=(4, 8)), batch_size=3, window=16).pixels_at_once == 3 * 256


IMAGE = images(2, 9, 12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(answer="best"), ["answer 'best'", "sample, mean, both"]),
        (dict(sampler="ode"), ["ode", "choose another"]),
        (dict(draws=2), ["--draws 2", "--answer mean, or both"]),
        (dict(answer="mean", draws=-1), ["--draws", "from 0 on", "-1"]),
        (dict(answer="mean", draws=1.0), ["--draws", "1.0"]),
        (dict(seed=True), ["--seed", "True"]),
        (dict(window=-8), ["--window", "-8"]),
        (dict(window=9), ["--window 9 must be a multiple of 2", "take 8"]),
        (dict(window=1), ["--window 1 must be a multiple of 2", "take 2"]),
        (dict(batch_size=0), ["--batch_size", "from 1 on"]),
        (dict(overlap=1), ["--overlap", "[0, 1)", "1"]),
        (dict(overlap=-0.1), ["--overlap", "-0.1"]),
        (dict(symmetrize="canonical"), ["canonical needs a group"]),
        (dict(net=dict(size=(4, 8)), group="C4"), ["4x8", "square"]),
        (dict(nfe=1, sampler="heun", churn=0.2), ["heun needs --nfe 2"]),
        (dict(churn=0.2), ["churn", "order, eta"]),
        (dict(image=IMAGE[:1]), ["float32 [2, H, W]", "[1, 9, 12]"]),
        (dict(image=IMAGE[0]), ["[2, H, W]", "[9, 12]"]),
        (dict(image=IMAGE[:, :0]), ["[2, H, W]", "[2, 0, 12]"]),
        (dict(image=IMAGE * 1.1 / IMAGE.abs().max()), ["[-1, 1]"]),
        (dict(image=IMAGE * float("nan")), ["NaN"]),
        (dict(image=np.zeros((9, 12, 2), int)), ["uint8, uint16 or floats", "int64"]),
        (dict(image=np.full((9, 12, 2), 1.01)), ["[0, 1]"]),
        (dict(image=np.zeros((9, 12), np.uint8)), ["[H, W, 2]", "[9, 12]"]),
        (dict(label=1), ["0 classes", "leave label out"]),
        (dict(net=dict(classes=3)), ["3 classes", "0 .. 2"]),
        (dict(net=dict(classes=3), label=3), ["found label 3", "0 .. 2"]),
        (dict(net=dict(classes=3), label=-1), ["found label -1"]),
        (dict(net=dict(classes=3), label=[1, 1]), ["found label [1, 1]"]),
        (dict(mask=torch.ones(12, 9)), ["[9, 12]", "[12, 9]"]),
        (dict(mask=torch.ones(9, 11)), ["[9, 12]", "[9, 11]"]),
        (dict(image=IMAGE[None], mask=torch.ones(9, 12)), ["mask", "[9, 12]"]),
    ],
)
def test_what_does_not_fit_is_refused(arguments, words):
    given = dict(net={}, image=IMAGE) | arguments
    with one_line(*words):
        translate(local(**given.pop("net")), given.pop("image"), **given)


def test_it_is_the_package_s():
    assert ddbm.translate is translate and {"ode", *OFF} == SAMPLERS.keys()
    limit = F.pad(IMAGE / IMAGE.abs().max(), (0, 1)) * 1.0009  # rounding is no mistake
    assert translate(local(), limit, answer="mean").mean.shape == (3, 9, 13)
