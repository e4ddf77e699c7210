"""Sweeps and searches: what they draw, what they refuse, what of them survives a failure or a kill, what they find."""

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
from helpers.runs import outcome
from tutelage.config.compose import compose, conf_dir
from tutelage.errors import UserError
from tutelage.report import searches
from tutelage.report.jobs import Job, find_grid_values, read_finished_jobs
from tutelage.report.sweep_report import report_sweep
from tutelage.runs import RunFolder
from tutelage.storage import locked
from tutelage.sweeps.folder import Outcome, SweepFolder
from tutelage.sweeps.overrides import own_sweep, space_of, with_sweeper
from tutelage.sweeps.search import checked_sweep
from tutelage.sweeps.space import draws, grid

FEW = ("data.labels_per_class=10", "data.validation=outside:40", "debug=tiny")
GRID = ("sweep=randaugment_grid", "augmentation.num_ops=1,2", "augmentation.magnitude=9", "seed=0,1", *FEW)
OPTIMIZER = ("optimizer.lr=tag(log,interval(1e-4,1e-2))", "optimizer.weight_decay=0.01,0.1")


def sweep(outputs, *words, before=lambda: None):
    """Type a sweep, quietly, in a fork of this process, and return its exit code; ``before`` may set traps there."""
    fork_server.preload()
    from tutelage.train import main

    def work():
        before()
        sys.argv = ["tutelage", *QUIET, f"paths.outputs={outputs}", *words]
        try:
            main()
        except SystemExit as end:
            return end.code
        return 0

    return call_in_fork(work)


def records(outputs):
    """Return the records of all runs, by their folders' names."""
    return {file.parent.name: json.loads(file.read_text()) for file in sorted(outputs.glob("*/*/run.json"))}


def folder_of(outputs):
    """Return the folder of the one sweep below ``outputs``."""
    (file,) = outputs.glob(".sweeps/*/sweep.json")
    return SweepFolder(file.parent)


def weights(outputs):
    return {name: [stage["weights_sha256"] for stage in one["stages"]] for name, one in records(outputs).items()}


# What is drawn


def test_a_draw_follows_from_its_seed_its_number_and_its_key_alone():
    lone = space_of(["optimizer.lr=interval(0.1,0.9)"])
    both = space_of(["model.width=1,2,3", "optimizer.lr=interval(0.1,0.9)", "seed=1"])
    ten = draws(both, 10, seed=0)
    assert draws(both, 4, seed=0) == ten[:4]
    assert [trial[1] for trial in ten] == [trial for (trial,) in draws(lone, 10, seed=0)]
    assert not set(draws(lone, 10, seed=1)) & set(draws(lone, 10, seed=0))
    assert {trial[2] for trial in ten} == {"seed=1"}


def numbers(override, count=2000):
    (dimension,) = space_of([override])
    return np.array([float(dimension.drawn(1, trial).partition("=")[2]) for trial in range(count)])


def test_intervals_are_drawn_evenly_and_tagged_ones_on_a_logarithmic_scale():
    assert stats.kstest(numbers("a=interval(2,5)"), stats.uniform(2, 3).cdf).pvalue > 0.01
    drawn = numbers("a=tag(log,interval(1e-4,0.1))")
    assert stats.kstest(drawn, stats.loguniform(1e-4, 0.1).cdf).pvalue > 0.01
    assert stats.kstest(drawn, stats.uniform(1e-4, 0.1).cdf).pvalue < 1e-6


def test_whole_intervals_have_both_of_their_ends_and_each_draw_once():
    (dimension,) = space_of(["a=int(interval(1,6))"])
    found = Counter(dimension.drawn(0, trial) for trial in range(6000))
    assert sorted(found) == [f"a={number}" for number in range(1, 7)]
    assert stats.chisquare(list(found.values())).pvalue > 0.01
    assert sorted(one for (one,) in draws([dimension], 30, seed=0)) == sorted(found)


def test_subsets_keep_their_order_and_are_never_empty():
    (dimension,) = space_of(["a=tag(subset,choice(x,y,z))"])
    found = {dimension.drawn(0, trial) for trial in range(300)}
    assert found == {f"a=[{some}]" for some in ("x", "y", "z", "x,y", "x,z", "y,z", "x,y,z")}


def test_a_grid_is_the_one_that_hydra_itself_would_run():
    words = ["a=1,2", "+b=x", "c@d=range(1,4)", "e='u,v'", "f=[1,2],[3]", "~g"]
    ours = grid(space_of(words))
    (theirs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words[:-1]), None)
    assert [list(job[:-1]) for job in ours] == theirs
    assert {job[-1] for job in ours} == {"~g"}


# What is refused


def planned(*words):
    """Check a sweep as the command does, and return its plan."""
    words = [*words, *(own_sweep(words) or [])]
    return checked_sweep(with_sweeper(words), [])


SEARCH = ("sweep=optimizer_random", "data.validation=inside")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            [*SEARCH, "hydra.sweeper.objective=test/accuracy"],
            "hydra.sweeper.objective=test/accuracy: a search goes by what validation says: allowed are val/accuracy",
        ),
        ([*SEARCH, "evaluate_test=true"], "a search must not see the test set: give evaluate_test=false"),
        ([*SEARCH, "evaluate_test=false,true"], "all jobs of a sweep have the same"),
        (["seed=7", "hydra.job.name=a,b"], "hydra.job.name=a,b: what Hydra itself is told has one value in a sweep"),
        (
            ["sweep=optimizer_random", "data.validation=none"],
            "data.validation=none: a search goes by validation images",
        ),
        (["sweep=randaugment_grid", "data.labels_per_class=10"], "data.validation=auto: a search goes by validation"),
        ([*SEARCH, "hydra.sweeper.trials=0"], "hydra.sweeper.trials=0: input should be greater than or equal to 1"),
        (["sweep=optimizer_rand"], "sweep=optimizer_rand: no such option: did you mean 'optimizer_random'?"),
        (["sweep=optuna,optimizer_random"], "sweep takes one name"),
        (["seed=0,1", "hydra/sweeper=basic"], "choose hydra/sweeper=grid, random or optuna"),
        (
            ["optimizer.lr=interval(0.1,1)"],
            "a grid needs lists of values; hydra/sweeper=random or optuna draws from it",
        ),
        (["optimizer.lr=tag(log,interval(0,1))"], "begins above 0 where it is tagged log"),
        (["seed=tag(lag,interval(1,2))"], "no such tag as lag"),
        (
            ["seed=0,1", "trainer=ddp_cpu", "hydra/launcher=joblib"],
            "trainer.devices=2: hydra/launcher=joblib gives each job one process",
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_one_line(words, told):
    with pytest.raises(UserError) as refused:
        grid(space_of(words)) if planned(*words) else None
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


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
        planned(word, "evaluate_test=false", "data.validation=inside")


def test_a_sweep_is_begun_by_one_process(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="a sweep is begun by one process, not by 2 of torchrun"):
        planned("seed=0,1")


def test_a_search_without_validation_is_refused_before_any_run(outputs):
    done = command("tutelage.train", *QUIET, f"paths.outputs={outputs}", "sweep=optuna", "data.validation=none")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert not outputs.exists()


def test_the_same_search_has_one_folder_wherever_and_however_often_it_runs():
    words = ["hydra/sweeper=random", "optimizer.lr=interval(1,2)", "data.validation=inside", "evaluate_test=false"]
    here = planned(*words).path
    assert planned(*words, "trainer=cpu", "callbacks=quiet", "hydra.sweeper.trials=50").path == here
    assert planned(*words, "model.width=2").path != here
    assert planned(*words, "hydra.sweeper.seed=1").path != here


# What a search leaves untouched, and what comes after it


def test_a_search_leaves_the_test_set_alone_and_one_more_command_meets_it(outputs, tmp_path, capfd):
    """As far as can be told the test is then that of a run that never was in a search."""

    def no_test():
        import tutelage.runs.runner

        def touched(this):
            raise AssertionError("the test set was touched")

        tutelage.runs.runner.test = touched

    assert sweep(outputs, *GRID, "seed=0", before=no_test) == 0
    assert {tuple(key.partition("/")[0] for key in one["result"]) for one in records(outputs).values()} == {
        ("val", "val")
    }
    assert not list(outputs.rglob("test.npz"))
    found = capfd.readouterr().out
    assert "val " in found
    assert "test " not in found.partition("in full")[0]
    (line,) = re.findall(r"to train it in full and test it: (.*)", found)
    words = shlex.split(line)
    assert words[:2] == ["tutelage", "train"]
    before = weights(outputs)
    assert sweep(outputs, *words[2:]) == 0
    tested = {name: one for name, one in records(outputs).items() if "test/accuracy" in one["result"]}
    assert sorted(one["identity"]["seed"] for one in tested.values()) == [0, 1, 2, 3, 4]
    assert {name: hashes for name, hashes in weights(outputs).items() if name in before} == before
    assert [len(tested[name]["sessions"]) for name in tested if name in before] == [2]
    alone = [word.replace("seed=0,1,2,3,4", "seed=0") for word in words[2:] if word[:5] not in {"-m", "paths"}]
    assert sweep(tmp_path / "alone", *alone, "hydra.mode=RUN") == 0
    once = outcome(tmp_path / "alone")
    (again,) = [one for one in tested.values() if one["identity"]["seed"] == 0]
    assert again["result"] == once["result"]
    assert again["stages"][0]["weights_sha256"] == once["stages"][0]["weights_sha256"]


def test_a_run_that_has_not_met_the_test_set_is_not_reported(outputs):
    assert sweep(outputs, *FEW, "evaluate_test=false") == 0
    (folder,) = outputs.glob("runs/*-s0-*")
    for words in (["report", str(folder)], ["evaluate", str(folder), "shift=crop"]):
        done = command("tutelage.cli", *words)
        assert done.returncode == 2
        assert "has not met the test set; the same command with evaluate_test=true does that" in done.stderr


@pytest.mark.parametrize("name", sorted(file.stem for file in (conf_dir() / "sweep").glob("*.yaml")))
def test_what_a_prepared_search_prints_for_its_best_can_be_typed(name, monkeypatch):
    """It composes, and is no search any more; the values of the job that was found stand in its runs."""
    monkeypatch.setattr(
        "tutelage.sweeps.search.find_spec", lambda name: True
    )  # Optuna need not be there to be left out
    typed = [f"sweep={name}", "data.validation=inside", "data.labels_per_class=10"]
    found = [one.drawn(0, 0) for one in space_of([*typed, *(own_sweep(typed) or [])])]
    best = Job({}, RunFolder(Path("runs/best")), {}, found)
    search = planned(*typed).search
    words = shlex.split(searches.build_full_command(best, shlex.join(["tutelage", "train", "-m", *typed]), search))
    assert words[:3] == ["tutelage", "train", "-m"]
    assert planned(*words[3:]).search is None
    jobs = grid(space_of(words[3:]))
    assert len(jobs) == 5
    wanted = compose([*(one for one in found if not one.startswith("seed=")), "seed=4", "evaluate_test=true"])
    assert compose(jobs[4]).model_dump() == wanted.model_dump()


def test_a_search_shows_nothing_of_the_test_that_a_run_met_before(tmp_path, capsys):
    outcomes = searched(tmp_path / "few")
    file = tmp_path / "few" / "1-3-0" / "run.json"
    met = json.loads(file.read_text().replace('"val/loss"', '"test/accuracy": 0.123, "val/loss"'))
    met["stages"][0]["answer_seconds"] = 7.0
    file.write_text(json.dumps(met))
    report_sweep(outcomes, "tutelage train -m sweep=it", settings())
    shown = capsys.readouterr().out + (next(tmp_path.glob("few/sweep-*/index.html"))).read_text()
    assert "val" in shown
    assert not re.search(r"12\.3|\btest +|ms/image +", shown.partition("in full")[0])
    report_sweep(outcomes, "tutelage train -m sweep=it")
    assert "12.3" in capsys.readouterr().out


# What survives


def test_a_job_that_ends_by_any_error_takes_no_other_with_it_and_is_tried_again(outputs, capfd):
    def broken():
        import tutelage.app.sweep

        real = tutelage.app.sweep.execute

        def execute(config, *given, **named):
            if config.seed == 1:
                raise RuntimeError("the disk is full")
            return real(config, *given, **named)

        tutelage.app.sweep.execute = execute

    words = ["-m", "debug=tiny", "seed=0,1,2"]
    assert sweep(outputs, *words, before=broken) == 1
    told = capfd.readouterr()
    assert "no result: seed=1: RuntimeError: the disk is full" in told.out
    assert "Traceback" in told.err
    assert len(records(outputs)) == 2
    first = weights(outputs)
    assert sweep(outputs, *words) == 0
    told = capfd.readouterr().out
    assert "no result" not in told
    assert [told.index(f"run {number} of 3") for number in (1, 3, 2)] == sorted(
        told.index(f"run {number} of 3") for number in (1, 2, 3)
    )  # what is finished answers first
    assert {name: hashes for name, hashes in weights(outputs).items() if name in first} == first
    assert [len(one["sessions"]) for one in records(outputs).values()] == [1, 1, 1]


def killed_at(finish):
    """Return a trap that kills the process when a run comes to its end for the time ``finish``, before that is kept."""

    def trap():
        from tutelage.runs.folder import Record

        real, times = Record.finish, []

        def at_end(self, *given):
            times.append(1)
            if len(times) == finish:
                os.kill(os.getpid(), signal.SIGKILL)
            real(self, *given)

        Record.finish = at_end

    return trap


def test_a_killed_sweep_started_again_does_only_what_is_missing(outputs, tmp_path):
    words = ("-m", "debug=tiny", "seed=0,1")
    assert sweep(outputs, *words, before=killed_at(2)) == -signal.SIGKILL
    assert sorted(one["status"] for one in records(outputs).values()) == ["finished", "running"]
    assert sweep(outputs, *words) == 0
    assert sorted(len(one["sessions"]) for one in records(outputs).values()) == [1, 2]
    assert sweep(tmp_path / "undisturbed", *words) == 0
    assert weights(outputs) == weights(tmp_path / "undisturbed")


def test_two_of_the_same_sweep_do_not_run_at_once(outputs, capfd):
    plan = planned(f"paths.outputs={outputs}", *QUIET, "seed=0,1", "debug=tiny")
    with locked(SweepFolder(plan.path).lock_file, "sweep"):
        assert sweep(outputs, "-m", "seed=0,1", "debug=tiny") == 2
    told = capfd.readouterr().err
    assert re.fullmatch(r"tutelage: sweep \S+ is in use by process \d+ on \S+ \(since \S+\): wait for it.*\n", told)
    assert not records(outputs)


def test_a_run_is_gone_from_memory_before_the_next_one_of_a_sweep(outputs):
    def counted():
        import gc

        import tutelage.app.sweep
        from tutelage.data.modules import Digits

        real = tutelage.app.sweep.execute

        def execute(config, *given, **named):
            assert sum(isinstance(one, Digits) for one in gc.get_objects()) <= 1
            return real(config, *given, **named)

        gc.disable()  # what comes by chance is not relied upon
        tutelage.app.sweep.execute = execute

    assert sweep(outputs, "-m", "debug=tiny", "seed=0,1,2", before=counted) == 0


def test_the_same_job_twice_is_one_job(outputs, capfd):
    assert sweep(outputs, "-m", "debug=tiny", "seed=1,1") == 0
    assert len(folder_of(outputs).outcomes()) == 1
    assert capfd.readouterr().out.count("run 1 of 1") == 1


def test_a_job_whose_run_is_damaged_keeps_no_other_from_running(outputs, capfd):
    assert sweep(outputs, "debug=tiny", "seed=0") == 0
    (damaged,) = outputs.glob("runs/*-s0-*/run.json")
    damaged.write_text("{")
    assert sweep(outputs, "-m", "debug=tiny", "seed=0,1") == 1
    told = capfd.readouterr()
    assert "no result: seed=0:" in told.out
    assert told.err.count("run.json cannot be read") == 1
    assert len(list(outputs.glob("runs/*-s1-*/run.json"))) == 1


@pytest.mark.parametrize(("code", "begun", "ended"), [(137, 2, 1), (255, 2, 1), (143, 1, 143)])
def test_only_an_order_to_stop_ends_a_sweep_and_no_process_of_a_job_that_died(code, begun, ended, outputs):
    def dying():
        import tutelage.app.sweep

        tutelage.app.sweep.execute = lambda config, *given, **named: code if config.seed == 0 else 0

    assert sweep(outputs, "-m", "debug=tiny", "seed=0,1", before=dying) == ended
    assert len(list(outputs.glob(".sweeps/*/outcomes/*.json"))) == begun


def test_a_run_that_is_still_being_saved_is_waited_for(outputs):
    """A sweep that was killed has left a worker; the next one comes before that has ended."""
    import threading

    def held():
        from tutelage.app import sweep as it
        from tutelage.config.compose import compose

        place, _ = it.place_of(compose([*QUIET, f"paths.outputs={outputs}", "debug=tiny", "seed=1"]))
        lock = FileLock(place.lock_file)
        place.lock_file.parent.mkdir(parents=True)
        lock.acquire()
        threading.Timer(1.5, lock.release).start()

    assert sweep(outputs, "-m", "debug=tiny", "seed=0,1", before=held) == 0


def test_a_job_that_left_no_word_is_told_of(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.begin("tutelage train -m seed=0,1")
    folder.add([["seed=0"], ["seed=1"]])
    folder.write(Outcome(["seed=0"], Path("outputs/a")))
    done, lost = folder.outcomes()
    assert (done.path, done.code) == (Path("outputs/a"), 0)
    assert (lost.path, lost.code) == (None, 1)
    assert lost.reason


class Dying:
    """A launcher as joblib's: a job that dies takes all with it that are in the same hand."""

    def __init__(self, folder, fatal):
        self.folder, self.fatal, self.handed_in = folder, fatal, []

    def launch(self, jobs, initial_job_idx):
        self.handed_in.append(list(jobs))
        for job in jobs:
            if job in self.fatal:
                raise RuntimeError("a worker died")
            self.folder.write(Outcome(job, Path("outputs/a")))


def test_a_worker_that_dies_loses_its_own_job_alone(tmp_path):
    from hydra_plugins.tutelage_sweepers.grid import GridSweeper

    jobs = [(f"seed={seed}",) for seed in range(5)]
    sweeper = GridSweeper()
    sweeper.folder, sweeper.launched = SweepFolder(tmp_path), 0
    sweeper.shared = OmegaConf.create({"hydra": {"runtime": {"choices": {"hydra/launcher": "joblib"}}}})
    sweeper.launcher = launcher = Dying(sweeper.folder, {jobs[1]})
    sweeper._launch(jobs)
    assert launcher.handed_in == [jobs, [jobs[1]], [jobs[2]], [jobs[3]], [jobs[4]]]
    told = [sweeper.folder.outcome(job).reason for job in jobs]
    assert told == ["", "the launcher ended with RuntimeError: a worker died", "", "", ""]


@pytest.mark.slow
def test_jobs_behind_one_whose_worker_is_killed_run_all_the_same(outputs, tmp_path):
    """The killer comes from a config of the user's own: a module of his ends the process that imports it."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "fatal.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    own = tmp_path / "conf" / "model"
    own.mkdir(parents=True)
    (own / "fatal.yaml").write_text("_target_: fatal.Net\n")
    words = ["-m", *QUIET, f"paths.outputs={outputs}", "debug=tiny", "model=perceptron,fatal,lenet5,mlp"]
    words += [f"--config-dir={tmp_path / 'conf'}", "--allow=fatal", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = fresh_command("tutelage.train", *words, env=environment)
    assert done.returncode == 1, done.stderr
    assert "no result: model=fatal: the launcher ended with TerminatedWorkerError" in done.stdout
    assert len(records(outputs)) == 3


@pytest.mark.slow
def test_jobs_side_by_side_in_processes_of_their_own_give_what_they_give_alone(outputs, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["-m", "debug=tiny", "model=timm", "model.name=test_resnet,resnet_18"]
    side_by_side = [*words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = fresh_command("tutelage.train", *QUIET, f"paths.outputs={outputs}", *side_by_side)
    assert done.returncode == 1
    assert done.stdout.count("timm has no such architecture") == 1
    assert "ConfigStore" not in done.stderr
    assert sweep(tmp_path / "alone", *words) == 1
    assert len(weights(outputs)) == 1
    assert weights(outputs) == weights(tmp_path / "alone")


@pytest.mark.slow
def test_a_job_on_several_devices_is_a_group_of_processes_of_its_own(outputs, tmp_path):
    words = ["-m", *QUIET, "debug=tiny", "seed=0,1"]
    done = fresh_command("tutelage.train", *words, f"paths.outputs={outputs}", "trainer=ddp_cpu")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"run \d of \d", done.stdout) == ["run 1 of 2", "run 2 of 2"]
    assert [one["processes"] for one in records(outputs).values()] == [2, 2]
    assert sweep(tmp_path / "alone", *words) == 0
    assert set(records(outputs)) == set(records(tmp_path / "alone"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_save_and_stop_with_the_sweep_that_began_them(number, outputs):
    import subprocess
    import time

    long = ["schedule.epochs=null", "schedule.steps=100000", "seed=0,1,2", "hydra/launcher=joblib"]
    words = ["-m", *QUIET, f"paths.outputs={outputs}", *long, "hydra.launcher.n_jobs=2"]
    running = subprocess.Popen([sys.executable, "-m", "tutelage.train", *words], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while len(list(outputs.glob("runs/*/metrics.csv"))) < 2 and time.monotonic() < until:
        time.sleep(0.2)
    running.send_signal(number)
    assert running.wait(300) in {-number, 128 + number}
    until = time.monotonic() + 300
    while len(list(outputs.glob(".sweeps/*/outcomes/*.json"))) < 2 and time.monotonic() < until:
        time.sleep(0.2)
    told = [json.loads(file.read_text())["reason"] for file in outputs.glob(".sweeps/*/outcomes/*.json")]
    assert told == ["stopped by SIGTERM"] * 2
    assert all("stopped" in one["sessions"][-1] for one in records(outputs).values())


# Optuna


def study_of(outputs):
    optuna = pytest.importorskip("optuna")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = folder_of(outputs).path
    storage = JournalStorage(JournalFileBackend(str(path / "journal.log")))
    return optuna.load_study(study_name=None, storage=storage)


def trials_of(outputs, *states):
    told = [one for one in study_of(outputs).get_trials() if one.state.name in states]
    return sorted(told, key=lambda one: one.user_attrs["number"])


ASKED = ("-m", *OPTIMIZER, "evaluate_test=false", "hydra/sweeper=optuna", *FEW)


@pytest.mark.slow
def test_a_killed_study_goes_on_with_the_draws_of_one_that_was_not(outputs, tmp_path):
    pytest.importorskip("optuna")
    words = [*ASKED, "hydra.sweeper.trials=3"]
    assert sweep(outputs, *words, before=killed_at(2)) == -signal.SIGKILL
    assert len(trials_of(outputs, "RUNNING")) == 1
    assert sweep(outputs, *words) == 0
    assert sweep(tmp_path / "undisturbed", *words) == 0
    told, straight = trials_of(outputs, "COMPLETE"), trials_of(tmp_path / "undisturbed", "COMPLETE")
    assert len(told) == len({tuple(one.params.items()) for one in told}) == 3
    assert [(one.params, one.value) for one in told] == [(one.params, one.value) for one in straight]
    assert (len(trials_of(outputs, "RUNNING")), len(trials_of(outputs, "FAIL"))) == (0, 1)
    assert weights(outputs) == weights(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_finished_study_has_nothing_to_do_and_a_larger_one_the_difference(outputs, capfd):
    pytest.importorskip("optuna")
    assert sweep(outputs, *ASKED, "hydra.sweeper.trials=2") == 0
    first = {one.params["optimizer.lr"] for one in trials_of(outputs, "COMPLETE")}
    capfd.readouterr()
    assert sweep(outputs, *ASKED, "hydra.sweeper.trials=2") == 0
    assert "run 2 of 2" in capfd.readouterr().out
    assert sweep(outputs, *ASKED, "hydra.sweeper.trials=3", "hydra.sweeper.at_once=2") == 0
    later = {one.params["optimizer.lr"] for one in trials_of(outputs, "COMPLETE")}
    assert first < later
    assert (len(first), len(later), len(records(outputs))) == (2, 3, 3)
    assert {len(one["sessions"]) for one in records(outputs).values()} == {1}


@pytest.mark.slow
def test_only_the_best_of_a_rung_train_longer(outputs, capfd):
    pytest.importorskip("optuna")
    words = ["hydra.sweeper.trials=5", "hydra.sweeper.rungs=2", "hydra.sweeper.factor=2"]
    assert sweep(outputs, *ASKED, *words) == 0
    told = trials_of(outputs, "COMPLETE", "PRUNED")
    values: list[float] = []
    for one in told:
        values.append(one.intermediate_values[0])
        best = sorted(values, reverse=True)[max(1, len(values) // 2) - 1]
        assert (one.state.name == "COMPLETE") == (values[-1] >= best)
    lengths = Counter(one["identity"]["schedule"]["steps"] for one in records(outputs).values())
    assert lengths == {2: 5, 4: len([one for one in told if one.state.name == "COMPLETE"])}
    assert "5 runs with shortened schedules decided which trials went on" in capfd.readouterr().out


@pytest.mark.slow
def test_what_a_study_knows_of_other_data_does_not_count(outputs, tmp_path):
    pytest.importorskip("optuna")
    words = [
        "data=image_folder",
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
    told = [line for line in (folder_of(outputs).path / "journal.log").read_text().splitlines() if "study_name" in line]
    assert len(told) == 2


# What is shown


SCORES = {  # of seeds 0, 1, 2 at N and M; what is best on validation is not on the test set
    (1, 3): (0.70, 0.72, 0.71),
    (1, 9): (0.75, 0.74, 0.79),
    (2, 3): (0.60, 0.66, 0.63),
    (2, 9): (0.77, 0.78, 0.76),
}


GIVEN = ("experiment=few", "sweep=it", "augmentation.num_ops=2", "augmentation.magnitude=9")


def run_of(folder, overrides, result):
    folder.mkdir(parents=True)
    stage = {"name": "network", "kind": "fit", "control": False, "seconds": 1.0, "result": result}
    record = {"status": "finished", "result": result, "stages": [stage], "data": {"test": 100}}
    (folder / "run.json").write_text(json.dumps(record))
    return Outcome(overrides, folder)


def searched(root, scores=SCORES):
    return [
        run_of(
            root / f"{n}-{m}-{seed}",
            ["experiment=few", "sweep=it", f"augmentation.num_ops={n}", f"augmentation.magnitude={m}", f"seed={seed}"],
            {"val/accuracy": value, "val/loss": 1 - value},
        )
        for (n, m), values in scores.items()
        for seed, value in enumerate(values)
    ]


def settings(*words):
    plan = planned(*SEARCH, *words)
    assert plan.search is not None
    return plan.search


def test_runs_without_what_is_searched_by_come_last_and_the_others_stay_ranked(tmp_path):
    scores = {(1, 3): (0.4,), (1, 9): (float("nan"),), (2, 3): (0.9,), (2, 9): (0.1,)}
    outcomes = searched(tmp_path, scores)
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


def test_runs_are_ranked_by_the_mean_of_what_is_searched_by(tmp_path):
    jobs, keys, _ = read_finished_jobs(searched(tmp_path))
    best = [
        searches.average_objective(members, "val/accuracy")
        for members in searches.rank_groups(keys, jobs, "val/accuracy")
    ]
    assert best == pytest.approx(sorted(map(np.mean, SCORES.values()), reverse=True))
    losses = [
        searches.average_objective(members, "val/loss") for members in searches.rank_groups(keys, jobs, "val/loss")
    ]
    assert all(one <= other for one, other in pairwise(losses))
    assert losses[0] == pytest.approx(1 - best[0])


def test_the_map_shows_every_cell_with_its_mean_its_spread_and_its_runs(tmp_path):
    lost = [Outcome([*GIVEN[:2], "augmentation.num_ops=3", f"augmentation.magnitude={m}"], None) for m in (3, 9)]
    outcomes = [*searched(tmp_path)[:-3], *searched(tmp_path / "few", {(2, 9): (0.5,)}), *lost]
    jobs, _, _ = read_finished_jobs(outcomes)
    (axes,) = searches.draw_grid_map(find_grid_values(outcomes), jobs, "val/accuracy").axes
    cells = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    for y, n in enumerate((1, 2)):
        for x, m in enumerate((3, 9)):
            values = 100 * np.array(SCORES[n, m])
            expected = f"{values.mean():.1f} %\n+- {stats.tstd(values):.1f} %\n3 runs"
            assert cells[y, x] == (expected if (n, m) != (2, 9) else "50.0 %\n1 run")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["3", "9"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "3"]
    assert cells[2, 0] == cells[2, 1] == "no result"


def test_the_end_of_a_search_names_the_best_and_how_to_train_it_in_full(tmp_path, capsys):
    outcomes = [*searched(tmp_path / "few"), Outcome([*GIVEN, "seed=9"], None, "it broke", 1)]
    command_line = "tutelage train --config-dir=mine --allow=pkg -m hydra/launcher=slurm experiment=few sweep=it"
    report_sweep(outcomes, command_line, settings())
    printed = capsys.readouterr().out
    table = [line.split()[:2] for line in printed.splitlines() if re.match(r"^\d +\d ", line)]
    assert table == [["2", "9"], ["1", "9"], ["1", "3"], ["2", "3"]]
    assert "best by val/accuracy: num_ops 2 magnitude 9 (77.0 %, mean of 3 runs)" in printed
    full = (
        "tutelage train --config-dir=mine --allow=pkg -m experiment=few sweep=it augmentation.num_ops=2 "
        "augmentation.magnitude=9 hydra/launcher=slurm hydra/sweeper=grid seed=0,1,2,3,4 evaluate_test=true"
    )
    assert f"to train it in full and test it: {full}\n" in printed
    assert "it broke" in printed
    (file,) = tmp_path.glob("few/sweep-*/index.html")
    page = file.read_text()
    assert "<h2>val/accuracy over num_ops and magnitude</h2>" in page
    assert full in page
    assert "it broke" in page


def test_what_was_drawn_is_shown_as_clouds_and_what_was_combined_as_lines(tmp_path):
    drawn = [
        run_of(tmp_path / str(n), [f"a.lr={lr}", f"a.ops=[{ops}]", "seed=0"], {"val/accuracy": value})
        for n, (lr, ops, value) in enumerate([(0.001, "x,y", 0.5), (0.1, "y", 0.7), (0.05, "x", 0.6)])
    ]
    assert find_grid_values(searched(tmp_path / "grid"))
    assert find_grid_values(searched(tmp_path / "again")[:-1])  # its other seeds are there
    assert not find_grid_values(drawn)
    jobs, keys, _ = read_finished_jobs(drawn)
    numbers, members = searches.draw_clouds(keys, jobs, "val/accuracy").axes
    assert sorted(map(tuple, numbers.collections[0].get_offsets().tolist())) == [(0.001, 0.5), (0.05, 0.6), (0.1, 0.7)]
    assert numbers.get_xscale() == "log"
    rows = [label.get_text() for label in members.get_yticklabels()]
    dots = {rows[int(dots.get_offsets()[0][1])]: sorted(dots.get_offsets()[:, 0]) for dots in members.collections}
    assert dots == {"x": [0.5, 0.6], "y": [0.5, 0.7]}
