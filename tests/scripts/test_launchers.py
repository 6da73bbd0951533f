"""The launchers: the words that they start the program with, where a fake stands for Python; and their own mistakes."""

import os
import signal
import subprocess
import time
from dataclasses import fields
from itertools import pairwise

import pytest

from ddbm.config import DataConfig
from tests.scripts.sampling_runs import ROOT, environment


@pytest.fixture
def launched(tmp_path):
    """Runs a launcher; of its output every line is a word after the interpreter's name."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    own = 'case " $* " in *" scripts.train_codec "*) eval "$CODEC_DOES";; esac'  # what the codec's training does
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 0\nprintf "%s\\n" "$@"\n{own}\n')
    python.chmod(0o755)

    def run(script, *words, start=subprocess.run, **extra):
        command = ["bash", ROOT / f"{script}.sh", *map(str, words)]
        clean = environment(**{"VENV": str(tmp_path / "venv"), "CODEC_DOES": ""} | extra)
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        return start(command, text=True, cwd=tmp_path, env=clean, **pipes)

    return run


START = "-m scripts.sample run --dataset histology --schedule vp"


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ("", dict(SAMPLER="dbim", NFE="7", ORDER="3", ETA="0.5"), "--sampler dbim --nfe 7 --order 3 --eta 0.5"),
        ("--nfe 9 --split val", dict(NFE="7", DATA_DIR="d"), "--data_dir d --nfe 7 --nfe 9 --split val"),
        ("0.2 1 val", {}, "--churn 0.2 --guidance 1 --split val --sampler heun --nfe 119"),
        ("0.2 --png true", dict(NFE="7"), "--churn 0.2 --sampler heun --nfe 7 --png true"),
        ("0.2", dict(SAMPLER="ecsi"), "--churn 0.2 --sampler ecsi"),
        ("0.2 --sampler ecsi", {}, "--churn 0.2 --sampler ecsi"),
    ],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_sampling(launched, arguments, variables, expected, ranks):
    done = launched("sample_ddbm", "histology", "vp", "run", *arguments.split(), **variables, NGPU=str(ranks))
    several = "-m scripts.torchrun --nproc_per_node 2 --standalone " if ranks == 2 else ""
    assert done.stdout.split() == [*several.split(), *START.split(), *expected.split()], done.stderr


@pytest.mark.parametrize(("script", "looks"), [("train_ddbm", ""), ("train_ddbm_incremental", "--eval_interval 50 ")])
def test_training(launched, script, looks):
    """Other words win over the preset, as they come later; a network of another name has a run of its own."""
    where = dict(WORKDIR="my runs", EVAL_INTERVAL="50")
    done = launched(script, "mine", "ve", "a run", "--lr", 1, DATA_DIR="my pairs", **where)
    words = done.stdout.splitlines()
    preset, own = words[: words.index("--dataset")], words[words.index("--dataset") :]
    assert " ".join(own) == f"--dataset mine --data_dir my pairs --run_dir my runs/mine_ve --resume a run {looks}--lr 1"
    assert {"my pairs", "my runs/mine_ve", "a run"} <= set(own) and "'mine' has no entry in args.sh" in done.stderr
    assert preset[:2] == ["-m", "scripts.train"] and preset[preset.index("--schedule") + 1] == "ve"
    words = launched(script, "histology", "vp", NETWORK="regular", **where).stdout.splitlines()
    layers = [value for flag, value in pairwise(words) if flag == "--layers"]
    assert layers == ["tied", "regular"] and "my runs/histology_vp_regular" in words
    assert launched(script, "--help").stdout.split() == ["-m", "scripts.train", "--help"]


AUTO = [["--codec", "auto"], ["--codec=auto"], ["--codec", "x", "--codec", "auto", "--lr", "1"]]


@pytest.mark.parametrize("script", ["train_ddbm", "train_ddbm_incremental"])
def test_a_codec_is_trained_first(launched, tmp_path, script):
    """By as many ranks, on the same data; once it is trained to its end it is found; a path is what it says."""
    where = dict(WORKDIR="my runs", NGPU="2", EVAL_INTERVAL="50")
    for flags in AUTO:
        words = launched(script, "mine", "vp", *flags, "--data_dir", "my pairs", **where).stdout.splitlines()
        first, last = words.index("scripts.train_codec"), words.index("scripts.train")
        own = " ".join(words[first:last])
        assert words.count("scripts.torchrun") == 2 and words.count("--nproc_per_node") == 2 and first < last
        assert own.startswith("scripts.train_codec --dataset mine --run_dir my runs/mine_codec --data_dir my pairs")
        assert words[-2:] == ["--codec", "my runs/mine_codec"]
    words = launched(script, "retina_latent", "vp", "--run_dir", "mine").stdout.splitlines()
    assert "scripts.train_codec" in words and words[-1].endswith("/workdir/retina_latent_codec")
    for flags in (["--codec", "auto", "--codec=here"], ["--codec", "here"], []):
        words = launched(script, "mine", "vp", *flags, **where).stdout.splitlines()
        assert "scripts.train_codec" not in words and "my runs/mine_codec" not in words
    found = tmp_path / "my runs" / "mine_codec" / "codec.json"
    found.parent.mkdir(parents=True)
    for content, trained in (('{"before": {}}', True), ('{"before": {},\n "after": {}}', False)):
        found.write_text(content)
        words = launched(script, "mine", "vp", *AUTO[0], **where).stdout.splitlines()
        assert ("scripts.train_codec" in words) == trained and words[-1] == "my runs/mine_codec"


def test_a_codec_is_of_the_same_pairs(launched):
    """By the words of the command and of the preset; how large they are args.sh says, where it has settings for it."""

    def own(script, *words):
        words = launched(script, *words, WORKDIR="runs").stdout.splitlines()
        return " ".join(words[: words.index("scripts.train")] if "scripts.train" in words else words)

    names = {f.name for f in fields(DataConfig)} - {"dataset", "image_size", "fit"}
    given = [word for name in sorted(names) for word in (f"--{name}", f"of_{name}")]
    words = own("train_ddbm", "mine", "vp", *AUTO[0], *given, "--image_size", "64", "--fit=crop", "--device", "cpu")
    found = words[words.index("--data_dir") :].split()
    assert dict(zip(found[:-1:2], found[1::2], strict=True)) == {
        **{f"--{name}": f"of_{name}" for name in names}, "--image_size": "64", "--fit": "crop", "--device": "cpu",
    }  # fmt: skip
    for asked, there in (("64", True), ("128x96", False), ("256", False), ("512", False)):  # smaller than its own 256
        words = own("train_ddbm", "anhir", "vp", "--image_size", asked)
        assert ("anhir_codec --image_size 64" in words) == there and "--image_size 256 --fit crop" in words
    assert "retina_latent_codec -m" in own("train_ddbm", "retina_latent", "vp", "--image_size", "128")
    assert "train_codec --layout suffix --source_suffix _normal --image_size 256 --d" in own(
        "scripts/train_codec", "diode"
    )
    words = own("scripts/train_codec", "fives", "--from_kl", "vae")
    assert "train_codec --image_size 512 --fit crop --l1_weight 0 " in words and "--factor" not in words


@pytest.mark.parametrize("code", [75, 2])
def test_a_codec_that_is_not_trained_to_its_end(launched, code):
    done = launched("train_ddbm", "mine", "vp", *AUTO[0], CODEC_DOES=f"exit {code}")
    assert done.returncode == code and "scripts.train" not in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 75), (signal.SIGINT, 0), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]
)
def test_signals_reach_the_training_of_a_codec(launched, tmp_path, number, code):
    """Once each, of which Ctrl-C goes to all of a terminal; it ends, saved or finished, and so does the launcher."""
    name, seen = number.name[3:], tmp_path / "seen"
    own = f"trap 'echo {name} >> seen; sleep 0.5; exit {code}' {name}; touch seen; while :; do sleep 0.05; done"
    process = launched("train_ddbm", "mine", "vp", *AUTO[0], CODEC_DOES=own, start=subprocess.Popen)
    while not seen.exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "scripts.train" not in out.splitlines() and seen.read_text() == f"{name}\n"


@pytest.mark.parametrize(
    ("script", "words", "extra", "said"),
    [
        ("train_ddbm", "", {}, "usage: bash train_ddbm.sh DATASET SCHEDULE"),
        ("train_ddbm_incremental", "histology", {}, "usage"),
        ("train_ddbm", "histology vee", {}, "unknown schedule 'vee': known are"),
        ("train_ddbm", "a/b ve", {}, "'a/b' cannot be a data set's name"),
        ("train_ddbm", "histology ve", dict(NETWORK="round"), "unknown NETWORK 'round' for histology: known are"),
        ("train_ddbm", "histology ve", dict(VENV="none"), "run bash scripts/setup.sh"),
        ("train_ddbm", "histology ve", dict(NGPU="0"), "NGPU is '0'"),
        ("train_ddbm", "histology ve", dict(NGPU="2", LAUNCHER="ssh"), "unknown LAUNCHER 'ssh': known are"),
        ("train_ddbm", "histology ve", dict(NNODES="2"), "needs NODE_RANK (0 .. 1) and MASTER_ADDR"),
        ("sample_ddbm", "histology vp", {}, "usage"),
        ("sample_ddbm", "histology vee run", {}, "unknown schedule 'vee'"),
        ("sample_ddbm", "histology vp run all", {}, "'all' stands in the place of CHURN: write --split all"),
    ],
)
def test_mistakes_are_one_line(launched, script, words, extra, said):
    done = launched(script, *words.split(), **extra)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ") and said in done.stderr
