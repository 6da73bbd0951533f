"""How every command begins."""

import subprocess
import sys

import pytest

KEPT = """
import ctypes, resource, sys
import torch
from ddbm.ranks.entry import keep_freed_memory
try:
    ctypes.CDLL(None).mallopt
except (OSError, TypeError, AttributeError):
    sys.exit(3)
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    for _ in range(5):
        [torch.ones(4_000_000) for _ in range(8)]  # 16 MB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
faults()
print(-faults() + faults())
"""


def test_freed_memory_is_kept():
    """Else the system takes it back, and gives it again page by page: 4096 bytes a fault."""
    done = [
        subprocess.run([sys.executable, "-c", KEPT, how], capture_output=True, text=True) for how in ("kept", "not")
    ]
    if done[0].returncode == 3:
        pytest.skip("not glibc")
    kept, other = (int(run.stdout) for run in done)
    assert 10 * kept < other, (kept, other)
