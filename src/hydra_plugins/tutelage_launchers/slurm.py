"""A launcher that submits the jobs of a sweep to SLURM as a job array, with submitit.

It replaces hydra-submitit-launcher, which waits for jobs by submitit's own means and so needs ``sacct`` with its
database: without these the waiting never ends, and it ends at the first job that died while others still run. This
launcher asks ``squeue``, which every SLURM has.
"""

import getpass
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.plugins.launcher import Launcher

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from submitit import Job

SIGNAL = "USR1@{}"  # seconds before the time limit; submitit's own is USR2, at which a run saves nothing
POLL_SECONDS, SQUEUE_SECONDS = 1.0, 15.0  # between two checks for results, and between two calls of squeue
VISIBILITY_SECONDS = 15.0  # that a shared folder may take to show the result of a job


class SlurmLauncher(Launcher):
    """Submits a sweep's jobs as an array, waits until all have ended, and reports those without a result."""

    def __init__(
        self, folder: str, warning_s: int, sbatch: Mapping[str, Any], setup: Sequence[str], **resources: Any
    ) -> None:
        """Take the settings of the config.

        Args:
            folder: the folder of scripts, logs and results; ``%j`` stands for the job's number.
            warning_s: the seconds before its time limit at which a job saves and requeues itself.
            sbatch: further options of sbatch.
            setup: lines of shell to run before a job.
            resources: by the names of submitit; null leaves a resource to SLURM.
        """
        self.folder = Path(folder).absolute()
        sbatch_options = {"requeue": True, "signal": SIGNAL.format(warning_s), **sbatch}
        self.parameters = {
            **{name: value for name, value in resources.items() if value is not None},
            "slurm_setup": list(setup),
            "slurm_srun_args": ["--kill-on-bad-exit=1"],  # without it the others wait for a process that died
            "slurm_additional_parameters": sbatch_options,
        }

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Take Hydra's loader of configs, the function that runs a job, and the config before a job's overrides."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> "Sequence[JobReturn]":
        """Run jobs, given by their overrides, and return how each ended."""
        import submitit
        from hydra.core.singleton import Singleton

        python = f"{shlex.quote(sys.executable)} -P"  # imports nothing from the current folder
        executor = submitit.AutoExecutor(folder=self.folder, cluster="slurm", slurm_python=python)
        executor.update_parameters(**self.parameters)
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        singletons = [Singleton.get_state()] * len(numbers)
        jobs = executor.map_array(self, [list(overrides) for overrides in job_overrides], numbers, singletons)
        array = jobs[0].job_id.partition("_")[0]
        print(f"SLURM job {array} has {len(jobs)} of the jobs; logs: {self.folder.parent}", flush=True)
        try:
            _wait_for_jobs(jobs)
        except KeyboardInterrupt:
            print(f"SLURM keeps running the jobs: 'scancel {array}' ends them", file=sys.stderr)
            raise
        return [_collect_return(job) for job in jobs]

    def __call__(self, overrides: Sequence[str], number: int, singletons: Any) -> "JobReturn":
        """Run one job, in the process that SLURM started for it; ``singletons`` are Hydra's, of the sweep's process."""
        import submitit
        from hydra.core.singleton import Singleton
        from hydra.core.utils import run_job, setup_globals
        from omegaconf import open_dict

        Singleton.set_state(singletons)
        setup_globals()
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config.hydra.job):
            config.hydra.job.id, config.hydra.job.num = submitit.JobEnvironment().job_id, number
        return run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def checkpoint(self, *arguments: Any) -> Any:
        """Return what submitit runs after its own signal (USR2, where a site sends that): the same job again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *arguments)


def _wait_for_jobs(jobs: "Sequence[Job[Any]]") -> None:
    """Wait until each job has written its results, or squeue no longer lists it."""
    pending, last_call = list(jobs), time.monotonic()
    while pending := [job for job in pending if not _has_result(job)]:
        if time.monotonic() - last_call > SQUEUE_SECONDS:
            queued, last_call = _list_queued_jobs(), time.monotonic()
            pending = [job for job in pending if queued is None or job.job_id in queued]
        time.sleep(POLL_SECONDS)


def _has_result(job: "Job[Any]") -> bool:
    return all(job.task(number).paths.result_pickle.exists() for number in range(job.num_tasks))


def _list_queued_jobs() -> set[str] | None:
    """Return the ids of the jobs that wait or run, by squeue; None where squeue fails."""
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    return None if process.returncode else set(process.stdout.split())


def _collect_return(job: "Job[Any]") -> "JobReturn":
    """Return how a job ended; print the path of its log if it failed."""
    import submitit
    from hydra.core.utils import JobReturn, JobStatus

    deadline = time.monotonic() + VISIBILITY_SECONDS
    while not _has_result(job) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    end = "left no result"
    if _has_result(job):
        try:
            return job.results()[0]  # type: ignore[no-any-return]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError):
            end = "failed"
    print(f"tutelage: SLURM job {job.job_id} {end}: {job.paths.stderr}", file=sys.stderr)
    return JobReturn(status=JobStatus.FAILED)
