"""The live display of a run: stage, epoch, loss, accuracy and the time left for all of it. Needs no torch."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from tutelage.runs.observer import Observer, StageWork

REDRAW_SECONDS = 0.2
LINE_SECONDS = 15.0  # between two lines where there is no terminal to redraw on
MEASURED_SECONDS = 1.0  # before that the time left is a guess not worth showing


class Display(Observer):
    """A bar over the whole run on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[shown]}"),
            console=self._console,
            transient=True,
            refresh_per_second=1 / REDRAW_SECONDS,
        )
        self._status = self._console.status("loading PyTorch and the data")
        self._task = self._bar.add_task("starting", total=1.0, shown="")
        self._plan: Sequence[StageWork] = ()
        self._number = 0
        self._share = 0.0
        self._seconds = 0.0  # spent on the work that was done in this process
        self._worked = 0.0
        self._mark = time.monotonic()
        self._drawn = 0.0

    def loading(self) -> None:
        """Show that something is going on."""
        if self._console.is_terminal:
            self._status.start()

    def reading(self, what: str, share: float) -> None:
        """Name what is read, and how far it is."""
        line = f"{what}: {share:.0%}"
        if self._console.is_terminal:
            self._status.update(line)
            self._status.start()
        elif time.monotonic() - self._mark > LINE_SECONDS:
            self._mark = time.monotonic()
            self.say(line)

    def begin(self, plan: Sequence[StageWork]) -> None:
        """Show the bar."""
        self._status.stop()
        self._plan = plan
        if self._console.is_terminal:
            self._bar.start()

    def stage(self, number: int) -> None:
        """Name the stage."""
        self._number, self._share, self._mark, self._drawn = number, -1.0, time.monotonic(), 0.0
        self._draw({})

    def progress(self, share: float, shown: Mapping[str, Any]) -> None:
        """Draw, a few times a second at most; only then are values fetched from their device."""
        now = time.monotonic()
        every = REDRAW_SECONDS if self._console.is_terminal else LINE_SECONDS
        if not self._number:
            return
        if share < 1 and now - self._drawn < every:
            return
        if self._share >= 0:  # where a resumed stage begins shows with its first step
            self._worked += (share - self._share) * self._plan[self._number - 1].work
            self._seconds += now - self._mark
        self._share, self._mark, self._drawn = share, now, now
        self._draw(shown)

    def _draw(self, shown: Mapping[str, Any]) -> None:
        total = sum(stage.work for stage in self._plan)
        done = sum(stage.work for stage in self._plan[: self._number - 1])
        done += max(0.0, self._share) * self._plan[self._number - 1].work
        name = self._plan[self._number - 1].name
        parts = [
            f"{key} {_told(value)}" for key, value in shown.items() if key in {"epoch", "images", "loss", "accuracy"}
        ]
        if self._seconds > MEASURED_SECONDS and self._worked > 0:
            parts.append(f"{_duration((total - done) * self._seconds / self._worked)} left")
        description = f"stage {self._number} of {len(self._plan)}: {name}"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done / total, description=description, shown="  ".join(parts))
        elif shown:
            line = "  ".join([description, *parts, f"run {done / total:.0%} done"])
            self._console.print(line, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def end(self) -> None:
        """Take the bar away."""
        self._status.stop()
        if self._console.is_terminal:  # a bar that never was begins a new line when it is stopped
            self._bar.stop()


def display(wanted: bool) -> Observer:
    """Return the display, or one that only warns."""
    return Display() if wanted else Observer()


def _told(value: Any) -> str:
    return value if isinstance(value, str) else f"{float(value):.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
