"""Files that a run was told to pass over: counted, said once each, and listed in the run's folder."""

import sys
from pathlib import Path

LIST = "unreadable.txt"


class Skipped:
    """Problems with files, each once; from `write_into` on they stand in a file too, which later starts go on with."""

    def __init__(self) -> None:
        self.problems: dict[str, None] = {}
        self.path: Path | None = None

    def tell(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems[problem] = None
            print(f"warning: passed over ({len(self.problems)} so far): {problem}", file=sys.stderr)
            self._append(problem)

    def write_into(self, folder: Path) -> None:
        """Lists all there are, and those to come, in a folder; those that it knows are not said again."""
        self.path = folder / LIST
        fresh = list(self.problems)
        known = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.problems = dict.fromkeys([*known, *fresh])
        for problem in fresh:
            if problem not in known:
                self._append(problem)

    def _append(self, problem: str) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{problem}\n")
