"""Which of a run's processes this one is, from the environment variables of torchrun, srun or ``app.launch``."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

FIRST_PORT, PORTS = 15_000, 10_000  # the port of srun's processes follows from their job and step
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")


@dataclass(frozen=True)
class World:
    """The rank of this process among the processes of a run.

    Attributes:
        rank: number of this process among all, from 0.
        size: number of processes.
        local_rank: number of this process among those on its machine.
        local_size: number of processes on its machine.
        node: number of its machine.
        started_by: torchrun or srun; empty for a process alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    started_by: str = ""

    @property
    def is_rank0(self) -> bool:
        """Whether this is the one process that writes files and prints."""
        return self.rank == 0


def read_world(environment: Mapping[str, str] = os.environ) -> World:
    """Return the world that torchrun's or srun's variables describe; a world of one where they started no others.

    A batch script of SLURM has variables about its job's tasks too, but only a process that srun starts has a step.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(environment):
        rank, size, local_rank = (int(environment[name]) for name in TORCHRUN[:3])
        local_size = int(environment.get("LOCAL_WORLD_SIZE", size))
        node = int(environment.get("GROUP_RANK", rank // local_size))
        return World(rank, size, local_rank, local_size, node, "torchrun") if size > 1 else World()
    size = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if size == 1 or "SLURM_PROCID" not in environment:
        return World()
    node = int(environment["SLURM_NODEID"])
    rank, local_rank = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
    return World(rank, size, local_rank, tasks_on_node(environment["SLURM_STEP_TASKS_PER_NODE"], node), node, "srun")


def tasks_on_node(tasks_per_node: str, node: int) -> int:
    """Return the number of tasks on a node, from SLURM's list for all nodes: ``2(x3),1`` means 2, 2, 2 and 1."""
    counts: list[int] = []
    for part in tasks_per_node.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[node]


def torchrun_environment(world: World, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables by which torchrun gives a process its rank; an address that is set already is kept."""
    values = (world.rank, world.size, world.local_rank, world.local_size, world.node)
    variables = dict(zip(TORCHRUN, map(str, values), strict=True))
    if world.started_by == "srun":
        job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", 0))
        variables["MASTER_ADDR"] = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
        variables["MASTER_PORT"] = environment.get("MASTER_PORT") or str(FIRST_PORT + (10 * job + step) % PORTS)
    return variables


def first_host(nodes: str) -> str:
    """Return the first host in SLURM's list of nodes: gpu03 of ``gpu[03-05,7],big1``."""
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    return str(SLURMEnvironment.resolve_root_node_address(nodes))
