"""Entry points: the only place that knows the library, the data and the evaluation."""

import os
import sys
from types import TracebackType


def _quietly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    print("stopped", file=sys.stderr, flush=True)
    os._exit(130)


sys.excepthook = _quietly  # Ctrl-C while an entry point is still importing

import ddbm  # noqa: E402, F401  ends with a line where the environment is not the project's
