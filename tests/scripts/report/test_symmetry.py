"""The equivariance errors of a report are those of sampling with the very settings of its samples."""

import numpy as np
import pytest
import torch

from datasets import eval_batches, open_data
from ddbm import load, sample
from ddbm.symmetry.groups import GROUPS, act
from scripts.report.runs import read_run
from scripts.report.symmetry import PICTURES, certify_samples, symmetry_line
from tests.scripts.report.reports import sampled
from tests.scripts.sampling_runs import make_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run")


def certified(run, *flags, group="H", others=False):
    name = sampled(run, *flags, count=2)
    return certify_samples(read_run(run, name, "run"), group, CPU, others)


@pytest.mark.parametrize(
    "settings",
    [
        dict(sampler="dbim", nfe=3, order=1, eta=1.0, seed=3),
        dict(sampler="heun", nfe=5, churn=0.2, grid="uniform"),
        dict(sampler="ode", nfe=500, rtol=0.5),
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

    straight, errors = S(batch.source), []
    for g in GROUPS[group].elements[1:]:
        wanted = act(g, straight)
        errors.append((S(act(g, batch.source)) - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1))
    assert found.own["mean"] == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)
    assert found.own["largest"] == pytest.approx(torch.stack(errors).max().item(), rel=1e-5)
    assert found.own["mean"] > 1e-3 and found.images == 8 and not found.others
    assert [name for name, _ in found.pictures] == (["0", "m0"] if group == "H" else ["0", "90", "180", "270"])
    assert f"({found.way}) under {group}" in symmetry_line(found) and settings["sampler"] in found.way
    assert all(f"{name} {settings[name]:g}" in found.way for name in ("eta", "churn", "rtol") if name in settings)


def test_default_settings_are_those_of_the_table(run):
    """... which names the network, the denoiser and the samplers; the samples' own line is that of their sampler."""
    found = certified(run, others=True)
    lines = {line["map"]: line for line in found.others}
    assert {"network", "denoiser", "heun", "dbim"} <= set(lines) and found.nfe == 20
    assert found.own | {"map": "dbim"} == lines["dbim"]
    other = certified(run, "--nfe", 2)
    assert other.own["mean"] != found.own["mean"]


def test_canonical_samples_have_no_error_and_a_grey_difference(run):
    found = certified(run, "--nfe", 3, "--symmetrize", "canonical", "--group", "D4", group="")
    assert found.group == "D4" and found.own["largest"] == 0 and "symmetrize canonical" in found.way
    for _, images in found.pictures:
        g_x, output, back, difference = images
        assert len(images) == len(PICTURES) and g_x.shape == output.shape == (16, 16, 3)
        assert np.array_equal(back, found.pictures[0][1][2]) and (difference == 128).all()
    under = certified(run, "--nfe", 4, "--symmetrize", "canonical", "--group", "H", group="D4")
    assert under.group == "D4" and under.own["largest"] > 1e-3  # symmetric under H alone


def test_what_cannot_be_measured_is_said(run):
    assert "the model has no group" in certified(run, "--nfe", 5, group="")
    few = certified(run, "--sampler", "ode", "--nfe", 1000, "--rtol", 0.5)
    assert not isinstance(few, str)
    assert symmetry_line("Not measured: x.") == "equivariance error: not measured: x."
