"""Scores samples against a reference: python evaluations/evaluator.py REF SAMPLE --metric mse,psnr,ssim.

Several processes share the work: torchrun --nproc_per_node 2 evaluations/evaluator.py REF SAMPLE ...
"""

import argparse
import difflib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

if not __package__:  # run as a file, from anywhere: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

if importlib.util.find_spec("torch") is None:
    sys.exit(f"error: {sys.executable} lacks the packages of this project: activate its environment, see README.md")

import torch

from evaluations.cache import open_cache
from evaluations.images import Images, load_images
from evaluations.metrics import FEATURES, METRICS, describe, resolve
from evaluations.ranks import Ranks, first_to_fail, leave, local_rank, meet
from evaluations.references import Reference, load_reference
from evaluations.results import by_reason, digest, merged, temporary, write
from evaluations.scoring import DEFAULT, evaluate
from evaluations.symmetry import GROUPS

__all__ = ["evaluate", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 `all` left something out, 2 a mistake, told in one line."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if _asks_for_help(words):
            print("\n\n".join(describe(name) for name in METRICS))
            return 0
        ranks = meet()
        code = _run(words, ranks)
        leave()
        return code
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        if os.environ.get("DDBM_DEBUG") == "1":
            raise
        hint = "; try a smaller --batch_size" if isinstance(error, torch.OutOfMemoryError) else ""
        if first_to_fail():
            print(f"error: {' '.join(str(error).split())}{hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _run(argv: Sequence[str], ranks: Ranks) -> int:
    args = _arguments(argv)
    names = [name for word in args.metric or DEFAULT for name in word.split(",") if name]
    resolve(names, args.features, args.group)
    sample = load_images(args.sample)
    reference = load_reference(args.reference)
    beside = args.sample.with_name(f"{args.sample.stem}_metrics.json")
    out = args.out or (args.sample / "metrics.json" if args.sample.is_dir() else beside)
    _check_writable(out, (args.sample, args.reference))

    result = evaluate(
        reference, sample, names, args.weights, _device(args.device, ranks), args.batch_size,
        features=args.features, group=args.group, cache=open_cache(args.cache), ranks=ranks,
    )  # fmt: skip
    if ranks.rank:
        return 0
    result["notes"] += _names_differ(reference.images, sample)
    print(_table(result))
    print(f"reference: {_shown(args.reference, reference)}\nsample: {args.sample}, {_counted(sample)}")
    for line in _legend(result):
        print(line)
    for note in result["notes"]:
        print(f"note: {note}")
    for reason, alike in by_reason(result["unavailable"]).items():
        print(f"not computed: {alike}: {reason}")
    settings = {"features": args.features, "group": args.group, "provenance": dict(reference.provenance)}
    digests = {
        "reference_digest": digest(args.reference, reference.images),
        "sample_digest": digest(args.sample, sample),
    }
    report = {"reference": str(args.reference), "sample": str(args.sample), **digests, **settings, **result}
    report, note = merged(out, report)
    if note:
        print(f"note: {note}")
    write(out, report)
    print(f"written to {out}")
    return 1 if result["unavailable"] else 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; the two paths come first: evaluator.py REF SAMPLE [--flag value ...], or --help")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="metrics\n\n" + "\n\n".join(describe(name) for name in METRICS),
    )  # fmt: skip
    add = parser.add_argument
    add("reference", metavar="REF", type=Path, help="npz or folder of images, or npz of statistics or features")
    add("sample", metavar="SAMPLE", type=Path, help="npz (arr_0, uint8, NHWC) or folder of images")
    known = f"some of {', '.join(METRICS)}; or all; or help"
    add("--metric", nargs="+", action="extend", help=f"{known} (default {','.join(DEFAULT)})")
    add("--features", default="inception", help=f"of {', '.join(FEATURES)}: raw needs no weights (fd_raw, kd_raw)")
    add("--group", default="none", help=f"of {', '.join(GROUPS)}: for the metrics of symmetry")
    add("--out", type=Path, help="JSON to write (default: beside SAMPLE)")
    add("--weights", type=Path, help="folder with the weights of the networks, or one such file; also $DDBM_WEIGHTS")
    add("--cache", help="folder for features, or none (default: $DDBM_CACHE, or ~/.cache/ddbm)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N, or another that torch knows")
    add("--batch_size", type=int, default=32, help="images at a time (default 32)")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].split("=")[0]
        flags = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(flag, flags, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(flags)}"
        raise ValueError(f"unknown argument {flag}; {hint}")
    return args


def _asks_for_help(words: Sequence[str]) -> bool:
    """Whether `help` is among the metrics."""
    metrics = False
    for word in words:
        metrics = word.partition("=")[0] == "--metric" if word.startswith("--") else metrics
        if metrics and "help" in word.removeprefix("--metric=").split(","):
            return True
    return False


def _device(name: str, ranks: Ranks) -> str:
    """Every rank of a machine takes a GPU of its own."""
    if ranks.size > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        return f"cuda:{local_rank()}"
    return name


def _names_differ(reference: Images | None, sample: Images) -> list[str]:
    if reference is None or not (reference.names and sample.names):
        return []
    differing = [pair for pair in zip(reference.names, sample.names, strict=False) if pair[0] != pair[1]]
    if not differing:
        return []
    return [f"file names differ; images are paired in sorted order, such as {' with '.join(differing[0])}"]


def _table(result: dict[str, Any]) -> str:
    rows = [("metric", "value", "std", "95 % interval", "", "n", "reference n", "features")]
    for name, score in result["metrics"].items():
        value, std = ("-" if score[key] is None else f"{score[key]:.6g}" for key in ("mean", "std"))
        interval = "-" if score["interval"] is None else "{:.5g} .. {:.5g}".format(*score["interval"])
        direction = "↑" if METRICS[name].higher_is_better else "↓"
        others = "-" if not METRICS[name].reference else str(score["n_reference"] or "unknown")
        rows.append((name, value, std, interval, direction, str(score["n"]), others, score["features"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0  # the last column begins where it begins
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def _legend(result: dict[str, Any]) -> list[str]:
    """For all features that numbers come from: the weights, and what was done to the images first."""
    found = {}
    for score in result["metrics"].values():
        weights = f"weights {score['weights'][:8]}, " if score["weights"] else ""
        found[score["features"]] = f"{score['features']}: {weights}resizing {score['resizing']}"
    return list(found.values())


def _shown(path: Path, reference: Reference) -> str:
    parts = [str(path)]
    if reference.images is not None:
        parts.append(_counted(reference.images))
    if reference.rows or reference.gaussians:
        parts.append("with features" if reference.rows else "with statistics")
    if made := reference.provenance:
        parts.append(f"made of {made.get('dataset')} {made.get('split')}, group {made.get('group')}")
    return ", ".join(parts)


def _counted(images: Images) -> str:
    return "{} images of {} x {} px, {} channel(s)".format(*images.shape)


def _check_writable(out: Path, inputs: tuple[Path, ...]) -> None:
    if out.is_dir() or any(out.resolve() == path.resolve() for path in inputs):
        raise ValueError(f"--out {out} is a folder or an input; name a new JSON file")
    try:
        temporary(out).touch()
        temporary(out).unlink()
    except OSError as error:
        raise ValueError(f"cannot write {out} ({error.strerror}); name another file with --out") from error


if __name__ == "__main__":
    sys.exit(main())
