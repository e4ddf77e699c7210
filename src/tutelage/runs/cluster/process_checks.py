"""A run by several processes: how many there are, that its batches can be shared out, and that they end as one."""

from collections.abc import Iterator
from contextlib import contextmanager

from tutelage.config import Config, TrainerConfig
from tutelage.errors import BY_SIGNAL, USER_ERROR, UserError
from tutelage.process_group import ERROR, Ended, ProcessGroup, World
from tutelage.runs.cluster.signals import Stopped

GONE = ("Connection closed by peer", "Connection reset by peer")  # what gloo says where a process is no more


class Abandoned(UserError):  # noqa: N818 - as Ended
    """Another process of the run has ended without a word; who started both may know how."""


def processes_of(trainer: TrainerConfig, world: World) -> int:
    """Return how many processes a run has in all.

    Args:
        trainer: asks for them.
        world: which of those that were started this is; alone, it may start them on this machine.

    Raises:
        UserError: others were started, or it takes several machines and nobody started any.
    """
    if world.size == 1:
        if trainer.nodes > 1:
            raise UserError(
                f"trainer.nodes={trainer.nodes}: a command on one machine starts no processes on others; srun and "
                "torchrun do: 'srun tutelage train ...' in a batch job of a task for each device, see docs/clusters.md"
            )
        return _devices(trainer)
    here = trainer.devices if trainer.devices != "auto" else world.local_size
    if trainer.parallel == "none" or (here, here * trainer.nodes) != (world.local_size, world.size):
        nodes = world.size // world.local_size
        raise UserError(
            f"{world.started_by} has started {world.size} processes, {world.local_size} on this machine, which "
            f"trainer.parallel={trainer.parallel} trainer.devices={trainer.devices} trainer.nodes={trainer.nodes} does "
            f"not ask for: set trainer.parallel=ddp trainer.devices={world.local_size} trainer.nodes={nodes}, or start "
            "one process"
        )
    _check_gpus(trainer, world.local_size)
    return world.size


def _devices(trainer: TrainerConfig) -> int:
    """Return how many devices of this machine a run trains on; ``auto`` is all GPUs, where there are none the CPU."""
    if trainer.devices != "auto":
        _check_gpus(trainer, trainer.devices)
        return trainer.devices
    import torch

    return max(1, torch.cuda.device_count())


def _check_gpus(trainer: TrainerConfig, needed: int) -> None:
    """Raise a UserError where a run is to train on more GPUs than this process sees, if it sees any."""
    if trainer.parallel == "none" or trainer.accelerator == "cpu":
        return
    import torch

    visible = torch.cuda.device_count()
    if 0 < visible < needed:
        raise UserError(
            f"trainer.devices={trainer.devices}: {visible} GPUs are visible, and {needed} processes of this machine "
            "need one each; ask for fewer, or let each process see all of them (SLURM: --gpus-per-node, not "
            "--gpus-per-task)"
        )


def uses_gpu(trainer: TrainerConfig) -> bool:
    """Return whether a run trains on a GPU."""
    import torch

    return trainer.accelerator != "cpu" and torch.cuda.is_available()


def check_batches(config: Config, processes: int) -> None:
    """Raise a UserError unless each batch of a step can be cut into equal parts, one for each device and turn."""
    accumulate, batch = config.trainer.accumulate, config.data.batch_size
    parts = processes * accumulate
    what = f"{processes} processes in {accumulate} turns each" if accumulate > 1 else f"{processes} processes"
    if batch % parts:
        raise UserError(
            f"data.batch_size={batch} is the batch of all devices together, and {what} cannot share it out evenly: "
            f"give {_nearest(batch, parts)}"
        )
    ratio = getattr(config.strategy, "unlabelled_ratio", None)
    pool = max(1, round(ratio * batch)) if ratio is not None else 0
    if pool % parts:
        raise UserError(
            f"strategy.unlabelled_ratio={ratio} makes batches of {pool} unlabelled images, and {what} cannot share "
            f"them out evenly: give a ratio that makes {_nearest(pool, parts)} of data.batch_size={batch}"
        )


def _nearest(size: int, parts: int) -> str:
    """Return the sizes next to one that can be cut into parts."""
    below, above = size // parts * parts, -(-size // parts) * parts
    return f"{below} or {above}" if below else str(above)


@contextmanager
def propagate_failure(group: ProcessGroup) -> Iterator[None]:
    """Let the processes of a run end as one: what one of them ends with, the others end with.

    Raises:
        Stopped: a process was told to stop.
        UserError: a process met what the user got wrong, or failed; the first process says it.
    """
    try:
        yield
    except Exception as error:
        first = error if isinstance(error, Ended) else group.end(*_told(error))
        if first.rank == group.world.rank:
            if group.size > 1 and any(words in str(error) for words in GONE):
                raise Abandoned(
                    "a process of the run has ended without a word, as one that is killed does; the same command goes "
                    "on from the last checkpoint"
                ) from None
            raise
        raise _of_another(first) from None


def _told(error: Exception) -> tuple[int, str]:
    """Return the exit code of a process that ends with an error, and what the first process is to say of it."""
    if isinstance(error, Stopped):
        return error.exit_code, ""
    return (USER_ERROR, str(error)) if isinstance(error, UserError) else (ERROR, "")


def _of_another(ended: Ended) -> Exception:
    """Return what a process raises because another has ended."""
    if ended.code > BY_SIGNAL:
        return Stopped(ended.code - BY_SIGNAL)
    if ended.told:
        return UserError(ended.told)
    return UserError(
        f"process {ended.rank} of the run has failed; what it said stands above or in its log, and the same command "
        "goes on from the last checkpoint"
    )
