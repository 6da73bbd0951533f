"""The vision transformer of DINOv2 (Oquab et al. 2023), from its published weights alone.

The usual way to it, torch.hub, runs code from the network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 14  # pixels a side
HEAD = 64  # features of a head of attention


def class_token(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Images [B, 3, H, W], normalised, sides multiples of 14 -> the class token after the last norm [B, D]."""
    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    rows, columns = x.shape[-2:]
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x.flatten(2).mT], 1)
    x = x + positions(state["pos_embed"], rows, columns)
    for n in range(1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))):
        x = _block(state, f"blocks.{n}.", x)
    return _norm(state, "norm", x)[:, 0]


def positions(embedding: Tensor, rows: int, columns: int) -> Tensor:
    """The embedding [1, 1 + n², D] for a grid of other size: bicubic, its scale with DINOv2's offset of 0.1."""
    side = round((embedding.shape[1] - 1) ** 0.5)
    if (rows, columns) == (side, side):
        return embedding
    grid = embedding[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = ((rows + 0.1) / side, (columns + 0.1) / side)
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    return torch.cat([embedding[:, :1], grid.flatten(2).mT], 1)


def _block(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    qkv = _linear(state, f"{name}attn.qkv", _norm(state, f"{name}norm1", x)).unflatten(-1, (3, -1, HEAD))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + state[f"{name}ls1.gamma"] * _linear(state, f"{name}attn.proj", attended)
    hidden = F.gelu(_linear(state, f"{name}mlp.fc1", _norm(state, f"{name}norm2", x)))
    return x + state[f"{name}ls2.gamma"] * _linear(state, f"{name}mlp.fc2", hidden)


def _linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)
