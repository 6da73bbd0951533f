"""The report of a run: `python -m scripts.report RUN [--device auto]` writes RUN/report.html and RUN/report.png.

It shows the run's newest samples (sample_ddbm.sh): settings, loss curve, source | sample | target, the metrics beside
two baselines, and the equivariance certificate (scripts/check_equivariance.py) under the run's group.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from datasets import train_batches
from ddbm import load, logger
from ddbm.config import Config, SampleConfig
from ddbm.groups import GROUPS
from ddbm.model import BridgeModel
from ddbm.settings import from_dict, from_flags, sections, setting
from ddbm.storage import is_local, location, write_whole
from evaluations.baselines import LinearMap
from evaluations.evaluator import evaluate
from evaluations.images import load_images

from . import check_equivariance
from .check_equivariance import CheckConfig
from .common import find_checkpoint, make_directory, open_split, pick_device, run, to_bytes
from .render import html, picture

METRICS = ("mse", "psnr", "ssim")
FIT_PIXELS = 1_000_000  # training pixels the linear baseline is fitted on


@dataclass(frozen=True)
class ReportConfig:
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")


class Report(NamedTuple):
    """What a report shows."""

    run: Path
    config: Config
    settings: SampleConfig
    checkpoint: str
    nfe: int
    log: list[dict[str, Any]]
    source: np.ndarray
    sample: np.ndarray
    target: np.ndarray
    metrics: dict[str, dict[str, float | None]]  # row (sample, baselines) -> metric -> mean
    certificate: dict[str, Any] | None  # of scripts/check_equivariance.py; None without a group
    turned: Image.Image | None  # its picture


def newest_samples(run_dir: Path) -> Path:
    """The folder of the samples written last."""
    found = sorted((run_dir / "samples").glob("*/sampling.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(f"{run_dir} has no samples: run bash sample_ddbm.sh DATASET SCHEDULE {run_dir} first")
    return found[-1].parent


def endpoint(source: np.ndarray, channels: int) -> np.ndarray:
    """The source as an answer: with the target's number of channels (the mean, repeated, if they differ)."""
    if source.shape[-1] == channels:
        return source
    return source.mean(-1, keepdims=True).round().astype(np.uint8).repeat(channels, -1)


def fit_linear_map(config: Config) -> LinearMap:
    """7x7 source pixels -> target pixel, by least squares on training pairs as the training saw them."""
    data = open_split(config.data, "train")
    elements = GROUPS[config.train.augment].elements
    sources, targets, pixels = [], [], 0
    for batch in train_batches(data, batch_size=min(64, len(data)), seed=config.train.seed, elements=elements):
        sources.append(to_bytes(batch.source))
        targets.append(to_bytes(batch.target))
        pixels += batch.target[:, 0].numel()
        if pixels >= FIT_PIXELS:
            break
    return LinearMap.fit(np.concatenate(sources), np.concatenate(targets), window=7)


def certificate(model: BridgeModel, settings: SampleConfig, name: str) -> tuple[dict[str, Any], Image.Image] | None:
    """The equivariance certificate, for the way the samples were made; None for a run without any group."""
    group = settings.group or (model.config.train.augment if model.config.model.group == "none" else "")
    if group == "none":
        return None
    check = CheckConfig(group=group, symmetrize=settings.symmetrize, weights=settings.weights, seed=settings.seed)
    return check_equivariance.record(model, check, name)


def collect(run_dir: Path, device: torch.device) -> Report:
    folder = newest_samples(run_dir)
    record = json.loads((folder / "sampling.json").read_text())
    settings = from_dict(SampleConfig, record["settings"], str(folder / "sampling.json"))
    kind = "reconstructed" if "_sigma_" in record["checkpoint"] else "checkpoints"
    model = load(run_dir / kind / record["checkpoint"], settings.weights, device)
    model.precision = settings.precision
    target = load_images(folder / record["reference"]).array
    samples = load_images(folder / record["samples"]).array
    with np.load(folder / record["reference"], allow_pickle=False) as file:
        source, mask = file["source"], file["mask"]
    linear = np.where(mask, fit_linear_map(model.config).predict(source), 128).astype(np.uint8)
    rows = {"sample": samples, "source itself": endpoint(source, target.shape[-1]), "linear map 7×7": linear}
    metrics = {}
    for name, images in rows.items():
        scores = evaluate(target, images, ("all",) if min(target.shape[1:3]) < 11 else METRICS)["metrics"]
        metrics[name] = {metric: scores.get(metric, {}).get("mean") for metric in METRICS}
    found = certificate(model, settings, record["checkpoint"])
    return Report(
        run_dir, model.config, settings, record["checkpoint"], record["nfe"], logger.read(run_dir / "log.jsonl"),
        source, samples, target, metrics, *(found or (None, None)),
    )  # fmt: skip


def table(report: Report) -> str:
    """The metrics as text, for a terminal."""
    lines = [f"{'':<16}" + "".join(f"{metric:>9}" for metric in METRICS)]
    for name, row in report.metrics.items():
        lines.append(f"{name:<16}" + "".join(f"{'-' if v is None else format(v, '.4f'):>9}" for v in row.values()))
    return "\n".join(lines)


def verdict(report: Report) -> str:
    """Whether it learned, in a sentence."""
    own, source, linear = (row["psnr"] or 0.0 for row in report.metrics.values())
    first = "beat" if own > source else "do NOT beat"
    second = "beat" if own > linear else "do not beat"
    return (
        f"The samples {first} the source itself ({own - source:+.2f} dB PSNR) and {second} the linear map "
        f"({own - linear:+.2f} dB)."
    )


def symmetry_line(report: Report) -> str:
    """The equivariance error of the sampler the samples were made with, in one line."""
    if report.certificate is None:
        return "equivariance error: not defined, the run has no group"
    lines = [line for line in report.certificate["summary"] if line["map"] == report.settings.sampler]
    if not lines:
        return f"equivariance error of {report.settings.sampler}: not measured, its steps are adaptive"
    return (
        f"equivariance error of {report.settings.sampler} under {report.certificate['group']} "
        f"({report.certificate['how']}): mean {lines[-1]['mean']:.1e}, largest {lines[-1]['largest']:.1e}"
    )


def changed_settings(config: Config) -> list[tuple[str, str]]:
    """(name, value) of every setting of the run, as flags."""
    return [(f.name, str(getattr(s, f.name))) for s in sections(config) for f in fields(s)]


def main(argv: Sequence[str]) -> int:
    settings, extra = from_flags(ReportConfig, argv, {"run": "directory of a run that has samples"})
    run_dir = location(extra.run)
    if not is_local(run_dir):
        raise ValueError(f"{run_dir} is in a store: copy its samples and newest checkpoint here to report on them")
    if not run_dir.is_dir():
        raise ValueError(f"no run at {run_dir}: give the directory that training wrote, with checkpoints and samples")
    find_checkpoint(run_dir)
    make_directory(run_dir)
    report = collect(run_dir, pick_device(settings.device))
    title = f"{report.config.data.dataset}, {report.config.bridge.schedule}"
    summary = (
        f"{report.checkpoint}, {len(report.sample)} images of {report.settings.split}, "
        f"{report.settings.sampler}, {report.nfe} evaluations an image"
    )
    columns = [report.source, report.sample, report.target]
    lines = [f"{title}: {summary}", verdict(report), symmetry_line(report)]
    png = picture(report.log, report.metrics, columns, lines)
    page = html(
        title=title,
        summary=summary,
        verdict=verdict(report),
        log=report.log,
        metrics=report.metrics,
        columns=columns,
        certificate=report.certificate,
        turned=report.turned,
        settings=changed_settings(report.config),
    )
    write_whole(run_dir / "report.png", png)
    write_whole(run_dir / "report.html", page.encode())
    print(table(report))
    print(verdict(report))
    print(symmetry_line(report))
    if report.certificate is not None:
        print(check_equivariance.table(report.certificate["summary"]))
    print(f"report: {run_dir / 'report.html'}")
    return 0


if __name__ == "__main__":
    run(main)
