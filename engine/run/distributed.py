"""The process group of a job, and its end in all processes when one fails."""

import contextlib
import math
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
BEAT_SECONDS = 10.0
SILENT_SECONDS = 300.0
"""A process that gives no sign of life for so long is taken for dead."""
JOIN_TIMEOUT = timedelta(minutes=10)
WAIT_TIMEOUT = timedelta(hours=2)
"""For slower processes, for example at the end of an evaluation; a process that died is noticed within seconds, one
that is suspended within minutes."""


class PeerFailed(Exception):  # noqa: N818 - not this process's error
    """Another process of the job has failed and reports why."""


class Heartbeat:
    """Tells the first process which other one has stopped: suspended (SIGSTOP), or on a machine that is gone."""

    def __init__(self, store: dist.Store) -> None:
        self.store, self.here, self.beats = store, processes(), 0
        self.sent = -math.inf
        self.heard: dict[int, tuple[int, float]] = {}
        """Rank -> its number of beats, and when that changed."""

    def silent(self) -> str:
        """Call again and again. A line about a process without a beat for `SILENT_SECONDS`; "" if there is none.

        Raises DistError if the first process, which hosts the store, is gone, or for minutes does not answer.
        """
        now = time.monotonic()
        if now - self.sent < BEAT_SECONDS:
            return ""
        late, self.sent = now - self.sent > 3 * BEAT_SECONDS, now  # this process was suspended itself
        if not self.here.is_main:
            self.store.add(f"beats/{self.here.rank}", 1)
            return ""
        for rank in range(1, self.here.world_size):
            beats = self.store.add(f"beats/{rank}", 0)
            if late or rank not in self.heard or self.heard[rank][0] != beats:
                self.heard[rank] = (beats, now)
            elif now - self.heard[rank][1] > SILENT_SECONDS:
                return (
                    f"process {rank} of {self.here.world_size} has not responded for {SILENT_SECONDS:.0f} seconds: it "
                    "is suspended, or its machine cannot be reached; the last checkpoint is intact, continue with "
                    "--resume=true"
                )
        return ""


class ProcessGroupWatchdog:
    """The process group, and a thread that ends this process when another one has failed."""

    def __init__(self) -> None:
        """Join the process group: gloo for tensors on the CPU, NCCL for those on a GPU."""
        try:
            self.store, rank, world_size = next(dist.rendezvous("env://", timeout=JOIN_TIMEOUT))
            self.store.set_timeout(JOIN_TIMEOUT)
            dist.init_process_group(store=self.store, rank=rank, world_size=world_size, timeout=WAIT_TIMEOUT)
        except (dist.DistError, OSError) as error:  # a host that cannot be reached, a port that is taken
            rank, world_size, *place = map(os.environ.get, ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
            raise UserError(
                f"process {rank} of {world_size} cannot join the others at {':'.join(map(str, place))} "
                f"({one_line(str(error))[:200]}); start all of them, or set another MASTER_PORT if that one is busy"
            ) from None
        self.leaving, self.failure_reported = threading.Event(), False
        self.watcher = threading.Thread(target=self._watch, args=(self.store.clone(),), daemon=True)
        self.watcher.start()

    def _watch(self, store: dist.Store) -> None:
        """End this process if another has failed: the main thread may be waiting for that one in a collective."""
        heartbeat = Heartbeat(store)
        while not self.leaving.wait(POLL_SECONDS):
            try:
                self.failure_reported = store.check([FAILURES])
                if silent := heartbeat.silent():
                    self.abort(UserError(silent))
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
