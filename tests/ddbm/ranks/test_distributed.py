"""Ranks: what launchers leave in the environment; what ranks do together is tested in tests/scripts/test_ranks.py."""

import pytest
import torch

from ddbm.ranks import distributed
from ddbm.ranks.distributed import World, pick_device, world_of

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"}  # MPICH and Intel MPI
SLURM = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "5", "SLURM_NTASKS": "16"}
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0"}  # no step: not started by srun


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, World()),
        (TORCHRUN, World(3, 8, 1, "torchrun")),
        (OPEN_MPI, World(2, 4, 0, "mpi")),
        (HYDRA, World(1, 2, 1, "mpi")),
        (SLURM, World(5, 16, 5, "slurm")),
        (BATCH_SCRIPT, World()),
        (TORCHRUN | SLURM, World(3, 8, 1, "torchrun")),
        (SLURM | {"PMI_RANK": "5", "PMI_SIZE": "16"}, World(5, 16, 5, "slurm")),  # srun --mpi=pmi2
        (SLURM | HYDRA, World(1, 2, 1, "mpi")),  # mpiexec whose proxies srun started
    ],
    ids=str,
)
def test_worlds(environment, world):
    assert world_of(environment) == world


@pytest.mark.parametrize("change", [{"RANK": "x"}, {"RANK": "8"}, {"LOCAL_RANK": "9"}], ids=str)
def test_worlds_that_cannot_be(change):
    with pytest.raises(ValueError, match=r"RANK=x|cannot be"):
        world_of(TORCHRUN | change)


def test_the_local_rank_chooses_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert pick_device("cuda", world=World(6, 8, 2, "torchrun")) == torch.device("cuda", 2)
    assert pick_device("cuda:3") == torch.device("cuda:3")
    assert pick_device("cuda") == torch.device("cuda", 0)  # torch.cuda.set_device refuses one without a number
    assert pick_device("cpu", world=World(6, 8, 2, "torchrun")) == torch.device("cpu")
    with pytest.raises(ValueError, match="one GPU"):
        pick_device("cuda:1", world=World(6, 8, 2, "torchrun"))
    with pytest.raises(ValueError, match="4 GPUs"):
        pick_device("cuda", world=World(4, 8, 4, "torchrun"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("cuda", world=World(3, 8, 3, "slurm")) == torch.device("cuda", 0)  # --gpus-per-task=1


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu7", "gpu7"), ("gpu[03-05,9],login1", "gpu03"), ("a-b1,c2", "a-b1"), ("n[12]x[0-3],y", "n12x0")],
)
def test_the_first_node_of_a_slurm_list(nodes, first):
    assert distributed._first_host(nodes) == first
    with pytest.raises(ValueError, match="MASTER_ADDR"):
        distributed._first_host("")


def test_who_says_an_error(monkeypatch):
    """Before ranks have met: rank 0 what all of them see, every rank what it alone can see."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.first_to_fail(distributed.Unmet("no mpi4py"))
    assert not distributed.first_to_fail(ValueError("unknown flag"))
    monkeypatch.setenv("RANK", "0")
    assert distributed.first_to_fail(ValueError("unknown flag"))
