"""How a process was started: alone, or as one rank of torchrun, srun or mpirun."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from train.ranks.launch import adopt_launcher, find_first_node

ALLOCATION = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "n[1-2]"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        ALLOCATION,  # A shell of salloc.
        ALLOCATION | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # A batch script.
        ALLOCATION | STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_a_process_on_its_own_is_a_run_of_its_own(environment: dict[str, str]) -> None:
    before = dict(environment)
    adopt_launcher(environment)
    assert environment == before


@pytest.mark.parametrize(
    ("environment", "rank", "address", "port"),
    [
        (STEP | {"SLURM_LOCALID": "1"}, ("5", "8", "1"), "127.0.0.1", "29500"),
        (ALLOCATION | STEP | {"SLURM_LOCALID": "1"}, ("5", "8", "1"), "n1", "20012"),
        (
            ALLOCATION | STEP | {"SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "gpu-[07-09]"},
            ("5", "8", "0"),
            "gpu-07",
            "20012",
        ),
        (
            OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
            ("1", "4", "1"),
            "127.0.0.1",
            "29500",
        ),
        (
            # On Slurm, beside what srun told mpirun's own daemon.
            OPEN_MPI
            | {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
            | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
            | {"MASTER_ADDR": "n7", "MASTER_PORT": "1234"},
            ("1", "4", "1"),
            "n7",
            "1234",
        ),
        (
            {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "3", "MPI_LOCALNRANKS": "4"},
            ("3", "4", "3"),
            "127.0.0.1",
            "29500",
        ),
    ],
)
def test_the_ranks_of_srun_and_mpirun_are_understood(
    environment: dict[str, str], rank: tuple[str, str, str], address: str, port: str
) -> None:
    environment = dict(environment)
    adopt_launcher(environment)
    found = tuple(environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    assert (found, environment["MASTER_ADDR"]) == (rank, address)
    assert environment["MASTER_PORT"] == port


def test_what_torchrun_says_comes_first() -> None:
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **ALLOCATION, **STEP}
    before = dict(environment)
    adopt_launcher(environment)
    assert environment == before


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "MPI_LOCALRANKID is not set; start them with torch"),
        (STEP, "SLURM_LOCALID is not set"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        (
            OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            "mpirun started 4 ranks on several machines, and MASTER_ADDR is not set; set it",
        ),
    ],
)
def test_half_of_what_is_needed_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adopt_launcher(dict(environment))


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("a[2-3]b[04-05],c1", "a2b04"), ("[1-3]x", "1x")],
)
def test_the_first_machine_of_a_list(nodes: str, first: str) -> None:
    assert find_first_node(nodes) == first


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, None),
    ],
)
def test_gpu_memory_grows_in_segments_unless_the_user_chose(
    own: dict[str, str], expected: str | None
) -> None:
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    environment = {name: value for name, value in os.environ.items() if name not in names} | own
    # Set before torch is loaded, whose allocator reads it once.
    script = (
        "import os, sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'torch':\n"
        "            print(os.environ.get('PYTORCH_ALLOC_CONF'))\n"
        "            sys.exit()\n"
        "sys.meta_path.insert(0, Stop())\n"
        "import train.__main__\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert process.stdout.strip() == str(expected)


def test_the_script_for_slurm_asks_for_another_start_where_one_helps() -> None:
    page = (Path(__file__).parents[2] / "docs/clusters.md").read_text()
    [script] = re.findall(r"^srun \S+ python -m train .*?^fi$", page, re.DOTALL | re.MULTILINE)
    stubs = "srun() { return $CODE; }; scontrol() { echo $*; }; "
    for code, restarts, expected in (
        *(("0", "", ""), ("78", "", ""), ("143", "99", "requeue 12"), ("143", "100", "")),
        *(("137", "", "requeue 12"), ("1", "", "requeue 12")),
    ):
        variables = {"CODE": code, "SLURM_JOB_ID": "12"}
        variables |= {"SLURM_RESTART_COUNT": restarts} if restarts else {}
        done = subprocess.run(
            ["bash", "-c", stubs + script], capture_output=True, text=True, env=variables
        )
        assert (done.stdout.strip(), done.stderr) == (expected, ""), code
