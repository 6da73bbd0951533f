"""The loop of training: steps, log, checkpoints, validation, looks at samples; it can be stopped anywhere."""

from __future__ import annotations

import json
import math
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from . import checkpoint, distributed, logger
from .logger import Logger
from .model import BridgeModel
from .settings import to_dict
from .storage import Stage, write_whole
from .trainer import Batch, Trainer

REQUEUE = 75  # exit code: saved, start it again (EX_TEMPFAIL)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Evaluation(Protocol):
    """Scores of samples and a picture of them (scripts/evaluation.py), on every rank."""

    def __call__(
        self, model: BridgeModel, rank: int, ranks: int, gather: Callable[[np.ndarray], list[np.ndarray]]
    ) -> tuple[dict[str, float], np.ndarray]: ...


Better = Callable[[str, float, float | None], bool]  # metric, new value, old value


class Stop:
    """Asks the loop to save and end, on Ctrl-C, SIGTERM or SIGUSR1; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Stop:
        self._old = {s: signal.signal(s, self._note) for s in SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class Recent:
    """The steps since the last line of the log."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.begun = trainer, time.perf_counter()
        self.losses: list[Tensor] = []

    def record(self) -> dict[str, float]:
        """Their mean loss over all ranks, speed, and the steps left out so far; every rank must ask for it.

        Raises ValueError when too many steps in a row had no finite gradient.
        """
        trainer, settings = self.trainer, self.trainer.settings
        losses = torch.stack(self.losses)
        finite = losses.isfinite()
        state = trainer.optimizer.state
        sums = torch.stack([losses.nan_to_num(0, 0, 0).mul(finite).sum(), finite.sum()])
        total, count = distributed.mean(sums).tolist()
        skipped, in_a_row, scale = torch.stack([state["skipped"], state["skipped_in_a_row"], state["scale"]]).tolist()
        if in_a_row >= settings.max_skipped:
            raise ValueError(
                f"the last {in_a_row:.0f} steps before step {trainer.step} had no finite gradient: lower --lr or raise "
                "--lr_warmup_steps; the last checkpoint is untouched"
            )
        record = {
            "loss": total / count if count else math.nan,
            "lr": trainer.optimizer.adam.param_groups[0]["lr"],
            "images_per_s": len(self.losses) * settings.batch_size / (time.perf_counter() - self.begun),
        }
        if skipped:
            record["skipped_steps"] = skipped
        if settings.precision == "fp16":
            record["loss_scale"] = scale
        record["memory_gib"] = (
            torch.cuda.max_memory_allocated(trainer.device)
            if trainer.device.type == "cuda"
            else 2**10 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ) / 2**30
        self.losses, self.begun = [], time.perf_counter()
        return record


class Run:
    """A training run in `run_dir`: what happens beside the steps."""

    def __init__(
        self,
        trainer: Trainer,
        validation: Callable[[], Iterable[Batch]],
        run_dir: Path,
        evaluation: Evaluation | None,
        better: Better | None,
        writer: checkpoint.Writer,
    ) -> None:
        self.trainer, self.validation, self.run_dir, self.writer = trainer, validation, run_dir, writer
        self.evaluation, self.better, self.saved = evaluation, better, trainer.step
        s = trainer.settings
        self.log = None
        if distributed.is_main():
            self.stage = Stage(run_dir, ["log.jsonl", "wandb_id"])
            self.log = Logger(
                self.stage.path, trainer.step, tensorboard=s.tensorboard, wandb=s.wandb, config=to_dict(trainer.config)
            )

    def write(self, record: dict[str, float]) -> None:
        if self.log:
            self.log.write(self.trainer.step, **record)

    def save(self) -> None:
        """A checkpoint of this step, unless it has one, and before it the log up to it."""
        if self.saved != self.trainer.step:
            self.writer.submit(self.send_log)
            self.trainer.save(self.run_dir, self.writer)
            self.saved = self.trainer.step

    def send_log(self) -> None:
        if self.log:
            self.stage.send("log.*", "wandb_id", "tensorboard/*")

    def look_back(self, validate: bool, look: bool) -> None:
        """The validation loss of this step, and samples of it."""
        val_loss = self.validate() if validate else None
        if look:
            self.evaluate(val_loss)
        if validate or look:
            self.writer.submit(self.send_log)

    def validate(self) -> float:
        loss = self.trainer.validation_loss(self.validation())
        self.write({"val_loss": loss})
        return loss

    def evaluate(self, val_loss: float | None) -> None:
        """Samples, scores, picture; the checkpoint of this step is kept if it is the best so far."""
        assert self.evaluation is not None and self.better is not None
        trainer, metric = self.trainer, self.trainer.config.eval.best_metric
        model, own = trainer.model, trainer.model.network
        model.network = trainer.averaged_network()  # type: ignore[assignment]
        try:
            scores, picture = self.evaluation(model, distributed.rank(), distributed.size(), distributed.gather)
        finally:
            model.network = own
        if metric == "val_loss" and val_loss is None:
            val_loss = self.validate()
        if self.log:
            self.log.write(trainer.step, **scores)
            self.log.picture(trainer.step, "samples", picture)
            name = f"step_{trainer.step:08d}"
            (self.run_dir / "eval").mkdir(exist_ok=True)
            write_whole(self.run_dir / "eval" / f"{name}.png", lambda file: Image.fromarray(picture).save(file, "PNG"))
            value = val_loss if metric == "val_loss" else scores[f"eval_{metric}"]
            assert value is not None
            self.writer.wait()  # best.json names only what is there
            best = checkpoint.best(self.run_dir)
            if self.better(metric, value, best["value"] if best.get("metric") == metric else None):
                content = {"checkpoint": name, "metric": metric, "value": value}
                write_whole(self.run_dir / "best.json", json.dumps(content).encode())
                s, newest = trainer.settings, self.run_dir / "checkpoints" / name
                checkpoint.prune(self.run_dir, s.keep_checkpoints, s.keep_every, newest)  # the one that was the best


def due(trainer: Trainer, looks: int) -> tuple[bool, bool]:
    """Whether the step just done is to be validated, and its samples looked at (every `looks` steps; 0: never)."""
    step, s = trainer.step, trainer.settings
    done = step == s.total_steps
    return done or step % s.val_interval == 0, looks > 0 and (done or step % looks == 0)


def owed(trainer: Trainer, run_dir: Path) -> tuple[bool, bool]:
    """The same of a step that a run is continued from, if a kill came between its checkpoint and them."""
    if not (run_dir / "checkpoints" / f"step_{trainer.step:08d}").is_dir():  # a beginning, or another run's checkpoint
        return False, False
    here = [record for record in logger.read(run_dir / "log.jsonl") if record["step"] == trainer.step]
    validate, look = due(trainer, trainer.config.eval.eval_interval)
    return (
        validate and not any("val_loss" in record for record in here),
        look and not any(name.startswith("eval_") for record in here for name in record),
    )


def train(
    trainer: Trainer,
    batches: Iterator[Batch],
    validation: Callable[[], Iterable[Batch]],
    run_dir: Path,
    *,
    evaluation: Evaluation | None = None,
    better: Better | None = None,
    begun: float | None = None,
) -> bool:
    """Trains to `total_steps`, with a checkpoint at the end; returns whether that end was reached, else it was stopped.

    batches: endless, this rank's share, from the trainer's step on; begun: `time.monotonic()` from which the time limit
    counts. Raises ValueError when gradients stay infinite; the last checkpoint then stays. An image that cannot be read
    ends it too, after a checkpoint.
    """
    s, looks = trainer.settings, trainer.config.eval.eval_interval if evaluation else 0
    begun = time.monotonic() if begun is None else begun
    limit = begun + 60 * s.time_limit if s.time_limit else math.inf
    bar = tqdm(
        total=s.total_steps, initial=trainer.step, unit="step", desc="training", dynamic_ncols=True,
        disable=not distributed.is_main(),
    )  # fmt: skip
    with Stop() as stop, checkpoint.Writer() as writer, bar:
        behind = distributed.from_main(lambda: owed(trainer, run_dir))
        run = Run(trainer, validation, run_dir, evaluation, better, writer)
        run.look_back(*behind)
        recent, stopped = Recent(trainer), False
        while trainer.step < s.total_steps:
            batch, error = None, None
            try:
                batch = next(batches)
            except ValueError as unreadable:
                error = unreadable
            worst = distributed.largest(2 * bool(error) + (stop.asked or time.monotonic() > limit))
            if worst >= 2:  # an image that cannot be read, on some rank: what was learnt before it is kept
                run.save()
                raise error or ValueError("another rank could not read an image")
            stopped = worst == 1
            if stopped:
                break
            assert batch is not None
            recent.losses.append(trainer.train_step(batch))
            bar.update()
            if s.ema_sigma_rel and trainer.step % s.snapshot_interval == 0:
                trainer.snapshot(run_dir, writer)
            validate, look = due(trainer, looks)
            save = validate or look or trainer.step % s.save_interval == 0
            if save or trainer.step % s.log_interval == 0:
                record = recent.record()
                bar.set_postfix_str(", ".join(f"{k} {v:.4g}" for k, v in record.items()))
                run.write(record)
            if save:  # before validation, which may meet an image that cannot be read
                run.save()
            if validate or look:
                run.look_back(validate, look)
                recent.begun = time.perf_counter()
        run.save()
        writer.wait()
        if run.log:
            run.log.close()
            run.send_log()
    return not stopped
