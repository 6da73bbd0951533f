"""Training: one step, and saving and restoring its state exactly (the loop around it is loop.py).

Everything random in a step follows from (seed, step), and so does the batch: N steps are the same as n steps, a kill,
and N - n steps, bit for bit on a CPU; and one rank computes what several do, but for the order of sums and dropout.
"""

import copy
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..files import checkpoint
from ..networks.convolutions import folded
from ..ranks import distributed, parallel
from ..settings import Marks, differences, from_dict, other_data, section_names, to_dict, values
from ..symmetry.frames import seed_of
from ..symmetry.pairs import Batch
from .averages import EMA, power_rate, warmed_up, write_snapshot
from .objectives import Objective
from .optimizer import Optimizer, rectification

VALIDATION_BATCH = 16  # or the microbatch


class Trainer:
    """The state of a training run: model, averages, optimiser and the number of steps done; on every rank.

    model: what has a `network`, the shape of its `images`, a `precision`, the class of a checkpoint's `header` and the
    name of the network's `section` in config, which has `train` too. Of draws and losses only `objective` knows.
    data: what the data are known by, numbers and digests, kept in checkpoints; empty: not asked. described: what else
    the header of a checkpoint says of the data, by the names of its fields.
    """

    def __init__(
        self, config: Any, model: Any, objective: Objective, device: torch.device, data: Marks | None = None,
        described: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.config, self.settings, self.device, self.data = config, config.train, device, dict(data or {})
        self.described = described or {}
        settings = config.train
        self.share, self.micro = share_of(settings.batch_size, settings.microbatch)
        self.objective = objective
        if self.objective.follows and settings.parallel == "fsdp":
            raise ValueError("--regularization_weight needs its teacher whole on every rank: use --parallel ddp")
        if objective.uncertainty and settings.parallel == "fsdp":
            raise ValueError("--loss_weighting learned is whole on every rank: use --parallel ddp")
        self.model = model.to(device).train()
        self.model.precision = settings.precision
        model.network.checkpointed = settings.checkpoint_blocks
        self.averaged = copy.deepcopy(model.network).eval().requires_grad_(False)  # to evaluate an average with
        self.copies = {name: copy.deepcopy(self.averaged) for name in self.objective.follows}
        self.network = parallel.wrap(model.network, settings.parallel, model.network.blocks, device)
        if settings.compile != "none":
            self.network.compile(mode=settings.compile)
        self.uncertainty = objective.uncertainty and objective.uncertainty.to(device)
        self.weighting = self.uncertainty and parallel.wrap(self.uncertainty, "ddp", [], device)
        self.averages = self._averages()
        self.optimizer = Optimizer(
            [*model.network.parameters(), *(self.uncertainty.parameters() if self.uncertainty else ())],
            weight_decay=settings.weight_decay,
            clip=settings.grad_clip,
            half=settings.precision == "fp16",
        )
        self.step = 0

    def _averages(self) -> dict[str, EMA]:
        """What follows the network's weights, by the name it has in a checkpoint; the first is the one validated."""
        s, every = self.settings, self.settings.ema_interval

        def copies() -> dict[str, Tensor]:
            return {name: p.detach().clone() for name, p in self.model.network.named_parameters()}

        own = copies() if s.parallel == "fsdp" else dict[str, Tensor](self.averaged.named_parameters())
        averages = {
            name: EMA(own if name == "ema" else copies(), warmed_up(rate, every), every)
            for name, rate in rate_names(s.ema_rate).items()
        }
        for sigma_rel in s.ema_sigma_rel:
            averages[power_name(sigma_rel)] = EMA(copies(), partial(power_rate, sigma_rel, every=every), every)
        for name, rate in self.objective.follows.items():
            averages[name] = EMA(dict(self.copies[name].named_parameters()), warmed_up(rate))
        return averages

    def averaged_network(self) -> nn.Module:
        """The network with the first average's weights, whole; every rank must ask for it."""
        if self.settings.parallel == "fsdp":
            own = dict(self.averaged.named_parameters())
            for name, value in self.averages["ema"].weights.items():
                own[name].copy_(value.full_tensor())  # type: ignore[attr-defined]
        return self.averaged

    def learning_rate(self) -> float:
        """Of the step to come."""
        s = self.settings
        factor = rectification(self.step + 1) if s.optimizer == "radam" else 1.0
        warm = min(1.0, (self.step + 1) / (s.lr_warmup_steps or 1))
        decay = max(1.0, (self.step + 1) / s.lr_decay_steps) ** -0.5 if s.lr_decay_steps else 1.0
        return s.lr * factor * warm * decay

    def train_step(self, batch: Batch) -> Tensor:
        """One optimiser step on this rank's share of a batch; returns the share's mean loss, on the device."""
        batch = batch.to(self.device)
        share, ranks, rank = len(batch.target), distributed.size(), distributed.rank()
        torch.manual_seed(seed_of(self.settings.seed, self.step))  # what is drawn, the same on all ranks
        whole = self.objective.draw(self.model, batch, share * ranks, slice(rank * share, (rank + 1) * share))
        torch.manual_seed(seed_of(self.settings.seed, self.step, rank))  # dropout
        self.optimizer.adam.zero_grad()
        total = torch.zeros((), device=self.device)
        for i in range(0, share, self.micro):
            last = i + self.micro >= share
            with parallel.gradients(self.network, last), parallel.gradients(self.weighting, last):
                draw = whole.rows(slice(i, i + self.micro))
                losses = self.objective(self.model, self.network, self.copies, draw).float()
                total += losses.detach().sum() / share
                if self.weighting is not None:
                    losses = self.weighting(losses, self.objective.c_noise(self.model, draw))
                self.optimizer.scaled(losses.sum() / share).backward()
        self.optimizer.step(self.learning_rate())
        self.model.network.normalise_weights()
        self.step += 1
        for average in self.averages.values():
            average.update(self.model.network, self.step)
        return total

    @torch.no_grad()
    def validation_loss(self, batches: Iterable[Batch]) -> float:
        """The loss of the averaged network without dropout; what is drawn for a pair depends on its index alone.

        batches: this rank's, of ranks that take turns. Every rank adds up all sums in the same order.
        """
        network, sums = self.averaged_network(), []
        with folded(network):
            for batch in batches:
                losses = self.objective.validation(self.model, network, batch.to(self.device)).float()
                sums.append((losses.sum().item(), len(losses)))
        rounds = distributed.largest(len(sums))
        own = np.array(sums + [(0.0, 0)] * (rounds - len(sums)))
        total, count = np.stack(distributed.gather(own), 1).reshape(-1, 2).sum(0)
        return float(total / count)

    # ------------------------------------------------------------------------------------------------- save and resume

    def save(self, run_dir: Path, writer: checkpoint.Writer) -> None:
        """Copies the state, and lets `writer` write it as a checkpoint; every rank must call it, rank 0 writes.

        Raises ValueError, and writes nothing, if a weight is not finite.
        """
        if not distributed.is_main() and self.settings.parallel == "ddp":
            return
        averages = {name: parallel.whole_copy(average.weights) for name, average in self.averages.items()}
        weights = {"model": parallel.whole_copy(self.model.network.state_dict()), **averages}
        state = {"optimizer": parallel.whole_copy(self.optimizer.state_dict()), "data": self.data}
        if self.uncertainty:
            state["uncertainty"] = parallel.whole_copy(self.uncertainty.state_dict())
        for name, weight in weights["model"].items():
            if not weight.isfinite().all():
                raise ValueError(
                    f"{name} is no longer finite at step {self.step}: lower --lr; the last checkpoint is untouched"
                )
        if distributed.is_main():
            said = self.model.header(self.config, self.model.images, self.step, **self.described | self.model.described)
            header, s = to_dict(said), self.settings

            def write() -> None:
                path = checkpoint.write(checkpoint.path_of(run_dir, header["step"]), header, weights, state)
                checkpoint.prune(run_dir, s.keep_checkpoints, s.keep_every, path)

            writer.submit(write)

    def snapshot(self, run_dir: Path, writer: checkpoint.Writer) -> None:
        """Lets `writer` write the power function averages as they are now, compactly; every rank must call it."""
        if not distributed.is_main() and self.settings.parallel == "ddp":
            return
        widths = self.settings.ema_sigma_rel
        profiles = {width: parallel.whole_copy(self.averages[power_name(width)].weights) for width in widths}
        if distributed.is_main():
            step = self.step
            writer.submit(lambda: write_snapshot(run_dir, step, profiles))

    def restore(self, path: Path, new_run: bool = False) -> list[str]:
        """Continues from a whole checkpoint of the same data and settings; others are refused by name.

        new_run: the data may be others, of the same shape, and the averages of other rates; one that the checkpoint
        does not have begins at its first. Returns the settings that may change and did, as `name: old -> new`. The
        number of ranks may be another.
        """
        header = from_dict(
            self.model.header, checkpoint.read_header(path, self.model.section), str(path / "config.json")
        )
        found, wanted = header.config, self.config
        kept = [name for name in section_names(found) if name != "eval" and not (new_run and name == "data")]
        differing = self._differences(found, kept)
        differing = [line for line in differing if not (new_run and line.startswith("ema_rate: "))]
        differing += self.model.differing(header)
        state = checkpoint.read_state(path)
        differing += [] if new_run else other_data(state.get("data", {}), self.data)
        if differing:
            raise ValueError(
                f"cannot continue {path} with other settings or data ({'; '.join(differing)}): use the old ones, "
                "--restart to begin anew, or another --run_dir, which may begin from this checkpoint on other data"
            )
        self.model.adopt(header)
        self._load(dict(self.model.network.named_parameters()), path, "model")
        stored = {rate: name for name, rate in rate_names(found.train.ema_rate).items()}
        rates = rate_names(wanted.train.ema_rate)
        for name, average in self.averages.items():
            self._load(average.weights, path, stored.get(rates[name], "ema") if name in rates else name)
        self.optimizer.load_state_dict(self._optimizer_state(state, path), found.train.precision == "fp16")
        if self.uncertainty:
            self._copy(dict(self.uncertainty.named_parameters()), state.get("uncertainty", {}), path)
        self.step = header.step
        return differences(values(found), values(wanted))

    def begin_from(self, path: Path) -> list[str]:
        """Begins at step 0 from the weights of a checkpoint of a network like this, whatever it was trained for.

        Of one that holds an average alone, such as a published one, from that; all averages begin there too. Returns
        the settings of data, bridge and network that differ, as `name: old -> new`.
        """
        header = from_dict(
            self.model.header, checkpoint.read_header(path, self.model.section), str(path / "config.json")
        )
        found, name = header.config, "model" if (path / "model.safetensors").is_file() else "ema"
        try:
            self._load(dict(self.model.network.named_parameters()), path, name)
        except ValueError as error:
            if differing := self._differences(found, [self.model.section]) + self.model.differing(header):
                problem = f"{path} has another network ({'; '.join(differing)})"
                raise ValueError(f"{problem}: use its settings, or begin without it") from error
            raise
        for average in self.averages.values():
            self._load(average.weights, path, name)
        return self._differences(found, [name for name in section_names(found) if name not in ("eval", "train")])

    def _differences(self, found: Any, names: list[str]) -> list[str]:
        """`name: old -> new` for the settings of these sections that a run must keep to go on."""
        both = [[values(getattr(config, name), deciding=True) for name in names] for config in (found, self.config)]
        return [line for old, new in zip(*both, strict=True) for line in differences(old, new)]

    def _load(self, own: dict[str, Tensor], path: Path, name: str) -> None:
        self._copy(own, checkpoint.read_weights(path, name), path)

    @torch.no_grad()
    def _copy(self, own: dict[str, Tensor], weights: dict[str, Tensor], path: Path) -> None:
        checkpoint.check_weights(own, weights, path)
        for key, value in own.items():
            value.copy_(parallel.laid_out_as(weights[key], value))

    def _optimizer_state(self, state: dict[str, Any], path: Path) -> dict[str, Any]:
        """The optimiser's state laid out as the parameters are. Raises ValueError unless it is one of theirs."""
        try:
            found, moments = state["optimizer"], state["optimizer"]["adam"]["state"]
            for number, parameter in enumerate(self.optimizer.parameters):
                own = moments.get(number, {})  # of a run that has not stepped there are none
                whole = dict.fromkeys(("exp_avg", "exp_avg_sq"), parameter.shape) | {"step": torch.Size()}
                if own and {name: value.shape for name, value in own.items()} != whole:
                    raise TypeError
                moments[number] = {name: parallel.laid_out_as(value, parameter) for name, value in own.items()}
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} does not fit its settings: its state is not that of an optimizer here") from None
        return dict(found)


def share_of(batch_size: int, microbatch: int) -> tuple[int, int]:
    """Images of a step, and of a forward pass, for every rank: batch_size = ranks x microbatch x accumulated passes."""
    ranks = distributed.size()
    share = batch_size // ranks
    micro = microbatch or share
    if batch_size % ranks or not share or share % micro:
        unit = ranks * (microbatch or 1)
        product = f"{ranks} ranks" + (f" x --microbatch {microbatch}" if microbatch else "")
        raise ValueError(
            f"--batch_size {batch_size} must be a multiple of {product} = {unit}; "
            f"try --batch_size {max(1, round(batch_size / unit)) * unit}"
        )
    return share, micro


def rate_names(rates: tuple[float, ...]) -> dict[str, float]:
    """The names of moving averages in a checkpoint, and their rates; the first is "ema"."""
    first, *others = rates
    return {"ema": first} | {f"ema_{rate:g}": rate for rate in others}


def power_name(sigma_rel: float) -> str:
    return f"ema_power_{sigma_rel:g}"
