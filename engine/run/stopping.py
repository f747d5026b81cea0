"""Ctrl-C, SIGTERM and SIGUSR1 become a request to stop at the next whole step."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType

from common.processes import largest

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What asks a run to stop: a user, a cluster that wants the machine, a cluster that warns of the time limit."""


class StopRequest:
    """A context in which these signals set a flag instead of killing; a second one kills as usual."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in STOPPING:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def agreed(self) -> signal.Signals | None:
        """The signal that this process or any other of the job has had: they must stop after the same step."""
        number = largest(self.signal or 0)[0]
        return signal.Signals(number) if number else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()


class RunStopped(Exception):  # noqa: N818 - not an error: the run did as it was told
    """The run was asked to stop and has saved itself."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.exit_code = 128 + int(number)


@contextlib.contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """A context that SIGTERM leaves as an exception does, so that nothing half-written stays behind."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
