"""The observer of a run: the interface through which a run reports progress. Needs no torch."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Work:
    """Some work, and how long it is expected to take.

    Attributes:
        kind: from the general to the special, such as training, and of which network. Work of the same kind is as fast
            in one part of a run as in another; work whose kind begins alike is probably nearly so.
        seconds: expected, on a machine whose speed need not be this one's.
    """

    kind: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Part:
    """One part of a run, and the kinds of work in it: for training, the steps and the validations."""

    name: str
    work: Sequence[Work]

    @property
    def seconds(self) -> float:
        """The seconds that all of its work is expected to take."""
        return sum(each.seconds for each in self.work)


class Observer:
    """Prints messages and shows nothing else; a display overrides what it draws."""

    def loading(self) -> None:
        """Note that libraries and data are being loaded, which takes seconds."""

    def reading(self, what: str, fraction: float) -> None:
        """Note that ``fraction`` of a long read is done: files are checked, or a dataset is downloaded."""

    def begin(self, parts: Sequence[Part]) -> None:
        """Note that the run starts or goes on; ``parts`` lists all parts of it in order."""

    def part(self, number: int) -> None:
        """Note that part ``number`` (from 1) starts or goes on; the parts before it are finished."""

    def progress(self, fraction: float, values: Mapping[str, Any], work: int = 0) -> None:
        """Note that a fraction of some work of the part is done.

        The first fraction that is reported of some work says where it begins, or where a resumed run goes on.

        Args:
            fraction: of the work that is done.
            values: are to be shown, by name; tensors are read only when drawn.
            work: the index of the work in the part's ``work``.
        """

    def say(self, line: str) -> None:
        """Print a message to the user."""
        print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Note that the run is over, finished or not."""


class SilentObserver(Observer):
    """Prints nothing: of several processes rank 0 prints for all."""

    def say(self, line: str) -> None:
        """Print nothing."""
