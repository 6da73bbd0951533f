"""Entry points: the only place that knows the library, the data and the evaluation."""

import importlib.util
import os
import sys
from types import TracebackType

if importlib.util.find_spec("torch") is None:
    sys.exit(f"error: {sys.executable} lacks the packages of this project: activate its environment, see README.md")


def _quietly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    print("stopped", file=sys.stderr, flush=True)
    os._exit(130)


sys.excepthook = _quietly  # Ctrl-C while an entry point is still importing
