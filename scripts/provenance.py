"""Where a run comes from: `RUN/run.json`, `{"starts": [...]}` with one entry a start, the newest last."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ddbm.files.storage import write_whole

ROOT = Path(__file__).resolve().parent.parent
# What changes numbers, or where and how processes start. SLURM_* as a whole would hold a token (SLURM_JWT).
ENVIRONMENT = re.compile(
    r"(OMP|MKL|KMP|CUDA|CUBLAS|CUDNN|NVIDIA|PYTORCH|TORCH|TORCHINDUCTOR|TORCHELASTIC|NCCL|GLOO|DDBM)_\w+"
    r"|NGPU|LAUNCHER|PYTHONHASHSEED|(LOCAL_)?(WORLD_SIZE|RANK)|MASTER_(ADDR|PORT)|OMPI_COMM_WORLD_(SIZE|RANK)|PMI_(SIZE|RANK)"
    r"|SLURM_(JOB_ID|JOB_NUM_NODES|JOB_NODELIST|JOB_PARTITION|NTASKS|PROCID|RESTART_COUNT|ARRAY_JOB_ID|ARRAY_TASK_ID)"
)
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|JWT")


def provenance(argv: Sequence[str], devices: Sequence[torch.device], ranks: int) -> dict[str, Any]:
    """What a start should be remembered by; what cannot be found out is null.

    argv: the whole command, `["python", "-m", "scripts.train", ...]`. devices: those of this process, or of all ranks.
    """
    cuda = any(device.type == "cuda" for device in devices)  # on a CPU run the GPUs are not even asked for their names
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(argv),
        "directory": str(Path.cwd()),
        "ranks": ranks,
        "devices": [str(device) for device in devices],
        "versions": {
            "ddbm": _installed("ddbm"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": _installed("torchvision"),
            "numpy": _installed("numpy"),
            "safetensors": _installed("safetensors"),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if cuda else None,
        },
        "git": git_state(ROOT),
        "hostname": platform.node(),
        "platform": platform.platform(),
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count(), "usable_cores": _usable_cores()},
        "memory_gib": _memory_gib(),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())] if cuda else [],
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if ENVIRONMENT.fullmatch(name) and not SECRET.search(name)
        },
    }


def write_start(run_dir: Path, start: dict[str, Any]) -> None:
    """Adds a start to `run.json`; a file that cannot be understood is set aside as `run.json.damaged`."""
    path = run_dir / "run.json"
    starts: list[Any] = []
    if path.is_file():
        try:
            starts = json.loads(path.read_bytes())["starts"]
            if not isinstance(starts, list):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            aside = path.with_name("run.json.damaged")
            path.replace(aside)
            print(f"warning: {path} is damaged: moved to {aside}", file=sys.stderr)
            starts = []
    data = json.dumps({"starts": [*starts, start]}, indent=2).encode()
    write_whole(path, data)


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit of the checkout at `root`, and whether its tracked files differ; None where there is no such checkout.

    A package installed into an environment inside somebody's checkout is not part of that checkout.
    """
    top = _git(root, "rev-parse", "--show-toplevel", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    if top is None or changes is None:
        return None
    folder, commit = top.rstrip("\n").rsplit("\n", 1)
    return {"commit": commit, "dirty": bool(changes)} if Path(folder).resolve() == root.resolve() else None


def _git(root: Path, *command: str) -> str | None:
    """The output of git, which may neither ask for anything nor write; None if it fails."""
    here = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}  # inside a hook they name another checkout
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-C", str(root), *command],
            env=here | {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine() or None


def _usable_cores() -> int | None:
    """Those that Slurm, a container or taskset leaves to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):  # a system that does not say
        return None


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
