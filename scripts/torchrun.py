"""torchrun for the launchers: `python -m scripts.torchrun [torchrun's flags] -m scripts.train ...`.

Adds three things: its exit code is the ranks' own, so that 75 (saved, start again) arrives; SIGTERM, SIGUSR1 and Ctrl-C
are passed on and the ranks save as long as they need, where torchrun would kill them after 30 seconds (after a second
Ctrl-C it does); and nodes wait --rendezvous_timeout seconds for each other, not torchrun's own quarter of an hour.
"""

import itertools
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import FrameType

from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args
from torch.distributed.run import run as start

from ddbm.config import TrainConfig


def children(pid: int) -> list[int]:
    """The processes that a process started (Linux)."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def pass_on(signum: int, frame: FrameType | None) -> None:
    """A signal to the ranks; they end, and so does torchrun. The second Ctrl-C is torchrun's."""
    if signum == signal.SIGINT:
        signal.signal(signum, end_soon)
    for child in children(os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(child, signum)


end_soon = api._terminate_process_handler  # passes it on too, and kills after 30 seconds


def wait_for_nodes(argv: list[str]) -> None:
    """Ends this process if the other nodes do not come: its ranks start when all nodes have met."""
    limit = TrainConfig.rendezvous_timeout
    with suppress(ValueError):  # the ranks refuse what is no number
        limit = float(value_of(argv, "--rendezvous_timeout") or limit)
    end = time.monotonic() + limit
    while not children(os.getpid()):
        if time.monotonic() > end:
            node, nodes = value_of(argv, "--node_rank"), value_of(argv, "--nnodes")
            place = f"{value_of(argv, '--master_addr')}:{value_of(argv, '--master_port')}"
            print(
                f"error: node {node} of {nodes} waited {limit:g} s for the others at {place}: start all of them, with "
                "the MASTER_ADDR and MASTER_PORT of node 0, which every node can reach",
                file=sys.stderr,
                flush=True,
            )
            os._exit(2)
        time.sleep(0.2)


def main() -> int:
    ranks = value_of(sys.argv, "--nproc_per_node")
    share = (os.cpu_count() or 1) // max(1, int(ranks) if ranks.isdecimal() else 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))
    signal.signal(signal.SIGUSR1, pass_on)
    api._terminate_process_handler = pass_on  # what torchrun installs when it starts the ranks
    if value_of(sys.argv, "--nnodes"):
        Thread(target=wait_for_nodes, args=[sys.argv], daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DDBM_EXIT_CODE"] = str(Path(folder) / "code")  # scripts/common.py writes it
        try:
            start(parse_args(sys.argv[1:]))
        except SignalException:
            return _left(folder, 130)  # the second Ctrl-C
        except ChildFailedError as error:
            code = error.get_first_failure()[1].exitcode
            return _left(folder, 128 - code if code < 0 else code)
        except (ValueError, OSError, RuntimeError) as error:  # torchrun's own: a port in use, nodes that do not come
            print(f"error: torchrun could not start: {str(error).splitlines()[0]}", file=sys.stderr)
            return 2
    return 0


def value_of(argv: list[str], flag: str) -> str:
    """What was last given to a flag, as `--flag value` or `--flag=value`; empty without it."""
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return next((value for word, value in reversed(list(itertools.pairwise(words))) if word == flag), "")


def _left(folder: str, otherwise: int) -> int:
    """The exit code that a rank left behind."""
    try:
        return int((Path(folder) / "code").read_text())
    except (OSError, ValueError):
        return otherwise


if __name__ == "__main__":
    sys.exit(main())
