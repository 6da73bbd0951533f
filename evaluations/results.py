"""The JSON of results: what was computed of the same images before is kept."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddbm.files import npz
from evaluations.images import Images
from evaluations.metrics import METRICS

SAME = ("reference_digest", "sample_digest")  # keys of the JSON that say what was scored


def digest(path: Path, images: Images | None) -> str:
    """SHA-256, in hex, of a file, or of the images of a folder."""
    if images is not None and path.is_dir():
        return images.digest
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            found.update(block)
    return found.hexdigest()


def merged(out: Path, report: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The report together with the older one in a file, if that is of the same images; and what is to be said of it.

    A metric that both have is that of `report`. Metrics of symmetry of two groups do not go together.
    """
    if not out.exists():
        return report, ""
    old = _read(out)
    if old is None:
        return report, f"{out} held other things than results; it is replaced"
    if any(old.get(key) != report[key] for key in SAME):
        return report, f"{out} held results of another reference or sample; it is replaced"
    groups = {group for group in (old["group"], report["group"]) if group != "none"}
    if len(groups) > 1:
        return report, f"{out} held results of another group, {old['group']}; it is replaced"
    kept = [name for name in old["metrics"] if name not in report["metrics"]]
    if not kept:
        return report, ""
    every = old["metrics"] | report["metrics"]
    unavailable = old["unavailable"] | report["unavailable"]
    together = {
        "group": groups.pop() if groups else "none",
        "metrics": {name: every[name] for name in METRICS if name in every},
        "notes": list(dict.fromkeys([*old["notes"], *report["notes"]])),
        "unavailable": {name: reason for name, reason in unavailable.items() if name not in every},
    }
    return report | together, f"{out} keeps {', '.join(kept)}, computed of the same images before"


def write(out: Path, report: dict[str, Any]) -> None:
    """Whole or not at all; an OSError names the file."""
    with npz.whole(out) as aside:
        aside.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def by_reason(unavailable: Mapping[str, str]) -> dict[str, str]:
    """The metrics that cannot be computed, as a list in words, by the reason."""
    reasons = dict.fromkeys(unavailable.values())
    return {reason: ", ".join(n for n, other in unavailable.items() if other == reason) for reason in reasons}


def temporary(out: Path) -> Path:
    return out.with_name(f".{out.name}.{os.getpid()}")


def _read(path: Path) -> dict[str, Any] | None:
    """The results in a file, None for anything else."""
    kinds = {"metrics": dict, "unavailable": dict, "notes": list, "group": str}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and all(isinstance(found.get(key), kind) for key, kind in kinds.items())
    return found if whole else None
