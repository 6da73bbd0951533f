"""The log of a run, a record a step, in every place it is wanted.

    RUN/log.jsonl       one JSON object a line; a number that is not finite is null
    RUN/tensorboard/    curves and pictures, one event file a start
    RUN/wandb_id        the id of the run at Weights & Biases, which a continued run goes on with

Starting again at a step forgets what was logged after it. Nothing that fails here ends training.
"""

import contextlib
import io
import json
import math
import os
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..files.storage import write_whole

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """The records of a log; a line that a kill cut short or that is damaged is dropped."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
    return records


class Logger:
    """Sends every record to all places; one that fails is named once on stderr and tried again with the next record."""

    def __init__(
        self, run_dir: Path, step: int, *, tensorboard: bool = True, wandb: str = "", config: Record | None = None
    ) -> None:
        """step: the one that training starts from. wandb: a project's name, or "" for none; config goes there."""
        self._places: list[Lines | TensorBoard | WandB] = [Lines(run_dir / "log.jsonl", step)]
        if tensorboard:
            self._places.append(TensorBoard(run_dir / "tensorboard", step))
        if wandb:
            self._places.append(WandB(run_dir, wandb, config or {}))
        self._failed: set[str] = set()

    def write(self, step: int, **scalars: float) -> None:
        """One record; its names may differ from those of others."""
        values = {name: value if isinstance(value, int) else float(value) for name, value in scalars.items()}
        self._all(lambda place: place.write(step, values))

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """uint8 `[H, W, 3]`, to TensorBoard and Weights & Biases."""
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3, (image.dtype, image.shape)
        self._all(lambda place: place.picture(step, name, image))

    def close(self) -> None:
        """Marks the run as ended well. Files need no closing: whatever was written is there."""
        self._all(lambda place: place.close())

    def _all(self, call: Callable[[Any], None]) -> None:
        for place in self._places:
            try:
                call(place)
            except Exception as error:  # of Weights & Biases many kinds
                name = type(place).__name__
                if name not in self._failed:
                    text = f"warning: {name}: {_first_line(error)}; training goes on, its log has a gap"
                    tqdm.write(text, file=sys.stderr)
                self._failed.add(name)


class Lines:
    """`log.jsonl`, which knows no pictures."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        write_whole(path, b"".join(_line(record) for record in read(path) if record["step"] <= step))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        _append(self.path, _line({"step": step, **scalars}))

    def picture(self, step: int, name: str, image: np.ndarray) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files, written at once and whole.

    torch's SummaryWriter does so in a thread, which ends for good when the disk is full, and a kill loses two minutes.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from tensorboard.compat.proto.event_pb2 import Event, SessionLog
                from tensorboard.compat.proto.summary_pb2 import Summary
                from tensorboard.summary.writer.record_writer import RecordWriter
                from torch.utils.tensorboard.summary import image
        except Exception as error:  # not there, or with a protobuf that it does not know: TypeError and others
            raise ValueError(
                f"TensorBoard cannot be imported ({_first_line(error)}): pip install tensorboard, "
                "or give --tensorboard false"
            ) from None
        self._Event, self._Summary, self._RecordWriter, self._image = Event, Summary, RecordWriter, image
        folder.mkdir(exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time_ns()}"  # read in the order of their names
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))  # hides what followed

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [self._Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._add(self._Event(step=step, summary=self._Summary(value=values)))

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        shown = self._image(name, image, dataformats="HWC")
        self._add(self._Event(step=step, summary=shown))

    def close(self) -> None: ...

    def _add(self, event: Any) -> None:
        buffer = io.BytesIO()
        event.wall_time = time.time()
        self._RecordWriter(buffer).write(event.SerializeToString())
        _append(self.path, buffer.getvalue())


class WandB:
    """A run at Weights & Biases; steps that it already has from before a kill are left as they are there."""

    def __init__(self, run_dir: Path, project: str, config: dict[str, Any]) -> None:
        file = run_dir / "wandb_id"
        try:
            from wandb import Image, init

            if not file.is_file():
                write_whole(file, secrets.token_hex(8).encode())
            named = dict(project=project, id=file.read_text(), name=run_dir.resolve().name)
            self._run = init(**named, dir=str(run_dir), config=config, resume="allow")
        except Exception as error:  # not there, beside packages it does not know, no account, no network: many kinds
            raise ValueError(
                f"Weights & Biases did not start ({_first_line(error)}): pip install 'ddbm[wandb]', `wandb login`, "
                "WANDB_MODE=offline, or leave --wandb out"
            ) from None
        self._Image = Image

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        self._run.log(dict(scalars), step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self._run.log({name: self._Image(image)}, step=step)

    def close(self) -> None:
        self._run.finish()


def _line(record: Record) -> bytes:
    """Strict JSON knows no NaN."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return (json.dumps(finite, allow_nan=False) + "\n").encode()


def _append(path: Path, data: bytes) -> None:
    """Appends all of it or, on a full disk, nothing."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
