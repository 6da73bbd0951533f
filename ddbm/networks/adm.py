"""State dicts of ADM's U-Net (Dhariwal & Nichol 2021), as DDBM and SPDM write them, under the names of ours.

The network is the same function; names differ, the order of the channels of attention, and how tied kernels are stored.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..symmetry.groups import GROUPS, act
from .convolutions import TiedConv2d
from .layers import Attention
from .unet import UNet

ORDERS = ("legacy", "qkv")
RESIDUAL = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "embed": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "skip": "skip_connection",
}
ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}
SYMMETRISED, SUMMED = "parametrizations.weight.original", "conv_weight"
KERNELS = ("weight", SYMMETRISED, SUMMED)
MASK = "parametrizations.weight.0."
TIED = ("H", "V", "C4", "D4")
MASKS = {"left_mask": ("H",), "upper_mask": ("V",), "up_left_mask": ("C4", "D4"), "center_elem_mask": ("C4", "D4")}
MISSING, UNKNOWN, SHAPE = "missing in the file", "unknown to the network", "of another shape"
ROUNDING = 1e-3  # a mask of 0 and 1 that went through a moving average is off by as much


def layer_names(network: UNet) -> dict[str, str]:
    """Our name of every layer -> ADM's."""
    blocks = {"middle_in": "middle_block.0", "middle_attention": "middle_block.1", "middle_out": "middle_block.2"}
    for side, theirs, first in (("encoder", "input_blocks", 1), ("decoder", "output_blocks", 0)):
        for i, stage in enumerate(network.get_submodule(side).children()):
            for j, (part, _) in enumerate(stage.named_children()):
                blocks[f"{side}.{i}.{part}"] = f"{theirs}.{i + first}.{j}"
    names = {"embed.0": "time_embed.0", "embed.2": "time_embed.2", "stem": "input_blocks.0.0"}
    names |= {"norm": "out.0", "head": "out.2"}
    if network.embed_label is not None:
        names["embed_label"] = "label_emb"
    for block, theirs in blocks.items():
        parts = ATTENTION if isinstance(network.get_submodule(block), Attention) else RESIDUAL
        names |= {f"{block}.{part}": f"{theirs}.{name}" for part, name in parts.items()}
    return names


def attention_order(tensors: Mapping[str, Any]) -> str:
    """How the channels of queries, keys and values lie, by the shape of the stored weights.

    "qkv", all queries first, where the 1x1 convolutions are stored [O, I, 1, 1] (DDBM's flash attention); "legacy",
    queries, keys and values of one head after the other, where they are stored [O, I, 1] (ADM).
    """
    ends = tuple(f".qkv.{kernel}" for kernel in KERNELS)
    axes = {value.ndim for key, value in tensors.items() if str(key).endswith(ends) and isinstance(value, Tensor)}
    if len(axes) > 1:
        raise ValueError("some attention weights are stored [O, I, 1], others [O, I, 1, 1]: add --attention_order")
    return "qkv" if axes == {4} else "legacy"


def translate(
    network: UNet, tensors: Mapping[str, Any], group: str, order: str
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """A state dict of ADM as one of `network`, which has plain or tied layers: float32, under our names.

    Also what does not fit, as ADM's names by kind of misfit. group: that of tied kernels in the file, which does not
    name it. Raises ValueError if they need another.
    """
    held = {key: value for key, value in tensors.items() if isinstance(key, str) and isinstance(value, Tensor)}
    asymmetric = f"not invariant under group {group}"  # kernels that tied layers cannot hold
    misfits: dict[str, list[str]] = {MISSING: [], UNKNOWN: [], SHAPE: [], asymmetric: []}
    weights, used = dict[str, Tensor](), set[str]()
    for layer, theirs in layer_names(network).items():
        module = network.get_submodule(layer)
        wanted = dict(module.named_parameters())
        if not wanted:  # a skip without a convolution
            continue
        found, keys = computed(held, theirs, group)
        used |= keys
        for leaf, parameter in wanted.items():
            name, shape = f"{theirs}.{leaf}", list(parameter.shape)
            if leaf not in found:
                misfits[MISSING].append(name)
                continue
            value = found[leaf]
            if [*value.shape, 1, 1][: len(shape)] != shape or value.numel() != parameter.numel():
                misfits[SHAPE].append(f"{name} {list(value.shape)}, expected {shape}")
                continue
            value = value.reshape(shape)
            if layer.endswith(".qkv") and order == "legacy":
                attention = network.get_submodule(layer.rpartition(".")[0])
                assert isinstance(attention, Attention)
                value = value.unflatten(0, (-1, 3, attention.head_channels)).transpose(0, 1).flatten(0, 2)
            tied = leaf == "weight" and isinstance(module, TiedConv2d)
            if tied and not (turned(value, group) - value).abs().max() <= ROUNDING * value.abs().max():
                misfits[asymmetric].append(name)
            weights[f"{layer}.{leaf}"] = value
    misfits[UNKNOWN] = [str(key) for key in tensors if key not in used]
    return weights, {kind: names for kind, names in misfits.items() if names}


def computed(tensors: Mapping[str, Tensor], layer: str, group: str) -> tuple[dict[str, Tensor], set[str]]:
    """Weight and bias that a layer of ADM computes with, float32, and the keys they come from."""
    parts = {k.removeprefix(f"{layer}."): v.detach().float() for k, v in tensors.items() if k.startswith(f"{layer}.")}
    found: dict[str, Tensor] = {name: parts[name] for name in ("weight", "bias") if name in parts}
    used: set[str] = set(found)
    stored = next((kernel for kernel in KERNELS if kernel in parts), "weight")
    if stored != "weight":
        masks = {name: parts[MASK + name] for name in MASKS if MASK + name in parts}
        known = next((MASKS[name] for name in masks), TIED)
        if group not in known:
            raise ValueError(
                f"the kernels of the file are tied to {' or '.join(known)}, the settings say group {group}: add --group"
            )
        used |= {stored, *(MASK + name for name in masks)}
        if stored == SYMMETRISED:
            found["weight"] = symmetrised(parts[stored], group, masks)
        else:
            found["weight"], times = summed(parts[stored], group)
            if "bias" in parts:
                found["bias"] = times * parts["bias"].flatten()  # stored [1, O, 1, 1]
    return found, {f"{layer}.{name}" for name in used}


def symmetrised(weight: Tensor, group: str, masks: Mapping[str, Tensor]) -> Tensor:
    """The kernel, 1x1 or 3x3, of SPDM's symmetrised convolution: one value of every orbit, copied to all of it.

    masks: where the file stores them. In the files of H and V those of zero-initialised layers may be 0, as they are
    parameters: such a layer convolves with the turned kernel, which is not symmetric.
    """
    half = weight.shape[-1] // 2
    first = (torch.arange(weight.shape[-1], device=weight.device) < half).float()
    if group in ("H", "V"):
        name, axis, default = ("left_mask", -1, first) if group == "H" else ("upper_mask", -2, first[:, None])
        mask = masks.get(name, default)
        return weight * mask + weight.flip(axis) * (1 - mask)
    centre = torch.zeros_like(weight[0, 0])
    centre[half, half] = 1
    corner = first[:, None] * (torch.arange(weight.shape[-1], device=weight.device) <= half)  # and the edge beside it
    part = weight * masks.get("up_left_mask", corner)
    return weight * masks.get("center_elem_mask", centre) + turned(part, "C4").sum(0)


def summed(weight: Tensor, group: str) -> tuple[Tensor, int]:
    """The kernel of SPDM's sum of convolutions with all turned kernels, and how often it adds its bias.

    For D4 the published layer doubles what it has, bias included, before it adds the mirrored half.
    """
    total = turned(weight, group).sum(0)
    return (total + turned(weight, "C4").sum(0), 2) if group == "D4" else (total, 1)


def turned(kernel: Tensor, group: str) -> Tensor:
    """The kernel in all orientations, `[|G|, ...]`."""
    return torch.stack([act(g, kernel) for g in GROUPS[group].elements])
