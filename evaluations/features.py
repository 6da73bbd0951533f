"""Deep features: Inception statistics and the Fréchet distance (FID), the LPIPS network."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from evaluations.weights import find_weights, read_weights

FEATURES = 2048


def inception(weights: str | Path | None = None, device: str | torch.device = "cpu") -> nn.Module:
    """torch-fidelity's InceptionV3: uint8 [B, 3, H, W] -> ([B, 2048],), resized inside as in TensorFlow 1."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    path = find_weights(URL_INCEPTION_V3, weights)
    read_weights(path)  # torch-fidelity unpickles the file: let nothing but tensors reach it
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", [str(FEATURES)], feature_extractor_weights_path=str(path)
        )
    except RuntimeError as error:  # load_state_dict: keys or shapes differ
        raise ValueError(f"{path}: not torch-fidelity's InceptionV3; get {URL_INCEPTION_V3}") from error
    return network.to(device)


def alexnet_lpips(weights: str | Path | None = None, device: str | torch.device = "cpu") -> nn.Module:
    """LPIPS v0.1 on AlexNet: float32 pairs [B, 3, H, W] in [-1, 1] -> [B, 1, 1, 1].

    The linear layers come with the package `lpips`, the backbone is torchvision's ImageNet AlexNet.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision by deprecated names
        import lpips
        from torchvision.models import AlexNet_Weights

        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    url = AlexNet_Weights.IMAGENET1K_V1.url
    path = find_weights(url, weights)
    state = read_weights(path)
    try:  # key "slice2.3.weight" holds torchvision's "features.3.weight"
        network.net.load_state_dict(
            {key: state["features." + key.split(".", 1)[1]] for key in network.net.state_dict()}
        )
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: not torchvision's AlexNet; get {url}") from error
    return network.eval().to(device)


def to_rgb(x: torch.Tensor) -> torch.Tensor:
    """[B, 1 or 3, H, W] -> [B, 3, H, W]; grey is repeated, as both networks want three channels."""
    return x.expand(-1, 3, -1, -1)


@torch.inference_mode()
def feature_statistics(images: np.ndarray, network: nn.Module, batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Mean [2048] and covariance [2048, 2048] (float64) of features of N >= 2 images, uint8 [N, H, W, 1 or 3]."""
    device = next(network.parameters()).device
    features = []
    for start in range(0, len(images), batch_size):
        x = torch.from_numpy(images[start : start + batch_size]).permute(0, 3, 1, 2).to(device)
        features.append(network(to_rgb(x))[0].cpu().numpy())
    stacked = np.concatenate(features).astype(np.float64)
    return stacked.mean(axis=0), np.cov(stacked, rowvar=False)


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """‖μ1 − μ2‖² + tr Σ1 + tr Σ2 − 2 tr (Σ1 Σ2)^½  >= 0 (Dowson & Landau 1982; Heusel et al. 2017, Eq. 6).

    μ [D], Σ [D, D], also singular. With Σ = F Fᵀ, tr (Σ1 Σ2)^½ is the sum of the singular values of F1ᵀ F2: real, and
    free of the noise that the square roots of rounded zero eigenvalues add up to.
    """
    if not (mu1.shape == mu2.shape and sigma1.shape == sigma2.shape == 2 * mu1.shape):
        raise ValueError(
            f"mu {mu1.shape}, sigma {sigma1.shape} against mu {mu2.shape}, sigma {sigma2.shape}; "
            "expected [D] and [D, D] with one D; compute both with the same network"
        )
    cross = np.linalg.svd(_factor(sigma1).T @ _factor(sigma2), compute_uv=False).sum()
    distance = np.sum((mu1 - mu2) ** 2) + np.trace(sigma1) + np.trace(sigma2) - 2 * cross
    return max(float(distance), 0.0)


def _factor(sigma: np.ndarray) -> np.ndarray:
    """F [D, rank] with F Fᵀ = sigma, a covariance [D, D]."""
    values, vectors = np.linalg.eigh(sigma)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])
