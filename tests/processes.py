"""Tests of several processes: a function of a test module, called in each of them side by side.

The processes are forks of a server that has torch and the engine imported already, so that starting some costs a
fraction of a second. What they run must stand at the top of a module, and takes and returns what can be pickled.
"""

import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed as dist

T = TypeVar("T")

SECONDS = 120.0
"""Longer than any such test takes on a busy machine: a process that has not answered by then hangs."""
GRACE_SECONDS = 5.0
"""What the others have to answer, once one has failed."""
PRELOADED = ["tests.tiny", "commands.evaluate_methods"]


def on_processes(world_size: int, function: Callable[..., T], *arguments: Any) -> list[T]:
    """What `function(*arguments)` returns in each of `world_size` processes of one gloo group, by rank.

    One process has no group, as outside of torchrun. Raises what was raised first, with the traceback of its process
    as a note; fails the test where a process dies or has not answered after `SECONDS`.
    """
    context = multiprocessing.get_context("forkserver")
    start_server()
    task = pickle.dumps((function, arguments))
    with TemporaryDirectory() as folder:
        ends = [context.Pipe(duplex=False) for _ in range(world_size)]
        workers = [
            context.Process(target=_work, args=(rank, world_size, Path(folder) / "store", task, sender), daemon=True)
            for rank, (_, sender) in enumerate(ends)
        ]
        for worker, (_, sender) in zip(workers, ends, strict=True):
            worker.start()
            sender.close()
        try:
            return _answers([receiver for receiver, _ in ends])
        finally:
            for worker in workers:
                worker.kill()
                worker.join()


def start_server() -> None:
    """The imports of the server must find our packages, whatever folder a test stands in."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        forkserver.ensure_running()


def _answers(receivers: list[Connection]) -> list[Any]:
    """One value from each. The first failure counts: when one is gone, the others lose their connection to it."""
    answers: dict[int, Any] = {}
    failure: BaseException | None = None
    deadline = time.monotonic() + SECONDS
    while len(answers) < len(receivers):
        waiting = [receiver for rank, receiver in enumerate(receivers) if rank not in answers]
        ready = wait(waiting, max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for rank in (receivers.index(receiver) for receiver in ready):  # type: ignore[arg-type]
            value, error = _answer(receivers[rank], rank)
            answers[rank] = value
            if error is not None and failure is None:
                failure, deadline = error, time.monotonic() + GRACE_SECONDS
    if failure is not None:
        raise failure
    silent = [rank for rank in range(len(receivers)) if rank not in answers]
    if silent:
        pytest.fail(f"no answer from process {', '.join(map(str, silent))} of {len(receivers)} in {SECONDS:.0f} s")
    return [answers[rank] for rank in range(len(receivers))]


def _answer(receiver: Connection, rank: int) -> tuple[Any, BaseException | None]:
    try:
        value, error, trace = pickle.loads(receiver.recv_bytes())
    except EOFError:
        return None, RuntimeError(f"process {rank} died without an answer")
    if error is not None:
        error.add_note(f"in process {rank}:\n{trace}")
    return value, error


def _work(rank: int, world_size: int, store: Path, task: bytes, sender: Connection) -> None:
    """Everything that one process does."""
    torch.set_num_threads(1)
    try:
        if world_size > 1:
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
            shared = dist.FileStore(str(store), world_size)
            limit = timedelta(seconds=SECONDS)
            dist.init_process_group("gloo", store=shared, rank=rank, world_size=world_size, timeout=limit)
        function, arguments = pickle.loads(task)
        answer = pickle.dumps((function(*arguments), None, ""))
        if world_size > 1:
            dist.barrier()  # none closes its connections while another one may still wait for it
    except BaseException as error:  # noqa: BLE001 - SystemExit is an answer too
        answer = _told(error)
    sender.send_bytes(answer)
    sender.close()
    os._exit(0)


def _told(error: BaseException) -> bytes:
    trace = traceback.format_exc()
    try:
        answer = pickle.dumps((None, error, trace))
        pickle.loads(answer)
    except Exception:  # an exception of someone else's that cannot travel
        answer = pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), trace))
    return answer
