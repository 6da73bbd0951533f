"""The groups that turn images of an array [N, H, W, C]; the same elements and actions as in `ddbm/symmetry/groups.py`."""

import numpy as np

from evaluations.names import hint

Element = tuple[int, int]  # (flip, quarter_turns): mirror left-right if flip, then turn counter-clockwise
IDENTITY: Element = (0, 0)

GROUPS: dict[str, tuple[Element, ...]] = {
    "none": (IDENTITY,),
    "H": (IDENTITY, (1, 0)),
    "V": (IDENTITY, (1, 2)),
    "C2": (IDENTITY, (0, 2)),
    "C4": (IDENTITY, (0, 1), (0, 2), (0, 3)),
    "D2": (IDENTITY, (0, 2), (1, 0), (1, 2)),
    "D4": (IDENTITY, (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)),
}


def turn(element: Element, images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C], each turned by the element."""
    flip, turns = element
    return np.ascontiguousarray(np.rot90(images[:, :, ::-1] if flip else images, turns, (1, 2)))


def check_group(name: str, height: int, width: int) -> None:
    """Raise ValueError unless there is such a group and it acts on height x width images."""
    if name not in GROUPS:
        raise ValueError(f"unknown group {name}; {hint(name, GROUPS)}")
    if height != width and any(turns % 2 for _, turns in GROUPS[name]):
        raise ValueError(
            f"group {name} turns images by 90 degrees and needs square ones, not {height} x {width}; "
            "use one of H, V, C2, D2"
        )
