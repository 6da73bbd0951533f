"""Features of a set of images in one pass over it, for all that is asked of one network; kept in a cache."""

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ddbm.files import npz
from ddbm.files.storage import write_whole
from ddbm.ranks import distributed
from ddbm.ranks.distributed import World
from ddbm.symmetry.groups import IDENTITY, Element, act
from evaluations.distances import Gaussian, Moments
from evaluations.images import Images
from evaluations.networks import LAYERS, Network

VERSION = 1  # of what the networks compute; another one is not found in the cache
ALONE = World()
Part = tuple[str, Element | None]  # by a layer, the Gaussian of a set under this turn; None: the features themselves


@dataclass
class Cache:
    """A folder of npz files, each whole or not there. No folder: nothing is kept."""

    folder: Path | None

    def load(self, name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray] | None:
        """The arrays under a name; None unless they are finite floats of these shapes, and are to be written anew."""
        if self.folder is None:
            return None
        try:
            kept = npz.read(self.folder / f"{name}.npz", *shapes)
        except (ValueError, OSError):
            return None
        finite = all(array.dtype.kind == "f" and np.isfinite(array).all() for array in kept.values())
        return kept if finite and {key: array.shape for key, array in kept.items()} == shapes else None

    def save(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Where the folder cannot be written to, nothing is kept, which is said once."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / f"{name}.npz", lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        except OSError as error:
            print(f"note: features are not kept: {error}; name another folder with --cache", file=sys.stderr)
            self.folder = None


def open_cache(text: str | None) -> Cache:
    """The cache of a folder; "none": none; None: $DDBM_CACHE, or .cache/ddbm at home."""
    text = text or os.environ.get("DDBM_CACHE")
    with suppress(RuntimeError):  # no home
        return Cache(None if text == "none" else Path(text or "~/.cache/ddbm").expanduser())
    return Cache(None)


def describe(
    images: Images, network: Network, parts: Collection[Part], cache: Cache, ranks: World = ALONE, batch_size: int = 32
) -> dict[Part, Any]:
    """What is asked of a set: Gaussians, and features, float32 [N, D]; on rank 0, nothing of use on the others.

    Batches are the same for any number of ranks, and memory does not grow with N beyond the features asked for.
    """
    found: dict[Part, Any] = {}

    def name(layer: str, turn: Element | None) -> str:
        what = "rows" if turn is None else "gaussian-{}{}".format(*turn)
        return f"{images.digest[:32]}-v{VERSION}-{network.name}-{network.weights[:16]}-{layer}-{what}"

    def look_up() -> list[Part]:
        """What the cache does not have."""
        for layer, turn in parts if cache.folder else ():
            n, size = len(images), LAYERS[layer].size
            shapes: dict[str, tuple[int, ...]] = {"mu": (size,), "sigma": (size, size)} if turn else {"rows": (n, size)}
            if kept := cache.load(name(layer, turn), shapes):
                found[layer, turn] = Gaussian(kept["mu"], kept["sigma"], n) if turn else kept["rows"]
        return [part for part in parts if part not in found]

    missing = look_up() if ranks.size == 1 else distributed.from_main(look_up)
    if not missing:
        return found
    asked: dict[Element, tuple[str, ...]] = {}
    for layer, turn in missing:  # rows at once: small pieces of every batch would scatter over the heap
        found[layer, turn] = Moments() if turn else np.empty((len(images), LAYERS[layer].size), np.float32)
        g = turn or IDENTITY
        asked[g] = tuple(dict.fromkeys([*asked.get(g, ()), layer]))
    batches, start = -(-len(images) // batch_size), 0
    own = (_run(network, batch, asked) for batch in images.walk(batch_size, ranks.rank, ranks.size))
    with torch.inference_mode():
        progress = tqdm(taking_turns(own, batches, ranks), network.name, batches, disable=True if ranks.rank else None)
        for features in progress:
            for layer, turn in missing if ranks.rank == 0 else ():
                values = features[layer, turn or IDENTITY]
                if turn:
                    found[layer, turn].add(values)
                else:
                    found[layer, turn][start : start + len(values)] = values
            start += batch_size
    for layer, turn in missing if ranks.rank == 0 else ():
        if turn:
            found[layer, turn] = found[layer, turn].gaussian()
        value = found[layer, turn]
        cache.save(name(layer, turn), {"mu": value.mu, "sigma": value.sigma} if turn else {"rows": value})
    return found


def taking_turns(own: Iterable[Any], count: int, ranks: World) -> Iterator[Any]:
    """Of `count` things rank r of R makes r, r + R, ...: all of them in their order, on every rank."""
    made = iter(own)
    for first in range(0, count, ranks.size):
        mine = next(made, None)
        yield from ([mine] if ranks.size == 1 else distributed.gather(mine))[: count - first]


def _run(network: Network, batch: np.ndarray, asked: Mapping[Element, tuple[str, ...]]) -> dict[Part, np.ndarray]:
    """Features of uint8 [B, H, W, 1 or 3] and its turns; grey is repeated, as all networks want three channels."""
    x = torch.from_numpy(batch).to(network.device).permute(0, 3, 1, 2)
    found: dict[Part, np.ndarray] = {}
    for g, layers in asked.items():
        turned = act(g, x).contiguous(memory_format=torch.channels_last).expand(-1, 3, -1, -1)
        for layer, values in network.run(turned, layers).items():
            found[layer, g] = values.float().cpu().numpy()
    return found
