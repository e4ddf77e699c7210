"""The loggers of a run, each brought up to date from the rows of ``metrics.csv``.

The tables are the one source: a logger gets the rows behind the last epoch that it has, and nothing else writes to it.
Rows come again when a run goes on behind an older checkpoint; they have the same values then, and what a logger has it
does not get again. So after a kill at any moment, and after a time in which a server did not answer, each row is there
once. What a logger has is asked of its server, or read from its files; where neither can be, ``loggers/sent.json`` says
what was sent. Only a finished stage that starts anew has other rows: they are all sent, beside the earlier ones.

Only rank 0 has loggers. An error in the middle of a run is told once and stops nothing: later rows, or the same command
again, bring what is missing.
"""

import csv
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from pytorch_lightning.loggers.logger import DummyLogger

from tutelage.config import Config
from tutelage.errors import UserError
from tutelage.runs.folder import RunFolder, stage_folders, train_entries
from tutelage.runs.trackers import FINISHED, Tracker, make_tracker, without_userinfo
from tutelage.runs.tracking_record import TrackingRecord

SECONDS_BEFORE_RETRY = 300.0  # an attempt may wait for a minute
NOT_SENT = ("step", "seconds")  # of a row: the first goes beside the values, the second differs after a resume


class RunTracking:
    """The loggers of a run in one of its processes."""

    def __init__(self, config: Config, folder: RunFolder, say: Callable[[str], None], names: Iterable[str]) -> None:
        """Make the trackers of the named loggers; nothing is reached yet.

        Raises:
            UserError: a logger's class is not allowed, or is none, or does not go with a run.
        """
        self._folder = folder
        self._say = say
        self._config = config.model_dump(mode="json", exclude={"logger"})  # which may hold a password
        self._trackers = [make_tracker(name, config.logger[name], folder) for name in names]
        self._record = TrackingRecord(folder)
        self._warned: set[str] = set()
        self._stage, self._prefix = "", ""

    @property
    def takes_report(self) -> bool:
        """Whether a logger stores the report's pages."""
        return any(tracker.takes_report for tracker in self._trackers)

    @property
    def experiment(self) -> Any:
        """What the first logger writes to, for callbacks; a stand-in that takes any call where there is no logger."""
        logger: Any = next((tracker.logger for tracker in self._trackers if tracker.logger is not None), DummyLogger())
        return logger.experiment

    def check(self) -> None:
        """Build each logger and see whether it can be reached, before anything is written.

        Raises:
            UserError: a package is missing, an argument is refused, or a server does not answer.
        """
        for tracker in self._trackers:
            _or_user_error(tracker, tracker.check)

    def start(self) -> None:
        """Begin a tracked run with each logger, or go on with it.

        Raises:
            UserError: a logger does not start.
        """
        for tracker in self._trackers:
            self._start(tracker)

    def start_possible(self) -> None:
        """Do as ``start`` does with each logger that starts; warn of the others, and leave them out."""
        started = []
        for tracker in self._trackers:
            try:
                self._start(tracker)
            except UserError as error:
                self._say(f"warning: {error}")
            else:
                started.append(tracker)
        self._trackers = started

    def void_stage(self, stage: str) -> None:
        """Send all rows of a stage again, which was finished and starts anew; say which loggers have earlier ones."""
        purged = [tracker.name for tracker in self._trackers if tracker.per_stage]
        for name in self._record.void(stage):
            if name not in purged:
                self._say(
                    f"warning: logger.{name}: the rows of stage {stage} are sent again, and the earlier ones stay "
                    "beside them"
                )

    def begin_stage(self, stage: str, folder: RunFolder, rows: Sequence[Mapping[str, float]], step: int) -> None:
        """Begin a stage, or go on with it, and send what a logger lacks of its checkpoint's rows.

        Args:
            stage: its name.
            folder: its folder; the run's own where there is no other stage.
            rows: those of its checkpoint.
            step: that of its checkpoint; 0 where there is none.
        """
        self._enter_stage(stage, folder)
        for tracker in self._trackers:
            if tracker.per_stage:  # what lies behind the checkpoint is purged
                kept = int(rows[-1]["epoch"]) if rows else 0
                self._record.note_epoch(tracker.name, stage, min(kept, self._record.epoch(tracker.name, stage)))
            self._attempt(tracker, partial(tracker.begin_stage, folder, step))
        self.send(rows)

    def send(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Send each logger the rows of the present stage that it lacks."""
        for tracker in self._trackers:
            if time.monotonic() >= tracker.retry_at:
                self._attempt(tracker, partial(self._send_missing, tracker, rows))

    def finish(self, record: Mapping[str, Any]) -> None:
        """Send what the loggers lack of a finished run: rows, its result, the report's pages; then close them.

        Args:
            record: ``run.json``.
        """
        for tracker in self._trackers:
            self._attempt(tracker, partial(self._finish, tracker, record))

    def end(self, status: str) -> None:
        """Close the loggers in this process; ``status`` says how the run ended (see ``trackers``)."""
        for tracker in self._trackers:
            self._attempt(tracker, partial(tracker.end, status))

    def _start(self, tracker: Tracker) -> None:
        if not tracker.per_stage:
            self._record.begin(tracker.name)
        _or_user_error(tracker, partial(tracker.start, self._record.id, self._config))

    def _enter_stage(self, stage: str, folder: RunFolder) -> None:
        self._stage, self._prefix = stage, "" if folder == self._folder else f"{stage}/"
        for tracker in self._trackers:
            tracker.known_epoch, tracker.retry_at = None, 0.0

    def _send_missing(self, tracker: Tracker, rows: Sequence[Mapping[str, float]]) -> None:
        prefix, recorded = "" if tracker.per_stage else self._prefix, self._record.epoch(tracker.name, self._stage)
        known = tracker.known_epoch
        if known is None:
            has_void = self._record.has_void_rows(tracker.name, self._stage)
            known = recorded if has_void else tracker.ask_epoch(prefix, recorded)
        for row in rows:
            if row["epoch"] > known:
                metrics = {f"{prefix}{name}": value for name, value in row.items() if name not in NOT_SENT}
                tracker.send(metrics, int(row["step"]))
        tracker.known_epoch = max(known, int(rows[-1]["epoch"]) if rows else 0)
        self._record.note_epoch(tracker.name, self._stage, tracker.known_epoch)

    def _finish(self, tracker: Tracker, record: Mapping[str, Any]) -> None:
        """Send what a logger lacks and close it; only then it counts as complete, as closing writes buffered rows."""
        if tracker.per_stage:
            tracker.end(FINISHED)
            return
        try:
            self._complete(tracker, record)
        finally:
            tracker.end(FINISHED)
        self._record.note_complete(tracker.name, record["finished"])

    def _complete(self, tracker: Tracker, record: Mapping[str, Any]) -> None:
        folders = stage_folders(self._folder, record)
        result: dict[str, float] = {}
        for entry in train_entries(record):
            self._enter_stage(entry["name"], folders[entry["name"]])
            self._send_missing(tracker, _read_rows(folders[entry["name"]]))
            if self._prefix:
                tests = {name: value for name, value in entry["result"].items() if name.startswith("test")}
                result |= {f"{self._prefix}{name}": value for name, value in tests.items()}
        result |= {f"result/{name}": value for name, value in record["result"].items()}
        has_report = (self._folder.report / "index.html").exists()
        tracker.finish(result, self._folder.report if has_report else None)

    def _attempt(self, tracker: Tracker, action: Callable[[], None]) -> None:
        """Do something with a logger; where that fails, say so once, and try the next time after a while."""
        try:
            action()
        except Exception as error:  # whatever happens to a logger, training goes on
            tracker.known_epoch, tracker.retry_at = None, time.monotonic() + SECONDS_BEFORE_RETRY
            if tracker.name not in self._warned:
                self._warned.add(tracker.name)
                self._say(
                    f"warning: logger.{tracker.name} ({tracker.address}) has failed: {_describe(error)}; the run goes "
                    "on, and what is missing is sent later, or by the same command"
                )


def complete_tracking(config: Config, folder: RunFolder, record: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Send what loggers still lack of a finished run: its end was killed, or a server did not answer.

    Args:
        config: the whole config.
        folder: the run's.
        record: ``run.json``.
        say: prints a line.
    """
    tracking = RunTracking(config, folder, say, TrackingRecord(folder).incomplete(config.logger, record))
    tracking.start_possible()
    tracking.finish(record)


def _read_rows(folder: RunFolder) -> list[dict[str, float]]:
    """Return a stage's table; it has none where it learned in one pass."""
    if not folder.metrics_file.exists():
        return []
    with folder.metrics_file.open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def _or_user_error(tracker: Tracker, action: Callable[[], None]) -> None:
    """Do what a logger needs at its start; turn whatever it raises into a UserError."""
    key = f"logger.{tracker.name}"
    try:
        action()
    except (UserError, ImportError) as error:
        missing = error if isinstance(error, ImportError) else error.__cause__  # raised while the logger was built
        if not isinstance(missing, ImportError):
            raise UserError(without_userinfo(str(error))) from None
        remedy = f": pip install 'tutelage[{tracker.extra}]'" if tracker.extra else ""
        raise UserError(f"{key}: a package is missing ({_describe(missing)}){remedy}") from None
    except Exception as error:  # each library has its own
        raise UserError(
            f"{key}: {tracker.address} cannot be used ({_describe(error)}); logger=csv trains without it"
        ) from None


def _describe(error: Exception) -> str:
    """Return the beginning of an error's message, on one line and without passwords."""
    return " ".join(without_userinfo(str(error)).split())[:200] or type(error).__name__
