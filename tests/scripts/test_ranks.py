"""Several ranks, started as users start them: the same network as one, clear ends when a rank fails."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ddbm.ranks import distributed
from scripts import train
from tests.ddbm.runs import refused
from tests.scripts.sampling_runs import ROOT, environment

TINY = (
    "--dataset histology --schedule vp --model_channels 8 --num_head_channels 8 --channel_mult 1,2 --image_size 16 "
    "--attention_resolutions 8 --batch_size 8 --total_steps 4 --val_interval 2 --log_interval 1 --optimizer adam "
    "--lr 1e-3 --dropout 0 --tensorboard false --layers tied --group D4 --eval_interval 4 --eval_images 3 --eval_nfe 2 "
    "--num_res_blocks 1"
).split()
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
needs_mpi = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec: pip install mpich mpi4py")

needs_cpu_fsdp = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 of torch 2.6 runs on GPUs alone"
)


def command(launcher, *flags):
    train = ["scripts.train", *TINY, *map(str, flags)]
    if launcher == "mpiexec":
        return [MPIEXEC, "-n", "2", sys.executable, "-m", *train]
    if launcher == "torchrun":
        start = ["-m", "scripts.torchrun", "--standalone", "--nproc_per_node", "2"]
        return [sys.executable, *start, "-m", *train]
    return [sys.executable, "-m", *train]


def run(launcher, *flags, **extra):
    return subprocess.run(
        command(launcher, *flags), capture_output=True, text=True, timeout=120, env=environment(**extra)
    )


def tensors(folder, step=4):
    path = folder / "checkpoints" / f"step_{step:08d}"
    return {f"{p.stem}/{k}": v for p in path.glob("*.safetensors") for k, v in safetensors.torch.load_file(p).items()}


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks") / "one"
    assert train.main([*TINY, "--run_dir", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    ("launcher", "flags"),
    [
        pytest.param("torchrun", ["--parallel", "fsdp", "--microbatch", 2], marks=needs_cpu_fsdp),
        pytest.param("mpiexec", ["--microbatch", 2], marks=needs_mpi),
    ],
    ids=lambda v: " ".join(map(str, v)) if isinstance(v, list) else v,
)
def test_two_ranks_train_the_network_of_one(one, tmp_path, launcher, flags):
    """The same weights, averages, losses and scores up to the order of sums; and two ranks' run goes on with one.

    Biases in front of a normalisation have no gradient but rounding, which Adam enlarges: distances are over all
    weights, against those of two steps.
    """
    two = tmp_path / "two"
    result = run(launcher, "--run_dir", two, *flags)
    assert result.returncode == 0 and "Warning" not in result.stderr, result.stderr
    assert result.stdout.count("finished 4 steps") == 1
    best, last = json.loads((one / "best.json").read_text()), records(one)[-1]
    assert (best["checkpoint"], best["metric"], best["value"]) == ("step_00000004", "psnr", last["eval_psnr"])
    assert 0 < last["eval_equivariance"] < 1e-4  # of what --augment makes of the pairs
    a, b = tensors(one), tensors(two)
    before = tensors(one, 2)
    assert a.keys() == b.keys() and any("ema_power" in name for name in a)
    for kind in {name.split("/")[0] for name in a}:
        apart, moved = (
            torch.cat([(a[k] - other[k]).flatten() for k in a if k.startswith(f"{kind}/")]).norm()
            for other in (b, before)
        )
        assert apart < 0.01 * moved, kind
    for mine, theirs in zip(records(one), records(two), strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - {"images_per_s", "memory_gib", "eval_equivariance"}:
            assert theirs[key] == pytest.approx(mine[key], rel=1e-3), key
    flags = ["--run_dir", str(two), "--total_steps", "5", "--parallel", "ddp"]
    assert train.main([*TINY, *flags]) == 0
    assert len(tensors(two, 5)) == len(a)


@pytest.mark.parametrize(
    "flags",
    [
        ["--loss_weighting", "learned", "--time_sampling", "lognormal", "--microbatch", "2"],
        pytest.param(["--parallel", "fsdp"], marks=needs_cpu_fsdp),
    ],
    ids=" ".join,
)
def test_two_ranks_train_the_edm2_of_one(tmp_path, flags):
    """Its weights, normalised after every step, in shards too; what is learned of the losses' size."""
    flags, found, states = ["--backbone", "edm2", "--eval_interval", "0", *flags], [], []
    for folder, ranks in ((tmp_path / "one", 1), (tmp_path / "two", 2)):
        if ranks == 2:
            result = run("torchrun", "--run_dir", folder, *flags)
            assert result.returncode == 0 and "Warning" not in result.stderr, result.stderr
        else:
            own = [flag for flag in flags if flag not in ("--parallel", "fsdp")]
            assert train.main([*TINY, *own, "--run_dir", str(folder)]) == 0
        found.append({k: v for k, v in tensors(folder).items() if k.startswith("model/")})
        states.append(torch.load(folder / "checkpoints" / "step_00000004" / "state.pt", weights_only=True))
    before = tensors(tmp_path / "one", 2)
    apart, moved = (
        torch.cat([(found[0][k] - other[k]).flatten() for k in found[0]]).norm() for other in (found[1], before)
    )
    assert apart < 0.02 * moved
    if "learned" in flags:
        one, two = (state["uncertainty"]["weight"] for state in states)
        assert one.abs().max() > 0 and (one - two).norm() < 0.01 * one.norm()
    for name, value in found[1].items():
        if name.endswith("weight"):
            assert (value.flatten(1).square().mean(1) - 1).abs().max() < 1e-5


def free_port():
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize(("missing", "number"), [("rank", 1), ("node", 0)])
def test_a_missing_rank_or_node_is_said_within_the_timeout(tmp_path, missing, number):
    train = ["-m", "scripts.train", *TINY, "--run_dir", str(tmp_path / "run"), "--rendezvous_timeout", "2"]
    place, world, launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}, {}, []
    if missing == "rank":
        world = place | {"RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    else:
        where = f"--nnodes 2 --node_rank {number} --master_addr 127.0.0.1 --master_port {place['MASTER_PORT']}"
        launch = ["-m", "scripts.torchrun", *where.split(), "--nproc_per_node", "1"]
    result = subprocess.run(
        [sys.executable, *launch, *train], capture_output=True, text=True, timeout=60, env=environment(**world)
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 2 and len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    assert f"{missing} {number} of 2 waited 2 s" in lines[0] and "MASTER_PORT" in lines[0]
    assert not (tmp_path / "run").exists()


@needs_mpi
def test_a_rank_that_mpi_waits_for_in_vain_is_said():
    """MPI itself waits for ever, for a rank that ended before it met the others."""
    waits = "import torch, ddbm.ranks.distributed as d; d.start(d.World(0, 2, 0, 'mpi'), torch.device('cpu'), 1.0)"
    either = f'[ "$PMI_RANK" = 1 ] && exit 2; exec {sys.executable} -c "{waits}"'
    result = subprocess.run(
        [MPIEXEC, "-n", "2", "bash", "-c", either], capture_output=True, text=True, timeout=60, env=environment()
    )
    assert result.returncode != 0 and "error: rank 0 of 2 waited 1 s for the others" in result.stderr, result.stderr


def test_a_port_in_use_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "MARGIN", 60)  # this process is not to be ended
    with socket.socket() as s:
        s.bind(("", 0))
        s.listen()
        port = str(s.getsockname()[1])
        world = dict(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for name, value in world.items():
            monkeypatch.setenv(name, value)
        own = ["--run_dir", tmp_path / "run", "--rendezvous_timeout", 3]
        refused(train.main, [*TINY, *own], f"127.0.0.1:{port} is in use")


@needs_mpi
def test_a_mistake_is_said_once(tmp_path):
    """By ranks that have met; torchrun's in the tests of signals and of translation."""
    (tmp_path / "file").write_text("")
    result = run("mpiexec", "--run_dir", tmp_path / "file")
    assert result.returncode == 2, result.stderr
    assert sum(line.startswith("error:") for line in result.stderr.splitlines()) == 1, result.stderr
    assert "Traceback" not in result.stderr, result.stderr


SLOW_DISK = """
import errno, os, time
real, waits = os.fsync, [4]
def fsync(handle):
    if waits and "/checkpoints/" in os.readlink(f"/proc/self/fd/{handle}"):
        time.sleep(waits.pop())
        if os.environ["DISK"] == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
    real(handle)
os.fsync = fsync
"""
IMPATIENT = """
import runpy, signal, sys
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
LocalElasticAgent._shutdown.__defaults__ = (signal.SIGTERM, 1)
sys.argv[0] = "scripts.torchrun"
runpy.run_module("scripts.torchrun", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("disk", "number", "code"), [("slow", signal.SIGUSR1, 75), ("full", signal.SIGTERM, 2)], ids=["slow", "full"]
)
def test_a_signal_to_the_launcher_saves_and_ranks_wait_for_it(tmp_path, disk, number, code):
    """A save takes 4 s, the launcher kills 1 s after the first rank ended: all end when it is written, alike."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_DISK)
    flags = ["--run_dir", tmp_path / "run", "--total_steps", 10**6, "--val_interval", 10**6, "--eval_interval", 0]
    launch = [sys.executable, "-c", IMPATIENT, *command("torchrun", *flags, "--ema_sigma_rel", "")[3:]]
    own = environment(DISK=disk, PYTHONPATH=f"{tmp_path}:{ROOT}")
    process = subprocess.Popen(launch, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=own)
    limit = time.monotonic() + 60
    while not (log := tmp_path / "run" / "log.jsonl").exists() or not log.read_text():
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.1)
    refused(train.main, [*TINY, "--run_dir", tmp_path / "run"], "run is in use by another run (process")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    saved = list((tmp_path / "run" / "checkpoints").glob("step_*"))
    assert process.returncode == code and "Traceback" not in said, said
    assert (len(errors), len(saved)) == ((0, 1) if disk == "slow" else (1, 0)), said
    assert all("No space left" in error for error in errors), said
