"""Sweeps and searches: their draws, the commands that they refuse, failed and killed jobs, and their reports."""

import json
import os
import re
import shlex
import signal
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from scipy import stats

from helpers import fork_server
from helpers.commands import command, fresh_command
from helpers.forks import call_in_fork
from helpers.images import write_images
from helpers.overrides import QUIET
from helpers.runs import make_entry, outcome, write_finished_run
from tutelage.config.compose import compose
from tutelage.errors import UserError
from tutelage.options import conf_dir
from tutelage.report import search_pictures, searches
from tutelage.report.jobs import Job, find_grid_values, read_finished_jobs
from tutelage.report.sweep_report import report_sweep
from tutelage.runs import RunFolder
from tutelage.storage import hold_lock
from tutelage.sweeps.folder import Outcome, SweepFolder
from tutelage.sweeps.overrides import add_default_sweeper, find_config_sweep, parse_space
from tutelage.sweeps.search import check_sweep_command
from tutelage.sweeps.space import build_grid, draw_trials

FEW = ("data.labels_per_class=10", "data.validation=outside:40", "debug=tiny")
GRID = ("sweep=randaugment_grid", "augmentation.num_ops=1,2", "augmentation.magnitude=9", "seed=0,1", *FEW)
OPTIMIZER = ("optimizer.lr=tag(log,interval(1e-4,1e-2))", "optimizer.weight_decay=0.01,0.1")


def sweep(outputs, *words, before=lambda: None):
    """Run a sweep, quietly, in a fork of this process, and return its exit code; ``before`` may patch modules there."""
    fork_server.preload()
    from tutelage.train import main

    def run_command():
        before()
        sys.argv = ["tutelage", *QUIET, f"paths.outputs={outputs}", *words]
        try:
            main()
        except SystemExit as exit_:
            return exit_.code
        return 0

    return call_in_fork(run_command)


def records(outputs):
    """Return the records of all runs, by their folders' names."""
    return {file.parent.name: json.loads(file.read_text()) for file in sorted(outputs.glob("*/*/run.json"))}


def sweep_folder(outputs):
    """Return the folder of the one sweep below ``outputs``."""
    (file,) = outputs.glob(".sweeps/*/sweep.json")
    return SweepFolder(file.parent)


def weights(outputs):
    """Return the hashes of the weights of each run's stages, by the names of the runs."""
    return {name: [stage["weights_sha256"] for stage in run["stages"]] for name, run in records(outputs).items()}


# Draws


def test_a_draw_follows_from_its_seed_its_number_and_its_key_alone():
    small_space = parse_space(["optimizer.lr=interval(0.1,0.9)"])
    space = parse_space(["model.width=1,2,3", "optimizer.lr=interval(0.1,0.9)", "seed=1"])
    ten = draw_trials(space, 10, seed=0)
    assert draw_trials(space, 4, seed=0) == ten[:4]
    assert [trial[1] for trial in ten] == [trial for (trial,) in draw_trials(small_space, 10, seed=0)]
    assert not set(draw_trials(small_space, 10, seed=1)) & set(draw_trials(small_space, 10, seed=0))
    assert {trial[2] for trial in ten} == {"seed=1"}


def draw_numbers(override, count=2000):
    (dimension,) = parse_space([override])
    return np.array([float(dimension.draw(1, trial).partition("=")[2]) for trial in range(count)])


def test_intervals_are_drawn_evenly_and_tagged_ones_on_a_logarithmic_scale():
    assert stats.kstest(draw_numbers("a=interval(2,5)"), stats.uniform(2, 3).cdf).pvalue > 0.01
    numbers = draw_numbers("a=tag(log,interval(1e-4,0.1))")
    assert stats.kstest(numbers, stats.loguniform(1e-4, 0.1).cdf).pvalue > 0.01
    assert stats.kstest(numbers, stats.uniform(1e-4, 0.1).cdf).pvalue < 1e-6


def test_whole_intervals_have_both_of_their_ends_and_each_draw_once():
    (dimension,) = parse_space(["a=int(interval(1,6))"])
    counts = Counter(dimension.draw(0, trial) for trial in range(6000))
    assert sorted(counts) == [f"a={number}" for number in range(1, 7)]
    assert stats.chisquare(list(counts.values())).pvalue > 0.01
    assert sorted(override for (override,) in draw_trials([dimension], 30, seed=0)) == sorted(counts)


def test_subsets_keep_their_order_and_are_never_empty():
    (dimension,) = parse_space(["a=tag(subset,choice(x,y,z))"])
    overrides = {dimension.draw(0, trial) for trial in range(300)}
    assert overrides == {f"a=[{subset}]" for subset in ("x", "y", "z", "x,y", "x,z", "y,z", "x,y,z")}


def test_a_grid_is_the_one_that_hydras_own_sweeper_runs():
    words = ["a=1,2", "+b=x", "c@d=range(1,4)", "e='u,v'", "f=[1,2],[3]", "~g"]
    jobs = build_grid(parse_space(words))
    (hydra_jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words[:-1]), None)
    assert [list(job[:-1]) for job in jobs] == hydra_jobs
    assert {job[-1] for job in jobs} == {"~g"}


# Refused commands


def check(*words):
    """Check a sweep as the command does, and return its spec."""
    words = [*words, *(find_config_sweep(words) or [])]
    return check_sweep_command(add_default_sweeper(words), [])


SEARCH = ("sweep=optimizer_random", "data.validation=inside")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [*SEARCH, "hydra.sweeper.objective=test/accuracy"],
            "hydra.sweeper.objective=test/accuracy: a search ranks its jobs by validation: allowed are val/accuracy",
        ),
        ([*SEARCH, "evaluate_test=true"], "a search must not see the test set: give evaluate_test=false"),
        ([*SEARCH, "evaluate_test=false,true"], "all jobs of a sweep need the same value"),
        (["seed=7", "hydra.job.name=a,b"], "hydra.job.name=a,b: a key of Hydra itself takes one value in a sweep"),
        (
            ["sweep=optimizer_random", "data.validation=none"],
            "data.validation=none: a search needs validation images",
        ),
        (["sweep=randaugment_grid", "data.labels_per_class=10"], "data.validation=auto: a search needs validation"),
        ([*SEARCH, "hydra.sweeper.trials=0"], "hydra.sweeper.trials=0: input should be greater than or equal to 1"),
        (["sweep=optimizer_rand"], "sweep=optimizer_rand: no such option: did you mean 'optimizer_random'?"),
        (["sweep=optuna,optimizer_random"], "sweep takes one name"),
        (["seed=0,1", "hydra/sweeper=basic"], "choose hydra/sweeper=grid, random or optuna"),
        (
            ["optimizer.lr=interval(0.1,1)"],
            "a grid needs lists of values; choose hydra/sweeper=random or optuna",
        ),
        (["optimizer.lr=tag(log,interval(0,1))"], "an interval needs a start below its end, above 0 with the tag log"),
        (["seed=tag(lag,interval(1,2))"], "no such tag as lag"),
        (
            ["seed=0,1", "trainer=ddp_cpu", "hydra/launcher=joblib"],
            "trainer.devices=2: hydra/launcher=joblib gives each job one process",
        ),
    ],
)
def test_an_impossible_sweep_is_refused_in_one_line(words, message):
    with pytest.raises(UserError) as error:
        build_grid(parse_space(words)) if check(*words) else None
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("word", "module", "extra"),
    [
        ("hydra/sweeper=optuna", "optuna", "optuna"),
        ("hydra/launcher=joblib", "hydra_plugins.hydra_joblib_launcher", "joblib"),
        ("hydra/launcher=ray", "ray", "ray"),
        ("hydra/launcher=slurm", "submitit", "slurm"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(word, module, extra, monkeypatch):
    monkeypatch.setattr("tutelage.sweeps.search.find_spec", lambda name: None if name == module else True)
    with pytest.raises(UserError, match=re.escape(f"pip install 'tutelage[{extra}]'")):
        check(word, "evaluate_test=false", "data.validation=inside")


def test_a_sweep_is_started_by_one_process(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="a sweep is started by one process, not by 2 of torchrun"):
        check("seed=0,1")


def test_a_search_without_validation_is_refused_before_any_run(outputs):
    process = command("tutelage.train", *QUIET, f"paths.outputs={outputs}", "sweep=optuna", "data.validation=none")
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert not outputs.exists()


def test_the_same_search_has_one_folder_wherever_and_however_often_it_runs():
    words = ["hydra/sweeper=random", "optimizer.lr=interval(1,2)", "data.validation=inside", "evaluate_test=false"]
    path = check(*words).path
    assert check(*words, "trainer=cpu", "callbacks=quiet", "hydra.sweeper.trials=50").path == path
    assert check(*words, "model.width=2").path != path
    assert check(*words, "hydra.sweeper.seed=1").path != path


# A search and the test set


def test_a_search_leaves_the_test_set_alone_and_one_more_command_tests_its_best(outputs, tmp_path, capfd):
    """The test's result is then that of a run that was in no search."""

    def no_test():
        import tutelage.runs.runner

        def fail(context):
            raise AssertionError("the test set was touched")

        assert tutelage.runs.runner.evaluate_networks
        tutelage.runs.runner.evaluate_networks = fail

    assert sweep(outputs, *GRID, "seed=0", before=no_test) == 0
    assert {key.partition("/")[0] for run in records(outputs).values() for key in run["result"]} == {"val"}
    assert not list(outputs.rglob("test.parquet"))
    out = capfd.readouterr().out
    assert "val " in out
    assert "test " not in out.partition("to train it in full")[0]
    (line,) = re.findall(r"to train it in full and test it: (.*)", out)
    words = shlex.split(line)
    assert words[:2] == ["tutelage", "train"]
    searched_weights = weights(outputs)
    assert sweep(outputs, *words[2:]) == 0
    tested = {name: run for name, run in records(outputs).items() if "test/accuracy" in run["result"]}
    assert sorted(run["identity"]["seed"] for run in tested.values()) == [0, 1, 2, 3, 4]
    assert {name: hashes for name, hashes in weights(outputs).items() if name in searched_weights} == searched_weights
    assert [len(tested[name]["sessions"]) for name in tested if name in searched_weights] == [2]
    words_of_one = [word.replace("seed=0,1,2,3,4", "seed=0") for word in words[2:] if word[:5] not in {"-m", "paths"}]
    assert sweep(tmp_path / "alone", *words_of_one, "hydra.mode=RUN") == 0
    single_run = outcome(tmp_path / "alone")
    (searched_run,) = [run for run in tested.values() if run["identity"]["seed"] == 0]
    assert searched_run["result"] == single_run["result"]
    assert searched_run["stages"][0]["weights_sha256"] == single_run["stages"][0]["weights_sha256"]


def test_a_run_without_a_test_is_not_reported(outputs):
    assert sweep(outputs, *FEW, "evaluate_test=false") == 0
    (folder,) = outputs.glob("runs/*-s0-*")
    for words in (["report", str(folder)], ["evaluate", str(folder), "shift=crop"]):
        process = command("tutelage.cli", *words)
        assert process.returncode == 2
        assert "not yet evaluated on the test set; its command with evaluate_test=true does that" in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(file.stem for file in (conf_dir() / "sweep").glob("*.yaml")))
def test_the_command_that_a_prepared_search_prints_for_its_best_can_be_typed(name, monkeypatch):
    """The command composes and is no search; its runs have the values of the best job."""
    monkeypatch.setattr(
        "tutelage.sweeps.search.find_spec", lambda name: True
    )  # Optuna need not be there to be left out
    typed = [f"sweep={name}", "data.validation=inside", "data.labels_per_class=10"]
    drawn = [dimension.draw(0, 0) for dimension in parse_space([*typed, *(find_config_sweep(typed) or [])])]
    best = Job({}, RunFolder(Path("runs/best")), {}, drawn)
    search = check(*typed).search
    words = shlex.split(searches.build_full_command(best, shlex.join(["tutelage", "train", "-m", *typed]), search))
    assert words[:3] == ["tutelage", "train", "-m"]
    assert check(*words[3:]).search is None
    jobs = build_grid(parse_space(words[3:]))
    assert len(jobs) == 5
    expected = compose(
        [*(override for override in drawn if not override.startswith("seed=")), "seed=4", "evaluate_test=true"]
    )
    assert compose(jobs[4]).model_dump() == expected.model_dump()


def test_a_search_shows_no_test_result_that_a_run_had_before(tmp_path, capsys):
    outcomes = write_search(tmp_path / "few")
    file = tmp_path / "few" / "1-3-0" / "run.json"
    record = json.loads(file.read_text().replace('"val/loss"', '"test/accuracy": 0.123, "val/loss"'))
    record["stages"][0]["test_seconds"] = 7.0
    file.write_text(json.dumps(record))
    report_sweep(outcomes, "tutelage train -m sweep=it", search_settings())
    text = capsys.readouterr().out + (next(tmp_path.glob("few/sweep-*/index.html"))).read_text()
    assert "val" in text
    assert not re.search(r"12\.3|\btest +|ms an answer +", text.partition("to train it in full")[0])
    report_sweep(outcomes, "tutelage train -m sweep=it")
    assert "12.3" in capsys.readouterr().out


# Failed and killed jobs


def test_a_job_that_ends_by_any_error_takes_no_other_with_it_and_is_tried_again(outputs, capfd):
    def break_one_job():
        import tutelage.app.sweep

        original = tutelage.app.sweep.run_job

        def run_job(config, *arguments, **options):
            if config.seed == 1:
                raise RuntimeError("the disk is full")
            return original(config, *arguments, **options)

        tutelage.app.sweep.run_job = run_job

    words = ["-m", "debug=tiny", "seed=0,1,2"]
    assert sweep(outputs, *words, before=break_one_job) == 1
    captured = capfd.readouterr()
    assert "no result: seed=1: RuntimeError: the disk is full" in captured.out
    assert "Traceback" in captured.err
    assert len(records(outputs)) == 2
    first = weights(outputs)
    assert sweep(outputs, *words) == 0
    out = capfd.readouterr().out
    assert "no result" not in out
    assert [out.index(f"run {number} of 3") for number in (1, 3, 2)] == sorted(
        out.index(f"run {number} of 3") for number in (1, 2, 3)
    )  # finished runs come first
    assert {name: hashes for name, hashes in weights(outputs).items() if name in first} == first
    assert [len(run["sessions"]) for run in records(outputs).values()] == [1, 1, 1]


def kill_at(finish):
    """Return a patch that kills the process when the run number ``finish`` ends, before its record is written."""

    def patch():
        from tutelage.runs.folder import Record

        original, calls = Record.finish, []

        def finish_or_die(self, *arguments):
            calls.append(1)
            if len(calls) == finish:
                os.kill(os.getpid(), signal.SIGKILL)
            original(self, *arguments)

        Record.finish = finish_or_die

    return patch


def test_a_killed_sweep_started_again_does_only_what_is_missing(outputs, tmp_path):
    words = ("-m", "debug=tiny", "seed=0,1")
    assert sweep(outputs, *words, before=kill_at(2)) == -signal.SIGKILL
    assert sorted(run["status"] for run in records(outputs).values()) == ["finished", "running"]
    assert sweep(outputs, *words) == 0
    assert sorted(len(run["sessions"]) for run in records(outputs).values()) == [1, 2]
    assert sweep(tmp_path / "undisturbed", *words) == 0
    assert weights(outputs) == weights(tmp_path / "undisturbed")


def test_two_of_the_same_sweep_do_not_run_at_once(outputs, capfd):
    spec = check(f"paths.outputs={outputs}", *QUIET, "seed=0,1", "debug=tiny")
    with hold_lock(SweepFolder(spec.path).lock_file, "sweep"):
        assert sweep(outputs, "-m", "seed=0,1", "debug=tiny") == 2
    line = capfd.readouterr().err
    assert re.fullmatch(r"tutelage: sweep \S+ is in use by process \d+ on \S+ \(since \S+\): wait for it.*\n", line)
    assert not records(outputs)


def test_a_run_is_gone_from_memory_before_the_next_one_of_a_sweep(outputs):
    def count_datasets():
        import gc

        import tutelage.app.sweep
        from tutelage.data.named_datasets import Digits

        original = tutelage.app.sweep.run_job

        def run_job(config, *arguments, **options):
            assert sum(isinstance(item, Digits) for item in gc.get_objects()) <= 1
            return original(config, *arguments, **options)

        gc.disable()  # a collection by chance must not be needed
        tutelage.app.sweep.run_job = run_job

    assert sweep(outputs, "-m", "debug=tiny", "seed=0,1,2", before=count_datasets) == 0


def test_the_same_job_twice_is_one_job(outputs, capfd):
    assert sweep(outputs, "-m", "debug=tiny", "seed=1,1") == 0
    assert len(sweep_folder(outputs).read_outcomes()) == 1
    assert capfd.readouterr().out.count("run 1 of 1") == 1


def test_a_job_whose_run_is_damaged_keeps_no_other_from_running(outputs, capfd):
    assert sweep(outputs, "debug=tiny", "seed=0") == 0
    (damaged,) = outputs.glob("runs/*-s0-*/run.json")
    damaged.write_text("{")
    assert sweep(outputs, "-m", "debug=tiny", "seed=0,1") == 1
    captured = capfd.readouterr()
    assert "no result: seed=0:" in captured.out
    assert captured.err.count("run.json cannot be read") == 1
    assert len(list(outputs.glob("runs/*-s1-*/run.json"))) == 1


@pytest.mark.parametrize(("code", "outcome_count", "exit_code"), [(137, 2, 1), (255, 2, 1), (143, 1, 143)])
def test_a_signal_to_stop_ends_a_sweep_and_a_job_whose_process_died_does_not(code, outcome_count, exit_code, outputs):
    def end_first_job():
        import tutelage.app.sweep

        tutelage.app.sweep.run_job = lambda config, *arguments, **options: code if config.seed == 0 else 0

    assert sweep(outputs, "-m", "debug=tiny", "seed=0,1", before=end_first_job) == exit_code
    assert len(list(outputs.glob(".sweeps/*/outcomes/*.json"))) == outcome_count


def test_a_run_that_is_still_being_saved_is_waited_for(outputs):
    """A killed sweep has left a worker; the next sweep starts before that worker has ended."""
    import threading

    def hold_run():
        from tutelage.app import sweep
        from tutelage.config.compose import compose

        folder, _ = sweep.locate_run(compose([*QUIET, f"paths.outputs={outputs}", "debug=tiny", "seed=1"]))
        lock = FileLock(folder.lock_file)
        folder.lock_file.parent.mkdir(parents=True)
        lock.acquire()
        threading.Timer(1.5, lock.release).start()

    assert sweep(outputs, "-m", "debug=tiny", "seed=0,1", before=hold_run) == 0


def test_a_job_without_an_outcome_is_reported(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.begin("tutelage train -m seed=0,1")
    folder.add_jobs([["seed=0"], ["seed=1"]])
    folder.write_outcome(Outcome(["seed=0"], Path("outputs/a")))
    finished, missing = folder.read_outcomes()
    assert (finished.path, finished.code) == (Path("outputs/a"), 0)
    assert (missing.path, missing.code) == (None, 1)
    assert missing.reason


class CrashingLauncher:
    """A launcher like joblib's: a job whose worker dies ends all jobs that were launched with it."""

    def __init__(self, folder, fatal):
        self.folder, self.fatal, self.launched = folder, fatal, []

    def launch(self, jobs, initial_job_idx):
        self.launched.append(list(jobs))
        for job in jobs:
            if job in self.fatal:
                raise RuntimeError("a worker died")
            self.folder.write_outcome(Outcome(job, Path("outputs/a")))


def test_a_worker_that_dies_loses_its_own_job_alone(tmp_path):
    from hydra_plugins.tutelage_sweepers.grid import GridSweeper

    jobs = [(f"seed={seed}",) for seed in range(5)]
    sweeper = GridSweeper()
    sweeper.folder, sweeper.launched_count = SweepFolder(tmp_path), 0
    sweeper.shared_config = OmegaConf.create({"hydra": {"runtime": {"choices": {"hydra/launcher": "joblib"}}}})
    sweeper.launcher = launcher = CrashingLauncher(sweeper.folder, {jobs[1]})
    sweeper._launch(jobs)
    assert launcher.launched == [jobs, [jobs[1]], [jobs[2]], [jobs[3]], [jobs[4]]]
    reasons = [sweeper.folder.read_outcome(job).reason for job in jobs]
    assert reasons == ["", "the launcher ended with RuntimeError: a worker died", "", "", ""]


@pytest.mark.slow
def test_jobs_after_one_whose_worker_is_killed_run_all_the_same(outputs, tmp_path):
    """A user's own config names a module that kills the process which imports it."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "fatal.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    folder = tmp_path / "conf" / "model"
    folder.mkdir(parents=True)
    (folder / "fatal.yaml").write_text("_target_: fatal.Net\n")
    words = ["-m", *QUIET, f"paths.outputs={outputs}", "debug=tiny", "model=perceptron,fatal,lenet5,mlp"]
    words += [f"--config-dir={tmp_path / 'conf'}", "--allow=fatal", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    process = fresh_command("tutelage.train", *words, env=environment)
    assert process.returncode == 1, process.stderr
    assert "no result: model=fatal: the launcher ended with TerminatedWorkerError" in process.stdout
    assert len(records(outputs)) == 3


@pytest.mark.slow
def test_jobs_side_by_side_give_the_same_weights_as_one_after_the_other(outputs, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["-m", "debug=tiny", "model=timm", "model.name=test_resnet,resnet_18"]
    side_by_side = [*words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = fresh_command("tutelage.train", *QUIET, f"paths.outputs={outputs}", *side_by_side)
    assert process.returncode == 1
    assert process.stdout.count("timm has no such architecture") == 1
    assert "ConfigStore" not in process.stderr
    assert sweep(tmp_path / "alone", *words) == 1
    assert len(weights(outputs)) == 1
    assert weights(outputs) == weights(tmp_path / "alone")


@pytest.mark.slow
def test_a_job_on_several_devices_has_its_own_group_of_processes(outputs, tmp_path):
    words = ["-m", *QUIET, "debug=tiny", "seed=0,1"]
    process = fresh_command("tutelage.train", *words, f"paths.outputs={outputs}", "trainer=ddp_cpu")
    assert process.returncode == 0, process.stderr
    assert re.findall(r"run \d of \d", process.stdout) == ["run 1 of 2", "run 2 of 2"]
    assert [run["processes"] for run in records(outputs).values()] == [2, 2]
    assert sweep(tmp_path / "alone", *words) == 0
    assert set(records(outputs)) == set(records(tmp_path / "alone"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_save_and_stop_with_the_sweep_that_started_them(number, outputs):
    import subprocess
    import time

    long_jobs = ["schedule.epochs=null", "schedule.steps=100000", "seed=0,1,2", "hydra/launcher=joblib"]
    words = ["-m", *QUIET, f"paths.outputs={outputs}", *long_jobs, "hydra.launcher.n_jobs=2"]
    running = subprocess.Popen([sys.executable, "-m", "tutelage.train", *words], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(outputs.glob("runs/*/metrics.csv"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    running.send_signal(number)
    assert running.wait(300) in {-number, 128 + number}
    deadline = time.monotonic() + 300
    while len(list(outputs.glob(".sweeps/*/outcomes/*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    reasons = [json.loads(file.read_text())["reason"] for file in outputs.glob(".sweeps/*/outcomes/*.json")]
    assert reasons == ["stopped by SIGTERM"] * 2
    assert all("stopped" in run["sessions"][-1] for run in records(outputs).values())


# Optuna


def load_study(outputs):
    optuna = pytest.importorskip("optuna")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = sweep_folder(outputs).path
    storage = JournalStorage(JournalFileBackend(str(path / "journal.log")))
    return optuna.load_study(study_name=None, storage=storage)


def list_trials(outputs, *states):
    trials = [trial for trial in load_study(outputs).get_trials() if trial.state.name in states]
    return sorted(trials, key=lambda trial: trial.user_attrs["number"])


OPTUNA_SEARCH = ("-m", *OPTIMIZER, "evaluate_test=false", "hydra/sweeper=optuna", *FEW)


@pytest.mark.slow
def test_a_killed_study_goes_on_with_the_draws_of_one_that_was_not(outputs, tmp_path):
    pytest.importorskip("optuna")
    words = [*OPTUNA_SEARCH, "hydra.sweeper.trials=3"]
    assert sweep(outputs, *words, before=kill_at(2)) == -signal.SIGKILL
    assert len(list_trials(outputs, "RUNNING")) == 1
    assert sweep(outputs, *words) == 0
    assert sweep(tmp_path / "undisturbed", *words) == 0
    trials, undisturbed = list_trials(outputs, "COMPLETE"), list_trials(tmp_path / "undisturbed", "COMPLETE")
    assert len(trials) == len({tuple(trial.params.items()) for trial in trials}) == 3
    assert [(trial.params, trial.value) for trial in trials] == [(trial.params, trial.value) for trial in undisturbed]
    assert (len(list_trials(outputs, "RUNNING")), len(list_trials(outputs, "FAIL"))) == (0, 1)
    assert weights(outputs) == weights(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_finished_study_has_nothing_to_do_and_a_larger_one_the_difference(outputs, capfd):
    pytest.importorskip("optuna")
    assert sweep(outputs, *OPTUNA_SEARCH, "hydra.sweeper.trials=2") == 0
    first = {trial.params["optimizer.lr"] for trial in list_trials(outputs, "COMPLETE")}
    capfd.readouterr()
    assert sweep(outputs, *OPTUNA_SEARCH, "hydra.sweeper.trials=2") == 0
    assert "run 2 of 2" in capfd.readouterr().out
    assert sweep(outputs, *OPTUNA_SEARCH, "hydra.sweeper.trials=3", "hydra.sweeper.at_once=2") == 0
    later = {trial.params["optimizer.lr"] for trial in list_trials(outputs, "COMPLETE")}
    assert first < later
    assert (len(first), len(later), len(records(outputs))) == (2, 3, 3)
    assert {len(run["sessions"]) for run in records(outputs).values()} == {1}


@pytest.mark.slow
def test_only_the_best_of_a_rung_train_longer(outputs, capfd):
    pytest.importorskip("optuna")
    words = ["hydra.sweeper.trials=5", "hydra.sweeper.rungs=2", "hydra.sweeper.factor=2"]
    assert sweep(outputs, *OPTUNA_SEARCH, *words) == 0
    trials = list_trials(outputs, "COMPLETE", "PRUNED")
    values: list[float] = []
    for trial in trials:
        values.append(trial.intermediate_values[0])
        limit = sorted(values, reverse=True)[max(1, len(values) // 2) - 1]
        assert (trial.state.name == "COMPLETE") == (values[-1] >= limit)
    lengths = Counter(run["identity"]["schedule"]["steps"] for run in records(outputs).values())
    assert lengths == {2: 5, 4: len([trial for trial in trials if trial.state.name == "COMPLETE"])}
    assert "5 runs with shortened schedules decided which trials went on" in capfd.readouterr().out


@pytest.mark.slow
def test_a_studys_trials_on_other_data_do_not_count(outputs, tmp_path):
    pytest.importorskip("optuna")
    words = [
        "data=image_folder",
        "recipe=none",
        "data.image_size=28",
        "data.validation=inside",
        "debug=tiny",
        "hydra.sweeper.trials=1",
    ]
    words = ["-m", OPTIMIZER[1], "evaluate_test=false", "hydra/sweeper=optuna", *words]
    for name in ("cats", "cars"):
        for label in ("one", "two"):
            write_images(tmp_path / name / label, 20 if name == "cats" else 21)
        assert sweep(outputs, *words, f"data.root={tmp_path / name}") == 0
    assert len(records(outputs)) == 2
    lines = (sweep_folder(outputs).path / "journal.log").read_text().splitlines()
    assert len([line for line in lines if "study_name" in line]) == 2


# Reports


SCORES = {  # of seeds 0, 1, 2 at N and M
    (1, 3): (0.70, 0.72, 0.71),
    (1, 9): (0.75, 0.74, 0.79),
    (2, 3): (0.60, 0.66, 0.63),
    (2, 9): (0.77, 0.78, 0.76),
}


OVERRIDES = ("experiment=few", "sweep=it", "augmentation.num_ops=2", "augmentation.magnitude=9")


def write_run(folder, overrides, result):
    write_finished_run(folder, [make_entry(result)], data={"test": 100})
    return Outcome(overrides, folder)


def write_search(root, scores=SCORES):
    return [
        write_run(
            root / f"{n}-{m}-{seed}",
            ["experiment=few", "sweep=it", f"augmentation.num_ops={n}", f"augmentation.magnitude={m}", f"seed={seed}"],
            {"val/accuracy": value, "val/loss": 1 - value},
        )
        for (n, m), values in scores.items()
        for seed, value in enumerate(values)
    ]


def search_settings(*words):
    spec = check(*SEARCH, *words)
    assert spec.search is not None
    return spec.search


def test_runs_without_the_objective_come_last_and_the_others_stay_ranked(tmp_path):
    scores = {(1, 3): (0.4,), (1, 9): (float("nan"),), (2, 3): (0.9,), (2, 9): (0.1,)}
    outcomes = write_search(tmp_path, scores)
    broken = tmp_path / "2-9-0" / "run.json"
    broken.write_text(broken.read_text()[:-3])
    jobs, keys, _ = read_finished_jobs(outcomes)
    best = [
        searches.average_objective(members, "val/accuracy")
        for members in searches.rank_groups(keys, jobs, "val/accuracy")
    ]
    assert best[:2] == [0.9, 0.4]
    assert len(best) == 3
    assert np.isnan(best[2])


def test_runs_are_ranked_by_the_mean_of_the_objective(tmp_path):
    jobs, keys, _ = read_finished_jobs(write_search(tmp_path))
    best = [
        searches.average_objective(members, "val/accuracy")
        for members in searches.rank_groups(keys, jobs, "val/accuracy")
    ]
    assert best == pytest.approx(sorted(map(np.mean, SCORES.values()), reverse=True))
    losses = [
        searches.average_objective(members, "val/loss") for members in searches.rank_groups(keys, jobs, "val/loss")
    ]
    assert all(loss <= next_loss for loss, next_loss in pairwise(losses))
    assert losses[0] == pytest.approx(1 - best[0])


def test_the_map_shows_every_cell_with_its_mean_its_spread_and_its_runs(tmp_path):
    failed = [Outcome([*OVERRIDES[:2], "augmentation.num_ops=3", f"augmentation.magnitude={m}"], None) for m in (3, 9)]
    outcomes = [*write_search(tmp_path)[:-3], *write_search(tmp_path / "few", {(2, 9): (0.5,)}), *failed]
    jobs, _, _ = read_finished_jobs(outcomes)
    (axes,) = search_pictures.draw_grid_map(find_grid_values(outcomes), jobs, "val/accuracy").axes
    cells = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    for y, n in enumerate((1, 2)):
        for x, m in enumerate((3, 9)):
            values = 100 * np.array(SCORES[n, m])
            text = f"{values.mean():.1f} %\n+- {stats.tstd(values):.1f} %\n3 runs"
            assert cells[y, x] == (text if (n, m) != (2, 9) else "50.0 %\n1 run")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["3", "9"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "3"]
    assert cells[2, 0] == cells[2, 1] == "no result"
    (frame,) = axes.patches  # of the best mean, 76 %, at N 1 and M 9
    assert frame.get_xy() == (0.5, -0.5)


def test_the_end_of_a_search_names_the_best_and_how_to_train_it_in_full(tmp_path, capsys):
    outcomes = [*write_search(tmp_path / "few"), Outcome([*OVERRIDES, "seed=9"], None, "it broke", 1)]
    typed = "tutelage train --config-dir=mine --allow=pkg -m hydra/launcher=slurm experiment=few sweep=it"
    report_sweep(outcomes, typed, search_settings())
    out = capsys.readouterr().out
    table = [line.split()[:2] for line in out.splitlines() if re.match(r"^\d +\d ", line)]
    assert table == [["2", "9"], ["1", "9"], ["1", "3"], ["2", "3"]]
    assert "best by val/accuracy: num_ops 2 magnitude 9 (77.0 %, mean of 3 runs)" in out
    full_command = (
        "tutelage train --config-dir=mine --allow=pkg -m experiment=few sweep=it augmentation.num_ops=2 "
        "augmentation.magnitude=9 hydra/launcher=slurm hydra/sweeper=grid seed=0,1,2,3,4 evaluate_test=true"
    )
    assert f"to train it in full and test it: {full_command}\n" in out
    assert "it broke" in out
    (file,) = tmp_path.glob("few/sweep-*/index.html")
    page = file.read_text()
    assert "<h2>val/accuracy over num_ops and magnitude</h2>" in page
    assert full_command in page
    assert "it broke" in page


def test_drawn_values_are_shown_as_clouds_and_combined_ones_as_a_grid(tmp_path):
    drawn = [
        write_run(tmp_path / str(n), [f"a.lr={lr}", f"a.ops=[{ops}]", "seed=0"], {"val/accuracy": value})
        for n, (lr, ops, value) in enumerate([(0.001, "x,y", 0.5), (0.1, "y", 0.7), (0.05, "x", 0.6)])
    ]
    assert find_grid_values(write_search(tmp_path / "grid"))
    assert find_grid_values(write_search(tmp_path / "again")[:-1])  # its other seeds are there
    assert not find_grid_values(drawn)
    jobs, keys, _ = read_finished_jobs(drawn)
    numbers, members = search_pictures.draw_clouds(keys, jobs, "val/accuracy").axes
    assert sorted(map(tuple, numbers.collections[0].get_offsets().tolist())) == [(0.001, 0.5), (0.05, 0.6), (0.1, 0.7)]
    assert numbers.get_xscale() == "log"
    rows = [label.get_text() for label in members.get_yticklabels()]
    dots = {rows[int(dots.get_offsets()[0][1])]: sorted(dots.get_offsets()[:, 0]) for dots in members.collections}
    assert dots == {"x": [0.5, 0.6], "y": [0.5, 0.7]}
