"""The loop of training: steps, log, checkpoints, validation, looks at samples; it can be stopped anywhere."""

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..files import checkpoint
from ..files.storage import write_whole
from ..model import BridgeModel
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

    def __call__(
        self,
        model: BridgeModel,
        rank: int,
        ranks: int,
        gather: Callable[[list[Tensor]], list[list[Tensor]]],
        between: Callable[[], None],
    ) -> tuple[dict[str, float], np.ndarray]: ...


Better = Callable[[str, float, float | None], bool]  # metric, new value, old value


class Recent:
    """The steps since the last line of the log."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.begun = trainer, time.perf_counter()
        self.losses: list[Tensor] = []

    def record(self) -> dict[str, float]:
        """Their mean loss over all ranks, speed, and the steps left out so far; every rank must ask for it."""
        trainer, settings = self.trainer, self.trainer.settings
        losses = torch.stack(self.losses)
        finite = losses.isfinite()
        state = trainer.optimizer.state
        sums = torch.stack([losses.nan_to_num(0, 0, 0).mul(finite).sum(), finite.sum()])
        total, count = distributed.mean(sums).tolist()
        skipped, scale = torch.stack([state["skipped"], state["scale"]]).tolist()
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
        stop: Stop,
    ) -> None:
        self.trainer, self.validation, self.run_dir, self.writer, self.stop = trainer, validation, run_dir, writer, stop
        self.evaluation, self.better, self.saved = evaluation, better, trainer.step
        s = trainer.settings
        self.log = None
        if distributed.is_main():
            self.log = Logger(
                run_dir, trainer.step, tensorboard=s.tensorboard, wandb=s.wandb, config=to_dict(trainer.config)
            )

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
            self.writer.wait()
        distributed.barrier()

    def look_back(self, validate: bool, look: bool) -> None:
        """The validation loss of this step, and samples of it."""
        val_loss = self.validate() if validate else None
        if look:
            self.evaluate(val_loss)
        if (validate or look) and self.log:
            self.writer.submit()

    def validate(self) -> float:
        loss = self.trainer.validation_loss(self.stop.watched(self.validation()))
        self.write({"val_loss": loss})
        return loss

    def evaluate(self, val_loss: float | None) -> None:
        """Samples, scores, picture; the checkpoint of this step is kept if it is the best so far."""
        assert self.evaluation is not None and self.better is not None
        trainer, metric = self.trainer, self.trainer.config.eval.best_metric
        model, own = trainer.model, trainer.model.network
        model.network = trainer.averaged_network()  # type: ignore[assignment]
        try:
            ranks = distributed.rank(), distributed.size()
            scores, picture = self.evaluation(model, *ranks, distributed.gather, self.stop.check)
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
            best, how = checkpoint.best(self.run_dir), values(trainer.config.eval, deciding=True)
            alike = best.get("metric") == metric and best.get("settings") == how
            if self.better(metric, value, best["value"] if alike else None):
                content = {"checkpoint": name, "metric": metric, "value": value, "settings": how}
                write_whole(self.run_dir / "best.json", json.dumps(content).encode())
                s, newest = trainer.settings, self.run_dir / "checkpoints" / name
                checkpoint.prune(self.run_dir, s.keep_checkpoints, s.keep_every, newest)  # the one that was the best


def snapshot_due(trainer: Trainer) -> bool:
    """Whether the averages of this step are to be kept: every `snapshot_interval` steps, and those it ends with."""
    step, s = trainer.step, trainer.settings
    last = s.total_steps - s.total_steps % s.ema_interval
    return bool(s.ema_sigma_rel) and (step % s.snapshot_interval == 0 or step == last)


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
    sent: Callable[[], object] = lambda: None,
) -> bool:
    """Trains to `total_steps`, with a checkpoint at the end; returns whether that end was reached, else it was stopped.

    batches: endless, this rank's share, from the trainer's step on; begun: `time.monotonic()` from which the time limit
    counts; sent: called after whatever rank 0 has written, to send it further. Raises ValueError when gradients stay
    infinite; the last checkpoint then stays. An image that cannot be read ends it too, after a checkpoint.
    """
    s, looks = trainer.settings, trainer.config.eval.eval_interval if evaluation else 0
    begun = time.monotonic() if begun is None else begun
    seen = sys.stderr.isatty()  # else it is a file, where every update would stay
    bar = tqdm(
        total=s.total_steps, initial=trainer.step, unit="step", desc="training", dynamic_ncols=True,
        disable=not distributed.is_main(), mininterval=0.1 if seen else 30,
    )  # fmt: skip
    with Stop(begun + 60 * s.time_limit if s.time_limit else math.inf) as stop, checkpoint.Writer(sent) as writer, bar:
        behind = distributed.from_main(lambda: owed(trainer, run_dir))
        run = Run(trainer, validation, run_dir, evaluation, better, writer, stop)
        recent, postponed, stopped = Recent(trainer), False, False
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
                recent.losses.append(trainer.train_step(batch))
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
                    record = recent.record()
                    bar.set_postfix_str(", ".join(f"{k} {v:.4g}" for k, v in record.items()), refresh=seen)
                    run.write(record)
                if save and not postponed:  # before validation, which may meet an image that cannot be read
                    run.save()
                    if validate or look:
                        run.look_back(validate, look)
                        recent.begun = time.perf_counter()
        except Stopped:
            stopped = True
        run.close()
    return not stopped
