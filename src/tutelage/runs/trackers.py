"""What Lightning's interface of a logger leaves open: which run of a server goes on, what the server has, its end."""

import inspect
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from tutelage.config.targets import build, resolve
from tutelage.errors import UserError
from tutelage.runs.folder import RunFolder
from tutelage.runs.wandb_files import read_history

LIGHTNING_LOGGERS = ("pytorch_lightning.loggers",)  # allowed without --allow
ID_TAG = "tutelage.id"
# Status of a tracked run, by how it ended: as MLflow names it, and as W&B tells it from the exit code.
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
EXIT_CODES = {FINISHED: 0, FAILED: 1, KILLED: 143}
# What the libraries would do otherwise: try again for minutes, print beside the display, send usage statistics.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
}
PER_STAGE_ARGUMENTS = ("save_dir", "name", "version", "purge_step")  # of TensorBoard's logger, that we give it


class Tracker:
    """Any logger of Lightning's: it gets the rows of all stages, under the stages' names.

    What it has got is known from ``sent.json`` alone, which is written after it has taken a row: a process that is
    killed between the two sends that row again.

    Attributes:
        logger: Lightning's logger; None before the start and after the end.
        per_stage: it has files in each stage's folder, behind the checkpoint purged when a stage goes on; no end.
        takes_report: whether ``finish`` stores the report's pages.
        known_epoch: the last epoch of the present stage that the logger has; None where that must be asked.
        retry_at: no row is sent before that time, after an error.
    """

    per_stage = False
    takes_report = False
    extra = ""  # of tutelage, that installs what the logger needs

    def __init__(self, name: str, config: Mapping[str, Any], folder: RunFolder) -> None:
        self.name = name
        self._config = dict(config)
        self._folder = folder
        self.logger: Any = None
        self.known_epoch: int | None = None
        self.retry_at = 0.0

    @property
    def address(self) -> str:
        """Where the logger writes to, for messages."""
        return str(self._config["_target_"]).rpartition(".")[2]

    def check(self) -> None:
        """Build the logger and see whether it can be reached."""
        self._build()

    def start(self, run_id: str, config: Mapping[str, Any]) -> None:
        """Begin a tracked run, or go on with the one of that id, and store the config."""
        logger = self._build()
        logger.log_hyperparams(dict(config))
        self.logger = logger

    def begin_stage(self, folder: RunFolder, step: int) -> None:
        """Note that rows of another stage follow, which goes on behind ``step``."""

    def ask_epoch(self, prefix: str, recorded: int) -> int:
        """Return the last epoch that the logger has of the stage of a prefix; ``recorded`` is what we have noted."""
        return recorded

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        """Send values, and return when the logger has them."""
        self.logger.log_metrics(dict(metrics), step)
        self.logger.save()

    def finish(self, result: Mapping[str, float], report: Path | None) -> None:
        """Store a finished run's result and, where there is one, the folder of its report."""
        self.logger.log_metrics(dict(result))
        self.logger.save()

    def end(self, status: str) -> None:
        """End the session of this process."""
        if self.logger is not None:
            self.logger.finalize("success" if status == FINISHED else "failed")

    def _build(self, **defaults: Any) -> Logger:
        """Return the logger, built from its config and, where that lacks them, the defaults."""
        key = f"logger.{self.name}"
        cls = resolve(str(self._config["_target_"]), Logger, key, LIGHTNING_LOGGERS)
        if "save_dir" in inspect.signature(cls).parameters:
            defaults = {"save_dir": str(self._folder.loggers), **defaults}
        logger: Logger = build({**defaults, **self._config}, Logger, key, LIGHTNING_LOGGERS)
        return logger


class TensorBoardTracker(Tracker):
    """TensorBoard's files, in the folder of each stage."""

    per_stage = True

    def start(self, run_id: str, config: Mapping[str, Any]) -> None:
        """Do nothing: each stage has a logger of its own, and the config stands in the run's folder."""

    def begin_stage(self, folder: RunFolder, step: int) -> None:
        """Close the logger of the stage before, and build the next."""
        self.end(FINISHED)
        self.logger = self._build(
            save_dir=str(folder.path / "tensorboard"), name="", version="", purge_step=step + 1 if step else 0
        )

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        """Write values to the disk."""
        self.logger.log_metrics(dict(metrics), step)
        self.logger.experiment.flush()

    def end(self, status: str) -> None:
        """Close the files; the logger's own ``finalize`` would write hyperparameters beside them."""
        if self.logger is not None:
            self.logger.experiment.close()


class MLflowTracker(Tracker):
    """A run of MLflow, found by a tag. It has the rows that the server says it has, each written in one call."""

    takes_report = True
    extra = "mlflow"

    @property
    def address(self) -> str:
        """The server."""
        return without_userinfo(f"tracking_uri={self._config.get('tracking_uri')}")

    def check(self) -> None:
        """See whether the server answers."""
        self._make_folder()
        logger: Any = self._build()
        logger._mlflow_client.search_experiments(max_results=1)

    def start(self, run_id: str, config: Mapping[str, Any]) -> None:
        """Begin a run, or go on with the one of the tag; store what it lacks of the config."""
        self._make_folder()
        logger: Any = self._build()
        client, experiment = logger._mlflow_client, logger._experiment_name
        found = client.search_runs([self._experiment_id(client, experiment)], f"tags.`{ID_TAG}` = '{run_id}'")
        tags = {**(self._config.get("tags") or {}), ID_TAG: run_id, "tutelage.folder": str(self._folder.path.resolve())}
        name = {"run_name": self._folder.path.name}
        logger = self._build(run_id=found[0].info.run_id) if found else self._build(**name, tags=tags)
        client.update_run(logger.run_id, status="RUNNING")
        has = client.get_run(logger.run_id).data.params
        logger.log_hyperparams({name: value for name, value in _flatten(config) if name not in has})
        self.logger = logger

    def ask_epoch(self, prefix: str, recorded: int) -> int:
        """Ask the server."""
        history = self._client.get_metric_history(self._run_id, f"{prefix}epoch")
        return max((int(metric.value) for metric in history), default=0)

    def finish(self, result: Mapping[str, float], report: Path | None) -> None:
        """Store the result and the report's pages, as far as the server lacks them."""
        has = self._client.get_run(self._run_id).data.metrics
        self.logger.log_metrics({name: value for name, value in result.items() if has.get(name) != value})
        if report is not None:
            self._client.log_artifacts(self._run_id, str(report), "report")

    def end(self, status: str) -> None:
        """Set the run's status."""
        if self.logger is not None:
            self._client.set_terminated(self._run_id, status)

    @property
    def _client(self) -> Any:
        return self.logger.experiment

    @property
    def _run_id(self) -> str:
        return str(self.logger.version)

    def _experiment_id(self, client: Any, name: str) -> str:
        """Return the id of the experiment, which is made where there is none; another job may be making it, too."""
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(client.create_experiment(name, self._artifact_location()))
            except MlflowException:
                if (found := client.get_experiment_by_name(name)) is None:
                    raise
        return str(found.experiment_id)

    def _artifact_location(self) -> str | None:
        """Return where artifacts go: beside an SQLite file; a server knows it by itself."""
        location, file = self._config.get("artifact_location"), self._sqlite_file()
        if location is not None or file is None:
            return location
        return (file.parent / "mlflow-artifacts").resolve().as_uri()

    def _sqlite_file(self) -> Path | None:
        scheme, _, path = str(self._config.get("tracking_uri")).partition(":///")
        return Path(path) if scheme == "sqlite" else None

    def _make_folder(self) -> None:
        if (file := self._sqlite_file()) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            for library in ("alembic", "mlflow.store.db.utils"):  # they list their migrations of a new file
                logging.getLogger(library).setLevel(logging.WARNING)


class WandbTracker(Tracker):
    """A run of Weights & Biases with an id of ours. Online the server says which rows it has, offline the files do."""

    takes_report = True
    extra = "wandb"

    @property
    def address(self) -> str:
        """The project."""
        return f"project={self._config.get('project')}"

    def start(self, run_id: str, config: Mapping[str, Any]) -> None:
        """Begin the run of that id, or go on with it, and store the config."""
        self._folder.loggers.mkdir(parents=True, exist_ok=True)
        logger: Any = self._build(id=run_id, name=self._folder.path.name)
        logger._wandb_init.pop("anonymous", None)  # Lightning's default, which W&B warns of
        logger.log_hyperparams(dict(config))
        self.logger = logger
        self._has = self._read_files() if self._run.offline else self._run.summary
        self._sent: dict[str, float] = {}

    def ask_epoch(self, prefix: str, recorded: int) -> int:
        """Return the last epoch that the server or the files had at the start, or that was sent since."""
        return max(int(source.get(f"{prefix}epoch") or 0) for source in (self._has, self._sent))

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        """Log values; W&B passes them on from a process of its own."""
        super().send(metrics, step)
        self._sent |= metrics

    def finish(self, result: Mapping[str, float], report: Path | None) -> None:
        """Store the result in the summary, and the report's pages as an artifact."""
        self._run.summary.update(dict(result))
        if report is not None:
            from wandb import Artifact

            pages = Artifact(f"report-{self._run.id}", type="report")
            pages.add_dir(str(report))
            self._run.log_artifact(pages)

    def end(self, status: str) -> None:
        """Close the run in this process, so that the next job begins one of its own."""
        if self.logger is not None:
            self._run.finish(exit_code=EXIT_CODES[status])
            self.logger = None

    def _read_files(self) -> dict[str, Any]:
        """Return the last value of each name in the files of the run's sessions."""
        has: dict[str, Any] = {}
        for file in sorted(Path(self._run.dir).parents[1].glob(f"*/run-{self._run.id}.wandb")):
            for row in read_history(file):
                has |= row
        return has

    @property
    def _run(self) -> Any:
        return self.logger.experiment


def make_tracker(name: str, config: Mapping[str, Any], folder: RunFolder) -> Tracker:
    """Return the tracker of an entry of ``logger``; nothing is built or reached yet.

    Raises:
        UserError: its class is not allowed, or is no logger of Lightning's, or does not go with a run.
    """
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    key = f"logger.{name}"
    cls = resolve(str(config["_target_"]), Logger, key, LIGHTNING_LOGGERS)
    if issubclass(cls, CSVLogger):  # it begins its table anew when a run goes on
        raise UserError(f"{key}: {cls.__name__} is not for a run: metrics.csv is always written; logger=csv")
    if issubclass(cls, TensorBoardLogger) and (given := [each for each in PER_STAGE_ARGUMENTS if each in config]):
        raise UserError(f"{key}.{given[0]}={config[given[0]]}: leave it out: each stage has files in its own folder")
    kinds = {TensorBoardLogger: TensorBoardTracker, MLFlowLogger: MLflowTracker, WandbLogger: WandbTracker}
    kind: type[Tracker] = next((kind for base, kind in kinds.items() if issubclass(cls, base)), Tracker)
    return kind(name, config, folder)


def without_userinfo(text: str) -> str:
    """Return a text without the user names and passwords of the URLs in it."""
    return re.sub(r"://[^/?#\s]*@", "://", text)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings by their dotted keys, as an override on the command line names them."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
