"""Scores samples against a reference: python evaluations/evaluator.py REF SAMPLE --metric mse psnr ssim."""

import argparse
import difflib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

if not __package__:  # run as a file, from anywhere: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

if importlib.util.find_spec("torch") is None:
    sys.exit(f"error: {sys.executable} lacks the packages of this project: activate its environment, see README.md")

import numpy as np
import torch

from evaluations.images import Statistics, check_images, check_pairs, load_images, load_reference
from evaluations.metrics import METRICS, Metric

DEFAULT = ("mse", "psnr", "ssim")
ENOUGH = 2048  # fewer images cannot span the 2048 features of FID


def evaluate(
    reference: np.ndarray | Statistics,
    sample: np.ndarray,
    metrics: Sequence[str] = DEFAULT,
    weights: str | Path | None = None,
    device: str = "cpu",
    batch_size: int = 32,
) -> dict[str, Any]:
    """Score `sample` against `reference`, both uint8 [N, H, W, C] in the same order (or statistics, for FID).

    Returns {"n", "metrics": {name: {"mean", "std", "per_image"}}, "notes", "unavailable": {name: reason}}: means are
    over images, `std` is their population standard deviation, FID has neither `std` nor `per_image`. With ("all",)
    what cannot be computed is listed as unavailable, and the metrics of masks belong to it where the reference is one;
    a metric named itself raises ValueError or FileNotFoundError.
    """
    names = _names(metrics)
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}; expected at least 1")
    where = _device(device)
    check_images(sample, "sample")
    if not isinstance(reference, Statistics):
        check_images(reference, "reference")
        unpaired = all(not METRICS[name].paired for name in names)
        check_pairs(reference[:1] if unpaired else reference, sample[:1] if unpaired else sample)

    ready: dict[str, torch.nn.Module | None] = {}
    unavailable: dict[str, str] = {}
    for name in names:  # everything that can go wrong, before anything that takes long
        metric = METRICS[name]
        try:
            metric.check(reference, sample)
            ready[name] = metric.network(weights, where) if metric.network else None
        except (ValueError, FileNotFoundError) as error:
            if "all" not in metrics:
                raise type(error)(f"{name}: {error}") from error
            if name in metrics or not metric.masks:
                unavailable[name] = str(error)

    scores: dict[str, dict[str, Any]] = {}
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for name, network in ready.items():
            metric = METRICS[name]
            if isinstance(reference, np.ndarray) and metric.paired:
                values = _per_image(metric, network, reference, sample, where, batch_size)
                scores[name] = {
                    "mean": _finite(values.mean()),
                    "std": _finite(values.std()),
                    "per_image": [_finite(value) for value in values],
                }
            else:
                mean = _finite(metric.compute(reference, sample, network, batch_size))
                scores[name] = {"mean": mean, "std": None, "per_image": None}
    notes = _notes(scores, reference, sample)
    return {"n": len(sample), "metrics": scores, "notes": notes, "unavailable": unavailable}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 `all` left something out, 2 a mistake, told in one line."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except (ValueError, OSError) as error:
        if os.environ.get("DDBM_DEBUG") == "1":
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _run(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    names = [name for word in args.metric for name in word.split(",") if name]
    _names(names)
    sample = load_images(args.sample)
    reference = load_reference(args.reference)
    beside = args.sample.with_name(f"{args.sample.stem}_metrics.json")
    out = args.out or (args.sample / "metrics.json" if args.sample.is_dir() else beside)
    _check_writable(out, (args.sample, args.reference))

    images = reference if isinstance(reference, Statistics) else reference.array
    result = evaluate(images, sample.array, names, args.weights, args.device, args.batch_size)
    if not isinstance(reference, Statistics) and reference.names and sample.names:
        differing = [pair for pair in zip(reference.names, sample.names, strict=False) if pair[0] != pair[1]]
        if differing:
            pair = " with ".join(differing[0])
            result["notes"].append(f"file names differ; images are paired in sorted order, such as {pair}")

    print(_table(result))
    for note in result["notes"]:
        print(f"note: {note}")
    for name, reason in result["unavailable"].items():
        print(f"not computed: {name}: {reason}")
    report = {"reference": str(args.reference), "sample": str(args.sample), **result}
    temporary = _temporary(out)
    temporary.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(out)
    print(f"written to {out}")
    return 1 if result["unavailable"] else 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; write: evaluator.py REF SAMPLE [--flag value ...], or --help")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("reference", metavar="REF", type=Path, help="npz, folder, or npz of FID statistics")
    parser.add_argument("sample", metavar="SAMPLE", type=Path, help="npz (arr_0, uint8, NHWC) or folder of images")
    known = ", ".join(METRICS)
    parser.add_argument("--metric", nargs="+", default=list(DEFAULT), help=f"of {known}; or all")
    parser.add_argument("--out", type=Path, help="JSON to write (default: beside SAMPLE)")
    parser.add_argument("--weights", type=Path, help="folder with the weights of LPIPS and FID, or one such file")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--batch_size", type=int, default=32, help="images at a time (default 32)")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].split("=")[0]
        flags = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(flag, flags, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(flags)}"
        raise ValueError(f"unknown argument {flag}; {hint}")
    return args


def _names(metrics: Sequence[str]) -> list[str]:
    """The metrics asked for, each once, in the order asked."""
    if isinstance(metrics, str):
        metrics = (metrics,)
    for name in metrics:
        if name not in METRICS and name != "all":
            raise ValueError(f"unknown metric {name}; known: {', '.join(METRICS)}, all")
    if not metrics:
        raise ValueError(f"no metric; expected some of {', '.join(METRICS)}, or all")
    return list(METRICS) if "all" in metrics else list(dict.fromkeys(metrics))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name}: torch sees no CUDA device; use --device cpu")
    return torch.device(name)


def _per_image(
    metric: Metric,
    network: torch.nn.Module | None,
    reference: np.ndarray,
    sample: np.ndarray,
    device: torch.device,
    batch_size: int,
) -> np.ndarray:
    """One float64 value a pair [N]."""
    extra = () if network is None else (network,)
    values = []
    for start in range(0, len(sample), batch_size):
        x, y = (
            torch.from_numpy(images[start : start + batch_size]).to(device).permute(0, 3, 1, 2).double() / 255
            for images in (sample, reference)
        )
        values.append(metric.compute(x, y, *extra).double().cpu().numpy())
    return np.concatenate(values)


def _notes(scores: dict[str, dict[str, Any]], reference: np.ndarray | Statistics, sample: np.ndarray) -> list[str]:
    notes = []
    count = len(sample) if isinstance(reference, Statistics) else min(len(sample), len(reference))
    if "fid" in scores and count < ENOUGH:
        notes.append(f"fid of {count} samples (fewer than {ENOUGH}) is biased upwards; compare equal numbers only")
    if "psnr" in scores and isinstance(reference, np.ndarray):
        identical = int((reference == sample).all(axis=(1, 2, 3)).sum())
        if identical:
            notes.append(f"psnr counts {identical} identical pair(s) as 80 dB")
    return notes


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _table(result: dict[str, Any]) -> str:
    rows = [("metric", "mean", "std", "direction", "n")]
    for name, score in result["metrics"].items():
        mean, std = ("-" if score[key] is None else f"{score[key]:.6g}" for key in ("mean", "std"))
        rows.append((name, mean, std, "↑" if METRICS[name].higher_is_better else "↓", str(result["n"])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _temporary(out: Path) -> Path:
    return out.with_name(f".{out.name}.{os.getpid()}")


def _check_writable(out: Path, inputs: tuple[Path, ...]) -> None:
    if out.is_dir() or any(out.resolve() == path.resolve() for path in inputs):
        raise ValueError(f"--out {out} is a folder or an input; name a new JSON file")
    try:
        _temporary(out).touch()
        _temporary(out).unlink()
    except OSError as error:
        raise ValueError(f"cannot write {out} ({error.strerror}); name another file with --out") from error


if __name__ == "__main__":
    sys.exit(main())
