"""Looking at samples while training: metrics, grid and equivariance error of a fixed part of the validation pairs.

The numbers are the same for any number of ranks: the noise of an image depends on the seed and its index alone, an
image always goes through the network in the same batch, and every rank computes the scores from all samples.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from datasets import PairedData, batches_of
from ddbm.certificate import compare
from ddbm.config import EvalConfig
from ddbm.model import BridgeModel, plan_of, sample
from ddbm.ranks import distributed
from ddbm.settings import choose
from ddbm.symmetry.groups import GROUPS
from evaluations.evaluator import evaluate
from evaluations.images import as_images, to_bytes
from evaluations.metrics import METRICS

from .common import inside, shape_of
from .pictures import evenly, grid

MEASURED = [name for name, metric in METRICS.items() if metric.paired and not metric.network]
HIGHER_IS_BETTER = {name: METRICS[name].higher_is_better for name in MEASURED}
HIGHER_IS_BETTER |= {"equivariance": False, "val_loss": False}
TURNED = 2  # images whose equivariance error is measured


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
        try:
            plan_of(model, settings.eval_sampler, settings.eval_nfe, "", "none", self.group).check()
        except ValueError as error:
            raise ValueError(f"--eval_nfe {settings.eval_nfe}: {error}") from error
        chosen, size = evenly(len(data), settings.eval_images), settings.eval_batch
        skip, parts = model.config.data.skip_unreadable, [chosen[i : i + size] for i in range(0, len(chosen), size)]
        self.batches = list(batches_of(data, parts, skip=skip))
        if not self.batches:
            raise ValueError(f"none of the {len(chosen)} validation pairs to look at can be read; repair some")
        self.images = len(self.batches)  # the batches from here on are the first images, turned
        self.sources = np.concatenate([to_bytes(batch.source) for batch in self.batches])
        targets = np.concatenate([to_bytes(batch.target) for batch in self.batches])
        masks = np.concatenate([inside(batch).permute(0, 2, 3, 1).numpy() for batch in self.batches])
        self.targets = as_images(targets, "targets", masks)
        if len(self.group) > 1:
            first = next(batches_of(data, [chosen[:TURNED]], skip=skip))
            self.batches += [first.turned(g) for g in self.group.elements]
        reasons = {}
        for name in MEASURED:
            try:
                METRICS[name].check(self.targets, targets)
            except ValueError as error:
                reasons[name] = str(error)
        if len(self.group) == 1:
            reasons["equivariance"] = "the model has no group, nor does its training turn images (--augment)"
        if settings.best_metric in reasons:
            raise ValueError(f"--best_metric {settings.best_metric}: {reasons[settings.best_metric]}")
        self.metrics = [name for name in MEASURED if name not in reasons]

    def better(self, new: float, old: float | None) -> bool:
        """Whether a checkpoint with the value `new` replaces one with `old` (None: there is none); NaN never does."""
        if math.isnan(new) or old is None or math.isnan(old):
            return not math.isnan(new)
        return new > old if HIGHER_IS_BETTER[self.settings.best_metric] else new < old

    def __call__(
        self, model: BridgeModel, between: Callable[[], object] = lambda: None
    ) -> tuple[dict[str, float], np.ndarray]:
        """The scores, `eval_psnr` and so on, and the picture source | sample | target, uint8 `[H, W, 3]`.

        Rank r of R samples the batches r, r + R, ...; the same number on every rank, the first ones again where they do
        not come out even, so that a network in shards may be among them; before each it calls `between`. The network is
        in evaluation mode. Scores are NaN where a sample is not finite.
        """
        settings, rank, ranks = self.settings, distributed.rank(), distributed.size()
        own: list[Tensor] = []  # float32 `[B, C, H, W]`; for images, not turned, those of sample_ddbm.sh
        for first in range(0, len(self.batches), ranks):
            between()
            number = (first + rank) % len(self.batches)
            batch = self.batches[number].to(next(model.parameters()).device)
            samples = sample(
                model, batch.source, sampler=settings.eval_sampler, nfe=settings.eval_nfe, seed=settings.eval_seed,
                group="" if number < self.images else self.group.name, index=batch.index.tolist(),
                mask=batch.mask, label=batch.label,
            )  # fmt: skip
            own.append(samples.x_0.cpu())
        every = distributed.gather(own)
        outputs = [every[k % ranks][k // ranks] for k in range(len(self.batches))]
        straight = torch.cat(outputs[: self.images])
        images = to_bytes(straight.nan_to_num())
        measured = evaluate(self.targets, images, self.metrics)["metrics"]
        scores = {f"eval_{name}": float(measured[name]["compared"]) for name in self.metrics}
        if len(self.group) > 1:
            of_element = dict(zip(self.group.elements, outputs[self.images :], strict=True))
            rows = compare("sampler", "", of_element, image=False)
            scores["eval_equivariance"] = float(np.mean([row.mean for row in rows]))
        if not straight.isfinite().all():
            scores = dict.fromkeys(scores, math.nan)
        return scores, grid([self.sources, images, *self.targets.walk(len(images))])
