"""Features of a set of images in one pass over it, for all that is asked of one extractor; kept in a cache."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from evaluations.cache import Cache
from evaluations.extractors import LAYERS, Extractor
from evaluations.gaussians import Gaussian, Moments
from evaluations.images import Images
from evaluations.ranks import ONE, Ranks, Rows
from evaluations.symmetry import GROUPS, IDENTITY, Element, turn

VERSION = 1  # of what the extractors compute; another one is not found in the cache


@dataclass(frozen=True)
class Need:
    """What is asked of a layer: Gaussians of the set turned by each of `elements`, and the features themselves."""

    elements: tuple[Element, ...] = ()
    rows: bool = False

    def __or__(self, other: "Need") -> "Need":
        return Need(tuple(dict.fromkeys(self.elements + other.elements)), self.rows or other.rows)


@dataclass
class Described:
    """A set of images by the features of one layer: as Gaussians, by the turn of the set; rows: float32 [N, D]."""

    gaussians: dict[Element, Gaussian] = field(default_factory=dict)
    rows: np.ndarray | None = None

    @property
    def gaussian(self) -> Gaussian:
        """Of the set as it is."""
        return self.gaussians[IDENTITY]


class _Pass:
    """What one pass gathers of one layer."""

    def __init__(self, missing: Need, rows: Rows) -> None:
        self.missing, self.rows = missing, rows
        self.moments: dict[Element, Moments] = {}

    def wants(self, element: Element) -> bool:
        return element in self.missing.elements or (self.missing.rows and element == IDENTITY)

    def add(self, element: Element, rows: np.ndarray) -> None:
        if element in self.missing.elements:
            self.moments.setdefault(element, Moments(rows.shape[1])).add(rows)
        if self.missing.rows and element == IDENTITY:
            self.rows.add(rows)


def describe(
    images: Images,
    extractor: Extractor,
    needs: Mapping[str, Need],
    cache: Cache,
    ranks: Ranks = ONE,
    batch_size: int = 32,
) -> dict[str, Described]:
    """For every layer what is needed of it, on rank 0; nothing of use on the others.

    Batches are the same for any number of ranks, and memory does not grow with N beyond the rows asked for.
    """
    found = {layer: Described() for layer in needs}
    names = {layer: f"v{VERSION}-{extractor.name}-{extractor.weights[:16]}-{layer}" for layer in needs}

    def lookup() -> dict[str, Need]:
        return {layer: _load(found[layer], need, cache, images, layer, names[layer]) for layer, need in needs.items()}

    missing = {layer: need for layer, need in ranks.from_main(lookup).items() if need.elements or need.rows}
    if not missing:
        return found
    gathered = {layer: _Pass(need, Rows(ranks, len(images), batch_size)) for layer, need in missing.items()}
    asked = {g: tuple(layer for layer, p in gathered.items() if p.wants(g)) for g in GROUPS["D4"]}
    batches = len(range(ranks.rank, -(-len(images) // batch_size), ranks.size))
    walk = images.walk(batch_size, ranks.rank, ranks.size)
    with torch.inference_mode():
        for batch in tqdm(walk, extractor.name, batches, disable=True if ranks.rank else None):
            for element, layers in asked.items():
                for layer, values in _run(extractor, turn(element, batch), layers).items() if layers else ():
                    gathered[layer].add(element, values)
    for layer, p in gathered.items():
        _gather(found[layer], p, ranks, len(images), batch_size)
        if ranks.rank == 0:
            _save(found[layer], p.missing, cache, images, names[layer])
    return found


def _run(extractor: Extractor, batch: np.ndarray, layers: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Features of uint8 [B, H, W, 1 or 3]; grey is repeated, as all extractors want three channels."""
    x = torch.from_numpy(batch).to(extractor.device).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
    return {layer: values.float().cpu().numpy() for layer, values in extractor.run(x, layers).items()}


def _gather(described: Described, p: _Pass, ranks: Ranks, count: int, batch_size: int) -> None:
    """Brings what the ranks found to rank 0."""
    if p.missing.rows:
        described.rows = p.rows.gathered()
    for element in p.missing.elements:
        moments = p.moments.get(element)
        if moments is None:  # a rank without a batch
            continue
        moments.settle()
        state = np.concatenate([[float(moments.n)], moments.mean, moments.scatter.ravel()])
        if ranks.rank:
            ranks.send(state)
            continue
        size = len(moments.mean)
        for other in range(1, ranks.active(-(-count // batch_size))):
            ranks.receive(state, other)
            moments.merge(int(state[0]), state[1 : 1 + size], state[1 + size :].reshape(size, size))
        described.gaussians[element] = moments.gaussian()


def _key(images: Images, name: str, what: str) -> str:
    return f"{images.digest[:32]}-{name}-{what}"


def _turned(element: Element) -> str:
    return "gaussian-{}{}".format(*element)


def _kept(cache: Cache, key: str, **shapes: tuple[int, ...]) -> dict[str, np.ndarray] | None:
    """The arrays in the cache, if they are finite floats of these shapes; None if not, as for a damaged file."""
    kept = cache.load(key)
    if kept is None or {name: array.shape for name, array in kept.items()} != shapes:
        return None
    whole = all(array.dtype.kind == "f" and np.isfinite(array).all() for array in kept.values())
    return kept if whole else None


def _load(found: Described, need: Need, cache: Cache, images: Images, layer: str, name: str) -> Need:
    """Takes from the cache what is there; what is not is returned."""
    if cache.folder is None:
        return need
    size = LAYERS[layer].size
    left = []
    for element in need.elements:
        kept = _kept(cache, _key(images, name, _turned(element)), mu=(size,), sigma=(size, size))
        if kept is None:
            left.append(element)
        else:
            found.gaussians[element] = Gaussian(kept["mu"], kept["sigma"], len(images))
    kept = _kept(cache, _key(images, name, "rows"), rows=(len(images), size)) if need.rows else None
    found.rows = None if kept is None else kept["rows"]
    return Need(tuple(left), need.rows and kept is None)


def _save(found: Described, computed: Need, cache: Cache, images: Images, name: str) -> None:
    if cache.folder is None:
        return
    for element in computed.elements:
        gaussian = found.gaussians[element]
        cache.save(_key(images, name, _turned(element)), mu=gaussian.mu, sigma=gaussian.sigma)
    if computed.rows and found.rows is not None:
        cache.save(_key(images, name, "rows"), rows=found.rows)
