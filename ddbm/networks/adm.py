"""State dicts of ADM's U-Net (Dhariwal & Nichol 2021), as DDBM and SPDM write them, under the names of ours.

The network is the same function; names differ, the order of the channels of attention, and how a kernel that is tied to
a group is stored. Of a tied layer the kernel is computed that its convolution uses, so that the network's output is the
same.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..symmetry.groups import GROUPS, act
from .layers import Attention, TiedConv2d
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
ROUNDING = 1e-3  # a mask of 0 and 1 that went through a moving average is off by as much


class Translation(NamedTuple):
    """Weights under our names, float32; what does not fit, as ADM's names with shapes where they differ."""

    weights: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    shapes: list[str]
    asymmetric: list[str]  # kernels that tied layers cannot hold, as they are not invariant under the group


def has_layout(content: Any) -> bool:
    """Whether this is a state dict of ADM's U-Net, by its names."""
    if not isinstance(content, Mapping):
        return False
    return all(any(str(key).startswith(top) for key in content) for top in ("time_embed.", "input_blocks.", "out."))


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


def translate(network: UNet, tensors: Mapping[str, Any], group: str, order: str) -> Translation:
    """A state dict of ADM as one of `network`, which has plain or tied layers.

    group: that of tied kernels in the file, which does not name it. Raises ValueError if they need another.
    """
    held = {key: value for key, value in tensors.items() if isinstance(key, str) and isinstance(value, Tensor)}
    made, used = Translation({}, [], [], [], []), set[str]()
    for layer, theirs in layer_names(network).items():
        module = network.get_submodule(layer)
        wanted = dict(module.named_parameters())
        if not wanted:  # a skip without a convolution
            continue
        found, keys = computed(held, theirs, group)
        used |= keys
        for leaf, parameter in wanted.items():
            if leaf not in found:
                made.missing.append(f"{theirs}.{leaf}")
                continue
            value, shape = found[leaf], list(parameter.shape)
            if [*value.shape, 1, 1][: len(shape)] != shape or value.numel() != parameter.numel():
                made.shapes.append(f"{theirs}.{leaf} {list(value.shape)}, expected {shape}")
                continue
            value = value.reshape(shape)
            if layer.endswith(".qkv") and order == "legacy":
                attention = network.get_submodule(layer.rpartition(".")[0])
                assert isinstance(attention, Attention)
                value = value.unflatten(0, (-1, 3, attention.head_channels)).transpose(0, 1).flatten(0, 2)
            if leaf == "weight" and isinstance(module, TiedConv2d) and not invariant(value, group):
                made.asymmetric.append(f"{theirs}.{leaf}")
            made.weights[f"{layer}.{leaf}"] = value
    made.unexpected.extend(str(key) for key in tensors if key not in used)
    return made


def computed(tensors: Mapping[str, Tensor], layer: str, group: str) -> tuple[dict[str, Tensor], set[str]]:
    """Weight and bias that a layer of ADM computes with, float32, and the keys they come from."""
    parts = {k.removeprefix(f"{layer}."): v.detach().float() for k, v in tensors.items() if k.startswith(f"{layer}.")}
    found: dict[str, Tensor] = {name: parts[name] for name in ("weight", "bias") if name in parts}
    used: set[str] = set(found)
    if "weight" not in parts and SYMMETRISED in parts:
        masks = {name: parts[MASK + name] for name in MASKS if MASK + name in parts}
        found["weight"] = symmetrised(parts[SYMMETRISED], group, masks)
        used |= {SYMMETRISED, *(MASK + name for name in masks)}
    elif "weight" not in parts and SUMMED in parts:
        found["weight"], times = summed(parts[SUMMED], group)
        used.add(SUMMED)
        if "bias" in parts:
            found["bias"] = times * parts["bias"].flatten()  # stored [1, O, 1, 1]
    return found, {f"{layer}.{name}" for name in used}


def symmetrised(weight: Tensor, group: str, masks: Mapping[str, Tensor]) -> Tensor:
    """The kernel, 1x1 or 3x3, of SPDM's symmetrised convolution: one value of every orbit, copied to all of it.

    masks: where the file stores them. In the files of H and V those of zero-initialised layers may be 0, as they are
    parameters: such a layer convolves with the turned kernel, which is not symmetric.
    """
    check_tied(group, MASKS[next(iter(masks))] if masks else TIED)
    half = weight.shape[-1] // 2
    first = (torch.arange(weight.shape[-1], device=weight.device) < half).float()
    if group == "H":
        mask = masks.get("left_mask", first)
        return weight * mask + weight.flip(-1) * (1 - mask)
    if group == "V":
        mask = masks.get("upper_mask", first[:, None])
        return weight * mask + weight.flip(-2) * (1 - mask)
    centre = torch.zeros_like(weight[0, 0])
    centre[half, half] = 1
    corner = first[:, None] * (torch.arange(weight.shape[-1], device=weight.device) <= half)  # and the edge beside it
    part = weight * masks.get("up_left_mask", corner)
    return weight * masks.get("center_elem_mask", centre) + turned(part, "C4").sum(0)


def summed(weight: Tensor, group: str) -> tuple[Tensor, int]:
    """The kernel of SPDM's sum of convolutions with all turned kernels, and how often it adds its bias.

    For D4 the published layer doubles what it has, bias included, before it adds the mirrored half.
    """
    check_tied(group, TIED)
    total = turned(weight, group).sum(0)
    return (total + turned(weight, "C4").sum(0), 2) if group == "D4" else (total, 1)


def check_tied(group: str, known: Sequence[str]) -> None:
    """Raises ValueError unless `group` is one that the kernels of the file can be tied to."""
    if group not in known:
        raise ValueError(
            f"the kernels of the file are tied to {' or '.join(known)}, the settings say group {group}: add --group"
        )


def turned(kernel: Tensor, group: str) -> Tensor:
    """The kernel in all orientations, `[|G|, ...]`."""
    return torch.stack([act(g, kernel) for g in GROUPS[group].elements])


def invariant(kernel: Tensor, group: str) -> bool:
    """Whether a kernel is the same in all orientations, but for rounding."""
    return bool((turned(kernel, group) - kernel).abs().max() <= ROUNDING * kernel.abs().max())


def unsupported(tensors: Mapping[str, Any]) -> list[str]:
    """What the file has that our U-Net cannot express, each with the first name that tells."""
    found = []
    for pattern, reason in (
        (r"input_blocks\.\d+\.0\.op\..*", "strided convolutions, resblock_updown False"),
        (r".*\.encoder_kv\..*", "attention to a second input"),
    ):
        found += [f"{reason} ({key})" for key in tensors if re.fullmatch(pattern, str(key))][:1]
    width, scale = (tensors.get(f"middle_block.0.{name}") for name in ("out_layers.0.weight", "emb_layers.1.bias"))
    if isinstance(width, Tensor) and isinstance(scale, Tensor) and len(scale) == len(width):
        found.append("no scale in the normalisation, use_scale_shift_norm False (middle_block.0.emb_layers.1.bias)")
    return found


def describe(tensors: Mapping[str, Any], height: int) -> str:
    """The flags whose network has the names and shapes of the file, at images of `height`; "" if none has."""
    try:
        base = tensors["time_embed.0.weight"].shape[1]
        blocks = len({key.split(".")[1] for key in tensors if key.startswith("output_blocks.")})
        ups = {key.split(".")[1] for key in tensors if re.match(r"output_blocks\.\d+\.[12]\.in_layers\.", key)}
        each = blocks // (len(ups) + 1)
        ends = list(range(blocks - 1, -1, -each))  # the last block of every level, full resolution first
        widths = [len(tensors[f"output_blocks.{i}.0.out_layers.0.weight"]) for i in ends]
        attended = [level for level, i in enumerate(ends) if f"output_blocks.{i}.1.norm.weight" in tensors]
        target = tensors["out.2.bias"].numel()
        kernel = next(t for k in KERNELS if (t := tensors.get(f"input_blocks.0.0.{k}")) is not None)
        flags = {
            "model_channels": base,
            "channel_mult": ",".join(f"{width / base:g}" for width in widths),
            "num_res_blocks": each - 1,
            "attention_resolutions": ",".join(str(height >> level) for level in attended) or "''",
            "target_channels": target,
            "source_channels": kernel.shape[1] - target,
            "num_classes": len(tensors["label_emb.weight"]) if "label_emb.weight" in tensors else 0,
        }
    except Exception:  # the names and shapes of no network of this kind
        return ""
    return " ".join(f"--{name} {value}" for name, value in flags.items())
