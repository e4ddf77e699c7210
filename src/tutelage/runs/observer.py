"""The observer of a run: the interface through which a run reports progress. Needs no torch."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PartCost:
    """One part of a run's work and its estimated cost, in units that only compare with each other."""

    name: str
    cost: float


class Observer:
    """Prints messages and shows nothing else; a display overrides what it draws."""

    def loading(self) -> None:
        """Note that libraries and data are being loaded, which takes seconds."""

    def reading(self, what: str, fraction: float) -> None:
        """Note that ``fraction`` of a long read is done: files are checked, or a dataset is downloaded."""

    def begin(self, parts: Sequence[PartCost]) -> None:
        """Note that the run starts or goes on; ``parts`` lists all parts of its work in order."""

    def part(self, number: int) -> None:
        """Note that part ``number`` (from 1) starts or goes on; the parts before it are finished."""

    def progress(self, fraction: float, values: Mapping[str, Any]) -> None:
        """Note that ``fraction`` of the part is done; ``values`` are to be shown (tensors are read only when drawn)."""

    def say(self, line: str) -> None:
        """Print a message to the user."""
        print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Note that the run is over, finished or not."""


class SilentObserver(Observer):
    """Prints nothing: of several processes rank 0 prints for all."""

    def say(self, line: str) -> None:
        """Print nothing."""
