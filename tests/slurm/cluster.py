"""A real SLURM cluster of two nodes on this machine: munged, slurmctld and two slurmd in a temporary folder."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
HOST = socket.gethostname().partition(".")[0]
"""Also the name of the first node, the rendezvous of a job's processes; the second node is this machine too."""
NODES = (HOST, f"{HOST}-again")
CONFIG = """
ClusterName=test
SlurmctldHost={nodes[0]}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName=DEFAULT CPUs=16 Gres=gpu:8
NodeName={nodes[0]} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName={nodes[1]} NodeAddr=127.0.0.2 Port={ports[2]}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
"""`cred_expire` is also the delay of a requeued job. The GPUs exist in name only, so that jobs can request them."""
PATIENCE = 240.0
"""Timeout in seconds; only reached if something hangs."""


def missing() -> str:
    """Why this machine cannot run the cluster; empty if it can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "slurmctld and slurmd must be started by root"
    try:
        socket.gethostbyname(HOST)
    except OSError:
        return f"this machine's own name, {HOST}, has no address"
    return ""


@dataclass(frozen=True)
class Job:
    """A job or an array of jobs."""

    cluster: "Cluster"
    number: int

    def facts(self, name: str) -> list[str]:
        """What `scontrol show job` says under `name`, of every job of the array."""
        lines = self.cluster.call("scontrol", "--oneliner", "show", "job", str(self.number)).splitlines()
        return [dict(word.partition("=")[::2] for word in line.split())[name] for line in lines]

    def warn(self) -> None:
        """Send all processes the signal that comes before the time limit."""
        self.cluster.call("scancel", "--signal=USR1", str(self.number))

    def finish(self) -> list[str]:
        """Wait until all jobs have ended, including requeues; return their states."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
        wait_for(lambda: over.issuperset(self.facts("JobState")), self.cluster.logs)
        return self.facts("JobState")


@dataclass(frozen=True)
class Cluster:
    """A running cluster: its folder, and the environment of its commands."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the cluster in the repository's root, with `more` in its environment."""
        return subprocess.run(
            command, cwd=ROOT, env={**self.environment, **more}, capture_output=True, text=True, check=False,
            timeout=PATIENCE,
        )  # fmt: skip

    def call(self, *command: str, **more: str) -> str:
        """Run a command that must succeed; return its output."""
        done = self.run(*command, **more)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def sbatch(self, *words: str, **more: str) -> Job:
        """Submit a job or an array of jobs."""
        return Job(self, int(self.call("sbatch", "--parsable", *words, **more)))

    def logs(self) -> str:
        """The logs of the daemons."""
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))


def wait_for(done: Callable[[], bool], tell: Callable[[], str]) -> None:
    """Wait until `done()`; fail with the text of `tell()` after the timeout."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, tell()
        time.sleep(0.2)


@contextmanager
def started(folder: Path) -> Iterator[Cluster]:
    """Start the cluster in `folder`; at the end, stop all its jobs and daemons."""
    _configure(folder)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    cluster = Cluster(folder, {**kept, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")})
    munge = [f"--{what}={folder / 'munge'}.{what[:-5]}" for what in ("key-file", "pid-file", "seed-file")]
    with (
        _daemon(cluster, "munged", "--foreground", "--force", f"--socket={folder / 'munge.socket'}", *munge),
        _daemon(cluster, "slurmctld", "-D"),
        _daemon(cluster, "slurmd", "-D", "-N", NODES[0]),
        _daemon(cluster, "slurmd", "-D", "-N", NODES[1]),
    ):
        try:
            wait_for(lambda: cluster.run("sinfo", "--noheader", "--format=%D %t").stdout == "2 idle\n", cluster.logs)
            yield cluster
        finally:
            cluster.run("scancel", "--user=root")
            wait_for(lambda: not cluster.run("squeue", "--noheader").stdout, cluster.logs)


def _configure(folder: Path) -> None:
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    for i in range(8):
        (folder / f"gpu{i}").touch()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, nodes=NODES, ports=_free_ports(3)))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _daemon(cluster: Cluster, *command: str) -> Iterator[None]:
    with (cluster.folder / f"{command[0]}.log").open("a") as log:
        process = subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)


def _path() -> str:
    """Debian installs daemons in sbin, which may be missing from PATH."""
    return f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
