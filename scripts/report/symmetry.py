"""How equivariant the samples of a report are: measured with the very settings they were made with."""

from typing import Any, NamedTuple

import numpy as np
import torch

from datasets import eval_batches
from ddbm import load

from ..check_equivariance import CheckConfig, name_of, sampled, summary, tested_group
from ..common import open_split
from .runs import Run


class Certificate(NamedTuple):
    """Errors of the samples' own way, a line of the table of check_equivariance.

    how: the model comes by its symmetry; pictures: for every element its name and the `PICTURES` of one image.
    """

    group: str
    how: str
    way: str
    images: int
    line: dict[str, Any]
    pictures: list[tuple[str, list[np.ndarray]]]

    def __str__(self) -> str:
        way = f"equivariance error of sampling like this ({self.way}) under {self.group} ({self.how})"
        return f"{way}: mean {self.line['mean']:.1e}, largest {self.line['largest']:.1e}."


def certify_samples(run: Run, asked: str, device: torch.device) -> Certificate | str:
    """The certificate, or why there is none; asked: the group, "" the samples' or the model's."""
    settings, count = run.shown.settings, CheckConfig().num_images
    try:
        if run.gone:
            raise ValueError(run.gone)
        model = load(run.checkpoint, settings.weights, device)
        group, how = tested_group(model, asked or settings.group)
        data = open_split(run.config.data, "val")
        batch = next(eval_batches(data, batch_size=min(count, len(data))))
        rows, pictures = sampled(model, settings, group, batch)
    except (ValueError, OSError) as error:
        return f"equivariance not measured: {error}."
    how += "" if settings.symmetrize == "none" else f", sampled with symmetrize={settings.symmetrize}"
    way = f"{run.shown.way}, {settings.nfe} evaluations at most"
    (line,), names = summary(rows), map(name_of, group.elements)
    shown = list(zip(names, pictures, strict=True))
    return Certificate(group.name, how, way, len(batch.index), line, shown)
