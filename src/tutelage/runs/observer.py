"""What a run tells while it is under way, to whoever shows it. Needs no torch."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StageWork:
    """What a stage will cost, in units that only compare with each other."""

    name: str
    work: float


class Observer:
    """Shows nothing but warnings; a display overrides what it draws."""

    def loading(self) -> None:
        """Libraries and data are loaded, which takes seconds."""

    def reading(self, what: str, share: float) -> None:
        """``share`` of a long read is done: files are checked, or a dataset fetched."""

    def begin(self, plan: Sequence[StageWork]) -> None:
        """The run starts or goes on; ``plan`` lists all its stages."""

    def stage(self, number: int) -> None:
        """Stage ``number`` (from 1) starts or goes on; those before it are finished."""

    def progress(self, share: float, shown: Mapping[str, Any]) -> None:
        """``share`` of the stage is done; ``shown`` holds what to show (tensors are read only when drawn)."""

    def say(self, line: str) -> None:
        """OnProgress the user something."""
        print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """The run is over, well or not."""


class SilentObserver(Observer):
    """Says nothing: the first process of a run speaks for all of them."""

    def say(self, line: str) -> None:
        """Leave it to the first process."""
