"""A run's folder: the paths in it, and ``run.json``, the ledger of finished stages. Needs no torch."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage import __version__
from tutelage.errors import UserError, quote_error
from tutelage.process_group import ALONE, ProcessGroup
from tutelage.storage import write_json, write_text

if TYPE_CHECKING:  # at run time it is imported when it is needed
    from tutelage.config import Config

SCHEMA_VERSION = 4  # of config.yaml and run.json; version 1 had no number. Rises where keys or files change
VERSION_KEY = "schema_version"
RUNNING, FINISHED, FAILED = "running", "finished", "failed"
TRAIN, PSEUDO_LABEL = "train", "pseudo_label"  # kinds of stages in the ledger
RECORDED_PACKAGES = ("torch", "pytorch-lightning", "albumentations", "numpy", "opencv-python-headless")


@dataclass(frozen=True)
class RunFolder:
    """The paths within a run's folder, or within the folder of one of its stages."""

    path: Path

    @property
    def record_file(self) -> Path:
        """The ledger."""
        return self.path / "run.json"

    @property
    def config_file(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """The table of metrics, a row an epoch."""
        return self.path / "metrics.csv"

    @property
    def loggers(self) -> Path:
        """The folder of what loggers keep on the disk, and of the record of what they were sent."""
        return self.path / "loggers"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints and final weights."""
        return self.path / "checkpoints"

    @property
    def test_file(self) -> Path:
        """The predictions on the test set."""
        return self.path / "test.parquet"

    @property
    def report(self) -> Path:
        """The folder of the report page, and of pages on other test sets."""
        return self.path / "report"

    @property
    def lock_file(self) -> Path:
        """The lock; beside the folder, so that it can be taken before the folder exists."""
        return self.path.parent / ".locks" / f"{self.path.name}.lock"

    def weights_file(self, is_best: bool) -> Path:
        """The network that a stage ends with: the best on validation, or the final one without validation."""
        return self.checkpoints / ("best.ckpt" if is_best else "final.ckpt")

    def stage_folder(self, number: int, name: str, count: int) -> "RunFolder":
        """The folder of stage ``number`` (from 1) of ``count``; a single stage has the run's own folder."""
        return self if count == 1 else RunFolder(self.path / "stages" / f"{number}-{name}")


class Record:
    """The content of ``run.json``: read once, written whole at each change by rank 0."""

    def __init__(self, folder: RunFolder, group: ProcessGroup = ALONE) -> None:
        self._group = group
        self._file = folder.record_file
        self.content: dict[str, Any] = read_record(folder) or {}

    def begin(
        self,
        identity: dict[str, Any],
        command: str,
        code: dict[str, Any],
        threads: int,
        data: dict[str, Any],
        session: dict[str, Any],
    ) -> None:
        """Note that the run starts or goes on: by which command and code, with which data, in which session."""
        from importlib.metadata import version

        self.content = {
            VERSION_KEY: SCHEMA_VERSION,
            "status": RUNNING,
            "command": command,
            **code,
            "sessions": [*self.content.get("sessions", []), {"started": _now(), **code, **session}],
            "python": platform.python_version(),
            "packages": {name: version(name) for name in RECORDED_PACKAGES},
            "threads": threads,
            "processes": self._group.size,
            "started": self.content.get("started") or _now(),
            "finished": None,
            "identity": identity,
            "data": data,
            "was_tested": self.was_tested,
            "result": {},
            "stages": self.content.get("stages", []),
        }
        self._write()

    @property
    def threads(self) -> int | None:
        """The number of threads in earlier sessions of as many processes as now."""
        value = self.content.get("threads")
        return int(value) if value is not None and self.content.get("processes", 1) == self._group.size else None

    @property
    def was_tested(self) -> bool:
        """Whether the run was evaluated on the test set in an earlier session."""
        return is_tested(self.content) or bool(self.content.get("was_tested"))

    def stage_entry(self, name: str) -> dict[str, Any] | None:
        """Return the entry of a finished stage; None where the stage is not finished."""
        return next((entry for entry in self.content["stages"] if entry["name"] == name), None)

    def finished_entry(self, name: str) -> dict[str, Any]:
        """Return the entry of a stage that is finished.

        Raises:
            KeyError: it is not.
        """
        entry = self.stage_entry(name)
        if entry is None:
            raise KeyError(name)
        return entry

    def drop_stage(self, name: str) -> None:
        """Remove the entry of a stage that is run again: until it is finished, a new start runs it."""
        self.content["stages"] = [entry for entry in self.content["stages"] if entry["name"] != name]
        self._write()

    def finish_stage(self, entry: dict[str, Any]) -> None:
        """Add the entry of a finished stage, in place of an older entry of that stage."""
        others = [other for other in self.content["stages"] if other["name"] != entry["name"]]
        self.content["stages"] = [*others, entry]
        self._write()

    def finish(
        self,
        result: dict[str, Any],
        order: Sequence[str],
        files: Mapping[str, Any],
        given_teachers: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Note that the run is finished.

        Args:
            result: the metrics of the run's last network.
            order: the names of the stages; entries of other stages are dropped, as they were not needed after all.
            files: size and digest of each file of the run (see ``integrity.list_files``).
            given_teachers: entries of teachers that the run was given, rather than trained.
        """
        entries = {entry["name"]: entry for entry in self.content["stages"]}
        self.content["stages"] = [entries[name] for name in order]
        self.content |= {"status": FINISHED, "finished": _now(), "result": result, "files": dict(files)}
        if given_teachers:
            self.content["given_teachers"] = list(given_teachers)
        self._write()

    def stop(self) -> None:
        """Note that a signal stopped the session, which has saved its state."""
        self.content["sessions"][-1]["stopped"] = _now()
        self._write()

    def fail(self, reason: str) -> None:
        """Note why the run ended early; the same command goes on from its last checkpoint."""
        self.content |= {"status": FAILED, "reason": reason}
        self._write()

    def _write(self) -> None:
        if self._group.is_rank0:
            write_json(self._file, self.content)


def read_record(folder: RunFolder) -> dict[str, Any] | None:
    """Return ``run.json``; None where there is none.

    Raises:
        UserError: it cannot be read, or has another schema version.
    """
    try:
        content = json.loads(folder.record_file.read_text())
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise UserError(f"{folder.path}: a part of this path is a file; choose another paths.outputs") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder.record_file} cannot be read ({error}); move the folder away, or start beside it with attempt=2"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{folder.record_file}: no record; move the folder away, or start beside it with attempt=2")
    _check_schema_version(content.get(VERSION_KEY, 1), folder)
    return content


def _check_schema_version(found: Any, folder: RunFolder) -> None:
    """Raise a UserError unless files of this schema version can be read."""
    if found == SCHEMA_VERSION:
        return
    older = isinstance(found, int) and found < SCHEMA_VERSION
    remedy = "train it anew by its command" if older else "update tutelage"
    raise UserError(
        f"{folder.path}: written in schema version {found}, and tutelage {__version__} reads version {SCHEMA_VERSION}: "
        f"{remedy}"
    )


def stage_folders(folder: RunFolder, record: Mapping[str, Any]) -> dict[str, RunFolder]:
    """Return the folder of each stage of a finished run, by the stage's name."""
    names = [entry["name"] for entry in record["stages"]]
    return {name: folder.stage_folder(number, name, len(names)) for number, name in enumerate(names, 1)}


def train_entries(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of the stages that trained a network, in their order; a record may have none yet."""
    return [entry for entry in record.get("stages", ()) if entry["kind"] == TRAIN]


def weights_files(folder: RunFolder, record: Mapping[str, Any]) -> dict[str, Path]:
    """Return the weights file of each network that a finished run trained, by the stage's name."""
    folders = stage_folders(folder, record)
    is_best = {
        entry["name"]: entry["validation_images"] > 0 and entry.get("select_best", True)
        for entry in train_entries(record)
    }
    return {name: folders[name].weights_file(best) for name, best in is_best.items()}


def main_stage_name(record: Mapping[str, Any]) -> str:
    """Return the name of the stage that trained the run's network: the last one that is no control nor rejected."""
    return next(
        str(entry["name"])
        for entry in reversed(train_entries(record))
        if not entry["control"] and not entry.get("rejected", False)
    )


def stage_results(record: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the results of the training stages that are finished, by name."""
    return {entry["name"]: entry["result"] for entry in train_entries(record)}


def read_config(folder: RunFolder, data_root: str | None = None) -> "Config":
    """Return the stored config of a run; its data may lie elsewhere now, at ``data_root``.

    Raises:
        UserError: it is missing, cannot be read, or has another schema version.
    """
    import yaml
    from pydantic import ValidationError

    from tutelage.config import Config

    try:
        content = yaml.safe_load(folder.config_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder.config_file}: missing; the run's command writes it again") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = quote_error(error)
        raise UserError(f"{folder.config_file}: cannot be read ({reason}); the run's command writes it again") from None
    values = content if isinstance(content, dict) else {}
    _check_schema_version(values.pop(VERSION_KEY, 1), folder)
    try:
        config = Config.model_validate(values)
        if data_root is None:
            return config
        return config.model_copy(update={"data": config.data.model_copy(update={"root": data_root})})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{folder.config_file}: {key}: {first['msg']}; the run's command writes it again") from None


def write_config(folder: RunFolder, resolved: dict[str, Any]) -> None:
    """Write the resolved config, as plain YAML: in OmegaConf's, a path with ``${`` in it would be a reference."""
    import yaml

    content = {VERSION_KEY: SCHEMA_VERSION, **resolved}
    write_text(folder.config_file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def is_tested(record: Mapping[str, Any]) -> bool:
    """Return whether a run was evaluated on the test set."""
    return any(key.startswith("test") for key in record.get("result", {}))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
