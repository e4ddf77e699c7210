"""The processes of a run: which one this is, how they agree, how one tells the others that it ends.

A run on many devices has a process for each. torchrun, srun or our own launcher start them and say by the environment
who is who. What takes long is waited for by looks into a store, where no time limit ends it and signals are heeded;
only what is done in lockstep (training, the numbers of an epoch) uses collective operations. torch is imported where
there are several processes.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup as TorchProcessGroup
    from torch.distributed import Store  # type: ignore[attr-defined]

T = TypeVar("T")

FIRST_LOOK, LOOK = 0.001, 0.2  # seconds between two looks into the store: of a short wait, of a long one
LEAVE_SECONDS = 60.0  # that the first process, which has the store, stays for the others to look into it once more
FAIL_SECONDS = 2.0  # the same where it fails in lockstep: they may be waiting for it, and hear it by its end alone
FIRST_PORT, PORTS = 15_000, 10_000  # of srun's processes, by their job and step
ENDED, ASKED, LEFT = "ended", "asked", "left"
ALL_HERE, NOT_ALL = "all", "not all"  # how a meeting ends
ERROR = 1  # exit code
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")


@dataclass(frozen=True)
class World:
    """Which of the processes of a run this one is.

    Attributes:
        rank: its number among all of them.
        size: how many there are.
        local_rank: its number among those on its machine.
        local_size: how many are on its machine.
        node: the number of its machine.
        started_by: what started them.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    started_by: str = ""

    @property
    def first(self) -> bool:
        """Whether this process alone writes and talks."""
        return self.rank == 0


def world(environment: Mapping[str, str] = os.environ) -> World:
    """Return what torchrun or srun says of this process; where neither started several, it is alone.

    A batch script of SLURM knows of its job's tasks too, but only what srun starts has a number in a step.
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
    return World(rank, size, local_rank, tasks_of(environment["SLURM_STEP_TASKS_PER_NODE"], node), node, "srun")


def tasks_of(told: str, node: int) -> int:
    """Return how many tasks a node has, by SLURM's way to say it for all of them: ``2(x3),1`` is 2, 2, 2 and 1."""
    counts: list[int] = []
    for part in told.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[node]


class Ended(Exception):  # noqa: N818 - how a run ends, not always an error
    """Another process of the run has ended.

    Attributes:
        rank: which one.
        code: its exit code.
        told: what it had to say; empty where it said it itself.
    """

    def __init__(self, rank: int, code: int, told: str) -> None:
        super().__init__(f"process {rank} has ended with code {code}")
        self.rank, self.code, self.told = rank, code, told


class ProcessGroup:
    """The processes of a run as one of them sees them; a process alone agrees with itself at once.

    All of them call the methods that make them agree in the same order.

    Attributes:
        world: which of them this is.
        heed: is called while something is waited for; may raise to stop.
    """

    def __init__(
        self,
        world: World | None = None,
        store: "Store | None" = None,
        side: "TorchProcessGroup | None" = None,
    ) -> None:
        """Take the process's place, the store that all of them reach, and a group of theirs for tensors on the CPU."""
        self.world = world or World()
        self.check_signals: Callable[[], None] = lambda: None
        self._store = store
        self._side = side
        self._turn = 0
        self._looked, self._told = 0.0, 0
        self._in_step = False

    @property
    def first(self) -> bool:
        """Whether this process alone writes and talks."""
        return self.world.first

    @property
    def size(self) -> int:
        """How many there are."""
        return self.world.size

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """Return what the first process makes, a value that JSON can hold; the others wait for it.

        Raises:
            Ended: another process did.
        """
        if self._store is None:
            return make()
        key = self._next("decided")
        if self.first:
            self._put(key, json.dumps(make()))
        return json.loads(self._wait(key))  # type: ignore[no-any-return]

    def meet(self) -> None:
        """Wait until all processes are here.

        One that is to stop meanwhile does so only before all are: those that have met stay together.

        Raises:
            Ended: another process did.
        """
        if self._store is None:
            return
        key = self._next("met")
        self._put(f"{key}/{self.world.rank}", "")
        try:
            if self.first:
                for rank in range(self.size):
                    self._wait(f"{key}/{rank}")
                self._settle(key, ALL_HERE)
            met = self._wait(key) == ALL_HERE
        except Ended:
            raise
        except Exception:
            if self._settle(key, NOT_ALL) == ALL_HERE:
                return  # what it was told is still to be heard by all of them
            raise
        if not met:
            self._wait(f"{key}/never")  # how the one ends that does not come

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Go through the block in lockstep with the others: once all are here, none stops by itself before its end.

        One that fails in it stays in lockstep: ``leave`` does not wait for those that may wait for it.
        """
        self.meet()
        self._in_step = True
        yield
        self._in_step = False

    def by_turns(self, work: Callable[[], T]) -> T:
        """Return what ``work`` gives: in the first process of each machine, then in its others.

        What the first one leaves in the machine's caches, the others find there.
        """
        if self._store is None:
            return work()
        key = f"{self._next('node')}/{self.world.node}"
        if self.world.local_rank:
            self._wait(key)
        found = work()
        if not self.world.local_rank:
            self._put(key, "")
        return found

    def told(self, asked: int) -> int:
        """Return what any process was asked for by a signal (0 for nothing), outside of training.

        Args:
            asked: what this one was asked for.

        Raises:
            Ended: another process did.
        """
        if self._store is None:
            return asked
        now = time.monotonic()
        if asked > self._told:
            self._put(ASKED, str(asked))
            self._told = asked
        elif now - self._looked > LOOK:
            self._looked = now
            self._check_ended()
            if self._has(ASKED):
                self._told = max(self._told, int(self._get(ASKED)))
        return max(asked, self._told)

    def mean(self, values: "torch.Tensor") -> "torch.Tensor":
        """Return the mean over the processes of a tensor, on the CPU; in lockstep."""
        if self._side is None:
            return values
        import torch.distributed as dist

        total = values.cpu().clone()
        dist.all_reduce(total, group=self._side)
        return total / self.size

    def rows(self, values: "torch.Tensor") -> "torch.Tensor":
        """Return the rows (n, ...) of all processes in their order, (N, ...) on the CPU; in lockstep.

        Each may have another number of them.
        """
        if self._side is None:
            return values
        import torch
        import torch.distributed as dist

        own = values.cpu().contiguous()
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(own)]), group=self._side)
        most = max(int(count) for count in counts)
        padded = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded, group=self._side)
        return torch.cat([rows[: int(count)] for rows, count in zip(found, counts, strict=True)])

    def largest(self, numbers: Sequence[int]) -> "Callable[[], list[int]]":
        """Begin to find the largest of the processes' numbers, each by itself, and return what waits for them.

        Nothing is waited for before that, and no device at all.
        """
        if self._side is None:
            return lambda: list(numbers)
        import torch
        import torch.distributed as dist

        found = torch.tensor(numbers)
        work = dist.all_reduce(found, dist.ReduceOp.MAX, group=self._side, async_op=True)

        def wait() -> list[int]:
            work.wait()
            return [int(number) for number in found.tolist()]

        return wait

    def end(self, code: int, told: str = "") -> Ended:
        """Say how this process ends, and return how the first one ended that did: this one, or another.

        Args:
            code: its exit code.
            told: what the first process is to say of it.
        """
        mine = Ended(self.world.rank, code, told)
        if self._store is None:
            return mine
        text = json.dumps([mine.rank, mine.code, mine.told])
        try:
            found = self._store.compare_set(ENDED, "", text)
        except RuntimeError:  # the first process, which has the store, is gone; what fails then, fails by that
            return Ended(0, ERROR, "") if code == ERROR else mine
        return Ended(*json.loads(found))

    def leave(self) -> None:
        """Be one of them no more; the first process stays a little for the others to hear what it said."""
        if self._store is None:
            return
        import torch.distributed as dist

        try:
            left = self._store.add(LEFT, 1)
            until = time.monotonic() + (FAIL_SECONDS if self._in_step else LEAVE_SECONDS)
            while self.first and left < self.size and time.monotonic() < until:
                time.sleep(FIRST_LOOK)
                left = self._store.add(LEFT, 0)
        except RuntimeError:  # it is gone already
            pass
        self._store, self._side = None, None
        dist.destroy_process_group()

    def _next(self, what: str) -> str:
        self._turn += 1
        return f"{self._turn}/{what}"

    def _wait(self, key: str) -> str:
        """Return the value of a key once somebody has put it."""
        pause = FIRST_LOOK
        while not self._has(key):
            self._check_ended()
            if not self._in_step:
                self.check_signals()
            time.sleep(pause)
            pause = min(2 * pause, LOOK)
        return self._get(key)

    def _check_ended(self) -> None:
        if self._has(ENDED):
            raise Ended(*json.loads(self._get(ENDED)))

    def _settle(self, key: str, value: str) -> str:
        """Return the value of a key: this one, where nobody has put another."""
        assert self._store is not None  # noqa: S101 - the callers have looked
        try:
            return bytes(self._store.compare_set(key, "", value)).decode()
        except RuntimeError:
            raise Ended(0, ERROR, "") from None

    def _has(self, key: str) -> bool:
        assert self._store is not None  # noqa: S101 - the callers have looked
        try:
            return bool(self._store.check([key]))
        except RuntimeError:
            raise Ended(0, ERROR, "") from None

    def _get(self, key: str) -> str:
        assert self._store is not None  # noqa: S101 - the callers have looked
        try:
            return bytes(self._store.get(key)).decode()
        except RuntimeError:
            raise Ended(0, ERROR, "") from None

    def _put(self, key: str, value: str) -> None:
        assert self._store is not None  # noqa: S101 - the callers have looked
        try:
            self._store.set(key, value)
        except RuntimeError:
            raise Ended(0, ERROR, "") from None


def join(world: World, gpu: bool) -> ProcessGroup:
    """Return this process's group, once all of its processes are there.

    Args:
        world: which of them this is.
        gpu: each trains on a GPU of its own.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    os.environ.update(as_torchrun(world))
    store, rank, size = next(rendezvous("env://"))
    if gpu:
        torch.cuda.set_device(world.local_rank)
    kind = "nccl" if gpu else "gloo"
    dist.init_process_group(kind, store=PrefixStore("training", store), rank=rank, world_size=size)
    side = dist.new_group(backend="gloo")
    assert not isinstance(side, int)  # noqa: S101 - that stands for a group without this process
    return ProcessGroup(world, PrefixStore("tutelage", store), side)


def as_torchrun(world: World, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables by which torchrun tells a process who it is; where they are set, an address is kept."""
    values = (world.rank, world.size, world.local_rank, world.local_size, world.node)
    told = dict(zip(TORCHRUN, map(str, values), strict=True))
    if world.started_by == "srun":
        job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", 0))
        told["MASTER_ADDR"] = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
        told["MASTER_PORT"] = environment.get("MASTER_PORT") or str(FIRST_PORT + (10 * job + step) % PORTS)
    return told


def first_host(nodes: str) -> str:
    """Return the first of SLURM's list of nodes: ``gpu[03-05,7],big1`` begins with gpu03."""
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    return str(SLURMEnvironment.resolve_root_node_address(nodes))


ALONE = ProcessGroup()
