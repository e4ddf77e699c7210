"""A sweeper of every combination of values, and the base class of our other sweepers.

It replaces Hydra's BasicSweeper, which launches finished jobs again, and ends when the launcher fails.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from hydra.plugins.sweeper import Sweeper

if TYPE_CHECKING:
    from tutelage.config import Config
    from tutelage.sweeps.folder import Outcome
    from tutelage.sweeps.space import Dimension


class GridSweeper(Sweeper):
    """Runs every combination: the launcher starts only jobs whose runs are not finished."""

    def __init__(self, **settings: Any) -> None:
        from tutelage.config import SWEEPERS

        target = f"{type(self).__module__}.{type(self).__name__}"
        self.settings: Any = SWEEPERS[target].model_validate({"_target_": target, **settings})

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Take Hydra's loader of configs, the function that runs a job, and the config before a job's overrides."""
        from hydra.core.plugins import Plugins

        from tutelage.sweeps.folder import SweepFolder

        self.loader, self.shared_config = hydra_context.config_loader, config
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.folder = SweepFolder.from_hydra_config(config.hydra)
        self.launched_count = 0

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs of a sweep, given by its overrides; their outcomes are in the sweep's folder."""
        from tutelage.sweeps.space import parse_dimensions

        self.run_space(parse_dimensions(arguments, self.loader))

    def run_space(self, space: "Sequence[Dimension]") -> None:
        """Run a job for every combination of values."""
        from tutelage.sweeps.space import build_grid

        self.run_all(build_grid(space))

    def run_all(self, jobs: Sequence[tuple[str, ...]]) -> None:
        """Run all jobs of a sweep whose jobs are known from the start."""
        self.folder.set_job_count(len(set(jobs)))
        self.run_jobs(jobs)

    def run_jobs(self, jobs: Sequence[tuple[str, ...]], shortened: bool = False) -> "list[Outcome]":
        """List jobs in the sweep's folder, launch those that are not finished, and return the outcome of each.

        Args:
            jobs: their overrides; equal ones are one job.
            shortened: whether their schedules are shortened.
        """
        from tutelage.app.sweep import record_if_complete

        self.folder.add_jobs(jobs, shortened)
        unfinished = [
            job
            for job in dict.fromkeys(jobs)
            if not record_if_complete(partial(self.compose_job, job), job, self.folder)
        ]
        if unfinished:
            self._launch(unfinished)
        return [self.folder.read_outcome(job, shortened) for job in jobs]

    def compose_job(self, job: Sequence[str]) -> "Config":
        """Return a job's config.

        Raises:
            UserError: its values are refused.
        """
        from omegaconf import OmegaConf

        from tutelage.config.compose import hydra_errors_as_user_errors, validate_config

        with hydra_errors_as_user_errors(job):
            composed = self.loader.load_sweep_config(self.shared_config, list(job))
        return validate_config(OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"]))

    def _launch(self, jobs: Sequence[Sequence[str]]) -> None:
        """Give jobs to the launcher; if it fails, give it each job without an outcome again, alone.

        Raises:
            Stopped: a signal stopped the workers.
        """
        from tutelage.app.workers import WITH_WORKERS, forward_signals
        from tutelage.runs.cluster.signals import Stopped
        from tutelage.sweeps.folder import Outcome

        first, self.launched_count = self.launched_count, self.launched_count + len(jobs)
        has_workers = self.shared_config.hydra.runtime.choices["hydra/launcher"] in WITH_WORKERS
        no_signals: AbstractContextManager[list[int]] = nullcontext([])
        reason = ""
        with forward_signals(self.folder.request_stop) if has_workers else no_signals as signals:
            try:
                self.launcher.launch(jobs, initial_job_idx=first)
            except Exception as error:  # also where a worker died: the launcher ends the others with it
                reason = f"the launcher ended with {type(error).__name__}: {error}".splitlines()[0]
        if signals:
            raise Stopped(signals[0])
        for job in self.folder.jobs_without_outcome(jobs) if reason else ():
            if len(jobs) > 1:
                self._launch([job])
            else:
                self.folder.write_outcome(Outcome(job, None, reason, code=1))
