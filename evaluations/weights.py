"""Finds, downloads, checks and safely reads the weights of the networks behind the metrics."""

import hashlib
import http.client
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch

VARIABLE = "DDBM_WEIGHTS"
TIMEOUT = 20.0  # seconds without an answer


class Weights(NamedTuple):
    """A file of weights and its SHA-256, in hex; note: what is to be said of them beside every number."""

    path: Path
    sha256: str
    note: str = ""


def find_weights(url: str, weights: str | Path | None = None, download: bool = True) -> Weights:
    """The file that `url` names; the first that exists of

    `weights` (the file itself, or a folder that holds it), the folder $DDBM_WEIGHTS, torch hub's cache; else it is
    downloaded to that cache. A name such as net-01234567.pth carries the beginning of the SHA-256, and other content
    is refused; net.pth, or a file named itself, is taken for weights of one's own, which the note says. Raises
    FileNotFoundError if `weights` does not exist or the download fails.
    """
    name = Path(urlparse(url).path).name
    known = _known(name)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    if weights is not None and not Path(weights).exists():
        raise FileNotFoundError(f"--weights {weights}: no such file or folder; expected a folder with {name}")
    folders = [Path(folder) for folder in (weights, os.environ.get(VARIABLE), cache) if folder]
    for path in [
        *folders[:1],
        *(folder / each for folder in folders for each in (name, name.replace(f"-{known}", ""))),
    ]:
        if path.is_file():
            return _checked(path, known)
    if not download:
        raise FileNotFoundError(f"weights {name} are not on this machine")
    return _checked(_download(url, cache / name), known)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """State dict in `path`, read without running any code it may carry. ValueError if it is none."""
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values()):
            return state
        reason = f"a {type(state).__name__}, expected a dict of tensors"
    except Exception as error:  # torch.load raises nearly anything on a foreign file
        reason = f"{type(error).__name__} while reading"
    raise ValueError(f"{path}: not a file of weights ({reason}); delete it and download it again")


def _known(name: str) -> str:
    """The beginning of the SHA-256 that a file's name carries, "" without one."""
    found = re.search(r"-([0-9a-f]{8,})\.", name)
    return found[1] if found else ""


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _checked(path: Path, known: str) -> Weights:
    found = sha256(path)
    if not found.startswith(claimed := _known(path.name)):
        raise ValueError(
            f"{path}: its SHA-256 begins with {found[:8]}, its name says {claimed}: damaged, or other weights; "
            f"download it again, or take the -{claimed} out of the name of weights of your own"
        )
    foreign = f"{path.name} holds other weights than the published ones ({found[:8]}, not {known}): not comparable"
    return Weights(path, found, "" if found.startswith(known) else foreign)


def _download(url: str, path: Path) -> Path:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), _known(path.name) or None, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"weights {path.name} not found here and the download failed ({reason}); "
            f"get {url} and put it into {path.parent}, or name its folder with --weights or ${VARIABLE}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return path
