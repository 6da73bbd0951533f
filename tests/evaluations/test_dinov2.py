"""DINOv2's transformer is torchvision's with scaled residuals, and torch-fidelity's extractor around it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from evaluations import dinov2
from evaluations.evaluator import evaluate
from evaluations.networks import NETWORKS

CPU = torch.device("cpu")
NAME = "dinov2_vitl14_pretrain.pth"
DEPTH, WIDTH = 2, 128


def state(side: int) -> dict[str, torch.Tensor]:
    """Random weights of a small transformer, as DINOv2 names them, for side x side patches."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random) * 0.2

    found = {
        "cls_token": draw(1, 1, WIDTH),
        "pos_embed": draw(1, 1 + side * side, WIDTH),
        "mask_token": draw(1, WIDTH),
        "patch_embed.proj.weight": draw(WIDTH, 3, 14, 14),
        "patch_embed.proj.bias": draw(WIDTH),
        "norm.weight": draw(WIDTH),
        "norm.bias": draw(WIDTH),
    }
    shapes = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), "mlp.fc1": (4 * WIDTH, WIDTH)}
    shapes["mlp.fc2"] = (WIDTH, 4 * WIDTH)
    for n in range(DEPTH):
        for name, shape in shapes.items():
            found |= {f"blocks.{n}.{name}.weight": draw(*shape), f"blocks.{n}.{name}.bias": draw(shape[0])}
        for name in ("norm1", "norm2"):
            found |= {f"blocks.{n}.{name}.weight": draw(WIDTH), f"blocks.{n}.{name}.bias": draw(WIDTH)}
        found |= {f"blocks.{n}.ls1.gamma": draw(WIDTH), f"blocks.{n}.ls2.gamma": draw(WIDTH)}
    return found


def torchvision_model(weights: dict[str, torch.Tensor], side: int, positions: torch.Tensor) -> nn.Module:
    """The same as torchvision's transformer: the scales of the residuals go into the matrices before them."""
    model = VisionTransformer(14 * side, 14, DEPTH, WIDTH // 64, WIDTH, 4 * WIDTH)
    model.heads = nn.Identity()
    names = {"ln_1": "norm1", "self_attention.in_proj_": "attn.qkv.", "self_attention.out_proj": "attn.proj"}
    names |= {"ln_2": "norm2", "mlp.0": "mlp.fc1", "mlp.3": "mlp.fc2"}
    own = {
        "class_token": weights["cls_token"],
        "encoder.pos_embedding": positions,
        **{f"conv_proj.{kind}": weights[f"patch_embed.proj.{kind}"] for kind in ("weight", "bias")},
        **{f"encoder.ln.{kind}": weights[f"norm.{kind}"] for kind in ("weight", "bias")},
    }
    for n in range(DEPTH):
        scales = {"attn.proj": weights[f"blocks.{n}.ls1.gamma"], "mlp.fc2": weights[f"blocks.{n}.ls2.gamma"]}
        for theirs, ours in names.items():
            for kind in ("weight", "bias"):
                value = weights[f"blocks.{n}.{ours.rstrip('.')}.{kind}"]
                scale = scales.get(ours)
                if scale is not None:
                    value = value * (scale[:, None] if kind == "weight" else scale)
                joint = "" if theirs.endswith("_") else "."
                own[f"encoder.layers.encoder_layer_{n}.{theirs}{joint}{kind}"] = value
    model.load_state_dict(own)
    return model.eval()


def test_positions_for_another_grid() -> None:
    """A ramp stays one, at the scale with the offset, and the class token keeps its own."""
    ramp = torch.arange(37.0).expand(37, 37)[..., None]
    embedding = torch.cat([torch.full((1, 1, 1), 7.0), ramp.reshape(1, -1, 1)], 1)
    found = dinov2.positions(embedding, 16, 16)
    assert found.shape == (1, 257, 1) and found[0, 0, 0] == 7
    grid = found[0, 1:, 0].view(16, 16)
    expected = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    torch.testing.assert_close(grid[:, 2:-2], expected[2:-2].expand(16, -1), rtol=0, atol=0.06)  # 0.2 without it
    assert dinov2.positions(embedding, 37, 37) is embedding


def test_features_equal_torch_fidelitys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its extractor, resizing included, around torchvision's transformer in place of torch.hub's."""
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    weights = state(37)
    torch.save(weights, tmp_path / NAME)
    model = torchvision_model(weights, 16, dinov2.positions(weights["pos_embed"], 16, 16))
    monkeypatch.setattr(torch.hub, "load", lambda *args: model)
    monkeypatch.setenv("XFORMERS_DISABLED", "1")  # which it sets, for good
    theirs = FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])
    images = torch.randint(0, 256, (2, 3, 30, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = NETWORKS["dinov2"](tmp_path, CPU).run(images, ("dinov2",))["dinov2"]
        torch.testing.assert_close(found, theirs(images)[0], rtol=1e-4, atol=1e-5)


def test_metric_and_refusals(tmp_path: Path, squares: tuple[np.ndarray, np.ndarray]) -> None:
    reference, sample = (images[:4] for images in squares)
    with pytest.raises(FileNotFoundError, match="fd_dinov2: weights dinov2_vitl14_pretrain"):
        evaluate(reference, sample, ["fd_dinov2"])
    torch.save(state(37), tmp_path / NAME)
    score = evaluate(reference, sample, ["fd_dinov2"], weights=tmp_path)["metrics"]["fd_dinov2"]
    assert score["mean"] > 0 and "224" in score["resizing"]
    torch.save({"blocks.0.x": torch.zeros(1)}, tmp_path / NAME)
    with pytest.raises(ValueError, match="not the weights of dinov2"):
        evaluate(reference, sample, ["fd_dinov2"], weights=tmp_path)
