"""Run native code that a broken file can crash in a child process."""

import faulthandler
import io
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np


class IsolatedError(Exception):
    """Why the work ended: `kind` is the name of an exception class or a signal, `args[0]` the exception's message."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(message)
        self.kind = kind


def in_child(work: Callable[[], np.ndarray], seconds: int = 60, memory: int | None = None) -> np.ndarray:
    """The array that `work` returns, computed in a fork of this process, which may crash or hang without harm.

    A fork takes some milliseconds. What `work` prints is discarded, and nothing is unpickled. Raises IsolatedError if
    `work` raises, crashes, takes longer than `seconds` (SIGALRM), needs more than `memory` bytes in addition to what
    this process has (MemoryError), or returns an array of objects.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _send_result(work, writing, seconds, memory)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            result = pipe.read()
    finally:
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise IsolatedError(signal.Signals(os.WTERMSIG(status)).name)
    if not result:  # it had no memory left even to say so
        raise IsolatedError(MemoryError.__name__)
    kind, _, rest = result.partition(b"\n")
    if kind:
        raise IsolatedError(kind.decode(), rest.decode())
    array: np.ndarray = np.load(io.BytesIO(rest), allow_pickle=False)
    return array


def _send_result(work: Callable[[], np.ndarray], writing: int, seconds: int, memory: int | None) -> NoReturn:
    """In the child: write an error's class and message, or an empty line and the array in .npy format."""
    try:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # end the process even inside native code
        signal.alarm(seconds)
        if memory is not None:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        content = io.BytesIO(b"\n")
        content.seek(1)
        try:
            np.save(content, work(), allow_pickle=False)
        except Exception as error:
            content = io.BytesIO(f"{type(error).__name__}\n{error}".encode(errors="replace"))
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(content.getbuffer())
    finally:
        os._exit(0)
