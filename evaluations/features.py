"""Features of a set of images in one pass over it, for all that is asked of one network; kept in a cache."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from ddbm.ranks import distributed
from ddbm.ranks.distributed import World
from ddbm.symmetry.groups import GROUPS, IDENTITY, Element, act
from evaluations.cache import Cache
from evaluations.gaussians import Gaussian, Moments
from evaluations.images import Images
from evaluations.networks import LAYERS, Network

VERSION = 1  # of what the networks compute; another one is not found in the cache

T = TypeVar("T")
ALONE = World()
Part = Element | None  # asked of a set: its Gaussian when turned by the element; None: the features themselves


@dataclass
class Described:
    """A set of images by the features of one layer: as Gaussians, by the turn of the set; rows: float32 [N, D]."""

    gaussians: dict[Element, Gaussian] = field(default_factory=dict)
    rows: np.ndarray | None = None

    @property
    def gaussian(self) -> Gaussian:
        """Of the set as it is."""
        return self.gaussians[IDENTITY]

    def has(self, part: Part) -> bool:
        return self.rows is not None if part is None else part in self.gaussians


def describe(
    images: Images,
    network: Network,
    needs: Mapping[str, Collection[Part]],
    cache: Cache,
    ranks: World = ALONE,
    batch_size: int = 32,
) -> dict[str, Described]:
    """For every layer what is needed of it, on rank 0; nothing of use on the others.

    Batches are the same for any number of ranks, and memory does not grow with N beyond the rows asked for.
    """
    found = {layer: Described() for layer in needs}

    def lookup() -> dict[str, list[Part]]:
        """What the cache does not have."""
        return {
            layer: [part for part in parts if not _load(found[layer], cache, images, network, layer, part)]
            for layer, parts in needs.items()
        }

    missing = lookup() if ranks.size == 1 else distributed.from_main(lookup)
    asked: dict[Element, tuple[str, ...]] = {}
    for g in GROUPS["D4"].elements:
        layers = tuple(name for name, parts in missing.items() if g in parts or (g == IDENTITY and None in parts))
        asked |= {g: layers} if layers else {}
    if not asked:
        return found
    moments: dict[tuple[str, Element], Moments] = {}
    batches, start = -(-len(images) // batch_size), 0
    own = (_run(network, batch, asked) for batch in images.walk(batch_size, ranks.rank, ranks.size))
    with torch.inference_mode():
        progress = tqdm(taking_turns(own, batches, ranks), network.name, batches, disable=True if ranks.rank else None)
        for features in progress:
            for (layer, g), values in features.items() if ranks.rank == 0 else ():
                if g in missing[layer]:
                    moments.setdefault((layer, g), Moments(values.shape[1])).add(values)
                if g == IDENTITY and None in missing[layer]:
                    if found[layer].rows is None:  # at once: small pieces of every batch would scatter over the heap
                        found[layer].rows = np.empty((len(images), values.shape[1]), np.float32)
                    found[layer].rows[start : start + len(values)] = values  # type: ignore[index]
            start += batch_size
    for (layer, g), gathered in moments.items():
        found[layer].gaussians[g] = gathered.gaussian()
    if ranks.rank == 0 and cache.folder is not None:
        for layer, parts in missing.items():
            for part in parts:
                cache.save(_name(images, network, layer, part), _arrays(found[layer], part))
    return found


def taking_turns(own: Iterable[T], count: int, ranks: World) -> Iterator[T]:
    """Of `count` things rank r of R makes r, r + R, ...: all of them in their order, on every rank."""
    made = iter(own)
    for first in range(0, count, ranks.size):
        mine = next(made, None)
        every: list[Any] = [mine] if ranks.size == 1 else distributed.gather(mine)
        yield from every[: count - first]


def _run(
    network: Network, batch: np.ndarray, asked: Mapping[Element, tuple[str, ...]]
) -> dict[tuple[str, Element], np.ndarray]:
    """Features of uint8 [B, H, W, 1 or 3] and its turns; grey is repeated, as all networks want three channels."""
    x = torch.from_numpy(batch).to(network.device).permute(0, 3, 1, 2)
    found = {}
    for g, layers in asked.items():
        turned = act(g, x).contiguous(memory_format=torch.channels_last).expand(-1, 3, -1, -1)
        for layer, values in network.run(turned, layers).items():
            found[layer, g] = values.float().cpu().numpy()
    return found


def _name(images: Images, network: Network, layer: str, part: Part) -> str:
    what = "rows" if part is None else "gaussian-{}{}".format(*part)
    return f"{images.digest[:32]}-v{VERSION}-{network.name}-{network.weights[:16]}-{layer}-{what}"


def _arrays(found: Described, part: Part) -> dict[str, np.ndarray]:
    if part is not None:
        return {"mu": found.gaussians[part].mu, "sigma": found.gaussians[part].sigma}
    assert found.rows is not None
    return {"rows": found.rows}


def _load(found: Described, cache: Cache, images: Images, network: Network, layer: str, part: Part) -> bool:
    """Takes a part from the cache, if it is there."""
    if cache.folder is None:
        return False
    size = LAYERS[layer].size
    shapes: dict[str, tuple[int, ...]] = (
        {"rows": (len(images), size)} if part is None else {"mu": (size,), "sigma": (size, size)}
    )
    kept = cache.load(_name(images, network, layer, part), shapes)
    if kept is None:
        return False
    if part is None:
        found.rows = kept["rows"]
    else:
        found.gaussians[part] = Gaussian(kept["mu"], kept["sigma"], len(images))
    return True
