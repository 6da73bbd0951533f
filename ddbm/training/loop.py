"""The loop of training: steps, log, checkpoints, validation, looks at samples; it can be stopped anywhere."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..config import EvalConfig
from ..files import checkpoint
from ..files.storage import write_whole
from ..ranks import distributed
from ..settings import to_dict, values
from ..symmetry.pairs import Batch
from . import logger
from .logger import Logger
from .stopping import Stop, Stopped
from .trainer import Trainer

REQUEUE = 75  # exit code: saved, start it again (EX_TEMPFAIL)


class Evaluation(Protocol):
    """Scores of samples and a picture of them (scripts/evaluation.py), on every rank; `between` is called a batch."""

    def __call__(self, model: Any, between: Callable[[], object]) -> tuple[dict[str, float], np.ndarray]: ...

    def better(self, new: float, old: float | None) -> bool: ...


@dataclass
class Run:
    """A training run in `run_dir`: what happens beside the steps."""

    trainer: Trainer
    validation: Callable[[], Iterable[Batch]]
    run_dir: Path
    evaluation: Evaluation | None
    writer: checkpoint.Writer
    stop: Stop

    def __post_init__(self) -> None:
        s, self.saved = self.trainer.settings, self.trainer.step
        self.losses, self.begun = list[Tensor](), time.perf_counter()  # of the steps since the last line of the log
        self.log = None
        if distributed.is_main():
            config = to_dict(self.trainer.config)
            self.log = Logger(self.run_dir, self.saved, tensorboard=s.tensorboard, wandb=s.wandb, config=config)

    def recent(self) -> dict[str, float]:
        """Mean loss over all ranks and speed since the last line, steps left out so far; every rank must ask for it."""
        trainer, settings = self.trainer, self.trainer.settings
        losses = torch.stack(self.losses)
        finite = losses[losses.isfinite()]
        total, count = np.sum(distributed.gather([finite.sum().item(), len(finite)]), 0).tolist()
        skipped, scale = (trainer.optimizer.state[name].item() for name in ("skipped", "scale"))
        gpu = trainer.device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(trainer.device) if gpu else 2**10 * getrusage(RUSAGE_SELF).ru_maxrss
        record = {
            "loss": total / count if count else math.nan,
            "lr": trainer.optimizer.adam.param_groups[0]["lr"],
            "images_per_s": len(self.losses) * settings.batch_size / (time.perf_counter() - self.begun),
            **({"skipped_steps": skipped} if skipped else {}),
            **({"loss_scale": scale} if settings.precision == "fp16" else {}),
            "memory_gib": memory / 2**30,
        }
        self.losses, self.begun = [], time.perf_counter()
        return record

    def write(self, record: dict[str, float]) -> None:
        if self.log:
            self.log.write(self.trainer.step, **record)

    def save(self) -> None:
        """A checkpoint of this step, unless it has one."""
        if self.saved != self.trainer.step:
            self.trainer.save(self.run_dir, self.writer)
            self.saved = self.trainer.step

    def skipping(self) -> bool:
        """Whether the last step was left out. Raises ValueError when too many in a row were; the same on every rank."""
        step, in_a_row = self.trainer.step, int(self.trainer.optimizer.state["skipped_in_a_row"])
        if in_a_row >= self.trainer.settings.max_skipped:
            self.settle()
            raise ValueError(
                f"the last {in_a_row} steps before step {step} had no finite loss and gradient: lower --lr or raise "
                "--lr_warmup_steps; the last checkpoint is untouched"
            )
        return in_a_row > 0

    def settle(self) -> None:
        """Returns on every rank when all is on the disk: a launcher soon kills what still writes after others ended."""
        self.writer.wait()
        distributed.barrier()

    def close(self) -> None:
        """The last checkpoint and the whole log, on the disk when any rank returns."""
        self.save()
        self.writer.wait()
        if self.log:
            self.log.close()
            self.writer.submit()
        self.settle()

    def look_back(self, validate: bool, look: bool) -> None:
        """The validation loss of this step, and samples of it; the best checkpoint so far is kept."""
        metric, val_loss = looks_of(self.trainer).best_metric, math.nan
        if validate or (look and metric == "val_loss"):
            val_loss = self.trainer.validation_loss(self.stop.watched(self.validation()))
            self.write({"val_loss": val_loss})
        if look:
            scores = self.evaluate()
            if self.log:
                self.keep_if_best(val_loss if metric == "val_loss" else scores[f"eval_{metric}"])
        if (validate or look) and self.log:
            self.writer.submit()

    def evaluate(self) -> dict[str, float]:
        """Samples of the averaged network: their scores, and a picture of them."""
        assert self.evaluation is not None
        trainer, model, own = self.trainer, self.trainer.model, self.trainer.model.network
        model.network = trainer.averaged_network()
        try:
            scores, picture = self.evaluation(model, self.stop.check)
        finally:
            model.network = own
        self.write(scores)
        if self.log:
            self.log.picture(trainer.step, "samples", picture)
            path = self.run_dir / "eval" / f"step_{trainer.step:08d}.png"
            path.parent.mkdir(exist_ok=True)
            write_whole(path, lambda file: Image.fromarray(picture).save(file, "PNG"))
        return scores

    def keep_if_best(self, value: float) -> None:
        assert self.evaluation is not None
        s, settings = self.trainer.settings, looks_of(self.trainer)
        path = checkpoint.path_of(self.run_dir, self.trainer.step)
        self.writer.wait()  # best.json names only what is there
        best, how = checkpoint.best(self.run_dir), values(settings, deciding=True)
        alike = best.get("metric") == settings.best_metric and best.get("settings") == how
        if self.evaluation.better(value, best.get("value") if alike else None):
            content = {"checkpoint": path.name, "metric": settings.best_metric, "value": value, "settings": how}
            write_whole(self.run_dir / "best.json", json.dumps(content).encode())
            checkpoint.prune(self.run_dir, s.keep_checkpoints, s.keep_every, path)  # the one that was the best


def looks_of(trainer: Trainer) -> EvalConfig:
    """The settings of looks; of a run without any there are none."""
    return getattr(trainer.config, "eval", EvalConfig())


def snapshot_due(trainer: Trainer) -> bool:
    """Whether the averages of this step are to be kept: of `ema_snapshots` evenly over the run, and of its end."""
    step, s = trainer.step, trainer.settings
    every = max(1, round(s.total_steps / s.ema_snapshots / s.ema_interval)) * s.ema_interval
    return bool(s.ema_sigma_rel) and (step % every == 0 or step == s.total_steps - s.total_steps % s.ema_interval)


def due(trainer: Trainer, looks: int) -> tuple[bool, bool]:
    """Whether the step just done is to be validated, and its samples looked at (every `looks` steps; 0: never)."""
    step, s = trainer.step, trainer.settings
    done = step == s.total_steps
    return done or step % s.val_interval == 0, looks > 0 and (done or step % looks == 0)


def owed(trainer: Trainer, run_dir: Path) -> tuple[bool, bool]:
    """The same of a step that a run is continued from, if a kill came between its checkpoint and them."""
    if not checkpoint.path_of(run_dir, trainer.step).is_dir():  # a beginning, or another run's checkpoint
        return False, False
    here = [record for record in logger.read(run_dir / "log.jsonl") if record["step"] == trainer.step]
    validate, look = due(trainer, looks_of(trainer).eval_interval)
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
    begun: float | None = None,
    sent: Callable[[], object] = lambda: None,
) -> bool:
    """Trains to `total_steps`, with a checkpoint at the end; returns whether that end was reached, else it was stopped.

    batches: endless, this rank's share, from the trainer's step on; begun: `time.monotonic()` from which the time limit
    counts; sent: called after whatever rank 0 has written, to send it further. Raises ValueError when gradients stay
    infinite; the last checkpoint then stays. An image that cannot be read ends it too, after a checkpoint.
    """
    s, looks = trainer.settings, looks_of(trainer).eval_interval if evaluation else 0
    begun = time.monotonic() if begun is None else begun
    seen = sys.stderr.isatty()  # else it is a file, where every update would stay
    bar = tqdm(
        total=s.total_steps, initial=trainer.step, unit="step", desc="training", dynamic_ncols=True,
        disable=not distributed.is_main(), mininterval=0.1 if seen else 30,
    )  # fmt: skip
    with Stop(begun + 60 * s.time_limit if s.time_limit else math.inf) as stop, checkpoint.Writer(sent) as writer, bar:
        behind = distributed.from_main(lambda: owed(trainer, run_dir))
        run = Run(trainer, validation, run_dir, evaluation, writer, stop)
        postponed, stopped = False, False
        try:
            run.look_back(*behind)
            while trainer.step < s.total_steps:
                batch, problem = None, ""
                try:
                    batch = next(batches)
                except ValueError as unreadable:
                    problem = str(unreadable)
                worst = distributed.largest(2 * bool(problem) + bool(stop))
                if worst >= 2:  # an image that cannot be read, on some rank: what was learnt before it is kept
                    problem = next(filter(None, distributed.gather(problem)))
                    if not run.skipping():
                        run.save()
                    run.settle()
                    raise ValueError(problem)
                if worst == 1 and not run.skipping():  # else the next steps show whether there is something to save
                    raise Stopped
                assert batch is not None
                run.losses.append(trainer.train_step(batch))
                stop.begun = True
                bar.update()
                if snapshot_due(trainer):
                    trainer.snapshot(run_dir, writer)
                step, (validate, look) = trainer.step, due(trainer, looks)
                save = postponed or validate or look or step % s.save_interval == 0
                log = save or step % s.log_interval == 0
                if log or step % s.max_skipped == 0:
                    postponed = run.skipping() and save and step < s.total_steps
                if log:
                    record = run.recent()
                    bar.set_postfix_str(", ".join(f"{k} {v:.4g}" for k, v in record.items()), refresh=seen)
                    run.write(record)
                if save and not postponed:  # before validation, which may meet an image that cannot be read
                    run.save()
                    if validate or look:
                        run.look_back(validate, look)
                        run.begun = time.perf_counter()
        except Stopped:
            stopped = True
        run.close()
    return not stopped
