"""Draws that go by what the trials before gave, by Optuna: ask and tell, with a journal that outlives the process.

A trial's draw follows from the search's seed, the trial's number and the results before it. What was asked for and
never told, because a process was killed, leaves its number free: the same is drawn again, and its run goes on where it
stopped.
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

JOURNAL, ITS_LOCK = "journal.log", "journal.log.lock"
NUMBER, JOBS, PARTIAL_JOBS = "number", "jobs", "partial jobs"  # a trial's notes
SEEDS = 2**32  # of Optuna's samplers


class Trial:
    """A trial that is under way.

    Attributes:
        asked: Optuna's.
        job: the overrides of the job with the whole schedule.
        jobs: those with the whole schedule that were run, one at most.
        partial_jobs: those with shortened ones that were run.
        values: what validation said at each rung.
        failed: whether a job gave nothing.
    """

    def __init__(self, asked: Any, job: tuple[str, ...]) -> None:
        self.asked, self.job = asked, job
        self.jobs: list[tuple[str, ...]] = []
        self.partial_jobs: list[tuple[str, ...]] = []
        self.values: list[float] = []
        self.failed = False


class OptunaSweeper(GridSweeper):
    """Asks for trials, runs them, and tells what validation says of them."""

    def go_through(self, space: "Sequence[Dimension]") -> None:
        """List the trials of a time before, then run those that are missing."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = self._study(space)
        told = self._told()
        if self.settings.rungs == 1:
            self.folder.expect(max(self.settings.trials, len(told)))
        self.values = [
            [trial.intermediate_values[rung] for trial in told if rung in trial.intermediate_values]
            for rung in range(self.settings.rungs)
        ]
        self.run([tuple(job) for trial in told for job in trial.user_attrs[PARTIAL_JOBS]], short=True)
        self.run([tuple(job) for trial in told for job in trial.user_attrs[JOBS]])
        done = {trial.user_attrs[NUMBER] for trial in told}
        missing = [number for number in range(self.settings.trials + len(done)) if number not in done]
        missing = missing[: max(0, self.settings.trials - len(done))]
        for begin in range(0, len(missing), self.settings.at_once):
            batch = [self._asked(space, number) for number in missing[begin : begin + self.settings.at_once]]
            self._try(batch)
            for trial in batch:
                self._tell(trial)

    def _study(self, space: "Sequence[Dimension]") -> Any:
        """Return the study, begun or gone on with; the sweep's lock is held, so nobody else is at it.

        It is named by a run that is one of it: on other data, or where a config file was changed, it is another study.
        """
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        from tutelage.app.job import place_of
        from tutelage.config import FALLING

        file = self.folder.path / JOURNAL
        (self.folder.path / ITS_LOCK).unlink(missing_ok=True)  # of a process that was killed
        _mend(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(
                study_name=place_of(self.composed([one.typical[0] for one in space]))[0].path.name,
                storage=JournalStorage(JournalFileBackend(str(file))),
                direction="minimize" if self.settings.objective in FALLING else "maximize",
                load_if_exists=True,
            )
        for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        return study

    def _told(self) -> list[Any]:
        """Return the trials that have come to an end, in the order of their numbers."""
        from optuna.trial import TrialState

        told = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return sorted(told, key=lambda trial: int(trial.user_attrs[NUMBER]))

    def _asked(self, space: "Sequence[Dimension]", number: int) -> Trial:
        """Return a trial's draw."""
        import optuna

        from tutelage.randomness import Key

        seed = Key(self.settings.seed, "sweep").torch_seed("sampler", number) % SEEDS
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        self.study.sampler = samplers[self.settings.sampler](seed=seed)
        asked = self.study.ask()
        asked.set_user_attr(NUMBER, number)
        return Trial(asked, tuple(_suggested(asked, dimension) for dimension in space))

    def _try(self, batch: Sequence[Trial]) -> None:
        """Run trials rung by rung; those that are not among the best of a rung stay there."""
        going, last = list(batch), self.settings.rungs - 1
        for rung in range(last + 1):
            jobs = [self._at(trial.job, rung) for trial in going]
            outcomes = self.run(jobs, short=rung < last) if jobs else []
            promoted = []
            for trial, job, outcome in zip(going, jobs, outcomes, strict=True):
                (trial.partial_jobs if rung < last else trial.jobs).append(job)
                value = self._value(outcome)
                trial.failed = value is None
                if value is not None:
                    trial.values.append(value)
                    self.values[rung].append(value)
                    if self._is_among_best(value, rung):
                        promoted.append(trial)
            going = promoted

    def _at(self, job: tuple[str, ...], rung: int) -> tuple[str, ...]:
        """Return a job with the schedule of a rung; the last rung's is the whole one."""
        from tutelage.errors import UserError

        share = self.settings.factor ** (rung - self.settings.rungs + 1)
        if share == 1:
            return job
        try:
            schedule = self.composed(job).schedule
        except UserError:  # it fails, and is told, at whatever length
            return job
        if schedule.steps is not None:
            return (*job, f"schedule.steps={max(1, round(share * schedule.steps))}")
        return (*job, f"schedule.epochs={share * schedule.epochs:.4g}")

    def _is_among_best(self, value: float, rung: int) -> bool:
        """Return whether a trial goes on to the next rung, by the results at this one so far, its own among them.

        One in ``factor`` does, and the best of the first few (ASHA, Li et al. 2020, algorithm 2).
        """
        from tutelage.config import FALLING

        values = sorted(self.values[rung], reverse=self.settings.objective not in FALLING)
        limit = values[max(1, len(values) // self.settings.factor) - 1]
        return bool(value <= limit if self.settings.objective in FALLING else value >= limit)

    def _value(self, outcome: "Outcome") -> float | None:
        """Return what validation says of a job's run; None where it gave nothing."""
        from tutelage.runs import RunFolder, read_record

        if outcome.code or outcome.path is None:
            return None
        value = (read_record(RunFolder(outcome.path)) or {}).get("result", {}).get(self.settings.objective)
        return float(value) if value is not None and math.isfinite(value) else None

    def _tell(self, trial: Trial) -> None:
        """Write down how a trial ended."""
        from optuna.trial import TrialState

        trial.asked.set_user_attr(JOBS, trial.jobs)
        trial.asked.set_user_attr(PARTIAL_JOBS, trial.partial_jobs)
        for rung, value in enumerate(trial.values):
            trial.asked.report(value, rung)
        if trial.failed:
            self.study.tell(trial.asked, state=TrialState.FAIL)
        elif len(trial.values) < self.settings.rungs:
            self.study.tell(trial.asked, state=TrialState.PRUNED)
        else:
            self.study.tell(trial.asked, trial.values[-1])


def _suggested(asked: Any, dimension: "Dimension") -> str:
    """Return the override that Optuna draws for a dimension."""
    key, bounds = dimension.key, dimension.bounds
    if dimension.is_fixed:
        return dimension.typed
    if dimension.subset:
        drawn = [value for value in dimension.values if asked.suggest_categorical(f"{key}: {value}", [True, False])]
        return dimension.chosen(drawn or dimension.values)
    if bounds is None:
        return dimension.one(asked.suggest_categorical(key, dimension.values))
    if dimension.whole:
        return dimension.number(asked.suggest_int(key, int(bounds[0]), int(bounds[1]), log=dimension.log))
    return dimension.number(asked.suggest_float(key, bounds[0], bounds[1], log=dimension.log))


def _mend(file: Path) -> None:
    """Cut off what a killed process wrote of a last line."""
    from tutelage.storage import write_whole

    content = file.read_bytes() if file.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_whole(file, lambda out: out.write(whole))
