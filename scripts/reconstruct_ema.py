"""Moving averages of any width after training: `python -m scripts.reconstruct_ema RUN --sigma_rel 0.05 0.1 0.2`.

Combines the snapshots in RUN/ema (EDM2's post-hoc EMA, docs/maths.md) and writes, for every width, a checkpoint
RUN/reconstructed/step_NNNNNNNN_sigma_0.100 to sample from. The residual is the distance of the combined profile from
the one asked for, relative to its norm.
"""

from collections.abc import Sequence

from ddbm.files import checkpoint, stores
from ddbm.settings import OneLineParser
from ddbm.training import averages

from .common import find_checkpoint, make_directory, run


def main(argv: Sequence[str]) -> int:
    parser = OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="directory of a run")
    parser.add_argument("--sigma_rel", nargs="+", required=True, help="widths, apart by spaces or commas")
    parser.add_argument("--step", type=int, help="steps of training (default: those of the newest snapshot)")
    args = parser.parse(argv)
    wanted = dict.fromkeys(map(float, ",".join(args.sigma_rel).split(",")))  # each once, in the order asked
    for sigma_rel in wanted:
        averages.gamma_of(sigma_rel)  # refuses what is no width before anything takes long
    newest = find_checkpoint(args.run)
    run_dir, mirror = stores.fetched(args.run, "ema/*"), stores.Mirror(f"{args.run}/reconstructed")
    mirror.fetch(f"*{checkpoint.MANIFEST}")  # what is not in a store any more is not sent again
    stored = averages.snapshots(run_dir)
    step = args.step if args.step is not None or not stored else stored[-1][0]
    header = checkpoint.read_header(newest) | {"step": step}
    for sigma_rel in wanted:
        weights, residual, snapshots = averages.reconstruct(run_dir, step, sigma_rel)
        short = f"{sigma_rel:.3f}"
        name = f"step_{step:08d}_sigma_{short if float(short) == sigma_rel else sigma_rel}"
        state = {"reconstruction": {"sigma_rel": sigma_rel, "residual": residual, "snapshots": snapshots}}
        path = checkpoint.write(make_directory(mirror.path) / name, header, {"ema": weights}, state)
        mirror.send()
        print(f"{stores.address(path)}: residual {residual:.2%}, from {len(snapshots)} snapshots")
    return 0


if __name__ == "__main__":
    run(main)
