"""The networks against those of other libraries; weights are found in order, checked, and read without running code."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import nn
from torchvision.models import AlexNet_Weights, VGG16_Weights, VisionTransformer

from evaluations import dinov2, networks, raw
from evaluations.evaluator import evaluate
from evaluations.networks import NETWORKS, find_weights, read_weights
from tests.evaluations.conftest import ALEXNET, INCEPTION

CONTENT = b"weights"
NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"
URL = f"https://example.org/folder/{NAME}"
CPU = torch.device("cpu")
DINOV2, DEPTH, WIDTH = "dinov2_vitl14_pretrain.pth", 2, 128


def test_weights_of_lpips_are_those_of_torchvision():
    assert AlexNet_Weights.IMAGENET1K_V1.url == networks.ALEXNET and VGG16_Weights.IMAGENET1K_V1.url == networks.VGG16


def test_order_of_search(tmp_path, monkeypatch):
    places = [tmp_path / "given", tmp_path / "env", tmp_path / "torch" / "hub" / "checkpoints"]
    for place in places:
        place.mkdir(parents=True)
        (place / NAME).write_bytes(CONTENT)
    monkeypatch.setenv("DDBM_WEIGHTS", str(places[1]))
    assert find_weights(URL, places[0] / NAME)[0].parent == places[0]
    for place in places:
        path, *others = find_weights(URL, places[0])
        assert (path.parent, *others) == (place, hashlib.sha256(CONTENT).hexdigest(), "")
        (place / NAME).unlink()
    for given, download, words in (
        (places[0], True, rf"{NAME} not found.*no network.*get {URL}.*put it"),
        (None, False, "not on this machine"),
        (tmp_path / "nothing", True, "no such file or folder"),
    ):
        with pytest.raises(FileNotFoundError, match=words):
            find_weights(URL, given, download)


def test_a_name_with_a_hash_is_checked(tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT[:-1])
    for given in (tmp_path, tmp_path / NAME):
        with pytest.raises(ValueError, match=rf"{NAME}: its SHA-256 begins with .*damaged, or other weights"):
            find_weights(URL, given)
    (tmp_path / NAME).rename(tmp_path / "net.pth")  # one's own
    found = find_weights(URL, tmp_path)
    assert found[0].name == "net.pth" and "not comparable" in found[2]
    assert find_weights(URL, tmp_path / "net.pth") == found
    (tmp_path / "net.pth").write_bytes(CONTENT)
    assert find_weights(URL, tmp_path)[2] == ""  # the published ones under another name


def test_refuses_foreign_weights(tmp_path, weights):
    bad = tmp_path / "bad.pth"
    for write in (lambda: bad.write_bytes(b"hello"), lambda: torch.save(Path("code"), bad)):  # any class, unread
        write()
        for read in (read_weights, lambda path: NETWORKS["inception"](path, CPU, True)):
            with pytest.raises(ValueError, match="not a file of weights"):
                read(bad)
    torch.save([1], bad)
    with pytest.raises(ValueError, match="expected a dict of tensors"):
        read_weights(bad)
    torch.save({"blocks.0.x": torch.zeros(1)}, bad)
    foreign = {"alexnet": (INCEPTION, r"LPIPS v0\.1, AlexNet"), "inception": (ALEXNET, "inception; get https")}
    for name, (file, words) in (foreign | {"dinov2": (bad, "dinov2")}).items():
        with pytest.raises(ValueError, match=f"not the weights of {words}"):
            NETWORKS[name](weights / file, CPU, True)


# ------------------------------------------------------------------------------------------------------- random filters


def test_the_filters_are_the_same_for_ever():
    assert NETWORKS["raw"](None, CPU).weights.startswith("4a2429021d083af0") and raw.FEATURES == 448


def test_the_first_layer_is_scipys():
    image, kernels = np.random.default_rng(0).uniform(-1, 1, (3, 9, 8)), raw.filters()
    found = raw.features(kernels, torch.from_numpy(image)[None].float())[0].numpy()
    for channel in (0, 63):
        kernel = kernels[0][channel].numpy()
        value = sum(correlate(image[c], kernel[c], mode="constant") for c in range(3)).clip(0)
        assert found[[channel, 64 + channel]] == pytest.approx([value.mean(), value.std()], rel=1e-4)


# --------------------------------------------------------------------------------------------------------------- DINOv2


def state():
    """Random weights of a small transformer, as DINOv2 names them, for 37 x 37 patches."""
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + 37 * 37, WIDTH), "patch_embed.proj": (WIDTH, 3, 14, 14)}
    linear = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
    linear |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH), "norm1": (WIDTH,), "norm2": (WIDTH,)}
    shapes |= {f"blocks.{n}.{name}": shape for n in range(DEPTH) for name, shape in linear.items()}
    shapes |= {f"blocks.{n}.ls{k}.gamma": (WIDTH,) for n in range(DEPTH) for k in (1, 2)} | {"norm": (WIDTH,)}
    random, found = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        whole = name.endswith(("token", "embed", "gamma"))
        parts = {name: shape} if whole else {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        found |= {part: torch.randn(s, generator=random) * 0.2 for part, s in parts.items()}
    return found


def torchvision_model(weights, side, positions):
    """The same as torchvision's transformer: the scales of the residuals go into the matrices before them."""
    model = VisionTransformer(14 * side, 14, DEPTH, WIDTH // 64, WIDTH, 4 * WIDTH)
    model.heads = nn.Identity()
    own = {"class_token": weights["cls_token"], "encoder.pos_embedding": positions}
    names = {"conv_proj.": "patch_embed.proj", "encoder.ln.": "norm"}
    for n in range(DEPTH):
        ours, theirs = f"blocks.{n}.", f"encoder.layers.encoder_layer_{n}."
        names |= {f"{theirs}ln_1.": f"{ours}norm1", f"{theirs}self_attention.in_proj_": f"{ours}attn.qkv"}
        names |= {f"{theirs}self_attention.out_proj.": f"{ours}attn.proj", f"{theirs}ln_2.": f"{ours}norm2"}
        names |= {f"{theirs}mlp.0.": f"{ours}mlp.fc1", f"{theirs}mlp.3.": f"{ours}mlp.fc2"}
    for theirs, ours in names.items():
        block = ours.rsplit(".", 2)[0]
        scale = {"attn.proj": f"{block}.ls1.gamma", "mlp.fc2": f"{block}.ls2.gamma"}.get(".".join(ours.split(".")[2:]))
        for kind in ("weight", "bias"):
            value = weights[f"{ours}.{kind}"]
            own[f"{theirs}{kind}"] = torch.einsum("i,i...->i...", weights[scale], value) if scale else value
    model.load_state_dict(own)
    return model.eval()


def test_positions_for_another_grid():
    """A ramp stays one, at the scale with the offset, and the class token keeps its own."""
    ramp = torch.arange(37.0).expand(37, 37)
    embedding = torch.cat([torch.full((1, 1, 2), 7.0), torch.stack([ramp, ramp.mT], -1).reshape(1, -1, 2)], 1)
    found = dinov2.positions(embedding, 12, 16)
    assert found.shape == (1, 193, 2) and (found[0, 0] == 7).all()
    for grid, n in ((found[0, 1:, 0].view(12, 16), 16), (found[0, 1:, 1].view(12, 16).mT, 12)):
        expected = (torch.arange(n) + 0.5) * 37 / (n + 0.1) - 0.5
        torch.testing.assert_close(grid[:, 2:-2], expected[2:-2].expand(len(grid), -1), rtol=0, atol=0.07)  # or 0.2
    assert dinov2.positions(embedding, 37, 37) is embedding


def test_features_equal_torch_fidelitys(tmp_path, monkeypatch, squares):
    """Its extractor, resizing included, around torchvision's transformer in place of torch.hub's."""
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    weights = state()
    torch.save(weights, tmp_path / DINOV2)
    model = torchvision_model(weights, 16, dinov2.positions(weights["pos_embed"], 16, 16))
    monkeypatch.setattr(torch.hub, "load", lambda *args: model)
    monkeypatch.setenv("XFORMERS_DISABLED", "1")  # which it sets, for good
    theirs = FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])
    images = torch.randint(0, 256, (2, 3, 30, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = NETWORKS["dinov2"](tmp_path, CPU).run(images, ("dinov2",))["dinov2"]
        torch.testing.assert_close(found, theirs(images)[0], rtol=1e-4, atol=1e-5)
    given = squares[0][:4], squares[1][:4], ["fd_dinov2"]
    with pytest.raises(FileNotFoundError, match="fd_dinov2: weights dinov2_vitl14_pretrain"):
        evaluate(*given)
    score = evaluate(*given, weights=tmp_path)["metrics"]["fd_dinov2"]
    assert score["mean"] > 0 and "224" in score["resizing"]
