"""What is whole or not there stays so, whatever ends the writing."""

import os

import pytest

from ddbm.files import storage


class Killed(BaseException):
    """Like SIGKILL, nothing handles it."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path):
    for data in (b"first", b"second" * 1000, b""):
        storage.write_whole(tmp_path / "x.json", data)
        assert (tmp_path / "x.json").read_bytes() == data and names(tmp_path) == ["x.json"]
    storage.write_whole(tmp_path / "x.json", lambda file: file.write(b"by a call"))
    assert (tmp_path / "x.json").read_bytes() == b"by a call"


def ending(error, written=b"ne"):
    def write(file):
        file.write(written)
        raise error

    return write


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    storage.write_whole(tmp_path / "x", b"old")
    with pytest.raises(OSError, match=r"cannot write .*x: No space left"):
        storage.write_whole(tmp_path / "x", ending(OSError(28, "No space left on device")))
    with pytest.raises(Killed):
        storage.write_whole(tmp_path / "x", ending(Killed()))
    assert (tmp_path / "x").read_bytes() == b"old" and names(tmp_path) == ["x"]

    def while_another_writes(file):
        file.write(b"first")
        with monkeypatch.context() as patched:
            patched.setattr(os, "getpid", lambda: 1)
            storage.write_whole(tmp_path / "x", b"another")
        file.write(b" and whole")

    storage.write_whole(tmp_path / "x", while_another_writes)
    assert (tmp_path / "x").read_bytes() == b"first and whole" and names(tmp_path) == ["x"]


def test_a_directory_is_replaced_whole(tmp_path, monkeypatch):
    for content in ("first", "second"):
        with storage.whole_directory(tmp_path / "step") as aside:
            (aside / content).write_text(content)
            assert names(tmp_path) == sorted([aside.name, *(["step"] if content == "second" else [])])
        assert names(tmp_path) == ["step"] and names(tmp_path / "step") == [content]
    with pytest.raises(OSError, match="full"), storage.whole_directory(tmp_path / "step") as aside:
        (aside / "half").write_text("")
        raise OSError("full")
    assert names(tmp_path) == ["step"] and names(tmp_path / "step") == ["second"]
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(Killed))
        with storage.whole_directory(tmp_path / "step") as aside:
            (aside / "third").write_text("")
    assert names(tmp_path / "step") == ["second"]
