"""What is read from a store is fetched as far as it has changed; what is written is mirrored there."""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from ddbm.files import checkpoint, stores
from ddbm.files.stores import Mirror, address, fetched, full, is_store, local
from tests.ddbm.files.stores import ROOTS, Killed, killed_after


@pytest.fixture(params=ROOTS)
def root(request, server):
    """The address of a folder with nothing in it."""
    return f"{ROOTS[request.param]}/some where"


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    }


def fill(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def below(server, name):
    """What the store holds below a folder."""
    start = f"some where/{name}/"
    return {n.removeprefix(start): data for n, data in server.objects.items() if n.startswith(start)}


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("gs://bucket/x/", "gs://bucket/x"),
        ("az://account/box", "az://account/box"),
        ("https://account.blob.core.windows.net/box//x/./y", "az://account/box/x/y"),
    ],
)
def test_an_address_and_its_copy(monkeypatch, text, spelled):
    assert is_store(text) and full(text) == spelled and address(local(text)) == spelled
    assert address(local(text, "sent")) == spelled == Mirror(text).place
    monkeypatch.delenv("DDBM_STORES", raising=False)
    assert local("gs://x/y") == Path.home() / ".cache" / "ddbm" / "stores" / "fetched" / "gs" / "x" / "y"


@pytest.mark.parametrize("text", ["x/y", "/x", "C:x", "gs:/bucket/x", "~/x", "a b", "."])
def test_a_local_path(text):
    assert not is_store(text) and local(text) == fetched(text) == fetched(Path(text)) == Mirror(text).path == Path(text)
    assert full(text) == str(Path(text).expanduser().resolve()) and address(Path(text)) == str(Path(text))
    assert Mirror(text).place == str(Path(text))


@pytest.mark.parametrize(
    "text", ["s3://bucket/x", "https://example.org/x", "file:///x", "gs://", "az://x", "gs://bucket/../x"]
)
def test_no_known_store(text):
    with pytest.raises(ValueError, match=r"expected gs://BUCKET/PATH or az://ACCOUNT/CONTAINER/PATH$"):
        is_store(text)


def refused(kind, words, *calls):
    """Every call ends in one line."""
    for call in calls:
        with pytest.raises(kind, match=words) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.fixture
def tries(monkeypatch):
    """How often a store is asked from now on."""

    def limit(number):
        monkeypatch.setattr(stores, "TRIES", number)
        stores._client.cache_clear()

    yield limit
    stores._client.cache_clear()


def test_without_blobfile_a_store_is_one_line_and_a_local_path_is_what_it_is(monkeypatch, tries, tmp_path):
    tries(1)
    monkeypatch.setitem(sys.modules, "blobfile", None)
    monkeypatch.setenv("DDBM_STORES", str(tmp_path))
    refused(ValueError, r"^stores need blobfile.*: pip install blobfile$", lambda: fetched("gs://bucket/x"))
    Mirror("x").send()
    Mirror("x").fetch()


# ------------------------------------------------------------------------------------------------------------- fetching


def test_a_folder_is_fetched_as_far_as_it_has_changed(root, server):
    files = {"a/1": b"one", "a/b/ü #1%2?[x]&": b"two", "c": b"", "m/": b""}
    server.objects |= {f"some where/data/{name}": data for name, data in files.items()} | {"some where/data2": b"no"}
    folder = fetched(f"{root}/data")
    assert folder == local(f"{root}/data") and contents(folder) == {n: d for n, d in files.items() if n != "m/"}
    del server.objects["some where/data/a/b/ü #1%2?[x]&"]
    server.objects |= {"some where/data/a/1": b"new", "some where/data/d": b"more"}
    server.asked.clear()
    assert contents(fetched(f"{root}/data")) == {"a/1": b"new", "c": b"", "d": b"more"}
    kept = (folder / "d").stat().st_mtime_ns
    (folder / "d").write_bytes(b"mo")
    os.utime(folder / "d", ns=(kept, kept))  # of the same time, but cut
    assert contents(fetched(f"{root}/data"))["d"] == b"more"
    assert not (folder / "a" / "b").exists() and not any("data/c" in asked for asked in server.asked)
    assert contents(fetched(f"{root}/data", "d", "x")) == contents(folder)
    assert fetched(f"{root}/data2").read_bytes() == b"no"
    with pytest.raises(FileNotFoundError, match="some where/none: there is nothing of that name in the store"):
        fetched(f"{root}/none")


def test_a_checkpoint_is_fetched_by_its_run_or_itself(root, server, tmp_path):
    written = checkpoint.path_of(tmp_path, 1)
    checkpoint.write(written, {"step": 1}, {"ema": {"w": torch.ones(2)}}, {"a": 1})
    server.objects |= {f"some where/{p.relative_to(tmp_path)}": p.read_bytes() for p in written.iterdir()}
    for place in (root, f"{root}/checkpoints", f"{root}/checkpoints/step_00000001"):
        assert checkpoint.read_state(checkpoint.find(place, pytest.fail)) == {"a": 1}
        shutil.rmtree(local(root))


def test_a_fetch_that_fails_leaves_no_half_file(server, tries, monkeypatch):
    """Because the store does not answer, or because the disk here is full."""
    server.objects |= {"run/a": b"x" * 100}
    folder = fetched("gs://bucket/run")
    server.objects |= {"run/a": b"y" * 200}
    tries(0)
    server.ill = lambda request: 503 * ("alt=media" in request)
    refused(OSError, "gs://bucket/run/a: ", lambda: fetched("gs://bucket/run"))
    server.ill = lambda request: 0
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(type(stores._client()), "copy", lambda *_, **__: (_ for _ in ()).throw(full))
    refused(OSError, "^gs://bucket/run/a: No space left on device$", lambda: fetched("gs://bucket/run"))
    assert not contents(folder)


# ------------------------------------------------------------------------------------------------------------ mirroring


def test_a_mirror_holds_what_the_folder_does(root, server):
    server.objects["some where/run/others"] = b"by somebody else"
    mirror = Mirror(f"{root}/run")
    files = {"log": b"1", "c/step_1/w": b"1", "c/step_1/manifest.json": b"{}", "e/1": b"e"}
    fill(mirror.path, files | {".lock": b"", ".hidden/x": b"", "wandb/x": b"", "c/.step_2.1/w": b""})
    mirror.send()
    assert below(server, "run") == files | {"others": b"by somebody else"}
    fill(mirror.path, {"log": b"12", "c/step_2/w": b"2", "c/step_2/manifest.json": b"{ }"})
    for name in ("c/step_1/w", "c/step_1/manifest.json"):
        (mirror.path / name).unlink()
    (mirror.path / "c" / "step_1").rmdir()
    server.asked.clear()
    mirror.send()
    assert not any("e/1" in asked or "e%2F1" in asked for asked in server.asked)
    assert below(server, "run") == {
        "log": b"12", "c/step_2/w": b"2", "c/step_2/manifest.json": b"{ }", "e/1": b"e", "others": b"by somebody else",
    }  # fmt: skip


def test_a_run_is_gone_on_with_from_its_newest_checkpoint_alone(root, server):
    steps = [f"c/{step}/{name}" for step in (1, 2, 3) for name in ("manifest.json", "w")]
    server.objects |= {f"some where/run/{name}": name.encode() for name in ("log", "e/1", *steps)}
    mirror = Mirror(f"{root}/run")
    fill(mirror.path, {"log": b"of another start", "c/9/manifest.json": b"not sent", "e/1": b"old"})
    mirror.fetch("log", "c/*/manifest.json", "c/3/*")
    assert mirror.names() == sorted(["log", "e/1", *steps])
    assert set(contents(mirror.path)) == {"log", "c/3/w", *(name for name in steps if "manifest" in name)}
    mirror.send()
    assert len(below(server, "run")) == 8
    (mirror.path / "c" / "1" / "manifest.json").unlink()
    (mirror.path / "c" / "1").rmdir()
    mirror.send()  # with the weights that were never here
    assert set(below(server, "run")) == {"log", "e/1", *steps[2:]}
    mirror.remove(["e/1"])
    assert "e/1" not in below(server, "run")


def test_a_kill_at_any_request_leaves_no_checkpoint_that_counts_and_is_not_whole(server, monkeypatch):
    limit, seen, done = -1, set(), False
    while not done:
        limit, mirror = limit + 1, Mirror("gs://bucket/some where/run")
        server.objects.clear()
        shutil.rmtree(mirror.path, ignore_errors=True)
        fill(mirror.path, {f"c/1/{name}": b"1" for name in ("a", "z", "manifest.json")})
        mirror.send()
        shutil.rmtree(mirror.path / "c" / "1")
        fill(mirror.path, {f"c/2/{name}": b"2" for name in ("a", "z", "manifest.json")})
        with suppress(Killed), killed_after(limit, monkeypatch):
            mirror.send()
            done = True
        there = below(server, "run")
        whole = tuple(n for n in "12" if f"c/{n}/manifest.json" in there)
        assert all({f"c/{n}/a", f"c/{n}/z"} <= there.keys() for n in whole)
        seen.add(whole)
    assert seen == {("1",), ("1", "2"), ("2",)}


def test_what_is_not_sent_is_not_deleted(root, server):
    """Such as an unfinished sampling inside of a run."""
    mirror = Mirror(f"{root}/run")
    fill(mirror.path, {"log": b"1", "samples/a/.parts/nfe.npy": b"2", "wandb/run": b"3", "samples/b/x.npz": b"4"})
    mirror.fetch("log")
    left = {path.relative_to(mirror.path).as_posix() for path in mirror.path.rglob("*") if path.is_file()}
    assert left == {"samples/a/.parts/nfe.npy", "wandb/run"}


# -------------------------------------------------------------------------------------------------- when they do not do


@pytest.mark.parametrize("status", [401, 403])
def test_without_the_right_to_it_or_the_bucket(server, monkeypatch, status):
    for state in ("tokens", "expirations"):
        monkeypatch.setattr(f"blobfile._azure.access_token_manager._{state}", {})
    server.ill = lambda request: status
    mirror = Mirror("gs://bucket/x")
    fill(mirror.path, {"a": b"1"})
    words = f"gs://bucket/x.*: unexpected status {status}.*gcloud auth"
    refused(OSError, words, lambda: fetched("gs://bucket/x"), mirror.fetch, mirror.send)
    if status == 403:
        words = r"Could not find any credentials .*account.*bucket.*az login"
        refused(OSError, words, lambda: fetched("az://account/bucket/x"))
    server.ill = lambda request: 0
    for place in ("gs://another/x", "az://account/another/x"):
        fill((mirror := Mirror(place)).path, {"a": b"1"})
        refused(FileNotFoundError, "another/x", lambda place=place: fetched(place), mirror.send)


def test_what_passes_is_asked_again_and_what_does_not_is_given_up(root, server, tries, capfd):
    server.objects["some where/x"] = b"1"
    ill = iter([503, 429, 500])
    server.ill = lambda request: next(ill, 0)
    assert fetched(f"{root}/x").read_bytes() == b"1"
    shown = capfd.readouterr()
    assert shown.err.startswith("warning: the store does not answer") and not shown.out
    tries(1)
    server.ill = lambda request: 503
    refused(OSError, rf"^{root}/x: unexpected status 503", lambda: fetched(f"{root}/x"))
