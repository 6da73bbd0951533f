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
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from . import checkpoint, distributed
from .logger import Logger
from .model import BridgeModel
from .settings import to_dict
from .storage import Stage
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
            write_picture(self.run_dir / "eval" / f"step_{trainer.step:08d}.png", picture)
            value = val_loss if metric == "val_loss" else scores[f"eval_{metric}"]
            assert value is not None
            old = best_value(self.run_dir, metric)
            if self.better(metric, value, old):
                content = {"checkpoint": f"step_{trainer.step:08d}", "metric": metric, "value": value}
                self.writer.wait()  # it names only what is there
                write_best(self.run_dir, content)
                s = trainer.settings
                checkpoint.prune(self.run_dir, s.keep_checkpoints, s.keep_every)  # the one that was the best


def best_value(run_dir: Path, metric: str) -> float | None:
    """The best value so far; None if there is none of this metric, or its checkpoint is gone."""
    try:
        content = json.loads((run_dir / "best.json").read_text())
        there = (run_dir / "checkpoints" / content["checkpoint"]).is_dir()
        return float(content["value"]) if there and content["metric"] == metric else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture).save(path)


def write_best(run_dir: Path, content: dict[str, Any]) -> None:
    aside = run_dir / ".best.json"
    aside.write_text(json.dumps(content))
    aside.replace(run_dir / "best.json")


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
        run, recent, stopped = Run(trainer, validation, run_dir, evaluation, better, writer), Recent(trainer), False
        while trainer.step < s.total_steps and not stopped:
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
            if batch is None or stopped:
                break
            recent.losses.append(trainer.train_step(batch))
            bar.update()
            done, step = trainer.step == s.total_steps, trainer.step
            if s.ema_sigma_rel and step % s.snapshot_interval == 0:
                trainer.snapshot(run_dir, writer)
            validate, look = (done or step % n == 0 if n else False for n in (s.val_interval, looks))
            save = validate or look or step % s.save_interval == 0
            if save or step % s.log_interval == 0:
                record = recent.record()
                bar.set_postfix_str(", ".join(f"{k} {v:.4g}" for k, v in record.items()))
                run.write(record)
            if save:  # before validation, which may meet an image that cannot be read
                run.save()
            val_loss = run.validate() if validate else None
            if look:
                run.evaluate(val_loss)
            if validate or look:
                writer.submit(run.send_log)
                recent.begun = time.perf_counter()
        run.save()
        writer.wait()
        if run.log:
            run.log.close()
            run.send_log()
    return not stopped
