"""Samples scored while training: the same numbers on any number of ranks, what they measure, what is refused."""

import copy
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import ddbm
from datasets import Item
from ddbm.config import BridgeConfig
from ddbm.model import Samples
from ddbm.ranks import distributed
from ddbm.symmetry.averaging import equivariance_error
from ddbm.symmetry.groups import GROUPS
from evaluations.evaluator import evaluate as score
from evaluations.images import to_bytes
from scripts import train
from scripts.evaluation import HIGHER_IS_BETTER, EvalConfig, Evaluation
from tests.ddbm.test_model import model

MASKED = {"eval_dice", "eval_accuracy", "eval_mask_precision", "eval_mask_recall"}


class Pairs:
    """Random pairs in memory; masks: targets are black or white."""

    def __init__(self, count=11, size=8, masks=False, holes=False, classes=0):
        random = np.random.default_rng(0)
        self.size, self.num_classes, self.notice = (size, size), classes, ""
        self.source_channels = self.target_channels = 3
        self.names = [str(i) for i in range(count)]
        self.sources, self.targets = torch.from_numpy(
            random.integers(0, 256, (2, count, 3, size, size)).astype(np.float32) / 127.5 - 1
        )
        if masks:
            self.targets = (self.targets > 0.3) * 2.0 - 1
        self.inside = torch.ones(1, size, size, dtype=torch.bool)
        self.inside[:, :, size // 2 :] = not holes
        self.reads = 0

    def __len__(self):
        return len(self.names)

    def get(self, index, rng):
        assert rng is None  # the same crop at every look
        self.reads += 1
        label = index % self.num_classes if self.num_classes else None
        return Item(self.targets[index] * self.inside, self.sources[index] * self.inside, self.inside, label)


class Answer(nn.Module):
    """A network that answers a function of its source, whatever the state and the time."""

    levels = 1

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.weight = nn.Parameter(torch.zeros(1))  # a model has a type and a device

    def forward(self, x, t, condition=None, label=None):
        return self.answer(condition)


def answering(answer, group="none", **settings):
    """A bridge whose estimate of the target is `answer(source)`: vp_simple takes the network's output as it is."""
    made = model(group, "plain", BridgeConfig(schedule="vp_simple"), **settings)
    made.network = Answer(answer)
    return made


def settings(**changes):
    return EvalConfig(**(dict(eval_nfe=3, eval_seed=5) | changes))


@pytest.fixture
def dealt(monkeypatch):
    """What every one of `ranks` ranks gives, each with its own copy of the network; and the arrays they gathered."""

    def deal(evaluation, network, ranks):
        arrays, own, met = [None] * ranks, threading.local(), threading.Barrier(ranks, timeout=60)

        def gather(mine):
            arrays[own.rank] = mine
            met.wait()
            return arrays

        def look(rank):
            own.rank = rank
            return evaluation(copy.deepcopy(network))

        for name, stands_for_it in (("size", lambda: ranks), ("rank", lambda: own.rank), ("gather", gather)):
            monkeypatch.setattr(distributed, name, stands_for_it)
        with ThreadPoolExecutor(ranks) as pool:
            return list(pool.map(look, range(ranks))), arrays

    return deal


@pytest.mark.parametrize("group", ["D4", "none"])
def test_any_number_of_ranks_gives_the_numbers_of_one(group, dealt):
    """11 images in batches of 3, and two images under 8 elements; 15 ranks are more than there is to do."""
    network = model(group, "tied" if group == "D4" else "plain", size=16)
    evaluation = Evaluation(network, Pairs(size=16), settings(eval_batch=3, best_metric="equivariance"), "D4")
    scores, picture = evaluation(network)
    assert set(scores) == {"eval_mse", "eval_mae", "eval_psnr", "eval_ssim", "eval_equivariance"}
    assert (scores["eval_equivariance"] < 1e-4) == (group == "D4")
    for ranks in (2, 3, 15):
        everyone, arrays = dealt(evaluation, network, ranks)
        assert len({len(array) for array in arrays}) == 1
        for others, pictured in everyone:
            assert others == scores and np.array_equal(pictured, picture)


def test_every_rank_makes_as_many_evaluations(dealt):
    """A network in shards is computed by all ranks together, so none may stop before the others."""
    evaluations = []
    network = answering(lambda source: evaluations.append(source) or source)
    evaluation = Evaluation(network, Pairs(), settings(eval_batch=3), "none")
    _, drawn = dealt(evaluation, network, 3)
    assert [len(batches) for batches in drawn] == [2, 2, 2]  # of the four batches, three evaluations each
    assert len(evaluations) == 3 * 2 * 3


def test_looking_changes_nothing_and_is_the_same_every_time():
    network, data = model("C4", "tied", dropout=0.5).train(), Pairs()
    network.network.eval()  # the averaged network inside a model in training
    modes, weights = [module.training for module in network.modules()], copy.deepcopy(network.state_dict())
    evaluation = Evaluation(network, data, settings(eval_images=4), "none")
    reads, found = data.reads, []
    for seed in (3, 4):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(evaluation(network))
        assert torch.equal(torch.get_rng_state(), state)
    (first, picture), (second, again) = found
    assert first == second and np.array_equal(picture, again) and data.reads == reads
    assert modes == [module.training for module in network.modules()] and not all(modes)
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    assert first != Evaluation(network, data, settings(eval_images=4, eval_seed=6), "none")(network)[0]


@pytest.mark.parametrize("augment", ["none", "D4"])
def test_images_are_those_of_the_library_call(augment):
    """Every fourth of 17 images, with index, mask and label: the samples of `ddbm.sample` for all at once."""
    network, data = model("none", "plain", classes=3), Pairs(17, holes=True, classes=3)
    chosen = [0, 4, 8, 12, 16]
    evaluation = Evaluation(network, data, settings(eval_images=5, eval_batch=2, eval_sampler="heun"), augment)
    source, target = ((images * data.inside)[chosen] for images in (data.sources, data.targets))
    expected = ddbm.sample(
        network, source, sampler="heun", nfe=3, seed=5, index=chosen,
        mask=data.inside.expand(5, -1, -1, -1), label=torch.tensor(chosen) % 3,
    )  # fmt: skip
    scores, picture = evaluation(network)
    truth, images = (to_bytes(each)[:, :, : data.size[1] // 2] for each in (target, expected.x_0))  # what is inside
    measured = score(truth, images, ["mse", "psnr"])["metrics"]
    assert scores["eval_mse"] == pytest.approx(measured["mse"]["mean"], rel=1e-3)
    assert scores["eval_psnr"] == pytest.approx(measured["psnr"]["mean"], rel=1e-3)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert ("eval_equivariance" in scores) == (augment == "D4")


def test_equivariance_is_the_error_of_the_sampler_on_two_images():
    network, data, group = model("none", "plain"), Pairs(), GROUPS["C4"]
    scores, _ = Evaluation(network, data, settings(eval_images=2, best_metric="equivariance"), "C4")(network)
    errors = equivariance_error(
        lambda source: ddbm.sample(network, source, sampler="dbim", nfe=3, group="C4", seed=5, index=[0, 10]).x_0,
        data.sources[[0, 10]], group,
    )  # fmt: skip
    assert scores["eval_equivariance"] == pytest.approx(torch.stack(list(errors.values())).mean().item(), rel=1e-4)
    assert scores["eval_equivariance"] > 1e-3


def test_a_better_network_scores_better(monkeypatch):
    """The target is the source: the nearer the answer comes to it, the better every metric."""
    data = Pairs(masks=True)
    data.sources = data.targets
    with monkeypatch.context() as patched:
        patched.setattr("scripts.evaluation.sample", lambda model, source, **settings: Samples(source, 3))
        scores, _ = Evaluation(answering(lambda source: source), data, settings(), "none")(answering(None))
        assert scores["eval_psnr"] == pytest.approx(10 * math.log10(255**2 * 3 * 8 * 8))  # as if a value differed by 1
    found = []
    for share in (0.0, 0.4, 1.0):
        network = answering(lambda source, share=share: torch.where(source > 0, 1.0, 1 - 2 * share))
        scores, _ = Evaluation(network, data, settings(best_metric="dice"), "none")(network)
        assert set(scores) == {"eval_mse", "eval_mae", "eval_psnr", *MASKED}
        found.append(scores)
    blank, half, whole = found
    for name, way in (("mse", -1), ("mae", -1), ("psnr", 1)):
        values = [way * scores[f"eval_{name}"] for scores in found]
        assert values == sorted(values) and len(set(values)) == 3
    assert blank["eval_mask_recall"] == 1 and blank["eval_dice"] < 1  # all of the image is called the mask
    assert half["eval_dice"] == blank["eval_dice"]  # 0.2 is still on the white side
    assert all(whole[name] == 1 for name in MASKED) and whole["eval_mse"] < 1e-4


def test_samples_that_are_not_finite_have_no_score():
    network = answering(lambda source: source * math.nan)
    scores, picture = Evaluation(network, Pairs(), settings(), "D4")(network)
    assert {"eval_mse", "eval_mae", "eval_psnr", "eval_equivariance"} == set(scores)
    assert all(math.isnan(value) for value in scores.values()) and picture.size


def test_better():
    assert dict(
        mse=False, mae=False, psnr=True, ssim=True, ms_ssim=True, dice=True, accuracy=True, mask_precision=True,
        mask_recall=True, equivariance=False, val_loss=False,
    ) == HIGHER_IS_BETTER  # fmt: skip
    for metric, higher in (("psnr", True), ("val_loss", False)):
        better = Evaluation(model("none", "plain"), Pairs(), settings(best_metric=metric), "none").better
        assert better(2.0, 1.0) == higher and better(1.0, 2.0) != higher and not better(1.0, 1.0)
        assert better(1.0, None) and better(1.0, math.nan)
        assert not any(better(math.nan, old) for old in (None, 1.0, math.nan))


@pytest.mark.parametrize(
    ("changes", "pairs", "augment", "words"),
    [
        (dict(best_metric="dice"), {}, "none", ["--best_metric dice", "no mask", "0 and 255"]),
        (dict(best_metric="ssim"), {}, "none", ["--best_metric ssim", "8 x 8 px", "11"]),
        (dict(best_metric="equivariance"), {}, "none", ["--best_metric equivariance", "no group", "--augment"]),
        (dict(eval_sampler="heun", eval_nfe=1), {}, "none", ["--eval_nfe 1", "2 or more"]),
        ({}, {}, "D5", ["unknown augment 'D5'", "D4"]),
        ({}, dict(size=16), "none", ["16", "8"]),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_training(changes, pairs, augment, words):
    network = answering(lambda source: pytest.fail("sampled"))
    with pytest.raises(ValueError) as error:
        Evaluation(network, Pairs(**pairs), settings(**changes), augment)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_flags_that_mean_nothing():
    for flag, value, words in (
        ("best_metric", "psnrr", "unknown best_metric 'psnrr'.*did you mean psnr"),
        ("best_metric", "fid", "unknown best_metric 'fid'.*val_loss"),
        ("eval_sampler", "euler", "unknown eval_sampler 'euler'.*heun, dbim"),
        *((name, "0", name) for name in ("eval_images", "eval_batch", "eval_nfe")),
    ):
        with pytest.raises(ValueError, match=words):
            train.parse([f"--{flag}", value])
    assert EvalConfig().eval_interval == 0
