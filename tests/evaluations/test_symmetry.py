"""The metrics of symmetry equal direct computations."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from ddbm.symmetry.groups import GROUPS, Element, act
from evaluations.evaluator import evaluate

Sets = tuple[np.ndarray, np.ndarray]


def value(reference: np.ndarray, sample: np.ndarray, name: str, **more: Any) -> float:
    return evaluate(reference, sample, [name], **more)["metrics"][name]["mean"]


def turn(g: Element, images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] under an element."""
    return act(g, torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("group", [name for name in GROUPS if name != "none"])
def test_a_closed_set_has_no_inv_fid(squares: Sets, group: str) -> None:
    reference, sample = squares
    closed = np.concatenate([turn(g, sample) for g in GROUPS[group].elements])
    for name in ("inv_fd_raw_mean", "inv_fd_raw_max", "inv_fd_raw_spread"):
        assert value(reference, closed, name, group=group) == pytest.approx(0, abs=1e-6)  # 0 to rounding of float32
        assert value(reference, sample, name, group=group) > (1e-3 if name != "inv_fd_raw_spread" else -1)


@pytest.mark.parametrize("group", ["H", "V", "C4", "D4"])
def test_inv_fid_by_single_distances(squares: Sets, group: str) -> None:
    reference, sample = squares
    turned, augmented = ([turn(g, images) for g in GROUPS[group].elements] for images in (sample, reference))
    between = [value(a, b, "fd_raw") for a, b in combinations(turned, 2)]
    to_reference = [value(reference, a, "fd_raw") for a in turned]
    expected = {
        "inv_fd_raw_mean": np.mean(between),
        "inv_fd_raw_max": np.max(between),
        "inv_fd_raw_spread": np.max(to_reference) - np.min(to_reference),
        "fd_raw_augmented": value(np.concatenate(augmented), sample, "fd_raw"),
    }
    found = evaluate(reference, sample, list(expected), group=group)["metrics"]
    for name, number in expected.items():
        assert found[name]["mean"] == pytest.approx(number, rel=1e-5, abs=1e-6), name
    assert found["fd_raw_augmented"]["n_reference"] == 40 * len(GROUPS[group])
    assert found["inv_fd_raw_mean"]["n_reference"] is None


def test_with_inception(squares: Sets, weights: Any) -> None:
    """The same metrics under their published names."""
    reference, sample = (images[:4] for images in squares)
    closed = np.concatenate([sample[:2], turn((1, 0), sample[:2])])
    names = ["inv_fid_mean", "inv_fid_max", "inv_fid_spread", "fid_augmented"]
    found = evaluate(reference, closed, names, weights=weights, group="H", batch_size=4)["metrics"]
    assert all(found[name]["mean"] == pytest.approx(0, abs=1e-4) for name in names[:3])
    assert found["fid_augmented"]["mean"] > 1 and found["fid_augmented"]["n_reference"] == 8


def test_refusals(squares: Sets) -> None:
    reference, sample = squares
    with pytest.raises(ValueError, match=r"unknown group 'd4': .*did you mean D4\?"):
        evaluate(reference, sample, ["fd_raw"], group="d4")
    with pytest.raises(ValueError, match="group C4 turns images by 90 degrees and needs square ones, not 12x16"):
        evaluate(reference[:, :12], sample[:, :12], ["inv_fd_raw_mean"], group="C4")
