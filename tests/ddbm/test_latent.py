"""Bridges between latents: sampled and translated through the codec, symmetric from image to image."""

import dataclasses

import pytest
import torch

from ddbm import BridgeModel, sample, translate
from ddbm.bridges.bridge import Bridge
from ddbm.codecs import Standardised
from ddbm.codecs.symmetric import Autoencoder, Symmetric
from ddbm.config import BridgeConfig, CodecConfig, Config, ImageShape, ModelConfig
from ddbm.symmetry.averaging import equivariance_error
from ddbm.symmetry.frames import Noise
from ddbm.symmetry.groups import GROUPS, IDENTITY

D4 = GROUPS["D4"]
SMALL = CodecConfig(factor=4, latent_channels=4, model_channels=8, channel_mult=(1, 1, 1), num_res_blocks=1)
NETWORK = ModelConfig(
    model_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), num_head_channels=8, dropout=0
)
SHIFT, SCALE = (0.1, -0.2, 0.3, 0.0), (5.0, 20.0, 15.0, 10.0)


@pytest.fixture(scope="module")
def models():
    """By kind of layers, of codec and network: weights drawn anew, so that nothing is 0."""
    found = {}
    for layers in ("plain", "tied", "regular"):
        torch.manual_seed(0)
        group = "none" if layers == "plain" else "D4"
        codec = Symmetric(Autoencoder(dataclasses.replace(SMALL, layers=layers, group=group), 3))
        settings = dataclasses.replace(NETWORK, layers=layers, group=group)
        config = Config(bridge=BridgeConfig(schedule="vp", cov_xy=0.2), model=settings)
        model = BridgeModel(config, ImageShape(1, 3, 32, 32, 0), Standardised(codec, SHIFT, SCALE)).eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.1)
        found[layers] = model.requires_grad_(False)
    return found


def pictures(count, *size):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_a_sample_step_by_step(models):
    """dbim with one evaluation: x_T = encoded source, x = a x_T + b D + c z at t_min, decoded, grey."""
    model, source = models["plain"], pictures(2, 32, 32)
    shift, scale = (torch.tensor(v)[:, None, None] for v in (SHIFT, SCALE))
    network = model.codec.codec.network
    z = (network.moments(source)[0] - shift) * scale
    T = torch.tensor(1.0, dtype=torch.float64)
    D = model.bridge.denoise(lambda x, c: model.network(x, c, z), z, T)
    assert D.abs().max() > 1  # latents are not clipped
    a, b, c = (float(v) for v in model.bridge.coefficients(torch.tensor(model.bridge.t_min, dtype=torch.float64)))
    noise = Noise(0, range(2), 2 * [IDENTITY])(torch.zeros(2, 4, 8, 8))
    wanted = network.decoded((a * z + b * D + c * noise) / scale + shift).clamp(-1, 1).mean(1, keepdim=True)
    found = sample(model, source, nfe=1)
    assert found.nfe == 1 and found.x_0.shape == (2, 1, 32, 32)
    torch.testing.assert_close(found.x_0, wanted, rtol=0, atol=1e-5)


def test_the_way_of_a_sample_is_of_images(models, monkeypatch):
    """Decoded states, with noise that is at most as strong as latents are, and estimates."""
    model, bridge = models["plain"], Bridge(BridgeConfig(schedule="ve", sigma_data=0.3))
    seen, denoise = [], bridge.denoise
    monkeypatch.setattr(
        bridge, "denoise", lambda network, x, t: seen.append((x, t, denoise(network, x, t))) or seen[-1][2]
    )
    monkeypatch.setattr(model, "bridge", bridge)
    way = sample(model, pictures(2, 32, 32), nfe=3, trajectory=True).trajectory
    assert len(seen) == 3 and seen[1][0].std() > 5
    for x, D, (state, t, estimate) in zip(way.x, way.D, seen, strict=True):
        noise = t**2 * (1 - t**2 / 80**2)
        torch.testing.assert_close(x, model.decode(state / float(1 + noise / 0.3**2) ** 0.5), rtol=0, atol=1e-5)
        torch.testing.assert_close(D, model.decode(estimate), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layers", ["tied", "regular"])
def test_layers_make_the_whole_map_symmetric(models, layers):
    source = pictures(2, 32, 32)
    errors = equivariance_error(lambda x: sample(models[layers], x, nfe=3).x_0, source, D4)
    assert max(float(e.max()) for e in errors.values()) < 1e-5
    large = pictures(1, 96, 96)
    errors = equivariance_error(lambda x: translate(models[layers], x, answer="sample", nfe=2).sample, large, D4)
    assert max(float(e.max()) for e in errors.values()) < 1e-5


def test_so_do_ways_to_sample(models):
    """Of a model without any symmetry; canonical to the last bit."""
    model, source = models["plain"], pictures(1, 32, 32)
    for symmetrize, allowed in (("none", None), ("average", 1e-5), ("canonical", 0)):
        for x, f in (
            (source, lambda x, how: sample(model, x, nfe=16, **how).x_0),
            (pictures(1, 40, 40), lambda x, how: translate(model, x, answer="mean", **how).mean),
        ):
            how = {} if symmetrize == "none" else {"symmetrize": symmetrize, "group": "D4"}
            errors = equivariance_error(lambda x, f=f, how=how: f(x, how), x, D4)
            error = max(float(e.max()) for e in errors.values())
            assert error > 1e-3 if allowed is None else error <= allowed


@pytest.mark.parametrize("size", [(33, 33), (30, 50), (97, 66), (5, 7)])
def test_sizes_that_are_no_whole_cells(models, size):
    image = pictures(1, *size)
    group = GROUPS["D4"] if size[0] == size[1] else GROUPS["D2"]
    for layers, how in (("regular", {}), ("plain", {"symmetrize": "canonical", "group": group.name})):
        found = translate(models[layers], image, answer="both", nfe=2, **how)
        assert found.sample.shape == found.mean.shape == (1, 1, *size)
        errors = equivariance_error(
            lambda x, m=models[layers], how=how: translate(m, x, answer="both", nfe=2, **how).sample, image, group
        )
        assert max(float(e.max()) for e in errors.values()) <= (0 if how else 1e-5)


def test_the_mean_of_an_image_of_training_size_is_the_decoded_estimate(models):
    model, source = models["regular"], pictures(1, 32, 32)
    z = model.encode(source)
    wanted = model.decode(model.denoiser(z)(z, model.bridge.time(1.0)))
    torch.testing.assert_close(translate(model, source, answer="mean").mean, wanted, rtol=0, atol=1e-5)


def test_masks_reach_the_latents(models):
    """What lies outside is 0 in the answer, and nothing that is there changes it."""
    model, source = models["regular"], pictures(2, 32, 32)
    mask = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    mask[:, :, 4:29, 8:30] = True
    inside = sample(model, source * mask, nfe=2, mask=mask).x_0
    assert not inside[~mask].any() and inside[mask].std() > 0
    kept = []
    model.network.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    sample(model, source * mask, nfe=2, mask=mask)
    cells = torch.zeros(8, 8, dtype=torch.bool)
    cells[1:7, 2:7] = True  # rows 4 to 27, columns 8 to 27
    assert all(not x[..., ~cells].any() and (x[..., cells] != 0).all() for x in kept)
    seen = mask.numpy()[0, 0]
    found = translate(model, (source * mask)[0], mask=seen, answer="mean").mean
    assert not found[:, ~mask[0, 0]].any()


def test_sizes_are_refused_with_a_remedy(models):
    advice = r"cannot be cut into latent pixels of 4x4 and halved 1 times: use --image_size 32x32, or fewer levels"
    with pytest.raises(ValueError, match=f"images of 30x30 {advice}"):
        sample(models["regular"], pictures(1, 30, 30))
    with pytest.raises(ValueError, match="--window 36 must be a multiple of 8"):
        translate(models["regular"], pictures(1, 64, 64), window=36)
    for size in ((36, 34), (36, 36)):  # the latter is cut, into 9x9
        with pytest.raises(ValueError, match=rf"images of {size[0]}x{size[1]} {advice}"):
            BridgeModel(Config(model=NETWORK), ImageShape(3, 3, *size, 0), models["plain"].codec)
