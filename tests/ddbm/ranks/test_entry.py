"""How every command begins."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from ddbm.ranks import entry

KEPT = """
import resource
import torch
from ddbm.ranks.entry import keep_freed_memory
keep_freed_memory()
def faults():
    for _ in range(5):
        [torch.ones(4_000_000) for _ in range(8)]  # 16 MB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(-faults() + faults())
"""


def test_freed_memory_is_kept(monkeypatch):
    """Else the system often takes it back, and gives it again page by page: 160,000 faults here."""
    calls = []
    monkeypatch.setattr(entry.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *words: calls.append(words)))
    entry.keep_freed_memory()
    assert calls == [(-1, -1), (-3, 2**25)]  # M_TRIM_THRESHOLD: never; M_MMAP_THRESHOLD, at most 32 MiB (malloc.h)
    monkeypatch.setattr(entry.ctypes, "CDLL", lambda _: SimpleNamespace())
    entry.keep_freed_memory()  # another library has none
    if sys.platform != "linux":
        pytest.skip("not Linux")
    assert int(subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True).stdout) < 1000
