"""The networks behind the metrics, by name (`NETWORKS`), and the features that a metric can ask for (`LAYERS`)."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import AlexNet_Weights, VGG16_Weights
from torchvision.transforms.functional import normalize

from evaluations import dinov2, raw
from evaluations.weights import find_weights, read_weights

INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
DINOV2 = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
MEAN, STD = ([255 * value for value in values] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
SPATIAL = 7  # channels of the spatial features

State = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """A kind of features: the network it comes from, what is said of it beside a number, how many they are."""

    network: str
    text: str
    size: int


LAYERS = {
    "pool": Layer("inception", "InceptionV3, 2048 pooled", 2048),
    "spatial": Layer("inception", "InceptionV3, 2023 spatial", 2023),
    "logits": Layer("inception", "InceptionV3, 1008 logits", 1008),
    "dinov2": Layer("dinov2", "DINOv2 ViT-L/14, 1024", 1024),
    "raw": Layer("raw", f"raw, {raw.FEATURES} of random filters", raw.FEATURES),
}


@dataclass(frozen=True)
class Network:
    """A network with its weights.

    run: of one that gives features, maps uint8 [B, 3, H, W] on its device and the layers asked for to these, each
    float32 [B, D]; of LPIPS float32 pairs [B, 3, H, W] in [-1, 1] to [B, 1, 1, 1].
    weights: their SHA-256; resizing: what it does to the images first; note: what is to be said beside its numbers.
    """

    name: str
    run: Callable[..., Any]
    device: torch.device
    weights: str
    resizing: str = "none"
    note: str = ""


Loader = Callable[..., Network]  # (weights: of --weights, device, download=True: whether it may do so)
Run = Callable[..., Any]


def random_filters(weights: str | Path | None, device: torch.device, download: bool = True) -> Network:
    """`evaluations/raw.py`: needs no weights."""
    kernels = raw.filters()
    there = [kernel.to(device) for kernel in kernels]

    def run(images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        return {"raw": raw.features(there, images.float() / 127.5 - 1)}

    return Network("raw", run, device, raw.digest(kernels), "none, native resolution")


def published(name: str, url: str, build: Callable[..., Run], resizing: str = "none") -> Loader:
    """A network from its published weights: `build` makes it of their file, and of the state dict in it."""

    def load(weights: str | Path | None, device: torch.device, download: bool = True) -> Network:
        found = find_weights(url, weights, download)
        state = read_weights(found.path)  # whoever unpickles the file itself: let nothing but tensors reach it
        try:
            run = build(found.path, state, device)
        except (KeyError, ValueError, RuntimeError) as error:  # other names or shapes
            raise ValueError(f"{found.path}: not the weights of {name}; get {url}") from error
        return Network(name, run, device, found.sha256, resizing, found.note)

    return load


def inception(path: Path, state: State, device: torch.device) -> Run:
    """torch-fidelity's InceptionV3, the network of FID, with its resizing.

    pool: 2048; logits: 1008 without bias, those of the inception score; spatial: the first 7 channels of the first
    branch of Mixed_6d (TensorFlow's mixed_6/conv), 17 x 17 x 7 = 2023, those of sFID in ADM's evaluator, in its order.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    names = {"pool": "2048", "logits": "logits_unbiased"}
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", list(names.values()), feature_extractor_weights_path=str(path)
    ).to(device)
    seen: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, out: seen.append(out[:, :SPATIAL]))

    def run(images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        seen.clear()
        features = dict(zip(names, network(images), strict=True))
        features["spatial"] = seen[0].permute(0, 2, 3, 1).flatten(1)
        return {layer: features[layer] for layer in layers}

    return run


def dino(path: Path, state: State, device: torch.device) -> Run:
    """DINOv2's ViT-L/14 with torch-fidelity's resizing: the class token."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    state = {key: value.float().to(device) for key, value in state.items()}

    def run(images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        x = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(224, 224), align_corners=False)
        return {"dinov2": dinov2.class_token(state, normalize(x, MEAN, STD))}

    with torch.inference_mode():
        run(torch.zeros(1, 3, 14, 14, dtype=torch.uint8, device=device), ())
    return run


def lpips(net: str, path: Path, state: State, device: torch.device) -> Run:
    """LPIPS v0.1: linear layers from the package `lpips`, the backbone from torchvision's ImageNet weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision by deprecated names
        from lpips import LPIPS

        network = LPIPS(net=net, pnet_rand=True, verbose=False)
    names = {key: "features." + key.split(".", 1)[1] for key in network.net.state_dict()}  # slice2.3.weight: 3.weight
    network.net.load_state_dict({key: state[name] for key, name in names.items()})
    return network.eval().to(device)


RESIZED = "bilinear to {0} x {0} as in TensorFlow 1, by torch-fidelity"
NETWORKS: dict[str, Loader] = {
    "inception": published("inception", INCEPTION, inception, RESIZED.format(299)),
    "dinov2": published("dinov2", DINOV2, dino, RESIZED.format(224)),
    "raw": random_filters,
    "alexnet": published("LPIPS v0.1, AlexNet", AlexNet_Weights.IMAGENET1K_V1.url, partial(lpips, "alex")),
    "vgg16": published("LPIPS v0.1, VGG16", VGG16_Weights.IMAGENET1K_V1.url, partial(lpips, "vgg")),
}
