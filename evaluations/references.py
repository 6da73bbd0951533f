"""What samples are compared with: images, or statistics and features that somebody computed from them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddbm.files import npz
from evaluations.extractors import LAYERS, Extractor
from evaluations.features import Described
from evaluations.gaussians import Gaussian, gaussian_of
from evaluations.images import Images, existing, load_images
from evaluations.symmetry import IDENTITY

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
    """Images, and what is known of them: Gaussians and features by layer, and where these come from.

    provenance: as `scripts/make_reference.py` writes it; empty for files of others.
    """

    images: Images | None = None
    gaussians: Mapping[str, Gaussian] = field(default_factory=dict)
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)
    path: Path | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def count(self, layer: str) -> int | None:
        """How many images there are, if anybody says so; layer: for the metrics of these features, "" for pairs."""
        if layer in self.rows:
            return len(self.rows[layer])
        if layer in self.gaussians:
            return self.gaussians[layer].n
        return len(self.images) if self.images else None

    def check(self, layer: str, rows: bool, turned: bool) -> None:
        """Raise ValueError unless there is what is needed: images for pairs (layer "") and turned copies."""
        if self.images is not None or (layer in self.rows and not turned):
            return
        if layer in self.gaussians and not (rows or turned):
            return
        known = [key for name in self.gaussians for key in STATISTICS[name]]
        expected = "images"
        if layer and not turned:
            other = [key for key, of in ROWS.items() if of == layer] if rows else [" and ".join(STATISTICS[layer])]
            expected += f" or {other[0]}" if other else ""
        raise ValueError(f"{self.path} holds {npz.listed(known)}; expected {expected}; give the images as REF")

    def believed(self, layer: str, extractor: Extractor) -> tuple[bool, str]:
        """Whether what the file says of a layer is used, and what is to be said of it.

        Statistics of one's own are used where the weights are the same; those of others are the protocol that goes
        with the file, and no one can check them. Raises ValueError where they are all there is and do not fit.
        """
        if layer not in self.rows and layer not in self.gaussians:
            return False, ""
        made = self.provenance.get("extractors", {}).get(extractor.name)
        if made is None:
            return True, f"statistics of {self.path}, whose extractor and resizing nobody says"
        if made["weights"] == extractor.weights:
            return True, ""
        different = f"{self.path} has statistics by other weights ({made['weights'][:8]}, not {extractor.weights[:8]})"
        if self.images is None:
            raise ValueError(f"{different}; make the reference again")
        return False, f"{different}: computed again from its images"

    def described(self, layer: str) -> Described:
        """What the file says of a layer; of features also the Gaussian."""
        if layer in self.rows:
            return Described({IDENTITY: self._of_rows[layer]}, self.rows[layer])
        return Described({IDENTITY: self.gaussians[layer]})

    @cached_property
    def _of_rows(self) -> dict[str, Gaussian]:
        return {layer: gaussian_of(rows) for layer, rows in self.rows.items()}


def load_reference(path: str | Path) -> Reference:
    """Images (`arr_0` or a folder), statistics (`mu`, `sigma`, and the like), features (`pool_3`, `feats`), or all."""
    path = existing(path)
    if path.is_dir():
        return Reference(load_images(path), path=path)
    found = npz.keys(path)
    gaussians = {
        layer: load_gaussian(path, mu, sigma) for layer, (mu, sigma) in STATISTICS.items() if {mu, sigma} <= set(found)
    }
    rows = {layer: _load_rows(path, key) for key, layer in ROWS.items() if key in found}
    if "arr_0" not in found and not gaussians and not rows:
        raise ValueError(
            f"{path}: found keys {npz.listed(found)}; expected arr_0 (images), mu and sigma (statistics) "
            "or pool_3 (features)"
        )
    for layer, size in [(name, len(g.mu)) for name, g in gaussians.items()] + [
        (name, features.shape[1]) for name, features in rows.items()
    ]:
        if size != LAYERS[layer].size:
            raise ValueError(f"{path} has {size} features; expected {LAYERS[layer].size} ({LAYERS[layer].text})")
    provenance = _provenance(path) if PROVENANCE in found else {}
    if provenance:
        gaussians = {name: Gaussian(g.mu, g.sigma, provenance.get("n")) for name, g in gaussians.items()}
    images = load_images(path) if "arr_0" in found else None
    return Reference(images, gaussians, rows, path, provenance)


def load_gaussian(path: Path, mu_key: str, sigma_key: str) -> Gaussian:
    """Mean [D] and covariance [D, D], in float64."""
    data = npz.read(path, mu_key, sigma_key)
    mu, sigma = data[mu_key], data[sigma_key]
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{path}: {mu_key} {mu.shape} and {sigma_key} {sigma.shape}; expected shapes [D] and [D, D]")
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise ValueError(f"{path}: {mu_key} is {mu.dtype} and {sigma_key} is {sigma.dtype}; expected floats")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{path}: {mu_key} or {sigma_key} holds NaN or infinity; compute the statistics again")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    largest = np.diag(sigma).max() or 1.0
    wrong = ""
    if np.abs(sigma - sigma.T).max() > UNEVEN * np.abs(sigma).max():
        wrong = "not symmetric"
    else:
        sigma = (sigma + sigma.T) / 2
        try:
            np.linalg.cholesky(sigma + BELOW * largest * np.eye(len(sigma)))
        except np.linalg.LinAlgError:
            wrong = "of negative eigenvalues"
    if wrong:
        raise ValueError(f"{path}: {sigma_key} is {wrong}; expected a covariance; compute the statistics again")
    return Gaussian(mu, sigma)


def _load_rows(path: Path, key: str) -> np.ndarray:
    rows = npz.read(path, key)[key]
    rows = rows.reshape(len(rows), -1) if rows.ndim == 4 and rows.shape[1:3] == (1, 1) else rows
    if rows.ndim != 2 or rows.dtype.kind != "f" or len(rows) < 2:
        raise ValueError(f"{path}: {key} is {rows.dtype} {rows.shape}; expected floats [N, D], N >= 2")
    if not np.isfinite(rows).all():
        raise ValueError(f"{path}: {key} holds NaN or infinity; compute the features again")
    return rows.astype(np.float32)


def _provenance(path: Path) -> dict[str, Any]:
    text = str(npz.read(path, PROVENANCE)[PROVENANCE])
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {PROVENANCE} is no JSON; make the reference again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {PROVENANCE} is no table; make the reference again")
    n, extractors = found.get("n"), found.get("extractors", {})
    if n is not None and (type(n) is not int or n < 1):
        raise ValueError(f"{path}: n of {PROVENANCE} is {n!r}; expected a number of images; make the reference again")
    tables = extractors.values() if isinstance(extractors, dict) else [None]
    if not all(isinstance(made, dict) and isinstance(made.get("weights"), str) for made in tables):
        raise ValueError(
            f"{path}: extractors of {PROVENANCE} are {json.dumps(extractors)[:80]}; "
            'expected {"name": {"weights": SHA-256}}; make the reference again'
        )
    return found
