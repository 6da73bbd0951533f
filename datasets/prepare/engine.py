"""Runs the jobs of a recipe: by processes, each job whole or again, and twice to the same bytes."""

import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import TypeVar

from tqdm import tqdm

from ddbm.files.folders import locked
from ddbm.files.storage import read_json, write_whole
from ddbm.settings import choose, values

from ..writing import write_pixels
from .journal import JOURNAL, Record, changed, changed_files, done_in, files_of, keep, noted
from .recipe import PARTS, Common, Job, Plan, Recipe, Stored, alone
from .table import RECIPES

MANIFEST = "manifest.json"
SYNC = 20.0  # seconds of work that a kill may cost
T = TypeVar("T")
U = TypeVar("U")


def prepare(name: str, settings: Common) -> Record:
    """Makes what is missing of a data set below `settings.out`, and returns its manifest.

    Raises ValueError or OSError for what a user can get wrong; what was done by then stays.
    """
    recipe, out = RECIPES[name], Path(settings.out).expanduser()
    refuse_overlap(Path(settings.source).expanduser(), out)
    with locked(out, "out"):
        asked = {"name": name, "settings": json.loads(json.dumps(values(settings, deciding=True)))}
        first, records = done_in(out, asked)
        plan = recipe.plan(settings)
        if not plan.shared:  # members of archives are not in memory at once
            plan = plan._replace(jobs=list(plan.jobs))
        shared = {path.name: path for path in plan.shared}
        finished = (out / MANIFEST).exists()
        if not records or "sources" not in first:  # of an older version
            first = asked | noted(shared)
        others = changed(shared, first)
        if not plan.shared:
            others += changed_files(plan.jobs, records.values(), settings, finished)
        if others:
            raise ValueError(
                f"{out} is {'finished' if finished else 'begun'}, but {len(others)} raw file(s) changed since, came or "
                f"went, such as {others[0]}: choose another --out, or remove this one"
            )
        if finished:
            return read_json(out / MANIFEST)
        if not records:
            write_whole(out / JOURNAL, (json.dumps(first) + "\n").encode())
        jobs = left(plan, records, out)
        seen = sys.stderr.isatty()  # else it is a file, where every update would stay
        with (out / JOURNAL).open("a") as journal, tqdm(
            total=plan.total, initial=len(records), desc=f"preparing {name}", dynamic_ncols=True, unit="job",
            mininterval=0.1 if seen else 30,
        ) as bar:  # fmt: skip
            fresh: list[Record] = []
            last = monotonic()
            try:
                known = next((each for each in records.values() if each.get("channels")), None)
                for record in results(partial(work, name, settings), jobs, settings.workers):
                    known = known or (record if record["channels"] else None)
                    refuse_mixed(known or record, record)
                    fresh.append(record)
                    bar.update()
                    if monotonic() - last > SYNC:
                        keep(journal, fresh)
                        last = monotonic()
            finally:
                keep(journal, fresh)
        _, records = done_in(out, asked)
        for torn in out.rglob(".*.new"):  # of processes that were killed
            torn.unlink(missing_ok=True)
        manifest = manifest_of(name, settings, list(records.values()), first["sources"], plan.left_out)
        write_whole(out / MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())
    return manifest


def refuse_overlap(source: Path, out: Path) -> None:
    if not source.exists():
        raise ValueError(f"--source {source} does not exist: name the raw files (--help says where they come from)")
    here, there = source.resolve(), out.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise ValueError(f"--out {out} and --source {source} lie in each other: choose another --out")


def unlike(jobs: Iterable[Job]) -> Iterator[Job]:
    """The same jobs. Raises ValueError for two of one name, of which one would replace the other's pairs."""
    seen: dict[str, Job] = {}
    for job in jobs:
        if (other := seen.setdefault(job.name, job)) is not job:
            where = " and ".join(str(path) for path in (*other.files[:1], *job.files[:1])) or "two files"
            raise ValueError(f"{where}: would both become '{job.name}'; rename or remove one")
        seen[job.name] = job._replace(more=None)  # not what it holds of an archive
        yield job


def left(plan: Plan, records: Mapping[str, Record], out: Path) -> Iterator[Job]:
    """The jobs that are not done yet.

    Raises ValueError where what is done belongs elsewhere by now, as a file less changes whom the splits hold: what
    was in train would come into val, too.
    """

    def compared() -> Iterator[Job]:
        seen = set()
        for job in unlike(plan.jobs):
            seen.add(job.name)
            if job.name in records and records[job.name]["split"] != job.split:
                raise moved(job.name)
            yield job
        if gone := sorted(records.keys() - seen):
            raise moved(gone[0])

    def moved(name: str) -> ValueError:
        return ValueError(
            f"{out}: {name} was prepared as {records[name]['split']}, which it is not any more, as raw files came or "
            "went since and change the splits; put them back as they were, or remove this folder and begin anew"
        )

    jobs = compared()
    if records and not plan.shared:  # before anything is done
        jobs = iter(list(jobs))
    return (job for job in jobs if job.name not in records)


def work(name: str, settings: Common, job: Job) -> Record:
    """Does one job; what is done, in words for the journal."""
    recipe, out = RECIPES[name], Path(settings.out).expanduser()
    flags, made, count = recipe.flags(settings), recipe.make(settings, job), 0
    sizes, channels = set[tuple[int, ...]](), list[int]()
    for pair in made.pairs:
        count += 1
        if isinstance(pair, Stored):
            path = out / job.split / pair.name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, pair.content, flush=False)
            continue
        images = [picture for picture in pair[1:] if picture is not None]
        sizes.add(images[0].pixels.shape[:2])
        channels = [picture.pixels.shape[2] for picture in images]
        for side, picture in zip(("source", "target"), images, strict=False):
            folder = out / job.split / ("" if flags.get("layout") == "suffix" else side)
            write_pixels(folder / (pair.name + flags.get(f"{side}_suffix", "")), picture)
    about = {"job": job.name, "split": job.split, "pairs": count, "about": dict(made.about)}
    about |= {"sizes": extremes(sizes), "channels": channels}
    return about | noted(files_of(job, settings))


def extremes(sizes: Collection[Sequence[int]]) -> list[list[int]]:
    """The least height and width, and the largest: one size where all are alike, none where there are none."""
    return [list(size) for size in sorted({tuple(map(f, zip(*sizes, strict=True))) for f in (min, max)}) if size]


def refuse_mixed(first: Record, record: Record) -> None:
    """Raises ValueError where pictures have other channels than the first: a training takes one number."""
    if record["channels"] and record["channels"] != first["channels"]:
        (here, own), (there, other) = (
            (next(iter(each["sources"]), each["job"]), " and ".join(map(str, each["channels"])))
            for each in (record, first)
        )
        raise ValueError(f"{here} makes pictures of {own} channels, {there} of {other}: convert it, or leave it out")


def results(call: Callable[[T], U], tasks: Iterable[T], workers: int) -> Iterator[U]:
    """What a function makes of tasks, as it is done; few of them are in memory at once."""
    if not workers:
        yield from map(call, tasks)
        return
    context = multiprocessing.get_context("forkserver")  # as a fork of threads may hang, and a spawn imports all anew
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context, begin_worker) as pool:
        waiting: set[Future[U]] = set()
        try:
            for task in tasks:
                waiting.add(pool.submit(call, task))
                if len(waiting) >= 2 * workers:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise ValueError("a process was killed, perhaps for its memory: give fewer --workers and go on") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def begin_worker() -> None:
    """Ctrl-C is the parent's matter, and a parent that was killed leaves none behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    Thread(target=follow, daemon=True).start()


def manifest_of(
    name: str, settings: Common, records: list[Record], shared: Mapping[str, str], left_out: Sequence[str]
) -> Record:
    """Without times and paths of this machine. Raises ValueError where a part came out empty."""
    records = sorted(records, key=lambda record: record["job"])
    pairs = Counter({record["split"]: 0 for record in records})
    for record in records:
        pairs[record["split"]] += record["pairs"]
    if pairs and not any(record["split"] == "train" for record in records) and not alone(settings):
        raise ValueError(
            f"{settings.source}: the raw files hold {' and '.join(sorted(pairs))} alone; add those of train, or give "
            "that folder itself as --source, with --val 0 --test 0"
        )
    needed = [] if alone(settings) else ["train"]
    if empty := [part for part in {*pairs, *needed} if not pairs[part]]:
        raise ValueError(
            f"{settings.source}: no pair is left for {', '.join(empty)}, which would be empty; loosen what leaves "
            "pairs out, or check that the raw files are complete"
        )
    return {
        "name": name,
        "left_out": [*left_out, *(f"{r['job']}: nothing of it was fit for a pair" for r in records if not r["pairs"])],
        "sizes": extremes([size for record in records for size in record.get("sizes", [])]),
        "settings": values(settings, deciding=True),
        "pairs": {part: pairs[part] for part in PARTS if pairs[part]},
        "splits": {part: [r["job"] for r in records if r["split"] == part] for part in PARTS if pairs[part]},
        "sources": dict(shared) | {path: digest for record in records for path, digest in record["sources"].items()},
        "about": {record["job"]: record["about"] for record in records if record["about"]},
    }


def recipe_named(name: str) -> Recipe:
    """Raises ValueError that lists the names."""
    return choose(RECIPES, name, "data set")
