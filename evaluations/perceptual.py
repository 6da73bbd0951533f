"""The networks of LPIPS: linear layers from the package `lpips`, backbones from torchvision's ImageNet weights."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from evaluations.weights import Weights, find_weights, read_weights


@dataclass(frozen=True)
class Perceptual:
    """LPIPS v0.1: float32 pairs [B, 3, H, W] in [-1, 1] -> [B, 1, 1, 1]; weights: of its backbone."""

    network: nn.Module
    weights: Weights
    text: str


def alexnet(weights: str | Path | None, device: torch.device) -> Perceptual:
    from torchvision.models import AlexNet_Weights

    return _load("alex", "AlexNet", AlexNet_Weights.IMAGENET1K_V1.url, weights, device)


def vgg16(weights: str | Path | None, device: torch.device) -> Perceptual:
    from torchvision.models import VGG16_Weights

    return _load("vgg", "VGG16", VGG16_Weights.IMAGENET1K_V1.url, weights, device)


def _load(net: str, name: str, url: str, weights: str | Path | None, device: torch.device) -> Perceptual:
    found = find_weights(url, weights)
    state = read_weights(found.path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision by deprecated names
        import lpips

        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    try:  # key "slice2.3.weight" holds torchvision's "features.3.weight"
        network.net.load_state_dict(
            {key: state["features." + key.split(".", 1)[1]] for key in network.net.state_dict()}
        )
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{found.path}: not torchvision's {name}; get {url}") from error
    return Perceptual(network.eval().to(device), found, f"LPIPS v0.1, {name}")
