"""What the loggers of a run have got so far: ``loggers/sent.json`` in its folder. Needs no torch."""

import json
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

from tutelage.runs.folder import RunFolder
from tutelage.storage import write_json


class TrackingRecord:
    """The id of the tracked run, made once, and what was sent to each logger; written whole at each change."""

    def __init__(self, folder: RunFolder) -> None:
        self._file = folder.loggers / "sent.json"
        try:
            self._content: dict[str, Any] = json.loads(self._file.read_text())
        except (OSError, ValueError):
            self._content = {"id": uuid4().hex, "loggers": {}}

    @property
    def id(self) -> str:
        """The id that a server finds the tracked run by."""
        return str(self._content["id"])

    def begin(self, name: str) -> None:
        """Note that the logger ``name`` is going to show the run, before it hears of it."""
        self._entry(name)["complete"] = None
        self._write()

    def epoch(self, name: str, stage: str) -> int:
        """Return the last epoch of a stage that was sent to a logger; 0 where none was."""
        return int(self._entry(name)["epochs"].get(stage, 0))

    def note_epoch(self, name: str, stage: str, epoch: int) -> None:
        """Note the last epoch of a stage that a logger has."""
        if self.epoch(name, stage) != epoch:
            self._entry(name)["epochs"][stage] = epoch
            self._write()

    def void(self, stage: str) -> list[str]:
        """Note that the rows of a stage that loggers have are void; return the loggers that have some."""
        names = [name for name in self._content["loggers"] if self.epoch(name, stage)]
        for name in names:
            entry = self._entry(name)
            entry["epochs"][stage] = 0
            entry["void"] = sorted({*entry.get("void", ()), stage})
        if names:
            self._write()
        return names

    def has_void_rows(self, name: str, stage: str) -> bool:
        """Return whether a logger has rows of a stage that are void, beside those that ``epoch`` counts."""
        return stage in self._entry(name).get("void", ())

    def note_complete(self, name: str, finished: str) -> None:
        """Note that a logger has all of a run that finished at the time ``finished``."""
        self._entry(name)["complete"] = finished
        self._write()

    def incomplete(self, names: Iterable[str], record: Mapping[str, Any]) -> list[str]:
        """Return those of the named loggers that have begun to show a finished run and lack its end."""
        entries = self._content["loggers"]
        return [
            name
            for name in names
            if "complete" in entries.get(name, {}) and entries[name]["complete"] != record["finished"]
        ]

    def _entry(self, name: str) -> dict[str, Any]:
        entry: dict[str, Any] = self._content["loggers"].setdefault(name, {"epochs": {}})
        return entry

    def _write(self) -> None:
        write_json(self._file, self._content)
