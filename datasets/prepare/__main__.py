"""Prepares a data set: `python -m datasets.prepare NAME --source RAW --out DIR [--flag value ...]` (docs/prepare.md).

Nothing is downloaded: `python -m datasets.prepare NAME --help` says where the raw files come from. Killed at any
moment, the same command goes on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from ddbm.ranks.entry import run
from ddbm.settings import from_flags
from ddbm.symmetry.groups import GROUPS

from ..sizes import proposed, usable
from .back import ABOUT as BACK
from .back import Back, join
from .engine import MANIFEST, prepare, recipe_named
from .recipe import PARTS, Common, Recipe, alone
from .sheet import SHEET, write_sheet
from .table import RECIPES


def help_of(name: str, about: str) -> dict[str, Any]:
    """What argparse prints before the flags."""
    prog = f"python -m datasets.prepare {name}"
    return {"prog": prog, "description": about, "formatter_class": argparse.RawDescriptionHelpFormatter}


def listing() -> str:
    """What there is, a line a name."""
    width = max(map(len, RECIPES))
    about = {name: recipe.about for name, recipe in RECIPES.items()} | {"back": BACK}
    lines = [f"  {name.ljust(width)}  {text.splitlines()[0]}" for name, text in about.items()]
    return f"{(__doc__ or '').strip()}\n\nNAME is one of\n" + "\n".join(lines)


def command(recipe: Recipe, settings: Common, sizes: Sequence[Sequence[int]]) -> str:
    """What starts training on the pairs, of these sizes."""
    name, flags = recipe.training(settings)
    asked, least, size = str(flags.get("image_size", "")), min(map(min, sizes), default=0), ""
    if asked == "native" and sizes:  # which folders of an older version do not know
        square = GROUPS[str(flags.get("group", "none"))].turns
        size = proposed([(least, least)] if square else [tuple(each) for each in sizes])
    elif asked.isdecimal() and "channel_mult" not in flags:
        least, size = int(asked), str(usable(int(asked)))
    if size:
        flags = {**flags, "image_size": size}
        if flags.get("fit") == "crop" and max(map(int, size.split("x"))) > least:
            del flags["fit"]  # they are enlarged
    words = [word for flag, value in flags.items() for word in (f"--{flag}", f"{value}")]
    data = quote(str(Path(settings.out).expanduser().resolve()))
    return " ".join([f"DATA_DIR={data} bash train_ddbm.sh {name} i2sb", *map(quote, words)])


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(listing())
        return 0
    name = argv[0]
    if name == "back":
        asked, _ = from_flags(Back, argv[1:], about=help_of(name, BACK))
        if not asked.source or not asked.like or not asked.out:
            raise ValueError("--source, --like and --out are needed; back --help says more")
        for path in join(asked):
            print(path)
        return 0
    recipe = recipe_named(name)
    settings, _ = from_flags(recipe.settings, argv[1:], about=help_of(name, recipe.about))
    if not settings.source or not settings.out:
        raise ValueError(
            f"--source, the raw files, and --out, the folder to write to, are needed; {name} --help says more"
        )
    manifest = prepare(name, settings)
    pairs = {part: manifest["pairs"][part] for part in PARTS if part in manifest["pairs"]}
    out = Path(settings.out).expanduser()
    if alone(settings):
        print(
            f"{out} holds {pairs['test']} sources; what RUN makes of them, as volumes:\n"
            f"python -m scripts.translate RUN {quote(str(out / 'test/source'))} --out slices\n"
            f"python -m datasets.prepare back --source slices --like {quote(str(out))} --out volumes"
        )
        return 0
    write_sheet(out, name, pairs, recipe.flags(settings))
    if left_out := manifest.get("left_out"):
        print(f"note: {len(left_out)} left out ({MANIFEST} has all), such as {left_out[0]}")
    counts = ", ".join(f"{count} {part}" for part, count in pairs.items())
    print(
        f"{out} holds pairs: {counts}; {MANIFEST} says of what, {SHEET} shows some. To train:\n"
        f"{command(recipe, settings, manifest.get('sizes', []))}"
    )
    return 0


if __name__ == "__main__":
    run(main)
