"""How equivariant the samples of a report are: measured with the very settings they were made with."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from datasets import Batch, eval_batches
from ddbm import load
from ddbm.certificate import compare
from ddbm.config import SampleConfig
from ddbm.model import BridgeModel
from ddbm.symmetry.groups import IDENTITY, Group, act, inverse

from ..check_equivariance import AMPLIFIED, CheckConfig, measure, name_of, summary, tested_group
from ..common import open_split, to_bytes
from ..sample import draw
from .runs import Run

OWN = "these samples"
PICTURES = ("g x", "S(g x)", "turned back", f"difference ×{AMPLIFIED}")


class Certificate(NamedTuple):
    """Errors of the samples' own way, and of network, denoiser and all samplers at their default settings.

    They are lines of check_equivariance's table. how: the model comes by its symmetry. pictures: for every element its
    name and the `PICTURES` of one image.
    """

    group: str
    how: str
    way: str
    images: int
    own: dict[str, Any]
    nfe: int
    others: list[dict[str, Any]]
    pictures: list[tuple[str, list[np.ndarray]]]


def certify_samples(run: Run, asked: str, device: torch.device, others: bool) -> Certificate | str:
    """The certificate, or why there is none; asked: the group, "" the samples' or the model's; others: not only S."""
    if run.gone:
        return f"Not measured: {run.gone}."
    settings = run.shown.settings
    try:
        model = load(run.checkpoint, settings.weights, device)
        group, how = tested_group(model, asked or settings.group)
        check = CheckConfig(group=group.name, symmetrize=settings.symmetrize, seed=settings.seed)
        if others:
            rows, batch = measure(model, check, group)
        else:
            data = open_split(run.config.data, "val")
            rows, batch = [], next(iter(eval_batches(data, batch_size=min(check.num_images, len(data)))))
        own, pictures = own_errors(model, settings, group, batch)
    except (ValueError, OSError) as error:
        return f"Not measured: {error}."
    how += "" if settings.symmetrize == "none" else f", sampled with symmetrize={settings.symmetrize}"
    way = f"{run.shown.way}, {settings.nfe} evaluations at most"
    return Certificate(group.name, how, way, len(batch.index), own, check.nfe, summary(rows), pictures)


def own_errors(
    model: BridgeModel, settings: SampleConfig, group: Group, batch: Batch
) -> tuple[dict[str, Any], list[tuple[str, list[np.ndarray]]]]:
    """The errors of sampling with these settings, and the pictures of the first image of the batch.

    The noise turns with the source under the group that is tested, as in the certificate; a symmetrized sampler keeps
    its own group.
    """
    model.precision = settings.precision
    if settings.symmetrize == "none":
        settings = replace(settings, group=group.name)
    outputs = {g: draw(model, batch.turned(g), settings).x_0.cpu() for g in group.elements}
    straight = outputs[IDENTITY]
    rows, pictures = [], []
    for g, output in outputs.items():
        if g != IDENTITY:
            rows.append(compare(OWN, settings.precision, g, output, act(g, straight), image=True))
        back = act(inverse(g), output[:1])
        shown = (act(g, batch.source[:1]), output[:1], back, (back - straight[:1]) * AMPLIFIED)
        pictures.append((name_of(g), [to_bytes(image)[0] for image in shown]))
    return summary(rows)[0], pictures


def symmetry_line(found: Certificate | str) -> str:
    """The equivariance error of the samples, in one line."""
    if isinstance(found, str):
        return f"equivariance error: {found[0].lower()}{found[1:]}"
    return (
        f"equivariance error of sampling like this ({found.way}) under {found.group} ({found.how}): "
        f"mean {found.own['mean']:.1e}, largest {found.own['largest']:.1e}."
    )
