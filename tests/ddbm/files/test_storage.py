"""What is whole or not there stays so in every place, and a local path imports nothing of a store."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ddbm.files import blobs, storage
from ddbm.files.storage import location
from tests.ddbm.files.stores import ROOTS, serving

LAST = "manifest.json"
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["local", *ROOTS])
def place(request, tmp_path, monkeypatch):
    """A directory, local or of a store."""
    if request.param == "local":
        yield tmp_path
    else:
        with serving(monkeypatch):
            yield location(f"{ROOTS[request.param]}/place")


def fill(directory, content):
    for name in ("a", "b", LAST):
        (directory / name).write_text(content)


def whole(directory):
    """The content of a directory with its last file, which all its files must have; "" where it does not count."""
    if not (directory / LAST).is_file():
        return ""
    assert len({(directory / name).read_text() for name in ("a", "b", LAST)}) == 1
    return (directory / LAST).read_text()


# ------------------------------------------------------------------------------------------------------------ locations


@pytest.mark.parametrize("text", ["x/y", "/x", "C:x", "gs:/bucket/x", "~/x", "a b", "."])
def test_a_local_path(text):
    assert location(text) == Path(text) and storage.is_local(location(text)) and location(Path(text)) == Path(text)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("gs://bucket/x/", "gs://bucket/x"),
        ("az://account/box", "az://account/box"),
        ("https://account.blob.core.windows.net/box/x", "az://account/box/x"),
    ],
)
def test_a_path_of_a_store(text, path):
    assert (
        str(location(text)) == path
        and not storage.is_local(location(text))
        and location(location(text)) == location(text)
    )


@pytest.mark.parametrize(
    "text", ["s3://bucket/x", "https://example.org/x", "file:///x", "GS://bucket/x", "gs://", "az://x"]
)
def test_no_path(text):
    with pytest.raises(ValueError, match=f"^{text}.* expected gs://BUCKET/PATH or az://ACCOUNT/CONTAINER/PATH$"):
        location(text)


LOCAL = """
import sys
sys.modules["blobfile"] = None  # as if it were not installed
from pathlib import Path
import ddbm, datasets
from ddbm.training import loop
from ddbm.files import storage
place = storage.location(sys.argv[1])
aside = storage.begin(place / "x", "last")
storage.write_whole(aside / "last", b"")
storage.publish(aside, place / "x")
with storage.local_copy(place / "x" / "last") as file:
    assert file == place / "x" / "last"
storage.Stage(place, ["log"]).send("*")
storage.remove_tree(place / "x", "last")
try:
    datasets.open_data("mine", "train", data_dir=place)
except ValueError as error:
    assert "no pairs found" in str(error)
assert not {"blobfile", "ddbm.files.blobs"} & {name for name, module in sys.modules.items() if module}
try:
    storage.location("gs://bucket/x")
except ValueError as error:
    print(error)
"""


def test_a_local_path_imports_nothing_of_a_store(tmp_path):
    """And a store without blobfile is one line that says how to get it."""
    done = subprocess.run(
        [sys.executable, "-c", LOCAL, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gs://bucket/x needs blobfile, which cannot be imported (")
    assert done.stdout.endswith("): pip install blobfile\n") and done.stdout.count("\n") == 1


# ------------------------------------------------------------------------------------------------ whole or not there


def test_a_directory_counts_when_it_is_published(place):
    final = place / "step"
    for content in ("first", "second"):
        aside = storage.begin(final, LAST)
        assert list(aside.iterdir() if aside.is_dir() else ()) == []
        fill(aside, content)
        storage.publish(aside, final)
        assert whole(final) == content and [path.name for path in place.iterdir()] == ["step"]
    storage.remove_tree(final, LAST)
    assert not final.exists() and list(place.iterdir() if place.is_dir() else ()) == []


def test_what_was_begun_can_be_given_up(place):
    aside = storage.begin(place / "step", LAST)
    (aside / "a").write_text("half")
    storage.remove_tree(aside, LAST)
    assert list(place.iterdir() if place.is_dir() else ()) == []


class Killed(BaseException):
    """Like SIGKILL, nothing handles it."""


@pytest.mark.parametrize("store", ROOTS)
def test_a_kill_at_any_request_leaves_a_directory_whole_or_not_counting(store, monkeypatch):
    """Written anew and deleted again and again, with the process ending at every request that this makes."""
    with serving(monkeypatch) as server:
        final, other = location(f"{ROOTS[store]}/place/step"), location(f"{ROOTS[store]}/place/other")
        fill(other, "other")
        request, seen, done, limit = blobs.Pool.request, set(), False, -1

        def counted(self, *args, **how):
            if next(left, None) is None:
                raise Killed
            return request(self, *args, **how)

        while not done:
            limit += 1
            server.objects = {name: data for name, data in server.objects.items() if "/other/" in name}
            fill(final, "old")
            left = iter(range(limit))
            with monkeypatch.context() as patched:
                patched.setattr(blobs.Pool, "request", counted)
                try:
                    aside = storage.begin(final, LAST)
                    fill(aside, "new")
                    storage.publish(aside, final)
                    storage.remove_tree(final, LAST)
                    done = True
                except Killed:
                    pass
            seen.add(whole(final))
            assert whole(other) == "other"
        assert limit > 10 and seen == {"old", "new", ""}


def test_a_file_is_replaced_whole(place):
    for data in (b"first", b"second" * 1000, b""):
        storage.write_whole(place / "x.json", data)
        assert (place / "x.json").read_bytes() == data and [p.name for p in place.iterdir()] == ["x.json"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    storage.write_whole(tmp_path / "x", b"old")

    def full(file, data):
        file.write(data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "_fill", full)
    with pytest.raises(OSError, match=r"cannot write .*x: No space left"):
        storage.write_whole(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["x"]


# ------------------------------------------------------------------------------------------- what needs a file of here


def test_a_local_copy(place):
    (place / "x.bin").write_bytes(bytes(range(256)) * 100)
    with storage.local_copy(place / "x.bin") as file:
        assert isinstance(file, Path) and file.name == "x.bin" and file.read_bytes() == bytes(range(256)) * 100
    assert file.exists() == storage.is_local(place)
    with pytest.raises(FileNotFoundError), storage.local_copy(place / "y.bin") as file:
        file.read_bytes()


def test_growing_files_are_sent_and_gone_on_with(place):
    def append(stage, name, text):
        (stage.path / name).parent.mkdir(exist_ok=True)
        with (stage.path / name).open("a") as file:
            file.write(text)

    for start in range(3):
        stage = storage.Stage(place, ["log.jsonl", "id"])
        assert isinstance(stage.path, Path) and stage.path.name == place.name
        for number in range(3):
            append(stage, "log.jsonl", json.dumps(start * 3 + number) + "\n")
            append(stage, f"events/{start}", "x")
            append(stage, "other", "x")
            stage.send("log.*", "events/*")
    assert (place / "log.jsonl").read_text() == "".join(f"{n}\n" for n in range(9))
    assert [(place / "events" / f"{n}").read_text() for n in range(3)] == ["xxx"] * 3
    assert (place / "other").exists() == storage.is_local(place)


def test_what_has_not_changed_is_not_sent_again(monkeypatch):
    with serving(monkeypatch) as server:
        stage = storage.Stage(location("gs://bucket/run"), [])
        for name in ("a", "b"):
            (stage.path / name).write_text(name)
        stage.send("*")
        (stage.path / "b").write_text("bb")
        asked = len(server.asked)
        stage.send("*")
        assert [line for line in server.asked[asked:] if line.startswith("POST")] == [server.asked[asked]]
        assert server.objects == {"run/a": b"a", "run/b": b"bb"}
