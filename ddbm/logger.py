"""The log of a run: one JSON object a line, in `log.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line that a kill cut short is dropped."""
    records = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class Logger:
    """Appends records to a file; starting again at a step forgets what was logged after it."""

    def __init__(self, path: Path, step: int) -> None:
        kept = [record for record in read(path) if record["step"] <= step]
        aside = path.with_suffix(".tmp")
        aside.write_text("".join(json.dumps(record) + "\n" for record in kept))
        aside.replace(path)
        self.path = path

    def write(self, **record: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
