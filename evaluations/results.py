"""The JSON of results: what was computed of the same images before is kept."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluations.metrics import METRICS

KINDS = {"metrics": dict, "unavailable": dict, "notes": list, "group": str}  # what results are known by


def merged(out: Path, report: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The report together with the older one in a file, if that is of the same images; and what is to be said of it.

    A metric that both have is that of `report`. Metrics of symmetry of two groups do not go together.
    """
    if not out.exists():
        return report, ""
    try:
        old = json.loads(out.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        old = None
    if not isinstance(old, dict) or not all(isinstance(old.get(key), kind) for key, kind in KINDS.items()):
        return report, f"{out} held other things than results; it is replaced"
    if any(old.get(key) != report[key] for key in ("reference_digest", "sample_digest")):
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


def by_reason(unavailable: Mapping[str, str]) -> dict[str, str]:
    """The metrics that cannot be computed, as a list in words, by the reason."""
    reasons = dict.fromkeys(unavailable.values())
    return {reason: ", ".join(n for n, other in unavailable.items() if other == reason) for reason in reasons}
