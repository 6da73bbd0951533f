"""The U-Net of Dhariwal & Nichol 2021 (ADM), as DDBM uses it: it knows no noise schedule and no kind of layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .layers import PlainLayers, downsample, upsample, zero


def time_features(t: Tensor, channels: int) -> Tensor:
    """Cosines and sines of `t` `[B]` at geometric frequencies 1 .. 1/10000: `[B, channels]`."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], -1), (0, channels % 2))


class ResidualBlock(nn.Module):
    """Two convolutions around a scale and shift by the embedding; `resample` halves or doubles the size inside."""

    def __init__(
        self, layers: PlainLayers, channels: int, out_channels: int, embedding: int, dropout: float, resample: str = ""
    ) -> None:
        super().__init__()
        resamplings: dict[str, Callable[[Tensor], Tensor]] = {"": nn.Identity(), "down": downsample, "up": upsample}
        self.resample = resamplings[resample]
        self.norm_in = layers.norm(channels)
        self.conv_in = layers.conv(channels, out_channels)
        self.embed = nn.Linear(embedding, 2 * layers.fields(out_channels))
        self.spread = layers.spread
        self.norm_out = layers.norm(out_channels)
        self.dropout = layers.dropout(dropout)
        self.conv_out = zero(layers.conv(out_channels, out_channels))
        self.skip = nn.Identity() if channels == out_channels else layers.conv(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_in(self.resample(F.silu(self.norm_in(x))))
        scale, shift = (self.spread(v) for v in self.embed(F.silu(embedding)).chunk(2, 1))
        h = self.norm_out(h) * (1 + scale) + shift
        return self.skip(self.resample(x)) + self.conv_out(self.dropout(F.silu(h)))


class Stage(nn.Module):
    """A residual block, attention where wanted, and a resampling block where the resolution changes afterwards."""

    def __init__(self, residual: nn.Module, attention: nn.Module | None = None, up: nn.Module | None = None) -> None:
        super().__init__()
        self.residual, self.attention, self.up = residual, attention, up

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.residual(x, embedding)
        x = x if self.attention is None else self.attention(x)
        return x if self.up is None else self.up(x, embedding)


class UNet(nn.Module):
    """Maps `[B, in_channels, H, W]`, times `[B]` and a condition to `[B, out_channels, H, W]`.

    attention_levels: levels (0 is full resolution) with attention; num_classes: 0 for no class conditioning.
    """

    def __init__(
        self,
        layers: PlainLayers,
        in_channels: int,
        out_channels: int,
        *,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        attention_levels: Sequence[int],
        num_head_channels: int,
        dropout: float,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        width = 4 * model_channels
        self.model_channels = model_channels
        self.embed = nn.Sequential(nn.Linear(model_channels, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_label = nn.Embedding(num_classes, width) if num_classes else None

        def residual(channels: int, out: int, resample: str = "") -> nn.Module:
            return ResidualBlock(layers, channels, out, width, dropout, resample)

        def attention(channels: int, level: int) -> nn.Module | None:
            return layers.attention(channels, num_head_channels) if level in attention_levels else None

        channels = model_channels * channel_mult[0]
        self.stem = layers.lift(in_channels, channels)
        self.encoder, skips = nn.ModuleList(), [channels]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                out = model_channels * mult
                self.encoder.append(Stage(residual(channels, out), attention(out, level)))
                channels = out
                skips.append(channels)
            if level < len(channel_mult) - 1:
                self.encoder.append(Stage(residual(channels, channels, "down")))
                skips.append(channels)

        last = len(channel_mult) - 1
        self.middle_in = residual(channels, channels)
        self.middle_attention = layers.attention(channels, num_head_channels)
        self.middle_out = residual(channels, channels)

        self.decoder = nn.ModuleList()
        for level in range(last, -1, -1):
            for i in range(num_res_blocks + 1):
                out = model_channels * channel_mult[level]
                up = residual(out, out, "up") if level and i == num_res_blocks else None
                self.decoder.append(Stage(residual(channels + skips.pop(), out), attention(out, level), up))
                channels = out
        self.checkpointed = False  # recompute the blocks' activations in the backward pass
        self.norm = layers.norm(channels)
        self.head = zero(layers.project(channels, out_channels))

    @property
    def blocks(self) -> list[nn.Module]:
        """What the network is made of, in the order of use, but for its first and last layers."""
        return [*self.encoder, self.middle_in, self.middle_attention, self.middle_out, *self.decoder]

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """x: state; condition: source, joined by concatenation; label: int64 `[B]` with class conditioning."""
        embedding = self.embed(time_features(t, self.model_channels).to(next(self.parameters()).dtype))
        if self.embed_label is not None:
            assert label is not None, "a class-conditional network needs labels"
            embedding = embedding + self.embed_label(label)
        h = self.stem(x if condition is None else torch.cat([x, condition], 1))
        skips = [h]
        for stage in self.encoder:
            h = self._run(stage, h, embedding)
            skips.append(h)
        h = self._run(self.middle_in, h, embedding)
        h = self._run(self.middle_out, self._run(self.middle_attention, h), embedding)
        for stage in self.decoder:
            h = self._run(stage, torch.cat([h, skips.pop()], 1), embedding)
        return self.head(F.silu(self.norm(h)))

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        if self.checkpointed and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)
