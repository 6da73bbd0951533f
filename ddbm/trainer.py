"""Training: one step, and the loop around it that can be stopped anywhere and resumed exactly.

Everything random in a step follows from (seed, step), and so does the batch: N steps are the same as n steps, a kill,
and N - n steps, bit for bit on a CPU.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import checkpoint
from .bridge import mean_inside
from .config import Config
from .ema import EMA
from .groups import Element, act
from .logger import Logger
from .model import BridgeModel, Header, load_weights
from .settings import differences, from_dict, to_dict
from .symmetry import disagreement, seed_of

OPTIMIZERS = {"radam": torch.optim.RAdam, "adam": torch.optim.AdamW}


class Batch(Protocol):
    """Pairs as `datasets` yields them."""

    @property
    def target(self) -> Tensor: ...
    @property
    def source(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor | None: ...
    @property
    def label(self) -> Tensor | None: ...
    def to(self, device: torch.device) -> Batch: ...


class Trainer:
    """The state of a training run: model, average, optimiser and the number of steps done."""

    def __init__(self, config: Config, model: BridgeModel, device: torch.device) -> None:
        self.config, self.settings, self.device = config, config.train, device
        self.model = model.to(device).train()
        self.model.precision = self.settings.precision
        self.ema = EMA(model.network, self.settings.ema_rate)
        self.optimizer = OPTIMIZERS[self.settings.optimizer](
            model.network.parameters(),
            lr=self.settings.lr,
            weight_decay=self.settings.weight_decay,
            **({"decoupled_weight_decay": True} if self.settings.optimizer == "radam" else {}),
        )
        self.teacher = EMA(model.network, self.settings.teacher_rate) if self.settings.regularization_weight else None
        if self.teacher and len(model.group) == 1:
            raise ValueError("--regularization_weight needs a group to be symmetric under: add --group, such as D4")
        self.step = 0

    @property
    def averages(self) -> dict[str, EMA]:
        """What follows the network's weights, by the name it has in a checkpoint."""
        return {"ema": self.ema} | ({"teacher": self.teacher} if self.teacher else {})

    def train_step(self, batch: Batch) -> Tensor:
        """One optimiser step on a batch; returns its mean loss, on the device."""
        torch.manual_seed(seed_of(self.settings.seed, self.step))  # noise, times and dropout of this step
        batch = batch.to(self.device)
        size = len(batch.target)
        t = draw_times(self.model, torch.rand(size, dtype=torch.float64, device=self.device))
        noise = torch.randn_like(batch.target)
        elements = self.model.group.elements
        g = elements[int(torch.randint(len(elements), ()))] if self.teacher else None
        micro = self.settings.microbatch or size
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for i in range(0, size, micro):
            part = slice(i, i + micro)
            loss = self._losses(self.model.network, batch, t, noise, part, g).sum() / size
            loss.backward()
            total += loss.detach()
        if self.settings.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.model.network.parameters(), self.settings.grad_clip)
        warmup = min(1.0, (self.step + 1) / (self.settings.lr_warmup_steps or 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * warmup
        self.optimizer.step()
        for average in self.averages.values():
            average.update(self.model.network, self.step)
        self.step += 1
        return total

    @torch.no_grad()
    def validation_loss(self, batches: Iterable[Batch]) -> float:
        """The loss of the averaged network without dropout, at times and noise that are the same at every call."""
        generator = torch.Generator().manual_seed(seed_of(self.settings.seed))
        total, count = torch.zeros((), device=self.device), 0
        for batch in batches:
            size = len(batch.target)
            t = draw_times(self.model, (torch.arange(size, dtype=torch.float64) + 0.5) / size).to(self.device)
            noise = torch.randn(batch.target.shape, generator=generator).to(self.device)
            total += self._losses(self.ema.network, batch.to(self.device), t, noise, slice(None)).sum()
            count += size
        return total.item() / count

    def _losses(
        self, network: nn.Module, batch: Batch, t: Tensor, noise: Tensor, part: slice, g: Element | None = None
    ) -> Tensor:
        """The loss of every image of a part of a batch; with g, the teacher's disagreement under g added."""
        source = batch.source[part]
        mask = None if batch.mask is None else batch.mask[part]
        label = None if batch.label is None else batch.label[part]
        own, penalties = self.model.conditioned(source, label, network), []

        def observed(x: Tensor, c_noise: Tensor) -> Tensor:
            output = own(x, c_noise)
            if g is not None and self.teacher:
                teacher = self.model.conditioned(act(g, source), label, self.teacher.network)
                penalties.append(disagreement(output, teacher, x, c_noise, g))
            return output

        x_T = self.model.endpoint(source)
        losses = self.model.bridge.loss(observed, batch.target[part], x_T, t[part], noise[part], mask)
        for penalty in penalties:
            losses = losses + self.settings.regularization_weight * mean_inside(penalty, mask)
        return losses.float()

    # ------------------------------------------------------------------------------------------------- save and resume

    def save(self, run_dir: Path) -> Path:
        """Writes a checkpoint of this step and deletes those that are too old."""
        averages = {name: average.network.state_dict() for name, average in self.averages.items()}
        finite = torch.stack([torch.isfinite(p).all() for p in self.model.network.parameters()]).all()
        if not finite.item():
            raise ValueError(
                f"the weights are no longer finite at step {self.step}: lower --lr; the last checkpoint is untouched"
            )
        weights = {"model": self.model.network.state_dict(), **averages}
        header = to_dict(Header(self.config, self.model.images, self.step))
        path = checkpoint.write(run_dir, self.step, header, weights, {"optimizer": self.optimizer.state_dict()})
        checkpoint.prune(run_dir, self.settings.keep_checkpoints)
        return path

    def restore(self, path: Path) -> list[str]:
        """Continues from a checkpoint of the same data, bridge and model settings; others are refused by name.

        Returns the settings that may change and did, as `name: old -> new`.
        """
        checkpoint.verify(path)
        header = from_dict(Header, checkpoint.read_header(path), str(path / "config.json"))
        found, wanted = header.config, self.config
        old = replace(found, train=wanted.train, data=replace(found.data, data_dir=wanted.data.data_dir))
        differing = differences(old, wanted)
        if header.images != self.model.images:
            differing.append(f"images: {header.images} -> {self.model.images}")
        for name in ("optimizer", "regularization_weight"):  # what the state of a run depends on
            a, b = getattr(found.train, name), getattr(wanted.train, name)
            differing += [f"{name}: {a} -> {b}"] if a != b else []
        if differing:
            raise ValueError(
                f"cannot continue {path} with other settings ({'; '.join(differing)}): use the old ones, another "
                "--run_dir, or --restart to begin anew"
            )
        load_weights(self.model.network, checkpoint.read_weights(path, "model"), path)
        for name, average in self.averages.items():
            load_weights(average.network, checkpoint.read_weights(path, name), path)
        self.optimizer.load_state_dict(checkpoint.read_state(path)["optimizer"])
        self.step = header.step
        return differences(found, wanted)


def draw_times(model: BridgeModel, u: Tensor) -> Tensor:
    """Times uniform on [t_min, T] from u uniform on [0, 1]; float64 `[B]`."""
    return model.bridge.t_min + (model.bridge.T - model.bridge.t_min) * u


class Stop:
    """Asks the loop to save and end, on Ctrl-C or SIGTERM; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> Stop:
        self._old = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def mean_loss(losses: list[Tensor], step: int) -> float:
    """The mean of the losses since the last look; raises ValueError if it is not finite."""
    loss = torch.stack(losses).mean().item()
    if not math.isfinite(loss):
        raise ValueError(
            f"the loss is {loss} at step {step}: lower --lr or raise --lr_warmup_steps; "
            "the last checkpoint is untouched"
        )
    return loss


def train(
    trainer: Trainer,
    batches: Iterator[Batch],
    validation: Callable[[], Iterable[Batch]],
    run_dir: Path,
) -> int:
    """Trains to `total_steps`, with a checkpoint at the end; returns the signal that ended it early, or 0.

    batches: endless, from the trainer's step on. Writes `log.jsonl` and checkpoints. Raises ValueError when the loss is
    no longer finite; the last checkpoint then stays. An image that cannot be read ends it too, after a checkpoint.
    """
    settings = trainer.settings
    log = Logger(run_dir / "log.jsonl", trainer.step)
    recent: list[Tensor] = []
    begun = time.perf_counter()
    bar = tqdm(total=settings.total_steps, initial=trainer.step, unit="step", desc="training", dynamic_ncols=True)
    with Stop() as stop, bar:
        while trainer.step < settings.total_steps and not stop.signal:
            try:
                batch = next(batches)
            except ValueError:  # an image that cannot be read: what was learnt before it is kept
                if recent:
                    mean_loss(recent, trainer.step)
                    trainer.save(run_dir)
                raise
            recent.append(trainer.train_step(batch))
            bar.update()
            done = trainer.step == settings.total_steps
            validate = done or trainer.step % settings.val_interval == 0
            save = validate or trainer.step % settings.save_interval == 0 or stop.signal
            if validate or save or trainer.step % settings.log_interval == 0:
                loss = mean_loss(recent, trainer.step)
                speed = len(recent) * settings.batch_size / (time.perf_counter() - begun)
                bar.set_postfix_str(f"loss {loss:.4f}, {speed:.0f} images/s")
                record = {"loss": loss, "images_per_s": speed}
                if save:  # before validation, which may meet an image that cannot be read
                    trainer.save(run_dir)
                if validate:
                    record["val_loss"] = trainer.validation_loss(validation())
                log.write(step=trainer.step, **record)
                recent.clear()
                begun = time.perf_counter()
    return stop.signal
