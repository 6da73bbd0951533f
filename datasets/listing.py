"""Which files below a folder are its pictures: by name alone, no image is opened."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .images import EXTENSIONS
from .zipped import Zipped

# of network drives, Windows and macOS; hidden ones are left out too
SYSTEM = {"@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found"}
SYSTEM |= {"__macosx", "__pycache__", "thumbnails", "thumbs"}
TEXTS = set(".txt .md .csv .tsv .json .jsonl .xml .yaml .yml .toml .ini .html .log .pdf .py .sh .db .xlsx .zip".split())
NOTES = {"README", "LICENSE", "LICENCE", "COPYING", "CITATION", "CHECKSUMS"}


class Listing(NamedTuple):
    """The pictures below a folder, and how many files were left out, by kind and by why."""

    pictures: dict[str, Path]  # by relative path without extension, "/" between folders; sorted
    unread: Counter[str]  # extensions of files that may be pictures and are not read
    system: Counter[str]  # pictures that are hidden, or in a hidden or system folder of this name


def listed(folder: Path) -> Listing:
    """Walks through a folder and all below it, links too.

    Raises ValueError for links that lead nowhere or back, and for names that are no UTF-8 or too much alike.
    """
    found, alike = Listing({}, Counter(), Counter()), dict[str, Path]()
    for path, system in sorted(walk(folder)):
        if system:
            found.system.update([system] if is_picture(path) else [])
        elif not is_picture(path):
            found.unread.update([shown(path.suffix.lower()) or "no extension"] if may_be_picture(path) else [])
        else:
            check_name(path)
            name = path.relative_to(folder).with_suffix("").as_posix()
            other = alike.setdefault(unicodedata.normalize("NFC", name), path)
            if other != path:
                how = "extension" if name in found.pictures else "Unicode form (NFC, NFD)"
                raise ValueError(f"{path}: differs from {other.name} only in its {how}; remove one of them")
            found.pictures[name] = path
    return found


def left_out(listings: Iterable[Listing]) -> list[str]:
    """What was left out, in words."""
    unread, system = Counter[str](), Counter[str]()
    for listing in listings:
        unread, system = unread + listing.unread, system + listing.system
    return [
        f"left out {counts.total()} {what} ({some([f'{count} {name}' for name, count in counts.most_common()])})"
        for counts, what in ((unread, "files of kinds that are not read"), (system, "hidden or system files"))
        if counts
    ]


def some(names: list[str]) -> str:
    """The first few of them."""
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def may_be_picture(path: Path) -> bool:
    """Whether somebody may have meant a file that is not read to be a picture."""
    return path.suffix.lower() not in TEXTS and path.stem.upper() not in NOTES


def walk(folder: Path, below: bool = True) -> Iterator[tuple[Path, str]]:
    """Every file of a folder, and of those below it, unsorted: its path, and "" or the kind of what is no data."""
    yield from _walk(folder, "", (_identity(folder),), below)


def _walk(folder: Path, system: str, above: tuple[tuple[int, int], ...], below: bool) -> Iterator[tuple[Path, str]]:
    try:
        entries: list[Any] = list(folder.iterdir() if isinstance(folder, Zipped) else os.scandir(folder))
    except OSError as error:
        if system:
            return
        raise ValueError(f"{shown(folder)}: cannot be listed ({error.strerror}); make it readable") from None
    for entry in entries:
        path, kind = folder / entry.name, system
        broken = entry.is_symlink() and not path.exists()
        is_folder = not broken and entry.is_dir()
        if not kind and (entry.name[0] == "." or (is_folder and entry.name.lower() in SYSTEM)):
            kind = entry.name if is_folder else "hidden files"
        if broken and not kind:
            raise ValueError(f"{shown(path)}: a broken link, to {shown(path.readlink())}; remove or mend it")
        if not is_folder:
            yield path, kind
        elif below and not (kind and entry.is_symlink()):
            identity = _identity(path)
            if identity in above:
                raise ValueError(f"{shown(path)}: a link leads back to a folder that it lies in; remove the link")
            yield from _walk(path, kind, (*above, identity), below)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def check_name(path: Path) -> None:
    """Raises ValueError for a path that is not UTF-8, as of an archive from another system."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{shown(path)}: the name is not UTF-8; rename it, or all by convmv -r --notest -f CODE -t utf8 FOLDER, "
            "CODE being the encoding they are in, such as gbk, shift_jis or latin1"
        ) from None


def shown(path: Path | str) -> str:
    """A path that can be printed whatever its bytes are."""
    return os.fsencode(path).decode(errors="backslashreplace")
