"""torchrun for the launchers: `python -m scripts.torchrun [torchrun's flags] -m scripts.train ...`.

Adds two things: its exit code is the ranks' own, so that 75 (saved, start again) arrives, and SIGUSR1 is passed on.
SIGTERM and Ctrl-C are passed on by torchrun itself, which gives the ranks 30 seconds before it kills them.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args
from torch.distributed.run import run as start

from ddbm.loop import REQUEUE


def children(pid: int) -> list[int]:
    """The processes that a process started (Linux)."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def pass_on(number: int, frame: FrameType | None) -> None:
    for child in children(os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(child, number)


def main() -> int:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _ranks(sys.argv))))
    signal.signal(signal.SIGUSR1, pass_on)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DDBM_EXIT_CODE"] = str(Path(folder) / "code")  # scripts/common.py writes it
        try:
            start(parse_args(sys.argv[1:]))
        except SignalException:
            return _left(folder, REQUEUE)  # nothing left behind: the signal came before training began
        except ChildFailedError as error:
            code = error.get_first_failure()[1].exitcode
            return _left(folder, 128 - code if code < 0 else code)
        except (ValueError, OSError, RuntimeError) as error:  # torchrun's own: a port in use, nodes that do not come
            print(f"error: torchrun could not start: {str(error).splitlines()[0]}", file=sys.stderr)
            return 2
    return 0


def _ranks(argv: list[str]) -> int:
    for word, value in itertools.pairwise(argv):
        if word in ("--nproc_per_node", "--nproc-per-node") and value.isdecimal():
            return max(1, int(value))
    return 1


def _left(folder: str, otherwise: int) -> int:
    """The exit code that a rank left behind."""
    try:
        return int((Path(folder) / "code").read_text())
    except (OSError, ValueError):
        return otherwise


if __name__ == "__main__":
    sys.exit(main())
