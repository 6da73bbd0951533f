"""Looking at samples while training: metrics, grid and equivariance error of a fixed part of the validation pairs.

The numbers are the same for any number of ranks: the noise of an image depends on the seed and its index alone, an
image always goes through the network in the same batch, and every rank computes the scores from all samples.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from datasets import PairedData, batches_of
from ddbm.bridges.samplers import SAMPLERS
from ddbm.certificate import compare
from ddbm.config import EvalConfig
from ddbm.model import BridgeModel, plan_of, sample
from ddbm.settings import choose
from ddbm.symmetry.groups import GROUPS, act
from evaluations.evaluator import evaluate
from evaluations.metrics import METRICS

from .common import shape_of, to_bytes
from .pictures import evenly, grid

MEASURED = [name for name, metric in METRICS.items() if metric.paired and not metric.network]
HIGHER_IS_BETTER = {name: METRICS[name].higher_is_better for name in MEASURED}
HIGHER_IS_BETTER |= {"equivariance": False, "val_loss": False}
TURNED = 2  # images whose equivariance error is measured

Gather = Callable[[list[Tensor]], Sequence[list[Tensor]]]  # what a rank has -> what all have, in their order


def better(metric: str, new: float, old: float | None) -> bool:
    """Whether a checkpoint with the value `new` replaces one with `old` (None: there is none); NaN never does."""
    higher = choose(HIGHER_IS_BETTER, metric, "best_metric")
    if math.isnan(new) or old is None or math.isnan(old):
        return not math.isnan(new)
    return new > old if higher else new < old


class Evaluation:
    """Samples `eval_images` validation pairs, read once, and scores them.

    augment: the group whose equivariance error is measured where the model has none of its own. Raises ValueError for
    whatever would fail later: a sampler, budget or metric that does not fit the model and the pairs.
    """

    def __init__(self, model: BridgeModel, data: PairedData, settings: EvalConfig, augment: str) -> None:
        self.settings = settings
        self.group = model.group if len(model.group) > 1 else choose(GROUPS, augment, "augment")
        self.group.check_size(*data.size)
        if shape_of(data) != model.images:
            raise ValueError(
                f"the validation pairs are {shape_of(data)}, the model is made for {model.images}: "
                "give all pairs one number of channels, and one size by --image_size"
            )
        choose(SAMPLERS, settings.eval_sampler, "eval_sampler")
        try:
            plan_of(model, settings.eval_sampler, settings.eval_nfe, "", "none", self.group).check()
        except ValueError as error:
            raise ValueError(f"--eval_nfe {settings.eval_nfe}: {error}") from error
        chosen, size = evenly(len(data), settings.eval_images), settings.eval_batch
        self.batches = list(batches_of(data, [chosen[i : i + size] for i in range(0, len(chosen), size)]))
        self.images = len(self.batches)  # the batches from here on are the first images, turned
        self.sources = np.concatenate([to_bytes(batch.source) for batch in self.batches])
        self.targets = np.concatenate([to_bytes(batch.target) for batch in self.batches])
        if len(self.group) > 1:
            first = next(batches_of(data, [chosen[:TURNED]]))
            self.batches += [first.turned(g) for g in self.group.elements]
        self.metrics = self._metrics()

    def _metrics(self) -> list[str]:
        """The metrics that these targets can be measured by."""
        known, reasons = [], {}
        for name in MEASURED:
            try:
                METRICS[name].check(self.targets, self.targets)
                known.append(name)
            except ValueError as error:
                reasons[name] = str(error)
        if len(self.group) == 1:
            reasons["equivariance"] = "the model has no group, nor does its training turn images (--augment)"
        best = self.settings.best_metric
        choose(HIGHER_IS_BETTER, best, "best_metric")
        if best in reasons:
            raise ValueError(f"--best_metric {best}: {reasons[best]}")
        return known

    def __call__(
        self,
        model: BridgeModel,
        rank: int = 0,
        ranks: int = 1,
        gather: Gather | None = None,
        between: Callable[[], None] | None = None,
    ) -> tuple[dict[str, float], np.ndarray]:
        """The scores, `eval_psnr` and so on, and the picture source | sample | target, uint8 `[H, W, 3]`.

        Rank r of R samples the batches r, r + R, ...; the same number on every rank, the first ones again where they do
        not come out even, so that a network in shards may be among them; before each it calls `between`. Scores are NaN
        where a sample is not finite.
        """
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        own = []
        try:
            for first in range(0, len(self.batches), ranks):
                if between:
                    between()
                own.append(self._draw(model, (first + rank) % len(self.batches)))
        finally:
            for module, training in modes:
                module.training = training
        every = gather(own) if gather else [own]
        return self._scores([every[k % ranks][k // ranks] for k in range(len(self.batches))])

    def _draw(self, model: BridgeModel, number: int) -> Tensor:
        """The samples of a batch, float32 `[B, C, H, W]`, on the CPU; for images those of sample_ddbm.sh."""
        batch, settings = self.batches[number], self.settings
        inside = batch.to(next(model.parameters()).device)
        return sample(
            model, inside.source, sampler=settings.eval_sampler, nfe=settings.eval_nfe, seed=settings.eval_seed,
            group="" if number < self.images else self.group.name, index=batch.index.tolist(),
            mask=inside.mask, label=inside.label,
        ).x_0.cpu()  # fmt: skip

    def _scores(self, outputs: list[Tensor]) -> tuple[dict[str, float], np.ndarray]:
        """Scores and picture from the samples of all batches."""
        samples = torch.cat(outputs[: self.images])
        images = to_bytes(samples.nan_to_num())
        measured = evaluate(self.targets, images, self.metrics)["metrics"]
        scores = {f"eval_{name}": float(measured[name]["mean"]) for name in self.metrics}
        if len(self.group) > 1:
            straight, *others = outputs[self.images :]  # the identity is the first
            elements = zip(self.group.elements[1:], others, strict=True)
            rows = [compare("sampler", "", g, output, act(g, straight), image=False) for g, output in elements]
            scores["eval_equivariance"] = float(np.mean([row.mean for row in rows]))
        if not samples.isfinite().all():
            scores = dict.fromkeys(scores, math.nan)
        return scores, grid([self.sources, images, self.targets])
