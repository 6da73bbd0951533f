"""The metrics of sets: torch-fidelity's formulas of its own features, end to end; those of symmetry one by one."""

from itertools import combinations

import numpy as np
import pytest
import torch

from ddbm.symmetry.groups import GROUPS, IDENTITY, act
from evaluations.distances import density_coverage, frechet_distance
from evaluations.evaluator import evaluate
from evaluations.features import Cache, describe
from evaluations.images import as_images
from evaluations.metrics import METRICS
from evaluations.networks import NETWORKS

INCEPTION = "weights-inception-2015-12-05.pth"
INVARIANCE = ["inv_fd_raw_mean", "inv_fd_raw_max", "inv_fd_raw_spread"]


def sets():
    """uint8 [7 and 11, 24, 20, 3]: some like those of the other set, most of one brighter, two of the other noise."""
    random = np.random.default_rng(3)
    reference, sample = (random.integers(0, 60, (n, 6, 5, 3)).repeat(4, 1).repeat(4, 2) for n in (7, 11))
    reference[-2:] = random.integers(0, 2, reference[-2:].shape) * 255
    sample[4:] += 14 * np.arange(4, 11)[:, None, None, None]
    return reference.astype(np.uint8), sample.astype(np.uint8)


def test_all_equal_torch_fidelity(weights, tmp_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    reference, sample = sets()
    names, cache = ["kid", "is", "precision", "recall", "density", "coverage"], Cache(tmp_path)
    ours = evaluate(reference, sample, names, weights=weights, batch_size=20, cache=cache)
    scores = {name: score["mean"] for name, score in ours["metrics"].items()}

    own, path = NETWORKS["inception"](weights, torch.device("cpu")), str(weights / INCEPTION)
    network = FeatureExtractorInceptionV3("n", ["2048", "logits_unbiased"], feature_extractor_weights_path=path)
    blocks = []
    network.Mixed_6d.register_forward_hook(lambda module, x, out: blocks.append(out))
    with torch.inference_mode():
        images = torch.from_numpy(sample[:2]).permute(0, 3, 1, 2)
        theirs, found = network(images), own.run(images, ("pool", "spatial", "logits"))
    spatial = blocks[0][:, :7].permute(0, 2, 3, 1).reshape(2, 17 * 17 * 7)  # the block begins with the first branch
    assert list(found) == ["pool", "spatial", "logits"] and spatial.std() > 0
    assert all(map(torch.equal, found.values(), (theirs[0], spatial, theirs[1])))
    parts = [("pool", None), ("logits", None)]
    kept = describe(as_images(sample, "x"), own, parts, cache)  # what was computed of all
    rows = [kept[parts[0]], describe(as_images(reference, "x"), own, parts[:1], cache)[parts[0]]]
    np.testing.assert_allclose(rows[0][:2], theirs[0], rtol=1e-4, atol=1e-5)
    pool, logits = [torch.from_numpy(features) for features in rows], torch.from_numpy(kept[parts[1]])
    kid = kid_features_to_metric(*pool, kid_subset_size=7, verbose=False)
    prc = prc_features_to_metric(*pool, verbose=False)
    isc = isc_features_to_metric(logits, splits=10)
    expected = [
        kid["kernel_inception_distance_mean"], isc["inception_score_mean"],
        prc["precision"], prc["recall"], *density_coverage(*reversed(rows)),
    ]  # fmt: skip
    assert list(scores.values()) == pytest.approx(expected, rel=1e-6)
    assert ours["metrics"]["is"]["std"] == pytest.approx(isc["inception_score_std"], rel=1e-6)
    assert 0 < scores["precision"] < 1 and 0 < scores["recall"] < 1 and scores["is"] > 1
    assert any("kid: subsets of all 7 images" in note for note in ours["notes"])
    assert any("not comparable" in note for note in ours["notes"])


def turn(g, images):
    """Images [N, H, W, C] under an element."""
    return act(g, torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


def gaussian(images):
    network = NETWORKS["raw"](None, torch.device("cpu"), True)
    return describe(as_images(images, "x"), network, [("raw", IDENTITY)], Cache(None))["raw", IDENTITY]


@pytest.mark.parametrize("group", ["V", "C2", "D4"])
def test_by_single_distances(squares, group):
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


def test_published_names():
    """The same metrics of Inception's pooled features."""
    for name in ("fid", "kid", "fid_augmented", "inv_fid_mean", "inv_fid_max", "inv_fid_spread"):
        own, raw = METRICS[name], METRICS[METRICS[name].raw]
        assert (own.layer, raw.layer) == ("pool", "raw") and own.compute is raw.compute and own.rows == raw.rows
        assert (own.turned, own.reference, own.fewest) == (raw.turned, raw.reference, raw.fewest)
