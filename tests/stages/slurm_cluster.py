"""Start and stop a real Slurm with one node and its own configuration, key, ports and directories."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
# A requeued job waits for as long as credentials live: by default two minutes, at least five seconds.
AuthInfo=socket={root}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
# No control groups and no systemd: a container has neither.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2
JobRequeue=1
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not_here() -> str | None:
    """Return the reason why Slurm cannot be started on this machine, or None."""
    missing = [program for program in PROGRAMS if not _program(program)]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "only root can start slurmd"


def wait_until(condition: Callable[[], object], seconds: float, what: str, *, every: float = 0.1) -> None:
    """Poll `condition`. Fails the test with `what` after a timeout."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(every)


class SlurmCluster:
    """Holds the daemons, and runs Slurm commands."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {**os.environ, "SLURM_CONF": str(root / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start munged, slurmctld and slurmd; returns when the node is idle."""
        for name in ("state", "spool"):
            (self.root / name).mkdir()
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        values = {
            "host": socket.gethostname().split(".")[0],
            "root": self.root,
            "controller_port": _free_port(),
            "node_port": _free_port(),
        }
        (self.root / "slurm.conf").write_text(CONFIGURATION.format(**values))
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        self._daemon("munged", "--foreground", "--force", *(f"--{f}={self.root}/munge.{n}" for f, n in files.items()))
        wait_until((self.root / "munge.socket").exists, 10, "munged opens its socket")
        self._daemon("slurmctld", "-D")
        self._daemon("slurmd", "-D")
        wait_until(lambda: "idle" in self._ask("sinfo", "--noheader", "--format=%T"), 60, f"a node; see {self.root}")

    def stop(self) -> None:
        """Cancel all jobs and stop the daemons in reverse order."""
        self._ask("scancel", "--me")
        deadline = time.monotonic() + 15
        while self._ask("squeue", "--noheader") and time.monotonic() < deadline:
            time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def command(self, *arguments: object) -> str:
        """Return the output of a Slurm command."""
        done = subprocess.run(list(map(str, arguments)), env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout.strip()

    def queue(self) -> list[str]:
        """Return the waiting and running jobs, one line each."""
        return self.command("squeue", "--noheader", "--format=%i %j %T %r").splitlines()

    def field(self, job: str, name: str) -> str:
        """Return one value of `scontrol show job`, for example JobState."""
        words = self.command("scontrol", "--oneliner", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def igrpo_process(self, job: str) -> int | None:
        """Return the process of `igrpo` in a running task, or None."""
        pids = self._ask("scontrol", "listpids", self.field(job, "JobId")).splitlines()[1:]
        for pid in (int(line.split()[0]) for line in pids):
            try:
                # Its children are graders.
                if b"igrpo_cli\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
            except OSError:
                continue
        return None

    def wait_until_idle(self, seconds: float) -> None:
        """Wait until the queue is empty."""
        wait_until(lambda: not self.queue(), seconds, "the queue is empty", every=0.5)

    def _ask(self, *arguments: str) -> str:
        return subprocess.run(arguments, env=self.environment, capture_output=True, text=True).stdout.strip()

    def _daemon(self, program: str, *arguments: str) -> None:
        with (self.root / f"{program}.log").open("wb") as log:
            command = [_program(program) or program, *arguments]
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
