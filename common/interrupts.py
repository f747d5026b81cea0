"""A second Ctrl-C ends the process, also where the first one cannot: in native code, Python's handlers never run."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

GRACE_SECONDS = 5.0
"""Time that a second Ctrl-C leaves the process to end by itself."""


def _forget_in_child() -> None:
    # A forked child, such as a loading worker, gets the same Ctrl-C: it must not count as the parent's second one.
    with contextlib.suppress(ValueError):  # not the main thread
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_in_child)


@contextlib.contextmanager
def second_interrupt_ends(grace: float = GRACE_SECONDS) -> Iterator[None]:
    """A context in which the process ends with code 130, at most `grace` seconds after the second SIGINT.

    Signals keep their handlers. The context is to be entered by the main thread; in others it has no effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    left = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # written to at once, by the C handler

    def watch() -> None:
        interrupts = 0
        while number := os.read(reading, 1)[0]:  # 0 ends the thread
            interrupts += number == signal.SIGINT
            if interrupts == 2 and not left.wait(grace):
                print("interrupted", file=sys.stderr, flush=True)
                os._exit(130)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.write(writing, b"\0")  # closing it would not do: a forked child may hold it open too
        watching.join()
        os.close(reading)
        os.close(writing)
