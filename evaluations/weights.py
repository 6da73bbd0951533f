"""Finds, downloads, checks and safely reads the weights of the networks behind the metrics."""

import hashlib
import http.client
import os
import re
import socket
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

VARIABLE = "DDBM_WEIGHTS"
TIMEOUT = 20.0  # seconds without an answer
HASH = re.compile(r"-([0-9a-f]{8,})(?=\.)")  # the beginning of the SHA-256 in the name of a file


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
    name = url.rpartition("/")[2]
    if weights is not None and not Path(weights).exists():
        raise FileNotFoundError(f"--weights {weights}: no such file or folder; expected a folder with {name}")
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    places = [Path(place) for place in (weights, os.environ.get(VARIABLE), cache) if place]
    paths = [path for place in places for path in (place, place / name, place / HASH.sub("", name)) if path.is_file()]
    if not paths and not download:
        raise FileNotFoundError(f"weights {name} are not on this machine")
    path = paths[0] if paths else _download(url, cache / name)
    found, known, claimed = sha256(path), HASH.findall(name), HASH.findall(path.name)
    if claimed and not found.startswith(claimed[-1]):
        raise ValueError(
            f"{path}: its SHA-256 begins with {found[:8]}, its name says {claimed[-1]}: damaged, or other weights; "
            f"download it again, or take the -{claimed[-1]} out of the name of weights of your own"
        )
    if not known or found.startswith(known[-1]):
        return Weights(path, found)
    note = f"{path.name} holds other weights than the published ones ({found[:8]}, not {known[-1]}): not comparable"
    return Weights(path, found, note)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """State dict in `path`, read without running any code it may carry. ValueError if it is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise TypeError
    except Exception as error:  # torch.load raises nearly anything on a foreign file
        reason = f"{type(error).__name__}; expected a dict of tensors"
        raise ValueError(f"{path}: not a file of weights ({reason}); delete it and download it again") from error
    return state


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    return hashlib.sha256(np.memmap(path, mode="r").data).hexdigest()


def _download(url: str, path: Path) -> Path:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        known = HASH.search(path.name)
        torch.hub.download_url_to_file(url, str(path), known[1] if known else None, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"weights {path.name} not found here and the download failed ({reason}); "
            f"get {url} and put it into {path.parent}, or name its folder with --weights or ${VARIABLE}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return path
