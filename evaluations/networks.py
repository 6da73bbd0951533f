"""The networks behind the metrics (`NETWORKS`), their features (`LAYERS`), and where their weights come from."""

import hashlib
import http.client
import os
import re
import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluations import dinov2, raw

INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"
VARIABLE = "DDBM_WEIGHTS"
TIMEOUT = 20.0  # seconds without an answer
HASH = re.compile(r"-([0-9a-f]{8,})(?=\.)")  # the beginning of the SHA-256 in the name of a file
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


def find_weights(url: str, weights: str | Path | None = None, download: bool = True) -> tuple[Path, str, str]:
    """The file that `url` names, its SHA-256, in hex, and what is to be said of it; the first that exists of

    `weights` (the file itself, or a folder that holds it), the folder $DDBM_WEIGHTS, torch hub's cache; else it is
    downloaded to that cache. A name such as net-01234567.pth carries the beginning of the SHA-256, and other content
    is refused; net.pth, or a file named itself, is taken for weights of one's own, which the note says. Raises
    FileNotFoundError if `weights` does not exist or the download fails.
    """
    name = url.rpartition("/")[2]
    if weights is not None and not Path(weights).exists():
        raise FileNotFoundError(f"--weights {weights}: no such file or folder; expected a folder with {name}")
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    places = [Path(place) for place in (weights, os.environ.get(VARIABLE), cache) if place]
    paths = [path for place in places for path in (place, place / name, place / HASH.sub("", name)) if path.is_file()]
    if not paths and not download:
        raise FileNotFoundError(f"weights {name} are not on this machine: get {url}, and set {VARIABLE} to its folder")
    path, known = (paths or [cache / name])[0], HASH.findall(name)
    if not paths:
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(TIMEOUT)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), "".join(known) or None, progress=sys.stderr.isatty())
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            reason = " ".join(str(error).split())
            raise FileNotFoundError(
                f"weights {name} not found here and the download failed ({reason}); "
                f"get {url} and put it into {cache}, or name its folder with --weights or ${VARIABLE}"
            ) from error
        finally:
            socket.setdefaulttimeout(before)
    found, claimed = sha256(path), HASH.findall(path.name)
    if claimed and not found.startswith(claimed[-1]):
        raise ValueError(
            f"{path}: its SHA-256 begins with {found[:8]}, its name says {claimed[-1]}: damaged, or other weights; "
            f"download it again, or take the -{claimed[-1]} out of the name of weights of your own"
        )
    if not known or found.startswith(known[-1]):
        return path, found, ""
    note = f"{path.name} holds other weights than the published ones ({found[:8]}, not {known[-1]}): not comparable"
    return path, found, note


def read_weights(path: Path) -> State:
    """State dict in `path`, read without running any code it may carry. ValueError if it is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError
    except Exception as error:  # torch.load raises nearly anything on a foreign file
        reason = f"{type(error).__name__}; expected a dict of tensors"
        raise ValueError(f"{path}: not a file of weights ({reason}); delete it and download it again") from error
    return state


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    return hashlib.sha256(np.memmap(path, mode="r").data).hexdigest()


Loader = Callable[..., Network]  # (weights: of --weights, device, download=True: whether it may do so)


def random_filters(weights: str | Path | None, device: torch.device, download: bool = True) -> Network:
    """`evaluations/raw.py`: needs no weights."""
    kernels = raw.filters()
    there = [kernel.to(device) for kernel in kernels]

    def run(images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        return {"raw": raw.features(there, images.float() / 127.5 - 1)}

    digest = hashlib.sha256(b"".join(kernel.numpy().tobytes() for kernel in kernels)).hexdigest()
    return Network("raw", run, device, digest, "none, native resolution")


def published(name: str, url: str, build: Callable[..., Any], resizing: str = "none") -> Loader:
    """A network from its published weights: `build` makes it of their file, and of the state dict in it."""

    def load(weights: str | Path | None, device: torch.device, download: bool = True) -> Network:
        path, digest, note = find_weights(url, weights, download)
        state = read_weights(path)  # whoever unpickles the file itself: let nothing but tensors reach it
        try:
            run = build(path, state, device)
        except (KeyError, ValueError, RuntimeError) as error:  # other names or shapes
            raise ValueError(f"{path}: not the weights of {name}; get {url}") from error
        return Network(name, run, device, digest, resizing, note)

    return load


def inception(path: Path, state: State, device: torch.device) -> Callable[..., Any]:
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


def dino(path: Path, state: State, device: torch.device) -> Callable[..., Any]:
    """DINOv2's ViT-L/14 with torch-fidelity's resizing: the class token."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    state = {key: value.float().to(device) for key, value in state.items()}
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))

    def run(images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        x = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(224, 224), align_corners=False)
        return {"dinov2": dinov2.class_token(state, (x - mean) / std)}

    with torch.inference_mode():
        run(torch.zeros(1, 3, 14, 14, dtype=torch.uint8, device=device), ())
    return run


def lpips(net: str, path: Path, state: State, device: torch.device) -> Callable[..., Any]:
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
    "alexnet": published("LPIPS v0.1, AlexNet", ALEXNET, partial(lpips, "alex")),
    "vgg16": published("LPIPS v0.1, VGG16", VGG16, partial(lpips, "vgg")),
}
