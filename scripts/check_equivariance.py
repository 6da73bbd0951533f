"""The equivariance certificate: `python -m scripts.check_equivariance CKPT [--group D4] [--tolerance 1e-4]`.

Measures, on validation images, ‖S(g x) - g S(x)‖ / ‖S(x)‖ for network, denoiser and every sampler S of fixed steps, and
every element g of the group, in the precision the model was trained in and in float32. Prints a table, writes
`equivariance_D4.json` and a picture into the run's directory. Exit code 0: every error in float32 within the tolerance
(with --symmetrize, of the samplers, which are what it makes symmetric), 1: not, 2: a mistake.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image

from datasets import Batch, eval_batches
from ddbm.bridges.samplers import SAMPLERS
from ddbm.certificate import Row, certify, turned_back
from ddbm.files import stores
from ddbm.files.storage import write_whole
from ddbm.model import BridgeModel, load, plan_of
from ddbm.ranks.devices import pick_device
from ddbm.settings import Settings, from_flags, setting
from ddbm.symmetry.groups import GROUPS, IDENTITY, Group

from .common import TABLES, find_checkpoint, make_directory, open_split, refuse_conflict, run, to_bytes
from .pictures import sheet

AMPLIFIED = 10  # the picture's differences
DEFINITIONS = (
    "error: ‖S(g x) - g S(x)‖ / ‖S(x)‖ of an image; Δx̂0: mean over pixels, images and elements g of "
    "|S(g x) - g S(x)|, images on [0, 1]"
)


@dataclass(frozen=True)
class CheckConfig(Settings):
    """The certificate"""

    group: str = setting("", "group to test; default: the model's, or the one its training turned the images by")
    tolerance: float = setting(1e-4, "largest relative error that passes, in float32", above=0)
    symmetrize: str = setting("none", "how the samplers are made symmetric: none, average or canonical")
    nfe: int = setting(20, "network evaluations of the samplers", above=0)
    num_images: int = setting(8, "validation images", above=0)
    seed: int = setting(0, "seed of the noise")
    weights: str = setting("ema", "which weights: ema, another average of the checkpoint (ema_RATE), or model")
    data_dir: str = setting("", "folder with the pairs; default: the one the model was trained on")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    out_dir: str = setting("", "where to write; default: the run's directory")


def tested_group(model: BridgeModel, asked: str) -> tuple[Group, str]:
    """The group to test, and how the model comes by its symmetry."""
    own, augment = model.group, GROUPS[model.config.train.augment]
    symmetric = len(own) > 1 and model.config.model.layers != "plain"
    how = f"{model.config.model.layers} layers, group {own.name}" if symmetric else "plain layers"
    if model.config.train.regularization_weight:
        how += ", regularised"
    if len(augment) > 1:
        how += f", training pairs turned by {augment.name}"
    group = GROUPS[asked] if asked else own if len(own) > 1 else augment
    if asked and len(group) == 1:
        raise ValueError("every model is equivariant under group none: say another --group")
    if len(group) == 1:
        raise ValueError("the model has no group and was trained without turning images: say which to test, --group D4")
    group.check_size(model.images.height, model.images.width)
    return group, how


def summary(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One line a map and precision: means over elements, the largest error, Δx̂0."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    lines = []
    for (name, precision), group in groupby(rows, key=lambda row: (row.map, row.precision)):
        part = list(group)
        lines.append(
            {
                "map": name,
                "precision": precision,
                "mean": mean([row.mean for row in part]),
                "largest": max(row.largest for row in part),
                "delta_x0": mean([row.absolute for row in part]),
                "changed": mean([row.changed for row in part]),
            }
        )
    return lines


def table(lines: Sequence[dict[str, Any]]) -> str:
    text = [f"{'map':<16}{'precision':<11}{'mean error':>12}{'largest':>12}{'Δx̂0':>11}{'8-bit values changed':>22}"]
    for line in lines:
        extra = ["-" if line[k] is None else format(line[k], f) for k, f in (("delta_x0", ".1e"), ("changed", ".3%"))]
        text.append(
            f"{line['map']:<16}{line['precision']:<11}{line['mean']:>12.1e}{line['largest']:>12.1e}"
            f"{extra[0]:>10}{extra[1]:>22}"
        )
    return "\n".join(text)


def name_of(element: Sequence[int]) -> str:
    """An element as a word: mirrored left-right if m, then turned counter-clockwise by degrees."""
    flip, turns = element
    return ("m" if flip else "") + str(90 * turns)


def by_element(rows: Sequence[Row], group: Group) -> str:
    """The mean errors of every map, a column an element but the identity."""
    text = ["mean error by element (m: mirrored left-right; degrees: then turned counter-clockwise)"]
    text.append(f"{'':<27}" + "".join(f"{name_of(g):>10}" for g in group.elements if g != IDENTITY))
    for (name, precision), part in groupby(rows, key=lambda row: (row.map, row.precision)):
        text.append(f"{name:<16}{precision:<11}" + "".join(f"{row.mean:>10.1e}" for row in part))
    return "\n".join(text)


def measure(model: BridgeModel, settings: CheckConfig, group: Group) -> tuple[list[Row], Batch]:
    """All rows, the model's own precision first, and the pairs they were measured on."""
    data = open_split(model.config.data, "val", settings.data_dir)
    device = next(model.parameters()).device
    batch = next(eval_batches(data, batch_size=min(settings.num_images, len(data)))).to(device)
    model.check_images(batch.source)
    rows: list[Row] = []
    for precision in dict.fromkeys((model.config.train.precision, "fp32")):
        model.precision = precision
        rows += certify(
            model, batch.target, batch.source, group,
            nfe=settings.nfe, symmetrize=settings.symmetrize, seed=settings.seed, label=batch.label,
        )  # fmt: skip
    return rows, batch


def picture(model: BridgeModel, settings: CheckConfig, group: Group, batch: Batch) -> Image.Image:
    """For every g a column: g x, S(g x), turned back, and the amplified difference from S(x)."""
    label = None if batch.label is None else batch.label[:1]
    columns = turned_back(
        model, batch.source[0], group, nfe=settings.nfe, symmetrize=settings.symmetrize, seed=settings.seed, label=label
    )
    images = [[to_bytes(image[None])[0] for image in (*column[:3], column[3] * AMPLIFIED)] for column in columns]
    names = [f"g = {name_of(g)}" for g in group.elements]
    return sheet(images, names, ["g x", "S(g x)", "turned back", f"difference x{AMPLIFIED}"])


def main(argv: Sequence[str]) -> int:
    settings, extra = from_flags(CheckConfig, argv, {"ckpt": "checkpoint, or directory of a run"}, tables=TABLES)
    path = find_checkpoint(extra.ckpt)
    model = load(path, settings.weights, pick_device(settings.device))
    group, how = tested_group(model, settings.group)
    symmetrized = settings.symmetrize != "none"
    if symmetrized:
        refuse_conflict(model, settings.group)
        how += f", sampled with symmetrize={settings.symmetrize}"
    for sampler, own in SAMPLERS.items():
        if not own.adaptive:
            plan_of(model, sampler, settings.nfe, "", settings.symmetrize, group).check()
    mirror = stores.Mirror(settings.out_dir or stores.address(path.parent.parent))
    out = make_directory(mirror.path)

    rows, batch = measure(model, settings, group)
    lines, images = summary(rows), len(batch.source)
    deciding = [row for row in rows if row.precision == "fp32" and (not symmetrized or row.map in SAMPLERS)]
    within = all(row.largest <= settings.tolerance for row in deciding)
    content = {
        "checkpoint": path.name, "group": group.name, "how": how, "images": images, "within_tolerance": within,
        "settings": asdict(settings), "summary": lines, "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    shown = picture(model, settings, group, batch)
    name = f"equivariance_{group.name}" + (f"_{settings.symmetrize}" if symmetrized else "")
    write_whole(out / f"{name}.json", json.dumps(content, indent=1).encode())
    write_whole(out / f"{name}.png", lambda file: shown.save(file, "PNG"))
    mirror.send(f"{name}.*")

    print(f"{path.name} under {group.name} ({how}), {images} validation images, {settings.nfe} evaluations")
    print(table(lines), by_element(rows, group), DEFINITIONS, sep="\n")
    if symmetrized:
        print(f"--symmetrize {settings.symmetrize} makes the samplers symmetric: they alone decide")
    verdict = f"{'within' if within else 'NOT within'} tolerance {settings.tolerance:g}"
    print(f"{verdict}: {stores.address(out / name)}.json, .png")
    return 0 if within else 1


if __name__ == "__main__":
    run(main)
