"""The pages of the report: every number is that of the evaluator, and what cannot be shown is said."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from datasets import open_data
from evaluations.evaluator import evaluate
from evaluations.images import load_images
from evaluations.metrics import describe
from evaluations.scoring import evaluate as measured
from scripts.report.__main__ import main
from scripts.report.charts import number
from tests.ddbm.runs import refused
from tests.scripts.report.reports import PAIRS, logged_run, reported, sampled
from tests.scripts.sampling_runs import arrays, make_run

QUICK = ["--group", "none"]  # no equivariance errors
SCORES = "Scores against the target"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with four sets of samples of the same pairs, of which the newest has one setting more, and one of fewer."""
    run = logged_run(tmp_path_factory.mktemp("runs") / "one")
    (run / "run.json").write_text(json.dumps({"starts": [{"commit": "old"}, {"commit": "<new>", "cpu": {"cores": 2}}]}))
    sampled(run, "--nfe", 3, count=4)
    for flags in ("--nfe 2", "--nfe 4", "--sampler euler_maruyama --nfe 3", "--nfe 3 --order 1 --eta 0.5"):
        sampled(run, *flags.split())
    return run


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run of other weights and another schedule; the same pairs."""
    run = make_run(tmp_path_factory.mktemp("runs") / "other <b>&", seed=1, schedule="ve")
    sampled(run, "--nfe", 3)
    return run


@pytest.fixture(scope="module")
def page(run):
    return reported(run)


def newest(run):
    return max(run.glob("samples/*/sampling.json"), key=lambda path: path.stat().st_mtime_ns).parent


def scores_of(folder, *metrics):
    """Of the samples in a folder, by the evaluator."""
    return evaluate(arrays(folder, "reference")["arr_0"], arrays(folder, "samples")["arr_0"], *metrics)["metrics"]


def metric(heading):
    return heading.split("\xa0")[0]


def test_scores_are_those_of_the_evaluator(run, page):
    reference = arrays(newest(run), "reference")
    own = scores_of(newest(run))
    source = evaluate(reference["arr_0"], reference["source"])["metrics"]
    heads, *rows = page.tables[SCORES]
    assert [head[0] for head in heads] == ["metric", "sample", "source itself", "linear map 7×7", "n", "features"]
    assert [metric(row[0][0]) for row in rows] == ["mse", "psnr", "ssim"]
    for row in rows:
        name = metric(row[0][0])
        assert ("↓" in row[0][0]) == (name == "mse") and row[4][0] == str(PAIRS) and row[5][0] == "pixels"
        for cell, score in zip(row[1:3], (own[name], source[name]), strict=True):
            assert cell[:2] == [number(score["mean"]), " … ".join(map(number, score["interval"]))]
        values = [float(cell[0]) for cell in row[1:4]]
        best = (min if name == "mse" else max)(values)
        assert [cell[2] for cell in row[1:4]] == [value == best for value in values]
    assert len(set(own["psnr"]["per_image"])) == PAIRS  # images that can be told apart


def test_best_and_worst_by_ssim(run, page):
    values = np.array(scores_of(newest(run))["ssim"]["per_image"])
    names = open_data("histology", "val", image_size="16").names
    order = np.argsort(-values)
    expected = [*range(PAIRS), *order[: PAIRS // 2], *order[::-1][: PAIRS // 2]]
    shown = [caption for caption in page.captions if caption.startswith("#") and "from training" not in caption]
    for caption, i in zip(shown, expected, strict=True):
        assert caption.startswith(f"#{i} {names[i]}, ssim {number(values[i])}, psnr ")
    assert len(page.images) == 4 * len(expected) + 3 * PAIRS + 4 * 2  # ... nearest to the training, and those of H


def test_evaluations_against_scores(run, page):
    heads, *rows = page.tables["Scores by sampler and evaluations"]
    assert [metric(head[0]) for head in heads] == ["sampler", "evaluations", "mse", "psnr", "ssim"]
    every = {folder.name: scores_of(folder) for folder in run.glob("samples/*") if "first4" not in folder.name}
    assert {row[0][1] for row in rows} == set(every)
    ways = ["dbim", "dbim, order 1, eta 0.5", "euler_maruyama"]
    expected = list(zip([ways[0], *ways], "2433", strict=True))
    assert [(row[0][0], row[1][0]) for row in rows] == expected
    for row in rows:
        assert [cell[0] for cell in row[2:]] == [number(every[row[0][1]][n]["mean"]) for n in ("mse", "psnr", "ssim")]
    psnr = [every[row[0][1]]["psnr"]["mean"] for row in rows]
    assert [row[3][2] for row in rows] == [value == max(psnr) for value in psnr]
    assert [attributes.get("class") for tag, attributes in page.tags if tag == "tr"].count("own") == 1
    assert "Left out: step_00000001_val_dbim_nfe3_eta0_seed0_first4: 4 pairs, not 6" in page.text
    (drawn,) = (text for text in page.charts if text.startswith("psnr\xa0↑ by network evaluations"))
    assert [part.split(" from ")[0] for part in drawn.partition(": ")[2].split("; ")] == ways


def test_curves_settings_origin_and_form(run, page):
    drawn = [label for label in page.charts if "network evaluations" not in label]
    starts = [
        "truth: distance to its nearest training target by sample: distance to its own: sample, 6 dots",
        "loss by step: training from 1 at 10 to 0.125",
        "learning rate by step",
        "psnr of samples, while training",
    ]
    assert all(label.startswith(start) for label, start in zip(drawn, starts, strict=True))
    assert "; validation, EMA from 0.5" in drawn[1]
    table = page.tables["Settings of training that differ from the defaults"]
    changed = {row[0][0]: (row[1][0], row[2][0]) for row in table[1:]}
    assert changed["channel_mult"] == ("1,2", "(empty)") and changed["schedule"] == ("vp", "ve")
    assert "group" not in changed and "seed" not in changed
    every = {row[0][0]: row[1][0] for row in page.tables["All settings of sampling"][1:]}
    assert every["eta"] == "0.5" and every["sampler"] == "dbim" and every["png"] == "false"
    origin = {row[0][0]: row[1][0] for row in page.tables["Origin of one"]}
    assert origin["commit"] == "<new>" and origin["cpu"] == '{"cores": 2}' and origin["checkpoint"] == "step_00000001"
    content = (run / "report.html").read_text()
    assert (
        "<h1>histology, vp</h1>" in content
        and "http" not in content
        and "<script" not in content
        and "<link" not in content
    )
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in page.images)
    with Image.open(run / "report.png") as sheet:
        assert sheet.size[0] > 1000


def test_choosing_samples_metrics_and_file(run, tmp_path, capsys):
    name = next(folder.name for folder in run.glob("samples/*_dbim_nfe2_*"))
    out = tmp_path / "deep" / "a.html"
    for asked in (name, name.partition("_val_")[2], f"val_{name.partition('_val_')[2]}"):
        page = reported(run, "--metrics", "mae,fd_raw,dice,ms_ssim", "--out", out, "--samples", asked, flags=QUICK)
        assert "dbim, 2 evaluations an image" in page.text
    rows = page.tables[SCORES][1:]
    assert [metric(row[0][0]) for row in rows] == ["mae", "fd_raw", "psnr", "ssim"]
    assert rows[1][1][:2] == [number(scores_of(run / "samples" / name, ["fd_raw"])["fd_raw"]["mean"]), ""]
    assert "random filters" in rows[1][5][0] and "biased upwards" in page.text
    assert describe("fd_raw").partition(": ")[2] in page.text and "not computed: dice: " in page.text
    assert "not computed: ms_ssim: " in page.text and "161" in page.text
    assert out.with_suffix(".png").is_file() and "fd_raw" in capsys.readouterr().out


def test_several_runs(run, other, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "source")
    runs = [tmp_path / "source", other, run]
    names = [str(each) for each in runs]  # as the first one's is that of a column
    page = reported(*runs, "--out", tmp_path / "report.html")
    main([*map(str, runs), *QUICK])
    assert "report: report.html" in capsys.readouterr().out
    heads, *rows = page.tables[SCORES]
    assert [h[0] for h in heads] == ["metric", *names, "source itself", "linear map 7×7", "n", "features"]
    every = [scores_of(newest(each)) for each in runs]
    for row in rows[:3]:
        means = [scores[metric(row[0][0])]["mean"] for scores in every]
        best = (min if "mse" in row[0][0] else max)(float(cell[0]) for cell in row[1:6])
        assert [cell[0] for cell in row[1:4]] == [number(mean) for mean in means]
        assert [cell[2] for cell in row[1:6]] == [float(cell[0]) == best for cell in row[1:6]]
    assert [row[0][0] for row in rows[3:]] == ["equivariance error ↓", "sampled by", "evaluations", "images"]
    assert [cell[1] for cell in rows[3][1:]] == ["H"] * 3 and rows[3][1] == rows[3][3] != rows[3][2]
    settings = [row for part in ("training", "sampling") for row in page.tables[f"Settings of {part} that differ"][1:]]
    differing = {row[0][0]: [cell[0] for cell in row[1:4]] for row in settings}
    assert differing == {"schedule": ["vp", "ve", "vp"], "order": ["1", "0", "1"], "eta": ["0.5", "0", "0.5"]}
    assert len(page.images) == 2 * PAIRS * 5 + 3 * 3 * PAIRS + 3 * 8  # pairs, best and worst; nearest; those of H
    assert {image["alt"] for image in page.images} >= {"source of pair 0", f"{run} of pair 0", "target of pair 5"}
    values = [" / ".join(number(scores[name]["per_image"][0]) for scores in every) for name in ("ssim", "psnr")]
    assert page.captions[0].endswith(f"ssim {values[0]}, psnr {values[1]}")
    spent = page.tables["Scores by sampler and evaluations"][1:]
    assert len(spent) == 9 and [f"{other}: dbim", "3"] in [[row[0][0], row[1][0]] for row in spent]
    assert any(text.startswith(f"loss, training by step: {runs[0]} from 1 at 10 to ") for text in page.charts)


def test_draws(run, other, tmp_path):
    copy = tmp_path / "drawn"
    shutil.copytree(run, copy)
    folder = copy / "samples" / sampled(copy, "--nfe", 3, "--draws", 4)
    page = reported(copy, flags=QUICK)
    images = [load_images(next(folder.glob(f"{side}_*.npz"))) for side in ("reference", "samples")]
    names = ["best_psnr", "best_ssim", "mean_psnr", "mean_ssim", "spread", "calibration"]
    expected = measured(*images, names)["metrics"]
    rows = {metric(row[0][0]): row for row in page.tables[SCORES][1:]}
    assert list(rows) == ["mse", "psnr", "ssim", *names]
    for name in names:
        assert rows[name][1][0] == number(expected[name]["mean"]) and rows[name][2][0] == "–"
        assert not any(cell[2] for cell in rows[name])
    (drawn,) = (label for label in page.charts if "central interval" in label)
    first, last = ([values[i] for values in expected["calibration"]["curve"].values()] for i in (0, -1))
    assert drawn.endswith(f": sample from {first[1]:.4g} at {first[0]:.4g} to {last[1]:.4g} at {last[0]:.4g}")
    assert first[0] == pytest.approx(0.2) and last[0] == pytest.approx(0.6)
    assert not any("best_psnr" in label for label in page.charts) and any("psnr" in label for label in page.charts)
    assert "not computed" not in page.text and "dbim, draws 4" in page.text
    both = reported(copy, other, "--out", tmp_path / "a.html", flags=QUICK)
    cells = {metric(row[0][0]): row[1:3] for row in both.tables[SCORES][1:]}
    assert cells["best_psnr"] == [rows["best_psnr"][1], ["–", "", False]] and "not computed" not in both.text


def test_runs_of_other_pairs_are_not_compared(run, other, tmp_path, capsys):
    fewer = make_run(tmp_path / "fewer", seed=2)
    sampled(fewer, "--nfe", 2, count=4)
    out = tmp_path / "report.html"
    page = reported(run, other, fewer, "--out", out, flags=QUICK)
    assert "scores cannot be compared" in page.text and not any("source" in image["alt"] for image in page.images)
    why = "fewer was sampled on other pairs than one: 4 pairs, not 6"
    assert why in page.text and f"\n{why}: their scores cannot be compared\n" in capsys.readouterr().out
    assert "not measured: every model is equivariant" in page.text and "beats the" not in page.text
    assert len(page.tables[SCORES][0]) == 6 and not any(cell[2] for row in page.tables[SCORES] for cell in row)
    record = newest(other) / "sampling.json"
    kept = record.read_text()
    record.write_text(json.dumps(json.loads(kept) | {"order_digest": "f" * 64}))
    page = reported(run, other, "--out", out, flags=QUICK)
    record.write_text(kept)
    assert "other pairs, or another order" in page.text


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], ["run"]),
        (["gs://bucket/run"], ["no folder with a run", "from its store"]),
        (["RUN", "RUN/../one"], ["twice"]),
        (["RUN", "--samples", "heun"], ["no samples 'heun'", "dbim_nfe2"]),
        (["RUN", "--out", "RUN"], ["not the name of an HTML file"]),
        (["RUN", "--sample", "x"], ["--sample", "--samples"]),
        (["RUN", "--group", "D5"], ["D5", "C4"]),
        (["RUN", "--metrics", "mse,psnrr"], ["psnrr", "psnr?"]),
        (["RUN", "--metrics", "inv_fd_raw_mean", *QUICK], ["inv_fd_raw_mean", "--group D4"]),
    ],
)
def test_mistakes(run, words, expected):
    refused(main, [word.replace("RUN", str(run)) for word in words], *expected)


def test_samples_that_are_damaged_or_gone(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    oldest = min(copy.glob("samples/*/sampling.json"), key=lambda path: path.stat().st_mtime_ns).parent
    next(newest(copy).glob("reference_*.npz")).unlink()
    refused(main, [copy, *QUICK], "reference_6x16x16x3.npz", "No such file", "--samples")
    page = reported(copy, "--samples", next(copy.glob("samples/*_nfe4_*")).name, flags=QUICK)
    assert "Left out: step_00000001_val_dbim_nfe3_order1_eta0.5" in page.text
    assert "No such file" in page.text and "reference_6x16x16x3.npz" in page.text
    record = json.loads((newest(copy) / "sampling.json").read_text())
    for content in ("{", "[]", "{}", json.dumps(record | {"nfe": "many"})):
        (newest(copy) / "sampling.json").write_text(content)
        refused(main, [copy], "sampling.json: ", "sample again")
    with next(oldest.glob("samples_*.npz")).open("r+b") as file:
        file.truncate(500)
    refused(main, [copy, "--samples", oldest.name], "samples_4x16x16x3_nfe3.npz", "truncated")


def test_what_is_left_without_the_checkpoint_and_the_data(tmp_path):
    """Own pairs that are deleted, and a checkpoint that training has replaced: the rest of the report stands."""
    rng = np.random.default_rng(0)
    for side in ("source", "target"):
        (tmp_path / "data" / side).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / side / f"{'<i>' if i else 'x'}{i}.png")
    data = {"dataset": "mine", "data_dir": str(tmp_path / "data"), "image_size": "16"}
    run = make_run(tmp_path / "run", data=data)
    sampled(run, "--nfe", 2, "--data_dir", tmp_path / "data", count=2)
    reported(run)
    assert "&lt;i&gt;" in (run / "report.html").read_text()
    shutil.rmtree(tmp_path / "data")
    page = reported(run)
    assert [head[0] for head in page.tables[SCORES][0]][1:4] == ["sample", "source itself", "n"]
    assert "the linear map is not there, as it could not be fitted" in page.text
    assert page.captions[0].startswith("#0, ssim") and "not measured: " in page.text
    assert "There is no log of the training." in page.text
    make_run(run, data=data, step=2)
    shutil.rmtree(run / "checkpoints" / "step_00000001")
    assert "not measured: checkpoint step_00000001, which the samples are of, is no longer there." in reported(run).text
    make_run(run, data=data, step=1, seed=7)
    assert "step_00000001 was written anew since it was sampled from" in reported(run).text
