"""docker/run_container.sh and scripts/slurm.sh, with fakes of docker, nvidia-smi, srun, squeue and scontrol."""

import os
import re
import subprocess

import pytest

from tests.scripts.sampling_runs import ROOT, environment

DOCKER = """case "$1" in
    version) exit "${DOCKER_DOWN:-0}" ;;
    image) [ -n "${IMAGE_COMMIT:-}" ] && echo "$IMAGE_COMMIT" ;;
    *) printf '%s\\n' "$@" > "$CALLS/$1"
       [ -z "${RUN_WAITS:-}" ] || { trap 'exit 75' TERM; echo ready; while :; do sleep 0.05; done; }
       exit "${RUN_CODE:-0}" ;;
esac"""
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


@pytest.fixture
def start(tmp_path):
    """Runs a script in tmp_path, the fakes first on its PATH; what they were called with is in tmp_path/calls."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "calls").mkdir()
    fakes = {
        "docker": DOCKER,
        "podman": DOCKER,
        "nvidia-smi": 'i=0; while [ "$i" -lt "${FAKE_GPUS:-0}" ]; do echo "GPU $i: fake"; i=$((i + 1)); done',
        "srun": 'printf "%s\\n" "$@" > "$CALLS/srun"; exit "${SRUN_CODE:-0}"',
        "squeue": 'echo "${JOB_STATE:-RUNNING}"',
        "scontrol": 'echo "$@" > "$CALLS/scontrol"; exit "${SCONTROL_CODE:-0}"',
    }
    for name, text in fakes.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
    own = environment(PATH=f"{tmp_path}/bin:{os.environ['PATH']}", CALLS=str(tmp_path / "calls"))
    del own["OMP_NUM_THREADS"]  # the container would get it

    def call(script, *words, run=subprocess.run, **extra):
        return run(["bash", ROOT / script, *map(str, words)], cwd=tmp_path, env=own | extra, **PIPES)

    return call


def called(tmp_path, name):
    file = tmp_path / "calls" / name
    return file.read_text().splitlines() if file.exists() else None


def has(words, *part):
    """Whether the words stand in the command line next to each other."""
    return any(words[i : i + len(part)] == list(part) for i in range(len(words)))


def test_the_whole_command_line(tmp_path, start):
    """Paths with spaces, relative paths made absolute, the user's numbers, the container's exit code."""
    (tmp_path / "my pairs").mkdir()
    words = ["my_pairs", "ve", "my runs/my_pairs_ve", "--image_size", 64, "--note", "a b"]
    where = {"DATA_DIR": "my pairs", "WORKDIR": "my runs", "FAKE_GPUS": "2"}
    process = start("docker/run_container.sh", *words, **where, NCCL_P2P_DISABLE="1", IMAGE_COMMIT="abc", RUN_CODE="75")
    assert process.returncode == 75, process.stderr
    assert called(tmp_path, "run") == [
        *f"run --rm --init --stop-timeout 300 --shm-size 16g --user {os.getuid()}:{os.getgid()}".split(),
        *["--mount", f"type=bind,source={tmp_path}/my runs,target={tmp_path}/my runs"],
        *["--mount", f"type=bind,source={tmp_path}/my pairs,target={tmp_path}/my pairs,readonly"],
        *["--env", f"DATA_DIR={tmp_path}/my pairs", "--gpus", "all", "--env", "NCCL_P2P_DISABLE"],
        *["--env", f"WORKDIR={tmp_path}/my runs", "--env", "NGPU=2", "ddbm", "train_ddbm.sh"],
        *["my_pairs", "ve", f"{tmp_path}/my runs/my_pairs_ve", "--image_size", "64", "--note", "a b"],
    ]
    assert called(tmp_path, "build") is None  # there is an image ...
    assert "image ddbm is of commit abc" in process.stderr and "BUILD=1" in process.stderr  # ... of another state


def test_sigterm_reaches_the_container(start):
    extra = {"WORKDIR": "runs", "IMAGE_COMMIT": "abc", "RUN_WAITS": "1"}
    with start("docker/run_container.sh", "histology", "vp", run=subprocess.Popen, **extra) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(timeout=20) == 75


def test_image_is_built_when_missing_and_on_demand(tmp_path, start):
    flags = {"WORKDIR": "runs", "BUILD_FLAGS": "--build-arg BASE=debian:bookworm-slim", "IMAGE": "mine"}
    for extra in ({}, {"BUILD": "1", "IMAGE_COMMIT": "abc"}):
        assert start("docker/run_container.sh", "histology", "vp", **flags, **extra).returncode == 0
        build = called(tmp_path, "build")
        assert build[-1] == str(ROOT) and any("DDBM_COMMIT=" in word for word in build)
        assert has(build, "--file", f"{ROOT}/docker/Dockerfile", "--tag", "mine")
        assert has(build, "--build-arg", "BASE=debian:bookworm-slim")
        (tmp_path / "calls" / "build").unlink()


def test_cpu_podman_nodes_and_other_launchers(tmp_path, start):
    known = {"WORKDIR": str(tmp_path), "IMAGE_COMMIT": "abc"}
    process = start("docker/run_container.sh", "histology", "vp", **known)
    run = called(tmp_path, "run")
    assert "CPU" in process.stderr and "--gpus" not in run and has(run, "--env", "NGPU=1")
    assert "--network" not in run
    nodes = dict(w.split("=") for w in "NNODES=2 NODE_RANK=1 MASTER_ADDR=node0 MASTER_PORT=29500".split())
    nodes |= dict(EVAL_INTERVAL="50", SAMPLER="heun", NFE="9", MPIEXEC_FLAGS="-v", CUDA_VISIBLE_DEVICES="1")
    podman = {"NGPU": "4", "FAKE_GPUS": "8", "DOCKER": "podman", "DOCKER_FLAGS": "--cpus 2"}
    start("docker/run_container.sh", "histology", "vp", **known, **nodes, **podman)
    run = called(tmp_path, "run")
    assert has(run, "--device", "nvidia.com/gpu=all") and has(run, "--network", "host") and has(run, "--cpus", "2")
    assert has(run, "--env", "NGPU=4") and all(has(run, "--env", n) for n in nodes)
    start("docker/run_container.sh", "sample_ddbm.sh", "histology", "vp", tmp_path / "histology_vp", **known)
    assert called(tmp_path, "run")[-5:] == ["ddbm", "sample_ddbm.sh", "histology", "vp", f"{tmp_path}/histology_vp"]
    start("docker/run_container.sh", "e2h", "vp", **known | {"WORKDIR": "gs://b/runs"}, DATA_DIR="gs://b/pairs")
    run = called(tmp_path, "run")
    assert (
        "--mount" not in run and has(run, "--env", "DATA_DIR=gs://b/pairs") and has(run, "--env", "WORKDIR=gs://b/runs")
    )


@pytest.mark.parametrize(
    ("words", "extra", "said"),
    [
        ([], {}, ["usage", "histology vp"]),
        (["histology", "vp"], {"DOCKER": "no-docker"}, ["'no-docker' is not installed", "DOCKER=podman"]),
        (["histology", "vp"], {"DOCKER_DOWN": "1"}, ["'docker version' fails"]),
        (["e2h", "vp"], {"DATA_DIR": "nowhere"}, ["DATA_DIR 'nowhere' is no folder"]),
        (["histology", "vp"], {"WORKDIR": "bin/docker"}, ["cannot write to WORKDIR 'bin/docker'"]),
        (["histology", "vp"], {"WORKDIR": "a,b"}, ["comma"]),
        (["train.sh", "histology", "vp"], {}, ["no launcher 'train.sh'"]),
        (["e2h", "vp", "--data_dir", "/elsewhere"], {}, ["WORKDIR", "DATA_DIR", "not '/elsewhere'"]),
        (["histology", "vp", "--run_dir=/lost"], {}, ["not '/lost'"]),
    ],
)
def test_mistakes_are_one_line(tmp_path, start, words, extra, said):
    process = start("docker/run_container.sh", *words, **{"WORKDIR": "runs", "IMAGE_COMMIT": "abc", **extra})
    assert process.returncode == 2 and process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    assert all(part in process.stderr for part in said), process.stderr
    assert called(tmp_path, "run") is None


def test_the_image_gets_every_folder_and_nothing_else():
    """The package is known before its sources are copied; what .dockerignore lets through is what the commands need."""
    assert 'include = ["ddbm", "ddbm.*"]' in (ROOT / "pyproject.toml").read_text()
    assert re.search(r"mkdir ddbm && touch .*ddbm/__init__\.py", (ROOT / "docker" / "Dockerfile").read_text())
    lines = [x for x in (ROOT / ".dockerignore").read_text().splitlines() if not x.startswith("#")]
    folders = {p.parent.name for p in ROOT.glob("*/__init__.py")} - {"tests"}
    files = {"docker", "docs", "*.sh", "pyproject.toml", "LICENSE", "README.md"}
    assert lines[0] == "*" and {x[1:] for x in lines if x.startswith("!")} == folders | files


JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NUM_NODES": "2"}


@pytest.fixture
def submit(tmp_path, start):
    """slurm.sh in a job, with a checkout whose launcher is nothing but srun."""
    (tmp_path / "train_ddbm.sh").write_text('exec srun "$LAUNCHER" "$@"\n')
    return lambda *words, **extra: start(
        "scripts/slurm.sh", *words, **JOB | {"SLURM_SUBMIT_DIR": str(tmp_path)} | extra
    )


@pytest.mark.parametrize(
    ("code", "state", "requeued", "end"),
    [
        *((code, "RUNNING", True, 0) for code in (75, 143, 138)),
        *((code, "RUNNING", False, code) for code in (0, 2, 137)),
        (75, "COMPLETING", False, 75),  # a cancelled job stays cancelled
    ],
)
def test_75_is_requeued_and_nothing_else(tmp_path, submit, code, state, requeued, end):
    """Slurm may signal the shell as well; it must wait for the training."""
    (tmp_path / "train_ddbm.sh").write_text('kill -TERM $PPID; sleep 0.1; exec srun "$LAUNCHER" "$@"\n')
    process = submit("my_pairs", "ve", "--run_dir", "a b", SRUN_CODE=str(code), JOB_STATE=state)
    assert process.returncode == end and ("submit it again" in process.stdout) == (state == "COMPLETING")
    assert called(tmp_path, "srun") == ["srun", "my_pairs", "ve", "--run_dir", "a b"]
    assert called(tmp_path, "scontrol") == (["requeue 7"] if requeued else None)


def test_slurm_mistakes_are_one_line(tmp_path, submit):
    for extra, said in (
        ({"SLURM_JOB_ID": ""}, "sbatch scripts/slurm.sh"),
        ({"SLURM_SUBMIT_DIR": "/"}, "DDBM_ROOT="),
        ({"SLURM_NTASKS": "2"}, "2 tasks for 4 GPUs, expected one a GPU: add --ntasks-per-node 2"),
        ({"SRUN_CODE": "75", "SCONTROL_CODE": "1"}, "job 7 could not be requeued"),
    ):
        process = submit("histology", "vp", **extra)
        assert process.returncode == 2 and said in process.stderr and process.stderr.count("\n") == 1
    assert submit("histology", "vp", SLURM_SUBMIT_DIR="/", DDBM_ROOT=str(tmp_path)).returncode == 0
