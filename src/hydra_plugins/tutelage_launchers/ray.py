"""A launcher that runs the jobs of a sweep with Ray, each in its own process, on this machine or on a Ray cluster.

It replaces hydra-ray-launcher, whose release 1.2.2 needs cloudpickle<3; we use 3.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import chdir, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.plugins.launcher import Launcher

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

POLL_SECONDS = 1.0  # between two checks whether a signal stops the sweep
# Ray reads these when it is imported: show a line each time that a job prints it, without colours; report no usage.
RAY_ENVIRONMENT = {"RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0", "RAY_USAGE_STATS_ENABLED": "0"}


class RayLauncher(Launcher):
    """Runs each job in a process that Ray starts for it, waits for all, and reports those that died."""

    def __init__(self, init: Mapping[str, Any], remote: Mapping[str, Any]) -> None:
        """Take the arguments of ``ray.init`` and of ``ray.remote`` for each job; null leaves an argument to Ray."""
        self.init, self.remote = _drop_nulls(init), _drop_nulls(remote)

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Take Hydra's loader of configs, the function that runs a job, and the config before a job's overrides."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> "Sequence[JobReturn]":
        """Run jobs, given by their overrides, and return how each ended.

        Raises:
            SystemExit: a signal stopped the sweep; each job has saved its state.
        """
        os.environ.update({name: os.environ.get(name, value) for name, value in RAY_ENVIRONMENT.items()})
        import ray
        from hydra.core.singleton import Singleton

        from tutelage.app.workers import forward_signals
        from tutelage.errors import BY_SIGNAL

        settings = _with_absolute_folder(self.init)
        with chdir(sys.prefix):  # Ray's processes import from the folder that is current here
            ray.init(**settings)
        try:
            with forward_signals() as signals:  # replaces Ray's own handlers, which end the jobs at once
                run_remotely = ray.remote(max_retries=0, max_calls=1, **self.remote)(_run_job)
                hydra_state = (self.hydra_context, self.task_function, self.config, Singleton.get_state())
                shared_state = ray.put((*hydra_state, *_read_process_state()))
                jobs = [
                    run_remotely.remote(shared_state, list(overrides), number)
                    for number, overrides in enumerate(job_overrides, initial_job_idx)
                ]
                _wait_for_jobs(jobs, signals)
                if not signals:
                    return [_collect_return(*pair) for pair in zip(jobs, job_overrides, strict=True)]
            print("stopped; the same command goes on from here", file=sys.stderr)
            sys.exit(BY_SIGNAL + signals[0])
        finally:
            ray.shutdown()


def _with_absolute_folder(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ``ray.init`` with an absolute ``runtime_env.working_dir``, where they name a folder."""
    environment = dict(settings.get("runtime_env") or {})
    folder = environment.get("working_dir")
    if folder is None or not Path(folder).is_dir():  # or a URL
        return dict(settings)
    return {**settings, "runtime_env": {**environment, "working_dir": str(Path(folder).resolve())}}


def _drop_nulls(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _read_process_state() -> tuple[Path, dict[str, str]]:
    """Return this process's working directory and the variables of ``--allow``, which a job's takes over."""
    from tutelage.config.allowed_folder import read_flag_state

    return Path.cwd(), read_flag_state()


def _wait_for_jobs(jobs: Sequence[Any], signals: Sequence[int]) -> None:
    """Wait until each job has ended; once a signal has arrived, cancel the jobs.

    Args:
        jobs: Ray's references to the jobs.
        signals: the signals that have arrived; a handler adds to them.
    """
    import ray

    pending, cancelled = list(jobs), False
    while pending:
        pending = ray.wait(pending, num_returns=len(pending), timeout=POLL_SECONDS)[1]
        if signals and not cancelled:
            cancelled = True
            for job in pending:
                ray.cancel(job)  # a running job gets a SIGINT, the others do not start


def _collect_return(job: Any, overrides: Sequence[str]) -> "JobReturn":
    """Return how a job ended; print a line if its process died."""
    import ray
    from hydra.core.utils import JobReturn, JobStatus

    try:
        return ray.get(job)  # type: ignore[no-any-return]
    except ray.exceptions.RayError as error:
        reason = f"{getattr(error, 'cause', error)}".splitlines()[0]
    print(f"tutelage: Ray has lost a job: {reason} ({' '.join(overrides)})", file=sys.stderr)
    return JobReturn(status=JobStatus.FAILED)


def _run_job(shared_state: Any, overrides: Sequence[str], number: int) -> "JobReturn":
    """Run one job, in the process that Ray started for it, as if it ran in the process of the sweep.

    Args:
        shared_state: Hydra's state, the working directory and the allowed packages of the sweep's process.
        overrides: the job's.
        number: the job's among all jobs of the sweep.
    """
    from hydra.core.singleton import Singleton
    from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
    from omegaconf import open_dict

    hydra_context, task_function, shared_config, singletons, folder, flag_state = shared_state
    os.chdir(folder)  # paths in the config may be relative
    os.environ.update(flag_state)
    Singleton.set_state(singletons)
    setup_globals()
    config = hydra_context.config_loader.load_sweep_config(shared_config, list(overrides))
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
