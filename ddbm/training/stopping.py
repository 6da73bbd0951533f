"""Being asked to stop, by a signal or by the time: every rank stops at the same place, between two batches."""

import math
import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

from ..ranks import distributed

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """On every rank: one of them is asked to stop, between two batches of a validation or a look."""


class Stop:
    """Asks the loop to save and end, on Ctrl-C, SIGTERM or SIGUSR1; a second Ctrl-C ends at once.

    limit: the time from which it asks by itself, but not before a step has `begun`: else a run whose start takes longer
    than its time limit would be started again for ever.
    """

    def __init__(self, limit: float = math.inf) -> None:
        self.asked, self.begun, self._limit = False, False, limit

    def __bool__(self) -> bool:
        return self.asked or (time.monotonic() > self._limit and self.begun)

    def check(self) -> None:
        """Raises Stopped on every rank if one of them is to stop; every rank must ask."""
        if distributed.largest(bool(self)):
            raise Stopped

    def watched(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, with a check before each on every rank, whether its own batches go on or not."""
        own = iter(batches)
        while True:
            batch = next(own, None)
            worst = distributed.largest(2 * bool(self) + (batch is not None))
            if worst >= 2:
                raise Stopped
            if worst == 0:
                return
            if batch is not None:
                yield batch

    def __enter__(self) -> "Stop":
        self._old = {s: signal.signal(s, self._note) for s in SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
