"""What samples are compared with: images, or statistics and features that somebody computed from them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddbm.files import npz
from ddbm.symmetry.groups import IDENTITY
from evaluations.distances import Gaussian, gaussian_of
from evaluations.features import Part
from evaluations.images import BY_TYPE, Images, Levels, as_images, existing, load_images, refuse_sources
from evaluations.networks import LAYERS, Network

STATISTICS = {  # the first two: of the reference batches of ADM, and of nearly everybody
    "pool": ("mu", "sigma"),
    "spatial": ("mu_s", "sigma_s"),
    "dinov2": ("mu_dinov2", "sigma_dinov2"),
    "raw": ("mu_raw", "sigma_raw"),
}
ROWS = {"pool_3": "pool", "feats": "pool"}  # of score_sde, of clean-fid: the features of every image
PROVENANCE = "provenance"
UNEVEN = 1e-3  # how far a covariance in float32 may be from symmetric, of its largest entry
BELOW = 1e-4  # and its eigenvalues below 0, of the largest variance


@dataclass(frozen=True)
class Reference:
    """Images, and what is known of them: Gaussians and features (as `describe` has them), and where these come from.

    provenance: as `scripts/make_reference.py` writes it; empty for files of others.
    """

    images: Images | None = None
    known: dict[Part, Any] = field(default_factory=dict)
    path: Path | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def check(self, layer: str, rows: bool, turned: bool) -> None:
        """Raise ValueError unless there is what is needed: images for pairs (layer "") and turned copies."""
        if self.images is None and (turned or (layer, None if rows else IDENTITY) not in self.known):
            expected = ["images"]
            if layer and not turned:
                expected += [k for k, of in ROWS.items() if of == layer] if rows else [" and ".join(STATISTICS[layer])]
            held = npz.listed(npz.keys(self.path)) if self.path else "nothing"
            raise ValueError(f"{self.path} holds {held}; expected {' or '.join(expected)} as REF")

    def believed(self, layer: str, network: Network) -> tuple[dict[Part, Any], str]:
        """What is known, if it is to be believed of this layer, and what is to be said of it.

        Statistics of one's own are used where the weights are the same; those of others are the protocol that goes
        with the file, and no one can check them. Raises ValueError where they are all there is and do not fit.
        """
        if (layer, IDENTITY) not in self.known:
            return {}, ""
        made = self.provenance.get("extractors", {}).get(network.name)
        if made is None:
            return self.known, f"statistics of {self.path}, whose extractor and resizing nobody says"
        if made["weights"] == network.weights:
            return self.known, ""
        note = f"{self.path} has statistics by other weights ({made['weights'][:8]}, not {network.weights[:8]})"
        if self.images is None:
            raise ValueError(f"{note}; make the reference again")
        return {}, f"{note}: computed again from its images"


def as_reference(given: "np.ndarray | Images | Reference") -> Reference:
    return given if isinstance(given, Reference) else Reference(as_images(given, "reference"))


def load_reference(path: str | Path, levels: Levels = BY_TYPE) -> Reference:
    """Images (`arr_0` or a folder, of these levels), statistics (`mu`, `sigma`, and the like), features (`pool_3`,
    `feats`), or all.
    """
    path = existing(path)
    if path.is_dir():
        return Reference(load_images(path, levels), path=path)
    found = npz.keys(path)
    provenance = _provenance(path) if PROVENANCE in found else {}
    known: dict[Part, Any] = {}
    for layer, pair in STATISTICS.items():
        if set(pair) <= set(found):
            known[layer, IDENTITY] = _load_gaussian(path, layer, provenance.get("n"))
    for key, layer in ROWS.items():
        if key in found:
            known[layer, None] = _load_rows(path, key, layer)
            known[layer, IDENTITY] = gaussian_of(known[layer, None])
    if not known:
        refuse_sources(path, found)
    if "arr_0" not in found and not known:
        raise ValueError(
            f"{path}: found keys {npz.listed(found)}; expected arr_0 (images), mu and sigma (statistics) "
            "or pool_3 (features)"
        )
    return Reference(load_images(path) if "arr_0" in found else None, known, path, provenance)


def _load_gaussian(path: Path, layer: str, n: int | None) -> Gaussian:
    """Mean [D] and covariance [D, D], in float64."""
    mu, sigma = npz.read(path, *STATISTICS[layer]).values()
    keys, size = " and ".join(STATISTICS[layer]), LAYERS[layer].size
    right = mu.shape == (size,) and sigma.shape == (size, size) and mu.dtype.kind + sigma.dtype.kind == "ff"
    if not right or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(
            f"{path}: {keys} are {mu.dtype} {mu.shape} and {sigma.dtype} {sigma.shape}; expected floats [{size}] and "
            f"[{size}, {size}] without NaN or infinity ({LAYERS[layer].text}); compute the statistics again"
        )
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    uneven, sigma = np.abs(sigma - sigma.T).max() > UNEVEN * np.abs(sigma).max(), (sigma + sigma.T) / 2
    if uneven or np.linalg.eigvalsh(sigma)[0] < -BELOW * (np.diag(sigma).max() or 1.0):
        wrong = "not symmetric" if uneven else "of negative eigenvalues"
        raise ValueError(f"{path}: {keys} hold a covariance that is {wrong}; compute the statistics again")
    return Gaussian(mu, sigma, n)


def _load_rows(path: Path, key: str, layer: str) -> np.ndarray:
    rows, size = npz.read(path, key)[key], LAYERS[layer].size
    rows = rows.reshape(len(rows), -1) if rows.ndim == 4 and rows.shape[1:3] == (1, 1) else rows
    right = rows.ndim == 2 and rows.shape[1] == size and rows.dtype.kind == "f" and len(rows) >= 2
    if not right or not np.isfinite(rows).all():
        raise ValueError(
            f"{path}: {key} is {rows.dtype} {rows.shape}; expected floats [N, {size}], N >= 2, without NaN or infinity "
            f"({LAYERS[layer].text})"
        )
    return rows.astype(np.float32)


def _provenance(path: Path) -> dict[str, Any]:
    text = str(npz.read(path, PROVENANCE)[PROVENANCE])
    try:
        found = json.loads(text)
        whole = found.get("n", 1) > 0 and all(each["weights"][:8] for each in found.get("extractors", {}).values())
    except (AttributeError, KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"{path}: {PROVENANCE} is {text[:80]}; expected JSON with n and extractors; make it again")
    return found
