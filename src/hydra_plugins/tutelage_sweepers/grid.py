"""Every combination of what a sweep varies; and what all sweepers share."""

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
    """Runs every combination: what is missing by the launcher, what is finished answers at once."""

    def __init__(self, **settings: Any) -> None:
        from tutelage.config import SWEEPERS

        target = f"{type(self).__module__}.{type(self).__name__}"
        self.settings: Any = SWEEPERS[target].model_validate({"_target_": target, **settings})

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Take what Hydra hands over: its loader of configs, the job, and the config that all jobs share."""
        from hydra.core.plugins import Plugins

        from tutelage.sweeps.folder import SweepFolder

        self.loader, self.shared = hydra_context.config_loader, config
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.folder = SweepFolder.of(config.hydra)
        self.launched = 0

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs; what becomes of them stands in the sweep's folder."""
        from tutelage.sweeps.space import dimensions

        self.go_through(dimensions(arguments, self.loader))

    def go_through(self, space: "Sequence[Dimension]") -> None:
        """Run the jobs of a space."""
        from tutelage.sweeps.space import grid

        self.run_all(grid(space))

    def run_all(self, jobs: Sequence[tuple[str, ...]]) -> None:
        """Run jobs that are all known beforehand."""
        self.folder.expect(len(set(jobs)))
        self.run(jobs)

    def run(self, jobs: Sequence[tuple[str, ...]], short: bool = False) -> "list[Outcome]":
        """List jobs, run those of them that have something to do, and return what became of each.

        Args:
            jobs: their overrides; the same ones are one job.
            short: their schedules are shortened.
        """
        from tutelage.app.sweep import settle

        self.folder.add(jobs, short)
        missing = [job for job in dict.fromkeys(jobs) if not settle(partial(self.composed, job), job, self.folder)]
        if missing:
            self._launch(missing)
        return [self.folder.outcome(job, short) for job in jobs]

    def composed(self, job: Sequence[str]) -> "Config":
        """Return a job's config.

        Raises:
            UserError: its values do not go together.
        """
        from omegaconf import OmegaConf

        from tutelage.config.compose import checked, in_one_line

        with in_one_line(job):
            whole = self.loader.load_sweep_config(self.shared, list(job))
        return checked(OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"]))

    def _launch(self, jobs: Sequence[Sequence[str]]) -> None:
        """Hand jobs to the launcher; where it ended before them, hand in alone each of those that left no word.

        Raises:
            Stopped: the workers were told to stop, and have.
        """
        from tutelage.app.workers import WITH_WORKERS, handed_on
        from tutelage.runs.cluster.signals import Stopped
        from tutelage.sweeps.folder import Outcome

        first, self.launched = self.launched, self.launched + len(jobs)
        with_workers = self.shared.hydra.runtime.choices["hydra/launcher"] in WITH_WORKERS
        alone: AbstractContextManager[list[int]] = nullcontext([])
        reason = ""
        with handed_on(self.folder.stop) if with_workers else alone as came:
            try:
                self.launcher.launch(jobs, initial_job_idx=first)
            except Exception as error:  # of a worker that died, too; the others died with it
                reason = f"the launcher ended with {type(error).__name__}: {error}".splitlines()[0]
        if came:
            raise Stopped(came[0])
        for job in self.folder.silent(jobs) if reason else ():
            if len(jobs) > 1:
                self._launch([job])
            else:
                self.folder.write(Outcome(job, None, reason, code=1))
