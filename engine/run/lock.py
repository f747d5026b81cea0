"""One job at a time in a run folder: a lock file that names its holder, on network file systems too.

The file is created exclusively, which NFS does atomically, and its holder renews its time stamp. A lock is stale if its
process is gone (on the holder's machine), if its SLURM job has been restarted, or if nobody has renewed it for a while.
"""

import contextlib
import json
import math
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from common.errors import UserError, one_line
from common.processes import processes

LOCK = "run.lock"
RENEW_SECONDS = 10.0
STALE_SECONDS = 180.0
"""Much longer than file systems cache time stamps (NFS: 60 s)."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    host: str
    pid: int
    started: str
    """When the process started, in clock ticks since boot; "" where the system does not tell."""
    machine: str
    """The boot and the namespace that `pid` belongs to: in a container, host names and pids repeat."""
    job: str
    """SLURM's job id, or ""."""
    restarts: int
    """How often SLURM has restarted the job."""
    token: str

    @classmethod
    def here(cls) -> "Holder":
        """This process."""
        job, restarts = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "")
        pid, count = os.getpid(), int(restarts) if restarts.isdecimal() else 0
        return cls(platform.node(), pid, _start_of(pid), _machine(), job, count, secrets.token_hex(8))

    def __str__(self) -> str:
        """For messages."""
        return f"process {self.pid} on {self.host}" + (f", SLURM job {self.job}" if self.job else "")

    def is_gone(self) -> bool | None:
        """Whether the process has ended; None if that cannot be seen from here."""
        here = Holder.here()
        if self.job and self.job == here.job and self.restarts < here.restarts:
            return True  # SLURM ends a job's processes before it restarts the job
        if (self.host, self.machine) != (here.host, here.machine):
            return None
        return _start_of(self.pid) != self.started if self.started else not _exists(self.pid)


@contextlib.contextmanager
def run_lock(out: Path) -> Iterator[None]:
    """Hold the lock of the run folder `out`, which is created if it is missing; only the job's first process does.

    Raises UserError naming the holder if another job holds it. If another job takes the lock while this process is
    suspended, this process ends at once, because both would write the same files.
    """
    if not processes().is_main:
        yield
        return
    path, is_new = out / LOCK, not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path)
    except OSError as error:
        raise UserError(f"--out: cannot write to {out} ({error.strerror or error})") from None
    released = threading.Event()
    renewing = threading.Thread(target=_renew, args=(path, lock, released), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        released.set()
        renewing.join()
        with contextlib.suppress(OSError):
            if _read(path) == lock:
                path.unlink()
        if is_new:
            with contextlib.suppress(OSError):  # it holds files
                out.rmdir()


def _acquire(path: Path) -> Holder:
    """Create the lock file, after removing a stale one. Raises UserError if another process holds it."""
    here = Holder.here()
    while True:
        try:
            with path.open("x") as file:
                json.dump(asdict(here), file)
        except FileExistsError:
            holder = _read(path)
            if not _is_stale(path, holder):
                raise UserError(_refusal(path, holder)) from None
            _remove_stale(path, holder)
        except OSError:
            with contextlib.suppress(OSError):  # a full disk leaves a file without content
                path.unlink()
            raise
        else:
            return here


def _is_stale(path: Path, holder: Holder | None) -> bool:
    gone = holder.is_gone() if holder else None
    return _age(path) > STALE_SECONDS if gone is None else gone


def _refusal(path: Path, holder: Holder | None) -> str:
    who = str(holder) if holder else "another process"
    return (
        f"{path.parent}: {who} is writing this run; wait for it or choose another --out. If it is dead, this lock "
        f"expires {STALE_SECONDS / 60:.0f} minutes after it stopped ({path})"
    )


def _remove_stale(path: Path, holder: Holder | None) -> None:
    """Remove the lock of `holder`, unless another process has done so; it may hold the lock by now.

    Only the process that creates the claim on this holder removes its lock, so a new lock is never taken for it.
    """
    token = "".join(filter(str.isalnum, holder.token)) if holder else "unreadable"
    claim = path.with_name(f".{LOCK}.{token}.tmp")
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        time.sleep(0.02)
        if STALE_SECONDS < _age(claim) < math.inf:  # its process died
            claim.unlink(missing_ok=True)
        return
    try:
        if _read(path) == holder:
            path.unlink(missing_ok=True)
    finally:
        claim.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """Seconds since the lock was renewed, by the file system's clock: those of two machines may differ."""
    now = path.with_name(f".{LOCK}.{secrets.token_hex(8)}.tmp")
    try:
        now.touch()
        return now.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return math.inf  # released meanwhile
    finally:
        now.unlink(missing_ok=True)


def _renew(path: Path, lock: Holder, released: threading.Event) -> None:
    while not released.wait(RENEW_SECONDS):
        try:
            holder = _read(path)
            if holder == lock:
                os.utime(path)
            elif holder is not None or not path.exists():
                who = f"{holder} has taken over" if holder else f"{path} was removed"
                print(f"error: {one_line(f'{path.parent}: {who}; this job ends')}", file=sys.stderr, flush=True)
                os._exit(2)
        except OSError:
            continue  # the file system is unreachable for now


def _read(path: Path) -> Holder | None:
    """The holder that a lock file names; None if it names none, for example because it is being written."""
    try:
        values = json.loads(path.read_text())
        return Holder(**{field.name: field.type(values[field.name]) for field in fields(Holder)})  # type: ignore[operator]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _start_of(pid: int) -> str:
    """The start of a process, which tells it from a later one with its pid; "" if it has ended, or without /proc."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else rest[18]


def _machine() -> str:
    found = []
    with contextlib.suppress(OSError):
        found = [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(found)
