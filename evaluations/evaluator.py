"""Scores samples against a reference: python evaluations/evaluator.py REF SAMPLE --metric mse,psnr,ssim.

Several processes share the work: torchrun --nproc_per_node 2 evaluations/evaluator.py REF SAMPLE ...
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, from anywhere: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ddbm.files.storage import write_whole
from ddbm.ranks import distributed
from ddbm.ranks.distributed import pick_device
from ddbm.ranks.entry import run
from ddbm.settings import OneLineParser
from ddbm.symmetry.groups import GROUPS
from evaluations.features import open_cache
from evaluations.images import BY_TYPE, Levels, load_images
from evaluations.metrics import FEATURES, METRICS, describe, resolve
from evaluations.networks import sha256
from evaluations.references import Reference, load_reference
from evaluations.scoring import DEFAULT, by_reason, evaluate, merged

__all__ = ["evaluate", "main"]

PATIENCE = 300.0  # seconds that ranks wait for each other at the start


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 done, 1 `all` left something out; `run` makes 2 of a mistake, told in one line."""
    args = _arguments(argv)
    names = DEFAULT if args.metric is None else [name for names in args.metric for name in names]
    resolve(names, args.features, args.group)
    world = distributed.world_of(os.environ)
    device = pick_device(args.device, world=world)
    distributed.start(world, pick_device("cpu", world=world), PATIENCE)  # ranks talk to each other through the CPU
    levels = Levels(args.black, args.white)
    if not all(map(math.isfinite, levels)):
        raise ValueError(f"--white {levels.white:g}, --black {levels.black:g}: expected finite numbers")
    if levels.white and levels.white <= levels.black:
        raise ValueError(f"--white {levels.white:g} must be above --black {levels.black:g}")
    if levels != BY_TYPE and not (args.sample.is_dir() or args.reference.is_dir()):
        raise ValueError("--white and --black are of the files of folders: an npz has 0 to 255, so leave them out")
    if args.sample.name.startswith("reference_") and args.reference.name.startswith("samples_"):
        raise ValueError(f"{args.reference} holds samples, {args.sample} their reference: exchange them")
    sample = load_images(args.sample, levels)
    reference = load_reference(args.reference, levels)
    beside = args.sample.with_name(f"{args.sample.stem}_metrics.json")
    out = args.out or (args.sample / "metrics.json" if args.sample.is_dir() else beside)
    if out.is_dir() or any(out.resolve() == path.resolve() for path in (args.sample, args.reference)):
        raise ValueError(f"--out {out} is a folder or an input; name a new JSON file")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"cannot write {out}: name a file in a folder that exists and can be written to with --out")

    result = evaluate(
        reference, sample, names, args.weights, str(device), args.batch_size,
        features=args.features, group=args.group, cache=open_cache(args.cache), ranks=world,
        dice_threshold=args.dice_threshold,
    )  # fmt: skip
    if world.rank:
        return 0
    print(_table(result))
    print(f"reference: {_shown(args.reference, reference)}\nsample: {_shown(args.sample, Reference(sample))}")
    for score in {score["features"]: score for score in result["metrics"].values()}.values():
        weights = f"weights {score['weights'][:8]}, " if score["weights"] else ""
        print(f"{score['features']}: {weights}resizing {score['resizing']}")
    sides = ((args.reference, reference.images), (args.sample, sample))
    result["notes"] += dict.fromkeys(f"{path}: {images.notice}" for path, images in sides if images and images.notice)
    for note in result["notes"]:
        print(f"note: {note}")
    for reason, alike in by_reason(result["unavailable"]).items():
        print(f"not computed: {alike}: {reason}")
    digests = [images.digest if images and path.is_dir() else sha256(path) for path, images in sides]
    named: dict[str, Any] = {"reference": str(args.reference), "sample": str(args.sample)}
    named |= {"reference_digest": digests[0], "sample_digest": digests[1], "features": args.features}
    named |= {"group": args.group, "levels": list(levels), "provenance": dict(reference.provenance)}
    report, note = merged(out, named | result)
    if note:
        print(f"note: {note}")
    write_whole(out, (json.dumps(_strict(report), indent=1, allow_nan=False) + "\n").encode())
    print(f"written to {out}")
    return 1 if result["unavailable"] else 0


def _strict(value: Any) -> Any:
    """Strict JSON knows no infinity and no NaN: null."""
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_strict(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    def metrics(words: str) -> list[str]:
        """The names in a word, apart by commas; `help` among them says what each is, and ends the program."""
        names = [name for name in words.split(",") if name]
        if "help" in names:
            print("\n\n".join(describe(name) for name in METRICS))
            sys.exit(0)
        return names

    parser = OneLineParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("reference", metavar="REF", type=Path, help="npz or folder of images, or npz of statistics or features")
    add("sample", metavar="SAMPLE", type=Path, help="npz (arr_0, uint8, NHWC) or folder of images")
    known = f"some of {', '.join(METRICS)}; or all; or help"
    add("--metric", nargs="+", action="extend", type=metrics, help=f"{known} (default {','.join(DEFAULT)})")
    add("--features", default="inception", help=f"of {', '.join(FEATURES)}: raw needs no weights (fd_raw, kd_raw)")
    add("--group", default="none", help=f"of {', '.join(GROUPS)}: for the metrics of symmetry")
    add("--out", type=Path, help="JSON to write (default: beside SAMPLE)")
    add("--weights", type=Path, help="folder with the weights of the networks, or one such file; also $DDBM_WEIGHTS")
    add("--cache", help="folder for features, or none (default: $DDBM_CACHE, or ~/.cache/ddbm)")
    text = "metrics of masks: share of white above which a sample's value is inside (default 0.5: from level 128 on)"
    add("--dice_threshold", type=float, default=0.5, help=text)
    add("--white", type=float, default=0.0, help="folders: value of the files that is white (default: by their type)")
    add("--black", type=float, default=0.0, help="folders: value that is black, such as -1000 of CT (default 0)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--batch_size", type=int, default=32, help="images at a time (default 32)")
    return parser.parse(argv)


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


def _shown(path: Path, reference: Reference) -> str:
    parts = [str(path)]
    if reference.images is not None:
        parts.append("{} images of {} x {} px, {} channel(s)".format(*reference.images.shape))
    if reference.known:
        parts.append("with features" if any(turn is None for _, turn in reference.known) else "with statistics")
    if made := reference.provenance:
        parts.append(f"made of {made.get('dataset')} {made.get('split')}, group {made.get('group')}")
    return ", ".join(parts)


if __name__ == "__main__":
    run(main)
