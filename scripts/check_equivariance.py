"""The equivariance certificate: `python -m scripts.check_equivariance CKPT [--group D4] [--tolerance 1e-4]`.

Measures ‖S(g x) - g S(x)‖ / ‖S(x)‖ on validation images for network, denoiser (of latents, where the model has a codec,
and then also encoder and decoder), every sampler S of fixed steps and the translation of larger images, and every
element g of the group; prints a table and writes `equivariance_D4.json` and a picture. Exit code 0: every error in
float32 within the tolerance (with --symmetrize: of samples and translations), 1: not, 2: a mistake.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from datasets import Batch, eval_batches
from ddbm.bridges.samplers import SAMPLERS
from ddbm.certificate import PARTS, Row, compare, pointwise
from ddbm.config import MOVED, SampleConfig
from ddbm.files import stores
from ddbm.files.storage import write_whole
from ddbm.model import BridgeModel, load, plan_of
from ddbm.ranks.distributed import pick_device
from ddbm.settings import Settings, from_flags, setting
from ddbm.symmetry.groups import GROUPS, IDENTITY, Element, Group, act, inverse
from ddbm.translation.answers import translate
from evaluations.images import to_bytes

from . import common
from .common import TABLES, aligned, find_checkpoint, header_of, make_directory, open_split, refuse_conflict, run
from .pictures import sheet
from .sample import draw

AMPLIFIED = 10  # the picture's differences
TILES = 3  # validation images a side of the one that is translated
PICTURES = ("g x", "S(g x)", "turned back", f"difference x{AMPLIFIED}")
HEADS = ("map", "precision", "mean error", "largest", "Δx̂0", "8-bit values changed")
MAP = attrgetter("map", "precision")  # what rows of all elements have in common


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
    data_dir: str = setting("", "folder with the pairs; default: DATA_DIR, or what the model was trained on")
    codec: str = setting("", MOVED)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    out_dir: str = setting("", "where to write; default: the run's directory")


def tested_group(model: BridgeModel, asked: str) -> tuple[Group, str]:
    """The group to test, and how the model comes by its symmetry."""
    own, augment = model.group, GROUPS[model.config.train.augment]
    symmetric = len(own) > 1 and model.config.model.layers != "plain"
    how = f"{model.config.model.layers} layers, group {own.name}" if symmetric else "plain layers"
    if symmetric and not model.codec.commutes(own):
        how += ", a codec that does not turn by construction"
    if model.config.train.regularization_weight:
        how += ", regularised"
    if len(augment) > 1:
        how += f", training pairs turned by {augment.name}"
    group = GROUPS[asked] if asked else own if len(own) > 1 else augment
    if len(group) == 1:
        reason = "every model is equivariant under" if asked else "the model has, and was trained with,"
        raise ValueError(f"{reason} no group: say which to test, --group D4")
    group.check_size(model.images.height, model.images.width)
    return group, how


Pictures = dict[str, list[np.ndarray]]  # for every element the `PICTURES` of an image, uint8 `[H, W, C]`


def sampled(model: BridgeModel, settings: SampleConfig, group: Group, batch: Batch) -> tuple[list[Row], Pictures]:
    """Rows of sampling with these settings, and the pictures of the first image of the batch.

    Without symmetrization the group of sampling is the one tested, so that the noise turns with the source.
    """
    settings = replace(settings, group=group.name) if settings.symmetrize == "none" else settings
    model.precision = settings.precision
    outputs = {g: draw(model, batch.turned(g), settings).x_0.cpu() for g in group.elements}
    pictures = {}
    for g, output in outputs.items():
        back = act(inverse(g), output[:1])
        shown = (act(g, batch.source[:1]), output[:1], back, (back - outputs[IDENTITY][:1]) * AMPLIFIED)
        pictures[name_of(g)] = [to_bytes(image)[0] for image in shown]
    return compare(settings.sampler, settings.precision, outputs, image=True), pictures


def translated(model: BridgeModel, settings: SampleConfig, group: Group, batch: Batch) -> list[Row]:
    """Rows of translating two images that are larger than the windows, a square and one of two thirds of its height."""
    model.precision = settings.precision
    parts = [batch.source[i % len(batch.source)].cpu() for i in range(TILES**2)]
    image = torch.cat([torch.cat(parts[i * TILES : (i + 1) * TILES], 2) for i in range(TILES)], 1)
    label = None if batch.label is None else int(batch.label[0])
    passed = {name: getattr(settings, name) for name in ("sampler", "nfe", "symmetrize", "group", "seed")}
    rows = []
    for height in (image.shape[1], image.shape[1] * (TILES - 1) // TILES):
        turned = {g: act(g, image[:, :height]) for g in group.elements}
        outputs = {g: translate(model, x, label=label, **passed).sample[None] for g, x in turned.items()}
        rows += compare(f"translate {height}x{image.shape[2]}", settings.precision, outputs, image=True)
    return rows


def summary(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One line a map and precision: means over elements, the largest error, Δx̂0."""
    lines = []
    for (name, precision), part in groupby(rows, MAP):
        means, largest, *others = zip(
            *((row.mean, row.largest, row.absolute, row.changed) for row in part), strict=True
        )
        mean, delta, changed = (None if None in each else float(np.mean(each)) for each in (means, *others))
        line = {"map": name, "precision": precision, "mean": mean, "largest": max(largest)}
        lines.append(line | {"delta_x0": delta, "changed": changed})
    return lines


def cells(line: dict[str, Any]) -> list[str]:
    """A line of `summary` in words, under `HEADS`."""
    forms = {"mean": ".1e", "largest": ".1e", "delta_x0": ".1e", "changed": ".3%"}
    numbers = ("–" if line[key] is None else format(line[key], form) for key, form in forms.items())
    return [line["map"], line["precision"], *numbers]


def name_of(element: Element) -> str:
    """An element as a word: mirrored left-right if m, then turned counter-clockwise by degrees."""
    return f"{'m' if element[0] else ''}{90 * element[1]}"


def main(argv: Sequence[str]) -> int:
    settings, extra = from_flags(CheckConfig, argv, {"ckpt": "checkpoint, or directory of a run"}, tables=TABLES)
    settings = replace(settings, data_dir=common.given_folder(settings.data_dir))
    path = find_checkpoint(extra.ckpt)
    model = load(path, settings.weights, pick_device(settings.device), settings.codec)
    group, how = tested_group(model, settings.group)
    symmetrized = settings.symmetrize != "none"
    if symmetrized:
        refuse_conflict(model, settings.group)
        how += f", sampled with symmetrize={settings.symmetrize}"
    fixed = [name for name, sampler in SAMPLERS.items() if not sampler.adaptive]
    for name in fixed:
        plan_of(model, name, settings.nfe, "", settings.symmetrize, group).check()
    mirror = stores.Mirror(settings.out_dir or stores.address(path.parent.parent))
    out = make_directory(mirror.path)

    data = open_split(model.config.data, "val", settings.data_dir, header_of(path))
    batch = next(eval_batches(data, batch_size=min(settings.num_images, len(data))))
    model.check_images(batch.source)
    inside, images = batch.to(next(model.parameters()).device), len(batch.source)
    sampling = SampleConfig(nfe=settings.nfe, symmetrize=settings.symmetrize, group=group.name, seed=settings.seed)
    rows: list[Row] = []
    pictures = {}
    for precision in dict.fromkeys((model.config.train.precision, "fp32")):
        model.precision = precision
        rows += pointwise(model, inside, group, settings.seed)
        for name in fixed:
            own = replace(sampling, sampler=name, precision=precision)
            found, pictures[name] = sampled(model, own, group, batch)
            rows += found
        rows += translated(model, replace(sampling, precision=precision), group, batch)
    lines = summary(rows)
    parts = PARTS if symmetrized else ()
    deciding = [row for row in rows if row.precision == "fp32" and row.map not in parts]
    within = all(row.largest <= settings.tolerance for row in deciding)
    content = {
        "checkpoint": path.name, "group": group.name, "how": how, "images": images, "within_tolerance": within,
        "settings": asdict(settings), "summary": lines, "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    shown = sheet(list(pictures["dbim"].values()), [f"g = {name}" for name in pictures["dbim"]], PICTURES)
    file_name = f"equivariance_{group.name}" + (f"_{settings.symmetrize}" if symmetrized else "")
    write_whole(out / f"{file_name}.json", json.dumps(content, indent=1).encode())
    write_whole(out / f"{file_name}.png", lambda file: shown.save(file, "PNG"))
    mirror.send(f"{file_name}.*")

    print(f"{path.name} under {group.name} ({how}), {images} validation images, {settings.nfe} evaluations")
    print(aligned([HEADS, *map(cells, lines)]))
    print("mean error by element (m: mirrored left-right; degrees: then turned counter-clockwise)")
    by_element = [[*key, *(f"{row.mean:.1e}" for row in part)] for key, part in groupby(rows, MAP)]
    print(aligned([["map", "precision", *map(name_of, group.elements[1:])], *by_element]))
    print("error: ‖S(g x) - g S(x)‖ / ‖S(x)‖ of an image; Δx̂0: mean of |S(g x) - g S(x)|, images on [0, 1]")
    if symmetrized:
        print(f"--symmetrize {settings.symmetrize} makes samples symmetric: parts of the model do not count")
    verdict = "within" if within else "NOT within"
    print(f"{verdict} tolerance {settings.tolerance:g}: {stores.address(out / file_name)}.json, .png")
    return 0 if within else 1


if __name__ == "__main__":
    run(main)
