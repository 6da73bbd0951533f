"""ADM's U-Net from its layout alone: shapes, random state dicts and a forward pass in plain PyTorch, nothing of ours.

The names and the forward pass are those of Dhariwal & Nichol 2021 (guided-diffusion) with DDBM's condition, source and
state joined by concatenation; the tied kernels are those of Lu, Szabados, Yu (SPDM).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Layout(NamedTuple):
    width: int = 32
    mult: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attended: tuple[int, ...] = (1,)  # levels
    head: int = 16
    inputs: int = 6
    outputs: int = 3
    classes: int = 0


def shapes(layout, axes=2):
    """Name -> shape of a plain network; axes: trailing axes of the 1x1 convolutions of attention."""
    found, embedding = {}, 4 * layout.width

    def pair(name, *shape):
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    def residual(name, i, o):
        pair(f"{name}.in_layers.0", i)
        pair(f"{name}.in_layers.2", o, i, 3, 3)
        pair(f"{name}.emb_layers.1", 2 * o, embedding)
        pair(f"{name}.out_layers.0", o)
        pair(f"{name}.out_layers.3", o, o, 3, 3)
        if i != o:
            pair(f"{name}.skip_connection", o, i, 1, 1)

    def attention(name, c):
        pair(f"{name}.norm", c)
        pair(f"{name}.qkv", 3 * c, c, *[1] * axes)
        pair(f"{name}.proj_out", c, c, *[1] * axes)

    pair("time_embed.0", embedding, layout.width)
    pair("time_embed.2", embedding, embedding)
    if layout.classes:
        found["label_emb.weight"] = (layout.classes, embedding)
    c = layout.width * layout.mult[0]
    pair("input_blocks.0.0", c, layout.inputs, 3, 3)
    skips, number = [c], 1
    for level, mult in enumerate(layout.mult):
        for _ in range(layout.blocks):
            residual(f"input_blocks.{number}.0", c, layout.width * mult)
            c = layout.width * mult
            if level in layout.attended:
                attention(f"input_blocks.{number}.1", c)
            skips.append(c)
            number += 1
        if level + 1 < len(layout.mult):
            residual(f"input_blocks.{number}.0", c, c)
            skips.append(c)
            number += 1
    residual("middle_block.0", c, c)
    attention("middle_block.1", c)
    residual("middle_block.2", c, c)
    number = 0
    for level in reversed(range(len(layout.mult))):
        for i in range(layout.blocks + 1):
            residual(f"output_blocks.{number}.0", c + skips.pop(), layout.width * layout.mult[level])
            c = layout.width * layout.mult[level]
            if level in layout.attended:
                attention(f"output_blocks.{number}.1", c)
            if level and i == layout.blocks:
                residual(f"output_blocks.{number}.{1 + (level in layout.attended)}", c, c)
            number += 1
    pair("out.0", c)
    pair("out.2", layout.outputs, c, 3, 3)
    return found


def random_state(layout, seed=0, axes=2, tied=""):
    """A state dict with random values; tied: "sum" or "copy", how SPDM stores the kernels it ties to a group."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes(layout, axes).items():
        fan = math.prod(shape[1:]) if len(shape) > 1 else 4
        value = torch.randn(shape, generator=generator) / fan**0.5
        layer, leaf = name.rsplit(".", 1)
        convolution = len(shapes(layout, axes).get(f"{layer}.weight", ())) == 4
        if tied and convolution and leaf == "weight":
            name = f"{layer}.conv_weight" if tied == "sum" else f"{layer}.parametrizations.weight.original"
        if tied == "sum" and convolution and leaf == "bias":
            value = value[None, :, None, None]
        state[name] = value
    return state


def convolve(state, layer, x, group=""):
    """The convolution of a layer as the published code computes it; group: of tied kernels."""
    if f"{layer}.weight" in state:
        weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
        weight = weight.reshape(*weight.shape[:2], 1, 1) if weight.ndim == 3 else weight
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
    if f"{layer}.conv_weight" in state:
        weight, out = state[f"{layer}.conv_weight"], state[f"{layer}.bias"]
        padding = weight.shape[-1] // 2
        if group in ("H", "V"):
            for kernel in (weight, weight.flip(-1 if group == "H" else -2)):
                out = out + F.conv2d(x, kernel, padding=padding)
            return out
        for k in range(4):
            out = out + F.conv2d(x, weight.rot90(k, (-1, -2)), padding=padding)
        if group == "D4":
            out = out + out  # as published
            for k in range(4):
                out = out + F.conv2d(x, weight.flip(-2).rot90(k, (-1, -2)), padding=padding)
        return out
    k = state[f"{layer}.parametrizations.weight.original"]
    mask = state.get(f"{layer}.parametrizations.weight.0.{'left' if group == 'H' else 'upper'}_mask")
    if mask is not None and not mask.any():  # zeroed with the rest of the layer's parameters
        k = k.flip(-1 if group == "H" else -2)
    elif k.shape[-1] == 3:
        side, middle, corner, edge = k[..., 0], k[..., 1], k[..., 0, 0], k[..., 0, 1]
        top, row = k[..., 0, :], k[..., 1, :]
        lines = {"H": lambda: torch.stack([side, middle, side], -1), "V": lambda: torch.stack([top, row, top], -2)}
        cross = [[corner, edge, corner], [edge, k[..., 1, 1], edge], [corner, edge, corner]]
        k = lines[group]() if group in lines else torch.stack([torch.stack(r, -1) for r in cross], -2)
    return F.conv2d(x, k, state[f"{layer}.bias"], padding=k.shape[-1] // 2)


def forward(state, layout, x, t, x_T, order, group="", y=None):
    """The output for states and sources `[B, C, H, W]` at rescaled times `[B]`; order of attention: legacy or qkv."""

    def linear(name, v):
        return F.linear(v, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, v):
        return F.group_norm(v, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    def residual(name, v, resample=None):
        h = F.silu(norm(f"{name}.in_layers.0", v))
        if resample:
            h, v = resample(h), resample(v)
        h = convolve(state, f"{name}.in_layers.2", h, group)
        scale, shift = linear(f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None].chunk(2, 1)
        h = norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        h = convolve(state, f"{name}.out_layers.3", F.silu(h), group)
        has_skip = any(key.startswith(f"{name}.skip_connection.") for key in state)
        return h + (convolve(state, f"{name}.skip_connection", v, group) if has_skip else v)

    def attention(name, v):
        b, c, height, width = v.shape
        heads, pixels = c // layout.head, height * width
        qkv = convolve(state, f"{name}.qkv", norm(f"{name}.norm", v), group).reshape(b, 3 * c, pixels)
        if order == "legacy":
            q, k, w = qkv.reshape(b, heads, 3, layout.head, pixels).unbind(2)
        else:
            q, k, w = qkv.reshape(b, 3, heads, layout.head, pixels).unbind(1)
        scale = 1 / math.sqrt(math.sqrt(layout.head))
        weight = torch.einsum("bhct,bhcs->bhts", q * scale, k * scale).softmax(-1)
        h = torch.einsum("bhts,bhcs->bhct", weight, w).reshape(b, c, height, width)
        return v + convolve(state, f"{name}.proj_out", h, group)

    def block(name, v, resample):
        """The modules of a block; the residual block that resamples is the one that is told to."""
        part = 0
        while any(key.startswith(f"{name}.{part}.") for key in state):
            if f"{name}.{part}.norm.weight" in state:
                v = attention(f"{name}.{part}", v)
            else:
                v = residual(f"{name}.{part}", v, resample(part))
            part += 1
        return v

    half = layout.width // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(start=0, end=half, dtype=torch.float32) / half)
    args = t[:, None].float() * freqs[None]
    emb = torch.cat([torch.cos(args), torch.sin(args)], -1).to(x.dtype)
    emb = linear("time_embed.2", F.silu(linear("time_embed.0", emb)))
    if y is not None:
        emb = emb + state["label_emb.weight"][y]
    h = convolve(state, "input_blocks.0.0", torch.cat([x, x_T], 1), group)
    kept, each, count = [h], layout.blocks + 1, len(layout.mult) * (layout.blocks + 1)
    for i in range(1, count):
        halves = i % each == 0
        h = block(
            f"input_blocks.{i}", h, lambda part, halves=halves: (lambda v: F.avg_pool2d(v, 2)) if halves else None
        )
        kept.append(h)
    h = block("middle_block", h, lambda part: None)
    for i in range(count):
        doubled = lambda v: v.repeat_interleave(2, -1).repeat_interleave(2, -2)  # noqa: E731
        h = block(f"output_blocks.{i}", torch.cat([h, kept.pop()], 1), lambda part, f=doubled: f if part else None)
    return convolve(state, "out.2", F.silu(norm("out.0", h)), group)
