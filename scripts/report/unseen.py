"""What samples of unseen pairs are worth: beside those of training pairs, and how near the training's targets lie."""

import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from datasets import DATASETS, PairedData, train_batches
from ddbm.config import Config, SampleConfig
from ddbm.files import stores
from ddbm.settings import values
from ddbm.symmetry.groups import GROUPS
from evaluations.copies import distance, nearest
from evaluations.images import to_bytes

from ..common import find_checkpoint, open_splits
from ..pictures import evenly
from .runs import Run, SampleSet, open_set, set_folders, written
from .scores import Measure, Scores

TARGETS, PIXELS = 4096, 1 << 27  # of the training, that are looked at, and of all of them together, about
IMAGES = 512  # samples that they are compared with, of a quarter of these pixels


class Nearest(NamedTuple):
    """Samples and the nearest targets of the training, the nearest samples first.

    numbers: which they are; sample, truth: how far they lie from the nearest target, float64 [N]; targets: that of the
    samples, uint8 [N, H, W, C], turned as they are.
    """

    numbers: list[int]
    sample: np.ndarray
    truth: np.ndarray
    targets: np.ndarray


class Unseen(NamedTuple):
    """What is said of a run, and behind it: scores of training pairs, and the nearest targets.

    training: samples of training pairs as those shown are of held-out ones; advice: the command that makes them.
    """

    words: list[str]
    training: SampleSet | None
    scores: Scores
    nearest: Nearest | None
    advice: str


def unseen(run: Run, own: Scores, measure: Measure, device: torch.device) -> Unseen:
    """own: the scores of the samples shown."""
    split = run.shown.settings.split
    if split in ("train", "all") and not _elsewhere(run, run.shown):
        which = "these are training pairs" if split == "train" else "there are training pairs among these"
        words = [f"{which}, so they do not say what the model makes of others (--split val)"]
        return Unseen(words, None, {}, None, "")
    training, said = training_set(run), list[str]()
    scores = measure(training.reference, training.samples)["metrics"] if training else {}
    if training:
        said.append(gap(scores, own))
    found: Nearest | None = None
    try:
        found, text = nearest_targets(run, device)
    except (ValueError, OSError) as error:
        text = f"nearest training targets not looked for: {error}"
    return Unseen([*said, text], training, scores, found, "" if training else advice(run))


def training_set(run: Run) -> SampleSet | None:
    """The newest samples of training pairs by the same checkpoint and settings as those shown of held-out ones."""
    for folder in reversed(set_folders(run.path)):
        try:
            found = open_set(folder)
        except (ValueError, OSError):  # said where all samples are listed
            continue
        if found.settings.split == "train" and _protocol(found) == _protocol(run.shown) and not _elsewhere(run, found):
            return found
    return None


def _protocol(samples: SampleSet) -> list[Any]:
    """How samples were made, whatever they are of; of several draws the first counts."""
    how = {k: v for k, v in values(samples.settings, deciding=True).items() if k not in ("split", "draws")}
    return [how, samples.record["checkpoint"], samples.record.get("checkpoint_digest")]


def _elsewhere(run: Run, samples: SampleSet) -> bool:
    """Whether samples are of other pairs than the run's."""
    place = samples.settings.data_dir
    return bool(place) and stores.full(place) != stores.full(run.config.data.data_dir or place)


def advice(run: Run) -> str:
    """The command that samples training pairs as those shown were sampled; "" where there is none."""
    if run.gone:
        return ""
    usual, own = values(SampleConfig()), values(run.shown.settings, deciding=True)
    flags = {"split": "train", "num_samples": len(run.shown.samples)}
    flags |= {name: value for name, value in own.items() if name not in ("split", "draws") and value != usual[name]}
    data, schedule = run.config.data.dataset, run.config.bridge.schedule
    place = run.path if find_checkpoint(run.path) == run.checkpoint else run.checkpoint
    words = [f"--{name} {shlex.quote(written(value))}" for name, value in flags.items()]
    return " ".join(["bash sample_ddbm.sh", *map(shlex.quote, (data, schedule, str(place))), *words])


def gap(training: Scores, unseen: Scores) -> str:
    """Whether a model does better on pairs that it has seen: on training pairs PSNR is +1.20 dB, SSIM +0.030: ..."""
    said, better, worse = [], [], []
    for metric, form in {"psnr": "PSNR {:+.2f} dB", "ssim": "SSIM {:+.3f}"}.items():
        a, b = (scores.get(metric) for scores in (training, unseen))
        if a and b and np.isfinite([a["mean"], b["mean"]]).all():
            said.append(form.format(a["mean"] - b["mean"]))
            (low, high), (least, most) = a["interval"], b["interval"]
            better += [metric.upper()] if low > most else []
            worse += [metric.upper()] if high < least else []
    if not said:
        return "training pairs could not be compared with held-out ones"
    what = [f"by {' and '.join(better)} it does better on pairs that it has seen"] if better else []
    what += [f"by {' and '.join(worse)} the held-out pairs are easier than those of training"] if worse else []
    what = what or ["no gap that the 95 % intervals would show"]
    return f"training pairs against held-out ones: {'; '.join([', '.join(said), *what])}"


def nearest_targets(run: Run, device: torch.device) -> tuple[Nearest, str]:
    """The nearest targets of the training, and what they tell in words. Raises ValueError or OSError.

    Under the elements by which the training turned its images, or the network turns its own.
    """
    (data,) = open_splits(run.config.data, "train", quiet=True)
    shown, shape = run.shown, (*data.size, data.target_channels)
    if shape != shown.samples.shape[1:]:
        raise ValueError(f"the training pairs are {shape} now, the samples {shown.samples.shape[1:]}")
    anywhere = run.config.data.dataset in DATASETS or run.config.data.fit == "crop"  # read again they lie elsewhere
    count = min(TARGETS, max(1, PIXELS // (shape[0] * shape[1])), TARGETS if anywhere else len(data))
    groups = (GROUPS[name] for name in (run.config.model.group, run.config.train.augment))
    elements = list(dict.fromkeys(element for group in groups for element in group.elements))
    index = evenly(len(shown.samples), min(IMAGES, max(1, PIXELS // 4 // (shape[0] * shape[1]))))
    sides = [shown.images(side, index) for side in ("sample", "target")]
    targets = training_targets(data, run.config, count)
    found = np.split(nearest(np.concatenate(sides), targets, elements, device), 2)
    sample, truth = (distance(images, near) for images, near in zip(sides, found, strict=True))
    what = "training targets" if anywhere or count == len(data) else f"of the {len(data)} training targets"
    what += " (patches that may lie anywhere)" if anywhere else ""
    words = (
        f"samples lie {np.median(sample):.1f} (median) from the nearest of {count} {what}, the truths "
        f"{np.median(truth):.1f}; {np.count_nonzero(sample < truth.min())} of {len(index)} samples are nearer than any "
        "truth"
    )
    if same := np.count_nonzero(truth == 0):
        words += f"; {same} of the truths are training targets themselves"
    order = np.argsort(sample, kind="stable")
    return Nearest([index[i] for i in order], sample[order], truth[order], found[0][order]), words


def training_targets(data: PairedData, config: Config, count: int) -> Iterator[np.ndarray]:
    """Batches of the first targets that the training saw, but not turned; uint8 [B, H, W, C]."""
    size = min(64, count)
    for batch in train_batches(data, batch_size=size, seed=config.train.seed):
        yield to_bytes(batch.target)[:count]
        count -= size
        if count <= 0:
            return
