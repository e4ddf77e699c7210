"""Jobs of a sweep as an array of SLURM, handed in by submitit.

How a job ends is told by ``squeue``, which every SLURM has, rather than by ``sacct``, which needs a database:
submitit's own waiting goes on for ever without it, and ends at the first job that died while others are still running.
"""

import getpass
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

SIGNAL = "USR1@{}"  # submitit's own is USR2, at which nothing of ours is saved
LOOK_SECONDS, ASK_SECONDS = 1.0, 15.0  # between looks for results, and questions to the controller
LATE_SECONDS = 15.0  # that a shared folder may take to show what a job left


class SlurmLauncher(Launcher):
    """Hands a sweep's jobs in as an array, waits until SLURM has no more of them, and says which left no result."""

    def __init__(
        self, folder: str, warning_s: int, sbatch: Mapping[str, Any], setup: Sequence[str], **resources: Any
    ) -> None:
        """Take the settings of the config.

        Args:
            folder: of scripts, logs and results; ``%j`` stands for the job.
            warning_s: how many seconds before its time limit a job saves and requeues itself.
            sbatch: further options of sbatch.
            setup: lines of shell before a job begins.
            resources: as submitit names them; null leaves one to SLURM.
        """
        self.folder = Path(folder).absolute()
        more = {"requeue": True, "signal": SIGNAL.format(warning_s), **sbatch}
        self.parameters = {
            **{name: value for name, value in resources.items() if value is not None},
            "slurm_setup": list(setup),
            "slurm_srun_args": ["--kill-on-bad-exit=1"],  # else the others wait for a process that died
            "slurm_additional_parameters": more,
        }

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Take what Hydra hands over: its loader of configs, the job, and the config that all jobs share."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> "Sequence[JobReturn]":
        """Run jobs, given by their overrides, and return how each ended."""
        import submitit
        from hydra.core.singleton import Singleton

        executor = submitit.AutoExecutor(folder=self.folder, cluster="slurm")
        executor.update_parameters(**self.parameters)
        numbers, states = range(initial_job_idx, initial_job_idx + len(job_overrides)), Singleton.get_state()
        jobs = executor.map_array(self, [list(one) for one in job_overrides], numbers, [states] * len(numbers))
        array = jobs[0].job_id.partition("_")[0]
        print(f"SLURM job {array} has {len(jobs)} of them; logs: {self.folder.parent}", flush=True)
        try:
            _wait(jobs)
        except KeyboardInterrupt:
            print(f"the jobs stay with SLURM: 'scancel {array}' ends them", file=sys.stderr)
            raise
        return [_ended(job) for job in jobs]

    def __call__(self, overrides: Sequence[str], number: int, states: Any) -> "JobReturn":
        """Run one job, in the process that SLURM has for it."""
        import submitit
        from hydra.core.singleton import Singleton
        from hydra.core.utils import run_job, setup_globals
        from omegaconf import open_dict

        Singleton.set_state(states)
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
        """Return what submitit runs again after a signal of its own (USR2, where a site sends that): the same."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *arguments)


def _wait(jobs: "Sequence[Job[Any]]") -> None:
    """Wait until each job has left its results, or is known to SLURM no more."""
    left, asked = list(jobs), time.monotonic()
    while left := [job for job in left if not _has_result(job)]:
        if time.monotonic() - asked > ASK_SECONDS:
            known, asked = _known(), time.monotonic()
            left = [job for job in left if known is None or job.job_id in known]
        time.sleep(LOOK_SECONDS)


def _has_result(job: "Job[Any]") -> bool:
    return all(job.task(number).paths.result_pickle.exists() for number in range(job.num_tasks))


def _known() -> set[str] | None:
    """Return the jobs that wait or run, by squeue; None where the controller does not answer."""
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    return None if done.returncode else set(done.stdout.split())


def _ended(job: "Job[Any]") -> "JobReturn":
    """Return how a job ended; say where its log lies if it failed."""
    import submitit
    from hydra.core.utils import JobReturn, JobStatus

    until = time.monotonic() + LATE_SECONDS
    while not _has_result(job) and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
    how = "left no result"
    if _has_result(job):
        try:
            return job.results()[0]  # type: ignore[no-any-return]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError):
            how = "failed"
    print(f"tutelage: SLURM job {job.job_id} {how}: {job.paths.stderr}", file=sys.stderr)
    return JobReturn(status=JobStatus.FAILED)
