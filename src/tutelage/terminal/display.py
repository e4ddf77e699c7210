"""The live display of a run: stage, epoch, loss, accuracy and the remaining time. Needs no torch.

It replaces Lightning's progress bars, which start anew with each fit: one bar here spans all stages of a run.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from tutelage.runs.observer import Observer, StageWork

REDRAW_SECONDS = 0.2
LINE_SECONDS = 15.0  # between two lines if stderr is no terminal
MIN_MEASURED_SECONDS = 1.0  # of measured work, before the remaining time is shown


VALUES = {"epoch", "images", "loss", "accuracy"}  # what a progress line can show


class Display(Observer):
    """A progress bar over the whole run on a terminal; elsewhere, a line of progress every 15 seconds."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[values]}"),
            console=self._console,
            transient=True,
            refresh_per_second=1 / REDRAW_SECONDS,
        )
        self._status = self._console.status("loading PyTorch and the data")
        self._task = self._bar.add_task("starting", total=1.0, values="")
        self._stages: Sequence[StageWork] = ()
        self._stage_number = 0  # from 1; 0 before the first stage
        self._stage_share = 0.0  # of the current stage that is done; negative before its first step
        self._measured_seconds = 0.0  # spent on the work that was done in this process
        self._measured_work = 0.0
        self._last_time = time.monotonic()
        self._last_draw = 0.0

    def loading(self) -> None:
        """Show that libraries and data are being loaded."""
        if self._console.is_terminal:
            self._status.start()

    def reading(self, what: str, share: float) -> None:
        """Show what is being read, and the share that is done."""
        line = f"{what}: {share:.0%}"
        if self._console.is_terminal:
            self._status.update(line)
            self._status.start()
        elif time.monotonic() - self._last_time > LINE_SECONDS:
            self._last_time = time.monotonic()
            self.say(line)

    def begin(self, plan: Sequence[StageWork]) -> None:
        """Show the bar; ``plan`` lists all stages of the run."""
        self._status.stop()
        self._stages = plan
        if self._console.is_terminal:
            self._bar.start()

    def stage(self, number: int) -> None:
        """Show that stage ``number`` (from 1) starts or goes on."""
        self._stage_number, self._stage_share = number, -1.0
        self._last_time, self._last_draw = time.monotonic(), 0.0
        self._draw({})

    def progress(self, share: float, shown: Mapping[str, Any]) -> None:
        """Draw the progress within the stage, at most a few times a second.

        Args:
            share: how much of the stage is done, from 0 to 1.
            shown: values to show by name; tensors among them are copied from their device only when drawn.
        """
        now = time.monotonic()
        min_seconds = REDRAW_SECONDS if self._console.is_terminal else LINE_SECONDS
        if not self._stage_number:
            return
        if share < 1 and now - self._last_draw < min_seconds:
            return
        if self._stage_share >= 0:  # the first step shows where a resumed stage begins; before it nothing is measured
            self._measured_work += (share - self._stage_share) * self._stages[self._stage_number - 1].work
            self._measured_seconds += now - self._last_time
        self._stage_share, self._last_time, self._last_draw = share, now, now
        self._draw(shown)

    def _draw(self, values: Mapping[str, Any]) -> None:
        stage = self._stages[self._stage_number - 1]
        total = sum(stage.work for stage in self._stages)
        finished = sum(stage.work for stage in self._stages[: self._stage_number - 1])
        finished += max(0.0, self._stage_share) * stage.work
        parts = [f"{name} {_format_value(value)}" for name, value in values.items() if name in VALUES]
        if self._measured_seconds > MIN_MEASURED_SECONDS and self._measured_work > 0:
            remaining = (total - finished) * self._measured_seconds / self._measured_work
            parts.append(f"{_format_duration(remaining)} left")
        description = f"stage {self._stage_number} of {len(self._stages)}: {stage.name}"
        if self._console.is_terminal:
            completed = finished / total
            self._bar.update(self._task, completed=completed, description=description, values="  ".join(parts))
        elif values:
            line = "  ".join([description, *parts, f"run {finished / total:.0%} done"])
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
    return value if isinstance(value, str) else f"{float(value):.3f}"


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
