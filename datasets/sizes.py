"""At what size to train on pairs, as a first guess."""

from collections.abc import Collection, Sequence

SIZES = (256, 128, 64, 32)  # pixels a side, of the shorter one


def step(longest: float) -> int:
    """What sides must be multiples of, by the levels of the papers' networks."""
    return 32 if longest >= 256 else 16 if longest >= 128 else 8


def usable(side: int) -> int:
    """The largest number of pixels up to so many that networks can halve, and the least of all of them."""
    return max(SIZES[-1], side // step(side) * step(side))


def proposed(sizes: Collection[Sequence[int]]) -> str:
    """A size to train at that networks can halve: that of the pairs where it is not too large to begin with; of several
    sizes a square.
    """
    if len(sizes) > 1:
        return str(next((side for side in SIZES if side <= min(map(min, sizes))), SIZES[-1]))
    (size,) = sizes
    factor = max(min(1, SIZES[0] / min(size)), SIZES[-1] / min(size))
    longest = max(size) * factor
    height, width = (round(n * factor + 0.01) // step(longest) * step(longest) for n in size)
    return f"{height}" if height == width else f"{height}x{width}"
