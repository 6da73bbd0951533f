"""Autoencoders of diffusers, tiny and random: as diffusers computes, from every kind of place, and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ddbm.codecs import open_codec
from ddbm.codecs.kl import EXPECTED, open_kl
from ddbm.config import ImageShape
from tests.ddbm.runs import one_line

ROOT = Path(__file__).parents[3]
WEIGHTS = "diffusion_pytorch_model.safetensors"
TINY = dict(
    block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
    up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
)  # fmt: skip
SIXTEEN = dict(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False)
SIXTEEN |= dict(use_post_quant_conv=False)  # as SD3's


def saved(folder, **settings):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(**(TINY | settings)).eval()
    vae.save_pretrained(folder)
    return vae


def changed(folder, **settings):
    """What config.json says, changed; None: without."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


@pytest.mark.parametrize("settings", [{}, SIXTEEN], ids=["sd", "sd3"])
@torch.no_grad()
def test_as_diffusers_computes(settings, tmp_path):
    vae = saved(tmp_path, **settings)
    codec = open_codec(str(tmp_path), ImageShape(3, 1, 16, 8, 0))
    scaling, shift, latents = vae.config.scaling_factor, vae.config.shift_factor or 0, vae.config.latent_channels
    assert (codec.factor, codec.image_channels, codec.latent_channels, codec.clip) == (2, 3, latents, None)
    x, noise = torch.rand(2, 3, 16, 8) * 2 - 1, torch.randn(2, latents, 8, 4)
    posterior = vae.encode(x).latent_dist
    mode = (posterior.mode() - shift) * scaling
    torch.testing.assert_close(codec.encode(x), mode)
    torch.testing.assert_close(
        codec.encode(x, lambda like: noise), (posterior.mean + posterior.logvar.exp().sqrt() * noise - shift) * scaling
    )
    torch.testing.assert_close(codec.decode(mode, 3), vae.decode(mode / scaling + shift).sample.clamp(-1, 1))
    torch.testing.assert_close(codec.encode(x[:, :1]), codec.encode(x[:, :1].repeat(1, 3, 1, 1)))
    assert not codec.training and not any(p.requires_grad for p in codec.parameters())


def old_names(name):
    """As before 2023."""
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        name = name.replace(f".{new}.", f".{old}.")
    return name


def original(name):
    """As latent diffusion calls the weights of two levels."""
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for new, old in (
        ("mid_block.attentions.0", "mid.attn_1"), ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"),
        ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"), ("attn_1.group_norm", "attn_1.norm"),
    ):  # fmt: skip
        name = name.replace(new, old)
    return f"first_stage_model.{name}"


def squared(name, value):
    """Its attention's matrices are convolutions of 1x1."""
    return value[..., None, None] if "attentions" in name and value.ndim == 2 else value


def test_from_every_kind_of_place(tmp_path, monkeypatch):
    """A directory, a pipeline, a file of any name and of other names of weights, the hub's cache: the same codec."""
    saved(tmp_path / "one" / "vae")
    folder, own = tmp_path / "one" / "vae", open_kl(tmp_path / "one" / "vae").digest
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    (tmp_path / "one" / "model_index.json").write_text("{}")
    cache = tmp_path / "hub" / "models--some--codec"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    shutil.copytree(folder, cache / "snapshots" / "abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    asked = []

    def offline(*where, **_):
        asked.append(where)
        raise OSError("the network was asked")

    for name in ("socket.getaddrinfo", "socket.socket.connect"):
        monkeypatch.setattr(name, offline)
    places = [tmp_path / "one", folder / WEIGHTS, "some/codec"]
    layouts = {
        "old": {old_names(name): value for name, value in weights.items()},
        "original": {original(name): squared(name, value) for name, value in weights.items()}
        | {"cond_stage_model.a": torch.zeros(1)},
        "half": {name: value.half() for name, value in weights.items()},
    }  # fmt: skip
    for name, layout in layouts.items():
        (tmp_path / name).mkdir()
        shutil.copy(folder / "config.json", tmp_path / name)
        safetensors.torch.save_file(layout, tmp_path / name / "weights.safetensors")
        places += [tmp_path / name, tmp_path / name / "weights.safetensors"]
    found = [open_kl(place).digest for place in places]
    assert found[:-2] == [own] * 7 and found[-2] == found[-1] != own and not asked


def test_the_digest_knows_settings(tmp_path):
    saved(tmp_path)
    own, found = open_kl(tmp_path).digest, set()
    changed(tmp_path, sample_size=7, shift_factor=0)
    assert open_kl(tmp_path).digest == own
    for settings in (dict(scaling_factor=1), dict(shift_factor=0.1), dict(norm_num_groups=2), dict(act_fn="gelu")):
        changed(tmp_path, **settings)
        found.add(open_kl(tmp_path).digest)
    assert len(found | {own}) == 5


def test_what_does_not_fit_is_refused(tmp_path):
    saved(tmp_path)
    for shape, words in (
        (ImageShape(2, 3, 8, 8, 0), "images of 3 channels, or of 1, which it repeats, and the targets have 2"),
        (ImageShape(3, 3, 8, 9, 0), "8x9 cannot be cut into latent pixels of 2x2: use --image_size 8x8"),
    ):
        with one_line(words):
            open_codec(str(tmp_path), shape)
    for settings, words in (
        (dict(scaling_factor=None), "missing scaling factor, found None, and shift_factor 0: add"),
        (dict(scaling_factor=True), "missing scaling factor, found True"),
        (dict(scaling_factor=0), "missing scaling factor, found 0"),
        (dict(scaling_factor=0.5, shift_factor="a"), "shift_factor 'a'"),
        (dict(shift_factor=None, _class_name="VQModel"), "describes VQModel, expected AutoencoderKL"),
        (dict(_class_name="AutoencoderKL", norm_num_groups=3), "cannot be built by diffusers"),
        (dict(norm_num_groups=4, out_channels=1), "3 channels going in and 1 coming out"),
        (dict(out_channels=3, latent_channels=5), "does not fit its settings: decoder.conv_in.weight is"),
    ):
        changed(tmp_path, **settings)
        with one_line(words, tmp_path):
            open_kl(tmp_path)
    changed(tmp_path, latent_channels=4)
    weights = safetensors.torch.load_file(tmp_path / WEIGHTS)
    name = "decoder.conv_out.bias"
    safetensors.torch.save_file({n: v for n, v in weights.items() if n != name}, tmp_path / WEIGHTS)
    with one_line(f"{name} is nothing, expected [3]"):
        open_kl(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"pickle")
    with one_line(f"{WEIGHTS} cannot be read as safetensors"):
        open_kl(tmp_path)


def test_files_that_are_no_codec_are_refused(tmp_path, monkeypatch):
    """Pickled weights above all. None of this needs diffusers."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    weights, why = tmp_path / "diffusion_pytorch_model.bin", "pickled weights may execute code, so they are not read"
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with one_line(f"{tmp_path} has no *.safetensors: {EXPECTED}"):
        open_codec(str(tmp_path))
    weights.touch()
    for place in (tmp_path, weights):
        with one_line(why, place):
            open_codec(str(place))
    (tmp_path / "a.txt").touch()
    with one_line(f"a.txt is no safetensors file: {EXPECTED}"):
        open_codec(str(tmp_path / "a.txt"))
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).touch()
    with one_line(f"has a.safetensors, b.safetensors: {EXPECTED}"):
        open_codec(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with one_line("describes nothing known, expected AutoencoderKL"):
        open_codec(str(tmp_path / "a.safetensors"))
    (tmp_path / "config.json").unlink()
    with one_line("a.safetensors has no config.json beside it", EXPECTED):
        open_codec(str(tmp_path / "a.safetensors"))
    for text in ("some/where", "nowhere", "/no/such/place"):
        with one_line(f"no codec at {text}, which is neither here nor in the hub's cache: {EXPECTED}"):
            open_codec(text)


def test_without_diffusers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL", "scaling_factor": 1.0}')
    (tmp_path / WEIGHTS).touch()
    with one_line("needs diffusers, which cannot be imported", "pip install -e '.[latent]'"):
        open_codec(str(tmp_path))
    assert 'latent = ["diffusers' in (ROOT / "pyproject.toml").read_text()


def test_diffusers_is_imported_beside_our_own_folder_datasets(tmp_path):
    """And by nobody who does not ask for such a codec."""
    pytest.importorskip("diffusers")
    code = """
import sys, datasets, ddbm.codecs
assert "diffusers" not in sys.modules and "huggingface_hub" not in sys.modules
from ddbm.codecs.kl import autoencoder_class
print(autoencoder_class().__name__, datasets.__file__)
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.split() == ["AutoencoderKL", str(ROOT / "datasets" / "__init__.py")], found.stderr[-500:]
