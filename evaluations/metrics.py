"""The metrics. A new one is one function (paired.py, masks.py, sets.py) and one line in `METRICS`."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluations import masks, paired, sets
from evaluations.images import Images, as_images
from evaluations.names import hint
from evaluations.perceptual import Perceptual, alexnet, vgg16
from evaluations.references import Reference


@dataclass(frozen=True)
class Metric:
    """A metric and what it needs.

    Of pairs: `compute(x, y[, network])` maps batches in [0, 1] to one value a pair; `network(weights, device)` loads
    the network. Of sets: it has a `layer`, the features it is computed from (evaluations/extractors.py), and
    `compute(Sets)` gives a Score.
    """

    compute: Callable[..., Any]
    higher_is_better: bool
    smallest: int = 1  # pixels a side
    fewest: int = 1  # images in each set
    masks: bool = False  # of masks alone: the reference holds 0 and 255
    network: Callable[[str | Path | None, torch.device], Perceptual] | None = None
    layer: str = ""
    rows: bool = False  # of all features, not only of their mean and covariance
    reference: bool = True  # whether there is anything to compare with
    turned: str = ""  # "sample" or "reference": the set that is needed under every element of --group
    raw: str = ""  # the metric in its place with --features raw

    @property
    def paired(self) -> bool:
        return not self.layer

    def check(self, reference: "np.ndarray | Images | Reference", sample: np.ndarray | Images) -> None:
        """Raise ValueError if these images, uint8 [N, H, W, C], cannot be measured."""
        images = as_images(sample, "sample")
        _, height, width, channels = images.shape
        if min(height, width) < self.smallest:
            raise ValueError(f"images are {height} x {width} px; expected at least {self.smallest} a side")
        if (self.network or self.layer) and channels not in (1, 3):
            raise ValueError(f"images have {channels} channels; expected 1 or 3; choose the channels first")
        given = reference if isinstance(reference, Reference) else Reference(as_images(reference, "reference"))
        counts = [len(images), *([n] if self.reference and (n := given.count(self.layer)) else [])]
        if min(counts) < self.fewest:
            raise ValueError(f"found {_images(min(counts))}; expected at least {self.fewest} in each set")
        if self.reference:
            given.check(self.layer, self.rows, self.turned == "reference")
        if self.masks and given.images:
            masks.check_mask(given.images)


def describe(name: str) -> str:
    """What a metric is: definition, range, direction and source."""
    return f"{name}: {inspect.getdoc(METRICS[name].compute)}"


def resolve(words: Sequence[str], features: str, group: str) -> list[str]:
    """The metrics asked for, each once, in the order asked; of `all` those that these features and this group allow.

    Raises ValueError.
    """
    if features not in FEATURES:
        raise ValueError(f"unknown features {features}; {hint(features, FEATURES)}")
    names: list[str] = []
    for word in [words] if isinstance(words, str) else words:
        names += _all(features, group) if word == "all" else [_one(word, features, group)]
    if not names:
        raise ValueError("no metric; name some, such as mse, or all; --metric help lists them")
    return list(dict.fromkeys(names))


def _all(features: str, group: str) -> list[str]:
    names = []
    for name, metric in METRICS.items():
        if metric.turned and group == "none":
            continue
        if features == "raw":
            if metric.layer == "raw" or (metric.paired and not metric.network):
                names.append(name)
        elif metric.layer != "raw":
            names.append(name)
    return names


def _one(word: str, features: str, group: str) -> str:
    if word.casefold() == "equivariance":
        raise ValueError(
            f"{word} is of a checkpoint, not of images: python -m scripts.check_equivariance RUN measures it"
        )
    if word not in METRICS:
        raise ValueError(f"unknown metric {word}; {hint(word, [*METRICS, 'all'])}")
    metric = METRICS[word]
    if features == "raw" and (metric.network or metric.layer not in ("", "raw")):
        if not metric.raw:
            have = ", ".join(m.raw for m in METRICS.values() if m.raw)
            raise ValueError(f"{word} needs the weights of a network; --features raw has {have}")
        word = metric.raw
    if METRICS[word].turned and group == "none":
        raise ValueError(f"{word} needs a group: add --group D4, or another one the data is symmetric under")
    return word


def _images(count: int) -> str:
    return f"{count} image" + ("" if count == 1 else "s")


FEATURES = ("inception", "raw")  # of --features

METRICS = {  # the two numbers: the fewest pixels a side and images that it can be computed of
    "mse": Metric(paired.mse, higher_is_better=False),
    "mae": Metric(paired.mae, higher_is_better=False),
    "psnr": Metric(paired.psnr, higher_is_better=True),
    "ssim": Metric(paired.ssim, higher_is_better=True, smallest=11),
    "ms_ssim": Metric(paired.ms_ssim, higher_is_better=True, smallest=161),
    "lpips": Metric(paired.lpips, higher_is_better=False, smallest=31, network=alexnet),
    "lpips_vgg": Metric(paired.lpips_vgg, higher_is_better=False, smallest=16, network=vgg16),
    "dice": Metric(masks.dice, higher_is_better=True, masks=True),
    "accuracy": Metric(masks.accuracy, higher_is_better=True, masks=True),
    "mask_precision": Metric(masks.mask_precision, higher_is_better=True, masks=True),
    "mask_recall": Metric(masks.mask_recall, higher_is_better=True, masks=True),
    "fid": Metric(sets.fid, False, 1, 2, layer="pool", raw="fd_raw"),
    "sfid": Metric(sets.sfid, False, 1, 2, layer="spatial"),
    "kid": Metric(sets.kid, False, 1, 2, layer="pool", rows=True, raw="kd_raw"),
    "is": Metric(sets.inception_score, True, 1, 10, layer="logits", rows=True, reference=False),
    "precision": Metric(sets.precision, True, 1, 4, layer="pool", rows=True),
    "recall": Metric(sets.recall, True, 1, 4, layer="pool", rows=True),
    "density": Metric(sets.density, True, 1, 6, layer="pool", rows=True),
    "coverage": Metric(sets.coverage, True, 1, 6, layer="pool", rows=True),
    "fd_dinov2": Metric(sets.fd_dinov2, False, 1, 2, layer="dinov2"),
    "fid_augmented": Metric(sets.fid_augmented, False, 1, 2, layer="pool", turned="reference", raw="fd_raw_augmented"),
    "inv_fid_mean": Metric(
        sets.inv_fid_mean, False, 1, 2, layer="pool", turned="sample", reference=False, raw="inv_fd_raw_mean"
    ),
    "inv_fid_max": Metric(
        sets.inv_fid_max, False, 1, 2, layer="pool", turned="sample", reference=False, raw="inv_fd_raw_max"
    ),
    "inv_fid_spread": Metric(sets.inv_fid_spread, False, 1, 2, layer="pool", turned="sample", raw="inv_fd_raw_spread"),
    "fd_raw": Metric(sets.fd_raw, False, 8, 2, layer="raw"),
    "kd_raw": Metric(sets.kd_raw, False, 8, 2, layer="raw", rows=True),
    "fd_raw_augmented": Metric(sets.fd_raw_augmented, False, 8, 2, layer="raw", turned="reference"),
    "inv_fd_raw_mean": Metric(sets.inv_fd_raw_mean, False, 8, 2, layer="raw", turned="sample", reference=False),
    "inv_fd_raw_max": Metric(sets.inv_fd_raw_max, False, 8, 2, layer="raw", turned="sample", reference=False),
    "inv_fd_raw_spread": Metric(sets.inv_fd_raw_spread, False, 8, 2, layer="raw", turned="sample"),
}
