"""The metrics of symmetry equal direct computations."""

from itertools import combinations

import numpy as np
import pytest
import torch

from ddbm.symmetry.groups import GROUPS, IDENTITY, Element, act
from evaluations.distances import Gaussian, frechet_distance
from evaluations.evaluator import evaluate
from evaluations.features import Cache, describe
from evaluations.images import as_images
from evaluations.metrics import METRICS
from evaluations.networks import NETWORKS

Sets = tuple[np.ndarray, np.ndarray]
INVARIANCE = ["inv_fd_raw_mean", "inv_fd_raw_max", "inv_fd_raw_spread"]


def turn(g: Element, images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] under an element."""
    return act(g, torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


def gaussian(images: np.ndarray) -> Gaussian:
    network = NETWORKS["raw"](None, torch.device("cpu"), True)
    return describe(as_images(images, "x"), network, [("raw", IDENTITY)], Cache(None))["raw", IDENTITY]


@pytest.mark.parametrize("group", ["V", "C2", "D4"])
def test_by_single_distances(squares: Sets, group: str) -> None:
    reference, sample = squares
    elements = GROUPS[group].elements
    turned = [gaussian(turn(g, sample)) for g in elements]
    augmented = gaussian(np.concatenate([turn(g, reference) for g in elements]))
    between = [frechet_distance(a, b) for a, b in combinations(turned, 2)]
    to_reference = [frechet_distance(gaussian(reference), a) for a in turned]
    spread = np.max(to_reference) - np.min(to_reference)
    expected = [np.mean(between), np.max(between), spread, frechet_distance(augmented, gaussian(sample))]
    found = evaluate(reference, sample, [*INVARIANCE, "fd_raw_augmented"], group=group)["metrics"]
    assert [score["mean"] for score in found.values()] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert [score["n_reference"] for score in found.values()] == [None, None, 40, 40 * len(elements)]


@pytest.mark.parametrize("group", ["H", "C4"])
def test_a_closed_set_has_no_inv_fid(squares: Sets, group: str) -> None:
    reference, sample = squares[0], squares[1][:12]
    closed = np.concatenate([turn(g, sample) for g in GROUPS[group].elements])
    ours, others = (evaluate(reference, images, INVARIANCE, group=group)["metrics"] for images in (closed, sample))
    assert [score["mean"] for score in ours.values()] == pytest.approx([0, 0, 0], abs=1e-6)  # to rounding of float32
    assert all(others[name]["mean"] > 1e-3 for name in INVARIANCE[:2])


def test_published_names() -> None:
    """The same metrics of Inception's pooled features."""
    for name in ("fid", "kid", "fid_augmented", "inv_fid_mean", "inv_fid_max", "inv_fid_spread"):
        own, raw = METRICS[name], METRICS[METRICS[name].raw]
        assert (own.layer, raw.layer) == ("pool", "raw") and own.compute is raw.compute and own.rows == raw.rows
        assert (own.turned, own.reference, own.fewest) == (raw.turned, raw.reference, raw.fewest)


def test_refusals(squares: Sets) -> None:
    reference, sample = squares
    with pytest.raises(ValueError, match=r"unknown group 'd4': .*did you mean D4\?"):
        evaluate(reference, sample, ["fd_raw"], group="d4")
    with pytest.raises(ValueError, match="group C4 turns images by 90 degrees and needs square ones, not 12x16"):
        evaluate(reference[:, :12], sample[:, :12], ["inv_fd_raw_mean"], group="C4")
