"""A real SLURM of two virtual nodes on this machine, in a temporary folder; it needs no root."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from helpers.paths import ROOT

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "squeue", "scancel")
START_SECONDS = 120.0
NODES = ("n1", "n2")
CONFIG = """
ClusterName=virtual
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
JobRequeue=1
KillWait=15
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=2 RealMemory=4000
PartitionName=debug Nodes=n1,n2 Default=YES DefMemPerCPU=100 State=UP
PartitionName=low Nodes=n1,n2 PriorityTier=1 GraceTime=20 DefMemPerCPU=100 State=UP
PartitionName=high Nodes=n1,n2 PriorityTier=2 PreemptMode=OFF DefMemPerCPU=100 State=UP
"""


def list_missing_programs() -> list[str]:
    """Return the programs that are not installed."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class Slurm:
    """A running SLURM; its commands find it by ``SLURM_CONF``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHONPATH": str(ROOT / "src"),
            "MASTER_ADDR": "127.0.0.1",  # the nodes' names are unknown to the network
        }

    def call(self, *command: str) -> str:
        """Run a command of SLURM and return its output."""
        process = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=200)
        if process.returncode:
            output = process.stdout + process.stderr
            raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}\n{output}")
        return process.stdout

    def submit(self, script: str, options: Sequence[str], arguments: Sequence[str] = ()) -> str:
        """Submit a batch script and return the job's number."""
        file = self.folder / f"{secrets.token_hex(4)}.sbatch"
        file.write_text(script)
        output = f"--output={self.folder}/job-%j.log"
        return self.call("sbatch", "--parsable", output, *options, str(file), *arguments).strip()

    def job(self, number: str) -> dict[str, str]:
        """Return the fields that scontrol shows of a job."""
        text = self.call("scontrol", "show", "job", "--oneliner", number)
        return dict(word.partition("=")[::2] for word in text.split() if "=" in word)

    def number(self, task: str) -> str:
        """Return the number of an array's task, such as 12_3, among all jobs."""
        return self.job(task)["JobId"]

    def log(self, number: str) -> str:
        """Return the output of a job."""
        file = self.log_file(number)
        return file.read_text() if file.exists() else ""

    def log_file(self, number: str) -> Path:
        """Return the file of a job's output."""
        return self.folder / f"job-{number}.log"

    def wait(self, number: str, *states: str, seconds: float = 300.0) -> dict[str, str]:
        """Wait until a job is in one of some states and return the fields that scontrol shows of it."""
        deadline = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] not in states:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {number} is {job['JobState']}, not {' or '.join(states)}:\n{self.log(number)}")
            time.sleep(0.2)
        return job

    def wait_for_restart(self, number: str, restart: int) -> None:
        """Wait until a job has been restarted ``restart`` times and runs again, or has ended."""
        self._wait_until(
            lambda: self.job(number)["Restarts"] == str(restart), number, f"was not started again {restart} times"
        )
        self.wait(number, "RUNNING", "COMPLETED", "FAILED")

    def wait_until_gone(self, number: str) -> None:
        """Wait until squeue no longer lists a job."""
        self._wait_until(lambda: not self.call("squeue", "--noheader", f"--jobs={number}"), number, "is still there")

    def wait_for_process(self, number: str, word: str) -> None:
        """Wait until a job has a process with ``word`` on its command line."""
        variable = f"SLURM_JOB_ID={number}".encode()
        self._wait_until(
            lambda: any(word in line and variable in environment for _, line, environment in _processes()),
            number,
            f"began no {word}",
        )

    def _wait_until(self, condition: Callable[[], bool], number: str, message: str, seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {number} {message}:\n{self.log(number)}")
            time.sleep(0.05)

    def cancel(self, number: str, *options: str) -> None:
        """Cancel a job, or send it a signal."""
        self.call("scancel", *options, number)

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        self._start(f"slurmd-{node}", "slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kill a node's daemons, then its jobs, by SIGKILL: as in a power cut, nothing is reported."""
        log, conf = self.folder / f"slurmd-{node}.log", f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        daemons = [process for process, _, _ in _processes() if _has_open(process, log)]
        jobs = [
            process
            for process, _, environment in _processes()
            if {conf, f"SLURMD_NODENAME={node}".encode()} <= set(environment)
        ]
        for process in (*daemons, *jobs):
            with suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)

    def start(self) -> None:
        """Start the daemons and wait until all nodes are idle."""
        host = socket.gethostname().partition(".")[0]
        controller, *nodes = _free_ports(1 + len(NODES))
        user = pwd.getpwuid(os.getuid()).pw_name
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(folder=self.folder, host=host, user=user, controller=controller, n1=nodes[0], n2=nodes[1])
        )
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        files = [
            f"--{kind}-file={self.folder / f'munged.{suffix}'}"
            for kind, suffix in (("pid", "pid"), ("seed", "seed"), ("log", "log"))
        ]
        self._start(
            "munged", "munged", "--force", f"--socket={self.folder / 'munge.socket'}", f"--key-file={key}", *files
        )
        self._start("slurmctld", "slurmctld", "-i")
        for node in NODES:
            self.start_node(node)
        self.wait_for_nodes()

    def wait_for_nodes(self) -> None:
        """Wait until all nodes are idle."""
        deadline = time.monotonic() + START_SECONDS
        while (states := self.call("sinfo", "--noheader", "--Node", "--partition=debug", "--format=%T").split()) != [
            "idle"
        ] * len(NODES):
            if time.monotonic() > deadline:
                raise TimeoutError(f"nodes are {states}:\n{(self.folder / 'slurmctld.log').read_text()[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Cancel all jobs and end the daemons."""
        with suppress(RuntimeError):
            self.call("scancel", "--user", pwd.getpwuid(os.getuid()).pw_name)
        deadline = time.monotonic() + START_SECONDS
        with suppress(RuntimeError):
            while self.call("squeue", "--noheader") and time.monotonic() < deadline:
                time.sleep(0.2)
        for name in (*(f"slurmd-{node}" for node in NODES), "slurmctld", "munged"):
            self._kill(name)

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as out:
            process = subprocess.run(command, env=self.environment, stdout=out, stderr=out, timeout=120)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{(self.folder / f'{name}.out').read_text()}")

    def _kill(self, name: str) -> None:
        with suppress(OSError, ValueError):
            os.kill(int((self.folder / f"{name}.pid").read_text()), signal.SIGKILL)


def _processes() -> Iterator[tuple[Path, str, list[bytes]]]:
    """Yield each process that we may read: its folder in /proc, its command line, its environment."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            yield process, line, (process / "environ").read_bytes().split(b"\0")


def _has_open(process: Path, file: Path) -> bool:
    with suppress(OSError):
        return file in [descriptor.readlink() for descriptor in (process / "fd").iterdir()]
    return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


@contextmanager
def virtual_slurm() -> Iterator[Slurm]:
    """Run a SLURM while the block runs; without its programs skip the test, and fail in continuous integration."""
    if missing := list_missing_programs():
        message = f"not installed: {', '.join(missing)} (apt-get install slurm-wlm munge)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder:  # a socket's path has to be short
        slurm = Slurm(Path(folder))
        try:
            slurm.start()
            yield slurm
        finally:
            slurm.stop()
