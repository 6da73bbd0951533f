"""C++ kernels for CPUs, compiled for the processor at hand when they are first needed.

They are kept in `DDBM_CACHE` or ~/.cache/ddbm. Where that cannot be, without g++ or with DDBM_NATIVE=0, the same is
computed by PyTorch's own kernels.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from ...ranks import distributed

HERE = Path(__file__).parent
FLAGS = "-std=c++17 -O3 -march=native -fno-math-errno -fno-trapping-math -shared -fPIC -Wl,--as-needed".split()
WIDE = ["-mprefer-vector-width=512"] * (platform.machine() == "x86_64")


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled `NAME.cpp`, or None, for a reason that is said once."""
    asked = os.environ.get("DDBM_NATIVE") or "1"
    if asked not in ("0", "1"):
        raise ValueError(f"DDBM_NATIVE is '{asked}', expected 1, C++ kernels on a CPU, or 0, PyTorch's")
    if asked == "0":
        return None
    try:
        return _load(HERE / f"{name}.cpp")
    except (OSError, UnicodeError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines() or ["?"]
        _note(f"CPU kernels could not be compiled, PyTorch's take longer: {reason[0]}")
        return None


def _note(text: str) -> None:
    if distributed.is_main():
        print(f"note: {text}", file=sys.stderr)


def _load(source: Path) -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    if not compiler or shutil.which(compiler[0]) is None:
        raise OSError(f"{' '.join(compiler)} is not installed")
    # PyTorch's own OpenMP: another one would have threads of its own
    openmp = sorted(map(str, (Path(torch.__file__).parent / "lib").glob("libgomp*")))[:1]
    command = [*compiler, *FLAGS, *WIDE, str(source), *openmp, "-fopenmp"]
    ask = [*compiler, "-march=native", "-Q", "--help=target"]
    processor = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    known = hashlib.sha256("\n".join([*texts, *command, processor]).encode()).hexdigest()
    name = f"{source.stem}-{known[:16]}.so"
    cache = _cache()
    if cache and (cache / name).is_file():
        with suppress(OSError):  # a damaged one is made again
            return ctypes.CDLL(str(cache / name))
    with tempfile.TemporaryDirectory(dir=cache if cache and os.access(cache, os.W_OK) else None) as folder:
        built = Path(folder) / name
        subprocess.run([*command, "-o", str(built)], capture_output=True, text=True, check=True)
        if cache is None or built.parent.parent != cache:
            _note(f"{source.name} is compiled anew at every start, without a folder to write it to: set DDBM_CACHE")
            return ctypes.CDLL(str(built))
        built.replace(cache / name)  # whole or not there, whoever else compiles it
    return ctypes.CDLL(str(cache / name))


def _cache() -> Path | None:
    """The folder of `DDBM_CACHE`, or .cache/ddbm at home; None where there is none."""
    named = os.environ.get("DDBM_CACHE", "")
    try:
        folder = Path(named) if named else Path.home() / ".cache" / "ddbm"
        if named != "none":
            folder.mkdir(parents=True, exist_ok=True)
            return folder
    except (OSError, RuntimeError):  # no home
        pass
    return None
