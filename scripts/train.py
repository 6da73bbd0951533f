"""Trains a bridge: `python -m scripts.train --dataset NAME --schedule NAME [--flag value ...]` (see train_ddbm.sh)."""

import argparse
from collections.abc import Sequence
from functools import partial

import torch

from datasets import PairedData
from ddbm.bridges.samplers import SAMPLERS
from ddbm.config import Config
from ddbm.model import BridgeModel
from ddbm.training.objectives import objective_of

from . import common, training
from .common import run, say, shape_of
from .evaluation import HIGHER_IS_BETTER, Evaluation
from .training import Built, Program

TABLES = {**common.TABLES, "eval_sampler": list(SAMPLERS), "best_metric": list(HIGHER_IS_BETTER)}


def parse(argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    config, extra = training.parse(Config, argv, TABLES)
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
    model, looks = BridgeModel(config, shape_of(data)), config.eval
    evaluation = Evaluation(model, held_out, looks, config.train.augment) if looks.eval_interval else None
    described = {"classes": tuple(data.classes), "layout": data.layout, "native": data.native, "stored": data.stored}
    what = f"{config.model.layers} layers, group {config.model.group}"
    return Built(config, model, objective_of(config.train, model), what, evaluation, described)


BRIDGE = Program("scripts.train", parse, lambda config: f"{config.data.dataset}_{config.bridge.schedule}", build)
main = partial(training.main, BRIDGE)

if __name__ == "__main__":
    run(main)
