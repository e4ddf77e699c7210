"""Runs on an MLflow server and in W&B's files: killed and resumed, a run is one tracked run with each row once."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.overrides import NOISY_STUDENT, QUIET
from helpers.runs import only_run, outcome, run
from helpers.traps import send_signal
from tutelage.config.allowed_folder import ALLOW_VARIABLE
from tutelage.runs.wandb_files import read_history
from tutelage.testing import kill_after

pytestmark = pytest.mark.slow

CALLBACKS = (
    "{_target_: helpers.lightning.Decay, rate: 1e-3},{_target_: pytorch_lightning.callbacks.LearningRateMonitor}"
)
FINAL = "stages/*-student-1/checkpoints/final.ckpt"
OVERRIDES = (*NOISY_STUDENT, "data.validation=outside:30", f"callbacks.extra=[{CALLBACKS}]")


def needs(*modules: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        assert os.environ.get("CI") != "true", f"not installed: {missing}"
        pytest.skip(f"needs {', '.join(missing)}")


class Server:
    """``mlflow server`` on an SQLite file."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = [
            "server",
            "--workers=1",
            f"--port={self.port}",
            f"--backend-store-uri=sqlite:///{self._folder}/m.db",
        ]
        arguments.append(f"--artifacts-destination={self._folder}/artifacts")
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments],
            env=environment,
            cwd=self._folder,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def stop(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # its workers, too
            self._process.wait()

    def kill(self) -> None:
        """Kill it from another process than the one that started it."""
        os.killpg(self._process.pid, signal.SIGKILL)

    def _answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
            return answer.status == 200
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    needs("mlflow", "flask_cors", "alembic")
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv(ALLOW_VARIABLE, "helpers")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # where a test forgets its server, nothing answers


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ALLOW_VARIABLE, "helpers")
        assert run(outputs, *OVERRIDES) == 0
    return outcome(outputs)


def kill_after_sent(stage: str, epoch: int) -> Callable[[], None]:
    """Return a trap: killed when a logger has a row and nothing else does, neither checkpoint nor our record."""

    def trap() -> None:
        from tutelage.runs import trackers

        for cls in (trackers.Tracker, trackers.MLflowTracker):
            send = cls.send

            def send_then_die(self, metrics, step, send=send):
                send(self, metrics, step)
                if metrics.get(f"{stage}/epoch") == epoch:
                    os.kill(os.getpid(), signal.SIGKILL)

            cls.send = send_then_die

    return trap


def kill_before_the_end() -> None:
    """A trap: killed when the run is finished and its logger does not know."""
    from tutelage.runs.tracking import RunTracking

    RunTracking.finish = lambda *rest: os.kill(os.getpid(), signal.SIGKILL)


def kill_before_it_is_closed() -> None:
    """A trap: killed when its logger was told everything, and has not been closed."""
    from tutelage.runs import trackers

    for cls in (trackers.MLflowTracker, trackers.WandbTracker):
        cls.end = lambda *rest: os.kill(os.getpid(), signal.SIGKILL)


def tracked_runs(server: Server, experiment: str):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(server.url)
    found = client.get_experiment_by_name(experiment)
    return client, client.search_runs([found.experiment_id]) if found else []


def rows_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what a logger should have: name to steps and values."""
    series: dict[str, list[tuple[int, float]]] = {}
    for file in folder.glob("stages/*/metrics.csv"):
        stage = file.parent.name.partition("-")[2]
        with file.open() as lines:
            for row in csv.DictReader(lines):
                step = int(row.pop("step"))
                for name, value in row.items():
                    if name != "seconds" and value:
                        series.setdefault(f"{stage}/{name}", []).append((step, float(value)))
    return series


def assert_server_has_all(server: Server, folder: Path, experiment: str) -> None:
    client, (tracked,) = tracked_runs(server, experiment)
    record = json.loads((folder / "run.json").read_text())
    assert (tracked.info.run_name, tracked.info.status) == (folder.name, "FINISHED")
    has = {name: client.get_metric_history(tracked.info.run_id, name) for name in tracked.data.metrics}
    curves = {name: [(point.step, point.value) for point in points] for name, points in has.items()}
    for name, expected in rows_of(folder).items():
        assert curves.pop(name) == expected, name
    result = {name.removeprefix("result/"): curves.pop(name) for name in list(curves) if name.startswith("result/")}
    assert result == {name: [(0, value)] for name, value in record["result"].items()}
    assert all("/test/" in name and len(points) == 1 for name, points in curves.items())
    assert tracked.data.params["data.labels_per_class"] == "3"
    assert tracked.data.params["strategy._target_"]
    assert not any(name.startswith("logger") for name in tracked.data.params)


def test_a_killed_run_is_one_run_on_an_mlflow_server(server, undisturbed, outputs, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    words = (*OVERRIDES, "logger=[tensorboard,mlflow]", "name=killed", "callbacks.report=true")
    traps = (
        kill_after_sent("teacher", 1),
        kill_after("teacher", 6),
        kill_after_sent("teacher", 2),
        kill_after("student-1", 5),
        kill_after_sent("student-1", 2),
        kill_after_sent("control", 2),
        kill_before_the_end,
        kill_before_it_is_closed,
    )
    for trap in traps:
        assert run(outputs, *words, before=trap) == -signal.SIGKILL
    assert run(outputs, *words) == 0
    assert outcome(outputs) == undisturbed
    assert_server_has_all(server, only_run(outputs), "killed")
    client, (tracked,) = tracked_runs(server, "killed")
    assert "report/index.html" in [file.path for file in client.list_artifacts(tracked.info.run_id, "report")]


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, "KILLED"), (None, "FAILED")])
def test_a_run_that_ends_early_says_so_to_mlflow_and_goes_on(server, outputs, monkeypatch, sent, status):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)

    def fail() -> None:
        from tutelage.runs import runner

        def broken(*rest):
            raise OSError("the disk is full")

        runner.label_pool = broken

    words = (*OVERRIDES, "logger=mlflow", f"name={status}")
    assert run(outputs, *words, before=send_signal(sent, 3) if sent else fail) != 0
    assert [tracked.info.status for tracked in tracked_runs(server, status)[1]] == [status]
    assert run(outputs, *words) == 0
    assert_server_has_all(server, only_run(outputs), status)


def test_a_server_that_goes_away_stops_nothing_and_gets_the_rest_later(
    server, undisturbed, outputs, tmp_path, monkeypatch, capfd
):
    (tmp_path / "server").mkdir()
    own = Server(tmp_path / "server")
    own.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own.url)
    words = (*OVERRIDES, "logger=mlflow", "name=away")

    def kill_server() -> None:
        from tutelage.runs.callbacks import EpochTable

        hook = EpochTable.on_train_batch_end

        def kill(self, trainer, *rest):
            if trainer.global_step == 5 and own is not None:
                with suppress(ProcessLookupError):
                    own.kill()
            hook(self, trainer, *rest)

        EpochTable.on_train_batch_end = kill

    assert run(outputs, *words, before=kill_server) == 0
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: logger.mlflow")]
    assert len(warnings) == 2  # in training, and where the finished run is shown
    assert own.url in warnings[0]
    assert outcome(outputs) == undisturbed
    own.stop()
    own.start()
    try:
        assert run(outputs, *words) == 0
        assert_server_has_all(own, only_run(outputs), "away")
    finally:
        own.stop()


def test_a_server_that_does_not_answer_is_one_line_before_training(outputs, capfd):
    needs("mlflow")
    assert run(outputs, *OVERRIDES, "logger=mlflow") != 0
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("tutelage.errors.UserError")]
    assert "logger.mlflow: tracking_uri=http://127.0.0.1:9 cannot be used" in line
    assert line.endswith("logger=csv trains without it")
    assert not list(outputs.glob("*/*/run.json"))


def test_the_jobs_of_a_sweep_are_runs_of_their_own_in_a_file_of_mlflow(outputs, monkeypatch):
    needs("mlflow", "alembic")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    from helpers.forks import call_in_fork
    from tutelage.app.job import run_job
    from tutelage.config.compose import compose

    def work() -> int:
        words = (*QUIET, *OVERRIDES, f"paths.outputs={outputs}", "logger=mlflow", "schedule.steps=2", "name=sweep")
        return max(run_job(compose([*words, f"seed={seed}"])) for seed in (0, 1))

    assert call_in_fork(work) == 0
    script = (
        "import sys; from mlflow.tracking import MlflowClient; c = MlflowClient(sys.argv[1]);"
        "e = c.get_experiment_by_name('sweep'); r = c.search_runs([e.experiment_id]);"
        "print(sorted((x.data.params['seed'], x.info.status) for x in r))"
    )
    uri = f"sqlite:///{outputs}/mlflow.db"
    answer = subprocess.run([sys.executable, "-c", script, uri], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[('0', 'FINISHED'), ('1', 'FINISHED')]"
    assert sorted(file.name for file in outputs.iterdir()) == ["mlflow.db", "sweep"]


@pytest.mark.parametrize(("validation", "times"), [("outside:30", 2), ("none", 1)])
def test_a_damaged_stage_that_starts_anew_is_sent_again_and_one_that_has_its_checkpoint_is_not(
    outputs, capfd, validation, times
):
    journal = "+logger.journal._target_=helpers.lightning.JournalLogger"
    words = (*OVERRIDES, f"data.validation={validation}", journal)
    assert run(outputs, *words) == 0
    folder = only_run(outputs)
    (weights,) = (*folder.glob("stages/*-student-1/checkpoints/best.ckpt"), *folder.glob(FINAL))[:1]
    weights.write_bytes(weights.read_bytes()[:-100])
    assert run(outputs, *words) == 0
    assert ("logger.journal: the rows of stage student-1 are sent again" in capfd.readouterr().err) == (times == 2)
    lines = [json.loads(line) for line in (folder / "loggers" / "journal.jsonl").read_text().splitlines()]
    sent = [values for step, values in lines if isinstance(step, int)]
    for stage, count in (("teacher", 1), ("student-1", times)):
        epochs = [values[f"{stage}/epoch"] for values in sent if f"{stage}/epoch" in values]
        assert epochs == count * sorted(set(epochs))


def test_a_killed_run_has_one_id_in_the_files_of_wandb(undisturbed, outputs, monkeypatch):
    needs("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = (*OVERRIDES, "logger=wandb", "name=offline")
    for trap in (kill_after("teacher", 6), kill_after("student-1", 5), kill_before_it_is_closed):
        assert run(outputs, *words, before=trap) == -signal.SIGKILL
    assert run(outputs, *words) == 0
    assert outcome(outputs) == undisturbed
    folder = only_run(outputs)
    files = sorted((folder / "loggers" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 4
    assert len({file.name for file in files}) == 1
    assert wandb_rows(files) == sorted(
        (step, stage_epoch, value)
        for stage_epoch, points in rows_of(folder).items()
        if stage_epoch.endswith("/epoch")
        for step, value in points
    )


def wandb_rows(files: list[Path]) -> list[tuple[int, str, float]]:
    """Return step, name and value of each epoch in W&B's files."""
    rows = [row for file in files for row in read_history(file)]
    return sorted((row["trainer/global_step"], key, row[key]) for row in rows for key in row if key.endswith("/epoch"))
