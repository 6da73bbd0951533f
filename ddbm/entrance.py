"""What has to be told to a user before PyTorch is imported, which takes a second, or cannot be."""

import importlib.util
import os
import sys
from pathlib import Path
from types import TracebackType


def _quietly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    print("stopped", file=sys.stderr, flush=True)
    os._exit(130)


if sys.argv[0] == "-m" or Path(sys.argv[0]).name == "evaluator.py":  # a command, not somebody's program
    sys.excepthook = _quietly  # Ctrl-C while it is still importing
    if importlib.util.find_spec("torch") is None:
        remedy = "source .venv/bin/activate (bash scripts/setup.sh makes .venv)"
        sys.exit(f"error: {sys.executable} lacks PyTorch: {remedy}")
    try:
        Path.cwd()
    except FileNotFoundError:  # in which PyTorch finds none of its libraries
        sys.exit("error: the folder you stand in was removed, perhaps made anew: cd to it again")
