"""Several processes of a run: their number, whether batches divide among them, and a failure that ends them all."""

from collections.abc import Iterator
from contextlib import contextmanager

from tutelage.config import Config, TrainerConfig
from tutelage.errors import BY_SIGNAL, USER_ERROR, UserError
from tutelage.process_group import ERROR, Ended, ProcessGroup
from tutelage.runs.cluster.signals import Stopped
from tutelage.world import World

PEER_GONE = ("Connection closed by peer", "Connection reset by peer")  # gloo's errors where another process has ended


class Abandoned(UserError):  # noqa: N818 - as Ended
    """Another process of the run has ended without announcing it, as a killed process does."""


def count_processes(trainer: TrainerConfig, world: World) -> int:
    """Return the number of processes of a run on all machines.

    Args:
        trainer: the trainer's config, which asks for devices and nodes.
        world: the processes that torchrun or srun started; a process alone may start them on this machine.

    Raises:
        UserError: another number was started, or several machines are asked for and nothing was started there.
    """
    if world.size == 1:
        if trainer.nodes > 1:
            raise UserError(
                f"trainer.nodes={trainer.nodes}: a command on one machine starts no processes on others; srun and "
                "torchrun do: 'srun tutelage train ...' in a batch job of a task for each device, see docs/clusters.md"
            )
        return _count_devices(trainer)
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


def _count_devices(trainer: TrainerConfig) -> int:
    """Return the number of devices on this machine; ``auto`` means all GPUs, or the CPU where there are none."""
    if trainer.devices != "auto":
        _check_gpus(trainer, trainer.devices)
        return trainer.devices
    import torch

    return max(1, torch.cuda.device_count())


def _check_gpus(trainer: TrainerConfig, needed: int) -> None:
    """Raise a UserError where the run needs more GPUs than this process sees, if it sees any."""
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
    """Raise a UserError unless each batch of a step divides evenly among processes and accumulated parts."""
    accumulate, batch = config.trainer.accumulate, config.data.batch_size
    parts = processes * accumulate
    dividers = f"{processes} processes in {accumulate} turns each" if accumulate > 1 else f"{processes} processes"
    if batch % parts:
        raise UserError(
            f"data.batch_size={batch} is the batch of all devices together, and {dividers} cannot share it out evenly: "
            f"give {_nearest_multiples(batch, parts)}"
        )
    ratio = getattr(config.strategy, "unlabelled_ratio", None)
    pool = max(1, round(ratio * batch)) if ratio is not None else 0
    if pool % parts:
        raise UserError(
            f"strategy.unlabelled_ratio={ratio} makes batches of {pool} unlabelled images, and {dividers} cannot share "
            f"them out evenly: give a ratio that makes {_nearest_multiples(pool, parts)} of data.batch_size={batch}"
        )


def _nearest_multiples(size: int, parts: int) -> str:
    """Return the multiples of ``parts`` next to a size."""
    below, above = size // parts * parts, -(-size // parts) * parts
    return f"{below} or {above}" if below else str(above)


@contextmanager
def propagate_failure(group: ProcessGroup) -> Iterator[None]:
    """End all processes of a run where one of them ends within the block.

    Raises:
        Stopped: a process was told to stop.
        UserError: a process met a mistake of the user's, or failed; rank 0 prints it.
    """
    try:
        yield
    except Exception as error:
        first = error if isinstance(error, Ended) else group.announce_end(*_exit_code_and_message(error))
        if first.rank == group.world.rank:
            if group.size > 1 and any(words in str(error) for words in PEER_GONE):
                raise Abandoned(
                    "a process of the run has ended without a word, as one that is killed does; the same command goes "
                    "on from the last checkpoint"
                ) from None
            raise
        raise _error_of_other_process(first) from None


def _exit_code_and_message(error: Exception) -> tuple[int, str]:
    """Return the exit code of a process that ends with an error, and the line for rank 0 to print."""
    if isinstance(error, Stopped):
        return error.exit_code, ""
    return (USER_ERROR, str(error)) if isinstance(error, UserError) else (ERROR, "")


def _error_of_other_process(ended: Ended) -> Exception:
    """Return the exception for this process to raise because another process has ended."""
    if ended.code > BY_SIGNAL:
        return Stopped(ended.code - BY_SIGNAL)
    if ended.message:
        return UserError(ended.message)
    return UserError(
        f"process {ended.rank} of the run has failed; its error stands above or in its log, and the same command goes "
        "on from the last checkpoint"
    )
