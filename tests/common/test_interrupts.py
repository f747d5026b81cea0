"""Ctrl-C twice ends every command, also inside native code that no Python handler can leave."""

import hashlib
import os
import signal
import threading
import time

import pytest

from common.interrupts import second_interrupt_ends


def exit_code_of(interrupts: int, native: bool) -> tuple[int, float]:
    """The exit code of a process that works for long and gets so many SIGINTs, and the seconds it took."""
    started, child = time.monotonic(), os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGINT, lambda number, frame: None)  # as a run, which finishes its step first
            with second_interrupt_ends(grace=0.2):
                if native:
                    hashlib.pbkdf2_hmac("sha256", b"", b"", 20_000_000)
                else:
                    time.sleep(1)
            os._exit(7)
        finally:
            os._exit(99)
    for _ in range(interrupts):
        time.sleep(0.3)
        os.kill(child, signal.SIGINT)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - started


@pytest.mark.parametrize(("interrupts", "native", "code"), [(1, False, 7), (2, False, 130), (2, True, 130)])
def test_a_second_interrupt_ends(interrupts: int, native: bool, code: int) -> None:
    found, seconds = exit_code_of(interrupts, native)
    assert found == code and seconds < 5


def test_leaving_puts_everything_back() -> None:
    before = signal.set_wakeup_fd(-1)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with second_interrupt_ends(), second_interrupt_ends():
            pass
    assert signal.set_wakeup_fd(before) == -1
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, files)
