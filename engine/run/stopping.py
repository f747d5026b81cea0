"""Stop a run after the current optimiser step on Ctrl-C, SIGTERM or SIGUSR1."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from common.processes import largest

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Sent by a user, by a cluster that preempts the job, and by a cluster before the time limit."""


class StopRequest:
    """A context in which the first of these signals sets a flag; a second one has its usual effect."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in STOPPING:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *details: object) -> None:
        self._restore()

    def agreed(self) -> signal.Signals | None:
        """The signal that any process of the job has received, or None: all must stop after the same step."""
        number = largest(self.signal or 0)[0]
        return signal.Signals(number) if number else None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()


class RunStopped(Exception):  # noqa: N818 - not an error: the run did what was asked
    """The run was asked to stop and has saved a checkpoint."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.exit_code = 128 + int(number)


@contextlib.contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """A context in which SIGTERM raises SystemExit, so that `finally` blocks remove partial files."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
