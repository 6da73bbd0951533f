"""torchrun for the launchers: `python -m scripts.torchrun [torchrun's flags] -m scripts.train ...`.

Adds three things: its exit code is the ranks' own, so that 75 (saved, start again) arrives; SIGTERM, SIGUSR1 and Ctrl-C
are passed on and the ranks save as long as they need, where torchrun would kill them after 30 seconds (after a second
Ctrl-C it does); and nodes wait --rendezvous_timeout seconds for each other, not torchrun's own quarter of an hour.
"""

import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args
from torch.distributed.run import run as start

from ddbm.config import TrainConfig
from ddbm.settings import OneLineParser


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


def main() -> int:
    args = parse_args(sys.argv[1:])
    ranks = args.nproc_per_node
    share = (os.cpu_count() or 1) // max(1, int(ranks) if ranks.isdecimal() else 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))
    signal.signal(signal.SIGUSR1, pass_on)
    api._terminate_process_handler = pass_on  # what torchrun installs when it starts the ranks
    hint = ""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DDBM_EXIT_CODE"] = str(Path(folder) / "code")  # ddbm/ranks/entry.py writes it
        try:
            if args.rdzv_backend == "static" and args.nnodes != "1:1":  # the nodes meet at node 0
                parser = OneLineParser(allow_abbrev=False, add_help=False)
                parser.add_argument("--rendezvous_timeout", type=float, default=TrainConfig.rendezvous_timeout)
                limit = parser.parse_known_args(args.training_script_args)[0].rendezvous_timeout
                args.rdzv_conf = f"timeout={limit:.0f}"
                who = f"node {args.node_rank} of {args.nnodes}"
                hint = f"; {who} waited {limit:g} s: start all of them, with one MASTER_ADDR and MASTER_PORT"
            start(args)
        except SignalException:
            return _left(folder, 130)  # the second Ctrl-C
        except ChildFailedError as error:
            code = error.get_first_failure()[1].exitcode
            return _left(folder, 128 - code if code < 0 else code)
        except (ValueError, OSError, RuntimeError) as error:  # torchrun's own: a port in use, nodes that do not come
            print(f"error: torchrun could not start: {str(error).splitlines()[0]}{hint}", file=sys.stderr)
            return 2
    return 0


def _left(folder: str, otherwise: int) -> int:
    """The exit code that a rank left behind."""
    try:
        return int((Path(folder) / "code").read_text())
    except (OSError, ValueError):
        return otherwise


if __name__ == "__main__":
    sys.exit(main())
