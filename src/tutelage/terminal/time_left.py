"""The time that a run has left: what its work is expected to take, corrected by measurements. Needs no torch."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tutelage.runs.observer import Part

START_SECONDS = 0.2  # expected before a part's first progress (weights, worker processes), and at the run's end
MIN_MEASURED_SECONDS = 1.0  # of measured work, before there is an estimate
HALF_LIFE = 60.0  # seconds of measured work after which a measurement weighs half: a machine's speed changes
PRIOR_SECONDS = 0.2  # of measured work of a kind, which weigh as much as what other work says
TINY_SECONDS = 1e-9  # below it, nothing follows from a measurement


@dataclass
class _Measured:
    """Measured work of one kind: how long it took, and how long was expected; older work weighs less."""

    seconds: float = 0.0
    expected: float = 0.0

    def add(self, seconds: float, expected: float) -> None:
        weight = 0.5 ** (seconds / HALF_LIFE)
        self.seconds = weight * self.seconds + seconds
        self.expected = weight * self.expected + expected

    def slowness(self, prior: float) -> float:
        """Return how many times as long as expected the work takes, where ``prior`` is what other work says."""
        if self.expected < TINY_SECONDS:
            return prior
        evidence = max(self.seconds, self.expected * prior)  # both little and much time for much work say something
        weight = evidence / (evidence + PRIOR_SECONDS)
        own = max(self.seconds, TINY_SECONDS) / self.expected
        return float(own**weight * prior ** (1 - weight))


class TimeLeft:
    """Estimates the time that a run has left.

    Each part of a run has work of several kinds, each with the seconds that it is expected to take. What this process
    measures of one kind corrects the expectation of all work of that kind that is left. Work that it has not measured
    yet it takes to be as much slower, or faster, than expected as the most similar work that it has measured: work that
    is alike, of another network, or all work together.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_time = 0.0
        self._parts: Sequence[Part] = ()
        self._number = 0  # of the current part, from 1; 0 before the first
        self._done: dict[int, float] = {}  # fractions of the current part's work, by index; empty before any progress
        self._measured: dict[tuple[str, ...], _Measured] = {}  # by kind, and by each beginning of a kind
        self._starts: list[float] = []  # seconds before the first progress of each part so far

    def begin(self, parts: Sequence[Part]) -> None:
        """Plan all parts of the run, or plan them anew; what is measured stays."""
        self._parts, self._last_time = parts, self._clock()

    def part(self, number: int) -> None:
        """Note that part ``number`` (from 1) starts or goes on; the parts before it are finished."""
        self._number, self._done = number, {}

    def progress(self, fraction: float, work: int = 0) -> None:
        """Note that a fraction of some work of the current part is done, and measure the time since the last call."""
        now = self._clock()
        seconds, self._last_time = now - self._last_time, now
        if not self._done:
            self._starts.append(seconds)
        elif work in self._done:
            planned = self._parts[self._number - 1].work[work]
            expected = max(0.0, fraction - self._done[work]) * planned.seconds
            for length in range(len(planned.kind) + 1):
                self._measured.setdefault(planned.kind[:length], _Measured()).add(seconds, expected)
        self._done[work] = fraction

    @property
    def fraction_done(self) -> float:
        """The fraction of the run that is done, by what was expected of its parts."""
        finished = sum(part.seconds for part in self._parts[: max(0, self._number - 1)])
        if self._number:
            work = self._parts[self._number - 1].work
            finished += sum(self._done.get(index, 0.0) * each.seconds for index, each in enumerate(work))
        total = sum(part.seconds for part in self._parts)
        return finished / total if total else 0.0

    def estimate(self) -> float | None:
        """Return the seconds that are left; None while too little is measured."""
        everything = self._measured.get((), _Measured())
        if everything.seconds < MIN_MEASURED_SECONDS or everything.expected < TINY_SECONDS:
            return None
        later_starts = self._starts[1:]  # the first includes what is done once: large pictures, packs, CUDA
        start = statistics.median(later_starts) if later_starts else START_SECONDS
        left = start  # the run's end: its ledger and checksums
        for number, part in enumerate(self._parts[self._number - 1 :], self._number):
            done = self._done if number == self._number else {}
            for index, work in enumerate(part.work):
                left += (1 - done.get(index, 0.0)) * work.seconds * self._slowness(work.kind)
            if not done:
                left += start
        return left

    def _slowness(self, kind: tuple[str, ...]) -> float:
        """Return how many times as long as expected work of a kind takes."""
        measured = self._measured.get(kind, _Measured())
        return measured.slowness(self._slowness(kind[:-1])) if kind else measured.seconds / measured.expected


def format_duration(seconds: float) -> str:
    """Return a duration in hours, minutes and seconds."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
