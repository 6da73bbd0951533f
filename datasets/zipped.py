"""Files in a zip archive as paths, `pairs.zip/train/source/1.png`: what reads a folder reads it without extracting."""

import io
import os
import zipfile
from collections.abc import Generator
from functools import lru_cache
from pathlib import Path, PosixPath
from typing import Any

from .images import Unreadable

DIRECTORY, FILE = 0o040555, 0o100444  # modes, as of stat


class Archive:
    """An open archive: its files by name, and what lies in each of its folders ("" is the archive itself)."""

    def __init__(self, path: Path) -> None:
        try:
            self.zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise Unreadable(f"{path}: cannot be read as a zip archive ({error}); copy or make it again") from None
        self.files = {info.filename: info for info in self.zip.infolist() if not info.is_dir()}
        self.folders: dict[str, dict[str, None]] = {"": {}}
        for name in self.zip.namelist():
            name = name.removesuffix("/")
            while name and name not in self.folders.get(above := name.rpartition("/")[0], {}):
                self.folders.setdefault(above, {})[name] = None
                name = above
        for info in self.zip.infolist():
            if info.is_dir():
                self.folders.setdefault(info.filename[:-1], {})


@lru_cache(maxsize=64)
def _archive(path: str) -> Archive | None:
    """The archive of this name, open in this process; None for a folder, or where there is nothing."""
    return Archive(Path(path)) if Path(path).is_file() else None


os.register_at_fork(after_in_child=_archive.cache_clear)  # else processes would share one place in the file


class Zipped(PosixPath):
    """A file or folder in an archive, or the archive as a folder. It has no state, and may be pickled."""

    def _place(self) -> tuple[Archive, str]:
        for above in reversed((self, *self.parents)):
            if archive := _archive(str(above)):
                return archive, str(self)[len(str(above)) + 1 :]
        raise FileNotFoundError(f"{self}: there is no such archive")

    def is_dir(self, **_: Any) -> bool:
        archive, name = self._place()
        return name in archive.folders

    def is_file(self, **_: Any) -> bool:
        archive, name = self._place()
        return name in archive.files

    def exists(self, **_: Any) -> bool:
        return self.is_dir() or self.is_file()

    def is_symlink(self) -> bool:
        return False

    def stat(self, **_: Any) -> os.stat_result:
        archive, name = self._place()
        if not self.exists():
            raise FileNotFoundError(f"{self}: not in the archive")
        mode, size = (FILE, archive.files[name].file_size) if name in archive.files else (DIRECTORY, 0)
        return os.stat_result((mode, hash(name), id(archive), 1, 0, 0, size, 0, 0, 0))

    def iterdir(self) -> Generator["Zipped", None, None]:
        archive, name = self._place()
        return (self / below.rpartition("/")[2] for below in archive.folders[name])

    def open(self, *_: Any, **__: Any) -> Any:
        """The content of a file, in memory."""
        archive, name = self._place()
        return io.BytesIO(archive.zip.read(archive.files[name]))
