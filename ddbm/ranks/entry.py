"""How every command begins and ends: a mistake is one line, and an exit code that says so."""

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import distributed
from .distributed import out_of_memory


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed, and take blocks of up to 32 MiB from there; with another library does nothing.

    Else every training step on a CPU gives its activations back to the system, and gets them again page by page.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
    mallopt(-3, 2**25)  # M_MMAP_THRESHOLD


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Runs an entry point: a user's mistake is one line on stderr and exit code 2 (DDBM_DEBUG=1: the traceback).

    Of several ranks the first that fails says so.
    """
    keep_freed_memory()
    alone = False
    try:
        code = main(sys.argv[1:])
        distributed.stop()
    except (ValueError, OSError, RuntimeError) as error:
        lost = distributed.lost_another(error)
        mistake = lost or isinstance(error, (ValueError, OSError)) or out_of_memory(error)
        if os.environ.get("DDBM_DEBUG") or not mistake:
            raise
        alone = isinstance(error, distributed.Unmet)
        if distributed.first_to_fail(error):
            text = " ".join(str(error).split()) + ("; make the batch smaller" if out_of_memory(error) else "")
            if lost:
                text = "lost the connection to another rank, which ended without a word: killed, or out of memory?"
                text += f" ({str(error).splitlines()[0]})" if "NCCL" in str(error) else ""
            start = "\nerror: " if lost else "error: "  # a killed rank 0 leaves its progress bar unfinished
            who = f"rank {distributed.rank()}: " if distributed.size() > 1 else ""
            print(start + who + text, file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        if distributed.is_main():
            print("stopped", file=sys.stderr)
        code = 130
    if code and (left := os.environ.get("DDBM_EXIT_CODE")):  # for scripts/torchrun.py
        Path(left).write_text(str(code))
    sys.stdout.flush()
    sys.stderr.flush()
    if (code and distributed.size() > 1) or alone or code == 130:
        os._exit(code)  # not waiting for the others, who may be gone, nor for a thread that writes a checkpoint
    sys.exit(code)
