"""Finds, downloads and safely reads the weights of the networks behind FID and LPIPS."""

import http.client
import os
import re
import socket
import sys
from pathlib import Path
from urllib.parse import urlparse

import torch

VARIABLE = "DDBM_WEIGHTS"
TIMEOUT = 20.0  # seconds without an answer


def find_weights(url: str, weights: str | Path | None = None) -> Path:
    """Path of the file that `url` names; the first that exists of

    `weights` (the file itself, or a folder that holds it), the folder $DDBM_WEIGHTS, torch hub's cache; else it is
    downloaded to that cache. Raises FileNotFoundError if `weights` does not exist or the download fails.
    """
    name = Path(urlparse(url).path).name
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    if weights is not None and not Path(weights).exists():
        raise FileNotFoundError(f"--weights {weights}: no such file or folder; expected a folder with {name}")
    if weights is not None and Path(weights).is_file():
        return Path(weights)
    for folder in (weights, os.environ.get(VARIABLE), cache):
        if folder and (Path(folder) / name).is_file():
            return Path(folder) / name
    return _download(url, cache / name)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """State dict in `path`, read without running any code it may carry. ValueError if it is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly anything on a foreign file
        reason = f"{type(error).__name__} while reading"
        raise ValueError(f"{path}: not a file of weights ({reason}); delete it and download it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path}: a {type(state).__name__}; expected a dict of tensors (a state dict)")
    return state


def _download(url: str, path: Path) -> Path:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = re.search(r"-([0-9a-f]{8,})\.", path.name)
        prefix = found[1] if found else None
        torch.hub.download_url_to_file(url, str(path), prefix, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"weights {path.name} not found here and the download failed ({reason}); "
            f"get {url} and put it into {path.parent}, or name its folder with --weights or ${VARIABLE}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return path
