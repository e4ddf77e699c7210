"""Jobs of a sweep by Ray, on this machine or on a cluster of Ray's: each in a process of its own."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.plugins.launcher import Launcher

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

LOOK_SECONDS = 1.0  # between looks whether the sweep was told to stop
# Read by Ray when it is imported: a line that several jobs print is shown each time, and Ray's makers are told nothing.
SETTINGS = {"RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0", "RAY_USAGE_STATS_ENABLED": "0"}


class RayLauncher(Launcher):
    """Gives each job to a process that Ray starts for it, waits for all, and says which of them died."""

    def __init__(self, init: Mapping[str, Any], remote: Mapping[str, Any]) -> None:
        """Take the settings of the config: of ``ray.init``, and of each job; null leaves one to Ray."""
        self.init, self.remote = _given(init), _given(remote)

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Take what Hydra hands over: its loader of configs, the job, and the config that all jobs share."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> "Sequence[JobReturn]":
        """Run jobs, given by their overrides, and return how each ended.

        Raises:
            SystemExit: the sweep was told to stop; each job has saved what it had.
        """
        os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
        import ray
        from hydra.core.singleton import Singleton

        from tutelage.app.workers import handed_on
        from tutelage.errors import BY_SIGNAL

        ray.init(**self.init)
        try:
            with handed_on() as came:  # in place of Ray's own handlers, which end the jobs at once
                train = ray.remote(max_retries=0, max_calls=1, **self.remote)(_train)
                of_all = (self.hydra_context, self.task_function, self.config, Singleton.get_state(), *_here())
                surroundings = ray.put(of_all)
                jobs = [
                    train.remote(surroundings, list(overrides), number)
                    for number, overrides in enumerate(job_overrides, initial_job_idx)
                ]
                _wait(jobs, came)
                if not came:
                    return [_ended(*one) for one in zip(jobs, job_overrides, strict=True)]
            print("stopped; the same command goes on from here", file=sys.stderr)
            sys.exit(BY_SIGNAL + came[0])
        finally:
            ray.shutdown()


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _here() -> tuple[Path, str]:
    """Return what jobs do not share with this process: where it is, and the packages that ``--allow`` named."""
    from tutelage.config.targets import by_flag

    return Path.cwd(), " ".join(by_flag())


def _wait(jobs: Sequence[Any], came: Sequence[int]) -> None:
    """Wait until each job has ended; once a signal came, tell them to stop."""
    import ray

    left, told = list(jobs), False
    while left:
        left = ray.wait(left, num_returns=len(left), timeout=LOOK_SECONDS)[1]
        if came and not told:
            told = True
            for job in left:
                ray.cancel(job)  # one that runs sees a SIGINT, the others do not begin


def _ended(job: Any, overrides: Sequence[str]) -> "JobReturn":
    """Return how a job ended; say so if its process died."""
    import ray
    from hydra.core.utils import JobReturn, JobStatus

    try:
        return ray.get(job)  # type: ignore[no-any-return]
    except ray.exceptions.RayError as error:
        reason = f"{getattr(error, 'cause', error)}".splitlines()[0]
    print(f"tutelage: Ray has lost a job: {reason} ({' '.join(overrides)})", file=sys.stderr)
    return JobReturn(status=JobStatus.FAILED)


def _train(surroundings: Any, overrides: Sequence[str], number: int) -> "JobReturn":
    """Run one job, in the process that Ray has for it, as if it ran where the sweep was begun."""
    from hydra.core.singleton import Singleton
    from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
    from omegaconf import open_dict

    from tutelage.config.targets import ALLOW_VARIABLE

    hydra_context, task_function, shared, states, folder, allowed = surroundings
    os.chdir(folder)  # a path of the config may be relative
    os.environ[ALLOW_VARIABLE] = allowed
    Singleton.set_state(states)
    setup_globals()
    config = hydra_context.config_loader.load_sweep_config(shared, list(overrides))
    with open_dict(config.hydra.job):
        config.hydra.job.id, config.hydra.job.num = f"ray_{number}", number
    with suppress(SystemExit):  # a signal stopped it
        return run_job(
            hydra_context=hydra_context,
            task_function=task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
    return JobReturn(status=JobStatus.FAILED)
