"""How this process was started: by torchrun, by srun or mpirun as one rank of many, or alone.

torch reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which torchrun sets. What
srun and mpirun say in their own words is said again in these.
"""

import re
from collections.abc import MutableMapping
from typing import NamedTuple

Environment = MutableMapping[str, str]


class Launcher(NamedTuple):
    """A program that starts ranks, and the variables in which it numbers them."""

    name: str
    rank: str
    world_size: str
    local_rank: str
    # How many of the ranks are on this machine; "" = not said.
    local_size: str


# mpirun comes first: on Slurm it has srun start its daemons, one on a machine, and the ranks
# inherit what srun told these. A shell in an allocation, or a batch script, is no step and has no
# SLURM_STEP_NUM_TASKS, however many tasks the job may start.
LAUNCHERS = (
    Launcher(
        "mpirun",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    Launcher("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    Launcher("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
)
# torch's own default, and where ports begin that depend on the Slurm job.
PORT, FIRST_PORT = 29500, 20000


def adopt_launcher(environment: Environment) -> None:
    """Set the variables that torch reads, if srun or mpirun started this process as one of several.

    Raises ValueError, with what to do, if some of what torch needs is not said.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        require(environment, "RANK", "WORLD_SIZE")
        return
    for launcher in LAUNCHERS:
        if launcher.rank in environment and launcher.world_size in environment:
            if environment[launcher.world_size] != "1":
                adopt(environment, launcher)
            return


def require(environment: Environment, *names: str) -> None:
    """Raise ValueError if one of the variables is not set."""
    for name in names:
        if name not in environment:
            raise ValueError(
                f"this is one of several processes, but {name} is not set; start them with "
                "torchrun --nproc_per_node N -m train, which sets what each rank needs"
            )


def adopt(environment: Environment, launcher: Launcher) -> None:
    """Say in torch's words what the launcher said in its own."""
    require(environment, launcher.local_rank)
    environment["RANK"] = environment[launcher.rank]
    environment["WORLD_SIZE"] = environment[launcher.world_size]
    environment["LOCAL_RANK"] = environment[launcher.local_rank]
    if size := find_local_size(environment, launcher):
        environment.setdefault("LOCAL_WORLD_SIZE", size)
    if "MASTER_ADDR" not in environment:
        environment["MASTER_ADDR"] = find_first_machine(environment, launcher)
    if "MASTER_PORT" not in environment:
        environment["MASTER_PORT"] = str(choose_port(environment))


def find_local_size(environment: Environment, launcher: Launcher) -> str:
    """How many ranks are on this machine, or at most, for all that Slurm says; "" if unknown.

    >>> srun = LAUNCHERS[-1]
    >>> find_local_size({"SLURM_STEP_TASKS_PER_NODE": "8(x3),4"}, srun)
    '8'
    """
    if launcher.name != "srun":
        return environment.get(launcher.local_size, "")
    counts = re.findall(r"(?:^|,)(\d+)", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return max(counts, key=int, default="")


def find_first_machine(environment: Environment, launcher: Launcher) -> str:
    """The machine of the first rank, where the others report.

    ValueError if that is unknown, as it is to the ranks of mpirun on several machines.
    """
    world_size = environment[launcher.world_size]
    if launcher.name == "srun":
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
        return find_first_node(nodes) if nodes else "127.0.0.1"
    if environment.get(launcher.local_size, world_size) == world_size:
        return "127.0.0.1"
    raise ValueError(
        f"{launcher.name} started {world_size} ranks on several machines, and MASTER_ADDR is not "
        "set; set it to the name of the first one, for all ranks, or start torchrun on each"
    )


def find_first_node(nodes: str) -> str:
    """The first of the machines in Slurm's list.

    >>> find_first_node("node[007-010,12],login1")
    'node007'
    >>> find_first_node("rack2n[3,5]-ib,rack3n1-ib")
    'rack2n3-ib'
    """
    match = re.match(r"(?:\[[^\]]*\]|[^,\[])+", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", match[0] if match else nodes)


def choose_port(environment: Environment) -> int:
    """A port that all ranks of a step choose, and other jobs on the machine do not.

    >>> choose_port({"SLURM_JOB_ID": "7000123", "SLURM_STEP_ID": "2"})
    20125
    """
    job = environment.get("SLURM_JOB_ID", "")
    if not job.isdigit():
        return PORT
    step = environment.get("SLURM_STEP_ID", "0")
    return FIRST_PORT + (int(job) + int(step if step.isdigit() else 0)) % 10000
