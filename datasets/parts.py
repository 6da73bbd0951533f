"""All splits of a folder of pairs at once."""

from pathlib import Path

from ddbm.config import DataConfig

from .formats import find
from .layouts import Found

PARTS = ("train", "val", "test")


def splits_of(root: Path, options: DataConfig, alone: list[Path] | None = None) -> dict[str, Found]:
    """The pairs of every split, once each; alone: gets files without a partner, which else raise ValueError."""
    found: dict[str, Found] = {}
    for part in PARTS:
        lonely: list[Path] | None = None if alone is None else []
        pairs = find(root, part, options, alone=lonely)
        stands_in = any(notice.startswith(f"no {part} split") for notice in pairs.notices)
        if not stands_in and pairs.pairs not in [other.pairs for other in found.values()]:
            found[part] = pairs
            if alone is not None:
                alone += [path for path in lonely or () if path not in alone]
    return found
