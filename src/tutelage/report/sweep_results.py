"""What a sweep has found: its runs, what failed, and what the comparison of the runs says. Needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tutelage.config import SweeperConfig
from tutelage.report import label_efficiency, searches
from tutelage.report.ensembles import Ensemble, combine_seeds
from tutelage.report.folds import (
    BY_IMAGES_NOTE,
    FOLDS_CHOSEN_NOTE,
    FOLDS_NOTE,
    describe_missing_folds,
    has_folds,
    pool_folds,
)
from tutelage.report.gains import describe_gains
from tutelage.report.jobs import (
    Job,
    Measure,
    find_grid_values,
    find_varied_values,
    format_settings,
    group_jobs,
    list_measures,
    read_finished_jobs,
)
from tutelage.report.pairs import compare_with_references
from tutelage.storage import digest
from tutelage.sweeps.folder import Outcome

HASH_LENGTH = 6
PARTIAL_NOTE = (
    "{} runs with shortened schedules decided which trials went on to the full schedule; they are not listed."
)


@dataclass(frozen=True)
class SweepResults:
    """What a sweep has found.

    Attributes:
        command: the command that started it.
        search: its settings if it is a search, which must not see the test set; None for other sweeps.
        job_count: of its jobs, without those whose schedule was shortened.
        jobs: those that are finished.
        keys: what it varied, without seed and fold.
        varied: the values of each key that it varied, seed and fold included.
        grid: the values of each of ``keys`` if the jobs are a full grid of them; empty otherwise.
        failures: a line on each job without a result.
        partial_count: of jobs whose schedule was shortened.
    """

    command: str
    search: SweeperConfig | None
    job_count: int
    jobs: Sequence[Job]
    keys: Sequence[str]
    varied: Mapping[str, Sequence[str]]
    grid: Mapping[str, Sequence[str]]
    failures: Sequence[str]
    partial_count: int

    @property
    def objective(self) -> str:
        """The metric that settings are ranked by."""
        return searches.get_objective(self.search)

    @cached_property
    def has_objective(self) -> bool:
        """Whether a run has the metric that settings are ranked by."""
        return any(job.get_result(self.objective) is not None for job in self.jobs)

    @property
    def folder(self) -> Path:
        """The folder of the page; another command has another one."""
        return self.jobs[0].folder.path.parent / f"sweep-{digest(self.command)[:HASH_LENGTH]}"

    @cached_property
    def groups(self) -> list[list[Job]]:
        """The runs of each setting, the best setting on validation first."""
        return searches.rank_groups(self.keys, self.jobs, self.objective)

    @cached_property
    def measures(self) -> list[Measure]:
        """The numbers that the runs are compared by."""
        return list_measures(self.jobs, self.objective)

    @cached_property
    def label_lines(self) -> list[label_efficiency.Line]:
        """A line over label budgets for each setting of the other keys; none if the budget was not varied."""
        return label_efficiency.build_lines(self.keys, self.jobs)

    @cached_property
    def best(self) -> searches.Best | None:
        """The best settings of a search."""
        return None if self.search is None else searches.find_best(self.keys, self.jobs, self.command, self.search)

    @cached_property
    def gains(self) -> list[str]:
        """Sentences on what settings and methods gained over what they are compared with."""
        lines = compare_with_references(self.keys, self.jobs)
        for members in group_jobs(self.keys, self.jobs).values():
            settings = format_settings(self.keys, members[0])
            gains = describe_gains([job.record for job in members], str(members[0].network["name"]))
            lines += [f"{settings}: {line}" if settings else line for line in gains]
        return lines

    @cached_property
    def ensembles(self) -> dict[str, Ensemble]:
        """What the seeds of each setting are as one; none for a search."""
        return combine_seeds(self.keys, self.jobs) if self.search is None else {}

    @property
    def search_notes(self) -> list[str]:
        """What is to be known about a search beside its best settings."""
        notes = []
        if self.search is not None and self.best is None:
            notes.append(f"no run has {self.objective}, so there is no best one")
        if self.best is not None and has_folds(self.jobs):
            notes.append(FOLDS_CHOSEN_NOTE)
        return notes + ([PARTIAL_NOTE.format(self.partial_count)] if self.partial_count else [])

    @cached_property
    def data_notes(self) -> list[str]:
        """What is to be known about folds, and about test images that are also learned from."""
        pooled = pool_folds(self.jobs)
        folds = [] if pooled is None else [FOLDS_NOTE, BY_IMAGES_NOTE] if pooled.has_groups else [FOLDS_NOTE]
        return folds + _describe_leaks(self.jobs)


def read_sweep(outcomes: Sequence[Outcome], command: str, search: SweeperConfig | None) -> SweepResults:
    """Return what a sweep has found.

    Args:
        outcomes: how each job ended.
        command: the command that started it.
        search: its settings if it is a search.
    """
    full = [outcome for outcome in outcomes if not outcome.partial]
    partial = [outcome for outcome in outcomes if outcome.partial]
    jobs, keys, failures = read_finished_jobs(full, tested=search is None)
    failures += read_finished_jobs(partial)[2]
    failures += describe_missing_folds(keys, jobs)
    varied, grid = find_varied_values(full), find_grid_values(full)
    return SweepResults(command, search, len(full), jobs, keys, varied, grid, failures, len(partial))


def _describe_leaks(jobs: Sequence[Job]) -> list[str]:
    """Return a note if test images of some runs are also learned from."""
    counts = [len(job.record.get("data", {}).get("leaked", [])) for job in jobs]
    if not any(counts):
        return []
    return [
        f"Duplicates: in {sum(map(bool, counts))} of {len(jobs)} runs test images are also learned from, up to "
        f"{max(counts)} of {max(job.test_images for job in jobs)}; data.duplicates=drop learns from none of them."
    ]
