"""Our own autoencoder: it commutes with its group, and is what it says."""

import json
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ddbm.codecs.symmetric import Autoencoder, Symmetric, kl, open_symmetric
from ddbm.config import CodecConfig, CodecHeader, CodecRun, CodecShape
from ddbm.files import checkpoint
from ddbm.networks.convolutions import folded
from ddbm.settings import from_dict, to_dict
from ddbm.symmetry.groups import GROUPS, act
from tests.ddbm.codecs.small import autoencoder
from tests.ddbm.runs import one_line


def errors(network, group, kind=torch.float64):
    """The largest relative errors of means, of log variances and of images, over all elements."""
    network = network.to(kind)
    x, z = torch.rand(2, 3, 8, 16, dtype=kind) * 2 - 1, torch.randn(2, 4, 3, 2, dtype=kind)
    found = []
    with torch.no_grad():
        right = (*network.moments(x), network.decoded(z))
        for g in group.elements:
            turned = (*network.moments(act(g, x)), network.decoded(act(g, z)))
            found.append([(a - act(g, b)).norm() / b.norm() for a, b in zip(turned, right, strict=True)])
    assert all(part.std() > 0.01 for part in right)
    return torch.tensor(found).amax(0)


@pytest.mark.parametrize("group", ["C4", "D4", "H"])
@pytest.mark.parametrize("layers", ["tied", "regular"])
def test_encoder_and_decoder_commute_with_the_group(layers, group):
    network = autoencoder(layers, group)
    assert (errors(network, GROUPS[group], torch.float32) < 1e-5).all()
    assert (errors(network, GROUPS[group]) < 1e-10).all()


def test_plain_layers_do_not_and_regular_layers_can_tell_mirrors():
    assert (errors(autoencoder("plain", "none"), GROUPS["H"]) > 1e-3).all()
    assert (errors(autoencoder("regular", "C4"), GROUPS["H"]) > 1e-3).all()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize(("factor", "channels", "latents"), [(4, 1, 4), (8, 3, 16), (4, 5, 16), (8, 5, 4)])
def test_shapes(factor, channels, latents, kind):
    codec = Symmetric(autoencoder("tied", channels=channels, factor=factor, latent_channels=latents)).to(kind)
    x = torch.rand(2, channels, 16, 24, dtype=kind) * 2 - 1
    z = codec.encode(x)
    assert z.shape == (2, latents, 16 // factor, 24 // factor) and z.dtype == kind
    decoded = codec.decode(z, channels)
    assert decoded.shape == x.shape and decoded.dtype == kind and decoded.abs().max() <= 1
    assert (codec.factor, codec.image_channels, codec.latent_channels, codec.clip) == (factor, channels, latents, None)


def test_forward_decodes_a_sample_of_the_posterior():
    network = autoencoder("tied", "D4")
    x, noise = torch.rand(2, 3, 8, 8) * 2 - 1, torch.randn(2, 4, 2, 2)
    with torch.no_grad():
        image, mean, logvar = network(x, lambda like: noise.view_as(like))
        sample = mean + logvar.exp().sqrt() * noise
        torch.testing.assert_close(image, network.decoded(sample))
        torch.testing.assert_close(Symmetric(network).encode(x, lambda like: noise), sample)
        likely, *_ = network(x)
        torch.testing.assert_close(likely, network.decoded(mean))
        assert torch.equal(Symmetric(network).encode(x), mean) and not torch.allclose(image, likely)


def test_kl_is_the_divergence_from_normal_noise():
    mean, logvar = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    wanted = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(kl(mean, logvar), wanted)
    assert kl(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)).tolist() == [0, 0]


@pytest.mark.parametrize(("bias", "wanted"), [(99.0, 20.0), (-99.0, -30.0)])
def test_variances_stay_within_limits(bias, wanted):
    network = autoencoder("tied")
    with torch.no_grad():
        network.moments_out.bias.add_(bias)
        mean, logvar = network.moments(torch.rand(1, 3, 8, 8))
    assert (logvar == wanted).all() and (mean - bias).abs().max() < 50


@pytest.mark.parametrize("layers", ["tied", "regular"])
def test_folded_kernels_and_gradients_of_a_frozen_codec(layers):
    codec = Symmetric(autoencoder(layers)).requires_grad_(False)
    x = (torch.rand(1, 3, 8, 8) * 2 - 1).requires_grad_()
    codec.decode(codec.encode(x), 3).square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.norm() > 0
    with torch.inference_mode():
        loose = codec.encode(x)
        with folded(codec):
            torch.testing.assert_close(codec.encode(x), loose)
            torch.testing.assert_close(codec.decode(loose, 3), codec.decode(loose, 3))


def test_what_the_trainer_uses(monkeypatch):
    """Blocks computed twice give the same gradients; size and levels are known; nothing happens after a step."""
    network, calls = autoencoder("tied", num_res_blocks=2), []
    assert network.levels == 3 and len(network.blocks) == 12 and network.normalise_weights() is None
    assert {p for b in network.blocks for p in b.parameters()} < set(network.parameters())
    assert len({id(block) for block in network.blocks}) == 12
    for block in network.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    x, found = torch.rand(1, 3, 8, 8), []
    for network.checkpointed in (False, True):
        calls.clear()
        network.zero_grad()
        sum(part.sum() for part in network(x)).backward()
        found.append([p.grad.clone() for p in network.parameters()])
        assert len(calls) == 12 * (1 + network.checkpointed)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    with one_line("8x10 cannot be cut into latent pixels of 4x4: use --image_size 8x8"):
        network.check_size(8, 10)
    network.check_size(4, 12)


def test_settings():
    assert CodecConfig().multipliers == (1, 2, 4, 4) and CodecConfig(factor=4).multipliers == (1, 2, 4)
    for settings, words in (
        (dict(factor=6), "--factor must be 4 or 8, found 6"),
        (dict(factor=4, channel_mult=(1, 2)), "--factor 4 has 3 levels, and --channel_mult 1,2 has 2"),
        (dict(latent_channels=3), "--latent_channels must be above 3"),
        (dict(latent_channels=17), "--latent_channels must be below 17"),
    ):
        with one_line(words):
            CodecConfig(**settings)
    with one_line("regular fields of group D4, 8 channels each: try --model_channels 16"):
        Autoencoder(CodecConfig(model_channels=12), 3)


def written(network, run):
    header = to_dict(CodecHeader(CodecRun(codec=network.settings), CodecShape(network.channels), 7))
    return checkpoint.write(checkpoint.path_of(run, 7), header, {"ema": network.state_dict()}, {})


def test_a_checkpoint_is_a_codec(tmp_path):
    network = autoencoder("regular", "C4", channels=5, factor=8, latent_channels=6)
    path = written(network, tmp_path)
    for place in (tmp_path, str(path)):
        codec = open_symmetric(place)
        assert codec.digest == Symmetric(network).digest
        x = torch.rand(1, 5, 8, 8)
        assert torch.equal(codec.eval().encode(x), Symmetric(network).encode(x))
    header = json.loads((path / "config.json").read_text())
    assert from_dict(CodecHeader, header).config.codec == network.settings


def test_the_digest_knows_what_shapes_do_not_tell():
    alike = autoencoder("tied", "D4"), autoencoder("tied", "D4")
    assert Symmetric(alike[0]).digest == Symmetric(alike[1]).digest
    others = [autoencoder("plain", "D4"), autoencoder("tied", "C2")]
    assert all(others[0].state_dict()[n].equal(v) for n, v in alike[0].state_dict().items())  # the same numbers
    with torch.no_grad():
        alike[1].image_out.bias[2] = math.nextafter(float(alike[1].image_out.bias[2]), 9.0) + 1e-6
    assert len({Symmetric(network).digest for network in (*alike, *others)}) == 4


def test_checkpoints_of_something_else_are_refused(tmp_path):
    path = written(autoencoder("tied"), tmp_path)
    weights = checkpoint.read_weights(path, "ema")
    header = checkpoint.read_header(path)
    for config, words in (({"model": {}}, "of no codec: give a run of scripts.train_codec"), (3, "of no codec")):
        checkpoint.write(path, header | {"config": config}, {"ema": weights}, {})
        with one_line(words):
            open_symmetric(path)
    checkpoint.write(path, header, {"ema": {n: v for n, v in weights.items() if n != "image_in.bias"}}, {})
    with one_line("image_in.bias is nothing, expected [8]"):
        open_symmetric(path)
