"""What is whole or not there stays so, whatever ends the writing."""

import os
from pathlib import Path

import pytest

from ddbm.files import storage
from tests.ddbm.files.stores import Killed
from tests.ddbm.runs import one_line


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def ending(error, written=b"ne"):
    def write(file):
        file.write(written)
        raise error

    return write


def test_a_file_is_replaced_whole_or_stays(tmp_path, monkeypatch):
    path = tmp_path / "x"
    for data, written in ((b"first", b"first"), (lambda file: file.write(b"by a call"), b"by a call"), (b"", b"")):
        storage.write_whole(path, data)
        assert path.read_bytes() == written and names(tmp_path) == ["x"]
    storage.write_whole(path, b"old")
    for error in (OSError(28, "No space left on device"), OSError("No space left on device")):
        with pytest.raises(OSError, match=r"^cannot write .*/x: No space left on device$"):
            storage.write_whole(path, ending(error))
    with pytest.raises(Killed):
        storage.write_whole(path, ending(Killed()))
    assert path.read_bytes() == b"old" and names(tmp_path) == ["x"]

    def while_another_writes(file):
        file.write(b"first")
        with monkeypatch.context() as patched:
            patched.setattr(os, "getpid", lambda: 1)
            storage.write_whole(path, b"another")
        file.write(b" and whole")

    storage.write_whole(path, while_another_writes)
    assert path.read_bytes() == b"first and whole" and names(tmp_path) == ["x"]


def write_directory(path):
    with storage.whole_directory(path) as aside:
        (aside / "a").write_bytes(b"a")


@pytest.mark.parametrize("write", [lambda path: storage.write_whole(path, b"a"), write_directory])
def test_all_is_on_the_disk_before_it_has_the_name_and_the_name_after(tmp_path, monkeypatch, write):
    """What a power cut leaves: the order of flushes (by what is open) and renames (by the names they give)."""
    done, fsync, rename, replace = [], os.fsync, Path.rename, Path.replace
    monkeypatch.setattr(os, "fsync", lambda n: done.append(Path(f"/proc/self/fd/{n}").resolve()) or fsync(n))
    for name, move in (("rename", rename), ("replace", replace)):
        monkeypatch.setattr(Path, name, lambda path, to, move=move: done.append((path, to)) or move(path, to))
    path = tmp_path / "x"
    write(path)
    whole, moved, folder = done[-3:] if path.is_file() else done[1:]
    assert moved == (whole, path) and whole != path and folder == tmp_path
    assert path.is_file() or done[0] == whole / "a"


def test_a_directory_is_replaced_whole_or_stays(tmp_path, monkeypatch):
    path = tmp_path / "step"
    for content in ("first", "second"):
        with storage.whole_directory(path) as aside:
            (aside / content).write_text(content)
            assert names(tmp_path) == sorted([aside.name, *(["step"] if content == "second" else [])])
        assert names(tmp_path) == ["step"] and names(path) == [content]
    with pytest.raises(OSError, match=r"^cannot write .*/step: full$"), storage.whole_directory(path) as aside:
        (aside / "half").write_text("")
        raise OSError("full")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(Killed))
        write_directory(path)
    assert names(tmp_path) == ["step"] and names(path) == ["second"]
    elsewhere = path.rename(tmp_path / "elsewhere")
    for left in (f".step.{os.getpid()}", ".step.old"):  # of kills
        (tmp_path / left).mkdir()
        (tmp_path / left / "b").write_bytes(b"")
    for stands in (lambda: path.symlink_to(elsewhere), lambda: path.symlink_to("nowhere"), path.touch):
        stands()
        write_directory(path)
        assert names(path) == ["a"] and names(elsewhere) == ["second"]
        storage.remove(path)
        assert names(tmp_path) == ["elsewhere"]


@pytest.mark.parametrize("text", ["{", "[" * 10**5, "\xff", None], ids=["cut", "deep", "bytes", "petabyte"])
def test_what_is_no_json_is_one_line_that_names_it(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes((text or "").encode("latin1"))
    if text is None:
        os.truncate(path, 2**43)  # the disk holds nothing of it
    with one_line("x.json is damaged, not JSON as it was written"):
        storage.read_json(path)
    path.write_text('{"a": "ü"}', encoding="utf-8")
    assert storage.read_json(path) == {"a": "ü"}
