"""What the report says of its scores in words, and that its equivariance errors are those of the very same sampling."""

import json

import numpy as np
import pytest
import torch

from datasets import eval_batches, open_data
from ddbm import load, sample
from ddbm.symmetry.averaging import equivariance_error
from ddbm.symmetry.groups import GROUPS
from scripts import check_equivariance
from scripts.report.runs import read_run
from scripts.report.scores import LINEAR, SOURCE, better, certify_samples, verdict
from tests.scripts.report.reports import sampled
from tests.scripts.sampling_runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run")


def certified(run, *flags, group="H"):
    return certify_samples(read_run(run, sampled(run, *flags, count=2), "run"), group, torch.device("cpu"))


@pytest.mark.parametrize(
    "settings",
    [
        dict(sampler="dbim", nfe=3, order=1, eta=1.0, seed=3),
        dict(sampler="heun", nfe=5, churn=0.2, grid="uniform"),
        dict(sampler="ode", nfe=500, rtol=10.0),
    ],
    ids=lambda settings: settings["sampler"],
)
def test_errors_are_those_of_a_direct_computation(run, settings):
    group = "H" if settings["sampler"] == "ode" else "C4"  # half the work
    found = certified(run, *(word for name, value in settings.items() for word in (f"--{name}", value)), group=group)
    model = load(run)
    batch = next(iter(eval_batches(open_data("histology", "val", image_size="16"), batch_size=8)))

    def S(x):
        return sample(model, x, group=group, index=batch.index.tolist(), **settings).x_0

    errors = torch.stack(list(equivariance_error(S, batch.source, GROUPS[group]).values()))
    assert found.line["mean"] == pytest.approx(errors.mean().item(), rel=1e-5)
    assert found.line["largest"] == pytest.approx(errors.max().item(), rel=1e-5)
    assert found.line["mean"] > 1e-3 and list(found.pictures) == (
        ["0", "m0"] if group == "H" else ["0", "90", "180", "270"]
    )
    assert f" evaluations at most) under {group} (plain layers), 8 images: mean {found.line['mean']:.1e}" in found.words
    said = [settings["sampler"], *(f"{k} {settings[k]:g}" for k in ("eta", "churn", "rtol") if k in settings)]
    assert all(word in found.words for word in said)


def test_the_table_of_all_samplers_has_the_same_line(run, tmp_path):
    check_equivariance.main([str(run), "--group", "H", "--nfe", "4", "--device", "cpu", "--out_dir", str(tmp_path)])
    lines = json.loads((tmp_path / "equivariance_H.json").read_text())["summary"]
    assert certified(run, "--nfe", 4).line == next(line for line in lines if line["map"] == "dbim")


def test_canonical_samples_have_no_error_and_a_grey_difference(run):
    found = certified(run, "--nfe", 3, "--symmetrize", "canonical", "--group", "D4", group="")
    assert found.group == "D4" and found.line["largest"] == 0 and "symmetrize canonical" in found.words
    for g_x, output, back, difference in found.pictures.values():
        assert g_x.shape == output.shape == (16, 16, 3)
        assert np.array_equal(back, found.pictures["0"][2]) and (difference == 128).all()
    under = certified(run, "--nfe", 2, "--symmetrize", "canonical", "--group", "H", group="D4")
    assert under.group == "D4" and under.line["largest"] > 1e-3  # symmetric under H alone


def test_what_cannot_be_measured_is_said(run):
    assert "equivariance not measured: the model has" in certified(run, "--nfe", 5, group="").words


def test_metrics_of_draws_are_not_ranked():
    rows = [{name: {"compared": value} for name in ("best_mse", "mse")} for value in (0.3, 0.1, 0.2)]
    assert better("mse", rows) == [1] and better("best_mse", rows) == []


def test_the_verdict_names_its_metrics():
    def said(own, *others):
        rows = [{"psnr": {"compared": psnr}, "ssim": {"compared": ssim}} for psnr, ssim in (own, *others)]
        return verdict(rows[0], dict(zip((SOURCE, LINEAR), rows[1:], strict=False)))

    assert said((20, 0.5), (18.5, 0.4), (19, 0.6)) == (
        "beats the source itself: PSNR +1.50 dB, SSIM +0.100; "
        "beats in part the linear map 7×7: PSNR +1.00 dB, SSIM -0.100"
    )
    assert said((20, 0.5), (21, 0.6)) == "does NOT beat the source itself: PSNR -1.00 dB, SSIM -0.100"
    assert said((20, None), (19, None)) == "beats the source itself: PSNR +1.00 dB"
    assert said((None, None), (19, 0.5)) == "could not be compared with the baselines"
