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


def test_a_forked_worker_neither_counts_nor_holds_up_the_end() -> None:
    """Loading workers live on for a while, and the terminal sends them Ctrl-C too."""
    signals = (signal.SIGINT, signal.SIGALRM)
    handlers = [signal.signal(number, lambda number, frame: None) for number in signals]
    try:
        with second_interrupt_ends(grace=0.1):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                while True:
                    signal.pause()
            time.sleep(0.1)
            for _ in range(3):
                os.kill(child, signal.SIGINT)
                time.sleep(0.05)
            time.sleep(0.3)  # longer than the grace
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the context ended before the worker"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
