"""Trained upright, asked about the turned: `python -m benchmarks.orientation SUBJECT [--flag value ...]`.

SUBJECT: section, the tissue of `denoising`; bricks, a wall that ships with scikit-image; digits, MNIST's in --mnist:
under the noise of `denoising`, trained without augmentation, and scored on held-out pairs as they are (upright) and in
the mean of the seven other mirrors and turns (turned). Or spirals, which are to be painted white where they turn left
and black where they turn right: a mirror makes one the other. The pairs are files, trained on as own data is, by every
arm for the same time. Results lie in study.json and a figure in orientation.png, in the subject's directory; the table
is printed. Stopped or killed, the same command goes on.
"""

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from datasets import Batch, eval_batches
from datasets.denoising import PARTS, noisy
from datasets.patches import BLOCK, free_positions, tiles
from ddbm import sample
from ddbm.files.storage import whole_directory, write_whole
from ddbm.model import BridgeModel
from ddbm.settings import Settings, choose, from_flags, setting
from ddbm.symmetry.groups import GROUPS, IDENTITY, act
from evaluations.evaluator import evaluate
from evaluations.images import to_bytes
from scripts.common import make_directory, open_split, run
from scripts.import_checkpoint import preset_flags

from .study import carry_out, table

COMMON = "--layout two_folders --augment none"  # besides the settings of histology
SIZE = 32  # pixels a side
STRIDE = 8  # from one training patch of a picture to the next
HELD = 64  # digits that are not trained on
SPIRALS = {"train": 4000, "val": 256}  # pictures
CELLS, PITCH, RADII = 2, 4.0, (5.0, 7.0)  # spirals a side; pixels from arm to arm; of the discs
DIGITS = "t10k-images-idx3-ubyte.gz"
GROUP, NFE = "D4", 10  # of turned pairs; evaluations of a sample (averaged over the group: so many each)
METRICS = {"mse": ".5f", "psnr": ".2f", "ssim": ".3f"}
SIDES = {"upright": (IDENTITY,), "turned": GROUPS[GROUP].elements[1:]}
FORMS = {f"{name}, {side}": form for name, form in METRICS.items() for side in SIDES}
MARKS = {"upright, as in training": "psnr, upright", "turned and mirrored": "psnr, turned"}
SHOWN, TURN = 3, (0, 1)  # pairs in the figure, and how they are turned
Parts = dict[str, tuple[np.ndarray, np.ndarray]]  # train, val: source and target, uint8 [N, H, W, C]
Draw = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class OrientationConfig(Settings):
    """The benchmark"""

    minutes: float = setting(4.0, "training time of every arm, on a machine with nothing else to do", above=0)
    seeds: int = setting(3, "trainings of every arm", above=0)
    mnist: str = setting("", f"digits: folder with MNIST's {DIGITS}")
    out: str = setting("workdir/orientation", "directory in which the subject's own is made")


# --------------------------------------------------------------------------------------------------------------- pairs


def section(mnist: str) -> Parts:
    from skimage.data import immunohistochemistry

    return patches(immunohistochemistry())


def bricks(mnist: str) -> Parts:
    from skimage.data import brick

    return patches(brick()[..., None])


def patches(target: np.ndarray) -> Parts:
    """Of a picture [512, 512, C], in the parts of `denoising`: overlapping from train, disjoint from test."""
    source = noisy(target)
    free = free_positions((PARTS != "train").repeat(BLOCK, 0).repeat(BLOCK, 1), SIZE)
    places = {"train": free[(free % STRIDE == 0).all(1)], "val": tiles(BLOCK * np.argwhere(PARTS == "test"), SIZE)}

    def cut(image: np.ndarray, part: str) -> np.ndarray:
        return np.stack([image[y : y + SIZE, x : x + SIZE] for y, x in places[part]])

    return {part: (cut(source, part), cut(target, part)) for part in places}


def digits(mnist: str) -> Parts:
    """In a black frame of SIZE pixels; the first HELD are held out."""
    file = Path(mnist, DIGITS)
    if not mnist or not file.is_file():
        raise ValueError(f"digits are not part of this project: --mnist FOLDER names one that holds MNIST's {DIGITS}")
    try:
        data = gzip.decompress(file.read_bytes())
        magic, *shape = np.frombuffer(data, ">i4", 4)
        images = np.frombuffer(data, np.uint8, offset=16).reshape(shape)
    except (OSError, EOFError, ValueError):
        magic = 0
    if magic != 2051:  # IDX's bytes in three dimensions
        raise ValueError(f"{file} is no IDX file of images: get it again")
    frame = [(SIZE - side) // 2 for side in shape[1:]]
    target = np.pad(images, [(0, 0), *((edge, edge) for edge in frame)])[..., None]
    source = noisy(target)
    return {"train": (source[HELD:], target[HELD:]), "val": (source[:HELD], target[:HELD])}


def spirals(mnist: str) -> Parts:
    """One in every cell, of any place, size, angle and sense; in its place in the target a disc on mid-grey."""
    rng, cell = np.random.default_rng(0), SIZE // CELLS

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        shape = (count, CELLS, 1, CELLS, 1)  # the axes: pictures, rows of cells, of pixels, columns of cells, of pixels
        radius, angle, left = rng.uniform(*RADII, shape), rng.uniform(0, 2 * np.pi, shape), rng.random(shape) < 0.5
        line = np.arange(cell) - (cell - 1) / 2
        y, x = (side + rng.uniform(-1, 1, shape) * (cell / 2 - radius) for side in (line[:, None, None], line))
        r, theta = np.hypot(x, y), np.where(left, 1, -1) * np.arctan2(-y, x)  # counter-clockwise is left, rows go down
        bright = 255 * (0.5 + 0.5 * np.cos(2 * np.pi * r / PITCH - theta - angle))
        source, target = np.where(r < radius, bright, 0), np.where(r < radius, np.where(left, 255, 0), 128)
        source, target = (np.rint(side).astype(np.uint8).reshape(count, SIZE, SIZE, 1) for side in (source, target))
        return source, target

    return {part: draw(count) for part, count in SPIRALS.items()}


def write_pairs(folder: Path, parts: Parts) -> None:
    """As one's own data lies, unless it is there."""
    if folder.exists():
        return
    with whole_directory(folder) as aside:
        for part, pairs in parts.items():
            for side, images in zip(("source", "target"), pairs, strict=True):
                (aside / part / side).mkdir(parents=True)
                for number, image in enumerate(images):
                    Image.fromarray(image.squeeze()).save(aside / part / side / f"{number:05}.png")


def moments(source: np.ndarray, target: np.ndarray) -> list[str]:
    """Flags: both sides' deviation, of the mean of their variances, and what they have in common."""
    covariance = np.cov(source.ravel() / 127.5, target.ravel() / 127.5)
    return ["--sigma_data", f"{np.trace(covariance / 2) ** 0.5:.3g}", "--cov_xy", f"{covariance[0, 1]:.3g}"]


# ------------------------------------------------------------------------------------------------------------- numbers


def quality(draw: Draw, batch: Batch) -> dict[str, float]:
    """METRICS on pairs as they are, and the means of those under every other element."""
    found = dict[str, float]()
    for side, elements in SIDES.items():
        scores = [
            evaluate(to_bytes(act(g, batch.target)), to_bytes(draw(act(g, batch.source))), tuple(METRICS))["metrics"]
            for g in elements
        ]
        found |= {f"{name}, {side}": float(np.mean([each[name]["compared"] for each in scores])) for name in METRICS}
    return found


def senses(draw: Draw, batch: Batch) -> dict[str, float]:
    """The share of spirals whose disc has, in the mean, the sign of the truth; and the mean square error."""
    answer = draw(batch.source)
    disc = batch.target * (batch.target.abs() > 0.5)
    right = (answer * disc).unflatten(2, (CELLS, -1)).unflatten(4, (CELLS, -1)).sum((3, 5)) > 0
    found = evaluate(to_bytes(batch.target), to_bytes(answer), ("mse",))["metrics"]
    return {"share right": right.float().mean().item(), "mse": float(found["mse"]["mean"])}


class Subject(NamedTuple):
    make: Callable[[str], Parts]
    arms: tuple[str, ...] = ("plain", "tied D4", "regular D4")  # layers and group; the first times the others
    ways: tuple[str, ...] = ("none", "canonical", "average")  # to sample what has no symmetry of its own
    score: Callable[[Draw, Batch], dict[str, float]] = quality
    forms: dict[str, str] = FORMS
    marks: dict[str, str] = MARKS
    shown: tuple[str, ...] = ("plain", "tied D4")  # arms, in the figure
    axis: str = "PSNR, dB ↑"


SUBJECTS = {
    "section": Subject(section),
    "bricks": Subject(bricks),
    "digits": Subject(digits),
    "spirals": Subject(
        spirals, ("plain", "tied C4", "tied D4", "regular C4", "regular D4"), ("none",), senses,
        {"share right": ".3f", "mse": ".4f"}, {"": "share right"}, ("tied C4", "regular C4"), "share told right ↑",
    ),
}  # fmt: skip


def measure(model: BridgeModel, subject: Subject, out: Path) -> dict[str, float]:
    """The numbers of every way to sample; writes sources, answers and truths of the figure to out/ARM.npy."""
    data = open_split(model.config.data, "val")
    batch = next(eval_batches(data, batch_size=len(data))).to(next(model.parameters()).device)
    found = dict[str, float]()
    for way in subject.ways if len(model.group) == 1 else ("none",):

        def draw(source: Tensor, way: str = way) -> Tensor:
            group, price = ("", 1) if way == "none" else (GROUP, len(GROUPS[GROUP]) if way == "average" else 1)
            return sample(model, source, nfe=NFE * price, symmetrize=way, group=group).x_0

        found |= {f"{way}, {name}": value for name, value in subject.score(draw, batch).items()}
    few = [act(TURN, side[:: -(-len(data) // SHOWN)]) for side in (batch.source, batch.target)]
    strip = np.stack([to_bytes(x) for x in (few[0], sample(model, few[0], nfe=NFE).x_0, few[1])])
    arm = f"{model.config.model.layers} {model.group.name}".removesuffix(" none")
    write_whole(out / f"{arm}.npy", lambda file: np.save(file, strip))
    return found


def by_way(results: dict[str, Any], subject: Subject) -> dict[str, Any]:
    """A line for every arm and way to sample it."""
    lines = dict[str, Any]()
    for arm, own in results.items():
        for way in subject.ways:
            name = arm if way == "none" else f"{arm} + {way}"
            if f"{way}, {next(iter(subject.forms))}" in own["seeds"][0]:
                seeds = [{name: scores[f"{way}, {name}"] for name in subject.forms} for scores in own["seeds"]]
                lines[name] = {"steps": own["steps"], "seeds": seeds}
    return lines


def plot(lines: dict[str, Any], subject: Subject, strips: dict[str, np.ndarray]) -> Figure:
    """Left: a dot a training, a stroke at their mean. Right: turned pairs, and the last trainings' answers."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.1, 1))
    left, right = halves
    axes = left.subplots()
    looks: list[dict[str, Any]] = [{"color": "tab:blue", "alpha": 0.5}, {"color": "tab:red", "fillstyle": "none"}]
    for (mark, name), look in zip(subject.marks.items(), looks, strict=False):
        for row, own in enumerate(lines.values()):
            values = [scores[name] for scores in own["seeds"]]
            axes.plot(values, [row] * len(values), "o", label="" if row else mark, **look)
            axes.plot(np.mean(values), row, "|", color=look["color"], markersize=16)
    axes.set_yticks(range(len(lines)), list(lines))
    axes.margins(y=0.15)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(subject.axis)
    if len(subject.marks) > 1:
        left.legend(loc="outside upper center", ncols=2)
    source, _, truth = next(iter(strips.values()))
    columns = {"source, turned": source, **{arm: strip[1] for arm, strip in strips.items()}, "truth": truth}
    grid = right.subplots(len(source), len(columns), squeeze=False)
    for place, (title, images) in zip(grid.T, columns.items(), strict=True):
        place[0].set_title(title, fontsize=10)
        for cell, image in zip(place, images, strict=True):
            cell.imshow(image, cmap="gray", vmin=0, vmax=255)
            cell.set_axis_off()
    return figure


def main(argv: Sequence[str]) -> int:
    settings, extra = from_flags(OrientationConfig, argv, {"subject": f"one of {', '.join(SUBJECTS)}"})
    subject = choose(SUBJECTS, extra.subject, "subject")
    parts, out = subject.make(settings.mnist), make_directory(Path(settings.out, extra.subject))
    write_pairs(out / "pairs", parts)
    flags = [*preset_flags("histology_i2sb"), *COMMON.split(), *moments(*parts["train"])]
    flags += ["--dataset", extra.subject, "--data_dir", str(out / "pairs")]
    arms = dict[str, list[str]]()
    for arm in subject.arms:
        layers, _, group = arm.partition(" ")
        arms[arm] = [*flags, "--layers", layers, "--group", group or "none"]
    results = carry_out(out, arms, settings.minutes, settings.seeds, lambda model: measure(model, subject, out))
    lines = by_way(results, subject)
    strips = {arm: np.load(out / f"{arm}.npy") for arm in subject.shown}
    write_whole(out / "orientation.png", lambda file: plot(lines, subject, strips).savefig(file, format="png", dpi=150))
    print(table(lines, subject.forms))
    return 0


if __name__ == "__main__":
    run(main)
