"""Published checkpoints from file to samples, and what is refused. The state dicts are random, of ADM's layout."""

import json
import math
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from ddbm import load
from ddbm.config import Config
from ddbm.files import checkpoint
from ddbm.model import BridgeModel, ImageShape
from ddbm.networks import adm
from ddbm.settings import from_flags
from scripts import import_checkpoint, sample, train
from tests.ddbm import runs
from tests.ddbm.networks.adm_layout import Layout, forward, random_state, shapes

LAYOUT, NAME = Layout(), "toy_ema_0.9999_000420.pt"
PRESET = (
    "--preset histology_vp --image_size 8 --channel_mult 1,2 --attention_resolutions 4 --num_head_channels 16".split()
)
PLAIN = [*PRESET, "--layers", "plain", "--group", "none"]


def saved(folder, state, name=NAME, **settings):
    torch.save(state, folder / name, **settings)
    return folder / name


def imported(path, dst, *flags):
    assert import_checkpoint.main([str(path), str(dst), *flags]) == 0
    return load(dst)


def refused(path, dst, *words, flags=PLAIN):
    runs.refused(import_checkpoint.main, [path, dst, *flags], *words)
    assert not dst.exists()


def agrees(model, state, order, group="none"):
    generator = torch.Generator().manual_seed(1)
    x, source = torch.randn(2, 2, 3, 8, 8, generator=generator, dtype=torch.float64)
    t = torch.tensor([-3.0, -1500.0])
    with torch.no_grad():
        output = model.network.double()(x, t, source)
        expected = forward({k: v.double() for k, v in state.items()}, LAYOUT, x, t, source, order, group)
    return float((output - expected).norm() / expected.norm()) < 2e-6


@pytest.mark.parametrize(("order", "axes"), [("legacy", 1), ("qkv", 2)])
def test_imports_sample_and_are_not_trained_on(tmp_path, order, axes, capsys):
    state = random_state(LAYOUT, axes=axes)
    model = imported(saved(tmp_path, OrderedDict(state)), run := tmp_path / "run", *PLAIN)
    assert agrees(model, state, order)
    assert f"order of attention {order}, by the shape" in capsys.readouterr().out
    assert (model.config.bridge.schedule, model.config.bridge.beta_d, model.images.height) == ("vp", 2, 8)
    path = run / "checkpoints" / "step_00000420"
    assert checkpoint.read_state(path) == {"imported": {"file": NAME, "attention_order": order}}
    assert json.loads((run / "config.json").read_text())["data"]["dataset"] == "histology"
    assert sample.main([str(run), *"--sampler dbim --nfe 2 --num_samples 2 --device cpu".split()]) == 0
    (samples,) = run.glob("samples/*/samples_2x8x8x3_nfe2.npz")
    with np.load(samples) as file:
        assert file["arr_0"].std() > 1
    flags = [*import_checkpoint.preset_flags("histology_vp"), *PLAIN[2:], "--device", "cpu", "--run_dir", str(run)]
    with pytest.raises(ValueError, match="holds no weights 'model', only ema: an average alone can be sampled from"):
        train.main(flags)


def test_files_of_all_kinds(tmp_path):
    state = random_state(LAYOUT)
    half = {name: value.half() for name, value in state.items()}
    flat = torch.cat([value.flatten() for value in state.values()])  # as DDBM saves them: views of one tensor
    views = {
        name: part.view_as(state[name])
        for name, part in zip(state, flat.split([v.numel() for v in state.values()]), strict=True)
    }
    safetensors.torch.save_file(half, file := tmp_path / "ema_000007.safetensors")
    flattened = {
        name: v[..., 0] if name.split(".")[-2] in ("qkv", "proj_out") and v.ndim > 1 else v for name, v in state.items()
    }
    kinds = {
        "half": (saved(tmp_path, half, "half_7.pt"), half),
        "safe": (file, half),
        "views": (saved(tmp_path, views, "views_7.pt"), state),
        "ddp": (saved(tmp_path, {f"module.{k}": v for k, v in state.items()}, "model_000007.pt"), state),
        "old": (saved(tmp_path, state, "old_7.pt", _use_new_zipfile_serialization=False), state),
        "nested": (saved(tmp_path, {"ema": state, "epoch": 3, "opt": {"lr": 1e-4}}, "nested_7.pt"), state),
        "told": (saved(tmp_path, flattened, "e2h_7_adapted.pt"), state),
    }
    for kind, (path, expected) in kinds.items():
        flags = ["--attention_order", "qkv"] if kind == "told" else []
        model = imported(path, tmp_path / kind, *PLAIN, *flags)
        assert next(model.parameters()).dtype == torch.float32
        assert agrees(model, expected, "qkv"), kind
        assert (tmp_path / kind / "checkpoints" / "step_00000007").is_dir()


def test_tied_files(tmp_path, capsys):
    preset = [*PRESET, "--layers", "tied", "--group", "D4"]
    for kind in ("sum", "copy"):
        state = random_state(LAYOUT, tied=kind)
        path = saved(tmp_path, state, f"{kind}_1.pt")
        assert agrees(imported(path, tmp_path / kind, *preset), state, "qkv", "D4")
        refused(path, tmp_path / "no", "tied to H or V or C4 or D4", "group none", "--group", flags=PLAIN)
    refused(saved(tmp_path, random_state(LAYOUT)), tmp_path / "no", "--layers plain", "not invariant", flags=preset)
    listed = capsys.readouterr().out
    assert "not invariant under group D4 (22):" in listed and "    middle_block.0.in_layers.2.weight\n" in listed
    refused(path, tmp_path / "no", "regular", flags=[*preset, "--layers", "regular"])


def test_what_does_not_fit_is_named(tmp_path, capsys):
    no, state = tmp_path / "no", random_state(LAYOUT)
    path = saved(tmp_path, state)
    capsys.readouterr()
    refused(path, no, "give the flags of the file's network", flags=[*PLAIN, "--num_res_blocks", "2"])
    out = capsys.readouterr().out.splitlines()
    wanted, held = shapes(LAYOUT._replace(blocks=2)), shapes(LAYOUT)
    listed = sorted(line.split()[0] for line in out if line.startswith("    "))
    assert listed == sorted(n for n in wanted.keys() | held.keys() if wanted.get(n) != held.get(n))
    titles = [line.split(" (")[0] for line in out if not line.startswith("    ")]
    assert titles == ["missing in the file", "unknown to the network", "of another shape"]
    refused(path, no, "3 of another shape", flags=[*PLAIN, "--target_channels", "1"])
    refused(path, no, "missing in the file", flags=[*PLAIN, "--num_classes", "4"])
    assert "    label_emb.weight\n" in capsys.readouterr().out
    infinite = state | {"out.0.bias": torch.full((32,), torch.inf)}
    refused(saved(tmp_path, infinite, "b_1.pt"), no, "1 not finite")


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_bad_files(tmp_path, monkeypatch):
    no, state = tmp_path / "no", random_state(LAYOUT)
    monkeypatch.chdir(tmp_path)
    whole, cut = saved(tmp_path, state).read_bytes(), safetensors.torch.save(state)[:-9]
    damaged = {"cut_1.pt": whole[: len(whole) // 2], "text_1.pt": b"hello", "e_1.pt": b"", "cut_1.safetensors": cut}
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, no, name, "damaged")
    for content, words in (
        ({"ema": state, "code": Evil()}, ("c_1.pt was refused, nothing in it was executed", "system")),
        ({"a.b": torch.zeros(1), "lr": 1.0}, ("no state dict of ADM: found a.b, lr; expected one, of names",)),
        ([1, 2], ("no state dict of ADM: found list",)),
        ({"model": state, "ema": state}, ("several networks: found model, ema",)),
    ):
        refused(saved(tmp_path, content, "c_1.pt"), no, *words)
    assert not Path("evil").exists()
    refused(tmp_path / "none_1.pt", no, "No such file")
    refused(tmp_path, no, "directory", flags=[*PLAIN, "--step", "1"])


def test_mistakes(tmp_path):
    path = saved(tmp_path, random_state(LAYOUT))
    for flags, words in (
        ([], ["--preset DATASET_SCHEDULE", "vp_simple"]),
        (["--preset", "e2h"], ["'e2h' is no --preset", "vp_simple"]),
        (["--preset", "e2hh_vp"], ["--image_size", "e2hh_vp"]),
        (["--preset", "e2h_vp", "--model_channels", "64"], ["another shape", "--channel_mult"]),
        ([*PLAIN, "--backbone", "edm2"], ["--backbone edm2", "use adm"]),
        ([*PLAIN, "--num_head_channels", "7"], ["--num_head_channels"]),
        ([*PLAIN, "--attention_order", "heads"], ["legacy, qkv"]),
        ([*PLAIN, "--step", "x"], ["--step", "'x'"]),
        ([*PLAIN, "--target_channels", "three"], ["--target_channels", "three"]),
    ):
        refused(path, tmp_path / "no", *words, flags=flags)
    path = path.rename(tmp_path / "ema_0.9999.pt")
    refused(path, tmp_path / "no", "ends in no number", "--step")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="already has checkpoints"):
        import_checkpoint.main([str(path), str(tmp_path / "run"), *PLAIN, "--step", "3"])


@pytest.mark.parametrize(
    ("preset", "layout", "parameters", "attended", "last"),
    [
        ("e2h_vp", Layout(192, (1, 2, 3, 4), 3, (1, 2, 3), 64), 295_136_451, (5, 6, 7, 9, 10, 11, 13, 14, 15), 11),
        ("diode_vp", Layout(256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 64), 552_814_083, (10, 11, 13, 14, 16, 17), 8),
    ],
)
def test_published_architectures(preset, layout, parameters, attended, last):
    """Every name and shape of the published networks has its place; attended: blocks with attention in their files."""
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes(layout).items()}
    published = {f"input_blocks.{i}.1.qkv.weight" for i in attended} | {"middle_block.1.qkv.weight"}
    published |= {f"output_blocks.{i}.1.qkv.weight" for i in range(last + 1)}
    assert {name for name in state if name.endswith("qkv.weight")} == published
    config, _ = from_flags(Config, import_checkpoint.preset_flags(preset))
    size = int(config.data.image_size)
    with torch.device("meta"):
        network = BridgeModel(config, ImageShape(3, 3, size, size, 0)).network
    weights, misfits = adm.translate(network, state, "none", "qkv")
    assert not misfits
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in network.state_dict().items()}
    assert sum(math.prod(v.shape) for v in weights.values()) == parameters
    bridge = config.bridge
    assert (bridge.beta_d, bridge.beta_min, bridge.sigma_data, bridge.cov_xy) == (2, 0.1, 0.5, 0)
