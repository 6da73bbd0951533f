"""The metrics. A new one is one function (paired.py, draws.py, sets.py) and one line in `METRICS`."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ddbm.settings import unknown
from ddbm.symmetry.groups import IDENTITY, Element
from evaluations import draws, paired, sets
from evaluations.features import Part
from evaluations.images import Images, as_images, as_pairs
from evaluations.networks import LAYERS
from evaluations.references import Reference, as_reference


@dataclass(frozen=True)
class Metric:
    """A metric and what it needs.

    Of pairs: `compute(x, y, inside[, network])` maps batches in [0, 1] to one value a pair. Of draws:
    `compute(x, y, inside)` does, of all draws of every image (evaluations/draws.py), or to a row a pair, and
    `curve(rows, K)` makes the Score. Of sets: it has a `layer`, the features it is computed from
    (evaluations/networks.py), and `compute(Sets)` gives a Score.
    """

    compute: Callable[..., Any]
    higher_is_better: bool
    smallest: int = 1  # pixels a side
    fewest: int = 1  # images in each set
    masks: bool = False  # of masks alone: the reference holds 0 and 255
    network: str = ""  # of `NETWORKS`, which a metric of pairs looks through
    layer: str = ""
    rows: bool = False  # of all features, not only of their mean and covariance
    reference: bool = True  # whether there is anything to compare with
    turned: str = ""  # "sample" or "reference": the set that is needed under every element of --group
    raw: str = ""  # the metric in its place with --features raw
    draws: bool = False
    curve: Callable[..., Any] | None = None

    @property
    def paired(self) -> bool:
        return not (self.layer or self.draws)

    @property
    def loads(self) -> str:
        """The network it needs, "" for none."""
        return LAYERS[self.layer].network if self.layer else self.network

    def parts(self, side: str, elements: Iterable[Element]) -> list[Part]:
        """What a metric of sets needs of a set, "sample" or "reference"."""
        if side == "reference" and not self.reference:
            return []
        turns = [None] if self.rows else elements if self.turned == side else [IDENTITY]
        return [(self.layer, turn) for turn in turns]

    def check(self, reference: "np.ndarray | Images | Reference", sample: np.ndarray | Images) -> None:
        """Raise ValueError if these images, uint8 [N, H, W, C], cannot be measured."""
        images, given = as_images(sample, "sample"), as_reference(reference)
        _, height, width, channels = images.shape
        if min(height, width) < self.smallest:
            raise ValueError(f"images are {height} x {width} px; expected at least {self.smallest} a side")
        if self.loads and channels not in (1, 3):
            raise ValueError(f"images have {channels} channels; expected 1 or 3; choose the channels first")
        known = given.known.get((self.layer, IDENTITY))
        others = known.n if known else given.images and len(given.images)
        fewest = min(len(images), (others if self.reference else None) or len(images))
        if fewest < self.fewest:
            raise ValueError(f"found {fewest} image(s); expected at least {self.fewest} in each set")
        if self.reference:
            given.check(self.layer, self.rows, self.turned == "reference")
        if self.draws and images.draws is None:
            raise ValueError("the sample has one draw of every image; sample with --draws K, K at least 2")
        if self.masks and given.images and (others := set(given.images.levels) - {0, 255}):
            raise ValueError(
                f"the reference is no mask: it holds the value {min(others)}; expected 0 and 255 alone: multiply a "
                "mask of 0 and 1 by 255; for other images choose another metric, such as mse"
            )
        if not self.layer and given.images:
            as_pairs(given.images, images)


def describe(name: str) -> str:
    """What a metric is: definition, range, direction and source."""
    text = inspect.getdoc(METRICS[name].compute) or ""
    if METRICS[name].layer == "raw":
        original = next(other for other, metric in METRICS.items() if metric.raw == name)
        limits = text.split("\n\n")[1].split(" is better")[0]
        text = (
            f"{original} by {LAYERS['raw'].size} features of fixed random filters (evaluations/raw.py) at native "
            f"resolution.\n\n{limits} is better. Of this project, to rank models where no weights are to be had; not\n"
            "comparable with any published number."
        )
    return f"{name}: {text}"


def resolve(words: Sequence[str], features: str, group: str) -> list[str]:
    """The metrics asked for, each once, in the order asked; of `all` those that these features and this group allow.

    Raises ValueError.
    """
    if features not in FEATURES:
        raise unknown("features", features, FEATURES)
    names: list[str] = []
    for word in [words] if isinstance(words, str) else words:
        if word == "all":
            fitting = [name for name, m in METRICS.items() if not m.loads or (m.loads == "raw") == (features == "raw")]
            names += [name for name in fitting if group != "none" or not METRICS[name].turned]
            continue
        if word not in METRICS:
            raise unknown("metric", word, [*METRICS, "all"])
        if features == "raw" and METRICS[word].loads not in ("", "raw"):
            if not METRICS[word].raw:
                have = ", ".join(m.raw for m in METRICS.values() if m.raw)
                raise ValueError(f"{word} needs the weights of a network; --features raw has {have}")
            word = METRICS[word].raw
        if METRICS[word].turned and group == "none":
            raise ValueError(f"{word} needs a group: add --group D4, or another one the data is symmetric under")
        names.append(word)
    if not names:
        raise ValueError("no metric; name some, such as mse, or all; --metric help lists them")
    return list(dict.fromkeys(names))


FEATURES = ("inception", "raw")  # of --features

INVARIANCE = partial(Metric, higher_is_better=False, fewest=2, layer="pool", turned="sample")
METRICS = {  # the two numbers: the fewest pixels a side and images that it can be computed of
    "mse": Metric(paired.mse, higher_is_better=False),
    "mae": Metric(paired.mae, higher_is_better=False),
    "psnr": Metric(paired.psnr, higher_is_better=True),
    "ssim": Metric(paired.ssim, higher_is_better=True, smallest=11),
    "ms_ssim": Metric(paired.ms_ssim, higher_is_better=True, smallest=161),
    "lpips": Metric(paired.lpips, higher_is_better=False, smallest=31, network="alexnet"),
    "lpips_vgg": Metric(paired.lpips_vgg, higher_is_better=False, smallest=16, network="vgg16"),
    "dice": Metric(paired.dice, higher_is_better=True, masks=True),
    "accuracy": Metric(paired.accuracy, higher_is_better=True, masks=True),
    "mask_precision": Metric(paired.mask_precision, higher_is_better=True, masks=True),
    "mask_recall": Metric(paired.mask_recall, higher_is_better=True, masks=True),
    "best_mse": Metric(draws.best_mse, higher_is_better=False, draws=True),
    "best_psnr": Metric(draws.best_psnr, higher_is_better=True, draws=True),
    "best_ssim": Metric(draws.best_ssim, higher_is_better=True, smallest=11, draws=True),
    "mean_mse": Metric(draws.mean_mse, higher_is_better=False, draws=True),
    "mean_psnr": Metric(draws.mean_psnr, higher_is_better=True, draws=True),
    "mean_ssim": Metric(draws.mean_ssim, higher_is_better=True, smallest=11, draws=True),
    "spread": Metric(draws.spread, higher_is_better=True, draws=True),
    "calibration": Metric(draws.calibration, higher_is_better=False, draws=True, curve=draws.calibrated),
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
    "inv_fid_mean": INVARIANCE(sets.inv_fid_mean, raw="inv_fd_raw_mean", reference=False),
    "inv_fid_max": INVARIANCE(sets.inv_fid_max, raw="inv_fd_raw_max", reference=False),
    "inv_fid_spread": INVARIANCE(sets.inv_fid_spread, raw="inv_fd_raw_spread"),
}
METRICS |= {  # with --features raw
    metric.raw: replace(metric, smallest=8, layer="raw", raw="") for metric in METRICS.values() if metric.raw
}
