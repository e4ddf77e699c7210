"""The live display of a run: stage, epoch, loss, accuracy and the remaining time. Needs no torch.

It replaces Lightning's progress bars, which start anew with each fit: one bar here spans all stages of a run.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from tutelage.runs.observer import Observer, Part
from tutelage.terminal.time_left import TimeLeft, format_duration

REDRAW_SECONDS = 0.2
LINE_SECONDS = 15.0  # between two lines if stderr is no terminal
VALUES = {"epoch", "validated", "images", "loss", "accuracy"}  # what a progress line can show


class Display(Observer):
    """A progress bar over the whole run on a terminal; elsewhere, a line of progress every 15 seconds."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, markup=False, emoji=False)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[values]}", markup=False),
            console=self._console,
            transient=True,
            refresh_per_second=1 / REDRAW_SECONDS,
        )
        self._status = self._console.status("loading PyTorch and the data")
        self._task = self._bar.add_task("starting", total=1.0, values="")
        self._time_left = TimeLeft()
        self._parts: Sequence[Part] = ()
        self._part_number = 0  # from 1; 0 before the first part
        self._last_time = time.monotonic()
        self._last_draw = 0.0

    def loading(self) -> None:
        """Show that libraries and data are being loaded."""
        if self._console.is_terminal:
            self._status.start()

    def reading(self, what: str, fraction: float) -> None:
        """Show what is being read, and the fraction that is done."""
        line = f"{what}: {fraction:.0%}"
        if self._console.is_terminal:
            self._status.update(Text(line))  # rich would read [ ] in a plain string as markup
            self._status.start()
        elif time.monotonic() - self._last_time > LINE_SECONDS:
            self._last_time = time.monotonic()
            self.say(line)

    def begin(self, parts: Sequence[Part]) -> None:
        """Show the bar; ``parts`` lists all parts of the run."""
        self._status.stop()
        self._parts = parts
        self._time_left.begin(parts)
        if self._console.is_terminal:
            self._bar.start()

    def part(self, number: int) -> None:
        """Show that part ``number`` (from 1) starts or goes on."""
        self._part_number, self._last_draw = number, 0.0
        self._time_left.part(number)
        self._draw({})

    def progress(self, fraction: float, values: Mapping[str, Any], work: int = 0) -> None:
        """Draw the progress within the part, at most a few times a second.

        Args:
            fraction: of the work that is done.
            values: values to show by name; tensors among them are copied from their device only when drawn.
            work: the index of the work in the part's ``work``.
        """
        if not self._part_number:
            return
        self._time_left.progress(fraction, work)
        now = time.monotonic()
        min_seconds = REDRAW_SECONDS if self._console.is_terminal else LINE_SECONDS
        kind, *later = [each.kind[0] for each in self._parts[self._part_number - 1].work[work:]]
        is_end = fraction >= 1 and kind not in later  # one network of several is tested: that ends nothing
        if not is_end and now - self._last_draw < min_seconds:
            return
        self._last_draw = now
        self._draw(values)

    def _draw(self, values: Mapping[str, Any]) -> None:
        part, done = self._parts[self._part_number - 1], self._time_left.fraction_done
        texts = [f"{name} {_format_value(value)}" for name, value in values.items() if name in VALUES]
        if (seconds := self._time_left.estimate()) is not None:
            texts.append(f"{format_duration(seconds)} left")
        description = f"stage {self._part_number} of {len(self._parts)}: {part.name}"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, description=description, values="  ".join(texts))
        elif values:
            line = "  ".join([description, *texts, f"run {done:.0%} done"])
            self._console.print(line, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def end(self) -> None:
        """Remove the bar."""
        self._status.stop()
        if self._console.is_terminal:  # elsewhere the bar was never started, and stopping it would print an empty line
            self._bar.stop()


def create_display(wanted: bool) -> Observer:
    """Return a display, or, if none is wanted, an observer that prints only warnings."""
    return Display() if wanted else Observer()


def _format_value(value: Any) -> str:
    if isinstance(value, str):
        return value
    number = float(value)
    return "-" if math.isnan(number) else f"{number:.3f}"  # such as an accuracy over no images
