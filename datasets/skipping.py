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
        """Said at once, or, of what is found before there is a folder, by `write_into`."""
        if problem not in self.problems:
            self.problems[problem] = None
            if self.path is not None:
                self._append(self.path, problem)

    def write_into(self, folder: Path) -> None:
        """Lists all there are, and those to come, in a folder; those that it knows are not said again."""
        self.path = folder / LIST
        for problem in self.problems:
            self._append(self.path, problem)

    def _append(self, path: Path, problem: str) -> None:
        """Says and lists a problem that no other rank, and no earlier start, has."""
        with path.open("a+", encoding="utf-8", newline="\n") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            known = file.read().split("\n")[:-1]
            if problem not in known:
                file.write(f"{problem}\n")
                print(f"warning: passed over ({len(known) + 1} so far): {problem}", file=sys.stderr)
