"""Files that a run was told to pass over: counted, said once each, and listed in the run's folder."""

import fcntl
import sys
from pathlib import Path

LIST = "unreadable.txt"


class Skipped:
    """Problems with files, each once; from `write_into` on they stand in a file too, which all ranks and later starts
    go on with."""

    def __init__(self) -> None:
        self.problems: dict[str, None] = {}
        self.path: Path | None = None

    def tell(self, problem: str) -> None:
        if problem in self.problems:
            return
        self.problems[problem] = None
        count = len(self.problems) if self.path is None else self._append(problem)
        if count:
            print(f"warning: passed over ({count} so far): {problem}", file=sys.stderr)

    def write_into(self, folder: Path) -> None:
        """Lists all there are, and those to come, in a folder; those that it knows are not said again."""
        self.path = folder / LIST
        for problem in self.problems:
            self._append(problem)
        if self.path.exists():
            self.problems |= dict.fromkeys(self.path.read_text(encoding="utf-8").splitlines())

    def _append(self, problem: str) -> int:
        """How many there are with this one, which another rank may have listed: then 0."""
        assert self.path is not None
        with self.path.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            known = file.read().splitlines()
            if problem in known:
                return 0
            file.write(f"{problem}\n")
            return len(known) + 1
