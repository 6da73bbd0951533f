"""Trains an autoencoder: `python -m scripts.train_codec --dataset NAME [--flag value ...]` (scripts/train_codec.sh).

On both images of the pairs: bridges then live between their latents (--codec RUN). --from_kl: a published AutoencoderKL
is trained further. Reconstruction and equivariance before and after lie in the run's codec.json.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets import PairedData, batches_of
from ddbm.codecs import kl, tuned
from ddbm.codecs.symmetric import Autoencoder
from ddbm.config import CodecConfig, CodecRun, CodecShape, CodecTrainConfig
from ddbm.files.storage import read_json, write_whole
from ddbm.networks.convolutions import folded
from ddbm.networks.unet import check_size
from ddbm.ranks import distributed
from ddbm.symmetry.averaging import equivariance_error
from ddbm.symmetry.groups import GROUPS
from ddbm.training.autoencoding import AutoencoderModel, Autoencoding, Perceptual
from ddbm.training.trainer import Trainer
from evaluations import raw
from evaluations.evaluator import evaluate
from evaluations.images import as_images, to_bytes
from evaluations.networks import NETWORKS

from . import common, training
from .common import aligned, inside, run, say
from .pictures import evenly
from .training import EXTRA, Built, Program

TABLES = {**common.TABLES, "equivariance_group": list(GROUPS)}
OWN = {
    "--from_kl": "diffusers' AutoencoderKL (directory, file, name in the hub's cache) that is trained further",
    "--to_kl": "with --from_kl: directory that the result is written to as diffusers does, at the end",
}
MEASURED, AT_ONCE = 64, 16  # validation pairs, evenly chosen; of these so many at once
SMALLEST = {"vgg16": 16, "alexnet": 31, "raw": 8}  # pixels a side


def parse(argv: Sequence[str]) -> tuple[CodecRun, argparse.Namespace]:
    config, extra = training.parse(CodecRun, argv, TABLES, EXTRA | OWN)
    if extra.from_kl and config.codec != CodecConfig():
        raise ValueError("--from_kl brings its own network: leave out the flags of ours, such as --layers")
    if extra.to_kl and not extra.from_kl:
        raise ValueError("--to_kl writes what --from_kl brought: give both, or neither")
    return config, extra


def fitting(sides: str, data: PairedData) -> tuple[list[str], int]:
    """Which images of the pairs an autoencoder can be trained on together, and their channels; grey ones fit any."""
    channels = {"target": data.target_channels, "source": data.source_channels}
    channels = channels if sides == "both" else {sides: channels[sides]}
    most = max(channels.values())
    fit = [side for side, count in channels.items() if count in (1, most)]
    for side in channels.keys() - fit:
        say(f"note: {side}s have {channels[side]} channels, the others {most}: the codec is trained on these alone")
    return fit, most


def perceptual_of(settings: CodecTrainConfig, data: PairedData, device: torch.device) -> tuple[str, Perceptual | None]:
    """The name of a perceptual loss, the same on every rank, and the loss."""
    name, cpu = settings.perceptual, torch.device("cpu")
    if not settings.perceptual_weight:
        return name, None

    def find() -> str:
        with suppress(FileNotFoundError):
            return NETWORKS["vgg16"](None, cpu, False).name and "vgg16"
        return "raw"

    if name == "auto":
        name = distributed.from_main(find)
        if name == "raw":
            say("note: the weights of VGG16 are not here: raw features of random filters in the place of LPIPS")
    if min(data.size) < SMALLEST[name]:
        raise ValueError(f"--perceptual {name} needs images of {SMALLEST[name]} pixels a side, found {min(data.size)}")
    if name == "raw":
        return name, partial(per_channel, partial(raw_difference, [kernel.to(device) for kernel in raw.filters()]))
    network = NETWORKS[name](None, device, False).run.requires_grad_(False)  # type: ignore[attr-defined]
    return name, partial(per_channel, lambda x, y: network(x, y).flatten())


def per_channel(loss: Perceptual, x: Tensor, y: Tensor) -> Tensor:
    """A loss of colour images; where there are not three channels, the mean over them, each taken for grey."""
    if x.shape[1] == 3:
        return loss(x, y)
    one, other = (images.flatten(0, 1)[:, None].expand(-1, 3, -1, -1) for images in (x, y))
    return loss(one, other).unflatten(0, (len(x), -1)).mean(1)


def raw_difference(kernels: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of what random filters of three scales see, of every image."""
    pairs = zip(raw.maps(kernels, x), raw.maps(kernels, y), strict=True)
    return torch.stack([(a - b).square().mean((1, 2, 3)) for a, b in pairs]).mean(0)


def build(
    config: CodecRun, extra: argparse.Namespace, data: PairedData, held_out: PairedData, device: torch.device
) -> Built:
    settings = config.train
    sides, channels = fitting(settings.sides, data)
    network: Any = tuned.opened(extra.from_kl) if extra.from_kl else Autoencoder(config.codec, channels)
    if channels not in (1, network.channels):
        raise ValueError(f"--from_kl {extra.from_kl} takes {network.channels} channels, the images have {channels}")
    check_size(*data.size, cell=network.factor)
    layers = "none" if extra.from_kl else config.codec.group
    group = GROUPS[settings.equivariance_group or layers]
    for acting in (group, GROUPS[layers]):
        acting.check_size(*data.size)
    if settings.equivariance_weight and len(group) == 1:
        raise ValueError("--equivariance_weight needs a group: add --equivariance_group, such as D4")
    if extra.to_kl:
        check_free(Path(extra.to_kl), Path(extra.from_kl))
    name, perceptual = perceptual_of(settings, data, device)
    model = AutoencoderModel(network, CodecShape(network.channels, network.description if extra.from_kl else ""))
    objective = Autoencoding(settings, group, sides, perceptual)
    own = f"{config.codec.layers} layers, group {config.codec.group}, factor {network.factor}"
    return Built(
        replace(config, train=replace(settings, perceptual=name)), model, objective,
        f"{'AutoencoderKL of ' + extra.from_kl if extra.from_kl else own}; images: {', '.join(sides)}",
        report=partial(report, objective, held_out, extra.to_kl),
    )  # fmt: skip


def check_free(folder: Path, origin: Path) -> None:
    """Raises ValueError unless an AutoencoderKL may be written to a folder."""
    others = {path.name for path in folder.glob("*")} - {kl.CONFIG, kl.WEIGHTS}
    if others or folder.is_file() or (folder.exists() and origin.exists() and folder.samefile(origin)):
        raise ValueError(f"--to_kl {folder} holds something else already: choose another directory")


def report(objective: Autoencoding, held_out: PairedData, to_kl: str, training: Trainer, run_dir: Path) -> None:
    """Measures before and after the training, once each, and says it; the result goes to `to_kl`, too, if given."""
    path, done = run_dir / "codec.json", training.step >= training.settings.total_steps
    known = distributed.from_main(lambda: read_json(path) if path.exists() else {})
    network: Any = training.averaged_network()
    when = "before" if "before" not in known else "after" if done else ""
    if when and known.get(when, {}).get("step") != training.step:
        known[when] = {"step": training.step} | distributed.from_main(
            lambda: measure(objective, training.model, network, held_out, training.device)
        )
        if distributed.is_main():
            write_whole(path, json.dumps(known, indent=2).encode())
            names = list(known["before"])
            lines = [
                [time, *(f"{known[time][name]:.4g}" for name in names)] for time in ("before", "after") if time in known
            ]
            print(aligned([["validation images", *names], *lines]))
    if to_kl and done and distributed.is_main():
        tuned.export(network, Path(to_kl))
        print(f"written as diffusers does: {to_kl}")


@torch.inference_mode()
def measure(
    objective: Autoencoding, model: AutoencoderModel, network: Any, data: PairedData, device: torch.device
) -> dict[str, float]:
    """Errors of reconstructing validation images from their most likely latents, in float32, and of equivariance."""
    numbers, errors = evenly(len(data), MEASURED), dict[str, float]()
    images, masks, answers = [], [], []
    with folded(network):
        parts = [numbers[i : i + AT_ONCE] for i in range(0, len(numbers), AT_ONCE)]
        for batch in batches_of(data, parts, skip=data.skipped is not None):
            x = objective.images(model, batch.to(device)).flatten(0, 1)
            y, mean, _ = network(x)
            images.append(to_bytes(x))
            masks.append(inside(batch).repeat_interleave(len(objective.sides), 0).permute(0, 2, 3, 1).numpy())
            answers.append(to_bytes(y.nan_to_num()))
            if len(objective.group) > 1 and not errors:  # of the first images
                for part, run, given in (
                    ("encoder", lambda images: network.moments(images)[0], x), ("decoder", network.decoded, mean),
                ):  # fmt: skip
                    found = equivariance_error(run, given, objective.group)
                    errors[f"{part}_equivariance"] = torch.stack([*found.values()]).mean().item()
    truth = as_images(np.concatenate(images), "images", np.concatenate(masks))
    scores = evaluate(truth, np.concatenate(answers), ("mse", "psnr"))["metrics"]
    return {name: float(score["mean"]) for name, score in scores.items()} | errors


CODEC = Program("scripts.train_codec", parse, lambda config: f"{config.data.dataset}_codec", build)
main = partial(training.main, CODEC)

if __name__ == "__main__":
    run(main)
