"""Where a run comes from: `RUN/run.json`, `{"starts": [...]}` with one entry a start, the newest last."""

import json
import os
import platform
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
STATUS = "git --git-dir=.git --no-optional-locks -c core.fsmonitor=false status --porcelain=v2 --branch -uno".split()
PACKAGES = {"ddbm", "torch", "torchvision", "numpy", "safetensors"}


def provenance(argv: Sequence[str], device: torch.device, ranks: int) -> dict[str, Any]:
    """What a start should be remembered by; argv: the whole command, `["python", "-m", "scripts.train", ...]`."""
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"] in PACKAGES}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(argv),
        "directory": str(Path.cwd()),
        "ranks": ranks,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda} | installed,
        "git": git_state(ROOT) or {"commit": os.environ.get("DDBM_COMMIT")},  # which a container's image knows
        "hostname": platform.node(),
    }


def write_start(run_dir: Path, start: dict[str, Any]) -> None:
    """Adds a start to `run.json`; a file that cannot be understood is set aside as `run.json.damaged`."""
    path = run_dir / "run.json"
    try:
        starts = [*json.loads(path.read_bytes())["starts"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        starts = []
        if path.exists():
            path.replace(path.with_name("run.json.damaged"))
            print(f"warning: {path} is damaged: moved to run.json.damaged", file=sys.stderr)
    write_whole(path, json.dumps({"starts": [*starts, start]}, indent=2).encode())


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit of the checkout at `root`, and whether its tracked files differ; None where there is no such checkout.

    A package installed into an environment inside somebody's checkout is not part of that checkout.
    """
    here = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}  # inside a hook they name another checkout
    try:
        done = subprocess.run(STATUS, cwd=root, env=here, input=b"", capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    commit, *lines = done.stdout.decode(errors="replace").splitlines()  # "# branch.oid COMMIT", "# ...", files
    return {"commit": commit.split()[-1], "dirty": any(not line.startswith("#") for line in lines)}
