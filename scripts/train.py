"""Trains a bridge: `python -m scripts.train --dataset NAME --schedule NAME [--flag value ...]` (see train_ddbm.sh)."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from datasets import PairedData, batches_of
from datasets.base import Pairs
from datasets.latents import Latents
from ddbm.bridges.samplers import SAMPLERS
from ddbm.codecs import Codec, Stored, measure, open_codec
from ddbm.config import Config
from ddbm.files import stores
from ddbm.model import BridgeModel
from ddbm.ranks import distributed
from ddbm.symmetry.groups import GROUPS
from ddbm.training.objectives import objective_of

from . import common, training
from .common import run, say, shape_of
from .evaluation import HIGHER_IS_BETTER, Evaluation
from .pictures import evenly
from .training import Built, Program

MEASURED, AT_ONCE = 1024, 16  # training pairs whose latents are measured
TABLES = {**common.TABLES, "eval_sampler": list(SAMPLERS), "best_metric": list(HIGHER_IS_BETTER)}


def parse(argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    config, extra = training.parse(Config, argv, TABLES)
    config = replace(config, model=replace(config.model, codec=common.from_anywhere(config.model.codec)))
    if config.train.packed:
        config = replace(config, train=replace(config.train, packed=stores.full(config.train.packed)))
    if config.model.layers != "plain" and config.model.group == "none":
        raise ValueError(f"--layers {config.model.layers} needs a group: add --group, such as D4")
    if config.model.layers == "plain" and config.model.group != "none" and not config.train.regularization_weight:
        say(
            f"note: plain layers do not know group {config.model.group}: it serves sampling alone; --layers tied or "
            "regular makes the network symmetric"
        )
    return config, extra


def build(
    config: Config, extra: argparse.Namespace, data: PairedData, held_out: PairedData, device: torch.device
) -> Built:
    shape, looks = shape_of(data), config.eval
    codec = open_codec(config.model.codec)
    if codec.digest and config.train.align_tolerance:
        raise ValueError("--align_tolerance counts pixels, and --codec has none: register the pairs, or leave it out")
    packed = open_packed(config, codec.digest, data)
    model = BridgeModel(config, shape, codec)
    evaluation = Evaluation(model, held_out, looks, config.train.augment) if looks.eval_interval else None
    described = {"classes": tuple(data.classes), "layout": data.layout, "native": data.native, "stored": data.stored}
    what = f"{config.model.layers} layers, group {config.model.group}"
    what += (
        f", latents {model.latents.target_channels}x{model.latents.height}x{model.latents.width}"
        if codec.digest
        else ""
    )
    what += " encoded before" if packed else ""
    measured = (Stored(codec.latent_channels), packed) if packed else (codec, data)
    return Built(
        config, model, objective_of(config.train, model), what, evaluation, described,
        prepare=partial(standardise, model, *measured), pairs=packed,
    )  # fmt: skip


def open_packed(config: Config, digest: str, data: PairedData) -> Latents | None:
    """The latents that --packed names. Raises ValueError for those of another codec (its digest) or of other pairs."""
    place, settings = config.train.packed, config.train
    if not place:
        return None
    if not digest:
        raise ValueError(f"--packed {place} holds latents, and --codec pixels knows none: add --codec, which made them")
    if settings.augment_angle or settings.augment_scale or settings.augment_shift or config.data.degrade:
        raise ValueError(
            f"--packed {place} holds pairs as they lie: leave --augment_angle, _scale, _shift and --degrade out"
        )
    packed, again = Latents(stores.fetched(place)), "encode the pairs anew by scripts.encode_dataset"
    pack = packed.pack
    wanted = replace(pack, codec=digest, data=config.data, images=shape_of(data), marks=training.marks(data, "train"))
    if differing := pack.apart(wanted):
        raise ValueError(f"--packed {place} is of another codec or other pairs ({'; '.join(differing)}): {again}")
    if not {*GROUPS[settings.augment].elements} <= packed.position.keys():
        raise ValueError(f"--augment {settings.augment} needs copies that --packed {place} lacks: {again} with it")
    if settings.latents == "sample" and pack.latents != "sample":
        raise ValueError(f"--latents sample: --packed {place} holds the most likely ones alone: {again} with it")
    return packed


def standardise(model: BridgeModel, codec: Codec, pairs: Pairs) -> None:
    """Measures the latents that a codec makes of training pairs, so that the bridge sees numbers of its own scale."""
    if not model.codec.digest:
        return
    device, numbers = next(model.parameters()).device, evenly(len(pairs), MEASURED)
    parts = [numbers[i : i + AT_ONCE] for i in range(0, len(numbers), AT_ONCE)]
    batches = (batch.to(device) for batch in batches_of(pairs, parts, skip=model.config.data.skip_unreadable))
    model.standardise(*distributed.from_main(lambda: measure(codec, batches, model.config.bridge.sigma_data)))


BRIDGE = Program("scripts.train", parse, lambda config: f"{config.data.dataset}_{config.bridge.schedule}", build)
main = partial(training.main, BRIDGE)

if __name__ == "__main__":
    run(main)
