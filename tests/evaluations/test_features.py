"""The Fréchet distance has its closed form; FID is torch-fidelity's; weights are found and checked."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluations.evaluator import evaluate
from evaluations.features import alexnet_lpips, frechet_distance, inception
from evaluations.images import Statistics, load_reference
from evaluations.weights import find_weights, read_weights

ALEXNET = "alexnet-owt-7be5be79.pth"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
URL = "https://example.org/folder/net-01234567.pth"


class Rows(torch.utils.data.Dataset):
    """Images [N, 3, H, W] one by one, as torch-fidelity reads them."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def test_frechet_distance_of_commuting_gaussians() -> None:
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(30, 30)))[0]
    mu1, mu2 = random.normal(size=(2, 30))
    v1, v2 = random.uniform(0.1, 9, size=(2, 30))
    v1[:10], v2[5:15] = 0, 0  # singular
    sigma1, sigma2 = basis * v1 @ basis.T, basis * v2 @ basis.T
    expected = np.sum((mu1 - mu2) ** 2) + np.sum((np.sqrt(v1) - np.sqrt(v2)) ** 2)
    assert frechet_distance(mu1, sigma1, mu2, sigma2) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(mu1, sigma1, mu1, sigma1) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(mu1, 0 * sigma1, mu2, sigma2) == pytest.approx(
        np.sum((mu1 - mu2) ** 2) + v2.sum(), rel=1e-10
    )
    with pytest.raises(ValueError, match="with one D"):
        frechet_distance(mu1, sigma1, mu2[:3], sigma2[:3, :3])


def test_frechet_distance_of_rank_one() -> None:
    """Σ = u uᵀ, v vᵀ do not commute: tr (Σ1 Σ2)^½ = |u·v|."""
    u, v = np.random.default_rng(1).normal(size=(2, 50))
    expected = u @ u + v @ v - 2 * abs(u @ v)
    zero = np.zeros(50)
    assert frechet_distance(zero, np.outer(u, u), zero, np.outer(v, v)) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_equals_torch_fidelity() -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    features = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 200, 40)))
    one, two = (fid_features_to_statistics(part) for part in (features[0], features[1].cumsum(1)))
    ours = frechet_distance(one["mu"], one["sigma"], two["mu"], two["sigma"])
    expected = fid_statistics_to_metric(one, two, verbose=False)
    assert ours == pytest.approx(expected["frechet_inception_distance"], rel=1e-10)


def test_fid_equals_torch_fidelity(pairs: tuple[np.ndarray, np.ndarray], weights: Path, tmp_path: Path) -> None:
    import torch_fidelity

    result = evaluate(*pairs, ["fid"], weights=weights, batch_size=3)
    ours = result["metrics"]["fid"]["mean"]
    assert "4 samples" in result["notes"][0] and "upwards" in result["notes"][0]

    reference, sample = (torch.from_numpy(images).permute(0, 3, 1, 2) for images in pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch_fidelity.calculate_metrics(
            input1=Rows(reference),
            input2=Rows(sample),
            feature_extractor_weights_path=str(weights / INCEPTION),
            **{"fid": True, "cuda": False, "cache": False, "save_cpu_ram": True, "verbose": False},
        )["frechet_inception_distance"]
    # Roots of 2,044 eigenvalues that are zero but for rounding: theirs is only this good for four images.
    assert ours == pytest.approx(theirs, rel=1e-5)

    network = inception(weights)
    features = [network(images)[0].double().numpy() for images in (reference, sample)]
    means = [part.mean(0) for part in features]
    one, two = ((part - mean) / np.sqrt(3) for part, mean in zip(features, means, strict=True))
    cross = np.linalg.svd(one @ two.T, compute_uv=False).sum()  # exact for few images, 4 x 4
    exact = np.sum((means[0] - means[1]) ** 2) + np.sum(one**2) + np.sum(two**2) - 2 * cross
    assert ours == pytest.approx(exact, rel=1e-6)

    np.savez(tmp_path / "statistics.npz", mu=means[0], sigma=one.T @ one)
    statistics = load_reference(tmp_path / "statistics.npz")
    assert isinstance(statistics, Statistics)
    again = evaluate(statistics, pairs[1], ["fid"], weights=weights)
    assert again["metrics"]["fid"]["mean"] == pytest.approx(ours, rel=1e-6)


def test_order_of_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [tmp_path / "given", tmp_path / "env", tmp_path / "torch" / "hub" / "checkpoints"]
    for place in places:
        place.mkdir(parents=True)
        (place / "net-01234567.pth").touch()
    monkeypatch.setenv("DDBM_WEIGHTS", str(places[1]))
    assert find_weights(URL, places[0] / "net-01234567.pth").parent == places[0]
    for place in places:
        assert find_weights(URL, places[0]).parent == place
        (place / "net-01234567.pth").unlink()
    with pytest.raises(FileNotFoundError, match=rf"net-01234567\.pth not found.*no network.*get {URL}.*put it"):
        find_weights(URL, places[0])
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_weights(URL, tmp_path / "nothing")


def test_refuses_foreign_weights(tmp_path: Path, weights: Path) -> None:
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"hello")
    with pytest.raises(ValueError, match="not a file of weights"):
        read_weights(bad)
    torch.save(Path("code"), bad)  # any class is refused unread
    with pytest.raises(ValueError, match="not a file of weights"):
        inception(bad)
    torch.save([1], bad)
    with pytest.raises(ValueError, match="expected a dict of tensors"):
        read_weights(bad)
    with pytest.raises(ValueError, match="not torchvision's AlexNet"):
        alexnet_lpips(weights / INCEPTION)
    with pytest.raises(ValueError, match="not torch-fidelity's InceptionV3"):
        inception(weights / ALEXNET)
