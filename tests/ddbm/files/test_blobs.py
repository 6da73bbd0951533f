"""Paths of stores do what pathlib's do: through blobfile on a local directory, and on servers that answer as stores."""

import gc
import io
import os
import pickle
import random
import socket
import threading

import numpy as np
import pytest
import torch

from ddbm.files import blobs
from ddbm.files.blobs import BlobPath
from tests.ddbm.files.stores import ROOTS


@pytest.fixture(params=["local", *ROOTS])
def root(request, tmp_path):
    """A directory with nothing in it: a local one, which blobfile takes too, or one of a store."""
    if request.param == "local":
        (tmp_path / "blobs").mkdir()
        return BlobPath(str(tmp_path / "blobs"))
    request.getfixturevalue("server")
    return BlobPath.parse(f"{ROOTS[request.param]}/some where")


def raised(call):
    try:
        call()
    except (FileNotFoundError, FileExistsError) as error:
        return type(error)


def walked(root, skipped):
    """Files by directory, as both kinds walk; a directory can be left out on the way."""
    walk = root.walk() if isinstance(root, BlobPath) else ((type(root)(p), d, f) for p, d, f in os.walk(root))
    for place, folders, files in walk:
        folders[:] = sorted(name for name in folders if name != skipped)
        yield place.relative_to(root).as_posix(), list(folders), sorted(files)


def story(root, skipped):
    """What a path says of itself and of its files while they are written, moved and deleted."""

    def names(paths):
        return sorted(path.relative_to(root).as_posix() for path in paths)

    odd = "ü #1%2?[x]&.tar.gz"
    (root / "a" / "b").mkdir(parents=True, exist_ok=True)
    text, data, file = root / "a" / "x.txt", root / "a" / "b" / "y.bin", root / "a" / odd
    yield [raised(lambda p=p: p.stat()) for p in (text, data)], text.exists(), text.is_file()
    yield text.write_text("häh\n", encoding="utf-8"), data.write_bytes(bytes(range(256)) * 9), file.write_bytes(b"")
    yield text.read_text(encoding="utf-8"), text.read_text(encoding="ascii", errors="replace"), data.read_bytes()
    yield file.read_bytes(), [p.stat().st_size for p in (text, data, file)]
    yield [abs(p.stat().st_mtime) > 0 for p in (text, data, file)]
    yield [(p.exists(), p.is_dir()) for p in (root, root / "a", text, root / "a" / "x", root / "gone")]
    yield (
        names(root.iterdir()),
        names((root / "a").iterdir()),
        list(walked(root, skipped)),
        list(walked(root / "gone", skipped)),
    )
    yield [names((root / "a").glob(p)) for p in ("*", "*.txt", "?.txt", "b/*", "*/*.bin", "*/z", "x.txt", "q")]
    yield file.name, file.stem, file.suffix, file.parent.name, (root / "a" / ".b").suffix, file.with_name("c").name
    yield str(file)[len(str(root)) :], f"{file}"[len(str(root)) :], root / "a" / odd == file, root / "" == root
    yield [raised(lambda p=p: p.read_bytes()) for p in (root / "gone", root / "a" / "x")]
    yield raised(lambda: next((root / "gone").iterdir())), list((root / "gone").glob("*"))
    yield raised(lambda: (root / "a").mkdir()), raised(lambda: (root / "a").mkdir(exist_ok=True))
    yield raised(lambda: (root / "gone").unlink()), (root / "gone").unlink(missing_ok=True)
    yield file.replace(text) == text, text.read_bytes(), names((root / "a").iterdir())
    yield raised(lambda: (root / "gone").rename(root / "g")), list((root / "a").glob("g"))
    if skipped:  # of a local directory something would be left
        yield (root / "a").rename(root / "c") == root / "c", (root / "a").exists(), list(walked(root, skipped))
        (root / "c").rename(root / "a")
    text.unlink()
    yield names((root / "a").iterdir()), root.resolve() == root, root.expanduser() == root


def test_a_path_does_what_pathlib_does(root, tmp_path):
    (tmp_path / "files").mkdir()
    skipped = "b" if "://" in str(root) else ""  # blobfile does not let it be left out in local directories
    stories = story(root, skipped), story(tmp_path / "files", skipped)
    for number, (own, pathlibs) in enumerate(zip(*stories, strict=True)):
        assert own == pathlibs, number


def test_paths_are_ordered_hashed_and_pickled_as_pathlib_does(root, tmp_path):
    texts = ["b/1", "a/2", "a-b/0", "a/10", "c", "a", "a b/x"]
    shuffled = random.Random(0).sample(texts, len(texts))
    ordered = [sorted(base / text for text in shuffled) for base in (root, tmp_path)]
    assert [p.relative_to(root).as_posix() for p in ordered[0]] == [
        p.relative_to(tmp_path).as_posix() for p in ordered[1]
    ]
    assert {root / "a" / "b", root / "a/b", root / "a" / "b"} == {pickle.loads(pickle.dumps(root / "a/b"))}
    with pytest.raises(ValueError, match="does not lie below"):
        (root / "a").relative_to(root / "b")
    with pytest.raises(TypeError):
        os.fspath(root)  # nothing may take it for the name of a local file


def test_a_file_is_read_from_anywhere(root):
    data = np.random.default_rng(0).bytes(100_000)
    (root / "x").write_bytes(data)
    with (root / "x").open("rb") as file, io.BytesIO(data) as expected:
        for offset, whence, count in [(10, 0, 5), (7, 1, 99_000), (-20, 2, 30), (0, 0, 0), (0, 2, 1), (500, 0, -1)]:
            assert file.seek(offset, whence) == expected.seek(offset, whence)
            assert file.read(count) == expected.read(count) and file.tell() == expected.tell()
        file.seek(0), expected.seek(0)
        assert file.readline() == expected.readline() and file.readable() and file.seekable()


def test_long_files_travel_in_pieces(root, monkeypatch):
    monkeypatch.setattr(blobs, "BUFFER", 1 << 16)
    monkeypatch.setattr(blobs, "store", lambda: blobs.blobfile.create_context(
        get_http_pool=blobs.Pool, google_write_chunk_size=1 << 18, azure_write_chunk_size=1 << 18,
    ))  # fmt: skip
    data = np.random.default_rng(0).bytes(1_000_000)
    with (root / "x").open("wb") as file:
        for start in range(0, len(data), 70_000):
            file.write(data[start : start + 70_000])
    assert (root / "x").read_bytes() == data


def test_numpy_and_torch_write_and_read(root):
    array, tensors = np.arange(12.0).reshape(3, 4), {"a": torch.arange(5), "b": [1.0, "x"]}
    with (root / "x.npz").open("wb") as file:
        np.savez(file, array=array)
    with (root / "x.pt").open("wb") as file:
        torch.save(tensors, file)
    with (root / "x.npz").open("rb") as file:
        assert np.array_equal(np.load(file)["array"], array)
    with (root / "x.pt").open("rb") as file:
        read = torch.load(file, weights_only=True)
    assert torch.equal(read["a"], tensors["a"]) and read["b"] == tensors["b"]


# ------------------------------------------------------------------------------------------------------------ of stores


@pytest.fixture(params=ROOTS)
def remote(request, server):
    return BlobPath.parse(f"{ROOTS[request.param]}/run")


def test_what_is_interrupted_leaves_nothing(remote, server, monkeypatch):
    monkeypatch.setattr(blobs, "TRIES", 0)
    blobs.store.cache_clear()
    (remote / "x").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), (remote / "x").open("wb") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert server.objects == {"run/x": b"old"}
    blobs.store.cache_clear()
    server.ill = lambda request: 503 * request.startswith("PUT")
    with pytest.raises(OSError, match="503"):
        (remote / "x").write_bytes(b"new")
    server.ill = lambda request: 0
    gc.collect()  # and blobfile's file of it
    blobs.store.cache_clear()
    assert server.objects == {"run/x": b"old"}


def test_a_directory_is_only_a_beginning_of_names(remote, server):
    (remote / "a").mkdir(parents=True)
    assert server.objects == {} and not (remote / "a").exists()
    (remote / "a" / "x").write_bytes(b"1")
    (remote / "ab").write_bytes(b"2")  # begins with a, but does not lie in it
    (remote / "a").remove_tree()
    (remote / "a").remove_tree()
    assert server.objects == {"run/ab": b"2"}
    server.objects["run/m/"] = b""  # as the stores' own tools make directories
    assert (remote / "m").is_dir() and not (remote / "m").is_file() and list((remote / "m").iterdir()) == []


def test_a_path_is_written_in_several_ways(server):
    path = BlobPath.parse("https://account.blob.core.windows.net/bucket//a/./b/")
    assert str(path) == "az://account/bucket/a/b" and path == BlobPath.parse("az://account/bucket") / "a" / "b"
    path.write_bytes(b"x")
    assert [str(p) for p in path.parent.iterdir()] == [str(path)] and path.parent.parent.parent.parent.name == ""


@pytest.mark.parametrize("text", ["gs://", "gs:///x", "az://account", "az://account/", "gs://bucket/../x"])
def test_no_path_of_a_store(text):
    with pytest.raises(ValueError, match="expected gs://BUCKET/PATH or az://ACCOUNT/CONTAINER/PATH"):
        BlobPath.parse(text)


# -------------------------------------------------------------------------------------------------- when they do not do


def test_a_bucket_that_is_not_there(server):
    for text in ("gs://another/x", "az://account/another/x"):
        path = BlobPath.parse(text)
        assert not path.exists() and not path.is_dir()
        for call in (path.read_bytes, lambda path=path: path.write_bytes(b"")):
            with pytest.raises(FileNotFoundError, match="another/x") as error:
                call()
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("status", [401, 403])
def test_without_the_right_to_it(server, status):
    server.ill = lambda request: status
    path = BlobPath.parse("gs://bucket/x")
    for call in (path.is_dir, path.is_file, path.read_bytes, lambda: list(path.walk()), path.unlink):
        with pytest.raises(OSError, match=f"gs://bucket/x: unexpected status {status}.*gcloud auth") as error:
            call()
        assert "\n" not in str(error.value) and error.value.strerror


def test_azure_without_the_right_to_it(server, monkeypatch):
    monkeypatch.setattr("blobfile._azure.access_token_manager._tokens", {})
    monkeypatch.setattr("blobfile._azure.access_token_manager._expirations", {})
    server.ill = lambda request: 403
    with pytest.raises(OSError, match=r"Could not find any credentials .*account.*bucket.*az login") as error:
        BlobPath.parse("az://account/bucket/x").is_file()
    assert "\n" not in str(error.value)


def test_what_passes_is_asked_again(remote, server, capfd):
    (remote / "x").write_bytes(b"1")
    ill = iter([503, 429, 500])
    server.ill = lambda request: next(ill, 0)
    assert (remote / "x").read_bytes() == b"1"
    shown = capfd.readouterr()
    assert shown.err.count("\n") == 1 and "does not answer (it answers with status 503)" in shown.err and not shown.out


def test_a_store_that_does_not_answer_is_given_up(remote, server, monkeypatch, capfd):
    monkeypatch.setattr(blobs, "PATIENCE", 0.3)
    server.ill = lambda request: 503
    for _ in range(2):
        with pytest.raises(OSError, match=rf"^{remote}/x: no answer from \S+ in \d+ s \(.+ 503\)$"):
            (remote / "x").read_bytes()
    assert capfd.readouterr().err.count("\n") == 1
    server.ill = lambda request: 0
    (remote / "x").write_bytes(b"1")  # and taken up again


def test_no_network(monkeypatch, capfd):
    monkeypatch.setattr(blobs, "PATIENCE", 0.3)
    monkeypatch.setattr("ddbm.files.blobs.Pool._failing", threading.local())
    monkeypatch.setenv("BLOBFILE_FORCE_GOOGLE_ANONYMOUS_AUTH", "1")

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(OSError, match=r"gs://bucket/x: no answer from storage.googleapis.com in \d+ s \(.*resol"):
        BlobPath.parse("gs://bucket/x").read_bytes()
    assert "warning: storage.googleapis.com does not answer" in capfd.readouterr().err
