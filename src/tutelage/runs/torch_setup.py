"""Settings of torch and Lightning for a run: threads, deterministic kernels, and which warnings are shown."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

LIGHTNING_LOGGERS = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")
HIDDEN_WARNINGS = (
    ".*does not have many workers.*",
    ".*resuming from a checkpoint that ended.*",
    ".*logging interval.*",
    ".*GPU available but not used.*",
    ".*does not have a deterministic implementation.*",
    ".*in eval mode at the start of training.*",  # frozen parts, and teachers
    ".*srun.* command is available.*",
    ".*isinstance.*LeafSpec.*",
    ".*Grad strides do not match bucket view strides.*",  # of a convolution with one input channel: only slower
)


def available_threads(local_size: int) -> int:
    """Return the number of cores for each of ``local_size`` processes on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // local_size)


def set_up_torch(threads: int) -> None:
    """Set what decides the bits of a result: the number of threads, and deterministic kernels.

    Call it before anything is computed on a GPU: cuBLAS reads its setting when it starts.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


@contextmanager
def lightning_silenced() -> Iterator[None]:
    """Hide Lightning's messages about itself while the block runs; a run has its own display."""
    loggers = [logging.getLogger(name) for name in LIGHTNING_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for pattern in HIDDEN_WARNINGS:
            warnings.filterwarnings("ignore", pattern)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
