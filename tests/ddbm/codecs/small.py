"""Small codecs for tests."""

import torch
from torch import nn

from ddbm.codecs.base import Codec
from ddbm.codecs.symmetric import Autoencoder
from ddbm.config import CodecConfig


class Cells(Codec):
    """Means over 2x2 cells, mixed to 4 channels by given numbers, and back to the 3 by others; nothing is learned."""

    factor, image_channels, latent_channels, digest = 2, 3, 4, "cells"

    def __init__(self, sigma=0.1):
        super().__init__()
        torch.manual_seed(5)
        self.there, self.back = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3, 4))
        self.sigma = sigma

    def posterior(self, x):
        cells = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
        mean = torch.einsum("oc,bchw->bohw", self.there.to(x.dtype), cells)
        return mean, torch.full_like(mean, self.sigma)

    def decoded(self, z):
        x = torch.einsum("oc,bchw->bohw", self.back.to(z.dtype), z)
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def autoencoder(layers="regular", group="D4", channels=3, **settings):
    """One with random parameters everywhere, in evaluation mode."""
    torch.manual_seed(0)
    small = dict(factor=4, latent_channels=4, model_channels=8, num_res_blocks=1, channel_mult=()) | settings
    if not small["channel_mult"]:
        small["channel_mult"] = (1, 2, 1, 1)[: small["factor"].bit_length()]
    network = Autoencoder(CodecConfig(layers=layers, group=group, **small), channels)
    for name, parameter in network.named_parameters():
        if parameter.abs().max() == 0 or "norm" in name:  # what begins as the identity
            nn.init.normal_(parameter, std=0.3)
    return network.eval()
