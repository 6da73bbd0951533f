"""Translates one's own images: `python -m scripts.translate MODEL INPUT [INPUT ...] --out DIR [--flag value ...]`.

INPUT: image files, or folders whose structure is kept; of any size, no targets are needed (docs/translation.md). Writes
files of the inputs' names, stored as the targets of the training were, and `translation.json`. Exit code 0: all are
there, 1: some inputs could not be translated, 2: a mistake.
"""

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from datasets.images import EXTENSIONS, READER
from datasets.large import Resolution, resolution
from datasets.listing import is_picture, left_out, listed, shown
from datasets.masks import is_mask
from datasets.prepare.series import DICOM, volume_name
from datasets.single import Source, other_type, read_source
from datasets.writing import Form, form_of, write_image
from ddbm.config import DataConfig, Header, TranslateConfig
from ddbm.files import stores
from ddbm.files.storage import named, read_json, write_whole
from ddbm.model import load
from ddbm.ranks import distributed
from ddbm.ranks.distributed import pick_device
from ddbm.settings import differences, from_flags, values
from ddbm.translation.answers import Translator

from .common import TABLES, find_checkpoint, header_of, locked, refuse_conflict, run, say
from .sample import checkpoint_digest, own_values

RECORD = "translation.json"
SWITCHES = {
    "--overwrite": "write files anew that exist; they are deleted first",
    "--keep_draws": "write every draw too, as NAME_drawK",
}
SPREAD_WHITE = 0.25  # share of the range that is white in the picture of a spread
PASSED = "answer draws sampler nfe grid symmetrize group seed window overlap batch_size".split()  # to the Translator
T = TypeVar("T")
U = TypeVar("U")


class Task(NamedTuple):
    """An input, and the files that are made of it by what they hold."""

    path: Path
    files: dict[str, Path]

    @property
    def done(self) -> bool:
        return all(file.exists() for file in self.files.values())


def find_inputs(words: Sequence[str], out: Path, data: DataConfig) -> dict[Path, str]:
    """The images that files and folders name, and their relative names without extension; none of their masks.

    Raises ValueError for what is missing, and for what is no image.
    """
    found: dict[Path, str] = {}
    for word in words:
        path = Path(word).expanduser()
        if not word:
            raise ValueError("an input is '', such as of a variable that is not set: name images or folders")
        if path.is_dir():
            if path.resolve() == out.resolve():
                raise ValueError(f"{path} is the folder to write to, too: choose another --out")
            listing = listed(path)
            inside = path.resolve() in out.resolve().parents
            own = {p for p in listing.pictures.values() if inside and out.resolve() in p.resolve().parents}
            pictures = {p: name for name, p in listing.pictures.items() if p not in own and not is_mask(p, data)}
            if own:
                say(f"note: {path}: what lies in {out}, where this command writes, is left out")
            for note in left_out([listing]):
                say(f"note: {path}: {note}")
            if not pictures:
                raise ValueError(f"{path}: no images found, expected {', '.join(EXTENSIONS)}")
            found |= pictures
        elif not path.exists():
            raise ValueError(f"{shown(path)} does not exist: name images, or folders that hold some")
        elif not is_picture(path):
            slices = volume_name(path) or path.suffix.lower() in DICOM
            hint = "; of volumes datasets.prepare makes slices (--targets false) and back again" if slices else ""
            raise ValueError(f"{shown(path)} is no image, expected {', '.join(EXTENSIONS)}, or a folder of such{hint}")
        else:
            found[path] = path.with_suffix("").name
    return dict({path.absolute(): (path, name) for path, name in found.items()}.values())  # of a file given twice one


def tasks_of(inputs: dict[Path, str], out: Path, settings: TranslateConfig, form: Form, keep: bool) -> list[Task]:
    """What is written for every input. Raises ValueError where two would write one file, or replace an input."""
    ends = {"mean" if settings.answer == "mean" else "sample": form.ending}
    if settings.answer == "both":
        ends["mean"] = f"_mean{form.ending}"
    if settings.draws > 1:
        ends |= {"spread": "_spread_picture.png", "spread_values": "_spread.tif"}
    if keep:
        if settings.answer == "mean" and not settings.draws:
            raise ValueError("--keep_draws: --answer mean makes none without --draws K")
        ends |= {f"draw{number}": f"_draw{number}{form.ending}" for number in range(settings.draws or 1)}
    sources, owners = {path.resolve() for path in inputs}, dict[str, Path]()
    tasks = [Task(path, {kind: out / f"{name}{end}" for kind, end in ends.items()}) for path, name in inputs.items()]
    for path, files in tasks:
        for file in files.values():
            if (other := owners.setdefault(str(file).casefold(), path)) != path:
                raise ValueError(
                    f"{other} and {path} would both be written to {file}: rename one, or take two folders for --out"
                )
            if file.resolve() in sources:
                raise ValueError(f"{file} is an input and would be replaced: choose another --out")
    return tasks


def factors(header: Header, asked: float) -> tuple[float, float]:
    """By what rows and columns are resized: as asked for, or as the training did with its first pair."""
    if asked:
        return asked, asked
    data, images = header.config.data, header.images
    if data.image_size == "native" or data.fit == "crop" or not header.native:
        return 1.0, 1.0
    ratios = images.height / header.native[0], images.width / header.native[1]
    return ratios if data.fit == "stretch" else (max(ratios), max(ratios))


def label_of(header: Header, word: str) -> int | None:
    """The class of the images: a name, or a number."""
    count, names = header.images.num_classes, list(header.classes)
    if not count and not word:
        return None
    if not count:
        raise ValueError(f"the model has no classes: leave out --label {word}")
    numbers = [str(n) for n in range(count)]
    if word not in [*names, *numbers]:
        known = ", ".join(names or numbers)
        raise ValueError(f"the model has classes, found --label '{word}': say which the images are of, {known}")
    return names.index(word) if word in names else int(word)


def begin(tasks: Sequence[Task], out: Path, depends_on: dict[str, Any], overwrite: bool) -> None:
    """Prepares the folder: `translation.json` says what its images depend on, and which inputs they are of.

    Raises ValueError where they are of another model, or of other settings.
    """
    path, wanted = out / RECORD, json.loads(json.dumps(depends_on))
    known: dict[str, Any] = {}
    with suppress(ValueError) if overwrite else nullcontext():  # a damaged one
        known = read_json(path) if path.exists() else {}
    differing = differences(known.get("depends_on", {}), wanted) if known else []
    if differing and not overwrite:
        raise ValueError(
            f"{out} holds images that were translated otherwise ({'; '.join(differing)}): choose another --out, or "
            "--overwrite to replace those of these inputs"
        )
    had = known.get("files", {})
    files = {} if differing else dict(had)
    for task in tasks:
        name = str(next(iter(task.files.values())).relative_to(out)).rpartition(".")[0]
        paths = {kind: str(file.relative_to(out)) for kind, file in task.files.items()}
        state = task.path.stat()
        made = {"input": str(task.path.resolve()), "changed": [state.st_size, state.st_mtime_ns], **paths}
        before = had.get(name, {})
        if overwrite:
            for file in {*paths.values(), *(before[kind] for kind in before.keys() - {"input", "changed"})}:
                (out / file).unlink(missing_ok=True)
        elif any(file.exists() for file in task.files.values()) and (before.get("input"), before.get("changed")) != (
            made["input"], made["changed"],
        ):  # fmt: skip
            whose = f"made of {before['input']}, or of that before it changed" if before else "not of these inputs"
            raise ValueError(f"{out / name} is there, {whose}: choose another --out, or --overwrite")
        files[name] = made
    record = {"depends_on": wanted, "files": files}
    write_whole(path, json.dumps(record, indent=2).encode())


@dataclass
class Work:
    """What a rank does with its inputs."""

    translator: Translator
    header: Header
    form: Form
    factor: tuple[float, float]
    label: int | None
    out: Path
    failed: list[str]
    said: set[str]

    def note(self, kind: str, text: str, path: Path) -> None:
        """Says something of a kind once, of the first file that gives reason to."""
        if text and kind not in self.said:
            self.said.add(kind)
            tqdm.write(f"note: {path}: {text}")

    def read(self, task: Task) -> tuple[Source, Resolution | None] | ValueError:
        """The input, or what is wrong with it."""
        images, data = self.header.images, self.header.config.data
        try:
            source = read_source(
                task.path, data, images.source_channels, self.factor, self.out, (images.height, images.width)
            )
            return source, resolution(task.path)
        except ValueError as error:
            return error

    def translate(self, tasks: Sequence[Task], workers: int, bar: "tqdm[Any]") -> None:
        """Inputs that follow each other and have one size go through the network together."""
        group: list[tuple[Task, Source, Resolution | None]] = []
        for task, found in ahead(self.read, tasks, workers):
            if isinstance(found, ValueError):
                self.failed.append(str(task.path))
                tqdm.write(f"error: {found}", file=sys.stderr)
                bar.update(1)
                continue
            source, scale = found
            self.note("levels", source.note, task.path)
            self.note(source.kind, other_type(source, self.header), task.path)
            if source.mask is None and (self.header.config.data.mask_folder or self.header.config.data.mask_suffix):
                self.note("mask", "has no mask, as the training's images had, so all of it is translated", task.path)
            if group and not together(group[0][1], source):
                self.finish(group, bar)
                group = []
            group.append((task, source, scale))
            if sum(each.image[0].size for _, each, _ in group) >= self.translator.pixels_at_once:
                self.finish(group, bar)
                group = []
        if group:
            self.finish(group, bar)

    def finish(self, group: Sequence[tuple[Task, Source, Resolution | None]], bar: "tqdm[Any]") -> None:
        """Translates some inputs of one size and writes what was asked for."""
        _, sources, _ = zip(*group, strict=True)
        images = sources[0].image[None] if len(sources) == 1 else np.stack([source.image for source in sources])
        masks = [source.mask for source in sources]
        mask = None
        if masks[0] is not None:
            mask = masks[0][None] if len(masks) == 1 else np.stack([np.asarray(each) for each in masks])
        label = None if self.label is None else torch.tensor([self.label] * len(sources))

        def write(kind: str, results: np.ndarray) -> None:
            for (task, source, scale), result in zip(group, results, strict=True):
                if file := task.files.get(kind):
                    with named(file):
                        file.parent.mkdir(parents=True, exist_ok=True)
                    seen = None if source.mask is None else source.mask[0]
                    scale = scale and Resolution(scale.x * self.factor[1], scale.y * self.factor[0], scale.unit)
                    full = self.form.white - self.form.black  # of which a spread is a share, from 0 on
                    forms = {
                        "spread_values": Form("float32", -full, full, ".tif"),
                        "spread": Form("uint8", -255 / SPREAD_WHITE, 255 / SPREAD_WHITE, ".png"),
                    }
                    shown: Any = Grey(result) if kind == "spread" else result
                    write_image(file, shown, forms.get(kind, self.form), scale, seen)

        first = bar.n
        found = self.translator(
            images, mask, label, lambda number, draw: write(f"draw{number}", draw),
            lambda share: bar.update(min(share * len(group), first + len(group) - bar.n)),
        )  # fmt: skip
        bar.update(first + len(group) - bar.n)  # parts of images do not add up exactly
        if found.spread is not None:
            write("spread_values", found.spread)
            write("spread", found.spread)
        if found.mean is not None:
            write("mean", found.mean)
        if found.sample is not None:
            write("sample", found.sample)


def together(a: Source, b: Source) -> bool:
    """Whether two inputs can be one batch."""
    return a.image.shape == b.image.shape and (a.mask is None) == (b.mask is None)


class Grey:
    """The mean of the channels of an image `[C, H, W]`, made of the parts that are asked for."""

    def __init__(self, image: np.ndarray) -> None:
        self.image, self.shape = image, (1, *image.shape[1:])

    def __getitem__(self, part: tuple[slice, slice, slice]) -> np.ndarray:
        return self.image[part].mean(0, keepdims=True)


def ahead(work: Callable[[T], U], items: Iterable[T], workers: int) -> Iterator[tuple[T, U]]:
    """Every item with what `work` makes of it, in order; as many threads begin with the next ones."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque[tuple[T, Any]]()
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


def main(argv: Sequence[str]) -> int:
    words = list(takewhile(lambda word: not word.startswith("-"), argv))
    text = {"model": "checkpoint, or run", "input": "image, or folder of images; several, one after the other"}
    settings, extra = from_flags(TranslateConfig, [*words[:2], *argv[len(words) :]], text, SWITCHES, TABLES)
    if not settings.out:
        raise ValueError("where to? add --out DIR")
    out = Path(settings.out).expanduser()
    world = distributed.world_of(os.environ)
    device = pick_device(settings.device, settings.tf32, world)
    distributed.start(world, device, settings.rendezvous_timeout)
    path = distributed.from_main(lambda: find_checkpoint(extra.model))
    model, header = load(stores.address(path), settings.weights, device, settings.codec), header_of(path)
    refuse_conflict(model, settings.group)
    model.precision = settings.precision
    if settings.compile != "none":
        model.network.compile(mode=settings.compile)
    translator = Translator(
        model, **{name: getattr(settings, name) for name in PASSED}, **own_values(settings), folder=out
    )
    label, factor, form = label_of(header, settings.label), factors(header, settings.scale), form_of(header)
    with ExitStack() as stack:

        def prepare() -> list[Task]:
            inputs = words[1:] or [extra.input]  # MODEL INPUT behind the flags, too
            tasks = tasks_of(find_inputs(inputs, out, header.config.data), out, settings, form, extra.keep_draws)
            stack.enter_context(locked(out, "out"))
            depends_on = {"checkpoint": path.name, "checkpoint_digest": checkpoint_digest(path), "reader": READER}
            begin(tasks, out, depends_on | values(settings, deciding=True), extra.overwrite)
            return tasks

        tasks = distributed.from_main(prepare)
        if not header.stored:
            say("note: an older version trained this, and did not say how its targets were stored: 8-bit PNG it is")
        if factor != (1, 1):
            why = "" if settings.scale else ", as the training resized its pairs (--scale 1 takes pixels as they are)"
            say(f"note: inputs are resized by {' x '.join(f'{n:g}' for n in dict.fromkeys(factor))}{why}")
        ours = tasks[distributed.rank() :: distributed.size()]
        left = [task for task in ours if not task.done]
        work = Work(translator, header, form, factor, label, out, [], set())
        with tqdm(
            total=len(ours), initial=len(ours) - len(left), unit="image", desc="translating", dynamic_ncols=True,
            bar_format="{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
            disable=not distributed.is_main(),
        ) as bar:  # fmt: skip
            work.translate(left, settings.workers, bar)
        failed = [name for names in distributed.gather(work.failed) for name in names]
        kept = sum(distributed.gather(len(ours) - len(left)))
    done = len(tasks) - kept - len(failed)
    say(f"{out}: {done} images translated" + (f", {kept} were there (--overwrite makes them anew)" if kept else ""))
    if failed:
        say(f"{len(failed)} could not be translated: {', '.join(failed[:8])}{', ...' if failed[8:] else ''}")
    return int(bool(failed))


if __name__ == "__main__":
    run(main)
