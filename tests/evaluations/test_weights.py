"""Weights are found in their order, checked by the hash in their name, and read without running code."""

import hashlib
from pathlib import Path

import pytest
import torch

from evaluations.networks import NETWORKS, find_weights, read_weights

ALEXNET = "alexnet-owt.pth"
INCEPTION = "weights-inception-2015-12-05.pth"
CONTENT = b"weights"
NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"
URL = f"https://example.org/folder/{NAME}"
CPU = torch.device("cpu")


def test_order_of_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [tmp_path / "given", tmp_path / "env", tmp_path / "torch" / "hub" / "checkpoints"]
    for place in places:
        place.mkdir(parents=True)
        (place / NAME).write_bytes(CONTENT)
    monkeypatch.setenv("DDBM_WEIGHTS", str(places[1]))
    assert find_weights(URL, places[0] / NAME)[0].parent == places[0]
    for place in places:
        path, *others = find_weights(URL, places[0])
        assert (path.parent, *others) == (place, hashlib.sha256(CONTENT).hexdigest(), "")
        (place / NAME).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{NAME} not found.*no network.*get {URL}.*put it"):
        find_weights(URL, places[0])
    with pytest.raises(FileNotFoundError, match="not on this machine"):
        find_weights(URL, download=False)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_weights(URL, tmp_path / "nothing")


def test_a_name_with_a_hash_is_checked(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=rf"{NAME}: its SHA-256 begins with .*damaged, or other weights"):
        find_weights(URL, tmp_path)
    with pytest.raises(ValueError, match="damaged, or other weights"):
        find_weights(URL, tmp_path / NAME)
    (tmp_path / NAME).rename(tmp_path / "net.pth")  # one's own
    found = find_weights(URL, tmp_path)
    assert found[0].name == "net.pth" and "not comparable" in found[2]
    assert find_weights(URL, tmp_path / "net.pth") == found
    (tmp_path / "net.pth").write_bytes(CONTENT)
    assert find_weights(URL, tmp_path)[2] == ""  # the published ones under another name


def test_refuses_foreign_weights(tmp_path: Path, weights: Path) -> None:
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"hello")
    with pytest.raises(ValueError, match="not a file of weights"):
        read_weights(bad)
    torch.save(Path("code"), bad)  # any class is refused unread
    with pytest.raises(ValueError, match="not a file of weights"):
        NETWORKS["inception"](bad, CPU, True)
    torch.save([1], bad)
    with pytest.raises(ValueError, match="expected a dict of tensors"):
        read_weights(bad)
    with pytest.raises(ValueError, match=r"not the weights of LPIPS v0\.1, AlexNet"):
        NETWORKS["alexnet"](weights / INCEPTION, CPU, True)
    with pytest.raises(ValueError, match="not the weights of inception; get https"):
        NETWORKS["inception"](weights / ALEXNET, CPU, True)
