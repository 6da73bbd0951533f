"""Raw files: folders and archives alike, and digests of what was read."""

import bz2
import gzip
import hashlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..listing import SYSTEM, is_picture, listed
from .recipe import Job

CHUNK = 1 << 20  # bytes
UNZIP: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}  # by how files begin


def sha256(path: Path) -> str:
    """The digest of a file's bytes, as sha256sum prints it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def names_of(source: Path) -> list[str]:
    """The pictures of a folder or archive, by relative name, sorted. Raises ValueError where there are none."""
    if source.is_dir():
        names = [path.relative_to(source).as_posix() for path in listed(source).pictures.values()]
    else:
        names = [name for name, _ in _members(source, False)]
    if not names:
        raise ValueError(f"{source}: no images found; give the folder or archive that holds them")
    return sorted(names)


def pictures(source: Path) -> Iterator[tuple[str, Path | bytes]]:
    """Relative name, and the path or, from an archive, the content of every picture, in the order of the archive.

    Raises ValueError for an archive that cannot be read to its end.
    """
    if source.is_dir():
        yield from ((path.relative_to(source).as_posix(), path) for path in listed(source).pictures.values())
    else:
        yield from _members(source, True)


def _members(archive: Path, read: bool) -> Iterator[tuple[str, bytes]]:
    if is_picture(archive):
        raise ValueError(f"{archive}: is a picture, expected a folder or an archive of pictures")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                for name in filter(_counts, packed.namelist()):
                    yield name, packed.read(name) if read else b""
            return
        with _unzipped(archive) as bytes_, tarfile.open(fileobj=bytes_, mode="r|") as stream:
            for member in stream:
                if member.isfile() and _counts(member.name):
                    file = stream.extractfile(member) if read else None
                    yield member.name, file.read() if file else b""
                elif (member.issym() or member.islnk()) and _counts(member.name):
                    raise ValueError(
                        f"{archive}: {member.name} is a link to {member.linkname}; give the extracted folder"
                    )
            while bytes_.read(CHUNK):  # to where gzip says whether all came, which tarfile does not ask
                pass
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, zlib.error, lzma.LZMAError, RuntimeError) as error:
        raise ValueError(  # RuntimeError: encrypted, or compressed in another way
            f"{archive}: cannot be read as zip or tar, .gz, .bz2, .xz ({' '.join(str(error).split())}); it may be "
            "truncated: compare its size and download it again, or give the extracted folder"
        ) from error


def _unzipped(archive: Path) -> IO[bytes]:
    with archive.open("rb") as file:
        start = file.read(2)
        if start in UNZIP:
            return UNZIP[start](archive)
        file.seek(max(0, archive.stat().st_size - 512))
        if file.read().strip(b"\0"):  # tarfile does not ask, either
            raise tarfile.ReadError("no tar, or its end is missing")
    return archive.open("rb")


def _counts(name: str) -> bool:
    """Whether a member is a picture, and not hidden or of a system."""
    parts = Path(name).parts  # without "."
    return is_picture(Path(name)) and not any(part[0] == "." or part.lower() in SYSTEM for part in parts)


def data_of(job: Job) -> bytes:
    """The content of the one file of a job, from an archive or a folder."""
    return job.more if isinstance(job.more, bytes) else job.files[0].read_bytes()
