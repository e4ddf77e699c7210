"""The result of a search: the best settings by validation, and the command that trains them in full."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.config import MINIMIZED_OBJECTIVES, OBJECTIVES, SweeperConfig
from tutelage.report.jobs import FOLD, SEED, Job, format_settings, group_jobs
from tutelage.terminal.intervals import format_percent

FULL_SEEDS = "0,1,2,3,4"
RESET_KEYS = (SEED, FOLD, "evaluate_test")  # keys of a job that the command for the best settings sets anew


@dataclass(frozen=True)
class Best:
    """The best settings of a search.

    Attributes:
        settings: as a text.
        value: the mean of the objective over their runs, as a text.
        runs: how many they are.
        command: the command that trains the settings over new seeds and tests them.
    """

    settings: str
    value: str
    runs: int
    command: str

    def describe(self, objective: str) -> list[str]:
        """Return lines that say what is the best, and how it is trained in full."""
        runs = f"mean of {self.runs} runs" if self.runs > 1 else "1 run"
        return [
            f"best by {objective}: {self.settings} ({self.value}, {runs})",
            f"to train it in full and test it: {self.command}",
        ]


def find_best(keys: Sequence[str], jobs: Sequence[Job], command: str, search: SweeperConfig) -> Best | None:
    """Return the best settings of a search; None if no run has its objective."""
    members = rank_groups(keys, jobs, search.objective)[0]
    value = average_objective(members, search.objective)
    if math.isnan(value):
        return None
    settings = format_settings(keys, members[0]) or "the only setting"
    full_command = build_full_command(members[0], command, search)
    return Best(settings, format_objective(value, search.objective), len(members), full_command)


def get_objective(search: SweeperConfig | None) -> str:
    """Return the metric that runs are ranked by; without a search, the default objective."""
    return OBJECTIVES[0] if search is None else search.objective


def rank_groups(keys: Sequence[str], jobs: Sequence[Job], objective: str) -> list[list[Job]]:
    """Return the runs grouped by their settings of ``keys``, the best mean first.

    Groups in which a run has no value of the objective come last.
    """

    def sort_key(members: Sequence[Job]) -> tuple[bool, float]:
        value = average_objective(members, objective) * (1 if objective in MINIMIZED_OBJECTIVES else -1)
        is_incomplete = any(job.get_result(objective) is None for job in members)
        return is_incomplete, math.inf if math.isnan(value) else value

    return sorted(group_jobs(keys, jobs).values(), key=sort_key)


def average_objective(jobs: Sequence[Job], objective: str) -> float:
    """Return the mean of the objective over runs; NaN if no run has a value."""
    values = [value for job in jobs if (value := job.get_result(objective)) is not None]
    return float(np.mean(values)) if values else math.nan


def format_objective(value: float, objective: str) -> str:
    """Return a value of the objective as a text: a loss as a number, an accuracy in percent."""
    return f"{value:.4g}" if objective in MINIMIZED_OBJECTIVES else format_percent(value)


def build_full_command(best: Job, command: str, search: SweeperConfig) -> str:
    """Return the command that trains the best settings of a search over new seeds and measures them on the test set.

    Args:
        best: a run with the best settings.
        command: the search's command; its flags and its launcher are kept.
        search: the search's settings.
    """
    words = shlex.split(command)
    flags = [word for word in words if word.startswith("--")]
    launcher = [word for word in words if word.lstrip("+").startswith(("hydra/launcher=", "hydra.launcher."))]
    settings = [word for word in best.overrides if word.lstrip("+").partition("=")[0] not in RESET_KEYS]
    sweeper = ["hydra/sweeper=grid"] if search.is_search else []
    folds = [f"{FOLD}=range({best.data_settings['folds']})"] if FOLD in best.settings else []
    repetitions = [*folds, f"{SEED}={FULL_SEEDS}", "evaluate_test=true"]
    return shlex.join(["tutelage", "train", *flags, "-m", *settings, *launcher, *sweeper, *repetitions])
