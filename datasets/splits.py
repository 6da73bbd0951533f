"""Which pairs are held out where no folders say so, and that what is of one slide or patient stays together."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import Protocol, TypeVar

from ddbm.config import DataConfig

PATCH = r"(?:[_\-. /]+[a-zA-Z]{0,3}\d+\)?){1,2}$"  # how names end that tell the patches of one image apart: _y0_x64


class Named(Protocol):
    @property
    def name(self) -> str: ...


P = TypeVar("P", bound=Named)


def groups_of(pairs: Iterable[Named], place: Path, options: DataConfig) -> list[str]:
    """What tells of every pair whom it belongs to: what `group_by` finds in its name, or the name.

    Raises ValueError for a name in which it finds nothing.
    """
    if not options.group_by:
        return [pair.name for pair in pairs]
    pattern, groups = re.compile(options.group_by), []
    for pair in pairs:
        found = pattern.search(pair.name)
        if not found:
            problem = f"--group_by '{options.group_by}' finds nothing in '{pair.name}'"
            raise ValueError(f"{place}: {problem}; expected a match in every path, such as that of a slide or patient")
        groups.append("/".join(part or "" for part in found.groups()) or found[0])
    return groups


def held_out_of(pairs: list[P], split: str, place: Path, options: DataConfig, notices: list[str]) -> list[P]:
    """The pairs of a split where there are no others: every tenth, or those of every tenth group, is held out."""
    own = groups_of(pairs, place, options)
    groups = list(dict.fromkeys(own))
    if len(groups) < 2:
        found = f"1 group ({groups[0]}) by --group_by" if options.group_by else "1 pair"
        raise ValueError(f"{place}: found {found}, expected at least 2 to split into train and val; add pairs")
    chosen = set(groups[9::10] or groups[-1:])
    held = [name in chosen for name in own]
    which = f"those of {len(chosen)} of {len(groups)} groups" if options.group_by else "every 10th, or the last"
    notices.append(f"no val or test folder, {sum(held)} of the pairs ({which}) are held out as both")
    stems = [re.sub(PATCH, "", pair.name) for pair in pairs]
    count = Counter(stems)
    torn = [stem for stem, out in zip(stems, held, strict=True) if out and count[stem] > 1]
    if torn and 1 < len(count) <= len(pairs) / 2 and not (options.num_classes or options.group_by):
        whole = f"--group_by {quote('(.+?)' + PATCH)}"
        said = f"others are named '{torn[0]}...' too: what is of one slide or patient belongs into one split"
        notices.append(f"{said} ({whole} keeps such names together)")
    return [pair for pair, out in zip(pairs, held, strict=True) if out == (split != "train")]


def refuse_shared(pairs: list[P], training: list[P], place: Path, options: DataConfig) -> None:
    """Raises ValueError for a group that has pairs in the training, too."""
    known = dict(zip(groups_of(training, place, options), training, strict=True))
    for pair, group in zip(pairs, groups_of(pairs, place, options), strict=True):
        if group in known:
            raise ValueError(
                f"{place}: '{pair.name}' and '{known[group].name}' of train are both of '{group}' by --group_by: move "
                "all of it into one split"
            )
