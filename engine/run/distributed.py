"""One job on several processes: joining those that torchrun or srun started, and falling together when one fails."""

import contextlib
import functools
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist

from common.errors import UserError, one_line
from common.processes import barrier, processes

SPEAKERS = "speakers"
"""The store counts here who had something to say of a failure; the first one says it, all others are silent."""
POLL_SECONDS = 0.5
GRACE_SECONDS = 3.0
"""What a process has to leave by itself, its work undone properly, once another one has failed."""
JOIN_TIMEOUT = timedelta(minutes=10)
WAIT_TIMEOUT = timedelta(hours=2)
"""For slower processes at the end of an evaluation, say; those that are gone are noticed within seconds."""


class PeerFailed(Exception):  # noqa: N818 - not this process's error
    """Another process of the job has failed and tells the user why."""


def launch_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT as torchrun sets them, or read off srun's; {} for neither.

    Raises UserError where one of them is missing and cannot be guessed.
    """
    if "RANK" in environment:
        found = {name: environment.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
        found["LOCAL_RANK"] = environment.get("LOCAL_RANK", "0")
    elif int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # a batch script outside of srun has no step
        job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", "0"))
        one_node = environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES")) == "1"
        found = {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "MASTER_ADDR": environment.get("MASTER_ADDR", "127.0.0.1" if one_node else ""),
            "MASTER_PORT": environment.get("MASTER_PORT", str(20000 + (7 * job + step) % 20000)),
        }
    else:
        return {}
    for name, value in found.items():
        if not value:
            raise UserError(
                f"{name} is not set, but there are several processes; start them as slurm/train.sbatch does"
            )
    return found if int(found["WORLD_SIZE"]) > 1 else {}


def distributed_main(main: Callable[[], None]) -> Callable[[], None]:
    """Make a script's main join the job's other processes, where torchrun or srun started several.

    If it fails in one of them, that one tells the user why and all end within seconds, with exit code 2 for a
    UserError and 1 otherwise. A SystemExit of 128 or more (a run that was stopped) is for all to raise together.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        environment = launch_environment(os.environ)
        if not environment:
            return main()
        os.environ.update(environment)
        company = ProcessGroupWatchdog()
        try:
            main()
            company.part()
        except SystemExit as leaving:
            if leaving.code and not (isinstance(leaving.code, int) and leaving.code >= 128):
                company.fail(leaving)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # srun sends it to the others when the first has left
            company.part()
            raise
        except BaseException as error:
            company.fail(error)

    return wrapped


def one_process_only(script: str, instead: str) -> None:
    """Raise UserError where torchrun or srun started several processes of a script that knows of one."""
    if launch_environment(os.environ):
        raise UserError(f"{script} works in one process: start it with python; {instead}")


class ProcessGroupWatchdog:
    """The process group, and a thread that watches whether all of it is still there."""

    def __init__(self) -> None:
        """Join the others. gloo carries what is on the CPU, NCCL what is on a GPU."""
        self.store, rank, world_size = next(dist.rendezvous("env://", timeout=JOIN_TIMEOUT))
        self.store.set_timeout(JOIN_TIMEOUT)
        dist.init_process_group(store=self.store, rank=rank, world_size=world_size, timeout=WAIT_TIMEOUT)
        self.leaving, self.heard = threading.Event(), False
        self.watcher = threading.Thread(target=self._watch, args=(self.store.clone(),), daemon=True)
        self.watcher.start()

    def _watch(self, store: dist.Store) -> None:
        """End this process when another has failed: its main thread may wait for that one in a collective."""
        while not self.leaving.wait(POLL_SECONDS):
            try:
                self.heard = store.check([SPEAKERS])
            except dist.DistError:  # the first process, which keeps the store, is gone
                if not self.leaving.wait(GRACE_SECONDS):  # else the main thread has noticed, and says so
                    self.fail(ConnectionError("no answer from the first process"))
                return
            if self.heard and not self.leaving.wait(GRACE_SECONDS):
                os._exit(1)

    def part(self) -> None:
        """Leave when all are done."""
        self.leaving.set()
        self.watcher.join()
        barrier()  # the first process may keep the store; it must not go while others look into it
        dist.destroy_process_group()

    def fail(self, error: BaseException) -> NoReturn:
        """Tell the user, if nobody else has, and end: no clean-up of the group, whose others may never answer."""
        self.leaving.set()
        code = 1
        if isinstance(error, PeerFailed):
            self._let_speak()
        elif self._speaks_first():
            code = _tell(error)
        sys.stdout.flush()
        sys.stderr.flush()
        if processes().is_main:  # which may keep the store: all others look into it once more
            time.sleep(2 * POLL_SECONDS)
        os._exit(code)

    def _let_speak(self) -> None:
        until = time.monotonic() + GRACE_SECONDS
        with contextlib.suppress(dist.DistError):
            while not self.store.check([SPEAKERS]) and time.monotonic() < until:
                time.sleep(POLL_SECONDS / 5)

    def _speaks_first(self) -> bool:
        try:
            return self.store.add(SPEAKERS, 1) == 1
        except dist.DistError:  # the first process kept the store and is gone; if it did not say why, the second does
            return not self.heard and processes().rank == 1


def _tell(error: BaseException) -> int:
    """Say what happened; the exit code."""
    here = processes()
    who = f"process {here.rank} of {here.world_size}"
    if isinstance(error, UserError):
        print(f"error: {who}: {one_line(str(error))}", file=sys.stderr)
        return 2
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    lost = isinstance(error, RuntimeError) and re.search("gloo|NCCL", str(error))  # they raise no type of their own
    if lost or isinstance(error, dist.DistError | ConnectionError):
        print(
            f"error: {who}: another process is gone without a word (killed? out of memory?); the last checkpoint is "
            f"whole, go on with --resume=true ({str(error).splitlines()[0][:200]})",
            file=sys.stderr,
        )
        return 1
    print(f"{who}:", file=sys.stderr)
    traceback.print_exception(error)
    return 1
