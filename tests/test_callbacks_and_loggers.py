"""Callbacks and loggers of Lightning's, named by ``_target_``."""

import json
from functools import partial

import pytest
import pytorch_lightning as pl
from pytorch_lightning import callbacks as lightning
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.loggers import TensorBoardLogger

from helpers.lightning import Decay
from helpers.overrides import QUIET
from helpers.runs import only_run, run, tables
from tutelage.config.allowed_folder import ALLOW_VARIABLE
from tutelage.config.compose import compose
from tutelage.errors import UserError
from tutelage.runs import read_config, run_identity
from tutelage.runs.checkpoints import Checkpoints, WholeCheckpointIO, newest_sound
from tutelage.runs.cluster.signals import Signals
from tutelage.runs.extra_callbacks import REFUSED, make_extra_callbacks
from tutelage.runs.folder import RunFolder
from tutelage.runs.trackers import MLflowTracker, Tracker
from tutelage.runs.tracking import RunTracking, complete_tracking
from tutelage.runs.tracking_record import TrackingRecord
from tutelage.sweeps.search import NOT_IN_NAME

SHORT = ("data.limit=60", "data.batch_size=8", "schedule.epochs=null", "schedule.steps=7", "data.validation=inside")
MONITOR = {"_target_": "pytorch_lightning.callbacks.LearningRateMonitor"}
DECAY = {"_target_": "helpers.lightning.Decay", "rate": 0.01}
JOURNAL = {"_target_": "helpers.lightning.JournalLogger"}


@pytest.fixture
def allowed(monkeypatch):
    monkeypatch.setenv(ALLOW_VARIABLE, "helpers")


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ((), ["tensorboard"]),
        (("logger=csv",), []),
        (("logger=mlflow",), ["mlflow"]),
        (("logger=[tensorboard,mlflow,wandb]",), ["tensorboard", "mlflow", "wandb"]),
        (("logger=[csv,wandb]", "logger.wandb.project=mine"), ["wandb"]),
    ],
)
def test_loggers_are_options_and_several_are_a_list(override, names):
    config = compose(override)
    assert list(config.logger) == names
    assert run_identity(config, "") == run_identity(compose([]), "")


def test_an_mlflow_server_is_the_one_of_the_environment_or_a_file_below_outputs(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    logger = compose(["logger=mlflow", "paths.outputs=/tmp/here", "name=study"]).logger["mlflow"]
    assert (logger["tracking_uri"], logger["experiment_name"]) == ("sqlite:////tmp/here/mlflow.db", "study")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert compose(["logger=mlflow"]).logger["mlflow"]["tracking_uri"] == "http://server:5000"


def test_a_logger_of_ones_own_is_a_file_in_a_config_folder(tmp_path):
    (tmp_path / "logger").mkdir()
    (tmp_path / "logger" / "mine.yaml").write_text("mine:\n  _target_: helpers.lightning.JournalLogger\n")
    config = compose(["logger=[tensorboard,mine]"], [str(tmp_path)])
    assert config.logger["mine"] == JOURNAL


@pytest.mark.parametrize("cls", REFUSED, ids=lambda cls: cls.__name__)
def test_a_callback_that_would_take_over_is_refused_by_the_key_to_set(cls):
    for target in (f"pytorch_lightning.callbacks.{cls.__name__}", _subclass(cls)):
        with pytest.raises(UserError, match=r"^callbacks.extra\[0\]: \w+ is not for a run: ") as refused:
            make_extra_callbacks([{"_target_": target}], [])
        assert REFUSED[cls] in str(refused.value)
        assert "\n" not in str(refused.value)


def _subclass(cls: type) -> str:
    """Return the path of a class of Lightning's that inherits from ``cls``; that of ``cls`` where there is none."""
    subclasses = [other for other in vars(lightning).values() if isinstance(other, type) and issubclass(other, cls)]
    return f"pytorch_lightning.callbacks.{subclasses[-1].__name__}"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"_target_": "helpers.lightning.Decay"}], "outside the allowed packages (albumentations, pytorch_lightning."),
        ([{"_target_": "pytorch_lightning.callbacks.callback.os.system"}], "does not exist"),
        ([{"_target_": "pytorch_lightning.callbacks.lr_monitor.torch.nn.Linear"}], "does not exist"),
        ([{"_target_": "pytorch_lightning.callbacks.lr_monitor.Optimizer"}], "is no Callback"),
        ([{"_target_": "pytorch_lightning.loggers.CSVLogger"}], "outside the allowed packages"),
        ([{"_target_": "pytorch_lightning.Callback"}], "outside the allowed packages"),
        ([MONITOR, {**MONITOR, "logging_interval": "hour"}], "callbacks.extra[1]: "),
        ([{**MONITOR, "intervall": "step"}], "unexpected keyword argument 'intervall'"),
    ],
)
def test_other_callbacks_are_refused_in_one_line(entries, message):
    with pytest.raises(UserError) as refused:
        make_extra_callbacks(entries, [])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([DECAY, DECAY], r"\[1\]: another callback keeps its state under the name 'Decay'"),
        ([{"_target_": "helpers.lightning.Unsavable"}], r"state_dict\(\) of Unsavable cannot be in a checkpoint"),
    ],
)
@pytest.mark.usefixtures("allowed")
def test_a_state_that_would_not_come_back_is_refused(entries, message):
    with pytest.raises(UserError, match=message):
        make_extra_callbacks(entries, [])


@pytest.mark.parametrize(
    ("beside", "what"),
    [(False, r"\[1\]: the state_dict\(\) of Losses"), (True, r": what an on_save_checkpoint\(\) adds")],
)
@pytest.mark.usefixtures("allowed")
def test_a_state_that_cannot_be_read_again_replaces_no_checkpoint(tmp_path, beside, what):
    extra = make_extra_callbacks([MONITOR, {"_target_": "helpers.lightning.Losses", "beside": beside}], [])
    checkpoints = Checkpoints(tmp_path, 5, 2, Signals(), extra=extra)
    trainer = pl.Trainer(
        **{"accelerator": "cpu", "max_steps": 4, "callbacks": [*extra, checkpoints], "plugins": [WholeCheckpointIO()]},
        **{f"enable_{name}": False for name in ("checkpointing", "progress_bar", "model_summary")},
        val_check_interval=1,
        check_val_every_n_epoch=None,
        logger=TensorBoardLogger(str(tmp_path)),
    )
    checkpoints._seconds = 0
    with pytest.raises(UserError, match=rf"^callbacks.extra{what} cannot be in a checkpoint, .*numpy") as refused:
        trainer.fit(BoringModel())
    assert "\n" not in str(refused.value)
    sound, damaged = newest_sound(tmp_path)
    assert (WholeCheckpointIO().load_checkpoint(sound)["global_step"], damaged) == (2, [])


@pytest.mark.usefixtures("allowed")
def test_allowed_callbacks_are_built_with_their_arguments():
    monitor, decay = make_extra_callbacks([MONITOR, DECAY], ["EpochTable"])
    assert isinstance(monitor, pl.callbacks.LearningRateMonitor)
    assert isinstance(decay, Decay)
    assert decay.rate == 0.01


def test_callbacks_decide_over_a_run_and_so_does_their_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, code in (("mine_a", "rate = 1"), ("mine_b", "rate = 2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)

    def identity(*entries):
        listed = ",".join("{" + ",".join(f"{key}: {value}" for key, value in entry.items()) + "}" for entry in entries)
        return run_identity(compose([f"callbacks.extra=[{listed}]"]), "")

    def digest_of(package):
        return identity({"_target_": f"{package}.Callback"})["callbacks"]["code"][package]

    assert identity() == run_identity(compose([]), "")
    assert identity(MONITOR)["callbacks"] == {"extra": [MONITOR]}
    assert identity(MONITOR) != identity({**MONITOR, "logging_interval": "step"})
    assert digest_of("mine_a").startswith("sha256 ")
    assert digest_of("mine_a") != digest_of("mine_b")


@pytest.mark.usefixtures("allowed")
def test_what_callbacks_log_is_in_the_table_and_reaches_the_loggers(outputs):
    extra = f"callbacks.extra=[{{_target_: {MONITOR['_target_']}}},{{_target_: {DECAY['_target_']}, rate: 0.01}}]"
    journal = f"+logger.journal._target_={JOURNAL['_target_']}"
    assert run(outputs, *SHORT, "schedule.steps=14", extra, journal) == 0
    folder = only_run(outputs)
    (rows,) = tables(folder).values()
    assert [float(row["logged/decay"]) for row in rows] == pytest.approx([0.01 * int(row["step"]) for row in rows])
    assert len({row["logged/lr-AdamW/pg1"] for row in rows}) == len(rows) > 1
    assert read_config(RunFolder(folder)).logger == {}
    lines = [json.loads(line) for line in (folder / "loggers" / "journal.jsonl").read_text().splitlines()]
    assert [step for step, _ in lines if isinstance(step, int)] == [int(row["step"]) for row in rows]
    assert lines[1][1] == {key: float(value) for key, value in rows[0].items() if key != "step"}
    result = json.loads((folder / "run.json").read_text())["result"]
    assert not any(name.startswith("logged") for name in result)
    assert lines[-2:] == [[None, {f"result/{name}": value for name, value in result.items()}], ["end", "success"]]


@pytest.mark.usefixtures("allowed")
def test_a_callback_that_ends_a_stage_early_is_an_error(outputs, capfd):
    assert run(outputs, *SHORT, "callbacks.extra=[{_target_: helpers.lightning.Ending}]") != 0
    assert "callbacks.extra: a callback has ended stage supervised at step 2 of 7; " in capfd.readouterr().err


class TestTracking:
    """A logger gets each row once, whatever happens in between."""

    ROWS = ({"epoch": 1, "step": 4, "train/loss": 2.5, "seconds": 1.0}, {"epoch": 2, "step": 7, "train/loss": 1.5})

    @pytest.fixture
    def folder(self, tmp_path, allowed):
        return RunFolder(tmp_path / "run")

    def open(self, folder, said=None):
        config = compose([*QUIET, f"+logger.journal._target_={JOURNAL['_target_']}"])
        tracking = RunTracking(config, folder, (said if said is not None else []).append, config.logger)
        tracking.check()
        tracking.start()
        return tracking

    def journal(self, folder):
        lines = (folder.loggers / "journal.jsonl").read_text().splitlines()
        return [(step, values) for step, values in map(json.loads, lines) if isinstance(step, int)]

    def test_stages_are_told_apart_and_a_single_one_needs_no_name(self, folder):
        tracking = self.open(folder)
        tracking.begin_stage("teacher", RunFolder(folder.path / "stages" / "1-teacher"), [], 0)
        tracking.send(self.ROWS)
        tracking.begin_stage("only", folder, [], 0)
        tracking.send(self.ROWS[:1])
        assert self.journal(folder) == [
            (4, {"teacher/epoch": 1, "teacher/train/loss": 2.5}),
            (7, {"teacher/epoch": 2, "teacher/train/loss": 1.5}),
            (4, {"epoch": 1, "train/loss": 2.5}),
        ]

    @pytest.mark.parametrize("kept", [0, 1, 2])
    def test_rows_that_come_again_after_a_resume_are_not_sent_again(self, folder, kept):
        tracking = self.open(folder)
        tracking.begin_stage("only", folder, [], 0)
        for end in (1, 2):
            tracking.send(self.ROWS[:end])
        resumed = self.open(folder)
        resumed.begin_stage("only", folder, self.ROWS[:kept], 4 * kept)
        resumed.send(self.ROWS)
        assert [step for step, _ in self.journal(folder)] == [4, 7]

    def test_rows_from_before_a_logger_was_chosen_are_sent(self, folder):
        self.open(folder).begin_stage("only", folder, self.ROWS, 7)
        assert [step for step, _ in self.journal(folder)] == [4, 7]

    def test_a_failure_is_told_once_and_made_good_later(self, folder, monkeypatch):
        said = []
        tracking = self.open(folder, said)
        tracking.begin_stage("only", folder, [], 0)
        (folder.loggers / "broken").touch()
        monkeypatch.setattr("tutelage.runs.tracking.SECONDS_BEFORE_RETRY", 0)
        for end in (1, 2):
            tracking.send(self.ROWS[:end])
        assert len(said) == 1
        assert said[0].startswith("warning: logger.journal (JournalLogger) has failed: no answer from the server; ")
        (folder.loggers / "broken").unlink()
        tracking.send(self.ROWS)
        assert [step for step, _ in self.journal(folder)] == [4, 7]

    def test_after_a_failure_training_does_not_wait_at_each_epoch(self, folder):
        tracking = self.open(folder)
        tracking.begin_stage("only", folder, [], 0)
        (folder.loggers / "broken").touch()
        tracking.send(self.ROWS[:1])
        (folder.loggers / "broken").unlink()
        tracking.send(self.ROWS)
        assert self.journal(folder) == []

    def test_a_finished_run_is_incomplete_until_a_logger_has_its_end(self, folder):
        folder.path.mkdir()
        stage = {"name": "only", "kind": "train", "steps": 7, "result": {}}
        record = {"finished": "now", "result": {"test/accuracy": 0.5}, "stages": [stage]}
        folder.metrics_file.write_text("epoch,step,train/loss,seconds\n1,4,2.5,1.0\n2,7,1.5,2.0\n")
        tracking = self.open(folder)
        names = ["journal", "tensorboard"]
        assert TrackingRecord(folder).incomplete(names, record) == ["journal"]
        (folder.loggers / "broken").touch()
        tracking.finish(record)
        assert TrackingRecord(folder).incomplete(names, record) == ["journal"]
        (folder.loggers / "broken").unlink()
        self.open(folder).finish(record)
        assert TrackingRecord(folder).incomplete(names, record) == []
        assert TrackingRecord(folder).incomplete(names, {**record, "finished": "later"}) == ["journal"]
        assert [step for step, _ in self.journal(folder)] == [4, 7]

    def test_a_logger_that_cannot_be_closed_lacks_the_end(self, folder, monkeypatch):
        folder.path.mkdir()
        record, said = {"finished": "now", "result": {"test/accuracy": 0.5}, "stages": []}, []
        tracking = self.open(folder, said)

        def fail(tracker, status):
            raise ConnectionError("buffered rows are lost")

        with monkeypatch.context() as patch:
            patch.setattr(Tracker, "end", fail)
            tracking.finish(record)
        assert len(said) == 1
        assert TrackingRecord(folder).incomplete(["journal"], record) == ["journal"]
        self.open(folder).finish(record)
        assert TrackingRecord(folder).incomplete(["journal"], record) == []

    def test_a_logger_that_does_not_start_stops_no_other_from_being_completed(self, folder):
        folder.path.mkdir()
        record, said = {"finished": "now", "result": {"test/accuracy": 0.5}, "stages": []}, []
        journals = [f"+logger.{name}._target_={JOURNAL['_target_']}" for name in ("away", "journal")]
        config = compose([*QUIET, "logger=csv", *journals, f"+logger.away.save_dir={folder.path}/away"])
        (folder.path / "away").touch()  # no folder can be made there
        for name in config.logger:
            TrackingRecord(folder).begin(name)
        complete_tracking(config, folder, record, said.append)
        assert [line.partition(" cannot be used")[0] for line in said] == ["warning: logger.away: JournalLogger"]
        assert TrackingRecord(folder).incomplete(config.logger, record) == ["away"]
        assert (folder.loggers / "journal.jsonl").read_text().endswith('["end", "success"]\n')

    def test_the_rows_of_a_finished_stage_that_starts_anew_are_all_sent(self, folder):
        said = []
        tracking = self.open(folder)
        tracking.begin_stage("only", folder, self.ROWS, 7)
        again = self.open(folder, said)
        again.void_stage("other")
        assert said == []
        again.void_stage("only")
        assert said == [
            "warning: logger.journal: the rows of stage only are sent again, and the earlier ones stay beside them"
        ]
        again.begin_stage("only", folder, [], 0)
        again.send(self.ROWS[:1])
        resumed = self.open(folder)
        resumed._trackers[0].ask_epoch = lambda prefix, recorded: 2  # what a server says, which has the earlier rows
        resumed.begin_stage("only", folder, self.ROWS, 7)
        assert [step for step, _ in self.journal(folder)] == [4, 7, 4, 7]

    def test_passwords_in_addresses_go_nowhere(self, folder, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host/path")
        config, said = compose([*QUIET, "logger=mlflow"]), []
        tracking = RunTracking(config, folder, said.append, config.logger)
        (tracker,) = tracking._trackers
        assert tracker.address == "tracking_uri=https://host/path"
        sent = []
        monkeypatch.setattr(MLflowTracker, "start", lambda self, run_id, config: sent.append(config))
        tracking.start()
        assert "secret" not in json.dumps(sent)
        assert sent[0]["seed"] == config.seed

        def fail(*rest, kind=ConnectionError):
            raise kind(f"{'x' * 170} https://me:secret@host/path: no answer")

        for kind in (ConnectionError, UserError, ImportError):
            monkeypatch.setattr(MLflowTracker, "start", partial(fail, kind=kind))
            with pytest.raises(UserError, match=r"https://host/path") as refused:
                tracking.start()
            assert "secret" not in str(refused.value)
        monkeypatch.setattr(MLflowTracker, "begin_stage", fail)
        tracking.begin_stage("only", folder, [], 0)
        assert "https://host/path: " in said[0]
        assert "secret" not in said[0]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{_target_: os.system}", "logger.mine: 'os.system' is outside the allowed packages"),
        (
            "{_target_: pytorch_lightning.callbacks.Timer}",
            "logger.mine: 'pytorch_lightning.callbacks.Timer' is outside",
        ),
        ("{_target_: pytorch_lightning.loggers.MLFlowLogger, fame: x}", "unexpected keyword argument 'fame'"),
        ("{_target_: pytorch_lightning.loggers.CSVLogger}", "not for a run: metrics.csv is always written; logger=csv"),
        *(
            (f"{{_target_: pytorch_lightning.loggers.TensorBoardLogger, {name}: x}}", f"logger.mine.{name}=x: leave it")
            for name in ("save_dir", "name", "version", "purge_step")
        ),
        ("{_target_: helpers.lightning.JournalLogger}", "--allow helpers"),
    ],
)
def test_a_logger_that_cannot_be_used_is_refused_in_one_line(tmp_path, entry, message):
    config, folder = compose([f"+logger.mine={entry}", "logger=csv"]), RunFolder(tmp_path / "run")
    with pytest.raises(UserError) as refused:
        RunTracking(config, folder, print, config.logger).check()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not folder.path.exists()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named_by_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setattr(f"pytorch_lightning.loggers.{name}._{name.upper()}_AVAILABLE", False)
    config = compose([f"logger={name}", f"paths.outputs={tmp_path}"])
    with pytest.raises(UserError, match=rf"^logger.{name}: a package is missing .*: pip install 'tutelage\[{name}\]'$"):
        RunTracking(config, RunFolder(tmp_path / "run"), print, config.logger).check()


def test_callbacks_of_ones_own_name_a_sweep_and_others_do_not():
    assert not NOT_IN_NAME.match("callbacks.extra=[]")
    assert NOT_IN_NAME.match("callbacks.report=false")
    assert NOT_IN_NAME.match("callbacks=quiet")
