"""The log of a run, a record a step, in every place it is wanted.

    RUN/log.jsonl       one JSON object a line; a number that is not finite is null
    RUN/log.csv         the same as a table: empty where a record has no such value, nan where it is not finite
    RUN/tensorboard/    curves and pictures, one event file a start
    RUN/wandb_id        the id of the run at Weights & Biases, which a continued run goes on with

Starting again at a step forgets what was logged after it. Nothing that fails here ends training.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..files.storage import write_whole

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """The records of a log; a line that a kill cut short or that is damaged is dropped."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


class Sink:
    """A place for records; pictures only where there is room for them."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        raise NotImplementedError

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        pass

    def close(self) -> None:
        pass


class Logger:
    """Sends every record to all places; one that fails is named once on stderr and tried again with the next record."""

    def __init__(
        self,
        run_dir: Path,
        step: int,
        *,
        tensorboard: bool = True,
        wandb: str = "",
        config: dict[str, Any] | None = None,
    ) -> None:
        """step: the one that training starts from. wandb: a project's name, or "" for none; config goes there."""
        self._sinks: list[Sink] = [Files(run_dir, step)]
        if tensorboard:
            self._sinks.append(TensorBoard(run_dir / "tensorboard", step))
        if wandb:
            self._sinks.append(WandB(run_dir, wandb, config or {}))
        self._failed: set[Sink] = set()

    def write(self, step: int, **scalars: float) -> None:
        """One record; its names may differ from those of others."""
        values = {name: value if isinstance(value, int) else float(value) for name, value in scalars.items()}
        self._all(lambda sink: sink.write(step, values))

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """uint8 `[H, W, 3]`, to TensorBoard and Weights & Biases."""
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3, (image.dtype, image.shape)
        self._all(lambda sink: sink.picture(step, name, image))

    def close(self) -> None:
        """Marks the run as ended well. Files need no closing: whatever was written is there."""
        self._all(lambda sink: sink.close())

    def _all(self, call: Callable[[Sink], None]) -> None:
        for sink in self._sinks:
            try:
                call(sink)
            except OSError as error:
                if sink not in self._failed:
                    tqdm.write(f"warning: {error}; training goes on, its log has a gap", file=sys.stderr)
                self._failed.add(sink)


class Files(Sink):
    """`log.jsonl`, and `log.csv` made from it: at every start, for a new name, and after a failure."""

    def __init__(self, run_dir: Path, step: int) -> None:
        self.jsonl, self.csv = run_dir / "log.jsonl", run_dir / "log.csv"
        kept = [record for record in read(self.jsonl) if record["step"] <= step]
        write_whole(self.jsonl, b"".join(map(_line, kept)))
        self.columns: list[str] = []
        self._tabulate()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        record = {"step": step, **scalars}
        columns, self.columns = self.columns, []  # stays empty if writing fails
        _append(self.jsonl, _line(record))
        if record.keys() <= set(columns):
            _append(self.csv, _rows(columns, [record]))
            self.columns = columns
        else:
            self._tabulate()

    def _tabulate(self) -> None:
        """Writes the table anew; its columns are in the order in which names appeared."""
        records = read(self.jsonl)
        columns = list(dict.fromkeys(["step", *(name for record in records for name in record)]))
        write_whole(self.csv, _rows(columns, [dict(zip(columns, columns, strict=True)), *records]))
        self.columns = columns


class TensorBoard(Sink):
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
        except Exception as error:  # not there, or with a protobuf that it does not know: TypeError and others
            raise ValueError(
                f"TensorBoard cannot be imported ({_first_line(error)}): pip install tensorboard, "
                "or give --tensorboard false"
            ) from None
        self._Event, self._Summary, self._RecordWriter = Event, Summary, RecordWriter
        folder.mkdir(exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time_ns()}"  # read in the order of their names
        start = SessionLog(status=SessionLog.START)
        self._add(Event(file_version="brain.Event:2"), Event(step=step + 1, session_log=start))  # hides step + 1 and on

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [self._Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._add(self._Event(step=step, summary=self._Summary(value=values)))

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        height, width, channels = image.shape
        encoded = self._Summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=png.getvalue()
        )
        value = self._Summary.Value(tag=name, image=encoded)
        self._add(self._Event(step=step, summary=self._Summary(value=[value])))

    def _add(self, *events: Any) -> None:
        buffer = io.BytesIO()
        for event in events:
            event.wall_time = time.time()
            self._RecordWriter(buffer).write(event.SerializeToString())
        _append(self.path, buffer.getvalue())


class WandB(Sink):
    """A run at Weights & Biases; steps that it already has from before a kill are left as they are there."""

    def __init__(self, run_dir: Path, project: str, config: dict[str, Any]) -> None:
        try:
            from wandb import Image, init
        except Exception as error:  # not there, only a folder of that name, or beside packages it does not know
            raise ValueError(
                f"Weights & Biases cannot be imported ({_first_line(error)}): pip install 'ddbm[wandb]', "
                "or leave --wandb out"
            ) from None
        file = run_dir / "wandb_id"
        if not file.is_file():
            write_whole(file, secrets.token_hex(8).encode())
        try:
            self._run = init(
                project=project,
                id=file.read_text(),
                name=run_dir.resolve().name,
                dir=str(run_dir),
                config=config,
                resume="allow",
            )
        except Exception as error:  # no account, no network, ...: all its own kinds
            raise ValueError(
                f"Weights & Biases did not start ({_first_line(error)}): `wandb login`, WANDB_MODE=offline, "
                "or leave --wandb out"
            ) from None
        self._Image = Image

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        with self._errors():
            self._run.log(dict(scalars), step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        with self._errors():
            self._run.log({name: self._Image(image)}, step=step)

    def close(self) -> None:
        with self._errors():
            self._run.finish()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise OSError(f"Weights & Biases failed ({_first_line(error)})") from error


def _line(record: Record) -> bytes:
    """Strict JSON knows no NaN."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return (json.dumps(finite, allow_nan=False) + "\n").encode()


def _rows(columns: list[str], records: Iterable[Record]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for record in records:
        values = (record.get(name, "") for name in columns)
        writer.writerow(["nan" if v is None or (isinstance(v, float) and not math.isfinite(v)) else v for v in values])
    return text.getvalue().encode()


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
