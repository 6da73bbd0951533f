"""Arrays in memory or, from a size on, in files without a name."""

import errno
import os
import tempfile

import numpy as np
import pytest

from ddbm.files import canvas
from tests.ddbm.runs import one_line


@pytest.mark.parametrize(("kind", "size"), [(np.float32, 4), (np.uint16, 2), (bool, 1)])
def test_large_arrays_lie_on_the_disk_and_leave_nothing(tmp_path, monkeypatch, kind, size):
    for limit, disk in ((6 * size + 1, False), (6 * size, True)):
        monkeypatch.setattr(canvas, "DISK", limit)
        made = canvas.canvas([2, 3], tmp_path, kind)
        assert isinstance(made, np.memmap) == disk and made.shape == (2, 3) and made.dtype == kind
        assert not made.any() and not [*tmp_path.iterdir()]
        made[1:] = 1
        assert made.sum() == 3
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = canvas.canvas((2, 3))
    assert other.dtype == np.float32 and isinstance(other, np.memmap)
    assert canvas.canvas((2, 3), kind=kind).dtype == kind and not [*tmp_path.iterdir()]


def test_its_room_is_taken_at_once(tmp_path, monkeypatch):
    """A full disk would kill who writes to a map of a hole."""
    monkeypatch.setattr(canvas, "DISK", 1000)
    taken = []
    real = os.posix_fallocate

    def fallocate(handle, start, length):
        real(handle, start, length)
        taken.append((start, length, os.fstat(handle).st_blocks * 512 >= length))

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    canvas.canvas((100, 50), tmp_path)
    assert taken == [(0, 20000, True)]

    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with one_line("cannot write", tmp_path, "38 MiB", "No space left on device", kind=OSError):
        canvas.canvas((10**7,), tmp_path)
    with one_line("cannot write", tempfile.gettempdir(), "No space left", kind=OSError):
        canvas.canvas((10**7,))


def test_a_system_without_that_call_will_do(tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "DISK", 0)
    monkeypatch.delattr(os, "posix_fallocate")
    assert np.array_equal(canvas.canvas((2, 3), tmp_path), np.zeros((2, 3)))
    with one_line("cannot write", "nowhere", kind=OSError):
        canvas.canvas((3,), tmp_path / "nowhere")


def test_rows_are_written_where_they_belong(tmp_path):
    path, rows = tmp_path / "rows.npy", np.arange(12, dtype=np.int16).reshape(2, 3, 2)
    canvas.make_rows(path, (5, 3, 2), np.int16)
    assert not np.load(path).any() and np.load(path).shape == (5, 3, 2)
    canvas.write_rows(path, 2, rows, 5)
    canvas.write_rows(path, 4, rows[:1], 5)
    wanted = np.zeros((5, 3, 2), np.int16)
    wanted[2:4], wanted[4] = rows, rows[0]
    assert np.array_equal(np.load(path), wanted)
    with one_line("cannot write", tmp_path / "none.npy", kind=OSError):
        canvas.write_rows(tmp_path / "none.npy", 0, rows, 2)
    with one_line("cannot write", tmp_path / "none" / "a.npy", kind=OSError):
        canvas.make_rows(tmp_path / "none" / "a.npy", (2, 2))
