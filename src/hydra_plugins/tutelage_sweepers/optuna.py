"""A sweeper that draws by Optuna's ask and tell, from the results of earlier trials, with a journal on disk.

It replaces hydra-optuna-sweeper, whose release 1.2.0 needs optuna<3, and which does not repeat the draws of
interrupted trials.

A trial's draw is a function of the search's seed, the trial's number and the results before it. A trial that was
interrupted, because its process was killed, leaves its number free: the same values are drawn again, and the trial's
run goes on where it stopped.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_plugins.tutelage_sweepers.grid import GridSweeper

if TYPE_CHECKING:
    from tutelage.sweeps.folder import Outcome
    from tutelage.sweeps.space import Dimension

JOURNAL, JOURNAL_LOCK = "journal.log", "journal.log.lock"
NUMBER, JOBS, PARTIAL_JOBS = "number", "jobs", "partial jobs"  # a trial's user attributes in the journal
SEED_COUNT = 2**32  # of Optuna's samplers


class Trial:
    """A trial that is running.

    Attributes:
        optuna_trial: Optuna's object of the trial.
        job: the overrides of the job with the full schedule.
        jobs: the jobs with the full schedule that were run, at most one.
        partial_jobs: the jobs with shortened schedules that were run.
        values: the objective at each rung.
        failed: whether the last job ended without an objective.
    """

    def __init__(self, optuna_trial: Any, job: tuple[str, ...]) -> None:
        self.optuna_trial, self.job = optuna_trial, job
        self.jobs: list[tuple[str, ...]] = []
        self.partial_jobs: list[tuple[str, ...]] = []
        self.values: list[float] = []
        self.failed = False


class OptunaSweeper(GridSweeper):
    """Asks Optuna for trials, runs their jobs, and tells Optuna the objective of each."""

    def run_space(self, space: "Sequence[Dimension]") -> None:
        """List the jobs of earlier trials, then run the trials that are missing."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = self._open_study(space)
        ended = self._list_ended_trials()
        if self.settings.rungs == 1:
            self.folder.set_job_count(max(self.settings.trials, len(ended)))
        self.values = [
            [trial.intermediate_values[rung] for trial in ended if rung in trial.intermediate_values]
            for rung in range(self.settings.rungs)
        ]
        self.run_jobs([tuple(job) for trial in ended for job in trial.user_attrs[PARTIAL_JOBS]], shortened=True)
        self.run_jobs([tuple(job) for trial in ended for job in trial.user_attrs[JOBS]])
        ended_numbers = {trial.user_attrs[NUMBER] for trial in ended}
        total = self.settings.trials + len(ended_numbers)
        missing = [number for number in range(total) if number not in ended_numbers]
        missing = missing[: max(0, self.settings.trials - len(ended_numbers))]
        for start in range(0, len(missing), self.settings.at_once):
            batch = [self._ask_trial(space, number) for number in missing[start : start + self.settings.at_once]]
            self._run_rungs(batch)
            for trial in batch:
                self._tell_result(trial)

    def _open_study(self, space: "Sequence[Dimension]") -> Any:
        """Return the study of this search, from the journal where it is there; the sweep's lock has to be held.

        Its name is that of the first job's run: with other data, or a changed config file, it is another study.
        """
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        from tutelage.app.job import locate_run
        from tutelage.config import MINIMIZED_OBJECTIVES

        file = self.folder.path / JOURNAL
        (self.folder.path / JOURNAL_LOCK).unlink(missing_ok=True)  # left by a process that was killed
        _cut_partial_line(file)
        first_job = self.compose_job([dimension.example_overrides[0] for dimension in space])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(
                study_name=locate_run(first_job)[0].path.name,
                storage=JournalStorage(JournalFileBackend(str(file))),
                direction="minimize" if self.settings.objective in MINIMIZED_OBJECTIVES else "maximize",
                load_if_exists=True,
            )
        for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        return study

    def _list_ended_trials(self) -> list[Any]:
        """Return Optuna's trials that are complete or pruned, in the order of their numbers."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return sorted(trials, key=lambda trial: int(trial.user_attrs[NUMBER]))

    def _ask_trial(self, space: "Sequence[Dimension]", number: int) -> Trial:
        """Return a new trial with the values that Optuna draws for it."""
        import optuna

        from tutelage.randomness import Key

        seed = Key(self.settings.seed, "sweep").torch_seed("sampler", number) % SEED_COUNT
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        self.study.sampler = samplers[self.settings.sampler](seed=seed)
        optuna_trial = self.study.ask()
        optuna_trial.set_user_attr(NUMBER, number)
        return Trial(optuna_trial, tuple(_suggest_override(optuna_trial, dimension) for dimension in space))

    def _run_rungs(self, batch: Sequence[Trial]) -> None:
        """Run trials rung by rung; only those among the best of a rung go on to the next."""
        trials, last = list(batch), self.settings.rungs - 1
        for rung in range(last + 1):
            jobs = [self._shorten_job(trial.job, rung) for trial in trials]
            outcomes = self.run_jobs(jobs, shortened=rung < last) if jobs else []
            promoted = []
            for trial, job, outcome in zip(trials, jobs, outcomes, strict=True):
                (trial.partial_jobs if rung < last else trial.jobs).append(job)
                value = self._read_objective(outcome)
                trial.failed = value is None
                if value is not None:
                    trial.values.append(value)
                    self.values[rung].append(value)
                    if self._is_among_best(value, rung):
                        promoted.append(trial)
            trials = promoted

    def _shorten_job(self, job: tuple[str, ...], rung: int) -> tuple[str, ...]:
        """Return a job with the schedule of a rung; the last rung has the full schedule."""
        from tutelage.errors import UserError

        fraction = self.settings.factor ** (rung - self.settings.rungs + 1)
        if fraction == 1:
            return job
        try:
            schedule = self.compose_job(job).schedule
        except UserError:  # the job fails with this error, whatever its length
            return job
        if schedule.steps is not None:
            return (*job, f"schedule.steps={max(1, round(fraction * schedule.steps))}")
        return (*job, f"schedule.epochs={fraction * schedule.epochs:.4g}")

    def _is_among_best(self, value: float, rung: int) -> bool:
        """Return whether a trial goes on to the next rung, by the values at this rung so far, which include its own.

        One trial in ``factor`` goes on, and the best of the first few (ASHA, Li et al. 2020, algorithm 2).
        """
        from tutelage.config import MINIMIZED_OBJECTIVES

        values = sorted(self.values[rung], reverse=self.settings.objective not in MINIMIZED_OBJECTIVES)
        limit = values[max(1, len(values) // self.settings.factor) - 1]
        return bool(value <= limit if self.settings.objective in MINIMIZED_OBJECTIVES else value >= limit)

    def _read_objective(self, outcome: "Outcome") -> float | None:
        """Return the objective of a job's run; None where the job failed or the objective is not finite."""
        from tutelage.runs import RunFolder, read_record

        if outcome.code or outcome.path is None:
            return None
        value = (read_record(RunFolder(outcome.path)) or {}).get("result", {}).get(self.settings.objective)
        return float(value) if value is not None and math.isfinite(value) else None

    def _tell_result(self, trial: Trial) -> None:
        """Tell Optuna how a trial ended; this writes it into the journal."""
        from optuna.trial import TrialState

        trial.optuna_trial.set_user_attr(JOBS, trial.jobs)
        trial.optuna_trial.set_user_attr(PARTIAL_JOBS, trial.partial_jobs)
        for rung, value in enumerate(trial.values):
            trial.optuna_trial.report(value, rung)
        if trial.failed:
            self.study.tell(trial.optuna_trial, state=TrialState.FAIL)
        elif len(trial.values) < self.settings.rungs:
            self.study.tell(trial.optuna_trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial.optuna_trial, trial.values[-1])


def _suggest_override(optuna_trial: Any, dimension: "Dimension") -> str:
    """Return the override that Optuna draws for a dimension."""
    key, bounds = dimension.key, dimension.bounds
    if dimension.is_fixed:
        return dimension.override
    if dimension.subset:
        subset = [
            value for value in dimension.values if optuna_trial.suggest_categorical(f"{key}: {value}", [True, False])
        ]
        return dimension.format_list(subset or dimension.values)
    if bounds is None:
        return dimension.format_value(optuna_trial.suggest_categorical(key, dimension.values))
    if dimension.integer:
        integer = optuna_trial.suggest_int(key, int(bounds[0]), int(bounds[1]), log=dimension.log)
        return dimension.format_number(integer)
    return dimension.format_number(optuna_trial.suggest_float(key, bounds[0], bounds[1], log=dimension.log))


def _cut_partial_line(file: Path) -> None:
    """Remove a last line that a killed process wrote only in part."""
    from tutelage.storage import write_whole

    content = file.read_bytes() if file.exists() else b""
    lines = content[: content.rfind(b"\n") + 1]
    if lines != content:
        write_whole(file, lambda out: out.write(lines))
