"""References that others published are read as what they are; those of one's own are believed by their provenance."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddbm.symmetry.groups import IDENTITY
from evaluations.distances import frechet_distance, gaussian_of
from evaluations.evaluator import evaluate
from evaluations.features import Cache, describe
from evaluations.images import as_images
from evaluations.networks import LAYERS, NETWORKS
from evaluations.references import load_reference


def value(reference, sample, name, **more):
    return evaluate(reference, sample, [name], **more)["metrics"][name]["mean"]


def raw_features(images):
    extractor = NETWORKS["raw"](None, torch.device("cpu"), True)
    return describe(as_images(images, "x"), extractor, [("raw", None)], Cache(None))["raw", None]


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.fixture
def small(monkeypatch):
    """In place of Inception a network of 24 pooled and 9 spatial features, those of raw."""
    network = NETWORKS["raw"](None, torch.device("cpu"), True)
    for name, size in (("pool", 24), ("spatial", 9)):
        monkeypatch.setitem(LAYERS, name, replace(LAYERS[name], size=size))

    def run(images, layers):
        return {layer: network.run(images, ("raw",))["raw"][:, : LAYERS[layer].size] for layer in layers}

    monkeypatch.setitem(NETWORKS, "inception", lambda *words: replace(network, name="inception", run=run))


def test_statistics(tmp_path, small):
    """Of the layers of ADM's files (mu, mu_s), in whatever float."""
    pool = dict(mu=np.zeros(24, np.float32), sigma=np.eye(24, dtype=np.float32))
    reference = load_reference(save(tmp_path / "s.npz", **pool, mu_s=np.ones(9), sigma_s=np.eye(9)))
    assert reference.images is None and set(reference.known) == {("pool", IDENTITY), ("spatial", IDENTITY)}
    found = reference.known["pool", IDENTITY]
    assert found.mu.dtype == found.sigma.dtype == np.float64 and found.n is None
    assert reference.known["spatial", IDENTITY].mu.sum() == 9
    assert (LAYERS["dinov2"].size, LAYERS["logits"].size, LAYERS["raw"].size) == (1024, 1008, 448)


def made(provenance):
    return dict(arr_0=np.zeros((2, 4, 4, 3), np.uint8), provenance=np.array(json.dumps(provenance)))


def test_statistics_in_float32(tmp_path):
    """Of fewer images than features: eigenvalues of 0 that rounding brings below it, and a rounded symmetry."""
    rows = np.random.default_rng(0).normal(size=(50, 448)).astype(np.float32)
    centred = rows - rows.mean(0)
    sigma = (centred.T @ centred / np.float32(49)) * (1 + np.triu(np.full((448, 448), 1e-6, np.float32), 1))
    assert sigma.dtype == np.float32 and np.linalg.eigvalsh(sigma)[0] < 0 and (sigma != sigma.T).any()
    found = load_reference(save(tmp_path / "s.npz", mu_raw=rows.mean(0), sigma_raw=sigma)).known["raw", IDENTITY]
    assert frechet_distance(found, gaussian_of(rows)) == pytest.approx(0, abs=1e-4)
    wide = np.diag([1e4, *[1.0] * 446, -0.5])  # rounding is of the largest variance
    assert load_reference(save(tmp_path / "w.npz", mu_raw=np.zeros(448), sigma_raw=wide)).known


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(mu=np.zeros(3), sigma=np.eye(3)), r"mu and sigma are float64 \(3,\) .*; expected floats \[2048\] and"),
        (dict(mu_raw=np.zeros(448, int), sigma_raw=np.eye(448)), r"are int64 .*; expected floats"),
        (dict(mu_raw=np.full(448, np.nan), sigma_raw=np.eye(448)), "without NaN or infinity"),
        (dict(mu_raw=np.zeros(448), sigma_raw=np.eye(448) + np.eye(448, k=1)), "covariance that is not symmetric"),
        (dict(mu_raw=np.zeros(448), sigma_raw=np.diag([1.0] * 447 + [-1e-3])), "covariance that is of negative"),
        (dict(pool_3=np.zeros((5, 3))), r"float64 \(5, 3\); expected floats \[N, 2048\]"),
        (dict(pool_3=np.full((5, 2048), np.inf)), "without NaN or infinity"),
        (dict(mu=np.zeros(2048)), "expected arr_0"),
        (made([]), r"provenance is \[\]; expected JSON"),
        (made({"extractors": ["raw"]}), "make it again"),
        (made({"extractors": {"raw": {"weights": 3}}}), "make it again"),
        (made({"n": "many"}), "make it again"),
        (dict(arr_0=np.zeros((2, 4, 4, 3), np.uint8), provenance=np.array("{")), "provenance is {; expected JSON"),
    ],
)
def test_refuses(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        load_reference(save(tmp_path / "bad.npz", **arrays))


@pytest.mark.parametrize("key", ["pool_3", "feats"])
def test_features_in_place_of_images(tmp_path, squares, small, key):
    """The numbers of the images that they come from, for all metrics that need no more; a word on their origin."""
    reference, sample = (images[:6] for images in squares)
    extractor = NETWORKS["inception"]()
    parts = [("pool", IDENTITY), ("pool", None)]
    gaussian, rows = describe(as_images(reference, "x"), extractor, parts, Cache(None), batch_size=6).values()
    features = load_reference(save(tmp_path / "f.npz", **{key: rows.astype(float).reshape(6, 1, 1, 24)}))
    names, more = ["fid", "kid", "coverage"], dict(batch_size=6, cache=Cache(tmp_path))
    by_images, by_features = (evaluate(given, sample, names, **more) for given in (reference, features))
    for name in names:
        assert by_features["metrics"][name]["mean"] == pytest.approx(by_images["metrics"][name]["mean"], rel=1e-9)
    assert any("extractor and resizing nobody says" in note for note in by_features["notes"])
    for name, expected in (("mse", "expected images"), ("sfid", "images or mu_s and sigma_s")):
        with pytest.raises(ValueError, match=f"{name}: .*{expected}"):
            evaluate(features, sample, [name], **more)
    statistics = load_reference(save(tmp_path / "s.npz", mu=gaussian.mu, sigma=gaussian.sigma))
    with pytest.raises(ValueError, match=r"kid: .* holds mu, sigma; expected images or pool_3"):
        evaluate(statistics, sample, ["kid"], **more)
    raw = load_reference(save(tmp_path / "raw.npz", mu_raw=np.zeros(448), sigma_raw=np.eye(448)))
    with pytest.raises(ValueError, match=r"kd_raw: .* holds mu_raw, sigma_raw; expected images as REF"):
        evaluate(raw, sample, ["kd_raw"], **more)


def test_statistics_beside_images_are_the_protocol(tmp_path, squares):
    """As in ADM's evaluator: the Fréchet distance by mu and sigma, what needs features by the images."""
    reference, sample = squares
    other = gaussian_of(raw_features(reference[:10]))
    path = save(tmp_path / "r.npz", arr_0=reference, mu_raw=other.mu, sigma_raw=other.sigma)
    expected = frechet_distance(other, gaussian_of(raw_features(sample)))
    assert value(load_reference(path), sample, "fd_raw") == pytest.approx(expected, rel=1e-9)
    assert evaluate(load_reference(path), sample, ["fd_raw"])["metrics"]["fd_raw"]["n_reference"] is None
    assert value(load_reference(path), sample, "kd_raw") == value(reference, sample, "kd_raw")
    both = evaluate(load_reference(path), sample, ["inv_fd_raw_mean", "fd_raw"], group="H")["metrics"]
    assert both["fd_raw"]["mean"] == pytest.approx(expected, rel=1e-9)
    augmented = value(load_reference(path), sample, "fd_raw_augmented", group="C4")
    assert augmented == pytest.approx(value(reference, sample, "fd_raw_augmented", group="C4"), rel=1e-12)


@pytest.mark.parametrize("same", [True, False])
def test_provenance(tmp_path, squares, same):
    reference, sample = squares
    own = NETWORKS["raw"](None, torch.device("cpu"), True).weights
    made = {"n": 10, "extractors": {"raw": {"weights": own if same else "f" * 64}}}
    other = gaussian_of(raw_features(reference[:10]))
    arrays = {"mu_raw": other.mu, "sigma_raw": other.sigma, "provenance": np.array(json.dumps(made))}
    found = evaluate(load_reference(save(tmp_path / "r.npz", arr_0=reference, **arrays)), sample, ["fd_raw"])
    stored = frechet_distance(other, gaussian_of(raw_features(sample)))
    expected = stored if same else value(reference, sample, "fd_raw")
    assert found["metrics"]["fd_raw"]["mean"] == pytest.approx(expected, rel=1e-9)
    assert found["metrics"]["fd_raw"]["n_reference"] == (10 if same else 40)
    assert same != any("computed again from its images" in note for note in found["notes"])
    if not same:
        with pytest.raises(ValueError, match=r"fd_raw: .*by other weights .*make the reference again"):
            evaluate(load_reference(save(tmp_path / "s.npz", **arrays)), sample, ["fd_raw"])
