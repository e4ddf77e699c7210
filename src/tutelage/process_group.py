"""The processes of a run: how they agree on a value, wait for one another, and announce that they end.

A run on many devices has a process for each (see ``world``). Long waits poll a key-value store, where no time limit
applies and signals are checked; only work in lockstep (training, an epoch's metrics) uses collective operations of
``torch.distributed``. Lightning's ``broadcast`` and ``barrier`` are not used: they fail after a time limit and hold
signals back. torch is imported only where there are several processes.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from tutelage.waiting import OnWait, WaitLines, announced
from tutelage.world import World, torchrun_environment

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup as TorchProcessGroup
    from torch.distributed import Store  # type: ignore[attr-defined]

T = TypeVar("T")

FIRST_POLL_SECONDS, POLL_SECONDS = 0.001, 0.2  # between polls: at first, and in a long wait
CLOSE_SECONDS = 60.0  # rank 0, which serves the store, stays so long for the others to poll it once more
FAIL_SECONDS = (
    2.0  # the same where rank 0 fails in lockstep: others may wait in a collective, and only its end frees them
)
ENDED, REQUESTED, CLOSED = "ended", "requested", "closed"  # keys of the store
ALL_HERE, NOT_ALL = "all", "not all"  # how a barrier ends
ERROR = 1  # exit code


class Ended(Exception):  # noqa: N818 - how a run ends, not always an error
    """Another process of the run has ended.

    Attributes:
        rank: its rank.
        code: its exit code.
        message: the error line for rank 0 to print; empty where that process has printed it.
    """

    def __init__(self, rank: int, code: int, message: str) -> None:
        super().__init__(f"process {rank} has ended with code {code}")
        self.rank, self.code, self.message = rank, code, message


class ProcessGroup:
    """The processes of a run, from the view of one of them; a process alone never waits.

    All processes call the collective methods in the same order.

    Attributes:
        world: the rank of this process.
        check_signals: called while this process waits; may raise an exception to stop it.
        on_wait: called while rank 0 waits for another process.
    """

    def __init__(
        self,
        world: World | None = None,
        store: "Store | None" = None,
        side: "TorchProcessGroup | None" = None,
    ) -> None:
        """Take the rank, the store that all processes reach, and a gloo group for tensors on the CPU."""
        self.world = world or World()
        self.check_signals: Callable[[], None] = lambda: None
        self.on_wait: OnWait = WaitLines()
        self._store = store
        self._side = side
        self._turn = 0
        self._polled_at, self._requested = 0.0, 0
        self._is_lockstep = False

    @property
    def is_rank0(self) -> bool:
        """Whether this is the one process that writes files and prints."""
        return self.world.is_rank0

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.world.size

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """Return the value that ``make`` returns on rank 0, one that JSON can hold; the other processes wait for it.

        Raises:
            Ended: another process did.
        """
        if self._store is None:
            return make()
        key = self._next_key("broadcast")
        if self.is_rank0:
            self._put(key, json.dumps(make()))
        return json.loads(self._wait_for_key(key))  # type: ignore[no-any-return]

    def barrier(self) -> None:
        """Wait until all processes are here.

        A process that is told to stop leaves only before all are here: processes that have met stay together.

        Raises:
            Ended: another process did.
        """
        if self._store is None:
            return
        key = self._next_key("barrier")
        self._put(f"{key}/{self.world.rank}", "")
        try:
            if self.is_rank0:
                for rank in range(self.size):
                    self._wait_for_key(f"{key}/{rank}", f"process {rank} of the run")
                self._settle(key, ALL_HERE)
            met = self._wait_for_key(key) == ALL_HERE
        except Ended:
            raise
        except Exception:
            if self._settle(key, NOT_ALL) == ALL_HERE:
                return  # the signal is still to be agreed on by all of them
            raise
        if not met:
            self._wait_for_key(f"{key}/never")  # raises once the missing process announces its end

    @contextmanager
    def lockstep(self) -> Iterator[None]:
        """Run the block in lockstep with the other processes: once all are here, none stops alone before its end.

        A process that fails in the block stays in lockstep: ``close`` does not wait for processes that wait for it.
        """
        self.barrier()
        self._is_lockstep = True
        yield
        self._is_lockstep = False

    def first_on_each_node(self, work: Callable[[], T]) -> T:
        """Return the result of ``work``, run by the first process of each machine, then by the machine's others.

        Files that the first process leaves in the machine's caches are there for the others.
        """
        if self._store is None:
            return work()
        key = f"{self._next_key('node')}/{self.world.node}"
        if self.world.local_rank:
            self._wait_for_key(key)
        result = work()
        if not self.world.local_rank:
            self._put(key, "")
        return result

    def agree_on_request(self, requested: int) -> int:
        """Return the request that a signal has sent to any process (0 for none); for use outside of training.

        Args:
            requested: the request to this process.

        Raises:
            Ended: another process did.
        """
        if self._store is None:
            return requested
        now = time.monotonic()
        if requested > self._requested:
            self._put(REQUESTED, str(requested))
            self._requested = requested
        elif now - self._polled_at > POLL_SECONDS:
            self._polled_at = now
            self._check_ended()
            if self._has(REQUESTED):
                self._requested = max(self._requested, int(self._get(REQUESTED)))
        return max(requested, self._requested)

    def all_reduce_mean(self, values: "torch.Tensor") -> "torch.Tensor":
        """Return the mean over the processes of a tensor, on the CPU; in lockstep."""
        if self._side is None:
            return values
        import torch.distributed as dist

        total = values.cpu().clone()
        dist.all_reduce(total, group=self._side)
        return total / self.size

    def all_gather_rows(self, values: "torch.Tensor") -> "torch.Tensor":
        """Return the rows (n, ...) of all processes in their order, (N, ...) on the CPU; in lockstep.

        The number of rows may differ between processes.
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
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded, group=self._side)
        return torch.cat([rows[: int(count)] for rows, count in zip(gathered, counts, strict=True)])

    def all_reduce_max(self, numbers: Sequence[int]) -> "Callable[[], list[int]]":
        """Begin to find the elementwise maximum of the processes' numbers; return a function that waits for it.

        This call does not wait, and no device takes part.
        """
        if self._side is None:
            return lambda: list(numbers)
        import torch
        import torch.distributed as dist

        maximum = torch.tensor(numbers)
        work = dist.all_reduce(maximum, dist.ReduceOp.MAX, group=self._side, async_op=True)

        def wait() -> list[int]:
            work.wait()
            return [int(number) for number in maximum.tolist()]

        return wait

    def announce_end(self, code: int, message: str = "") -> Ended:
        """Announce that this process ends; return how the first process ended that did: this one, or another.

        Args:
            code: the exit code of this process.
            message: the error line for rank 0 to print.
        """
        own = Ended(self.world.rank, code, message)
        if self._store is None:
            return own
        text = json.dumps([own.rank, own.code, own.message])
        try:
            first = self._store.compare_set(ENDED, "", text)
        except RuntimeError:  # rank 0, which serves the store, is gone: a failure now is a consequence of that
            return Ended(0, ERROR, "") if code == ERROR else own
        return Ended(*json.loads(first))

    def close(self) -> None:
        """Leave the group; rank 0 stays a little, so that the others can read its last announcements."""
        if self._store is None:
            return
        import torch.distributed as dist

        try:
            closed = self._store.add(CLOSED, 1)
            until = time.monotonic() + (FAIL_SECONDS if self._is_lockstep else CLOSE_SECONDS)
            while self.is_rank0 and closed < self.size and time.monotonic() < until:
                time.sleep(FIRST_POLL_SECONDS)
                closed = self._store.add(CLOSED, 0)
        except RuntimeError:  # rank 0 is gone already
            pass
        self._store, self._side = None, None
        dist.destroy_process_group()

    @property
    def _connected_store(self) -> "Store":
        if self._store is None:
            raise RuntimeError("a process alone has no store")
        return self._store

    def _next_key(self, name: str) -> str:
        self._turn += 1
        return f"{self._turn}/{name}"

    def _wait_for_key(self, key: str, what: str = "") -> str:
        """Return the value of a key once a process has put it; ``what`` is told where the wait is long."""
        pause, since = FIRST_POLL_SECONDS, time.monotonic()
        while not self._has(key):
            self._check_ended()
            if not self._is_lockstep:
                self.check_signals()
            if what:
                self.on_wait(what, time.monotonic() - since)
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS)
        return self._get(key)

    def _check_ended(self) -> None:
        if self._has(ENDED):
            raise Ended(*json.loads(self._get(ENDED)))

    def _settle(self, key: str, value: str) -> str:
        """Return the value of a key: this one, unless another process has put one before."""
        try:
            return bytes(self._connected_store.compare_set(key, "", value)).decode()
        except RuntimeError:
            raise Ended(0, ERROR, "") from None

    def _has(self, key: str) -> bool:
        try:
            return bool(self._connected_store.check([key]))
        except RuntimeError:
            raise Ended(0, ERROR, "") from None

    def _get(self, key: str) -> str:
        try:
            return bytes(self._connected_store.get(key)).decode()
        except RuntimeError:
            raise Ended(0, ERROR, "") from None

    def _put(self, key: str, value: str) -> None:
        try:
            self._connected_store.set(key, value)
        except RuntimeError:
            raise Ended(0, ERROR, "") from None


def join_process_group(world: World, uses_gpu: bool) -> ProcessGroup:
    """Return the process group of a world, once all of its processes are there.

    Args:
        world: the rank of this process.
        uses_gpu: each process trains on a GPU of its own.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    os.environ.update(torchrun_environment(world))
    with announced(f"the {world.size - 1} other processes of the run to start"):
        store, rank, size = next(rendezvous("env://"))
    if uses_gpu:
        torch.cuda.set_device(world.local_rank)
    backend = "nccl" if uses_gpu else "gloo"
    dist.init_process_group(backend, store=PrefixStore("training", store), rank=rank, world_size=size)
    side = dist.new_group(backend="gloo")
    if isinstance(side, int):  # torch's sign for a group without this process
        raise RuntimeError("this process is not in the group of all processes")
    return ProcessGroup(world, PrefixStore("tutelage", store), side)


ALONE = ProcessGroup()
