"""The process group of a job, and its end in all processes when one fails."""

import contextlib
import os
import re
import sys
import threading
import time
import traceback
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist

from common.errors import UserError, one_line
from common.processes import barrier, processes

FAILURES = "failures"
"""Key of the store that counts failed processes: the first reports its error, the others print nothing."""
POLL_SECONDS = 0.5
GRACE_SECONDS = 3.0
"""Time for a process to clean up and exit by itself after another one has failed."""
JOIN_TIMEOUT = timedelta(minutes=10)
WAIT_TIMEOUT = timedelta(hours=2)
"""For slower processes, for example at the end of an evaluation; a process that died is noticed within seconds."""


class PeerFailed(Exception):  # noqa: N818 - not this process's error
    """Another process of the job has failed and reports why."""


class ProcessGroupWatchdog:
    """The process group, and a thread that ends this process when another one has failed."""

    def __init__(self) -> None:
        """Join the process group: gloo for tensors on the CPU, NCCL for those on a GPU."""
        self.store, rank, world_size = next(dist.rendezvous("env://", timeout=JOIN_TIMEOUT))
        self.store.set_timeout(JOIN_TIMEOUT)
        dist.init_process_group(store=self.store, rank=rank, world_size=world_size, timeout=WAIT_TIMEOUT)
        self.leaving, self.failure_reported = threading.Event(), False
        self.watcher = threading.Thread(target=self._watch, args=(self.store.clone(),), daemon=True)
        self.watcher.start()

    def _watch(self, store: dist.Store) -> None:
        """End this process if another has failed: the main thread may be waiting for that one in a collective."""
        while not self.leaving.wait(POLL_SECONDS):
            try:
                self.failure_reported = store.check([FAILURES])
            except dist.DistError:  # the first process, which hosts the store, is gone
                if not self.leaving.wait(GRACE_SECONDS):  # otherwise the main thread has noticed and reports it
                    self.abort(ConnectionError("no response from the first process"))
                return
            if self.failure_reported and not self.leaving.wait(GRACE_SECONDS):
                os._exit(1)

    def leave(self) -> None:
        """Wait for all processes, then destroy the group."""
        self.leaving.set()
        self.watcher.join()
        barrier()  # the first process may host the store, which others still read
        dist.destroy_process_group()

    def abort(self, error: BaseException) -> NoReturn:
        """Report the error unless another process has, and exit without destroying the group, which could block."""
        self.leaving.set()
        code = 1
        if isinstance(error, PeerFailed):
            self._wait_for_report()
        elif self._reports_first():
            code = _report(error)
        sys.stdout.flush()
        sys.stderr.flush()
        if processes().is_main:  # it may host the store, which the others read once more
            time.sleep(2 * POLL_SECONDS)
        os._exit(code)

    def _wait_for_report(self) -> None:
        deadline = time.monotonic() + GRACE_SECONDS
        with contextlib.suppress(dist.DistError):
            while not self.store.check([FAILURES]) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS / 5)

    def _reports_first(self) -> bool:
        try:
            return self.store.add(FAILURES, 1) == 1
        except dist.DistError:
            # The first process hosted the store and is gone; if it reported nothing, the second one does.
            return not self.failure_reported and processes().rank == 1


def _report(error: BaseException) -> int:
    """Print the error; return the exit code."""
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
    # Neither gloo nor NCCL has an exception type of its own.
    lost = isinstance(error, RuntimeError) and re.search("gloo|NCCL", str(error))
    if lost or isinstance(error, dist.DistError | ConnectionError):
        print(
            f"error: {who}: another process died without an error message (killed? out of memory?); the last "
            f"checkpoint is intact, continue with --resume=true ({str(error).splitlines()[0][:200]})",
            file=sys.stderr,
        )
        return 1
    print(f"{who}:", file=sys.stderr)
    traceback.print_exception(error)
    return 1
