"""The networks behind the metrics, by name (`NETWORKS`), and the features that a metric can ask for (`LAYERS`)."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluations import dinov2, raw
from evaluations.weights import find_weights, read_weights

DINOV2 = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
SPATIAL = 7  # channels of the spatial features


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


Loader = Callable[[str | Path | None, torch.device, bool], Network]  # from --weights; whether it may download them


def inception(weights: str | Path | None, device: torch.device, download: bool = True) -> Network:
    """torch-fidelity's InceptionV3, the network of FID, with its resizing.

    pool: 2048; logits: 1008 without bias, those of the inception score; spatial: the first 7 channels of the first
    branch of Mixed_6d (TensorFlow's mixed_6/conv), 17 x 17 x 7 = 2023, those of sFID in ADM's evaluator, in its order.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    found = find_weights(URL_INCEPTION_V3, weights, download)
    read_weights(found.path)  # torch-fidelity unpickles the file: let nothing but tensors reach it
    names = {"pool": "2048", "logits": "logits_unbiased"}
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", list(names.values()), feature_extractor_weights_path=str(found.path)
        ).to(device)
    except RuntimeError as error:  # load_state_dict: keys or shapes differ
        raise ValueError(f"{found.path}: not torch-fidelity's InceptionV3; get {URL_INCEPTION_V3}") from error
    seen: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, out: seen.append(out[:, :SPATIAL]))

    def run(images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        seen.clear()
        features = dict(zip(names, network(images), strict=True))
        features["spatial"] = seen[0].permute(0, 2, 3, 1).flatten(1)
        return {layer: features[layer] for layer in layers}

    resizing = "bilinear to 299 x 299 as in TensorFlow 1, by torch-fidelity"
    return Network("inception", run, device, found.sha256, resizing, found.note)


def dino(weights: str | Path | None, device: torch.device, download: bool = True) -> Network:
    """DINOv2's ViT-L/14 with torch-fidelity's resizing: the class token."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    found = find_weights(DINOV2, weights, download)
    state = {key: value.float().to(device) for key, value in read_weights(found.path).items()}
    mean, std = (
        torch.tensor([255 * value for value in values], device=device)[:, None, None]
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )

    def run(images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        x = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(224, 224), align_corners=False)
        return {"dinov2": dinov2.class_token(state, (x - mean) / std)}

    try:
        with torch.inference_mode():
            run(torch.zeros(1, 3, 14, 14, dtype=torch.uint8, device=device), ())
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{found.path}: not DINOv2's vision transformer; get {DINOV2}") from error
    resizing = "bilinear to 224 x 224 as in TensorFlow 1, by torch-fidelity"
    return Network("dinov2", run, device, found.sha256, resizing, found.note)


def random_filters(weights: str | Path | None, device: torch.device, download: bool = True) -> Network:
    """`evaluations/raw.py`: needs no weights."""
    kernels = raw.filters()
    there = [kernel.to(device) for kernel in kernels]

    def run(images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        return {"raw": raw.features(there, images.float() / 127.5 - 1)}

    return Network("raw", run, device, raw.digest(kernels), "none, native resolution")


def lpips(net: str, name: str) -> Loader:
    """LPIPS v0.1: linear layers from the package `lpips`, the backbone from torchvision's ImageNet weights."""

    def load(weights: str | Path | None, device: torch.device, download: bool = True) -> Network:
        from torchvision import models

        url = getattr(models, f"{name}_Weights").IMAGENET1K_V1.url
        found = find_weights(url, weights, download)
        state = read_weights(found.path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips calls torchvision by deprecated names
            from lpips import LPIPS

            network = LPIPS(net=net, pnet_rand=True, verbose=False)
        try:  # key "slice2.3.weight" holds torchvision's "features.3.weight"
            network.net.load_state_dict(
                {key: state["features." + key.split(".", 1)[1]] for key in network.net.state_dict()}
            )
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{found.path}: not torchvision's {name}; get {url}") from error
        return Network(f"LPIPS v0.1, {name}", network.eval().to(device), device, found.sha256, note=found.note)

    return load


NETWORKS: dict[str, Loader] = {
    "inception": inception,
    "dinov2": dino,
    "raw": random_filters,
    "alexnet": lpips("alex", "AlexNet"),
    "vgg16": lpips("vgg", "VGG16"),
}
